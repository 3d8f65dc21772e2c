//! Servers that do a task instead of this box: OpenAI-compatible ones (Ollama, llama.cpp, vLLM, TensorRT Edge-LLM,
//! speaches, LocalAI) and those that speak KServe v2 (Triton). A [`Remote`] is one server of the settings; the engines
//! it gives share its breaker and its health.
//!
//! Never asks a server again once a part of its answer was delivered, never waits beyond the settings' time-out, never
//! believes an answer's size, and never sends anything to another place than the one that the settings name.

mod breaker;
mod kserve;
mod line;
mod link;
mod openai;
mod png;
mod server;
mod sse;
mod trouble;
mod wav;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    base::{Error, Result},
    engines::{
        Cancel, Chatter, Describer, Speaker, Transcriber,
        remote::{link::Link, server::Server},
    },
    settings::{self, Protocol},
};

pub use server::{RemoteHealth, RemoteState};

/// One server of the settings. Cheap to clone.
#[derive(Clone)]
pub struct Remote(Arc<Server>);

impl Remote {
    /// Reads the key and the certificates; asks the server nothing yet.
    pub fn open(name: &str, settings: &settings::Remote) -> Result<Remote> {
        let server = Arc::new(Server::new(name, settings)?);
        Link::open(&server)?;
        Ok(Remote(server))
    }

    /// `model` is the name that the server knows it by, here and below.
    pub fn chatter(&self, model: &str) -> Result<Box<dyn Chatter>> {
        let link = Link::open(&self.0)?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiChat::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveChat::new(link, model)),
        })
    }

    pub fn describer(&self, model: &str) -> Result<Box<dyn Describer>> {
        let link = Link::open(&self.0)?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiChat::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveChat::new(link, model)),
        })
    }

    pub fn transcriber(&self, model: &str) -> Result<Box<dyn Transcriber>> {
        let link = Link::open(&self.0)?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiTranscriber::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveTranscriber::new(link, model)),
        })
    }

    pub fn speaker(&self, model: &str) -> Result<Box<dyn Speaker>> {
        let link = Link::open(&self.0)?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiSpeaker::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveSpeaker::new(link, model)),
        })
    }

    pub fn health(&self) -> RemoteHealth {
        self.0.health()
    }

    /// Looks after the server's health on a thread of its own, for as long as the guard lives.
    pub fn spawn_probe(&self) -> Result<Probe> {
        let link = Link::open(&self.0)?;
        let every = Duration::from_secs(self.0.settings.health_secs);
        let cancel = Cancel::default();
        let (alive, ended) = mpsc::sync_channel(0);
        let looking = cancel.clone();
        std::thread::Builder::new()
            .name(format!("remote-{}", self.0.name))
            .spawn(move || {
                // The guard sends nothing: its end is what wakes this thread before its time.
                loop {
                    look(&link, &looking);
                    if ended.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(|error| Error::internal("no thread to look after a remote").cause(error))?;
        Ok(Probe { cancel, _alive: alive })
    }
}

/// Dropping it ends the looking.
pub struct Probe {
    cancel: Cancel,
    _alive: mpsc::SyncSender<()>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn look(link: &Link, cancel: &Cancel) {
    let server = &link.server;
    let path = match server.settings.protocol {
        Protocol::Openai => openai::HEALTH,
        Protocol::Kserve => kserve::HEALTH,
    };
    match link.probe(path, cancel) {
        Ok(latency) => server.seen_well(Some(latency)),
        Err(_) if cancel.is_cancelled() => (),
        Err(error) => {
            log::debug!(remote = server.name.as_str(); "{}", error.full());
            server.seen_ill(&error);
        }
    }
}
