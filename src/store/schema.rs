//! The tables, how they came to be, and how the database is opened.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::base::{Error, Kind, Result};

/// One step a version; `user_version` counts those taken. Steps are added, never changed.
///
/// `events.session` is empty for what the node itself says: unlike NULL, it takes part in the unique index.
/// `checkpoints` and `silent_segments` (those without text, which are no events) are of a session's open take. `told`:
/// under which `seq` a client was sent which event's result. `open_segments`: of segments of the open take, what is in no
/// event: committed words while they are spoken, times of words once they are told. `dropped_takes`: which takes of a
/// session its clients did not want. `owed_analyses`: of which sessions one was begun and has not ended.
const STEPS: &[&str] = &[
    "
    CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        session TEXT NOT NULL,
        seq INTEGER NOT NULL,
        kind TEXT NOT NULL,
        at INTEGER NOT NULL,
        json TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX events_of_session ON events (session, seq);

    CREATE TABLE cursors (
        name TEXT PRIMARY KEY,
        position INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        device TEXT NOT NULL,
        language TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'closed')),
        opened_at TEXT NOT NULL,
        ended_at TEXT,
        takes INTEGER NOT NULL DEFAULT 0,
        duration_secs REAL NOT NULL DEFAULT 0,
        next_segment INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX sessions_by_time ON sessions (opened_at, id);

    CREATE TABLE keys (
        name TEXT PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,
        created_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE sessions ADD COLUMN config TEXT;

    CREATE TABLE checkpoints (
        session TEXT PRIMARY KEY,
        take INTEGER NOT NULL,
        state TEXT NOT NULL,
        detector BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE silent_segments (
        session TEXT NOT NULL,
        id INTEGER NOT NULL,
        json TEXT NOT NULL,
        PRIMARY KEY (session, id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE told (
        session TEXT NOT NULL,
        seq INTEGER NOT NULL,
        event INTEGER NOT NULL,
        PRIMARY KEY (session, seq)
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE sessions ADD COLUMN speakers TEXT;
",
    "
    CREATE TABLE open_segments (
        session TEXT NOT NULL,
        id INTEGER NOT NULL,
        committed TEXT,
        words TEXT,
        PRIMARY KEY (session, id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE dropped_takes (
        session TEXT NOT NULL,
        take INTEGER NOT NULL,
        PRIMARY KEY (session, take)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE owed_analyses (
        session TEXT PRIMARY KEY
    ) STRICT, WITHOUT ROWID;
",
];

/// Another process (`vigia keys add`) holds the lock for milliseconds.
const BUSY: Duration = Duration::from_secs(5);

/// The writer's connection, with the tables as this version knows them.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let mut db = Connection::open(path).map_err(|error| explain(path, error))?;
    prepare(&db).map_err(|error| explain(path, error))?;
    let version = upgrade(&mut db).map_err(|error| explain(path, error))?;
    if version > STEPS.len() {
        let known = STEPS.len();
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "the store at {} was written by a newer version (schema {version}; this one knows {known})",
                path.display()
            ),
        )
        .hint("install that version again, or move the file away to start afresh"));
    }
    Ok(db)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let open = || {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        frugal(&db)?;
        Ok(db)
    };
    open().map_err(|error| explain(path, error))
}

/// What a person can do about a database that does not open.
pub(super) fn explain(path: &Path, error: rusqlite::Error) -> Error {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::internal(format!("the store at {path} is damaged"))
                .hint("move it away to start afresh, or restore it from a backup")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::unavailable(format!("another program holds the store at {path}")).hint("stop it, then try again")
        }
        _ => Error::unavailable(format!("cannot open the store at {path}"))
            .hint("see that store.dir can be written and has free space"),
    }
    .cause(error)
}

fn prepare(db: &Connection) -> rusqlite::Result<()> {
    frugal(db)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit survives a power cut. With NORMAL the last commits could vanish, and a `seq` that clients have
    // seen would be given out again for something else. Affordable because commits are grouped (`writer.rs`).
    db.pragma_update(None, "synchronous", "FULL")?;
    // 16 MiB between checkpoints: the index's leaves of live sessions change with every group, and are then copied into
    // the database once instead of many times. Kept at that size.
    db.pragma_update(None, "wal_autocheckpoint", 4096)?;
    db.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // What a person deletes is overwritten, not only unlinked.
    db.pragma_update(None, "secure_delete", "ON")?;
    Ok(())
}

/// Small caches: the daemon's memory belongs to the models.
fn frugal(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "cache_size", -1024)?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}

/// Takes the missing steps, all or none; returns the version found, if that is beyond ours.
fn upgrade(db: &mut Connection) -> rusqlite::Result<usize> {
    // Immediate: of two processes that start at once, the second finds the work done.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: usize = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for step in STEPS.iter().skip(version) {
        transaction.execute_batch(step)?;
    }
    let reached = version.max(STEPS.len());
    if reached > version {
        transaction.pragma_update(None, "user_version", reached)?;
    }
    transaction.commit()?;
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::Store;

    fn refusal(dir: &Path) -> Error {
        Store::open(dir).err().expect("must not open")
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vigia.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = refusal(dir.path());
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("schema 99"), "{error}");
        let db = Connection::open(&path).unwrap();
        let tables: u32 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn a_damaged_file_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vigia.db");
        fs::write(&path, "this is not a database, whatever its name says. ".repeat(100)).unwrap();
        let error = refusal(dir.path());
        assert!(error.message().contains("damaged") && error.hint_text().unwrap().contains("move it away"), "{error}");

        // The header is intact, what follows is not.
        fs::remove_file(&path).unwrap();
        drop(open(&path).unwrap());
        let mut bytes = fs::read(&path).unwrap();
        bytes[100..].fill(0xee);
        fs::write(&path, bytes).unwrap();
        assert!(refusal(dir.path()).message().contains("damaged"));
    }

    #[test]
    fn a_place_that_is_no_folder_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = refusal(&file);
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hint_text().unwrap().contains("store.dir"));
        fs::create_dir(dir.path().join("vigia.db")).unwrap();
        assert_eq!(refusal(dir.path()).kind(), Kind::Unavailable);
    }

    #[test]
    fn opening_again_takes_no_step_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vigia.db");
        for _ in 0..2 {
            let db = open(&path).unwrap();
            let version: usize = db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version, STEPS.len());
            let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
        }
    }
}
