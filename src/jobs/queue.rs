//! The queue: three lanes, each with a size. A full lane refuses at the door; whoever may not lose work (a live
//! session's final segments) waits for a place instead, and holds back its client while it does.

use std::{
    any::TypeId,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    base::{Error, Kind, Result, lock},
    engines::Hireable,
    flow::Priority,
    jobs::{Answer, Ask, ask::Question},
    telemetry::events::{QueueRefused, emit},
};

/// Offered work that waits at a time: what comes later would be stale before its turn.
const MOST_OFFERS: usize = 4;

pub(super) struct Job {
    pub(super) priority: Priority,
    pub(super) question: Box<dyn Question>,
    pub(super) asked: Instant,
    /// Work that may wait for all other live work, for it may turn out to be for nothing.
    offer: Option<Offer>,
    /// The place in its lane, free again once the job is done with.
    _place: OwnedSemaphorePermit,
}

/// Work that was offered and taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer(u64);

#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    pub live: usize,
    pub interactive: usize,
    pub batch: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct QueueDepth {
    pub live: usize,
    pub interactive: usize,
    pub batch: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

struct Inner {
    lanes: Mutex<[VecDeque<Job>; 3]>,
    places: [Arc<Semaphore>; 3],
    offers: AtomicU64,
    beats: Mutex<Vec<oneshot::Sender<()>>>,
    changed: Notify,
    /// Wakes jobs that wait for their engine, as `changed` wakes the worker.
    arrived: Notify,
}

impl Queue {
    pub fn new(limits: QueueLimits) -> Queue {
        let places = [limits.live, limits.interactive, limits.batch].map(|size| Arc::new(Semaphore::new(size)));
        Queue(Arc::new(Inner {
            lanes: Mutex::default(),
            places,
            offers: AtomicU64::new(0),
            beats: Mutex::default(),
            changed: Notify::new(),
            arrived: Notify::new(),
        }))
    }

    /// Takes the job, or says that the lane is full.
    pub fn submit<E: Hireable>(&self, priority: Priority, ask: Ask<E>) -> Result<Answer<E>> {
        let place = Arc::clone(&self.0.places[priority as usize]).try_acquire_owned().map_err(|_| {
            emit(QueueRefused { priority: priority.name() });
            Error::new(Kind::Busy, format!("too much {} work is waiting already", priority.name()))
                .hint("try again in a few seconds")
        })?;
        Ok(self.enter(priority, ask, None, place))
    }

    /// Takes live work that helps if it is done soon and may be left out: none while other live work waits for its engine,
    /// and little of it. What is submitted later goes before it.
    pub fn offer<E: Hireable>(&self, ask: Ask<E>) -> Result<(Offer, Answer<E>)> {
        let busy = || Error::new(Kind::Busy, "live work is waiting that cannot be left out");
        let place = Arc::clone(&self.0.places[Priority::Live as usize]).try_acquire_owned().map_err(|_| busy())?;
        {
            let lanes = lock(&self.0.lanes);
            let lane = &lanes[Priority::Live as usize];
            let waiting = || lane.iter().filter(|job| !job.question.is_abandoned());
            let needed = waiting().any(|job| job.offer.is_none() && job.question.engine() == TypeId::of::<E>());
            if needed || waiting().filter(|job| job.offer.is_some()).count() >= MOST_OFFERS {
                return Err(busy());
            }
        }
        let offer = Offer(self.0.offers.fetch_add(1, Ordering::Relaxed));
        Ok((offer, self.enter(Priority::Live, ask, Some(offer), place)))
    }

    /// Offered work is needed after all: if it still waits, it does as if it had been submitted.
    pub fn promote(&self, offer: Offer) {
        let mut lanes = lock(&self.0.lanes);
        let lane = &mut lanes[Priority::Live as usize];
        let found = lane.iter().position(|job| job.offer == Some(offer)).and_then(|at| lane.remove(at));
        if let Some(job) = found {
            insert(lane, Job { offer: None, ..job });
        }
    }

    /// Takes the job once there is a place. Dropping the future gives up the wait.
    pub async fn submit_patiently<E: Hireable>(&self, priority: Priority, ask: Ask<E>) -> Result<Answer<E>> {
        let place = Arc::clone(&self.0.places[priority as usize])
            .acquire_owned()
            .await
            .map_err(|_| Error::internal("the queue has been closed"))?;
        Ok(self.enter(priority, ask, None, place))
    }

    /// Resolves when the worker has come round once: a sign of life for the watchdog. It takes no place in a lane, for
    /// a queue that is full of work is no reason to be restarted.
    pub async fn beat(&self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.beats).push(sender);
        self.0.changed.notify_one();
        receiver.await.map_err(|_| Error::internal("the worker of the queue has ended"))
    }

    pub(super) fn answer_beats(&self) {
        for beat in lock(&self.0.beats).drain(..) {
            // Whoever asked may have stopped waiting.
            beat.send(()).unwrap_or(());
        }
    }

    pub fn depth(&self) -> QueueDepth {
        let lanes = lock(&self.0.lanes);
        QueueDepth { live: lanes[0].len(), interactive: lanes[1].len(), batch: lanes[2].len() }
    }

    /// The first job, by priority and then by age, whose engine is free.
    pub(super) fn take(&self, is_free: impl Fn(TypeId) -> bool) -> Option<Job> {
        let mut lanes = lock(&self.0.lanes);
        for priority in Priority::ALL {
            let lane = &mut lanes[priority as usize];
            let next = lane.iter().position(|job| is_free(job.question.engine()));
            if let Some(index) = next {
                return lane.remove(index);
            }
        }
        None
    }

    /// Resolves when something was put in since the last call.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Resolves when a more urgent job waits for the same engine.
    pub(super) async fn overtaken(&self, engine: TypeId, priority: Priority) {
        loop {
            let arrived = self.0.arrived.notified();
            let is_urgent = |job: &Job| {
                let question = &job.question;
                job.priority < priority && question.engine() == engine && !question.is_abandoned()
            };
            if lock(&self.0.lanes).iter().flatten().any(is_urgent) {
                return;
            }
            arrived.await;
        }
    }

    /// A job that had begun and has to wait again goes before those that came after it.
    pub(super) fn put_back(&self, job: Job) {
        lock(&self.0.lanes)[job.priority as usize].push_front(job);
        self.0.changed.notify_one();
    }

    fn enter<E: Hireable>(
        &self,
        priority: Priority,
        ask: Ask<E>,
        offer: Option<Offer>,
        place: OwnedSemaphorePermit,
    ) -> Answer<E> {
        let (question, answer) = ask.question();
        let job = Job { priority, question, asked: Instant::now(), offer, _place: place };
        insert(&mut lock(&self.0.lanes)[job.priority as usize], job);
        self.0.changed.notify_one();
        self.0.arrived.notify_waiters();
        answer
    }
}

/// Behind those that came before, but before what is only offered.
fn insert(lane: &mut VecDeque<Job>, job: Job) {
    let at = match job.offer {
        Some(_) => lane.len(),
        None => lane.iter().position(|waiting| waiting.offer.is_some()).unwrap_or(lane.len()),
    };
    lane.insert(at, job);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{Asr, TranscribeAsk};

    fn queue(live: usize) -> Queue {
        Queue::new(QueueLimits { live, interactive: 4, batch: 4 })
    }

    fn transcribe() -> Ask<Asr> {
        Ask::new(TranscribeAsk::of(vec![0.0; 16].into(), "es"))
    }

    #[test]
    fn busy_when_the_lane_is_full_and_free_again_when_the_job_is_done_with() {
        let queue = queue(1);
        queue.submit(Priority::Live, transcribe()).unwrap();
        let refused = queue.submit(Priority::Live, transcribe()).err().unwrap();
        assert_eq!(refused.kind(), Kind::Busy);
        assert!(refused.hint_text().is_some());
        queue.submit(Priority::Batch, transcribe()).unwrap();
        drop(queue.take(|_| true));
        queue.submit(Priority::Live, transcribe()).unwrap();
    }

    /// The offers that wait, in the order of their turn; None is work that was submitted.
    fn turns(queue: &Queue) -> Vec<Option<Offer>> {
        std::iter::from_fn(|| queue.take(|_| true)).map(|job| job.offer).collect()
    }

    #[test]
    fn offered_work_waits_for_all_that_is_needed_and_is_left_out_where_such_work_waits() {
        let queue = queue(8);
        let [(first, _one), (second, _two)] = [(); 2].map(|()| queue.offer(transcribe()).unwrap());
        let _needed = queue.submit(Priority::Live, transcribe()).unwrap();
        assert_eq!(queue.offer(transcribe()).err().unwrap().kind(), Kind::Busy);
        queue.promote(second);
        let _later = queue.submit(Priority::Live, transcribe()).unwrap();
        assert_eq!(turns(&queue), [None, None, None, Some(first)]);
        queue.promote(first);
        assert!(queue.offer(transcribe()).is_ok(), "what had its turn is gone");
    }

    #[test]
    fn few_offers_wait_and_those_of_who_left_are_not_counted() {
        let queue = queue(64);
        let taken: Vec<_> = (0..=MOST_OFFERS).map_while(|_| queue.offer(transcribe()).ok()).collect();
        assert_eq!(taken.len(), MOST_OFFERS);
        drop(taken);
        assert!(queue.offer(transcribe()).is_ok());
    }

    #[tokio::test]
    async fn the_patient_get_the_next_place() {
        let queue = queue(1);
        queue.submit(Priority::Live, transcribe()).unwrap();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.submit_patiently(Priority::Live, transcribe()).await }
        });
        drop(queue.take(|_| true));
        waiting.await.unwrap().unwrap();
        assert_eq!(queue.depth().live, 1);
    }

    #[tokio::test]
    async fn a_job_hears_of_more_urgent_ones_that_wait_for_its_engine() {
        let queue = queue(4);
        let overtaken = tokio::spawn({
            let queue = queue.clone();
            async move { queue.overtaken(TypeId::of::<Asr>(), Priority::Interactive).await }
        });
        tokio::task::yield_now().await;
        let _batch = queue.submit(Priority::Batch, transcribe()).unwrap();
        let _interactive = queue.submit(Priority::Interactive, transcribe()).unwrap();
        drop(queue.submit(Priority::Live, transcribe()));
        tokio::task::yield_now().await;
        assert!(!overtaken.is_finished());
        let _live = queue.submit(Priority::Live, transcribe()).unwrap();
        overtaken.await.unwrap();
        queue.overtaken(TypeId::of::<Asr>(), Priority::Interactive).await;
    }

    #[test]
    fn live_work_overtakes_and_waits_for_its_engine() {
        let queue = queue(4);
        queue.submit(Priority::Batch, transcribe()).unwrap();
        queue.submit(Priority::Live, transcribe()).unwrap();
        assert!(queue.take(|_| false).is_none());
        assert!(queue.take(|_| true).is_some_and(|job| job.priority == Priority::Live));
        assert_eq!(queue.depth(), QueueDepth { live: 0, interactive: 0, batch: 1 });
    }

    #[test]
    fn a_job_that_is_put_back_keeps_its_place_and_goes_before_those_that_came_after_it() {
        let queue = Queue::new(QueueLimits { live: 1, interactive: 1, batch: 2 });
        let _first = queue.submit(Priority::Batch, transcribe()).unwrap();
        let _second = queue.submit(Priority::Batch, transcribe()).unwrap();
        let job = queue.take(|_| true).unwrap();
        let asked = job.asked;
        queue.put_back(job);
        assert_eq!(queue.submit(Priority::Batch, transcribe()).err().unwrap().kind(), Kind::Busy);
        assert_eq!(queue.take(|_| true).unwrap().asked, asked);
    }
}
