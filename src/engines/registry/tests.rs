//! What the registry makes of a machine that is too small, of settings that lead nowhere, and of models that are not here.

use std::path::Path;

use super::*;
use crate::{
    device::{self, MemoryKind},
    flow::Priority::Live,
    models::Phase,
    settings::{Sources, load},
};

fn registry(sets: &[&str], own_entries: Option<&Path>) -> Registry {
    let sets = sets.iter().map(|it| (*it).to_owned()).collect();
    let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
    let own_entries = own_entries.map(Path::to_owned);
    Registry::new(&settings, Places { models: Vec::new(), library: Vec::new(), own_entries, hosting: Hosting::Threads })
}

/// The tests' Whisper with an entry whose encoder TensorRT may run.
const CHECKED: &str = r#"
    name = "mine"
    title = "Mine"
    tasks = ["transcribe"]
    family = "whisper"
    source = "made here"
    files = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]
    [licence]
    name = "none"
    [graphs]
    encoder = "onnx/encoder_model"
    decoder = "onnx/decoder_model_merged"
    [check]
    tolerance = 0.02
    graphs.encoder = { input_features = "f32 1x128x3000" }
"#;

/// None where there is no ONNX Runtime. What must be kept beside it comes along.
fn checked(order: &str) -> Option<(tempfile::TempDir, Registry)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = runtime::candidates(&root.join("target/debug/vigia"), root);
    if runtime::find("", &library).is_err() {
        println!("SKIPPED: ONNX Runtime was not found");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (models, own) = (dir.path().join("models"), dir.path().join("models.d"));
    [&models, &own].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    std::os::unix::fs::symlink(root.join("tests/data/whisper-tiny"), models.join("mine")).unwrap();
    std::fs::write(own.join("mine.toml"), CHECKED).unwrap();
    let sets = ["tasks.transcribe.model=mine".to_owned(), format!("providers.order={order}")];
    let sets = sets.into_iter().chain([format!("store.dir={}", dir.path().join("state").display())]).collect();
    let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
    let places = Places { models: vec![models], library, own_entries: Some(own), hosting: Hosting::Threads };
    Some((dir, Registry::new(&settings, places)))
}

/// A machine with a card of that much memory.
fn with_card(vram_bytes: u64) -> Facts {
    let mut facts = device::probe(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device/pc-rtx-5070"));
    assert_eq!(facts.memory_kind, MemoryKind::Dedicated);
    facts.gpus[0].vram_bytes = vram_bytes;
    facts
}

fn transcription(registry: &Registry) -> TaskStatus {
    registry.statuses().into_iter().find(|status| status.task == Task::Transcribe).unwrap()
}

const ECHO: [&str; 2] = ["tasks.transcribe.model=test-echo", "store.dir=/nowhere/vigia-test"];

#[tokio::test]
async fn where_the_card_has_no_room_the_next_provider_serves_and_health_says_why() {
    let sets = [&ECHO[..], &["providers.order=[\"cuda\", \"cpu\"]"]].concat();
    let both = registry(&sets, None);
    both.begin(&with_card(64 << 20));
    drop(both.hire::<Asr>(Live).await.unwrap_or_else(|error| panic!("{}", error.full())));
    let status = transcription(&both);
    assert_eq!((status.state, status.provider.as_deref()), (TaskState::Ready, Some("cpu")));
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("runs on cpu: test-echo (only on cuda) needs 151 MiB"), "{reason}");
    both.unload("test-echo").await.unwrap();
    assert_eq!(both.unload("test-echo").await.unwrap_err().kind(), Kind::NotFound);

    let alone = registry(&[&ECHO[..], &["providers.order=[\"cuda\"]"]].concat(), None);
    alone.begin(&with_card(64 << 20));
    let error = alone.hire::<Asr>(Live).await.err().unwrap();
    assert!(error.kind() == Kind::OverBudget && error.full().contains("a smaller model"), "{}", error.full());
    let status = transcription(&alone);
    assert_eq!(status.state, TaskState::Unavailable);
    assert!(status.reason.unwrap().contains("models may take 0 B"));
    both.close().await;
    alone.close().await;
}

/// The tests' model has three variants: the device has no memory to load the first, nor for the second to work in.
fn large(sets: &[&str]) -> Registry {
    registry(&[&["tasks.transcribe.model=test-large", "store.dir=/nowhere/vigia-test"][..], sets].concat(), None)
}

fn rows(registry: &Registry) -> Vec<(String, Option<String>)> {
    let ledgers = registry.ledgers();
    let rows = ledgers.iter().flat_map(|ledger| &ledger.models);
    rows.map(|row| (row.key.variant.clone(), row.instead_of.clone())).collect()
}

#[tokio::test]
async fn where_memory_is_short_the_next_smaller_variant_serves_and_everybody_is_told() {
    let registry = large(&["tasks.transcribe.resident=true"]);
    registry.begin(&with_card(0));
    let mut states = registry.model_states().pop().unwrap();
    let first = registry.hire::<Asr>(Live).await.unwrap_or_else(|error| panic!("{}", error.full()));
    let status = transcription(&registry);
    assert_eq!((status.state, status.variant.as_deref()), (TaskState::Ready, Some("fp16")));
    let reason = status.reason.unwrap();
    assert!(
        reason.starts_with("runs as fp16 on cpu: the device has no memory for test-large (fp32 on cpu)"),
        "{reason}"
    );
    assert!(reason.contains("CUDA failure 2: out of memory"), "{reason}");
    let instead = Some("fp32 on cpu".to_owned());
    assert_eq!(rows(&registry), [("fp16".to_owned(), instead.clone())]);

    let ask = crate::engines::TranscribeAsk::of(vec![0.5; 16_000].into(), "es");
    let error = first.ask(ask.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::OverBudget, "{}", error.full());
    assert!(registry.ran_out(first, Live, &error), "one is left");
    let second = registry.hire::<Asr>(Live).await.unwrap();
    assert_eq!(second.ask(ask).await.unwrap().len(), 1);
    let status = transcription(&registry);
    assert_eq!(status.variant.as_deref(), Some("q8"));
    assert!(status.reason.unwrap().starts_with("runs as q8 on cpu: the device has no memory for"));

    let mut told = Vec::new();
    while let Ok(state) = states.try_recv() {
        told.push((state.key.variant, state.state, state.instead_of));
    }
    assert!(told.contains(&("fp32".to_owned(), Phase::Failed, None)), "{told:?}");
    assert!(told.contains(&("fp16".to_owned(), Phase::Ready, instead.clone())), "{told:?}");
    assert!(told.contains(&("q8".to_owned(), Phase::Ready, instead)), "{told:?}");
    drop(second);
    registry.close().await;
}

#[tokio::test]
async fn what_there_was_no_memory_for_is_not_tried_at_every_ask() {
    let registry = large(&["tasks.transcribe.variant=fp32,q8"]);
    registry.begin(&with_card(0));
    let mut states = registry.model_states().pop().unwrap();
    let mut loads = || {
        let told = std::iter::from_fn(|| states.try_recv().ok());
        told.filter(|it| it.state == Phase::Loading).map(|it| it.key.variant).collect::<Vec<_>>()
    };
    drop(registry.hire::<Asr>(Live).await.unwrap());
    assert_eq!(loads(), ["fp32", "q8"], "fp16 is not permitted");
    for _ in 0..3 {
        drop(registry.hire::<Asr>(Live).await.unwrap());
        assert!(loads().is_empty());
    }
    registry.unload("test-large").await.unwrap();
    drop(registry.hire::<Asr>(Live).await.unwrap());
    assert_eq!(loads(), ["q8"], "not so soon");
    registry.close().await;

    let registry = large(&["memory.retry_secs=1"]);
    registry.begin(&with_card(0));
    drop(registry.hire::<Asr>(Live).await.unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        drop(registry.hire::<Asr>(Live).await.unwrap());
        assert_eq!(transcription(&registry).variant.as_deref(), Some("fp16"), "what stands in is left in peace");
        registry.unload("test-large").await.unwrap();
        let mut states = registry.model_states().pop().unwrap();
        drop(registry.hire::<Asr>(Live).await.unwrap());
        if states.try_recv().unwrap().key.variant == "fp32" {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it is never tried again");
    }
    registry.close().await;
}

#[tokio::test]
async fn a_variant_that_does_not_exist_is_told_before_it_is_needed() {
    let registry = large(&["tasks.transcribe.variant=fp32,q9"]);
    registry.begin(&with_card(0));
    let status = transcription(&registry);
    assert_eq!(status.state, TaskState::Unavailable);
    assert!(status.reason.unwrap().contains("names q9, which test-large does not have"));
    let error = registry.hire::<Asr>(Live).await.err().unwrap();
    assert!(error.hint_text().unwrap().contains("fp32, fp16, q8"), "{}", error.full());
}

#[tokio::test]
async fn a_variant_that_is_named_alone_has_no_other_in_its_place() {
    let registry = large(&["tasks.transcribe.variant=fp32"]);
    registry.begin(&with_card(0));
    for _ in 0..2 {
        let error = registry.hire::<Asr>(Live).await.err().unwrap();
        assert_eq!(error.kind(), Kind::OverBudget);
        assert!(error.hint_text().unwrap().contains("permits fp32 alone"), "{}", error.full());
    }
    let status = transcription(&registry);
    assert_eq!((status.state, status.variant.as_deref()), (TaskState::Unavailable, Some("fp32")));
    registry.close().await;
    let registry = large(&["tasks.transcribe.variant=fp16"]);
    registry.begin(&with_card(0));
    let asr = registry.hire::<Asr>(Live).await.unwrap();
    let error = asr.ask(crate::engines::TranscribeAsk::of(vec![0.5; 160].into(), "es")).await.unwrap_err();
    assert!(!registry.ran_out(asr, Live, &error), "nothing else may serve");
    drop(registry.hire::<Asr>(Live).await.unwrap_or_else(|error| panic!("built anew: {}", error.full())));
    registry.close().await;
}

#[tokio::test]
async fn smaller_variants_come_before_the_next_provider_and_after_them_the_best_one_again() {
    let registry = large(&["providers.order=[\"cuda\", \"cpu\"]", "tasks.transcribe.variant=fp16,q8"]);
    // No room on the card at all.
    registry.begin(&with_card(64 << 20));
    drop(registry.hire::<Asr>(Live).await.unwrap_or_else(|error| panic!("{}", error.full())));
    let status = transcription(&registry);
    assert_eq!((status.variant.as_deref(), status.provider.as_deref()), (Some("fp16"), Some("cpu")));
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("runs on cpu: test-large (fp16 on cuda) needs"), "{reason}");
    assert_eq!(rows(&registry), [("fp16".to_owned(), Some("fp16 on cuda".to_owned()))]);
    registry.close().await;
}

#[tokio::test]
async fn what_leads_nowhere_is_said_with_what_to_set() {
    let without = registry(&["tasks.transcribe.model="], None);
    assert!(without.installed(Task::Transcribe).unwrap_err().full().contains("set tasks.transcribe.model"));
    assert_eq!(without.hire::<Asr>(Live).await.err().unwrap().kind(), Kind::Unavailable);
    let error = registry(&ECHO, None).hire::<Asr>(Live).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Internal, "nobody has begun to manage memory: {}", error.full());
    for (task, word) in [(Task::Chat, "cannot run"), (Task::Speak, "cannot run"), (Task::Paint, "cannot run")] {
        let set = format!("tasks.{}.model=some-model", task.name());
        let error = registry(&[&set], None).installed(task).unwrap_err();
        assert!(error.full().contains(word) && error.full().contains("README"), "{}", error.full());
    }
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("bad.toml"), "name = 7").unwrap();
    let broken = registry(&["tasks.transcribe.model=whisper-base"], Some(own.path()));
    let error = broken.installed(Task::Transcribe).unwrap_err().full();
    assert!(error.contains("vigia models pull whisper-base"), "one bad entry takes no other model away: {error}");
    assert!(broken.catalogue_problems()[0].contains("bad.toml"), "{:?}", broken.catalogue_problems());
}

#[tokio::test]
async fn a_variant_of_the_settings_that_does_not_exist_is_no_fault_of_who_asks() {
    for model in ["whisper-base", "test-large"] {
        let registry = registry(&[&format!("tasks.transcribe.model={model}"), "tasks.transcribe.variant=fp7"], None);
        let error = registry.hire::<Asr>(Live).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.full());
        assert!(error.full().contains("fp7") && error.full().contains("tasks.transcribe.variant"), "{}", error.full());
    }
}

#[tokio::test]
async fn a_failure_is_forgotten_when_the_files_that_it_was_met_with_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("mine/onnx");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(dir.path().join("mine/config.json"), r#"{"model_type":"whisper"}"#).unwrap();
    for graph in ["encoder_model.onnx", "decoder_model_merged.onnx"] {
        std::fs::write(folder.join(graph), "half").unwrap();
    }
    let sets = ["tasks.transcribe.model=mine", "store.dir=/nowhere/vigia-test", "providers.order=[\"cpu\"]"];
    let sets = sets.iter().map(|it| (*it).to_owned()).collect();
    let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
    // No library, so that whatever is loaded fails.
    let library = vec![dir.path().join("mine/config.json")];
    let models = vec![dir.path().to_owned()];
    let registry = Registry::new(&settings, Places { models, library, own_entries: None, hosting: Hosting::Threads });
    registry.begin(&with_card(8 << 30));
    registry.hire::<Asr>(Live).await.err().unwrap();
    let failed = transcription(&registry);
    assert!(failed.state == TaskState::Unavailable && failed.reason.is_some(), "{failed:?}");
    assert_eq!(transcription(&registry), failed, "as long as nothing has changed");
    std::fs::write(folder.join("encoder_model.onnx"), "the whole of it").unwrap();
    let status = transcription(&registry);
    assert_eq!((status.state, status.reason), (TaskState::Cold, None));
    registry.close().await;
}

#[tokio::test]
async fn a_machine_without_a_card_is_told_before_anybody_speaks() {
    let facts = Facts { memory_kind: MemoryKind::None, gpus: Vec::new(), ..with_card(0) };
    for provider in ["cuda", "nvrtx", "tensorrt"] {
        let registry = registry(&[&ECHO[..], &[&format!("tasks.transcribe.provider={provider}")]].concat(), None);
        registry.begin(&facts);
        let error = registry.installed(Task::Transcribe).unwrap_err();
        for error in [error, registry.hire::<Asr>(Live).await.err().unwrap()] {
            let told = error.full();
            assert!(told.contains(&format!("{provider} needs a GPU")) && told.contains("providers.order"), "{told}");
        }
        let status = transcription(&registry);
        assert!(status.state == TaskState::Unavailable && status.reason.unwrap().contains("needs a GPU"));
        registry.close().await;
    }
    let registry = registry(&[&ECHO[..], &["providers.order=[\"tensorrt\", \"cpu\"]"]].concat(), None);
    registry.begin(&facts);
    registry.installed(Task::Transcribe).unwrap();
    registry.close().await;
}

/// As on every machine where TensorRT or the driver is missing, however good the card.
#[tokio::test]
async fn where_tensorrt_cannot_be_had_the_next_provider_serves_and_health_says_what_is_missing() {
    let Some((_dir, registry)) = checked("[\"tensorrt\", \"cpu\"]") else { return };
    if registry.stock().library().and_then(|it| Runtime::open(&it)).and_then(|it| it.tensorrt_version()).is_ok() {
        println!("SKIPPED: this machine has TensorRT");
        return;
    }
    registry.begin(&with_card(8 << 30));
    registry.installed(Task::Transcribe).unwrap();
    let asr = registry.hire::<Asr>(Live).await.unwrap_or_else(|error| panic!("{}", error.full()));
    let ask = crate::engines::TranscribeAsk::of(vec![0.1; 16_000].into(), "es");
    assert_eq!(asr.ask(ask).await.unwrap().len(), 1, "it really serves");
    let status = transcription(&registry);
    assert_eq!((status.state, status.provider.as_deref()), (TaskState::Ready, Some("cpu")));
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("runs on cpu: its TensorRT engine could not be built: "), "{reason}");
    assert!(["driver", "no TensorRT provider"].iter().any(|word| reason.contains(word)), "{reason}");
    let ledger = &registry.ledgers()[1];
    let [model] = &ledger.models[..] else { panic!("{ledger:?}") };
    assert!(model.reserved > 50 << 20 && !model.is_measured, "what it works in is reserved: {model:?}");
    drop(asr);
    registry.close().await;
}

#[tokio::test]
async fn where_nothing_but_tensorrt_is_permitted_the_rest_of_the_model_has_no_place() {
    let Some((_dir, registry)) = checked("[\"tensorrt\"]") else { return };
    registry.begin(&with_card(8 << 30));
    let error = registry.hire::<Asr>(Live).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.full().contains("not every graph") && error.full().contains("providers.order"), "{}", error.full());
    assert!(registry.engine_builds().is_empty(), "no engine is built in vain");
    registry.close().await;
}
