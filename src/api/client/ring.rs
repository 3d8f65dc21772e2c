//! Audio that the daemon has not acknowledged: what a client may have to send again. Pure.

use std::collections::VecDeque;

/// Samples are counted from the beginning of the stream.
#[derive(Debug)]
pub(super) struct Ring {
    samples: VecDeque<i16>,
    /// Of the oldest that is held.
    first: u64,
    /// The next to be sent.
    next: u64,
    capacity: usize,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Ring {
        Ring { samples: VecDeque::new(), first: 0, next: 0, capacity }
    }

    /// How many more samples it holds.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.samples.len())
    }

    pub(super) fn push(&mut self, samples: &[i16]) {
        self.samples.extend(samples);
    }

    /// Where what was pushed ends.
    pub(super) fn end(&self) -> u64 {
        self.first + self.samples.len() as u64
    }

    pub(super) fn unacknowledged(&self) -> u64 {
        self.samples.len() as u64
    }

    /// Samples before this one are on the daemon's disk.
    pub(super) fn acknowledge(&mut self, upto: u64) {
        let count = (upto.saturating_sub(self.first) as usize).min(self.samples.len());
        self.samples.drain(..count);
        self.first += count as u64;
        self.next = self.next.max(self.first);
    }

    /// The daemon goes on here. Returns how many samples it should have, says that it has not, and are no longer held.
    pub(super) fn go_to(&mut self, sample: u64) -> u64 {
        self.acknowledge(sample);
        self.next = sample.clamp(self.first, self.end());
        self.first.saturating_sub(sample)
    }

    /// The oldest go, for a source that cannot wait; returns how many.
    pub(super) fn make_room(&mut self, count: usize) -> u64 {
        let lost = count.saturating_sub(self.room()).min(self.samples.len());
        self.samples.drain(..lost);
        self.first += lost as u64;
        self.next = self.next.max(self.first);
        lost as u64
    }

    /// Whether everything that was pushed was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.next == self.end()
    }

    /// The next samples to send, at most so many, as bytes of s16.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        let from = (self.next - self.first) as usize;
        let to = (from + most).min(self.samples.len());
        self.next = self.first + to as u64;
        self.samples.range(from..to).flat_map(|sample| sample.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        let mut ring = Ring::new(10);
        ring.push(&[0, 1, 2, 3, 4, 5, 6, 7]);
        ring
    }

    fn numbers(bytes: &[u8]) -> Vec<i16> {
        bytes.chunks_exact(2).map(|it| i16::from_le_bytes([it[0], it[1]])).collect()
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again() {
        let mut ring = ring();
        assert_eq!(numbers(&ring.take(5)), [0, 1, 2, 3, 4]);
        ring.acknowledge(3);
        assert_eq!((ring.room(), ring.unacknowledged(), ring.end()), (5, 5, 8));
        assert_eq!(ring.go_to(4), 0);
        assert_eq!(numbers(&ring.take(100)), [4, 5, 6, 7]);
        assert!(ring.is_sent());
        // Acknowledged beyond what was sent on this connection.
        ring.go_to(4);
        ring.acknowledge(6);
        assert_eq!(numbers(&ring.take(100)), [6, 7]);
    }

    #[test]
    fn a_daemon_that_has_less_than_it_acknowledged_is_noticed() {
        let mut ring = ring();
        ring.take(8);
        ring.acknowledge(6);
        assert_eq!(ring.go_to(2), 4);
        assert_eq!(numbers(&ring.take(100)), [6, 7]);
    }

    #[test]
    fn a_source_that_cannot_wait_loses_the_oldest() {
        let mut ring = ring();
        assert_eq!(ring.make_room(5), 3);
        ring.push(&[8, 9, 10, 11, 12]);
        assert_eq!(numbers(&ring.take(2)), [3, 4]);
        assert_eq!(ring.room(), 0);
    }
}
