//! What a speaker is asked and what it answers. Plain data: it crosses to the process of the engine.

use serde::{Deserialize, Serialize};

use crate::{
    base::Result,
    engines::{Cancel, Engine},
};

/// Whichever voice goes with the language.
pub const ANY_VOICE: &str = "auto";

/// Reads a text aloud. Looks at `cancel` and tells `step` after every part, so that hearing begins before the end.
pub trait Speaker: Send {
    fn speak(&mut self, ask: &SpeakAsk, step: &mut dyn FnMut(SpeakStep), cancel: &Cancel) -> Result<Spoken>;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeakAsk {
    pub text: String,
    /// A name, or [`ANY_VOICE`].
    pub voice: String,
    /// A code such as `es`.
    pub language: String,
    /// 1: as the voice speaks by itself.
    pub speed: f32,
}

/// The next part of the sound, mono in ±1. All parts have the same rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeakStep {
    /// How many samples came before it: who has heard a part is not told it again when the job begins anew.
    pub at: u64,
    pub samples: Vec<f32>,
    pub rate_hz: u32,
}

/// How much was said; the sound itself went to `step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoken {
    pub samples: u64,
    pub rate_hz: u32,
}

/// Any speaker, as a host runs it.
pub struct Speak(pub Box<dyn Speaker>);

impl Engine for Speak {
    type Ask = SpeakAsk;
    type Progress = SpeakStep;
    type Answer = Spoken;

    fn answer(&mut self, ask: &SpeakAsk, step: &mut dyn FnMut(SpeakStep), cancel: &Cancel) -> Result<Spoken> {
        self.0.speak(ask, step, cancel)
    }
}
