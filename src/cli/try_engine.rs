//! `vigia try`: one engine on one file, without a daemon. With `--json` one object on standard output and nothing
//! else there.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    base::{Error, Kind},
    cli::{Chosen, Outcome, SettingsArgs, places, print},
    engines::{Registry, vad},
    flow::{Pcm, audio::samples_to_secs},
    media::{AudioFile, Media},
    segment::{Offline, Rules},
};

/// Six hours take 1.4 GB while they are looked at.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Try one engine on a file, without a daemon
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    engine: TryEngine,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    /// What to compute on
    #[arg(long, value_enum, default_value = "cpu", global = true)]
    provider: Provider,
    /// Threads for one run of the model
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256), global = true)]
    threads: u16,
}

#[derive(Debug, Subcommand)]
enum TryEngine {
    /// Find the speech in a recording
    Vad {
        /// Any audio file that GStreamer opens
        file: PathBuf,
        /// Also print the probability of each 32 ms
        #[arg(long)]
        probabilities: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Provider {
    Cpu,
    Cuda,
    Tensorrt,
}

pub(super) fn run(args: Args) -> Outcome {
    let TryEngine::Vad { file, probabilities } = &args.engine;
    if args.provider != Provider::Cpu {
        return Err(Error::new(Kind::Unsupported, "the voice detector runs on the CPU only")
            .hint("it needs 0.07 ms a frame there")
            .into());
    }
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let mut detector = Registry::new(settings, places(settings)).open_silero(args.threads.into())?;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let pcm: Pcm = runtime.block_on(media.decode_file(AudioFile::Path(file.clone()), LONGEST))?;

    let begun = Instant::now();
    let probability = vad::probabilities(&mut detector, &pcm)?;
    let elapsed = begun.elapsed();
    // The reference's own rules, so that the result can be laid beside it; live sessions use those of the settings.
    let mut offline = Offline::new(Rules::reference());
    probability.iter().for_each(|probability| offline.push(*probability));
    let spans = offline.finish(pcm.len() as u64);

    if args.json {
        let segments: Vec<_> = spans
            .iter()
            .map(|span| json!({ "start": samples_to_secs(span.start), "end": samples_to_secs(span.end) }))
            .collect();
        let mut object = json!({ "segments": segments });
        if *probabilities {
            object["probabilities"] = json!(probability);
        }
        return print(&format!("{object}\n"));
    }
    let mut text = format!("{:.1} s of audio, {} spans of speech, {:.0?}\n", pcm.secs(), spans.len(), elapsed);
    for span in &spans {
        text.push_str(&format!("  {:8.2} – {:8.2} s\n", samples_to_secs(span.start), samples_to_secs(span.end)));
    }
    if *probabilities {
        for (frame, probability) in probability.iter().enumerate() {
            text.push_str(&format!("  {:8.3} s  {probability:.3}\n", frame as f64 * 0.032));
        }
    }
    print(&text)
}
