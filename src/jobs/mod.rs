//! Work that was asked for: bounded, prioritised, and the one place where anything waits for an engine.

mod analysis;
mod ask;
mod files;
mod queue;
mod scene;
mod speakers;
mod structured;
mod worker;

pub use analysis::{Analysis, Conversation, analyse};
pub use ask::{Answer, Ask};
pub use files::{FileAsk, FileDesk, FileNews, FileSpeakers, FileSummary, Naming, Recorded};
pub use queue::{Offer, Queue, QueueDepth, QueueLimits};
pub use scene::{Hazard, Looking, Scene};
pub use speakers::Overhearing;
pub use worker::run;
