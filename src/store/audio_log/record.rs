//! One record of the audio log: how it is written, and how records are found again in a file that may be torn.
//!
//! ```text
//! mark 4 · group 4 · body length 4 · crc32 4 │ take 8 · first sample 8 · chunk 8 · kind 1 · session length 1 · session · s16 samples
//! ```
//!
//! Little endian; the checksum covers all after the mark but itself. The mark is a file's own random number, kept in its
//! name: what happens to lie in unwritten blocks (records of a deleted file), or is sent by a client as audio, is never
//! taken for a record. The group counts the file's fsyncs: records of one group became durable together, and those of an
//! earlier group than another that is there were durable before it was written. A take's first record in each group says
//! so: what is missing before it is none of this group's.

use std::{
    collections::HashSet,
    io::{self, Read},
};

use crate::flow::SessionId;

/// One second. Longer pieces are split, so that a scan needs little memory and damage costs little.
pub(super) const MAX_SAMPLES: usize = 16_000;

const HEAD: usize = 16;
const BODY_HEAD: usize = 26;
const MAX_BODY: usize = BODY_HEAD + SessionId::MAX_LEN + 2 * MAX_SAMPLES;
const READ_STEP: usize = 256 << 10;

/// Bits of `kind`.
const WHOLE: u8 = 1;
const HAS_CHUNK: u8 = 2;
const OPENS: u8 = 4;
/// Where `kind` stands in a record.
const KIND: usize = HEAD + 24;

pub(super) type Mark = [u8; 4];

/// What a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label<'a> {
    pub(super) session: &'a str,
    pub(super) take: u64,
    pub(super) first_sample: u64,
    /// The chunk that its samples came in.
    pub(super) chunk_id: Option<u64>,
    /// The last record of what was appended together: without it, the rest is as good as not there.
    pub(super) whole: bool,
}

/// Bytes that `write` will add.
pub(super) fn size(session: &SessionId, samples: &[i16]) -> usize {
    HEAD + BODY_HEAD + session.as_str().len() + 2 * samples.len()
}

/// Appends a record that is still to be stamped. `samples` has at most `MAX_SAMPLES`.
pub(super) fn write(into: &mut Vec<u8>, label: Label<'_>, samples: &[i16]) {
    let Label { session, take, first_sample, chunk_id, whole } = label;
    let body = BODY_HEAD + session.len() + 2 * samples.len();
    into.extend_from_slice(&[0; 8]);
    into.extend_from_slice(&(body as u32).to_le_bytes());
    into.extend_from_slice(&[0; 4]);
    into.extend_from_slice(&take.to_le_bytes());
    into.extend_from_slice(&first_sample.to_le_bytes());
    into.extend_from_slice(&chunk_id.unwrap_or(0).to_le_bytes());
    let kind = if whole { WHOLE } else { 0 } | if chunk_id.is_some() { HAS_CHUNK } else { 0 };
    into.push(kind);
    into.push(session.len() as u8);
    into.extend_from_slice(session.as_bytes());
    let audio = into.len();
    into.resize(audio + 2 * samples.len(), 0);
    for (bytes, sample) in into[audio..].chunks_exact_mut(2).zip(samples) {
        bytes.copy_from_slice(&sample.to_le_bytes());
    }
}

/// Makes records whole: with the mark of the file and the group that they go into, all of it.
pub(super) fn stamp(mut records: &mut [u8], mark: Mark, group: u32) {
    let mut takes: HashSet<Box<[u8]>> = HashSet::new();
    while records.len() >= HEAD {
        let size = HEAD + number(&records[8..12]);
        let (record, rest) = records.split_at_mut(size);
        record[..4].copy_from_slice(&mark);
        record[4..8].copy_from_slice(&group.to_le_bytes());
        let session = &record[HEAD + BODY_HEAD..][..usize::from(record[HEAD + BODY_HEAD - 1])];
        let opens = takes.insert([&record[HEAD..HEAD + 8], session].concat().into());
        record[KIND] = record[KIND] & !OPENS | if opens { OPENS } else { 0 };
        let sum = checksum(record);
        record[12..HEAD].copy_from_slice(&sum);
        records = rest;
    }
}

pub(super) struct Record<'a> {
    pub(super) label: Label<'a>,
    pub(super) group: u32,
    /// It is its take's first in the group.
    pub(super) opens: bool,
    audio: &'a [u8],
}

impl Record<'_> {
    pub(super) fn end(&self) -> u64 {
        self.label.first_sample.saturating_add(self.audio.len() as u64 / 2)
    }

    pub(super) fn samples(&self) -> impl Iterator<Item = i16> {
        self.audio.chunks_exact(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

/// Finds every whole record of a file and passes over what is none.
pub(super) struct Scan<R> {
    file: R,
    mark: Mark,
    buffer: Vec<u8>,
    at: usize,
    at_end: bool,
    /// Bytes that belong to no whole record.
    pub(super) skipped: u64,
}

impl<R: Read> Scan<R> {
    pub(super) fn new(file: R, mark: Mark) -> Scan<R> {
        Scan { file, mark, buffer: Vec::new(), at: 0, at_end: false, skipped: 0 }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let size = loop {
            self.fill()?;
            let rest = &self.buffer[self.at..];
            if let Some(size) = whole(rest, self.mark) {
                break size;
            }
            if rest.is_empty() {
                return Ok(None);
            }
            // A mark may begin in the last three bytes and go on in what is not read yet.
            let unsearched = if self.at_end { rest.len() } else { rest.len() - 3 };
            let step = rest[1..].windows(4).position(|it| it == self.mark).map_or(unsearched, |at| 1 + at);
            self.at += step;
            self.skipped += step as u64;
        };
        let record = &self.buffer[self.at..self.at + size];
        self.at += size;
        Ok(Some(parse(record)))
    }

    /// Has the longest possible record in the buffer, unless the file ends before.
    fn fill(&mut self) -> io::Result<()> {
        while !self.at_end && self.buffer.len() - self.at < HEAD + MAX_BODY {
            self.buffer.drain(..self.at);
            self.at = 0;
            let read = (&mut self.file).take(READ_STEP as u64).read_to_end(&mut self.buffer)?;
            self.at_end = read < READ_STEP;
        }
        Ok(())
    }
}

/// The size of the record that `bytes` begin with, if they do.
fn whole(bytes: &[u8], mark: Mark) -> Option<usize> {
    let head = bytes.get(..HEAD)?;
    let body = number(&head[8..12]);
    if head[..4] != mark || !(BODY_HEAD..=MAX_BODY).contains(&body) {
        return None;
    }
    let record = bytes.get(..HEAD + body)?;
    let session = usize::from(record[HEAD + BODY_HEAD - 1]);
    let fits = BODY_HEAD + session <= body && checksum(record) == head[12..HEAD];
    fits.then_some(record.len())
}

fn parse(record: &[u8]) -> Record<'_> {
    let (head, body) = record.split_at(HEAD);
    let (fields, rest) = body.split_at(BODY_HEAD);
    let (session, audio) = rest.split_at(usize::from(fields[25]));
    let long = |at: usize| fields[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let kind = fields[24];
    let label = Label {
        session: str::from_utf8(session).unwrap_or_default(),
        take: long(0),
        first_sample: long(8),
        chunk_id: (kind & HAS_CHUNK != 0).then(|| long(16)),
        whole: kind & WHOLE != 0,
    };
    Record { label, group: number(&head[4..8]) as u32, opens: kind & OPENS != 0, audio }
}

fn checksum(record: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[4..12]);
    hasher.update(&record[HEAD..]);
    hasher.finalize().to_le_bytes()
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: Mark = *b"\x07\x00\xffM";

    type Whole = (String, u64, u64, Option<u64>, bool, Vec<i16>);

    fn written(records: &[Whole]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (session, take, first_sample, chunk_id, whole, samples) in records {
            let session = SessionId::parse(session).unwrap();
            let before = bytes.len();
            let (take, first_sample, chunk_id, whole) = (*take, *first_sample, *chunk_id, *whole);
            let label = Label { session: session.as_str(), take, first_sample, chunk_id, whole };
            write(&mut bytes, label, samples);
            assert_eq!(bytes.len() - before, size(&session, samples));
        }
        stamp(&mut bytes, MARK, 7);
        bytes
    }

    /// Gives out a few bytes at a time, as a slow disk may.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }
    }

    fn scanned(bytes: &[u8], step: usize) -> (Vec<Whole>, u64) {
        let mut scan = Scan::new(Drops(bytes, step), MARK);
        let mut records = Vec::new();
        while let Some(it) = scan.next().unwrap() {
            assert_eq!(it.group, 7);
            let Label { session, take, first_sample, chunk_id, whole } = it.label;
            records.push((session.to_owned(), take, first_sample, chunk_id, whole, it.samples().collect()));
        }
        (records, scan.skipped)
    }

    fn record() -> impl Strategy<Value = Whole> {
        let samples = prop_oneof![
            prop::collection::vec(any::<i16>(), 0..40),
            // What looks like the mark.
            prop::collection::vec(Just(i16::from_le_bytes([MARK[0], MARK[1]])), 0..40),
            Just(vec![-1; MAX_SAMPLES]),
        ];
        ("[a-zñ0-9]{1,60}", any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<bool>(), samples)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn records_come_back_exactly(records in prop::collection::vec(record(), 0..8), step in 1000_usize..100_000) {
            prop_assert_eq!(scanned(&written(&records), step), (records, 0));
        }

        #[test]
        fn noise_between_records_is_passed_over(
            records in prop::collection::vec(record(), 1..5),
            noise in prop::collection::vec(prop_oneof![any::<u8>(), Just(MARK[0])], 1..300),
        ) {
            let mut bytes = noise.clone();
            for record in &records {
                bytes.extend(written(std::slice::from_ref(record)));
                bytes.extend(&noise);
            }
            prop_assert_eq!(scanned(&bytes, 4096), (records.clone(), (noise.len() * (records.len() + 1)) as u64));
        }

        #[test]
        fn any_bytes_can_be_scanned(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(scanned(&[&MARK[..], &bytes].concat(), 100).0, []);
        }
    }

    #[test]
    fn audio_that_looks_like_a_record_of_another_file_is_none() {
        let record = |text: &str| vec![(text.to_owned(), 1, 0, None, true, vec![1, 2, 3])];
        let mut foreign = written(&record("victim"));
        stamp(&mut foreign, *b"else", 7);
        let mut bytes = foreign.clone();
        bytes.extend(written(&record("mine")));
        assert_eq!(scanned(&bytes, 100), (record("mine"), foreign.len() as u64));
    }
}
