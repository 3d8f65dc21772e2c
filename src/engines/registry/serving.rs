//! How a task is served on this box now: which model, in which precision, built of what, and where it may run. Looks at
//! the settings and the disk each time it is asked, so that a model that was fetched a moment ago serves at once.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use serde_json::Value;

#[cfg(any(test, feature = "test-engine"))]
use crate::engines::echo;
use crate::{
    base::{Error, Kind, Result},
    engines::{
        AsrSpec,
        asr::whisper::{self, GraphFile, PlanPlace, WhisperSpec},
        registry::{
            Places,
            appetite::Appetite,
            loader::Recipe,
            plans,
            tensorrt::{Built, Checked},
        },
        vad,
    },
    flow::Task,
    models::{
        catalogue::{self, Catalogue, Entry, PLAN},
        installed,
    },
    runtime::{self, ProviderOptions},
    settings::{Provider, Settings},
};

/// A config.json larger than this is none.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// One task's model, and where it may run, best first.
pub struct Serving {
    pub(super) model: String,
    pub(super) variant: String,
    pub(super) providers: Vec<Provider>,
    /// Why these are not all that the settings permit.
    pub(super) told: Option<String>,
    pub(super) appetite: Appetite,
    pub(super) resident: bool,
    /// For TensorRT, which serves only what was held against a check.
    pub(super) checked: Option<Checked>,
    /// Where the graphs beside plans of TensorRT run, if there are plans.
    pub(super) beside: Option<Provider>,
    pub(super) built_of: BuiltOf,
}

pub(super) enum BuiltOf {
    /// Alike wherever it runs.
    Recipe(Recipe),
    Whisper(Box<WhisperSpec>),
}

impl Serving {
    /// `units`: how many units of work there is memory for at the same time. `engine`: what TensorRT has built of it.
    pub(super) fn recipe(
        &self,
        provider: Provider,
        units: usize,
        engine: Option<&Built>,
        settings: &Settings,
    ) -> Recipe {
        match &self.built_of {
            BuiltOf::Recipe(recipe) => recipe.clone(),
            BuiltOf::Whisper(spec) => {
                let engine = engine.filter(|_| provider == Provider::TensorRt);
                let spec = WhisperSpec { batch: units, ..self.whisper(spec, provider, engine, settings) };
                Recipe::of(AsrSpec::Whisper(Box::new(spec)))
            }
        }
    }

    fn whisper(
        &self,
        spec: &WhisperSpec,
        provider: Provider,
        engine: Option<&Built>,
        settings: &Settings,
    ) -> WhisperSpec {
        let folder = settings.engines_dir().join(&self.model).join(&self.variant);
        let on = |provider, folder: &Path| ProviderOptions::new(provider, &settings.providers, Some(folder));
        let mut spec = spec.clone();
        spec.plans = PlanPlace { provider: on(provider, &folder), folder: folder.join("plans") };
        spec.provider = on(self.beside.unwrap_or(provider), &folder);
        if let Some(Built { folder, roles, beside }) = engine {
            spec.provider = on(*beside, folder);
            for (role, file) in [("encoder", &mut spec.encoder), ("decoder", &mut spec.decoder)] {
                file.provider = roles.contains(role).then(|| on(provider, folder));
            }
        }
        spec
    }
}

/// What is there to serve with.
pub struct Stock<'a> {
    pub(super) settings: &'a Settings,
    /// Or why it cannot be read.
    pub(super) catalogue: &'a Result<Catalogue, String>,
    pub(super) places: &'a Places,
}

impl<'a> Stock<'a> {
    pub(super) fn model(&self, task: Task) -> Result<&'a str> {
        self.settings.model_for(task).ok_or_else(|| {
            Error::unavailable(format!("no model is set for the task {}", task.name()))
                .hint(format!("set tasks.{}.model, or choose a profile that has one", task.name()))
        })
    }

    pub(super) fn catalogue(&self) -> Result<&'a Catalogue> {
        self.catalogue.as_ref().map_err(Error::unavailable)
    }

    pub(super) fn library(&self) -> Result<PathBuf> {
        runtime::find(&self.settings.runtime.library, &self.places.library)
    }

    /// The file of the voice detector.
    pub(super) fn silero(&self) -> Result<PathBuf> {
        catalogue::file(&self.places.models, self.model(Task::Vad)?, vad::FILE)
    }

    pub(super) fn not_yet(&self, task: Task) -> Result<Serving> {
        let model = self.model(task)?;
        Err(Error::unavailable(format!("this version cannot run {model} yet"))
            .hint("see the README for what works today"))
    }

    pub(super) fn transcriber(&self, model: &str) -> Result<Serving> {
        let variants = self.settings.variants_for(Task::Transcribe);
        let first = self.transcriber_in(model, variants.first().copied());
        // A name that is none would be noticed only when memory is short.
        let known = || variants.iter().skip(1).try_for_each(|variant| self.knows(model, variant));
        first.and_then(|serving| known().map(|()| serving)).map_err(of_settings)
    }

    pub(super) fn transcriber_in(&self, model: &str, variant: Option<&str>) -> Result<Serving> {
        let task = Task::Transcribe;
        let mut providers = self.settings.providers_for(task);
        let (mut beside, mut told) = (None, None);
        let (variant, appetite, checked, built_of) = match model {
            #[cfg(any(test, feature = "test-engine"))]
            "test-echo" | "test-count" => {
                let spec = if model == "test-count" { AsrSpec::TestCount } else { AsrSpec::TestEcho };
                let recipe = BuiltOf::Recipe(Recipe::of(spec));
                ("only".to_owned(), Appetite::new(1 << 20, &catalogue::Memory::default()), None, recipe)
            }
            #[cfg(any(test, feature = "test-engine"))]
            echo::LARGE => {
                let variant = variant.unwrap_or(echo::SIZES[0]);
                let appetite = Appetite::new(echo::weight(variant)?, &catalogue::Memory::default());
                let recipe = BuiltOf::Recipe(Recipe::of(AsrSpec::TestLarge(variant.to_owned())));
                (variant.to_owned(), appetite, None, recipe)
            }
            _ => {
                let places = &self.places.models;
                let found = match self.catalogue()?.get(model) {
                    Some(entry) => listed(entry, variant, places)?,
                    None => bare(model, variant, places)?,
                };
                let Found { variant, dir, encoder, decoder, appetite, checked } = found;
                if encoder.plan.is_some() || decoder.plan.is_some() {
                    let is_whole = encoder.plan.is_some() && decoder.plan.is_some();
                    beside = Some(plans::beside((model, &variant), is_whole, &providers, self.settings)?);
                    providers = vec![Provider::TensorRt];
                }
                if encoder.is_in_bytes() || decoder.is_in_bytes() {
                    told = on_processors(model, &variant, &mut providers)?;
                }
                let threads = thread::available_parallelism().map_or(1, usize::from);
                let spec = WhisperSpec { encoder, decoder, ..WhisperSpec::of(&dir, &self.library()?, threads) };
                let appetite = Appetite { units: spec.batch, ..appetite };
                (variant, appetite, checked, BuiltOf::Whisper(Box::new(spec)))
            }
        };
        Ok(Serving {
            model: model.to_owned(),
            variant,
            providers,
            told,
            appetite,
            resident: self.settings.is_resident(task),
            checked,
            beside,
            built_of,
        })
    }
}

/// Takes out what would leave the work to the processor all the same.
fn on_processors(model: &str, variant: &str, providers: &mut Vec<Provider>) -> Result<Option<String>> {
    let wanted = providers.first().copied();
    providers.retain(|provider| *provider == Provider::Cpu);
    let told = format!("{model} as {variant} is made for processors: no GPU has its products of bytes");
    if providers.is_empty() {
        return Err(Error::new(Kind::Unsupported, told)
            .hint("take fp16 or q4, or add \"cpu\" to providers.order or the task's provider"));
    }
    Ok((wanted != Some(Provider::Cpu)).then_some(told))
}

/// The graphs of one variant on the disk.
struct Found {
    variant: String,
    dir: PathBuf,
    encoder: GraphFile,
    decoder: GraphFile,
    appetite: Appetite,
    checked: Option<Checked>,
}

fn listed(entry: &Entry, variant: Option<&str>, places: &[PathBuf]) -> Result<Found> {
    if entry.family != "whisper" {
        return Err(unsupported(&entry.name));
    }
    let variant = entry.variant(variant)?;
    let found = installed::find(entry, places)?;
    let is_whole = |found: &installed::Found| found.variants.iter().any(|whole| whole == variant);
    let Some(found) = found.as_ref().filter(|found| is_whole(found)) else {
        return Err(installed::missing(entry, variant, found.as_ref()));
    };
    let graph = |role: &str, prefixes: &[&str]| {
        let path = entry.graph(variant, role).unwrap_or_default();
        let file = Path::new(&path);
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let plan = entry.plans.get(role).filter(|_| path.ends_with(PLAN)).cloned();
        // The two graphs of a split decoder would need a signature each.
        let prefixes = if plan.is_some() { &prefixes[..1] } else { prefixes };
        let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        let suffix = rest.and_then(|rest| if plan.is_some() { Some(rest) } else { rest.strip_suffix(".onnx") });
        let suffix = suffix.map(str::to_owned);
        let folder = file.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
        suffix.map(|suffix| GraphFile { folder, suffix, plan, provider: None }).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("{}: the graph `{role}` ({path}) is none of Whisper's", entry.name))
                .hint("its files are encoder_model*.onnx and decoder_model_merged*.onnx, or plans: *.engine")
        })
    };
    let encoder = graph("encoder", &["encoder_model"])?;
    let decoder = graph("decoder", &["decoder_model_merged", "decoder_model"])?;
    let appetite = Appetite::of(entry, variant, on_disk(&found.dir, &[&encoder, &decoder]));
    let checked = entry.check.clone().map(|check| Checked {
        model: entry.name.clone(),
        variant: variant.to_owned(),
        dir: found.dir.clone(),
        graphs: check.graphs.keys().filter_map(|role| Some((role.clone(), entry.graph(variant, role)?))).collect(),
        is_whole: entry.roles().all(|role| check.graphs.contains_key(role)),
        check,
    });
    Ok(Found { variant: variant.to_owned(), dir: found.dir.clone(), encoder, decoder, appetite, checked })
}

/// A folder in the layout of the published exports that no entry of the catalogue describes.
fn bare(model: &str, variant: Option<&str>, places: &[PathBuf]) -> Result<Found> {
    let candidates = if model.contains('/') { vec![PathBuf::from(model)] } else { below(places, model) };
    let Some(dir) = candidates.iter().find(|dir| dir.is_dir()) else {
        return Err(Error::unavailable(format!(
            "there is no model `{model}`: neither in the catalogue nor as a folder"
        ))
        .hint("`vigia models list` shows those that are known"));
    };
    if model_type(dir)? != "whisper" {
        return Err(unsupported(model));
    }
    let variant = variant.unwrap_or("fp32");
    let graph = GraphFile { suffix: suffix_of(variant)?, ..GraphFile::default() };
    let encoder = dir.join(&graph.folder).join(format!("encoder_model{}.onnx", graph.suffix));
    if !encoder.is_file() {
        return Err(Error::unavailable(format!("the model {model} has no {}", encoder.display()))
            .hint("tasks.transcribe.variant says which precision to take: fp32, fp16, q8, q4 …"));
    }
    let graphs = ["encoder_model", "decoder_model_merged"].map(|stem| graph.path(stem).display().to_string());
    if installed::is_in_part(dir, &graphs)? {
        return Err(Error::unavailable(format!("the model {model} is there only in part"))
            .hint(format!("copy the rest of it to {}", dir.display())));
    }
    let appetite = Appetite::new(on_disk(dir, &[&graph]), &whisper::memory(dir));
    Ok(Found {
        variant: variant.to_owned(),
        dir: dir.clone(),
        encoder: graph.clone(),
        decoder: graph,
        appetite,
        checked: None,
    })
}

/// Whoever asks for a transcript has not written the settings.
fn of_settings(error: Error) -> Error {
    if error.kind() != Kind::Invalid {
        return error;
    }
    let hint = error.hint_text().unwrap_or("see the model's variants");
    Error::unavailable(error.message()).hint(format!("tasks.transcribe.variant: {hint}"))
}

fn below(places: &[PathBuf], model: &str) -> Vec<PathBuf> {
    places.iter().map(|place| place.join(model)).collect()
}

/// The precisions that a bare folder may have.
pub(super) const PRECISIONS: [&str; 8] = ["fp32", "fp16", "q8", "int8", "uint8", "q4", "q4f16", "bnb4"];

/// How the published exports name their precisions.
fn suffix_of(variant: &str) -> Result<String> {
    Ok(match variant {
        "fp32" => String::new(),
        "q8" => "_quantized".to_owned(),
        "fp16" | "int8" | "uint8" | "q4" | "q4f16" | "bnb4" => format!("_{variant}"),
        plan if plan.ends_with(PLAN) => {
            return Err(Error::invalid(format!("{plan}: a folder says nothing of what goes into a plan")).hint(
                "write an entry of your own with `plans.encoder`; `vigia models show whisper-base --entry` prints one",
            ));
        }
        _ => {
            return Err(Error::invalid(format!("there is no precision `{variant}`")).hint(PRECISIONS.join(", ")));
        }
    })
}

fn model_type(dir: &Path) -> Result<String> {
    let path = dir.join("config.json");
    let unreadable = || Error::unavailable(format!("{} cannot be read", path.display()));
    let size = fs::metadata(&path).map_err(|error| unreadable().cause(error))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(unreadable().hint("it is too large"));
    }
    let text = fs::read(&path).map_err(|error| unreadable().cause(error))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| unreadable().cause(error))?;
    Ok(config["model_type"].as_str().unwrap_or_default().to_owned())
}

/// Graphs with these suffixes, and the weights beside them. An export may hold its decoder twice; it is an estimate.
fn on_disk(dir: &Path, graphs: &[&GraphFile]) -> u64 {
    let mut bytes = 0;
    for graph in graphs {
        for stem in ["encoder_model", "decoder_model_merged"] {
            let path = dir.join(graph.path(stem));
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let listed = fs::read_dir(dir.join(&graph.folder)).into_iter().flatten().flatten();
            let parts = listed.filter(|file| file.file_name().to_string_lossy().starts_with(&*name));
            bytes += parts.filter_map(|file| Some(file.metadata().ok()?.len())).sum::<u64>();
        }
    }
    bytes
}

fn unsupported(model: &str) -> Error {
    Error::unavailable(format!("this version cannot transcribe with {model}"))
        .hint("it takes models of Whisper's family")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engines::Hosting,
        settings::{Sources, load},
    };

    fn model(files: &[&str], config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mine");
        fs::create_dir_all(folder.join("onnx")).unwrap();
        fs::write(folder.join("config.json"), config).unwrap();
        files.iter().for_each(|file| fs::write(folder.join("onnx").join(file), [0; 100]).unwrap());
        dir
    }

    #[test]
    fn a_bare_folder_serves_in_the_precision_that_is_asked_for() {
        let files = ["encoder_model.onnx", "encoder_model_q4.onnx", "decoder_model_merged_q4.onnx"];
        let dir = model(&files, r#"{"model_type":"whisper"}"#);
        let places = [dir.path().to_owned()];
        let found = bare("mine", Some("q4"), &places).unwrap();
        assert_eq!((found.encoder.suffix.as_str(), found.appetite.weights_bytes), ("_q4", 200));
        let path = dir.path().join("mine");
        assert_eq!(bare(path.to_str().unwrap(), None, &[]).unwrap().variant, "fp32");
        assert!(bare("mine", Some("fp16"), &places).err().unwrap().full().contains("encoder_model_fp16.onnx"));
        assert!(bare("mine", Some("fp7"), &places).err().unwrap().full().contains("q4f16"));
        assert!(bare("other", None, &places).err().unwrap().full().contains("vigia models list"));
        fs::write(dir.path().join("mine/onnx/encoder_model_q4.onnx_data.part-0123456789abcdef"), [0; 9]).unwrap();
        assert!(bare("mine", Some("q4"), &places).err().unwrap().full().contains("only in part"));
    }

    /// A Whisper of one's own whose encoder is a plan.
    const PLANNED: &str = r#"
        name = "mine"
        title = "Mine"
        tasks = ["transcribe"]
        family = "whisper"
        source = "made here"
        default_variant = "trt"
        files = ["config.json"]
        [licence]
        name = "none"
        [graphs]
        encoder = "onnx/encoder_model"
        decoder = "onnx/decoder_model_merged"
        [variants]
        trt = { encoder = "_sm87.engine" }
        [plans.encoder]
        inputs = { input_features = "f32 1x80x3000" }
        outputs = { last_hidden_state = "f32 1x1500x384" }
    "#;

    #[test]
    fn an_entry_with_a_plan_serves_it_on_tensorrt_and_the_rest_beside_it() {
        let files = ["encoder_model_sm87.engine", "decoder_model_merged.onnx"];
        let dir = model(&files, r#"{"model_type":"whisper"}"#);
        let entries = tempfile::tempdir().unwrap();
        let serving = |text: &str, sets: &[&str]| {
            fs::write(entries.path().join("mine.toml"), text).unwrap();
            let catalogue = Catalogue::load(Some(entries.path())).map_err(|error| error.full());
            let found = listed(catalogue.as_ref().unwrap().require("mine").unwrap(), None, &[dir.path().to_owned()])?;
            assert_eq!(found.encoder.path("encoder_model"), Path::new("onnx/encoder_model_sm87.engine"));
            assert!(found.decoder.plan.is_none());
            assert_eq!(found.appetite.weights_bytes, 200, "the plan counts");
            let sets = sets.iter().map(|it| (*it).to_owned()).collect();
            let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
            // Any file is a library that nobody opens.
            let places = Places {
                models: vec![dir.path().to_owned()],
                library: vec![dir.path().join("mine/config.json")],
                own_entries: None,
                hosting: Hosting::Threads,
            };
            Stock { settings: &settings, catalogue: &catalogue, places: &places }.transcriber("mine")
        };
        let on_tensorrt = ["tasks.transcribe.provider=tensorrt", "providers.order=[\"cuda\"]"];
        let it = serving(PLANNED, &on_tensorrt).unwrap();
        assert_eq!((&it.providers[..], it.beside), (&[Provider::TensorRt][..], Some(Provider::Cuda)));
        assert!(serving(PLANNED, &[]).err().unwrap().full().contains("another variant"), "nothing else runs a plan");
        let split = PLANNED.replace("onnx/decoder_model_merged", "onnx/decoder_model");
        let split = split.replace("trt = { ", "trt = { decoder = \".engine\", ");
        let split = split.replace("[plans.encoder]", "[plans.decoder]\ninputs = {}\noutputs = {}\n[plans.encoder]");
        fs::write(dir.path().join("mine/onnx/decoder_model.engine"), [0; 100]).unwrap();
        let error = serving(&split, &on_tensorrt).err().unwrap();
        assert!(error.full().contains("none of Whisper's"), "{}", error.full());
        assert!(bare("mine", Some("_sm87.engine"), &[dir.path().to_owned()]).err().unwrap().full().contains("plans."));
    }

    #[test]
    fn what_tensorrt_has_built_runs_on_it_and_the_rest_beside_it() {
        let dir = model(&["encoder_model_fp16.onnx", "decoder_model_merged_fp16.onnx"], r#"{"model_type":"whisper"}"#);
        fs::rename(dir.path().join("mine"), dir.path().join("whisper-large-v3-turbo")).unwrap();
        let files = ["generation_config.json", "preprocessor_config.json", "tokenizer.json"];
        files.iter().for_each(|file| fs::write(dir.path().join("whisper-large-v3-turbo").join(file), "{}").unwrap());
        let sets = vec!["tasks.transcribe.provider=tensorrt".to_owned(), "providers.order=[\"cuda\"]".to_owned()];
        let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
        let places = Places {
            models: vec![dir.path().to_owned()],
            // Any file is a library that nobody opens.
            library: vec![dir.path().join("whisper-large-v3-turbo/config.json")],
            own_entries: None,
            hosting: Hosting::Threads,
        };
        let catalogue = Catalogue::load(None).map_err(|error| error.full());
        let stock = Stock { settings: &settings, catalogue: &catalogue, places: &places };
        let serving = stock.transcriber("whisper-large-v3-turbo").unwrap();
        let checked = serving.checked.as_ref().unwrap();
        assert!(!checked.is_whole && checked.graphs["encoder"] == "onnx/encoder_model_fp16.onnx");
        assert_eq!(checked.graphs.len(), 1, "the decoder is not built");
        assert_eq!(serving.appetite.units, 8);

        let BuiltOf::Whisper(spec) = &serving.built_of else { panic!("another family") };
        let roles = checked.graphs.keys().cloned().collect();
        let built = Built { folder: dir.path().join("engine"), roles, beside: Provider::Cuda };
        let built = serving.whisper(spec, Provider::TensorRt, Some(&built), &settings);
        let Some(ProviderOptions::TensorRt(options)) = &built.encoder.provider else { panic!("not on TensorRT") };
        assert_eq!(options.engines, Some(dir.path().join("engine")), "what was checked is what is loaded");
        assert_eq!((built.decoder.provider.as_ref(), built.provider.provider()), (None, Provider::Cuda));

        let meanwhile = serving.whisper(spec, Provider::Cuda, None, &settings);
        assert_eq!((meanwhile.encoder.provider, meanwhile.provider.provider()), (None, Provider::Cuda));
    }

    #[test]
    fn what_is_quantised_to_bytes_runs_on_processors_and_says_so() {
        let files = ["encoder_model_quantized.onnx", "decoder_model_merged_quantized.onnx", "encoder_model_q4.onnx"];
        let dir = model(&files, r#"{"model_type":"whisper"}"#);
        let serving = |variant: &str, order: &str| {
            let sets = [format!("tasks.transcribe.variant={variant}"), format!("providers.order={order}")];
            let settings = load(&Sources { sets: sets.into(), ..Sources::default() }).unwrap().settings;
            // Any file is a library that nobody opens.
            let places = Places {
                models: vec![dir.path().to_owned()],
                library: vec![dir.path().join("mine/config.json")],
                own_entries: None,
                hosting: Hosting::Threads,
            };
            let catalogue = Catalogue::load(None).map_err(|error| error.full());
            Stock { settings: &settings, catalogue: &catalogue, places: &places }.transcriber("mine")
        };
        let both = "[\"cuda\", \"cpu\"]";
        let it = serving("q8", both).unwrap();
        assert_eq!(it.providers, [Provider::Cpu]);
        assert!(it.told.unwrap().contains("mine as q8 is made for processors"));
        let it = serving("q8", "[\"cpu\"]").unwrap();
        assert_eq!((it.providers, it.told), (vec![Provider::Cpu], None), "as it is wanted");
        let it = serving("q4", both).unwrap();
        assert_eq!((it.providers.len(), it.told), (2, None));
        let error = serving("q8", "[\"cuda\"]").err().unwrap();
        assert!(error.kind() == Kind::Unsupported && error.full().contains("fp16 or q4"), "{}", error.full());
    }

    #[test]
    fn a_folder_of_another_family_is_refused() {
        for config in [r#"{"model_type":"qwen2"}"#, "{}", "[]"] {
            let dir = model(&["encoder_model.onnx"], config);
            let error = bare("mine", None, &[dir.path().to_owned()]).err().unwrap();
            assert!(error.full().contains("Whisper's family"), "{}", error.full());
        }
        let dir = model(&[], &" ".repeat(MAX_CONFIG_BYTES as usize + 1));
        assert!(bare("mine", None, &[dir.path().to_owned()]).err().unwrap().full().contains("too large"));
        let dir = model(&[], "no json");
        assert!(bare("mine", None, &[dir.path().to_owned()]).err().unwrap().full().contains("config.json"));
    }

    #[test]
    fn a_model_of_the_catalogue_that_is_not_here_says_how_to_get_it() {
        let catalogue = Catalogue::load(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = listed(catalogue.require("whisper-tiny").unwrap(), Some("q8"), &[dir.path().to_owned()]);
        assert!(error.err().unwrap().full().contains("vigia models pull whisper-tiny --variant q8"));
        let half = dir.path().join("whisper-tiny/onnx");
        fs::create_dir_all(&half).unwrap();
        for file in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"] {
            fs::write(dir.path().join("whisper-tiny").join(file), "{}").unwrap();
        }
        ["encoder_model", "decoder_model_merged"]
            .iter()
            .for_each(|it| fs::write(half.join(format!("{it}.onnx")), "x").unwrap());
        let places = [dir.path().to_owned()];
        assert_eq!(listed(catalogue.require("whisper-tiny").unwrap(), None, &places).unwrap().variant, "fp32");
        let error = listed(catalogue.require("whisper-tiny").unwrap(), Some("q8"), &places).err().unwrap();
        assert!(error.full().contains("the variant q8 of whisper-tiny is not installed"), "{}", error.full());
        assert!(listed(catalogue.require("whisper-tiny").unwrap(), Some("q9"), &places).is_err());
        let error = listed(catalogue.require("kokoro-82m").unwrap(), None, &[dir.path().to_owned()]);
        assert!(error.err().unwrap().full().contains("Whisper's family"));
    }
}
