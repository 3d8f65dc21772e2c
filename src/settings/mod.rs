//! Settings: what a person may choose, with every default and its reason in `defaults.toml`.
//!
//! Sources, later ones win: defaults → profile → `/etc/vigia/vigia.toml` → `conf.d/*.toml` → environment →
//! `--set`. The structs below only give names and types; `layer` and `check` find every fault, with where it
//! was set. Nothing here may touch a device or fall back in silence: a bad value is a fault, never a default.

mod check;
mod layer;
mod levels;
mod load;
mod manual;
mod remotes;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

pub use check::Fault;
pub use levels::Levels;
pub use load::{Leaf, Loaded, ProfileText, Sources, load, variables, wanted_card, wanted_profile};
pub use manual::{DEFAULTS, effective};
pub use remotes::{Protocol, Remote, ServerUrl, is_private, without_secrets};

use crate::base::ByteSize;

/// What decides by what the machine has.
const AUTO: &str = "auto";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub node: Node,
    pub device: Device,
    pub server: Server,
    pub audio: Audio,
    pub vision: Vision,
    pub vad: Vad,
    pub jobs: Jobs,
    pub models: Models,
    pub memory: Memory,
    pub runtime: Runtime,
    pub providers: Providers,
    pub pipelines: Pipelines,
    pub mqtt: Mqtt,
    pub store: Store,
    pub log: Log,
    pub shutdown: Shutdown,
    /// By the names of `flow::Task`.
    pub tasks: BTreeMap<String, TaskChoice>,
    /// By the names that people gave them.
    #[serde(default)]
    pub remotes: BTreeMap<String, Remote>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub profile: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub listen: SocketAddr,
    pub allow_anonymous: bool,
    pub cors_origins: Vec<String>,
    pub max_connections: usize,
    pub max_body: ByteSize,
    pub max_upload: ByteSize,
    pub max_message: ByteSize,
    pub request_timeout_secs: u64,
    pub send_timeout_secs: u64,
    pub idle_timeout_secs: u64,
}

impl Server {
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_secs)
    }

    pub fn send_timeout(&self) -> Duration {
        Duration::from_secs(self.send_timeout_secs)
    }

    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_secs)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audio {
    pub language: String,
    pub max_sessions: usize,
    pub max_pipelines: usize,
    pub partials: Partials,
    pub first_partial_ms: u64,
    pub partial_interval_ms: u64,
    pub resume_secs: u64,
    pub attention_margin_ms: u64,
}

/// When words of a segment that is being spoken are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partials {
    Agreement,
    Attention,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vision {
    pub max_pixels: u64,
    pub max_side: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vad {
    pub threshold: f32,
    pub hysteresis: f32,
    pub min_speech_ms: u32,
    pub min_silence_ms: u32,
    pub settle_ms: u32,
    pub pad_ms: u32,
    pub max_segment_secs: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    pub queue_live: usize,
    pub queue_interactive: usize,
    pub queue_batch: usize,
    pub timeout_secs: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    pub dir: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    #[serde(deserialize_with = "size_or_none")]
    pub limit: Option<ByteSize>,
    pub system: ByteSize,
    pub media: ByteSize,
    pub margin: ByteSize,
    pub idle_secs: u64,
    pub wait_secs: u64,
    pub retry_secs: u64,
    pub foreign_secs: u64,
}

impl Memory {
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_secs)
    }

    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_secs)
    }

    pub fn retry(&self) -> Duration {
        Duration::from_secs(self.retry_secs)
    }
}

/// An empty text is none.
fn size_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// A number may stand without quotes: the sources give its text.
fn number_or_auto<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == AUTO { Ok(None) } else { text.trim().parse().map(Some).map_err(D::Error::custom) }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub library: String,
}

/// What computes a model's graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Cpu,
    Cuda,
    TensorRt,
    /// TensorRT for RTX, a library of its own.
    NvRtx,
}

impl Provider {
    pub const ALL: [Provider; 4] = [Provider::Cpu, Provider::Cuda, Provider::TensorRt, Provider::NvRtx];

    pub fn name(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::NvRtx => "nvrtx",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Providers {
    pub order: Vec<Provider>,
    /// None is the card with the most memory.
    #[serde(deserialize_with = "number_or_auto")]
    pub device_id: Option<u32>,
    pub engines_dir: String,
    pub cuda: Cuda,
    pub tensorrt: TensorRt,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cuda {
    pub memory_limit: ByteSize,
    pub conv_search: ConvSearch,
    pub tf32: bool,
}

/// How cuDNN chooses among its convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvSearch {
    Heuristic,
    Exhaustive,
    Default,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRt {
    pub fp16: bool,
    pub int8: bool,
    pub workspace: ByteSize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipelines {
    pub dir: String,
    pub variant: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MqttMode {
    Embedded,
    External,
    Off,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    pub mode: MqttMode,
    pub listen: SocketAddr,
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password_file: String,
    pub prefix: String,
    pub discovery: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub dir: String,
    pub keep_days: u32,
    pub keep_audio: bool,
    pub max_audio: ByteSize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: Levels,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    pub deadline_secs: u64,
}

/// What serves a task; an empty model switches it off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskChoice {
    pub model: String,
    pub provider: String,
    pub variant: String,
    /// The name of a server in `remotes`; empty: this box.
    pub remote: String,
    pub resident: bool,
}

impl Settings {
    /// Folder of sessions, keys and models; `load` has filled it in.
    pub fn store_dir(&self) -> PathBuf {
        PathBuf::from(&self.store.dir)
    }

    pub fn models_dir(&self) -> PathBuf {
        if self.models.dir.is_empty() { self.store_dir().join("models") } else { PathBuf::from(&self.models.dir) }
    }

    /// The model that serves a task (`flow::Task` or its name), if any.
    pub fn model_for(&self, task: impl AsRef<str>) -> Option<&str> {
        self.tasks.get(task.as_ref()).map(|choice| choice.model.as_str()).filter(|model| !model.is_empty())
    }

    /// The variants of a task's model that may serve, best first; none means the model's default, and where memory is
    /// short its smaller ones.
    pub fn variants_for(&self, task: impl AsRef<str>) -> Vec<&str> {
        let named = self.tasks.get(task.as_ref()).map_or("", |choice| choice.variant.as_str());
        named.split(',').filter(|variant| !variant.is_empty()).collect()
    }

    /// Whether a task's model stays loaded when it is idle.
    pub fn is_resident(&self, task: impl AsRef<str>) -> bool {
        self.tasks.get(task.as_ref()).is_some_and(|choice| choice.resident)
    }

    /// Where a task's model may run, best first.
    pub fn providers_for(&self, task: impl AsRef<str>) -> Vec<Provider> {
        let named = self.tasks.get(task.as_ref()).map_or("", |choice| choice.provider.as_str());
        match Provider::ALL.into_iter().find(|provider| provider.name() == named) {
            Some(provider) => vec![provider],
            None => self.providers.order.clone(),
        }
    }

    /// Folder of the engines that TensorRT builds.
    pub fn engines_dir(&self) -> PathBuf {
        let dir = &self.providers.engines_dir;
        if dir.is_empty() { self.store_dir().join("engines") } else { PathBuf::from(dir) }
    }

    /// The server that does a task instead of this box, with the name it was given.
    pub fn remote_for(&self, task: impl AsRef<str>) -> Option<(&str, &Remote)> {
        let choice = self.tasks.get(task.as_ref())?;
        self.remotes.get_key_value(&choice.remote).map(|(name, remote)| (name.as_str(), remote))
    }
}
