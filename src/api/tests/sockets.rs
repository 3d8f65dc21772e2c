//! WebSockets: the handshake, limits, and the events on `/ws/events`.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpSocket, time::timeout};
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Client, LIMIT, Server, close_of, next_json};
use crate::{
    base::ByteSize,
    flow::{Draft, EventType, SessionId},
};

async fn publish(server: &Server, kind: EventType, device: &str, session: &str, n: usize) {
    let session = Some(SessionId::parse(session).unwrap());
    server.context.hub.publish(Draft { kind, device: Arc::from(device), session, data: json!({"n": n}) }).await;
}

async fn numbers(client: &mut Client, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(next_json(client).await["data"]["n"].as_u64().unwrap());
    }
    numbers
}

#[tokio::test]
async fn events_come_live_through_the_filters() {
    let server = Server::start(|_| ()).await;
    let mut all = server.websocket("/ws/events").await.unwrap();
    let mut hazards = server.websocket("/ws/events?types=hazard,scene").await.unwrap();
    let mut glasses = server.websocket("/ws/events?device=mis%20gafas").await.unwrap();
    let mut session = server.websocket("/ws/events?session=s2").await.unwrap();
    // Opened, and subscribed once each has been served: a ping that is answered shows it.
    for client in [&mut all, &mut hazards, &mut glasses, &mut session] {
        client.send(Message::Ping("x".into())).await.unwrap();
        assert!(timeout(LIMIT, client.next()).await.unwrap().unwrap().unwrap().is_pong());
    }
    publish(&server, EventType::Speech, "otra", "s1", 1).await;
    publish(&server, EventType::Hazard, "otra", "s1", 2).await;
    publish(&server, EventType::Speech, "mis gafas", "s1", 3).await;
    publish(&server, EventType::Scene, "otra", "s2", 4).await;
    let first = next_json(&mut all).await;
    assert_eq!((&first["v"], &first["type"], &first["node"]), (&json!(1), &json!("speech"), &json!("test")));
    assert_eq!(numbers(&mut all, 3).await, [2, 3, 4]);
    assert_eq!(numbers(&mut hazards, 2).await, [2, 4]);
    assert_eq!(numbers(&mut glasses, 1).await, [3]);
    assert_eq!(numbers(&mut session, 1).await, [4]);
}

#[tokio::test]
async fn what_was_comes_before_what_is_without_gap_or_double() {
    // The hub holds far fewer events than are published while the first ones are replayed.
    let server = Arc::new(Server::with_hub_capacity(64, |_| ()).await);
    for n in 0..500 {
        publish(&server, EventType::Speech, "d", "s", n).await;
    }
    let mut client = server.websocket("/ws/events?session=s&from=11").await.unwrap();
    let publisher = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            for n in 500..1500 {
                publish(&server, EventType::Speech, "d", "s", n).await;
                publish(&server, EventType::Speech, "d", "other", n).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut expected = 10;
    while expected < 1500 {
        match timeout(LIMIT, client.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => {
                let event: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(event["data"]["n"], expected);
                expected += 1;
            }
            // Too slow for such a small hub: it comes back where it was.
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), 1013);
                client = server.websocket(&format!("/ws/events?session=s&from={}", expected + 1)).await.unwrap();
            }
            _ => (),
        }
    }
    publisher.await.unwrap();
}

#[tokio::test]
async fn without_a_session_the_whole_journal_is_replayed_in_order() {
    let server = Server::start(|_| ()).await;
    for n in 0..450 {
        publish(&server, EventType::Speech, "d", ["a", "b"][n % 2], n).await;
    }
    let mut client = server.websocket("/ws/events?from=0").await.unwrap();
    assert_eq!(numbers(&mut client, 450).await, (0..450).collect::<Vec<u64>>());
    publish(&server, EventType::Speech, "d", "a", 450).await;
    assert_eq!(numbers(&mut client, 1).await, [450]);
}

#[tokio::test]
async fn a_listener_that_does_not_read_is_closed_and_the_others_hear_all() {
    let server = Server::with_hub_capacity(256, |settings| settings.server.send_timeout_secs = 1).await;
    let mut reader = server.websocket("/ws/events").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let tcp = socket.connect(server.address).await.unwrap();
    let (_deaf, _) = tokio_tungstenite::client_async("ws://test/ws/events", tcp).await.unwrap();
    assert_eq!(server.context.shutdown.finished(tokio::time::Instant::now()).await, ["/ws/events ×2"]);

    let large = "x".repeat(20_000);
    let session = Some(SessionId::parse("s").unwrap());
    for n in 0..1000 {
        let data = json!({"n": n, "large": large});
        let (device, session) = ("d".into(), session.clone());
        server.context.hub.publish(Draft { kind: EventType::Speech, device, session, data }).await;
        assert_eq!(next_json(&mut reader).await["data"]["n"], n);
    }
    let gone = async {
        while server.context.shutdown.finished(tokio::time::Instant::now()).await != ["/ws/events"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("the deaf listener is closed");
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let server = Server::start(|_| ()).await;
    assert_eq!(server.get("/ws/events").await.code(), "invalid");
    let upgrade = "Upgrade: websocket\nConnection: keep-alive, Upgrade";
    for wrong in [
        format!("GET /ws/events\n{upgrade}\nSec-WebSocket-Version: 8\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        format!("GET /ws/events\n{upgrade}\nSec-WebSocket-Version: 13"),
        format!("GET /ws/events\n{upgrade}\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: short"),
        format!(
            "GET /ws/events?types=hazards\n{upgrade}\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        ),
    ] {
        assert_eq!(server.ask(&wrong, b"").await.code(), "invalid", "{wrong}");
    }
    match server.websocket("/ws/events?types=hazards").await {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 400),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_closed_with_1009() {
    let server = Server::start(|settings| settings.server.max_message = ByteSize(100_000)).await;
    let mut client = server.websocket("/ws/events").await.unwrap();
    client.send(Message::binary(vec![0; 90_000])).await.unwrap();
    client.send(Message::binary(vec![0; 300_000])).await.unwrap();
    let (code, reason) = close_of(&mut client).await;
    assert_eq!(code, 1009);
    assert!(reason.contains("max_message"));
}

#[tokio::test]
async fn bytes_that_are_no_websocket_are_closed_with_1002() {
    let server = Server::start(|_| ()).await;
    let mut client = server.websocket("/ws/events").await.unwrap();
    client.get_mut().write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(close_of(&mut client).await.0, 1002);
}

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_a_silent_one_is_closed() {
    let server = Server::start(|settings| settings.server.idle_timeout_secs = 1).await;
    let mut alive = server.websocket("/ws/events").await.unwrap();
    let mut silent = server.websocket("/ws/events").await.unwrap();
    // Reading answers pings; the silent one does not read until it is too late.
    let stays = timeout(Duration::from_secs(3), async {
        while let Some(Ok(message)) = alive.next().await {
            assert!(message.is_ping(), "{message:?}");
        }
    });
    assert!(stays.await.is_err(), "still open after three times the limit");
    loop {
        match timeout(LIMIT, silent.next()).await.expect("a close in time").expect("a close or an error") {
            Ok(message) if message.is_ping() => (),
            Ok(Message::Close(frame)) => break assert_eq!(u16::from(frame.expect("a code").code), 1001),
            // Its late answers to the pings have nowhere to go, and that may be met before the close is read.
            Err(tungstenite::Error::Io(_)) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn at_shutdown_listeners_are_told() {
    let server = Server::start(|_| ()).await;
    let mut client = server.websocket("/ws/events").await.unwrap();
    server.context.shutdown.start();
    assert_eq!(close_of(&mut client).await.0, 1001);
    drop(client);
    let late = server.context.shutdown.finished(crate::base::shutdown::deadline(LIMIT)).await;
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test]
async fn a_client_that_has_not_said_what_it_wants_does_not_hold_up_the_shutdown() {
    let server = Server::start(|_| ()).await;
    let mut client = server.websocket("/ws/audio").await.unwrap();
    server.context.shutdown.start();
    let error = next_json(&mut client).await;
    assert_eq!((&error["code"], &error["fatal"]), (&json!("busy"), &json!(true)), "{error}");
    assert_eq!(close_of(&mut client).await.0, 1012);
}

#[tokio::test]
async fn an_error_does_not_quote_a_megabyte() {
    let server = Server::start(|_| ()).await;
    let mut client = server.websocket("/ws/audio").await.unwrap();
    let long = "ñ".repeat(400_000);
    for message in [json!({ "type": long }), json!({ "type": "config", "encoding": long })] {
        client.send(Message::text(message.to_string())).await.unwrap();
        let error = next_json(&mut client).await;
        assert_eq!(error["code"], "invalid");
        assert!(error.to_string().len() < 2000, "{}", error.to_string().len());
        assert!(error["hint"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn a_client_that_we_did_not_listen_to_is_not_called_silent() {
    let server = Server::with_hub_capacity(4096, |settings| settings.server.idle_timeout_secs = 1).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let tcp = socket.connect(server.address).await.unwrap();
    let (mut client, _) = tokio_tungstenite::client_async("ws://test/ws/events", tcp).await.unwrap();
    client.send(Message::Ping("x".into())).await.unwrap();
    assert!(timeout(LIMIT, client.next()).await.unwrap().unwrap().unwrap().is_pong());
    let large = "x".repeat(20_000);
    for n in 0..1000 {
        let data = json!({"n": n, "large": large});
        server.context.hub.publish(Draft { kind: EventType::Speech, device: "d".into(), session: None, data }).await;
    }
    // Longer than a client may be silent: the server is at sending all the while, and asks for no sign of life.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(numbers(&mut client, 1000).await, (0..1000).collect::<Vec<u64>>());
}
