//! Starts the daemon for a test and ends it with the test, and speaks to it as a client does.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use vigia::api::client::{self, Received, WebSocket};

/// No test waits longer for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Daemon {
    child: Child,
    dir: TempDir,
    sets: Vec<String>,
    envs: Vec<(&'static str, OsString)>,
    pub(crate) http: SocketAddr,
    pub(crate) mqtt: Option<SocketAddr>,
}

impl Daemon {
    /// With the voice detector and the transcriber that says what it was given.
    pub(crate) fn start() -> Daemon {
        Daemon::start_with(&["tasks.transcribe.model=test-echo"])
    }

    pub(crate) fn start_with(sets: &[&str]) -> Daemon {
        Daemon::start_beside(sets, Vec::new())
    }

    /// … in another environment.
    pub(crate) fn start_beside(sets: &[&str], envs: Vec<(&'static str, OsString)>) -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), sets.iter().map(|&set| set.to_owned()).collect(), envs)
    }

    fn start_in(dir: TempDir, sets: Vec<String>, envs: Vec<(&'static str, OsString)>) -> Daemon {
        let announce = dir.path().join("announce.json");
        fs::remove_file(&announce).unwrap_or(());
        let mut command = vigia();
        command.arg("run").arg("--announce").arg(&announce).args(common_sets(dir.path())).envs(envs.iter().cloned());
        for set in &sets {
            command.args(["--set", set]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        let announced = loop {
            if let Ok(text) = fs::read(&announce) {
                break serde_json::from_slice::<Value>(&text).unwrap();
            }
            let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "the daemon ended:\n{}", log());
            assert!(begun.elapsed() < LIMIT, "the daemon did not become ready:\n{}", log());
            std::thread::yield_now();
        };
        let address = |key: &str| announced[key].as_str().map(|it| it.parse().unwrap());
        Daemon { child, sets, envs, http: address("http").unwrap(), mqtt: address("mqtt"), dir }
    }

    /// SIGKILL, then a new one on the same folder.
    pub(crate) fn kill_and_restart(mut self) -> Daemon {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        let (sets, envs) = (self.sets.clone(), self.envs.clone());
        drop(self);
        Daemon::start_in(dir, sets, envs)
    }

    /// … with another setting above its own.
    pub(crate) fn kill_and_restart_with(mut self, set: &str) -> Daemon {
        self.sets.push(set.to_owned());
        self.kill_and_restart()
    }

    /// A new one on the folder of one that has ended by itself.
    pub(crate) fn restart(mut self) -> Daemon {
        self.wait();
        self.kill_and_restart()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The exit code, once it has ended by itself.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < LIMIT, "the daemon did not end:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let (status, value) = client::get_json(self.http, path, None).await.unwrap();
        (status.as_u16(), value)
    }

    pub(crate) async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let headers = [("content-type", content_type)];
        let (status, body) = client::request(self.http, "POST", path, &headers, body.into()).await.unwrap();
        (status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(crate) async fn audio(&self, config: Value) -> Stream {
        let mut stream = self.socket("/ws/audio").await;
        stream.send(config).await;
        stream.until("config_ack").await;
        stream
    }

    pub(crate) async fn socket(&self, path: &str) -> Stream {
        Stream { socket: WebSocket::open(self.http, path, None).await.unwrap(), seen: Vec::new() }
    }

    /// The events of a session that has ended, from the journal.
    pub(crate) async fn replay(&self, session: &str) -> Vec<Value> {
        let ended =
            |replay: &Value| replay["events"].as_array().unwrap().last().is_some_and(|it| it["type"] == "session.end");
        let replay = self.eventually(&format!("/sessions/{session}/events?from=1"), ended).await;
        replay["events"].as_array().unwrap().clone()
    }

    /// Waits until `GET path` answers what is wanted.
    pub(crate) async fn eventually(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (_, value) = self.get(path).await;
            if wanted(&value) {
                return value;
            }
            assert!(begun.elapsed() < LIMIT, "{path} stayed {value}\n{}", self.log());
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log());
        }
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// The binary under test, without the settings of whoever runs the tests.
pub(crate) fn vigia() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vigia"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VIGIA__")) {
        command.env_remove(name);
    }
    command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
    command
}

/// A store of its own, free ports, and the library and weights that `scripts/test` fetches.
pub(crate) fn common_sets(dir: &Path) -> Vec<String> {
    let state = dir.join("state");
    let sets = [
        format!("store.dir={}", state.display()),
        format!("models.dir={}", root().join(".vigia/state/models").display()),
        format!("runtime.library={}", library().display()),
        "server.listen=127.0.0.1:0".to_owned(),
        "mqtt.listen=127.0.0.1:0".to_owned(),
        "device.profile=cpu".to_owned(),
    ];
    sets.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect()
}

fn library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH").map_or_else(|| root().join(".vigia/runtime/libonnxruntime.so"), PathBuf::from)
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> Vec<u8> {
    fs::read(root().join("tests/data").join(name)).unwrap()
}

/// The fixture sentence as 16 kHz PCM, its header taken off.
pub(crate) fn speech_pcm() -> Vec<u8> {
    data("speech/speech.wav")[44..].to_vec()
}

/// One WebSocket, with everything that has come on it.
pub(crate) struct Stream {
    socket: WebSocket,
    pub(crate) seen: Vec<Value>,
}

impl Stream {
    pub(crate) async fn send(&mut self, message: Value) {
        self.socket.send_json(&message).await.unwrap();
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket.send_text(text).await.unwrap();
    }

    pub(crate) async fn audio(&mut self, bytes: &[u8]) {
        self.socket.send_audio(Bytes::copy_from_slice(bytes)).await.unwrap();
    }

    pub(crate) async fn end(&mut self) {
        self.send(json!({ "type": "end_of_stream" })).await;
    }

    /// The next message; a test that expects the end asks for `closed`.
    pub(crate) async fn next(&mut self) -> Value {
        match self.socket.next().await.unwrap() {
            Received::Json(message) => {
                self.seen.push(message.clone());
                message
            }
            Received::Closed { code, reason } => panic!("closed with {code} {reason:?} after {:#?}", self.seen),
        }
    }

    /// Reads on to the first message of a type.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Reads on to the end; its code.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match self.socket.next().await.unwrap() {
                Received::Json(message) => self.seen.push(message),
                Received::Closed { code, .. } => return code,
            }
        }
    }

    pub(crate) async fn close(self) -> Vec<Value> {
        self.socket.close().await;
        self.seen
    }

    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.seen.iter().filter(|message| message["type"] == kind).collect()
    }
}
