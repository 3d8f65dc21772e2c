//! Which numbered chunks of a take have come, so that one that comes again is passed over. Pure.
//!
//! Numbers count within a take and rise; they need not follow one another.

/// All in numbers that the client gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunks {
    /// The newest that is wholly part of the take's samples.
    decoded: Option<u64>,
    /// The newest that went to the decoder, and the one before.
    pushed: Option<u64>,
    before: Option<u64>,
}

impl Chunks {
    /// Of a take whose samples end with that chunk.
    pub(super) fn resumed(decoded: Option<u64>) -> Chunks {
        Chunks { decoded, pushed: decoded, before: None }
    }

    pub(super) fn is_replay(&self, chunk_id: Option<u64>) -> bool {
        matches!((chunk_id, self.pushed), (Some(id), Some(newest)) if id <= newest)
    }

    pub(super) fn pushed(&mut self, chunk_id: Option<u64>) {
        if chunk_id.is_some() {
            self.before = std::mem::replace(&mut self.pushed, chunk_id);
        }
    }

    /// The newest could not be read: it may come again, put right.
    pub(super) fn refused(&mut self) {
        self.pushed = self.before;
    }

    /// The newest became samples. Said only where a chunk is its samples.
    pub(super) fn decoded(&mut self) {
        self.decoded = self.pushed;
    }

    /// Part of what may be acknowledged.
    pub(super) fn newest(&self) -> Option<u64> {
        self.decoded
    }

    /// Another connection. What was pushed but not decoded is lost with the old one; and where chunks and samples cannot
    /// be told apart, the new one begins its stream anew.
    pub(super) fn reconnect(&mut self, direct: bool) {
        *self = Chunks::resumed(self.decoded.filter(|_| direct));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_comes_again_is_known_and_one_that_was_lost_is_not() {
        let mut chunks = Chunks::default();
        assert!(!chunks.is_replay(Some(0)) && !chunks.is_replay(None));
        chunks.pushed(Some(4));
        assert!(chunks.is_replay(Some(4)) && chunks.is_replay(Some(1)) && !chunks.is_replay(Some(5)));
        chunks.refused();
        assert!(!chunks.is_replay(Some(4)));
        chunks.pushed(Some(4));
        chunks.decoded();
        chunks.pushed(None);
        chunks.pushed(Some(7));
        assert_eq!(chunks.newest(), Some(4));
        chunks.reconnect(true);
        assert!(chunks.is_replay(Some(4)) && !chunks.is_replay(Some(7)));
        chunks.reconnect(false);
        assert!(!chunks.is_replay(Some(4)));
    }
}
