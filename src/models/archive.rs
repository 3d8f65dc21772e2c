//! Carries models to a machine without a network: one tar file whose first member says, with size and SHA-256, what the
//! others are. Plain files only; whoever made the archive, nothing lands outside the models' folder, nothing is larger
//! than was said, and nothing is there until all of it is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::{
    base::{Error, Kind, Result},
    models::{
        catalogue::{Catalogue, ONLY, safe_name, safe_path},
        digest::{Digest, pass},
        installed::{Lock, Locked, Verdict, files_below, verify},
        licence,
        pull::{Free, must_fit},
    },
};

const MANIFEST: &str = "vigia-models.json";
const FORMAT: u32 = 1;
const MAX_MANIFEST_BYTES: u64 = 8 << 20;
const MAX_FILES: usize = 20_000;
/// Where an archive unfolds before it counts.
const STAGING: &str = ".vigia-import";

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

/// Writes models into a new archive and says how many bytes of them there are. Each is checked first: what is not
/// right here would not be right there.
pub fn export(file: &Path, models: &[Carried<'_>], catalogue: &Catalogue, free: Free<'_>) -> Result<u64> {
    if file.exists() {
        return Err(
            Error::invalid(format!("{} is there already", file.display())).hint("name another file, or remove it")
        );
    }
    let mut manifest = Manifest { format: FORMAT, models: BTreeMap::new() };
    for Carried { name, dir } in models {
        let entry = catalogue.get(name);
        let verdicts = verify(entry, dir)?;
        let wrong = |verdict: &Verdict| matches!(verdict, Verdict::Missing | Verdict::Changed);
        if let Some((path, verdict)) = verdicts.iter().find(|(_, verdict)| wrong(verdict)) {
            let how = if *verdict == Verdict::Missing { "missing" } else { "not what it was" };
            return Err(Error::invalid(format!("{path} of {name} is {how}")).hint("fetch the model again, then export"));
        }
        manifest.models.insert((*name).to_owned(), lock_of(dir)?);
    }
    let bytes: u64 = manifest.models.values().flat_map(|lock| lock.files.values()).map(|locked| locked.size).sum();
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    must_fit(folder, bytes, free)?;

    let part = file.with_added_extension("part");
    let written = write(&part, models, &manifest).and_then(|()| fs::rename(&part, file));
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

fn write(part: &Path, models: &[Carried<'_>], manifest: &Manifest) -> io::Result<()> {
    let mut builder = Builder::new(BufWriter::with_capacity(1 << 20, File::create(part)?));
    let text = serde_json::to_vec_pretty(manifest)?;
    builder.append(&header(MANIFEST, text.len() as u64)?, text.as_slice())?;
    for Carried { name, dir } in models {
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
    let staging = models_dir.join(STAGING);
    let unwritable = |error| Error::unavailable(format!("{} cannot be written", staging.display())).cause(error);
    let clear = || match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(error)),
        _ => Ok(()),
    };
    // What an import that was cut has left.
    clear()?;
    let unfolded = unfold(file, &staging, |manifest| may_come(manifest, models_dir, catalogue, accepted, free));
    let placed = unfolded.and_then(|manifest| {
        manifest.models.iter().try_for_each(|(name, lock)| place(&staging.join(name), &models_dir.join(name), lock))?;
        Ok(manifest.models.into_keys().collect())
    });
    clear()?;
    placed
}

/// Before anything of it is written: names, licences, what is known of the files, and room.
fn may_come(
    manifest: &Manifest,
    models_dir: &Path,
    catalogue: &Catalogue,
    accepted: bool,
    free: Free<'_>,
) -> Result<()> {
    let mut needed = 0u64;
    for (name, lock) in &manifest.models {
        let entry = catalogue.get(name);
        if let Some(entry) = entry {
            licence::check(models_dir, entry, accepted)?;
        }
        let here = Lock::read(&models_dir.join(name))?.unwrap_or_default();
        for (path, locked) in &lock.files {
            let known = entry.and_then(|entry| entry.known(path)).and_then(|known| known.sha256.as_ref());
            let other = |hash: &String| *hash != locked.sha256;
            if known.is_some_and(other) || here.files.get(path).is_some_and(|it| other(&it.sha256)) {
                return Err(Error::invalid(format!(
                    "the archive has another {path} of {name} than the one that is known"
                ))
                .hint(format!("if that is meant, `vigia models remove {name}` first")));
            }
            needed = needed.saturating_add(locked.size);
        }
    }
    must_fit(models_dir, needed, free)
}

fn unfold(file: &Path, staging: &Path, may_come: impl FnOnce(&Manifest) -> Result<()>) -> Result<Manifest> {
    let broken = |error: io::Error| bad(file, "it cannot be read").cause(error);
    let unwritable =
        |error: io::Error| Error::unavailable(format!("{} cannot be written", staging.display())).cause(error);
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, File::open(file).map_err(broken)?));
    // Raw: an extension of the format is no plain file, and is refused like any other, unread.
    let mut members = archive.entries().map_err(broken)?.raw(true);
    let manifest = match members.next() {
        Some(member) => manifest(file, member.map_err(broken)?)?,
        None => return Err(bad(file, "it is empty")),
    };
    may_come(&manifest)?;

    let mut missing: BTreeMap<String, &Locked> = BTreeMap::new();
    for (name, lock) in &manifest.models {
        missing.extend(lock.files.iter().map(|(path, locked)| (format!("{name}/{path}"), locked)));
    }
    for member in members {
        let mut member = member.map_err(broken)?;
        let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let kind = member.header().entry_type();
        // Only what the manifest names, whose names are safe, and each once.
        let Some(locked) = missing.remove(&path).filter(|_| kind == EntryType::Regular) else {
            return Err(bad(file, &format!("its list does not have `{}`", path.escape_debug())));
        };
        if member.size() != locked.size {
            return Err(bad(file, &format!("{path} has another size than its list says")));
        }
        let to = staging.join(&path);
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
    member.read_to_end(&mut text).map_err(|error| bad(file, "its list cannot be read").cause(error))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| bad(file, "its list cannot be read").cause(error))?;
    if manifest.format != FORMAT {
        let error = bad(file, &format!("it has format {}, and this version reads {FORMAT}", manifest.format));
        return Err(error.hint("make it with the same version of Vigía on both machines"));
    }
    let names = manifest.models.keys().try_for_each(|name| safe_name(name));
    let paths = || manifest.models.values().flat_map(|lock| lock.files.keys());
    names.and_then(|()| paths().try_for_each(|path| safe_path(path))).map_err(|error| bad(file, error.message()))?;
    if paths().count() > MAX_FILES {
        return Err(Error::new(Kind::TooLarge, format!("{} lists more than {MAX_FILES} files", file.display())));
    }
    Ok(manifest)
}

/// Out of the staging folder, file by file; the lock, which says what they are, comes last.
fn place(from: &Path, to: &Path, lock: &Lock) -> Result<()> {
    let unwritable =
        |path: &PathBuf, error| Error::unavailable(format!("{} cannot be written", path.display())).cause(error);
    for path in lock.files.keys() {
        let target = to.join(path);
        let folder = target.parent().unwrap_or(to);
        fs::create_dir_all(folder)
            .and_then(|()| fs::rename(from.join(path), &target))
            .map_err(|error| unwritable(&target, error))?;
    }
    let mut merged = Lock::read(to)?.unwrap_or_default();
    merged.variants.extend(lock.variants.iter().cloned());
    merged.commits.extend(lock.commits.clone());
    merged.files.extend(lock.files.clone());
    fs::create_dir_all(to).map_err(|error| unwritable(&to.to_owned(), error))?;
    merged.write(to)
}

fn bad(file: &Path, why: &str) -> Error {
    Error::invalid(format!("{} is no archive of models that can be taken: {why}", file.display()))
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
