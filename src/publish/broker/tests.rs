//! The broker against real clients: mosquitto's of both versions, rumqttc, and bytes that are no client at all.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, LastWill, MqttOptions, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::*;
use crate::publish::tests::{LIMIT, Tool, settings, with_password};

/// A client that has subscribed to `filter`, and its messages as they come.
async fn subscriber(broker: &Broker, id: &str, filter: &str) -> (AsyncClient, EventLoop) {
    let (client, mut events) = client(broker, id);
    client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    loop {
        match timeout(LIMIT, events.poll()).await.unwrap().unwrap() {
            Event::Incoming(Incoming::SubAck(_)) => return (client, events),
            _ => continue,
        }
    }
}

fn client(broker: &Broker, id: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(id, broker.address().ip().to_string(), broker.address().port());
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(1 << 20, 1 << 20);
    AsyncClient::new(options, 1000)
}

async fn message(events: &mut EventLoop) -> (String, String, bool) {
    loop {
        if let Event::Incoming(Incoming::Publish(it)) = timeout(LIMIT, events.poll()).await.unwrap().unwrap() {
            return (it.topic.clone(), String::from_utf8(it.payload.to_vec()).unwrap(), it.retain);
        }
    }
}

/// Publishes and waits until everything has been taken.
async fn publish(broker: &Broker, id: &str, messages: &[(&str, String, bool)]) {
    let (client, mut events) = client(broker, id);
    for (topic, payload, retain) in messages {
        client.publish(*topic, QoS::AtLeastOnce, *retain, payload.as_bytes()).await.unwrap();
    }
    let mut acked = 0;
    while acked < messages.len() {
        if let Event::Incoming(Incoming::PubAck(_)) = timeout(LIMIT, events.poll()).await.unwrap().unwrap() {
            acked += 1;
        }
    }
    client.disconnect().await.unwrap();
    while timeout(LIMIT, events.poll()).await.unwrap().is_ok() {}
}

fn many(topic: &'static str, count: usize) -> Vec<(&'static str, String, bool)> {
    (0..count).map(|number| (topic, number.to_string(), false)).collect()
}

#[tokio::test]
async fn mosquitto_clients_of_both_versions_talk_through_one_port() {
    let broker = Broker::start(&settings()).unwrap();
    publish(&broker, "first", &[("kept/state", "online".to_owned(), true)]).await;
    let mut readers = Vec::new();
    for version in ["mqttv311", "mqttv5"] {
        let args = ["-V", version, "-q", "1", "-t", "#", "-C", "503", "-F", "%t %p %r"];
        let mut reader = Tool::start("mosquitto_sub", broker.address(), &args);
        assert_eq!(reader.line().await, "kept/state online 1");
        readers.push(reader);
    }
    for version in ["mqttv311", "mqttv5"] {
        let args = ["-V", version, "-q", "1", "-t", version, "-m", "hola", "-r"];
        let (ok, error) = Tool::start("mosquitto_pub", broker.address(), &args).end().await;
        assert!(ok, "{error}");
    }
    publish(&broker, "writer", &many("a/b", 500)).await;
    for mut reader in readers {
        assert_eq!(reader.line().await, "mqttv311 hola 0");
        assert_eq!(reader.line().await, "mqttv5 hola 0");
        for number in 0..500 {
            assert_eq!(reader.line().await, format!("a/b {number} 0"), "in order, none lost");
        }
        let (ok, error) = reader.end().await;
        assert!(ok, "{error}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_wildcard_subscription_of_version_5_names_each_topic() {
    let broker = Broker::start(&settings()).unwrap();
    publish(&broker, "first", &[("x/kept", "1".to_owned(), true)]).await;
    // Allows the broker aliases for topics, which rumqttd's router would mix up.
    let args = ["-V", "mqttv5", "-q", "1", "-t", "x/#", "-D", "connect", "topic-alias-maximum", "10", "-F", "%t %p"];
    let mut reader = Tool::start("mosquitto_sub", broker.address(), &args);
    assert_eq!(reader.line().await, "x/kept 1");
    let messages: Vec<_> = ["x/a", "x/b", "x/a", "x/c"].map(|topic| (topic, topic.to_uppercase(), false)).into();
    publish(&broker, "writer", &messages).await;
    for topic in ["x/a X/A", "x/b X/B", "x/a X/A", "x/c X/C"] {
        assert_eq!(reader.line().await, topic);
    }
    let args = ["-V", "mqttv5", "-t", "x/d", "-m", "respond", "-D", "publish", "response-topic", "back/here"];
    let mut asked = Tool::start("mosquitto_sub", broker.address(), &["-V", "mqttv5", "-t", "x/+", "-F", "%t %R"]);
    assert_eq!(asked.line().await, "x/kept ");
    assert!(Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
    assert_eq!(asked.line().await, "x/d back/here");
}

#[tokio::test]
async fn a_wrong_password_gets_an_answer_in_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&with_password(dir.path(), "secreto\n")).unwrap();
    for version in ["mqttv311", "mqttv5"] {
        let attempt = async |user: &str, password: &str| {
            let args = ["-V", version, "-u", user, "-P", password, "-t", "a", "-m", "b", "-q", "1"];
            Tool::start("mosquitto_pub", broker.address(), &args).end().await
        };
        assert!(attempt("glasses", "secreto").await.0);
        for (user, password) in [("glasses", "wrong"), ("other", "secreto"), ("glasses", "")] {
            let (ok, error) = attempt(user, password).await;
            assert!(!ok);
            assert!(error.to_lowercase().contains("bad user name"), "{version}: {error}");
        }
        let args = ["-V", version, "-t", "a", "-m", "b"];
        assert!(!Tool::start("mosquitto_pub", broker.address(), &args).end().await.0, "no user at all");
    }
}

#[tokio::test]
async fn a_will_comes_when_its_client_is_killed_and_not_when_it_says_goodbye() {
    let broker = Broker::start(&settings()).unwrap();
    let (_reader, mut events) = subscriber(&broker, "reader", "will/#").await;
    publish(&broker, "writer", &[("ready", "1".to_owned(), true)]).await;
    let args =
        |topic| ["-t", "ready", "--will-topic", topic, "--will-payload", "offline", "--will-retain", "-i", topic];
    let mut killed = Tool::start("mosquitto_sub", broker.address(), &args("will/killed"));
    killed.line().await;
    killed.kill().await;
    assert_eq!(message(&mut events).await, ("will/killed".to_owned(), "offline".to_owned(), false));

    // Ends by itself after a second, with a goodbye; the message after it is the next that comes.
    let polite = Tool::start("mosquitto_sub", broker.address(), &[&args("will/polite")[..], &["-W", "1"]].concat());
    polite.end().await;
    publish(&broker, "writer", &[("will/after", "1".to_owned(), false)]).await;
    assert_eq!(message(&mut events).await.0, "will/after");

    let (_late, mut events) = subscriber(&broker, "late", "will/#").await;
    assert_eq!(message(&mut events).await, ("will/killed".to_owned(), "offline".to_owned(), true), "it was retained");
}

#[tokio::test]
async fn the_newer_client_of_an_id_stays_and_only_the_olders_will_is_published() {
    let broker = Broker::start(&settings()).unwrap();
    let (_reader, mut events) = subscriber(&broker, "reader", "state/#").await;
    for round in 0..20 {
        let topic = format!("state/{round}");
        let connect = async || {
            let mut options = MqttOptions::new("twin/1", "127.0.0.1", broker.address().port());
            options.set_last_will(LastWill::new(&topic, "offline", QoS::AtLeastOnce, true));
            let (client, mut events) = AsyncClient::new(options, 10);
            assert!(matches!(events.poll().await.unwrap(), Event::Incoming(Incoming::ConnAck(_))));
            (client, events)
        };
        let (_older, mut older) = connect().await;
        let (newer, mut newer_events) = connect().await;
        assert!(timeout(LIMIT, older.poll()).await.unwrap().is_err(), "the older is closed");
        newer.publish(topic.as_str(), QoS::AtLeastOnce, true, "online").await.unwrap();
        while !matches!(newer_events.poll().await.unwrap(), Event::Incoming(Incoming::PubAck(_))) {}
        newer.disconnect().await.unwrap();
        while newer_events.poll().await.is_ok() {}
        assert_eq!(message(&mut events).await.1, "offline");
        assert_eq!(message(&mut events).await.1, "online", "the last word is the newer's");
    }
}

#[tokio::test]
async fn a_persistent_session_gets_what_it_missed() {
    let broker = Broker::start(&settings()).unwrap();
    let first = ["-c", "-i", "tablet", "-q", "1", "-t", "news", "-E"];
    assert!(Tool::start("mosquitto_sub", broker.address(), &first).end().await.0);
    publish(&broker, "writer", &many("news", 300)).await;
    let mut back = Tool::start("mosquitto_sub", broker.address(), &["-c", "-i", "tablet", "-q", "1", "-t", "news"]);
    for number in 0..300 {
        assert_eq!(back.line().await, number.to_string());
    }
}

#[tokio::test]
async fn what_would_harm_the_router_closes_only_its_sender() {
    let broker = Broker::start(&settings()).unwrap();
    let (_reader, mut events) = subscriber(&broker, "reader", "#").await;
    // A topic beginning with a letter of two bytes brings down rumqttd's own server.
    let args = ["-t", "ñandú", "-m", "x", "-q", "1"];
    assert!(!Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
    let too_large = "x".repeat(crate::publish::MAX_PACKET_BYTES);
    let (client, mut large) = client(&broker, "large");
    large.mqtt_options.set_max_packet_size(1 << 20, 4 << 20);
    client.publish("large", QoS::AtLeastOnce, false, too_large).await.unwrap();
    while timeout(LIMIT, large.poll()).await.unwrap().is_ok() {}
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x10\x0c\x00\x04MQTT\x04\xff\x00\x3c\x00\xff",
        &[0x10, 0xff, 0xff, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(broker.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // Closed, by a reset or an end.
        timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it is closed").ok();
    }
    // What MQTT Explorer asks for first: granted and silent.
    let (_explorer, _events) = subscriber(&broker, "explorer", "$SYS/#").await;
    publish(&broker, "writer", &[("fine", "1".to_owned(), false)]).await;
    assert_eq!(message(&mut events).await.0, "fine");
}

#[tokio::test]
async fn a_client_that_acknowledges_what_it_was_not_sent_closes_only_itself() {
    let broker = Broker::start(&settings()).unwrap();
    publish(&broker, "writer", &[("kept", "1".to_owned(), true)]).await;
    // Slow, so that the router's buffer for it fills: its link has to wake the router when there is room again.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(broker.address()).await.unwrap();
    stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x").await.unwrap();
    stream.write_all(b"\x82\x06\x00\x01\x00\x01s\x00").await.unwrap();
    stream.read_exact(&mut [0; 9]).await.expect("CONNACK and SUBACK");
    let large: Vec<_> = (0..600).map(|_| ("s", "x".repeat(50_000), false)).collect();
    publish(&broker, "writer", &large).await;
    stream.write_all(b"\x40\x02\x00\x09").await.unwrap();
    timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.expect("it is closed").ok();
    let (_reader, mut events) = subscriber(&broker, "reader", "kept").await;
    assert_eq!(message(&mut events).await, ("kept".to_owned(), "1".to_owned(), true), "the router lives");
}

#[tokio::test]
async fn what_no_client_sends_gives_its_place_back() {
    let broker = Broker::start(&settings()).unwrap();
    for number in 0..MAX_CLIENTS + 10 {
        let mut stream = TcpStream::connect(broker.address()).await.unwrap();
        let connect = format!("\x10\x11\0\x04MQTT\x05\x02\0\x3c\0\0\x04{number:04}");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut welcome = [0; 4];
        stream.read_exact(&mut welcome).await.expect("it is answered");
        assert_eq!((welcome[0], welcome[3]), (0x20, 0), "client {number} is let in");
        // Half a CONNACK.
        stream.write_all(b"\x20\x01\x00").await.unwrap();
        timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.expect("it is closed").ok();
    }
}

#[tokio::test]
async fn properties_of_version_5_do_not_reach_a_client_of_3() {
    let broker = Broker::start(&settings()).unwrap();
    let (_reader, mut events) = subscriber(&broker, "reader", "#").await;
    for text in ["1", "2"] {
        let args = ["-V", "mqttv5", "-t", "a", "-m", text, "-r", "-D", "publish", "response-topic", "back/here"];
        assert!(Tool::start("mosquitto_pub", broker.address(), &args).end().await.0);
        assert_eq!(message(&mut events).await, ("a".to_owned(), text.to_owned(), false));
    }
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_free() {
    let broker = Broker::start(&settings()).unwrap();
    let mut idle = Vec::new();
    for _ in 0..MAX_CLIENTS + 50 {
        idle.push(TcpStream::connect(broker.address()).await.unwrap());
    }
    let mut turned_away = idle.pop().unwrap();
    assert_eq!(timeout(LIMIT, turned_away.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    drop(idle);
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let (_client, mut events) = client(&broker, "patient");
        if events.poll().await.is_ok() {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "no place came free");
    }
}

#[test]
fn a_dead_router_is_replaced() {
    let house = House::new(None);
    let (mut client, _from_router, _) = house.join("harmful", true).unwrap();
    // Past the guard, on purpose. The router's thread says on standard error that it panics.
    client.publish("ñandú", "x").unwrap();
    let (_other, _from_router, _) = house
        .join("reader", true)
        .map(|mut joined| {
            joined.0.subscribe("#").unwrap();
            joined
        })
        .unwrap();
    client.publish("ñandú", "x").ok();
    let end = std::time::Instant::now() + LIMIT;
    while client.publish("ñandú", "x").is_ok() {
        assert!(std::time::Instant::now() < end, "the router survived: the guard may be loosened");
        std::thread::yield_now();
    }
    house.join("someone", true).unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_and_an_open_door_are_refused() {
    let first = Broker::start(&settings()).unwrap();
    let taken = crate::settings::Mqtt { listen: first.address(), ..settings() };
    let error = Broker::start(&taken).err().unwrap();
    assert!(error.full().contains(&first.address().to_string()), "{}", error.full());
    assert!(error.hint_text().unwrap().contains("external"));

    let open = crate::settings::Mqtt { listen: "0.0.0.0:0".parse().unwrap(), ..settings() };
    assert!(Broker::start(&open).err().unwrap().hint_text().unwrap().contains("password_file"));
    let dir = tempfile::tempdir().unwrap();
    let closed = crate::settings::Mqtt { listen: open.listen, ..with_password(dir.path(), "x") };
    Broker::start(&closed).unwrap().stop().await;

    let address = first.address();
    first.stop().await;
    Broker::start(&crate::settings::Mqtt { listen: address, ..settings() }).unwrap();
}
