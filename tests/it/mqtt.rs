//! Events over MQTT, seen by mosquitto's own clients: on the embedded broker and on a real mosquitto.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Daemon, LIMIT, speech_pcm};

/// `mosquitto_sub`, line by line.
struct Subscriber {
    child: Child,
    lines: mpsc::Receiver<(String, String)>,
}

impl Subscriber {
    fn start(broker: SocketAddr, version: &str) -> Subscriber {
        let mut child = Command::new("mosquitto_sub")
            .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string(), "-V", version])
            .args(["-t", "#", "-q", "1", "-F", "%t %p"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub: scripts/test installs mosquitto-clients");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let (topic, payload) = line.split_once(' ').unwrap_or((&line, ""));
                if sender.send((topic.to_owned(), payload.to_owned())).is_err() {
                    return;
                }
            }
        });
        Subscriber { child, lines }
    }

    fn next(&self) -> (String, String) {
        self.lines.recv_timeout(LIMIT).expect("no MQTT message came")
    }

    /// Reads on to the state that a daemon tells once it is connected.
    fn until_online(&self) -> Vec<(String, String)> {
        let mut seen = self.until("vigia/box/availability");
        while seen.last().is_some_and(|(_, payload)| payload != "online") {
            seen.extend(self.until("vigia/box/availability"));
        }
        seen
    }

    fn until(&self, topic: &str) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        loop {
            let message = self.next();
            let last = message.0 == topic;
            seen.push(message);
            if last {
                return seen;
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// A mosquitto of the test's own.
struct Mosquitto {
    child: Child,
    address: SocketAddr,
}

impl Mosquitto {
    fn start(dir: &Path) -> Mosquitto {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        Mosquitto::start_at(dir, address)
    }

    fn start_at(dir: &Path, address: SocketAddr) -> Mosquitto {
        let config = dir.join("mosquitto.conf");
        let state = dir.display();
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {state}/\n",
            address.port()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("mosquitto").arg("-c").arg(&config).stderr(Stdio::null()).spawn();
        let child = child.expect("mosquitto: scripts/test installs it");
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < LIMIT, "mosquitto does not listen");
            std::thread::yield_now();
        }
        Mosquitto { child, address }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

async fn speak(daemon: &Daemon, session: &str) -> Value {
    let config = json!({ "type": "config", "session_id": session, "device": "gafas 1" });
    let mut stream = daemon.audio(config).await;
    for chunk in speech_pcm().chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    let result = stream.until("final_result").await;
    stream.close().await;
    result
}

fn payload(messages: &[(String, String)], topic: &str) -> Value {
    // The last counts: what is retained from before comes first.
    let found = messages.iter().rfind(|(it, _)| it == topic);
    let (_, payload) = found.unwrap_or_else(|| panic!("{topic} is not among {:?}", topics(messages)));
    serde_json::from_str(payload).unwrap_or_else(|_| Value::String(payload.clone()))
}

fn topics(messages: &[(String, String)]) -> BTreeSet<&str> {
    messages.iter().map(|(topic, _)| topic.as_str()).collect()
}

fn check_session(messages: &[(String, String)], session: &str, result: &Value) {
    assert_eq!(payload(messages, "vigia/box/availability"), "online");
    let state = payload(messages, "vigia/box/tasks/transcribe/state");
    assert!(state == "cold" || state == "loading" || state == "ready", "{state}");
    let speaking: Vec<&str> =
        messages.iter().filter(|(it, _)| it == "vigia/box/dev/gafas_1/speaking").map(|(_, it)| it.as_str()).collect();
    assert!(speaking.ends_with(&["ON", "OFF"]), "{speaking:?}");
    let segment = payload(messages, "vigia/box/dev/gafas_1/transcript/segment");
    assert_eq!((&segment["type"], &segment["session"]), (&json!("transcript.segment"), &json!(session)));
    assert_eq!(segment["data"]["segment"]["text"], result["text"], "{segment}");
    let last = payload(messages, &format!("vigia/box/sessions/{session}/final"));
    assert_eq!(last["data"]["text"], result["text"], "{last}");
    assert!(last["seq"].as_u64() > segment["seq"].as_u64());
}

const SETS: [&str; 2] = ["tasks.transcribe.model=test-echo", "node.name=box"];

#[tokio::test]
async fn mosquitto_sub_on_the_embedded_broker_sees_a_session() {
    let daemon = Daemon::start_with(&SETS);
    let subscriber = Subscriber::start(daemon.mqtt.unwrap(), "mqttv311");
    // Retained, so it comes however late one subscribes.
    let mut messages = subscriber.until_online();
    let result = speak(&daemon, "s1").await;
    messages.extend(subscriber.until("vigia/box/sessions/s1/final"));
    check_session(&messages, "s1", &result);
}

#[tokio::test]
async fn mosquitto_sub_on_a_real_mosquitto_sees_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mosquitto = Mosquitto::start(dir.path());
    for version in ["mqttv311", "mqttv5"] {
        let subscriber = Subscriber::start(mosquitto.address, version);
        let port = format!("mqtt.port={}", mosquitto.address.port());
        let mut daemon = Daemon::start_with(&["mqtt.mode=external", &port, SETS[0], SETS[1]]);
        assert_eq!(daemon.mqtt, None);
        let mut messages = subscriber.until_online();
        let result = speak(&daemon, version).await;
        messages.extend(subscriber.until(&format!("vigia/box/sessions/{version}/final")));
        check_session(&messages, version, &result);
        // A clean stop says so itself.
        daemon.signal("-TERM");
        assert_eq!(daemon.wait(), Some(0));
        let goodbye = subscriber.until("vigia/box/availability");
        assert_eq!(goodbye.last().unwrap().1, "offline");
    }
}

#[tokio::test]
async fn what_happens_while_the_broker_is_away_arrives_later_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mosquitto = Mosquitto::start(dir.path());
    let address = mosquitto.address;
    let port = format!("mqtt.port={}", address.port());
    let daemon = Daemon::start_with(&["mqtt.mode=external", &port, SETS[0], SETS[1]]);
    daemon.eventually("/api/health", |health| health["mqtt"]["state"] == "connected").await;
    drop(mosquitto);
    speak(&daemon, "s1").await;
    speak(&daemon, "s2").await;
    // Killed on top of it: the outbox is on disk.
    let daemon = daemon.kill_and_restart();
    // The broker is back, and a subscriber is there before the daemon's patience ends.
    let mosquitto = Mosquitto::start_at(dir.path(), address);
    let subscriber = Subscriber::start(mosquitto.address, "mqttv311");
    daemon.eventually("/api/health", |health| health["mqtt"]["state"] == "connected").await;
    speak(&daemon, "s3").await;
    let messages = subscriber.until("vigia/box/sessions/s3/final");
    let finals: Vec<&str> = messages
        .iter()
        .filter(|(topic, _)| topic.ends_with("/final"))
        .map(|(topic, _)| topic.trim_start_matches("vigia/box/sessions/").trim_end_matches("/final"))
        .collect();
    assert_eq!(finals, ["s1", "s2", "s3"]);
}

#[tokio::test]
async fn a_killed_daemon_is_reported_offline_by_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let mosquitto = Mosquitto::start(dir.path());
    let subscriber = Subscriber::start(mosquitto.address, "mqttv311");
    let port = format!("mqtt.port={}", mosquitto.address.port());
    let daemon = Daemon::start_with(&["mqtt.mode=external", &port, SETS[0], SETS[1]]);
    subscriber.until_online();
    daemon.signal("-KILL");
    let begun = Instant::now();
    while subscriber.until("vigia/box/availability").last().unwrap().1 != "offline" {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
