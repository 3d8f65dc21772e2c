//! Carries out what the ledger of memory decides: starts the process of an engine, and ends it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    base::{Error, Result, lock},
    device::Meter,
    engines::{
        Asr, AsrSpec, Engine, Handle, Launch, Limits, Spec, Vitals,
        prepare::{OnnxBuilder, Workbench},
    },
    models::{Load, Loader, ModelKey, Need},
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

/// What a lease gives: the handle of an engine of one kind.
#[derive(Clone)]
pub(super) enum Loaded {
    Asr(Handle<Asr>),
    Workbench(Handle<Workbench>),
}

/// How it is built.
#[derive(Clone)]
pub(super) enum Recipe {
    Asr(AsrSpec),
    Workbench(Box<OnnxBuilder>),
}

impl Recipe {
    async fn load(self, key: &ModelKey, hosting: Hosting) -> Result<Loaded> {
        Ok(match self {
            Recipe::Asr(spec) => Loaded::Asr(start(spec, key, hosting).await?),
            Recipe::Workbench(spec) => Loaded::Workbench(start(*spec, key, hosting).await?),
        })
    }
}

async fn start<S: Spec + Sync>(spec: S, key: &ModelKey, hosting: Hosting) -> Result<Handle<S::Engine>> {
    match hosting {
        Hosting::Processes => Handle::process(spec, Launch::new(&key.model)).await,
        Hosting::Threads => Handle::thread(&key.model, &Limits::default(), move || spec.build()).await,
    }
}

impl Loaded {
    pub(super) async fn close(&self) -> Result<()> {
        match self {
            Loaded::Asr(handle) => handle.close().await,
            Loaded::Workbench(handle) => handle.close().await,
        }
    }

    pub(super) fn memory_bytes(&self) -> Option<u64> {
        match self {
            Loaded::Asr(handle) => handle.memory_bytes(),
            Loaded::Workbench(handle) => handle.memory_bytes(),
        }
    }

    pub(super) fn vitals(&self) -> Vitals {
        fn of<E: Engine>(handle: &Handle<E>) -> Vitals {
            handle.vitals().borrow().clone()
        }
        match self {
            Loaded::Asr(handle) => of(handle),
            Loaded::Workbench(handle) => of(handle),
        }
    }
}

/// The engines of one memory: how each is built, and those that run.
#[derive(Default)]
pub(super) struct Shelf {
    recipes: Mutex<BTreeMap<ModelKey, Recipe>>,
    running: Mutex<BTreeMap<ModelKey, Loaded>>,
}

impl Shelf {
    /// Before the first lease of this key is asked for.
    pub(super) fn put(&self, key: &ModelKey, recipe: Recipe) {
        lock(&self.recipes).insert(key.clone(), recipe);
    }

    pub(super) fn running(&self) -> Vec<(ModelKey, Loaded)> {
        lock(&self.running).iter().map(|(key, loaded)| (key.clone(), loaded.clone())).collect()
    }
}

pub(super) struct EngineLoader {
    pub(super) shelf: Arc<Shelf>,
    pub(super) hosting: Hosting,
    /// Of a card: its engines' memory is not in their processes' account on the host.
    pub(super) card: Option<Arc<Meter>>,
}

impl Loader for EngineLoader {
    type Loaded = Loaded;

    fn load(&self, need: &Need) -> BoxFuture<'static, Result<Load<Loaded>>> {
        let (shelf, card, hosting) = (Arc::clone(&self.shelf), self.card.clone(), self.hosting);
        let key = need.key.clone();
        async move {
            let recipe = lock(&shelf.recipes).get(&key).cloned();
            let recipe = recipe.ok_or_else(|| Error::internal(format!("nobody said how {key} is built")))?;
            let loaded = recipe.load(&key, hosting).await?;
            let measured_bytes = match &card {
                Some(card) => loaded.vitals().pid.and_then(|pid| card.used_by(&[pid])).filter(|bytes| *bytes > 0),
                None => loaded.memory_bytes(),
            };
            lock(&shelf.running).insert(key, loaded.clone());
            Ok(Load { loaded, measured_bytes })
        }
        .boxed()
    }

    fn unload(&self, need: &Need, loaded: Loaded) -> BoxFuture<'static, ()> {
        let (shelf, key) = (Arc::clone(&self.shelf), need.key.clone());
        async move {
            lock(&shelf.running).remove(&key);
            // The ledger may not give the memory to anybody else before it is back.
            while let Err(error) = loaded.close().await {
                log::error!(model = key.model.as_str(); "{}", error.full());
                tokio::time::sleep(CLOSE_AGAIN).await;
            }
        }
        .boxed()
    }
}
