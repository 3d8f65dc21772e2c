//! `vigia try`: one engine on one file, without a daemon. With `--json` one object on standard output and nothing
//! else there.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    base::{Error, Kind},
    cli::{Chosen, Outcome, SettingsArgs, eprintln_line, places, print, try_asr::TryAsr, try_diarize, try_embed},
    engines::{Registry, vad},
    flow::{Pcm, audio::samples_to_secs},
    media::{AudioFile, Media},
    runtime::ProviderOptions,
    segment::{Offline, Rules},
    settings::{self, Settings},
};

/// Six hours take 1.4 GB while they are looked at.
pub(super) const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Try one engine on a file, without a daemon
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    engine: TryEngine,
    #[command(flatten)]
    pub(super) settings: SettingsArgs,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// What to compute on
    #[arg(long, value_enum, default_value = "cpu", global = true)]
    pub(super) provider: Provider,
    /// Threads for one run of the model
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256), global = true)]
    pub(super) threads: u16,
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
    Asr(TryAsr),
    Embed(try_embed::Args),
    Diarize(try_diarize::Args),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Provider {
    Cpu,
    Cuda,
    Tensorrt,
}

pub(super) fn run(args: Args) -> Outcome {
    let (file, probabilities) = match &args.engine {
        TryEngine::Vad { file, probabilities } => (file, *probabilities),
        TryEngine::Asr(asr) => return asr.run(&args),
        TryEngine::Embed(embed) => return embed.run(&args),
        TryEngine::Diarize(diarize) => return diarize.run(&args),
    };
    args.on_cpu_only("the voice detector")?;
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
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

/// The whole file at 16 kHz; where it breaks off in the middle, what there is of it, and a word about that.
pub(super) fn decode(settings: &Settings, file: &Path) -> Outcome<Pcm> {
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let decoded = runtime.block_on(media.decode_file(AudioFile::Path(file.to_owned()), LONGEST))?;
    if let Some(warning) = decoded.warning {
        eprintln_line(&format!("{}: {}", file.display(), warning.message));
    }
    Ok(decoded.pcm)
}

impl Args {
    /// Where the engine is to run. Without a cache TensorRT builds its engine first.
    pub(super) fn provider_options(&self, settings: &Settings) -> ProviderOptions {
        let provider = match self.provider {
            Provider::Cpu => settings::Provider::Cpu,
            Provider::Cuda => settings::Provider::Cuda,
            Provider::Tensorrt => settings::Provider::TensorRt,
        };
        ProviderOptions::new(provider, &settings.providers, None)
    }

    /// Whether the engine may run where it was asked to.
    pub(super) fn on_cpu_only(&self, what: &str) -> Outcome {
        if self.provider == Provider::Cpu {
            return Ok(());
        }
        Err(Error::new(Kind::Unsupported, format!("{what} runs on the CPU only so far")).into())
    }
}
