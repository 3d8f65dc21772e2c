//! Speech to text. `ask` is what is asked and answered, the same for every family of models.

mod align;
mod ask;
pub mod whisper;
mod words;

pub use ask::{Decode, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, transcript};
