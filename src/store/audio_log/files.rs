//! The audio log's files: `<number>-<mark>.log`, which sessions each is kept for, and reading them back.
//!
//! A start never appends to an older file: a torn end stays where it is and harms nothing.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind, Write},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    TakeAudio,
    assemble::Assembly,
    holds::Holds,
    record::{self, Mark, Scan},
};
use crate::{
    base::{Error, Result, lock},
    flow::SessionId,
    telemetry::events::{AudioSynced, emit},
};

/// A file is deleted as a whole, so its size is how finely disk comes back; small enough, and not too many files.
const ROLL_BYTES: u64 = 64 << 20;

/// What the writer's thread owns.
pub(super) struct Files {
    dir: PathBuf,
    index: Arc<Index>,
    current: Option<Current>,
    next_number: u64,
    /// Held as long as this process may write here.
    _lock: File,
}

struct Current {
    number: u64,
    mark: Mark,
    file: File,
    size: u64,
    /// Of its next write.
    group: u32,
}

/// What readers may see of the files.
#[derive(Default)]
pub(super) struct Index {
    files: Mutex<BTreeMap<u64, Kept>>,
    syncs: AtomicU64,
}

struct Kept {
    path: PathBuf,
    mark: Mark,
    size: u64,
    holds: Holds,
    /// The newest group, of a file that was found: a power cut may have torn it.
    torn: Option<u32>,
    /// It could not be read to its end: nobody knows who needs what it holds, so it stays.
    unread: bool,
}

impl Files {
    pub(super) fn open(dir: &Path) -> Result<Files> {
        let lock = lock_dir(dir)?;
        let mut found = BTreeMap::new();
        for path in listed(dir).map_err(|error| unusable(dir).cause(error))? {
            let Some((number, mark)) = path.file_name().and_then(parse_name) else { continue };
            found.insert(number, look_into(path, mark));
        }
        let next_number = found.last_key_value().map_or(1, |(number, _)| number + 1);
        let index = Arc::new(Index { files: Mutex::new(found), syncs: AtomicU64::new(0) });
        let files = Files { dir: dir.to_owned(), index, current: None, next_number, _lock: lock };
        files.delete_unneeded();
        Ok(files)
    }

    pub(super) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    /// Writes whole records and makes them durable. After an error nobody knows what of them the file holds: the next
    /// attempt goes into a new one, and reading drops the doubles.
    pub(super) fn write(&mut self, records: &mut [u8], holds: &Holds) -> io::Result<()> {
        let written = self.try_write(records, holds);
        if written.is_err() {
            self.current = None;
            self.delete_unneeded();
        }
        written
    }

    fn try_write(&mut self, records: &mut [u8], holds: &Holds) -> io::Result<()> {
        let current = match self.current.take_if(|current| current.size < ROLL_BYTES) {
            Some(current) => current,
            None => self.create()?,
        };
        let current = self.current.insert(current);
        record::stamp(records, current.mark, current.group);
        current.file.write_all(records)?;
        current.file.sync_data()?;
        current.size += records.len() as u64;
        current.group += 1;
        self.index.syncs.fetch_add(1, Ordering::Relaxed);
        emit(AudioSynced { bytes: records.len() });
        if let Some(kept) = self.index.lock().get_mut(&current.number) {
            kept.size = current.size;
            kept.holds.merge(holds.clone());
        }
        Ok(())
    }

    /// Deletes the files that were kept for these sessions alone.
    pub(super) fn release(&mut self, released: &HashSet<SessionId>) {
        if released.is_empty() {
            return;
        }
        for kept in self.index.lock().values_mut() {
            released.iter().for_each(|session| kept.holds.remove(session));
        }
        self.delete_unneeded();
        if self.current.as_ref().is_some_and(|current| !self.index.lock().contains_key(&current.number)) {
            self.current = None;
        }
    }

    fn create(&mut self) -> io::Result<Current> {
        let mut mark = Mark::default();
        getrandom::fill(&mut mark).map_err(|error| io::Error::other(error.to_string()))?;
        let number = self.next_number;
        let path = self.dir.join(name(number, mark));
        let file = fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        self.next_number += 1;
        // Else a power cut could take the file's name, and with it all that was made durable in it.
        File::open(&self.dir)?.sync_all()?;
        let kept = Kept { path, mark, size: 0, holds: Holds::default(), torn: None, unread: false };
        self.index.lock().insert(number, kept);
        Ok(Current { number, mark, file, size: 0, group: 0 })
    }

    fn delete_unneeded(&self) {
        let nobody_needs = |_: &u64, kept: &mut Kept| kept.holds.is_empty() && !kept.unread;
        let unneeded: Vec<Kept> = self.index.lock().extract_if(.., nobody_needs).map(|(_, kept)| kept).collect();
        for Kept { path, .. } in unneeded {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    log::warn!("cannot delete {}, which nobody needs any more: {error}", path.display());
                }
                _ => (),
            }
        }
    }
}

impl Index {
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        let sessions: HashSet<SessionId> =
            self.lock().values().flat_map(|kept| kept.holds.sessions()).cloned().collect();
        let mut sessions: Vec<SessionId> = sessions.into_iter().collect();
        sessions.sort();
        sessions
    }

    /// The takes of a session that there is audio of.
    pub(super) fn takes(&self, session: &SessionId) -> Vec<u64> {
        let index = self.lock();
        let takes = index.values().flat_map(|kept| kept.holds.takes(session)).map(|(take, _)| *take);
        let mut takes: Vec<u64> = takes.collect();
        takes.sort();
        takes.dedup();
        takes
    }

    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_of(&self, session: &SessionId) -> u64 {
        let index = self.lock();
        let takes = index.values().flat_map(|kept| kept.holds.takes(session));
        takes.map(|(_, samples)| 2 * (samples.end - samples.start)).sum()
    }

    /// What all files take.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().values().map(|kept| kept.size).sum()
    }

    pub(super) fn read(&self, session: &SessionId, take: u64, wanted: Range<u64>) -> io::Result<TakeAudio> {
        let mut from = 0;
        let mut files: Vec<(PathBuf, Mark, Option<u32>)> = Vec::new();
        for kept in self.lock().values() {
            match kept.holds.of(session, take) {
                // Of what only leads up to what is wanted, the end is all that matters.
                Some(held) if files.is_empty() && held.end <= wanted.start => from = held.end,
                Some(held) if held.start < wanted.end => files.push((kept.path.clone(), kept.mark, kept.torn)),
                _ => (),
            }
        }
        let mut assembly = Assembly::new(wanted, from);
        for (path, mark, torn) in files {
            let mut scan = match File::open(&path) {
                Ok(file) => Scan::new(file, mark),
                // Released meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            while let Some(record) = scan.next()? {
                if record.label.session == session.as_str() && record.label.take == take {
                    assembly.add(&record, torn != Some(record.group));
                }
            }
        }
        Ok(assembly.finish())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
        lock(&self.files)
    }
}

/// Whose records a file holds that an earlier run has left, and whether there is more that could not be read.
fn look_into(path: PathBuf, mark: Mark) -> Kept {
    let mut holds = Holds::default();
    let mut torn = None;
    let mut session: Option<SessionId> = None;
    let scanned = File::open(&path).and_then(|file| {
        let size = file.metadata()?.len();
        let mut scan = Scan::new(file, mark);
        while let Some(record) = scan.next()? {
            // Often many of one in a row.
            if session.as_ref().is_none_or(|it| it.as_str() != record.label.session) {
                session = SessionId::parse(record.label.session).ok();
            }
            if let Some(session) = &session {
                holds.add(session, record.label.take, record.label.first_sample..record.end());
            }
            torn = Some(record.group);
        }
        Ok((size, scan.skipped))
    });
    let (size, unread) = match scanned {
        Ok((size, skipped)) => {
            if skipped > 0 {
                log::warn!("{}: {skipped} bytes are no whole record (a torn end, or damage)", path.display());
            }
            (size, false)
        }
        Err(error) => {
            log::error!("{} cannot be read to its end and is kept: {error}", path.display());
            (0, true)
        }
    };
    Kept { path, mark, size, holds, torn, unread }
}

fn lock_dir(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let options = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let file = options.map_err(|error| unusable(dir).cause(error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::unavailable(format!("another daemon writes audio to {}", dir.display()))
                .hint("stop it, or give this one a store.dir of its own"))
        }
        Err(fs::TryLockError::Error(error)) => Err(unusable(dir).cause(error)),
    }
}

fn unusable(dir: &Path) -> Error {
    Error::unavailable(format!("cannot keep audio in {}", dir.display()))
        .hint("store.dir must be a folder that the daemon may write to")
}

fn listed(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn name(number: u64, mark: Mark) -> String {
    format!("{number:08}-{:08x}.log", u32::from_le_bytes(mark))
}

fn parse_name(name: &OsStr) -> Option<(u64, Mark)> {
    let (number, mark) = name.to_str()?.strip_suffix(".log")?.split_once('-')?;
    Some((number.parse().ok()?, u32::from_str_radix(mark, 16).ok()?.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{super::record::Label, *};
    use crate::store::testing::id;

    fn records(pieces: &[(&str, u64, Vec<i16>)]) -> (Vec<u8>, Holds) {
        let (mut bytes, mut holds) = (Vec::new(), Holds::default());
        for (session, first_sample, samples) in pieces {
            let label = Label { session, take: 1, first_sample: *first_sample, chunk_id: None, whole: true };
            record::write(&mut bytes, label, samples);
            holds.add(&id(session), 1, *first_sample..first_sample + samples.len() as u64);
        }
        (bytes, holds)
    }

    fn write(files: &mut Files, pieces: &[(&str, u64, Vec<i16>)]) {
        let (mut bytes, holds) = records(pieces);
        files.write(&mut bytes, &holds).unwrap();
    }

    fn read(files: &Files, session: &str) -> Vec<i16> {
        files.index.read(&id(session), 1, 0..u64::MAX).unwrap().samples
    }

    fn logs(dir: &Path) -> Vec<PathBuf> {
        let mut logs = listed(dir).unwrap();
        logs.retain(|path| path.extension().is_some());
        logs.sort();
        logs
    }

    #[test]
    fn whatever_happens_to_the_last_records_all_others_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        // Each record is of a session of its own, and its audio has no zeros.
        let audio = |n: usize| [0x1111 * (n as i16 + 1); 4];
        let sessions: Vec<String> = (0..6).map(|n| format!("session-{n}")).collect();
        let mut ends = vec![0];
        let mut files = Files::open(dir.path()).unwrap();
        for (n, session) in sessions.iter().enumerate() {
            let pieces = [(session.as_str(), 0, audio(n).to_vec())];
            ends.push(ends[n] + records(&pieces).0.len());
            write(&mut files, &pieces);
        }
        drop(files);
        let [path] = &logs(dir.path())[..] else { panic!("one file") };
        let whole = fs::read(path).unwrap();
        assert_eq!(whole.len(), ends[6]);

        let check = |bytes: &[u8], lost: &[usize], what: &str| {
            fs::write(path, bytes).unwrap();
            let files = Files::open(dir.path()).unwrap();
            for (n, session) in sessions.iter().enumerate() {
                let expected = if lost.contains(&n) { vec![] } else { audio(n).to_vec() };
                assert_eq!(read(&files, session), expected, "{what}, session {n}");
            }
            assert_eq!(files.index.sessions().len(), sessions.len() - lost.len(), "{what}");
        };
        for at in ends[3]..whole.len() {
            let hit = ends.iter().rposition(|end| *end <= at).unwrap();
            let lost: Vec<usize> = (hit..sessions.len()).collect();
            check(&whole[..at], &lost, &format!("cut at {at}"));
            for flip in [0x01, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                check(&bytes, &[hit], &format!("byte {at} flipped by {flip}"));
            }
            let mut bytes = whole.clone();
            bytes[at..].fill(0);
            check(&bytes, &lost, &format!("zeros from {at}"));
        }
    }

    #[test]
    fn a_start_never_touches_what_is_there_and_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        write(&mut files, &[("a", 0, vec![1, 2])]);
        drop(files);
        let first = logs(dir.path())[0].clone();
        let torn = [fs::read(&first).unwrap(), vec![0xaa; 7]].concat();
        fs::write(&first, &torn).unwrap();
        fs::write(dir.path().join("notes.txt"), "not ours").unwrap();

        let mut files = Files::open(dir.path()).unwrap();
        write(&mut files, &[("a", 2, vec![3])]);
        assert_eq!(fs::read(&first).unwrap(), torn);
        assert_eq!(read(&files, "a"), [1, 2, 3]);
        assert!(dir.path().join("notes.txt").exists());
    }

    #[test]
    fn a_file_without_a_whole_record_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00000007-12345678.log"), [0; 1000]).unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        assert!(logs(dir.path()).is_empty());
        write(&mut files, &[("a", 0, vec![1])]);
        assert!(logs(dir.path())[0].file_name().unwrap().to_str().unwrap().starts_with("00000008-"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_empty() {
        let dir = tempfile::tempdir().unwrap();
        // A failing disk or another owner's file: it cannot be opened, but it could be deleted.
        let path = dir.path().join("00000007-12345678.log");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        write(&mut files, &[("a", 0, vec![1])]);
        files.release(&[id("a")].into());
        assert_eq!(logs(dir.path()), [path]);
    }

    #[test]
    fn files_roll_and_go_when_nobody_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        write(&mut files, &[("a", 0, vec![1]), ("b", 0, vec![2])]);
        files.current.as_mut().unwrap().size = ROLL_BYTES;
        write(&mut files, &[("b", 1, vec![3])]);
        assert_eq!(logs(dir.path()).len(), 2);

        files.release(&[id("a")].into());
        assert_eq!(logs(dir.path()).len(), 2, "b still needs both");
        assert_eq!(files.index.sessions(), [id("b")]);
        files.release(&[id("b"), id("unknown")].into());
        assert!(logs(dir.path()).is_empty(), "the current one too");
        write(&mut files, &[("b", 0, vec![4])]);
        assert_eq!(read(&files, "b"), [4]);
    }

    #[test]
    fn after_a_failed_write_the_next_goes_into_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        write(&mut files, &[("a", 0, vec![1])]);
        // Cannot be written through.
        files.current.as_mut().unwrap().file = File::open(&logs(dir.path())[0]).unwrap();
        let (mut bytes, holds) = records(&[("a", 1, vec![2])]);
        assert!(files.write(&mut bytes, &holds).is_err());
        files.write(&mut bytes, &holds).unwrap();
        assert_eq!(logs(dir.path()).len(), 2);
        assert_eq!(read(&files, "a"), [1, 2]);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let refused = Files::open(dir.path()).err().unwrap();
        assert!(refused.message().contains("another daemon"), "{refused}");
        drop(files);
        assert!(Files::open(dir.path()).is_ok());
    }

    #[test]
    fn whatever_happens_to_the_last_records_of_a_take_what_was_acknowledged_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let audio = |n: usize| vec![0x0101 * (n as i16 + 1); 4];
        // Two records each time: one fsync, one acknowledgement.
        let groups = 4;
        let mut ends = vec![0];
        let mut files = Files::open(dir.path()).unwrap();
        for n in 0..groups {
            let (first, second) = (audio(2 * n), audio(2 * n + 1));
            let pieces = [("a", 8 * n as u64, first), ("a", 8 * n as u64 + 4, second)];
            for upto in 1..=2 {
                ends.push(ends[2 * n] + records(&pieces[..upto]).0.len());
            }
            write(&mut files, &pieces);
        }
        drop(files);
        let [path] = &logs(dir.path())[..] else { panic!("one file") };
        let whole = fs::read(path).unwrap();
        let all: Vec<i16> = (0..2 * groups).flat_map(audio).collect();
        let check = |bytes: &[u8], expected: &[i16], what: &str| {
            fs::write(path, bytes).unwrap();
            let files = Files::open(dir.path()).unwrap();
            assert_eq!(read(&files, "a"), expected, "{what}");
        };
        for at in ends[2]..whole.len() {
            let hit = ends.iter().rposition(|end| *end <= at).unwrap();
            // Torn: what is before stays.
            check(&whole[..at], &all[..4 * hit], &format!("cut at {at}"));
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let in_last_group = hit >= 2 * (groups - 1);
            let mut expected = all.clone();
            if in_last_group {
                // It was never acknowledged, and its client sends it again.
                expected.truncate(4 * hit);
            } else {
                // It was, and so was what came later, which stays in its place.
                expected[4 * hit..4 * hit + 4].fill(0);
            }
            check(&bytes, &expected, &format!("byte {at} damaged"));
        }
    }

    #[test]
    fn a_file_that_only_leads_up_to_what_is_wanted_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        for n in 0..3 {
            write(&mut files, &[("a", 4 * n, vec![n as i16; 4])]);
            files.current.as_mut().unwrap().size = ROLL_BYTES;
        }
        fs::remove_file(&logs(dir.path())[0]).unwrap();
        let part = files.index.read(&id("a"), 1, 5..9).unwrap();
        assert_eq!((part.first_sample, &part.samples[..], part.end), (5, &[1, 1, 1, 2][..], 12));
    }
}
