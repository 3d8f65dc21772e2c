//! Speech to text. `ask` is what is asked and answered, the same for every family of models.

mod accuracy;
mod align;
mod ask;
#[cfg(test)]
mod golden;
mod guards;
pub mod longform;
pub mod whisper;
mod words;

pub use accuracy::WordErrors;
pub use ask::{Decode, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, transcript};
pub use guards::{Guards, guarded};
