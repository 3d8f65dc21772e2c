//! Carries out what the ledger of memory decides: starts the process of an engine, and ends it.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    base::{Error, Kind, Result, lock},
    device::Meter,
    engines::{Engine, Handle, Launch, Limits, Restarts, Spec, Vitals, died_too_often},
    models::{Load, Loader, ModelKey, Need},
    settings::Provider,
};

/// Between two tries to end an engine that does not end.
const CLOSE_AGAIN: Duration = Duration::from_secs(30);

/// Where engines run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosting {
    /// Each in a process of its own.
    Processes,
    /// On threads, for tests within a program that cannot be its own engine.
    Threads,
}

/// What a lease gives: the handle of an engine of some kind.
#[derive(Clone)]
pub(super) struct Loaded(Arc<dyn Hosted>);

impl Loaded {
    pub(super) fn new<E: Engine>(handle: Handle<E>) -> Loaded {
        Loaded(Arc::new(handle))
    }

    pub(super) fn handle<E: Engine>(&self) -> Result<Handle<E>> {
        let any: &dyn Any = &*self.0;
        any.downcast_ref().cloned().ok_or_else(|| Error::internal("an engine of another kind was loaded"))
    }

    pub(super) fn vitals(&self) -> Vitals {
        self.0.vitals()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.0.memory_bytes()
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

/// A handle whose kind is forgotten.
trait Hosted: Any + Send + Sync {
    fn close(&self) -> BoxFuture<'_, Result<()>>;
    fn memory_bytes(&self) -> Option<u64>;
    fn vitals(&self) -> Vitals;
}

impl<E: Engine> Hosted for Handle<E> {
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Handle::close(self).boxed()
    }

    fn memory_bytes(&self) -> Option<u64> {
        Handle::memory_bytes(self)
    }

    fn vitals(&self) -> Vitals {
        Handle::vitals(self).borrow().clone()
    }
}

/// How an engine is built, and where.
#[derive(Clone)]
pub(super) struct Recipe {
    spec: Arc<dyn Build>,
    /// Too small for a process of its own.
    small: bool,
}

impl Recipe {
    /// In a process of its own, whose end gives its memory back.
    pub(super) fn of<S: Spec + Sync>(spec: S) -> Recipe {
        Recipe { spec: Arc::new(spec), small: false }
    }

    /// On a thread of the daemon: for engines that take little and answer within milliseconds.
    pub(super) fn small<S: Spec + Sync>(spec: S) -> Recipe {
        Recipe { spec: Arc::new(spec), small: true }
    }

    async fn load(&self, key: &ModelKey, hosting: Hosting) -> Result<Loaded> {
        let hosting = if self.small { Hosting::Threads } else { hosting };
        self.spec.load(key, hosting).await
    }
}

/// A spec whose kind is forgotten.
trait Build: Send + Sync {
    fn load<'a>(&self, key: &'a ModelKey, hosting: Hosting) -> BoxFuture<'a, Result<Loaded>>;
}

impl<S: Spec + Sync> Build for S {
    fn load<'a>(&self, key: &'a ModelKey, hosting: Hosting) -> BoxFuture<'a, Result<Loaded>> {
        let spec = self.clone();
        async move {
            Ok(Loaded::new(match hosting {
                Hosting::Processes => Handle::process(spec, Launch::new(&key.model)).await?,
                Hosting::Threads => Handle::thread(&key.model, &Limits::default(), move || spec.build()).await?,
            }))
        }
        .boxed()
    }
}

/// The engines of one memory: how each is built, and those that run.
#[derive(Default)]
pub(super) struct Shelf {
    recipes: Mutex<BTreeMap<ModelKey, Recipe>>,
    running: Mutex<BTreeMap<ModelKey, Loaded>>,
    deaths: Mutex<BTreeMap<ModelKey, Deaths>>,
}

/// How often an engine died over all its hosts: each of them counts from nothing, and none counts a load that failed.
#[derive(Default)]
struct Deaths {
    loads: Restarts,
    /// It is left alone until then.
    until: Option<Instant>,
    last: String,
}

impl Shelf {
    /// Before the first lease of this key is asked for.
    pub(super) fn put(&self, key: &ModelKey, recipe: Recipe) {
        lock(&self.recipes).insert(key.clone(), recipe);
    }

    pub(super) fn running(&self) -> Vec<(ModelKey, Loaded)> {
        lock(&self.running).iter().map(|(key, loaded)| (key.clone(), loaded.clone())).collect()
    }

    pub(super) fn is_running(&self, key: &ModelKey) -> bool {
        lock(&self.running).contains_key(key)
    }

    /// Its host is about to go, and with it what it knows of deaths.
    fn remember_deaths(&self, key: &ModelKey, vitals: &Vitals) {
        if let Some(until) = vitals.quarantined_until.filter(|until| *until > Instant::now()) {
            let last = vitals.last_death.as_deref().unwrap_or_default().to_owned();
            let mut deaths = lock(&self.deaths);
            let deaths = deaths.entry(key.clone()).or_default();
            (deaths.until, deaths.last) = (Some(until), last);
        }
    }

    /// One that died while it was loading, or had to be killed. An engine that says what it lacks may have it the
    /// next time.
    fn load_failed(&self, key: &ModelKey, error: &Error) {
        if matches!(error.kind(), Kind::Internal | Kind::Timeout) {
            let mut deaths = lock(&self.deaths);
            let deaths = deaths.entry(key.clone()).or_default();
            (deaths.until, deaths.last) = (deaths.loads.died(Instant::now()), error.message().to_owned());
        }
    }

    fn recipe(&self, key: &ModelKey) -> Result<Recipe> {
        if let Some(Deaths { until: Some(until), last, .. }) = lock(&self.deaths).get(key) {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Err(died_too_often(&key.model, last, left));
            }
        }
        let recipe = lock(&self.recipes).get(key).cloned();
        recipe.ok_or_else(|| Error::internal(format!("nobody said how {key} is built")))
    }
}

pub(super) struct EngineLoader {
    pub(super) shelf: Arc<Shelf>,
    pub(super) hosting: Hosting,
    pub(super) account: Account,
}

/// Who knows what an engine takes of a memory.
#[derive(Clone)]
pub(super) enum Account {
    /// The host, by process.
    Process,
    /// The driver, by process; nobody where it cannot be asked.
    Card(Option<Arc<Meter>>),
    /// Where a GPU shares the system's memory, what it takes for a process is in no account of that process.
    Shared,
}

impl Account {
    /// `of_process`: what the engine's process holds on the host. None: the estimate is the best there is.
    fn measured(&self, need: &Need, pid: Option<u32>, of_process: Option<u64>) -> Option<u64> {
        match self {
            Account::Process => of_process,
            Account::Card(meter) => {
                let used = meter.as_ref()?.used_by(&[pid?])?;
                (used > 0).then_some(used)
            }
            Account::Shared if need.key.provider == Provider::Cpu.name() => of_process,
            Account::Shared => of_process.filter(|bytes| *bytes > need.estimate_bytes),
        }
    }
}

impl Loader for EngineLoader {
    type Loaded = Loaded;

    fn load(&self, need: &Need) -> BoxFuture<'static, Result<Load<Loaded>>> {
        let (shelf, account, hosting) = (Arc::clone(&self.shelf), self.account.clone(), self.hosting);
        let (key, need) = (need.key.clone(), need.clone());
        async move {
            let recipe = shelf.recipe(&key)?;
            let loaded = recipe.load(&key, hosting).await.inspect_err(|error| shelf.load_failed(&key, error))?;
            let measured_bytes = account.measured(&need, loaded.vitals().pid, loaded.memory_bytes());
            lock(&shelf.running).insert(key, loaded.clone());
            Ok(Load { loaded, measured_bytes })
        }
        .boxed()
    }

    fn unload(&self, need: &Need, loaded: Loaded) -> BoxFuture<'static, ()> {
        let (shelf, key) = (Arc::clone(&self.shelf), need.key.clone());
        async move {
            lock(&shelf.running).remove(&key);
            shelf.remember_deaths(&key, &loaded.vitals());
            // The ledger may not give the memory to anybody else before it is back.
            while let Err(error) = loaded.close().await {
                log::error!(model = key.model.as_str(); "{}", error.full());
                tokio::time::sleep(CLOSE_AGAIN).await;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engines::AsrSpec, flow::Priority};

    fn need(key: ModelKey, estimate_bytes: u64) -> Need {
        Need {
            key,
            estimate_bytes,
            workspace_bytes: 0,
            priority: Priority::Live,
            resident: false,
            yields: false,
            instead_of: None,
        }
    }

    #[test]
    fn what_a_gpu_takes_of_shared_memory_is_not_what_the_process_holds() {
        let on = |provider: &str| {
            let key = ModelKey { model: "m".to_owned(), variant: "fp16".to_owned(), provider: provider.to_owned() };
            need(key, 2000)
        };
        let measured = |account: Account, provider, bytes| account.measured(&on(provider), Some(1), bytes);
        assert_eq!(measured(Account::Shared, "cuda", Some(500)), None, "the estimate stands");
        assert_eq!(measured(Account::Shared, "cuda", Some(2500)), Some(2500), "that alone is more");
        assert_eq!(measured(Account::Shared, "cpu", Some(500)), Some(500));
        assert_eq!(measured(Account::Process, "cpu", Some(500)), Some(500));
        assert_eq!(measured(Account::Card(None), "cuda", Some(500)), None, "its memory is another");
    }

    #[tokio::test]
    async fn an_engine_that_died_too_often_is_left_alone_though_its_host_is_gone() {
        let shelf = Arc::new(Shelf::default());
        let loader = EngineLoader { shelf: Arc::clone(&shelf), hosting: Hosting::Threads, account: Account::Process };
        let key = ModelKey { model: "mine".to_owned(), variant: "only".to_owned(), provider: "cpu".to_owned() };
        let need = need(key.clone(), 1);
        shelf.put(&key, Recipe::of(AsrSpec::TestEcho));
        let vitals = |left: Duration| Vitals {
            quarantined_until: Some(Instant::now() + left),
            last_death: Some("SIGSEGV".into()),
            ..Vitals::default()
        };
        shelf.remember_deaths(&key, &vitals(Duration::from_secs(60)));
        let error = loader.load(&need).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.full().contains("SIGSEGV") && error.full().contains("60 s"), "{}", error.full());
        shelf.remember_deaths(&key, &Vitals::default());
        assert!(loader.load(&need).await.is_err(), "another end of it lets nobody off");
        lock(&shelf.deaths).get_mut(&key).unwrap().until = Some(Instant::now());
        assert!(loader.load(&need).await.is_ok());
    }

    #[test]
    fn an_engine_that_dies_at_every_load_is_left_alone_and_one_that_lacks_something_is_not() {
        let shelf = Shelf::default();
        let key = ModelKey { model: "mine".to_owned(), variant: "only".to_owned(), provider: "cpu".to_owned() };
        shelf.put(&key, Recipe::of(AsrSpec::TestEcho));
        (0..20).for_each(|_| shelf.load_failed(&key, &Error::unavailable("no weights")));
        (0..4).for_each(|_| shelf.load_failed(&key, &Error::internal("it was killed")));
        assert!(shelf.recipe(&key).is_ok());
        shelf.load_failed(&key, &Error::internal("it was killed"));
        assert!(shelf.recipe(&key).err().unwrap().full().contains("it was killed"));
    }
}
