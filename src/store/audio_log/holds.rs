//! What a file of the audio log holds of whom.

use std::{collections::HashMap, ops::Range};

use crate::flow::SessionId;

/// Whose audio there is, and which samples of each take: from the first to the end of the last.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(HashMap<SessionId, Vec<(u64, Range<u64>)>>);

impl Holds {
    pub(super) fn add(&mut self, session: &SessionId, take: u64, samples: Range<u64>) {
        if !self.0.contains_key(session) {
            self.0.insert(session.clone(), Vec::new());
        }
        let Some(takes) = self.0.get_mut(session) else { return };
        match takes.iter_mut().find(|(number, _)| *number == take) {
            Some((_, held)) => *held = held.start.min(samples.start)..held.end.max(samples.end),
            None => takes.push((take, samples)),
        }
    }

    pub(super) fn merge(&mut self, other: Holds) {
        for (session, takes) in other.0 {
            takes.into_iter().for_each(|(take, samples)| self.add(&session, take, samples));
        }
    }

    pub(super) fn remove(&mut self, session: &SessionId) {
        self.0.remove(session);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &SessionId> {
        self.0.keys()
    }

    pub(super) fn takes(&self, session: &SessionId) -> &[(u64, Range<u64>)] {
        self.0.get(session).map_or(&[], Vec::as_slice)
    }

    pub(super) fn of(&self, session: &SessionId, take: u64) -> Option<&Range<u64>> {
        self.takes(session).iter().find(|(number, _)| *number == take).map(|(_, samples)| samples)
    }
}
