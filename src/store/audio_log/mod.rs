//! Received audio of all sessions, on disk: what a client may be told is safe.
//!
//! One log for all, so that hundreds of streams cost a few fsyncs a second and not hundreds. `append` only queues;
//! a piece is durable once `durable()` has reached its ticket, and only then may it be acknowledged. Files are
//! never changed once they are rolled; a file goes when no session needs it any more. Opening never fails because
//! of what a file holds: whole records are kept, the rest is passed over.
//!
//! Which sessions are over is not noted here: the daemon knows from the store, and releases them again after a start.

mod assemble;
mod files;
mod holds;
mod record;

use std::{
    collections::HashSet,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use self::{
    files::{Files, Index},
    holds::Holds,
    record::Label,
};
use super::{
    create_private_dir,
    gather::{Batch, Gather},
    writer_ended,
};
use crate::{
    base::{Error, Result},
    flow::SessionId,
};

/// One second of 500 streams; also the most memory that waiting audio takes.
const CAPACITY_BYTES: usize = 16 << 20;
/// Audio is to be durable within 250 ms: this leaves 100 ms for the disk, and at most seven fsyncs a second.
const WINDOW: Duration = Duration::from_millis(150);

/// A handle, cheap to clone. When the last one is dropped the writer makes durable what it has and ends; `close`
/// does the same and waits for it.
#[derive(Clone)]
pub struct AudioLog(Arc<Inner>);

struct Inner {
    queue: Arc<Gather<Group>>,
    index: Arc<Index>,
    tickets: AtomicU64,
    durable: watch::Receiver<u64>,
    ended: watch::Receiver<bool>,
    full: AtomicBool,
}

/// Durable audio of one take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeAudio {
    /// Of the wanted ones, those that there are.
    pub first_sample: u64,
    pub samples: Vec<i16>,
    /// Where the take's audio ends.
    pub end: u64,
    /// The newest chunk that it wholly holds.
    pub chunk_id: Option<u64>,
    /// The disk has lost some of it, which is silence now.
    pub damaged: bool,
}

/// Where audio belongs that is appended.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub session: &'a SessionId,
    pub take: u64,
    /// Counted from the take's start. What begins before the end of what is there replaces it from there on.
    pub first_sample: u64,
    /// The chunk that ends with this audio.
    pub chunk_id: Option<u64>,
}

/// What becomes durable with one fsync.
#[derive(Default)]
struct Group {
    records: Vec<u8>,
    /// What these are of.
    holds: Holds,
    /// Whose earlier records are no longer needed.
    released: HashSet<SessionId>,
    last_ticket: u64,
}

impl AudioLog {
    /// Opens the log in `dir`/audio and sees what a former run has left there. One process at a time.
    pub fn open(dir: &Path) -> Result<AudioLog> {
        let dir = dir.join("audio");
        create_private_dir(&dir)?;
        let files = Files::open(&dir)?;
        let index = files.index();

        let (durable_tx, durable) = watch::channel(0);
        let (ended_tx, ended) = watch::channel(false);
        let queue = Arc::new(Gather::new(CAPACITY_BYTES, WINDOW));
        let writer = Arc::clone(&queue);
        thread::Builder::new()
            .name("vigia-audio-log".into())
            .spawn(move || {
                write_until_closed(&writer, files, &durable_tx);
                ended_tx.send_replace(true);
            })
            .map_err(|error| Error::unavailable("cannot start the audio log's thread").cause(error))?;
        let (tickets, full) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(AudioLog(Arc::new(Inner { queue, index, tickets, durable, ended, full })))
    }

    /// Queues 16 kHz samples and returns their ticket. Waits while the queue is full, within a limit. After a crash all of
    /// them are there, or none.
    pub async fn append(&self, place: Place<'_>, samples: &[i16]) -> Result<u64> {
        self.has_room()?;
        let Inner { queue, tickets, .. } = &*self.0;
        let Place { session, take, chunk_id, mut first_sample } = place;
        let mut ticket = tickets.load(Ordering::Relaxed);
        let mut left = samples;
        while !left.is_empty() {
            let (samples, rest) = left.split_at(left.len().min(record::MAX_SAMPLES));
            left = rest;
            let size = record::size(session, samples) as u32;
            let whole = left.is_empty();
            let label =
                Label { session: session.as_str(), take, first_sample, chunk_id: chunk_id.filter(|_| whole), whole };
            let end = first_sample + samples.len() as u64;
            let add = |group: &mut Group| {
                record::write(&mut group.records, label, samples);
                group.holds.add(session, take, first_sample..end);
                // Under the queue's lock, so that tickets rise in the order of the log.
                group.last_ticket = tickets.fetch_add(1, Ordering::Relaxed) + 1;
                group.last_ticket
            };
            ticket = queue.add(size, false, add).await?;
            first_sample = end;
        }
        Ok(ticket)
    }

    /// Follows the highest ticket that is on disk, together with all before it.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.0.durable.clone()
    }

    /// What was appended becomes durable at once, without waiting for company. For the end of a take and for a client that
    /// comes back: seldom enough.
    pub fn hurry(&self) {
        self.0.queue.hurry();
    }

    /// A session's audio up to now is no longer needed. Never waits; files go soon after.
    pub fn release(&self, session: &SessionId) {
        self.0.queue.amend(|group| {
            group.holds.remove(session);
            group.released.insert(session.clone());
        });
    }

    /// Sessions with durable audio that was not released.
    pub fn sessions_on_disk(&self) -> Vec<SessionId> {
        self.0.index.sessions()
    }

    /// The takes of a session that there is durable audio of.
    pub fn takes(&self, session: &SessionId) -> Vec<u64> {
        self.0.index.takes(session)
    }

    /// The durable audio of a take, as far as it is wanted.
    pub async fn read(&self, session: &SessionId, take: u64, wanted: Range<u64>) -> Result<TakeAudio> {
        let (index, id) = (Arc::clone(&self.0.index), session.clone());
        let read = tokio::task::spawn_blocking(move || index.read(&id, take, wanted)).await;
        let audio = match read {
            Ok(audio) => audio.map_err(|error| Error::internal("cannot read the session's audio").cause(error))?,
            Err(error) => return Err(Error::internal("reading the session's audio was broken off").cause(error)),
        };
        if audio.damaged {
            log::error!(session = session.as_str(); "the disk has lost audio of take {take}: it is silence now");
        }
        Ok(audio)
    }

    /// What the files take on disk.
    pub fn bytes(&self) -> u64 {
        self.0.index.bytes()
    }

    /// What a session's audio takes of that, about.
    pub fn bytes_of(&self, session: &SessionId) -> u64 {
        self.0.index.bytes_of(session)
    }

    /// Whether more is refused.
    pub fn set_full(&self, full: bool) {
        self.0.full.store(full, Ordering::Relaxed);
    }

    /// Refuses when `append` would.
    pub fn has_room(&self) -> Result<()> {
        match self.0.full.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::unavailable("received audio has taken all the disk that it may")
                .hint("raise store.max_audio, or wait until sessions have ended")),
        }
    }

    /// How many fsyncs there have been.
    pub fn syncs(&self) -> u64 {
        self.0.index.syncs()
    }

    /// Makes durable what is left and ends the writer. Whatever comes later is refused.
    pub async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.queue.close();
        writer_ended(self.0.ended.clone(), deadline, "the audio log").await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Batch for Group {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.released.is_empty()
    }

    fn absorb(&mut self, newer: Group) {
        self.records.extend_from_slice(&newer.records);
        newer.released.iter().for_each(|session| self.holds.remove(session));
        self.holds.merge(newer.holds);
        self.released.extend(newer.released);
        self.last_ticket = self.last_ticket.max(newer.last_ticket);
    }
}

fn write_until_closed(queue: &Gather<Group>, mut files: Files, durable: &watch::Sender<u64>) {
    let lost = queue.serve("received audio", |group| {
        // First, since it makes room on a disk that may be full.
        files.release(&std::mem::take(&mut group.released));
        if group.records.is_empty() {
            return Ok(());
        }
        files.write(&mut group.records, &group.holds).map_err(|error| error.to_string())?;
        durable.send_replace(group.last_ticket);
        queue.release(group.records.len());
        *group = Group::default();
        Ok(())
    });
    if !lost.records.is_empty() {
        log::error!("{} bytes of received audio could not be written and are lost", lost.records.len());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::testing::{id, soon};

    async fn until_durable(log: &AudioLog, ticket: u64) {
        let mut durable = log.durable();
        tokio::time::timeout_at(soon(), durable.wait_for(|it| *it >= ticket)).await.unwrap().unwrap();
    }

    fn place(session: &SessionId, first_sample: u64) -> Place<'_> {
        Place { session, take: 1, first_sample, chunk_id: None }
    }

    async fn read(log: &AudioLog, session: &str) -> Vec<i16> {
        log.read(&id(session), 1, 0..u64::MAX).await.unwrap().samples
    }

    /// Sample `n` of session `s`: different everywhere.
    fn samples(session: usize, from: usize, count: usize) -> Vec<i16> {
        (from..from + count).map(|n| (session * 4099 + n * 31) as i16).collect()
    }

    #[tokio::test]
    async fn many_sessions_share_few_fsyncs_and_read_back_exactly() {
        let (sessions, chunks, chunk) = (50, 20, 320);
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let streams = (0..sessions).map(|session| {
            let log = log.clone();
            tokio::spawn(async move {
                let id = id(&format!("s{session}"));
                let mut last = 0;
                for n in 0..chunks {
                    let first = n * chunk;
                    let ticket = log.append(place(&id, first as u64), &samples(session, first, chunk)).await.unwrap();
                    assert!(ticket > last, "tickets rise");
                    last = ticket;
                    tokio::task::yield_now().await;
                }
                last
            })
        });
        let mut last = 0;
        for stream in futures_util::future::join_all(streams).await {
            last = last.max(stream.unwrap());
        }
        assert_eq!(last, (sessions * chunks) as u64);
        until_durable(&log, last).await;
        assert!((1..=10).contains(&log.syncs()), "{} fsyncs", log.syncs());
        for session in 0..sessions {
            assert_eq!(read(&log, &format!("s{session}")).await, samples(session, 0, chunks * chunk));
        }
        log.close(soon()).await.unwrap();

        let log = AudioLog::open(dir.path()).unwrap();
        assert_eq!(log.sessions_on_disk().len(), sessions);
        assert_eq!(read(&log, "s7").await, samples(7, 0, chunks * chunk));
        assert!(read(&log, "unknown").await.is_empty());
        assert_eq!((log.takes(&id("s7")), log.takes(&id("unknown"))), (vec![1], vec![]));
    }

    #[tokio::test]
    async fn what_is_durable_is_on_disk_when_the_daemon_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let start = std::time::Instant::now();
        let ticket = log.append(place(&id("a"), 0), &[1, 2, 3]).await.unwrap();
        assert_eq!(*log.durable().borrow(), 0, "not before the fsync");
        until_durable(&log, ticket).await;
        assert!(start.elapsed() >= WINDOW, "it had waited for company");
        // What a killed daemon leaves is what the folder holds now.
        let left = tempfile::tempdir().unwrap();
        fs::create_dir(left.path().join("audio")).unwrap();
        for file in fs::read_dir(dir.path().join("audio")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), left.path().join("audio").join(file.file_name())).unwrap();
        }
        let found = AudioLog::open(left.path()).unwrap();
        assert_eq!(read(&found, "a").await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn nothing_is_called_durable_while_the_disk_fails_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let audio = dir.path().join("audio");
        fs::remove_dir_all(&audio).unwrap();
        let first = log.append(place(&id("a"), 0), &[1]).await.unwrap();
        tokio::time::sleep(2 * WINDOW).await;
        let second = log.append(place(&id("a"), 1), &[2]).await.unwrap();
        assert_eq!((*log.durable().borrow(), first), (0, 1));
        fs::create_dir(&audio).unwrap();
        until_durable(&log, second).await;
        assert_eq!(read(&log, "a").await, [1, 2]);
    }

    #[tokio::test]
    async fn audio_waiting_for_a_failing_disk_is_bounded_and_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("audio")).unwrap();
        let second = vec![0; record::MAX_SAMPLES];
        let mut first_sample = 0;
        let refused = loop {
            match log.append(place(&id("a"), first_sample), &second).await {
                Ok(_) => first_sample += second.len() as u64,
                Err(error) => break error,
            }
        };
        assert!(refused.hint_text().unwrap().contains("free space"), "{}", refused.full());
        assert!(first_sample * 2 <= CAPACITY_BYTES as u64);
    }

    #[tokio::test]
    async fn released_audio_goes_and_a_returning_session_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        until_durable(&log, log.append(place(&id("a"), 0), &[1]).await.unwrap()).await;
        log.append(place(&id("b"), 0), &[2]).await.unwrap();
        log.release(&id("a"));
        log.release(&id("b"));
        let last = log.append(Place { take: 2, ..place(&id("b"), 0) }, &[3]).await.unwrap();
        until_durable(&log, last).await;
        assert_eq!(log.sessions_on_disk(), [id("b")]);
        assert!(read(&log, "a").await.is_empty());
        assert_eq!(log.read(&id("b"), 2, 0..9).await.unwrap().samples, [3]);

        log.release(&id("b"));
        log.close(soon()).await.unwrap();
        let logs = fs::read_dir(dir.path().join("audio")).unwrap();
        assert_eq!(logs.filter(|it| it.as_ref().unwrap().path().extension().is_some()).count(), 0);
    }

    #[tokio::test]
    async fn a_piece_longer_than_the_queue_passes_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let long = samples(0, 0, CAPACITY_BYTES / 2 + 100_000);
        let ticket = log.append(place(&id("a"), 0), &long).await.unwrap();
        until_durable(&log, ticket).await;
        assert!(read(&log, "a").await == long);
        let empty = log.append(place(&id("a"), 5), &[]).await.unwrap();
        assert_eq!(empty, ticket, "nothing is durable with what was before");
    }

    #[tokio::test]
    async fn a_part_is_read_by_itself_and_knows_where_all_ends() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let all = samples(0, 0, 40_000);
        let numbered = |first_sample, chunk_id| Place { chunk_id: Some(chunk_id), ..place_of_a(first_sample) };
        log.append(numbered(0, 3), &all[..35_000]).await.unwrap();
        until_durable(&log, log.append(numbered(35_000, 4), &all[35_000..]).await.unwrap()).await;
        let part = log.read(&id("a"), 1, 30_000..36_000).await.unwrap();
        assert_eq!((part.first_sample, part.end, part.chunk_id), (30_000, 40_000, Some(4)));
        assert!(part.samples == all[30_000..36_000] && !part.damaged);
        let none = log.read(&id("a"), 1, 50_000..60_000).await.unwrap();
        assert_eq!((none.first_sample, none.samples.len(), none.end), (40_000, 0, 40_000));
        // Sent again from where another daemon was: it counts.
        until_durable(&log, log.append(numbered(35_500, 4), &[1, 2]).await.unwrap()).await;
        let again = log.read(&id("a"), 1, 35_499..u64::MAX).await.unwrap();
        assert_eq!((&again.samples[..], again.end), (&[all[35_499], 1, 2][..], 35_502));
    }

    fn place_of_a(first_sample: u64) -> Place<'static> {
        static A: std::sync::LazyLock<SessionId> = std::sync::LazyLock::new(|| id("a"));
        place(&A, first_sample)
    }

    #[tokio::test]
    async fn a_full_log_refuses_with_what_to_do_and_goes_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        until_durable(&log, log.append(place_of_a(0), &[1, 2]).await.unwrap()).await;
        assert!(log.bytes() > 4);
        log.set_full(true);
        let refused = log.append(place_of_a(2), &[3]).await.unwrap_err();
        assert!(refused.hint_text().unwrap().contains("store.max_audio"), "{}", refused.full());
        log.set_full(false);
        log.append(place_of_a(2), &[3]).await.unwrap();
    }

    #[tokio::test]
    async fn closed_means_written_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let ticket = log.append(place(&id("a"), 0), &[1]).await.unwrap();
        log.close(soon()).await.unwrap();
        assert_eq!(*log.durable().borrow(), ticket);
        assert!(log.append(place(&id("a"), 1), &[2]).await.is_err());
    }
}
