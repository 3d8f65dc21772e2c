//! The ledgers of memory: one for what a GPU has (or shares with the system), one for the host's where the two differ.
//! Watches what others take of it, and engines that have died for good.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use tokio::{sync::broadcast, task::JoinHandle, time::interval};

use crate::{
    base::{Error, Kind, Result},
    device::{Facts, MemoryKind, Meter},
    engines::{
        alive,
        registry::loader::{Account, EngineLoader, Hosting, Loaded, Shelf},
    },
    models::{Budget, Costs, Lease, Ledger, Manager, ManagerLimits, ModelKey, ModelState, Need},
    settings::{Provider, Settings},
};

/// Where measured costs are kept, below the store's folder.
const COSTS: &str = "costs";

pub(super) struct Memory {
    /// Best first: the memory of the GPU, if there is one, then the host's.
    pools: Vec<Pool>,
}

struct Pool {
    of_gpu: bool,
    /// A host's memory where a card has its own.
    of_host: bool,
    shelf: Arc<Shelf>,
    manager: Manager<EngineLoader>,
    watch: JoinHandle<()>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Memory {
    /// Within a runtime.
    pub(super) fn start(settings: &Settings, facts: &Facts, hosting: Hosting) -> Memory {
        let (gpu, host) = match facts.memory_kind {
            MemoryKind::Dedicated => (true, true),
            MemoryKind::Unified => (true, false),
            MemoryKind::None => (false, true),
        };
        let mut pools: Vec<Pool> = Vec::new();
        if gpu {
            pools.push(Pool::start(settings, facts, hosting, (true, !host), None));
        }
        if host {
            let facts = Facts { memory_kind: MemoryKind::None, ..facts.clone() };
            let of_card = pools.first().map(|pool| Arc::clone(&pool.shelf));
            pools.push(Pool::start(settings, &facts, hosting, (false, true), of_card));
        }
        Memory { pools }
    }

    /// Whatever a key's engine takes, it takes there.
    fn pool(&self, provider: Provider) -> Result<&Pool> {
        let of_gpu = provider != Provider::Cpu;
        let pool = self.pools.iter().find(|pool| if of_gpu { pool.of_gpu } else { pool.of_host });
        pool.ok_or_else(|| {
            Error::unavailable(format!("{} needs a GPU, and this machine has none", provider.name()))
                .hint("set providers.order = [\"cpu\"], or the task's provider")
        })
    }

    pub(super) fn shelf(&self, provider: Provider) -> Result<&Shelf> {
        Ok(&self.pool(provider)?.shelf)
    }

    /// What all models may take there while others keep to their terms.
    pub(super) fn limit(&self, provider: Provider) -> Result<u64> {
        Ok(self.pool(provider)?.manager.ledger().budget.limit)
    }

    /// Whether it is in memory now, by the name of its provider.
    pub(super) fn is_loaded(&self, key: &ModelKey) -> bool {
        self.pools.iter().any(|pool| pool.shelf.is_running(key))
    }

    /// It could not do a job for want of memory: what it holds comes back.
    pub(super) fn give_up(&self, key: &ModelKey) {
        self.pools.iter().filter(|pool| pool.shelf.is_running(key)).for_each(|pool| pool.manager.died(key));
    }

    pub(super) async fn lease(&self, provider: Provider, need: Need) -> Result<Lease<Loaded>> {
        self.pool(provider)?.manager.lease(need).await
    }

    /// By memory, the GPU's first.
    pub(super) fn ledgers(&self) -> Vec<Ledger> {
        self.pools.iter().map(|pool| pool.manager.ledger()).collect()
    }

    pub(super) fn states(&self) -> Vec<broadcast::Receiver<ModelState>> {
        self.pools.iter().map(|pool| pool.manager.states()).collect()
    }

    pub(super) async fn unload(&self, model: &str) -> Result<()> {
        let mut found = false;
        for pool in &self.pools {
            match pool.manager.unload(model).await {
                Ok(()) => found = true,
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if found {
            return Ok(());
        }
        Err(Error::new(Kind::NotFound, format!("{model} is not loaded")).hint("GET /api/health shows what is"))
    }

    pub(super) async fn close(&self) {
        for pool in &self.pools {
            pool.manager.close().await;
        }
    }
}

impl Pool {
    /// `others`: engines of another memory, whose processes use this one too.
    fn start(
        settings: &Settings,
        facts: &Facts,
        hosting: Hosting,
        (of_gpu, of_host): (bool, bool),
        others: Option<Arc<Shelf>>,
    ) -> Pool {
        let meter = match Meter::open(Path::new("/"), facts) {
            Ok(meter) => Some(Arc::new(meter)),
            Err(error) => {
                log::warn!("{}; what others take of it is not seen", error.full());
                None
            }
        };
        let shelf = Arc::new(Shelf::default());
        let account = match facts.memory_kind {
            MemoryKind::Dedicated => Account::Card(meter.clone()),
            MemoryKind::Unified => Account::Shared,
            MemoryKind::None => Account::Process,
        };
        let loader = EngineLoader { shelf: Arc::clone(&shelf), hosting, account };
        let limits = ManagerLimits {
            idle: Duration::from_secs(settings.memory.idle_secs),
            wait: Duration::from_secs(settings.memory.wait_secs),
        };
        let name = match facts.memory_kind {
            MemoryKind::Dedicated => "gpu",
            MemoryKind::Unified => "shared",
            MemoryKind::None => "host",
        };
        let costs = Costs::open(&settings.store_dir().join(COSTS).join(name), facts.title());
        let manager = Manager::start(loader, Budget::measure(facts, &settings.memory), costs, limits);
        let every = Duration::from_secs(settings.memory.foreign_secs);
        let watch = tokio::spawn(watch(manager.clone(), Arc::clone(&shelf), others, meter, every));
        Pool { of_gpu, of_host, shelf, manager, watch }
    }
}

async fn watch(
    manager: Manager<EngineLoader>,
    shelf: Arc<Shelf>,
    others: Option<Arc<Shelf>>,
    meter: Option<Arc<Meter>>,
    every: Duration,
) {
    let mut turns = interval(every);
    let mut is_blind = false;
    loop {
        turns.tick().await;
        let running = shelf.running();
        report_deaths(&manager, &running);
        let Some(meter) = meter.clone() else { continue };
        let reserved = manager.ledger().reserved;
        // What they take of this memory nobody has reserved here.
        let others = others.iter().flat_map(|shelf| shelf.running()).filter_map(|(_, loaded)| loaded.vitals().pid);
        let others: BTreeSet<u32> = others.collect();
        // Reading the account of a large process takes the kernel milliseconds.
        let measured = tokio::task::spawn_blocking(move || {
            let grown: Vec<(ModelKey, u64)> = match meter.used_by(&[]) {
                Some(_) => running
                    .iter()
                    .filter_map(|(key, loaded)| Some((key.clone(), meter.used_by(&[loaded.vitals().pid?])?)))
                    .collect(),
                None => Vec::new(),
            };
            // What is loading or leaving is reserved as well: taken for others' it would count twice.
            let ours: Vec<u32> = alive().into_iter().filter(|pid| !others.contains(pid)).collect();
            (meter.foreign(&ours, reserved), grown)
        });
        match measured.await {
            Ok((Ok(foreign), grown)) => {
                if std::mem::take(&mut is_blind) {
                    log::info!("the memory in use is measured again");
                }
                grown.iter().for_each(|(key, bytes)| manager.measured(key, *bytes));
                manager.set_foreign(foreign);
            }
            // The last figures stay.
            Ok((Err(error), _)) if !std::mem::replace(&mut is_blind, true) => log::warn!("{}", error.full()),
            Ok((Err(_), _)) => {}
            Err(error) => log::error!("measuring memory ended badly: {error}"),
        }
    }
}

/// An engine that died so often that it is not started again holds nothing any more.
fn report_deaths(manager: &Manager<EngineLoader>, running: &[(ModelKey, Loaded)]) {
    for (key, loaded) in running {
        if loaded.vitals().quarantined_until.is_some_and(|until| until > std::time::Instant::now()) {
            manager.died(key);
        }
    }
}
