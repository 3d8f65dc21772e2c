//! A transcriber for tests: it answers with what it was given (language, length, loudness), so that a test sees
//! whether the right audio arrived. Never part of a release.

use crate::{
    base::Result,
    engines::{Cancel, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, Transcriber},
    flow::Word,
};

pub struct Echo;

impl Transcriber for Echo {
    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        _: &mut dyn FnMut(TranscribeStep),
        _: &Cancel,
    ) -> Result<Vec<PieceText>> {
        Ok(ask.pieces.iter().map(|piece| echo(piece, ask)).collect())
    }
}

fn echo(piece: &Piece, ask: &TranscribeAsk) -> PieceText {
    let secs = piece.audio.secs();
    let energy: f64 = piece.audio.iter().map(|sample| f64::from(*sample).powi(2)).sum();
    let loudness = 10.0 * (energy / piece.audio.len().max(1) as f64).max(1e-10).log10();
    let language = if ask.language == "auto" { "es" } else { &ask.language };
    let text = format!("{secs:.2} s {loudness:.0} dB");
    let word = Word { start: 0.0, end: secs, text: text.clone(), probability: 1.0 };
    let words = if ask.words { vec![word] } else { Vec::new() };
    let segment = SegmentText { end: secs, text, words, ..SegmentText::default() };
    PieceText { language: language.to_owned(), segments: vec![segment], advance_secs: secs, ..PieceText::default() }
}
