//! The one way to memory for models: `lease` waits until the model is loaded and pinned. One task owns the table;
//! `plan` decides, this carries it out. Must never decide by itself, never hold a lock while it waits, and never let
//! anybody wait without an end.

mod run;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Semaphore, broadcast, oneshot, watch},
    time::Instant,
};

use crate::{
    base::{Error, Kind, Result},
    models::{
        Budget, Costs, Lease, Ledger, ModelKey, ModelState, Need,
        lease::{Granted, Inbox, Place, Ticket},
    },
};

/// Asks that may wait for memory; the queue that people see is in `jobs`.
const LINE: usize = 1024;
/// Changes of state that a listener may be behind before it misses some.
const STATES: usize = 256;

/// Loads models and takes them out again. Its futures run beside each other, of one model one at a time.
pub trait Loader: Send + Sync + 'static {
    /// What a lease gives: a handle of the engine.
    type Loaded: Clone + Send + Sync + 'static;

    /// `Kind::OverBudget` means that the device has no memory for it. After any error nothing of it is left there.
    fn load(&self, need: &Need) -> BoxFuture<'static, Result<Load<Self::Loaded>>>;

    /// Resolves when the memory is really back, also of an engine that ended by itself.
    fn unload(&self, need: &Need, loaded: Self::Loaded) -> BoxFuture<'static, ()>;
}

pub struct Load<T> {
    pub loaded: T,
    /// What it takes, where that can be told.
    pub measured_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub struct ManagerLimits {
    /// A model that nobody has used for this long leaves, unless it is resident.
    pub idle: Duration,
    /// Nobody waits longer for a lease.
    pub wait: Duration,
}

/// Cheap to clone. When the last clone is gone, nothing is given any more and everything leaves.
pub struct Manager<L: Loader>(Arc<Handle<L::Loaded>>);

impl<L: Loader> Clone for Manager<L> {
    fn clone(&self) -> Self {
        Manager(Arc::clone(&self.0))
    }
}

struct Handle<T> {
    inbox: Arc<Inbox<T>>,
    tickets: AtomicU64,
    line: Semaphore,
    ledger: watch::Receiver<(Instant, Ledger)>,
    states: broadcast::Sender<ModelState>,
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        self.inbox.put(News::Close(None));
    }
}

/// What the task is told.
pub(super) enum News<T> {
    Asked(Ticket, Need, oneshot::Sender<Result<Granted<T>>>),
    Gone(Ticket),
    Died(ModelKey),
    Foreign(u64),
    Measured(ModelKey, u64),
    Progress(ModelKey, f32),
    Unload(String, oneshot::Sender<Result<()>>),
    Close(Option<oneshot::Sender<()>>),
}

impl<L: Loader> Manager<L> {
    /// Starts the task, within a runtime.
    pub fn start(loader: L, budget: Budget, costs: Costs, limits: ManagerLimits) -> Manager<L> {
        log::info!("{}", budget.describe());
        let inbox = Arc::new(Inbox::default());
        let (states, _) = broadcast::channel(STATES);
        let (run, ledger) = run::Run::new(loader, budget, costs, limits, states.clone());
        tokio::spawn(run.run(Arc::clone(&inbox)));
        Manager(Arc::new(Handle { inbox, tickets: AtomicU64::new(0), line: Semaphore::new(LINE), ledger, states }))
    }

    /// Waits until the model is loaded, within a limit. `Kind::OverBudget` says that it cannot be, with the numbers:
    /// a smaller variant may be asked for instead. Dropping the future gives up the place in the line.
    pub async fn lease(&self, need: Need) -> Result<Lease<L::Loaded>> {
        let handle = &self.0;
        let _place_in_line = handle.line.try_acquire().map_err(|_| {
            Error::new(Kind::Busy, "too much work is waiting for memory already").hint("try again in a few seconds")
        })?;
        let key = need.key.clone();
        let ticket = Ticket(handle.tickets.fetch_add(1, Ordering::Relaxed));
        let (reply, grant) = oneshot::channel();
        let place = Place { ticket, inbox: Arc::clone(&handle.inbox) };
        handle.inbox.put(News::Asked(ticket, need, reply));
        Lease::wait(key, place, grant).await
    }

    /// An engine ended by itself, or is of no use any more. Its memory counts until the loader says that it is back; leases of it are void.
    pub fn died(&self, key: &ModelKey) {
        self.0.inbox.put(News::Died(key.clone()));
    }

    /// Everybody but our engines uses this much of the device now (`device::memory`).
    pub fn set_foreign(&self, bytes: u64) {
        self.0.inbox.put(News::Foreign(bytes));
    }

    /// A loaded model has been seen to take this much. The most that was ever seen counts.
    pub fn measured(&self, key: &ModelKey, bytes: u64) {
        self.0.inbox.put(News::Measured(key.clone(), bytes));
    }

    /// How far a load is, from 0 to 1: for those who watch.
    pub fn progress(&self, key: &ModelKey, fraction: f32) {
        self.0.inbox.put(News::Progress(key.clone(), fraction));
    }

    /// Takes out every variant of a model; resolves when its memory is back. `Kind::Busy` while somebody uses it.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.0.inbox.put(News::Unload(model.to_owned(), reply));
        answer.await.map_err(|_| gone())?
    }

    /// Gives nothing any more, takes out what is idle, and the rest as it comes free; resolves when all is back.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        self.0.inbox.put(News::Close(Some(reply)));
        // A task that has ended has nothing in memory either.
        closed.await.unwrap_or(());
    }

    pub fn ledger(&self) -> Ledger {
        let (at, mut ledger) = self.0.ledger.borrow().clone();
        for idle_secs in ledger.models.iter_mut().filter_map(|model| model.idle_secs.as_mut()) {
            *idle_secs += at.elapsed().as_secs();
        }
        ledger
    }

    /// Every change of a model's state from now on.
    pub fn states(&self) -> broadcast::Receiver<ModelState> {
        self.0.states.subscribe()
    }
}

pub(super) fn gone() -> Error {
    Error::unavailable("the memory of models is not managed any more").hint("Vigía is stopping")
}
