//! `vigia bench gpu`: what only a card can show. The same numbers as the processor's, memory of which ledger and driver
//! say the same, all of it back after unloading, and a lack of memory that is told from other failures. `scripts/gpu`
//! finds the libraries for it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    base::{ByteSize, Error, Kind, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            figures::{Figure, to_text, told, wanted},
            scratch::Scratch,
            sounds::{Sound, Source},
        },
        places, print,
    },
    device::{Facts, MemoryKind, Meter},
    engines::{Asr, Hired, Registry, TranscribeAsk},
    flow::{Pcm, Priority, SAMPLE_RATE_HZ},
    models::catalogue,
    runtime::{self, Graph, GraphOptions, Provider, ProviderOptions, Runtime, TensorSpec, trial},
    settings::Settings,
};

/// How far a number may be from the processor's.
const APART: f32 = 1e-3;
/// How far the ledger may be from the driver, as a part of what the driver says.
const OFF: f64 = 0.03;
/// What an unloaded engine may leave behind in the driver's account: noise of everybody else.
const NOISE_BYTES: u64 = 64 << 20;
/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_secs(60);
/// An arena in which no graph can work, beside its weights: those are taken without regard to the limit, and once they are
/// beyond it nothing is limited.
const TOO_LITTLE: u64 = 1 << 20;
const WINDOW: usize = 30 * SAMPLE_RATE_HZ as usize;

/// CUDA beside the processor, and the ledger beside the driver
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A Whisper: its folder, with config.json and onnx/encoder_model.onnx
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Windows of 30 s that are timed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    windows: u8,
}

pub(super) fn run(args: Args) -> Outcome {
    let store = Scratch::new("gpu")?;
    let on_cpu = args.chosen(Provider::Cpu, store.path())?;
    let on_card = args.chosen(Provider::Cuda, store.path())?;
    let facts = &on_card.facts;
    let settings = &on_card.loaded.settings;
    let library = runtime::find(&settings.runtime.library, &places(settings).library)?;
    let runtime = Runtime::open(&library)?;
    let card = facts.gpus.first().ok_or_else(|| no_card(facts))?;
    let driver = card.driver.as_deref().unwrap_or("unknown");
    let size = ByteSize(card.vram_bytes);
    print(&format!(
        "{}, {size}, driver {driver}; ONNX Runtime {} ({})\n",
        card.name,
        runtime.version(),
        library.display()
    ))?;
    let cuda = ProviderOptions::new(Provider::Cuda, &settings.providers, None);
    runtime.try_provider(&cuda)?;

    let graphs = graphs(&runtime, settings, &args.model)?;
    let mut held = show("the same numbers as the processor", &parity(&runtime, settings, &graphs, Provider::Cuda)?)?;
    held &= show("a lack of memory", &[shortage(&runtime, settings, &graphs)?])?;
    held &= show("TensorRT", &[tensorrt(&runtime, settings)])?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::new)?;
    held &= show("the whole model, in a process of its own", &tokio.block_on(engine(&args, &on_cpu, &on_card))?)?;
    if held { Ok(()) } else { Err(anyhow::anyhow!("not every figure is what is wanted").into()) }
}

fn show(title: &str, figures: &[Figure]) -> Outcome<bool> {
    print(&format!("{title}\n{}", to_text(figures)))?;
    Ok(figures.iter().all(|figure| figure.holds != Some(false)))
}

fn no_card(facts: &Facts) -> Error {
    let notes = facts.notes.join("; ");
    Error::unavailable(format!("no NVIDIA card was found here: {notes}")).hint("`nvidia-smi` has to show it first")
}

impl Args {
    /// The settings with this model and provider in them.
    fn chosen(&self, provider: Provider, store: &Path) -> Outcome<Chosen> {
        let models = self.settings.load()?.loaded.settings.models_dir();
        let mut settings = self.settings.clone();
        settings.sets.extend(self.sets(provider, store, &models));
        settings.load()
    }

    /// The store is the bench's own, so that its ledger knows nothing of what the model has taken before; models are where
    /// they are.
    fn sets(&self, provider: Provider, store: &Path, models: &Path) -> Vec<String> {
        let model = self.model.canonicalize().unwrap_or_else(|_| self.model.clone());
        vec![
            format!("tasks.transcribe.model={}", model.display()),
            format!("tasks.transcribe.provider={}", provider.name()),
            "tasks.diarize.model=".to_owned(),
            "memory.foreign_secs=1".to_owned(),
            format!("store.dir={}", store.display()),
            format!("models.dir={}", models.display()),
        ]
    }
}

type Inputs = BTreeMap<String, TensorSpec>;
/// A graph by its name for people, its file, and what goes into it.
type Tried = (&'static str, PathBuf, Inputs);

/// Those that are there, with inputs of the shapes that they take.
fn graphs(runtime: &Runtime, settings: &Settings, model: &Path) -> Result<Vec<Tried>> {
    let encoder = model.join("onnx/encoder_model.onnx");
    let ports = Graph::open(runtime, &encoder, &GraphOptions::cpu(1))?.input_ports()?;
    let shape =
        |shape: &[Option<usize>]| shape.iter().map(|size| size.unwrap_or(1).to_string()).collect::<Vec<_>>().join("x");
    let features = ports.iter().map(|port| Ok((port.name.clone(), parsed(&format!("f32 {}", shape(&port.shape)))?)));
    let mut graphs = vec![("Whisper's encoder", encoder, features.collect::<Result<Inputs>>()?)];
    if let Ok(silero) = catalogue::file(&places(settings).models, "silero-vad", crate::engines::vad::FILE) {
        let inputs = [("input", "f32 1x576"), ("state", "f32 2x1x128"), ("sr", "i64 = 16000")];
        let inputs = inputs.iter().map(|(name, spec)| Ok(((*name).to_owned(), parsed(spec)?)));
        graphs.push(("the voice detector", silero, inputs.collect::<Result<Inputs>>()?));
    }
    Ok(graphs)
}

fn parsed(spec: &str) -> Result<TensorSpec> {
    spec.parse().map_err(|error| Error::internal(format!("`{spec}` is no tensor: {error}")))
}

fn parity(runtime: &Runtime, settings: &Settings, graphs: &[Tried], other: Provider) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, graph, inputs) in graphs {
        let run = |provider| {
            let provider = ProviderOptions::new(provider, &settings.providers, None);
            trial(runtime, graph, &GraphOptions { provider, ..GraphOptions::cpu(1) }, inputs, 7)
        };
        let (expected, found) = (run(Provider::Cpu)?, run(other)?);
        let mut apart = 0.0_f32;
        for (output, expected) in &expected {
            let found = found.get(output).filter(|found| found.len() == expected.len()).ok_or_else(|| {
                Error::internal(format!("{output} of {} has another shape on the card", graph.display()))
            })?;
            apart = farther(apart, difference(expected, found));
        }
        figures.push(wanted(name, format!("{apart:.2e} apart"), "at most 1e-3", apart <= APART));
    }
    Ok(figures)
}

/// The largest between two numbers at the same place.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, farther)
}

/// What is no number is as far as can be.
fn farther(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// The first graph in an arena that is far too small.
fn shortage(runtime: &Runtime, settings: &Settings, graphs: &[Tried]) -> Result<Figure> {
    let (_, graph, inputs) = graphs.first().ok_or_else(|| Error::internal("there is no graph to try"))?;
    let mut provider = ProviderOptions::new(Provider::Cuda, &settings.providers, None);
    if let ProviderOptions::Cuda(options) = &mut provider {
        options.memory_limit_bytes = Some(on_disk(graph)? + TOO_LITTLE);
    }
    let error = trial(runtime, graph, &GraphOptions { provider, ..GraphOptions::cpu(1) }, inputs, 7).err();
    let kind = error.as_ref().map(Error::kind);
    let text = match &error {
        Some(error) if kind != Some(Kind::OverBudget) => format!("{}: {}", error.kind(), error.full()),
        Some(error) => error.kind().to_string(),
        None => "it worked".to_owned(),
    };
    Ok(wanted("1 MiB of arena beside the weights", text, "over_budget", kind == Some(Kind::OverBudget)))
}

/// In bytes, with the weights that lie beside it.
fn on_disk(graph: &Path) -> Result<u64> {
    let unreadable = |error| Error::unavailable(format!("{} cannot be read", graph.display())).cause(error);
    let name = graph.file_name().unwrap_or_default().to_string_lossy();
    let mut bytes = 0;
    for file in fs::read_dir(graph.parent().unwrap_or(Path::new("."))).map_err(unreadable)? {
        let file = file.map_err(unreadable)?;
        let beside = file.file_name().to_string_lossy().into_owned();
        if beside == name || catalogue::is_side_file(&name, &beside) {
            bytes += file.path().metadata().map_err(unreadable)?.len();
        }
    }
    Ok(bytes)
}

fn tensorrt(runtime: &Runtime, settings: &Settings) -> Figure {
    let options = ProviderOptions::new(Provider::TensorRt, &settings.providers, None);
    let starts = runtime.try_provider(&options);
    told("starts", starts.map_or_else(|error| format!("no: {}", error.full()), |()| "yes".to_owned()))
}

async fn engine(args: &Args, on_cpu: &Chosen, on_card: &Chosen) -> Result<Vec<Figure>> {
    let mut sound = Source::new(Sound::Noise, 1);
    let windows: Vec<Pcm> = (0..args.windows).map(|_| Pcm::from(sound.next(WINDOW))).collect();
    let (expected, _, processor_secs) = heard(on_cpu, &windows).await?.finish().await?;

    let meter = Meter::open(Path::new("/"), &on_card.facts)?;
    let before = meter.usage()?.used;
    let heard = heard(on_card, &windows).await?;
    // What a process has of the system's memory through a GPU that shares it, nobody tells.
    let is_shared = on_card.facts.memory_kind == MemoryKind::Unified;
    let (ledger, driver) = agreed(&heard, !is_shared).await?;
    let (found, load, card_secs) = heard.finish().await?;
    let left = wait_for(|| Ok(meter.usage()?.used.saturating_sub(before)), |left| *left <= NOISE_BYTES).await?;

    let same = expected.iter().zip(&found).filter(|(a, b)| a == b).count();
    let speech = f64::from(args.windows) * 30.0;
    let (held, left) = ("still held after unloading", (ByteSize(left).to_string(), left <= NOISE_BYTES));
    Ok(vec![
        // Told only: a model of random weights, as the tests have, is torn between tokens by any last digit.
        told("windows with the same tokens", format!("{same} of {}", windows.len())),
        told("load and first answer", format!("{:.1} s", load.as_secs_f64())),
        told("real-time factor", format!("{:.4} (processor {:.4})", card_secs / speech, processor_secs / speech)),
        beside(ledger, driver),
        if is_shared { told(held, left.0) } else { wanted(held, left.0, "nothing but noise", left.1) },
    ])
}

/// Only told where there is no driver's figure.
fn beside(ledger: f64, driver: Option<f64>) -> Figure {
    let name = "the ledger beside the driver";
    let says = ByteSize(ledger as u64);
    let Some(driver) = driver else { return told(name, format!("{says}; this device does not tell by process")) };
    let off = (ledger - driver).abs() / driver;
    let text = format!("{says} beside {}, {:.1} % off", ByteSize(driver as u64), off * 100.0);
    wanted(name, text, "at most 3 %", off <= OFF)
}

/// A model that has heard the windows once, to be warm, and once more on time.
struct Heard {
    registry: Registry,
    hired: Hired<Asr>,
    tokens: Vec<Vec<u32>>,
    load: Duration,
    secs: f64,
}

async fn heard(chosen: &Chosen, windows: &[Pcm]) -> Result<Heard> {
    let settings = &chosen.loaded.settings;
    let registry = Registry::new(settings, places(settings));
    registry.begin(&chosen.facts);
    let begun = Instant::now();
    let hired = registry.hire::<Asr>(Priority::Live).await?;
    let ask = |window: &Pcm| TranscribeAsk::of(window.clone(), "es");
    let mut load = None;
    for window in windows {
        hired.ask(ask(window)).await?;
        load.get_or_insert_with(|| begun.elapsed());
    }
    let begun = Instant::now();
    let mut tokens = Vec::new();
    for window in windows {
        let pieces = hired.ask(ask(window)).await?;
        tokens.push(pieces.into_iter().flat_map(|piece| piece.tokens).collect());
    }
    let (load, secs) = (load.unwrap_or_default(), begun.elapsed().as_secs_f64());
    Ok(Heard { registry, hired, tokens, load, secs })
}

impl Heard {
    /// Unloads it; what it said, how long its load took, and how long it heard.
    async fn finish(self) -> Result<(Vec<Vec<u32>>, Duration, f64)> {
        let Heard { registry, hired, tokens, load, secs } = self;
        drop(hired);
        registry.close().await;
        Ok((tokens, load, secs))
    }
}

/// What the ledger and the driver, where it tells by process, say that the engine takes, in bytes, once they agree, or at the
/// end of the wait.
async fn agreed(heard: &Heard, by_process: bool) -> Result<(f64, Option<f64>)> {
    let pid = heard.hired.vitals().borrow().pid.ok_or_else(|| Error::internal("the engine has no process"))?;
    let both = || {
        let ledger = heard.registry.ledgers();
        let row = ledger.first().and_then(|ledger| ledger.models.first());
        let row = row.ok_or_else(|| Error::internal("the ledger has no model"))?;
        let driver = by_process.then(|| used_on_the_card(pid)).transpose()?;
        Ok((row.measured as f64, driver))
    };
    wait_for(both, |(ledger, driver)| driver.is_none_or(|driver| (ledger - driver).abs() <= OFF * driver)).await
}

/// In bytes, as the driver's own tool tells it.
fn used_on_the_card(pid: u32) -> Result<f64> {
    let query = ["--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"];
    let failed =
        || Error::unavailable("`nvidia-smi` does not tell what each process uses").hint("a container hides it");
    let told = Command::new("nvidia-smi").args(query).output().map_err(|error| failed().cause(error))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    bytes_of(pid, &told).ok_or_else(|| failed().cause(told.clone()))
}

fn bytes_of(pid: u32, told: &str) -> Option<f64> {
    let rows = told.lines().filter_map(|line| line.split_once(','));
    let (_, mib) = rows.into_iter().find(|(of, _)| of.trim() == pid.to_string())?;
    Some(mib.trim().parse::<f64>().ok()? * f64::from(1 << 20))
}

/// What it is in the end, if it never becomes what is wanted.
async fn wait_for<T>(mut look: impl FnMut() -> Result<T>, wanted: impl Fn(&T) -> bool) -> Result<T> {
    let begun = Instant::now();
    loop {
        let found = look()?;
        if wanted(&found) || begun.elapsed() > LIMIT {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, load};

    #[test]
    fn a_model_beside_itself_is_not_apart_at_all() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Some(library) = runtime::for_tests() else { return };
        let runtime = Runtime::open(&library).unwrap();
        let sets = vec![format!("models.dir={}", root.join(".vigia/state/models").display())];
        let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
        let graphs = graphs(&runtime, &settings, &root.join("tests/data/whisper-tiny")).unwrap();
        assert_eq!(graphs[0].2["input_features"].to_string(), "f32 1x128x3000");
        for figure in parity(&runtime, &settings, &graphs, Provider::Cpu).unwrap() {
            assert_eq!((figure.measured.as_str(), figure.holds), ("0.00e0 apart", Some(true)), "{}", figure.name);
        }
    }

    #[test]
    fn the_weights_beside_a_graph_count_and_those_of_another_do_not() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("m.onnx", 10), ("m.onnx_data", 100), ("m.onnx_data_1", 1000), ("n.onnx", 7)] {
            fs::write(dir.path().join(name), vec![0; bytes]).unwrap();
        }
        assert_eq!(on_disk(&dir.path().join("m.onnx")).unwrap(), 1110);
        assert!(on_disk(Path::new("/nowhere/m.onnx")).is_err());
    }

    #[test]
    fn a_device_that_does_not_tell_by_process_holds_nothing_up() {
        assert_eq!(beside(100.0, Some(102.0)).holds, Some(true));
        assert_eq!(beside(100.0, Some(104.0)).holds, Some(false));
        let shared = beside(100.0, None);
        assert!(shared.holds.is_none() && shared.measured.contains("does not tell"), "{}", shared.measured);
    }

    #[test]
    fn the_bench_has_a_store_of_its_own_and_the_models_of_the_box() {
        let args = Args { settings: SettingsArgs::default(), model: PathBuf::from("/m"), windows: 1 };
        let sets = args.sets(Provider::Cuda, Path::new("/of-the-bench"), Path::new("/of-the-box"));
        let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
        assert_eq!(settings.store_dir(), Path::new("/of-the-bench"));
        assert_eq!(settings.models_dir(), Path::new("/of-the-box"));
        assert_eq!(settings.providers_for("transcribe"), [Provider::Cuda]);
    }

    #[test]
    fn what_is_no_number_is_never_near() {
        assert_eq!(difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        assert!(difference(&[1.0, f32::NAN, 0.0], &[1.0, 1.0, 0.0]).is_nan());
        assert!(farther(f32::NAN, 0.0).is_nan() && farther(APART, 0.0) <= APART);
    }

    #[test]
    fn the_drivers_own_tool_is_read_by_process() {
        let told = "812, 410\n77, 1024\n9, [N/A]\n";
        assert_eq!(bytes_of(77, told), Some(1024.0 * f64::from(1 << 20)));
        assert_eq!([bytes_of(7, told), bytes_of(9, told), bytes_of(1, "")], [None; 3]);
    }
}
