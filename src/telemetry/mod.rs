//! What the daemon tells about itself: `logs` for people, `metrics` for Prometheus, `events` for the code that
//! has something to count. Knows nothing of what it counts; must never block or fail the one who tells.

pub mod events;
pub mod logs;
pub mod metrics;
mod process;

pub use events::emit;
pub use logs::Logs;
pub use metrics::Metrics;
