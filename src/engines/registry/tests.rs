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
