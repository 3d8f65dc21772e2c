//! What is kept of an open take, so that it can be gone on with after a crash as if nothing had happened.
//!
//! A checkpoint is handed to the store before anything that follows from it: the store's order is the order of the
//! journal. So what is heard after the newest checkpoint has never been told to anybody, and of what was cut before it
//! the journal says whether its text was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::VoiceState,
    flow::TextSegment,
    segment::{LiveState, Rules, Span},
    sources::ears::{Mark, needed_from},
    store::{Checkpoint, OpenTake},
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

/// All that is kept of an open take.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) state: TakeState,
    pub(super) detector: VoiceState,
    /// Its segments whose text is known.
    pub(super) told: Vec<TextSegment>,
    /// What was committed of those whose text is not.
    pub(super) committed: BTreeMap<u64, String>,
}

/// Reads back what was noted; `published` are the take's segments that the journal tells of.
pub(super) fn read(checkpoint: &Checkpoint, published: Vec<TextSegment>, noted: OpenTake) -> Result<Kept> {
    let unreadable = || Error::internal("a take's checkpoint cannot be read");
    let mut state: TakeState = serde_json::from_str(&checkpoint.state).map_err(|error| unreadable().cause(error))?;
    let detector = VoiceState::from_bytes(&checkpoint.detector).ok_or_else(unreadable)?;
    let OpenTake { silent, mut committed, mut words, .. } = noted;
    let mut told: Vec<TextSegment> = published.into_iter().chain(silent).collect();
    told.sort_by_key(|segment| segment.id);
    told.retain(|segment| segment.id < state.next_segment);
    for segment in &mut told {
        committed.remove(&segment.id);
        // Where its client did not ask for them, the event has none.
        segment.words.extend(words.remove(&segment.id).unwrap_or_default());
    }
    state.owed.retain(|owed| told.iter().all(|segment| segment.id != owed.id));
    Ok(Kept { state, detector, told, committed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Word;

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
        let noted = OpenTake { silent: vec![told(3)], ..OpenTake::default() };
        let kept = read(&state.checkpoint(2, &detector), vec![told(4), told(7)], noted).unwrap();
        assert_eq!(kept.state.owed, [owed(5), owed(6)]);
        assert_eq!(kept.told.iter().map(|it| it.id).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(kept.detector.recurrent, detector.recurrent);
        assert_eq!(kept.state.needed_from(&Rules::reference()), 0, "nothing was heard yet");
    }

    #[test]
    fn words_go_to_the_segments_that_were_told_and_commitments_stay_with_the_others() {
        let word = |text: &str| Word { start: 0.0, end: 1.0, text: text.to_owned(), probability: 1.0 };
        let state = TakeState { next_segment: 6, ..TakeState::default() };
        let noted = OpenTake {
            committed: [(4, "ho".to_owned()), (5, "qué".to_owned()), (6, "y".to_owned())].into(),
            words: [(4, vec![word("hola")]), (9, vec![word("nadie")])].into(),
            ..OpenTake::default()
        };
        let kept = read(&state.checkpoint(2, &VoiceState::default()), vec![told(4)], noted).unwrap();
        assert_eq!(kept.told[0].words, [word("hola")]);
        assert_eq!(kept.committed, [(5, "qué".to_owned()), (6, "y".to_owned())].into());
    }

    #[test]
    fn a_checkpoint_of_an_older_version_has_defaults_and_a_broken_one_is_an_error() {
        let detector = VoiceState::default().to_bytes();
        let checkpoint =
            |state: &str, detector: &[u8]| Checkpoint { take: 1, state: state.to_owned(), detector: detector.to_vec() };
        let read = |state: &str, detector: &[u8]| read(&checkpoint(state, detector), Vec::new(), OpenTake::default());
        assert_eq!(read("{}", &detector).unwrap().state, TakeState::default());
        assert!(read("nonsense", &detector).is_err());
        assert!(read("{}", &[1, 2]).is_err());
    }
}
