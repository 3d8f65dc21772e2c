//! Audio as it arrives (an encoding, a rate, channels) and as everything inside uses it: 16 kHz mono f32.

use std::{ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

/// The one rate inside. Every model of speech that we run was trained on it.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// 16 kHz mono samples in ±1, shared instead of copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pcm(Arc<[f32]>);

impl Pcm {
    pub fn secs(&self) -> f64 {
        samples_to_secs(self.0.len() as u64)
    }
}

impl From<Vec<f32>> for Pcm {
    fn from(samples: Vec<f32>) -> Pcm {
        Pcm(samples.into())
    }
}

impl Deref for Pcm {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

pub fn samples_to_secs(samples: u64) -> f64 {
    samples as f64 / f64::from(SAMPLE_RATE_HZ)
}

/// How a client encodes the audio that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    Pcm16,
    PcmF32,
    Mulaw,
    Alaw,
    /// One Opus packet a message.
    Opus,
    Wav,
    Ogg,
    Webm,
    Flac,
    Mp3,
    Aac,
    Mp4,
}

impl Encoding {
    pub const ALL: [Encoding; 12] = [
        Encoding::Pcm16,
        Encoding::PcmF32,
        Encoding::Mulaw,
        Encoding::Alaw,
        Encoding::Opus,
        Encoding::Wav,
        Encoding::Ogg,
        Encoding::Webm,
        Encoding::Flac,
        Encoding::Mp3,
        Encoding::Aac,
        Encoding::Mp4,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Encoding::Pcm16 => "pcm16",
            Encoding::PcmF32 => "pcm_f32",
            Encoding::Mulaw => "mulaw",
            Encoding::Alaw => "alaw",
            Encoding::Opus => "opus",
            Encoding::Wav => "wav",
            Encoding::Ogg => "ogg",
            Encoding::Webm => "webm",
            Encoding::Flac => "flac",
            Encoding::Mp3 => "mp3",
            Encoding::Aac => "aac",
            Encoding::Mp4 => "mp4",
        }
    }

    pub fn from_name(name: &str) -> Option<Encoding> {
        Encoding::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Bytes a sample takes, for encodings without a container; a message must hold whole samples.
    pub fn bytes_per_sample(self) -> Option<usize> {
        match self {
            Encoding::Pcm16 => Some(2),
            Encoding::PcmF32 => Some(4),
            Encoding::Mulaw | Encoding::Alaw => Some(1),
            _ => None,
        }
    }
}

/// What a stream of chunks is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AudioFormat {
    pub encoding: Encoding,
    pub sample_rate: u32,
    pub channels: u8,
}

impl AudioFormat {
    pub const MIN_RATE_HZ: u32 = 8_000;
    pub const MAX_RATE_HZ: u32 = 48_000;
    pub const MAX_CHANNELS: u8 = 8;

    /// 16 kHz mono PCM needs no pipeline: bytes become samples where they arrive.
    pub fn is_direct(&self) -> bool {
        matches!(self.encoding, Encoding::Pcm16 | Encoding::PcmF32)
            && self.sample_rate == SAMPLE_RATE_HZ
            && self.channels == 1
    }
}
