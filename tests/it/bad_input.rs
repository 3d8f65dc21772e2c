//! Wrong input and rude clients: a clear error for them, nothing lost for others, memory bounded.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vigia::api::client;

use crate::harness::{Daemon, LIMIT, Stream, speech_pcm};

async fn finish(stream: &mut Stream) -> Value {
    for chunk in speech_pcm().chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    stream.until("final_result").await
}

fn assert_error(error: &Value, code: &str, word: &str) {
    assert_eq!((error["code"].as_str(), &error["fatal"]), (Some(code), &json!(false)), "{error}");
    let text = format!("{} {}", error["message"], error["hint"]);
    assert!(text.contains(word), "{word} is not in {text}");
}

#[tokio::test]
async fn wrong_messages_before_config_cost_nothing() {
    let daemon = Daemon::start();
    let mut stream = daemon.socket("/ws/audio").await;
    stream.send_text("{ not json").await;
    assert_error(&stream.next().await, "invalid", "JSON");
    stream.audio(&[0; 640]).await;
    assert_error(&stream.next().await, "invalid", "config");
    stream.end().await;
    assert_error(&stream.next().await, "invalid", "config");
    stream.send(json!({ "type": "config", "encoding": "midi" })).await;
    assert_error(&stream.next().await, "invalid", "midi");
    stream.send(json!({ "type": "config", "sample_rate": 96_000 })).await;
    assert_error(&stream.next().await, "invalid", "sample_rate");
    stream.send(json!({ "type": "config" })).await;
    stream.until("config_ack").await;
    let result = finish(&mut stream).await;
    assert_eq!(result["segments"].as_array().unwrap().len(), 1);
    let (_, sessions) = daemon.get("/sessions").await;
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1, "wrong configs left sessions: {sessions}");
}

#[tokio::test]
async fn wrong_messages_in_the_middle_cost_nothing() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    let pcm = speech_pcm();
    let (before, after) = pcm.split_at(64_000);
    stream.audio(before).await;
    for (text, word) in [
        ("{", "JSON"),
        (r#"{"type":"dance"}"#, "dance"),
        (r#"{"type":"audio_chunk","data_b64":"*"}"#, "base64"),
        (r#"{"type":"config"}"#, "config"),
    ] {
        stream.send_text(text).await;
        assert_error(&stream.until("error").await, "invalid", word);
    }
    // An odd number of bytes splits a sample.
    stream.audio(&[0; 641]).await;
    assert_error(&stream.until("error").await, "invalid", "sample");
    stream.audio(after).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    assert!((result["duration"].as_f64().unwrap() - pcm.len() as f64 / 32_000.0).abs() < 1e-6, "{result}");
    assert_eq!(result["segments"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_message_over_the_limit_closes_with_1009_and_others_go_on() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "server.max_message=64 KiB"]);
    let mut other = daemon.audio(json!({ "type": "config" })).await;
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    stream.audio(&vec![0; 65 << 10]).await;
    assert_eq!(stream.closed().await, 1009);
    assert_eq!(finish(&mut other).await["segments"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn nothing_but_nonsense_is_closed_in_the_end() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    for _ in 0..100 {
        stream.send_text("nonsense").await;
    }
    assert_eq!(stream.closed().await, 1008);
}

#[tokio::test]
async fn a_photo_of_ten_thousand_million_pixels_is_refused_by_its_header() {
    let daemon = Daemon::start();
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(100_000_u32.to_be_bytes());
    png.extend(100_000_u32.to_be_bytes());
    png.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    let boundary = "xyz";
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\
         Content-Type: image/png\r\n\r\n"
    )
    .into_bytes();
    body.extend(&png);
    body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let before = daemon.rss_kib();
    let (status, error) = daemon.post("/vision/frame", &content_type, body).await;
    assert_eq!((status, &error["error"]["code"]), (413, &json!("too_large")), "{error}");
    let b64 = {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(&png)
    };
    let json = json!({ "image_b64": format!("data:image/png;base64,{b64}") }).to_string();
    let (status, error) = daemon.post("/vision/frame_b64", "application/json", json).await;
    assert_eq!((status, &error["error"]["code"]), (413, &json!("too_large")), "{error}");
    assert!(daemon.rss_kib() < before + (20 << 10), "{} KiB, {before} before", daemon.rss_kib());
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_the_daemon_serves_on() {
    let daemon = Daemon::start_with(&["server.max_body=1 MiB"]);
    let headers = [("content-type", "application/json")];
    let answer = client::request(daemon.http, "POST", "/api/tts", &headers, Bytes::from(vec![b' '; 2 << 20])).await;
    // The answer comes before the body is read; a client that insists on sending may only see the line cut.
    if let Ok((status, body)) = answer {
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status.as_u16(), &body["error"]["code"]), (413, &json!("too_large")), "{body}");
    }
    assert_eq!(daemon.get("/api/health").await.0, 200);
}

#[tokio::test]
async fn a_client_that_sends_its_request_by_the_drop_is_cut_off() {
    let daemon = Daemon::start_with(&["server.request_timeout_secs=1"]);
    let mut slow = TcpStream::connect(daemon.http).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut answer = Vec::new();
    timeout(LIMIT, slow.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    // A WebSocket that never says what it wants.
    let mut silent = daemon.socket("/ws/audio").await;
    let error = silent.until("error").await;
    assert_eq!((&error["code"], &error["fatal"]), (&json!("timeout"), &json!(true)));
    assert_eq!(silent.closed().await, 1008);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_closed_and_costs_no_one_else() {
    let daemon = Daemon::start_with(&["server.send_timeout_secs=1", "server.idle_timeout_secs=60"]);
    // It asks for all events and reads none: whatever is sent fills its buffers.
    let mut deaf = TcpStream::connect(daemon.http).await.unwrap();
    deaf.write_all(
        b"GET /ws/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await
    .unwrap();
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    let before = daemon.rss_kib();
    let begun = Instant::now();
    let mut results = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        finish(&mut stream).await;
        results += 1;
    }
    assert!(results >= 2);
    assert!(daemon.rss_kib() < before + (40 << 10), "{} KiB, {before} before", daemon.rss_kib());
    assert_eq!(daemon.get("/api/health").await.0, 200);
}

#[tokio::test]
async fn ten_thousand_idle_connections_are_refused_at_the_door() {
    let daemon = Daemon::start_with(&[
        "tasks.transcribe.model=test-echo",
        "server.max_connections=256",
        // So long that no silent one makes room for another.
        "server.request_timeout_secs=300",
    ]);
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    let pcm = speech_pcm();
    let mut chunks = pcm.chunks(3200);
    let before = daemon.rss_kib();
    let mut idle = Vec::new();
    let mut refused = 0;
    for number in 0..10_000 {
        let mut connection = timeout(LIMIT, TcpStream::connect(daemon.http)).await.unwrap().unwrap();
        // The first fill the house and stay silent; of the rest, every hundredth reads what it is told.
        if number < 300 {
            idle.push(connection);
        } else if number % 100 == 0 {
            let mut answer = Vec::new();
            timeout(LIMIT, connection.read_to_end(&mut answer)).await.unwrap().unwrap_or(0);
            let answer = String::from_utf8_lossy(&answer);
            if !answer.is_empty() {
                assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"busy\""), "{answer}");
                assert!(answer.to_lowercase().contains("retry-after:"), "{answer}");
                refused += 1;
            }
            // Meanwhile somebody speaks.
            if let Some(chunk) = chunks.next() {
                stream.audio(chunk).await;
            }
        }
    }
    for chunk in chunks {
        stream.audio(chunk).await;
    }
    stream.end().await;
    let result = stream.until("final_result").await;
    assert_eq!(result["segments"].as_array().unwrap().len(), 1, "{result}");
    assert!(refused > 10, "{refused} of the refused were told why");
    assert!(daemon.rss_kib() < before + (30 << 10), "{} KiB, {before} before", daemon.rss_kib());
    drop(idle);
    daemon.eventually("/api/health", |health| health["status"].is_string()).await;
}
