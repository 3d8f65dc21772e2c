//! Speech to text. `ask` is what is asked and answered, the same for every family of models.

mod ask;
pub mod whisper;

pub use ask::{Decode, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, transcript};
