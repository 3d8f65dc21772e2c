//! The manager with loads that end when the test says so, in time that only the test lets pass.

use std::{collections::BTreeMap, sync::Mutex};

use super::*;
use crate::{
    base::lock,
    device::MemoryKind,
    flow::Priority::{self, Batch, Live},
    models::{Phase, Waiting},
};

const LIMITS: ManagerLimits = ManagerLimits { idle: Duration::from_secs(600), wait: Duration::from_secs(60) };
const MIB: u64 = 1 << 20;

type Ending = Result<Load<String>>;

/// Loads and unloads wait here for the test to end them.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    loads: BTreeMap<String, Vec<oneshot::Sender<Ending>>>,
    unloads: BTreeMap<String, Vec<oneshot::Sender<()>>>,
}

impl Loader for Fake {
    type Loaded = String;

    fn load(&self, need: &Need) -> BoxFuture<'static, Ending> {
        assert_ne!(need.key.model, "bomb", "this one never loads");
        let (sender, ending) = oneshot::channel();
        lock(&self.0).loads.entry(need.key.model.clone()).or_default().push(sender);
        Box::pin(async move { ending.await.unwrap() })
    }

    fn unload(&self, need: &Need, loaded: String) -> BoxFuture<'static, ()> {
        assert_eq!(loaded, need.key.model);
        let (sender, ending) = oneshot::channel();
        lock(&self.0).unloads.entry(loaded).or_default().push(sender);
        Box::pin(async move { ending.await.unwrap() })
    }
}

/// Time is paused and runs only where nothing else can be done, so this ends as soon as it can come true.
async fn eventually<T>(mut check: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(value) = check() {
            return value;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came true");
}

impl Fake {
    async fn end_load(&self, model: &str, ending: Ending) {
        let sender = eventually(|| lock(&self.0).loads.get_mut(model)?.pop()).await;
        sender.send(ending).unwrap_or_else(|_| panic!("nobody loads {model}"));
    }

    async fn loads(&self, model: &str, measured_bytes: Option<u64>) {
        self.end_load(model, Ok(Load { loaded: model.to_owned(), measured_bytes })).await;
    }

    async fn unloads(&self, model: &str) {
        let sender = eventually(|| lock(&self.0).unloads.get_mut(model)?.pop()).await;
        sender.send(()).unwrap();
    }

    fn loading(&self) -> usize {
        lock(&self.0).loads.values().map(Vec::len).sum()
    }
}

struct Rig {
    manager: Manager<Fake>,
    fake: Fake,
    dir: tempfile::TempDir,
}

fn rig() -> Rig {
    rig_in(tempfile::tempdir().unwrap())
}

/// Ten MiB for models.
fn rig_in(dir: tempfile::TempDir) -> Rig {
    let total = 12 * MIB;
    let budget = Budget {
        memory_kind: MemoryKind::None,
        total,
        system: MIB,
        media: 0,
        margin: MIB,
        set_limit: None,
        limit: 10 * MIB,
    };
    let fake = Fake::default();
    let manager = Manager::start(fake.clone(), budget, Costs::open(dir.path(), "test"), LIMITS);
    Rig { manager, fake, dir }
}

fn key(model: &str) -> ModelKey {
    ModelKey { model: model.to_owned(), variant: "q4".to_owned(), provider: "cpu".to_owned() }
}

fn need(model: &str, mib: u64, priority: Priority) -> Need {
    let (estimate_bytes, yields) = (mib * MIB, priority == Batch);
    Need { key: key(model), estimate_bytes, workspace_bytes: 0, priority, resident: false, yields, instead_of: None }
}

impl Rig {
    fn ask(&self, need: Need) -> tokio::task::JoinHandle<Result<Lease<String>>> {
        let manager = self.manager.clone();
        tokio::spawn(async move { manager.lease(need).await })
    }

    async fn lease(&self, need: Need) -> Lease<String> {
        let model = need.key.model.clone();
        let asked = self.ask(need);
        self.fake.loads(&model, None).await;
        asked.await.unwrap().unwrap()
    }

    /// Until the ledger is as it should be.
    async fn ledger(&self, is_so: impl Fn(&Ledger) -> bool) -> Ledger {
        eventually(|| Some(self.manager.ledger()).filter(&is_so)).await
    }
}

#[tokio::test(start_paused = true)]
async fn one_load_serves_all_who_ask_and_the_last_release_frees_it() {
    let rig = rig();
    let asked = [rig.ask(need("a", 4, Live)), rig.ask(need("a", 4, Batch))];
    rig.ledger(|it| it.waiting == Waiting { live: 1, interactive: 0, batch: 1 }).await;
    assert_eq!(rig.fake.loading(), 1);
    rig.fake.loads("a", Some(3 * MIB)).await;
    let [first, second] = asked;
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!((first.as_str(), second.key()), ("a", &key("a")));

    let ledger = rig.ledger(|it| it.models.first().is_some_and(|model| model.leases == 2)).await;
    assert_eq!((ledger.reserved, ledger.measured, ledger.limit), (3 * MIB, 3 * MIB, 10 * MIB));
    assert_eq!(ledger.models[0].idle_secs, None);
    drop((first, second));
    rig.ledger(|it| it.models[0].leases == 0).await;
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(rig.manager.ledger().models[0].idle_secs, Some(7));
}

#[tokio::test(start_paused = true)]
async fn models_that_fit_load_beside_each_other() {
    let rig = rig();
    let (a, b) = (rig.ask(need("a", 4, Live)), rig.ask(need("b", 4, Live)));
    eventually(|| (rig.fake.loading() == 2).then_some(())).await;
    rig.fake.loads("b", None).await;
    b.await.unwrap().unwrap();
    rig.fake.loads("a", None).await;
    a.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_leaves_and_its_memory_is_awaited_before_the_next_load() {
    let rig = rig();
    drop(rig.lease(need("a", 8, Live)).await);
    let b = rig.ask(need("b", 8, Batch));
    rig.ledger(|it| it.models.first().is_some_and(|model| model.state == Phase::Unloading)).await;
    assert_eq!(rig.fake.loading(), 0);
    rig.fake.unloads("a").await;
    rig.fake.loads("b", None).await;
    assert_eq!(b.await.unwrap().unwrap().as_str(), "b");
}

#[tokio::test(start_paused = true)]
async fn batch_work_hears_that_live_work_wants_its_memory() {
    let rig = rig();
    let batch = rig.lease(need("llm", 8, Batch)).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), batch.asked_to_yield()).await.is_err());
    let live = rig.ask(need("asr", 8, Live));
    batch.asked_to_yield().await;
    drop(batch);
    rig.fake.unloads("llm").await;
    rig.fake.loads("asr", None).await;
    live.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_fit_is_refused_with_the_numbers() {
    let rig = rig();
    let error = rig.manager.lease(need("big", 11, Live)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::OverBudget);
    assert_eq!(error.message(), "big (q4 on cpu) needs 11 MiB of memory; models may take 10 MiB");
    assert!(error.hint_text().unwrap().contains("/api/health"));

    let stays = Need { resident: true, ..need("stays", 2, Live) };
    drop(rig.lease(stays).await);
    rig.manager.set_foreign(2 * MIB);
    rig.ledger(|it| it.limit == 9 * MIB).await;
    let error = rig.manager.lease(need("big", 8, Live)).await.unwrap_err();
    assert_eq!(
        error.message(),
        "big (q4 on cpu) needs 8 MiB of memory; models may take 9 MiB, of which 2 MiB stay with resident models while \
         other programs use 2 MiB"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_told_to_everybody_and_the_next_may_try_again() {
    let rig = rig();
    let asked = [rig.ask(need("a", 4, Live)), rig.ask(need("a", 4, Batch))];
    rig.ledger(|it| it.waiting.live + it.waiting.batch == 2).await;
    let failed = Error::new(Kind::Unavailable, "no such file").hint("pull it").cause(Error::internal("ENOENT"));
    rig.fake.end_load("a", Err(failed)).await;
    for asked in asked {
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.full().as_str()), (Kind::Unavailable, "no such file (pull it)"));
    }
    rig.ledger(|it| it.reserved == 0).await;
    rig.lease(need("a", 4, Live)).await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_costs_that_load_alone() {
    let rig = rig();
    let error = rig.manager.lease(need("bomb", 1, Live)).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (Kind::Internal, "loading bomb (q4 on cpu) panicked"));
    rig.lease(need("a", 4, Live)).await;
}

#[tokio::test(start_paused = true)]
async fn out_of_memory_is_tried_once_more_and_then_told_apart() {
    let rig = rig();
    drop(rig.lease(need("idle", 2, Live)).await);
    let asked = rig.ask(need("a", 4, Live));
    let full = || Err(Error::new(Kind::OverBudget, "cudaMalloc failed"));
    rig.fake.end_load("a", full()).await;
    rig.fake.unloads("idle").await;
    rig.fake.end_load("a", full()).await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::OverBudget);
    assert!(error.message().contains("4 MiB were expected; models have 4 MiB of 10 MiB"), "{}", error.message());
    assert!(error.full().contains("cudaMalloc failed"), "the log has the cause: {}", error.full());
    rig.ledger(|it| it.reserved == 0).await;
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_is_out_of_the_line() {
    let rig = rig();
    let held = rig.lease(need("a", 8, Live)).await;
    let waiting = rig.ask(need("b", 8, Live));
    rig.ledger(|it| it.waiting.live == 1).await;
    waiting.abort();
    rig.ledger(|it| it.waiting.live == 0).await;
    drop(held);
    rig.ledger(|it| it.models[0].leases == 0).await;
    assert_eq!(rig.manager.ledger().models[0].state, Phase::Ready, "nobody needs it to leave");
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_is_released() {
    let rig = rig();
    let manager = rig.manager.clone();
    let mut asked = Box::pin(manager.lease(need("a", 4, Live)));
    assert!(futures_util::poll!(&mut asked).is_pending());
    rig.fake.loads("a", None).await;
    rig.ledger(|it| it.models[0].leases == 1).await;
    drop(asked);
    rig.ledger(|it| it.models[0].leases == 0).await;
}

#[tokio::test(start_paused = true)]
async fn every_wait_ends_with_a_reason() {
    let rig = rig();
    let _held = rig.lease(need("a", 8, Live)).await;
    let error = rig.manager.lease(need("b", 8, Live)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(
        error.message(),
        "b (q4 on cpu) needs 8 MiB of memory, and other work held 8 MiB of 10 MiB for over 60 s"
    );
    let error = rig.manager.lease(need("c", 2, Live)).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (Kind::Timeout, "c (q4 on cpu) was not loaded within 60 s"));
    rig.fake.loads("c", None).await;
    rig.ledger(|it| it.models.iter().all(|model| model.state == Phase::Ready)).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_line_refuses_at_the_door() {
    let rig = rig();
    let _held = rig.lease(need("a", 8, Live)).await;
    let waiting: Vec<_> = (0..LINE).map(|_| rig.ask(need("b", 8, Batch))).collect();
    rig.ledger(|it| it.waiting.batch == LINE).await;
    let error = rig.manager.lease(need("a", 8, Live)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    waiting.iter().for_each(|asked| asked.abort());
}

#[tokio::test(start_paused = true)]
async fn idle_models_retire_after_their_time() {
    let rig = rig();
    drop(rig.lease(need("a", 4, Live)).await);
    drop(rig.lease(Need { resident: true, ..need("b", 4, Live) }).await);
    rig.ledger(|it| it.models.iter().all(|model| model.leases == 0)).await;
    tokio::time::sleep(LIMITS.idle + Duration::from_secs(1)).await;
    rig.fake.unloads("a").await;
    let ledger = rig.ledger(|it| it.models.len() == 1).await;
    assert_eq!((ledger.models[0].key.model.as_str(), ledger.models[0].resident), ("b", true));
}

#[tokio::test(start_paused = true)]
async fn a_dead_engine_is_loaded_anew_once_its_memory_is_back() {
    let rig = rig();
    let void = rig.lease(need("a", 8, Live)).await;
    rig.manager.died(&key("a"));
    let again = rig.ask(need("a", 8, Live));
    rig.ledger(|it| it.models[0].state == Phase::Unloading && it.reserved == 8 * MIB).await;
    rig.fake.unloads("a").await;
    rig.fake.loads("a", None).await;
    let lease = again.await.unwrap().unwrap();
    drop(void);
    assert_eq!(rig.ledger(|it| it.waiting.live == 0).await.models[0].leases, 1);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn people_can_take_a_model_out_when_nobody_uses_it() {
    let rig = rig();
    assert_eq!(rig.manager.unload("a").await.unwrap_err().kind(), Kind::NotFound);
    let lease = rig.lease(need("a", 4, Live)).await;
    assert_eq!(rig.manager.unload("a").await.unwrap_err().kind(), Kind::Busy);
    drop(lease);
    let unloading = tokio::spawn({
        let manager = rig.manager.clone();
        async move { manager.unload("a").await }
    });
    rig.ledger(|it| it.models[0].state == Phase::Unloading).await;
    assert!(!unloading.is_finished(), "its memory is not back yet");
    rig.fake.unloads("a").await;
    unloading.await.unwrap().unwrap();
    rig.ledger(|it| it.models.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_measured_is_reserved_by_the_next_life() {
    let rig = rig();
    let asked = rig.ask(need("a", 4, Live));
    rig.fake.loads("a", Some(6 * MIB)).await;
    drop(asked.await.unwrap().unwrap());
    rig.manager.measured(&key("a"), 7 * MIB);
    rig.ledger(|it| it.reserved == 7 * MIB).await;
    let file = rig.dir.path().join("costs.json");
    let is_written = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&(7 * MIB).to_string()));
    while !is_written() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let rig = rig_in(rig.dir);
    let _asked = rig.ask(need("a", 4, Live));
    let ledger = rig.ledger(|it| it.reserved > 0).await;
    assert_eq!((ledger.reserved, ledger.models[0].is_measured), (7 * MIB, true));
}

#[tokio::test(start_paused = true)]
async fn changes_of_state_are_told_in_order() {
    let rig = rig();
    let mut states = rig.manager.states();
    let asked = rig.ask(need("a", 4, Live));
    eventually(|| (rig.fake.loading() == 1).then_some(())).await;
    rig.manager.progress(&key("a"), 0.5);
    let mut told = Vec::new();
    for _ in 0..2 {
        let state = states.recv().await.unwrap();
        told.push((state.state, state.bytes, state.progress));
    }
    rig.fake.loads("a", Some(5 * MIB)).await;
    drop(asked.await.unwrap().unwrap());
    let manager = rig.manager.clone();
    let unloading = tokio::spawn(async move { manager.unload("a").await });
    rig.fake.unloads("a").await;
    unloading.await.unwrap().unwrap();
    for _ in 0..3 {
        let state = states.recv().await.unwrap();
        told.push((state.state, state.bytes, state.progress));
    }
    assert_eq!(
        told,
        [
            (Phase::Loading, 4 * MIB, None),
            (Phase::Loading, 4 * MIB, Some(0.5)),
            (Phase::Ready, 5 * MIB, None),
            (Phase::Unloading, 5 * MIB, None),
            (Phase::Unloaded, 0, None),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn closing_gives_everything_back_and_answers_everybody() {
    let rig = rig();
    drop(rig.lease(need("a", 4, Live)).await);
    let held = rig.lease(need("b", 4, Live)).await;
    let waiting = rig.ask(need("c", 8, Live));
    rig.ledger(|it| it.waiting.live == 1).await;
    let manager = rig.manager.clone();
    let closing = tokio::spawn(async move { manager.close().await });
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    rig.fake.unloads("a").await;
    assert!(!closing.is_finished());
    drop(held);
    rig.fake.unloads("b").await;
    closing.await.unwrap();
    assert_eq!(rig.manager.lease(need("a", 4, Live)).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(rig.manager.unload("a").await.unwrap_err().kind(), Kind::Unavailable);
    rig.manager.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_takes_everything_with_it() {
    let Rig { manager, fake, dir: _dir } = rig();
    let asked = tokio::spawn({
        let manager = manager.clone();
        async move { manager.lease(need("a", 4, Live)).await }
    });
    fake.loads("a", None).await;
    drop(asked.await.unwrap().unwrap());
    drop(manager);
    fake.unloads("a").await;
}

#[tokio::test(start_paused = true)]
async fn the_ledger_is_plain_data_for_everybody() {
    let rig = rig();
    let lease = rig.lease(need("a", 4, Live)).await;
    rig.manager.set_foreign(5 * MIB);
    let ledger = rig.ledger(|it| it.foreign > 0 && it.models[0].leases == 1).await;
    let expected = serde_json::json!({
        "budget": {
            "memory_kind": "none", "total": 12 * MIB, "system": MIB, "media": 0, "margin": MIB,
            "set_limit": null, "limit": 10 * MIB,
        },
        "foreign": 5 * MIB, "limit": 6 * MIB, "reserved": 4 * MIB, "measured": 0,
        "models": [{
            "model": "a", "variant": "q4", "provider": "cpu", "state": "ready", "reserved": 4 * MIB,
            "is_measured": false, "measured": 0, "leases": 1, "resident": false, "idle_secs": null,
        }],
        "waiting": { "live": 0, "interactive": 0, "batch": 0 },
    });
    assert_eq!(serde_json::to_value(ledger).unwrap(), expected);
    drop(lease);
}
