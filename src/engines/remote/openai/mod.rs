//! The OpenAI-compatible protocol, as far as servers of one's own speak it.

mod chat;
mod languages;
mod speak;
mod transcribe;

pub(super) use chat::OpenAiChat;
pub(super) use speak::OpenAiSpeaker;
pub(super) use transcribe::OpenAiTranscriber;

/// Every one of these servers lists its models, and computes nothing for it.
pub(super) const HEALTH: &str = "/v1/models";
