//! One stream: a clip at the pace of speech, and what was seen of its text and when.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    api::client::{Received, WebSocket},
    base::{Error, Result},
    cli::{bench::live::clips::Clip, spoken},
    engines::asr::WordErrors,
    flow::SAMPLE_RATE_HZ,
};

/// Behind a clip, so that the end of its speech is heard before the end of the stream.
const SILENCE_SECS: f64 = 1.2;
/// Times on the wire are rounded to a millisecond.
const SAME_TIME_SECS: f64 = 0.0015;

/// What was seen of streams.
#[derive(Default)]
pub(super) struct Seen {
    /// From sending the sample at which speech starts to having its first text.
    pub(super) first: Vec<Duration>,
    /// From sending the sample at which speech ends to having its final text.
    pub(super) last: Vec<Duration>,
    /// From saying that the take is complete to having its final result.
    pub(super) whole: Vec<Duration>,
    /// Stretches of speech whose final text came before any partial.
    pub(super) final_first: usize,
    /// Times that a committed text was not the beginning of what followed it.
    pub(super) revised: usize,
    pub(super) live: WordErrors,
    pub(super) offline: WordErrors,
    /// What was said and what was understood, where live and offline differ.
    pub(super) wrong: Vec<(String, String)>,
    committed_letters: usize,
    final_letters: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: Seen) {
        self.first.extend(other.first);
        self.last.extend(other.last);
        self.whole.extend(other.whole);
        self.final_first += other.final_first;
        self.revised += other.revised;
        self.live += other.live;
        self.offline += other.offline;
        self.wrong.extend(other.wrong);
        self.committed_letters += other.committed_letters;
        self.final_letters += other.final_letters;
    }

    /// How much of the final texts had been committed before.
    pub(super) fn committed_share(&self) -> f64 {
        self.committed_letters as f64 / self.final_letters.max(1) as f64
    }
}

/// A stretch of speech: its start and end in seconds, and when its texts came.
#[derive(Default)]
struct Stretch {
    start: f64,
    end: Option<f64>,
    first: Option<Instant>,
    final_first: bool,
}

/// What a stream has been told so far.
#[derive(Default)]
struct Watch {
    stretches: Vec<Stretch>,
    /// By segment.
    committed: BTreeMap<u64, String>,
    /// When each segment's final text came, by where it ends.
    finals: Vec<(f64, Instant)>,
    seen: Seen,
}

/// Streams the clip; its end is waited for.
pub(super) async fn stream(address: SocketAddr, clip: &Clip, chunk: Duration, auto: bool) -> Result<Seen> {
    let chunk_samples = (chunk.as_secs_f64() * f64::from(SAMPLE_RATE_HZ)) as usize;
    let mut audio = clip.audio.to_vec();
    audio.resize(audio.len() + (SILENCE_SECS * f64::from(SAMPLE_RATE_HZ)) as usize, 0.0);
    let chunks: Vec<Bytes> = audio.chunks(chunk_samples).map(spoken::pcm16).collect();
    let mut socket = WebSocket::open(address, "/ws/audio", None).await?;
    let language = if auto { "auto" } else { &clip.language };
    let config = json!({ "type": "config", "sample_rate": SAMPLE_RATE_HZ, "encoding": "pcm16", "language": language });
    socket.send_json(&config).await?;
    let mut sent_at: Vec<Instant> = Vec::with_capacity(chunks.len());
    let mut watch = Watch::default();
    let mut pace = tokio::time::interval(chunk);
    let mut ended: Option<Instant> = None;
    // A chunk is whole when its last sample has been spoken.
    pace.tick().await;
    loop {
        tokio::select! {
            _ = pace.tick(), if ended.is_none() => match chunks.get(sent_at.len()) {
                Some(audio) => {
                    sent_at.push(Instant::now());
                    socket.send_audio(audio.clone()).await?;
                }
                None => {
                    ended = Some(Instant::now());
                    socket.send_json(&json!({ "type": "end_of_stream" })).await?;
                }
            },
            message = socket.next() => {
                let now = Instant::now();
                match message? {
                    Received::Json(message) if message["type"] == "final_result" => {
                        socket.close().await;
                        watch.seen.whole.extend(ended.map(|ended| now.saturating_duration_since(ended)));
                        let text = message["text"].as_str().unwrap_or_default();
                        return Ok(watch.finish(clip, text, &sent_at, chunk_samples));
                    }
                    Received::Json(message) => watch.hear(&message, now)?,
                    Received::Closed { code, reason } => {
                        return Err(Error::internal(format!("the daemon closed the stream: {code} {reason}")));
                    }
                }
            }
        }
    }
}

impl Watch {
    fn hear(&mut self, message: &Value, now: Instant) -> Result<()> {
        let text_of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str() {
            Some("speech") => {
                let at = message["at"].as_f64().unwrap_or_default();
                match self.stretches.last_mut().filter(|_| message["state"] == "end") {
                    Some(last) => last.end = Some(at),
                    None => self.stretches.push(Stretch { start: at, ..Stretch::default() }),
                }
            }
            Some("partial_result") => {
                let (text, committed) = (text_of(message, "text"), text_of(message, "committed"));
                let id = message["segment"].as_u64().unwrap_or_default();
                let before = self.committed.entry(id).or_default();
                let holds = text.starts_with(&committed) && committed.starts_with(&**before);
                self.seen.revised += usize::from(!holds);
                *before = committed;
                self.first_text(&text, now, false);
            }
            Some("segment_result") => {
                let segment = &message["segment"];
                let text = text_of(segment, "text");
                let id = segment["id"].as_u64().unwrap_or_default();
                let committed = self.committed.remove(&id).unwrap_or_default();
                self.seen.revised += usize::from(!text.starts_with(&committed));
                self.seen.committed_letters += committed.chars().count();
                self.seen.final_letters += text.chars().count();
                self.finals.push((segment["end"].as_f64().unwrap_or_default(), now));
                self.first_text(&text, now, true);
            }
            Some("error") => return Err(Error::internal(format!("the daemon said: {message}"))),
            _ => {}
        }
        Ok(())
    }

    fn first_text(&mut self, text: &str, now: Instant, is_final: bool) {
        if let Some(last) = self.stretches.last_mut().filter(|last| last.first.is_none() && !text.is_empty()) {
            (last.first, last.final_first) = (Some(now), is_final);
        }
    }

    fn finish(mut self, clip: &Clip, text: &str, sent_at: &[Instant], chunk_samples: usize) -> Seen {
        let sent = |secs: f64| {
            let chunk = (secs * f64::from(SAMPLE_RATE_HZ)) as usize / chunk_samples;
            sent_at.get(chunk.min(sent_at.len().saturating_sub(1))).copied()
        };
        for stretch in &self.stretches {
            let after = |secs: f64, now: Instant| sent(secs).map(|sent| now.saturating_duration_since(sent));
            self.seen.first.extend(stretch.first.and_then(|now| after(stretch.start, now)));
            self.seen.final_first += usize::from(stretch.final_first);
            let ends = |end: &&(f64, Instant)| stretch.end.is_some_and(|at| (at - end.0).abs() < SAME_TIME_SECS);
            let last = self.finals.iter().find(ends);
            self.seen.last.extend(last.and_then(|(end, now)| after(*end, *now)));
        }
        self.seen.live = WordErrors::between(&clip.text, text);
        self.seen.offline = WordErrors::between(&clip.text, &clip.offline);
        if self.seen.live.count() != self.seen.offline.count() {
            self.seen.wrong.push((clip.text.clone(), text.to_owned()));
        }
        self.seen
    }
}
