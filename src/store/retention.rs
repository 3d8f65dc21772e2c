//! What goes: sessions that somebody deletes, and what is older than the settings keep.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, notes, sessions::session_id, writer::Hurry};
use crate::{
    base::{Result, clock},
    flow::SessionId,
};

/// Events deleted in one transaction. Deleting is slower than adding, and live events wait behind it.
const DELETE_STEP: usize = 1000;
const DAY_SECS: i64 = 86_400;

impl Store {
    /// Deletes a session and its events; false when there is none.
    pub async fn delete_session(&self, id: &SessionId) -> Result<bool> {
        self.delete_in_steps(id, None).await
    }

    /// In steps that let live events pass. With a `cutoff` only while the session's end lies before it.
    async fn delete_in_steps(&self, id: &SessionId, cutoff: Option<i64>) -> Result<bool> {
        loop {
            let id = id.clone();
            let step = self.change(Hurry::No, move |db| {
                // It may have come back since somebody looked.
                if let Some(cutoff) = cutoff
                    && !ended_before(db, &id, cutoff)?
                {
                    return Ok(Some(false));
                }
                let events = db
                    .prepare_cached(
                        "DELETE FROM events WHERE position IN
                            (SELECT position FROM events WHERE session = ? LIMIT ?)",
                    )?
                    .execute(params![id.as_str(), DELETE_STEP])?;
                if events == DELETE_STEP {
                    return Ok(None);
                }
                notes::forget(db, &id)?;
                // The row goes last: while it stands, a deletion that was cut short can be seen and repeated.
                db.execute("DELETE FROM sessions WHERE id = ?", [id.as_str()]).map(|rows| Some(rows > 0))
            });
            if let Some(existed) = step.await? {
                return Ok(existed);
            }
        }
    }

    /// Deletes sessions that ended more than so many days ago, and what the node itself said before then. Returns how
    /// many sessions that were. Events go whether or not they have reached a broker.
    pub async fn prune(&self, keep_days: u32) -> Result<usize> {
        let cutoff = clock::unix_secs() - i64::from(keep_days) * DAY_SECS;
        let old: Vec<SessionId> = self
            .read(move |db| {
                db.prepare("SELECT id FROM sessions WHERE state = 'closed' AND unixepoch(ended_at) < ?")?
                    .query_map([cutoff], |row| session_id(row, 0))?
                    .collect()
            })
            .await?;
        let mut deleted = 0;
        for id in &old {
            deleted += usize::from(self.delete_in_steps(id, Some(cutoff)).await?);
        }
        while self.change(Hurry::No, move |db| delete_strays(db, cutoff)).await? == DELETE_STEP {}
        Ok(deleted)
    }
}

fn ended_before(db: &Connection, id: &SessionId, cutoff: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sessions WHERE id = ? AND state = 'closed' AND unixepoch(ended_at) < ?")?
        .exists(params![id.as_str(), cutoff])
}

/// Old events of no session, or of one that is gone. The node's newest stays: its `seq` goes on from there.
fn delete_strays(db: &Connection, cutoff: i64) -> rusqlite::Result<usize> {
    // Positions rise with time, so that looking for the first event to keep passes only over old ones.
    let keep_from: Option<i64> = db
        .query_row("SELECT position FROM events WHERE at >= ? ORDER BY position LIMIT 1", [cutoff], |row| row.get(0))
        .optional()?;
    db.execute(
        "DELETE FROM events WHERE position IN
            (SELECT position FROM events
             WHERE position < ?1
               AND session NOT IN (SELECT id FROM sessions)
               AND position IS NOT (SELECT position FROM events WHERE session = '' ORDER BY seq DESC LIMIT 1)
             LIMIT ?2)",
        params![keep_from.unwrap_or(i64::MAX), DELETE_STEP],
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        flow::EventType,
        store::{
            Progress,
            testing::{event, id, say, soon},
        },
    };

    #[tokio::test]
    async fn a_deleted_session_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for session in ["a", "b"] {
            store.session_opened(&id(session), "glasses", "es").await.unwrap();
        }
        let events = 2 * DELETE_STEP as i64 + 1;
        for position in 1..=events {
            say(&store, position, "a", EventType::Speech, json!({ "text": "a-secret" })).await;
        }
        say(&store, events + 1, "b", EventType::Speech, json!({})).await;
        assert!(store.delete_session(&id("a")).await.unwrap());
        assert_eq!(store.session(&id("a")).await.unwrap(), None);
        assert_eq!(store.events_after(0, 10_000).await.unwrap().len(), 1);
        assert!(store.session(&id("b")).await.unwrap().is_some());
        assert!(!store.delete_session(&id("a")).await.unwrap());
        store.close(soon()).await.unwrap();
        let bytes = std::fs::read(dir.path().join("vigia.db")).unwrap();
        assert!(!bytes.windows(8).any(|it| it == b"a-secret"), "deleted means overwritten");
    }

    #[tokio::test]
    async fn what_is_old_goes_and_what_is_needed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for session in ["old", "new", "open"] {
            store.session_opened(&id(session), "glasses", "es").await.unwrap();
        }
        for session in ["old", "new"] {
            store.session_ended(&id(session), Progress::default()).await.unwrap();
        }
        for (position, session) in (1..).zip([Some("old"), Some("open"), None, Some("stray"), None, Some("new"), None])
        {
            store.append_event(position, event(session, position as u64, EventType::Speech, json!({}))).await;
        }
        let age = |db: &Connection| {
            db.execute("UPDATE events SET at = at - 40 * 86400 WHERE position <= 5", [])?;
            db.execute("UPDATE sessions SET ended_at = '2001-01-01T00:00:00.000Z' WHERE id = 'old'", [])
        };
        store.change(Hurry::Now, age).await.unwrap();

        assert_eq!(store.prune(30).await.unwrap(), 1);
        let left = |store: Store| async move {
            store.events_after(0, 100).await.unwrap().into_iter().map(|it| it.0).collect::<Vec<_>>()
        };
        assert_eq!(left(store.clone()).await, [2, 6, 7]);
        assert_eq!(store.session(&id("old")).await.unwrap(), None);
        assert!(store.session(&id("open")).await.unwrap().is_some());

        // However old it is: the node's numbers go on from it.
        store.change(Hurry::Now, |db| db.execute("UPDATE events SET at = 0", [])).await.unwrap();
        assert_eq!(store.prune(30).await.unwrap(), 0);
        assert_eq!(left(store.clone()).await, [2, 6, 7]);
        assert_eq!(store.last_seq(None).await.unwrap(), 7);
    }
}
