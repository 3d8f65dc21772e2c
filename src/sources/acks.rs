//! What a session may acknowledge: samples that are on disk, said often enough to free the client's memory and seldom
//! enough to spare its radio.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// `ack` comes at most this often.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) received_samples: u64,
    /// The newest chunk that is wholly part of those samples, where chunks and samples can be told apart.
    pub(super) chunk_id: Option<u64>,
}

#[derive(Default)]
pub(super) struct Acks {
    /// With the audio log, by its tickets.
    pending: VecDeque<(u64, Ack)>,
    /// On disk, to be said at the next occasion.
    durable: Option<Ack>,
    last_said: Option<Instant>,
}

impl Acks {
    pub(super) fn hand_in(&mut self, ticket: u64, ack: Ack) {
        self.pending.push_back((ticket, ack));
    }

    pub(super) fn newest_ticket(&self) -> Option<u64> {
        self.pending.back().map(|(ticket, _)| *ticket)
    }

    /// Everything up to this ticket is on disk. Returns what that is, if it is more than before.
    pub(super) fn reached(&mut self, ticket: u64) -> Option<Ack> {
        let mut newest = None;
        while let Some((_, ack)) = self.pending.pop_front_if(|(pending, _)| *pending <= ticket) {
            newest = Some(ack);
        }
        self.durable = newest.or(self.durable);
        newest
    }

    /// What is not on disk by now is not waited for.
    pub(super) fn give_up(&mut self) {
        self.pending.clear();
    }

    /// A new client is told otherwise what is on disk by now.
    pub(super) fn reconnect(&mut self) {
        self.durable = None;
    }

    /// When the next ack may be said, if there is one.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.durable?;
        Some(self.last_said.map_or_else(Instant::now, |last| last + INTERVAL))
    }

    pub(super) fn say(&mut self) -> Option<Ack> {
        let ack = self.durable.take()?;
        self.last_said = Some(Instant::now());
        Some(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(samples: u64) -> Ack {
        Ack { received_samples: samples, chunk_id: None }
    }

    #[test]
    fn only_what_is_on_disk_is_said_and_not_too_often() {
        let mut acks = Acks::default();
        acks.hand_in(1, ack(100));
        acks.hand_in(2, ack(200));
        acks.hand_in(3, ack(300));
        assert_eq!(acks.due_at(), None);
        acks.reached(2);
        assert!(acks.due_at().unwrap() <= Instant::now());
        let before = Instant::now();
        assert_eq!(acks.say(), Some(ack(200)));
        assert_eq!(acks.due_at(), None);
        acks.reached(3);
        assert!(acks.due_at().unwrap() >= before + INTERVAL);
        assert_eq!(acks.newest_ticket(), None);
    }
}
