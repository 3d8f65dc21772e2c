//! A transcriber for tests: it answers with what it was given (language, length, loudness), so that a test sees
//! whether the right audio arrived. Never part of a release.

use std::path::Path;

use crate::{
    base::{Error, Result},
    engines::{Cancel, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, Transcriber},
    flow::Word,
    runtime::{open_error, run_error},
};

/// A model of three variants, as on a device without memory for the larger two: what they say is ONNX Runtime's.
pub const LARGE: &str = "test-large";
/// The first cannot be loaded, the second cannot work, the third is an [`Echo`].
pub const SIZES: [&str; 3] = ["fp32", "fp16", "q8"];

pub(super) fn weight(variant: &str) -> Result<u64> {
    let place = SIZES.iter().rev().position(|size| *size == variant);
    place.map(|place| (place as u64 + 1) << 20).ok_or_else(|| Error::invalid(format!("{LARGE} has no `{variant}`")))
}

pub(super) fn large(variant: &str) -> Result<Box<dyn Transcriber>> {
    match SIZES.iter().position(|size| *size == variant) {
        Some(0) => {
            let text = "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);";
            Err(open_error(Path::new("encoder_model.onnx"), text))
        }
        Some(1) => Ok(Box::new(Full)),
        _ => Ok(Box::new(Echo)),
    }
}

struct Full;

impl Transcriber for Full {
    fn transcribe(
        &mut self,
        _: &TranscribeAsk,
        _: &mut dyn FnMut(TranscribeStep),
        _: &Cancel,
    ) -> Result<Vec<PieceText>> {
        let text = "Failed to allocate memory for requested buffer of size 1073741824";
        Err(run_error("the model decoder_model_merged.onnx failed", text))
    }
}

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
