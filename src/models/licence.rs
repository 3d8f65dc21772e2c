//! Licences that forbid commercial use: a person accepts each once, and that is remembered beside the models.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::{
    base::{Error, Kind, Result},
    models::{catalogue::Entry, installed::write_whole},
};

const FILE: &str = ".vigia-licences.json";

/// An error unless the model's licence is free, accepted before, or accepted now. Remembers nothing.
pub fn check(models_dir: &Path, entry: &Entry, accepted_now: bool) -> Result<()> {
    if entry.licence.commercial || is_accepted(&read(models_dir)?, entry) || accepted_now {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unauthorized,
        format!("the licence of {} ({}) forbids commercial use", entry.name, entry.licence.name),
    )
    .hint("read it where the model is published; --accept-licence accepts it, once"))
}

/// A person has accepted these.
pub fn remember<'a>(models_dir: &Path, entries: impl IntoIterator<Item = &'a Entry>) -> Result<()> {
    let mut accepted = read(models_dir)?;
    let is_new = |entry: &&Entry| !entry.licence.commercial && !is_accepted(&accepted, entry);
    let new: Vec<&Entry> = entries.into_iter().filter(is_new).collect();
    if new.is_empty() {
        return Ok(());
    }
    accepted.extend(new.into_iter().map(|entry| (entry.name.clone(), entry.licence.name.clone())));
    let text = serde_json::to_string_pretty(&accepted)
        .map_err(|error| Error::internal("the accepted licences cannot be written").cause(error))?;
    write_whole(&models_dir.join(FILE), text.as_bytes())
}

fn is_accepted(accepted: &BTreeMap<String, String>, entry: &Entry) -> bool {
    accepted.get(&entry.name) == Some(&entry.licence.name)
}

/// By model. What is accepted under one name of a licence is not under another.
fn read(models_dir: &Path) -> Result<BTreeMap<String, String>> {
    let path = models_dir.join(FILE);
    let broken =
        || Error::unavailable(format!("{} cannot be read", path.display())).hint("remove it, and accept again");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| broken().cause(error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(broken().cause(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::catalogue::Catalogue;

    #[test]
    fn a_licence_is_accepted_once() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::load(None).unwrap();
        let (free, bound) = (catalogue.get("whisper-tiny").unwrap(), catalogue.get("qwen2.5-vl-3b-instruct").unwrap());
        check(dir.path(), free, false).unwrap();
        let error = check(dir.path(), bound, false).unwrap_err();
        assert!(error.full().contains("--accept-licence"), "{}", error.full());
        check(dir.path(), bound, true).unwrap();
        assert!(check(dir.path(), bound, false).is_err(), "a look is not remembered");
        remember(dir.path(), [free, bound]).unwrap();
        check(dir.path(), bound, false).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);

        fs::write(dir.path().join("folder"), "in the way").unwrap();
        let nowhere = remember(&dir.path().join("folder"), [bound]).unwrap_err();
        assert!(nowhere.full().contains("cannot be"), "{}", nowhere.full());

        let mut changed = bound.clone();
        changed.licence.name = "another".to_owned();
        assert!(check(dir.path(), &changed, false).is_err());

        fs::write(dir.path().join(FILE), "{").unwrap();
        for accepted in [false, true] {
            let error = check(dir.path(), bound, accepted).unwrap_err();
            assert!(error.full().contains("remove it, and accept again"), "{}", error.full());
        }
    }
}
