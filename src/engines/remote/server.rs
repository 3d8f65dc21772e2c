//! One server as all who ask it share it: where it is, whether it is left alone, and how it was last seen.
//!
//! Holds no key: that is read from its file for every request, so that a new one needs no restart.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    base::{Error, Kind, Result, lock},
    engines::remote::{
        breaker::{Breaker, Refusal},
        seen::{About, Seen},
        trouble::Trouble,
    },
    flow::Task,
    settings::{self, ServerUrl},
};

const MAX_KEY_BYTES: u64 = 8 << 10;

pub(super) struct Server {
    pub(super) name: String,
    pub(super) url: ServerUrl,
    pub(super) settings: settings::Remote,
    breaker: Mutex<Breaker>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteState {
    /// Nobody has looked yet.
    Unknown,
    Ready,
    /// It cannot be reached, is not well, or does not do what a task wants of it.
    Failing,
    /// It failed too often, and is left alone for a while.
    Resting,
}

/// What `/api/health` says of a server. The address holds no user and no key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RemoteHealth {
    pub name: String,
    pub url: String,
    pub state: RemoteState,
    pub reason: Option<String>,
    /// Since it last answered well.
    pub last_ok_secs: Option<u64>,
    /// Of the last look.
    pub latency_ms: Option<u64>,
}

impl Server {
    pub(super) fn new(name: &str, settings: &settings::Remote) -> Result<Server> {
        let url = settings.url.parse().map_err(|expected| Error::invalid(format!("remotes.{name}.url: {expected}")))?;
        let breaker = Breaker::new(settings.breaker_failures, Duration::from_secs(settings.breaker_open_secs));
        Ok(Server {
            name: name.to_owned(),
            url,
            settings: settings.clone(),
            breaker: Mutex::new(breaker),
            seen: Mutex::default(),
        })
    }

    /// The key of the settings' file, if they name one.
    pub(super) fn key(&self) -> Result<Option<String>> {
        let file = &self.settings.key_file;
        if file.is_empty() {
            return Ok(None);
        }
        let wrong = |what: &str| {
            Error::unavailable(format!("the key of the remote {} in {file} {what}", self.name))
                .hint(format!("put the key, alone, into the file that remotes.{}.key_file names", self.name))
        };
        let found = fs::metadata(file).map_err(|error| wrong("cannot be read").cause(error))?;
        // A pipe would be waited for.
        if !found.is_file() {
            return Err(wrong("is no file"));
        }
        if found.len() > MAX_KEY_BYTES {
            return Err(wrong("is too long for a key"));
        }
        let text = fs::read_to_string(file).map_err(|error| wrong("cannot be read").cause(error))?;
        let key = text.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            return Err(wrong("is not one word of plain letters"));
        }
        Ok(Some(key.to_owned()))
    }

    /// Lets a request go, unless the server is being left alone.
    pub(super) fn admit(&self, about: About) -> Result<Pass<'_>> {
        let now = Instant::now();
        let admitted = lock(&self.breaker).admit(now);
        match admitted {
            Ok(()) => Ok(Pass { server: self, about, told: false }),
            Err(refusal) => Err(self.left_alone(&refusal)),
        }
    }

    fn left_alone(&self, refusal: &Refusal) -> Error {
        let when = match refusal {
            Refusal::Resting(time) => format!("in {} s", time.as_secs_f64().ceil()),
            Refusal::Trying => "right now".to_owned(),
        };
        let error = Error::unavailable(format!("the remote {} failed too often and is left alone", self.name));
        error.hint(format!("it is tried again {when}; see remotes.{}.breaker_open_secs", self.name))
    }

    /// The log is told of each reason once, until it is well again.
    pub(super) fn seen_ill(&self, about: About, error: &Error) {
        let is_news = lock(&self.seen).ill(about, error);
        let level = if is_news { log::Level::Warn } else { log::Level::Debug };
        match about {
            Some(task) => log::log!(level, remote = self.name.as_str(); "{}: {}", task.name(), error.full()),
            None => log::log!(level, remote = self.name.as_str(); "{}", error.full()),
        }
    }

    /// What a look has come to.
    pub(super) fn looked(&self, looked: Result<Duration, Trouble>) {
        match looked {
            Ok(latency) => {
                if lock(&self.seen).looked_well(Instant::now(), latency) {
                    self.log_well(None);
                }
            }
            // It does its jobs: it just has no answer to this question.
            Err(trouble) if trouble.reached && !trouble.ill && lock(&self.seen).is_proven() => (),
            Err(trouble) => self.seen_ill(None, &trouble.error),
        }
    }

    fn done(&self, about: About) {
        let news = lock(&self.seen).done(about, Instant::now());
        news.into_iter().for_each(|about| self.log_well(about));
    }

    fn log_well(&self, about: About) {
        let remote = self.name.as_str();
        match about {
            Some(task) => log::info!(remote; "{}: the remote {remote} does it again", task.name()),
            None => log::info!(remote; "the remote {remote} answers again"),
        }
    }

    pub(super) fn health(&self) -> RemoteHealth {
        let now = Instant::now();
        let alone = self.alone(now);
        let seen = lock(&self.seen);
        let reason = seen.reason();
        let state = match (&alone, &reason) {
            (Some(_), _) => RemoteState::Resting,
            (None, Some(_)) => RemoteState::Failing,
            (None, None) if seen.is_known() => RemoteState::Ready,
            (None, None) => RemoteState::Unknown,
        };
        RemoteHealth {
            name: self.name.clone(),
            url: self.url.to_string(),
            state,
            reason: both(alone, reason),
            last_ok_secs: seen.last_ok.map(|at| now.saturating_duration_since(at).as_secs()),
            latency_ms: seen.latency.map(|latency| latency.as_millis() as u64),
        }
    }

    /// Why the jobs of a task are not served now, as far as is known.
    pub(super) fn trouble(&self, task: Task) -> Option<String> {
        let alone = self.alone(Instant::now());
        both(alone, lock(&self.seen).reason_for(task).map(str::to_owned))
    }

    fn alone(&self, now: Instant) -> Option<String> {
        let refusal = lock(&self.breaker).refusal(now);
        refusal.map(|refusal| self.left_alone(&refusal).full())
    }
}

fn both(alone: Option<String>, last: Option<String>) -> Option<String> {
    match (alone, last) {
        (Some(alone), Some(last)) => Some(format!("{alone}: {last}")),
        (alone, last) => alone.or(last),
    }
}

/// A request on its way. Dropped without a word, it was given up, or shows nothing of the server.
pub(super) struct Pass<'a> {
    server: &'a Server,
    about: About,
    told: bool,
}

impl Pass<'_> {
    pub(super) fn succeeded(mut self) {
        self.told = true;
        lock(&self.server.breaker).succeeded();
        self.server.done(self.about);
    }

    /// The server said no, or was not even asked.
    pub(super) fn refused(mut self, trouble: &Trouble) {
        if trouble.reached {
            self.told = true;
            lock(&self.server.breaker).succeeded();
        }
        // The other kinds are about this one request; this one meets whoever asks next.
        if trouble.error.kind() == Kind::Unavailable {
            self.note(trouble);
        }
    }

    pub(super) fn failed(mut self, trouble: &Trouble) {
        self.told = true;
        lock(&self.server.breaker).failed(Instant::now());
        self.note(trouble);
    }

    fn note(&self, trouble: &Trouble) {
        self.server.seen_ill(self.about.filter(|_| trouble.reached), &trouble.error);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.told {
            lock(&self.server.breaker).gave_up(Instant::now());
        }
    }
}
