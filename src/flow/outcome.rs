//! What engines answer.

use serde::{Deserialize, Serialize};

/// The text of one piece of audio.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    pub text: String,
    pub language: String,
    /// How sure the engine is of the language.
    pub probability: f32,
    pub words: Vec<Word>,
}

/// A final piece of a session's transcript. Times are seconds from the start of the session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TextSegment {
    pub id: u64,
    pub start: f64,
    pub end: f64,
    pub text: String,
    pub language: String,
    pub probability: f32,
    pub speaker: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Word {
    pub start: f64,
    pub end: f64,
    pub text: String,
    pub probability: f32,
}

/// Something that whoever reads a result must know beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Warning {
    pub code: WarningCode,
    #[schema(example = "the recording is cut off after 63.2 s: its last page is not whole")]
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarningCode {
    /// The recording ends before its own end.
    Cut,
    /// The recording cannot be decoded from some place on.
    Damaged,
    /// Another variant, or another provider, than the settings want it first: the message says which, and why.
    Instead,
}
