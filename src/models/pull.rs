//! Brings a variant of a model onto this machine: asks the hub what there is, checks that it fits the disk, fetches
//! several files at a time, and records what came. A file has its name only once all of the variant is whole and right, so
//! that nobody takes a half for a model; until then each is a part, and the next try goes on where this one ended.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    base::{ByteSize, Error, Kind, Result, lock},
    models::{
        catalogue::{self, Entry, is_side_file, safe_path, whole_of},
        digest::Digest,
        hub::{Hub, Listing, Step, Wanted},
        installed::{Contents, Lock, Locked, contents},
        place::{Move, make_folder, place},
    },
};

/// More would not be faster on the lines that boxes have, and hubs refuse the greedy.
const AT_A_TIME: usize = 3;
/// Left free beside the model.
const MARGIN: ByteSize = ByteSize::mib(64);

/// Where a models' folder is too small.
pub(super) const HINT: &str = "`vigia models remove` what is not used, or set models.dir to a folder on a larger disk";

/// What a person may want to see.
#[derive(Debug)]
pub enum Told<'a> {
    /// Everything is known, and this is what will come.
    Plan {
        files: usize,
        /// If the hub tells the size of each.
        bytes: Option<u64>,
    },
    /// A file is about to come; its size, if the hub tells.
    Begins {
        path: &'a str,
        size: Option<u64>,
    },
    At {
        path: &'a str,
        bytes: u64,
    },
    /// It is tried again after this time. Before there are files, the repository's name stands for one.
    Waits {
        path: &'a str,
        because: &'a Error,
        time: Duration,
    },
    Done {
        path: &'a str,
        bytes: u64,
    },
}

/// What the disk of a folder can still hold.
pub type Free<'a> = &'a dyn Fn(&Path) -> Option<ByteSize>;

/// How many files came, now or in earlier tries: none when everything was there. How large all of the variant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    pub files: usize,
    pub bytes: u64,
}

pub fn pull(
    hub: &Hub,
    entry: &Entry,
    variant: &str,
    models_dir: &Path,
    free: Free<'_>,
    told: &(dyn Fn(Told<'_>) + Sync),
) -> Result<Pulled> {
    let dir = models_dir.join(&entry.name);
    if entry.repository.is_none() {
        let (how, dir) = (entry.source.as_deref().unwrap_or("copy its files here"), dir.display());
        return Err(Error::unavailable(format!("{} is on no hub", entry.name)).hint(format!("{how}: {dir}")));
    }
    let mut known = Lock::read(&dir)?.unwrap_or_default();
    let wanted = wanted(hub, entry, variant, &mut known, told)?;

    let mut missing = VecDeque::new();
    for file in &wanted {
        match present(&dir, file)? {
            Some(locked) => drop(known.files.insert(file.path.clone(), locked)),
            None => missing.push_back(file),
        }
    }
    let needed = total(missing.iter().map(|file| still_to_come(&dir, file)));
    // The model's folder may be a link to another disk.
    must_fit(if dir.is_dir() { &dir } else { models_dir }, needed, free, HINT)?;
    let bytes = missing.iter().all(|file| file.size.is_some()).then_some(needed);
    told(Told::Plan { files: missing.len(), bytes });

    let moves: Vec<Move> = missing.iter().map(|file| (part_of(&dir, file), file.path.clone())).collect();
    let came = fetch_all(hub, &dir, missing, told)?;
    let files = came.len();
    known.files.extend(came);
    let of_variant = wanted.iter().filter_map(|file| known.files.get(&file.path));
    let pulled = Pulled { files, bytes: total(of_variant.map(|locked| locked.size)) };
    known.variants.insert(variant.to_owned());
    place(&dir, &moves, &known)?;
    forget_parts(&dir, &entry.required(variant))?;
    Ok(pulled)
}

/// The files of a variant, each with what it must be.
fn wanted(
    hub: &Hub,
    entry: &Entry,
    variant: &str,
    known: &mut Lock,
    told: &(dyn Fn(Told<'_>) + Sync),
) -> Result<Vec<Wanted>> {
    let required = entry.required(variant);
    let repositories: BTreeSet<&str> = required.iter().filter_map(|path| entry.repository_of(path)).collect();
    let mut listings: BTreeMap<&str, Listing> = BTreeMap::new();
    for repository in repositories {
        // What is pinned concerns the model's own repository.
        let pinned = if entry.repository.as_deref() == Some(repository) { entry.revision.as_str() } else { "main" };
        let revision = known.commits.get(repository).map_or(pinned, String::as_str);
        let waits = |because: &Error, time| told(Told::Waits { path: repository, because, time });
        let listing = hub.listing(repository, revision, &waits)?;
        known.commits.insert(repository.to_owned(), listing.commit.clone());
        listings.insert(repository, listing);
    }
    let listing_of = |path: &str| listings.get(entry.repository_of(path)?);
    let is_listed = |path: &str| listing_of(path).is_some_and(|listing| listing.files.contains_key(path));
    if let Some(path) = required.iter().find(|path| !is_listed(path)) {
        let whole = |variant: &&str| entry.required(variant).iter().all(|path| is_listed(path));
        let others: Vec<&str> = entry.variants().into_iter().filter(whole).collect();
        let repository = entry.repository_of(path).unwrap_or_default();
        let error = Error::new(Kind::NotFound, format!("{repository} has no {path}"));
        return Err(if others.is_empty() { error } else { error.hint(format!("it has: {}", others.join(", "))) });
    }
    let optional = entry.optional().iter().filter(|path| is_listed(path)).cloned();
    let beside = |path: &String| required.iter().any(|graph| is_side_file(graph, path));
    let side_files = listings.iter().flat_map(|(repository, listing)| {
        let own = move |path: &&String| entry.repository_of(path) == Some(*repository);
        listing.files.keys().filter(own).filter(|path| beside(path)).cloned()
    });
    let paths: BTreeSet<String> = required.iter().cloned().chain(optional).chain(side_files).collect();
    paths.into_iter().map(|path| expected(entry, known, &listings, path)).collect()
}

/// Everybody who knows something of the file must agree before a byte of it comes.
fn expected(entry: &Entry, known: &Lock, listings: &BTreeMap<&str, Listing>, path: String) -> Result<Wanted> {
    safe_path(&path)?;
    let repository = entry.repository_of(&path).unwrap_or_default();
    let listing = listings.get(repository);
    let listed = listing.and_then(|listing| listing.files.get(&path));
    let in_catalogue = entry.known(&path);
    let locked = known.files.get(&path);
    let sizes = [in_catalogue.and_then(|it| it.size), locked.map(|it| it.size), listed.and_then(|it| it.size)];
    let hashes = [
        in_catalogue.and_then(|it| it.sha256.as_ref()),
        locked.map(|it| &it.sha256),
        listed.and_then(|it| it.sha256.as_ref()),
    ];
    let size = sizes.iter().flatten().next().copied();
    let sha256 = hashes.into_iter().flatten().next().cloned();
    if sizes.iter().flatten().any(|it| Some(*it) != size)
        || hashes.iter().flatten().any(|it| Some(*it) != sha256.as_ref())
    {
        return Err(Error::invalid(format!("the hub has another {path} of {repository} than the one that is known"))
            .hint(format!(
                "if that is meant, `vigia models remove {}` and name the revision in an entry",
                entry.name
            )));
    }
    let commit = listing.map(|listing| listing.commit.clone()).unwrap_or_default();
    Ok(Wanted { repository: repository.to_owned(), commit, path, size, sha256 })
}

/// A file that is there and right. One whose hash nobody knows comes anew, and is known from then on.
fn present(dir: &Path, wanted: &Wanted) -> Result<Option<Locked>> {
    let path = dir.join(&wanted.path);
    let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|found| found.len());
    let (Some(size), Some(hash)) = (size, &wanted.sha256) else { return Ok(None) };
    if wanted.size.is_some_and(|wanted| wanted != size) {
        return Ok(None);
    }
    let unreadable = |error| Error::unavailable(format!("{} cannot be read", path.display())).cause(error);
    let sha256 = Digest::of_file(&path).map_err(unreadable)?.sha256();
    Ok((sha256 == *hash).then_some(Locked { size, sha256 }))
}

fn part_of(dir: &Path, wanted: &Wanted) -> PathBuf {
    dir.join(catalogue::part_of(&wanted.path, wanted.sha256.as_ref().unwrap_or(&wanted.commit)))
}

fn still_to_come(dir: &Path, wanted: &Wanted) -> u64 {
    let there = fs::metadata(part_of(dir, wanted)).map_or(0, |found| found.len());
    wanted.size.unwrap_or(0).saturating_sub(there)
}

/// Sizes are what others say, and may be anything.
pub(super) fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

pub(super) fn must_fit(dir: &Path, needed: u64, free: Free<'_>, hint: &str) -> Result<()> {
    match free(dir) {
        Some(free) if free.get() < needed.saturating_add(MARGIN.get()) && needed > 0 => {
            let (needed, dir) = (ByteSize(needed), dir.display());
            let told = format!("{needed} are needed, with {MARGIN} to spare, and {free} are free on the disk of {dir}");
            Err(Error::new(Kind::TooLarge, told).hint(hint))
        }
        _ => Ok(()),
    }
}

/// A few threads take files off one list; the first error ends all of them.
fn fetch_all(
    hub: &Hub,
    dir: &Path,
    missing: VecDeque<&Wanted>,
    told: &(dyn Fn(Told<'_>) + Sync),
) -> Result<BTreeMap<String, Locked>> {
    let waiting = Mutex::new(missing);
    let came = Mutex::new(BTreeMap::new());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(wanted) = lock(&waiting).pop_front() else { return };
            match fetch_one(hub, dir, wanted, &stop, told) {
                Ok(locked) => drop(lock(&came).insert(wanted.path.clone(), locked)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    lock(&failed).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
    match lock(&failed).take() {
        Some(error) => Err(error),
        None => Ok(std::mem::take(&mut *lock(&came))),
    }
}

fn fetch_one(
    hub: &Hub,
    dir: &Path,
    wanted: &Wanted,
    stop: &AtomicBool,
    told: &(dyn Fn(Told<'_>) + Sync),
) -> Result<Locked> {
    let path = wanted.path.as_str();
    make_folder(dir, path)?;
    told(Told::Begins { path, size: wanted.size });
    let (size, sha256) = hub.fetch(wanted, &part_of(dir, wanted), &|step| {
        match step {
            Step::At(bytes) => told(Told::At { path, bytes }),
            Step::Waits(because, time) => told(Told::Waits { path, because, time }),
            Step::Still => (),
        }
        !stop.load(Ordering::Relaxed)
    })?;
    told(Told::Done { path, bytes: size });
    Ok(Locked { size, sha256 })
}

/// Parts of other revisions of what is there, or was beside it, have no use; those of other variants go on when they are
/// asked for. `whole`: files of a variant that is whole by now, so that no part beside them is of it.
fn forget_parts(dir: &Path, whole: &[String]) -> Result<()> {
    let Contents { parts, unfinished, .. } = contents(dir)?;
    let belongs = |path: &str| whole.iter().any(|file| file == path || is_side_file(file, path));
    let is_useless = |path: &str| !unfinished.contains(path) || belongs(path);
    for part in parts.iter().filter(|part| whole_of(part).is_some_and(is_useless)) {
        let path = dir.join(part);
        let failed = |error| Error::unavailable(format!("{} cannot be removed", path.display())).cause(error);
        fs::remove_file(&path).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "pull/tests.rs"]
mod tests;
