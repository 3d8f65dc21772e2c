//! Work that was asked for: bounded, prioritised, and the one place where anything waits for an engine.

mod ask;
mod files;
mod queue;
mod worker;

pub use ask::{Answer, Ask};
pub use files::{FileDesk, FileNews, FileSummary};
pub use queue::{Queue, QueueDepth, QueueLimits};
pub use worker::run;
