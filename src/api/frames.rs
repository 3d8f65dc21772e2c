//! Photos that were sent with `wait=false`, and what came of them: the last few hundred, in memory. The journal keeps what
//! was published of them.

use std::{collections::VecDeque, sync::Mutex};

use crate::{
    api::wire::FrameAnswer,
    base::{Error, Kind, Result, lock},
};

/// A client asks for its frame within moments; an answer takes a few kilobytes.
const KEPT: usize = 256;

#[derive(Default)]
pub struct Frames(Mutex<VecDeque<(String, Frame)>>);

#[derive(Clone)]
pub(crate) enum Frame {
    Working,
    Done(Box<FrameAnswer>),
    Failed { kind: Kind, message: String, hint: Option<String> },
}

impl Frames {
    pub(crate) fn begin(&self, id: &str) {
        let mut frames = lock(&self.0);
        if frames.len() == KEPT {
            frames.pop_front();
        }
        frames.push_back((id.to_owned(), Frame::Working));
    }

    pub(crate) fn end(&self, id: &str, outcome: &Result<FrameAnswer>) {
        let outcome = match outcome {
            Ok(answer) => Frame::Done(Box::new(answer.clone())),
            Err(error) => Frame::Failed {
                kind: error.kind(),
                message: error.message().to_owned(),
                hint: error.hint_text().map(str::to_owned),
            },
        };
        // One that was pushed out meanwhile stays out.
        if let Some((_, frame)) = lock(&self.0).iter_mut().find(|(other, _)| other == id) {
            *frame = outcome;
        }
    }

    pub(crate) fn get(&self, id: &str) -> Option<Frame> {
        lock(&self.0).iter().find(|(other, _)| other == id).map(|(_, frame)| frame.clone())
    }
}

impl Frame {
    /// None while it is looked at.
    pub(crate) fn outcome(self) -> Option<Result<FrameAnswer>> {
        match self {
            Frame::Working => None,
            Frame::Done(answer) => Some(Ok(*answer)),
            Frame::Failed { kind, message, hint } => {
                let error = Error::new(kind, message);
                Some(Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frames_are_kept_and_an_old_one_does_not_come_back() {
        let frames = Frames::default();
        for n in 0..=KEPT {
            frames.begin(&n.to_string());
        }
        assert!(frames.get("0").is_none() && frames.get("1").is_some_and(|it| it.outcome().is_none()));
        let failed = Err(Error::new(Kind::Busy, "full").hint("later"));
        frames.end("0", &failed);
        frames.end("1", &failed);
        assert!(frames.get("0").is_none());
        let error = frames.get("1").unwrap().outcome().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.message(), error.hint_text()), (Kind::Busy, "full", Some("later")));
    }
}
