//! What arrives. A session's audio, pushed by a client, goes from here through media and the voice detector to jobs,
//! and what comes of it to the client and to everybody (`publish`).

mod acks;
mod ears;
mod sessions;
mod take;
mod task;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    base::{Error, Shutdown},
    engines::Registry,
    flow::{Task, TextSegment},
    jobs::Queue,
    media::Media,
    publish::Hub,
    segment::Rules,
    settings,
    store::{AudioLog, Store},
};

pub use sessions::{Opened, Sessions};

/// What a session needs of the layers below; one for all sessions.
pub struct Services {
    pub media: Media,
    pub registry: Registry,
    pub queue: Queue,
    pub hub: Hub,
    pub store: Store,
    pub audio_log: AudioLog,
    pub shutdown: Shutdown,
    pub rules: Rules,
    pub max_sessions: usize,
    pub partial_interval: Duration,
}

/// What a client sends.
#[derive(Debug)]
pub enum Input {
    Audio {
        data: Bytes,
        chunk_id: Option<u64>,
    },
    /// This take is complete.
    End,
    /// Drop this take.
    Cancel,
}

/// What its client is told.
#[derive(Debug)]
pub enum Said {
    /// So many 16 kHz samples of the session are on disk.
    Ack {
        received_samples: u64,
        chunk_id: Option<u64>,
    },
    Speech {
        speaking: bool,
        at: f64,
    },
    Partial {
        text: String,
        committed: String,
        segment: u64,
        start: f64,
    },
    Segment(TextSegment),
    Final(FinalResult),
    /// Something went wrong with what was sent, or on our side; the session goes on.
    Failed(Error),
    /// The daemon is going down; nothing follows.
    Closing,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct FinalResult {
    pub text: String,
    pub language: String,
    /// Seconds of audio in this take.
    pub duration: f64,
    pub segments: Vec<TextSegment>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Task>,
}

/// The speech rules that the settings describe.
pub fn speech_rules(vad: &settings::Vad) -> Rules {
    Rules::new(vad.threshold, vad.hysteresis, vad.min_speech_ms, vad.min_silence_ms, vad.pad_ms)
        .max_speech_secs(vad.max_segment_secs)
}

/// Shared by every session's task.
pub type SharedServices = Arc<Services>;
