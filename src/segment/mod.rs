//! Pure decisions about what to cut out of a stream. Knows no clock, no device and no engine: the same input gives
//! the same cuts, live or from a file.

pub mod speech;
pub mod tape;
mod windows;

pub use speech::{Live, LiveState, Offline, Rules, Span, SpeechEvent};
pub use tape::Tape;
pub use windows::{Window, Windows};
