//! `vigia try`: one engine on one file, without a daemon. With `--json` one object on standard output and nothing
//! else there.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    base::{Error, Kind},
    cli::{
        Chosen, Outcome, SettingsArgs, places, print,
        try_asr::{LONGEST, TryAsr},
    },
    engines::{Registry, vad},
    flow::{Pcm, audio::samples_to_secs},
    media::{AudioFile, Media},
    segment::{Offline, Rules},
    settings::Settings,
};

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
    /// Transcribe a recording with a model's folder
    Asr(TryAsr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Provider {
    Cpu,
    Cuda,
    Tensorrt,
}

pub(super) fn run(args: Args) -> Outcome {
    if args.provider != Provider::Cpu {
        return Err(Error::new(Kind::Unsupported, "engines are tried on the CPU only so far").into());
    }
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    match &args.engine {
        TryEngine::Vad { file, probabilities } => try_vad(&args, settings, file, *probabilities),
        TryEngine::Asr(asr) => {
            let begun = Instant::now();
            let pcm = decode(settings, &asr.file)?;
            let object = asr.run(&pcm, settings, args.threads)?;
            let elapsed = begun.elapsed();
            if args.json {
                return print(&format!("{object}\n"));
            }
            let text = object["text"].as_str().unwrap_or_default();
            print(&format!("{:.1} s of audio, {}, {elapsed:.0?}\n{text}\n", pcm.secs(), object["language"]))
        }
    }
}

fn decode(settings: &Settings, file: &Path) -> Outcome<Pcm> {
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    Ok(runtime.block_on(media.decode_file(AudioFile::Path(file.to_owned()), LONGEST))?)
}

fn try_vad(args: &Args, settings: &Settings, file: &Path, probabilities: bool) -> Outcome {
    let mut detector = Registry::new(settings, places(settings)).open_silero(args.threads.into())?;
    let pcm = decode(settings, file)?;

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
        if probabilities {
            object["probabilities"] = json!(probability);
        }
        return print(&format!("{object}\n"));
    }
    let mut text = format!("{:.1} s of audio, {} spans of speech, {:.0?}\n", pcm.secs(), spans.len(), elapsed);
    for span in &spans {
        text.push_str(&format!("  {:8.2} – {:8.2} s\n", samples_to_secs(span.start), samples_to_secs(span.end)));
    }
    if probabilities {
        for (frame, probability) in probability.iter().enumerate() {
            text.push_str(&format!("  {:8.3} s  {probability:.3}\n", frame as f64 * 0.032));
        }
    }
    print(&text)
}
