//! What the voice detector says of a frame, and how far it is to be believed. Music and machines have sounds that pass for
//! voices for a moment, and a transcriber that is asked for words finds some in them.
//!
//! Of speech that is not faint the detector is quite sure for a frame at least, even in noise as loud as the voice; of single
//! notes it never is.

use serde::{Deserialize, Serialize};

use super::speech::Span;
use crate::flow::SAMPLE_RATE_HZ;

const SURE: f32 = 0.998;
/// -40 dB. Of fainter voices the detector may be less sure.
const FAINT: f32 = 0.01;
/// What is as near as this to speech is speech too: a word that was swallowed, a laugh.
const NEAR: u64 = 5 * SAMPLE_RATE_HZ as u64;
/// No sound that passes for a voice does so for as long as this.
const LONG: u64 = 3 * SAMPLE_RATE_HZ as u64;

/// One frame, as the voice detector heard it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Voiced {
    /// How likely it is speech.
    pub probability: f32,
    /// Whether it is so loud that the detector would be sure of a voice in it.
    pub loud: bool,
}

impl Voiced {
    pub fn new(probability: f32, frame: &[f32]) -> Voiced {
        let energy: f32 = frame.iter().map(|sample| sample * sample).sum();
        Voiced { probability, loud: energy > FAINT * FAINT * frame.len() as f32 }
    }

    /// Of a voice so faint that the detector cannot be asked to be sure.
    #[cfg(test)]
    pub fn faint(probability: f32) -> Voiced {
        Voiced { probability, loud: false }
    }
}

/// How sure the detector has been of a stretch of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Certainty {
    sure: bool,
    loud: bool,
}

impl Certainty {
    pub(super) fn add(&mut self, voiced: Voiced) {
        self.sure |= voiced.probability >= SURE;
        self.loud |= voiced.loud;
    }

    fn is_sure(self) -> bool {
        self.sure || !self.loud
    }
}

/// Whether that is no mere sound, whatever is near to it.
pub(super) fn is_speech(span: Span, certainty: Certainty) -> bool {
    certainty.is_sure() || span.len() >= LONG
}

pub(super) fn are_near(one: Span, other: Span) -> bool {
    one.start <= other.end.saturating_add(NEAR) && other.start <= one.end.saturating_add(NEAR)
}
