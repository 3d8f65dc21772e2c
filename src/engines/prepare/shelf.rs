//! Engines on disk: a folder for each, with a mark that says whether it may serve; and beside them each model's
//! recorded answers. A folder without a mark is one that was not finished; a file that cannot be read counts as none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    base::{Error, Result},
    engines::prepare::{EngineKey, EngineState, GraphAnswers},
    models::{catalogue::Check, installed::write_whole},
};

const MARK: &str = "vigia.json";
const RECORD: &str = "check.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Mark {
    Ready,
    Quarantined { reason: String },
}

/// What a model answered, and to what.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: String,
    check: Check,
    answers: GraphAnswers,
}

pub(super) struct Shelf {
    root: PathBuf,
}

impl Shelf {
    pub(super) fn new(root: PathBuf) -> Shelf {
        Shelf { root }
    }

    pub(super) fn folder(&self, key: &EngineKey) -> PathBuf {
        self.home(key).join(key.id())
    }

    /// What is on the disk, and so never `Building` or `Failed`.
    pub(super) fn state(&self, key: &EngineKey) -> EngineState {
        let folder = self.folder(key);
        match read::<Mark>(&folder.join(MARK)) {
            Some(Mark::Ready) if has_engine(&folder) => EngineState::Ready,
            Some(Mark::Quarantined { reason }) => EngineState::Quarantined { reason },
            Some(Mark::Ready) | None => EngineState::Absent,
        }
    }

    /// An empty folder, without what an earlier try has left.
    pub(super) fn begin(&self, key: &EngineKey) -> Result<PathBuf> {
        let folder = self.folder(key);
        let emptied = remove(&folder).and_then(|()| fs::create_dir_all(&folder));
        emptied.map_err(|error| {
            Error::unavailable(format!("{} cannot be made for a TensorRT engine", folder.display())).cause(error)
        })?;
        Ok(folder)
    }

    /// A builder that writes nothing would have its check answered by another provider.
    pub(super) fn require_engine(&self, key: &EngineKey) -> Result<()> {
        if has_engine(&self.folder(key)) {
            return Ok(());
        }
        Err(Error::unavailable("TensorRT took no part of the model: no engine was written"))
    }

    /// The engine may serve; those that it replaces leave the disk.
    pub(super) fn ready(&self, key: &EngineKey) -> Result<()> {
        let folder = self.folder(key);
        self.mark(key, &Mark::Ready)?;
        let others = fs::read_dir(self.home(key)).into_iter().flatten().flatten().map(|entry| entry.path());
        for other in others.filter(|path| path.is_dir() && *path != folder) {
            if let Err(error) = remove(&other) {
                log::warn!("{} is of no more use and cannot be removed: {error}", other.display());
            }
        }
        Ok(())
    }

    /// The reason stays, the engine goes.
    pub(super) fn quarantine(&self, key: &EngineKey, reason: &str) -> Result<()> {
        self.begin(key)?;
        self.mark(key, &Mark::Quarantined { reason: reason.to_owned() })
    }

    pub(super) fn recorded(&self, key: &EngineKey, check: &Check) -> Option<GraphAnswers> {
        let record = read::<Record>(&self.home(key).join(RECORD))?;
        (record.digest == key.digest && record.check == *check).then_some(record.answers)
    }

    pub(super) fn record(&self, key: &EngineKey, check: &Check, answers: &GraphAnswers) -> Result<()> {
        let record = Record { digest: key.digest.clone(), check: check.clone(), answers: answers.clone() };
        write(&self.home(key).join(RECORD), &record)
    }

    fn mark(&self, key: &EngineKey, mark: &Mark) -> Result<()> {
        write(&self.folder(key).join(MARK), mark)
    }

    /// Of all engines of one variant.
    fn home(&self, key: &EngineKey) -> PathBuf {
        self.root.join(&key.model).join(&key.variant)
    }
}

fn has_engine(folder: &Path) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.path()).any(|path| path.extension().is_some_and(|it| it == "engine"))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        bytes => bytes,
    };
    let read = bytes.map_err(|error| error.to_string());
    let parsed = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    parsed.inspect_err(|error| log::warn!("{} is made anew, it cannot be read: {error}", path.display())).ok()
}

fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let failed = || Error::unavailable(format!("{} cannot be written", path.display()));
    let bytes = serde_json::to_vec(content).map_err(|error| failed().cause(error))?;
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(|error| failed().cause(error))?;
    write_whole(path, &bytes)
}
