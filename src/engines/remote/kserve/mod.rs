//! KServe v2 over HTTP, as Triton speaks it. The protocol knows tensors and no tasks: the settings name the tensors, and
//! the model says their shapes. What has no tensor (a conversation, a schema, several photos) is refused, not guessed.

mod model;
mod tasks;
mod tensor;

pub(super) use tasks::{KserveChat, KserveSpeaker, KserveTranscriber};

pub(super) const HEALTH: &str = "/v2/health/ready";
