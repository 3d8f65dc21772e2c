//! The journal: every event in the order of its position, and how far each reader of it has come.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::{sync::watch, time::timeout};

use super::{ANSWER_LIMIT, Note, Store, late, writer::Work};
use crate::{
    base::{Error, Result},
    flow::{Event, EventType, SessionId},
};

/// Where the journal ends is kept apart from the events, so that deleting the last of them gives no position out twice.
const END: &str = "journal";

/// A group is committed every 50 ms, and one takes some milliseconds.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Store {
    /// Hands an event over, with what is to be noted in the same transaction; it is committed within the writer's window.
    /// Waits while the queue is full, within a limit. Positions must rise. Dropping the future before it is ready hands
    /// nothing over.
    pub async fn append(&self, position: i64, event: Arc<Event>, json: Arc<str>, notes: Vec<Note>) -> Result<()> {
        self.0.writer.add(1, false, |batch| batch.push(Work::Event { position, event, json, notes })).await?;
        self.0.handed_over.fetch_max(position, Ordering::Relaxed);
        Ok(())
    }

    /// The last position given out, committed or not.
    pub fn last_position(&self) -> i64 {
        self.0.handed_over.load(Ordering::Relaxed)
    }

    /// Follows the last committed position: wakes who reads the journal along (the outbox).
    pub fn committed(&self) -> watch::Receiver<i64> {
        self.0.committed.clone()
    }

    /// Returns once what was published so far is committed: whoever was told of it finds it. Waits no longer than a disk
    /// should take; what one in trouble holds back is not found.
    pub async fn settled(&self) {
        let published = self.last_position();
        let mut committed = self.committed();
        drop(timeout(SETTLE_LIMIT, committed.wait_for(|position| *position >= published)).await);
    }

    /// The last committed `seq` of a session (`None`: of the node itself); 0 when there is none.
    pub async fn last_seq(&self, session: Option<&SessionId>) -> Result<u64> {
        let session = session_key(session);
        let read = self.read(move |db| {
            db.prepare_cached("SELECT ifnull(max(seq), 0) FROM events WHERE session = ?")?
                .query_row([session.as_ref()], |row| row.get(0))
        });
        // All who publish wait for this one: a disk that hangs must not silence live listeners.
        timeout(ANSWER_LIMIT, read).await.unwrap_or_else(|_| Err(late()))
    }

    /// Committed events of a session from `from_seq` on, as (position, envelope).
    pub async fn events(&self, session: &SessionId, from_seq: u64, limit: usize) -> Result<Vec<(i64, Arc<str>)>> {
        let session = session.clone();
        let from_seq = i64::try_from(from_seq).unwrap_or(i64::MAX);
        self.read(move |db| {
            db.prepare_cached("SELECT position, json FROM events WHERE session = ? AND seq >= ? ORDER BY seq LIMIT ?")?
                .query_map(params![session.as_str(), from_seq, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// A session's committed results (segments, final texts, analyses) after an event's `seq`, as (seq, envelope).
    pub async fn results(&self, session: &SessionId, after: u64, limit: usize) -> Result<Vec<(u64, Event)>> {
        let session = session.clone();
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let [segment, whole, analysis] =
            [EventType::TranscriptSegment, EventType::TranscriptFinal, EventType::SessionAnalysis].map(EventType::name);
        let rows: Vec<(u64, String)> = self
            .read(move |db| {
                db.prepare_cached(
                    "SELECT seq, json FROM events WHERE session = ? AND seq > ? AND kind IN (?, ?, ?)
                     ORDER BY seq LIMIT ?",
                )?
                .query_map(params![session.as_str(), after, segment, whole, analysis, limit], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect()
            })
            .await?;
        let parsed = rows.into_iter().map(|(seq, json)| Ok((seq, serde_json::from_str(&json)?)));
        parsed
            .collect::<serde_json::Result<_>>()
            .map_err(|error| Error::internal("an event of the store cannot be read").cause(error))
    }

    /// Committed events of all sessions and the node after `position`, as (position, envelope).
    pub async fn events_after(&self, position: i64, limit: usize) -> Result<Vec<(i64, Arc<str>)>> {
        self.read(move |db| {
            db.prepare_cached("SELECT position, json FROM events WHERE position > ? ORDER BY position LIMIT ?")?
                .query_map(params![position, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// How far the reader of that name has come; `None` before its first `set_cursor`.
    pub async fn cursor(&self, name: &str) -> Result<Option<i64>> {
        let name = name.to_owned();
        self.read(move |db| cursor(db, &name)).await
    }

    /// Moves a cursor with the next commit, without waiting for it: a cursor that is behind after a crash
    /// only means doubles, which have the same `id`.
    pub async fn set_cursor(&self, name: &str, position: i64) -> Result<()> {
        let name: Arc<str> = name.into();
        self.0.writer.add(1, false, |batch| batch.push(Work::Cursor { name, position })).await
    }
}

pub(super) fn session_key(session: Option<&SessionId>) -> Box<str> {
    session.map_or("", SessionId::as_str).into()
}

pub(super) fn insert(db: &Connection, position: i64, event: &Event, json: &str, now: i64) -> rusqlite::Result<()> {
    let session = event.session.as_ref().map_or("", SessionId::as_str);
    let inserted = db
        .prepare_cached("INSERT INTO events (position, session, seq, kind, at, json) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![position, session, event.seq, event.kind.name(), now, json]);
    match inserted {
        // Trying again would not help, and would hold up everything behind it.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            log::error!("event {} (position {position}, seq {}) was not journaled: {error}", event.id, event.seq);
            Ok(())
        }
        inserted => inserted.map(drop),
    }
}

pub(super) fn last_position(db: &Connection) -> rusqlite::Result<i64> {
    Ok(cursor(db, END)?.unwrap_or(0))
}

pub(super) fn set_last_position(db: &Connection, position: i64) -> rusqlite::Result<()> {
    move_cursor(db, END, position)
}

pub(super) fn move_cursor(db: &Connection, name: &str, position: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO cursors VALUES (?, ?) ON CONFLICT DO UPDATE SET position = excluded.position")?
        .execute(params![name, position])
        .map(drop)
}

fn cursor(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT position FROM cursors WHERE name = ?")?.query_row([name], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        flow::EventType,
        store::testing::{event, id, soon},
    };

    fn speech(session: Option<&str>, seq: u64) -> Arc<Event> {
        event(session, seq, EventType::Speech, json!({ "state": "start" }))
    }

    #[tokio::test]
    async fn events_come_back_as_they_were_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut sent = Vec::new();
        for (position, (session, seq)) in [(Some("a"), 1), (None, 1), (Some("b"), 1), (Some("a"), 2)].iter().enumerate()
        {
            let event = speech(*session, *seq);
            store.append_event(position as i64 + 1, Arc::clone(&event)).await;
            sent.push(event);
        }
        store.flush().await.unwrap();

        let all = store.events_after(0, 100).await.unwrap();
        assert_eq!(all.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for ((_, json), event) in all.iter().zip(&sent) {
            assert_eq!(&serde_json::from_str::<Event>(json).unwrap(), &**event);
        }
        let position = |events: Vec<(i64, Arc<str>)>| events.into_iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(position(store.events(&id("a"), 0, 100).await.unwrap()), [1, 4]);
        assert_eq!(position(store.events(&id("a"), 2, 100).await.unwrap()), [4]);
        assert_eq!(position(store.events(&id("a"), u64::MAX, 100).await.unwrap()), [0; 0]);
        assert_eq!(position(store.events_after(1, 2).await.unwrap()), [2, 3]);
        assert_eq!(store.last_seq(Some(&id("a"))).await.unwrap(), 2);
        assert_eq!(store.last_seq(None).await.unwrap(), 1);
        assert_eq!(store.last_seq(Some(&id("unknown"))).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn positions_and_cursors_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.last_position(), 0);
        assert_eq!(store.cursor("mqtt").await.unwrap(), None);
        for position in 1..=5 {
            store.append_event(position, speech(Some("a"), position as u64)).await;
        }
        store.set_cursor("mqtt", 3).await.unwrap();
        store.set_cursor("mqtt", 4).await.unwrap();
        store.close(soon()).await.unwrap();

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.last_position(), 5);
        assert_eq!(*store.committed().borrow(), 5);
        assert_eq!(store.cursor("mqtt").await.unwrap(), Some(4));
        assert!(store.delete_session(&id("a")).await.is_ok());
        store.close(soon()).await.unwrap();

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.last_position(), 5, "no position is given out twice, even when its event is gone");
    }

    #[tokio::test]
    async fn an_event_that_cannot_stand_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.append_event(1, speech(Some("a"), 1)).await;
        store.append_event(2, speech(Some("a"), 1)).await;
        store.append_event(1, speech(Some("a"), 2)).await;
        store.append_event(3, speech(Some("a"), 3)).await;
        store.flush().await.unwrap();
        let kept: Vec<i64> = store.events_after(0, 10).await.unwrap().into_iter().map(|it| it.0).collect();
        assert_eq!(kept, [1, 3]);
    }

    #[tokio::test]
    async fn the_outbox_is_woken_by_a_commit_without_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut committed = store.committed();
        store.append_event(1, speech(None, 1)).await;
        tokio::time::timeout_at(soon(), committed.wait_for(|position| *position == 1)).await.unwrap().unwrap();
        assert_eq!(store.events_after(0, 10).await.unwrap().len(), 1);
    }
}
