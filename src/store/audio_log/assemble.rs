//! Puts the audio of a take together out of its records, in the order in which they were written. Pure.
//!
//! 1. A record goes on where the audio before it ends.
//! 2. One that begins earlier replaces what was there from its beginning on: a daemon found less than a former one had
//!    written, and its client sent the rest again.
//! 3. One that begins later leaves a gap. Where what is missing was durable, the disk has lost it: it becomes silence, so
//!    that all that follows stays in its place. It was, if its group was written before that of the record behind the gap,
//!    or before another one. Else the gap is the tear of a write that a power cut broke off, and the audio ends there.
//! 4. What was appended together and did not arrive as a whole is left out: nobody was told that it is there.

use std::ops::Range;

use super::{TakeAudio, record::Record};

pub(super) struct Assembly {
    wanted: Range<u64>,
    samples: Vec<i16>,
    end: u64,
    whole: Whole,
    /// Gaps of which nobody knows that they were durable, with where the audio was whole before them.
    gaps: Vec<(u64, Whole)>,
    damaged: bool,
}

/// Where what was last appended as a whole ends.
#[derive(Debug, Clone, Copy, Default)]
struct Whole {
    end: u64,
    chunk_id: Option<u64>,
}

impl Assembly {
    /// Of the wanted samples; what is before `from` is not looked at.
    pub(super) fn new(wanted: Range<u64>, from: u64) -> Assembly {
        let whole = Whole { end: from, chunk_id: None };
        Assembly { wanted, samples: Vec::new(), end: from, whole, gaps: Vec::new(), damaged: false }
    }

    /// `durable`: it is known that it was.
    pub(super) fn add(&mut self, record: &Record<'_>, durable: bool) {
        let first = record.label.first_sample;
        if first < self.end {
            self.truncate(first);
        } else if first > self.end {
            self.damaged |= record.opens;
            if !record.opens {
                self.gaps.push((self.end, self.whole));
            }
            self.extend_with(self.end, first, std::iter::repeat(0));
        }
        if durable && !self.gaps.is_empty() {
            self.gaps.clear();
            self.damaged = true;
        }
        self.extend_with(first, record.end(), record.samples());
        if record.label.whole {
            let chunk_id = record.label.chunk_id.or(self.whole.chunk_id);
            self.whole = Whole { end: self.end, chunk_id };
        }
    }

    pub(super) fn finish(mut self) -> TakeAudio {
        if let Some((start, whole)) = self.gaps.first().copied() {
            self.truncate(start);
            self.whole = whole;
        }
        self.truncate(self.whole.end);
        let first_sample = self.wanted.start.min(self.end);
        TakeAudio {
            first_sample,
            samples: self.samples,
            end: self.end,
            chunk_id: self.whole.chunk_id,
            damaged: self.damaged,
        }
    }

    fn truncate(&mut self, end: u64) {
        self.end = self.end.min(end);
        self.whole.end = self.whole.end.min(end);
        self.gaps.retain(|(start, _)| *start < end);
        self.samples.truncate(usize::try_from(end.saturating_sub(self.wanted.start)).unwrap_or(usize::MAX));
    }

    /// Samples `start..end`, as far as they are wanted.
    fn extend_with(&mut self, start: u64, end: u64, samples: impl Iterator<Item = i16>) {
        let (from, to) = (start.max(self.wanted.start), end.min(self.wanted.end));
        if from < to {
            self.samples.extend(samples.skip((from - start) as usize).take((to - from) as usize));
        }
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::{self, Label, Mark, Scan},
        *,
    };
    use crate::store::testing::id;

    const MARK: Mark = *b"mark";

    /// A record of one sample each for `samples`, whose value is its number, in groups.
    struct Written(Vec<u8>);

    impl Written {
        fn group(&mut self, number: u32, appends: &[&[(u64, &[i16])]]) {
            let mut group = Vec::new();
            for append in appends {
                for (n, (first_sample, samples)) in append.iter().enumerate() {
                    let whole = n + 1 == append.len();
                    let chunk_id = whole.then_some(first_sample + samples.len() as u64);
                    let session = id("a");
                    let label =
                        Label { session: session.as_str(), take: 1, first_sample: *first_sample, chunk_id, whole };
                    record::write(&mut group, label, samples);
                }
            }
            record::stamp(&mut group, MARK, number);
            self.0.extend(group);
        }

        /// Without the records that begin with one of these samples.
        fn assembled(&self, torn: Option<u32>, lost: &[u64]) -> TakeAudio {
            let mut assembly = Assembly::new(0..u64::MAX, 0);
            let mut scan = Scan::new(&self.0[..], MARK);
            while let Some(record) = scan.next().unwrap() {
                if !lost.contains(&record.label.first_sample) {
                    assembly.add(&record, torn != Some(record.group));
                }
            }
            assembly.finish()
        }
    }

    fn written() -> Written {
        let mut written = Written(Vec::new());
        written.group(0, &[&[(0, &[1, 2])], &[(2, &[3, 4])]]);
        written.group(1, &[&[(4, &[5, 6]), (6, &[7, 8])], &[(8, &[9])]]);
        written
    }

    #[test]
    fn what_is_whole_comes_back_with_its_newest_chunk() {
        let audio = written().assembled(Some(1), &[]);
        assert_eq!((&audio.samples[..], audio.end), (&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], 9));
        assert_eq!((audio.chunk_id, audio.damaged), (Some(9), false));
    }

    #[test]
    fn a_tear_in_the_last_write_ends_the_audio_and_damage_before_it_becomes_silence() {
        // The second record of an append in two is missing: neither half was told to be there.
        let torn = written().assembled(Some(1), &[6]);
        assert_eq!((&torn.samples[..], torn.chunk_id), (&[1, 2, 3, 4][..], Some(4)));
        // The same where a later write shows that this one was durable.
        let damaged = written().assembled(None, &[6]);
        assert_eq!((&damaged.samples[..], damaged.damaged), (&[1, 2, 3, 4, 5, 6, 0, 0, 9][..], true));
        // What is missing is of the write before the last.
        let before = written().assembled(Some(1), &[2]);
        assert_eq!(before.samples, [1, 2, 0, 0, 5, 6, 7, 8, 9]);
        let beginning = written().assembled(Some(1), &[0]);
        assert_eq!(beginning.samples, [0, 0, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn half_of_an_append_is_none() {
        let mut written = written();
        written.group(2, &[&[(9, &[10, 11]), (11, &[12])]]);
        assert_eq!(written.assembled(Some(2), &[11]).end, 9);
    }

    #[test]
    fn what_is_sent_again_replaces_what_was_there_from_its_beginning_on() {
        let mut written = written();
        written.group(0, &[&[(3, &[40, 50])]]);
        let audio = written.assembled(None, &[]);
        assert_eq!((&audio.samples[..], audio.end, audio.chunk_id), (&[1, 2, 3, 40, 50][..], 5, Some(5)));
        assert!(!audio.damaged);
    }
}
