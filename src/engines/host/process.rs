//! Keeps an engine in a process of its own: hands it jobs one at a time, kills it when it does not give up a job that
//! nobody waits for, and starts it anew after a death. A job whose process died is tried once more.
//!
//! A process that has died is started again by the next job and not before, so that no memory is taken for an engine
//! that nobody asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Engine, EngineSpec, Spec,
        host::{
            Asked, Desk, Handle, Launch, Vitals,
            link::{Child, Failed, Fault, kind_of},
            restarts::{Next, Restarts},
            wire::{FromChild, ToChild, encode},
        },
    },
};

impl<E: Engine> Handle<E> {
    /// Starts a process, builds the engine in it, and waits until it is there.
    pub async fn process<S: Spec<Engine = E>>(spec: S, launch: Launch) -> Result<Handle<E>> {
        let (handle, Desk { asks, vitals, closing, ended }) = Handle::new(&launch.name, &launch.limits);
        let restarts = Restarts::new(launch.restarts.clone());
        let mut keeper = Keeper { launch, spec: spec.into(), child: None, restarts, vitals, closing, job: 0 };
        keeper.start().await?;
        tokio::spawn(async move {
            let _ended = ended.drop_guard();
            keeper.run(asks).await;
        });
        Ok(handle)
    }
}

struct Keeper<E: Engine> {
    launch: Launch,
    spec: EngineSpec,
    /// None after a death, until the next job.
    child: Option<Child<E>>,
    restarts: Restarts,
    vitals: watch::Sender<Vitals>,
    closing: CancellationToken,
    /// The number of the last job; a job that is tried again keeps its own.
    job: u64,
}

enum Worked<A> {
    Answered(Result<A>),
    /// Whoever asked has left, and the engine has given the job up.
    GivenUp,
    Died,
}

impl<E: Engine> Keeper<E> {
    async fn run(mut self, mut asks: mpsc::Receiver<Asked<E>>) {
        loop {
            let asked = tokio::select! {
                // First, so that no job is tried on a process that has died before it came.
                biased;
                fault = unasked(&mut self.child) => {
                    self.died(fault).await;
                    continue;
                }
                asked = asks.recv() => asked,
            };
            match asked {
                Some(asked) if asked.reply.is_closed() => {}
                Some(asked) => self.serve(asked).await,
                None => break,
            }
        }
        self.retire().await;
    }

    async fn serve(&mut self, Asked { ask, steps, mut reply, .. }: Asked<E>) {
        self.job += 1;
        let frame = match encode(&ToChild::Ask { job: self.job, steps: steps.is_some(), ask }) {
            Ok(frame) => frame,
            Err(error) => return drop(reply.send(Err(error))),
        };
        for _attempt in 1..=2 {
            if let Err(error) = self.ready(&mut reply).await {
                return drop(reply.send(Err(error)));
            }
            match self.work(&frame, steps.as_ref(), &mut reply).await {
                Worked::Answered(answer) => {
                    let untrusted = answer.as_ref().is_err_and(|error| error.kind() == Kind::Internal);
                    drop(steps);
                    drop(reply.send(answer));
                    if untrusted {
                        // It has failed twice, on an engine built anew in between: what it broke in its process, such
                        // as the state of a driver, ends with that.
                        self.retire().await;
                    }
                    return;
                }
                Worked::GivenUp => return,
                Worked::Died if reply.is_closed() => return,
                Worked::Died => {}
            }
        }
        let last = self.vitals.borrow().last_death.clone().unwrap_or_default();
        let error = format!("the engine {} died twice on this job: {last}", self.launch.name);
        drop(reply.send(Err(Error::new(kind_of(&last), error))));
    }

    /// Starts the process where there is none, as soon as the rules permit.
    async fn ready<A>(&mut self, reply: &mut oneshot::Sender<A>) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        match self.restarts.next(Instant::now()) {
            Next::Quarantined(left) => {
                let last = self.vitals.borrow().last_death.clone().unwrap_or_default();
                return Err(died_too_often(&self.launch.name, &last, left));
            }
            Next::After(pause) => tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = reply.closed() => return Err(Error::new(Kind::Cancelled, "whoever asked has left")),
            },
        }
        self.start().await
    }

    /// Goes on although the asker may leave, because the next one needs the engine too; closing gives it up.
    async fn start(&mut self) -> Result<()> {
        match Child::start(&self.launch, &self.spec, &self.closing).await {
            Ok((child, note)) => {
                self.vitals.send_modify(|vitals| {
                    vitals.note = note.map(Into::into);
                    vitals.pid = Some(child.pid());
                    vitals.quarantined_until = None;
                });
                self.child = Some(child);
                Ok(())
            }
            Err(Failed { error, death }) => {
                if let Some(death) = death {
                    self.count_death(&death);
                }
                Err(error)
            }
        }
    }

    async fn work(
        &mut self,
        frame: &[u8],
        steps: Option<&mpsc::Sender<E::Progress>>,
        reply: &mut oneshot::Sender<Result<E::Answer>>,
    ) -> Worked<E::Answer> {
        let Some(child) = &mut self.child else { return Worked::Died };
        let worked = match child.write(frame).await {
            Ok(()) => work(child, self.job, self.launch.limits.grace, steps, reply).await,
            Err(fault) => Err(Trouble::Fault(fault)),
        };
        match worked {
            Ok(worked) => worked,
            Err(Trouble::Fault(fault)) => {
                self.died(fault).await;
                Worked::Died
            }
            Err(Trouble::Hangs) => {
                let grace = self.launch.limits.grace.as_secs_f32();
                if let Some(child) = self.child.take() {
                    let death = child.kill(&format!("it did not give up a cancelled job within {grace} s")).await;
                    self.count_death(&death);
                }
                Worked::Died
            }
        }
    }

    async fn died(&mut self, fault: Fault) {
        if let Some(child) = self.child.take() {
            let death = child.bury(fault).await;
            self.count_death(&death);
        }
    }

    fn count_death(&mut self, death: &str) {
        let quarantined_until = self.restarts.died(Instant::now());
        log::error!(engine = self.launch.name.as_str(), quarantined = quarantined_until.is_some();
            "the process of an engine has died: {death}");
        self.vitals.send_modify(|vitals| {
            vitals.pid = None;
            vitals.deaths += 1;
            vitals.last_death = Some(Arc::from(death));
            vitals.quarantined_until = quarantined_until;
        });
    }

    /// No death: it is asked to go.
    async fn retire(&mut self) {
        if let Some(child) = self.child.take() {
            child.end().await;
            self.vitals.send_modify(|vitals| vitals.pid = None);
        }
    }
}

/// Said by whoever knows of the quarantine.
pub(in crate::engines) fn died_too_often(name: &str, last_death: &str, left: Duration) -> Error {
    let left = left.as_secs_f32().ceil();
    Error::unavailable(format!("the engine {name} has died too often: {last_death}"))
        .hint(format!("it is tried again in {left} s; the log says what happened to it"))
}

/// Resolves when a process that was asked nothing says or does something all the same.
async fn unasked<E: Engine>(child: &mut Option<Child<E>>) -> Fault {
    match child {
        Some(child) => child.said().await.map_or_else(|fault| fault, |_| Fault::out_of_turn()),
        None => std::future::pending().await,
    }
}

enum Trouble {
    Fault(Fault),
    Hangs,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Fault(fault)
    }
}

/// One job, from its ask to its answer. When the asker leaves, the engine is told, and has `grace` to answer.
async fn work<E: Engine>(
    child: &mut Child<E>,
    job: u64,
    grace: Duration,
    steps: Option<&mpsc::Sender<E::Progress>>,
    reply: &mut oneshot::Sender<Result<E::Answer>>,
) -> Result<Worked<E::Answer>, Trouble> {
    let working = async {
        loop {
            match child.said().await? {
                FromChild::Progress { job: of, step } if of == job => {
                    if let Some(steps) = steps {
                        // An asker that is slow holds its own job up; one that has left does not.
                        drop(steps.send(step).await);
                    }
                }
                FromChild::Answer { job: of, answer } if of == job => return Ok(answer),
                _ => return Err(Fault::out_of_turn()),
            }
        }
    };
    tokio::select! {
        answer = working => return Ok(Worked::Answered(answer?.map_err(Error::from))),
        () = reply.closed() => child.cancel(job).await?,
    }
    let giving_up = async {
        loop {
            if let FromChild::Answer { job: of, .. } = child.said().await?
                && of == job
            {
                return Ok(Worked::GivenUp);
            }
        }
    };
    tokio::time::timeout(grace, giving_up).await.unwrap_or(Err(Trouble::Hangs))
}
