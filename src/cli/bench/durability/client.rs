//! The client: `vigia stream` as a process of its own, and what it prints.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    base::{Error, Result},
    flow::SAMPLE_RATE_HZ,
};

pub(super) struct Client {
    process: Process,
    reader: JoinHandle<Heard>,
    /// Each sample up to which its audio is acknowledged; closed when it has said its last.
    acknowledged: Receiver<u64>,
}

/// Ends with whoever waits for it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap_or(());
        self.0.wait().map(drop).unwrap_or(());
    }
}

/// What the client was told.
#[derive(Debug, Default)]
pub(super) struct Heard {
    result: Option<Value>,
    pub(super) connections: usize,
    /// Acknowledgements, or answers to a resume, below one before.
    pub(super) taken_back: usize,
    pub(super) repeated: usize,
    pub(super) changed: usize,
    /// Partial and final texts that do not begin with what was committed before.
    pub(super) revised: usize,
    acknowledged: u64,
    segments: HashMap<u64, Value>,
    /// Of segments whose final text has not come.
    committed: HashMap<u64, String>,
}

impl Client {
    pub(super) fn start(recording: &Path, address: SocketAddr, pace: f64, session: &str) -> Result<Client> {
        let failed = |error| Error::internal("the bench's client does not start").cause(error);
        let executable = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(executable)
            .arg("stream")
            .arg(recording)
            .arg("--json")
            .arg("--url")
            .arg(format!("http://{address}"))
            .args(["--pace", &pace.to_string(), "--session", session, "--device", "bench"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let lines = child.stdout.take().ok_or_else(|| Error::internal("the client has no output"))?;
        let (sender, acknowledged) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut heard = Heard::default();
            for line in BufReader::new(lines).lines().map_while(std::result::Result::ok) {
                if let Ok(message) = serde_json::from_str::<Value>(&line) {
                    heard.message(&message);
                    if heard.connections > 0 {
                        // In the end nobody waits for it any more.
                        sender.send(heard.acknowledged).unwrap_or(());
                    }
                }
            }
            drop(sender);
            heard
        });
        Ok(Client { process: Process(child), reader, acknowledged })
    }

    /// Until it is connected and so much of its audio is acknowledged. False: it has ended, or does not get on.
    pub(super) fn wait_until(&self, sample: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.acknowledged.recv_timeout(left) {
                Ok(acknowledged) if acknowledged >= sample => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// All that it was told, once it has ended.
    pub(super) fn finish(mut self) -> Result<Heard> {
        let heard = self.reader.join().map_err(|_| Error::internal("the reader of the client crashed"))?;
        let status = self.process.0.wait().map_err(|error| Error::internal("the client is lost").cause(error))?;
        if !status.success() {
            return Err(Error::internal(format!("the client ended with {status}")));
        }
        Ok(heard)
    }
}

impl Heard {
    fn message(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("config_ack") => {
                self.connections += 1;
                self.acknowledged(message);
            }
            Some("ack") => self.acknowledged(message),
            Some("partial_result") => {
                let id = message["segment"].as_u64().unwrap_or(u64::MAX);
                let now = message["committed"].as_str().unwrap_or_default();
                let before = self.committed.entry(id).or_default();
                self.revised += usize::from(!now.starts_with(&**before));
                now.clone_into(before);
            }
            Some("segment_result") => {
                let segment = &message["segment"];
                let id = segment["id"].as_u64().unwrap_or(u64::MAX);
                let committed = self.committed.remove(&id).unwrap_or_default();
                let text = segment["text"].as_str().unwrap_or_default();
                self.revised += usize::from(!text.starts_with(&committed));
                match self.segments.get(&id) {
                    Some(known) if known == segment => self.repeated += 1,
                    Some(_) => self.changed += 1,
                    None => drop(self.segments.insert(id, segment.clone())),
                }
            }
            Some("final_result") => self.result = Some(message.clone()),
            _ => {}
        }
    }

    fn acknowledged(&mut self, message: &Value) {
        let received = message["received_samples"].as_u64().unwrap_or(0);
        if received < self.acknowledged {
            self.taken_back += 1;
        }
        self.acknowledged = received;
    }

    /// Samples that the final result speaks of.
    pub(super) fn samples(&self) -> u64 {
        let secs = self.result.as_ref().and_then(|it| it["duration"].as_f64()).unwrap_or(0.0);
        (secs * f64::from(SAMPLE_RATE_HZ)).round() as u64
    }

    pub(super) fn text(&self) -> &str {
        self.result.as_ref().and_then(|it| it["text"].as_str()).unwrap_or_default()
    }

    pub(super) fn segments(&self) -> &[Value] {
        self.result.as_ref().and_then(|it| it["segments"].as_array()).map_or(&[], Vec::as_slice)
    }
}
