//! A server on a free port with a store of its own, and clients that say exactly what a test wants said.

mod access;
mod http;
mod limits;
mod sockets;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::{
    api::{self, Context, RunningProfile},
    base::Shutdown,
    device::{Facts, MemoryKind},
    engines::{Hosting, Places, Registry},
    jobs::{Queue, QueueLimits},
    media::Media,
    publish::{Hub, MqttStatus},
    settings::{self, Settings},
    sources::{self, Services, Sessions},
    store::{AudioLog, Store},
    telemetry::Metrics,
};

/// No test waits longer than this for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) type Client = WebSocketStream<TcpStream>;

/// Stops with its drop.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) context: Arc<Context>,
    pub(crate) mqtt: watch::Sender<MqttStatus>,
    _dir: TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The error's code, after checking that the body is an error as the protocol wants it.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        assert_eq!(body["detail"], body["error"]["message"]);
        assert_eq!(body["error"]["request_id"].as_str().unwrap().len(), 26);
        if let Some(id) = self.headers.get("x-request-id") {
            assert_eq!(body["error"]["request_id"], id.as_str());
        }
        body["error"]["code"].as_str().unwrap().to_owned()
    }
}

impl Server {
    pub(crate) async fn start(change: impl FnOnce(&mut Settings)) -> Server {
        Server::with_hub_capacity(1024, change).await
    }

    pub(crate) async fn with_hub_capacity(capacity: usize, change: impl FnOnce(&mut Settings)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut settings: Settings = toml::from_str(settings::DEFAULTS).unwrap();
        settings.node.name = "test".to_owned();
        settings.server.listen = "127.0.0.1:0".parse().unwrap();
        change(&mut settings);
        let store = Store::open(dir.path()).unwrap();
        settings.store.dir = dir.path().display().to_string();
        let (mqtt, mqtt_status) = watch::channel(MqttStatus::Off);
        let hub = Hub::new("test".into(), store.clone(), capacity);
        let places = Places { hosting: Hosting::Threads, ..Places::new(&settings, dir.path(), dir.path()) };
        let registry = Registry::new(&settings, places);
        registry.begin(&facts());
        let queue = Queue::new(QueueLimits { live: 4, interactive: 4, batch: 4 });
        let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision).unwrap();
        let shutdown = Shutdown::new();
        let sessions = Sessions::new(Arc::new(Services {
            media: media.clone(),
            registry: registry.clone(),
            queue: queue.clone(),
            hub: hub.clone(),
            store: store.clone(),
            voices_dir: dir.path().to_owned(),
            audio_log: AudioLog::open(dir.path()).unwrap(),
            shutdown: shutdown.clone(),
            rules: sources::speech_rules(&settings.vad),
            max_sessions: settings.audio.max_sessions,
            partials: sources::partial_rules(&settings.audio),
            resume_window: Duration::ZERO,
            keep_audio: false,
            chat_model: String::new(),
        }));
        let context = Arc::new(Context {
            facts: Arc::new(facts()),
            profile: RunningProfile { name: "cpu".to_owned(), why: "no NVIDIA GPU".to_owned() },
            hub,
            store,
            registry,
            queue,
            sessions,
            media,
            frames: api::Frames::default(),
            metrics: Metrics::install(),
            mqtt: mqtt_status,
            started: Instant::now(),
            shutdown,
            settings: Arc::new(settings),
        });
        let listener = api::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(api::serve(listener, Arc::clone(&context)));
        Server { address, context, mqtt, _dir: dir }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends what is given and reads until the server closes.
    pub(crate) async fn raw(&self, request: &[u8]) -> Vec<u8> {
        let mut tcp = self.connect().await;
        tcp.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        timeout(LIMIT, tcp.read_to_end(&mut answer)).await.unwrap().unwrap();
        answer
    }

    /// `head`: the request line without its version, then headers, each on a line.
    pub(crate) async fn ask(&self, head: &str, body: &[u8]) -> Answer {
        parse(&self.raw(&request(head, body)).await)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), b"").await
    }

    pub(crate) async fn websocket(&self, path: &str) -> Result<Client, tungstenite::Error> {
        let tcp = self.connect().await;
        let opened = tokio_tungstenite::client_async(format!("ws://{}{path}", self.address), tcp);
        timeout(LIMIT, opened).await.unwrap().map(|(client, _)| client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.context.shutdown.start();
    }
}

pub(crate) fn request(head: &str, body: &[u8]) -> Vec<u8> {
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    let mut request = format!("{line} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for header in headers.lines() {
        request.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    [request.as_bytes(), b"\r\n", body].concat()
}

pub(crate) fn parse(answer: &[u8]) -> Answer {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(':').unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Answer { status, headers, body: answer[end + 4..].to_vec() }
}

/// The next text message; anything else ends the test.
pub(crate) async fn next_json(client: &mut Client) -> serde_json::Value {
    loop {
        let message = timeout(LIMIT, client.next()).await.expect("a message in time").expect("open").unwrap();
        match message {
            tungstenite::Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_) => (),
            other => panic!("{other:?}"),
        }
    }
}

/// Reads on until the server closes, and returns its code and reason.
pub(crate) async fn close_of(client: &mut Client) -> (u16, String) {
    loop {
        match timeout(LIMIT, client.next()).await.expect("a close in time") {
            Some(Ok(tungstenite::Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
            Some(Ok(_)) => (),
            other => panic!("closed without a word: {other:?}"),
        }
    }
}

fn facts() -> Facts {
    Facts {
        arch: "x86_64".to_owned(),
        kernel: None,
        os: None,
        cpu_model: Some("test".to_owned()),
        cpu_cores: 4,
        ram_bytes: 16 << 30,
        cgroup_memory_limit: None,
        memory_kind: MemoryKind::None,
        gpus: Vec::new(),
        jetson: None,
        notes: Vec::new(),
    }
}
