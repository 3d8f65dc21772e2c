//! What survives a restart: the journal of events, sessions, keys, and (in `audio_log`) received audio.
//!
//! One thread writes (`writer.rs`), in grouped transactions; reads have a connection of their own and never block
//! an async thread. Must never wait without a limit, and never lose what it has called committed. SQLite stays in
//! this folder. Two processes may open the same store (`vigia keys add` beside the daemon); only the daemon
//! publishes events and opens the audio log.

pub mod audio_log;
mod events;
mod gather;
mod keys;
mod notes;
mod retention;
mod schema;
mod sessions;
pub mod space;
mod transcript;
mod writer;

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use rusqlite::Connection;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout, timeout_at},
};

pub use audio_log::{AudioLog, Place, TakeAudio};
pub use keys::KeyRow;
pub use notes::{Checkpoint, Note, OpenTake, Seen};
pub use sessions::{Progress, SessionRow, SessionState};

use crate::base::{Error, Kind, Result};

const FILE_NAME: &str = "vigia.db";
/// Longest wait for the writer's answer or for the read connection. Both answer within milliseconds unless the
/// disk hangs; a request should not hang with it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A handle, cheap to clone. When the last one is dropped the writer commits what it has and ends; `close` does
/// the same and waits for it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    writer: Arc<writer::Queue>,
    /// Async, so that waiting readers cost a waker each and not a blocking thread each.
    reader: Arc<Mutex<Connection>>,
    committed: watch::Receiver<i64>,
    handed_over: AtomicI64,
    ended: watch::Receiver<bool>,
}

impl Store {
    /// Whether there is a store in `dir` already.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE_NAME).is_file()
    }

    /// Opens or creates the store in `dir`, bringing an older schema up to date.
    pub fn open(dir: &Path) -> Result<Store> {
        create_private_dir(dir)?;
        let path = dir.join(FILE_NAME);
        // SQLite gives its side files the mode of this one.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| cannot_open(&path).cause(error))?;
        let db = schema::open(&path)?;
        let reader = schema::open_reader(&path)?;
        let position = events::last_position(&db).map_err(|error| schema::explain(&path, error))?;

        let (committed_tx, committed) = watch::channel(position);
        let (ended_tx, ended) = watch::channel(false);
        let queue = writer::spawn(db, committed_tx, ended_tx)?;
        Ok(Store(Arc::new(Inner {
            writer: queue,
            reader: Arc::new(Mutex::new(reader)),
            committed,
            handed_over: AtomicI64::new(position),
            ended,
        })))
    }

    /// Returns once everything handed over before is committed; an error says that it is not (yet).
    pub async fn flush(&self) -> Result<()> {
        self.change(writer::Hurry::Now, |_| Ok(())).await
    }

    /// Commits what is left and ends the writer. Whatever comes later is refused.
    pub async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.writer.close();
        writer_ended(self.0.ended.clone(), deadline, "the store").await
    }

    /// A change that its caller waits for: made in the writer's current transaction, answered after its commit.
    async fn change<T: Send + 'static>(
        &self,
        hurry: writer::Hurry,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let answer = writer::ask(&self.0.writer, hurry, change).await?;
        match timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::internal("the store's writer ended without an answer")),
            Err(_) => Err(late()),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let reader = Arc::clone(&self.0.reader);
        let db = timeout(ANSWER_LIMIT, reader.lock_owned())
            .await
            .map_err(|_| Error::new(Kind::Busy, "too many are reading from the store").hint("try again in a moment"))?;
        let read = tokio::task::spawn_blocking(move || read(&db)).await;
        match read {
            Ok(result) => result.map_err(|error| Error::internal("cannot read from the store").cause(error)),
            Err(error) => Err(Error::internal("reading from the store was broken off").cause(error)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.writer.close();
    }
}

/// Only its owner may look into this folder: it holds what people said.
fn create_private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| cannot_open(dir).cause(error))
}

fn late() -> Error {
    Error::new(Kind::Timeout, "the store did not answer in time")
        .hint("look for a slow or failing disk under store.dir")
}

fn cannot_open(path: &Path) -> Error {
    Error::unavailable(format!("cannot open the store at {}", path.display()))
        .hint("store.dir must be a folder that the daemon may write to")
}

async fn writer_ended(mut ended: watch::Receiver<bool>, deadline: Instant, who: &str) -> Result<()> {
    match timeout_at(deadline, ended.wait_for(|ended| *ended)).await {
        Ok(Ok(_)) => Ok(()),
        // The sender is gone: the thread has ended in some other way.
        Ok(Err(_)) => Err(Error::internal(format!("the writer of {who} had died before it was closed"))),
        Err(_) => Err(Error::new(Kind::Timeout, format!("{who} was not closed in time"))),
    }
}

#[cfg(test)]
mod testing {
    //! What the tests of this folder share.

    use super::*;
    use crate::{
        base::shutdown::deadline,
        flow::{Event, EventType, SessionId},
    };

    pub(crate) fn soon() -> Instant {
        deadline(Duration::from_secs(10))
    }

    pub(crate) fn id(text: &str) -> SessionId {
        SessionId::parse(text).unwrap()
    }

    pub(crate) fn event(session: Option<&str>, seq: u64, kind: EventType, data: serde_json::Value) -> Arc<Event> {
        Arc::new(Event {
            v: 1,
            id: ulid::Ulid::new().to_string(),
            seq,
            kind,
            ts_at: crate::base::clock::now_at(),
            node: "box".into(),
            device: "default".into(),
            session: session.map(id),
            data,
        })
    }

    pub(crate) async fn say(store: &Store, position: i64, session: &str, kind: EventType, data: serde_json::Value) {
        let seq = store.last_position() as u64 + 1;
        store.append_event(position, event(Some(session), seq, kind, data)).await;
    }

    impl Store {
        pub(crate) async fn append_event(&self, position: i64, event: Arc<Event>) {
            let json: Arc<str> = serde_json::to_string(&*event).unwrap().into();
            self.append(position, event, json, Vec::new()).await.unwrap();
        }

        /// From now on the database cannot grow, as if the disk were full.
        pub(crate) async fn fill_disk(&self) {
            self.change(writer::Hurry::Now, move |db| {
                let pages: u32 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            })
            .await
            .unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::{testing::*, *};
    use crate::flow::EventType;

    #[tokio::test]
    async fn only_the_owner_may_look_into_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep/store");
        let store = Store::open(&dir).unwrap();
        store.append_event(1, event(None, 1, EventType::Health, json!({}))).await;
        store.flush().await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        for file in ["vigia.db", "vigia.db-wal"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
    }

    #[tokio::test]
    async fn closing_commits_what_was_handed_over_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for position in 1..=3 {
            store.append_event(position, event(Some("a"), position as u64, EventType::Speech, json!({}))).await;
        }
        store.close(soon()).await.unwrap();
        assert_eq!(*store.committed().borrow(), 3);
        let refused =
            store.append(4, event(None, 1, EventType::Health, json!({})), "{}".into(), Vec::new()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(store.flush().await.is_err());
        // Everything is in the one file.
        assert_eq!(fs::metadata(dir.path().join("vigia.db-wal")).map_or(0, |it| it.len()), 0);
        store.close(soon()).await.unwrap();
    }

    #[tokio::test]
    async fn dropping_the_last_handle_commits_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.append_event(1, event(None, 1, EventType::Health, json!({}))).await;
        let (ended, committed) = (store.0.ended.clone(), store.committed());
        drop(store);
        writer_ended(ended, soon(), "the store").await.unwrap();
        assert_eq!(*committed.borrow(), 1);
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_to_callers_and_loses_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let elsewhere = Connection::open(dir.path().join("vigia.db")).unwrap();
        elsewhere.execute_batch("CREATE TABLE ballast AS SELECT zeroblob(1000000)").unwrap();
        store.fill_disk().await;
        for position in 1..=50 {
            let long = json!({ "text": "x".repeat(1000) });
            store.append_event(position, event(Some("a"), position as u64, EventType::Speech, long)).await;
        }
        let error = store.flush().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.full().contains("full") && error.hint_text().unwrap().contains("store.dir"), "{}", error.full());
        assert!(store.session_opened(&id("b"), "glasses", "es").await.is_err());
        assert_eq!(*store.committed().borrow(), 0);

        // Reading goes on, and so does everything once there is space.
        assert_eq!(store.session(&id("b")).await.unwrap(), None);
        elsewhere.execute_batch("DROP TABLE ballast").unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.events(&id("a"), 1, 100).await.unwrap().len(), 50);
        assert_eq!(*store.committed().borrow(), 50);
        store.session_opened(&id("b"), "glasses", "es").await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_refuses_instead_of_waiting_when_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.fill_disk().await;
        let appended = async {
            for position in 1.. {
                let event = event(Some("a"), position as u64, EventType::Speech, json!({}));
                if let Err(error) = store.append(position, event, "x".repeat(500).into(), Vec::new()).await {
                    return (position, error);
                }
            }
            unreachable!()
        };
        let (position, error) = timeout(Duration::from_secs(20), appended).await.unwrap();
        assert!(position > 8000);
        assert!(error.message().contains("nothing more"), "{error}");
    }

    #[tokio::test]
    async fn a_second_process_may_write_beside_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Store::open(dir.path()).unwrap();
        let command = Store::open(dir.path()).unwrap();
        let secret = command.add_key("phone").await.unwrap();
        assert_eq!(daemon.check_key(&secret).await.unwrap().as_deref(), Some("phone"));
    }
}
