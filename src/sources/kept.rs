//! What is kept of an open take, so that it can be gone on with after a crash as if nothing had happened.
//!
//! A checkpoint is handed to the store before anything that follows from it: the store's order is the order of the
//! journal. So what is heard after the newest checkpoint has never been told to anybody, and of what was cut before it
//! the journal says whether its text was.

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::VoiceState,
    flow::TextSegment,
    segment::{LiveState, Rules, Span},
    sources::ears::{Mark, needed_from},
    store::Checkpoint,
};

/// A segment whose text is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owed {
    pub(super) id: u64,
    pub(super) span: Span,
}

/// A take as of one frame. Later versions may keep more: what is missing in an older one has a default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TakeState {
    pub(super) live: LiveState,
    pub(super) next_segment: u64,
    /// In order.
    pub(super) owed: Vec<Owed>,
    /// All samples were in: nothing follows but the texts that are owed.
    pub(super) ended: bool,
}

impl TakeState {
    pub(super) fn at(mark: &Mark, next_segment: u64, owed: Vec<Owed>) -> TakeState {
        TakeState { live: mark.live, next_segment, owed, ended: mark.ended }
    }

    pub(super) fn checkpoint(&self, take: u64, detector: &VoiceState) -> Checkpoint {
        let state = serde_json::to_string(self).expect("numbers make JSON");
        Checkpoint { take, state, detector: detector.to_bytes() }
    }

    /// The audio before this sample is needed for nothing that is still to come.
    pub(super) fn needed_from(&self, rules: &Rules) -> u64 {
        let starts = self.owed.iter().map(|owed| owed.span.start);
        starts.fold(needed_from(&self.live, rules), u64::min)
    }
}

/// Reads a checkpoint back; `told` are the take's segments whose text is known, of which those stay that it knows.
pub(super) fn read(checkpoint: &Checkpoint, told: &mut Vec<TextSegment>) -> Result<(TakeState, VoiceState)> {
    let unreadable = || Error::internal("a take's checkpoint cannot be read");
    let mut state: TakeState = serde_json::from_str(&checkpoint.state).map_err(|error| unreadable().cause(error))?;
    let detector = VoiceState::from_bytes(&checkpoint.detector).ok_or_else(unreadable)?;
    told.retain(|segment| segment.id < state.next_segment);
    state.owed.retain(|owed| told.iter().all(|segment| segment.id != owed.id));
    Ok((state, detector))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: u64) -> TextSegment {
        TextSegment {
            id,
            start: 0.0,
            end: 1.0,
            text: "hola".into(),
            language: "es".into(),
            probability: 1.0,
            speaker: None,
            words: Vec::new(),
        }
    }

    #[test]
    fn what_has_its_text_is_not_owed_and_what_the_checkpoint_does_not_know_was_not_told() {
        let owed = |id: u64| Owed { id, span: Span { start: 1000 * id, end: 1000 * id + 900 } };
        let state = TakeState { next_segment: 7, owed: vec![owed(4), owed(5), owed(6)], ..TakeState::default() };
        let mut detector = VoiceState::default();
        detector.recurrent[3] = 0.1;
        let mut segments = vec![told(3), told(4), told(7)];
        let (read, read_detector) = read(&state.checkpoint(2, &detector), &mut segments).unwrap();
        assert_eq!(read.owed, [owed(5), owed(6)]);
        assert_eq!(segments.iter().map(|it| it.id).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(read_detector.recurrent, detector.recurrent);
        assert_eq!(read.needed_from(&Rules::reference()), 0, "nothing was heard yet");
    }

    #[test]
    fn a_checkpoint_of_an_older_version_has_defaults_and_a_broken_one_is_an_error() {
        let detector = VoiceState::default().to_bytes();
        let checkpoint =
            |state: &str, detector: &[u8]| Checkpoint { take: 1, state: state.to_owned(), detector: detector.to_vec() };
        let (state, _) = read(&checkpoint("{}", &detector), &mut Vec::new()).unwrap();
        assert_eq!(state, TakeState::default());
        assert!(read(&checkpoint("nonsense", &detector), &mut Vec::new()).is_err());
        assert!(read(&checkpoint("{}", &[1, 2]), &mut Vec::new()).is_err());
    }
}
