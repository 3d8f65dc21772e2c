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
    base::{Error, Result, lock},
    engines::remote::breaker::{Breaker, Refusal},
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

/// How a server was last seen.
#[derive(Default)]
struct Seen {
    /// None: nobody has looked yet.
    is_well: Option<bool>,
    reason: Option<String>,
    last_ok: Option<Instant>,
    latency: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteState {
    /// Nobody has looked yet.
    Unknown,
    Ready,
    /// It cannot be reached, or is not well.
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
        let server = Server {
            name: name.to_owned(),
            url,
            settings: settings.clone(),
            breaker: Mutex::new(breaker),
            seen: Mutex::default(),
        };
        server.key()?;
        Ok(server)
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
        let size = fs::metadata(file).map_err(|error| wrong("cannot be read").cause(error))?.len();
        if size > MAX_KEY_BYTES {
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
    pub(super) fn admit(&self) -> Result<Pass<'_>> {
        let now = Instant::now();
        let admitted = lock(&self.breaker).admit(now);
        match admitted {
            Ok(()) => Ok(Pass { server: self, told: false }),
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

    pub(super) fn seen_well(&self, latency: Option<Duration>) {
        let mut seen = lock(&self.seen);
        let latency = latency.or(seen.latency);
        let was_ill = seen.is_well == Some(false);
        *seen = Seen { is_well: Some(true), reason: None, last_ok: Some(Instant::now()), latency };
        drop(seen);
        if was_ill {
            log::info!(remote = self.name.as_str(); "the remote {} answers again", self.name);
        }
    }

    pub(super) fn seen_ill(&self, error: &Error) {
        let mut seen = lock(&self.seen);
        let is_news = seen.is_well != Some(false);
        seen.is_well = Some(false);
        seen.reason = Some(error.full());
        drop(seen);
        // Once, and not at every look.
        if is_news {
            log::warn!(remote = self.name.as_str(); "{}", error.full());
        }
    }

    pub(super) fn health(&self) -> RemoteHealth {
        let now = Instant::now();
        let refusal = lock(&self.breaker).refusal(now);
        let seen = lock(&self.seen);
        let state = match (&refusal, seen.is_well) {
            (Some(_), _) => RemoteState::Resting,
            (None, None) => RemoteState::Unknown,
            (None, Some(true)) => RemoteState::Ready,
            (None, Some(false)) => RemoteState::Failing,
        };
        RemoteHealth {
            name: self.name.clone(),
            url: self.url.to_string(),
            state,
            reason: match (refusal.map(|refusal| self.left_alone(&refusal).full()), &seen.reason) {
                (Some(alone), Some(last)) => Some(format!("{alone}: {last}")),
                (alone, last) => alone.or_else(|| last.clone()),
            },
            last_ok_secs: seen.last_ok.map(|at| now.saturating_duration_since(at).as_secs()),
            latency_ms: seen.latency.map(|latency| latency.as_millis() as u64),
        }
    }
}

/// A request on its way. Dropped without a word, it was given up.
pub(super) struct Pass<'a> {
    server: &'a Server,
    told: bool,
}

impl Pass<'_> {
    pub(super) fn succeeded(mut self) {
        self.told = true;
        lock(&self.server.breaker).succeeded();
        self.server.seen_well(None);
    }

    /// The server answered, and said no.
    pub(super) fn refused(mut self) {
        self.told = true;
        lock(&self.server.breaker).succeeded();
    }

    pub(super) fn failed(mut self, error: &Error) {
        self.told = true;
        lock(&self.server.breaker).failed(Instant::now());
        self.server.seen_ill(error);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.told {
            lock(&self.server.breaker).gave_up(Instant::now());
        }
    }
}
