//! One error for the whole crate: what kind it is, what a person reads, and what to do next.
//!
//! The kind decides the HTTP status and the WebSocket code (`api/error.rs`), the message and the hint go to
//! the client, the cause goes to the log and never over the wire.

use std::{error::Error as StdError, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What went wrong, as far as the one who asked is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Invalid,
    Unauthorized,
    NotFound,
    TooLarge,
    Busy,
    OverBudget,
    Unavailable,
    Unsupported,
    Cancelled,
    Timeout,
    Internal,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Small on purpose (one pointer), so that `Result` stays cheap on the hot path.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    retry_after: Option<Duration>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), hint: None, cause: None, retry_after: None }))
    }

    /// What the reader can do about it: a command, a setting, a file.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// For the log only.
    pub fn cause(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.cause = Some(cause.into());
        self
    }

    /// When asking again may help, where somebody said so.
    pub fn retry_after(mut self, time: Duration) -> Error {
        self.0.retry_after = Some(time);
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    pub fn retry_after_time(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Every cause in one line, where there is any. For the log only.
    pub fn cause_text(&self) -> Option<String> {
        let mut cause: &dyn StdError = &**self.0.cause.as_ref()?;
        let mut text = cause.to_string();
        while let Some(next) = cause.source() {
            text.push_str(&format!(": {next}"));
            cause = next;
        }
        Some(text)
    }

    /// Message, hint and every cause in one line, for logs and terminals.
    pub fn full(&self) -> String {
        let mut text = self.0.message.clone();
        if let Some(cause) = self.cause_text() {
            text.push_str(&format!(": {cause}"));
        }
        if let Some(hint) = &self.0.hint {
            text.push_str(&format!(" ({hint})"));
        }
        text
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(Kind::Unavailable, message)
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Kind::Internal, message)
    }
}

impl Kind {
    /// The code on the wire.
    pub fn code(self) -> &'static str {
        match self {
            Kind::Invalid => "invalid",
            Kind::Unauthorized => "unauthorized",
            Kind::NotFound => "not_found",
            Kind::TooLarge => "too_large",
            Kind::Busy => "busy",
            Kind::OverBudget => "over_budget",
            Kind::Unavailable => "unavailable",
            Kind::Unsupported => "unsupported",
            Kind::Cancelled => "cancelled",
            Kind::Timeout => "timeout",
            Kind::Internal => "internal",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_text_has_message_causes_and_hint() {
        let cause = Error::internal("disk says no").cause(std::io::Error::other("EIO"));
        let error = Error::unavailable("cannot open the store").cause(cause).hint("see store.dir");
        assert_eq!(error.to_string(), "cannot open the store");
        assert_eq!(error.full(), "cannot open the store: disk says no (see store.dir)");
        assert_eq!(error.kind().code(), "unavailable");
    }
}
