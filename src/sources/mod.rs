//! What arrives. A session's audio, pushed by a client, goes from here through media and the voice detector to jobs,
//! and what comes of it to the client and to everybody (`publish`).
//!
//! - `sessions`: who is live, and the way in; `task`: one session's life, which carries out what `course` decides
//! - `intake`, `line`: from and to its client; `acks`, `chunks`: what it may forget, what comes twice
//! - `take`: segments and their texts; `ears`: what is heard of it; `marks`: where its audio stands
//! - `partials`: the text while it is spoken, at a `pace`; `committed`: what of it stays; `finals`: the text that stays
//! - `analysis`: what it was about
//! - `speakers`: who speaks in it; `warm`: its models are there when somebody speaks
//! - `kept`, `recovery`: how a session goes on after a crash; `again`: how one that is over is transcribed once more

mod acks;
mod again;
mod analysis;
mod chunks;
mod committed;
mod course;
mod ears;
mod finals;
mod intake;
mod kept;
mod line;
mod marks;
mod pace;
mod partials;
#[cfg(test)]
mod properties;
mod recovery;
mod sessions;
mod speakers;
mod take;
mod task;
mod warm;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    base::{Error, Shutdown},
    engines::Registry,
    flow::{Event, Task, TextSegment, Warning},
    jobs::{Analysis, Queue},
    media::Media,
    publish::Hub,
    segment::{CommitRule, Rules},
    settings,
    store::{AudioLog, Seen, Store},
};

pub use again::{Again, Retold};
pub use partials::PartialRules;
pub use sessions::{Opened, Sessions};

/// What a session needs of the layers below; one for all sessions.
pub struct Services {
    pub media: Media,
    pub registry: Registry,
    pub queue: Queue,
    pub hub: Hub,
    pub store: Store,
    /// Where known voices are kept.
    pub voices_dir: PathBuf,
    pub audio_log: AudioLog,
    pub shutdown: Shutdown,
    pub rules: Rules,
    pub max_sessions: usize,
    pub partials: PartialRules,
    /// A client that was cut off may come back this long; zero: not at all.
    pub resume_window: Duration,
    /// Audio stays on disk when its session has ended.
    pub keep_audio: bool,
    /// The name of the model that analyses conversations.
    pub chat_model: String,
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
    /// A message that means nothing; its sender is told so, and is closed if that is `fatal`.
    Wrong {
        error: Error,
        fatal: bool,
    },
    /// The client is done and leaves. Without it, a client that is gone may come back.
    Goodbye,
}

/// How a client comes to a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coming {
    /// It wants to go on where it was cut off.
    pub resumes: bool,
    /// The number of the last message that it has seen.
    pub last_seq: Option<u64>,
}

impl Coming {
    /// The results that it does not want to be told again.
    fn seen(&self) -> Seen {
        match (self.resumes, self.last_seq) {
            (false, _) => Seen::Everything,
            (true, Some(seq)) => Seen::UpTo(seq),
            (true, None) => Seen::Nothing,
        }
    }
}

/// A message to its client. Numbers are without a gap on each connection, and go on over all of them.
#[derive(Debug)]
pub struct Told {
    pub seq: u64,
    pub said: Said,
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
    Analysis(Box<Analysis>),
    /// A result that the client may not have seen, as its event has it.
    Again(Arc<Event>),
    /// Something went wrong with what was sent, or on our side. The session goes on, but the client is to be closed if
    /// that is `fatal`.
    Failed {
        error: Error,
        fatal: bool,
    },
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
    /// What to know of it, such as that a smaller model made it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// It is of the whole session, transcribed once more, and stands for all that was told before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// The speech rules that the settings describe.
pub fn speech_rules(vad: &settings::Vad) -> Rules {
    Rules::new(vad.threshold, vad.hysteresis, vad.min_speech_ms, vad.min_silence_ms, vad.pad_ms)
        .max_speech_secs(vad.max_segment_secs)
        .settle_ms(vad.settle_ms)
}

/// How partial results are made, as the settings say.
pub fn partial_rules(audio: &settings::Audio) -> PartialRules {
    let margin = Duration::from_millis(audio.attention_margin_ms);
    PartialRules {
        commit: match audio.partials {
            settings::Partials::Agreement => CommitRule::Agreement,
            settings::Partials::Attention => CommitRule::Attention { margin_secs: margin.as_secs_f64() },
        },
        first: Duration::from_millis(audio.first_partial_ms),
        interval: Duration::from_millis(audio.partial_interval_ms),
    }
}

/// Shared by every session's task.
pub type SharedServices = Arc<Services>;
