//! A live stream of chunks in any encoding of the wire becomes 16 kHz mono f32.
//!
//! Uncompressed audio at 16 kHz is converted where it arrives, without pipeline or thread. Everything else runs
//! through a pipeline that is lent for the stream.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use gstreamer as gst;
use tokio::{sync::Notify, time::timeout};

use super::{
    Media,
    feed::{Feed, Stream, Unit},
    head::Head,
    pipeline::WAIT_LIMIT,
    pool::Lent,
    raw,
};
use crate::{
    base::{Error, Kind, Result, lock},
    flow::{AudioFormat, Encoding, SAMPLE_RATE_HZ},
};

/// Converted samples that may wait for their reader; then the writer waits.
const MAX_WAITING_SAMPLES: usize = 1 << 20;

/// The longest packet that Opus allows: 48 frames of 1275 bytes, with their lengths.
const MAX_OPUS_PACKET_BYTES: usize = 61_440;

/// One take's decoder. One task pushes and one takes; it may be the same task, through `select!`, as both futures
/// can be dropped without loss. A task that pushes without ever taking is refused once the queue is full.
///
/// - An error of `push` refuses that chunk alone; the stream goes on.
/// - An error of `next` ends the stream; what was decoded before has been given. Chunks pushed afterwards vanish.
///
/// Dropping it in the middle gives the pipeline back, off the async threads.
pub struct AudioDecoder {
    format: AudioFormat,
    way: Way,
    ended: AtomicBool,
    /// `next` has told the end.
    done: AtomicBool,
}

enum Way {
    Direct(Direct),
    Pipeline(Piped),
}

#[derive(Default)]
struct Direct {
    decoded: Mutex<Decoded>,
    output: Notify,
    room: Notify,
}

#[derive(Default)]
struct Decoded {
    waiting: VecDeque<Vec<f32>>,
    samples: usize,
}

struct Piped {
    line: Lent,
    head: Mutex<Option<Head>>,
    fed: AtomicBool,
}

impl Media {
    /// `Busy` when all pipelines of audio are taken; uncompressed audio at 16 kHz takes none.
    pub async fn audio_decoder(&self, format: AudioFormat) -> Result<AudioDecoder> {
        check(&format)?;
        let raw = format.encoding.bytes_per_sample().is_some();
        let way = if raw && format.sample_rate == SAMPLE_RATE_HZ {
            Way::Direct(Direct::default())
        } else {
            let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| busy())?;
            let unit = match format.encoding {
                Encoding::Opus => Unit::Whole,
                _ if raw => Unit::Samples,
                _ => Unit::Bytes,
            };
            let feed = Feed::Stream(Stream::new(unit));
            let line = self.pool.lend(pipeline_name(format.encoding), seat, feed, input_caps(&format)).await?;
            Way::Pipeline(Piped { line, head: Mutex::new(Head::new(format.encoding)), fed: AtomicBool::new(false) })
        };
        Ok(AudioDecoder { format, way, ended: AtomicBool::new(false), done: AtomicBool::new(false) })
    }
}

impl AudioDecoder {
    /// Waits while the decoder is behind, within a limit (`Timeout`). `Invalid`: the chunk splits a sample, or is no
    /// Opus packet.
    pub async fn push(&self, chunk: Bytes) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::internal("audio was pushed into a take that has ended"));
        }
        if chunk.is_empty() {
            return Ok(());
        }
        match &self.way {
            Way::Direct(direct) => direct.push(raw::mono(&self.format, &chunk)?).await,
            Way::Pipeline(piped) => piped.push(&self.format, chunk).await,
        }
    }

    /// No more chunks; `next` goes on until everything is out.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        match &self.way {
            Way::Direct(direct) => direct.output.notify_one(),
            Way::Pipeline(piped) => piped.end(),
        }
    }

    /// The next samples, in order; `None` once `end` was called and everything is out, or after an error.
    pub async fn next(&self) -> Option<Result<Vec<f32>>> {
        if self.done.load(Ordering::Acquire) {
            return None;
        }
        let ended = || self.ended.load(Ordering::Acquire);
        let next = match &self.way {
            Way::Direct(direct) => direct.next(ended).await.map(Ok),
            Way::Pipeline(piped) => piped.next(ended).await,
        };
        if !matches!(next, Some(Ok(_))) {
            self.done.store(true, Ordering::Release);
        }
        next
    }
}

impl Direct {
    async fn push(&self, samples: Vec<f32>) -> Result<()> {
        let wait = async {
            while lock(&self.decoded).samples >= MAX_WAITING_SAMPLES {
                self.room.notified().await;
            }
        };
        timeout(WAIT_LIMIT, wait).await.map_err(|_| {
            Error::new(Kind::Timeout, "the audio is not taken as fast as it comes").hint("send it more slowly")
        })?;
        let mut decoded = lock(&self.decoded);
        decoded.samples += samples.len();
        decoded.waiting.push_back(samples);
        drop(decoded);
        self.output.notify_one();
        Ok(())
    }

    async fn next(&self, ended: impl Fn() -> bool) -> Option<Vec<f32>> {
        loop {
            let over = ended();
            if let Some(samples) = self.pop() {
                self.room.notify_one();
                return Some(samples);
            }
            if over {
                return None;
            }
            self.output.notified().await;
        }
    }

    fn pop(&self) -> Option<Vec<f32>> {
        let mut decoded = lock(&self.decoded);
        let samples = decoded.waiting.pop_front()?;
        decoded.samples -= samples.len();
        Some(samples)
    }
}

impl Piped {
    async fn push(&self, format: &AudioFormat, chunk: Bytes) -> Result<()> {
        let chunk = match format.encoding {
            Encoding::Opus if chunk.len() > MAX_OPUS_PACKET_BYTES => {
                return Err(Error::invalid("a message holds one Opus packet, and this is too long for one")
                    .hint("send each packet in a message of its own, or Ogg as encoding `ogg`"));
            }
            encoding if encoding.bytes_per_sample().is_some() => {
                raw::mono(format, &chunk)?.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>().into()
            }
            _ => chunk,
        };
        // The only wait, and nothing has changed before it.
        self.line.room().await?;
        self.fed.store(true, Ordering::Release);
        let passed = match lock(&self.head).as_mut() {
            Some(head) => head.pass(chunk),
            None => Ok(chunk),
        };
        match passed {
            Ok(chunk) if chunk.is_empty() => (),
            Ok(chunk) => self.line.push(chunk),
            Err(error) => self.line.fail(error),
        }
        Ok(())
    }

    fn end(&self) {
        if let Some(Err(error)) = lock(&self.head).as_ref().map(Head::end) {
            self.line.fail(error);
        }
        self.line.end();
    }

    async fn next(&self, ended: impl Fn() -> bool) -> Option<Result<Vec<f32>>> {
        let sample = self.line.next(ended).await?;
        // A take without a single byte is empty, not broken, whatever a demuxer says of it.
        if sample.is_err() && !self.fed.load(Ordering::Acquire) {
            return None;
        }
        Some(sample.and_then(|it| samples(&it)))
    }
}

/// What the appsink holds: F32LE at 16 kHz, by the recipe's own caps.
pub(super) fn samples(sample: &gst::Sample) -> Result<Vec<f32>> {
    let unreadable = || Error::internal("a decoded buffer cannot be read");
    let buffer = sample.buffer().ok_or_else(unreadable)?;
    let map = buffer.map_readable().map_err(|error| unreadable().cause(error))?;
    let (samples, _) = map.as_chunks::<4>();
    Ok(samples.iter().map(|it| raw::bounded(f32::from_le_bytes(*it))).collect())
}

pub(super) fn pipeline_name(encoding: Encoding) -> &'static str {
    if encoding.bytes_per_sample().is_some() { "resample" } else { encoding.name() }
}

fn check(format: &AudioFormat) -> Result<()> {
    let AudioFormat { encoding, sample_rate, channels } = *format;
    if !(AudioFormat::MIN_RATE_HZ..=AudioFormat::MAX_RATE_HZ).contains(&sample_rate) {
        let (min, max) = (AudioFormat::MIN_RATE_HZ, AudioFormat::MAX_RATE_HZ);
        return Err(Error::invalid(format!("sample_rate {sample_rate} is not between {min} and {max}")));
    }
    let most = if encoding == Encoding::Opus { 2 } else { AudioFormat::MAX_CHANNELS };
    if !(1..=most).contains(&channels) {
        return Err(Error::invalid(format!("{} takes 1 to {most} channels, not {channels}", encoding.name())));
    }
    Ok(())
}

fn input_caps(format: &AudioFormat) -> Vec<(&'static str, String)> {
    let AudioFormat { encoding, sample_rate, channels } = format;
    match encoding {
        Encoding::Opus => {
            vec![("in", format!("audio/x-opus,rate=48000,channels={channels},channel-mapping-family=0"))]
        }
        encoding if encoding.bytes_per_sample().is_some() => {
            vec![("in", format!("audio/x-raw,format=F32LE,layout=interleaved,rate={sample_rate},channels=1"))]
        }
        // Containers and their parsers say themselves what is inside.
        _ => Vec::new(),
    }
}

pub(super) fn busy() -> Error {
    Error::new(Kind::Busy, "all decoders of compressed audio are in use")
        .hint("try again later, send pcm16 at 16000 Hz, which needs none, or raise audio.max_pipelines")
}
