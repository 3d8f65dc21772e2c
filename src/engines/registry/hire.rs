//! Hiring an engine for one job: on this box, where its model is in memory only as long as the ledger lets it, or
//! elsewhere.

use std::ops::Deref;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Engine, Handle, Limits, Registry,
        registry::{
            loader::Loaded,
            serving::{Serving, Stock},
            smaller::Smaller,
        },
        remote::Remote,
    },
    flow::{Priority, Task},
    models::{Lease, ModelKey},
};

/// A kind of engine that can be hired. What is said here and in `kinds` is all that a new kind needs.
pub trait Hireable: Engine<Ask: Clone> + Sized {
    /// Whose settings say which model serves, and where.
    const TASK: Task;

    /// How it is served on this box; the error says what is missing and how to get it.
    fn serving(stock: &Stock<'_>) -> Result<Serving> {
        stock.not_yet(Self::TASK)
    }

    /// What may serve where there is no memory for `wanted`.
    fn smaller(_stock: &Stock<'_>, _wanted: &Serving) -> Result<Smaller> {
        Ok(Smaller::default())
    }

    /// The same done by a server elsewhere, where the model is called `model`.
    fn elsewhere(remote: &Remote, model: &str) -> Result<Self> {
        let (_, task) = (remote, Self::TASK.name());
        Err(Error::new(Kind::Unsupported, format!("no server can do the task {task} ({model})"))
            .hint(format!("leave tasks.{task}.remote empty")))
    }
}

/// An engine for one job. While this lives it stays in memory.
pub struct Hired<E: Engine> {
    handle: Handle<E>,
    /// None for an engine elsewhere.
    lease: Option<Lease<Loaded>>,
}

impl<E: Engine> Hired<E> {
    pub(super) fn leased(lease: Lease<Loaded>) -> Result<Hired<E>> {
        Ok(Hired { handle: lease.handle()?, lease: Some(lease) })
    }

    /// None of an engine elsewhere.
    pub(super) fn key(&self) -> Option<&ModelKey> {
        self.lease.as_ref().map(Lease::key)
    }

    /// Resolves when more urgent work needs the memory: give the job up at its next step, and ask again later.
    pub async fn asked_to_yield(&self) {
        match &self.lease {
            Some(lease) => lease.asked_to_yield().await,
            None => std::future::pending().await,
        }
    }
}

impl<E: Engine> Deref for Hired<E> {
    type Target = Handle<E>;

    fn deref(&self) -> &Handle<E> {
        &self.handle
    }
}

impl Registry {
    /// An engine of that kind, loaded if it is not yet; waits for memory.
    pub async fn hire<E: Hireable>(&self, priority: Priority) -> Result<Hired<E>> {
        let hired = match self.0.settings.remote_for(E::TASK) {
            Some((name, _)) => self.hire_elsewhere(name).await,
            None => self.hire_here(priority).await,
        };
        self.remember(E::TASK, &hired);
        hired
    }

    async fn hire_elsewhere<E: Hireable>(&self, name: &str) -> Result<Hired<E>> {
        let mut elsewhere = self.0.elsewhere.lock().await;
        let handle = match elsewhere.get(&E::TASK) {
            Some(loaded) => loaded.handle()?,
            None => {
                let (remote, model) = (self.remote(name)?.clone(), self.stock().model(E::TASK)?.to_owned());
                let build = move || E::elsewhere(&remote, &model);
                let handle = Handle::thread(name, &Limits::default(), build).await?;
                elsewhere.insert(E::TASK, Loaded::new(handle.clone()));
                handle
            }
        };
        Ok(Hired { handle, lease: None })
    }
}
