//! Cut lines, killed daemons, second clients: a session goes on as if nothing had happened.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Daemon, Stream, speech_pcm};

const ECHO: &str = "tasks.transcribe.model=test-echo";

fn config(session: &str) -> Value {
    json!({ "type": "config", "session_id": session, "sample_rate": 16000, "encoding": "pcm16", "device": "gafas" })
}

fn resume(session: &str) -> Value {
    let mut config = config(session);
    config["resume"] = json!(true);
    config
}

fn resume_after(session: &str, last_seq: u64) -> Value {
    let mut config = resume(session);
    config["last_seq"] = json!(last_seq);
    config
}

/// The fixture sentence so many times, with its pauses.
fn sentences(count: usize) -> Vec<u8> {
    speech_pcm().repeat(count)
}

fn received(stream: &Stream) -> usize {
    stream.seen[0]["received_samples"].as_u64().unwrap() as usize
}

fn last_seq(stream: &Stream) -> u64 {
    stream.seen.last().unwrap()["seq"].as_u64().unwrap()
}

async fn send(stream: &mut Stream, audio: &[u8]) {
    for chunk in audio.chunks(3200) {
        stream.audio(chunk).await;
    }
}

/// Sends what is left from where the server says it is, and ends the take.
async fn send_rest(stream: &mut Stream, audio: &[u8]) -> Value {
    let from = received(stream) * 2;
    send(stream, &audio[from..]).await;
    stream.end().await;
    stream.until("final_result").await
}

/// What an uninterrupted run gives.
async fn undisturbed(daemon: &Daemon, audio: &[u8]) -> Value {
    let mut stream = daemon.audio(config("undisturbed")).await;
    send_rest(&mut stream, audio).await
}

fn transcript(result: &Value) -> Value {
    json!([result["text"], result["duration"], result["segments"]])
}

fn segment_ids<'a>(messages: impl IntoIterator<Item = &'a Value>) -> Vec<u64> {
    let segments = messages.into_iter().filter(|it| it["type"] == "segment_result");
    segments.map(|it| it["segment"]["id"].as_u64().unwrap()).collect()
}

/// Each segment was published once, the final result once, the end once, and no number is missing.
async fn assert_published_once(daemon: &Daemon, session: &str, result: &Value) {
    let events = daemon.replay(session).await;
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], n as u64 + 1);
    }
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let published: Vec<&Value> = of("transcript.segment").iter().map(|it| &it["data"]["segment"]).collect();
    assert_eq!(json!(published), result["segments"]);
    assert_eq!((of("transcript.final").len(), of("session.start").len(), of("session.end").len()), (1, 1, 1));
    let speech: Vec<&Value> = of("speech").iter().map(|it| &it["data"]["state"]).collect();
    assert!(speech.chunks(2).all(|pair| pair == [&json!("start"), &json!("end")]), "{speech:?}");
}

#[tokio::test]
async fn a_cut_line_costs_nothing_wherever_it_is_cut() {
    let daemon = Daemon::start();
    let audio = sentences(3);
    let expected = undisturbed(&daemon, &audio).await;
    let mut stream = daemon.audio(config("s1")).await;
    assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["take_open"]), (&json!(false), &json!(false)));
    let mut at = 0;
    // In silence, in speech, in the middle of a frame and of a millisecond.
    for cut in [9_990, 50_002, 90_002, 110_034, 200_000, 230_000] {
        stream.audio(&audio[at..cut]).await;
        // Some of it the daemon may not even have read when the line is gone.
        drop(stream);
        stream = daemon.audio(resume("s1")).await;
        assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["take_open"]), (&json!(true), &json!(true)));
        at = received(&stream) * 2;
        assert!(at <= cut);
    }
    let result = send_rest(&mut stream, &audio).await;
    assert_eq!(transcript(&result), transcript(&expected));
    stream.close().await;
    assert_published_once(&daemon, "s1", &result).await;
}

#[tokio::test]
async fn who_comes_back_is_told_what_it_has_missed_and_no_more() {
    let daemon = Daemon::start();
    let audio = sentences(3);
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &audio[..audio.len() / 3 + 30_000]).await;
    stream.until("segment_result").await;
    let seen = last_seq(&stream);
    drop(stream);

    let mut stream = daemon.audio(resume_after("s1", seen)).await;
    assert!(stream.seen[0]["seq"].as_u64() > Some(seen), "numbers go on");
    let result = send_rest(&mut stream, &audio).await;
    assert_eq!(segment_ids(&stream.seen), [1, 2], "the first had been seen");
    let seqs: Vec<u64> = stream.seen.iter().map(|it| it["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (seqs[0]..seqs[0] + seqs.len() as u64).collect::<Vec<_>>());
    // The final result is lost on the way.
    let before = seqs[seqs.len() - 2];
    drop(stream);
    let mut stream = daemon.audio(resume_after("s1", before)).await;
    assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["take_open"]), (&json!(true), &json!(false)));
    let again = stream.until("final_result").await;
    assert_eq!(transcript(&again), transcript(&result));
    assert_eq!(stream.seen.len(), 2, "{:?}", stream.seen);
    drop(stream);

    // And everything comes again to who has seen nothing.
    let mut stream = daemon.audio(resume("s1")).await;
    stream.until("final_result").await;
    assert_eq!(segment_ids(&stream.seen), [0, 1, 2]);
}

#[tokio::test]
async fn who_does_not_come_back_leaves_a_finished_session() {
    let daemon = Daemon::start_with(&[ECHO, "audio.resume_secs=1"]);
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &speech_pcm()).await;
    let mut events = daemon.socket("/ws/events?session=s1").await;
    // No end of stream, no closing frame.
    drop(stream);
    let result = events.until("transcript.final").await["data"].clone();
    assert_eq!(result["segments"].as_array().unwrap().len(), 1, "{result}");
    assert_published_once(&daemon, "s1", &result).await;

    // It comes late: what it has missed, and a new take.
    let mut stream = daemon.audio(resume("s1")).await;
    assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["take_open"]), (&json!(false), &json!(false)));
    assert_eq!(received(&stream), speech_pcm().len() / 2);
    let missed = stream.until("final_result").await;
    assert_eq!(transcript(&missed), transcript(&result));
    send(&mut stream, &speech_pcm()).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    assert_eq!(result["segments"][0]["id"], 1);
}

#[tokio::test]
async fn without_a_window_a_session_ends_with_its_line() {
    let daemon = Daemon::start_with(&[ECHO, "audio.resume_secs=0"]);
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &speech_pcm()).await;
    drop(stream);
    let session = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    assert_eq!(session["transcript"]["segments"].as_array().unwrap().len(), 1, "{session}");
}

#[tokio::test]
async fn a_goodbye_in_the_middle_of_a_take_finishes_it() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &speech_pcm()).await;
    stream.close().await;
    let session = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    assert_eq!(session["transcript"]["segments"].as_array().unwrap().len(), 1, "{session}");
}

#[tokio::test]
async fn a_killed_daemon_goes_on_where_it_was() {
    let mut daemon = Daemon::start();
    let audio = sentences(4);
    let expected = undisturbed(&daemon, &audio).await;
    let mut stream = daemon.audio(config("s1")).await;
    // Before, in and after speech; the last time everything is in and its text may be on its way.
    for upto in [8_000, 60_000, 130_000, 250_000, audio.len()] {
        let from = received(&stream) * 2;
        if upto > from {
            send(&mut stream, &audio[from..upto]).await;
        }
        let acknowledged =
            if upto > from { stream.until("ack").await["received_samples"].as_u64().unwrap() } else { 0 };
        let seen = last_seq(&stream);
        daemon = daemon.kill_and_restart();
        stream = daemon.audio(resume_after("s1", seen)).await;
        assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["take_open"]), (&json!(true), &json!(true)));
        assert!(received(&stream) as u64 >= acknowledged, "{} of {acknowledged}", received(&stream));
        assert!(received(&stream) * 2 <= audio.len());
    }
    let result = send_rest(&mut stream, &audio).await;
    assert_eq!(transcript(&result), transcript(&expected));
    stream.close().await;
    assert_published_once(&daemon, "s1", &result).await;
}

/// What was told as committed of each segment, the last of it; every one begins those after it, and the final text.
fn committed(messages: &[Value]) -> BTreeMap<u64, String> {
    let mut committed: BTreeMap<u64, String> = BTreeMap::new();
    for message in messages {
        if message["type"] == "partial_result" {
            let before = committed.entry(message["segment"].as_u64().unwrap()).or_default();
            let now = message["committed"].as_str().unwrap();
            assert!(now.starts_with(&**before), "{before:?} became {now:?}");
            *before = now.to_owned();
        } else if message["type"] == "segment_result" {
            let segment = &message["segment"];
            let before = committed.get(&segment["id"].as_u64().unwrap()).cloned().unwrap_or_default();
            assert!(segment["text"].as_str().unwrap().starts_with(&*before), "{before:?} is not in {segment}");
        }
    }
    committed
}

#[tokio::test]
async fn committed_words_outlive_the_daemon_that_heard_them() {
    let sets = ["tasks.transcribe.model=test-count", "audio.first_partial_ms=300", "audio.partial_interval_ms=100"];
    let daemon = Daemon::start_with(&sets);
    let audio = speech_pcm();
    let mut stream = daemon.audio(config("s1")).await;
    let mut sent = 0;
    // Speech goes on until words are committed.
    while committed(&stream.seen).values().all(String::is_empty) {
        stream.audio(&audio[sent..sent + 9_600]).await;
        sent += 9_600;
        drop(timeout(Duration::from_secs(1), stream.until("partial_result")).await);
    }
    let seen = stream.seen.clone();
    let before = committed(&seen)[&0].clone();
    assert!(stream.of("segment_result").is_empty());
    // The next one understands something else, and is heard by a client that says nothing more.
    let daemon = daemon.kill_and_restart_with("tasks.transcribe.model=test-echo");
    let mut stream = daemon.audio(resume_after("s1", seen.last().unwrap()["seq"].as_u64().unwrap())).await;
    let result = send_rest(&mut stream, &audio).await;
    committed(&[seen, stream.seen.clone()].concat());
    let text = result["segments"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(&before) && text.ends_with(" dB"), "{before:?}, then {text:?}");
    stream.close().await;
    assert_published_once(&daemon, "s1", &result).await;
}

#[tokio::test]
async fn committed_words_are_all_that_is_left_where_nobody_can_transcribe_any_more() {
    let sets = ["tasks.transcribe.model=test-count", "audio.first_partial_ms=300", "audio.partial_interval_ms=100"];
    let daemon = Daemon::start_with(&sets);
    let mut stream = daemon.audio(config("s1")).await;
    for part in speech_pcm()[..80_000].chunks(9_600) {
        stream.audio(part).await;
        drop(timeout(Duration::from_secs(1), stream.until("partial_result")).await);
    }
    let before = committed(&stream.seen)[&0].clone();
    assert!(!before.is_empty(), "{:#?}", stream.seen);
    let daemon = daemon.kill_and_restart_with("tasks.transcribe.model=none-such");
    let mut stream = daemon.audio(resume("s1")).await;
    let result = send_rest(&mut stream, &speech_pcm()).await;
    assert_eq!((&result["segments"][0]["text"], &result["unavailable"]), (&json!(before), &json!(["transcribe"])));
}

#[tokio::test]
async fn a_daemon_that_is_stopped_leaves_the_take_to_the_next_one() {
    let mut daemon = Daemon::start();
    let audio = sentences(2);
    let expected = undisturbed(&daemon, &audio).await;
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &audio[..60_000]).await;
    stream.until("speech").await;
    daemon.signal("-TERM");
    assert_eq!(stream.closed().await, 1012);
    assert!(stream.of("final_result").is_empty());
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    let daemon = daemon.restart();
    let mut stream = daemon.audio(resume_after("s1", last_seq(&stream))).await;
    assert_eq!(stream.seen[0]["resumed"], true);
    let result = send_rest(&mut stream, &audio).await;
    assert_eq!(transcript(&result), transcript(&expected));
    stream.close().await;
    assert_published_once(&daemon, "s1", &result).await;
}

#[tokio::test]
async fn a_session_whose_client_stays_away_is_finished_by_the_next_daemon() {
    let daemon = Daemon::start_with(&[ECHO, "audio.resume_secs=1"]);
    let mut stream = daemon.audio(config("s1")).await;
    send(&mut stream, &speech_pcm()).await;
    while stream.until("ack").await["received_samples"] != json!(speech_pcm().len() / 2) {}
    let daemon = daemon.kill_and_restart();
    let session = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    let result = &session["transcript"];
    assert_eq!(result["segments"].as_array().unwrap().len(), 1, "{session}");
    assert_published_once(&daemon, "s1", result).await;
    // What comes later has numbers and times of its own.
    let mut stream = daemon.audio(config("s1")).await;
    let later = send_rest_of_new_take(&mut stream).await;
    assert_eq!(later["segments"][0]["id"], 1);
    assert!(later["segments"][0]["start"].as_f64() > result["segments"][0]["end"].as_f64());
}

async fn send_rest_of_new_take(stream: &mut Stream) -> Value {
    send(stream, &speech_pcm()).await;
    stream.end().await;
    stream.until("final_result").await
}

#[tokio::test]
async fn the_newer_of_two_clients_goes_on_in_the_take() {
    let daemon = Daemon::start();
    let audio = sentences(2);
    let expected = undisturbed(&daemon, &audio).await;
    let mut older = daemon.audio(config("s1")).await;
    send(&mut older, &audio[..100_000]).await;
    older.until("ack").await;
    let mut newer = daemon.audio(resume("s1")).await;
    assert_eq!(older.closed().await, 1008);
    assert_eq!(newer.seen[0]["take_open"], true);
    let result = send_rest(&mut newer, &audio).await;
    assert_eq!(transcript(&result), transcript(&expected));
}

#[tokio::test]
async fn chunks_that_come_again_are_passed_over() {
    let daemon = Daemon::start();
    let audio = sentences(2);
    let expected = undisturbed(&daemon, &audio).await;
    let chunk = |id: usize| {
        let data = base64(&audio[(id - 1) * 6400..audio.len().min(id * 6400)]);
        json!({ "type": "audio_chunk", "chunk_id": id, "data_b64": data })
    };
    let chunks = audio.len().div_ceil(6400);
    let mut stream = daemon.audio(config("s1")).await;
    for id in [1, 2, 3, 2, 3, 4, 1, 5] {
        stream.send(chunk(id)).await;
    }
    let mut acknowledged = 0;
    while acknowledged < 5 {
        let ack = stream.until("ack").await;
        acknowledged = ack["chunk_id"].as_u64().unwrap();
        assert_eq!(ack["received_samples"], acknowledged * 3200);
    }
    drop(stream);
    // It knows only of its third chunk that it arrived.
    let mut stream = daemon.audio(resume("s1")).await;
    for id in 4..=chunks {
        stream.send(chunk(id)).await;
    }
    stream.end().await;
    let result = stream.until("final_result").await;
    assert_eq!(transcript(&result), transcript(&expected));
}

/// As a client writes it; any alphabet does.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| DIGITS[bits as usize & 63] as char;
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        text.extend((0..=group.len()).map(|n| digit(bits >> (18 - 6 * n))));
    }
    text
}

#[tokio::test]
async fn more_or_less_than_was_cut_off_is_simply_what_comes_next() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(config("s1")).await;
    stream.audio(&[0; 32_000]).await;
    stream.until("ack").await;
    drop(stream);
    let mut stream = daemon.audio(resume("s1")).await;
    let before = received(&stream);
    // As one that kept nothing and goes on with what it hears now.
    stream.audio(&[0; 9_000]).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    let samples = (result["duration"].as_f64().unwrap() * 16_000.0).round() as usize;
    assert_eq!((before, samples), (16_000, 16_000 + 4_500));
}

#[tokio::test]
async fn resuming_what_was_never_there_begins_it() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(resume("s1")).await;
    assert_eq!((&stream.seen[0]["resumed"], &stream.seen[0]["seq"]), (&json!(false), &json!(1)));
    assert_eq!(received(&stream), 0);
    send_rest_of_new_take(&mut stream).await;
    let mut stream = daemon.socket("/ws/audio").await;
    stream.send(json!({ "type": "config", "resume": true })).await;
    let error = stream.until("error").await;
    assert!(error["message"].as_str().unwrap().contains("session_id"), "{error}");
}

#[tokio::test]
async fn a_container_goes_on_with_a_new_one() {
    let daemon = Daemon::start();
    let wav = crate::harness::data("speech/speech.wav");
    let mut config = config("s1");
    config["encoding"] = json!("wav");
    let mut stream = daemon.audio(config.clone()).await;
    stream.audio(&wav[..60_000]).await;
    stream.until("ack").await;
    drop(stream);
    config["resume"] = json!(true);
    let mut stream = daemon.audio(config).await;
    let samples = received(&stream);
    assert!(samples > 16_000 && samples <= (60_000 - 44) / 2, "{samples}");
    stream.audio(&wav[..44]).await;
    stream.audio(&wav[44 + 2 * samples..]).await;
    stream.end().await;
    let result = stream.until("final_result").await;
    let duration = (wav.len() - 44) as f64 / 32_000.0;
    assert!((result["duration"].as_f64().unwrap() - duration).abs() < 1e-6, "{result}");
}
