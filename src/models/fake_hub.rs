//! A hub of models for tests: speaks the real one's protocol on a port of this machine, and fails when told to.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    base::lock,
    models::{
        digest::Digest,
        hub::{Access, Hub, Patience},
    },
};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens instead of the right answer, once each.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    Status(u16, &'static [&'static str]),
    Redirect(String),
    /// The right number of bytes, the last of them another.
    Flip,
    /// All is well, and this is what there is.
    Says(&'static str),
    /// Nothing at all for this long.
    Silence(Duration),
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

#[derive(Default)]
struct Inner {
    /// By `owner/name`, then by path.
    repositories: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// By the end of a request's path.
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    seen: Mutex<Vec<Seen>>,
    token: Option<String>,
    /// Lists no hashes, as for small files.
    hashless: AtomicBool,
    at_a_time: AtomicUsize,
    most_at_a_time: AtomicUsize,
    stop: AtomicBool,
}

pub(crate) struct FakeHub {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl FakeHub {
    pub(crate) fn start(token: Option<&str>) -> FakeHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner { token: token.map(str::to_owned), ..Inner::default() });
        let serving = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (inner, stream) = (Arc::clone(&serving), stream.unwrap());
                std::thread::spawn(move || inner.serve(&stream));
            }
        });
        FakeHub { inner, address }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn put(&self, repository: &str, path: &str, content: impl Into<Vec<u8>>) {
        lock(&self.inner.repositories)
            .entry(repository.to_owned())
            .or_default()
            .insert(path.to_owned(), content.into());
    }

    /// The next requests for what ends in `path` go wrong like this.
    pub(crate) fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.inner.faults).entry(path.to_owned()).or_default().extend(faults);
    }

    pub(crate) fn list_no_hashes(&self) {
        self.inner.hashless.store(true, Ordering::SeqCst);
    }

    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        lock(&self.inner.seen).iter().filter(|it| it.path.ends_with(path)).cloned().collect()
    }

    pub(crate) fn forget(&self) {
        lock(&self.inner.seen).clear();
    }

    pub(crate) fn most_at_a_time(&self) -> usize {
        self.inner.most_at_a_time.load(Ordering::SeqCst)
    }

    pub(crate) fn client(&self, token: Option<&str>) -> Hub {
        let patience = Patience {
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(1),
            tries: 3,
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(50),
        };
        Hub::new(&self.endpoint(), Access { token, ..Access::default() }, patience).unwrap()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // The one that ends the listening.
        drop(TcpStream::connect(self.address));
    }
}

impl Inner {
    fn serve(&self, stream: &TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let headers: HashMap<String, String> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
            .collect();
        lock(&self.seen).push(Seen { path: path.clone(), headers: headers.clone() });
        // Whoever has gone away has what it wanted.
        drop(self.answer(stream, &path, &headers));
    }

    /// What goes wrong this time. Whoever is kept waiting counts as being served, and no longer once it hears anything:
    /// it may ask for the next file at once.
    fn fault(&self, path: &str) -> Option<Fault> {
        let now = self.at_a_time.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_a_time.fetch_max(now, Ordering::SeqCst);
        let next = |(end, faults): (&String, &mut VecDeque<Fault>)| {
            if path.ends_with(end.as_str()) { faults.pop_front() } else { None }
        };
        let fault = lock(&self.faults).iter_mut().find_map(next);
        if let Some(Fault::Silence(time)) = fault {
            std::thread::sleep(time);
        }
        self.at_a_time.fetch_sub(1, Ordering::SeqCst);
        fault
    }

    fn answer(&self, stream: &TcpStream, path: &str, headers: &HashMap<String, String>) -> std::io::Result<()> {
        let fault = self.fault(path);
        match &fault {
            Some(Fault::Status(status, more)) => return respond(stream, *status, more, b"no", 2),
            Some(Fault::Says(text)) => return respond(stream, 200, &[], text.as_bytes(), text.len()),
            Some(Fault::Redirect(to)) => return respond(stream, 302, &[&format!("Location: {to}")], b"", 0),
            _ => (),
        }
        let wanted = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && headers.get("authorization") != wanted.as_ref() {
            return respond(stream, 401, &[], b"no", 2);
        }
        let Some(body) = self.body(path) else { return respond(stream, 404, &[], b"no", 2) };
        let range = headers.get("range").and_then(|it| it.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = range.unwrap_or(0);
        if from > 0 && from >= body.len() {
            return respond(stream, 416, &[], b"", 0);
        }
        let (mut rest, whole) = (body[from..].to_vec(), body.len());
        let announced = rest.len();
        match fault {
            Some(Fault::Cut(at)) => rest.truncate(at),
            Some(Fault::Flip) => *rest.last_mut().unwrap() ^= 1,
            _ => (),
        }
        let range = format!("Content-Range: bytes {from}-{}/{whole}", whole.saturating_sub(1));
        if from > 0 {
            respond(stream, 206, &[&range], &rest, announced)
        } else {
            respond(stream, 200, &[], &rest, announced)
        }
    }

    /// The listing of a repository, or one of its files.
    fn body(&self, path: &str) -> Option<Vec<u8>> {
        let repositories = lock(&self.repositories);
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let (repository, _revision) = rest.strip_suffix("?blobs=true")?.split_once("/revision/")?;
            let hashless = self.hashless.load(Ordering::SeqCst);
            let sibling = |(path, content): (&String, &Vec<u8>)| {
                let mut digest = Digest::default();
                digest.add(content);
                let lfs = (!hashless).then(|| json!({"sha256": digest.sha256(), "size": content.len()}));
                json!({"rfilename": path, "size": content.len(), "lfs": lfs})
            };
            let siblings: Vec<_> = repositories.get(repository)?.iter().map(sibling).collect();
            return Some(json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes());
        }
        let (repository, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
        let (_commit, file) = rest.split_once('/')?;
        repositories.get(repository)?.get(file).cloned()
    }
}

fn respond(mut stream: &TcpStream, status: u16, more: &[&str], body: &[u8], length: usize) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Some Reason\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for line in more {
        head.push_str(&format!("{line}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}
