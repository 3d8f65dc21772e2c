//! What a conversation was about: asked for by somebody, or by itself when a take of a session is over whose client has not
//! declined it. Whoever asks, it is published and kept with the session. Works behind all other work.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    base::{Error, Kind, Result},
    flow::{Draft, EventType, SessionId, Task, Wish},
    jobs::{Analysis, Conversation, analyse},
    publish::Published,
    sources::{Services, Sessions, SharedServices},
    store::Note,
};

/// A server that makes analyses may come up later than this box: pauses of one second, then twice as long each time …
const OWED_PAUSE: Duration = Duration::from_secs(1);
/// … to a minute, for a quarter of an hour in all.
const MAX_OWED_PAUSE: Duration = Duration::from_secs(60);
const OWED_TRIES: u32 = 20;

/// An analysis that everybody has been told of.
pub(super) struct Analysed {
    pub(super) analysis: Analysis,
    pub(super) published: Arc<Published>,
}

/// Of a session that is live: what was said so far is analysed whenever a take is over, and anew when more was said.
pub(super) enum Analysing {
    Idle,
    /// More is being said than was analysed.
    Due,
    Running(AbortOnDropHandle<Result<Analysed>>),
}

impl Sessions {
    /// Dropping the future ends the work.
    pub async fn analyse(&self, id: &SessionId) -> Result<Analysis> {
        Ok(of_session(self.services(), id).await?.analysis)
    }
}

impl Sessions {
    /// Makes the analyses that an earlier daemon owes of sessions that are over, one after the other. What makes them may
    /// begin to work later than this box.
    pub(super) async fn pay(&self, owed: BTreeSet<SessionId>) {
        let services = self.services();
        for id in owed {
            let mut pause = OWED_PAUSE;
            for tries in 1.. {
                let done = Analysing::start(services, &id).done().await;
                let error = match done {
                    Err(error) if tries < OWED_TRIES && passes(&error) && !services.shutdown.started() => error,
                    done => {
                        done.map(drop).unwrap_or_else(
                            |error| log::error!(session = id.as_str(); "no analysis: {}", error.full()),
                        );
                        break;
                    }
                };
                log::debug!(session = id.as_str(); "no analysis yet: {}", error.full());
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (2 * pause).min(MAX_OWED_PAUSE),
                    () = services.shutdown.wait() => return,
                }
            }
            if !services.keep_audio {
                self.forget_audio(&id);
            }
        }
    }
}

impl Analysing {
    /// Whether a session is analysed without being asked; the error says why it cannot be.
    pub(super) fn may(services: &Services, wish: Wish) -> Result<()> {
        match wish {
            Wish::No => Err(Error::invalid("nobody asked for an analysis")),
            Wish::IfPossible | Wish::Yes => services.registry.installed(Task::Chat),
        }
    }

    pub(super) fn start(services: &SharedServices, id: &SessionId) -> Analysing {
        let (services, id) = (SharedServices::clone(services), id.clone());
        Analysing::Running(AbortOnDropHandle::new(tokio::spawn(async move {
            let done = tokio::select! {
                biased;
                // It is still owed: the next daemon begins anew.
                () = services.shutdown.wait() => {
                    return Err(Error::new(Kind::Busy, "the daemon is going down"));
                }
                done = of_session(&services, &id) => done,
            };
            let will_be_none = done.as_ref().is_err_and(|error| !passes(error));
            if will_be_none && let Err(error) = services.store.note(Note::AnalysisDone(id.clone())).await {
                log::error!(session = id.as_str(); "{}", error.full());
            }
            done
        })))
    }

    /// More is about to be said: what is being found out would not be of all of it.
    pub(super) fn put_off(&mut self) {
        if let Analysing::Running(_) = self {
            *self = Analysing::Due;
        }
    }

    pub(super) fn is_due(&self) -> bool {
        matches!(self, Analysing::Due)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Analysing::Running(_))
    }

    /// What came of it; for ever pending where nothing is being analysed. Giving up the wait loses nothing.
    pub(super) async fn done(&mut self) -> Result<Analysed> {
        let Analysing::Running(work) = self else { return std::future::pending().await };
        let done = work.await;
        *self = Analysing::Idle;
        done.unwrap_or_else(|error| Err(Error::internal("an analysis crashed").cause(error)))
    }
}

/// Whether another time may do: the model is not there now, or has too much to do.
fn passes(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Busy | Kind::Timeout | Kind::OverBudget)
}

async fn of_session(services: &Services, id: &SessionId) -> Result<Analysed> {
    services.registry.installed(Task::Chat)?;
    // The text that was just published is part of it.
    services.store.settled().await;
    let row = services.store.session(id).await?;
    let row = row.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no session {id}")))?;
    let segments = services.store.transcript(id).await?;
    let Some(spoken) = segments.iter().find(|segment| !segment.text.trim().is_empty()) else {
        return Err(Error::invalid("this session has no text yet").hint("speak first; GET /sessions/{id} shows it"));
    };
    let language = [&row.language, &spoken.language].into_iter().find(|it| !it.is_empty() && *it != "auto");
    let conversation = Conversation {
        session_id: id.to_string(),
        language: language.map_or("es", String::as_str).to_owned(),
        engine: services.chat_model.clone(),
        segments,
    };
    let analysis = analyse(&services.queue, conversation).await?;
    let (kind, device) = (EventType::SessionAnalysis, row.device.as_str().into());
    let draft = Draft { kind, device, session: Some(id.clone()), data: json!(analysis) };
    let published = services.hub.publish_with(draft, vec![Note::AnalysisDone(id.clone())]).await;
    Ok(Analysed { analysis, published })
}
