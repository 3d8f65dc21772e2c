//! Live audio from the first chunk to what everybody sees of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Daemon, Stream, speech_pcm};

fn config(session: &str) -> Value {
    json!({ "type": "config", "session_id": session, "sample_rate": 16000, "encoding": "pcm16", "language": "es",
            "device": "gafas 1" })
}

async fn speak(stream: &mut Stream) -> Value {
    for chunk in speech_pcm().chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    stream.until("final_result").await
}

fn assert_gap_free(messages: &[Value]) {
    let seqs: Vec<u64> = messages.iter().map(|message| message["seq"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = (seqs[0]..seqs[0] + seqs.len() as u64).collect();
    assert_eq!(seqs, expected);
}

#[tokio::test]
async fn one_sentence_becomes_speech_partials_a_segment_and_a_final_result() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "audio.partial_interval_ms=50"]);
    let mut events = daemon.socket("/ws/events?session=s1").await;
    let mut stream = daemon.audio(config("s1")).await;
    let ack = stream.seen[0].clone();
    assert_eq!(
        (&ack["message"], &ack["session_id"], &ack["resumed"], &ack["received_samples"]),
        (&json!("config received"), &json!("s1"), &json!(false), &json!(0))
    );
    assert!(ack.get("unavailable").is_none(), "{ack}");
    let pcm = speech_pcm();
    // Half a second into the sentence, and no further before a partial has come.
    let (begun, rest) = pcm.split_at(40_000);
    stream.audio(begun).await;
    stream.until("partial_result").await;
    stream.audio(rest).await;
    stream.end().await;
    let result = stream.until("final_result").await;

    let samples = speech_pcm().len() / 2;
    let speech: Vec<&Value> = stream.of("speech").iter().map(|it| &it["state"]).collect();
    assert_eq!(speech, ["start", "end"]);
    let segments = stream.of("segment_result");
    assert_eq!(segments.len(), 1);
    let segment = &segments[0]["segment"];
    let (start, end) = (segment["start"].as_f64().unwrap(), segment["end"].as_f64().unwrap());
    assert!((0.4..0.8).contains(&start) && (2.0..4.0).contains(&end), "{segment}");
    // The test engine says how long and loud the audio was that it was given: the very segment.
    assert!(segment["text"].as_str().unwrap().starts_with(&format!("{:.2} s -", end - start)), "{segment}");
    assert_eq!((&segment["language"], &segment["speaker"]), (&json!("es"), &Value::Null));
    let partials = stream.of("partial_result");
    assert!(!partials.is_empty());
    assert!(partials.iter().all(|partial| partial["committed"] == "" && partial["segment"] == segment["id"]));
    assert_eq!(result["segments"], json!([segment]));
    assert_eq!((&result["text"], &result["language"]), (&segment["text"], &json!("es")));
    assert!((result["duration"].as_f64().unwrap() - samples as f64 / 16000.0).abs() < 1e-6);
    let durable = stream.of("ack").last().unwrap()["received_samples"].as_u64().unwrap();
    assert_eq!(durable, samples as u64);
    assert!(stream.seen.iter().all(|message| message["session_id"] == "s1"));
    let seen = stream.close().await;
    assert_gap_free(&seen);

    events.until("session.end").await;
    assert_gap_free(&events.seen);
    let kinds: Vec<&str> = events.seen.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"session.start"));
    for kind in ["speech", "transcript.partial", "transcript.segment", "transcript.final"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    let event = &events.seen[0];
    assert_eq!((&event["v"], &event["device"], &event["session"]), (&json!(1), &json!("gafas 1"), &json!("s1")));

    let stored = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    assert_eq!(stored["transcript"]["segments"][0]["text"], result["text"], "{stored}");
    let replay = daemon.replay("s1").await;
    assert_eq!(replay, events.seen);
    let (_, list) = daemon.get("/sessions?device=gafas%201").await;
    assert_eq!(list["sessions"][0]["session_id"], "s1", "{list}");
    let (_, none) = daemon.get("/sessions?device=other").await;
    assert_eq!(none["sessions"], json!([]));
}

#[tokio::test]
async fn without_a_speech_model_times_come_without_text() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model="]);
    let mut stream = daemon.audio(config("s1")).await;
    let ack = &stream.seen[0];
    assert_eq!(ack["unavailable"], json!(["transcribe"]));
    assert!(ack["hint"].as_str().unwrap().contains("tasks.transcribe.model"), "{ack}");
    let result = speak(&mut stream).await;
    assert_eq!(stream.of("speech").len(), 2);
    assert_eq!((&result["unavailable"], &result["text"]), (&json!(["transcribe"]), &json!("")));
    let segment = &result["segments"][0];
    assert!(segment["end"].as_f64() > segment["start"].as_f64() && segment["text"] == "", "{result}");
}

#[tokio::test]
async fn a_second_take_goes_on_in_time_and_number() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    let first = speak(&mut stream).await;
    let second = speak(&mut stream).await;
    let at = |result: &Value, key: &str| result["segments"][0][key].as_f64().unwrap();
    let secs = speech_pcm().len() as f64 / 32000.0;
    assert!((at(&second, "start") - at(&first, "start") - secs).abs() < 0.1, "{first} {second}");
    assert_eq!(at(&second, "id"), at(&first, "id") + 1.0);
    stream.close().await;
    daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    // And in a connection of its own.
    let mut stream = daemon.audio(config("s1")).await;
    assert_eq!(stream.seen[0]["received_samples"], json!(2 * speech_pcm().len() / 2));
    let third = speak(&mut stream).await;
    assert!((at(&third, "start") - at(&first, "start") - 2.0 * secs).abs() < 0.1, "{third}");
    assert_eq!(at(&third, "id"), at(&first, "id") + 2.0);
}

#[tokio::test]
async fn a_session_goes_on_at_the_very_sample_that_was_acknowledged() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    // Cut off in the middle of speech, and in the middle of a millisecond.
    stream.audio(&speech_pcm()[..2 * 20_010]).await;
    stream.end().await;
    stream.until("final_result").await;
    assert_eq!(stream.of("segment_result").len(), 1);
    assert_eq!(stream.of("ack").last().unwrap()["received_samples"], json!(20_010));
    stream.close().await;
    daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    let stream = daemon.audio(config("s1")).await;
    assert_eq!(stream.seen[0]["received_samples"], json!(20_010));
}

#[tokio::test]
async fn a_cancelled_take_says_nothing_and_the_next_one_is_whole() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    stream.audio(&speech_pcm()[..60_000]).await;
    assert_eq!(stream.until("speech").await["state"], "start");
    stream.send(json!({ "type": "cancel" })).await;
    assert_eq!(stream.until("speech").await["state"], "end");
    let result = speak(&mut stream).await;
    assert_eq!(stream.of("final_result").len(), 1);
    assert_eq!(result["segments"].as_array().unwrap().len(), 1);
    assert!((result["duration"].as_f64().unwrap() - speech_pcm().len() as f64 / 32000.0).abs() < 1e-6);
}

#[tokio::test]
async fn an_empty_take_has_an_empty_result() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    assert_eq!((&result["text"], &result["segments"], &result["duration"]), (&json!(""), &json!([]), &json!(0.0)));
}

#[tokio::test]
async fn a_newer_client_takes_the_session_over() {
    let daemon = Daemon::start();
    let mut older = daemon.audio(config("s1")).await;
    older.audio(&speech_pcm()[..32_000]).await;
    older.until("ack").await;
    let mut newer = daemon.audio(config("s1")).await;
    assert_eq!(older.closed().await, 1008);
    // The older one's take is finished; a new one begins after it.
    assert_eq!((&newer.seen[0]["resumed"], &newer.seen[0]["take_open"]), (&json!(false), &json!(false)));
    assert_eq!(newer.seen[0]["received_samples"], json!(16_000));
    speak(&mut newer).await;
    newer.close().await;
    let session = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    assert_eq!(session["takes"], 2);
}

#[tokio::test]
async fn a_newer_client_does_not_wait_for_an_older_one_that_takes_nothing() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "server.send_timeout_secs=60"]);
    let mut older = daemon.audio(config("s1")).await;
    // Each wrong message is answered, and no answer is read: in the end the daemon is stuck at sending.
    let nonsense = format!(r#"{{"type":"{}"}}"#, "x".repeat(1_000));
    let mut stuck = false;
    while !stuck {
        let more = async {
            older.send_text(&nonsense).await;
            // What is right in between keeps it from being closed for too many errors.
            older.audio(&[]).await;
        };
        stuck = timeout(Duration::from_secs(2), more).await.is_err();
    }
    let begun = Instant::now();
    let mut newer = daemon.audio(config("s1")).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    speak(&mut newer).await;
}

#[tokio::test]
async fn sessions_beyond_the_limit_are_told_to_come_later() {
    let daemon = Daemon::start_with(&["audio.max_sessions=1"]);
    let _first = daemon.audio(config("s1")).await;
    let mut second = daemon.socket("/ws/audio").await;
    second.send(config("s2")).await;
    let error = second.until("error").await;
    assert_eq!((&error["code"], &error["fatal"]), (&json!("busy"), &json!(true)), "{error}");
    assert!(error["hint"].as_str().is_some());
    assert_eq!(second.closed().await, 1013);
}
