//! Plain data that travels between the layers. No behaviour beyond parsing and writing itself; no module but `base`.
//!
//! *chunk* (as received) → *segment* (cut) → *job* (asked) → *outcome* (answered) → *event* (published).

pub mod audio;
pub mod event;
pub mod frame;
pub mod outcome;
pub mod session;
pub mod subtitles;
pub mod task;

pub use audio::{AudioFormat, Encoding, Pcm, SAMPLE_RATE_HZ};
pub use event::{Draft, Event, EventType};
pub use frame::{Image, PhotoKind};
pub use outcome::{TextSegment, Transcript, Warning, WarningCode, Word};
pub use session::{SessionConfig, SessionId, Wish};
pub use task::{Priority, Task};
