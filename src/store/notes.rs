//! What is noted beside a session's events, in the order of the journal: how its open take can be gone on with, how far
//! it has come, what its client was told.
//!
//! Nobody waits for a note, and what could not be written is tried again as events are: a note is never passed over while
//! a later event stands. Together with an event it is committed in one transaction with it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    Progress, Store,
    sessions::{note_progress, session_id},
    writer::{Hurry, Work},
};
use crate::{
    base::{Error, Result, clock},
    flow::{SessionConfig, SessionId, TextSegment, Word},
};

/// Something to be noted of a session.
#[derive(Debug, Clone)]
pub enum Note {
    /// Replaces the one before.
    Checkpoint(SessionId, Checkpoint),
    /// A segment of the open take has no text: no event tells of it.
    Silent(SessionId, TextSegment),
    /// What was committed of the text of a segment that is being spoken. Replaces what was noted of it before.
    Committed { session: SessionId, segment: u64, text: String },
    /// When the words of a segment were spoken that was told without that.
    Words { session: SessionId, segment: u64, words: Vec<Word> },
    /// Who speaks in the session so far, as JSON. The store does not look inside.
    Speakers(SessionId, String),
    /// A take is over …
    TakeOver(SessionId, Progress),
    /// … for nothing: its client did not want it.
    TakeDropped(SessionId, Progress),
    /// An analysis of the session is begun, or put off until more is said …
    AnalysisOwed(SessionId),
    /// … and there is one, or there will be none.
    AnalysisDone(SessionId),
    /// A session that is over was transcribed once more.
    Retold(SessionId, Progress),
    /// The session is over.
    Ended(SessionId, Progress),
    /// Its client was sent, as its message `seq`, the result of the session's event of that number.
    Told { session: SessionId, seq: u64, event: u64 },
}

/// Where an open take can be gone on with. The store does not look inside.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub take: u64,
    /// JSON.
    pub state: String,
    /// What the voice detector remembers.
    pub detector: Vec<u8>,
}

/// What is noted of the take that a session has open.
#[derive(Debug, Default, PartialEq)]
pub struct OpenTake {
    pub checkpoint: Option<Checkpoint>,
    pub silent: Vec<TextSegment>,
    /// By segment, those included whose text is known by now.
    pub committed: BTreeMap<u64, String>,
    /// By segment.
    pub words: BTreeMap<u64, Vec<Word>>,
}

/// What a client has seen of the results so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    /// What was told in messages up to this `seq`.
    UpTo(u64),
    /// Or it does not care.
    Everything,
}

impl Note {
    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        match self {
            Note::Checkpoint(session, Checkpoint { take, state, detector }) => db
                .prepare_cached(
                    "INSERT OR REPLACE INTO checkpoints (session, take, state, detector) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![session.as_str(), take, state, detector])
                .map(drop),
            Note::Silent(session, segment) => {
                let json = to_json(segment)?;
                db.prepare_cached("INSERT OR REPLACE INTO silent_segments (session, id, json) VALUES (?, ?, ?)")?
                    .execute(params![session.as_str(), segment.id, json])
                    .map(drop)
            }
            Note::Committed { session, segment, text } => db
                .prepare_cached(
                    "INSERT INTO open_segments (session, id, committed) VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET committed = excluded.committed",
                )?
                .execute(params![session.as_str(), segment, text])
                .map(drop),
            Note::Words { session, segment, words } => db
                .prepare_cached(
                    "INSERT INTO open_segments (session, id, words) VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET words = excluded.words",
                )?
                .execute(params![session.as_str(), segment, to_json(words)?])
                .map(drop),
            Note::Speakers(session, state) => db
                .prepare_cached("UPDATE sessions SET speakers = ? WHERE id = ?")?
                .execute(params![state, session.as_str()])
                .map(drop),
            Note::TakeOver(session, progress) => {
                forget_take(db, session)?;
                note_progress(db, session, *progress)
            }
            Note::TakeDropped(session, progress) => {
                forget_take(db, session)?;
                db.prepare_cached("INSERT OR IGNORE INTO dropped_takes (session, take) VALUES (?, ?)")?
                    .execute(params![session.as_str(), progress.takes])?;
                note_progress(db, session, *progress)
            }
            Note::AnalysisOwed(session) => db
                .prepare_cached("INSERT OR IGNORE INTO owed_analyses (session) VALUES (?)")?
                .execute([session.as_str()])
                .map(drop),
            Note::AnalysisDone(session) => {
                db.prepare_cached("DELETE FROM owed_analyses WHERE session = ?")?.execute([session.as_str()]).map(drop)
            }
            Note::Retold(session, progress) => note_progress(db, session, *progress),
            Note::Ended(session, progress) => {
                forget_take(db, session)?;
                note_progress(db, session, *progress)?;
                db.prepare_cached("UPDATE sessions SET state = 'closed', ended_at = ? WHERE id = ?")?
                    .execute(params![clock::now_at(), session.as_str()])
                    .map(drop)
            }
            Note::Told { session, seq, event } => db
                .prepare_cached("INSERT OR REPLACE INTO told (session, seq, event) VALUES (?, ?, ?)")?
                .execute(params![session.as_str(), seq, event])
                .map(drop),
        }
    }
}

impl Store {
    /// Hands a note over. Waits while the queue is full, within a limit.
    pub async fn note(&self, note: Note) -> Result<()> {
        self.0.writer.add(1, false, |batch| batch.push(Work::Note(note))).await
    }

    /// Returns once the note is committed.
    pub async fn note_durably(&self, note: Note) -> Result<()> {
        self.change(Hurry::No, move |db| note.write(db)).await
    }

    /// A client comes to an open session, and what it asks counts from now on. Of what the clients before it were told
    /// only what it has seen still counts: what it is told anew gets new numbers. Returns the `seq` of the event up to
    /// which it has seen the results; 0 for none.
    pub async fn session_joined(&self, config: &SessionConfig, seen: Seen) -> Result<u64> {
        let config = config.clone();
        let json = serde_json::to_string(&config)
            .map_err(|error| Error::internal("a session's config makes no JSON").cause(error))?;
        self.change(Hurry::Now, move |db| {
            let id = config.id.as_str();
            db.prepare_cached("UPDATE sessions SET device = ?, language = ?, config = ? WHERE id = ?")?
                .execute(params![config.device, config.language, json, id])?;
            let kept = match seen {
                Seen::UpTo(seq) => i64::try_from(seq).unwrap_or(i64::MAX),
                Seen::Nothing | Seen::Everything => -1,
            };
            db.prepare_cached("DELETE FROM told WHERE session = ? AND seq > ?")?.execute(params![id, kept])?;
            if seen == Seen::Everything {
                // As if told before its first message.
                db.prepare_cached("INSERT INTO told SELECT ?1, 0, ifnull(max(seq), 0) FROM events WHERE session = ?1")?
                    .execute([id])?;
            }
            db.prepare_cached("SELECT ifnull(max(event), 0) FROM told WHERE session = ?")?
                .query_row([id], |row| row.get(0))
        })
        .await
    }

    /// What the session's last client asked.
    pub async fn session_config(&self, id: &SessionId) -> Result<Option<SessionConfig>> {
        let session = id.clone();
        let json: Option<String> = self
            .read(move |db| {
                db.prepare_cached("SELECT config FROM sessions WHERE id = ?")?
                    .query_row([session.as_str()], |row| row.get(0))
                    .optional()
                    .map(Option::flatten)
            })
            .await?;
        let parsed = json.as_deref().map(serde_json::from_str).transpose();
        parsed.map_err(|error| Error::internal(format!("the config of session {id} cannot be read")).cause(error))
    }

    /// What was noted of the session's speakers.
    pub async fn session_speakers(&self, id: &SessionId) -> Result<Option<String>> {
        let session = id.clone();
        self.read(move |db| {
            db.prepare_cached("SELECT speakers FROM sessions WHERE id = ?")?
                .query_row([session.as_str()], |row| row.get(0))
                .optional()
                .map(Option::flatten)
        })
        .await
    }

    /// The session's takes that its clients did not want.
    /// Sessions of which an analysis was begun and has not ended.
    pub async fn owed_analyses(&self) -> Result<BTreeSet<SessionId>> {
        self.read(|db| {
            db.prepare("SELECT session FROM owed_analyses")?.query_map([], |row| session_id(row, 0))?.collect()
        })
        .await
    }

    pub async fn dropped_takes(&self, id: &SessionId) -> Result<Vec<u64>> {
        let session = id.clone();
        self.read(move |db| {
            db.prepare_cached("SELECT take FROM dropped_takes WHERE session = ?")?
                .query_map([session.as_str()], |row| row.get(0))?
                .collect()
        })
        .await
    }

    pub async fn open_take(&self, id: &SessionId) -> Result<OpenTake> {
        let session = id.clone();
        let (checkpoint, silent, beside) = self
            .read(move |db| {
                let checkpoint = db
                    .prepare_cached("SELECT take, state, detector FROM checkpoints WHERE session = ?")?
                    .query_row([session.as_str()], |row| {
                        Ok(Checkpoint { take: row.get(0)?, state: row.get(1)?, detector: row.get(2)? })
                    })
                    .optional()?;
                let silent: Vec<String> = db
                    .prepare_cached("SELECT json FROM silent_segments WHERE session = ? ORDER BY id")?
                    .query_map([session.as_str()], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let beside: Vec<(u64, Option<String>, Option<String>)> = db
                    .prepare_cached("SELECT id, committed, words FROM open_segments WHERE session = ?")?
                    .query_map([session.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                Ok((checkpoint, silent, beside))
            })
            .await?;
        let unreadable = |error| Error::internal(format!("a segment of session {id} cannot be read")).cause(error);
        let silent = silent.iter().map(|json| serde_json::from_str(json)).collect::<serde_json::Result<_>>();
        let mut open = OpenTake { checkpoint, silent: silent.map_err(unreadable)?, ..OpenTake::default() };
        for (segment, committed, words) in beside {
            open.committed.extend(committed.map(|text| (segment, text)));
            if let Some(words) = words {
                open.words.insert(segment, serde_json::from_str(&words).map_err(unreadable)?);
            }
        }
        Ok(open)
    }
}

fn to_json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Everything noted of a session that is deleted.
pub(super) fn forget(db: &Connection, session: &SessionId) -> rusqlite::Result<()> {
    forget_take(db, session)?;
    for sql in [
        "DELETE FROM told WHERE session = ?",
        "DELETE FROM dropped_takes WHERE session = ?",
        "DELETE FROM owed_analyses WHERE session = ?",
    ] {
        db.prepare_cached(sql)?.execute([session.as_str()])?;
    }
    Ok(())
}

fn forget_take(db: &Connection, session: &SessionId) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM checkpoints WHERE session = ?",
        "DELETE FROM silent_segments WHERE session = ?",
        "DELETE FROM open_segments WHERE session = ?",
    ] {
        db.prepare_cached(sql)?.execute([session.as_str()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        flow::{AudioFormat, Encoding, EventType, Wish},
        store::{
            SessionState,
            testing::{event, id, say, soon},
            transcript::tests::text,
        },
    };

    fn config(session: &str) -> SessionConfig {
        SessionConfig {
            id: id(session),
            device: "glasses".into(),
            format: AudioFormat { encoding: Encoding::Pcm16, sample_rate: 16_000, channels: 1 },
            language: "es".into(),
            partials: true,
            diarize: Wish::IfPossible,
            analyze: Wish::IfPossible,
            words: false,
            prompt: None,
            translate: false,
        }
    }

    fn checkpoint(take: u64) -> Checkpoint {
        Checkpoint { take, state: "{}".into(), detector: vec![7; 1280] }
    }

    async fn store_with_a(dir: &std::path::Path) -> Store {
        let store = Store::open(dir).unwrap();
        store.session_opened(&id("a"), "glasses", "es").await.unwrap();
        store
    }

    #[tokio::test]
    async fn an_open_take_is_noted_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_a(dir.path()).await;
        assert_eq!(store.open_take(&id("a")).await.unwrap(), OpenTake::default());
        for take in [1, 2] {
            store.note(Note::Checkpoint(id("a"), checkpoint(take))).await.unwrap();
        }
        store.note(Note::Silent(id("a"), text(4, 1.0, ""))).await.unwrap();
        for (segment, so_far) in [(5, "hola"), (6, "¿qué"), (6, "¿qué tal")] {
            let note = Note::Committed { session: id("a"), segment, text: so_far.to_owned() };
            store.note_durably(note).await.unwrap();
        }
        let words = vec![Word { start: 1.0, end: 1.5, text: " hola".to_owned(), probability: 0.5 }];
        store.note(Note::Words { session: id("a"), segment: 5, words: words.clone() }).await.unwrap();
        store.close(soon()).await.unwrap();

        let store = Store::open(dir.path()).unwrap();
        let open = OpenTake {
            checkpoint: Some(checkpoint(2)),
            silent: vec![text(4, 1.0, "")],
            committed: [(5, "hola".to_owned()), (6, "¿qué tal".to_owned())].into(),
            words: [(5, words)].into(),
        };
        assert_eq!(store.open_take(&id("a")).await.unwrap(), open);
        let progress = Progress { takes: 2, duration_secs: 9.0, next_segment: 5 };
        store.note(Note::TakeOver(id("a"), progress)).await.unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.open_take(&id("a")).await.unwrap(), OpenTake::default());
        assert_eq!(store.session(&id("a")).await.unwrap().unwrap().progress(), progress);
    }

    #[tokio::test]
    async fn an_event_and_its_note_are_committed_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_a(dir.path()).await;
        let end = event(Some("a"), 1, EventType::SessionEnd, json!({}));
        let json = serde_json::to_string(&*end).unwrap();
        store.append(1, end, json.into(), vec![Note::Ended(id("a"), Progress::default())]).await.unwrap();
        store.flush().await.unwrap();
        let row = store.session(&id("a")).await.unwrap().unwrap();
        assert!(row.state == SessionState::Closed && row.ended_at.is_some());
        assert_eq!(store.last_seq(Some(&id("a"))).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn who_speaks_is_noted_with_the_session_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_a(dir.path()).await;
        assert_eq!(store.session_speakers(&id("a")).await.unwrap(), None);
        for state in ["{}", "[1]"] {
            store.note(Note::Speakers(id("a"), state.to_owned())).await.unwrap();
        }
        store.flush().await.unwrap();
        assert_eq!(store.session_speakers(&id("a")).await.unwrap().as_deref(), Some("[1]"));
        assert!(store.delete_session(&id("a")).await.unwrap());
        assert_eq!(store.session_speakers(&id("a")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_comes_back_has_seen_what_it_was_told_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_a(dir.path()).await;
        let kind = EventType::TranscriptSegment;
        for position in 1..=4 {
            say(&store, position, "a", kind, json!({ "segment": text(position as u64, 0.0, "hola") })).await;
        }
        let told = |seq, event| store.note(Note::Told { session: id("a"), seq, event });
        told(10, 1).await.unwrap();
        told(20, 2).await.unwrap();
        let join = |seen| {
            let (store, config) = (store.clone(), config("a"));
            async move { store.session_joined(&config, seen).await.unwrap() }
        };
        assert_eq!(join(Seen::UpTo(25)).await, 2);
        assert_eq!(join(Seen::UpTo(19)).await, 1);
        // Told again on its new connection, whose numbers go on; cut before it came.
        told(21, 2).await.unwrap();
        assert_eq!(join(Seen::UpTo(20)).await, 1);
        assert_eq!(join(Seen::Nothing).await, 0);
        assert_eq!(join(Seen::UpTo(25)).await, 0, "what was forgotten stays so");
        assert_eq!(join(Seen::Everything).await, 4);
        told(26, 5).await.unwrap();
        assert_eq!(join(Seen::UpTo(7)).await, 4, "what was before its first message is not wanted");
        let results = store.results(&id("a"), 2, 10).await.unwrap();
        assert_eq!(results.iter().map(|(seq, event)| (*seq, event.kind)).collect::<Vec<_>>(), [(3, kind), (4, kind)]);
        assert_eq!(store.session_config(&id("a")).await.unwrap(), Some(config("a")));
        assert_eq!(store.session_config(&id("b")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_deleted_session_leaves_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_a(dir.path()).await;
        store.note(Note::Checkpoint(id("a"), checkpoint(1))).await.unwrap();
        store.note(Note::Silent(id("a"), text(4, 1.0, ""))).await.unwrap();
        store.note(Note::Told { session: id("a"), seq: 1, event: 1 }).await.unwrap();
        store.note(Note::TakeDropped(id("a"), Progress { takes: 1, ..Progress::default() })).await.unwrap();
        store.note(Note::Committed { session: id("a"), segment: 5, text: "hola".into() }).await.unwrap();
        store.note(Note::AnalysisOwed(id("a"))).await.unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.owed_analyses().await.unwrap(), [id("a")].into());
        assert_eq!(store.dropped_takes(&id("a")).await.unwrap(), [1]);
        assert!(store.delete_session(&id("a")).await.unwrap());
        let left = |table: &'static str| {
            store.read(move |db| db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, u64>(0)))
        };
        for table in ["checkpoints", "silent_segments", "open_segments", "told", "dropped_takes", "owed_analyses"] {
            assert_eq!(left(table).await.unwrap(), 0, "{table}");
        }
    }
}
