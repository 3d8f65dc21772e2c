//! A client of `/ws/audio` that loses nothing: it keeps what the daemon has not acknowledged, comes back when the line
//! breaks or the daemon restarts, and goes on where that is. The reference for clients in other languages.
//!
//! Per connection: 1. `config`, with `resume` and the number of the last message from the second one on; 2. the answer says
//! where to go on, and whether the take is still open; 3. audio from there, and `end_of_stream` when it is all sent;
//! 4. until the final result has come, everything else that ends the connection is a reason to come back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Received, Target, WebSocket, ring::Ring};
use crate::{
    base::{Error, Kind, Result},
    flow::SAMPLE_RATE_HZ,
};

/// Audio of one message: 100 ms.
const CHUNK: usize = SAMPLE_RATE_HZ as usize / 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Acknowledgements come four times a second: a line on which none comes for this long is broken, whatever the network
/// says of it.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct StreamOptions {
    pub target: Target,
    /// Without `session_id`, `resume` and `last_seq`, which are ours. The audio is 16 kHz s16.
    pub config: Value,
    /// Made by the daemon if there is none.
    pub session: Option<String>,
    /// Seconds of audio that may wait for their acknowledgement.
    pub ring_secs: usize,
    /// The source cannot wait, as a microphone: when the ring is full the oldest audio is lost.
    pub live_source: bool,
    /// A daemon that is away is asked again for so long.
    pub patience: Duration,
}

/// What a stream tells while it runs.
#[derive(Debug)]
pub enum Progress<'a> {
    Connected {
        session: &'a str,
        resumed: bool,
    },
    Message(&'a Value),
    /// The line broke; it is tried again.
    Lost {
        reason: &'a str,
        /// It has been said before.
        still: bool,
    },
    /// The ring was full, and this many samples were lost.
    Dropped {
        samples: u64,
    },
}

/// What became of a stream.
#[derive(Debug, Default)]
pub struct Streamed {
    pub session: String,
    /// Of each take: more than one only where the daemon had to finish one without us.
    pub finals: Vec<Value>,
    pub connections: u64,
    /// Samples that the daemon had acknowledged and then did not have.
    pub lost_samples: u64,
    /// Samples that the ring had no place for.
    pub dropped_samples: u64,
}

/// Where the audio of a stream comes from: closed at its end.
pub type Samples = mpsc::Receiver<Vec<i16>>;

struct Streamer<'a> {
    options: &'a StreamOptions,
    ring: Ring,
    /// All audio is in the ring, or was.
    complete: bool,
    /// Samples of the session before this stream.
    offset: Option<u64>,
    last_seq: Option<u64>,
    out: Streamed,
}

/// How a connection ended.
enum End {
    Done,
    Lost(String),
}

/// Streams until the final result is there. Fails when the daemon refuses, or stays away for too long.
pub async fn stream(
    options: &StreamOptions,
    mut samples: Samples,
    mut tell: impl FnMut(Progress<'_>),
) -> Result<Streamed> {
    let ring = Ring::new(options.ring_secs.max(1) * SAMPLE_RATE_HZ as usize);
    let mut streamer =
        Streamer { options, ring, complete: false, offset: None, last_seq: None, out: Streamed::default() };
    let mut pause = FIRST_PAUSE;
    let mut away_since = Instant::now();
    loop {
        let before = streamer.out.connections;
        let lost = match streamer.connection(&mut samples, &mut tell).await {
            Ok(End::Done) => return Ok(streamer.out),
            Ok(End::Lost(reason)) => reason,
            Err(error) if streamer.may_pass(&error) => error.message().to_owned(),
            Err(error) => return Err(error),
        };
        let still = streamer.out.connections == before;
        if !still {
            (pause, away_since) = (FIRST_PAUSE, Instant::now());
        } else if away_since.elapsed() > options.patience {
            return Err(Error::unavailable(format!("the daemon stays away: {lost}"))
                .hint(format!("the session {} can be gone on with for a while (--session)", streamer.out.session)));
        }
        tell(Progress::Lost { reason: &lost, still });
        streamer.wait(pause, &mut samples, &mut tell).await;
        // Spread, so that all clients of a box that restarts do not come at once.
        pause = (pause * 2).min(LONGEST_PAUSE).mul_f64(0.75 + 0.25 * fastrand::f64());
    }
}

impl Streamer<'_> {
    /// Whether another try may help. The first connection has to stand before anything is kept up.
    fn may_pass(&self, error: &Error) -> bool {
        let passing = matches!(error.kind(), Kind::Unavailable | Kind::Busy | Kind::Timeout);
        self.out.connections > 0 && passing
    }

    async fn connection(&mut self, samples: &mut Samples, tell: &mut impl FnMut(Progress<'_>)) -> Result<End> {
        let mut socket = WebSocket::connect(&self.options.target, "/ws/audio").await?;
        socket.send_json(&self.config()).await?;
        let answer = match self.answer(&mut socket).await? {
            Ok(answer) => answer,
            Err(reason) => return Ok(End::Lost(reason)),
        };
        let take_open = self.connected(&answer, tell)?;
        tell(Progress::Message(&answer));
        self.exchange(socket, take_open, samples, tell).await
    }

    fn config(&self) -> Value {
        let mut config = self.options.config.clone();
        config["type"] = json!("config");
        config["sample_rate"] = json!(SAMPLE_RATE_HZ);
        config["encoding"] = json!("pcm16");
        if self.out.connections > 0 {
            config["session_id"] = json!(self.out.session);
            config["resume"] = json!(true);
            config["last_seq"] = json!(self.last_seq);
        } else if let Some(session) = &self.options.session {
            config["session_id"] = json!(session);
        }
        config
    }

    async fn answer(&mut self, socket: &mut WebSocket) -> Result<Result<Value, String>> {
        loop {
            match socket.next().await? {
                Received::Json(message) if message["type"] == "config_ack" => return Ok(Ok(message)),
                Received::Json(message) if message["type"] == "error" => return Err(error_of(&message)),
                Received::Json(_) => {}
                Received::Closed { code, reason } => return Ok(Err(closed(code, &reason))),
            }
        }
    }

    /// Returns whether more may be sent of what has no final result yet.
    fn connected(&mut self, answer: &Value, tell: &mut impl FnMut(Progress<'_>)) -> Result<bool> {
        let received = answer["received_samples"].as_u64();
        let received = received.ok_or_else(|| Error::internal("the daemon does not say what it has received"))?;
        let first = self.out.connections == 0;
        self.out.connections += 1;
        self.last_seq = answer["seq"].as_u64();
        answer["session_id"].as_str().unwrap_or_default().clone_into(&mut self.out.session);
        let offset = *self.offset.get_or_insert(received);
        self.out.lost_samples += self.ring.go_to(received.saturating_sub(offset));
        let resumed = answer["resumed"] == true;
        tell(Progress::Connected { session: &self.out.session, resumed });
        let all_there = self.complete && self.ring.unacknowledged() == 0;
        // Of a take that is not open any more the result comes; what is not acknowledged begins another one.
        Ok(first || answer["take_open"] == true || !all_there)
    }

    async fn exchange(
        &mut self,
        socket: WebSocket,
        take_open: bool,
        samples: &mut Samples,
        tell: &mut impl FnMut(Progress<'_>),
    ) -> Result<End> {
        let (sending, mut receiving) = socket.split();
        let mut to_end = take_open;
        let mut heard = Instant::now();
        let end = loop {
            let has_audio = !self.ring.is_sent();
            let has_end = to_end && self.complete && !has_audio;
            let reads = !self.complete && (self.options.live_source || self.ring.room() > CHUNK);
            tokio::select! {
                biased;
                received = receiving.next() => match received? {
                    Received::Json(message) => {
                        heard = Instant::now();
                        if self.message(&message, tell)? {
                            break End::Done;
                        }
                    }
                    Received::Closed { code: 1008, reason } => {
                        return Err(Error::new(Kind::Cancelled, format!("the daemon closed the stream: {reason}")));
                    }
                    Received::Closed { code, reason } => return Ok(End::Lost(closed(code, &reason))),
                },
                slot = sending.slot(), if has_audio || has_end => match slot {
                    Some(slot) if has_audio => slot.audio(self.ring.take(CHUNK).into()),
                    Some(slot) => {
                        to_end = false;
                        slot.json(&json!({ "type": "end_of_stream" }));
                    }
                    None => return Ok(End::Lost("the line broke".to_owned())),
                },
                more = samples.recv(), if reads => self.take_in(more, tell),
                () = sleep_until(heard + SILENCE_LIMIT), if self.ring.unacknowledged() > 0 => {
                    return Ok(End::Lost("no sign of life".to_owned()));
                }
            }
        };
        sending.close().await;
        Ok(end)
    }

    /// Whether that was the last.
    fn message(&mut self, message: &Value, tell: &mut impl FnMut(Progress<'_>)) -> Result<bool> {
        self.last_seq = message["seq"].as_u64().or(self.last_seq);
        tell(Progress::Message(message));
        match message["type"].as_str() {
            Some("ack") => {
                let received = message["received_samples"].as_u64().unwrap_or(0);
                self.ring.acknowledge(received.saturating_sub(self.offset.unwrap_or(0)));
            }
            Some("final_result") => {
                self.out.finals.push(message.clone());
                // Its audio is durable, whether or not the acknowledgement came.
                return Ok(self.complete && self.ring.is_sent());
            }
            Some("error") if message["fatal"] == true => return Err(error_of(message)),
            _ => {}
        }
        Ok(false)
    }

    fn take_in(&mut self, more: Option<Vec<i16>>, tell: &mut impl FnMut(Progress<'_>)) {
        let Some(samples) = more else {
            self.complete = true;
            return;
        };
        let lost = self.ring.make_room(samples.len());
        if lost > 0 {
            self.out.dropped_samples += lost;
            tell(Progress::Dropped { samples: lost });
        }
        self.ring.push(&samples);
    }

    /// A source that cannot wait goes on meanwhile.
    async fn wait(&mut self, pause: Duration, samples: &mut Samples, tell: &mut impl FnMut(Progress<'_>)) {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                more = samples.recv(), if self.options.live_source && !self.complete => self.take_in(more, tell),
            }
        }
    }
}

fn closed(code: u16, reason: &str) -> String {
    match (code, reason) {
        (1006, _) => "the line broke".to_owned(),
        (1012, _) => "the daemon is restarting".to_owned(),
        (code, "") => format!("the daemon closed the stream with {code}"),
        (_, reason) => format!("the daemon closed the stream: {reason}"),
    }
}

/// As the daemon said it.
fn error_of(message: &Value) -> Error {
    let kind = serde_json::from_value(message["code"].clone()).unwrap_or(Kind::Internal);
    let error = Error::new(kind, message["message"].as_str().unwrap_or("the daemon refused"));
    match message["hint"].as_str() {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
