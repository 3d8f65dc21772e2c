//! What is asked of an engine, with the way back to the one who waits. The queue and the worker know no kind of engine:
//! they hold a [`Question`], and each kind is served in the same way.

use std::{
    any::TypeId,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot};

use crate::{
    base::{Error, Kind, Result},
    engines::{Engine, Hireable, Registry},
    flow::{Priority, Task},
    jobs::Queue,
};

/// A question to one kind of engine.
pub struct Ask<E: Hireable> {
    ask: E::Ask,
    steps: Option<mpsc::Sender<E::Progress>>,
}

impl<E: Hireable> Ask<E> {
    pub fn new(ask: E::Ask) -> Ask<E> {
        Ask { ask, steps: None }
    }

    /// Every step on the way is told there. Whoever is slow to take them holds the own job up, and no other. A job that
    /// begins anew, because its engine died or had to yield, tells its steps from the first again.
    pub fn telling(self, steps: mpsc::Sender<E::Progress>) -> Ask<E> {
        Ask { steps: Some(steps), ..self }
    }

    pub(super) fn question(self) -> (Box<dyn Question>, Answer<E>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Asked { ask: self, reply: Some(reply) }), Answer(answer))
    }
}

/// What comes of a question. Dropping it gives the job up, at its engine's next step.
pub struct Answer<E: Engine>(oneshot::Receiver<Result<E::Answer>>);

impl<E: Engine> Future for Answer<E> {
    type Output = Result<E::Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<E::Answer>> {
        self.0.poll_unpin(context).map(|answer| answer.unwrap_or_else(|_| Err(Error::internal("a job was lost"))))
    }
}

/// A question of any kind, as a job carries it.
pub(super) trait Question: Send {
    fn task(&self) -> Task;

    /// The kind of engine that it needs. One kind works at one job at a time.
    fn engine(&self) -> TypeId;

    /// Whoever asked has left; the work would be for nobody.
    fn is_abandoned(&self) -> bool;

    /// Hires the engine, asks it, and hands on what it says; how that went, by name. None: it has no answer yet and has
    /// to wait for another turn.
    fn serve<'a>(&'a mut self, turn: Turn<'a>) -> BoxFuture<'a, Option<&'static str>>;
}

/// What a question needs to be served.
pub(super) struct Turn<'a> {
    pub(super) queue: &'a Queue,
    pub(super) registry: &'a Registry,
    pub(super) priority: Priority,
    /// For everything, the waiting for memory included.
    pub(super) limit: Duration,
}

struct Asked<E: Hireable> {
    ask: Ask<E>,
    /// None once it is answered.
    reply: Option<oneshot::Sender<Result<E::Answer>>>,
}

impl<E: Hireable> Question for Asked<E> {
    fn task(&self) -> Task {
        E::TASK
    }

    fn engine(&self) -> TypeId {
        TypeId::of::<E>()
    }

    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn serve<'a>(&'a mut self, turn: Turn<'a>) -> BoxFuture<'a, Option<&'static str>> {
        let Asked { ask: Ask { ask, steps }, reply } = self;
        // It may have to be asked again.
        let (ask, steps, limit) = (ask.clone(), steps.clone(), turn.limit);
        answered(E::TASK, reply, limit, work::<E>(turn, ask, steps)).boxed()
    }
}

/// None: more urgent work needs the memory, or the engine before it is there: waiting for it must not hold that up.
async fn work<E: Hireable>(
    turn: Turn<'_>,
    ask: E::Ask,
    steps: Option<mpsc::Sender<E::Progress>>,
) -> Result<Option<E::Answer>> {
    let Turn { queue, registry, priority, limit } = turn;
    // An engine that has no memory to work in is passed over from then on, so this ends with the last that may serve.
    loop {
        let hired = tokio::select! {
            // First, so that an engine that is there is never given up unused.
            biased;
            hired = registry.hire::<E>(priority) => hired?,
            () = queue.overtaken(TypeId::of::<E>(), priority) => return Ok(None),
        };
        // The host's own limit may be the shorter one.
        let engine = hired.limited(limit);
        let answer = tokio::select! {
            answer = engine.ask_telling(ask.clone(), steps.clone()) => answer,
            () = hired.asked_to_yield() => return Ok(None),
        };
        match answer {
            Err(error) if error.kind() == Kind::OverBudget && registry.ran_out(hired, priority, &error) => {}
            answer => return answer.map(Some),
        }
    }
}

/// None if the work had to yield: then it is waited for all the same.
async fn answered<A>(
    task: Task,
    reply: &mut Option<oneshot::Sender<Result<A>>>,
    limit: Duration,
    work: impl Future<Output = Result<Option<A>>>,
) -> Option<&'static str> {
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, work) => answer.unwrap_or_else(|_| Err(too_slow(task, limit))),
        () = left(reply) => Err(Error::new(Kind::Cancelled, "whoever asked has left")),
    };
    let answer = answer.transpose()?;
    let outcome = answer.as_ref().map_or_else(|error| error.kind().code(), |_| "done");
    if let Some(reply) = reply.take() {
        drop(reply.send(answer));
    }
    Some(outcome)
}

async fn left<A>(reply: &mut Option<oneshot::Sender<A>>) {
    if let Some(reply) = reply {
        reply.closed().await;
    }
}

fn too_slow(task: Task, limit: Duration) -> Error {
    Error::new(Kind::Timeout, format!("{} took longer than {} s", task.name(), limit.as_secs()))
        .hint("jobs.timeout_secs sets the limit; a smaller model is faster")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{Asr, TranscribeAsk};

    const LIMIT: Duration = Duration::from_secs(10);

    fn question() -> (Box<dyn Question>, Answer<Asr>) {
        Ask::<Asr>::new(TranscribeAsk::of(vec![0.5; 160].into(), "es")).question()
    }

    #[test]
    fn a_question_is_abandoned_when_nobody_waits_for_its_answer() {
        let (question, answer) = question();
        assert!(!question.is_abandoned());
        drop(answer);
        assert!(question.is_abandoned());
        assert_eq!((question.task(), question.engine()), (Task::Transcribe, TypeId::of::<Asr>()));
    }

    #[tokio::test]
    async fn work_that_yields_is_waited_for_and_answered_at_another_turn() {
        let (reply, mut answer) = oneshot::channel();
        let mut reply = Some(reply);
        assert_eq!(answered::<u8>(Task::Chat, &mut reply, LIMIT, async { Ok(None) }).await, None);
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert_eq!(answered(Task::Chat, &mut reply, LIMIT, async { Ok(Some(7)) }).await, Some("done"));
        assert_eq!(answer.await.unwrap().unwrap(), 7);
        assert!(reply.is_none());
    }

    #[tokio::test]
    async fn work_ends_at_its_limit_and_when_its_asker_leaves() {
        let (reply, answer) = oneshot::channel();
        let endless = || std::future::pending::<Result<Option<u8>>>();
        let outcome = answered(Task::Chat, &mut Some(reply), Duration::from_millis(1), endless()).await;
        assert_eq!(outcome, Some("timeout"));
        assert!(answer.await.unwrap().unwrap_err().message().contains("chat"));
        let (reply, answer) = oneshot::channel();
        drop(answer);
        assert_eq!(answered(Task::Chat, &mut Some(reply), LIMIT, endless()).await, Some("cancelled"));
    }
}
