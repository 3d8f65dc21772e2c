//! Work that was asked for: bounded, prioritised, and the one place where anything waits for an engine.

mod files;
mod queue;
mod worker;

pub use files::{FileDesk, FileNews, FileSummary};
pub use queue::{Ask, Queue, QueueDepth, QueueLimits};
pub use worker::run;
