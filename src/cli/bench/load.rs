//! `vigia bench load`: how fast a large model is ready for work, beside how fast its file can be read at all, and whether
//! its memory is the system's again once it is unloaded.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    base::{ByteSize, Error, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            figures::{Figure, to_text, told, wanted},
            onnx,
            scratch::Scratch,
        },
        places, print,
    },
    engines::{GraphAsk, GraphSpec, Handle, Launch},
    runtime::{self, GraphOptions},
};

/// What an unloaded engine may leave behind in the accounts of the system: noise of everybody else.
const NOISE_BYTES: u64 = 64 << 20;

/// A model of random weights: its load beside reading its file, and its memory after unloading
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// MiB of weights
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=16_384))]
    mib: u64,
    /// Loads, the median of which counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let library = runtime::find(&loaded.settings.runtime.library, &places(&loaded.settings).library)?;
    let dir = Scratch::new("load")?;
    let graph = dir.path().join("random.onnx");
    print(&format!("a model of {} MiB of random weights, {} rounds\n", args.mib, args.rounds))?;
    let written = onnx::write_random(&graph, usize::try_from(args.mib << 20).unwrap_or(usize::MAX));
    let bytes = written.map_err(|error| Error::unavailable("the model cannot be written").cause(error))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    let options = GraphOptions { mapped: true, ..GraphOptions::cpu(args.threads) };
    let spec = GraphSpec { graph, library, options };
    let mut held = true;
    for (title, cold) in [("from the disk", true), ("from the page cache", false)] {
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            rounds.push(runtime.block_on(round(&spec, cold))?);
        }
        let figures = figures(&rounds, bytes, cold);
        held &= figures.iter().all(|figure| figure.holds != Some(false));
        print(&format!("{title}\n{}", to_text(&figures)))?;
    }
    if held { Ok(()) } else { Err(anyhow::anyhow!("not every figure is what is wanted").into()) }
}

struct Round {
    read: Duration,
    /// From nothing to a first answer, so that every weight has been touched.
    load: Duration,
    held: u64,
    /// Less available than before the load, after unloading.
    left: u64,
}

async fn round(spec: &GraphSpec, cold: bool) -> Result<Round> {
    let weights = spec.graph.with_extension("onnx_data");
    if cold {
        forget(&weights)?;
    }
    let begun = Instant::now();
    read_whole(&weights)?;
    let read = begun.elapsed();

    if cold {
        forget(&weights)?;
    }
    let before = available()?;
    let begun = Instant::now();
    let engine = Handle::process(spec.clone(), Launch::new("bench-load")).await?;
    let answer = engine.ask(GraphAsk { row: vec![0.5; onnx::INPUT_LEN] }).await?;
    let load = begun.elapsed();
    if !answer.iter().all(|value| value.is_finite()) {
        return Err(Error::internal("the model answered no numbers"));
    }
    let held = engine.memory_bytes().unwrap_or(0);
    engine.close().await?;
    Ok(Round { read, load, held, left: before.saturating_sub(available()?) })
}

fn figures(rounds: &[Round], bytes: u64, cold: bool) -> Vec<Figure> {
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let (read, load) = (median(|it| it.read.as_secs_f64()), median(|it| it.load.as_secs_f64()));
    let ratio = median(|it| it.load.as_secs_f64() / it.read.as_secs_f64());
    let rate = ByteSize((bytes as f64 / read) as u64);
    let held = rounds.iter().map(|round| round.held).max().unwrap_or_default();
    let left = rounds.iter().map(|round| round.left).min().unwrap_or_default();
    let ratio_text = format!("{ratio:.2} times the reading");
    vec![
        told("reading the file", format!("{:.0} ms ({rate}/s)", read * 1000.0)),
        told("load and first answer", format!("{:.0} ms", load * 1000.0)),
        match cold {
            true => wanted("load", ratio_text, "at most 1.3", ratio <= 1.3),
            false => told("load", ratio_text),
        },
        told("held while loaded", ByteSize(held).to_string()),
        wanted("still held after unloading", ByteSize(left).to_string(), "nothing but noise", left <= NOISE_BYTES),
    ]
}

/// As fast as the file can be had, into one buffer.
fn read_whole(path: &Path) -> Result<()> {
    let failed = |error| Error::unavailable(format!("{} cannot be read", path.display())).cause(error);
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).map_err(failed)? > 0 {}
    Ok(())
}

/// The next reader has to go to the disk.
fn forget(path: &Path) -> Result<()> {
    let failed = |error| Error::unavailable(format!("{} cannot be put out of the cache", path.display())).cause(error);
    let file = File::open(path).map_err(failed)?;
    // SAFETY: posix_fadvise(2) takes numbers alone; the file is open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(failed(std::io::Error::from_raw_os_error(code))),
    }
}

/// What the system could give to others at once.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::unavailable("/proc/meminfo does not tell what is available"))
}
