//! A recording of any length through a transcriber that takes 30 s at a time.
//!
//! Two ways, both machines without input and output: [`Sequential`] decodes window after window and lets the model say
//! where the next one begins; [`BySpeech`] cuts windows where nobody speaks, independent of each other and several at a
//! time. Either says what it wants to ask, the caller finds the audio and an engine, and the machine makes segments of
//! the answer. What they hold does not grow with the recording.
//!
//! ```text
//! while let Some(request) = machine.request() {
//!     // the recording has been read up to request.until()
//!     let ask = request.ask(|from, to| tape.cut(from, to));
//!     segments.extend(machine.accept(engine.answer(&ask)?)?);
//!     tape.forget_before(machine.needed_from());
//! }
//! ```

mod by_speech;
mod language;
mod sequential;

pub use by_speech::BySpeech;
pub use sequential::{Recording, Sequential};

use super::{Piece, PieceText, SegmentText, TranscribeAsk};
use crate::{
    base::{Error, Result},
    flow::{Pcm, TextSegment},
    segment::Span,
};

/// An ask that waits for its audio.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    parts: Vec<Part>,
    /// Without pieces.
    ask: TranscribeAsk,
}

/// The audio of one piece: stretches of the recording, laid end to end.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    spans: Vec<Span>,
    lead: usize,
    /// Silence is put behind what is shorter than this.
    filled_to: usize,
    loudest: Option<f32>,
    previous: Vec<u32>,
}

impl Request {
    /// How far the recording has to be known.
    pub fn until(&self) -> u64 {
        self.parts.iter().flat_map(|part| &part.spans).map(|span| span.end).max().unwrap_or(0)
    }

    /// The ask, with samples `[from, to)` of the recording cut out by `cut`.
    pub fn ask(self, mut cut: impl FnMut(u64, u64) -> Pcm) -> TranscribeAsk {
        let pieces = self.parts.into_iter().map(|part| {
            let mut audio = match part.spans[..] {
                [Span { start, end }] => cut(start, end),
                _ => part.spans.iter().flat_map(|span| cut(span.start, span.end).to_vec()).collect::<Vec<f32>>().into(),
            };
            if audio.len() < part.filled_to {
                let silence = std::iter::repeat_n(0.0, part.filled_to - audio.len());
                audio = audio.iter().copied().chain(silence).collect::<Vec<f32>>().into();
            }
            Piece { audio, lead: part.lead, loudest: part.loudest, previous: part.previous }
        });
        TranscribeAsk { pieces: pieces.collect(), ..self.ask }
    }
}

/// As it is published and written to files. How likely its text is stands for how sure the engine is.
pub fn text_segment(id: u64, language: &str, segment: SegmentText) -> TextSegment {
    TextSegment {
        id,
        start: segment.start,
        end: segment.end,
        text: segment.text.trim().to_owned(),
        language: language.to_owned(),
        probability: segment.avg_logprob.min(0.0).exp(),
        speaker: None,
        words: segment.words,
    }
}

/// An engine that loses a piece would shift all texts behind it.
fn expect_answers(asked: usize, answers: &[PieceText]) -> Result<()> {
    if answers.len() == asked {
        return Ok(());
    }
    Err(Error::internal(format!("the transcriber was asked for {asked} pieces and answered {}", answers.len())))
}

/// Times are kept to a millisecond: sums of frames carry noise in their last digits.
fn whole_ms(secs: f64) -> f64 {
    (secs * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Tape;

    #[test]
    fn an_ask_gets_its_audio_end_to_end() {
        let mut tape = Tape::default();
        tape.push(&(0..100).map(|sample| sample as f32).collect::<Vec<f32>>());
        let part = |spans: &[(u64, u64)]| Part {
            spans: spans.iter().map(|(start, end)| Span { start: *start, end: *end }).collect(),
            lead: 0,
            filled_to: 0,
            loudest: None,
            previous: Vec::new(),
        };
        let request = Request {
            parts: vec![part(&[(2, 5)]), part(&[(10, 12), (90, 92)])],
            ask: TranscribeAsk::of(Vec::new().into(), "es"),
        };
        assert_eq!(request.until(), 92);
        let ask = request.ask(|from, to| tape.cut(from, to));
        assert_eq!(&*ask.pieces[0].audio, &[2.0, 3.0, 4.0]);
        assert_eq!(&*ask.pieces[1].audio, &[10.0, 11.0, 90.0, 91.0]);
        assert_eq!((ask.pieces.len(), &*ask.language), (2, "es"));
    }

    #[test]
    fn an_engine_that_loses_a_piece_is_told_of() {
        assert!(expect_answers(2, &[PieceText::default()]).is_err());
        assert!(expect_answers(1, &[PieceText::default()]).is_ok());
    }
}
