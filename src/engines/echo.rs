//! A transcriber for tests: it answers with what it was given (language, length, loudness), so that a test sees
//! whether the right audio arrived. Never part of a release.

use crate::{
    base::Result,
    engines::{Cancel, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, Transcriber},
    flow::Word,
};

pub struct Echo;

/// Says a number for each fifth of a second that it is given: what is read again begins as it did before.
pub struct Count;

impl Transcriber for Count {
    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        _: &mut dyn FnMut(TranscribeStep),
        _: &Cancel,
    ) -> Result<Vec<PieceText>> {
        Ok(ask.pieces.iter().map(|piece| count(piece, ask)).collect())
    }
}

fn count(piece: &Piece, ask: &TranscribeAsk) -> PieceText {
    let numbers: Vec<String> = (1..=(piece.audio.secs() * 5.0) as u64).map(|number| number.to_string()).collect();
    said(piece, ask, numbers.join(" "))
}

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
    said(piece, ask, format!("{secs:.2} s {loudness:.0} dB"))
}

fn said(piece: &Piece, ask: &TranscribeAsk, text: String) -> PieceText {
    let secs = piece.audio.secs();
    let language = if ask.language == "auto" { "es" } else { &ask.language };
    let words = if ask.words { words(&text, secs) } else { Vec::new() };
    let segment = SegmentText { end: secs, text, words, ..SegmentText::default() };
    PieceText { language: language.to_owned(), segments: vec![segment], advance_secs: secs, ..PieceText::default() }
}

/// At even steps, and short, as words are.
fn words(text: &str, secs: f64) -> Vec<Word> {
    let texts: Vec<&str> = text.split(' ').collect();
    let at = |index: usize| secs * index as f64 / texts.len() as f64;
    let word = |(index, text): (usize, &&str)| Word {
        start: at(index),
        end: at(index + 1).min(at(index) + 0.6),
        text: format!(" {text}"),
        probability: 1.0,
    };
    texts.iter().enumerate().map(word).collect()
}
