//! Text to speech: what a speaker is asked and what it answers. The models that do it stand below.

mod ask;

pub use ask::{ANY_VOICE, Speak, SpeakAsk, SpeakStep, Speaker, Spoken};
