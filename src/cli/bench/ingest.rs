//! `vigia bench ingest`: many live PCM streams with voice activity at once, at the pace of speech, over real sockets.
//!
//! Every stream sends the same speech, so what it must hear back is known beforehand from the same detector run alone;
//! a delay counts from handing over the chunk that completes the deciding frame to having the event in hand. Client and
//! daemon share the machine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    api::client::{self, Received, WebSocket},
    base::{ByteSize, Error, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            child::{Daemon, Usage},
            figures::{self, percentile, told, wanted},
        },
        places, print,
        run::raise_open_files,
        spoken,
    },
    engines::{Registry, vad},
    flow::{Pcm, SAMPLE_RATE_HZ},
    media::Media,
    segment::{Live, SpeechEvent, speech::FRAME},
    settings::Settings,
    sources::speech_rules,
};

/// How long the daemon is watched doing nothing; the kernel counts its time in steps of 10 ms.
const IDLE_WATCH: Duration = Duration::from_secs(10);

/// Many live streams with voice activity: delay, loss, memory a stream
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    #[arg(long, default_value_t = 500, value_parser = at_least::<1>)]
    streams: usize,
    /// Length of each stream; memory and processor are looked at from the fourth second on
    #[arg(long, default_value_t = 60, value_parser = at_least::<10>)]
    secs: usize,
    /// Audio in one message
    #[arg(long, default_value_t = 100, value_parser = at_least::<1>)]
    chunk_ms: usize,
}

/// A speech event that every stream must hear.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Expected {
    speaking: bool,
    at: f64,
    /// Samples that must have been sent before it can be known.
    known_after: u64,
}

/// What all streams share.
struct Script {
    chunks: Vec<Bytes>,
    chunk_samples: usize,
    expected: Vec<Expected>,
    samples: u64,
}

#[derive(Default)]
struct Heard {
    delays: Vec<Duration>,
    wrong: usize,
    missing: usize,
    lost_samples: u64,
    unacknowledged: u64,
}

/// With fewer there is nothing to measure, and figures of nothing would look good.
fn at_least<const LEAST: usize>(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= LEAST => Ok(number),
        _ => Err(format!("a whole number of at least {LEAST} is needed")),
    }
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, facts, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let script = runtime.block_on(script(settings, &args))?;
    let places = places(settings);
    let models = places.models.iter().find(|dir| dir.is_dir()).cloned().unwrap_or_else(|| settings.models_dir());
    raise_open_files();
    let daemon = Daemon::start(
        &args.settings,
        &[
            format!("models.dir={}", models.display()),
            format!("runtime.library={}", crate::runtime::find(&settings.runtime.library, &places.library)?.display()),
            format!("audio.max_sessions={}", args.streams + 1),
            format!("server.max_connections={}", args.streams + 64),
            "log.level=warn".to_owned(),
        ],
    )?;
    print(&format!(
        "{} streams of {} s, {} ms a message, on {} cores ({})\n",
        args.streams,
        args.secs,
        args.chunk_ms,
        facts.cpu_cores,
        facts.cpu_model.as_deref().unwrap_or("unknown")
    ))?;
    let report = runtime.block_on(measure(&args, script, &daemon))?;
    print(&report)
}

async fn script(settings: &Settings, args: &Args) -> Result<Script> {
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let sentences = spoken::two_sentences(&media).await?;
    let samples = args.secs * SAMPLE_RATE_HZ as usize;
    let audio: Pcm = sentences.iter().copied().cycle().take(samples).collect::<Vec<f32>>().into();
    let chunk_samples = args.chunk_ms * SAMPLE_RATE_HZ as usize / 1000;
    let chunks = audio.chunks(chunk_samples).map(spoken::pcm16).collect();
    // What the daemon will see is 16 bits wide.
    let sent: Vec<f32> = audio.iter().map(|sample| (sample * 32767.0).round() / 32768.0).collect();
    let mut detector = Registry::new(settings, places(settings)).open_silero(1)?;
    let heard = vad::hear(&mut detector, &sent)?;
    let mut live = Live::new(speech_rules(&settings.vad));
    let mut expected = Vec::new();
    let mut frames = 0;
    let secs = |samples: u64| (samples as f64 / f64::from(SAMPLE_RATE_HZ) * 1000.0).round() / 1000.0;
    let mut note = |known_after: u64, event: SpeechEvent| match event {
        SpeechEvent::Start { at } => expected.push(Expected { speaking: true, at: secs(at), known_after }),
        SpeechEvent::End { at } => expected.push(Expected { speaking: false, at: secs(at), known_after }),
        SpeechEvent::Segment(_) | SpeechEvent::Pause(_) => {}
    };
    for voiced in heard {
        frames += 1;
        let known_after = (frames * FRAME).min(samples as u64);
        live.push(voiced, |event| note(known_after, event));
    }
    // These are known only once the end itself has been sent, which counts as one more chunk.
    live.finish(samples as u64, |event| note(samples as u64 + 1, event));
    Ok(Script { chunks, chunk_samples, expected, samples: samples as u64 })
}

async fn measure(args: &Args, script: Script, daemon: &Daemon) -> Result<String> {
    let script = Arc::new(script);
    let chunk = Duration::from_millis(args.chunk_ms as u64);
    // Starting is over once it has announced itself; what it uses from here on it uses for nobody.
    let begun_idle = daemon.usage()?;
    tokio::time::sleep(IDLE_WATCH).await;
    let idle = daemon.usage()?;

    // The first stream loads the detector; what it costs is no stream's own.
    let warm_up = Arc::new(Script {
        chunks: script.chunks[..script.chunks.len().min(30)].to_vec(),
        chunk_samples: script.chunk_samples,
        expected: Vec::new(),
        samples: 0,
    });
    let first = tokio::spawn(stream(daemon.address, warm_up, chunk));
    first.await.map_err(|error| Error::internal("the first stream").cause(error))??;
    let one = daemon.usage()?;

    let before = Syncs::of(daemon).await?;
    let begun = Instant::now();
    let mut streams = JoinSet::new();
    for number in 0..args.streams {
        let script = Arc::clone(&script);
        // Spread over two seconds: people do not start to speak in step.
        let wait = Duration::from_secs(2).mul_f64(number as f64 / args.streams as f64);
        let address = daemon.address;
        streams.spawn(async move {
            tokio::time::sleep(wait).await;
            stream(address, script, chunk).await
        });
    }
    let mut usages: Vec<Usage> = Vec::new();
    let mut watch = tokio::time::interval(Duration::from_secs(1));
    // On a terminal only; elsewhere it draws nothing.
    let bar = ProgressBar::new(args.secs as u64 + 2).with_style(ProgressStyle::default_bar());
    let mut heard = Heard::default();
    let mut failed: Vec<Error> = Vec::new();
    while !streams.is_empty() {
        tokio::select! {
            _ = watch.tick() => {
                usages.push(daemon.usage()?);
                bar.inc(1);
            }
            Some(done) = streams.join_next() => {
                match done.map_err(|error| Error::internal("a stream's task").cause(error))? {
                    Ok(one) => heard.add(one),
                    Err(error) => failed.push(error),
                }
            }
        }
    }
    bar.finish_and_clear();
    let elapsed = begun.elapsed();
    let syncs = Syncs::of(daemon).await?.since(&before);
    heard.delays.sort();
    let memory = Memory { begun_idle, idle, one, usages };
    Ok(report(args, &script, &heard, &failed, memory, Run { elapsed, syncs, ready: daemon.ready }))
}

/// How often the daemon has waited for its disk.
struct Syncs {
    audio: f64,
    store: f64,
}

impl Syncs {
    async fn of(daemon: &Daemon) -> Result<Syncs> {
        let (_, body) = client::request(daemon.address, "GET", "/metrics", &[], Bytes::new()).await?;
        let text = String::from_utf8_lossy(&body);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
        };
        Ok(Syncs { audio: value("vigia_audio_log_syncs_total"), store: value("vigia_store_commits_total") })
    }

    fn since(&self, before: &Syncs) -> Syncs {
        Syncs { audio: self.audio - before.audio, store: self.store - before.store }
    }
}

/// What the run was like as a whole.
struct Run {
    elapsed: Duration,
    syncs: Syncs,
    ready: Duration,
}

struct Memory {
    begun_idle: Usage,
    idle: Usage,
    one: Usage,
    usages: Vec<Usage>,
}

fn report(args: &Args, script: &Script, heard: &Heard, failed: &[Error], memory: Memory, run: Run) -> String {
    let Run { elapsed, syncs, ready } = run;
    let Memory { begun_idle, idle, one, usages } = memory;
    // While all streams run: after the start is over and before the first ends.
    let steady: Vec<&Usage> =
        usages.iter().filter(|usage| usage.at.duration_since(usages[0].at) > Duration::from_secs(4)).collect();
    let steady = &steady[..steady.len().saturating_sub(3).max(1).min(steady.len())];
    let at = |part: f64| steady.get((steady.len() as f64 * part) as usize).map_or(one, |usage| **usage);
    // Buffers and tables find their size in the first half; what grows in the second would go on growing.
    let (early, middle, late) = (at(0.0), at(0.5), steady.last().map_or(one, |usage| **usage));
    let peak = steady.iter().map(|usage| usage.rss_bytes).max().unwrap_or(one.rss_bytes);
    let per_stream = peak.saturating_sub(one.rss_bytes) / args.streams.max(1) as u64;
    let growth = late.rss_bytes as i64 - middle.rss_bytes as i64;
    let cores = late.cpu.saturating_sub(early.cpu).as_secs_f64()
        / late.at.duration_since(early.at).as_secs_f64().max(f64::MIN_POSITIVE);
    let p99 = percentile(&heard.delays, 0.99);
    let millis = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1000.0);
    let (streams, events) = (args.streams, script.expected.len());
    let figures = [
        told("ready after", millis(ready)),
        told("idle memory", ByteSize(idle.rss_bytes).to_string()),
        told("idle processor time", format!("{:?} in {IDLE_WATCH:?}", idle.cpu.saturating_sub(begun_idle.cpu))),
        told("memory with one stream (detector)", ByteSize(one.rss_bytes).to_string()),
        wanted("streams that failed", format!("{} of {streams}", failed.len()), "0", failed.is_empty()),
        wanted("samples lost", heard.lost_samples.to_string(), "0", heard.lost_samples == 0),
        wanted("samples not acknowledged as durable", heard.unacknowledged.to_string(), "0", heard.unacknowledged == 0),
        wanted(
            "events heard",
            format!("{} of {}", heard.delays.len() + heard.wrong, events * streams),
            "all",
            heard.missing == 0 && failed.is_empty(),
        ),
        wanted("events with another time than alone", heard.wrong.to_string(), "0", heard.wrong == 0),
        told("event delay, median", millis(percentile(&heard.delays, 0.5))),
        wanted("event delay, p99", millis(p99), "< 50 ms", p99 < Duration::from_millis(50)),
        told("event delay, worst", millis(percentile(&heard.delays, 1.0))),
        wanted("memory a stream", ByteSize(per_stream).to_string(), "< 200 KiB", per_stream < 200 << 10),
        wanted(
            "memory, change in the second half",
            format!("{:+.1} MiB of {}", growth as f64 / f64::from(1 << 20), ByteSize(middle.rss_bytes)),
            "flat (< 5 %)",
            growth * 100 < middle.rss_bytes as i64 * 5,
        ),
        told(
            "processor, daemon",
            format!("{cores:.2} cores, {:.2} ms a stream and second", cores * 1000.0 / streams as f64),
        ),
        told("fsyncs of the audio log", format!("{:.1} a second", syncs.audio / elapsed.as_secs_f64())),
        told("fsyncs of the store", format!("{:.1} a second", syncs.store / elapsed.as_secs_f64())),
        told("whole run", format!("{:.1} s", elapsed.as_secs_f64())),
    ];
    let mut text = figures::to_text(&figures);
    for error in failed.iter().take(3) {
        text.push_str(&format!("    {}\n", error.full()));
    }
    text
}

impl Heard {
    fn add(&mut self, other: Heard) {
        self.delays.extend(other.delays);
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.lost_samples += other.lost_samples;
        self.unacknowledged += other.unacknowledged;
    }
}

/// One client: sends at the pace of speech and notes when each event came.
async fn stream(address: std::net::SocketAddr, script: Arc<Script>, chunk: Duration) -> Result<Heard> {
    let mut socket = WebSocket::open(address, "/ws/audio", None).await?;
    socket.send_json(&json!({ "type": "config", "sample_rate": SAMPLE_RATE_HZ, "encoding": "pcm16" })).await?;
    let mut heard = Heard::default();
    let mut sent_at: Vec<Instant> = Vec::with_capacity(script.chunks.len());
    let mut acknowledged = 0;
    let mut known = script.expected.iter();
    let mut pace = tokio::time::interval(chunk);
    let mut ended = false;
    loop {
        tokio::select! {
            _ = pace.tick(), if !ended => {
                if let Some(audio) = script.chunks.get(sent_at.len()) {
                    sent_at.push(Instant::now());
                    socket.send_audio(audio.clone()).await?;
                } else {
                    ended = true;
                    sent_at.push(Instant::now());
                    socket.send_json(&json!({ "type": "end_of_stream" })).await?;
                }
            }
            message = socket.next() => {
                let now = Instant::now();
                let message = match message? {
                    Received::Json(message) => message,
                    Received::Closed { code, reason } => {
                        return Err(Error::internal(format!("the daemon closed the stream: {code} {reason}")));
                    }
                };
                match message["type"].as_str() {
                    Some("speech") => if let Some(expected) = known.next() {
                        let last = sent_at.len().saturating_sub(1);
                        let chunk = (expected.known_after.div_ceil(script.chunk_samples as u64) as usize - 1).min(last);
                        if is(expected, &message) {
                            heard.delays.push(now.duration_since(sent_at[chunk]));
                        } else {
                            heard.wrong += 1;
                        }
                    },
                    Some("ack") => acknowledged = message["received_samples"].as_u64().unwrap_or(0),
                    Some("error") => return Err(Error::internal(format!("the daemon said: {message}"))),
                    Some("final_result") => {
                        let duration = message["duration"].as_f64().unwrap_or(0.0);
                        let received = (duration * f64::from(SAMPLE_RATE_HZ)).round() as u64;
                        heard.lost_samples = script.samples.saturating_sub(received);
                        heard.unacknowledged = script.samples.saturating_sub(acknowledged);
                        heard.missing = known.len();
                        socket.close().await;
                        return Ok(heard);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn is(expected: &Expected, message: &Value) -> bool {
    let speaking = message["state"] == "start";
    // A batch may round the last bit of a probability otherwise than a lone frame; a time would differ by a frame.
    let close = message["at"].as_f64().is_some_and(|at| (at - expected.at).abs() < 0.001);
    speaking == expected.speaking && close
}
