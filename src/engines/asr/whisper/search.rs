//! What every way of choosing tokens shares: the text so far, what it is told by, and when it must end.

use std::sync::Arc;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel, TranscribeStep,
        asr::whisper::{decoder::Decoder, rules::Rules},
    },
};

/// A text in the making, or made.
#[derive(Debug, Clone, Default)]
pub(super) struct Hypothesis {
    /// Without the prompt; with the end token where the model gave it.
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<f32>,
    /// What each token paid attention to when it was fed, by head, then by frame: all but the last. None where it was not
    /// asked for; shared by the hypotheses that begin alike.
    pub(super) attention: Vec<Arc<[f32]>>,
}

impl Hypothesis {
    pub(super) fn push(&mut self, token: u32, logprob: f32) {
        self.tokens.push(token);
        self.logprobs.push(logprob);
    }

    /// The last token was fed.
    pub(super) fn fed(&mut self, attention: &[f32]) {
        if !attention.is_empty() {
            self.attention.push(Arc::from(attention));
        }
    }

    pub(super) fn sum(&self) -> f32 {
        self.logprobs.iter().sum()
    }

    /// By token, the end counted whether it came or not.
    pub(super) fn avg(&self, eot: u32) -> f32 {
        let ended = self.tokens.last() == Some(&eot);
        self.sum() / (self.tokens.len() + usize::from(!ended)).max(1) as f32
    }
}

/// One search over rows that the decoder holds together.
pub(super) struct Search<'a> {
    pub(super) decoder: &'a mut Decoder,
    pub(super) rules: &'a Rules,
    pub(super) eot: u32,
    pub(super) max_new_tokens: usize,
    /// Attention is kept, for the times of words.
    pub(super) attention: bool,
}

/// Tells steps, and gives up when nobody waits any more.
pub(super) struct Progress<'a> {
    pub(super) step: &'a mut dyn FnMut(TranscribeStep),
    pub(super) cancel: &'a Cancel,
}

impl Progress<'_> {
    pub(super) fn go_on(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "the transcription was given up"));
        }
        Ok(())
    }

    pub(super) fn token(&mut self, piece: usize, tokens: usize) -> Result<()> {
        (self.step)(TranscribeStep { piece, tokens });
        self.go_on()
    }
}
