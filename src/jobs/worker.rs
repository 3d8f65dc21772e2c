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
                if let Some(job) = serve(job, &registry, limit).await {
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

/// Gives the job back if it has to wait for another turn.
async fn serve(mut job: Job, registry: &Registry, limit: Duration) -> Option<Job> {
    let Ask::Transcribe(ask, reply) = &mut job.ask;
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, transcribe(registry, ask, job.priority)) => {
            answer.unwrap_or_else(|_| Err(too_slow(Task::Transcribe, limit)))
        }
        () = left(reply) => Err(Error::new(Kind::Cancelled, "whoever asked has left")),
    };
    let answer = answer.transpose()?;
    ended(job.priority, outcome_name(&answer), job.asked);
    let Ask::Transcribe(_, reply) = job.ask;
    drop(reply.send(answer));
    None
}

/// None: more urgent work needs the memory.
async fn transcribe(registry: &Registry, ask: &TranscribeAsk, priority: Priority) -> Result<Option<Vec<PieceText>>> {
    let hired = registry.transcriber(priority).await?;
    tokio::select! {
        answer = hired.ask(ask.clone()) => answer.map(Some),
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
