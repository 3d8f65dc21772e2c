//! The live sessions: how many there may be, and the way in. A session has one client at a time, or none for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Error, Kind, Result, lock},
    engines::diarize::Voices,
    flow::{Draft, EventType, SessionConfig, SessionId, Task, Wish},
    segment::SessionLanguage,
    sources::{
        Coming, Input, SharedServices, Told,
        course::Course,
        recovery,
        speakers::SessionSpeakers,
        task::{Admitted, Arriving, Beginning, SessionTask, Timeline},
    },
    store::SessionState,
    telemetry::events::{SessionsLive, emit},
};

/// Chunks that a client may be ahead of us. Small: the network holds back the rest.
const INPUT_QUEUE: usize = 8;
/// Messages that a client may be behind us.
const OUTPUT_QUEUE: usize = 64;
/// Clients of one session that may stand at its door; all but the newest are put down anyway.
const DOOR: usize = 4;
/// A client has this long to be let in: one that does not resume waits until the older one's take is finished.
const HAND_OVER: Duration = Duration::from_secs(10);
/// Sessions of an earlier daemon that are looked at at a time.
const LOOKED_AT: usize = 4;

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    services: SharedServices,
    live: Arc<Mutex<HashMap<SessionId, Live>>>,
}

struct Live {
    door: mpsc::Sender<Box<Arriving>>,
    /// Of the newest client.
    displaced: CancellationToken,
    gone: CancellationToken,
}

/// A session, as its client's connection holds it. Dropping `input` without a goodbye leaves the session open for a while.
pub struct Opened {
    pub input: mpsc::Sender<Input>,
    pub output: mpsc::Receiver<Told>,
    /// Cancelled when a newer client has taken the session over.
    pub displaced: CancellationToken,
    /// Tasks that cannot be served now, and why.
    pub unavailable: Vec<(Task, Error)>,
    /// It goes on where it was cut off.
    pub resumed: bool,
    /// Its take is open: audio goes on in it.
    pub take_open: bool,
    /// Samples of the session that are on disk.
    pub received_samples: u64,
    /// The number of the first message to the client.
    pub seq: u64,
}

impl Sessions {
    pub fn new(services: SharedServices) -> Sessions {
        Sessions { services, live: Arc::default() }
    }

    pub(super) fn services(&self) -> &SharedServices {
        &self.services
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Begins a session, goes on with it, or takes it over.
    pub async fn open(&self, config: SessionConfig, coming: Coming) -> Result<Opened> {
        let services = &self.services;
        if services.shutdown.started() {
            return Err(Error::new(Kind::Busy, "the daemon is going down").hint("reconnect in a few seconds"));
        }
        let deadline = Instant::now() + HAND_OVER;
        loop {
            // Tried before anything is done, so that a wrong format leaves no trace.
            let decoder = services.media.audio_decoder(config.format).await?;
            let mut unavailable = Vec::new();
            if let Err(error) = services.registry.installed(Task::Transcribe) {
                unavailable.push((Task::Transcribe, error));
            }
            let transcribes = unavailable.is_empty();
            let diarizes = match self.diarizes(&config, transcribes) {
                Ok(()) => true,
                Err(error) => {
                    if config.diarize == Wish::Yes {
                        unavailable.push((Task::Diarize, error));
                    }
                    false
                }
            };
            if config.analyze == Wish::Yes
                && let Err(error) = services.registry.installed(Task::Chat)
            {
                unavailable.push((Task::Chat, error));
            }
            let way_in = self.way_in(&config).await?;
            let (input, inbox) = mpsc::channel(INPUT_QUEUE);
            let (outbox, output) = mpsc::channel(OUTPUT_QUEUE);
            let (reply, answer) = oneshot::channel();
            let arriving = Arriving {
                config: config.clone(),
                coming,
                transcribes,
                diarizes,
                decoder,
                input: inbox,
                output: outbox,
                reply,
            };
            let knocked = async {
                way_in.door.send(Box::new(arriving)).await.ok()?;
                answer.await.ok()
            };
            match timeout_at(deadline, knocked).await {
                Ok(Some(admitted)) => {
                    let Admitted { resumed, received_samples, take_open, seq } = admitted?;
                    let displaced = way_in.displaced;
                    return Ok(Opened {
                        input,
                        output,
                        displaced,
                        unavailable,
                        resumed,
                        take_open,
                        received_samples,
                        seq,
                    });
                }
                Ok(None) if way_in.displaced.is_cancelled() => {
                    return Err(Error::new(Kind::Busy, "a newer client has taken this session over"));
                }
                // It has ended just now: it begins again.
                Ok(None) if timeout_at(deadline, way_in.gone.cancelled()).await.is_ok() => {}
                Ok(None) | Err(_) => {
                    return Err(Error::new(Kind::Busy, "the session's older client is still being finished")
                        .hint("try again in a few seconds"));
                }
            }
        }
    }

    /// Sessions that an earlier daemon left open go on: each waits for its client as if that had just been cut off. What it
    /// had begun to analyse is analysed.
    pub async fn recover(&self) -> Result<()> {
        let turns = Arc::new(Semaphore::new(LOOKED_AT));
        let left_open = self.services.store.left_open().await?;
        let mut owed = self.services.store.owed_analyses().await?;
        owed.retain(|id| left_open.iter().all(|row| row.id != *id));
        let sessions = self.clone();
        tokio::spawn(async move { sessions.pay(owed).await });
        for row in left_open {
            let Some((entered, door)) = self.enter(&row.id) else { continue };
            let (sessions, turns) = (self.clone(), Arc::clone(&turns));
            tokio::spawn(async move {
                let turn = turns.acquire_owned().await;
                match sessions.beginning(&row.id, None, door).await {
                    Ok(beginning) => {
                        drop(turn);
                        sessions.run(beginning, entered).await;
                    }
                    // It stays open in the store, with its audio: its client, or the next start, tries again.
                    Err(error) => log::error!(session = row.id.as_str(); "cannot go on: {}", error.full()),
                }
            });
        }
        Ok(())
    }

    /// Nothing is left of a session's audio; for one that is over.
    pub fn forget_audio(&self, id: &SessionId) {
        if !self.lock().contains_key(id) {
            self.services.audio_log.release(id);
        }
    }

    /// The door of a session that is live, or of one that begins now. The client before is put down.
    async fn way_in(&self, config: &SessionConfig) -> Result<WayIn> {
        let (entered, door, way_in) = {
            let mut live = self.lock();
            if let Some(live) = live.get_mut(&config.id) {
                let displaced = CancellationToken::new();
                std::mem::replace(&mut live.displaced, displaced.clone()).cancel();
                return Ok(WayIn { door: live.door.clone(), displaced, gone: live.gone.clone() });
            }
            if live.len() >= self.services.max_sessions {
                return Err(Error::new(Kind::Busy, format!("{} sessions are live already", live.len()))
                    .hint("audio.max_sessions sets the limit; try again when one has ended"));
            }
            self.put(&mut live, &config.id)
        };
        let beginning = self.beginning(&config.id, Some(config), door).await?;
        tokio::spawn({
            let sessions = self.clone();
            async move { sessions.run(beginning, entered).await }
        });
        Ok(way_in)
    }

    async fn run(&self, beginning: Beginning, entered: Entered) {
        let busy = self.services.shutdown.busy("session");
        let id = beginning.config.id.clone();
        let mut analysis = SessionTask::new(Arc::clone(&self.services), beginning).run().await;
        drop(entered);
        drop(busy);
        if analysis.is_running() {
            if let Err(error) = analysis.done().await {
                log::error!(session = id.as_str(); "no analysis: {}", error.full());
            }
            if !self.services.keep_audio {
                self.forget_audio(&id);
            }
        }
    }

    /// What its task begins with: what was left of it, or nothing.
    async fn beginning(
        &self,
        id: &SessionId,
        config: Option<&SessionConfig>,
        door: mpsc::Receiver<Box<Arriving>>,
    ) -> Result<Beginning> {
        let services = &self.services;
        let voice = services.registry.voice().await?;
        let resumable = !services.resume_window.is_zero();
        let transcribes = services.registry.installed(Task::Transcribe).is_ok();
        let row = services.store.session(id).await?.filter(|row| row.state == SessionState::Open);
        let kept = services.store.session_speakers(id).await?;
        let speakers = SessionSpeakers::new(self.known_voices(), kept.as_deref());
        let (config, course, timeline, language, left, owes_analysis) = match (row, config) {
            (Some(row), _) => {
                services.hub.go_on(id).await;
                let found = recovery::look(services, row).await?;
                let course = Course::left_open(resumable, found.stage());
                let recovery::Found { config, timeline, language, left } = found;
                let owes_analysis = services.store.owed_analyses().await?.contains(id);
                (config, course, timeline, language, left, owes_analysis)
            }
            (None, Some(config)) => {
                services.audio_log.has_room()?;
                let timeline = self.announce(config).await?;
                let language = SessionLanguage::new(&config.language);
                (config.clone(), Course::new(resumable), timeline, language, None, false)
            }
            (None, None) => return Err(Error::internal("the session has ended meanwhile")),
        };
        let diarizes = self.diarizes(&config, transcribes).is_ok();
        Ok(Beginning {
            config,
            voice,
            transcribes,
            speakers,
            diarizes,
            course,
            timeline,
            language,
            left,
            owes_analysis,
            door,
        })
    }

    async fn announce(&self, config: &SessionConfig) -> Result<Timeline> {
        let row = self.services.store.session_opened(&config.id, &config.device, &config.language).await?;
        let data = json!({
            "language": config.language,
            "encoding": config.format.encoding.name(),
            "sample_rate": config.format.sample_rate,
            "take": row.takes + 1,
        });
        let (kind, device) = (EventType::SessionStart, config.device.as_str().into());
        self.services.hub.publish(Draft { kind, device, session: Some(config.id.clone()), data }).await;
        Ok(Timeline::of(&row))
    }

    /// A place for a session that is not live; it takes one beyond the limit, if need be.
    pub(super) fn enter(&self, id: &SessionId) -> Option<(Entered, mpsc::Receiver<Box<Arriving>>)> {
        let mut live = self.lock();
        if live.contains_key(id) {
            return None;
        }
        let (entered, door, _) = self.put(&mut live, id);
        Some((entered, door))
    }

    fn put(
        &self,
        live: &mut HashMap<SessionId, Live>,
        id: &SessionId,
    ) -> (Entered, mpsc::Receiver<Box<Arriving>>, WayIn) {
        let (sender, door) = mpsc::channel(DOOR);
        let way_in = WayIn { door: sender, displaced: CancellationToken::new(), gone: CancellationToken::new() };
        let WayIn { door: sender, displaced, gone } = way_in.clone();
        live.insert(id.clone(), Live { door: sender, displaced, gone: gone.clone() });
        emit(SessionsLive { count: live.len() });
        (Entered { sessions: self.clone(), id: id.clone(), gone }, door, way_in)
    }

    /// Whether speakers are told apart in a session; the error says why not.
    fn diarizes(&self, config: &SessionConfig, transcribes: bool) -> Result<()> {
        if config.diarize == Wish::No {
            return Err(Error::invalid("nobody asked who speaks"));
        }
        if !transcribes {
            return Err(Error::unavailable("speakers are told of what is transcribed"));
        }
        self.services.registry.installed(Task::Diarize)
    }

    /// Whose voices are known. Sessions go on without them.
    pub(super) fn known_voices(&self) -> Voices {
        Voices::open(&self.services.voices_dir).unwrap_or_else(|error| {
            log::error!("nobody is called by name: {}", error.full());
            Voices::default()
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Live>> {
        lock(&self.live)
    }
}

#[derive(Clone)]
struct WayIn {
    door: mpsc::Sender<Box<Arriving>>,
    displaced: CancellationToken,
    gone: CancellationToken,
}

/// Gives the place back, also when opening fails half-way.
pub(super) struct Entered {
    sessions: Sessions,
    id: SessionId,
    gone: CancellationToken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut live = self.sessions.lock();
        live.remove(&self.id);
        emit(SessionsLive { count: live.len() });
        drop(live);
        self.gone.cancel();
    }
}
