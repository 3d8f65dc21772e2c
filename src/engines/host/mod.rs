//! Hosts: what runs one engine and takes questions for it, one at a time. Small engines live on a thread of the daemon
//! (`thread`), heavy ones in a process of their own (`process`, and `child` on its other side), so that ending the
//! process really gives their memory back. Everybody else holds a [`Handle`], which is the same for both.
//!
//! Who asks decides how long: a job that is overdue is a job whose asker has left, and the host only knows the latter.

pub(super) mod child;
mod link;
mod process;
mod restarts;
mod runner;
mod spawn;
mod stderr;
mod thread;
mod wire;

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Error, Kind, Result, lock},
    engines::Cancel,
};

pub(super) use link::alive;
pub(super) use process::died_too_often;
pub use restarts::RestartRules;
pub(super) use restarts::Restarts;
pub use spawn::Launch;

/// Steps that an asker may be behind before the engine waits for it.
const STEPS: usize = 64;
/// Beyond the grace, for the kernel to take back the memory of a process.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a host runs: one kind of question, one kind of answer, and steps on the way.
pub trait Engine: 'static {
    type Ask: Serialize + DeserializeOwned + Send + 'static;
    type Progress: Serialize + DeserializeOwned + Send + 'static;
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// Looks at `cancel` at every step. An error of the kind `Internal` means that the engine itself is not to be
    /// trusted any more.
    fn answer(
        &mut self,
        ask: &Self::Ask,
        step: &mut dyn FnMut(Self::Progress),
        cancel: &Cancel,
    ) -> Result<Self::Answer>;

    /// What whoever runs this box should know of how it runs, once it is loaded.
    fn note(&self) -> Option<String> {
        None
    }
}

/// How long a host waits for its engine.
#[derive(Debug, Clone)]
pub struct Limits {
    pub load: Duration,
    /// From asking to the answer, with the waiting in between. `Handle::limited` sets another.
    pub job: Duration,
    /// A process that has not given up a cancelled job after so long is killed. A thread cannot be.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // 7 GB from a slow disk.
            load: Duration::from_secs(300),
            job: Duration::from_secs(300),
            // No step of an engine is longer: a token, a diffusion step, a segment.
            grace: Duration::from_secs(5),
        }
    }
}

/// What is known of an engine and its process. A thread has no pid and never dies alone.
#[derive(Debug, Clone, Default)]
pub struct Vitals {
    /// What it said of itself when it was loaded.
    pub note: Option<Arc<str>>,
    /// None while it is down, or starting.
    pub pid: Option<u32>,
    pub deaths: u32,
    pub last_death: Option<Arc<str>>,
    /// Until then it is not started again.
    pub quarantined_until: Option<Instant>,
}

/// Asks one engine. Cheap to clone; when the last clone is dropped, the engine is unloaded after the job in hand.
pub struct Handle<E: Engine> {
    shared: Arc<Shared<E>>,
    job_limit: Duration,
}

struct Shared<E: Engine> {
    name: String,
    /// One waits while one runs; the queue that people see is in `jobs`. None once it is closed.
    asks: Mutex<Option<mpsc::Sender<Asked<E>>>>,
    vitals: watch::Receiver<Vitals>,
    grace: Duration,
    closing: CancellationToken,
    /// The thread or the process is no more.
    ended: CancellationToken,
}

/// One question on its way to the engine. The reply is closed when whoever asked has left.
struct Asked<E: Engine> {
    ask: E::Ask,
    steps: Option<mpsc::Sender<E::Progress>>,
    cancel: Cancel,
    reply: oneshot::Sender<Result<E::Answer>>,
}

/// What a host that is being built needs of its handle.
struct Desk<E: Engine> {
    asks: mpsc::Receiver<Asked<E>>,
    vitals: watch::Sender<Vitals>,
    closing: CancellationToken,
    ended: CancellationToken,
}

impl<E: Engine> Clone for Handle<E> {
    fn clone(&self) -> Self {
        Handle { shared: Arc::clone(&self.shared), job_limit: self.job_limit }
    }
}

impl<E: Engine> Handle<E> {
    fn new(name: &str, limits: &Limits) -> (Handle<E>, Desk<E>) {
        let (asks, inbox) = mpsc::channel(1);
        let (told, vitals) = watch::channel(Vitals::default());
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let shared = Shared {
            name: name.to_owned(),
            asks: Mutex::new(Some(asks)),
            vitals,
            grace: limits.grace,
            closing: closing.clone(),
            ended: ended.clone(),
        };
        let handle = Handle { shared: Arc::new(shared), job_limit: limits.job };
        (handle, Desk { asks: inbox, vitals: told, closing, ended })
    }

    /// The same engine, asked with another limit of time.
    pub fn limited(&self, job_limit: Duration) -> Handle<E> {
        Handle { job_limit, ..self.clone() }
    }

    /// Dropping the future cancels the work at the engine's next step.
    pub async fn ask(&self, ask: E::Ask) -> Result<E::Answer> {
        self.ask_telling(ask, None).await
    }

    /// As `ask`, told every step. A job whose engine died is tried again, and its steps are told from the first.
    pub async fn ask_with(&self, ask: E::Ask, mut progress: impl FnMut(E::Progress) + Send) -> Result<E::Answer> {
        let (steps, mut stepped) = mpsc::channel(STEPS);
        let mut answer = std::pin::pin!(self.ask_telling(ask, Some(steps)));
        loop {
            tokio::select! {
                biased;
                Some(step) = stepped.recv() => progress(step),
                answer = &mut answer => {
                    // Every step was sent before the answer.
                    while let Ok(step) = stepped.try_recv() {
                        progress(step);
                    }
                    return answer;
                }
            }
        }
    }

    /// As `ask_with`, where the steps go into a channel: whoever is slow to take them holds the own job up.
    pub async fn ask_telling(&self, ask: E::Ask, steps: Option<mpsc::Sender<E::Progress>>) -> Result<E::Answer> {
        let Some(asks) = lock(&self.shared.asks).clone() else { return Err(self.closed()) };
        let cancel = Cancel::default();
        let _cancel_on_drop = CancelOnDrop(cancel.clone());
        let answered = async {
            let ended = || Error::internal(format!("the engine {} has ended", self.shared.name));
            let (reply, answer) = oneshot::channel();
            asks.send(Asked { ask, steps, cancel, reply }).await.map_err(|_| ended())?;
            // Whoever waits for an answer must not keep the door of a closed engine open.
            drop(asks);
            answer.await.map_err(|_| ended())?
        };
        tokio::select! {
            answer = tokio::time::timeout(self.job_limit, answered) => answer.unwrap_or_else(|_| Err(self.overdue())),
            () = self.shared.closing.cancelled() => Err(self.closed()),
        }
    }

    /// Unloads the engine, giving up the job in hand. Resolves when its thread or process is gone and its memory is
    /// back; the error says that it is not.
    pub async fn close(&self) -> Result<()> {
        drop(lock(&self.shared.asks).take());
        self.shared.closing.cancel();
        let limit = self.shared.grace * 2 + END_LIMIT;
        tokio::time::timeout(limit, self.shared.ended.cancelled()).await.map_err(|_| {
            Error::new(Kind::Timeout, format!("the engine {} does not end; its memory is still held", self.shared.name))
                .hint("restarting the daemon gives it back")
        })
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Changes with every start and death of the engine's process.
    pub fn vitals(&self) -> watch::Receiver<Vitals> {
        self.shared.vitals.clone()
    }

    /// The memory of the engine's process on the host (not on a card). None for a thread, whose memory is the daemon's,
    /// and while the process is down.
    pub fn memory_bytes(&self) -> Option<u64> {
        let pid = self.shared.vitals.borrow().pid?;
        memory_bytes(pid)
    }

    fn overdue(&self) -> Error {
        let limit = self.job_limit.as_secs_f32();
        Error::new(Kind::Timeout, format!("the engine {} gave no answer within {limit} s", self.shared.name))
            .hint("jobs.timeout_secs sets the limit; a smaller model is faster")
    }

    fn closed(&self) -> Error {
        Error::unavailable(format!("the engine {} has been unloaded", self.shared.name))
    }
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Its own and its share of what it has in common with others, so that the sum over all engines is right.
fn memory_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_process_is_read_and_of_none_is_unknown() {
        assert!(memory_bytes(std::process::id()).unwrap() > 1 << 20);
        assert_eq!(memory_bytes(u32::MAX), None);
    }
}
