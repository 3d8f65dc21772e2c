//! `POST /sessions/{id}/transcribe`: a session that is over is transcribed once more, as long as its audio is kept.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Daemon, LIMIT, Stream, speech_pcm};

const KEEP: &str = "store.keep_audio=true";
const ECHO: &str = "tasks.transcribe.model=test-echo";
const COUNT: &str = "tasks.transcribe.model=test-count";

async fn take(stream: &mut Stream, pcm: &[u8]) -> Value {
    for chunk in pcm.chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    timeout(LIMIT, stream.until("final_result")).await.unwrap()
}

fn config() -> Value {
    json!({ "type": "config", "session_id": "s1", "language": "es", "device": "gafas" })
}

async fn over(daemon: &Daemon) -> Value {
    daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await
}

async fn again(daemon: &Daemon, request: &str) -> (u16, Value) {
    daemon.post("/sessions/s1/transcribe", "application/json", request.to_owned()).await
}

fn ids(segments: &Value) -> Vec<u64> {
    segments.as_array().unwrap().iter().map(|it| it["id"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn another_model_hears_the_whole_session_and_its_text_stands_from_then_on() {
    let daemon = Daemon::start_with(&[ECHO, KEEP]);
    let mut stream = daemon.audio(config()).await;
    let first = take(&mut stream, &speech_pcm()).await;
    // One that its client does not want.
    stream.audio(&speech_pcm()[..96_000]).await;
    stream.send(json!({ "type": "cancel" })).await;
    let second = take(&mut stream, &speech_pcm()).await;
    let last = ids(&second["segments"]).last().copied().unwrap();
    stream.close().await;
    let before = over(&daemon).await;
    let daemon = daemon.kill_and_restart_with(COUNT);
    let (status, answer) = again(&daemon, "").await;
    assert_eq!((status, &answer["language"], &answer["model"]), (200, &json!("es"), &json!("test-count")), "{answer}");
    let segments = answer["segments"].as_array().unwrap();
    assert!(ids(&answer["segments"])[0] > last, "no id has two texts: {answer}");
    // Speech is heard as one up to half a minute of it; what was dropped is silence, and what came after it stays in place.
    assert_eq!((segments.len(), segments[0].get("words")), (1, None), "{answer}");
    let (first, second) = (&first["segments"][0], &second["segments"][0]);
    let spoken = [first, second].map(|it| it["end"].as_f64().unwrap() - it["start"].as_f64().unwrap());
    let words = segments[0]["text"].as_str().unwrap().split(' ').count();
    // Windows keep more of what is around speech than live segments do.
    let more = words as f64 / 5.0 - spoken[0] - spoken[1];
    assert!((-0.5..1.8).contains(&more), "{answer} beside {spoken:?}");
    let close = |key: &str, to: &Value| (segments[0][key].as_f64().unwrap() - to[key].as_f64().unwrap()).abs() < 1.0;
    assert!(close("start", first) && close("end", second), "{answer} beside {first} and {second}");

    let session = over(&daemon).await;
    assert_eq!(session["transcript"]["segments"], answer["segments"]);
    assert_eq!(session["duration"], before["duration"]);
    let events = daemon.get("/sessions/s1/events?limit=500").await.1;
    let told = events["events"].as_array().unwrap().last().unwrap();
    assert_eq!((&told["type"], &told["data"]["again"]), (&json!("transcript.final"), &json!(true)));
    assert_eq!(told["data"]["segments"], answer["segments"]);

    // The session goes on behind it, with ids above all that were given.
    let mut stream = daemon.audio(config()).await;
    let third = take(&mut stream, &speech_pcm()).await;
    assert!(ids(&third["segments"])[0] > *ids(&answer["segments"]).last().unwrap(), "{third}");
    stream.close().await;
    let whole = over(&daemon).await["transcript"]["segments"].as_array().unwrap().len();
    assert_eq!(whole, segments.len() + third["segments"].as_array().unwrap().len());
}

#[tokio::test]
async fn what_is_asked_counts_before_what_the_client_had_asked() {
    let daemon = Daemon::start_with(&[ECHO, KEEP, "tasks.diarize.model=test-loudness"]);
    let mut stream = daemon.audio(config()).await;
    take(&mut stream, &speech_pcm()).await;
    stream.close().await;
    over(&daemon).await;
    let (status, first) = again(&daemon, r#"{"diarize":true,"speakers":1}"#).await;
    assert_eq!((status, &first["segments"][0]["speaker"]), (200, &json!("S1")), "as it was called live: {first}");
    let (_, answer) = again(&daemon, r#"{"language":"en","words":true,"diarize":false}"#).await;
    let segment = &answer["segments"][0];
    assert_eq!((segment["words"].as_array().unwrap().len(), &segment["speaker"]), (4, &Value::Null), "{answer}");
    assert_eq!(answer["language"], "en");
    assert!(ids(&answer["segments"])[0] > ids(&first["segments"])[0], "{answer}");
    for wrong in [r#"{"language":"Klingon"}"#, r#"{"speakers":0}"#, r#"{"task":"sing"}"#, "[", r#"{"words":"yes"}"#] {
        let (status, error) = again(&daemon, wrong).await;
        assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid")), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn without_a_model_while_people_spoke_it_is_transcribed_when_there_is_one() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=none-such", KEEP]);
    let mut stream = daemon.audio(config()).await;
    let live = take(&mut stream, &speech_pcm()).await;
    assert_eq!((&live["text"], &live["unavailable"]), (&json!(""), &json!(["transcribe"])), "{live}");
    stream.close().await;
    over(&daemon).await;
    let (status, error) = again(&daemon, "").await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    let daemon = daemon.kill_and_restart_with(ECHO);
    let (status, answer) = again(&daemon, "").await;
    assert!(status == 200 && answer["text"].as_str().unwrap().ends_with(" dB"), "{answer}");
    assert_eq!(over(&daemon).await["transcript"]["text"], answer["text"]);
}

#[tokio::test]
async fn a_session_that_is_open_or_whose_audio_is_gone_says_so() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config()).await;
    take(&mut stream, &speech_pcm()).await;
    let (status, error) = again(&daemon, "").await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("still open"), "{error}");
    stream.close().await;
    let before = over(&daemon).await;
    let begun = std::time::Instant::now();
    let error = loop {
        // The log lets its files go a moment after the end.
        let (status, error) = again(&daemon, "").await;
        if status == 404 {
            break error;
        }
        assert!(begun.elapsed() < LIMIT, "{error}");
    };
    assert!(error["error"]["hint"].as_str().unwrap().contains("store.keep_audio"), "{error}");
    assert_eq!((again(&daemon, "").await.0, before["state"].as_str()), (404, Some("closed")));
    let (status, error) = daemon.post("/sessions/none/transcribe", "application/json", "").await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("not_found")));
}
