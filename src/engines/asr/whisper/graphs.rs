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
//! that each weight is in memory once. A split export is treated alike. Where ONNX Runtime refuses what was made of a file,
//! the file is opened as it is published, and that is said.

use std::path::Path;

use crate::{
    base::{Error, Kind, Result},
    engines::asr::whisper::{
        files::{ModelFiles, wrong},
        spec::WhisperSpec,
    },
    runtime::{
        Graph, Port, ProviderOptions, Runtime, Tensor, Wanted,
        onnx::{self, Model},
    },
};

const IDS: &str = "input_ids";
const HIDDEN: &str = "encoder_hidden_states";

/// Features in, what the decoder looks at out.
pub(super) struct Encoder {
    graph: Graph,
    input: Port,
    wanted: Wanted,
    /// Why its graph is not changed, where it was to be.
    pub(super) unchanged: Option<String>,
}

impl Encoder {
    pub(super) fn open(spec: &WhisperSpec, runtime: &Runtime, files: &ModelFiles) -> Result<Encoder> {
        let name = "encoder_model";
        let changed = spec.read(&spec.encoder, name).and_then(|model| {
            let model = model.map(|model| for_processor(model, spec, files)).transpose()?;
            model.map(|model| spec.open_changed(runtime, &spec.encoder, &model, true)).transpose()
        });
        let (graph, refused) = match changed {
            Ok(Some(graph)) => (graph, None),
            Ok(None) => (spec.open(runtime, &spec.encoder, name, true)?, None),
            // As published it takes more.
            Err(why) if why.kind() == Kind::OverBudget => return Err(why),
            // What is wrong with the file itself is said by this.
            Err(why) => (spec.open(runtime, &spec.encoder, name, true)?, Some(why)),
        };
        let unchanged = refused.map(|why| spec.unchanged(&spec.encoder, name, &why));
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
        Ok(Encoder { input: input.clone(), wanted, graph, unchanged })
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
    /// Why its graphs are not changed, where they were to be.
    pub(super) unchanged: Option<String>,
}

/// What the graph of later steps gives; for the speech it would give something empty.
fn of_speech(name: &str) -> bool {
    name.starts_with("present.") && name.contains(".encoder.")
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
            let refused = match DecoderGraphs::apart(spec, runtime, files, merged) {
                Ok(Some(graphs)) => return Ok(graphs),
                Ok(None) => None,
                Err(why) if why.kind() == Kind::OverBudget => return Err(why),
                Err(why) => Some(why),
            };
            let first = open(merged)?;
            if first.names.own_past.is_empty() {
                return Err(wrong(&spec.dir, "its merged decoder takes no keys and values"));
            }
            let unchanged = refused.map(|why| spec.unchanged(&spec.decoder, merged, &why));
            return Ok(DecoderGraphs { speech: None, first, later: None, unchanged });
        }
        let refused = match DecoderGraphs::joined(spec, runtime, files, split, with_past) {
            Ok(Some(graphs)) => return Ok(graphs),
            Ok(None) => None,
            Err(why) if why.kind() == Kind::OverBudget => return Err(why),
            Err(why) => Some(why),
        };
        let (first, later) = (open(split)?, open(with_past)?);
        if later.names.own_past.is_empty() || later.names.hidden.is_none() && later.names.cross_past.is_empty() {
            return Err(wrong(&spec.dir, "its decoder_with_past takes no keys and values"));
        }
        if first.names.cross_count == 0 && !later.names.cross_past.is_empty() {
            return Err(wrong(&spec.dir, "its first decoder does not give the keys and values that the second takes"));
        }
        let unchanged = refused.map(|why| spec.unchanged(&spec.decoder, split, &why));
        Ok(DecoderGraphs { speech: None, first, later: Some(later), unchanged })
    }

    /// Of the two graphs of a split export the second reads prompts too, and the first only makes the keys and values of
    /// the speech; None where the second cannot.
    fn joined(
        spec: &WhisperSpec,
        runtime: &Runtime,
        files: &ModelFiles,
        split: &str,
        with_past: &str,
    ) -> Result<Option<DecoderGraphs>> {
        let (first, later) = (spec.read(&spec.decoder, split)?, spec.read(&spec.decoder, with_past)?);
        let (Some(first), Some(later)) = (first, later) else { return Ok(None) };
        let speech = first.with_outputs(of_speech).ask_for_batch(HIDDEN);
        let reads_prompts = later.hides_what_follows(IDS, &own_keys(files), "past_key_values.");
        if !reads_prompts || !speech.inputs().eq([HIDDEN]) {
            return Ok(None);
        }
        let later = DecoderGraph::open(spec.open_changed(runtime, &spec.decoder, &later, false)?, &spec.dir, files)?;
        if later.names.own_past.is_empty() || later.names.cross_past.is_empty() {
            return Ok(None);
        }
        let speech =
            SpeechGraph::open(spec.open_changed(runtime, &spec.decoder, &speech, true)?, &later.names, &spec.dir)?;
        Ok(Some(DecoderGraphs { speech: Some(speech), first: later, later: None, unchanged: None }))
    }

    /// A merged graph taken apart; None where it does not choose, or not in a way that is known.
    fn apart(spec: &WhisperSpec, runtime: &Runtime, files: &ModelFiles, merged: &str) -> Result<Option<DecoderGraphs>> {
        const SWITCH: &str = "use_cache_branch";
        let Some(model) = spec.read(&spec.decoder, merged)? else { return Ok(None) };
        // What later steps give for the speech is empty.
        let Some(later) = model.branch(SWITCH, true, |name| !of_speech(name)) else { return Ok(None) };
        let reads_prompts = later.hides_what_follows(IDS, &own_keys(files), "past_key_values.");
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
            (Some(first), _) => {
                Some(DecoderGraphs { speech: None, first: open(&first)?, later: Some(later), unchanged: None })
            }
            (None, Some(speech)) => {
                let graph = spec.open_changed(runtime, &spec.decoder, &speech, true)?;
                let speech = SpeechGraph::open(graph, &later.names, &spec.dir)?;
                Some(DecoderGraphs { speech: Some(speech), first: later, later: None, unchanged: None })
            }
            (None, None) => None,
        })
    }

    pub(super) fn of_later_steps(&mut self) -> &mut DecoderGraph {
        self.later.as_mut().unwrap_or(&mut self.first)
    }
}

/// Outputs with the keys of all tokens so far, by layer.
fn own_keys(files: &ModelFiles) -> Vec<String> {
    (0..files.decoder_layers).map(|layer| format!("present.{layer}.decoder.key")).collect()
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
    use std::{
        ffi::OsStr,
        fs,
        os::unix::{ffi::OsStrExt, fs::symlink},
    };

    use super::*;
    use crate::{
        engines::{
            Cancel, TranscribeAsk, Transcriber,
            asr::whisper::{
                Whisper,
                spec::{GraphFile, PlanPlace},
            },
        },
        flow::Pcm,
        runtime::{Provider, Signature, for_tests},
        settings::{DEFAULTS, Settings},
    };

    /// The small model of the fixtures, with those of its graphs alone that are named.
    fn fixture(dir: &Path, graphs: &[&str]) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper-tiny");
        fs::create_dir_all(dir.join("onnx")).unwrap();
        for file in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"] {
            symlink(from.join(file), dir.join(file)).unwrap();
        }
        for graph in graphs {
            fs::copy(from.join("onnx").join(graph), dir.join("onnx").join(graph)).unwrap();
        }
    }

    /// What it says of a rising tone, and of itself.
    fn heard(dir: &Path, library: &Path) -> (Vec<u32>, Option<String>) {
        let mut whisper = Whisper::open(&WhisperSpec::of(dir, library, 1)).unwrap();
        let tone: Vec<f32> = (0..48_000).map(|at| (at as f32 * at as f32 * 1e-5).sin() * 0.5).collect();
        let ask = TranscribeAsk { prompt: Some("Hola Ana".into()), ..TranscribeAsk::of(Pcm::from(tone), "es") };
        let texts = whisper.transcribe(&ask, &mut |_| (), &Cancel::default()).unwrap();
        (texts.into_iter().flat_map(|text| text.tokens).collect(), whisper.note())
    }

    const MERGED: [&str; 2] = ["encoder_model.onnx", "decoder_model_merged.onnx"];
    const SPLIT: [&str; 3] = ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"];

    #[test]
    fn graphs_that_cannot_be_changed_are_used_as_published_and_that_is_said() {
        let Some(library) = for_tests() else { return };
        let dir = tempfile::tempdir().unwrap();
        for (name, graphs) in [("merged", &MERGED[..]), ("split", &SPLIT[..])] {
            let plain = dir.path().join(name);
            fixture(&plain, graphs);
            let (tokens, note) = heard(&plain, &library);
            assert!(!tokens.is_empty() && note.is_none(), "{name}: {note:?}");
            // ONNX Runtime is told by text where weights are, so a folder without a name in text is refused.
            let nameless = dir.path().join(OsStr::from_bytes(&[name.as_bytes(), b"\xFF"].concat()));
            fixture(&nameless, graphs);
            let (same, note) = heard(&nameless, &library);
            assert_eq!(same, tokens, "{name}");
            let note = note.unwrap();
            assert!(note.contains("encoder_model.onnx is used as it is published"), "{note}");
            assert!(note.contains(&format!("{} is used as", graphs[1])), "{note}");
        }
    }

    fn plan(suffix: &str) -> GraphFile {
        GraphFile { suffix: suffix.to_owned(), plan: Some(Signature::default()), ..GraphFile::default() }
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
        let Some(library) = for_tests() else { return };
        let dir = tempfile::tempdir().unwrap();
        let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper-tiny");
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
