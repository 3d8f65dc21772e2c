//! Speech to text. `ask` is what is asked and answered, the same for every family of models.

mod accuracy;
mod align;
mod ask;
pub mod whisper;
mod guards;
pub mod longform;
mod words;

pub use accuracy::WordErrors;
pub use ask::{Decode, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, transcript};
pub use guards::Guards;
