//! Pure decisions about what to cut out of a stream. Knows no clock, no device and no engine: the same input gives
//! the same cuts, live or from a file.

pub mod agreement;
pub mod language;
pub mod speech;
pub mod tape;
mod voiced;
mod windows;
mod wording;

pub use agreement::{CommitRule, Committer, Fit, ReadWord, Reading, Shown};
pub use language::{Likelihood, SessionLanguage};
pub use speech::{Live, LiveState, Offline, Rules, Span, Speaking, SpeechEvent};
pub use tape::Tape;
pub use voiced::Voiced;
pub use windows::{Window, Windows};
