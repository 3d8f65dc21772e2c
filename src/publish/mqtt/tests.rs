//! The client against the embedded broker, a real mosquitto that comes and goes, and brokers that misbehave.

#![cfg(feature = "broker")]

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    flow::{Draft, EventType, SessionId},
    publish::{
        Broker, MAX_PAYLOAD_BYTES,
        commands::answer_unavailable,
        tests::{LIMIT, Mosquitto, Tool, free_port, settings, until, with_password},
    },
};

/// Shorter than the usual patience, longer than a busy machine needs.
const ACK: Duration = Duration::from_secs(3);

/// A box without its clients: journal, hub, and the MQTT client running.
struct Rig {
    store: Store,
    hub: Hub,
    shutdown: Shutdown,
    status: watch::Receiver<MqttStatus>,
    task: JoinHandle<()>,
    tasks: Arc<Mutex<String>>,
}

impl Rig {
    fn start(dir: &Path, settings: &settings::Mqtt, embedded: Option<SocketAddr>) -> Rig {
        let store = Store::open(dir).unwrap();
        let hub = Hub::new("box".into(), store.clone(), 256);
        let tasks = Arc::new(Mutex::new("cold".to_owned()));
        let state = Arc::clone(&tasks);
        let node = Node {
            name: "box".into(),
            info: json!({"version": "0"}),
            health: Arc::new(|| json!({"status": "ok"})),
            tasks: Arc::new(move || vec![("vad".to_owned(), state.lock().unwrap().clone())]),
        };
        let (commands, queue) = mpsc::channel(4);
        tokio::spawn(answer_unavailable(queue));
        let mut mqtt = Mqtt::new(settings, embedded, node, store.clone(), hub.clone(), commands).unwrap();
        mqtt.patience.min = Duration::from_millis(20);
        mqtt.patience.max = Duration::from_millis(200);
        mqtt.patience.ack = ACK;
        let status = mqtt.status();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(mqtt.run(shutdown.clone()));
        Rig { store, hub, shutdown, status, task, tasks }
    }

    async fn is(&mut self, what: &str, holds: impl Fn(&MqttStatus) -> bool) -> MqttStatus {
        let status = timeout(LIMIT, self.status.wait_for(|it| holds(it))).await;
        status.unwrap_or_else(|_| panic!("never {what}")).unwrap().clone()
    }

    async fn connected(&mut self) {
        self.is("connected", |it| *it == MqttStatus::Connected).await;
    }

    async fn say(&self, kind: EventType, data: Value) -> String {
        let session = Some(SessionId::parse("s1").unwrap());
        self.hub.publish(Draft { kind, device: "default".into(), session, data }).await.event.id.clone()
    }

    async fn segment(&self, number: usize) -> String {
        self.say(EventType::TranscriptSegment, json!({"segment": {"text": number.to_string()}})).await
    }

    async fn stop(self) {
        self.shutdown.start();
        timeout(LIMIT, self.task).await.unwrap().unwrap();
        self.store.close(Instant::now() + LIMIT).await.unwrap();
    }

    /// As a lost power supply would: nothing said, nothing saved.
    async fn kill(self) -> Store {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.store
    }
}

fn at(port: u16) -> settings::Mqtt {
    settings::Mqtt { port, ..settings() }
}

/// Reads `count` numbered segments; those seen before must be exact doubles. Gives the ids in order.
async fn numbered(reader: &mut Tool, seen: &mut Vec<(String, String)>, count: usize) {
    while seen.len() < count {
        let event: Value = serde_json::from_str(&reader.line().await).unwrap();
        let text = event["data"]["segment"]["text"].as_str().unwrap().to_owned();
        let one = (event["id"].as_str().unwrap().to_owned(), text);
        match seen.iter().find(|it| it.1 == one.1) {
            Some(before) => assert_eq!(*before, one, "a double has the same id"),
            None => {
                assert_eq!(one.1, seen.len().to_string(), "in order, none left out");
                seen.push(one);
            }
        }
    }
}

const SEGMENTS: [&str; 6] = ["-q", "1", "-t", "vigia/box/dev/default/transcript/segment", "-F", "%p"];

#[tokio::test]
async fn everything_the_contract_names_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&settings()).unwrap();
    let mut rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    rig.connected().await;
    let mut reader = Tool::start("mosquitto_sub", broker.address(), &["-q", "1", "-t", "vigia/#", "-F", "%t %p"]);
    let mut kept = HashSet::new();
    for _ in 0..4 {
        kept.insert(reader.line().await);
    }
    for line in ["availability online", r#"info {"version":"0"}"#, r#"health {"status":"ok"}"#, "tasks/vad/state cold"]
    {
        assert!(kept.contains(&format!("vigia/box/{line}")), "{line} in {kept:?}");
    }

    let next = async |reader: &mut Tool| {
        let line = reader.line().await;
        let (topic, payload) = line.split_once(' ').unwrap();
        (topic.strip_prefix("vigia/box/").unwrap().to_owned(), payload.to_owned())
    };
    let id = rig.say(EventType::SessionStart, json!({})).await;
    let (topic, payload) = next(&mut reader).await;
    assert_eq!(topic, "sessions/s1/state");
    let envelope: Value = serde_json::from_str(&payload).unwrap();
    assert_eq!((&envelope["id"], &envelope["type"]), (&json!(id), &json!("session.start")));
    rig.say(EventType::Speech, json!({"state": "start", "at": 0.5})).await;
    assert_eq!(next(&mut reader).await, ("dev/default/speaking".to_owned(), "ON".to_owned()));
    rig.say(EventType::TranscriptPartial, json!({"text": "ho"})).await;
    assert_eq!(next(&mut reader).await.0, "dev/default/transcript/partial");
    // An hour of speech.
    rig.say(EventType::TranscriptFinal, json!({"text": "hola ".repeat(200_000)})).await;
    let (topic, payload) = next(&mut reader).await;
    assert_eq!((topic.as_str(), payload.len() > 1_000_000), ("sessions/s1/final", true));

    *rig.tasks.lock().unwrap() = "ready".to_owned();
    rig.say(EventType::ModelState, json!({"model": "silero-vad", "state": "ready"})).await;
    let both = HashSet::from([next(&mut reader).await, next(&mut reader).await]);
    assert!(both.contains(&("tasks/vad/state".to_owned(), "ready".to_owned())), "{both:?}");
    assert!(both.iter().any(|(topic, _)| topic == "models/silero-vad/state"), "{both:?}");

    rig.stop().await;
    assert_eq!(next(&mut reader).await, ("availability".to_owned(), "offline".to_owned()), "and its will is silent");
    let args = ["-t", "vigia/box/availability", "-C", "1", "-F", "%p %r"];
    assert_eq!(Tool::start("mosquitto_sub", broker.address(), &args).line().await, "offline 1");
    broker.stop().await;
}

#[tokio::test]
async fn home_assistant_is_told_again_when_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&settings()).unwrap();
    let mut rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    rig.connected().await;
    let mut reader =
        Tool::start("mosquitto_sub", broker.address(), &["-t", "homeassistant/device/#", "-F", "%t %r %p"]);
    let line = reader.line().await;
    let config = line.strip_prefix("homeassistant/device/box/config 1 ").unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["avty_t"], "vigia/box/availability");
    let args = ["-t", "homeassistant/status", "-m", "online"];
    assert!(Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
    assert!(reader.line().await.starts_with("homeassistant/device/box/config 0 "));
    rig.stop().await;
}

#[tokio::test]
async fn commands_are_answered_and_bad_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&settings()).unwrap();
    // Before the box is there: it must not be carried out when it comes.
    let retained = ["-t", "vigia/box/cmd/reload", "-m", "{}", "-r", "-q", "1"];
    assert!(Tool::start("mosquitto_pub", broker.address(), &retained).end().await.0);
    let args = ["-q", "1", "-t", "vigia/box/cmd/+/reply", "-t", "vigia/box/availability", "-F", "%t %p"];
    let mut reader = Tool::start("mosquitto_sub", broker.address(), &args);
    let rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    assert_eq!(reader.line().await, "vigia/box/availability online");
    for (verb, payload, code) in [
        ("tts", r#"{"id":"a1","inputs":"hola"}"#, "unavailable"),
        ("tts", "{", "invalid"),
        ("dance", "{}", "not_found"),
        ("unload", "", "unavailable"),
    ] {
        let topic = format!("vigia/box/cmd/{verb}");
        let args = ["-q", "1", "-t", &topic, "-m", payload];
        assert!(Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
        let line = reader.line().await;
        let reply = line.strip_prefix(&format!("{topic}/reply ")).unwrap_or_else(|| panic!("{line}"));
        let reply: Value = serde_json::from_str(reply).unwrap();
        assert_eq!(reply["error"]["code"], code, "{reply}");
        assert_eq!(reply["verb"], verb);
        assert_eq!(reply.get("id").is_some(), payload.contains("a1"));
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_flood_of_commands_does_not_cost_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&settings()).unwrap();
    let mut rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    rig.connected().await;
    let args = ["-q", "1", "-t", "vigia/box/cmd/tts/reply", "-t", "vigia/box/availability", "-F", "%p"];
    let mut reader = Tool::start("mosquitto_sub", broker.address(), &args);
    assert_eq!(reader.line().await, "online");
    let mut flood = TcpStream::connect(broker.address()).await.unwrap();
    flood.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x").await.unwrap();
    flood.read_exact(&mut [0; 4]).await.unwrap();
    flood.write_all(&b"\x30\x17\x00\x13vigia/box/cmd/dance{}".repeat(20_000)).await.unwrap();
    // Behind all of them.
    flood.write_all(b"\x30\x14\x00\x11vigia/box/cmd/tts{").await.unwrap();
    drop(flood);
    let end = Instant::now() + LIMIT;
    loop {
        let answered = timeout(Duration::from_millis(200), reader.line()).await;
        if answered.is_ok_and(|line| line.contains("invalid")) {
            break;
        }
        assert!(Instant::now() < end, "commands are no longer answered");
        let args = ["-q", "1", "-t", "vigia/box/cmd/tts", "-m", "{"];
        assert!(Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
    }
    assert!(!rig.status.has_changed().unwrap(), "the connection has held");
    rig.stop().await;
}

#[tokio::test]
async fn what_happens_while_mosquitto_is_away_arrives_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = format!(
        "allow_anonymous true\nmax_queued_messages 0\npersistence true\npersistence_location {}/\n\
         autosave_interval 1\nautosave_on_changes true",
        data.path().display()
    );
    // A reader whose session mosquitto keeps, so that it is there before we are.
    let mut mosquitto = Mosquitto::start(port, &config).await;
    let kept = [&SEGMENTS[..], &["-c", "-i", "reader"]].concat();
    let subscribed = Tool::start("mosquitto_sub", mosquitto.address(), &[&kept[..], &["-E"]].concat());
    assert!(subscribed.end().await.0);
    until("mosquitto has written its sessions", || data.path().join("mosquitto.db").exists()).await;
    mosquitto.kill().await;

    let mut rig = Rig::start(dir.path(), &at(port), None);
    let failed = rig.is("failed", |it| matches!(it, MqttStatus::Failed { .. })).await;
    assert!(format!("{failed:?}").contains(&format!("127.0.0.1:{port} cannot be reached")), "{failed:?}");
    let mut published = Vec::new();
    for number in 0..300 {
        published.push(rig.segment(number).await);
    }
    let mosquitto = Mosquitto::start(port, &config).await;
    rig.connected().await;
    let mut reader = Tool::start("mosquitto_sub", mosquitto.address(), &kept);
    for number in 300..330 {
        published.push(rig.segment(number).await);
    }
    let mut seen = Vec::new();
    numbered(&mut reader, &mut seen, published.len()).await;
    let ids: Vec<String> = seen.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, published);
    rig.stop().await;
    let args = ["-t", "vigia/box/availability", "-C", "1"];
    assert_eq!(Tool::start("mosquitto_sub", mosquitto.address(), &args).line().await, "offline");
}

#[tokio::test]
async fn a_killed_daemon_leaves_its_will_and_its_events_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&settings()).unwrap();
    let mut rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    rig.connected().await;
    let watched = ["-q", "1", "-t", "vigia/box/availability", "-F", "%p"];
    let mut availability = Tool::start("mosquitto_sub", broker.address(), &watched);
    assert_eq!(availability.line().await, "online");
    let args = [&SEGMENTS[..], &["-t", "vigia/box/info"]].concat();
    let mut reader = Tool::start("mosquitto_sub", broker.address(), &args);
    assert_eq!(reader.line().await, r#"{"version":"0"}"#);
    for number in 0..5 {
        rig.segment(number).await;
    }
    let mut seen = Vec::new();
    numbered(&mut reader, &mut seen, 5).await;
    // The last ones are in the journal but not sent, or sent but not noted.
    for number in 5..8 {
        rig.segment(number).await;
    }
    let store = rig.kill().await;
    assert_eq!(availability.line().await, "offline", "the will");
    store.close(Instant::now() + LIMIT).await.unwrap();
    drop(store);

    let rig = Rig::start(dir.path(), &settings(), Some(broker.address()));
    assert_eq!(availability.line().await, "online");
    loop {
        let line = reader.line().await;
        if line != r#"{"version":"0"}"# {
            let event: Value = serde_json::from_str(&line).unwrap();
            let text = event["data"]["segment"]["text"].as_str().unwrap().to_owned();
            let one = (event["id"].as_str().unwrap().to_owned(), text);
            match seen.iter().find(|it| it.1 == one.1) {
                Some(before) => assert_eq!(*before, one, "a double has the same id"),
                None => {
                    assert_eq!(one.1, seen.len().to_string());
                    seen.push(one);
                }
            }
        }
        if seen.len() == 8 {
            break;
        }
    }
    rig.stop().await;
}

/// A broker that tells apart what it has seen from what it has acknowledged, and hangs up as it is told.
struct Scripted {
    port: u16,
    seen: Arc<Seen>,
    connections: Arc<AtomicUsize>,
}

/// Topics and payloads, in the order they came.
type Seen = Mutex<Vec<(String, Vec<u8>)>>;

enum Act {
    Ack,
    /// Seen, never acknowledged.
    Keep,
    HangUp,
    /// Takes acknowledgements on their way with it.
    Reset,
}

impl Scripted {
    async fn start(connack: u8, mut act: impl FnMut(&str, &[u8]) -> Act + Send + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, connections) = (Arc::default(), Arc::default());
        let scripted = Scripted { port, seen: Arc::clone(&seen), connections: Arc::clone(&connections) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                Scripted::serve(stream, connack, &seen, &mut act).await;
            }
        });
        scripted
    }

    async fn serve(mut stream: TcpStream, connack: u8, seen: &Seen, act: &mut impl FnMut(&str, &[u8]) -> Act) {
        use rumqttc::mqttbytes::v4::Packet;
        let mut bytes = bytes::BytesMut::new();
        loop {
            let answer = match Packet::read(&mut bytes, 8 << 20) {
                Ok(Packet::Connect(_)) => vec![0x20, 2, 0, connack],
                Ok(Packet::Subscribe(it)) => vec![0x90, 3, (it.pkid >> 8) as u8, it.pkid as u8, 1],
                Ok(Packet::PingReq) => vec![0xd0, 0],
                Ok(Packet::Publish(it)) => {
                    let act = act(&it.topic, &it.payload);
                    seen.lock().unwrap().push((it.topic.clone(), it.payload.to_vec()));
                    match act {
                        Act::Ack if it.qos == QoS::AtLeastOnce => vec![0x40, 2, (it.pkid >> 8) as u8, it.pkid as u8],
                        Act::Ack | Act::Keep => continue,
                        Act::HangUp => {
                            // So that what was acknowledged before arrives: closing with unread bytes would reset.
                            stream.shutdown().await.ok();
                            while stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {}
                            return;
                        }
                        Act::Reset => return,
                    }
                }
                Ok(_) => return,
                Err(_) => match stream.read_buf(&mut bytes).await {
                    Ok(count) if count > 0 => continue,
                    _ => return,
                },
            };
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn segments(&self) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        let segments = seen.iter().filter(|(topic, _)| topic.ends_with("/segment"));
        segments.map(|(_, payload)| serde_json::from_slice(payload).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_line_that_breaks_again_and_again_loses_nothing_and_keeps_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    let broker = Scripted::start(0, move |topic, _| {
        if !topic.ends_with("/segment") {
            return Act::Ack;
        }
        count += 1;
        match count % 53 {
            0 if count % 2 == 0 => Act::HangUp,
            0 => Act::Reset,
            40 => Act::Keep,
            _ => Act::Ack,
        }
    })
    .await;
    let rig = Rig::start(dir.path(), &at(broker.port), None);
    let mut published = Vec::new();
    for number in 0..400 {
        published.push(rig.segment(number).await);
    }
    let ids = || broker.segments().into_iter().map(|it| it["id"].as_str().unwrap().to_owned());
    until("all have been seen", || ids().collect::<HashSet<_>>().len() == 400).await;
    let mut first_seen = Vec::new();
    for id in ids() {
        if !first_seen.contains(&id) {
            first_seen.push(id);
        }
    }
    assert_eq!(first_seen, published, "in order when first seen");
    assert!(broker.connections.load(Ordering::SeqCst) > 5, "it did break");
    rig.stop().await;
}

#[tokio::test]
async fn killed_between_publish_and_acknowledgement_it_publishes_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = |topic: &str, _: &[u8]| if topic.ends_with("/segment") { Act::Keep } else { Act::Ack };
    let first = Scripted::start(0, deaf).await;
    let rig = Rig::start(dir.path(), &at(first.port), None);
    let id = rig.segment(0).await;
    until("it has been published", || !first.segments().is_empty()).await;
    let store = rig.kill().await;
    store.close(Instant::now() + LIMIT).await.unwrap();
    drop(store);

    let second = Scripted::start(0, |_, _| Act::Ack).await;
    let rig = Rig::start(dir.path(), &at(second.port), None);
    until("it has been published again", || !second.segments().is_empty()).await;
    assert_eq!(second.segments(), first.segments());
    assert_eq!(second.segments()[0]["id"], id);
    rig.stop().await;
    let third = Scripted::start(0, |_, _| Act::Ack).await;
    let rig = Rig::start(dir.path(), &at(third.port), None);
    let id = rig.segment(1).await;
    until("the next has been published", || !third.segments().is_empty()).await;
    assert_eq!(third.segments()[0]["id"], id, "the acknowledged one does not come a third time");
    rig.stop().await;
}

#[tokio::test]
async fn an_event_that_the_broker_does_not_take_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mosquitto = Mosquitto::start(free_port(), "allow_anonymous true\nmax_packet_size 3000").await;
    let settings = settings::Mqtt { discovery: false, ..at(mosquitto.address().port()) };
    let mut rig = Rig::start(dir.path(), &settings, None);
    rig.connected().await;
    let args = [&SEGMENTS[..], &["-t", "vigia/box/info"]].concat();
    let mut reader = Tool::start("mosquitto_sub", mosquitto.address(), &args);
    reader.line().await;
    rig.say(EventType::TranscriptSegment, json!({"segment": {"text": "x".repeat(4000)}})).await;
    rig.say(EventType::TranscriptSegment, json!({"segment": {"text": "x".repeat(MAX_PAYLOAD_BYTES)}})).await;
    let id = rig.segment(0).await;
    let event = loop {
        let line = reader.line().await;
        let it: Value = serde_json::from_str(&line).unwrap();
        if it.get("id").is_some() {
            break it;
        }
    };
    assert_eq!(event["id"], id);
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_login_is_said_plainly_and_not_tried_hot() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Scripted::start(4, |_, _| Act::Ack).await;
    let with_user = settings::Mqtt { port: broker.port, ..with_password(dir.path(), "wrong") };
    let mut rig = Rig::start(dir.path(), &with_user, None);
    let failed = rig.is("failed", |it| matches!(it, MqttStatus::Failed { .. })).await;
    let text = serde_json::to_string(&failed).unwrap();
    assert!(text.contains(r#""state":"failed""#) && text.contains("refuses user `glasses`"), "{text}");
    assert!(text.contains("mqtt.password_file") && !text.contains("wrong"), "{text}");
    // Fifty times the usual wait.
    assert!(timeout(Duration::from_secs(1), rig.status.changed()).await.is_err());
    assert_eq!(broker.connections.load(Ordering::SeqCst), 1);
    rig.stop().await;

    let embedded = Broker::start(&with_password(dir.path(), "secreto")).unwrap();
    let mut rig = Rig::start(dir.path(), &settings(), Some(embedded.address()));
    let failed = rig.is("failed", |it| matches!(it, MqttStatus::Failed { .. })).await;
    assert!(format!("{failed:?}").contains("refuses a client without user and password"), "{failed:?}");
    rig.stop().await;
    let mut rig = Rig::start(dir.path(), &with_password(dir.path(), "secreto"), Some(embedded.address()));
    rig.connected().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_broker_that_never_answers_holds_up_neither_stop_nor_memory() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Scripted::start(0, |_, _| Act::Keep).await;
    let mut rig = Rig::start(dir.path(), &at(broker.port), None);
    rig.connected().await;
    for number in 0..300 {
        rig.segment(number).await;
    }
    rig.stop().await;
    assert!(broker.segments().is_empty(), "no event goes to a broker that does not even acknowledge `online`");
}
