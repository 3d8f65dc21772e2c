//! `vigia bench long`: recordings of hours, sent to a daemon of its own. Of speech: that memory does not grow with the
//! length, and how many words are wrong. Of silence, noises and tones: that no text comes of them.

use std::{path::PathBuf, time::Instant};

use clap::ValueEnum;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, tcp::OwnedWriteHalf},
};

use crate::{
    base::{Error, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            child::{self, Daemon},
            clips::{self, Clip},
            figures::{self, told, wanted},
            sounds::{Sound, Source},
        },
        print,
    },
    engines::asr::WordErrors,
    flow::SAMPLE_RATE_HZ,
    media::Media,
};

/// Where memory is looked at, in parts of the recording.
const LOOKS: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 1.0];
/// What may come on top in the second half.
const MOST_GROWTH: u64 = 24 << 20;
/// Of words of the clips; some of them are noisy.
const MOST_WORDS_WRONG: f64 = 0.02;
/// Between two clips, so that each is speech of its own.
const PAUSE: usize = SAMPLE_RATE_HZ as usize;
const BOUNDARY: &str = "vigia-bench-long";

/// Recordings of hours: memory, speed, no text of what nobody says
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Folder of the speech model, with config.json, tokenizer.json and onnx/
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder with recordings and clips.json, which says what is spoken in each; by default clips/ of the model
    #[arg(long, value_name = "DIR")]
    clips: Option<PathBuf>,
    /// What is spoken in the clips that are taken
    #[arg(long, default_value = "es")]
    language: String,
    #[arg(long, default_value_t = 10_800, value_parser = clap::value_parser!(u32).range(10..=36_000))]
    secs: u32,
    /// One recording of each
    #[arg(long, value_enum, value_delimiter = ',', default_value = "speech,silence,noise,tones")]
    of: Vec<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The clips, one after the other
    Speech,
    Silence,
    Noise,
    Tones,
}

/// What goes into a recording.
enum Audio {
    /// One turn of the clips, of which so many samples are still to come, again and again; then silence.
    Clips {
        turn: Vec<f32>,
        at: usize,
        left: usize,
    },
    Sound(Source),
}

/// What was seen of one recording.
struct Seen {
    /// Of the daemon and of its engine, at each of `LOOKS`.
    memory: Vec<(u64, u64)>,
    elapsed_secs: f64,
    done: Value,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let folder = args.clips.clone().unwrap_or_else(|| args.model.join("clips"));
    let clips = runtime.block_on(clips::read(&media, &folder))?;
    let clips: Vec<Clip> = clips.into_iter().filter(|it| it.language == args.language && !it.text.is_empty()).collect();
    if clips.is_empty() {
        let none = Error::invalid(format!("no clip in {} is in {}", folder.display(), args.language));
        return Err(none.hint("--language names the language of some").into());
    }
    let daemon = Daemon::start(&args.settings, &child::with_model(settings, &args.model)?)?;
    runtime.block_on(async {
        // The first loads the models; what that takes is no growth.
        send(&daemon, &args, What::Speech.audio(&clips, 60), 60).await?;
        let mut holds = true;
        for what in &args.of {
            let seen = send(&daemon, &args, what.audio(&clips, args.secs), args.secs).await?;
            let figures = what.figures(&seen, &args, &clips);
            holds &= figures.iter().all(|figure| figure.holds != Some(false));
            let name = what.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default();
            print(&format!("\n{name}, {} s\n{}", args.secs, figures::to_text(&figures)))?;
        }
        if holds { Ok(()) } else { Err(Error::internal("a long recording is not what it should be").into()) }
    })
}

impl What {
    fn audio(self, clips: &[Clip], secs: u32) -> Audio {
        let sound = match self {
            What::Speech => {
                let pause = vec![0.0; PAUSE];
                let turn = clips.iter().flat_map(|clip| clip.audio.iter().chain(&pause)).copied().collect();
                let left = whole(clips, secs).map(|clip| clip.audio.len() + PAUSE).sum();
                return Audio::Clips { turn, at: 0, left };
            }
            What::Silence => Sound::Silence,
            What::Noise => Sound::Noise,
            What::Tones => Sound::Tones,
        };
        Audio::Sound(Source::new(sound, 1))
    }

    fn figures(self, seen: &Seen, args: &Args, clips: &[Clip]) -> Vec<figures::Figure> {
        let mib = |bytes: u64| bytes >> 20;
        let at = |at: usize| seen.memory.get(at).copied().unwrap_or_default();
        let shown = |(daemon, engine): (u64, u64)| format!("{} + {} MiB", mib(daemon), mib(engine));
        let sum = |(daemon, engine): (u64, u64)| daemon + engine;
        // An engine grows until it has met its longest window and its first doubt, whenever those come.
        let growth = sum(at(LOOKS.len() - 1)).saturating_sub(sum(at(2)));
        let grown = format!("{} MiB", mib(growth));
        let mut figures = vec![
            told("daemon + engine at 10 %", shown(at(0))),
            told("at 50 %", shown(at(2))),
            told("at the end", shown(at(4))),
            told("real-time factor", format!("{:.4}", seen.elapsed_secs / f64::from(args.secs))),
        ];
        let text = seen.done["text"].as_str().unwrap_or_default();
        if self == What::Speech {
            let said: Vec<&str> = whole(clips, args.secs).map(|clip| clip.text.as_str()).collect();
            let errors = WordErrors::between(&said.join(" "), text);
            let shown = format!("{} of {} ({:.2} %)", errors.count(), errors.words, 100.0 * errors.rate());
            figures.push(wanted("growth from 50 % on", grown, "under 24 MiB", growth < MOST_GROWTH));
            figures.push(wanted("words wrong", shown, "at most 2 %", errors.rate() <= MOST_WORDS_WRONG));
        } else {
            figures.push(told("growth from 50 % on", grown));
            let begin: String = text.chars().take(60).collect();
            figures.push(wanted("text", format!("{} letters {begin}", text.chars().count()), "none", text.is_empty()));
        }
        figures
    }
}

/// The clips that the recording has room for, one after the other, again and again.
fn whole(clips: &[Clip], secs: u32) -> impl Iterator<Item = &Clip> {
    let mut left = secs as usize * SAMPLE_RATE_HZ as usize;
    clips.iter().cycle().take_while(move |clip| {
        let rest = left.checked_sub(clip.audio.len() + PAUSE);
        left = rest.unwrap_or_default();
        rest.is_some()
    })
}

/// Sends a recording as it is made, and looks at the memory while it is heard.
async fn send(daemon: &Daemon, args: &Args, audio: Audio, secs: u32) -> Result<Seen> {
    let broken = |error: std::io::Error| Error::internal("the bench's connection broke").cause(error);
    let (reading, mut writing) = TcpStream::connect(daemon.address).await.map_err(broken)?.into_split();
    write(&mut writing, &args.language, audio, secs).await.map_err(broken)?;
    let begun = Instant::now();
    let mut lines = BufReader::new(reading).lines();
    let (mut memory, mut event) = (Vec::new(), String::new());
    while let Some(line) = lines.next_line().await.map_err(broken)? {
        // Each event is a part of the answer by itself, so that its lines are whole.
        if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut event);
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        match &*event {
            "progress" => {
                let part = data["secs"].as_f64().unwrap_or_default() / f64::from(secs);
                while LOOKS.get(memory.len()).is_some_and(|look| part >= *look) {
                    memory.push((daemon.usage()?.rss_bytes, daemon.engines_rss_bytes()));
                }
            }
            "done" => return Ok(Seen { memory, elapsed_secs: begun.elapsed().as_secs_f64(), done: data }),
            "error" => return Err(Error::internal(format!("the daemon answered {data}"))),
            _ => (),
        }
    }
    Err(Error::internal("the daemon ended its answer in the middle").hint("its log says why"))
}

/// A form with a WAV of that length.
async fn write(to: &mut OwnedWriteHalf, language: &str, mut audio: Audio, secs: u32) -> std::io::Result<()> {
    let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=");
    let mut begin =
        format!("{part}\"language\"\r\n\r\n{language}\r\n{part}\"file\"; filename=\"a\"\r\n\r\n").into_bytes();
    let pcm_bytes = secs * SAMPLE_RATE_HZ * 2;
    begin.extend(b"RIFF\xFF\xFF\xFF\xFFWAVEfmt \x10\0\0\0\x01\0\x01\0");
    begin.extend(SAMPLE_RATE_HZ.to_le_bytes());
    begin.extend((2 * SAMPLE_RATE_HZ).to_le_bytes());
    begin.extend(b"\x02\0\x10\0data");
    begin.extend(pcm_bytes.to_le_bytes());
    let end = format!("\r\n--{BOUNDARY}--\r\n");
    let length = begin.len() as u64 + u64::from(pcm_bytes) + end.len() as u64;
    let head = format!(
        "POST /api/stt HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nAccept: text/event-stream\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
    );
    to.write_all(head.as_bytes()).await?;
    to.write_all(&begin).await?;
    for _ in 0..secs {
        let second = audio.second();
        let bytes: Vec<u8> =
            second.iter().flat_map(|sample| ((sample * 32767.0).round() as i16).to_le_bytes()).collect();
        to.write_all(&bytes).await?;
    }
    to.write_all(end.as_bytes()).await
}

impl Audio {
    fn second(&mut self) -> Vec<f32> {
        let wanted = SAMPLE_RATE_HZ as usize;
        match self {
            Audio::Sound(source) => source.next(wanted),
            Audio::Clips { turn, at, left } => {
                let speech = wanted.min(*left);
                let mut second: Vec<f32> = turn.iter().cycle().skip(*at).take(speech).copied().collect();
                second.resize(wanted, 0.0);
                *at = (*at + speech) % turn.len().max(1);
                *left -= speech;
                second
            }
        }
    }
}
