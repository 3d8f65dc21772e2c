//! What is on the disk: which models and variants are whole, the lock that says what each file was when it came,
//! checking against it, and removing. Downloads nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    models::{
        catalogue::{Catalogue, Entry, is_side_file, safe_name, safe_path},
        digest::Digest,
    },
};

/// Beside a model's files: what they were when they came.
const LOCK: &str = ".vigia-lock.json";
const CLAIM: &str = ".vigia-claim";
const REMOVING: &str = ".vigia-removing-";
/// Deeper than any layout; ends the walk over a folder that contains itself.
const MAX_DEPTH: usize = 6;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub variants: BTreeSet<String>,
    /// The commit of each repository, so that a variant fetched later fits the one fetched first.
    pub commits: BTreeMap<String, String>,
    pub files: BTreeMap<String, Locked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    pub size: u64,
    pub sha256: String,
}

impl Lock {
    /// A model that was copied by hand has none.
    pub fn read(dir: &Path) -> Result<Option<Lock>> {
        let path = dir.join(LOCK);
        let broken = || {
            Error::unavailable(format!("{} cannot be read", path.display()))
                .hint("`vigia models remove` the model, and fetch it again")
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(broken().cause(error)),
        };
        let lock: Lock = serde_json::from_slice(&text).map_err(|error| broken().cause(error))?;
        lock.files.keys().try_for_each(|path| safe_path(path)).map_err(|error| broken().cause(error))?;
        Ok(Some(lock))
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::internal("a lock of a model cannot be written").cause(error))?;
        write_whole(&dir.join(LOCK), text.as_bytes())
    }
}

/// Either the old content or the new one, whatever happens.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    written.map_err(|error| Error::unavailable(format!("{} cannot be written", path.display())).cause(error))
}

/// While it lives, no other command changes the models' folder.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "the open file is what holds the lock")] File);

impl Claim {
    pub fn of(models_dir: &Path) -> Result<Claim> {
        let path = models_dir.join(CLAIM);
        let unwritable = |error: io::Error| {
            Error::unavailable(format!("{} cannot be written to", models_dir.display()))
                .cause(error)
                .hint("run as the folder's owner, or set models.dir to a folder of your own")
        };
        fs::create_dir_all(models_dir).map_err(unwritable)?;
        let file = File::options().create(true).append(true).open(path).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => Ok(Claim(file)),
            Err(TryLockError::WouldBlock) => {
                Err(Error::new(Kind::Busy, format!("another command is changing {}", models_dir.display()))
                    .hint("try again when it is done"))
            }
            Err(TryLockError::Error(error)) => Err(unwritable(error)),
        }
    }
}

/// A model on the disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    pub dir: PathBuf,
    /// Those that are whole; none while a download is unfinished.
    pub variants: Vec<String>,
    pub bytes: u64,
}

/// The model in the first place that has a folder of its name.
pub fn find(entry: &Entry, places: &[PathBuf]) -> Result<Option<Found>> {
    let Some(dir) = places.iter().map(|place| place.join(&entry.name)).find(|dir| dir.is_dir()) else {
        return Ok(None);
    };
    let lock = Lock::read(&dir)?.unwrap_or_default();
    let whole = |variant: &&str| {
        let required = entry.required(variant);
        required.iter().all(|path| is_there(&dir, path, lock.files.get(path)))
            && lock.files.iter().all(|(path, locked)| {
                let beside = required.iter().any(|graph| is_side_file(graph, path));
                !beside || is_there(&dir, path, Some(locked))
            })
    };
    let variants = entry.variants().into_iter().filter(whole).map(str::to_owned).collect();
    let bytes = files_below(&dir)?.values().sum();
    Ok(Some(Found { dir, variants, bytes }))
}

fn is_there(dir: &Path, path: &str, locked: Option<&Locked>) -> bool {
    let found = fs::metadata(dir.join(path));
    found.is_ok_and(|found| found.is_file() && locked.is_none_or(|locked| locked.size == found.len()))
}

/// Folders in the layout of the hub that the catalogue does not know: `config.json` and a graph.
pub fn unlisted(catalogue: &Catalogue, places: &[PathBuf]) -> Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for place in places {
        let Ok(listed) = fs::read_dir(place) else { continue };
        for dir in listed.filter_map(|it| Some(it.ok()?.path())).filter(|dir| dir.is_dir()) {
            let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            if safe_name(name).is_err() || catalogue.get(name).is_some() || found.contains_key(name) {
                continue;
            }
            let files = files_below(&dir)?;
            if files.contains_key("config.json") && files.keys().any(|path| path.ends_with(".onnx")) {
                let bytes = files.values().sum();
                found.insert(name.to_owned(), Found { dir, variants: vec!["only".to_owned()], bytes });
            }
        }
    }
    Ok(found)
}

/// The model's files with their sizes; not those that Vigía keeps beside them, and not through links.
pub(crate) fn files_below(dir: &Path) -> Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    walk(dir, "", 0, &mut files)
        .map_err(|error| Error::unavailable(format!("{} cannot be read", dir.display())).cause(error))?;
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, u64>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Some(path) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        if safe_path(&path).is_err() {
            continue;
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), &format!("{path}/"), depth + 1, files)?;
        } else if kind.is_file() {
            files.insert(path, entry.metadata()?.len());
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What it was when it came, or what the catalogue says it is.
    Good,
    Missing,
    Changed,
    /// There, and nothing is known to compare it with.
    Unknown,
}

/// Reads every file of a model and compares it with the lock and with the catalogue.
pub fn verify(entry: Option<&Entry>, dir: &Path) -> Result<BTreeMap<String, Verdict>> {
    let lock = Lock::read(dir)?.unwrap_or_default();
    let there = files_below(dir)?;
    let mut paths: BTreeSet<String> = there.keys().chain(lock.files.keys()).cloned().collect();
    if let Some(entry) = entry.filter(|_| lock.files.is_empty()) {
        paths.extend(entry.required(entry.default_variant()));
    }
    let mut verdicts = BTreeMap::new();
    for path in paths {
        let known = entry.and_then(|entry| entry.known(&path));
        let locked = lock.files.get(&path);
        let verdict = match there.get(&path) {
            None => Verdict::Missing,
            Some(size) => {
                let mut sizes = locked.map(|it| it.size).into_iter().chain(known.and_then(|it| it.size));
                let mut hashes = locked.map(|it| &it.sha256).into_iter().chain(known.and_then(|it| it.sha256.as_ref()));
                if !sizes.all(|wanted| wanted == *size) {
                    Verdict::Changed
                } else if hashes.clone().next().is_none() {
                    Verdict::Unknown
                } else {
                    let unreadable = |error| Error::unavailable(format!("{path} cannot be read")).cause(error);
                    let hash = Digest::of_file(&dir.join(&path)).map_err(unreadable)?.sha256();
                    if hashes.all(|wanted| *wanted == hash) { Verdict::Good } else { Verdict::Changed }
                }
            }
        };
        verdicts.insert(path, verdict);
    }
    Ok(verdicts)
}

/// Takes a model off the disk; gone at once, whatever happens while its files go.
pub fn remove(models_dir: &Path, name: &str) -> Result<()> {
    safe_name(name)?;
    let dir = models_dir.join(name);
    let failed = |error| Error::unavailable(format!("{} cannot be removed", dir.display())).cause(error);
    let kind = match fs::symlink_metadata(&dir) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(Kind::NotFound, format!("{name} is not in {}", models_dir.display()))
                .hint("`vigia models where` says where models are looked for"));
        }
        Err(error) => return Err(failed(error)),
    };
    if kind.is_symlink() {
        // Somebody keeps the model elsewhere: the link is ours to take, the model is not.
        return fs::remove_file(&dir).map_err(failed);
    }
    let going = models_dir.join(format!("{REMOVING}{name}"));
    if going.exists() {
        fs::remove_dir_all(&going).map_err(failed)?;
    }
    fs::rename(&dir, &going).and_then(|()| fs::remove_dir_all(&going)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, path: &str, content: &str) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn entry(name: &str) -> Entry {
        Catalogue::load(None).unwrap().require(name).unwrap().clone()
    }

    fn locked(content: &str) -> Locked {
        let mut digest = Digest::default();
        digest.add(content.as_bytes());
        Locked { size: digest.size(), sha256: digest.sha256() }
    }

    #[test]
    fn a_model_is_installed_once_a_variant_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let places = [place.path().to_owned()];
        let entry = entry("qwen2.5-0.5b-instruct");
        assert_eq!(find(&entry, &places).unwrap(), None);
        let dir = place.path().join(&entry.name);
        let required = entry.required("q4");
        for path in &required[1..] {
            put(&dir, path, "x");
        }
        assert!(find(&entry, &places).unwrap().unwrap().variants.is_empty());
        put(&dir, &required[0], "x");
        let found = find(&entry, &places).unwrap().unwrap();
        assert_eq!((found.variants, found.bytes), (vec!["q4".to_owned()], required.len() as u64));

        // Weights that came beside a graph belong to it.
        let mut lock = Lock::default();
        lock.files.insert("onnx/model_q4.onnx_data".to_owned(), locked("weights"));
        lock.write(&dir).unwrap();
        assert!(find(&entry, &places).unwrap().unwrap().variants.is_empty());
        put(&dir, "onnx/model_q4.onnx_data", "weights");
        assert_eq!(find(&entry, &places).unwrap().unwrap().variants, ["q4"]);
    }

    #[test]
    fn a_bare_folder_in_the_hubs_layout_counts_as_a_model() {
        let place = tempfile::tempdir().unwrap();
        for path in ["mine/config.json", "mine/onnx/model.onnx", "junk/readme.md", "whisper-tiny/config.json"] {
            put(place.path(), path, "x");
        }
        let found = unlisted(&Catalogue::load(None).unwrap(), &[place.path().to_owned()]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["mine"]);
        assert_eq!(found["mine"].bytes, 2);
    }

    #[test]
    fn verifying_finds_what_is_missing_changed_or_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Lock::default();
        for (path, content) in [("good", "abc"), ("gone", "abc"), ("flipped", "abc"), ("longer", "abc")] {
            lock.files.insert(path.to_owned(), locked(content));
        }
        lock.write(dir.path()).unwrap();
        for (path, content) in [("good", "abc"), ("flipped", "abd"), ("longer", "abcd"), ("extra", "abc")] {
            put(dir.path(), path, content);
        }
        let verdicts = verify(None, dir.path()).unwrap();
        assert_eq!(verdicts["good"], Verdict::Good);
        assert_eq!(verdicts["gone"], Verdict::Missing);
        assert_eq!(verdicts["flipped"], Verdict::Changed);
        assert_eq!(verdicts["longer"], Verdict::Changed);
        assert_eq!(verdicts["extra"], Verdict::Unknown);
        assert_eq!(verdicts.len(), 5, "the lock itself is no file of the model: {verdicts:?}");
    }

    #[test]
    fn without_a_lock_the_catalogue_says_what_a_file_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let silero = entry("silero-vad");
        assert_eq!(verify(Some(&silero), dir.path()).unwrap()["silero_vad.onnx"], Verdict::Missing);
        put(dir.path(), "silero_vad.onnx", "something else");
        assert_eq!(verify(Some(&silero), dir.path()).unwrap()["silero_vad.onnx"], Verdict::Changed);
    }

    #[test]
    fn a_lock_that_leads_elsewhere_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Lock::default();
        lock.files.insert("../../etc/passwd".to_owned(), locked("x"));
        lock.write(dir.path()).unwrap();
        let error = verify(None, dir.path()).unwrap_err();
        assert!(error.full().contains(LOCK), "{}", error.full());
        put(dir.path(), LOCK, "{");
        assert!(Lock::read(dir.path()).is_err());
    }

    #[test]
    fn removing_takes_one_model_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        put(place.path(), "a/f", "x");
        put(place.path(), "b/f", "x");
        for name in ["..", "a/f", ".", ""] {
            assert_eq!(remove(place.path(), name).unwrap_err().kind(), Kind::Invalid, "{name:?}");
        }
        assert_eq!(remove(place.path(), "c").unwrap_err().kind(), Kind::NotFound);
        remove(place.path(), "a").unwrap();
        std::os::unix::fs::symlink(place.path().join("b"), place.path().join("linked")).unwrap();
        remove(place.path(), "linked").unwrap();
        assert!(!place.path().join("a").exists() && place.path().join("b/f").exists());
    }

    #[test]
    fn two_commands_do_not_change_the_folder_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let claim = Claim::of(&place.path().join("models")).unwrap();
        assert_eq!(Claim::of(&place.path().join("models")).unwrap_err().kind(), Kind::Busy);
        drop(claim);
        Claim::of(&place.path().join("models")).unwrap();
        put(place.path(), "file", "in the way");
        let error = Claim::of(&place.path().join("file")).unwrap_err();
        assert!(error.full().contains("models.dir"), "{}", error.full());
        let error = Lock::default().write(&place.path().join("absent")).unwrap_err();
        assert!(error.message().contains("cannot be written"), "{}", error.full());
    }
}
