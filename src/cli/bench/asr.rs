//! `vigia bench asr`: one speech model on windows of 30 s, a fixed number of tokens each. Prints one JSON object, which
//! scripts/bench-asr lays beside those of other systems.

use std::{fs, path::PathBuf, time::Instant};

use serde_json::json;

use crate::{
    cli::{Chosen, Outcome, SettingsArgs, places, print, try_engine::LONGEST},
    engines::{
        Cancel, Decode, PieceText, TranscribeAsk, Transcriber,
        asr::whisper::{Whisper, WhisperSpec},
    },
    flow::{Pcm, SAMPLE_RATE_HZ},
    media::{AudioFile, Media},
    runtime,
};

const WINDOW: usize = 30 * SAMPLE_RATE_HZ as usize;

/// Time a speech model on windows of 30 s; prints JSON
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    file: PathBuf,
    /// Folder with config.json, tokenizer.json and onnx/
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which graphs: _fp16, _quantized, _q4…
    #[arg(long, default_value = "")]
    suffix: String,
    /// Decoded in each window, if the text does not end before
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=440))]
    tokens: u16,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let library = runtime::find(&settings.runtime.library, &places(settings).library)?;
    let mut spec = WhisperSpec::of(&args.model, &library, args.threads.into());
    spec.encoder.suffix.clone_from(&args.suffix);
    spec.decoder.suffix.clone_from(&args.suffix);
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let pcm = runtime.block_on(media.decode_file(AudioFile::Path(args.file.clone()), LONGEST))?.whole()?;
    let mut whisper = Whisper::open(&spec)?;
    let mut tokens = Vec::new();
    let mut begun = Instant::now();
    // The first window warms up, as in the systems beside us.
    for (number, window) in pcm.chunks(WINDOW).take(1).chain(pcm.chunks(WINDOW)).enumerate() {
        if number == 1 {
            begun = Instant::now();
            tokens.clear();
        }
        let ask = ask(window, args.tokens.into());
        let pieces = whisper.transcribe(&ask, &mut |_| {}, &Cancel::default())?;
        tokens.extend(pieces.into_iter().map(|PieceText { tokens, .. }| tokens));
    }
    let elapsed = begun.elapsed().as_secs_f64();
    print(&format!("{}\n", json!({ "elapsed_secs": elapsed, "tokens": tokens, "peak_rss_kib": peak_rss_kib() })))
}

/// Greedy, without timestamps, without a second try: what can be asked of every system.
fn ask(window: &[f32], tokens: usize) -> TranscribeAsk {
    let decode = Decode {
        timestamps: false,
        temperatures: vec![0.0],
        max_compression_ratio: None,
        min_log_probability: None,
        max_no_speech: None,
        max_new_tokens: Some(tokens),
        ..Decode::default()
    };
    TranscribeAsk { decode, ..TranscribeAsk::of(Pcm::from(window.to_vec()), "es") }
}

/// The most that this process has ever had in memory; None where the kernel does not say.
fn peak_rss_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
