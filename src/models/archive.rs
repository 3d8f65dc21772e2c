//! Carries models to a machine without a network: one tar file whose first member says, with size and SHA-256, what the
//! others are. Plain files only; whoever made the archive, nothing lands outside the models' folder, nothing is larger
//! than was said, and nothing is there until all of it is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::{
    base::{Error, Kind, Result, printable},
    models::{
        beside::lacking,
        catalogue::{Catalogue, ONLY, safe_name, safe_path, whole_of},
        digest::{Digest, pass},
        installed::{Lock, Locked, Verdict, files_below, unfinished_below, verify},
        licence,
        place::{Move, place},
        pull::{self, Free, must_fit, total},
    },
};

const MANIFEST: &str = "vigia-models.json";
const FORMAT: u32 = 1;
const MAX_MANIFEST_BYTES: u64 = 8 << 20;
const MAX_FILES: usize = 20_000;
/// Where an archive unfolds before it counts: in the models' folder, or in that of a model that is there already and may
/// lie on another disk.
const STAGING: &str = ".vigia-import";

const NOT_WHOLE: &str = "the model was not whole where the archive was made: fetch it there, and export it anew";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    models: BTreeMap<String, Lock>,
}

/// A model to carry, and where it is.
pub struct Carried<'a> {
    pub name: &'a str,
    pub dir: &'a Path,
}

/// Writes models into a new archive, each once, and says how many bytes of them there are. Each is checked first: what
/// is not right here would not be right there.
pub fn export(file: &Path, models: &[Carried<'_>], catalogue: &Catalogue, free: Free<'_>) -> Result<u64> {
    if file.exists() {
        return Err(
            Error::invalid(format!("{} is there already", file.display())).hint("name another file, or remove it")
        );
    }
    let dirs: BTreeMap<&str, &Path> = models.iter().map(|it| (it.name, it.dir)).collect();
    let mut manifest = Manifest { format: FORMAT, models: BTreeMap::new() };
    for (name, dir) in &dirs {
        let lock = lock_of(dir)?;
        let verdicts = verify(catalogue.get(name), dir)?;
        let wrong = |verdict: &Verdict| matches!(verdict, Verdict::Missing | Verdict::Changed);
        // Another variant may be there in part: it is not carried.
        let mut carried = verdicts.iter().filter(|(path, _)| lock.files.contains_key(*path));
        if let Some((path, verdict)) = carried.find(|(_, verdict)| wrong(verdict)) {
            let how = if *verdict == Verdict::Missing { "missing" } else { "not what it was" };
            return Err(Error::invalid(format!("{path} of {name} is {how}")).hint("fetch the model again, then export"));
        }
        let lacks = |graph: &&String| lock.files.contains_key(*graph);
        if let Some(graph) = unfinished_below(dir)?.iter().find(lacks) {
            return Err(Error::invalid(format!("the weights of {graph} of {name} are not there"))
                .hint("they lie beside it: fetch or copy the model again, then export"));
        }
        manifest.models.insert((*name).to_owned(), lock);
    }
    let bytes = total(manifest.models.values().flat_map(|lock| lock.files.values()).map(|locked| locked.size));
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    must_fit(folder, bytes, free, "name a file on a larger disk, or fewer models")?;

    let part = file.with_added_extension("part");
    let written = write(&part, &dirs, &manifest).and_then(|()| fs::rename(&part, file));
    written.map_err(|error| {
        // What is left of it has no use; that it could not be removed either is no news.
        drop(fs::remove_file(&part));
        Error::unavailable(format!("{} cannot be written", file.display())).cause(error)
    })?;
    Ok(bytes)
}

/// What a model consists of here, whether it was fetched or copied.
fn lock_of(dir: &Path) -> Result<Lock> {
    if let Some(lock) = Lock::read(dir)? {
        return Ok(lock);
    }
    let mut lock = Lock { variants: BTreeSet::from([ONLY.to_owned()]), ..Lock::default() };
    for path in files_below(dir)?.into_keys() {
        let unreadable = |error| Error::unavailable(format!("{path} cannot be read")).cause(error);
        let digest = Digest::of_file(&dir.join(&path)).map_err(unreadable)?;
        lock.files.insert(path, Locked { size: digest.size(), sha256: digest.sha256() });
    }
    Ok(lock)
}

fn write(part: &Path, dirs: &BTreeMap<&str, &Path>, manifest: &Manifest) -> io::Result<()> {
    let mut builder = Builder::new(BufWriter::with_capacity(1 << 20, File::create(part)?));
    let text = serde_json::to_vec_pretty(manifest)?;
    builder.append(&header(MANIFEST, text.len() as u64)?, text.as_slice())?;
    for (name, dir) in dirs {
        for (path, locked) in manifest.models.get(*name).into_iter().flat_map(|lock| &lock.files) {
            let content = File::open(dir.join(path))?;
            let size = content.metadata()?.len();
            if size != locked.size {
                return Err(io::Error::other(format!("{path} of {name} has changed meanwhile")));
            }
            builder.append(&header(&format!("{name}/{path}"), size)?, content.take(size))?;
        }
    }
    builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn header(path: &str, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// Takes every model out of an archive, and names them.
pub fn import(
    file: &Path,
    models_dir: &Path,
    catalogue: &Catalogue,
    accepted: bool,
    free: Free<'_>,
) -> Result<Vec<String>> {
    // What an import that was cut has left.
    clear(models_dir)?;
    let staging = |name: &str| staging(models_dir, name);
    let unfolded = unfold(file, &staging, |manifest| may_come(manifest, models_dir, catalogue, accepted, free));
    let placed = unfolded.and_then(|Manifest { models, .. }| {
        for (name, lock) in &models {
            has_its_weights(file, &staging(name), &models_dir.join(name), lock)?;
        }
        if accepted {
            licence::remember(models_dir, models.keys().filter_map(|name| catalogue.get(name)))?;
        }
        for (name, lock) in &models {
            let moves: Vec<Move> = lock.files.keys().map(|path| (staging(name).join(path), path.clone())).collect();
            let to = models_dir.join(name);
            place(&to, &moves, &merged(Lock::read(&to)?.unwrap_or_default(), lock))?;
        }
        Ok(models.into_keys().collect())
    });
    clear(models_dir)?;
    placed
}

/// An earlier version carried graphs without what lies beside them.
fn has_its_weights(file: &Path, staged: &Path, to: &Path, lock: &Lock) -> Result<()> {
    for graph in lock.files.keys().filter(|path| path.ends_with(".onnx")) {
        let is_there = |path: &str| lock.files.contains_key(path) || to.join(path).is_file();
        if let Some(path) = lacking(&staged.join(graph), graph, is_there).first() {
            return Err(bad(file, &format!("{graph} needs {path}, which is not in it")).hint(NOT_WHOLE));
        }
    }
    Ok(())
}

/// On the file system where the model will be, so that its files only change their names.
fn staging(models_dir: &Path, name: &str) -> PathBuf {
    let dir = models_dir.join(name);
    if dir.is_dir() { dir.join(STAGING) } else { models_dir.join(STAGING).join(name) }
}

fn clear(models_dir: &Path) -> Result<()> {
    let listed = fs::read_dir(models_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = listed.filter(|path| path.is_dir()).chain([models_dir.to_owned()]);
    let left = folders.map(|folder| folder.join(STAGING)).filter(|staging| fs::symlink_metadata(staging).is_ok());
    for staging in left {
        fs::remove_dir_all(&staging).map_err(|error| unwritable(&staging, error))?;
    }
    Ok(())
}

fn merged(mut here: Lock, new: &Lock) -> Lock {
    here.variants.extend(new.variants.iter().cloned());
    here.commits.extend(new.commits.clone());
    here.files.extend(new.files.clone());
    here
}

fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::unavailable(format!("{} cannot be written", path.display())).cause(error)
}

/// Before anything of it is written: names, licences, what is known of the files, and room.
fn may_come(
    manifest: &Manifest,
    models_dir: &Path,
    catalogue: &Catalogue,
    accepted: bool,
    free: Free<'_>,
) -> Result<()> {
    // By disk: a model's folder may be a link to another.
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (name, lock) in &manifest.models {
        let entry = catalogue.get(name);
        if let Some(entry) = entry {
            licence::check(models_dir, entry, accepted)?;
        }
        let dir = models_dir.join(name);
        let here = Lock::read(&dir)?.unwrap_or_default();
        for (path, locked) in &lock.files {
            let known = entry.and_then(|entry| entry.known(path)).and_then(|known| known.sha256.as_ref());
            let other = |hash: &String| *hash != locked.sha256;
            let differs = |hint: String| {
                let told = format!("the archive has another {path} of {name} than the one that is known");
                Err(Error::invalid(told).hint(hint))
            };
            if known.is_some_and(other) {
                return differs(format!(
                    "the catalogue says what it must be: fetch {name} anew where the archive was made"
                ));
            }
            if here.files.get(path).is_some_and(|it| other(&it.sha256)) {
                return differs(format!("if that is meant, `vigia models remove {name}` first"));
            }
        }
        let disk = if dir.is_dir() { dir } else { models_dir.to_owned() };
        let device = fs::metadata(&disk).map_or(0, |found| found.dev());
        let (_, bytes) = needed.entry(device).or_insert((disk, 0));
        *bytes = total(lock.files.values().map(|locked| locked.size).chain([*bytes]));
    }
    needed.values().try_for_each(|(disk, bytes)| must_fit(disk, *bytes, free, pull::HINT))
}

fn unfold(
    file: &Path,
    staging: &dyn Fn(&str) -> PathBuf,
    may_come: impl FnOnce(&Manifest) -> Result<()>,
) -> Result<Manifest> {
    let broken = |error: io::Error| broken(file, "it was cut, or is broken", &error);
    let unreadable = |error: io::Error| bad(file, "it cannot be read").cause(error);
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, File::open(file).map_err(unreadable)?));
    // Raw: an extension of the format is no plain file, and is refused like any other, unread.
    let mut members = archive.entries().map_err(broken)?.raw(true);
    let manifest = match members.next() {
        Some(member) => manifest(file, member.map_err(broken)?)?,
        None => return Err(bad(file, "it is empty")),
    };
    may_come(&manifest)?;

    let mut missing: BTreeMap<String, (&Locked, PathBuf)> = BTreeMap::new();
    for (name, lock) in &manifest.models {
        let folder = staging(name);
        let files = lock.files.iter();
        missing.extend(files.map(|(path, locked)| (format!("{name}/{path}"), (locked, folder.join(path)))));
    }
    for member in members {
        let mut member = member.map_err(broken)?;
        let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let kind = member.header().entry_type();
        // Only what the manifest names, whose names are safe, and each once.
        let Some((locked, to)) = missing.remove(&path).filter(|_| kind == EntryType::Regular) else {
            return Err(bad(file, &format!("its list does not have `{}`", path.escape_debug())));
        };
        if member.size() != locked.size {
            return Err(bad(file, &format!("{path} has another size than its list says")));
        }
        let unwritable = |error| unwritable(&to, error);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(unwritable)?;
        }
        let mut out = File::create_new(&to).map_err(unwritable)?;
        let (mut digest, mut full) = (Digest::default(), None);
        let read = pass(&mut member, |bytes| {
            digest.add(bytes);
            out.write_all(bytes).map_err(|error| {
                let kind = error.kind();
                full = Some(error);
                kind.into()
            })
        });
        if let Some(error) = full {
            return Err(unwritable(error));
        }
        read.map_err(broken)?;
        out.sync_all().map_err(unwritable)?;
        if digest.size() < locked.size {
            return Err(bad(file, &format!("it was cut within {path}")));
        }
        if digest.size() != locked.size || digest.sha256() != locked.sha256 {
            return Err(bad(file, &format!("{path} is not what its list says")));
        }
    }
    match missing.keys().next() {
        Some(path) => Err(bad(file, &format!("{path} is missing: the archive was cut"))),
        None => Ok(manifest),
    }
}

fn manifest(file: &Path, mut member: tar::Entry<'_, impl Read>) -> Result<Manifest> {
    let is_manifest = *member.path_bytes() == *MANIFEST.as_bytes();
    let is_plain = member.header().entry_type() == EntryType::Regular && member.size() <= MAX_MANIFEST_BYTES;
    if !is_manifest || !is_plain {
        return Err(bad(file, "it does not begin with its list"));
    }
    let mut text = Vec::new();
    member.read_to_end(&mut text).map_err(|error| broken(file, "its list cannot be read", &error))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| broken(file, "its list cannot be read", &error))?;
    if manifest.format != FORMAT {
        let error = bad(file, &format!("it has format {}, and this version reads {FORMAT}", manifest.format));
        return Err(error.hint("make it with the same version of Vigía on both machines"));
    }
    let names = manifest.models.keys().try_for_each(|name| safe_name(name));
    let paths = || manifest.models.values().flat_map(|lock| lock.files.keys());
    names.and_then(|()| paths().try_for_each(|path| safe_path(path))).map_err(|error| bad(file, error.message()))?;
    if manifest.models.is_empty() {
        return Err(bad(file, "it holds no model"));
    }
    if let Some((name, _)) = manifest.models.iter().find(|(_, lock)| lock.files.is_empty()) {
        return Err(bad(file, &format!("it has no file of {name}")));
    }
    if let Some(part) = paths().find(|path| whole_of(path).is_some()) {
        let error = bad(file, &format!("{part} is a part of a file"));
        return Err(
            error.hint("the model was not whole where the archive was made: fetch it there, and export it anew")
        );
    }
    if paths().count() > MAX_FILES {
        return Err(Error::new(Kind::TooLarge, format!("{} lists more than {MAX_FILES} files", file.display())));
    }
    Ok(manifest)
}

/// What is wrong is told with bytes of the archive, which may be anything.
fn broken(file: &Path, why: &str, cause: &dyn std::error::Error) -> Error {
    bad(file, why).cause(printable(&cause.to_string()))
}

fn bad(file: &Path, why: &str) -> Error {
    Error::invalid(format!("{} is no archive of models that can be taken: {why}", file.display()))
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
