//! What the registry makes of a machine that is too small, of settings that lead nowhere, and of models that are not here.

use std::path::Path;

use super::*;
use crate::{
    device::{self, MemoryKind},
    flow::Priority::Live,
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
    assert!(broken.installed(Task::Transcribe).unwrap_err().full().contains("bad.toml"));
    assert!(transcription(&broken).reason.unwrap().contains("bad.toml"));
}

#[tokio::test]
async fn a_machine_without_a_card_is_told_before_anybody_speaks() {
    let registry = registry(&[&ECHO[..], &["tasks.transcribe.provider=cuda"]].concat(), None);
    let facts = Facts { memory_kind: MemoryKind::None, gpus: Vec::new(), ..with_card(0) };
    registry.begin(&facts);
    for error in [registry.installed(Task::Transcribe).unwrap_err(), registry.hire::<Asr>(Live).await.err().unwrap()] {
        assert!(
            error.full().contains("cuda needs a GPU") && error.full().contains("providers.order"),
            "{}",
            error.full()
        );
    }
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
