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

/// As a client says it, or does not.
impl From<Option<bool>> for Wish {
    fn from(asked: Option<bool>) -> Wish {
        match asked {
            None => Wish::IfPossible,
            Some(true) => Wish::Yes,
            Some(false) => Wish::No,
        }
    }
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
    #[serde(deserialize_with = "wish_or_flag")]
    pub analyze: Wish,
    pub words: bool,
    pub prompt: Option<String>,
    /// `transcribe` or `translate`.
    pub translate: bool,
}

/// Sessions that an earlier version kept have a flag here, true by default.
fn wish_or_flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Wish, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Kept {
        Flag(bool),
        Wish(Wish),
    }
    Ok(match Kept::deserialize(deserializer)? {
        Kept::Flag(true) => Wish::IfPossible,
        Kept::Flag(false) => Wish::No,
        Kept::Wish(wish) => wish,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_kept_of_a_session_is_read() {
        let config = |analyze: &str| {
            let json = format!(
                r#"{{"id":"a","device":"gafas","format":{{"encoding":"pcm16","sample_rate":16000,"channels":1}},
                "language":"es","partials":true,"diarize":"yes","analyze":{analyze},"words":false,"prompt":null,
                "translate":false}}"#
            );
            serde_json::from_str::<SessionConfig>(&json).unwrap()
        };
        assert_eq!(config("true").analyze, Wish::IfPossible);
        assert_eq!(config("false").analyze, Wish::No);
        let kept = config(r#""yes""#);
        assert_eq!(serde_json::from_str::<SessionConfig>(&serde_json::to_string(&kept).unwrap()).unwrap(), kept);
    }
}
