//! Hands each job to its engine when that engine is free and may be in memory, within a limit of time. Batch work gives
//! its engine up when live work needs the memory, and waits for its next turn.

use std::{collections::BTreeSet, time::Duration};

use tokio::task::JoinSet;

use crate::{
    base::Shutdown,
    engines::Registry,
    jobs::{Queue, ask::Turn, queue::Job},
    telemetry::events::{JobEnded, emit},
};

/// Runs until shutdown; by then the sources have taken back what they wait for.
pub async fn run(queue: Queue, registry: Registry, limit: Duration, shutdown: Shutdown) {
    let mut running = JoinSet::new();
    let mut occupied = BTreeSet::new();
    loop {
        queue.answer_beats();
        while let Some(mut job) = queue.take(|engine| !occupied.contains(&engine)) {
            if job.question.is_abandoned() {
                ended(&job, "abandoned");
                continue;
            }
            let engine = job.question.engine();
            occupied.insert(engine);
            let (queue, registry) = (queue.clone(), registry.clone());
            running.spawn(async move {
                let turn = Turn { queue: &queue, registry: &registry, priority: job.priority, limit };
                match job.question.serve(turn).await {
                    Some(outcome) => ended(&job, outcome),
                    None => queue.put_back(job),
                }
                engine
            });
        }
        tokio::select! {
            () = queue.changed() => {}
            Some(finished) = running.join_next() => match finished {
                Ok(engine) => { occupied.remove(&engine); }
                // Serving only waits and never panics by itself; if it does, no engine may stay marked as taken.
                Err(error) => { log::error!("a job's task ended badly: {error}"); occupied = BTreeSet::new(); }
            },
            () = shutdown.wait() => return,
        }
    }
}

fn ended(job: &Job, outcome: &'static str) {
    let (task, priority) = (job.question.task().name(), job.priority.name());
    emit(JobEnded { task, priority, outcome, elapsed: job.asked.elapsed() });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        device,
        engines::{Asr, EmbedAsk, Hosting, Places, TranscribeAsk, Voiceprints, transcript},
        flow::Priority,
        jobs::{Ask, QueueLimits},
        settings::{Sources, load},
    };

    const LIMIT: Duration = Duration::from_secs(10);

    struct Rig {
        queue: Queue,
        shutdown: Shutdown,
    }

    /// The worker with engines for tests.
    fn rig() -> Rig {
        let sets = vec!["tasks.transcribe.model=test-echo".to_owned(), "tasks.diarize.model=test-loudness".to_owned()];
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

    fn ask(samples: usize) -> Ask<Asr> {
        Ask::new(TranscribeAsk { words: true, ..TranscribeAsk::of(vec![0.5; samples].into(), "en") })
    }

    #[tokio::test]
    async fn a_job_is_answered_with_what_its_engine_makes_of_it() {
        let rig = rig();
        let answer = rig.queue.submit(Priority::Interactive, ask(16_000)).unwrap();
        let transcript = transcript(timeout(LIMIT, answer).await.unwrap().unwrap());
        assert_eq!((transcript.text.as_str(), transcript.language.as_str()), ("1.00 s -6 dB", "en"));
        assert_eq!(transcript.words.len(), 4);
    }

    #[tokio::test]
    async fn each_kind_of_engine_has_its_own_questions_and_answers() {
        let rig = rig();
        let utterances = vec![vec![0.5; 16_000].into(), vec![0.05; 16_000].into(), vec![0.4; 16_000].into()];
        let voices = rig.queue.submit(Priority::Live, Ask::<Voiceprints>::new(EmbedAsk { utterances })).unwrap();
        let text = rig.queue.submit(Priority::Live, ask(16_000)).unwrap();
        let voices = timeout(LIMIT, voices).await.unwrap().unwrap().voices;
        timeout(LIMIT, text).await.unwrap().unwrap();
        let alike = |a: usize, b: usize| voices[a].iter().zip(&voices[b]).map(|(a, b)| a * b).sum::<f32>();
        assert!(alike(0, 2) > 0.95 && alike(0, 1) < 0.75, "{voices:?}");
    }

    #[tokio::test]
    async fn jobs_of_those_who_left_are_passed_over_and_their_places_come_free() {
        let rig = rig();
        for _ in 0..20 {
            drop(timeout(LIMIT, rig.queue.submit_patiently(Priority::Live, ask(16_000))).await.unwrap().unwrap());
        }
        let answer = timeout(LIMIT, rig.queue.submit_patiently(Priority::Live, ask(160))).await.unwrap().unwrap();
        timeout(LIMIT, answer).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_heart_beats_while_every_lane_is_full() {
        let queue = Queue::new(QueueLimits { live: 1, interactive: 1, batch: 1 });
        let _waiting = queue.submit(Priority::Live, ask(16_000)).unwrap();
        let beating = tokio::spawn({
            let queue = queue.clone();
            async move { queue.beat().await }
        });
        tokio::task::yield_now().await;
        queue.answer_beats();
        timeout(LIMIT, beating).await.unwrap().unwrap().unwrap();
    }
}
