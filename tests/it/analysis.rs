//! Sessions that are analysed by themselves, by a fake of a server elsewhere: who is told, and who is left alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    harness::{Daemon, LIMIT, Stream, speech_pcm},
    remotes::{Act, Fake, said},
};

fn analyst() -> Fake {
    Fake::start(|_, _| said(&json!({ "summary": "Una prueba." }).to_string()))
}

async fn take(daemon: &Daemon, session: &str, analyze: Value) -> Stream {
    let mut config = json!({"type": "config", "session_id": session, "language": "es", "encoding": "pcm16"});
    if !analyze.is_null() {
        config["analyze"] = analyze;
    }
    let mut stream = daemon.audio(config).await;
    stream.audio(&speech_pcm()).await;
    stream.end().await;
    stream.until("final_result").await;
    stream
}

#[tokio::test]
async fn a_take_that_is_over_is_analysed_by_itself_and_its_client_is_told() {
    let fake = analyst();
    let daemon = fake.daemon(&["tasks.transcribe.model=test-echo"]);
    let mut stream = take(&daemon, "charla", Value::Null).await;
    let told = stream.until("session_analysis").await;
    assert_eq!((&told["analysis"]["summary"], &told["session_id"]), (&json!("Una prueba."), &json!("charla")));
    assert_eq!(told["analysis"]["transcript"].as_array().unwrap().len(), 1, "{told}");
    // What it has seen is not told again, and more speech makes a new one of all of it.
    let seen = told["seq"].as_u64().unwrap();
    drop(stream);
    let resume = json!({"type": "config", "session_id": "charla", "language": "es", "resume": true, "last_seq": seen});
    let mut stream = daemon.audio(resume).await;
    stream.audio(&speech_pcm()).await;
    stream.end().await;
    let second = stream.until("session_analysis").await;
    assert_eq!(second["analysis"]["transcript"].as_array().unwrap().len(), 2, "{second}");
    assert_eq!(stream.of("session_analysis").len(), 1);
    stream.close().await;
    let kept = daemon.eventually("/sessions/charla", |it| it["state"] == "closed").await;
    assert_eq!(kept["analysis"], second["analysis"]);
    // Who declines it is left alone.
    let asked = fake.seen("/v1/chat/completions").len();
    take(&daemon, "callada", json!(false)).await.close().await;
    daemon.eventually("/sessions/callada", |it| it["state"] == "closed").await;
    assert_eq!(fake.seen("/v1/chat/completions").len(), asked);
}

#[tokio::test]
async fn who_leaves_at_once_finds_the_analysis_with_the_session() {
    let daemon = analyst().daemon(&["tasks.transcribe.model=test-echo"]);
    take(&daemon, "charla", json!(true)).await.close().await;
    let session = daemon.eventually("/sessions/charla", |it| !it["analysis"].is_null()).await;
    assert_eq!(session["analysis"]["summary"], "Una prueba.");
}

async fn until_asked(asked: &AtomicUsize) {
    while asked.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_analysis_that_the_end_of_the_daemon_cut_off_is_made_by_the_next_one() {
    let (asked, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let fake = Fake::start({
        let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
        move |_, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            let begun = Instant::now();
            while !answers.load(Ordering::Relaxed) && begun.elapsed() < LIMIT {
                std::thread::yield_now();
            }
            said(&json!({ "summary": "Una prueba." }).to_string())
        }
    });
    let mut daemon = fake.daemon(&["tasks.transcribe.model=test-echo"]);
    take(&daemon, "acabada", Value::Null).await.close().await;
    // Its client will not come back: the next daemon finds it between two takes.
    let open = take(&daemon, "abierta", Value::Null).await;
    daemon.eventually("/sessions/acabada", |it| it["state"] == "closed").await;
    until_asked(&asked).await;
    for _ in 0..2 {
        daemon = daemon.kill_and_restart();
    }
    drop(open);
    answers.store(true, Ordering::Relaxed);
    for session in ["acabada", "abierta"] {
        let path = format!("/sessions/{session}");
        let kept = daemon.eventually(&path, |it| !it["analysis"].is_null()).await;
        assert_eq!(kept["analysis"]["summary"], "Una prueba.", "{kept}");
    }
    // Once: the next daemon owes nothing.
    let daemon = daemon.kill_and_restart();
    let asked_before = asked.load(Ordering::Relaxed);
    take(&daemon, "otra", Value::Null).await.until("session_analysis").await;
    assert_eq!(asked.load(Ordering::Relaxed), asked_before + 1);
}

/// As where both have come up after a power cut.
#[tokio::test]
async fn an_analysis_that_is_owed_waits_for_a_server_that_comes_up_later() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (left, _) = mpsc::channel();
    let fake = Fake::start({
        let asked = Arc::clone(&asked);
        move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Act::Hold(Vec::new(), left.clone()),
            1 | 2 => Act::Refuse(503),
            _ => said(&json!({ "summary": "Una prueba." }).to_string()),
        }
    });
    let daemon = fake.daemon(&["tasks.transcribe.model=test-echo"]);
    take(&daemon, "acabada", Value::Null).await.close().await;
    daemon.eventually("/sessions/acabada", |it| it["state"] == "closed").await;
    until_asked(&asked).await;
    let daemon = daemon.kill_and_restart();
    let kept = daemon.eventually("/sessions/acabada", |it| !it["analysis"].is_null()).await;
    assert_eq!(kept["analysis"]["summary"], "Una prueba.", "{kept}");
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_client_that_wants_an_analysis_is_told_where_nobody_can_make_one() {
    let daemon = Daemon::start();
    let stream = take(&daemon, "charla", json!(true)).await;
    assert_eq!(stream.seen[0]["unavailable"], json!(["chat"]), "{:?}", stream.seen[0]);
    let stream = take(&daemon, "otra", Value::Null).await;
    assert_eq!(stream.seen[0]["unavailable"], Value::Null);
}
