//! Hiring an engine for one job: on this box, where its model is in memory only as long as the ledger lets it, or
//! elsewhere.

use std::ops::Deref;

use crate::{
    base::{Error, Kind, Result, lock},
    engines::{
        Engine, Handle, Limits, Registry,
        registry::{
            INSTEAD,
            appetite::Portion,
            loader::Loaded,
            serving::{Serving, Stock},
        },
        remote::Remote,
    },
    flow::{Priority, Task},
    models::{Lease, ModelKey, Need},
};

/// A kind of engine that can be hired. What is said here and in `kinds` is all that a new kind needs.
pub trait Hireable: Engine<Ask: Clone> + Sized {
    /// Whose settings say which model serves, and where.
    const TASK: Task;

    /// How it is served on this box; the error says what is missing and how to get it.
    fn serving(stock: &Stock<'_>) -> Result<Serving> {
        stock.not_yet(Self::TASK)
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

    async fn hire_here<E: Hireable>(&self, priority: Priority) -> Result<Hired<E>> {
        let serving = E::serving(&self.stock())?;
        let memory = self.memory()?;
        let order = self.order(&serving)?;
        let mut instead = order.told;
        let mut refused = None;
        for provider in &order.providers {
            let key = ModelKey {
                model: serving.model.clone(),
                variant: serving.variant.clone(),
                provider: provider.name().to_owned(),
            };
            let Portion { units, workspace_bytes } = serving.appetite.portion(*provider, memory.limit(*provider)?);
            memory
                .shelf(*provider)?
                .put(&key, serving.recipe(*provider, units, order.built.as_ref(), &self.0.settings));
            let need = Need {
                key,
                estimate_bytes: serving.appetite.weights_bytes,
                workspace_bytes,
                priority,
                resident: serving.resident,
                yields: priority == Priority::Batch,
            };
            match memory.lease(*provider, need).await {
                Ok(lease) => {
                    let hired = Hired::leased(lease)?;
                    let note = hired.vitals().borrow().note.as_deref().map(str::to_owned);
                    let mut failures = lock(&self.0.failures);
                    match instead.or(note) {
                        Some(why) => failures.insert(E::TASK, format!("{INSTEAD}{}: {why}", provider.name())),
                        None => failures.remove(&E::TASK),
                    };
                    drop(failures);
                    return Ok(hired);
                }
                // There is no room for it there, whoever leaves: the profile may permit another place.
                Err(error) if error.kind() == Kind::OverBudget => {
                    log::warn!(task = E::TASK.name(), provider = provider.name(); "{}", error.full());
                    instead = Some(error.full());
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| Error::unavailable("no provider is set").hint("set providers.order")))
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
