//! What goes into a pipeline: a live stream through a bounded queue, or something whole that may be read anywhere.

use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

/// A client may be this far ahead of its decoder. Enough for a large message, little for 64 of them.
const MAX_WAITING_BYTES: usize = 256 << 10;

/// What a chunk costs besides its bytes, so that a million chunks of one byte are bounded too.
const CHUNK_COST: usize = 256;

/// Larger chunks go on in pieces, so that what a decoder makes of one is bounded. Holds whole samples.
const MAX_PIECE_BYTES: usize = 64 << 10;

pub(super) enum Feed {
    Stream(Stream),
    Whole(Whole),
}

/// What the chunks of a stream are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Each is one unit of its codec: an Opus packet, a photo.
    Whole,
    /// Whole mono f32 samples.
    Samples,
    /// Any piece of a stream of bytes.
    Bytes,
}

/// A live stream. One task pushes; GStreamer's thread takes.
pub(super) struct Stream {
    pub unit: Unit,
    waiting: VecDeque<Bytes>,
    waiting_cost: usize,
    /// GStreamer has asked and got nothing: the next chunk goes to it directly.
    hungry: bool,
    begun: bool,
    ended: bool,
}

/// A file or a body, read where the demuxer wants it.
pub(super) struct Whole {
    pub source: Source,
    /// Where the data begins (an ID3 tag before it is skipped).
    pub start: u64,
    pub len: u64,
    pub at: u64,
}

pub(super) enum Source {
    File(Arc<File>),
    Bytes(Bytes),
}

pub(super) struct Chunk {
    pub bytes: Bytes,
    /// Of the stream.
    pub first: bool,
}

/// What GStreamer gets when it asks.
pub(super) enum Portion {
    Chunk(Chunk),
    Later,
    End,
}

impl Stream {
    pub(super) fn new(unit: Unit) -> Stream {
        Stream { unit, waiting: VecDeque::new(), waiting_cost: 0, hungry: false, begun: false, ended: false }
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting_cost < MAX_WAITING_BYTES
    }

    /// A chunk comes back when it should go to GStreamer at once.
    pub(super) fn push(&mut self, bytes: Bytes) -> Option<Chunk> {
        self.waiting_cost += bytes.len() + CHUNK_COST;
        self.waiting.push_back(bytes);
        let now = std::mem::take(&mut self.hungry);
        if now { self.pop() } else { None }
    }

    /// True when GStreamer should be told at once.
    pub(super) fn end(&mut self) -> bool {
        self.ended = true;
        self.hungry
    }

    fn pop(&mut self) -> Option<Chunk> {
        let front = self.waiting.front_mut()?;
        let bytes = if self.unit != Unit::Whole && front.len() > MAX_PIECE_BYTES {
            front.split_to(MAX_PIECE_BYTES)
        } else {
            self.waiting_cost -= CHUNK_COST;
            self.waiting.pop_front()?
        };
        self.waiting_cost -= bytes.len();
        Some(Chunk { bytes, first: !std::mem::replace(&mut self.begun, true) })
    }
}

impl Whole {
    pub(super) fn new(source: Source, start: u64) -> io::Result<Whole> {
        let all = match &source {
            Source::File(file) => file.metadata()?.len(),
            Source::Bytes(bytes) => bytes.len() as u64,
        };
        // A tag may say that it is longer than all there is.
        let start = start.min(all);
        Ok(Whole { source, start, len: all - start, at: 0 })
    }

    fn read(&mut self, wanted: usize) -> io::Result<Bytes> {
        let bytes = self.peek(self.at, wanted)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// Bytes at a place, without going there; fewer than wanted at the end.
    pub(super) fn peek(&self, at: u64, wanted: usize) -> io::Result<Bytes> {
        let at = at.min(self.len);
        let wanted = usize::try_from(self.len - at).unwrap_or(usize::MAX).min(wanted);
        let from = self.start + at;
        match &self.source {
            Source::Bytes(bytes) => {
                let from = from as usize;
                Ok(bytes.slice(from..from + wanted))
            }
            Source::File(file) => {
                let mut buffer = vec![0; wanted];
                file.read_exact_at(&mut buffer, from)?;
                Ok(buffer.into())
            }
        }
    }
}

impl Feed {
    /// What GStreamer gets; `wanted` bytes when it reads at will.
    pub(super) fn next(&mut self, wanted: usize) -> io::Result<Portion> {
        Ok(match self {
            Feed::Stream(stream) => match stream.pop() {
                Some(chunk) => Portion::Chunk(chunk),
                None if stream.ended => Portion::End,
                None => {
                    stream.hungry = true;
                    Portion::Later
                }
            },
            Feed::Whole(whole) => {
                let bytes = whole.read(wanted)?;
                if bytes.is_empty() { Portion::End } else { Portion::Chunk(Chunk { bytes, first: false }) }
            }
        })
    }
}
