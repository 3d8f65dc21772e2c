//! Requests and answers of the HTTP side as they stand on the wire. Fields are added, never renamed or removed.
//! No behaviour beyond reading and writing themselves.

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    api::error::told,
    base::{Error, Result},
    engines::{prepare::EngineStatus, remote::RemoteHealth},
    flow::{TextSegment, Warning},
    jobs::Hazard,
    models::Ledger,
};

/// Every error. `detail` repeats the message for clients written against FastAPI.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorInfo,
    pub detail: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorInfo {
    /// For programs: `invalid`, `unauthorized`, `not_found`, `method_not_allowed`, `too_large`, `unsupported`, `busy`,
    /// `over_budget`, `unavailable`, `cancelled`, `timeout` or `internal`.
    #[schema(example = "invalid")]
    pub code: &'static str,
    /// For people: what is wrong.
    pub message: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Also in the header `X-Request-Id` and in the log.
    #[schema(example = "01JD8Z0V6S8X2Q3W4E5R6T7Y8U")]
    pub request_id: String,
}

impl ErrorBody {
    pub(crate) fn new(code: &'static str, error: &Error, request_id: &str) -> ErrorBody {
        let message = told(error).to_owned();
        ErrorBody {
            detail: message.clone(),
            error: ErrorInfo {
                code,
                message,
                hint: error.hint_text().map(str::to_owned),
                request_id: request_id.to_owned(),
            },
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct About {
    #[schema(example = "vigia")]
    pub name: &'static str,
    pub version: &'static str,
    #[schema(example = "/docs")]
    pub docs: &'static str,
    #[schema(example = "/ui")]
    pub ui: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    pub status: HealthStatus,
    /// What is not as the settings ask; empty when `status` is `ok`.
    pub problems: Vec<String>,
    pub version: &'static str,
    pub node: String,
    pub hardware: Capabilities,
    /// By name: `vad`, `transcribe`, `diarize`, `describe`, `chat`, `speak`, `paint`, `read`, `detect`.
    pub tasks: BTreeMap<String, TaskHealth>,
    pub memory: MemoryHealth,
    /// TensorRT's engines: absent, being built, ready, quarantined with the reason.
    #[schema(value_type = Vec<Object>)]
    pub engine_builds: Vec<EngineStatus>,
    /// Servers that lend their models, by the settings' [remotes.NAME].
    #[schema(value_type = Vec<Object>)]
    pub remotes: Vec<RemoteHealth>,
    pub queues: Queues,
    pub mqtt: MqttHealth,
    /// Live audio sessions.
    pub sessions: usize,
    pub uptime_secs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Ok,
    Degraded,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TaskHealth {
    /// `ready`, `cold` (loaded by the first who needs it), `loading` or `unavailable`.
    #[schema(example = "ready")]
    pub state: &'static str,
    #[schema(example = "silero-vad")]
    pub model: Option<String>,
    pub variant: Option<String>,
    #[schema(example = "cpu")]
    pub provider: Option<String>,
    #[schema(example = "cpu")]
    pub device: Option<String>,
    /// Why it is unavailable and what to do.
    pub reason: Option<String>,
}

/// In bytes. Of the GPU's memory where there is a GPU, else of the system's.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemoryHealth {
    /// What models may have now; absent while no model is managed.
    pub budget: Option<u64>,
    /// Of which promised to models.
    pub reserved: u64,
    /// What the daemon itself has in memory now. Its engines have processes of their own: what those take is in
    /// `ledgers`, and this is no part of the budget.
    pub daemon: Option<u64>,
    /// The same as `daemon`, under the name that it had first.
    #[schema(deprecated)]
    pub measured: Option<u64>,
    /// Term by term and model by model; the GPU's memory first, then the system's where the two differ.
    #[schema(value_type = Vec<Object>)]
    pub ledgers: Vec<Ledger>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelUnloaded {
    pub model: String,
    #[schema(value_type = String, example = "unloaded")]
    pub state: &'static str,
}

/// Jobs that wait, by priority.
#[derive(Debug, Serialize, ToSchema)]
pub struct Queues {
    pub live: usize,
    pub interactive: usize,
    pub batch: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct MqttHealth {
    /// `off`, `connecting`, `connected` or `failed`.
    #[schema(example = "connected")]
    pub state: &'static str,
    pub reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Capabilities {
    pub cpu_cores: usize,
    /// In GiB, as far as this process may use it.
    #[schema(example = 15.6)]
    pub ram_gb: f64,
    /// `CPU Only` without a GPU.
    #[schema(example = "CPU Only")]
    pub gpu_model: String,
    /// 0.0 without a GPU; on a Jetson the memory that it shares with the system.
    pub gpu_vram_gb: f64,
    /// `cuda` with an NVIDIA GPU, else `cpu`.
    #[schema(example = "cpu")]
    pub device: &'static str,
    /// What runs here is chosen by it.
    #[schema(example = "cpu")]
    pub profile: String,
    pub profile_why: String,
    /// `dedicated`, `unified` or `none`.
    #[schema(example = "none")]
    pub memory_kind: &'static str,
    pub jetpack: Option<String>,
    pub arch: String,
    pub os: Option<String>,
    pub kernel: Option<String>,
    pub cpu_model: Option<String>,
    /// What could not be read or is worth knowing.
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SessionList {
    /// The newest first.
    pub sessions: Vec<SessionInfo>,
    /// Give it as `before` to get the next page; absent on the last.
    pub next: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SessionInfo {
    #[schema(example = "01JD8Z0V6S8X2Q3W4E5R6T7Y8U")]
    pub session_id: String,
    #[schema(example = "default")]
    pub device: String,
    #[schema(example = "es")]
    pub language: String,
    /// `open` or `closed`.
    #[schema(example = "closed")]
    pub state: &'static str,
    #[schema(example = "2026-01-02T03:04:05.678Z")]
    pub opened_at: String,
    pub ended_at: Option<String>,
    pub takes: u64,
    /// Seconds of audio.
    pub duration: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SessionDetail {
    #[serde(flatten)]
    pub session: SessionInfo,
    pub transcript: SessionTranscript,
    /// Absent until somebody asks for one.
    #[schema(value_type = Option<Object>)]
    pub analysis: Option<serde_json::Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SessionTranscript {
    pub session_id: String,
    #[schema(example = "es")]
    pub language: String,
    /// Seconds of audio.
    pub duration: f64,
    pub text: String,
    pub segments: Vec<TextSegment>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    #[schema(value_type = Vec<crate::flow::Event>)]
    pub events: Vec<Box<serde_json::value::RawValue>>,
    /// Give it as `from` to go on; absent when there is nothing more yet.
    pub next: Option<u64>,
}

/// A form of `POST /api/stt`.
#[derive(ToSchema)]
pub struct SttForm {
    /// Audio in any container: WAV, FLAC, MP3, Ogg, WebM, M4A…
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
    /// A code such as `es`, or `auto`.
    #[schema(default = "auto")]
    pub language: Option<String>,
    /// Tell the speakers apart.
    #[schema(default = false)]
    pub diarize: Option<bool>,
    /// With `diarize`: how many speakers there are, where it is known.
    #[schema(minimum = 1, maximum = 64)]
    pub speakers: Option<u32>,
    /// Times of words.
    #[schema(default = false)]
    pub words: Option<bool>,
    /// Names and terms that are likely to be said.
    pub prompt: Option<String>,
    /// `transcribe`, or `translate` into English.
    #[schema(default = "transcribe")]
    pub task: Option<String>,
}

/// `POST /sessions/{id}/transcribe`; what is left out is as the session's client had asked.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct TranscribeRequest {
    /// A code such as `es`, or `auto`.
    pub language: Option<String>,
    /// Tell the speakers apart.
    pub diarize: Option<bool>,
    /// With `diarize`: how many speakers there are, where it is known.
    #[schema(minimum = 1, maximum = 64)]
    pub speakers: Option<usize>,
    /// Times of words.
    pub words: Option<bool>,
    /// Names and terms that are likely to be said.
    pub prompt: Option<String>,
    /// `transcribe`, or `translate` into English.
    pub task: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SttAnswer {
    pub text: String,
    /// As asked for, or as heard; empty where nobody speaks.
    #[schema(example = "es")]
    pub language: String,
    /// How sure the model is of the language.
    pub probability: f32,
    /// Seconds of audio.
    pub duration: f64,
    pub segments: Vec<TextSegment>,
    pub model: String,
    /// What was asked for and this model cannot give: `words`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<&'static str>,
    /// Why the text is not that of the whole recording, or not by what the settings want to have made it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct TtsRequest {
    /// At most 2000 characters.
    #[schema(example = "Hola, ¿en qué puedo ayudarte?", max_length = 2000)]
    pub inputs: String,
    #[serde(default = "es")]
    #[schema(default = "es")]
    pub language: String,
    /// A name of `GET /api/tts/voices`, or `auto`.
    #[serde(default = "first_voice")]
    #[schema(default = "af_sarah")]
    pub voice_preset: String,
    #[serde(default = "kokoro")]
    #[schema(default = "kokoro")]
    pub model: String,
    #[serde(default = "one")]
    #[schema(default = 1.0, minimum = 0.5, maximum = 2.0)]
    pub speed: f32,
    #[serde(default)]
    #[schema(default = "wav")]
    pub format: SpeechFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpeechFormat {
    #[default]
    Wav,
    Mp3,
    Ogg,
    Flac,
    Pcm,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct VoiceList {
    pub voices: Vec<VoiceInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct VoiceInfo {
    #[schema(example = "ef_dora")]
    pub name: String,
    #[schema(example = "es")]
    pub language: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ImageRequest {
    #[schema(example = "un faro al amanecer")]
    pub prompt: String,
    #[serde(default)]
    pub negative_prompt: String,
    #[serde(default = "side")]
    #[schema(default = 1024, multiple_of = 8)]
    pub width: u32,
    #[serde(default = "side")]
    #[schema(default = 1024, multiple_of = 8)]
    pub height: u32,
    #[serde(default = "four")]
    #[schema(default = 4, minimum = 1, maximum = 100)]
    pub num_inference_steps: u32,
    /// One is drawn when none is given; `X-Vigia-Seed` says which.
    pub seed: Option<u64>,
}

#[derive(ToSchema)]
pub struct JobInfo {
    pub id: String,
    /// `waiting`, `running`, `done` or `failed`.
    pub state: String,
    /// 0 to 1.
    pub progress: f32,
}

/// A form of `POST /vision/frame`.
#[derive(ToSchema)]
pub struct FrameForm {
    /// JPEG, PNG or WebP.
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
    pub session_id: Option<String>,
    pub timestamp: Option<String>,
    pub prompt: Option<String>,
    pub language: Option<String>,
    pub device: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct FrameB64 {
    pub session_id: Option<String>,
    /// JPEG, PNG or WebP in base64, either alphabet, padding optional; a `data:` prefix is accepted.
    pub image_b64: String,
    #[serde(default)]
    pub metadata: FrameMetadata,
    pub prompt: Option<String>,
    pub language: Option<String>,
    pub device: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct FrameMetadata {
    #[schema(value_type = Option<String>)]
    pub timestamp: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FrameAnswer {
    pub frame_id: String,
    pub session_id: Option<String>,
    /// Width and height after EXIF rotation.
    #[schema(value_type = Vec<u32>, example = json!([1280, 720]))]
    pub size: [u32; 2],
    pub description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hazards: Option<Vec<Hazard>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestions: Option<Vec<String>>,
    /// No engine of this version finds any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<Object>>,
    /// No engine of this version reads any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Vec<Line>>,
    pub language: String,
    pub model: String,
    pub elapsed_ms: u64,
    /// Tasks without a model, and what the describer does not give: left out of the answer.
    #[schema(value_type = Vec<String>)]
    pub unavailable: Vec<&'static str>,
}

/// The answer to a photo sent with `wait=false`, and of one that is still looked at.
#[derive(Debug, Serialize, ToSchema)]
pub struct FrameTaken {
    pub frame_id: String,
    /// `working`.
    #[schema(value_type = String, example = "working")]
    pub state: &'static str,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Object {
    pub label: String,
    pub score: f32,
    /// x, y, width, height.
    #[schema(value_type = Vec<f32>)]
    pub r#box: [f32; 4],
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Line {
    pub text: String,
    pub score: f32,
    #[schema(value_type = Vec<f32>)]
    pub r#box: [f32; 4],
}

fn es() -> String {
    "es".to_owned()
}

fn first_voice() -> String {
    "af_sarah".to_owned()
}

fn kokoro() -> String {
    "kokoro".to_owned()
}

fn one() -> f32 {
    1.0
}

fn side() -> u32 {
    1024
}

fn four() -> u32 {
    4
}

/// Base64 as clients write it: both alphabets, padding optional, a `data:…;base64,` before it.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

    let text = match text.strip_prefix("data:") {
        Some(data) => data.split_once(',').map_or(data, |(_, text)| text),
        None => text,
    };
    let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    engine.decode(text.trim()).map_err(|error| Error::invalid(format!("wrong base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_both_alphabets_with_or_without_padding() {
        for text in ["+/+/AA==", "+/+/AA", "-_-_AA==", "-_-_AA", "data:image/png;base64,+/+/AA==", " +/+/AA\n"] {
            assert_eq!(decode_base64(text).unwrap(), [0xfb, 0xff, 0xbf, 0x00], "{text}");
        }
        assert!(decode_base64("not base64!").unwrap_err().message().contains("base64"));
        assert!(decode_base64("+_AA").is_err());
    }

    #[test]
    fn requests_have_the_defaults_of_the_protocol() {
        let tts: TtsRequest = serde_json::from_str(r#"{"inputs":"hola"}"#).unwrap();
        assert_eq!((tts.language.as_str(), tts.voice_preset.as_str(), tts.speed), ("es", "af_sarah", 1.0));
        assert_eq!((tts.model.as_str(), tts.format), ("kokoro", SpeechFormat::Wav));
        let image: ImageRequest = serde_json::from_str(r#"{"prompt":"faro"}"#).unwrap();
        assert_eq!((image.width, image.height, image.num_inference_steps), (1024, 1024, 4));
    }
}
