//! Speech to text. `ask` is what is asked and answered, the same for every family of models.

mod ask;

pub use ask::{Decode, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, transcript};
