//! Gathers what many tasks hand over into batches for one thread that makes them durable.
//!
//! Bounded: who finds it full waits a little, or is refused at once while the writer is in trouble. Idle means
//! idle: the thread sleeps without a timer until something comes. Knows nothing of what it carries.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};

use crate::base::{Error, Result, lock};

/// How long a full queue may hold up its callers. Longer than an ordinary hiccup of an SD card, shorter than what
/// a person notices as a hang. After one has waited in vain nobody waits until the writer moves again.
const ROOM_LIMIT: Duration = Duration::from_secs(2);

/// Between attempts to write what could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// A full disk should not fill the system's journal as well.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What is gathered.
pub(super) trait Batch: Default {
    fn is_empty(&self) -> bool;
    /// Takes what came later behind what is there.
    fn absorb(&mut self, newer: Self);
}

pub(super) struct Gather<B> {
    state: Mutex<State<B>>,
    changed: Condvar,
    room: Semaphore,
    /// How long the first of a batch waits for company.
    window: Duration,
}

struct State<B> {
    batch: B,
    /// When the first of the batch came; `None` while it is empty.
    since: Option<Instant>,
    hurry: bool,
    closed: bool,
    /// Why the writer does not get on.
    trouble: Option<String>,
}

impl<B: Batch> Gather<B> {
    pub(super) fn new(capacity: usize, window: Duration) -> Gather<B> {
        let state = State { batch: B::default(), since: None, hurry: false, closed: false, trouble: None };
        Gather { state: Mutex::new(state), changed: Condvar::new(), room: Semaphore::new(capacity), window }
    }

    /// Waits for room for `size`, then adds to the batch. The room is taken until `release` gives it back.
    /// Dropping the future before it is ready adds nothing.
    pub(super) async fn add<T>(&self, size: u32, hurry: bool, add: impl FnOnce(&mut B) -> T) -> Result<T> {
        let permit = match self.room.try_acquire_many(size) {
            Ok(permit) => permit,
            Err(_) => {
                self.refuse_if_in_trouble()?;
                match timeout(ROOM_LIMIT, self.room.acquire_many(size)).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(closed()),
                    Err(_) => return Err(self.stuck()),
                }
            }
        };
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        permit.forget();
        let added = add(&mut state.batch);
        let first = state.since.is_none();
        state.since.get_or_insert_with(Instant::now);
        state.hurry |= hurry;
        drop(state);
        if first || hurry {
            self.changed.notify_one();
        }
        Ok(added)
    }

    /// Changes the batch from outside the queue's bounds; wakes the writer. For what must get through even when the
    /// queue is full, and cannot grow it.
    pub(super) fn amend(&self, amend: impl FnOnce(&mut B)) {
        let mut state = self.lock();
        amend(&mut state.batch);
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        self.changed.notify_one();
    }

    /// What is there does not wait for company.
    pub(super) fn hurry(&self) {
        let mut state = self.lock();
        if state.since.is_some() {
            state.hurry = true;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The writer's life. `write` empties the batch it is given, or leaves in it what is to be tried again and says
    /// why. Returns after `close`, with what could not be written even then. `what` is for the log.
    pub(super) fn serve(&self, what: &str, mut write: impl FnMut(&mut B) -> Result<(), String>) -> B {
        let mut batch = B::default();
        let mut complained: Option<Instant> = None;
        loop {
            let next = if batch.is_empty() { self.next() } else { self.pause(RETRY) };
            let last_attempt = next.is_none();
            next.into_iter().for_each(|newer| batch.absorb(newer));
            if !(last_attempt && batch.is_empty()) {
                let trouble = write(&mut batch).err();
                match &trouble {
                    Some(reason) if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) => {
                        log::error!("cannot write {what}: {reason}; it is tried again");
                        complained = Some(Instant::now());
                    }
                    None if complained.take().is_some() => log::info!("{what} can be written again"),
                    _ => (),
                }
                self.lock().trouble = trouble;
            }
            if last_attempt {
                return batch;
            }
        }
    }

    /// The next batch, once its window has passed. `None`: closed, and nothing is left.
    fn next(&self) -> Option<B> {
        let mut state = self.lock();
        loop {
            match state.since {
                None if state.closed => return None,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let left = self.window.saturating_sub(since.elapsed());
                    if left.is_zero() || state.hurry || state.closed {
                        return Some(state.take());
                    }
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// After a failure: what has come by the time of the next attempt, which is at once when somebody is in a hurry.
    /// `None`: closed, and nothing more has come.
    fn pause(&self, wait: Duration) -> Option<B> {
        let until = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.closed && state.since.is_none() {
                return None;
            }
            if left.is_zero() || state.hurry || state.closed {
                return Some(state.take());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives room back. Called for everything that has left the queue.
    pub(super) fn release(&self, size: usize) {
        self.room.add_permits(size);
    }

    /// Nothing more is taken; what is there will still be written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.changed.notify_one();
    }

    fn refuse_if_in_trouble(&self) -> Result<()> {
        let state = self.lock();
        match &state.trouble {
            _ if state.closed => Err(closed()),
            Some(reason) => Err(refused(reason)),
            None => Ok(()),
        }
    }

    /// Somebody has waited in vain: nobody else has to, until the next batch is written.
    fn stuck(&self) -> Error {
        refused(self.lock().trouble.get_or_insert_with(|| "the disk does not keep up".to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        lock(&self.state)
    }
}

impl<B: Batch> State<B> {
    fn take(&mut self) -> B {
        self.since = None;
        self.hurry = false;
        std::mem::take(&mut self.batch)
    }
}

fn refused(reason: &str) -> Error {
    Error::unavailable(format!("the store takes nothing more: {reason}"))
        .hint("see the log, and the free space under store.dir")
}

fn closed() -> Error {
    Error::unavailable("the store is closed").hint("the daemon is stopping")
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    impl Batch for Vec<u32> {
        fn is_empty(&self) -> bool {
            self.is_empty()
        }

        fn absorb(&mut self, newer: Vec<u32>) {
            self.extend(newer);
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    async fn put(queue: &Gather<Vec<u32>>, number: u32, hurry: bool) -> Result<()> {
        queue.add(1, hurry, |batch| batch.push(number)).await
    }

    #[tokio::test]
    async fn a_batch_waits_for_company_but_not_when_somebody_is_in_a_hurry() {
        let queue: Arc<Gather<Vec<u32>>> = Arc::new(Gather::new(100, LONG));
        let (sender, batches) = std::sync::mpsc::channel();
        let server = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                queue.serve("numbers", |batch: &mut Vec<u32>| {
                    queue.release(batch.len());
                    sender.send(std::mem::take(batch)).unwrap();
                    Ok(())
                })
            }
        });
        for number in 1..=3 {
            put(&queue, number, number == 3).await.unwrap();
        }
        assert_eq!(batches.recv().unwrap(), [1, 2, 3]);
        put(&queue, 4, false).await.unwrap();
        queue.close();
        assert_eq!(batches.recv().unwrap(), [4]);
        assert!(server.join().unwrap().is_empty());
        assert!(put(&queue, 5, false).await.unwrap_err().message().contains("closed"));
    }

    #[tokio::test]
    async fn after_one_has_waited_in_vain_nobody_waits() {
        let queue: Gather<Vec<u32>> = Gather::new(2, LONG);
        for number in 0..2 {
            put(&queue, number, false).await.unwrap();
        }
        let start = Instant::now();
        assert!(put(&queue, 2, false).await.unwrap_err().message().contains("keep up"));
        assert!(start.elapsed() >= ROOM_LIMIT);
        let start = Instant::now();
        assert!(put(&queue, 3, false).await.is_err());
        assert!(start.elapsed() < ROOM_LIMIT / 2);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing() {
        let queue: Gather<Vec<u32>> = Gather::new(1, LONG);
        put(&queue, 1, false).await.unwrap();
        assert!(timeout(Duration::from_millis(20), put(&queue, 2, false)).await.is_err());
        assert_eq!(queue.lock().batch, [1]);
    }

    #[test]
    fn what_failed_is_tried_again_with_what_came_later_and_a_last_time_at_the_end() {
        let queue: Gather<Vec<u32>> = Gather::new(10, Duration::ZERO);
        queue.amend(|batch| batch.push(1));
        let mut seen = Vec::new();
        let lost = queue.serve("numbers", |batch| {
            seen.push(batch.clone());
            match seen.len() {
                1 => queue.amend(|batch| batch.push(2)),
                2 => queue.close(),
                _ => (),
            }
            Err("no".to_owned())
        });
        assert_eq!(seen, [vec![1], vec![1, 2], vec![1, 2]]);
        assert_eq!(lost, [1, 2]);
    }
}
