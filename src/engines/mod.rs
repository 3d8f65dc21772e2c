//! Engines: one loaded model with its before and after. This file and the `ask.rs` of each kind of work hold the
//! contracts alone.
//!
//! An engine knows nothing of sessions, queues or publishers, and nothing model-specific is in a trait. It is
//! synchronous on purpose: the work is computing, not waiting; a host (`host`, `voice`) gives it its thread.

pub mod asr;
mod ballast;
pub mod chat;
pub mod diarize;
mod graph;
mod host;
pub mod prepare;
mod registry;
pub mod remote;
mod spec;
pub mod tts;
pub mod vad;
pub mod vision;
mod voice;

#[cfg(any(test, feature = "test-engine"))]
pub mod echo;
#[cfg(any(test, feature = "test-engine"))]
pub mod loudness;
#[cfg(any(test, feature = "test-engine"))]
pub mod puppet;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::base::Result;

use host::{Restarts, alive, died_too_often};

pub(crate) use host::child::serve;

pub use asr::{
    Decode, Guards, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, guarded, longform, transcript,
};
pub use ballast::{Ballast, BallastAsk, BallastSpec};
pub use chat::{Chat, ChatAsk, Chatter, End, Message, Role, Said, Sampling, TextStep, Usage};
pub use diarize::{
    DiarizeAsk, DiarizeStep, EmbedAsk, Embedded, Observed, Speakers, SpeakersSpec, Turn, Voiceprints, VoicesSpec,
};
pub use graph::{GraphAsk, GraphSpec, PlainGraph};
pub use host::{Engine, Handle, Launch, Limits, RestartRules, Vitals};
pub use registry::{Hireable, Hired, Hosting, Places, Registry, TaskState, TaskStatus};
pub use spec::{Asr, AsrSpec, EngineSpec, Spec};
pub use tts::{ANY_VOICE, Speak, SpeakAsk, SpeakStep, Speaker, Spoken};
pub use vision::{Describe, DescribeAsk, Describer};
pub use voice::{Heard, Sink, Voice, VoiceLimits, VoiceStream};

/// Turns pieces of audio into text. Looks at `cancel` and tells `step` after every token.
pub trait Transcriber: Send {
    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>>;

    /// What whoever runs this box should know of how it runs, once it is loaded.
    fn note(&self) -> Option<String> {
        None
    }
}

/// Turns a voice into a vector of unit length; close vectors are one speaker's. Looks at `cancel` between batches.
pub trait Embedder: Send {
    /// The voice of an utterance of one speaker.
    fn embed(&mut self, utterance: &[f32], cancel: &Cancel) -> Result<Vec<f32>>;

    /// The voices of stretches of an audio, all of about the length that the model was trained on.
    fn embed_stretches(&mut self, audio: &[f32], stretches: &[Range<usize>], cancel: &Cancel) -> Result<Vec<Vec<f32>>>;

    /// Whose vectors these are, and how they are to be compared.
    fn kind(&self) -> diarize::VoiceKind;
}

/// Hears a piece of a recording for who speaks when. Tells `step` after every batch of voices.
pub trait Diarizer: Send {
    fn diarize(&mut self, ask: &DiarizeAsk, step: &mut dyn FnMut(DiarizeStep), cancel: &Cancel) -> Result<Observed>;
}

/// What a voice detector remembers of one stream.
#[derive(Debug, Clone)]
pub struct VoiceState {
    pub recurrent: [f32; 256],
    pub context: [f32; 64],
}

impl Default for VoiceState {
    fn default() -> VoiceState {
        VoiceState { recurrent: [0.0; 256], context: [0.0; 64] }
    }
}

impl VoiceState {
    /// To keep it: exactly, since what is heard later depends on every bit.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.recurrent.iter().chain(&self.context).flat_map(|number| number.to_le_bytes()).collect()
    }

    /// `None` if these are not the bytes of one.
    pub fn from_bytes(bytes: &[u8]) -> Option<VoiceState> {
        let mut state = VoiceState::default();
        let (numbers, rest) = bytes.as_chunks::<4>();
        if numbers.len() != state.recurrent.len() + state.context.len() || !rest.is_empty() {
            return None;
        }
        let slots = state.recurrent.iter_mut().chain(&mut state.context);
        slots.zip(numbers).for_each(|(slot, number)| *slot = f32::from_le_bytes(*number));
        Some(state)
    }
}

/// One frame of one stream in a batch.
pub struct VoiceFrame<'a> {
    /// `segment::speech::FRAME` samples.
    pub samples: &'a [f32],
    pub state: &'a mut VoiceState,
    pub probability: f32,
}

/// Says how likely each frame is speech. Frames of different streams are looked at together, because one run over
/// thirty streams costs little more than one over a single stream.
pub trait VoiceDetector: Send {
    fn detect(&mut self, frames: &mut [VoiceFrame<'_>]) -> Result<()>;
}

/// Lets a job be given up between two steps of its engine.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
