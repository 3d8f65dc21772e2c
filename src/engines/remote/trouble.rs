//! Why a request came to nothing: what a person reads, whether asking again may help, and whether it speaks against the
//! server. Texts of servers are strangers' texts: short, printable, and never with the key in them.

use std::time::Duration;

use serde_json::Value;
use ureq::http::StatusCode;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Spoken,
        remote::{
            line::{Exposed, Unreached},
            server::Server,
        },
    },
    settings::without_secrets,
};

const MAX_WORDS: usize = 300;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// A server that asks for more has another reason than work.
const LONGEST_REST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) error: Error,
    /// Asking again may help.
    pub(super) passes: bool,
    /// The server is not well, as opposed to saying no.
    pub(super) ill: bool,
    /// The server was asked, so that this is about what it was asked for.
    pub(super) reached: bool,
    /// How long the server asks to be left alone.
    pub(super) pause: Option<Duration>,
}

impl Trouble {
    /// The server is not well, and may be so the next moment.
    pub(super) fn passing(error: Error) -> Trouble {
        Trouble { error, passes: true, ill: true, reached: true, pause: None }
    }

    /// The server is not as it should be, and will not be so by asking again.
    pub(super) fn lasting(error: Error) -> Trouble {
        Trouble { passes: false, ..Trouble::passing(error) }
    }

    /// The server is well and says no.
    pub(super) fn no(error: Error) -> Trouble {
        Trouble { ill: false, ..Trouble::lasting(error) }
    }

    /// Nothing was asked yet.
    pub(super) fn unreached(self) -> Trouble {
        Trouble { reached: false, ..self }
    }
}

/// An answer whose status is not one of success.
pub(super) struct Declined<'a> {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// Where it says that the answer is.
    pub(super) location: Option<&'a str>,
    /// As much of it as was read.
    pub(super) body: &'a [u8],
}

/// How long to wait before the next try; `random` in 0..1 keeps those who failed together from coming back together.
pub(super) fn back_off(tries: u32, random: f64) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + random / 2.0)
}

impl Server {
    /// No connection, or one that ended before there was an answer.
    pub(super) fn unanswered(&self, error: ureq::Error) -> Trouble {
        let Server { name, url, .. } = self;
        if let ureq::Error::Other(cause) = &error
            && let Some(Exposed(address)) = cause.downcast_ref()
        {
            return Trouble::no(
                Error::unavailable(format!("the remote {name} is at {address}, beyond this network"))
                    .hint(format!("give remotes.{name}.url with https://, or set remotes.{name}.insecure")),
            )
            .unreached();
        }
        let cause = match &error {
            // Ours says it all.
            ureq::Error::Other(cause) => self.clean(&cause.to_string()),
            error => self.clean(&error.to_string()),
        };
        let mistrusted = match &error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => true,
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
            _ => false,
        };
        if mistrusted {
            let text = format!("the remote {name} ({url}) cannot prove that it is the one meant");
            return Trouble::lasting(
                Error::unavailable(text)
                    .hint(format!("a certificate of your own making goes into remotes.{name}.ca_file"))
                    .cause(cause),
            )
            .unreached();
        }
        if matches!(error, ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)) {
            return Trouble::lasting(self.strange("answers with something that is not HTTP").cause(cause));
        }
        let is_unreached = match &error {
            ureq::Error::HostNotFound => true,
            ureq::Error::Other(cause) => cause.is::<Unreached>(),
            _ => false,
        };
        if !is_unreached {
            let text = format!("the remote {name} ({url}) ended the connection without an answer");
            return Trouble::passing(Error::unavailable(text).hint("the server's own log says why").cause(cause));
        }
        Trouble::passing(
            Error::unavailable(format!("the remote {name} ({url}) cannot be reached"))
                .hint("check that the server runs and the network between")
                .cause(cause),
        )
        .unreached()
    }

    /// The answer ended before its end.
    pub(super) fn cut(&self, cause: std::io::Error) -> Trouble {
        Trouble::passing(Error::unavailable(format!("the answer of the remote {} was cut off", self.name)).cause(cause))
    }

    /// The answer is not what the protocol says.
    pub(super) fn strange(&self, what: &str) -> Error {
        let Server { name, .. } = self;
        Error::unavailable(format!("the remote {name} {}", self.clean(what)))
            .hint(format!("check remotes.{name}.url and remotes.{name}.protocol"))
    }

    pub(super) fn too_long(&self) -> Trouble {
        let Server { name, settings, .. } = self;
        Trouble::lasting(
            Error::unavailable(format!("the remote {name} answers with more than {}", settings.max_answer))
                .hint(format!("see remotes.{name}.max_answer")),
        )
    }

    pub(super) fn refused(&self, refusal: &Declined<'_>) -> Trouble {
        let Server { name, url, .. } = self;
        let Declined { status, body, location, .. } = *refusal;
        let pause = refusal.retry_after.map(|time| time.min(LONGEST_REST));
        let words = self.words(body);
        let says = |what: &str| match &words {
            Some(words) => format!("the remote {name} {what} ({status}): {words}"),
            None => format!("the remote {name} {what} ({status})"),
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                // Not `Unauthorized`: that would tell whoever asked this box that their own key is wrong.
                let error = if self.settings.key_file.is_empty() {
                    Error::unavailable(format!("the remote {name} wants a key ({status})"))
                        .hint(format!("put it, alone, into a file and name that in remotes.{name}.key_file"))
                } else {
                    let file = &self.settings.key_file;
                    Error::unavailable(format!("the key in {file} was refused by the remote {name} ({status})"))
                        .hint(format!("put a key that is good there into remotes.{name}.key_file"))
                };
                Trouble::no(error)
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                Trouble::no(Error::unavailable(says("does not have this")).hint(format!(
                    "check remotes.{name}.url, and the names in tasks.*.model against what {url} serves"
                )))
            }
            StatusCode::PAYLOAD_TOO_LARGE => Trouble::no(Error::new(Kind::TooLarge, says("will not take so much"))),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Trouble::no(Error::invalid(says("refuses the request")))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let error = Error::new(Kind::Busy, says("has too much to do"));
                let error = match pause {
                    Some(pause) => error.hint(format!("try again in {} s", pause.as_secs())).retry_after(pause),
                    None => error.hint("try again later"),
                };
                Trouble { passes: true, pause, ..Trouble::no(error) }
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                let passes = status != StatusCode::NOT_IMPLEMENTED;
                let error = Error::unavailable(says("is not well"));
                // Not as a hint: those are what makes a failure news to the log.
                let error = pause.into_iter().fold(error, Error::retry_after);
                Trouble { passes, pause, ..Trouble::passing(error) }
            }
            status if status.is_redirection() => {
                let place = location.map(|it| self.clean(&without_secrets(it)));
                let place = place.unwrap_or_else(|| "another place".to_owned());
                let text = format!("the remote {name} sends us on to {place} ({status}), where we do not follow");
                let hint = format!("if that is where it is, put its address into remotes.{name}.url");
                Trouble::lasting(Error::unavailable(text).hint(hint))
            }
            _ => Trouble::no(Error::unavailable(says("answers strangely"))),
        }
    }

    /// Speech without a sample is none. It may be the text's fault, such as `…`: nothing of it is held against the task.
    pub(super) fn heard(&self, spoken: Spoken) -> Result<Spoken> {
        if spoken.samples > 0 {
            return Ok(spoken);
        }
        Err(Error::unavailable(format!("the remote {} says nothing to this text", self.name))
            .hint("try another text, or another voice"))
    }

    /// An error that came in the middle of an answer with a good status.
    pub(super) fn complained(&self, error: &Value) -> Trouble {
        let words = message(error).map(|text| self.clean(text));
        let words = words.unwrap_or_else(|| "without a reason".to_owned());
        Trouble::passing(Error::unavailable(format!("the remote {} gave up: {words}", self.name)))
    }

    /// What a body says about an error, in the forms that servers use.
    fn words(&self, body: &[u8]) -> Option<String> {
        let text = match serde_json::from_slice::<Value>(body) {
            Ok(value) => message(&value)?.to_owned(),
            Err(_) => std::str::from_utf8(body).ok().filter(|text| !text.trim_start().starts_with('<'))?.to_owned(),
        };
        Some(self.clean(&text)).filter(|text| !text.is_empty())
    }

    /// As much of a stranger's text as may be shown.
    pub(super) fn clean(&self, text: &str) -> String {
        // A server may repeat the key that it was given.
        let text = match self.key() {
            Ok(Some(key)) => text.replace(key.as_str(), "…"),
            _ => text.to_owned(),
        };
        let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        printable.take(MAX_WORDS).collect::<String>().trim().to_owned()
    }
}

/// `{"error":{"message":…}}`, `{"error":"…"}`, `{"message":…}`, `{"detail":…}`, or the inner part of one of them.
fn message(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(fields) => ["error", "message", "detail"].iter().find_map(|key| message(fields.get(*key)?)),
        Value::Array(items) => items.first().and_then(|item| message(item.get("msg").unwrap_or(item))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_never_all_the_same() {
        assert_eq!(back_off(0, 1.0), Duration::from_millis(250));
        assert_eq!(back_off(0, 0.0), Duration::from_millis(125));
        assert_eq!(back_off(2, 1.0), Duration::from_secs(1));
        assert_eq!(back_off(60, 1.0), LONGEST_PAUSE);
    }

    #[test]
    fn the_reason_is_found_in_every_form_that_servers_use() {
        for value in [
            json!({"error": {"message": "no such model", "type": "x", "code": 404}}),
            json!({"error": "no such model"}),
            json!({"object": "error", "message": "no such model"}),
            json!({"detail": "no such model"}),
            json!({"detail": [{"loc": ["body"], "msg": "no such model"}]}),
            json!([{"error": {"message": "no such model"}}]),
        ] {
            assert_eq!(message(&value), Some("no such model"), "{value}");
        }
        for value in [json!({}), json!(3), json!([]), json!({"error": null})] {
            assert_eq!(message(&value), None);
        }
    }
}
