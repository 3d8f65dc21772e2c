//! The one thread that writes to SQLite: everything that came within a window goes into one transaction.
//!
//! Why grouped: the journal runs with `synchronous=FULL` (see `schema.rs`), so every commit is an fsync; one for each
//! event of 500 streams would be thousands a second, one for each window is at most twenty.
//!
//! A failed transaction (disk full, I/O error) costs those who wait for their change an error. Events, notes and cursors
//! are kept and tried again, since a gap in the journal could never be closed; meanwhile the queue fills and refuses.
//! The thread survives everything but its own end.

use std::{sync::Arc, thread, time::Duration};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use super::{
    events,
    gather::{Batch, Gather},
    notes::Note,
};
use crate::{
    base::{Error, Result, clock},
    flow::Event,
    telemetry::events::{StoreCommitted, emit},
};

/// About three seconds of 500 busy streams, and some 10 MB when full.
const CAPACITY: usize = 8192;
/// Events reach live listeners before they are committed, so this delays only the outbox and what a power cut may take.
const WINDOW: Duration = Duration::from_millis(50);

pub(super) type Queue = Gather<Vec<Work>>;

pub(super) enum Work {
    /// With what is to be noted in the same transaction.
    Event {
        position: i64,
        event: Arc<Event>,
        json: Arc<str>,
        notes: Vec<Note>,
    },
    Note(Note),
    Cursor {
        name: Arc<str>,
        position: i64,
    },
    Change(Box<dyn Change>),
}

impl Batch for Vec<Work> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn absorb(&mut self, mut newer: Vec<Work>) {
        self.append(&mut newer);
    }
}

/// Whether the batch waits for company.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hurry {
    No,
    Now,
}

/// Something whose asker waits until it is committed.
pub(super) trait Change: Send {
    fn make(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, committed: Result<()>);
}

struct Asked<T, F> {
    change: Option<F>,
    value: Option<T>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Change for Asked<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
{
    fn make(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(change) = self.change.take() {
            self.value = Some(change(db)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let answer = match (committed, self.value) {
            (Ok(()), Some(value)) => Ok(value),
            (Ok(()), None) => Err(Error::internal("the store skipped a change")),
            (Err(error), _) => Err(error),
        };
        // Nobody waits any more: the change stands all the same.
        drop(self.answer.send(answer));
    }
}

pub(super) async fn ask<T: Send + 'static>(
    queue: &Queue,
    hurry: Hurry,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T>>> {
    let (sender, answer) = oneshot::channel();
    let change = Work::Change(Box::new(Asked { change: Some(change), value: None, answer: sender }));
    queue.add(1, hurry == Hurry::Now, |batch| batch.push(change)).await?;
    Ok(answer)
}

/// Starts the thread. It ends when the queue is closed and empty, and then sets `ended`.
pub(super) fn spawn(db: Connection, committed: watch::Sender<i64>, ended: watch::Sender<bool>) -> Result<Arc<Queue>> {
    let queue = Arc::new(Queue::new(CAPACITY, WINDOW));
    let writer = Writer { db, queue: Arc::clone(&queue), committed };
    let run = move || {
        writer.run();
        ended.send_replace(true);
    };
    thread::Builder::new()
        .name("vigia-store".into())
        .spawn(run)
        .map_err(|error| Error::unavailable("cannot start the store's thread").cause(error))?;
    Ok(queue)
}

struct Writer {
    db: Connection,
    queue: Arc<Queue>,
    committed: watch::Sender<i64>,
}

impl Writer {
    fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        let lost = queue.serve("events", |batch| self.write(batch).map_err(|error| error.to_string()));
        if !lost.is_empty() {
            log::error!("{} events could not be written to the store and are lost", lost.len());
        }
        // So that the next start, and whoever copies the file, finds everything in one place.
        if let Err(error) = self.db.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
            log::warn!("the store's write-ahead log could not be folded in: {error}");
        }
    }

    /// Empties `batch`, or leaves in it what is to be tried again.
    fn write(&mut self, batch: &mut Vec<Work>) -> rusqlite::Result<()> {
        match transact(&mut self.db, batch) {
            Ok(position) => {
                emit(StoreCommitted);
                self.queue.release(batch.len());
                if let Some(position) = position {
                    self.committed.send_replace(position);
                }
                for work in batch.drain(..) {
                    if let Work::Change(change) = work {
                        change.answer(Ok(()));
                    }
                }
                Ok(())
            }
            Err(error) => {
                let before = batch.len();
                for change in batch.extract_if(.., |work| matches!(work, Work::Change(_))) {
                    if let Work::Change(change) = change {
                        change.answer(Err(cannot_write(&error)));
                    }
                }
                self.queue.release(before - batch.len());
                Err(error)
            }
        }
    }
}

/// One transaction; returns the position of its last event.
fn transact(db: &mut Connection, batch: &mut [Work]) -> rusqlite::Result<Option<i64>> {
    // Dropping it unfinished rolls back. Immediate, so that a second process makes it wait instead of fail.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = clock::unix_secs();
    let mut last = None;
    for work in batch {
        match work {
            Work::Event { position, event, json, notes } => {
                events::insert(&transaction, *position, event, json, now)?;
                notes.iter().try_for_each(|note| note.write(&transaction))?;
                last = Some(*position);
            }
            Work::Note(note) => note.write(&transaction)?,
            Work::Cursor { name, position } => events::move_cursor(&transaction, name, *position)?,
            Work::Change(change) => change.make(&transaction)?,
        }
    }
    if let Some(position) = last {
        events::set_last_position(&transaction, position)?;
    }
    transaction.commit()?;
    Ok(last)
}

fn cannot_write(error: &rusqlite::Error) -> Error {
    Error::unavailable("the store cannot be written")
        .cause(error.to_string())
        .hint("see the free space and the state of the disk under store.dir")
}
