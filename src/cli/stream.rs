//! `vigia stream`: sends a recording, or what the microphone hears, to a daemon and shows what it understands: captions
//! on the terminal (standard error) while it runs, the text (standard output) at the end.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    api::client::{
        Target,
        streamer::{self, Progress, StreamOptions, Streamed},
    },
    base::{Error, Result},
    cli::{Chosen, Outcome, SettingsArgs, eprintln_line, print},
    flow::{SAMPLE_RATE_HZ, Warning, audio::samples_to_secs},
    media::{AudioFile, FileStream, Media},
};

/// Samples that are handed on at a time: 100 ms.
const STRIDE: usize = SAMPLE_RATE_HZ as usize / 10;
/// Audio of a file that may wait for its acknowledgement; beyond it the file waits.
const FILE_RING_SECS: usize = 60;
/// A microphone does not wait: so long may the daemon be away without a loss.
const MIC_RING_SECS: usize = 600;

/// Stream a recording or the microphone to a daemon, with captions
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub(super) struct Args {
    /// Any audio file that GStreamer opens
    #[arg(group = "source")]
    file: Option<PathBuf>,
    /// What this machine's microphone hears, until Ctrl-C
    #[arg(long, group = "source")]
    mic: bool,
    /// Where the daemon is
    #[arg(long, default_value = "http://127.0.0.1:8090")]
    url: Target,
    /// Its key; else VIGIA_KEY of the environment
    #[arg(long)]
    key: Option<String>,
    /// What is spoken: a code such as es, or auto; else the daemon's own choice
    #[arg(long)]
    language: Option<String>,
    /// Go on with this session, or name a new one
    #[arg(long)]
    session: Option<String>,
    /// Who is speaking to the daemon
    #[arg(long, default_value = "vigia-stream")]
    device: String,
    /// A recording as fast as the daemon takes it, instead of at the pace of speech
    #[arg(long, conflicts_with = "mic")]
    fast: bool,
    /// So many times the pace of speech
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = pace, conflicts_with_all = ["mic", "fast"])]
    pace: f64,
    /// Print every message of the daemon, one a line
    #[arg(long)]
    json: bool,
    /// Give up when the daemon has been away for so many seconds
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    patience: u64,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no async runtime")?;
    let mut captions = Captions::new(args.json);
    let (streamed, warning) = runtime.block_on(args.stream(&media, &mut captions))?;
    if let Some(warning) = warning {
        captions.warn(&warning.message);
    }
    captions.end(&streamed)
}

impl Args {
    async fn stream(&self, media: &Media, captions: &mut Captions) -> Result<(Streamed, Option<Warning>)> {
        let (sender, samples) = mpsc::channel(4);
        let source = match &self.file {
            Some(file) => media.open_file(AudioFile::Path(file.clone())).await?,
            None => media.open_microphone().await?,
        };
        let pace = (!self.mic && !self.fast).then_some(self.pace);
        let feeding = Feeding { source, sender, pace };
        let options = self.options();
        let streaming = streamer::stream(&options, samples, |progress| captions.show(&progress));
        // A file that breaks off in the middle is an error, and what was there before it is streamed all the same.
        let (fed, streamed) = tokio::join!(feeding.run(self.mic), streaming);
        let streamed = streamed?;
        fed.map(|warning| (streamed, warning))
    }

    fn options(&self) -> StreamOptions {
        let mut config = json!({ "device": self.device });
        if let Some(language) = &self.language {
            config["language"] = json!(language);
        }
        let key = self.key.clone().or_else(|| self.settings.sources().variable("VIGIA_KEY").map(str::to_owned));
        StreamOptions {
            target: self.url.clone().with_token(key),
            config,
            session: self.session.clone(),
            ring_secs: if self.mic { MIC_RING_SECS } else { FILE_RING_SECS },
            live_source: self.mic,
            patience: Duration::from_secs(self.patience),
        }
    }
}

/// From the source to the stream.
struct Feeding {
    source: FileStream,
    sender: mpsc::Sender<Vec<i16>>,
    /// Times that of speech; `None`: as it comes.
    pace: Option<f64>,
}

impl Feeding {
    /// Ends with the source, with the stream, or (`until_interrupt`) with Ctrl-C.
    async fn run(self, until_interrupt: bool) -> Result<Option<Warning>> {
        let interrupted = async {
            match until_interrupt {
                true => drop(tokio::signal::ctrl_c().await),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            fed = self.feed() => fed,
            () = interrupted => Ok(None),
        }
    }

    /// What is wrong with the source, where it is streamed all the same.
    async fn feed(&self) -> Result<Option<Warning>> {
        let begun = Instant::now();
        let mut sent: u64 = 0;
        while let Some(samples) = self.source.next().await {
            let pcm: Vec<i16> = samples?.iter().map(|sample| (sample * 32768.0).round() as i16).collect();
            for stride in pcm.chunks(STRIDE) {
                sent += stride.len() as u64;
                if let Some(pace) = self.pace {
                    // When it was spoken, and no earlier.
                    tokio::time::sleep_until(begun + Duration::from_secs_f64(samples_to_secs(sent) / pace)).await;
                }
                if self.sender.send(stride.to_vec()).await.is_err() {
                    return Ok(None);
                }
            }
        }
        Ok(self.source.warning().cloned())
    }
}

/// What a person sees.
struct Captions {
    json: bool,
    /// The last line: what is being said.
    live: ProgressBar,
}

impl Captions {
    fn new(json: bool) -> Captions {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        Captions { json, live: ProgressBar::with_draw_target(None, target).with_style(style) }
    }

    fn warn(&self, message: &str) {
        self.live.suspend(|| eprintln_line(message));
    }

    fn show(&mut self, progress: &Progress<'_>) {
        match progress {
            Progress::Message(message) if self.json => {
                // Whoever closes the pipe early has seen enough; the stream goes on for the daemon's sake.
                drop(print(&format!("{message}\n")));
            }
            Progress::Message(message) => self.message(message),
            Progress::Connected { session, resumed: false } => self.line(&dim(&format!("session {session}"))),
            Progress::Connected { resumed: true, .. } => self.line(&dim("back: the session goes on")),
            Progress::Lost { reason, still: false } => self.line(&dim(&format!("{reason}; trying again …"))),
            Progress::Lost { reason, still: true } => self.live.set_message(dim(reason)),
            Progress::Dropped { samples } => {
                let secs = samples_to_secs(*samples);
                self.line(&dim(&format!("{secs:.1} s of audio are lost: the daemon is away for too long")));
            }
        }
    }

    fn message(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("partial_result") => {
                let (text, committed) = (str_of(message, "text"), str_of(message, "committed"));
                let open = text.strip_prefix(committed).unwrap_or(text);
                self.live.set_message(format!("{}{committed}{}", time(&message["start"]), dim(open)));
            }
            Some("segment_result") => {
                let segment = &message["segment"];
                let speaker = segment["speaker"].as_str().map_or_else(String::new, |it| format!("{it}: "));
                self.live.set_message("");
                self.line(&format!("{}{speaker}{}", time(&segment["start"]), str_of(segment, "text")));
            }
            Some("config_ack") => {
                if let Some(hint) = message["hint"].as_str() {
                    self.line(&dim(&format!("no text: {hint}")));
                }
            }
            Some("error") => self.line(&format!("the daemon says: {}", str_of(message, "message"))),
            _ => {}
        }
    }

    /// Above the live one. Beside a terminal, what concerns the stream still belongs to standard error.
    fn line(&self, text: &str) {
        if self.live.is_hidden() && !self.json {
            let plain = text.replace(DIM, "").replace(PLAIN, "");
            eprintln_line(&plain);
        } else {
            self.live.println(text);
        }
    }

    fn end(&self, streamed: &Streamed) -> Outcome {
        self.live.finish_and_clear();
        if !self.json {
            let texts = streamed.finals.iter().map(|result| str_of(result, "text")).filter(|text| !text.is_empty());
            print(&format!("{}\n", texts.collect::<Vec<&str>>().join("\n")))?;
        }
        if streamed.lost_samples > 0 {
            let secs = samples_to_secs(streamed.lost_samples);
            return Err(Error::internal(format!("the daemon has lost {secs:.3} s that it had acknowledged"))
                .hint("see its log, and the disk under its store.dir")
                .into());
        }
        Ok(())
    }
}

fn pace(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(pace) if (0.1..=1000.0).contains(&pace) => Ok(pace),
        _ => Err("a number between 0.1 and 1000 is needed".to_owned()),
    }
}

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

fn dim(text: &str) -> String {
    format!("{DIM}{text}{PLAIN}")
}

fn time(secs: &Value) -> String {
    let secs = secs.as_f64().unwrap_or(0.0) as u64;
    format!("{:>3}:{:02}  ", secs / 60, secs % 60)
}

fn str_of<'a>(message: &'a Value, key: &str) -> &'a str {
    message[key].as_str().unwrap_or_default()
}
