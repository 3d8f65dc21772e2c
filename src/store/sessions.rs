//! Sessions: what is known of each beside its events.

use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};
use serde::Serialize;

use super::{Note, Store, transcript::transcript, writer::Hurry};
use crate::{
    base::{Result, clock},
    flow::SessionId,
};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionRow {
    pub id: SessionId,
    pub device: String,
    pub language: String,
    pub state: SessionState,
    pub opened_at: String,
    pub ended_at: Option<String>,
    pub takes: u64,
    pub duration_secs: f64,
    /// The id that the next segment will have.
    pub next_segment: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Open,
    Closed,
}

impl SessionRow {
    pub fn progress(&self) -> Progress {
        Progress { takes: self.takes, duration_secs: self.duration_secs, next_segment: self.next_segment }
    }
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    pub takes: u64,
    pub duration_secs: f64,
    pub next_segment: u64,
}

impl Store {
    /// A session begins, or goes on: then the row says how far it had come.
    pub async fn session_opened(&self, id: &SessionId, device: &str, language: &str) -> Result<SessionRow> {
        let (id, device, language) = (id.clone(), device.to_owned(), language.to_owned());
        let now = clock::now_at();
        self.change(Hurry::No, move |db| {
            db.prepare_cached(
                "INSERT INTO sessions (id, device, language, state, opened_at) VALUES (?, ?, ?, 'open', ?)
                 ON CONFLICT DO UPDATE SET
                    device = excluded.device, language = excluded.language, state = 'open', ended_at = NULL",
            )?
            .execute(params![id.as_str(), device, language, now])?;
            caught_up(db, find(db, &id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?)
        })
        .await
    }

    /// A session is over; returns once that is committed. Unknown sessions (deleted meanwhile) are no error.
    pub async fn session_ended(&self, id: &SessionId, progress: Progress) -> Result<()> {
        let note = Note::Ended(id.clone(), progress);
        self.change(Hurry::No, move |db| note.write(db)).await
    }

    pub async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>> {
        let id = id.clone();
        self.read(move |db| find(db, &id)).await
    }

    /// Newest first. `before`: only those opened before the session of that id, or before that instant (RFC 3339, UTC).
    pub async fn sessions(&self, limit: usize, before: Option<&str>, device: Option<&str>) -> Result<Vec<SessionRow>> {
        let (before, device) = (before.map(str::to_owned), device.map(str::to_owned));
        self.read(move |db| {
            // The id decides between sessions of the same millisecond, so that pages neither skip nor repeat one.
            db.prepare_cached(
                "SELECT * FROM sessions
                 WHERE (?1 IS NULL
                        OR (opened_at, id) < (ifnull((SELECT opened_at FROM sessions WHERE id = ?1), ?1), ?1))
                   AND (?2 IS NULL OR device = ?2)
                 ORDER BY opened_at DESC, id DESC LIMIT ?3",
            )?
            .query_map(params![before, device, limit], session_row)?
            .collect()
        })
        .await
    }

    /// Sessions that are open as far as the store knows. Asked before the first one is opened, these are those that an
    /// earlier daemon left open; what their rows say is as of their last take that was over.
    pub async fn left_open(&self) -> Result<Vec<SessionRow>> {
        self.read(|db| {
            db.prepare("SELECT * FROM sessions WHERE state = 'open' ORDER BY opened_at, id")?
                .query_map([], session_row)?
                .collect()
        })
        .await
    }
}

pub(super) fn note_progress(db: &Connection, id: &SessionId, progress: Progress) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE sessions SET takes = ?, duration_secs = ?, next_segment = ? WHERE id = ?")?
        .execute(params![progress.takes, progress.duration_secs, progress.next_segment, id.as_str()])
        .map(drop)
}

/// A session has come at least as far as its journaled segments reach, whatever became of the rest of what was known of
/// it, so that no segment's id is given out twice.
fn caught_up(db: &Connection, mut row: SessionRow) -> rusqlite::Result<SessionRow> {
    let counted = row.next_segment;
    // Those of whole takes are in the row, and to the sample: their own times are rounded.
    for segment in transcript(db, &row.id)?.into_iter().filter(|segment| segment.id >= counted) {
        row.next_segment = row.next_segment.max(segment.id.saturating_add(1));
        row.duration_secs = row.duration_secs.max(segment.end);
    }
    Ok(row)
}

fn find(db: &Connection, id: &SessionId) -> rusqlite::Result<Option<SessionRow>> {
    db.prepare_cached("SELECT * FROM sessions WHERE id = ?")?.query_row([id.as_str()], session_row).optional()
}

fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let state: String = row.get("state")?;
    Ok(SessionRow {
        id: session_id(row, 0)?,
        device: row.get("device")?,
        language: row.get("language")?,
        state: if state == "open" { SessionState::Open } else { SessionState::Closed },
        opened_at: row.get("opened_at")?,
        ended_at: row.get("ended_at")?,
        takes: row.get("takes")?,
        duration_secs: row.get("duration_secs")?,
        next_segment: row.get("next_segment")?,
    })
}

pub(super) fn session_id(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionId> {
    let id: String = row.get(column)?;
    SessionId::parse(&id).map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        flow::EventType,
        store::{
            testing::{id, say},
            transcript::tests::text,
        },
    };

    #[tokio::test]
    async fn a_session_opens_goes_on_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let opened = store.session_opened(&id("a"), "glasses", "es").await.unwrap();
        assert_eq!((opened.state, opened.next_segment, opened.takes), (SessionState::Open, 0, 0));
        let progress = Progress { takes: 1, duration_secs: 12.5, next_segment: 4 };
        store.note(Note::TakeOver(id("a"), progress)).await.unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.session(&id("a")).await.unwrap().unwrap().takes, 1);
        store.session_ended(&id("a"), progress).await.unwrap();
        let ended = store.session(&id("a")).await.unwrap().unwrap();
        assert_eq!(ended.state, SessionState::Closed);
        assert!(ended.ended_at.unwrap() >= ended.opened_at);

        let again = store.session_opened(&id("a"), "phone", "en").await.unwrap();
        assert_eq!((again.state, again.next_segment, again.takes), (SessionState::Open, 4, 1));
        assert_eq!((again.device.as_str(), again.language.as_str()), ("phone", "en"));
        assert_eq!((again.opened_at, again.ended_at), (opened.opened_at, None));
        assert_eq!(store.session(&id("unknown")).await.unwrap(), None);
        store.session_ended(&id("unknown"), progress).await.unwrap();
    }

    #[tokio::test]
    async fn sessions_that_a_killed_daemon_left_open_are_found_and_give_out_no_id_twice() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for session in ["done", "cut"] {
            store.session_opened(&id(session), "glasses", "es").await.unwrap();
        }
        store.session_ended(&id("done"), Progress::default()).await.unwrap();
        say(&store, 1, "cut", EventType::TranscriptSegment, json!({ "segment": text(7, 3.0, "hola") })).await;
        store.flush().await.unwrap();
        // As after SIGKILL: nothing is put down in order.
        std::mem::forget(store);

        let store = Store::open(dir.path()).unwrap();
        let cut = store.left_open().await.unwrap();
        assert_eq!(cut.len(), 1);
        assert_eq!((cut[0].id.as_str(), cut[0].next_segment), ("cut", 0));
        let row = store.session_opened(&id("cut"), "glasses", "es").await.unwrap();
        assert_eq!((row.next_segment, row.duration_secs), (8, 4.0));
    }

    #[tokio::test]
    async fn pages_of_sessions_neither_skip_nor_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ids: Vec<SessionId> = (0..25).map(|n| id(&format!("s{n:02}"))).collect();
        // At once, so that many share a millisecond.
        let opened = ids.iter().enumerate().map(|(n, id)| {
            let device = if n % 2 == 0 { "even" } else { "odd" };
            store.session_opened(id, device, "es")
        });
        for opened in futures_util::future::join_all(opened).await {
            opened.unwrap();
        }
        for (device, expected) in [(None, 25), (Some("odd"), 12)] {
            let mut seen = Vec::new();
            let mut before: Option<String> = None;
            loop {
                let page = store.sessions(4, before.as_deref(), device).await.unwrap();
                let Some(last) = page.last() else { break };
                before = Some(last.id.to_string());
                seen.extend(page);
            }
            assert_eq!(seen.len(), expected);
            assert!(seen.is_sorted_by(|a, b| (&a.opened_at, &a.id) > (&b.opened_at, &b.id)));
        }
        assert_eq!(store.sessions(100, Some("2999-01-01T00:00:00.000Z"), None).await.unwrap().len(), 25);
        assert_eq!(store.sessions(100, Some("1999-01-01T00:00:00.000Z"), None).await.unwrap().len(), 0);
    }
}
