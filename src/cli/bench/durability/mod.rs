//! `vigia bench durability`: one long recording, streamed twice by `vigia stream`: undisturbed, and with its line cut and
//! its daemon killed again and again at random moments. What comes of both must be the same, to the sample and to the
//! letter. Client, daemon and line are processes and sockets of their own, as in life.

mod client;
mod line;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::runtime::Runtime;

use self::{
    client::{Client, Heard},
    line::Line,
};
use crate::{
    api::client as wire,
    base::{ByteSize, Error, Result, shutdown::deadline},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            child::Daemon,
            figures::{Figure, percentile, to_text, told, wanted},
        },
        places, print, spoken,
    },
    flow::{Pcm, SAMPLE_RATE_HZ, SessionId},
    media::{AudioFile, Media},
    store::AudioLog,
};

const SESSION: &str = "durability";
/// No recording of a bench is longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Longer than it takes from a chunk's coming to its acknowledgement.
const LONGEST_DELAY: Duration = Duration::from_millis(400);
/// A run that stands still for this long is broken.
const PROGRESS_LIMIT: Duration = Duration::from_secs(120);
/// A client that was cut off is back within this.
const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// The daemon has this long to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A recording with cuts and kills against the same without: nothing lost, nothing doubled, the same text
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// The recording, repeated until `--secs`; else a sentence of espeak-ng's
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// Folder of a speech model, or its name; else that of tasks.transcribe.model
    #[arg(long)]
    model: Option<String>,
    /// Length of what is streamed
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    secs: u32,
    /// How many times faster than speech
    #[arg(long, default_value_t = 6.0)]
    pace: f64,
    /// How often the line is cut
    #[arg(long, default_value_t = 1000)]
    cuts: usize,
    /// How often the daemon is killed with -9
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Of the random moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Cut,
    Kill,
    /// At the daemon's memory: it harms nobody.
    Look,
}

/// What was done to the second run.
#[derive(Default)]
struct Blows {
    cuts: usize,
    kills: usize,
    /// From starting the daemon anew to its announcement, with its open session found.
    restarts: Vec<Duration>,
    /// From its first start on, of the daemon and of its engines, in bytes.
    memory: Vec<[u64; 2]>,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, facts, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let pcm = runtime.block_on(args.recording(&media))?;
    let sets = args.sets(settings)?;
    print(&format!(
        "{} s at {} times the pace of speech, {} cuts and {} kills, on {} cores ({})\n",
        args.secs,
        args.pace,
        args.cuts,
        args.kills,
        facts.cpu_cores,
        facts.cpu_model.as_deref().unwrap_or("unknown")
    ))?;

    let quiet = Daemon::start(&args.settings, &sets)?;
    let recording = quiet.dir().join("recording.wav");
    write_wav(&recording, &pcm)?;
    let expected = Client::start(&recording, quiet.address, args.pace * 4.0, SESSION)?.finish()?;

    let mut daemon = Daemon::start_beside(&args.settings, &sets, "disturbed")?;
    let line = runtime.block_on(Line::open(daemon.address))?;
    let begun = memory(&daemon)?;
    let client = Client::start(&recording, line.address, args.pace, SESSION)?;
    let (heard, mut blows) = args.disturb(&runtime, &mut daemon, &line, client)?;
    let events = runtime.block_on(all_events(&daemon))?;
    blows.memory.insert(0, begun);
    blows.memory.push(memory(&daemon)?);
    daemon.stop(STOP_LIMIT)?;
    let kept = runtime.block_on(kept_audio(&daemon.store_dir()))?;
    let (text, holds) = report(&pcm, &expected, &heard, &events, &kept, blows);
    print(&text)?;
    if holds { Ok(()) } else { Err(Error::internal("something was lost, doubled or changed").into()) }
}

impl Args {
    async fn recording(&self, media: &Media) -> Result<Vec<i16>> {
        let once: Pcm = match &self.audio {
            Some(file) => media.decode_file(AudioFile::Path(file.clone()), LONGEST).await?.whole()?,
            None => spoken::two_sentences(media).await?,
        };
        if once.is_empty() {
            return Err(Error::invalid("the recording is empty"));
        }
        let samples = self.secs as usize * SAMPLE_RATE_HZ as usize;
        let s16 = once.iter().map(|sample| (sample * 32768.0).round() as i16);
        Ok(s16.collect::<Vec<i16>>().into_iter().cycle().take(samples).collect())
    }

    fn sets(&self, settings: &crate::settings::Settings) -> Result<Vec<String>> {
        let places = places(settings);
        let models = places.models.iter().find(|dir| dir.is_dir()).cloned().unwrap_or_else(|| settings.models_dir());
        let library = crate::runtime::find(&settings.runtime.library, &places.library)?;
        let mut sets = vec![
            format!("models.dir={}", models.display()),
            format!("runtime.library={}", library.display()),
            // To be compared, sample by sample.
            "store.keep_audio=true".to_owned(),
            "log.level=warn".to_owned(),
        ];
        sets.extend(self.model.as_ref().map(|model| format!("tasks.transcribe.model={model}")));
        Ok(sets)
    }

    /// The moments, spread over the recording at random, and what happens at each: once so much is acknowledged, and a
    /// little later, so that no step of the daemon is spared.
    fn plan(&self) -> Vec<(u64, Duration, Step)> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let blows = std::iter::repeat_n(Step::Cut, self.cuts).chain(std::iter::repeat_n(Step::Kill, self.kills));
        let samples = u64::from(self.secs) * u64::from(SAMPLE_RATE_HZ);
        let looks = (1..4).map(|quarter| (samples * quarter / 4, Duration::ZERO, Step::Look));
        let mut plan: Vec<(u64, Duration, Step)> = blows
            .map(|blow| (random.u64(0..samples), LONGEST_DELAY.mul_f64(random.f64()), blow))
            .chain(looks)
            .collect();
        plan.sort_by_key(|(sample, ..)| *sample);
        plan
    }

    fn disturb(&self, runtime: &Runtime, daemon: &mut Daemon, line: &Line, client: Client) -> Result<(Heard, Blows)> {
        let bar = ProgressBar::new((self.cuts + self.kills) as u64).with_style(ProgressStyle::default_bar());
        let mut blows = Blows::default();
        for (sample, delay, step) in self.plan() {
            if !client.wait_until(sample, PROGRESS_LIMIT) {
                break;
            }
            std::thread::sleep(delay);
            match step {
                Step::Cut => blows.cuts += usize::from(runtime.block_on(line.cut(deadline(RETURN_LIMIT)))),
                Step::Kill => {
                    daemon.kill_and_restart()?;
                    line.lead_to(daemon.address);
                    blows.restarts.push(daemon.ready);
                    blows.kills += 1;
                }
                Step::Look => {
                    blows.memory.push(memory(daemon)?);
                    continue;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((client.finish()?, blows))
    }
}

/// Whether each segment of the result was published once, and as it stands there. Who speaks is said of the whole take at its
/// end: the result may have another speaker, or a segment in parts, of which the first keeps the id.
fn each_once(published: &[&Value], result: &[&Value]) -> bool {
    if result.iter().all(|segment| segment["speaker"].is_null()) {
        return published == result;
    }
    let of_published = result.iter().filter(|segment| published.iter().any(|it| it["id"] == segment["id"]));
    let begins = |(published, first): (&&Value, &&Value)| {
        let [whole, part] = [published, first].map(|it| it["text"].as_str().unwrap_or_default());
        published["id"] == first["id"] && published["start"] == first["start"] && whole.starts_with(part)
    };
    of_published.clone().count() == published.len() && published.iter().zip(of_published).all(begins)
}

fn memory(daemon: &Daemon) -> Result<[u64; 2]> {
    Ok([daemon.usage()?.rss_bytes, daemon.engines_rss_bytes()])
}

fn memory_of(looks: &[[u64; 2]]) -> String {
    let look = |[daemon, engines]: &[u64; 2]| format!("{} + {}", ByteSize(*daemon), ByteSize(*engines));
    looks.iter().map(look).collect::<Vec<String>>().join(", ")
}

fn report(
    pcm: &[i16],
    expected: &Heard,
    heard: &Heard,
    events: &[Value],
    kept: &[i16],
    mut blows: Blows,
) -> (String, bool) {
    blows.restarts.sort();
    let millis = |duration: Duration| format!("{:.0} ms", duration.as_secs_f64() * 1000.0);
    let received = heard.samples();
    let lost = (pcm.len() as u64).saturating_sub(received);
    let doubled = received.saturating_sub(pcm.len() as u64);
    let differing = pcm.iter().zip(kept).filter(|(sent, kept)| sent != kept).count() + pcm.len().abs_diff(kept.len());
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<&Value>>();
    let published = of("transcript.segment");
    let spoken: Vec<&Value> = heard.segments().iter().filter(|segment| segment["text"] != "").collect();
    let published_segments: Vec<&Value> = published.iter().map(|event| &event["data"]["segment"]).collect();
    let same_published = each_once(&published_segments, &spoken);
    let same = heard.text() == expected.text() && heard.segments() == expected.segments();
    let ends = (of("transcript.final").len(), of("session.end").len());
    let figures: Vec<Figure> = vec![
        told("cuts of the line", blows.cuts.to_string()),
        told("kills of the daemon", blows.kills.to_string()),
        told("connections", heard.connections.to_string()),
        told(
            "ready again after a kill",
            format!(
                "median {}, worst {}",
                millis(percentile(&blows.restarts, 0.5)),
                millis(percentile(&blows.restarts, 1.0))
            ),
        ),
        told(
            "memory of daemon + engines",
            format!("{} (ready, at each quarter, with the session behind it)", memory_of(&blows.memory)),
        ),
        wanted("samples lost", format!("{lost} of {}", pcm.len()), "0", lost == 0),
        wanted("samples doubled", doubled.to_string(), "0", doubled == 0),
        wanted("samples that differ in the log", differing.to_string(), "0", differing == 0),
        wanted("acknowledgements taken back", heard.taken_back.to_string(), "0", heard.taken_back == 0),
        wanted(
            "transcript beside the undisturbed",
            format!("{} segments, {}", heard.segments().len(), if same { "identical" } else { "different" }),
            "identical",
            same && !heard.segments().is_empty(),
        ),
        wanted(
            "segments published",
            format!("{}, {}", published.len(), if same_published { "each once" } else { "not as in the result" }),
            "each once",
            same_published,
        ),
        wanted("final results, ends of the session", format!("{}, {}", ends.0, ends.1), "1, 1", ends == (1, 1)),
        wanted("segments told with another text", heard.changed.to_string(), "0", heard.changed == 0),
        wanted("committed words taken back", heard.revised.to_string(), "0", heard.revised == 0),
        told("segments told more than once", heard.repeated.to_string()),
    ];
    let holds = figures.iter().all(|figure| figure.holds != Some(false));
    (to_text(&figures), holds)
}

/// The session's events, once it has ended.
async fn all_events(daemon: &Daemon) -> Result<Vec<Value>> {
    let mut events: Vec<Value> = Vec::new();
    let until = deadline(STOP_LIMIT);
    loop {
        let from = events.len() + 1;
        let path = format!("/sessions/{SESSION}/events?from={from}&limit=500");
        let (_, page) = wire::get_json(daemon.address, &path, None).await?;
        let page = page["events"].as_array().cloned().unwrap_or_default();
        let last_page = page.len() < 500;
        events.extend(page);
        let ended = events.last().is_some_and(|event| event["type"] == "session.end");
        if last_page && (ended || tokio::time::Instant::now() > until) {
            return Ok(events);
        }
        if last_page {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What the daemon, now stopped, has kept of the audio.
async fn kept_audio(store: &Path) -> Result<Vec<i16>> {
    let log = AudioLog::open(store)?;
    let session = SessionId::parse(SESSION)?;
    Ok(log.read(&session, 1, 0..u64::MAX).await?.samples)
}

/// 16 kHz, mono, s16.
fn write_wav(path: &Path, pcm: &[i16]) -> Result<()> {
    let bytes = 2 * pcm.len() as u32;
    let mut wav = Vec::with_capacity(44 + bytes as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + bytes).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16u32.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&SAMPLE_RATE_HZ.to_le_bytes());
    wav.extend_from_slice(&(2 * SAMPLE_RATE_HZ).to_le_bytes());
    wav.extend_from_slice(&2u16.to_le_bytes());
    wav.extend_from_slice(&16u16.to_le_bytes());
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&bytes.to_le_bytes());
    wav.extend(pcm.iter().flat_map(|sample| sample.to_le_bytes()));
    fs::write(path, wav).map_err(|error| Error::internal("the recording cannot be written").cause(error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn segment(id: u64, start: f64, text: &str, speaker: Option<&str>) -> Value {
        json!({ "id": id, "start": start, "text": text, "speaker": speaker })
    }

    #[test]
    fn the_end_of_a_take_may_say_who_spoke_and_nothing_else() {
        let told = [segment(0, 0.0, "hola. adiós", Some("S1")), segment(1, 5.0, "sí", Some("S2"))];
        let told: Vec<&Value> = told.iter().collect();
        let once = |result: &[Value]| each_once(&told, &result.iter().collect::<Vec<&Value>>());
        let other = segment(1, 5.0, "sí", Some("S1"));
        assert!(once(&[segment(0, 0.0, "hola. adiós", Some("S1")), other.clone()]));
        let parts = [segment(0, 0.0, "hola.", Some("S1")), segment(2, 2.0, "adiós", Some("S2")), other.clone()];
        assert!(once(&parts));
        assert!(!once(&[segment(0, 0.0, "buenas", Some("S1")), other.clone()]));
        assert!(!once(&[segment(0, 1.0, "hola. adiós", Some("S1")), other.clone()]));
        assert!(!once(&[other]));
        // Without speakers nothing may change at all.
        assert!(!each_once(&told, &[&segment(0, 0.0, "hola.", None), &segment(1, 5.0, "sí", None)]));
    }
}
