//! The graph files of a Whisper model: which there are, how they are joined, and that they belong to its config.
//!
//! | export | files | how a step after the first is told |
//! |---|---|---|
//! | merged | `decoder_model_merged` | `use_cache_branch`, where the graph has it |
//! | split | `decoder_model`, `decoder_with_past_model` | another graph |
//!
//! A graph may be a serialized plan of TensorRT instead (`encoder_model_sm87.engine`), where the catalogue says what goes
//! in and comes out.
//!
//! A merged graph that chooses is taken apart: its branches become graphs of their own. Where the one of later steps can
//! read several tokens at once it reads prompts too, and of the other only the keys and values of the speech are left, so
//! that each weight is in memory once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::asr::whisper::files::{ModelFiles, wrong},
    runtime::{
        Graph, GraphOptions, Port, ProviderOptions, Runtime, Signature, Tensor, Wanted,
        onnx::{self, Model},
        open_plan,
    },
};

const IDS: &str = "input_ids";
const HIDDEN: &str = "encoder_hidden_states";

/// Which model to open, and how. Plain data: it crosses to the process of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhisperSpec {
    /// With config.json, tokenizer.json and the graphs.
    pub dir: PathBuf,
    /// ONNX Runtime.
    pub library: PathBuf,
    pub encoder: GraphFile,
    pub decoder: GraphFile,
    /// Of the graphs that are no plans and have none of their own.
    pub provider: ProviderOptions,
    pub plans: PlanPlace,
    pub threads: usize,
    /// Pieces decoded together.
    pub batch: usize,
}

/// One graph of an export: `onnx/decoder_model_merged_q4.onnx` is of the folder `onnx` and has the suffix `_q4`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphFile {
    /// Within the model's folder.
    pub folder: String,
    pub suffix: String,
    /// What goes into a plan and comes out of it; its suffix is the whole ending of its file. None: it is ONNX.
    pub plan: Option<Signature>,
    /// Where it runs, if that is not where the others do.
    pub provider: Option<ProviderOptions>,
}

impl Default for GraphFile {
    fn default() -> GraphFile {
        GraphFile { folder: "onnx".to_owned(), suffix: String::new(), plan: None, provider: None }
    }
}

impl GraphFile {
    /// Within the model's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        let ending = if self.plan.is_some() { "" } else { ".onnx" };
        Path::new(&self.folder).join(format!("{name}{}{ending}", self.suffix))
    }
}

/// Where plans run, and where what they need beside them is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanPlace {
    pub provider: ProviderOptions,
    pub folder: PathBuf,
}

impl WhisperSpec {
    /// The unquantised graphs of a folder, as they are published.
    pub fn of(dir: &Path, library: &Path, threads: usize) -> WhisperSpec {
        WhisperSpec {
            dir: dir.to_owned(),
            library: library.to_owned(),
            encoder: GraphFile::default(),
            decoder: GraphFile::default(),
            provider: ProviderOptions::Cpu,
            plans: PlanPlace::default(),
            threads,
            batch: 8,
        }
    }

    fn path(&self, file: &GraphFile, name: &str) -> PathBuf {
        self.dir.join(file.path(name))
    }

    fn provider_of<'a>(&'a self, file: &'a GraphFile) -> &'a ProviderOptions {
        file.provider.as_ref().unwrap_or(&self.provider)
    }

    fn options(&self, provider: &ProviderOptions, same_shapes: bool) -> GraphOptions {
        GraphOptions {
            threads: self.threads,
            provider: provider.clone(),
            spinning: self.threads > 1,
            same_shapes,
            mapped: false,
        }
    }

    fn open(&self, runtime: &Runtime, file: &GraphFile, name: &str, same_shapes: bool) -> Result<Graph> {
        let path = self.path(file, name);
        match &file.plan {
            Some(signature) => {
                let options = self.options(&self.plans.provider, same_shapes);
                open_plan(runtime, &path, signature, &options, &self.plans.folder)
            }
            None => Graph::open(runtime, &path, &self.options(self.provider_of(file), same_shapes)),
        }
    }

    fn open_changed(&self, runtime: &Runtime, file: &GraphFile, model: &Model, same_shapes: bool) -> Result<Graph> {
        Graph::open_changed(runtime, model, &self.options(self.provider_of(file), same_shapes))
    }

    /// The graph as data, where it can be changed. TensorRT keeps engines by the file that they are made of.
    fn read(&self, file: &GraphFile, name: &str) -> Option<Model> {
        let path = self.path(file, name);
        let provider = self.provider_of(file);
        let changes = matches!(provider, ProviderOptions::Cpu | ProviderOptions::Cuda(_)) && file.plan.is_none();
        if !changes || !path.is_file() {
            return None;
        }
        // ONNX Runtime says better what is wrong with a file, if anything is.
        Model::read(&path).inspect_err(|error| log::info!("opened as it is: {}", error.full())).ok()
    }
}

/// Features in, what the decoder looks at out.
pub(super) struct Encoder {
    graph: Graph,
    input: Port,
    wanted: Wanted,
}

impl Encoder {
    pub(super) fn open(spec: &WhisperSpec, runtime: &Runtime, files: &ModelFiles) -> Result<Encoder> {
        let name = "encoder_model";
        let graph = match spec.read(&spec.encoder, name) {
            Some(model) => spec.open_changed(runtime, &spec.encoder, &for_processor(model, spec, files)?, true)?,
            None => spec.open(runtime, &spec.encoder, name, true)?,
        };
        let inputs = graph.input_ports()?;
        let outputs = graph.output_ports()?;
        let [input] = &inputs[..] else {
            return Err(wrong(&spec.dir, format!("its encoder has {} inputs instead of one", inputs.len())));
        };
        let output = outputs.iter().find(|port| port.name == "last_hidden_state").or(outputs.first());
        let output = output.ok_or_else(|| wrong(&spec.dir, "its encoder has no output"))?;
        for (axis, size) in [(1, files.mel.bins), (2, files.mel.frames)] {
            expect_size(&spec.dir, input, axis, size)?;
        }
        expect_size(&spec.dir, output, 1, files.encoder_frames)?;
        let wanted = Wanted::new([output.name.as_str()])?;
        Ok(Encoder { input: input.clone(), wanted, graph })
    }

    pub(super) fn run(&mut self, features: &[f32], files: &ModelFiles) -> Result<Tensor> {
        let shape = [1, files.mel.bins, files.mel.frames];
        let input = Tensor::floats(self.input.element, &shape, features)?;
        let mut outputs = self.graph.run_tensors(vec![(&self.input.name, &input)], &self.wanted)?;
        let hidden = outputs.pop().ok_or_else(|| Error::internal("the encoder answered nothing"))?;
        match hidden.shape()[..] {
            [1, frames, _] if frames == files.encoder_frames => Ok(hidden),
            _ => Err(Error::internal(format!("the encoder answered in the shape {:?}", hidden.shape()))),
        }
    }
}

/// An encoder, as this processor runs it best.
fn for_processor(model: Model, spec: &WhisperSpec, files: &ModelFiles) -> Result<Model> {
    if *spec.provider_of(&spec.encoder) != ProviderOptions::Cpu || model.has_halves() {
        return Ok(model);
    }
    let model = match files.encoder_heads {
        Some(heads) => model.attention_at_once(heads),
        None => model,
    };
    if onnx::signed_is_faster() { model.signed() } else { Ok(model) }
}

/// A decoder graph, and what is asked of it.
pub(super) struct DecoderGraph {
    pub(super) graph: Graph,
    pub(super) names: Names,
    /// Layers that tell their attention to the speech.
    pub(super) attentions: Vec<usize>,
    /// Logits, then the decoder's own keys and values, then those of the speech where the graph has them.
    pub(super) start: Wanted,
    /// Logits, then the decoder's own keys and values.
    pub(super) step: Wanted,
    /// The same, then the attention to the speech; where the graph tells it.
    pub(super) step_with_attention: Option<Wanted>,
}

/// The inputs of a decoder graph. Keys and values are in one order everywhere: by layer, the key first.
pub(super) struct Names {
    pub(super) ids: Port,
    pub(super) hidden: Option<Port>,
    pub(super) use_cache: Option<Port>,
    pub(super) cache_position: Option<Port>,
    pub(super) own_past: Vec<Port>,
    pub(super) cross_past: Vec<Port>,
    /// How many keys and values the graph gives back: its own, and those of the speech.
    pub(super) own_count: usize,
    pub(super) cross_count: usize,
}

/// Makes the keys and values of the speech, once for all steps.
pub(super) struct SpeechGraph {
    pub(super) graph: Graph,
    pub(super) input: Port,
    pub(super) wanted: Wanted,
}

/// One graph, or one for the first step and one for the later ones.
pub(super) struct DecoderGraphs {
    /// Where `first` takes the keys and values of the speech instead of making them.
    pub(super) speech: Option<SpeechGraph>,
    pub(super) first: DecoderGraph,
    pub(super) later: Option<DecoderGraph>,
}

impl DecoderGraphs {
    pub(super) fn open(spec: &WhisperSpec, runtime: &Runtime, files: &ModelFiles) -> Result<DecoderGraphs> {
        let (merged, split, with_past) = ("decoder_model_merged", "decoder_model", "decoder_with_past_model");
        let open = |name: &str| {
            let graph = spec.open(runtime, &spec.decoder, name, false)?;
            DecoderGraph::open(graph, &spec.dir, files)
        };
        let is_there = |name: &str| spec.path(&spec.decoder, name).is_file();
        if is_there(merged) || !(is_there(split) && is_there(with_past)) {
            if let Some(graphs) = DecoderGraphs::apart(spec, runtime, files, merged)? {
                return Ok(graphs);
            }
            let first = open(merged)?;
            if first.names.own_past.is_empty() {
                return Err(wrong(&spec.dir, "its merged decoder takes no keys and values"));
            }
            return Ok(DecoderGraphs { speech: None, first, later: None });
        }
        let (first, later) = (open(split)?, open(with_past)?);
        if later.names.own_past.is_empty() || later.names.hidden.is_none() && later.names.cross_past.is_empty() {
            return Err(wrong(&spec.dir, "its decoder_with_past takes no keys and values"));
        }
        if first.names.cross_count == 0 && !later.names.cross_past.is_empty() {
            return Err(wrong(&spec.dir, "its first decoder does not give the keys and values that the second takes"));
        }
        Ok(DecoderGraphs { speech: None, first, later: Some(later) })
    }

    /// A merged graph taken apart; None where it does not choose, or not in a way that is known.
    fn apart(spec: &WhisperSpec, runtime: &Runtime, files: &ModelFiles, merged: &str) -> Result<Option<DecoderGraphs>> {
        const SWITCH: &str = "use_cache_branch";
        let of_speech = |name: &str| name.starts_with("present.") && name.contains(".encoder.");
        let Some(model) = spec.read(&spec.decoder, merged) else { return Ok(None) };
        // What later steps give for the speech is empty.
        let Some(later) = model.branch(SWITCH, true, |name| !of_speech(name)) else { return Ok(None) };
        let keys: Vec<String> = (0..files.decoder_layers).map(|layer| format!("present.{layer}.decoder.key")).collect();
        let reads_prompts = later.hides_what_follows(IDS, &keys, "past_key_values.");
        let speech = model.branch(SWITCH, false, of_speech).map(|speech| speech.ask_for_batch(HIDDEN));
        let speech = speech.filter(|speech| reads_prompts && speech.inputs().eq([HIDDEN]));
        let first = if speech.is_some() { None } else { model.branch(SWITCH, false, |_| true) };
        let open = |model: &Model| {
            DecoderGraph::open(spec.open_changed(runtime, &spec.decoder, model, false)?, &spec.dir, files)
        };
        let later = open(&later)?;
        if later.names.own_past.is_empty() || later.names.cross_past.is_empty() {
            return Err(wrong(&spec.dir, "its merged decoder takes no keys and values"));
        }
        Ok(match (first, speech) {
            (Some(first), _) => Some(DecoderGraphs { speech: None, first: open(&first)?, later: Some(later) }),
            (None, Some(speech)) => {
                let graph = spec.open_changed(runtime, &spec.decoder, &speech, true)?;
                let speech = SpeechGraph::open(graph, &later.names, &spec.dir)?;
                Some(DecoderGraphs { speech: Some(speech), first: later, later: None })
            }
            (None, None) => None,
        })
    }

    pub(super) fn of_later_steps(&mut self) -> &mut DecoderGraph {
        self.later.as_mut().unwrap_or(&mut self.first)
    }
}

impl SpeechGraph {
    fn open(graph: Graph, names: &Names, dir: &Path) -> Result<SpeechGraph> {
        let inputs = graph.input_ports()?;
        let [input] = &inputs[..] else {
            return Err(wrong(dir, "its decoder makes the keys and values of the speech out of more than the speech"));
        };
        // In the order in which they are taken.
        let presents: Vec<String> =
            names.cross_past.iter().map(|port| port.name.replacen("past_key_values", "present", 1)).collect();
        let wanted = Wanted::new(presents.iter().map(String::as_str))?;
        Ok(SpeechGraph { input: input.clone(), wanted, graph })
    }

    pub(super) fn run(&mut self, hidden: &Tensor) -> Result<Vec<Tensor>> {
        self.graph.run_tensors(vec![(&self.input.name, hidden)], &self.wanted)
    }
}

impl DecoderGraph {
    fn open(graph: Graph, dir: &Path, files: &ModelFiles) -> Result<DecoderGraph> {
        let (inputs, outputs) = (graph.input_ports()?, graph.output_ports()?);
        let input = |name: &str| inputs.iter().find(|port| port.name == name).cloned();
        let has_output = |name: &str| outputs.iter().any(|port| port.name == name);
        let parts = |side: &str| -> Vec<String> {
            let layer = |layer| [format!("{layer}.{side}.key"), format!("{layer}.{side}.value")];
            (0..files.decoder_layers).flat_map(layer).collect()
        };
        let past = |side: &str| -> Result<Vec<Port>> {
            let names = parts(side).into_iter().map(|part| format!("past_key_values.{part}"));
            let ports: Vec<Port> = names.filter_map(|name| input(&name)).collect();
            for port in &ports {
                expect_size(dir, port, 1, files.decoder_heads)?;
                expect_size(dir, port, 3, files.head_dim)?;
            }
            match ports.len() {
                0 => Ok(ports),
                all if all == 2 * files.decoder_layers => Ok(ports),
                some => Err(wrong(dir, format!("its decoder takes {some} keys and values of the {side}"))),
            }
        };
        let present = |side: &str| -> Result<Option<Vec<String>>> {
            let names: Vec<String> = parts(side).into_iter().map(|part| format!("present.{part}")).collect();
            match names.iter().filter(|name| has_output(name)).count() {
                0 => Ok(None),
                all if all == names.len() => Ok(Some(names)),
                some => Err(wrong(dir, format!("its decoder gives {some} keys and values of the {side}"))),
            }
        };
        let (own_past, cross_past) = (past("decoder")?, past("encoder")?);
        let own = present("decoder")?.ok_or_else(|| wrong(dir, "its decoder gives no keys and values"))?;
        let cross = present("encoder")?;
        let ids = input(IDS).ok_or_else(|| wrong(dir, "its decoder has no input_ids"))?;
        let named = [input(HIDDEN), input("use_cache_branch"), input("cache_position")];
        let known = 1 + named.iter().flatten().count() + own_past.len() + cross_past.len();
        if known != inputs.len() {
            let names: Vec<&str> = inputs.iter().map(|port| port.name.as_str()).collect();
            return Err(wrong(dir, format!("its decoder has inputs that are not known here: {}", names.join(", "))));
        }
        let [hidden, use_cache, cache_position] = named;
        let logits = outputs.iter().find(|port| port.name == "logits");
        expect_size(dir, logits.ok_or_else(|| wrong(dir, "its decoder has no logits"))?, 2, files.vocabulary)?;

        // Layers whose attention is of use, where the graph tells it.
        let mut attentions: Vec<usize> = files.rules.alignment_heads.iter().map(|(layer, _)| *layer).collect();
        attentions.sort_unstable();
        attentions.dedup();
        let mut attention_names: Vec<String> =
            attentions.iter().map(|layer| format!("cross_attentions.{layer}")).collect();
        if !attention_names.iter().all(|name| has_output(name)) {
            attentions.clear();
            attention_names.clear();
        }
        let cross = cross.unwrap_or_default();
        let mut names: Vec<&str> = ["logits"].into_iter().chain(own.iter().map(String::as_str)).collect();
        let step = Wanted::new(names.iter().copied())?;
        let with_attention = names.iter().copied().chain(attention_names.iter().map(String::as_str));
        let step_with_attention = (!attentions.is_empty()).then(|| Wanted::new(with_attention)).transpose()?;
        names.extend(cross.iter().map(String::as_str));
        let start = Wanted::new(names)?;
        let (own_count, cross_count) = (own.len(), cross.len());
        Ok(DecoderGraph {
            names: Names { ids, hidden, use_cache, cache_position, own_past, cross_past, own_count, cross_count },
            attentions,
            start,
            step,
            step_with_attention,
            graph,
        })
    }
}

fn expect_size(dir: &Path, port: &Port, axis: usize, size: usize) -> Result<()> {
    match port.shape.get(axis) {
        Some(Some(has)) if *has != size => {
            Err(wrong(dir, format!("{} has {has} where its config says {size}", port.name)))
        }
        Some(_) => Ok(()),
        None => Err(wrong(dir, format!("{} has {} dimensions only", port.name, port.shape.len()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        base::Kind,
        engines::asr::whisper::Whisper,
        runtime::{Provider, candidates, find},
        settings::{DEFAULTS, Settings},
    };

    fn plan(suffix: &str) -> GraphFile {
        GraphFile { suffix: suffix.to_owned(), plan: Some(Signature::default()), ..GraphFile::default() }
    }

    #[test]
    fn a_plan_is_named_by_its_whole_ending() {
        assert_eq!(GraphFile::default().path("encoder_model"), Path::new("onnx/encoder_model.onnx"));
        assert_eq!(plan("_sm87.engine").path("encoder_model"), Path::new("onnx/encoder_model_sm87.engine"));
    }

    /// A header of TensorRT 10.3.0 and nothing behind it.
    fn header() -> Vec<u8> {
        let mut header = vec![0; 28];
        header[..4].copy_from_slice(b"ftrt");
        header[24..].copy_from_slice(&[10, 3, 0, 0]);
        header
    }

    #[test]
    fn an_engine_takes_plans_through_tensorrt_alone_and_says_what_they_lack() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Ok(library) = find("", &candidates(&root.join("target/debug/vigia"), root)) else {
            println!("skipped: ONNX Runtime was not found");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let shapes = root.join("tests/data/whisper-tiny");
        for file in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"] {
            fs::copy(shapes.join(file), dir.path().join(file)).unwrap();
        }
        fs::create_dir(dir.path().join("onnx")).unwrap();
        let file = dir.path().join("onnx/encoder_model_mine.engine");
        let settings: Settings = toml::from_str(DEFAULTS).unwrap();
        let open = |bytes: &[u8], provider| {
            fs::write(&file, bytes).unwrap();
            let provider = ProviderOptions::new(provider, &settings.providers, None);
            let plans = PlanPlace { provider, folder: dir.path().join("plans") };
            let spec = WhisperSpec { encoder: plan("_mine.engine"), plans, ..WhisperSpec::of(dir.path(), &library, 1) };
            Whisper::open(&spec).err().unwrap()
        };
        if cfg!(not(feature = "tensorrt")) {
            let error = open(&header(), Provider::TensorRt);
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.full().contains("--features tensorrt"), "{}", error.full());
            return;
        }
        let error = open(&header(), Provider::Cpu);
        assert!(error.full().contains("cannot run on `cpu`"), "{}", error.full());
        let error = open(b"no plan at all, but some thirty bytes", Provider::TensorRt);
        assert!(error.full().contains("no plan of TensorRT"), "{}", error.full());
        // No driver here; or a driver and no TensorRT, or another one than wrote it.
        let error = open(&header(), Provider::TensorRt);
        let said = ["NVIDIA driver", "no TensorRT provider", "was built with TensorRT 10.3.0"];
        assert!(said.iter().any(|words| error.message().contains(words)), "{}", error.full());
        assert!(error.hint_text().is_some() && !dir.path().join("plans").exists(), "{}", error.full());
    }
}
