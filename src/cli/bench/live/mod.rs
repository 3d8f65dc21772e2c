//! `vigia bench live`: clips with known texts, streamed at the pace of speech to a daemon of its own, over real sockets.
//! What is seen of the text while it is spoken and when it is final: how soon, how right, and that nothing committed is
//! taken back. Client and daemon share the machine.

mod client;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    api::client as http,
    base::{Error, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            child::{self, Daemon},
            clips::{self, Clip},
            figures::{self, Figure, percentile, told, wanted},
        },
        print,
        run::raise_open_files,
    },
    engines::asr::WordErrors,
    media::Media,
};

use client::Seen;

/// What people call at once: the wire's promise for one stream on two cores.
const FIRST_WITHIN: Duration = Duration::from_millis(700);
const FINAL_WITHIN: Duration = Duration::from_millis(500);
/// Live text may have so many more errors than the same clip transcribed as a file.
const WORD_ERRORS_MORE: f64 = 0.01;

/// Live text: how soon, how right, nothing taken back
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Folder of the speech model, with config.json, tokenizer.json and onnx/
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder with recordings and clips.json, which says what is spoken in each; by default clips/ of the model
    #[arg(long, value_name = "DIR")]
    clips: Option<PathBuf>,
    /// How many streams at a time, one level after the other
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u16).range(1..=1000))]
    streams: Vec<u16>,
    /// Speech of each stream in each level
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(10..=7200))]
    secs: u16,
    /// Audio in one message
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(10..=1000))]
    chunk_ms: u16,
    /// Let the model find the language, instead of naming that of each clip
    #[arg(long)]
    auto: bool,
}

/// What a level counted, of all its streams.
struct Level {
    streams: usize,
    seen: Seen,
    failed: Vec<Error>,
    counted: Counted,
}

/// The daemon's own counters: what was left out, stretched, tried.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    done: f64,
    left_out: f64,
    given_up: f64,
    failed: f64,
    stretched: f64,
    trials_final: f64,
    trials_for_nothing: f64,
    trials_left_out: f64,
    fits: f64,
    spelling_kept: f64,
    words_kept: f64,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, facts, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let folder = args.clips.clone().unwrap_or_else(|| args.model.join("clips"));
    let clips = runtime.block_on(clips::read(&media, &folder))?;
    raise_open_files();
    let most = args.streams.iter().copied().max().unwrap_or(1);
    let mut sets = child::with_model(settings, &args.model)?;
    sets.push(format!("audio.max_sessions={}", most + 1));
    let daemon = Daemon::start(&args.settings, &sets)?;
    print(&format!(
        "{} clips, {} s a stream, {} ms a message, on {} cores ({})\n",
        clips.len(),
        args.secs,
        args.chunk_ms,
        facts.cpu_cores,
        facts.cpu_model.as_deref().unwrap_or("unknown")
    ))?;
    runtime.block_on(measure(&args, clips, &daemon))
}

async fn measure(args: &Args, mut clips: Vec<Clip>, daemon: &Daemon) -> Outcome {
    // The first request loads the model; what it costs is no clip's own.
    for clip in &mut clips {
        clips::transcribe(daemon.address, clip, args.auto).await?;
    }
    let mut offline = WordErrors::default();
    clips.iter().for_each(|clip| offline += WordErrors::between(&clip.text, &clip.offline));
    print(&format!("as files: {} of {} words wrong\n", offline.count(), offline.words))?;
    let mut far: Vec<Duration> = clips.iter().flat_map(|clip| clip.word_times.iter().copied()).collect();
    far.sort();
    if !far.is_empty() {
        let at = |part: f64| percentile(&far, part).as_millis();
        let (half, most, of) = (at(0.5), at(0.95), far.len() / 2);
        print(&format!("times of words: {half} · {most} ms from the right ones (p50 · p95 of {of} words)\n"))?;
    }
    let clips = Arc::new(clips);
    for streams in &args.streams {
        let level = level(args, &clips, daemon, usize::from(*streams)).await?;
        print(&format!("\n{} at a time\n{}", level.streams, report(&level)))?;
    }
    Ok(())
}

/// That many streams at a time, each through the clips from another one on.
async fn level(args: &Args, clips: &Arc<Vec<Clip>>, daemon: &Daemon, streams: usize) -> Result<Level> {
    let before = counted(daemon).await?;
    let chunk = Duration::from_millis(args.chunk_ms.into());
    let mut running = JoinSet::new();
    for number in 0..streams {
        let script = script(clips, number, f64::from(args.secs));
        let (clips, address, auto) = (Arc::clone(clips), daemon.address, args.auto);
        // Spread over two seconds: people do not start to speak in step.
        let wait = Duration::from_secs(2).mul_f64(number as f64 / streams as f64);
        running.spawn(async move {
            tokio::time::sleep(wait).await;
            let mut seen = Seen::default();
            for clip in script {
                seen.add(client::stream(address, &clips[clip], chunk, auto).await?);
            }
            Ok(seen)
        });
    }
    let (mut seen, mut failed) = (Seen::default(), Vec::new());
    while let Some(done) = running.join_next().await {
        match done.map_err(|error| Error::internal("a stream's task").cause(error))? {
            Ok(one) => seen.add(one),
            Err(error) => failed.push(error),
        }
    }
    seen.first.sort();
    seen.last.sort();
    seen.whole.sort();
    Ok(Level { streams, seen, failed, counted: counted(daemon).await?.since(before) })
}

/// The clips of a stream, as many as fit into its time; at least one.
fn script(clips: &[Clip], number: usize, secs: f64) -> Vec<usize> {
    let mut left = secs;
    let mut script = Vec::new();
    loop {
        let before = script.len();
        for at in (0..clips.len()).map(|at| (at + number) % clips.len()) {
            if clips[at].audio.secs() <= left {
                left -= clips[at].audio.secs();
                script.push(at);
            }
        }
        if script.len() == before {
            break;
        }
    }
    if script.is_empty() && !clips.is_empty() {
        script.push(number % clips.len());
    }
    script
}

fn report(level: &Level) -> String {
    let Level { streams, seen, failed, counted } = level;
    let all = |sorted: &[Duration]| {
        let at = |part: f64| percentile(sorted, part).as_millis();
        format!("{} · {} · {} ms (p50 · p95 · p99 of {})", at(0.5), at(0.95), at(0.99), sorted.len())
    };
    let timely = |name: &'static str, sorted: &[Duration], within: Duration, words: &'static str| -> Figure {
        match streams {
            1 => wanted(name, all(sorted), words, !sorted.is_empty() && percentile(sorted, 0.95) <= within),
            _ => told(name, all(sorted)),
        }
    };
    let (live, offline) = (seen.live.rate(), seen.offline.rate());
    let errors = format!("{:.2} % beside {:.2} % as files, {} words", 100.0 * live, 100.0 * offline, seen.live.words);
    let asked = counted.done + counted.left_out + counted.given_up + counted.failed;
    let figures = [
        wanted("streams that failed", failed.len().to_string(), "0", failed.is_empty()),
        wanted("committed text taken back", seen.revised.to_string(), "0", seen.revised == 0),
        wanted("word errors, live", errors, "within 1 point", (live - offline).abs() <= WORD_ERRORS_MORE),
        timely("first text after speech starts", &seen.first, FIRST_WITHIN, "p95 <= 700 ms"),
        timely("final text after speech ends", &seen.last, FINAL_WITHIN, "p95 <= 500 ms"),
        told("final result after the end of a take", all(&seen.whole)),
        told("stretches of speech", format!("{}, {} final before a partial", seen.first.len(), seen.final_first)),
        told("committed before the final text", format!("{:.0} % of its letters", 100.0 * seen.committed_share())),
        told(
            "partials",
            format!(
                "{} of {asked}; left out {}, given up {}, failed {}",
                counted.done, counted.left_out, counted.given_up, counted.failed
            ),
        ),
        told("partials after which the next waits", counted.stretched.to_string()),
        told(
            "finals begun on trial",
            format!(
                "{} became final, {} for nothing, {} left out",
                counted.trials_final, counted.trials_for_nothing, counted.trials_left_out
            ),
        ),
        told(
            "finals beside what was committed",
            format!("{} the same, {} spelt so, {} kept", counted.fits, counted.spelling_kept, counted.words_kept),
        ),
    ];
    let mut text = figures::to_text(&figures);
    for error in failed.iter().take(3) {
        text.push_str(&format!("    {}\n", error.full()));
    }
    for (said, understood) in seen.wrong.iter().take(5) {
        text.push_str(&format!("    said:  {said}\n    heard: {understood}\n"));
    }
    text
}

async fn counted(daemon: &Daemon) -> Result<Counted> {
    let (_, text) = http::request(daemon.address, "GET", "/metrics", &[], bytes::Bytes::new()).await?;
    let text = String::from_utf8_lossy(&text);
    let value = |series: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.and_then(|rest| rest.trim().parse::<f64>().ok()).unwrap_or(0.0)
    };
    let of = |name: &str, label: &str, value_of: &str| value(&format!("vigia_{name}_total{{{label}=\"{value_of}\"}}"));
    Ok(Counted {
        done: of("partials", "outcome", "done"),
        left_out: of("partials", "outcome", "left_out"),
        given_up: of("partials", "outcome", "given_up"),
        failed: of("partials", "outcome", "failed"),
        stretched: value("vigia_partials_stretched_total"),
        trials_final: of("trials", "outcome", "final"),
        trials_for_nothing: of("trials", "outcome", "given_up"),
        trials_left_out: of("trials", "outcome", "left_out"),
        fits: of("finals_fitted", "fit", "same"),
        spelling_kept: of("finals_fitted", "fit", "spelling_kept"),
        words_kept: of("finals_fitted", "fit", "words_kept"),
    })
}

impl Counted {
    fn since(self, before: Counted) -> Counted {
        Counted {
            done: self.done - before.done,
            left_out: self.left_out - before.left_out,
            given_up: self.given_up - before.given_up,
            failed: self.failed - before.failed,
            stretched: self.stretched - before.stretched,
            trials_final: self.trials_final - before.trials_final,
            trials_for_nothing: self.trials_for_nothing - before.trials_for_nothing,
            trials_left_out: self.trials_left_out - before.trials_left_out,
            fits: self.fits - before.fits,
            spelling_kept: self.spelling_kept - before.spelling_kept,
            words_kept: self.words_kept - before.words_kept,
        }
    }
}
