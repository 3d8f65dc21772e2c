//! Asks one server: the key, the tries and their pauses, the deadline over all of them, and answers that are never
//! read beyond their limit. What is said is the protocols' affair.
//!
//! Follows no redirect and uses no proxy: what people say goes to the server that the settings name, or nowhere.

use std::{
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, Response, header},
    tls::{RootCerts, TlsConfig},
    unversioned::transport::{Connector, RustlsConnector},
};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel,
        remote::{
            line::{Line, Stop, Watch},
            seen::About,
            server::Server,
            trouble::{Declined, Trouble, back_off},
        },
    },
    models::hub::certificates::believed,
};

/// As much of a refusal as is read for its reason.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
/// A server asked for its health has nothing to compute.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// How long is waited, over all tries, because a server asks for it. Whoever asked can wait better than we, for whom
/// everybody else waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The connections of one engine to its server.
pub(super) struct Link {
    pub(super) server: Arc<Server>,
    /// None asks for the server's health alone.
    about: About,
    agent: Agent,
    watch: Arc<Watch>,
}

/// One request. The path begins with a slash and follows the server's address.
pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    /// None: a question without a body.
    pub(super) body: Option<Content>,
}

pub(super) struct Content {
    pub(super) kind: String,
    pub(super) bytes: Vec<u8>,
    pub(super) headers: Vec<(&'static str, String)>,
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'a str) -> Request<'a> {
        Request { path, body: None }
    }

    pub(super) fn post(path: &'a str, kind: &str, bytes: Vec<u8>) -> Request<'a> {
        Request { path, body: Some(Content { kind: kind.to_owned(), bytes, headers: Vec::new() }) }
    }

    pub(super) fn json(path: &'a str, value: &serde_json::Value) -> Request<'a> {
        Request::post(path, "application/json", value.to_string().into_bytes())
    }
}

impl Link {
    pub(super) fn open(server: &Arc<Server>, about: About) -> Result<Link> {
        let settings = &server.settings;
        let watch = Arc::new(Watch::new());
        let line = Line {
            host: server.url.host().to_owned(),
            port: server.url.port(),
            only_private: !server.url.is_encrypted() && !settings.insecure,
            connect_timeout: settings.connect_timeout(),
            watch: Arc::clone(&watch),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(trusted(server)?).build())
            .user_agent(concat!("vigia/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::with_parts(config, line.clone().chain(RustlsConnector::default()), line);
        Ok(Link { server: Arc::clone(server), about, agent, watch })
    }

    /// Asks, and hands the answer to `take`; again after a pause where that may help, until something was delivered.
    pub(super) fn ask<T>(
        &self,
        request: &Request<'_>,
        cancel: &Cancel,
        mut take: impl FnMut(&mut Answer<'_>) -> Result<T, Trouble>,
    ) -> Result<T> {
        self.watch.begin(cancel, Instant::now() + self.server.settings.timeout());
        let pass = self.server.admit(self.about)?;
        let mut patience = PATIENCE;
        for tries in 0.. {
            let (mut delivered, mut listened) = (false, Duration::ZERO);
            let outcome = self.send(request).and_then(|mut answer| {
                let began = Instant::now();
                let taken = take(&mut answer);
                delivered = answer.delivered;
                listened = began.elapsed().saturating_sub(answer.awaited);
                taken
            });
            let trouble = match outcome {
                Ok(value) => {
                    // A question before a job shows nothing of the job: its pass is dropped without a word.
                    if request.body.is_some() {
                        pass.succeeded();
                    }
                    return Ok(value);
                }
                Err(trouble) => trouble,
            };
            let (pause, still_patient) = match trouble.pause {
                Some(asked) => (asked, patience.checked_sub(asked)),
                None => (back_off(tries, fastrand::f64()), Some(patience)),
            };
            let again = trouble.passes && !delivered && tries < self.server.settings.retries;
            if let (true, Some(left)) = (again && pause < self.watch.left(), still_patient) {
                patience = left;
                log::debug!(remote = self.server.name.as_str(), tries; "{}", trouble.error.full());
                self.watch.pause(pause);
                if self.watch.stop().is_none() {
                    continue;
                }
            }
            let stop = self.watch.stop();
            if stop == Some(Stop::Late) && listened > self.server.settings.timeout() / 2 {
                return Err(self.listened_slowly());
            }
            let trouble = self.stopped(trouble, stop);
            match stop {
                // The pass is dropped without a word: this says nothing of the server.
                Some(Stop::Cancelled) => (),
                None if !trouble.ill => pass.refused(&trouble),
                _ => pass.failed(&trouble),
            }
            return Err(trouble.error);
        }
        Err(Error::internal("a remote was asked without an end"))
    }

    /// Whoever takes the answer took most of the time: that says nothing of the server either.
    fn listened_slowly(&self) -> Error {
        let Server { name, .. } = &*self.server;
        Error::new(Kind::Timeout, format!("what the remote {name} answers is taken too slowly"))
            .hint(format!("take it faster, or see remotes.{name}.timeout_secs"))
    }

    /// The jobs of this link's task do not go, as the answer to a question has shown.
    pub(super) fn note(&self, error: &Error) {
        self.server.seen_ill(self.about, error);
    }

    /// Asks once whether the server is well; the breaker has no say in it and hears nothing of it.
    pub(super) fn probe(&self, path: &str, cancel: &Cancel) -> Result<Duration, Trouble> {
        let began = Instant::now();
        self.watch.begin(cancel, began + PROBE_TIME);
        match self.send(&Request::get(path)) {
            Ok(_) => Ok(began.elapsed()),
            Err(trouble) => Err(self.stopped(trouble, self.watch.stop())),
        }
    }

    /// What ended because it was stopped says so.
    fn stopped(&self, trouble: Trouble, stop: Option<Stop>) -> Trouble {
        let Server { name, .. } = &*self.server;
        let error = match stop {
            None => return trouble,
            Some(Stop::Cancelled) => Error::new(Kind::Cancelled, "nobody waits for it any more"),
            Some(Stop::Late) => {
                let error = Error::new(Kind::Timeout, format!("the remote {name} did not answer in time"));
                match self.about {
                    Some(_) => error.hint(format!("see remotes.{name}.timeout_secs")),
                    None => error.hint("it was asked for its health alone: the server's own log says more"),
                }
            }
        };
        Trouble { error, ..trouble }
    }

    /// One request to its answer. Anything but success is trouble.
    fn send(&self, request: &Request<'_>) -> Result<Answer<'_>, Trouble> {
        let address = format!("{}{}", self.server.url, request.path);
        let key = self.server.key().map_err(|error| Trouble::no(error).unreached())?.map(|key| format!("Bearer {key}"));
        let response = match &request.body {
            Some(content) => {
                let mut asked = self.agent.post(&address).content_type(content.kind.as_str());
                if let Some(key) = key {
                    asked = asked.header(header::AUTHORIZATION, key);
                }
                for (name, value) in &content.headers {
                    asked = asked.header(*name, value);
                }
                asked.send(content.bytes.as_slice())
            }
            None => {
                let mut asked = self.agent.get(&address);
                if let Some(key) = key {
                    asked = asked.header(header::AUTHORIZATION, key);
                }
                asked.call()
            }
        };
        let response = response.map_err(|error| self.server.unanswered(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        let (head, body) = response.into_parts();
        let left = self.server.settings.max_answer.get();
        let body = body.into_reader();
        let awaited = Duration::ZERO;
        Ok(Answer { server: &self.server, headers: head.headers, body, left, awaited, delivered: false })
    }

    fn refused(&self, mut response: Response<Body>) -> Trouble {
        let retry_after = text_of(response.headers(), header::RETRY_AFTER.as_str())
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs);
        let mut body = Vec::new();
        // A reason that cannot be read is no reason; the status stands.
        let read = response.body_mut().as_reader().take(MAX_REFUSAL_BYTES).read_to_end(&mut body);
        if read.is_err() {
            body.clear();
        }
        let location = text_of(response.headers(), header::LOCATION.as_str());
        self.server.refused(&Declined { status: response.status(), retry_after, location, body: &body })
    }
}

/// What a server answers, while it comes.
pub(super) struct Answer<'a> {
    pub(super) server: &'a Server,
    headers: HeaderMap,
    body: BodyReader<'static>,
    left: u64,
    /// How long it was waited for.
    awaited: Duration,
    delivered: bool,
}

impl Answer<'_> {
    /// Something of the answer went on to the one who waits: it can no more be had anew.
    pub(super) fn deliver(&mut self) {
        self.delivered = true;
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// `audio/wav` of `audio/wav; codec=1`.
    pub(super) fn kind(&self) -> &str {
        let kind = self.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
        kind.split(';').next().unwrap_or(kind).trim()
    }

    /// Zero at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let began = Instant::now();
        let read = self.body.read(buffer);
        self.awaited += began.elapsed();
        let count = read.map_err(|error| self.server.cut(error))?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| self.server.too_long())?;
        Ok(count)
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            match self.read(&mut chunk)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }

    pub(super) fn json<T: DeserializeOwned>(&mut self) -> Result<T, Trouble> {
        if !self.kind().is_empty() && !self.kind().ends_with("json") {
            return Err(self.wrong_kind("JSON"));
        }
        let bytes = self.bytes()?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_json(error))
    }

    pub(super) fn wrong_kind(&self, expected: &str) -> Trouble {
        Trouble::lasting(self.server.strange(&format!("answers with {:?} instead of {expected}", self.kind())))
    }

    pub(super) fn not_json(&self, error: serde_json::Error) -> Trouble {
        let error = self.server.clean(&error.to_string());
        Trouble::lasting(self.server.strange("answers with JSON that is broken or says something else").cause(error))
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whom to believe: the settings' certificates, else those that browsers believe.
pub(super) fn trusted(server: &Server) -> Result<RootCerts> {
    let file = &server.settings.ca_file;
    if file.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    believed(Path::new(file), |what| {
        Error::unavailable(format!("the certificates of the remote {} in {file} {what}", server.name))
            .hint(format!("remotes.{}.ca_file is a PEM file with certificates", server.name))
    })
}
