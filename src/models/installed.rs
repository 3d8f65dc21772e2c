//! What is on the disk: which models and variants are whole, the lock that says what each file was when it came,
//! checking against it, and removing. Downloads nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    models::{
        beside::lacking,
        catalogue::{Catalogue, Entry, ONLY, is_side_file, safe_name, safe_path, whole_of},
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
        let mut lock: Lock = serde_json::from_slice(&text).map_err(|error| broken().cause(error))?;
        // Earlier versions carried them along.
        lock.files.retain(|path, _| whole_of(path).is_none());
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
    /// Those that are whole.
    pub variants: Vec<String>,
    /// Files that are there in part alone, graphs without all of their weights, and those weights.
    pub unfinished: BTreeSet<String>,
    pub bytes: u64,
}

/// The model in the first place that has a folder of its name.
pub fn find(entry: &Entry, places: &[PathBuf]) -> Result<Option<Found>> {
    let Some(dir) = places.iter().map(|place| place.join(&entry.name)).find(|dir| dir.is_dir()) else {
        return Ok(None);
    };
    let lock = Lock::read(&dir)?.unwrap_or_default();
    let contents = contents(&dir)?;
    let unfinished = unfinished(&dir, &contents, &lock);
    let bytes = contents.bytes;
    let whole = |variant: &&str| {
        let required = entry.required(variant);
        let belongs = |path: &String| required.iter().any(|graph| is_side_file(graph, path));
        !unfinished.iter().any(|path| belongs(path) || required.contains(path))
            && required.iter().all(|path| is_there(&dir, path, lock.files.get(path)))
            && lock.files.iter().all(|(path, locked)| !belongs(path) || is_there(&dir, path, Some(locked)))
    };
    let variants = entry.variants().into_iter().filter(whole).map(str::to_owned).collect();
    Ok(Some(Found { dir, variants, unfinished, bytes }))
}

/// Why a variant that is not whole cannot be loaded; `found`: what of the model is here.
pub fn missing(entry: &Entry, variant: &str, found: Option<&Found>) -> Error {
    let name = &entry.name;
    let required = entry.required(variant);
    let belongs = |path: &String| required.iter().any(|file| file == path || is_side_file(file, path));
    let (told, does) = match found {
        None => (format!("the model {name} is not installed"), "fetches it"),
        Some(found) if found.unfinished.iter().any(belongs) => {
            let told = "is here only in part: it is being fetched, or that was cut";
            (format!("the variant {variant} of {name} {told}"), "goes on where it was")
        }
        Some(_) => (format!("the variant {variant} of {name} is not installed"), "fetches it"),
    };
    Error::unavailable(told).hint(format!("`vigia models pull {name} --variant {variant}` {does}"))
}

/// Whether weights that lie beside these graphs of a folder are not there, or in part alone.
pub fn is_in_part(dir: &Path, graphs: &[String]) -> Result<bool> {
    let belongs = |path: &String| graphs.iter().any(|graph| graph == path || is_side_file(graph, path));
    Ok(unfinished_below(dir)?.iter().any(belongs))
}

/// Whether anything of what is in a folder is not whole.
pub fn is_unfinished(dir: &Path) -> bool {
    unfinished_below(dir).is_ok_and(|unfinished| !unfinished.is_empty())
}

/// What keeps a model from being whole; see `unfinished`.
pub(super) fn unfinished_below(dir: &Path) -> Result<BTreeSet<String>> {
    Ok(unfinished(dir, &contents(dir)?, &Lock::read(dir)?.unwrap_or_default()))
}

/// Files that are there in part alone; and of graphs that no lock has, those whose weights are not all there, with what is
/// lacking.
fn unfinished(dir: &Path, contents: &Contents, lock: &Lock) -> BTreeSet<String> {
    let mut unfinished = contents.unfinished.clone();
    let graphs = contents.files.keys().filter(|path| path.ends_with(".onnx") && !lock.files.contains_key(*path));
    for graph in graphs {
        let lacking = lacking(&dir.join(graph), graph, |path| {
            // A link to a folder is not entered, and what it leads to is there.
            contents.files.contains_key(path) || dir.join(path).is_file()
        });
        if !lacking.is_empty() {
            unfinished.extend(lacking);
            unfinished.insert(graph.clone());
        }
    }
    unfinished
}

/// The files of a model with their sizes and times: another one says that something has changed. None where it is in
/// none of the places.
pub fn stamp(places: &[PathBuf], model: &str) -> Option<BTreeMap<String, (u64, SystemTime)>> {
    // Its name may be a path.
    let mut dirs = places.iter().map(|place| place.join(model)).chain([PathBuf::from(model)]);
    let dir = dirs.find(|dir| dir.is_dir())?;
    let time = |path: &str| fs::metadata(dir.join(path)).and_then(|found| found.modified()).unwrap_or(UNIX_EPOCH);
    let files = files_below(&dir).ok()?.into_iter();
    Some(files.map(|(path, size)| (path.clone(), (size, time(&path)))).collect())
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
            let contents = contents(&dir)?;
            let Contents { files, bytes, .. } = &contents;
            if files.contains_key("config.json") && files.keys().any(|path| path.ends_with(".onnx")) {
                let unfinished = unfinished(&dir, &contents, &Lock::read(&dir)?.unwrap_or_default());
                let bytes = *bytes;
                let variants = if unfinished.is_empty() { vec![ONLY.to_owned()] } else { Vec::new() };
                found.insert(name.to_owned(), Found { dir, variants, unfinished, bytes });
            }
        }
    }
    Ok(found)
}

/// What is in the folder of a model.
pub(crate) struct Contents {
    /// The model's files with their sizes; not those that Vigía keeps beside them.
    pub(crate) files: BTreeMap<String, u64>,
    /// Parts of files, whether those are there as well or not.
    pub(crate) parts: Vec<String>,
    /// The files that are there in part alone.
    pub(crate) unfinished: BTreeSet<String>,
    /// With the parts.
    pub(crate) bytes: u64,
}

pub(crate) fn contents(dir: &Path) -> Result<Contents> {
    let mut all = BTreeMap::new();
    walk(dir, "", 0, &mut all)
        .map_err(|error| Error::unavailable(format!("{} cannot be read", dir.display())).cause(error))?;
    let bytes = all.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
    let (parts, files): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.into_iter().partition(|(path, _)| whole_of(path).is_some());
    let parts: Vec<String> = parts.into_keys().collect();
    let whole = parts.iter().filter_map(|part| whole_of(part));
    let unfinished = whole.filter(|path| !files.contains_key(*path)).map(str::to_owned).collect();
    Ok(Contents { files, parts, unfinished, bytes })
}

pub(crate) fn files_below(dir: &Path) -> Result<BTreeMap<String, u64>> {
    Ok(contents(dir)?.files)
}

/// Plain files and links to such, as caches of hubs are made of them.
fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, u64>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Some(path) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        if safe_path(whole_of(&path).unwrap_or(&path)).is_err() {
            continue;
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), &format!("{path}/"), depth + 1, files)?;
        } else if kind.is_file() || kind.is_symlink() {
            // A link to nothing is nothing; one to a folder may lead anywhere.
            let found = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file);
            files.extend(found.map(|found| (path, found.len())));
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

/// Reads every file of a model and compares it with the lock and with the catalogue. What is there in part is missing.
pub fn verify(entry: Option<&Entry>, dir: &Path) -> Result<BTreeMap<String, Verdict>> {
    let lock = Lock::read(dir)?.unwrap_or_default();
    let contents = contents(dir)?;
    let unfinished = unfinished(dir, &contents, &lock);
    let there = contents.files;
    let mut paths: BTreeSet<String> = there.keys().chain(lock.files.keys()).cloned().chain(unfinished).collect();
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

/// Takes a model off the disk; gone at once, whatever happens while its files go. What is none stays: the models' folder
/// may be one with other things in it.
pub fn remove(models_dir: &Path, name: &str, is_known: bool) -> Result<()> {
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
    if !(is_known || is_model(&dir)) || kind.is_file() {
        return Err(Error::invalid(format!("{} is no model: it stays", dir.display())).hint(
            "a model is in the catalogue by its name, or is a folder with config.json or a graph (.onnx) in it",
        ));
    }
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

/// Also one that is there in part.
fn is_model(dir: &Path) -> bool {
    // Far below, a graph may be anybody's.
    let is_graph = |path: &str| path == "config.json" || path.ends_with(".onnx") && path.matches('/').count() < 2;
    let has_some = |it: Contents| {
        it.parts.iter().filter_map(|part| whole_of(part)).chain(it.files.keys().map(String::as_str)).any(is_graph)
    };
    dir.join(LOCK).is_file() || contents(dir).is_ok_and(has_some)
}

#[cfg(test)]
#[path = "installed/tests.rs"]
mod tests;
