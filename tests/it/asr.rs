//! Recordings over HTTP: every container, results as they come, clients that leave, files that are none, and memory
//! that does not grow with the length. The engine here says what it was given, so that the right audio is seen to arrive.

use std::{
    fs,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Daemon, LIMIT, data, speech_pcm};

const TYPE: &str = "multipart/form-data; boundary=XX";

/// A form with a file and texts.
pub(crate) fn form(file: &[u8], fields: &[(&str, &str)]) -> Bytes {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    body.extend(b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n");
    body.extend(file);
    body.extend(b"\r\n--XX--\r\n");
    body.into()
}

/// The head of a file of 16 kHz mono.
pub(crate) fn wav(pcm_bytes: u32) -> Vec<u8> {
    let mut header = b"RIFF".to_vec();
    header.extend(pcm_bytes.saturating_add(36).to_le_bytes());
    header.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    header.extend(16_000u32.to_le_bytes());
    header.extend(32_000u32.to_le_bytes());
    header.extend(b"\x02\0\x10\0data");
    header.extend(pcm_bytes.to_le_bytes());
    header
}

/// The sentence of the fixtures and silence in turn.
fn recording(secs: f64, gap_secs: usize) -> Vec<u8> {
    let mut turn = speech_pcm();
    turn.resize(turn.len() + gap_secs * 32_000, 0);
    let bytes = (secs * 32_000.0) as usize / 2 * 2;
    let mut file = wav(bytes as u32);
    file.extend(turn.iter().cycle().take(bytes));
    file
}

pub(crate) async fn stt(daemon: &Daemon, file: &[u8], fields: &[(&str, &str)]) -> (u16, Value) {
    daemon.post("/api/stt", TYPE, form(file, fields)).await
}

/// A connection on which a form was sent.
pub(crate) async fn asked(daemon: &Daemon, accept: &str, body: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(daemon.http).await.unwrap();
    let head = format!(
        "POST /api/stt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\nContent-Type: {TYPE}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(body).await.unwrap();
    tcp
}

/// The events of an answer, taken out of its chunks.
pub(crate) fn events(answer: &str) -> Vec<(String, Value)> {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let text: String =
        body.split("\r\n").collect::<Vec<&str>>().chunks(2).filter_map(|chunk| chunk.get(1).copied()).collect();
    let event = |block: &str| {
        let (name, data) = block.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split("\n\n").filter_map(event).collect()
}

async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let (_, body) = vigia::api::client::request(daemon.http, "GET", "/metrics", &[], Bytes::new()).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_file_of_any_container_becomes_text() {
    let daemon = Daemon::start();
    for name in ["wav", "flac", "mp3", "ogg", "webm", "aac", "mp4"] {
        let file = data(&format!("speech/speech.{name}"));
        let (status, answer) = stt(&daemon, &file, &[("language", "es")]).await;
        assert_eq!(status, 200, "{name}: {answer}");
        let segments = answer["segments"].as_array().unwrap();
        assert_eq!(segments.len(), 1, "{name}: {answer}");
        let (start, end) = (segments[0]["start"].as_f64().unwrap(), segments[0]["end"].as_f64().unwrap());
        // The sentence stands between two pauses of a second.
        assert!((0.1..1.2).contains(&start) && (2.0..3.9).contains(&end), "{name}: {answer}");
        assert_eq!((&answer["language"], &answer["model"]), (&json!("es"), &json!("test-echo")));
        assert!((answer["duration"].as_f64().unwrap() - 4.06).abs() < 0.2, "{name}: {answer}");
        assert_eq!(answer["text"], segments[0]["text"]);
        assert!(answer.get("unavailable").is_none() && segments[0].get("words").is_none(), "{answer}");
    }
    let (_, answer) = stt(&daemon, &data("speech/speech.wav"), &[("words", "true")]).await;
    assert_eq!(answer["segments"][0]["words"].as_array().unwrap().len(), 4, "{answer}");
}

#[tokio::test]
async fn results_come_as_they_are_made_and_the_last_holds_all() {
    let daemon = Daemon::start();
    let body = form(&recording(180.0, 30), &[("language", "auto")]);
    let mut tcp = asked(&daemon, "text/event-stream", &body).await;
    let mut answer = String::new();
    timeout(LIMIT, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("text/event-stream"), "{answer}");
    let events = events(&answer);
    let segments: Vec<&Value> = events.iter().filter(|(name, _)| name == "segment").map(|(_, it)| it).collect();
    assert!(segments.len() > 1, "{answer}");
    let (last, done) = events.last().unwrap();
    assert_eq!(last, "done", "{answer}");
    assert_eq!(done["segments"].as_array().unwrap().iter().collect::<Vec<_>>(), segments);
    assert_eq!(done["duration"], json!(180.0));
    let (_, progress) = events.iter().rfind(|(name, _)| name == "progress").unwrap();
    assert_eq!(progress, &json!({ "secs": 180.0, "duration": 180.0 }));
    let starts: Vec<f64> = segments.iter().map(|it| it["start"].as_f64().unwrap()).collect();
    assert!(starts.is_sorted() && starts[starts.len() - 1] > 100.0, "{starts:?}");
}

#[tokio::test]
async fn silence_and_an_empty_recording_have_no_text() {
    let daemon = Daemon::start();
    let mut silence = wav(60 * 32_000);
    silence.resize(silence.len() + 60 * 32_000, 0);
    for (file, duration) in [(silence, 60.0), (wav(0), 0.0)] {
        let (status, answer) = stt(&daemon, &file, &[]).await;
        assert_eq!((status, &answer["text"], &answer["segments"]), (200, &json!(""), &json!([])), "{answer}");
        assert_eq!(answer["duration"], json!(duration));
    }
}

#[tokio::test]
async fn what_is_no_recording_is_an_error_and_never_a_crash() {
    let daemon = Daemon::start();
    let mut huge = wav(u32::MAX);
    huge.extend([0; 1000]);
    let flac = data("speech/speech.flac");
    let mut broken = flac.clone();
    broken[400..].iter_mut().for_each(|byte| *byte ^= 0x5A);
    for (file, statuses) in [
        (b"no audio at all, only words".to_vec(), &[415][..]),
        (b"#EXTM3U\nhttp://127.0.0.1:1/a.ts\n".to_vec(), &[415]),
        (data("media/rgb.png"), &[415]),
        (Vec::new(), &[400]),
        (huge, &[200, 400]),
        (broken, &[200, 400]),
        (flac[..200].to_vec(), &[200, 400]),
        (flac[..flac.len() / 2].to_vec(), &[200, 400]),
    ] {
        let (status, answer) = stt(&daemon, &file, &[]).await;
        assert!(statuses.contains(&status), "{status} for {} bytes: {answer}", file.len());
        let mut tcp = asked(&daemon, "text/event-stream", &form(&file, &[])).await;
        let mut told = String::new();
        timeout(LIMIT, tcp.read_to_string(&mut told)).await.unwrap().unwrap();
        assert!(!told.is_empty());
    }
    let (status, error) = stt(&daemon, &data("speech/speech.wav"), &[("diarize", "true")]).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    let cut = asked(&daemon, "*/*", &form(&flac, &[])[..5000]).await;
    drop(cut);
    assert_eq!(stt(&daemon, &data("speech/speech.wav"), &[]).await.0, 200);
}

#[tokio::test]
async fn a_recording_that_breaks_off_keeps_its_text_and_says_so() {
    let daemon = Daemon::start();
    let whole = recording(60.0, 4);
    let flac = data("speech/speech.flac");
    for (file, from, to) in [(&whole[..whole.len() / 2], 29.0, 30.1), (&flac[..flac.len() - flac.len() / 5], 2.0, 4.0)]
    {
        let (status, answer) = stt(&daemon, file, &[]).await;
        assert_eq!(status, 200, "{answer}");
        assert!(!answer["text"].as_str().unwrap().is_empty(), "{answer}");
        let duration = answer["duration"].as_f64().unwrap();
        assert!((from..to).contains(&duration), "{answer}");
        assert_eq!(answer["warnings"][0]["code"], json!("cut"), "{answer}");
        assert!(answer["warnings"][0]["message"].as_str().unwrap().contains("cut off after"), "{answer}");
        let mut tcp = asked(&daemon, "text/event-stream", &form(file, &[])).await;
        let mut told = String::new();
        timeout(LIMIT, tcp.read_to_string(&mut told)).await.unwrap().unwrap();
        let (name, done) = events(&told).pop().unwrap();
        assert_eq!((&*name, &done["warnings"]), ("done", &answer["warnings"]), "{done}");
    }
    let (_, answer) = stt(&daemon, &whole, &[]).await;
    assert!(answer.get("warnings").is_none(), "{answer}");
    let (status, error) = stt(&daemon, &whole[..44], &[]).await;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("before any of its audio"), "{error}");
}

#[tokio::test]
async fn without_a_model_the_answer_says_how_to_get_one() {
    let daemon = Daemon::start_with(&[]);
    let (status, error) = stt(&daemon, &data("speech/speech.wav"), &[]).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("vigia models"), "{error}");
}

#[tokio::test]
async fn uploads_are_bounded_and_leave_nothing_behind() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "server.max_upload=1 MiB"]);
    let (status, error) = stt(&daemon, &vec![0; 2 << 20], &[]).await;
    assert_eq!((status, &error["error"]["code"]), (413, &json!("too_large")), "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("server.max_upload"), "{error}");
    let mut chunked = TcpStream::connect(daemon.http).await.unwrap();
    let head =
        format!("POST /api/stt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: {TYPE}\r\n\r\n");
    chunked.write_all(head.as_bytes()).await.unwrap();
    let begin = form(&[], &[]);
    let begin = &begin[..begin.len() - 10];
    chunked.write_all(format!("{:x}\r\n", begin.len()).as_bytes()).await.unwrap();
    chunked.write_all(begin).await.unwrap();
    chunked.write_all(b"\r\n").await.unwrap();
    let part = [&b"10000\r\n"[..], &[7; 65_536], b"\r\n"].concat();
    for _ in 0..32 {
        if chunked.write_all(&part).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    timeout(LIMIT, chunked.read_to_end(&mut answer)).await.unwrap().unwrap_or(0);
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    let left: Vec<String> = fs::read_dir(daemon.dir().join("state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("upload"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_work() {
    let daemon = Daemon::start();
    let body = form(&recording(3000.0, 2), &[]);
    for accept in ["text/event-stream", "application/json"] {
        let begun = metric(&daemon, "vigia_jobs_total").await;
        let tcp = asked(&daemon, accept, &body).await;
        let waiting = Instant::now();
        while metric(&daemon, "vigia_jobs_total").await == begun {
            assert!(waiting.elapsed() < LIMIT, "nothing was begun\n{}", daemon.log());
            tokio::task::yield_now().await;
        }
        drop(tcp);
        // Its pipeline and its jobs end: the count comes to rest far from the end of the recording.
        let mut last = (metric(&daemon, "vigia_jobs_total").await, Instant::now());
        while last.1.elapsed() < Duration::from_secs(1) {
            assert!(waiting.elapsed() < LIMIT, "the work goes on without its client");
            let jobs = metric(&daemon, "vigia_jobs_total").await;
            if jobs != last.0 {
                last = (jobs, Instant::now());
            }
        }
        assert!(last.0 - begun < 100.0, "{} windows were done for nobody", last.0 - begun);
    }
    // All places are free again.
    for _ in 0..10 {
        assert_eq!(stt(&daemon, &data("speech/speech.wav"), &[]).await.0, 200);
    }
}

#[tokio::test]
async fn somebody_who_speaks_is_served_while_a_recording_is_transcribed() {
    let daemon = Daemon::start();
    let body = form(&recording(1800.0, 1), &[]);
    let mut tcp = asked(&daemon, "text/event-stream", &body).await;
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    for chunk in speech_pcm().chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    let result = timeout(LIMIT, stream.until("final_result")).await.unwrap();
    assert_eq!(result["segments"].as_array().unwrap().len(), 1, "{result}");
    let mut answer = String::new();
    timeout(LIMIT, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(events(&answer).last().unwrap().0, "done");
}

/// Sends a recording of that length without holding it, and returns how much larger the daemon was at its largest.
async fn growth_kib(daemon: &Daemon, secs: u64) -> u64 {
    let pcm_bytes = secs * 32_000;
    let turn = [speech_pcm(), vec![0; 20 * 32_000]].concat();
    let mut tcp = TcpStream::connect(daemon.http).await.unwrap();
    let begin = form(&wav(pcm_bytes as u32), &[("language", "es")]);
    let (begin, end) = begin.split_at(begin.len() - b"\r\n--XX--\r\n".len());
    let length = begin.len() as u64 + pcm_bytes + end.len() as u64;
    let head = format!(
        "POST /api/stt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: text/event-stream\r\nContent-Type: {TYPE}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(begin).await.unwrap();
    let before = daemon.rss_kib();
    let mut left = pcm_bytes as usize;
    while left > 0 {
        let part = &turn[..turn.len().min(left)];
        tcp.write_all(part).await.unwrap();
        left -= part.len();
    }
    tcp.write_all(end).await.unwrap();
    let (mut answer, mut largest) = (Vec::new(), before);
    let mut part = vec![0; 65_536];
    loop {
        let read = timeout(Duration::from_secs(60), tcp.read(&mut part)).await.unwrap().unwrap();
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&part[..read]);
        largest = largest.max(daemon.rss_kib());
    }
    let events = events(&String::from_utf8_lossy(&answer));
    let (name, done) = events.last().unwrap();
    assert_eq!(name, "done", "{done}");
    assert_eq!(done["duration"], json!(secs as f64));
    let segments = done["segments"].as_array().unwrap();
    assert!(segments.last().unwrap()["end"].as_f64().unwrap() > secs as f64 - 60.0);
    largest - before
}

#[tokio::test]
async fn memory_does_not_grow_with_the_length_of_a_recording() {
    let daemon = Daemon::start();
    // Everything is loaded by the first.
    growth_kib(&daemon, 120).await;
    let growth = growth_kib(&daemon, 1200).await;
    assert!(growth < 24 << 10, "{growth} KiB for twenty minutes");
    if std::env::var_os("VIGIA_TEST_LONG").is_none() {
        println!("skipped: three hours (VIGIA_TEST_LONG is not set)");
        return;
    }
    let growth = growth_kib(&daemon, 3 * 3600).await;
    assert!(growth < 24 << 10, "{growth} KiB for three hours");
}
