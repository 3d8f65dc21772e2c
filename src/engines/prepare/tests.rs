//! Engines with a builder that only pretends.

use std::{fs, sync::mpsc, time::Duration};

use super::*;
use crate::{
    models::catalogue::Catalogue,
    runtime::{
        for_tests,
        provider::{ConvSearch, CudaOptions, TensorRtOptions},
    },
    settings::Provider::{Cpu, Cuda, TensorRt},
};

const LIMIT: Duration = Duration::from_secs(10);

/// Answers as it is told to, and waits where a test wants to look.
struct Fake {
    recorded: f32,
    answered: f32,
    build: Option<Build>,
}

type Build = Box<dyn FnMut(&Path, &mut dyn FnMut(f32), &Cancel) -> Result<()> + Send>;

fn answers(number: f32) -> GraphAnswers {
    [("model".to_owned(), [("y".to_owned(), vec![number])].into())].into()
}

impl Builder for Fake {
    fn record(&mut self, _: &Cancel) -> Result<GraphAnswers> {
        Ok(answers(self.recorded))
    }

    fn build(&mut self, folder: &Path, progress: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<()> {
        match &mut self.build {
            Some(build) => build(folder, progress, cancel),
            None => write_engine(folder),
        }
    }

    fn answer(&mut self, folder: &Path, _: &Cancel) -> Result<GraphAnswers> {
        assert!(folder.join("m.engine").is_file());
        Ok(answers(self.answered))
    }
}

fn write_engine(folder: &Path) -> Result<()> {
    fs::write(folder.join("m.engine"), "engine").map_err(|error| Error::internal("full").cause(error))
}

fn fake(answered: f32) -> Box<Fake> {
    Box::new(Fake { recorded: 1.0, answered, build: None })
}

fn building(build: impl FnMut(&Path, &mut dyn FnMut(f32), &Cancel) -> Result<()> + Send + 'static) -> Box<Fake> {
    Box::new(Fake { build: Some(Box::new(build)), ..*fake(1.0) })
}

fn key() -> EngineKey {
    let rest = CudaOptions { memory_limit_bytes: None, conv_search: ConvSearch::Heuristic, tf32: false };
    let options = TensorRtOptions { fp16: true, int8: false, workspace_bytes: None, engines: None, rest };
    EngineKey {
        model: "m".to_owned(),
        variant: "fp16".to_owned(),
        digest: "d1".to_owned(),
        onnxruntime: "1.23.2".to_owned(),
        tensorrt: "10.3.0".to_owned(),
        gpu: "Orin 8.7".to_owned(),
        options,
    }
}

fn check() -> Check {
    let graphs = [("model".to_owned(), [("x".to_owned(), "f32 1".parse().unwrap())].into())].into();
    Check { seed: 7, tolerance: 0.02, graphs }
}

/// Builds to the end and says how it ended.
fn build(engines: &Engines, key: &EngineKey, builder: Box<dyn Builder>) -> EngineState {
    let (sender, ended) = mpsc::channel();
    let told = move |state: &EngineState| sender.send(state.clone()).unwrap();
    assert!(engines.start(key.clone(), check(), builder, told).unwrap(), "{:?}", engines.state(key));
    let state = ended.recv_timeout(LIMIT).unwrap();
    assert_eq!(engines.state(key), state);
    state
}

fn failed(state: EngineState, word: &str) {
    assert!(matches!(&state, EngineState::Failed { reason } if reason.contains(word)), "{word}: {state:?}");
}

fn engines() -> (tempfile::TempDir, Engines) {
    let dir = tempfile::tempdir().unwrap();
    let engines = Engines::new(dir.path().join("engines"));
    (dir, engines)
}

/// As after a restart.
fn anew(dir: &tempfile::TempDir) -> Engines {
    Engines::new(dir.path().join("engines"))
}

const ORDER: [Provider; 2] = [TensorRt, Cuda];

#[test]
fn every_state_has_its_provider_and_its_reason() {
    let building = EngineState::Building { progress: 0.5 };
    let quarantined = EngineState::Quarantined { reason: "off".to_owned() };
    let failed = EngineState::Failed { reason: "no memory".to_owned() };
    for (order, state, has_check, serve, build, word) in [
        (&[Cuda, Cpu][..], &EngineState::Absent, true, Some(Cuda), false, ""),
        (&[Cpu], &EngineState::Ready, true, Some(Cpu), false, ""),
        (&ORDER, &EngineState::Ready, true, Some(TensorRt), false, ""),
        (&ORDER, &EngineState::Absent, true, Some(Cuda), true, "about to be built; cuda serves"),
        (&ORDER, &building, true, Some(Cuda), false, "being built (50 %); cuda serves"),
        (&ORDER, &quarantined, true, Some(Cuda), false, "quarantined: off"),
        (&ORDER, &failed, true, Some(Cuda), false, "could not be built: no memory"),
        (&ORDER, &EngineState::Ready, false, Some(Cuda), false, "no check"),
        (&[TensorRt], &EngineState::Absent, true, None, true, "nothing else may serve"),
        (&[], &EngineState::Absent, true, None, false, ""),
    ] {
        let decision = decide(order, state, has_check);
        assert_eq!((decision.serve, decision.build), (serve, build), "{order:?} {state:?}");
        assert_eq!(decision.told.is_some(), !word.is_empty(), "{decision:?}");
        assert!(decision.told.unwrap_or_default().contains(word), "{word}");
    }
}

#[test]
fn the_next_provider_serves_until_the_engine_is_there() {
    let (dir, engines) = engines();
    let choice = engines.choose(Ok(&key()), &ORDER, true).unwrap();
    assert!(choice.build && choice.provider == Cuda && choice.engines.is_none(), "{choice:?}");

    let (told, half_way) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let slow = building(move |folder, progress, _| {
        progress(0.5);
        told.send(()).unwrap();
        may_go_on.recv_timeout(LIMIT).unwrap();
        write_engine(folder)
    });
    let (sender, ended) = mpsc::channel();
    assert!(engines.start(key(), check(), slow, move |state| sender.send(state.clone()).unwrap()).unwrap());
    half_way.recv_timeout(LIMIT).unwrap();
    assert_eq!(engines.state(&key()), EngineState::Building { progress: 0.5 });
    assert!(!engines.start(key(), check(), fake(1.0), |_| ()).unwrap(), "one is enough");
    let choice = engines.choose(Ok(&key()), &ORDER, true).unwrap();
    assert!(!choice.build && choice.told.unwrap().contains("50 %"));
    go_on.send(()).unwrap();
    assert_eq!(ended.recv_timeout(LIMIT).unwrap(), EngineState::Ready);

    for engines in [engines, anew(&dir)] {
        let choice = engines.choose(Ok(&key()), &ORDER, true).unwrap();
        assert_eq!((choice.provider, choice.build, choice.told), (TensorRt, false, None));
        assert!(choice.engines.unwrap().join("m.engine").is_file());
    }
}

#[test]
fn an_engine_that_answers_otherwise_is_quarantined_until_something_changes() {
    let (dir, engines) = engines();
    build(&engines, &key(), fake(1.1));
    for engines in [engines, anew(&dir)] {
        let EngineState::Quarantined { reason } = engines.state(&key()) else { panic!("{:?}", engines.state(&key())) };
        assert!(reason.contains("1.1 instead of 1"), "{reason}");
        let choice = engines.choose(Ok(&key()), &ORDER, true).unwrap();
        assert!(choice.provider == Cuda && !choice.build, "{choice:?}");
        assert!(!engines.start(key(), check(), fake(1.0), |_| ()).unwrap());
        let health = serde_json::to_value(engines.statuses()).unwrap();
        assert_eq!((&health[0]["model"], &health[0]["state"]), (&"m".into(), &"quarantined".into()));
    }
    let newer = EngineKey { tensorrt: "10.9.0".to_owned(), ..key() };
    assert!(anew(&dir).choose(Ok(&newer), &ORDER, true).unwrap().build, "another version is another try");
}

#[test]
fn what_could_not_be_built_is_told_and_tried_again_after_a_restart() {
    let (dir, engines) = engines();
    let no_memory = building(|_, _, _| Err(Error::new(Kind::OverBudget, "no memory")));
    failed(build(&engines, &key(), no_memory), "no memory");
    assert!(engines.choose(Ok(&key()), &ORDER, true).unwrap().told.unwrap().contains("no memory"));

    failed(build(&anew(&dir), &key(), building(|_, _, _| panic!("a bug"))), "panicked");
    failed(build(&anew(&dir), &key(), building(|_, _, _| Ok(()))), "no engine was written");
    let engines = anew(&dir);
    engines.close();
    failed(build(&engines, &key(), fake(1.0)), "given up");
    assert_eq!(build(&anew(&dir), &key(), fake(1.0)), EngineState::Ready);
}

#[test]
fn without_tensorrt_here_the_next_provider_serves_and_says_why() {
    let (_dir, engines) = engines();
    let error = Error::unavailable("libnvinfer.so.10 is missing");
    let choice = engines.choose(Err(&error), &ORDER, true).unwrap();
    assert!(choice.provider == Cuda && !choice.build && choice.told.unwrap().contains("libnvinfer.so.10 is missing"));
    let error = engines.choose(Err(&error), &[TensorRt], true).unwrap_err();
    assert!(
        error.full().contains("libnvinfer.so.10") && error.hint_text().unwrap().contains("cuda"),
        "{}",
        error.full()
    );
}

#[test]
fn the_real_builder_names_what_this_library_lacks() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia");
    let library = checkout.join("runtime/libonnxruntime.so");
    let graph = checkout.join("state/models/silero-vad/silero_vad.onnx");
    if !library.is_file() || !graph.is_file() {
        println!("SKIPPED: {} or {} is not there", library.display(), graph.display());
        return;
    }
    let inputs = [("input", "f32 1x576"), ("state", "f32 2x1x128"), ("sr", "i64 = 16000")];
    let inputs = inputs.map(|(name, spec)| (name.to_owned(), spec.parse().unwrap())).into();
    let builder = OnnxBuilder {
        library,
        graphs: [("model".to_owned(), graph)].into(),
        check: Check { graphs: [("model".to_owned(), inputs)].into(), ..check() },
        tensorrt: key().options,
        reference: crate::runtime::ProviderOptions::Cpu,
        threads: 1,
    };
    let (dir, engines) = engines();
    failed(build(&engines, &key(), Box::new(builder)), "no provider `tensorrt`");
    assert!(dir.path().join("engines/m/fp16/check.json").is_file(), "the reference has been recorded before");
}

#[test]
fn a_folder_that_cannot_be_written_is_a_failure_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("engines"), "a file where the folder should be").unwrap();
    failed(build(&anew(&dir), &key(), fake(1.0)), "check.json cannot be written");
    // Only the engine's own folder is in the way.
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("engines/m/fp16");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join(key().id()), "no folder").unwrap();
    failed(build(&anew(&dir), &key(), fake(1.0)), "cannot be made for a TensorRT engine");
    let nothing = Box::new(Fake { recorded: f32::NAN, ..*fake(1.0) });
    let (_dir, engines) = engines();
    failed(build(&engines, &key(), nothing), "not finite");
}

/// What a provider would make of a graph, played by the processor with another file or other options.
struct Pair {
    reference: OnnxBuilder,
    candidate: OnnxBuilder,
}

impl Builder for Pair {
    fn record(&mut self, cancel: &Cancel) -> Result<GraphAnswers> {
        self.reference.record(cancel)
    }

    fn build(&mut self, folder: &Path, _: &mut dyn FnMut(f32), _: &Cancel) -> Result<()> {
        write_engine(folder)
    }

    fn answer(&mut self, _: &Path, cancel: &Cancel) -> Result<GraphAnswers> {
        self.candidate.record(cancel)
    }
}

#[test]
fn whispers_encoder_serves_where_it_answers_as_recorded_and_is_quarantined_where_it_does_not() {
    let Some(library) = for_tests() else { return };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper-tiny");
    let check = Check {
        graphs: Catalogue::load(None).unwrap().require("whisper-large-v3").unwrap().check.clone().unwrap().graphs,
        ..check()
    };
    let builder = |graph: &Path, threads| OnnxBuilder {
        library: library.clone(),
        graphs: [("encoder".to_owned(), graph.to_owned())].into(),
        check: check.clone(),
        tensorrt: key().options,
        reference: crate::runtime::ProviderOptions::Cpu,
        threads,
    };
    let graph = model.join("onnx/encoder_model.onnx");
    // The same in another file, and one whose positions are other numbers.
    let dir = tempfile::tempdir().unwrap();
    let (same, other) = (dir.path().join("same.onnx"), dir.path().join("other.onnx"));
    let mut bytes = fs::read(&graph).unwrap();
    fs::write(&same, &bytes).unwrap();
    bytes[30_000..60_000].iter_mut().for_each(|byte| *byte ^= 0x80);
    fs::write(&other, &bytes).unwrap();

    let (home, engines) = engines();
    let pair = |candidate: &Path| Box::new(Pair { reference: builder(&graph, 1), candidate: builder(candidate, 2) });
    let started = |engines: &Engines, key: &EngineKey, candidate: &Path| {
        let (sender, ended) = mpsc::channel();
        let told = move |state: &EngineState| sender.send(state.clone()).unwrap();
        assert!(engines.start(key.clone(), check.clone(), pair(candidate), told).unwrap());
        ended.recv_timeout(LIMIT).unwrap()
    };
    assert_eq!(started(&engines, &key(), &same), EngineState::Ready);
    assert_eq!(engines.choose(Ok(&key()), &[TensorRt, Cpu], true).unwrap().provider, TensorRt);

    let newer = EngineKey { tensorrt: "10.9.0".to_owned(), ..key() };
    let EngineState::Quarantined { reason } = started(&engines, &newer, &other) else { panic!("it was let through") };
    assert!(reason.starts_with("encoder: last_hidden_state is "), "{reason}");
    let choice = anew(&home).choose(Ok(&newer), &[TensorRt, Cpu], true).unwrap();
    assert!(choice.provider == Cpu && choice.told.unwrap().contains("quarantined: encoder"));
    assert!(engines.statuses().iter().any(|it| matches!(it.state, EngineState::Quarantined { .. })));
}

#[test]
fn whatever_changes_is_another_engine_and_the_old_one_leaves_the_disk() {
    let (dir, engines) = engines();
    build(&engines, &key(), fake(1.0));
    let old = engines.choose(Ok(&key()), &ORDER, true).unwrap().engines.unwrap();
    let mut slower = key();
    slower.options.fp16 = false;
    for other in [
        EngineKey { digest: "d2".to_owned(), ..key() },
        EngineKey { onnxruntime: "1.24.0".to_owned(), ..key() },
        EngineKey { gpu: "Thor 11.0".to_owned(), ..key() },
        slower.clone(),
    ] {
        assert_eq!(anew(&dir).state(&other), EngineState::Absent, "{other:?}");
    }
    let elsewhere = EngineKey { model: "other".to_owned(), ..key() };
    build(&engines, &elsewhere, fake(1.0));
    build(&engines, &slower, fake(1.0));
    assert!(!old.exists() && anew(&dir).state(&elsewhere) == EngineState::Ready);
}

#[test]
fn the_record_outlives_an_engine_and_not_its_model() {
    let (dir, engines) = engines();
    build(&engines, &key(), fake(1.0));
    let newer = EngineKey { tensorrt: "10.9.0".to_owned(), ..key() };
    // The provider that serves has drifted since: what was recorded counts.
    let drifted = || Box::new(Fake { recorded: 2.0, ..*fake(2.0) });
    assert!(matches!(build(&engines, &newer, drifted()), EngineState::Quarantined { .. }));
    let new_weights = EngineKey { digest: "d2".to_owned(), ..newer };
    assert_eq!(build(&anew(&dir), &new_weights, drifted()), EngineState::Ready);
}

#[test]
fn files_that_were_damaged_are_made_anew() {
    let (dir, engines) = engines();
    build(&engines, &key(), fake(1.0));
    let folder = engines.choose(Ok(&key()), &ORDER, true).unwrap().engines.unwrap();
    let record = folder.parent().unwrap().join("check.json");
    for (path, content) in [(folder.join("vigia.json"), "{"), (record, "\0\0"), (folder.join("vigia.json"), "[]")] {
        assert!(path.is_file());
        fs::write(&path, content).unwrap();
        let engines = anew(&dir);
        if engines.state(&key()) == EngineState::Absent {
            build(&engines, &key(), fake(1.0));
        }
        assert_eq!(anew(&dir).state(&key()), EngineState::Ready);
    }
    fs::remove_file(folder.join("m.engine")).unwrap();
    assert_eq!(anew(&dir).state(&key()), EngineState::Absent, "a mark without an engine");
}

/// Of the assets, whose folder a test may ask the environment for.
#[cfg(test)]
mod with_assets {
    use super::*;

    #[test]
    fn the_checks_of_the_catalogue_run_on_their_models() {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia/runtime/libonnxruntime.so");
        let Some(assets) = std::env::var_os("VIGIA_TEST_ASSETS").map(PathBuf::from).filter(|_| library.is_file())
        else {
            println!("SKIPPED: VIGIA_TEST_ASSETS is not set, or {} is not there", library.display());
            return;
        };
        for entry in Catalogue::load(None).unwrap().entries() {
            let folder = assets.join("real").join(&entry.name);
            let Some(check) = entry.check.clone().filter(|_| folder.is_dir()) else { continue };
            let graph = |role: &str| folder.join(entry.graph(entry.default_variant(), role).unwrap());
            let graphs = entry.roles().map(|role| (role.to_owned(), graph(role))).collect();
            let (tensorrt, reference) = (key().options, crate::runtime::ProviderOptions::Cpu);
            let mut builder =
                OnnxBuilder { library: library.clone(), graphs, check: check.clone(), tensorrt, reference, threads: 1 };
            let answers = builder.record(&Cancel::default()).unwrap_or_else(|error| panic!("{}", error.full()));
            check::usable(&answers).unwrap();
            assert_eq!(check::compare(&answers, &builder.record(&Cancel::default()).unwrap(), check.tolerance), Ok(()));
        }
    }
}
