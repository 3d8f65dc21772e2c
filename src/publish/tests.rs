//! What the tests of this module share: settings, a real mosquitto, its clients, waiting with a limit.

#![cfg_attr(not(feature = "broker"), allow(dead_code, reason = "most tests of MQTT need the embedded broker"))]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::settings;

pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// The defaults, on any free port.
pub(super) fn settings() -> settings::Mqtt {
    let all: settings::Settings = toml::from_str(settings::DEFAULTS).unwrap();
    settings::Mqtt { listen: "127.0.0.1:0".parse().unwrap(), ..all.mqtt }
}

/// Settings with a user, whose password is in `dir`.
pub(super) fn with_password(dir: &Path, password: &str) -> settings::Mqtt {
    let file = dir.join("password");
    fs::write(&file, password).unwrap();
    settings::Mqtt { username: "glasses".to_owned(), password_file: file.to_str().unwrap().to_owned(), ..settings() }
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A real mosquitto of one test; killed when dropped.
pub(super) struct Mosquitto {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Mosquitto {
    /// On the given port, so that it can go away and come back.
    pub(super) async fn start(port: u16, lines: &str) -> Mosquitto {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("mosquitto.conf");
        // mosquitto leaves root for a user of its own, who could not read the folder.
        fs::write(&config, format!("listener {port} 127.0.0.1\nuser root\n{lines}\n")).unwrap();
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("this test needs `mosquitto`: apt-get install mosquitto mosquitto-clients");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until("mosquitto listens", || TcpStream::connect(address).is_ok()).await;
        Mosquitto { child, address, _dir: dir }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// As a lost power supply would.
    pub(super) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A `mosquitto_sub` or `mosquitto_pub`; killed when dropped.
pub(super) struct Tool {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tool {
    pub(super) fn start(name: &str, broker: SocketAddr, args: &[&str]) -> Tool {
        let mut child = Command::new(name)
            .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs `{name}` (apt-get install mosquitto-clients): {error}"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Tool { child, lines }
    }

    /// The next line it prints.
    pub(super) async fn line(&mut self) -> String {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("no further line came");
        line.unwrap().expect("it ended")
    }

    /// Whether it ended well, and what it said in its errors.
    pub(super) async fn end(mut self) -> (bool, String) {
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
        (timeout(LIMIT, self.child.wait()).await.unwrap().unwrap().success(), errors)
    }

    pub(super) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}
