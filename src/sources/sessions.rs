//! The live sessions: how many there may be, and that a session has one client at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Error, Kind, Result, lock},
    flow::{Draft, EventType, SessionConfig, SessionId, Task},
    sources::{
        Input, Said, SharedServices,
        task::{SessionTask, Timeline},
    },
    telemetry::events::{SessionsLive, emit},
};

/// Chunks that a client may be ahead of us. Small: the network holds back the rest.
const INPUT_QUEUE: usize = 8;
/// Messages that a client may be behind us.
const OUTPUT_QUEUE: usize = 64;
/// An older client of the same session has this long to be put down.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    services: SharedServices,
    live: Arc<Mutex<HashMap<SessionId, Live>>>,
}

#[derive(Clone)]
struct Live {
    displaced: CancellationToken,
    gone: CancellationToken,
}

/// A session, as its client's connection holds it. Dropping `input` finishes the take and the session.
pub struct Opened {
    pub input: mpsc::Sender<Input>,
    pub output: mpsc::Receiver<Said>,
    /// Cancelled when a newer client has taken the session over.
    pub displaced: CancellationToken,
    /// Tasks that cannot be served now, and why.
    pub unavailable: Vec<(Task, Error)>,
    /// Samples of the session that are on disk from earlier takes.
    pub received_samples: u64,
}

impl Sessions {
    pub fn new(services: SharedServices) -> Sessions {
        Sessions { services, live: Arc::default() }
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Begins or takes over a session.
    pub async fn open(&self, config: SessionConfig) -> Result<Opened> {
        let services = &self.services;
        if services.shutdown.started() {
            return Err(Error::new(Kind::Busy, "the daemon is going down").hint("reconnect in a few seconds"));
        }
        let live = self.enter(&config.id).await?;
        let guard = Entered { sessions: self.clone(), id: config.id.clone(), gone: live.gone };
        let voice = services.registry.voice().await?;
        // The format is tried before anything is written, so that a wrong one leaves no trace.
        let decoder = services.media.audio_decoder(config.format).await?;
        let mut unavailable = Vec::new();
        if let Err(error) = services.registry.installed(Task::Transcribe) {
            unavailable.push((Task::Transcribe, error));
        }
        let row = services.store.session_opened(&config.id, &config.device, &config.language).await?;
        let timeline = Timeline::of(&row);
        let received_samples = timeline.samples;
        services
            .hub
            .publish(Draft {
                kind: EventType::SessionStart,
                device: config.device.as_str().into(),
                session: Some(config.id.clone()),
                data: json!({
                    "language": config.language,
                    "encoding": config.format.encoding.name(),
                    "sample_rate": config.format.sample_rate,
                    "take": row.takes + 1,
                }),
            })
            .await;
        let (input, inbox) = mpsc::channel(INPUT_QUEUE);
        let (outbox, output) = mpsc::channel(OUTPUT_QUEUE);
        let task = SessionTask::new(Arc::clone(services), config, voice, timeline, inbox, outbox);
        let transcribes = unavailable.is_empty();
        let busy = services.shutdown.busy("session");
        tokio::spawn(async move {
            task.run(decoder, transcribes).await;
            drop(guard);
            drop(busy);
        });
        Ok(Opened { input, output, displaced: live.displaced, unavailable, received_samples })
    }

    /// Takes a place for the session; an older client of it is put down first.
    async fn enter(&self, id: &SessionId) -> Result<Live> {
        let deadline = tokio::time::Instant::now() + HAND_OVER;
        loop {
            let older = {
                let mut live = self.lock();
                match live.get(id) {
                    Some(older) => older.clone(),
                    None if live.len() >= self.services.max_sessions => {
                        return Err(Error::new(Kind::Busy, format!("{} sessions are live already", live.len()))
                            .hint("audio.max_sessions sets the limit; try again when one has ended"));
                    }
                    None => {
                        let entered = Live { displaced: CancellationToken::new(), gone: CancellationToken::new() };
                        live.insert(id.clone(), entered.clone());
                        emit(SessionsLive { count: live.len() });
                        return Ok(entered);
                    }
                }
            };
            older.displaced.cancel();
            if tokio::time::timeout_at(deadline, older.gone.cancelled()).await.is_err() {
                return Err(Error::new(Kind::Busy, "the session's older client is still being finished")
                    .hint("try again in a few seconds"));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Live>> {
        lock(&self.live)
    }
}

/// Gives the place back, also when opening fails half-way.
struct Entered {
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
