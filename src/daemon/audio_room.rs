//! The disk that received audio takes: what of it may go, and whether there is room for more. Never touches the audio of a
//! session that is open.

use std::time::Duration;

use crate::{
    base::{Result, Shutdown},
    flow::SessionId,
    settings,
    store::{AudioLog, SessionState, Store},
};

/// How often the disk is looked at; 500 streams fill 80 MB meanwhile.
const EVERY: Duration = Duration::from_secs(5);

pub(super) struct AudioRoom {
    most: u64,
    keep: bool,
    store: Store,
    audio_log: AudioLog,
}

/// A session that is over, with what its audio takes.
#[derive(Debug, Clone, PartialEq)]
struct Ended {
    session: SessionId,
    ended_at: String,
    bytes: u64,
}

impl AudioRoom {
    pub(super) fn new(settings: &settings::Store, store: Store, audio_log: AudioLog) -> AudioRoom {
        AudioRoom { most: settings.max_audio.get(), keep: settings.keep_audio, store, audio_log }
    }

    /// Releases what nobody needs: of sessions that are gone, and of those that are over unless they are kept.
    pub(super) async fn clear(&self) -> Result<()> {
        for session in self.audio_log.sessions_on_disk() {
            let row = self.store.session(&session).await?;
            let needed = row.is_some_and(|row| self.keep || row.state == SessionState::Open);
            if !needed {
                self.audio_log.release(&session);
            }
        }
        Ok(())
    }

    pub(super) async fn watch(self, shutdown: Shutdown) {
        let mut full = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = shutdown.wait() => return,
            }
            match self.make_room().await {
                Ok(now) if now == full => {}
                Ok(now) => {
                    full = now;
                    self.audio_log.set_full(full);
                    match full {
                        true => log::error!("open sessions have taken all of store.max_audio: no more audio is kept"),
                        false => log::info!("there is room for audio again"),
                    }
                }
                Err(error) => log::error!("{}", error.full()),
            }
        }
    }

    /// Whether there is none, and none to be made.
    async fn make_room(&self) -> Result<bool> {
        let Some(excess) = self.audio_log.bytes().checked_sub(self.most).filter(|excess| *excess > 0) else {
            return Ok(false);
        };
        let mut ended = Vec::new();
        for session in self.audio_log.sessions_on_disk() {
            let Some(row) = self.store.session(&session).await? else {
                self.audio_log.release(&session);
                continue;
            };
            if let (SessionState::Closed, Some(ended_at)) = (row.state, row.ended_at) {
                let bytes = self.audio_log.bytes_of(&session);
                ended.push(Ended { session, ended_at, bytes });
            }
        }
        let going = going(ended, excess);
        going.iter().for_each(|session| self.audio_log.release(session));
        if !going.is_empty() {
            log::info!("the audio of {} sessions that are over makes room for more", going.len());
        }
        Ok(going.is_empty())
    }
}

/// Those that go: the ones that have been over for longest, as many as it takes.
fn going(mut ended: Vec<Ended>, mut excess: u64) -> Vec<SessionId> {
    ended.sort_by(|a, b| (&a.ended_at, &a.session).cmp(&(&b.ended_at, &b.session)));
    let mut going = Vec::new();
    for Ended { session, bytes, .. } in ended {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(bytes);
        going.push(session);
    }
    going
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{ByteSize, shutdown::deadline},
        store::{Place, Progress},
    };

    fn id(text: &str) -> SessionId {
        SessionId::parse(text).unwrap()
    }

    async fn room(dir: &std::path::Path, most: u64, keep_audio: bool) -> AudioRoom {
        let settings = settings::Store { dir: String::new(), keep_days: 30, keep_audio, max_audio: ByteSize(most) };
        let (store, audio_log) = (Store::open(dir).unwrap(), AudioLog::open(dir).unwrap());
        for session in ["old", "new", "open"] {
            store.session_opened(&id(session), "glasses", "es").await.unwrap();
            let place = Place { session: &id(session), take: 1, first_sample: 0, chunk_id: None };
            let ticket = audio_log.append(place, &[7; 1000]).await.unwrap();
            audio_log.hurry();
            let mut durable = audio_log.durable();
            let until = deadline(Duration::from_secs(10));
            tokio::time::timeout_at(until, durable.wait_for(|it| *it >= ticket)).await.unwrap().unwrap();
            if session != "open" {
                store.session_ended(&id(session), Progress::default()).await.unwrap();
            }
        }
        AudioRoom::new(&settings, store, audio_log)
    }

    /// The log does what it is told a moment later.
    async fn until_left(room: &AudioRoom, left: &[&str]) {
        let until = deadline(Duration::from_secs(10));
        let left: Vec<SessionId> = left.iter().map(|session| id(session)).collect();
        while room.audio_log.sessions_on_disk() != left {
            assert!(tokio::time::Instant::now() < until, "{:?}", room.audio_log.sessions_on_disk());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_oldest_that_is_over_goes_first_and_open_sessions_never() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path(), 5000, true).await;
        room.clear().await.unwrap();
        until_left(&room, &["new", "old", "open"]).await;
        assert!(!room.make_room().await.unwrap());
        until_left(&room, &["new", "open"]).await;
        assert!(!room.make_room().await.unwrap());
        until_left(&room, &["open"]).await;
        // One file holds it all, so none of it has come back.
        assert!(room.make_room().await.unwrap(), "nothing is left to go");
        until_left(&room, &["open"]).await;
    }

    #[tokio::test]
    async fn what_nobody_needs_goes_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path(), 1 << 30, false).await;
        room.clear().await.unwrap();
        until_left(&room, &["open"]).await;
        assert!(!room.make_room().await.unwrap());
        room.store.session_ended(&id("open"), Progress::default()).await.unwrap();
        room.store.delete_session(&id("open")).await.unwrap();
        room.clear().await.unwrap();
        until_left(&room, &[]).await;
    }
}
