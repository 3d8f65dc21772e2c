//! Hands each job to its engine when that engine is free and may be in memory, within a limit of time. Batch work gives
//! its engine up when live work needs the memory, and waits for its next turn.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    base::{Error, Kind, Result, Shutdown},
    engines::{PieceText, Registry, TranscribeAsk},
    flow::{Priority, Task},
    jobs::{Ask, Queue, queue::Job},
    telemetry::events::{JobEnded, emit},
};

/// Runs until shutdown; by then the sources have taken back what they wait for.
pub async fn run(queue: Queue, registry: Registry, limit: Duration, shutdown: Shutdown) {
    let mut running = JoinSet::new();
    let mut occupied = BTreeSet::new();
    loop {
        queue.answer_beats();
        while let Some(job) = queue.take(|task| !occupied.contains(&task)) {
            if job.ask.is_abandoned() {
                ended(job.priority, "abandoned", job.asked);
                continue;
            }
            let task = job.ask.task();
            occupied.insert(task);
            let (queue, registry) = (queue.clone(), registry.clone());
            running.spawn(async move {
                let Ask::Transcribe(ask, _) = &job.ask;
                let work = transcribe(&queue, &registry, ask.clone(), job.priority, limit);
                if let Some(job) = serve(job, limit, work).await {
                    queue.put_back(job);
                }
                task
            });
        }
        tokio::select! {
            () = queue.changed() => {}
            Some(finished) = running.join_next() => match finished {
                Ok(task) => { occupied.remove(&task); }
                // Serving only waits and never panics by itself; if it does, no engine may stay marked as taken.
                Err(error) => { log::error!("a job's task ended badly: {error}"); occupied = BTreeSet::new(); }
            },
            () = shutdown.wait() => return,
        }
    }
}

/// Gives the job back if it has to wait for another turn: its work was asked to yield and has no answer yet.
async fn serve(
    mut job: Job,
    limit: Duration,
    work: impl Future<Output = Result<Option<Vec<PieceText>>>>,
) -> Option<Job> {
    let Ask::Transcribe(_, reply) = &mut job.ask;
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, work) => {
            answer.unwrap_or_else(|_| Err(too_slow(Task::Transcribe, limit)))
        }
        () = left(reply) => Err(Error::new(Kind::Cancelled, "whoever asked has left")),
    };
    let answer = match answer {
        Ok(None) => return Some(job),
        Ok(Some(texts)) => Ok(texts),
        Err(error) => Err(error),
    };
    ended(job.priority, outcome_name(&answer), job.asked);
    let Ask::Transcribe(_, reply) = job.ask;
    drop(reply.send(answer));
    None
}

/// None: more urgent work needs the memory, or the engine before it is there: waiting for it must not hold that up.
async fn transcribe(
    queue: &Queue,
    registry: &Registry,
    ask: TranscribeAsk,
    priority: Priority,
    limit: Duration,
) -> Result<Option<Vec<PieceText>>> {
    let hired = tokio::select! {
        // First, so that an engine that is there is never given up unused.
        biased;
        hired = registry.transcriber(priority) => hired?,
        () = queue.overtaken(Task::Transcribe, priority) => return Ok(None),
    };
    // The host's own limit may be the shorter one.
    let engine = hired.limited(limit);
    tokio::select! {
        answer = engine.ask(ask) => answer.map(Some),
        () = hired.asked_to_yield() => Ok(None),
    }
}

async fn left<T>(reply: &mut oneshot::Sender<T>) {
    reply.closed().await;
}

fn too_slow(task: Task, limit: Duration) -> Error {
    Error::new(Kind::Timeout, format!("{} took longer than {} s", task.name(), limit.as_secs()))
        .hint("jobs.timeout_secs sets the limit; a smaller model is faster")
}

fn ended(priority: Priority, outcome: &'static str, asked: Instant) {
    emit(JobEnded { priority: priority.name(), outcome, elapsed: asked.elapsed() });
}

fn outcome_name<T>(answer: &Result<T>) -> &'static str {
    match answer {
        Ok(_) => "done",
        Err(error) => error.kind().code(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        device,
        engines::{Hosting, Places, transcript},
        jobs::QueueLimits,
        settings::{Sources, load},
    };

    const LIMIT: Duration = Duration::from_secs(10);

    struct Rig {
        queue: Queue,
        shutdown: Shutdown,
    }

    /// The worker with the engine that echoes.
    fn rig() -> Rig {
        let sets = vec!["tasks.transcribe.model=test-echo".to_owned()];
        let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
        let places = Places { models: Vec::new(), library: Vec::new(), own_entries: None, hosting: Hosting::Threads };
        let facts = device::probe(Path::new("/"));
        let registry = Registry::new(&settings, places);
        registry.begin(&facts);
        let rig =
            Rig { queue: Queue::new(QueueLimits { live: 2, interactive: 2, batch: 2 }), shutdown: Shutdown::new() };
        tokio::spawn(run(rig.queue.clone(), registry, LIMIT, rig.shutdown.clone()));
        rig
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            self.shutdown.start();
        }
    }

    fn ask(samples: usize) -> (Ask, oneshot::Receiver<Result<Vec<PieceText>>>) {
        let (reply, answer) = oneshot::channel();
        let ask = TranscribeAsk { words: true, ..TranscribeAsk::of(vec![0.5; samples].into(), "en") };
        (Ask::Transcribe(ask, reply), answer)
    }

    #[tokio::test]
    async fn a_job_is_answered_with_what_its_engine_makes_of_it() {
        let rig = rig();
        let (ask, answer) = ask(16_000);
        rig.queue.submit(Priority::Interactive, ask).unwrap();
        let transcript = transcript(tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap().unwrap());
        assert_eq!((transcript.text.as_str(), transcript.language.as_str()), ("1.00 s -6 dB", "en"));
        assert_eq!(transcript.words.len(), 1);
    }

    #[tokio::test]
    async fn jobs_of_those_who_left_are_passed_over_and_their_places_come_free() {
        let rig = rig();
        for _ in 0..20 {
            let (abandoned, answer) = ask(16_000);
            drop(answer);
            tokio::time::timeout(LIMIT, rig.queue.submit_patiently(Priority::Live, abandoned)).await.unwrap().unwrap();
        }
        let (ask, answer) = ask(160);
        tokio::time::timeout(LIMIT, rig.queue.submit_patiently(Priority::Live, ask)).await.unwrap().unwrap();
        tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_job_that_yields_waits_for_its_next_turn_before_those_that_came_after_it() {
        let queue = Queue::new(QueueLimits { live: 1, interactive: 1, batch: 2 });
        let (ask_first, mut answer) = ask(160);
        queue.submit(Priority::Batch, ask_first).unwrap();
        let (ask_second, _later) = ask(320);
        queue.submit(Priority::Batch, ask_second).unwrap();
        let job = queue.take(|_| true).unwrap();
        let asked = job.asked;
        let job = serve(job, LIMIT, async { Ok(None) }).await.expect("it is given back");
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "it is waited for");
        queue.put_back(job);
        assert_eq!(queue.submit(Priority::Batch, ask(160).0).unwrap_err().kind(), Kind::Busy, "it keeps its place");
        let job = queue.take(|_| true).unwrap();
        assert_eq!(job.asked, asked);
        assert!(serve(job, LIMIT, async { Ok(Some(Vec::new())) }).await.is_none());
        assert!(answer.await.unwrap().unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_heart_beats_while_every_lane_is_full() {
        let queue = Queue::new(QueueLimits { live: 1, interactive: 1, batch: 1 });
        let (waiting, _answer) = ask(16_000);
        queue.submit(Priority::Live, waiting).unwrap();
        let beating = tokio::spawn({
            let queue = queue.clone();
            async move { queue.beat().await }
        });
        tokio::task::yield_now().await;
        queue.answer_beats();
        tokio::time::timeout(LIMIT, beating).await.unwrap().unwrap().unwrap();
    }
}
