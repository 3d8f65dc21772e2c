//! A session: one conversation of one device, made of takes.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    flow::AudioFormat,
};

/// Named by the client, or made when it gives none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(Arc<str>);

impl SessionId {
    pub const MAX_LEN: usize = 128;

    pub fn parse(text: &str) -> Result<SessionId> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        // A slash would break the routes, a control character the logs.
        if !fits || text.chars().any(|c| c.is_control() || c == '/' || c.is_whitespace()) {
            return Err(Error::invalid("session_id must have 1 to 128 characters, without spaces or slashes")
                .hint("leave session_id out and one is made for you"));
        }
        Ok(SessionId(text.into()))
    }

    pub fn generate() -> SessionId {
        SessionId(ulid::Ulid::new().to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SessionId {
    type Error = Error;

    fn try_from(text: String) -> Result<SessionId> {
        SessionId::parse(&text)
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> String {
        id.0.as_ref().to_owned()
    }
}

/// How much a client wants something that this box may not be able to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    No,
    /// It has not said; where it cannot be had, it is not missed.
    #[default]
    IfPossible,
    /// It is told where it cannot be had.
    Yes,
}

/// What a client asks of its session, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionConfig {
    pub id: SessionId,
    pub device: String,
    pub format: AudioFormat,
    /// A code such as `es`, or `auto`.
    pub language: String,
    pub partials: bool,
    pub diarize: Wish,
    pub analyze: bool,
    pub words: bool,
    pub prompt: Option<String>,
    /// `transcribe` or `translate`.
    pub translate: bool,
}
