//! `/ws/audio`: the wire's side of a live session. Turns messages into inputs and what is said into messages; knows
//! nothing of audio. A wrong message costs an `error`, not the session.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    api::{
        Context,
        call::Call,
        error::{Reply, told},
        wire::decode_base64,
        ws::{self, Close, Gone, Message, Socket},
    },
    base::{Error, Kind, Result},
    flow::{AudioFormat, Encoding, Event, EventType, SAMPLE_RATE_HZ, SessionConfig, SessionId, Task, Wish},
    sources::{Coming, Input, Opened, Said, Told},
};

/// Languages are codes of two or three letters (`es`, `yue`), perhaps with a region.
const MAX_LANGUAGE: usize = 12;
const MAX_DEVICE: usize = 64;
const MAX_PROMPT: usize = 2_000;
/// JSON's numbers are exact up to here wherever they are read.
const MAX_SEQ: u64 = (1 << 53) - 1;
/// What a client may send, as a hint.
const KNOWN: &str = "JSON of type config, audio_chunk, end_of_stream or cancel, or binary audio";
/// A client that only sends nonsense is closed after this many errors in a row.
const MAX_ERRORS: u32 = 100;

/// The route.
pub(crate) async fn open(mut call: Call) -> Reply {
    let (response, socket) = ws::upgrade(&mut call)?;
    let (context, route) = (Arc::clone(call.context()), call.route);
    tokio::spawn(async move {
        let _busy = context.shutdown.busy(route);
        match socket.await {
            Ok(socket) => serve(&context, socket).await,
            Err(error) => log::debug!("{route}: {}", error.full()),
        }
    });
    Ok(response)
}

async fn serve(context: &Context, mut socket: Socket) {
    let mut wire = Wire { session: None, seq: 0 };
    let end = match configure(context, &mut socket, &mut wire).await {
        Ok(Ok(opened)) => converse(&mut socket, &mut wire, opened).await,
        Ok(Err(refused)) => Ok((refused, "see the error before this")),
        Err(gone) => Err(gone),
    };
    let (close, reason) = end.unwrap_or_else(|gone| (gone.close(), gone.reason()));
    socket.close(close, reason).await;
}

/// Waits for a good `config` and opens the session; or the client was told why not and is to be closed.
async fn configure(
    context: &Context,
    socket: &mut Socket,
    wire: &mut Wire,
) -> Result<std::result::Result<Opened, Close>, Gone> {
    let deadline = Instant::now() + context.settings.server.request_timeout();
    for _ in 0..MAX_ERRORS {
        let message = tokio::select! {
            message = timeout_at(deadline, socket.next()) => message,
            () = context.shutdown.wait() => {
                let error = Error::new(Kind::Busy, "the daemon is going down").hint("reconnect in a few seconds");
                wire.fail(socket, &error, true).await?;
                return Ok(Err(Close::Restarting));
            }
        };
        let Ok(message) = message else {
            let error = Error::new(Kind::Timeout, "no config came").hint("send {\"type\":\"config\",…} first");
            wire.fail(socket, &error, true).await?;
            return Ok(Err(Close::Access));
        };
        let config = match parse(&message?) {
            Ok(Parsed::Config(config)) => coming(&config)
                .and_then(|coming| Ok((check_config(*config, &context.settings.audio.language)?, coming))),
            Ok(_) => Err(Error::invalid("config must be the first message")
                .hint("send {\"type\":\"config\",\"sample_rate\":16000,\"encoding\":\"pcm16\"} first")),
            Err(error) => Err(error),
        };
        let (config, coming) = match config {
            Ok(config) => config,
            Err(error) => {
                wire.fail(socket, &error, false).await?;
                continue;
            }
        };
        wire.session = Some(config.id.clone());
        match context.sessions.open(config, coming).await {
            Ok(opened) => {
                wire.seq = opened.seq;
                wire.send(socket, config_ack(context, &opened)).await?;
                return Ok(Ok(opened));
            }
            Err(error) => {
                wire.fail(socket, &error, true).await?;
                return Ok(Err(refusal(error.kind())));
            }
        }
    }
    Ok(Err(Close::Access))
}

/// How a client is closed whose session cannot be opened.
fn refusal(kind: Kind) -> Close {
    match kind {
        Kind::Busy | Kind::OverBudget | Kind::Unavailable | Kind::Timeout => Close::TryLater,
        Kind::Internal => Close::Internal,
        Kind::Invalid | Kind::Unauthorized | Kind::NotFound | Kind::TooLarge | Kind::Unsupported | Kind::Cancelled => {
            Close::Access
        }
    }
}

fn config_ack(context: &Context, opened: &Opened) -> Value {
    let settings = &context.settings;
    let mut ack = json!({
        "type": "config_ack",
        "message": "config received",
        "resumed": opened.resumed,
        "received_samples": opened.received_samples,
        "take_open": opened.take_open,
        "limits": {
            "max_message_bytes": settings.server.max_message.get(),
            "max_segment_secs": settings.vad.max_segment_secs,
            "idle_timeout_secs": settings.server.idle_timeout_secs,
            "resume_secs": settings.audio.resume_secs,
        },
    });
    if let (Some((_, error)), Value::Object(ack)) = (opened.unavailable.first(), &mut ack) {
        let tasks: Vec<Task> = opened.unavailable.iter().map(|(task, _)| *task).collect();
        ack.insert("unavailable".to_owned(), json!(tasks));
        ack.insert("hint".to_owned(), json!(error.full()));
    }
    ack
}

/// Until the client leaves, a newer one takes over, or the session closes.
async fn converse(socket: &mut Socket, wire: &mut Wire, opened: Opened) -> Result<(Close, &'static str), Gone> {
    let Opened { input, output, displaced, .. } = opened;
    let ended = tokio::select! {
        // Also in the middle of sending: the newer client must not wait for an older one that takes nothing.
        () = displaced.cancelled() => None,
        ended = exchange(socket, wire, input, output) => Some(ended),
    };
    match ended {
        // The session may have hung up before we saw why.
        Some(ended) if !displaced.is_cancelled() => ended,
        _ => Ok((Close::Access, "a newer client has taken this session over")),
    }
}

async fn exchange(
    socket: &mut Socket,
    wire: &mut Wire,
    input: mpsc::Sender<Input>,
    mut output: mpsc::Receiver<Told>,
) -> Result<(Close, &'static str), Gone> {
    let mut waiting: Option<Input> = None;
    let mut errors = 0;
    // A client that has left without waiting for its answers may have said goodbye all the same.
    let mut deaf = false;
    loop {
        tokio::select! {
            // A session that ends takes no more input, but has said its last: that comes first.
            biased;
            told = output.recv(), if !deaf => match told {
                Some(Told { said: Said::Closing, .. }) | None => return Ok((Close::Restarting, "the daemon is restarting")),
                Some(told) => {
                    let fatal = matches!(told.said, Said::Failed { fatal: true, .. });
                    match wire.say(socket, told).await {
                        Ok(()) => {}
                        Err(Gone::Left) => {
                            deaf = true;
                            output.close();
                            continue;
                        }
                        Err(gone) => return Err(gone),
                    }
                    if fatal {
                        return Ok((Close::Access, "too many wrong messages"));
                    }
                }
            },
            // While the session has no room the socket is not read: the network holds the client back.
            permit = input.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                (Ok(permit), Some(input)) => permit.send(input),
                _ => return Ok((Close::Restarting, "the session has ended")),
            },
            message = socket.next(), if waiting.is_none() => match message.map(|message| parse(&message).and_then(to_input)) {
                Ok(Ok(input)) => {
                    errors = 0;
                    waiting = Some(input);
                }
                // The session numbers what is said about it too.
                Ok(Err(error)) => {
                    errors += 1;
                    waiting = Some(Input::Wrong { error, fatal: errors >= MAX_ERRORS });
                }
                Err(gone) => {
                    if gone == Gone::Done {
                        // Or the session might wait for us to take what it says, and we for it to take this.
                        output.close();
                        // A session that takes nothing more has ended by itself.
                        drop(input.send(Input::Goodbye).await);
                    }
                    return Err(gone);
                }
            },
        }
    }
}

/// Writes the messages of one connection. The session numbers them; before there is one, they are counted.
struct Wire {
    session: Option<SessionId>,
    seq: u64,
}

impl Wire {
    async fn say(&mut self, socket: &mut Socket, told: Told) -> Result<(), Gone> {
        self.seq = told.seq;
        let message = match told.said {
            Said::Ack { received_samples, chunk_id } => {
                json!({ "type": "ack", "received_samples": received_samples, "chunk_id": chunk_id })
            }
            Said::Speech { speaking, at } => {
                json!({ "type": "speech", "state": if speaking { "start" } else { "end" }, "at": at })
            }
            Said::Partial { text, committed, segment, start } => json!({
                "type": "partial_result", "text": text, "committed": committed, "segment": segment, "start": start,
            }),
            Said::Segment(segment) => json!({ "type": "segment_result", "segment": segment }),
            Said::Final(result) => with_type("final_result", json!(result)),
            Said::Analysis(analysis) => json!({ "type": "session_analysis", "analysis": analysis }),
            Said::Again(event) => again(&event),
            Said::Failed { error, fatal } => self.error(&error, fatal),
            Said::Closing => return Ok(()),
        };
        self.send(socket, message).await
    }

    /// Before there is a session.
    async fn fail(&mut self, socket: &mut Socket, error: &Error, fatal: bool) -> Result<(), Gone> {
        self.seq += 1;
        let message = self.error(error, fatal);
        self.send(socket, message).await
    }

    fn error(&self, error: &Error, fatal: bool) -> Value {
        if error.kind() == Kind::Internal {
            log::error!(session = self.session.as_ref().map_or("", SessionId::as_str); "{}", error.full());
        }
        json!({
            "type": "error",
            "code": error.kind().code(),
            "message": told(error),
            "hint": error.hint_text(),
            "fatal": fatal,
        })
    }

    async fn send(&mut self, socket: &mut Socket, mut message: Value) -> Result<(), Gone> {
        if let Value::Object(fields) = &mut message {
            fields.insert("session_id".to_owned(), json!(self.session));
            fields.insert("seq".to_owned(), json!(self.seq));
        }
        socket.send(message.to_string()).await
    }
}

/// A result as it was told when it was new.
fn again(event: &Event) -> Value {
    let name = match event.kind {
        EventType::SessionAnalysis => return json!({ "type": "session_analysis", "analysis": event.data }),
        EventType::TranscriptFinal => "final_result",
        _ => "segment_result",
    };
    with_type(name, event.data.clone())
}

fn with_type(name: &str, message: Value) -> Value {
    let mut fields = Map::from_iter([("type".to_owned(), json!(name))]);
    if let Value::Object(rest) = message {
        fields.extend(rest);
    }
    Value::Object(fields)
}

enum Parsed {
    Config(Box<ConfigMessage>),
    Audio(Bytes),
    Chunk { chunk_id: Option<u64>, data: Bytes },
    End,
    Cancel,
}

/// As the client writes it; everything but the type has a default.
#[derive(Debug, Deserialize)]
struct ConfigMessage {
    session_id: Option<String>,
    sample_rate: Option<u32>,
    encoding: Option<String>,
    channels: Option<u32>,
    language: Option<String>,
    device: Option<String>,
    #[serde(default = "yes")]
    partials: bool,
    diarize: Option<bool>,
    analyze: Option<bool>,
    #[serde(default)]
    words: bool,
    prompt: Option<String>,
    task: Option<String>,
    #[serde(default)]
    resume: bool,
    last_seq: Option<u64>,
}

fn yes() -> bool {
    true
}

fn parse(message: &Message) -> Result<Parsed> {
    let text = match message {
        Message::Binary(data) => return Ok(Parsed::Audio(data.clone())),
        Message::Text(text) => text.as_str(),
    };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("the message is no JSON: {error}")).hint(KNOWN))?;
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "config" => serde_json::from_value(value)
            .map(|config| Parsed::Config(Box::new(config)))
            .map_err(|error| Error::invalid(format!("config: {error}"))),
        "audio_chunk" => {
            let data = value.get("data_b64").and_then(Value::as_str);
            let data = data.ok_or_else(|| Error::invalid("audio_chunk: data_b64 is missing"))?;
            let chunk_id = value.get("chunk_id").and_then(Value::as_u64);
            Ok(Parsed::Chunk { chunk_id, data: decode_base64(data)?.into() })
        }
        "end_of_stream" => Ok(Parsed::End),
        "cancel" => Ok(Parsed::Cancel),
        "" => Err(Error::invalid("the message has no type").hint(KNOWN)),
        unknown => Err(Error::invalid(format!("unknown type {unknown:?}")).hint(KNOWN)),
    }
}

fn to_input(parsed: Parsed) -> Result<Input> {
    match parsed {
        Parsed::Audio(data) => Ok(Input::Audio { data, chunk_id: None }),
        Parsed::Chunk { chunk_id, data } => Ok(Input::Audio { data, chunk_id }),
        Parsed::End => Ok(Input::End),
        Parsed::Cancel => Ok(Input::Cancel),
        Parsed::Config(_) => {
            Err(Error::invalid("config was received already")
                .hint("open another connection for another session or format"))
        }
    }
}

fn coming(config: &ConfigMessage) -> Result<Coming> {
    if config.resume && config.session_id.is_none() {
        return Err(Error::invalid("resume needs the session_id of the session to go on with"));
    }
    if config.last_seq.is_some_and(|seq| seq > MAX_SEQ) {
        return Err(Error::invalid(format!("last_seq must be at most {MAX_SEQ}"))
            .hint("give the seq of the last message that came, or leave it out to be told everything again"));
    }
    Ok(Coming { resumes: config.resume, last_seq: config.last_seq })
}

fn check_config(config: ConfigMessage, default_language: &str) -> Result<SessionConfig> {
    let id = match &config.session_id {
        Some(id) => SessionId::parse(id)?,
        None => SessionId::generate(),
    };
    let encoding = match config.encoding.as_deref() {
        None => Encoding::Pcm16,
        Some(name) => Encoding::from_name(name).ok_or_else(|| {
            let known: Vec<&str> = Encoding::ALL.into_iter().map(Encoding::name).collect();
            Error::invalid(format!("unknown encoding {name:?}")).hint(format!("one of {}", known.join(", ")))
        })?,
    };
    let sample_rate = config.sample_rate.unwrap_or(SAMPLE_RATE_HZ);
    if !(AudioFormat::MIN_RATE_HZ..=AudioFormat::MAX_RATE_HZ).contains(&sample_rate) {
        return Err(Error::invalid(format!("sample_rate {sample_rate} is not between 8000 and 48000")));
    }
    let channels = config.channels.unwrap_or(1);
    let channels = u8::try_from(channels).ok().filter(|it| (1..=AudioFormat::MAX_CHANNELS).contains(it));
    let channels = channels.ok_or_else(|| Error::invalid("channels must be between 1 and 8"))?;
    let language = config.language.unwrap_or_else(|| default_language.to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if language.is_empty() || language.len() > MAX_LANGUAGE || !language.chars().all(plain) {
        return Err(Error::invalid(format!("language {language:?} is no language code")).hint("es, en, … or auto"));
    }
    let device = config.device.filter(|device| !device.is_empty()).unwrap_or_else(|| "default".to_owned());
    if device.len() > MAX_DEVICE || device.chars().any(char::is_control) {
        return Err(Error::invalid(format!("device must have at most {MAX_DEVICE} characters")));
    }
    if config.prompt.as_ref().is_some_and(|prompt| prompt.len() > MAX_PROMPT) {
        return Err(Error::invalid(format!("prompt must have at most {MAX_PROMPT} characters")));
    }
    let translate = match config.task.as_deref() {
        None | Some("transcribe") => false,
        Some("translate") => true,
        Some(other) => return Err(Error::invalid(format!("unknown task {other:?}")).hint("transcribe or translate")),
    };
    Ok(SessionConfig {
        id,
        device,
        format: AudioFormat { encoding, sample_rate, channels },
        language,
        partials: config.partials,
        diarize: Wish::from(config.diarize),
        analyze: Wish::from(config.analyze),
        words: config.words,
        prompt: config.prompt,
        translate,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> Result<Parsed> {
        parse(&Message::Text(json.into()))
    }

    fn config(json: &str) -> Result<SessionConfig> {
        match text(json)? {
            Parsed::Config(config) => coming(&config).and_then(|_| check_config(*config, "es")),
            _ => panic!("no config"),
        }
    }

    #[test]
    fn a_bare_config_gets_the_defaults() {
        let config = config(r#"{"type":"config"}"#).unwrap();
        assert_eq!(config.format, AudioFormat { encoding: Encoding::Pcm16, sample_rate: 16_000, channels: 1 });
        assert_eq!((config.language.as_str(), config.device.as_str()), ("es", "default"));
        assert!(config.partials && !config.words && !config.translate);
        assert_eq!((config.diarize, config.analyze), (Wish::IfPossible, Wish::IfPossible));
    }

    #[test]
    fn every_wrong_field_is_named() {
        for (json, word) in [
            (r#"{"type":"config","encoding":"mp9"}"#, "mp9"),
            (r#"{"type":"config","sample_rate":7999}"#, "sample_rate"),
            (r#"{"type":"config","sample_rate":"fast"}"#, "config"),
            (r#"{"type":"config","channels":0}"#, "channels"),
            (r#"{"type":"config","language":"e s"}"#, "language"),
            (r#"{"type":"config","task":"sing"}"#, "sing"),
            (r#"{"type":"config","session_id":"a/b"}"#, "session_id"),
            (r#"{"type":"config","session_id":""}"#, "session_id"),
            (r#"{"type":"config","resume":true}"#, "session_id"),
            (r#"{"type":"config","last_seq":-1}"#, "config"),
            (r#"{"type":"config","last_seq":9007199254740992}"#, "last_seq"),
        ] {
            let error = config(json).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.full().contains(word), "{json}: {}", error.full());
        }
    }

    #[test]
    fn wrong_messages_are_errors_and_no_panics() {
        for json in ["", "nonsense", "[]", "{}", r#"{"type":7}"#, r#"{"type":"dance"}"#, r#"{"type":"audio_chunk"}"#] {
            assert!(text(json).is_err(), "{json}");
        }
        assert!(text(r#"{"type":"audio_chunk","data_b64":"%%%"}"#).is_err());
    }

    #[test]
    fn base64_of_both_alphabets_with_and_without_padding_is_the_same_audio() {
        let expected = [0xfb, 0xff, 0xfe, 0x01];
        for data in ["+//+AQ==", "+//+AQ", "-__-AQ==", "-__-AQ"] {
            let json = format!(r#"{{"type":"audio_chunk","chunk_id":7,"data_b64":"{data}"}}"#);
            let Parsed::Chunk { chunk_id: Some(7), data } = text(&json).unwrap() else { panic!("{json}") };
            assert_eq!(&data[..], expected);
        }
    }
}
