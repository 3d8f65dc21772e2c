//! How a server elsewhere is seen: what is wrong with it or with a task is shown and told once, until it is right again.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    harness::{Daemon, LIMIT},
    remotes::{Act, Fake, speak, wav},
};

/// A server whose health is good, whatever it answers to jobs.
fn speaking(status: &Arc<AtomicU16>) -> Fake {
    let status = Arc::clone(status);
    Fake::start(move |_, _| match status.load(Ordering::SeqCst) {
        200 => Act::Answer("audio/wav", wav(&[1000; 2000])),
        429 => Act::Later(77),
        other => Act::Refuse(other),
    })
}

fn lines(daemon: &Daemon, words: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn a_task_that_its_server_refuses_is_not_ready_and_the_log_says_it_once() {
    let status = Arc::new(AtomicU16::new(404));
    let fake = speaking(&status);
    let daemon = fake.daemon(&["remotes.box.health_secs=1", "remotes.box.breaker_failures=2"]);
    for refusal in [404, 401, 404, 500, 500] {
        status.store(refusal, Ordering::SeqCst);
        assert_eq!(speak(&daemon, json!({"inputs": "Hola."})).await.0, 503);
    }
    // Its health was asked for again, and is good.
    let looks = fake.seen("/v1/models").len();
    daemon.eventually("/api/health", |_| fake.seen("/v1/models").len() >= looks + 2).await;
    let (_, health) = daemon.get("/api/health").await;
    let (task, others) = (&health["tasks"]["speak"], &health["tasks"]["chat"]);
    assert_eq!(
        (&task["state"], &health["remotes"][0]["state"]),
        (&json!("unavailable"), &json!("resting")),
        "{health}"
    );
    assert!(task["reason"].as_str().unwrap().contains("is not well (500"), "{task}");
    assert!(others["reason"].as_str().unwrap().contains("is left alone"), "{others}");
    let told = |words: &str| lines(&daemon, words);
    assert_eq!((told("does not have this"), told("wants a key"), told("is not well")), (1, 1, 1), "{}", daemon.log());
    assert_eq!((told("answers again"), told("does it again")), (0, 0), "{}", daemon.log());
}

#[tokio::test]
async fn a_server_that_was_put_right_does_the_task_again_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let status = Arc::new(AtomicU16::new(404));
    let fake = speaking(&status);
    let daemon = fake.daemon(&[&format!("remotes.box.key_file={}", key.display()), "remotes.box.health_secs=1"]);
    let health = daemon.eventually("/api/health", |health| health["remotes"][0]["state"] == "failing").await;
    assert!(health["remotes"][0]["reason"].as_str().unwrap().contains("cannot be read"), "{health}");
    for task in ["speak", "chat", "describe"] {
        assert_eq!(health["tasks"][task]["state"], "unavailable", "{health}");
    }
    let (answered, error) = speak(&daemon, json!({"inputs": "Hola."})).await;
    let error: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!((answered, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    let (message, hint) = (error["error"]["message"].as_str().unwrap(), error["error"]["hint"].as_str().unwrap());
    assert!(message.ends_with("cannot be read") && hint.contains("remotes.box.key_file"), "{error}");
    assert_eq!(lines(&daemon, "cannot be read"), 1, "{}", daemon.log());

    std::fs::write(&key, "sk-new").unwrap();
    daemon.eventually("/api/health", |health| health["tasks"]["speak"]["state"] == "ready").await;
    assert_eq!(speak(&daemon, json!({"inputs": "Hola."})).await.0, 503, "it does not know the model yet");
    daemon.eventually("/api/health", |health| health["tasks"]["speak"]["state"] == "unavailable").await;
    let (_, health) = daemon.get("/api/health").await;
    assert_eq!(
        (&health["tasks"]["chat"]["state"], &health["status"]),
        (&json!("ready"), &json!("degraded")),
        "{health}"
    );
    status.store(200, Ordering::SeqCst);
    assert_eq!(speak(&daemon, json!({"inputs": "Hola."})).await.0, 200);
    let health = daemon.eventually("/api/health", |health| health["tasks"]["speak"]["state"] == "ready").await;
    assert_eq!(health["remotes"][0]["reason"], Value::Null, "{health}");
    assert_eq!(lines(&daemon, "speak: the remote box does it again"), 1, "{}", daemon.log());
}

#[tokio::test]
async fn a_server_that_has_too_much_to_do_keeps_nobody_waiting() {
    let fake = speaking(&Arc::new(AtomicU16::new(429)));
    let daemon = fake.daemon(&["remotes.box.retries=3"]);
    let mut stream = tokio::net::TcpStream::connect(daemon.http).await.unwrap();
    let body = json!({"inputs": "Hola."}).to_string();
    let request = format!(
        "POST /api/tts HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"busy\""), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: 77\r\n"), "{answer}");
    assert!(answer.contains("try again in 77 s"), "{answer}");
    assert_eq!(fake.seen("/v1/audio/speech").len(), 1);
}

#[tokio::test]
async fn a_server_that_no_task_names_is_asked_nothing() {
    let (named, other) = (speaking(&Arc::new(AtomicU16::new(200))), speaking(&Arc::new(AtomicU16::new(200))));
    let daemon = named.daemon(&[&format!("remotes.other.url={}", other.url), "remotes.box.health_secs=1"]);
    daemon.eventually("/api/health", |_| named.seen("/v1/models").len() > 1).await;
    let (_, health) = daemon.get("/api/health").await;
    assert_eq!(health["remotes"][1]["state"], "unknown", "{health}");
    assert!(other.seen("/v1/models").is_empty());
}
