//! `vigia selftest`: one spoken sentence through the running daemon, as a client would send it. Each stage with its
//! time and a tick, a cross, or a dash where this box has nothing installed for it.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    api::client::{self, Received, WebSocket},
    base::{Error, Kind, Result},
    cli::{Chosen, Outcome, SettingsArgs, print, spoken},
    flow::SAMPLE_RATE_HZ,
    media::Media,
    settings::Settings,
};

/// Chunks as a phone sends them.
const CHUNK: usize = SAMPLE_RATE_HZ as usize / 10;

/// Stream a spoken sentence to the running daemon and show every stage
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Where the daemon listens, as http://ADDRESS:PORT; by default server.listen of the settings
    #[arg(long)]
    url: Option<String>,
    /// A key, where the daemon needs one
    #[arg(long)]
    token: Option<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let address = match &args.url {
        Some(url) => address_of(url)?,
        None => loaded.settings.server.listen,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    print(&format!("Self-test of http://{address}\n"))?;
    runtime.block_on(walk(&loaded.settings, address, args.token.as_deref()))?;
    print("All stages passed.\n")
}

pub(super) fn address_of(url: &str) -> Result<SocketAddr> {
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let wrong = || Error::invalid(format!("{url} is not http://ADDRESS:PORT"));
    let mut found: Vec<SocketAddr> = bare.to_socket_addrs().map_err(|error| wrong().cause(error))?.collect();
    // A name may stand for both, and a daemon listens on the older one unless it is told otherwise.
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(wrong)
}

/// Prints each stage as it is done.
struct Stages {
    begun: Instant,
}

impl Stages {
    fn tick(&mut self, name: &str, detail: &str) -> Result<()> {
        self.line("✓", name, detail)
    }

    fn dash(&mut self, name: &str, detail: &str) -> Result<()> {
        self.line("–", name, detail)
    }

    fn cross(&mut self, name: &str, error: Error) -> Error {
        // The error itself is what the caller needs; that the line could not be printed changes nothing.
        self.line("✗", name, "").unwrap_or(());
        error
    }

    fn line(&mut self, mark: &str, name: &str, detail: &str) -> Result<()> {
        let millis = self.begun.elapsed().as_secs_f64() * 1000.0;
        self.begun = Instant::now();
        let text = format!("  {mark} {name:<22} {millis:>8.1} ms  {detail}\n");
        print(&text).map_err(|_| Error::internal("cannot print"))
    }

    fn step<T>(&mut self, name: &str, result: Result<T>, detail: impl FnOnce(&T) -> String) -> Result<T> {
        match result {
            Ok(value) => {
                let detail = detail(&value);
                self.tick(name, &detail)?;
                Ok(value)
            }
            Err(error) => Err(self.cross(name, error)),
        }
    }
}

async fn walk(settings: &Settings, address: SocketAddr, token: Option<&str>) -> Result<()> {
    let mut stages = Stages { begun: Instant::now() };
    let health = health(address, token).await;
    let health = stages.step("daemon answers", health, |health| {
        let field = |name: &str| health[name].as_str().unwrap_or("?").to_owned();
        let mqtt = health["mqtt"]["state"].as_str().or(health["mqtt"].as_str()).unwrap_or("?");
        format!("status {}, mqtt {mqtt}", field("status"))
    })?;
    drop(health);

    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let sentence = spoken::two_sentences(&media).await;
    let audio = stages.step("espeak-ng speaks", sentence, |audio| format!("{:.1} s of audio", audio.secs()))?;

    // Of its own device alone: on a busy box those of all the others would never let the wait for the end run out.
    let mut events = WebSocket::open(address, "/ws/events?device=selftest", token).await?;
    let mut socket = stages.step("connected", WebSocket::open(address, "/ws/audio", token).await, |_| String::new())?;
    let config = json!({ "type": "config", "sample_rate": SAMPLE_RATE_HZ, "encoding": "pcm16", "language": "es",
                         "device": "selftest" });
    socket.send_json(&config).await?;
    let ack = expect(&mut socket, "config_ack").await;
    let ack = stages.step("session opened", ack, |ack| ack["session_id"].as_str().unwrap_or("?").to_owned())?;
    let session = ack["session_id"].as_str().unwrap_or_default().to_owned();

    let heard = stream(&mut socket, &audio).await;
    let heard = stages.step("streamed in real time", heard, |heard| format!("{} messages came back", heard.len()))?;
    check_speech(&mut stages, &heard)?;
    let durable = heard.iter().filter(|it| it["type"] == "ack").filter_map(|it| it["received_samples"].as_u64()).max();
    let durable = durable
        .filter(|samples| *samples as usize == audio.len())
        .ok_or_else(|| Error::internal(format!("{} samples were sent, {durable:?} are on disk", audio.len())));
    stages.step("audio is on disk", durable, |samples| format!("{samples} samples"))?;
    check_text(&mut stages, &heard, &ack)?;

    socket.close().await;
    let seen = collect_events(&mut events, &session).await;
    stages.step("events published", seen, |kinds| kinds.join(", "))?;
    events.close().await;
    let (status, stored) = client::get_json(address, &format!("/sessions/{session}"), token).await?;
    let stored = if status.is_success() {
        Ok(stored)
    } else {
        Err(Error::internal(format!("GET /sessions/{session} answered {status}")))
    };
    stages.step("session stored", stored, |row| format!("state {}", row["state"].as_str().unwrap_or("?")))?;
    Ok(())
}

async fn health(address: SocketAddr, token: Option<&str>) -> Result<Value> {
    let (status, health) = client::get_json(address, "/api/health", token).await?;
    if status == 401 {
        return Err(Error::new(Kind::Unauthorized, "the daemon needs a key").hint("pass --token KEY"));
    }
    if !status.is_success() {
        return Err(Error::internal(format!("/api/health answered {status}: {health}")));
    }
    Ok(health)
}

async fn expect(socket: &mut WebSocket, kind: &str) -> Result<Value> {
    match socket.next().await? {
        Received::Json(message) if message["type"] == kind => Ok(message),
        other => Err(unexpected(kind, &other)),
    }
}

fn unexpected(wanted: &str, got: &Received) -> Error {
    match got {
        Received::Json(message) => Error::internal(format!("instead of {wanted} came {message}")),
        Received::Closed { code, reason } => Error::internal(format!("instead of {wanted} came close {code} {reason}")),
    }
}

/// Sends at the pace of speech, ends the take, and returns what came back until the final result.
async fn stream(socket: &mut WebSocket, audio: &[f32]) -> Result<Vec<Value>> {
    let mut heard = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    let mut chunks = audio.chunks(CHUNK);
    let mut sending = true;
    loop {
        tokio::select! {
            _ = pace.tick(), if sending => match chunks.next() {
                Some(chunk) => socket.send_audio(spoken::pcm16(chunk)).await?,
                None => {
                    sending = false;
                    socket.send_json(&json!({ "type": "end_of_stream" })).await?;
                }
            },
            received = socket.next() => match received? {
                Received::Json(message) if message["type"] == "error" => {
                    return Err(Error::internal(format!("the daemon said: {message}")));
                }
                Received::Json(message) => {
                    let last = message["type"] == "final_result";
                    heard.push(message);
                    if last {
                        return Ok(heard);
                    }
                }
                closed => return Err(unexpected("final_result", &closed)),
            },
        }
    }
}

fn check_speech(stages: &mut Stages, heard: &[Value]) -> Result<()> {
    let at = |state: &str| -> Vec<String> {
        let of_state = heard.iter().filter(|it| it["type"] == "speech" && it["state"] == state);
        of_state.filter_map(|it| it["at"].as_f64()).map(|at| format!("{at:.2}")).collect()
    };
    let (starts, ends) = (at("start"), at("end"));
    let found = if starts.is_empty() || starts.len() != ends.len() {
        Err(Error::internal("speech was sent and no speech was heard"))
    } else {
        Ok(())
    };
    stages.step("voice activity", found, |()| format!("starts {} s, ends {} s", starts.join(" "), ends.join(" ")))
}

fn check_text(stages: &mut Stages, heard: &[Value], ack: &Value) -> Result<()> {
    let Some(last) = heard.last() else { return Err(Error::internal("nothing came back")) };
    if let Some(missing) = ack["unavailable"].as_array() {
        let hint = ack["hint"].as_str().unwrap_or_default();
        let names: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
        return stages.dash("text", &format!("{} not available: {hint}", names.join(", ")));
    }
    let text = last["text"].as_str().unwrap_or_default();
    let found = if text.is_empty() { Err(Error::internal("the final result has no text")) } else { Ok(()) };
    stages.step("text", found, |()| text.to_owned())
}

/// The types of the session's events until it ends.
async fn collect_events(events: &mut WebSocket, session: &str) -> Result<Vec<String>> {
    let mut kinds: Vec<String> = Vec::new();
    loop {
        match events.next().await? {
            Received::Json(event) if event["session"] == session => {
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                let last = kind == "session.end";
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
                if last {
                    return Ok(kinds);
                }
            }
            Received::Json(_) => {}
            closed => return Err(unexpected("session.end", &closed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_is_an_address_with_a_port() {
        assert_eq!(address_of("http://127.0.0.1:8090/").unwrap(), "127.0.0.1:8090".parse().unwrap());
        assert_eq!(address_of("http://localhost:8090").unwrap(), "127.0.0.1:8090".parse().unwrap());
        assert_eq!(address_of("[::1]:8090").unwrap(), "[::1]:8090".parse().unwrap());
        assert!(address_of("localhost").unwrap_err().message().contains("http://ADDRESS:PORT"));
    }
}
