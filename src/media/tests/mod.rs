//! What media promises, held against real GStreamer: `streams` (every encoding of the wire), `hostile` (bad input and
//! clients that leave), `photos`, `files`, `speech` (on its way out). The data is made by `tests/data/make/media.py`.

mod files;
mod hostile;
mod photos;
mod speech;
mod streams;

use std::{f64::consts::PI, fs, path::PathBuf, time::Duration};

use bytes::Bytes;

use super::{AudioDecoder, Media};
use crate::{
    base::{Error, Result},
    flow::{AudioFormat, Encoding, SAMPLE_RATE_HZ},
    settings::{Audio, Pipelines, Sources, Vision, load},
};

/// Nothing in these tests takes longer, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const SECS: f64 = 2.0;

pub(super) fn media() -> Media {
    media_with(8)
}

fn media_with(max_pipelines: usize) -> Media {
    let audio = Audio { max_pipelines, ..load(&Sources::default()).unwrap().settings.audio };
    let vision = Vision { max_pixels: 50_000_000, max_side: 1536 };
    Media::new(&Pipelines { dir: String::new(), variant: "cpu".to_owned() }, &audio, &vision).unwrap()
}

fn data_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/media").join(name)
}

fn data(name: &str) -> Bytes {
    fs::read(data_path(name)).unwrap().into()
}

/// The packets of `opus.packets`, each preceded by its length.
fn opus_packets() -> Vec<Bytes> {
    let mut data = data("opus.packets");
    let mut packets = Vec::new();
    while let Some(len) = data.first_chunk::<2>().map(|it| usize::from(u16::from_be_bytes(*it))) {
        packets.push(data.slice(2..2 + len));
        data = data.slice(2 + len..);
    }
    packets
}

fn pieces(data: &Bytes, size: usize) -> Vec<Bytes> {
    (0..data.len()).step_by(size).map(|at| data.slice(at..data.len().min(at + size))).collect()
}

fn format(encoding: Encoding, sample_rate: u32, channels: u8) -> AudioFormat {
    AudioFormat { encoding, sample_rate, channels }
}

fn container(encoding: Encoding) -> AudioFormat {
    format(encoding, 48_000, 1)
}

/// The tone that `media.py` writes, at any rate.
fn tone(rate: u32) -> Vec<f32> {
    (0..(SECS * f64::from(rate)) as u32).map(|n| tone_at(f64::from(n) / f64::from(rate)) as f32).collect()
}

fn tone_at(t: f64) -> f64 {
    let phase = 2.0 * PI * (200.0 * t + (3000.0 - 200.0) / (2.0 * SECS) * t * t);
    0.5 * phase.sin() * (0.6 + 0.4 * (2.0 * PI * 3.0 * t).sin())
}

/// What came out, and the error that ended it.
struct Decoded {
    samples: Vec<f32>,
    error: Option<Error>,
}

/// One take, written and read by one task at the same time.
async fn decode(media: &Media, format: AudioFormat, chunks: &[Bytes]) -> Result<Decoded> {
    let decoder = media.audio_decoder(format).await?;
    let write = async {
        for chunk in chunks {
            decoder.push(chunk.clone()).await?;
        }
        decoder.end();
        Ok(())
    };
    let both = async { tokio::join!(write, read(&decoder)) };
    let (written, decoded) = tokio::time::timeout(LIMIT, both).await.expect("a take ends within the limit");
    written.map(|()| decoded)
}

async fn read(decoder: &AudioDecoder) -> Decoded {
    let mut samples = Vec::new();
    while let Some(next) = decoder.next().await {
        match next {
            Ok(more) => samples.extend(more),
            Err(error) => return Decoded { samples, error: Some(error) },
        }
    }
    Decoded { samples, error: None }
}

impl Decoded {
    fn whole(self) -> Vec<f32> {
        assert!(self.error.is_none(), "{}", self.error.unwrap().full());
        self.samples
    }
}

/// How much the samples are like the tone (1: the same, but for loudness), up to `most_lag` samples late or early.
fn likeness(samples: &[f32], most_lag: u32) -> f64 {
    let at = |lag: f64, from: usize, len: usize| {
        let (mut ab, mut aa, mut bb) = (0.0, 1e-12, 1e-12);
        for (n, a) in samples.iter().enumerate().skip(from).take(len) {
            let (a, b) = (f64::from(*a), tone_at((n as f64 - lag) / f64::from(SAMPLE_RATE_HZ)));
            ab += a * b;
            aa += a * a;
            bb += b * b;
        }
        ab / (aa * bb).sqrt()
    };
    let best = |lags: &mut dyn Iterator<Item = f64>, from| {
        lags.max_by(|a, b| at(*a, from, 2000).total_cmp(&at(*b, from, 2000))).unwrap()
    };
    // The begin is low, so steps of four samples find the place; near the end half a sample is heard already.
    let (begin, most) = (most_lag as usize, most_lag as i32);
    let place = best(&mut (-most..=most).step_by(4).map(f64::from), begin);
    let lag = best(&mut (-12..=12).map(|it| place + f64::from(it) / 4.0), 24_000);
    at(lag, begin, usize::MAX)
}
