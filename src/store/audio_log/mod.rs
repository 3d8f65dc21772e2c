//! Received audio of all sessions, on disk: what a client may be told is safe.
//!
//! One log for all, so that hundreds of streams cost a few fsyncs a second and not hundreds. `append` only queues;
//! a piece is durable once `durable()` has reached its ticket, and only then may it be acknowledged. Files are
//! never changed once they are rolled; a file goes when no session needs it any more. Opening never fails because
//! of what a file holds: whole records are kept, the rest is passed over.
//!
//! Which sessions are over is not noted here: the daemon knows from the store, and releases them again after a start.

mod files;
mod record;

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use self::files::{Files, Index};
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
}

/// Consecutive audio of one take, as `append` received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudioPiece {
    pub take: u64,
    pub first_sample: u64,
    pub samples: Vec<i16>,
}

/// What becomes durable with one fsync.
#[derive(Default)]
struct Group {
    records: Vec<u8>,
    /// Whose records these are.
    sessions: HashSet<SessionId>,
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
        Ok(AudioLog(Arc::new(Inner { queue, index, tickets: AtomicU64::new(0), durable, ended })))
    }

    /// Queues 16 kHz samples of a session's take, `first_sample` counted from the take's start, and returns their ticket.
    /// Waits while the queue is full, within a limit. What comes twice is kept once.
    pub async fn append(&self, session: &SessionId, take: u64, first_sample: u64, samples: &[i16]) -> Result<u64> {
        let Inner { queue, tickets, .. } = &*self.0;
        let mut ticket = tickets.load(Ordering::Relaxed);
        let mut first_sample = first_sample;
        for samples in samples.chunks(record::MAX_SAMPLES) {
            let size = record::size(session, samples) as u32;
            let add = |group: &mut Group| {
                record::write(&mut group.records, session, take, first_sample, samples);
                if !group.sessions.contains(session) {
                    group.sessions.insert(session.clone());
                }
                // Under the queue's lock, so that tickets rise in the order of the log.
                group.last_ticket = tickets.fetch_add(1, Ordering::Relaxed) + 1;
                group.last_ticket
            };
            ticket = queue.add(size, false, add).await?;
            first_sample += samples.len() as u64;
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
            group.sessions.remove(session);
            group.released.insert(session.clone());
        });
    }

    /// Sessions with durable audio that was not released.
    pub fn sessions_on_disk(&self) -> Vec<SessionId> {
        self.0.index.sessions()
    }

    /// A session's durable audio, by take and sample. Damage shows as a gap between two pieces of a take.
    pub async fn read(&self, session: &SessionId) -> Result<Vec<AudioPiece>> {
        let (index, session) = (Arc::clone(&self.0.index), session.clone());
        let read = tokio::task::spawn_blocking(move || index.read(&session)).await;
        match read {
            Ok(pieces) => pieces.map_err(|error| Error::internal("cannot read the session's audio").cause(error)),
            Err(error) => Err(Error::internal("reading the session's audio was broken off").cause(error)),
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
        self.sessions.retain(|session| !newer.released.contains(session));
        self.sessions.extend(newer.sessions);
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
        files.write(&mut group.records, &group.sessions).map_err(|error| error.to_string())?;
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
                    let ticket = log.append(&id, 1, first as u64, &samples(session, first, chunk)).await.unwrap();
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
            let piece = AudioPiece { take: 1, first_sample: 0, samples: samples(session, 0, chunks * chunk) };
            assert_eq!(log.read(&id(&format!("s{session}"))).await.unwrap(), [piece]);
        }
        log.close(soon()).await.unwrap();

        let log = AudioLog::open(dir.path()).unwrap();
        assert_eq!(log.sessions_on_disk().len(), sessions);
        let piece = AudioPiece { take: 1, first_sample: 0, samples: samples(7, 0, chunks * chunk) };
        assert_eq!(log.read(&id("s7")).await.unwrap(), [piece]);
        assert_eq!(log.read(&id("unknown")).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_durable_is_on_disk_when_the_daemon_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let start = std::time::Instant::now();
        let ticket = log.append(&id("a"), 1, 0, &[1, 2, 3]).await.unwrap();
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
        assert_eq!(found.read(&id("a")).await.unwrap()[0].samples, [1, 2, 3]);
    }

    #[tokio::test]
    async fn nothing_is_called_durable_while_the_disk_fails_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let audio = dir.path().join("audio");
        fs::remove_dir_all(&audio).unwrap();
        let first = log.append(&id("a"), 1, 0, &[1]).await.unwrap();
        tokio::time::sleep(2 * WINDOW).await;
        let second = log.append(&id("a"), 1, 1, &[2]).await.unwrap();
        assert_eq!((*log.durable().borrow(), first), (0, 1));
        fs::create_dir(&audio).unwrap();
        until_durable(&log, second).await;
        assert_eq!(log.read(&id("a")).await.unwrap()[0].samples, [1, 2]);
    }

    #[tokio::test]
    async fn audio_waiting_for_a_failing_disk_is_bounded_and_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("audio")).unwrap();
        let second = vec![0; record::MAX_SAMPLES];
        let mut first_sample = 0;
        let refused = loop {
            match log.append(&id("a"), 1, first_sample, &second).await {
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
        until_durable(&log, log.append(&id("a"), 1, 0, &[1]).await.unwrap()).await;
        log.append(&id("b"), 1, 0, &[2]).await.unwrap();
        log.release(&id("a"));
        log.release(&id("b"));
        let last = log.append(&id("b"), 2, 0, &[3]).await.unwrap();
        until_durable(&log, last).await;
        assert_eq!(log.sessions_on_disk(), [id("b")]);
        assert_eq!(log.read(&id("a")).await.unwrap(), []);
        assert!(log.read(&id("b")).await.unwrap().iter().any(|piece| piece.take == 2 && piece.samples == [3]));

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
        let ticket = log.append(&id("a"), 1, 5, &long).await.unwrap();
        until_durable(&log, ticket).await;
        assert!(log.read(&id("a")).await.unwrap() == [AudioPiece { take: 1, first_sample: 5, samples: long }]);
        let empty = log.append(&id("a"), 1, 5, &[]).await.unwrap();
        assert_eq!(empty, ticket, "nothing is durable with what was before");
    }

    #[tokio::test]
    async fn closed_means_written_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = AudioLog::open(dir.path()).unwrap();
        let ticket = log.append(&id("a"), 1, 0, &[1]).await.unwrap();
        log.close(soon()).await.unwrap();
        assert_eq!(*log.durable().borrow(), ticket);
        assert!(log.append(&id("a"), 1, 1, &[2]).await.is_err());
    }
}
