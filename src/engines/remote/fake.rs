//! A server for tests: plays one act a request on a port of this machine, and remembers what it was asked.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    base::lock,
    engines::remote::Remote,
    settings::{self, Sources, load},
};

#[derive(Debug, Clone)]
pub(super) enum Act {
    Reply {
        status: u16,
        headers: Vec<String>,
        body: Vec<u8>,
    },
    /// A good answer after which the connection stays.
    Keep(String),
    /// Announces more than it sends.
    Cut {
        kind: &'static str,
        body: Vec<u8>,
    },
    /// Sends this after the head and then nothing, until the other side leaves.
    Hold {
        kind: &'static str,
        body: Vec<u8>,
    },
    /// Not even a head.
    Silence,
    /// Sends this over and over.
    Endless {
        kind: &'static str,
        body: Vec<u8>,
    },
    /// Bytes that need not be HTTP.
    Raw(Vec<u8>),
}

impl Act {
    pub(super) fn reply(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Act {
        Act::Reply { status, headers: vec![format!("Content-Type: {kind}")], body: body.into() }
    }

    pub(super) fn json(value: &Value) -> Act {
        Act::reply(200, "application/json", value.to_string())
    }

    pub(super) fn status(status: u16, more: &[&str]) -> Act {
        let headers = more.iter().map(|&it| it.to_owned()).collect();
        Act::Reply { status, headers, body: br#"{"error": {"message": "said the fake"}}"#.to_vec() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[derive(Default)]
struct Inner {
    /// The last one is played again and again.
    acts: Mutex<Vec<Act>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    left: AtomicUsize,
    stop: AtomicBool,
}

pub(super) struct Fake {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl Fake {
    pub(super) fn start(acts: impl IntoIterator<Item = Act>) -> Fake {
        Fake::at(TcpListener::bind("127.0.0.1:0").unwrap(), acts)
    }

    pub(super) fn at(listener: TcpListener, acts: impl IntoIterator<Item = Act>) -> Fake {
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner { acts: Mutex::new(acts.into_iter().collect()), ..Inner::default() });
        let serving = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (inner, stream) = (Arc::clone(&serving), stream.unwrap());
                std::thread::spawn(move || inner.serve(stream));
            }
        });
        Fake { inner, address }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Plays these from now on.
    pub(super) fn play(&self, acts: impl IntoIterator<Item = Act>) {
        *lock(&self.inner.acts) = acts.into_iter().collect();
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        lock(&self.inner.seen).clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// How many of those who were kept waiting have gone.
    pub(super) fn left(&self) -> usize {
        self.inner.left.load(Ordering::SeqCst)
    }

    pub(super) fn remote(&self) -> Remote {
        self.remote_with(|_| ())
    }

    pub(super) fn remote_with(&self, change: impl FnOnce(&mut settings::Remote)) -> Remote {
        remote(&self.url(), change)
    }
}

/// A remote with the default settings, a short time-out and these changes.
pub(super) fn remote(url: &str, change: impl FnOnce(&mut settings::Remote)) -> Remote {
    let sources = Sources { sets: vec!["remotes.box.url=https://box".to_owned()], ..Sources::default() };
    let mut settings = load(&sources).unwrap().settings.remotes["box"].clone();
    settings.url = url.to_owned();
    settings.timeout_secs = 20;
    change(&mut settings);
    Remote::open("box", &settings).unwrap()
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // The one that ends the listening.
        drop(TcpStream::connect(self.address));
    }
}

/// Waits until something holds, with a limit.
pub(super) fn until(mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "it never came to hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Inner {
    fn serve(&self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.connections.fetch_add(1, Ordering::SeqCst);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while self.serve_one(&mut stream, &mut reader) {}
    }

    /// Whether the connection stays.
    fn serve_one(&self, stream: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> bool {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |it| it.parse().unwrap());
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return false;
        }
        lock(&self.seen).push(Seen { path, headers, body });
        let act = {
            let mut acts = lock(&self.acts);
            if acts.len() > 1 { acts.remove(0) } else { acts[0].clone() }
        };
        let stays = matches!(act, Act::Keep(_));
        // Whoever has gone away has what it wanted.
        self.perform(stream, act).is_ok() && stays
    }

    fn perform(&self, stream: &mut TcpStream, act: Act) -> std::io::Result<()> {
        let head = |kind: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n");
        match act {
            Act::Reply { status, headers, body } => {
                let length = body.len();
                let mut head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nConnection: close\r\n");
                for line in headers {
                    head.push_str(&format!("{line}\r\n"));
                }
                stream.write_all(format!("{head}\r\n").as_bytes())?;
                stream.write_all(&body)
            }
            Act::Keep(body) => {
                let length = body.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(format!("{head}{body}").as_bytes())
            }
            Act::Cut { kind, body } => {
                let length = body.len() + 1000;
                stream.write_all(format!("{}Content-Length: {length}\r\n\r\n", head(kind)).as_bytes())?;
                stream.write_all(&body)
            }
            Act::Hold { kind, body } => {
                stream.write_all(format!("{}\r\n", head(kind)).as_bytes())?;
                stream.write_all(&body)?;
                self.wait_for_leave(stream)
            }
            Act::Silence => self.wait_for_leave(stream),
            Act::Endless { kind, body } => {
                stream.write_all(format!("{}\r\n", head(kind)).as_bytes())?;
                loop {
                    stream.write_all(&body)?;
                }
            }
            Act::Raw(bytes) => stream.write_all(&bytes),
        }
    }

    fn wait_for_leave(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut byte = [0];
        drop(stream.read(&mut byte));
        self.left.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
