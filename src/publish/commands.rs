//! Commands over MQTT: `cmd/<verb>` in, `cmd/<verb>/reply` out. Parses and answers; carrying a command out is the
//! business of whoever takes it from the queue.

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::base::{Error, Kind, Result};

/// An asker's mark goes back in the reply, which must fit into a packet; numbers may be longer there.
const MAX_ID_BYTES: usize = 256;

/// Everything that may be asked for; nothing else is ever handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Tts,
    Snapshot,
    Analyze,
    Unload,
    Reload,
}

impl Verb {
    pub const ALL: [Verb; 5] = [Verb::Tts, Verb::Snapshot, Verb::Analyze, Verb::Unload, Verb::Reload];

    pub fn name(self) -> &'static str {
        match self {
            Verb::Tts => "tts",
            Verb::Snapshot => "snapshot",
            Verb::Analyze => "analyze",
            Verb::Unload => "unload",
            Verb::Reload => "reload",
        }
    }

    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|it| it.name() == name)
    }
}

/// One command, waiting for its answer. Dropping it answers `unavailable`.
#[derive(Debug)]
pub struct Command {
    pub verb: Verb,
    /// The keys of the payload; empty for an empty payload.
    pub body: Map<String, Value>,
    reply: oneshot::Sender<Result<Value>>,
}

impl Command {
    pub fn answer(self, answer: Result<Value>) {
        if self.reply.send(answer).is_err() {
            log::debug!("nobody waits for the answer to `{}` any more", self.verb.name());
        }
    }
}

/// A command that has been handed on: what its reply will need.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    /// The asker's own mark, given back in the reply.
    pub(super) id: Option<Value>,
    pub(super) answer: oneshot::Receiver<Result<Value>>,
}

impl Asked {
    pub(super) async fn reply(self) -> (Verb, Value) {
        let answer = self.answer.await.unwrap_or_else(|_| Err(not_taken(self.verb)));
        (self.verb, reply(self.verb.name(), self.id, answer))
    }
}

/// Parses a command and hands it on. On an error, the reply to send at once.
pub(super) fn hand_on(verb: &str, payload: &[u8], queue: &mpsc::Sender<Command>) -> Result<Asked, Value> {
    let refuse = |id, error| Err(reply(verb, id, Err(error)));
    let body: Map<String, Value> = match serde_json::from_slice(payload) {
        Ok(Value::Object(body)) => body,
        _ if payload.trim_ascii().is_empty() => Map::new(),
        Ok(_) => return refuse(None, Error::invalid("a command is a JSON object").hint(r#"for example {"id":"1"}"#)),
        Err(error) => return refuse(None, Error::invalid(format!("this command is no JSON: {error}"))),
    };
    let id = body.get("id").cloned();
    if id.as_ref().is_some_and(|id| id.to_string().len() > MAX_ID_BYTES) {
        return refuse(None, Error::invalid(format!("the `id` of a command has at most {MAX_ID_BYTES} bytes")));
    }
    let Some(verb) = Verb::from_name(verb) else {
        let known = Verb::ALL.map(Verb::name).join(", ");
        return refuse(id, Error::new(Kind::NotFound, "there is no such command").hint(format!("there are: {known}")));
    };
    let (reply, answer) = oneshot::channel();
    match queue.try_send(Command { verb, body, reply }) {
        Ok(()) => Ok(Asked { verb, id, answer }),
        Err(mpsc::error::TrySendError::Full(_)) => {
            refuse(id, Error::new(Kind::Busy, "too many commands are waiting").hint("try again in a moment"))
        }
        Err(mpsc::error::TrySendError::Closed(_)) => refuse(id, not_taken(verb)),
    }
}

/// The reply to a command that was not even looked at.
pub(super) fn refusal(verb: &str, error: Error) -> Value {
    reply(verb, None, Err(error))
}

/// Takes commands whose engines do not exist yet, and says so to each.
pub async fn answer_unavailable(mut queue: mpsc::Receiver<Command>) {
    while let Some(command) = queue.recv().await {
        let verb = command.verb;
        command.answer(Err(not_taken(verb)));
    }
}

fn not_taken(verb: Verb) -> Error {
    Error::unavailable(format!("`{}` cannot be done on this box at present", verb.name()))
        .hint("GET /api/health says which tasks are ready")
}

fn reply(verb: &str, id: Option<Value>, answer: Result<Value>) -> Value {
    let mut reply = json!({ "verb": verb });
    if let Some(id) = id {
        reply["id"] = id;
    }
    match answer {
        Ok(result) => reply["result"] = result,
        Err(error) => {
            log::debug!("command `{verb}` refused: {}", error.full());
            reply["error"] =
                json!({ "code": error.kind().code(), "message": error.message(), "hint": error.hint_text() });
        }
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_handed_on_and_its_answer_goes_back_with_its_mark() {
        let (sender, mut queue) = mpsc::channel(1);
        let asked = hand_on("tts", br#"{"id":7,"inputs":"hola"}"#, &sender).unwrap();
        let command = queue.recv().await.unwrap();
        assert_eq!(command.verb, Verb::Tts);
        assert_eq!(command.body["inputs"], "hola");
        command.answer(Ok(json!({"job": "j1"})));
        assert_eq!(asked.reply().await.1, json!({"verb": "tts", "id": 7, "result": {"job": "j1"}}));
    }

    #[tokio::test]
    async fn bad_commands_are_refused_with_a_reason() {
        let (sender, queue) = mpsc::channel(1);
        let code = |verb: &str, payload: &[u8]| {
            let reply = hand_on(verb, payload, &sender).unwrap_err();
            reply["error"]["code"].as_str().unwrap().to_owned()
        };
        assert_eq!(code("tts", b"{"), "invalid");
        assert_eq!(code("tts", b"\xff\xfe"), "invalid");
        assert_eq!(code("tts", b"[1]"), "invalid");
        assert_eq!(code("rm -rf", b"{}"), "not_found");
        let long = hand_on("tts", json!({ "id": "x".repeat(1 << 20) }).to_string().as_bytes(), &sender).unwrap_err();
        assert!(long["error"]["code"] == "invalid" && long.to_string().len() < 1000, "{}", long["error"]);
        let waiting = hand_on("unload", b" ", &sender).unwrap();
        assert_eq!(code("unload", b""), "busy");
        tokio::spawn(answer_unavailable(queue));
        let (_, reply) = waiting.reply().await;
        assert_eq!(reply["error"]["code"], "unavailable");
        assert!(reply["error"]["hint"].is_string());
    }

    #[tokio::test]
    async fn a_command_that_is_dropped_is_answered() {
        let (sender, mut queue) = mpsc::channel(1);
        let asked = hand_on("reload", b"", &sender).unwrap();
        drop(queue.recv().await);
        assert_eq!(asked.reply().await.1["error"]["code"], "unavailable");
        drop(queue);
        assert_eq!(hand_on("reload", b"", &sender).unwrap_err()["error"]["code"], "unavailable");
    }
}
