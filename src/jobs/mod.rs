//! Work that was asked for: bounded, prioritised, and the one place where anything waits for an engine.

mod ask;
mod files;
mod queue;
mod speakers;
mod worker;

pub use ask::{Answer, Ask};
pub use files::{FileAsk, FileDesk, FileNews, FileSpeakers, FileSummary};
pub use queue::{Queue, QueueDepth, QueueLimits};
pub use speakers::Overhearing;
pub use worker::run;
