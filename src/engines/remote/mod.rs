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
mod seen;
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
        remote::{
            link::{Link, trusted},
            server::Server,
            trouble::Trouble,
        },
    },
    flow::Task,
    settings::{self, Protocol},
};

pub use server::{RemoteHealth, RemoteState};

/// One server of the settings. Cheap to clone.
#[derive(Clone)]
pub struct Remote(Arc<Server>);

impl Remote {
    /// Reads no file and asks the server nothing yet: what is missing then is told to whoever asks, and may come later.
    pub fn open(name: &str, settings: &settings::Remote) -> Result<Remote> {
        Ok(Remote(Arc::new(Server::new(name, settings)?)))
    }

    /// What its settings name and the disk does not have, by key.
    pub fn faults(&self) -> Vec<(&'static str, Error)> {
        let key = self.0.key().err().map(|error| ("key_file", error));
        let certificates = trusted(&self.0).err().map(|error| ("ca_file", error));
        key.into_iter().chain(certificates).collect()
    }

    /// `model` is the name that the server knows it by, here and below.
    pub fn chatter(&self, model: &str) -> Result<Box<dyn Chatter>> {
        let link = Link::open(&self.0, Some(Task::Chat))?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiChat::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveChat::new(link, model)),
        })
    }

    pub fn describer(&self, model: &str) -> Result<Box<dyn Describer>> {
        let link = Link::open(&self.0, Some(Task::Describe))?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiChat::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveChat::new(link, model)),
        })
    }

    pub fn transcriber(&self, model: &str) -> Result<Box<dyn Transcriber>> {
        let link = Link::open(&self.0, Some(Task::Transcribe))?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiTranscriber::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveTranscriber::new(link, model)),
        })
    }

    pub fn speaker(&self, model: &str) -> Result<Box<dyn Speaker>> {
        let link = Link::open(&self.0, Some(Task::Speak))?;
        Ok(match self.0.settings.protocol {
            Protocol::Openai => Box::new(openai::OpenAiSpeaker::new(link, model)),
            Protocol::Kserve => Box::new(kserve::KserveSpeaker::new(link, model)),
        })
    }

    pub fn health(&self) -> RemoteHealth {
        self.0.health()
    }

    /// Why the jobs of a task are not served now, as far as is known.
    pub fn trouble(&self, task: Task) -> Option<String> {
        self.0.trouble(task)
    }

    /// Asks once how it is, for some seconds at most.
    pub fn look(&self) {
        look(&self.0, &Cancel::default());
    }

    /// Looks after the server's health on a thread of its own, for as long as the guard lives.
    pub fn spawn_probe(&self) -> Result<Probe> {
        let server = Arc::clone(&self.0);
        let every = Duration::from_secs(self.0.settings.health_secs);
        let cancel = Cancel::default();
        let (alive, ended) = mpsc::sync_channel(0);
        let looking = cancel.clone();
        std::thread::Builder::new()
            .name(format!("remote-{}", self.0.name))
            .spawn(move || {
                // The guard sends nothing: its end is what wakes this thread before its time.
                loop {
                    look(&server, &looking);
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

fn look(server: &Arc<Server>, cancel: &Cancel) {
    let path = match server.settings.protocol {
        Protocol::Openai => openai::HEALTH,
        Protocol::Kserve => kserve::HEALTH,
    };
    // With the certificates as they are now.
    let link = Link::open(server, None).map_err(|error| Trouble::no(error).unreached());
    let looked = link.and_then(|link| link.probe(path, cancel));
    if !cancel.is_cancelled() {
        server.looked(looked);
    }
}
