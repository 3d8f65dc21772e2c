//! Tasks that a server elsewhere does: spoken, described, analysed by a fake of it, through the real daemon.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use vigia::api::client;

use crate::harness::{Daemon, LIMIT, data, speech_pcm};

/// What the fake does with one request.
pub(crate) enum Act {
    Answer(&'static str, Vec<u8>),
    Refuse(u16),
    /// Too much to do for so many seconds.
    Later(u64),
    /// Sends this, then nothing more until the other side leaves, which it tells.
    Hold(Vec<u8>, mpsc::Sender<()>),
}

/// An OpenAI-compatible server on a port of this machine. Its thread ends with the test's process.
pub(crate) struct Fake {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Fake {
    pub(crate) fn start(act: impl Fn(&str, &Value) -> Act + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (act, seen) = (Arc::new(act), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, log) = (Arc::clone(&act), Arc::clone(&log));
                // A client that leaves in the middle is none of its business.
                thread::spawn(move || serve(stream.unwrap(), &*act, &log).unwrap_or(()));
            }
        });
        Fake { url, seen }
    }

    /// The daemon that asks it for everything.
    pub(crate) fn daemon(&self, more: &[&str]) -> Daemon {
        let mut sets = vec![format!("remotes.box.url={}", self.url), "remotes.box.retries=0".to_owned()];
        for (task, model) in [("speak", "kokoro"), ("describe", "qwen-vl"), ("chat", "qwen")] {
            sets.push(format!("tasks.{task}.remote=box"));
            sets.push(format!("tasks.{task}.model={model}"));
        }
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Daemon::start_with(&sets)
    }

    pub(crate) fn seen(&self, path: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(it, _)| it == path).map(|(_, body)| body.clone()).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    act: &(impl Fn(&str, &Value) -> Act + ?Sized),
    log: &Mutex<Vec<(String, Value)>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let head = |status, kind, length: Option<usize>| {
        let length = length.map(|it| format!("Content-Length: {it}\r\n")).unwrap_or_default();
        format!("HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\n{length}Connection: close\r\n\r\n")
    };
    if line.starts_with("GET") {
        // Its health.
        log.lock().unwrap().push((path, Value::Null));
        return stream
            .write_all(head(200, "application/json", Some(2)).as_bytes())
            .and_then(|()| stream.write_all(b"{}"));
    }
    let act = act(&path, &body);
    log.lock().unwrap().push((path, body));
    match act {
        Act::Answer(kind, body) => {
            stream.write_all(head(200, kind, Some(body.len())).as_bytes())?;
            stream.write_all(&body)
        }
        Act::Refuse(status) => {
            let body = br#"{"error": {"message": "said the fake"}}"#;
            stream.write_all(head(status, "application/json", Some(body.len())).as_bytes())?;
            stream.write_all(body)
        }
        Act::Later(secs) => {
            let head = head(429, "application/json", Some(2));
            stream.write_all(head.replacen("\r\n", &format!("\r\nRetry-After: {secs}\r\n"), 1).as_bytes())?;
            stream.write_all(b"{}")
        }
        Act::Hold(body, left) => {
            stream.write_all(head(200, "audio/wav", None).as_bytes())?;
            stream.write_all(&body)?;
            drop(stream.read(&mut [0]));
            left.send(()).unwrap_or(());
            Ok(())
        }
    }
}

/// A stream's head, then samples at 22 050 Hz.
pub(crate) fn wav(samples: &[i16]) -> Vec<u8> {
    let mut file = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    file.extend(22_050_u32.to_le_bytes());
    file.extend(44_100_u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data\xff\xff\xff\xff");
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    file
}

pub(crate) fn said(text: &str) -> Act {
    let answer = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
    Act::Answer("application/json", answer.to_string().into_bytes())
}

pub(crate) async fn speak(daemon: &Daemon, body: Value) -> (u16, Bytes) {
    let headers = [("content-type", "application/json")];
    let body = Bytes::from(body.to_string());
    let (status, body) = client::request(daemon.http, "POST", "/api/tts", &headers, body).await.unwrap();
    (status.as_u16(), body)
}

#[tokio::test]
async fn a_text_is_spoken_by_the_server_that_the_settings_name() {
    let samples: Vec<i16> = (0..20_000).map(|n| ((n * 37) % 30_000) as i16 - 15_000).collect();
    let sound = wav(&samples);
    let fake = Fake::start(move |_, body| match body["input"].as_str().unwrap() {
        "no" => Act::Refuse(400),
        "silence" => Act::Answer("audio/wav", wav(&[])),
        _ => Act::Answer("audio/wav", sound.clone()),
    });
    let daemon = fake.daemon(&[]);
    let health = daemon.eventually("/api/health", |health| health["tasks"]["speak"]["state"] == "ready").await;
    assert_eq!(
        (&health["tasks"]["speak"]["provider"], &health["tasks"]["speak"]["device"]),
        (&json!("remote"), &json!("box"))
    );

    let (status, body) = speak(&daemon, json!({"inputs": "Hola.", "voice_preset": "ef_dora", "speed": 1.2})).await;
    assert_eq!((status, body.len()), (200, 44 + 2 * samples.len()));
    assert_eq!((&body[..4], &body[24..28]), (&b"RIFF"[..], &22_050_u32.to_le_bytes()[..]));
    let heard = body[44..].chunks(2).map(|it| i16::from_le_bytes([it[0], it[1]]));
    assert!(heard.zip(&samples).all(|(heard, sent)| (i32::from(heard) - i32::from(*sent)).abs() <= 1));
    let asked = &fake.seen("/v1/audio/speech")[0];
    assert_eq!(
        (&asked["model"], &asked["input"], &asked["voice"], &asked["speed"]),
        (&json!("kokoro"), &json!("Hola."), &json!("ef_dora"), &json!(1.2))
    );

    let (status, body) = speak(&daemon, json!({"inputs": "Hola.", "voice_preset": "auto", "format": "pcm"})).await;
    assert_eq!((status, body.len()), (200, 2 * samples.len()));
    assert!(fake.seen("/v1/audio/speech")[1].get("voice").is_none(), "the server's own");

    // 0.9 s; 64 kbit/s, 32 kbit/s, and without loss.
    for (format, begin, bytes) in
        [("mp3", &b"\xff"[..], 5000..9000), ("ogg", b"OggS", 1000..9000), ("flac", b"fLaC", 5000..40_000)]
    {
        let (status, body) = speak(&daemon, json!({"inputs": "Hola.", "format": format})).await;
        assert!(status == 200 && body.starts_with(begin), "{format}: {status} {:?}", &body[..body.len().min(200)]);
        assert!(bytes.contains(&body.len()), "{format}: {} bytes", body.len());
    }

    for (body, status, code) in [
        (json!({"inputs": "Hola.", "voice_preset": "a b"}), 400, "invalid"),
        (json!({"inputs": "a".repeat(2001)}), 400, "invalid"),
        (json!({"inputs": "no"}), 400, "invalid"),
        (json!({"inputs": "silence"}), 503, "unavailable"),
    ] {
        let (answered, error) = speak(&daemon, body.clone()).await;
        let error: Value = serde_json::from_slice(&error).unwrap();
        assert_eq!((answered, error["error"]["code"].as_str()), (status, Some(code)), "{body}: {error}");
    }
}

#[tokio::test]
async fn who_leaves_ends_the_speaking_and_who_comes_meanwhile_is_told_to_wait() {
    let (left, leaving) = mpsc::channel();
    let sound = wav(&[7; 4000]);
    let fake = Fake::start(move |_, _| Act::Hold(sound.clone(), left.clone()));
    let daemon = fake.daemon(&["jobs.queue_interactive=1"]);
    let body = json!({"inputs": "Una historia larga."}).to_string();
    let mut listener = tokio::net::TcpStream::connect(daemon.http).await.unwrap();
    let request = format!("POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    listener.write_all(request.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 4000 {
        let count = timeout(LIMIT, listener.read_buf(&mut heard)).await.unwrap().unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&heard));
    }
    assert!(heard.starts_with(b"HTTP/1.1 200"), "the sound comes before its end");

    let (status, error) = speak(&daemon, json!({"inputs": "Yo también."})).await;
    let error: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!((status, &error["error"]["code"]), (503, &json!("busy")), "{error}");

    drop(listener);
    tokio::task::spawn_blocking(move || leaving.recv_timeout(LIMIT).unwrap()).await.unwrap();
}

#[tokio::test]
async fn encoded_speech_is_heard_while_it_is_spoken_and_ends_with_who_leaves() {
    let (left, leaving) = mpsc::channel();
    let sound = wav(&(0..66_150).map(|n| ((n * 37) % 20_000) as i16 - 10_000).collect::<Vec<_>>());
    let fake = Fake::start(move |_, _| Act::Hold(sound.clone(), left.clone()));
    let daemon = fake.daemon(&["audio.max_pipelines=1"]);
    for (format, kind) in [("mp3", "audio/mpeg"), ("ogg", "audio/ogg"), ("flac", "audio/flac")] {
        let body = json!({"inputs": "Una historia larga.", "format": format}).to_string();
        let request = format!("POST /api/tts HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut heard = Vec::new();
        let mut listener = loop {
            let mut listener = tokio::net::TcpStream::connect(daemon.http).await.unwrap();
            listener.write_all(request.as_bytes()).await.unwrap();
            heard.clear();
            timeout(LIMIT, listener.read_buf(&mut heard)).await.unwrap().unwrap();
            // The encoder and the voice of the one before are on their way back.
            if !heard.starts_with(b"HTTP/1.1 503") {
                break listener;
            }
        };
        while heard.len() < 4000 {
            let count = timeout(LIMIT, listener.read_buf(&mut heard)).await.unwrap().unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&heard));
        }
        let head = String::from_utf8_lossy(&heard[..heard.len().min(1000)]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains(&format!("content-type: {kind}")), "{head}");
        drop(listener);
    }
    let gone = move || (0..3).for_each(|_| leaving.recv_timeout(LIMIT).unwrap());
    tokio::task::spawn_blocking(gone).await.unwrap();
}

#[tokio::test]
async fn a_photo_is_described_and_its_scene_is_published() {
    let scene = json!({
        "description": "Un semáforo en rojo.",
        "hazards": [{"what": "coche", "why": "se acerca", "severity": "high"}],
        "suggestions": ["Espera."],
    });
    let fake = Fake::start(move |_, body| match body["response_format"].is_object() {
        // It knows no schemas for this question.
        true if body.to_string().contains("¿Qué pone?") => said("Pone «salida»."),
        true => said(&scene.to_string()),
        false => said("Pone «salida»."),
    });
    let daemon = fake.daemon(&[]);
    let photo = BASE64_STANDARD.encode(data("media/orientation_6.jpg"));
    let mut events = daemon.socket("/ws/events?types=scene,hazard").await;
    let ask = json!({"image_b64": photo, "device": "gafas", "language": "es", "session_id": "s1"});
    let (status, answer) = daemon.post("/vision/frame_b64", "application/json", ask.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["description"], &answer["session_id"]), (&json!("Un semáforo en rojo."), &json!("s1")));
    assert_eq!(answer["hazards"], json!([{"what": "coche", "why": "se acerca", "severity": "high"}]));
    assert_eq!((&answer["suggestions"], &answer["unavailable"]), (&json!(["Espera."]), &json!(["detect", "read"])));
    assert_eq!((&answer["model"], &answer["language"]), (&json!("qwen-vl"), &json!("es")));
    assert!(answer["size"][0].as_u64().unwrap() > 0 && answer.get("objects").is_none(), "{answer}");
    events.until("scene").await;
    events.until("hazard").await;
    let [seen_scene, hazard] = &events.seen[events.seen.len() - 2..] else { panic!("{:?}", events.seen) };
    assert_eq!((&seen_scene["data"], &seen_scene["device"]), (&answer, &json!("gafas")));
    assert_eq!(seen_scene["session"], Value::Null, "there is no such session");
    assert_eq!((&hazard["data"]["frame_id"], &hazard["data"]["what"]), (&answer["frame_id"], &json!("coche")));
    let asked = &fake.seen("/v1/chat/completions")[0];
    assert!(asked["messages"].to_string().contains("data:image/png;base64,"), "{asked}");

    let later = json!({"image_b64": photo, "prompt": "¿Qué pone?"});
    let (status, taken) = daemon.post("/vision/frame_b64?wait=false", "application/json", later.to_string()).await;
    assert_eq!((status, &taken["state"]), (202, &json!("working")), "{taken}");
    let path = format!("/vision/frames/{}", taken["frame_id"].as_str().unwrap());
    let answer = daemon.eventually(&path, |answer| answer["description"].is_string()).await;
    assert_eq!((&answer["description"], answer.get("hazards")), (&json!("Pone «salida»."), None));
    assert_eq!(answer["unavailable"], json!(["detect", "read", "hazards", "suggestions"]));
    assert_eq!(daemon.get("/vision/frames/none").await.0, 404);
    for wrong in [json!({"image_b64": photo, "language": "español"}), json!({"image_b64": photo, "device": "a\nb"})] {
        let (status, error) = daemon.post("/vision/frame_b64", "application/json", wrong.to_string()).await;
        assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid")), "{error}");
    }
    let (status, _) = daemon.post("/vision/frame_b64?wait=soon", "application/json", ask.to_string()).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_server_that_fails_is_an_error_of_the_photo_also_when_nobody_waits() {
    let fake = Fake::start(|_, _| Act::Refuse(500));
    let daemon = fake.daemon(&["remotes.box.breaker_failures=100"]);
    let ask = json!({"image_b64": BASE64_STANDARD.encode(data("media/orientation_6.jpg"))}).to_string();
    let (status, error) = daemon.post("/vision/frame_b64", "application/json", ask.clone()).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    let (status, taken) = daemon.post("/vision/frame_b64?wait=false", "application/json", ask).await;
    assert_eq!(status, 202, "{taken}");
    let path = format!("/vision/frames/{}", taken["frame_id"].as_str().unwrap());
    let error = daemon.eventually(&path, |answer| answer["error"].is_object()).await;
    assert_eq!(error["error"]["code"], "unavailable", "{error}");
}

#[tokio::test]
async fn a_conversation_is_analysed_published_and_kept() {
    let fake = Fake::start(|_, body| {
        let asked = body["messages"][1]["content"].as_str().unwrap();
        let id = asked[1..].split(']').next().unwrap().parse::<u64>().unwrap();
        let analysis = json!({
            "summary": "Una prueba.",
            "decisions": [{"text": "Seguir", "evidence": [id, 999]}],
            "risks": [{"text": "Ninguno", "evidence": [id]}],
            "action_items": [{"title": "Probar", "description": "Otra vez", "steps": ["Hablar"]}],
        });
        said(&format!("Claro: {analysis}"))
    });
    let daemon = fake.daemon(&["tasks.transcribe.model=test-echo"]);
    let config =
        json!({"type": "config", "session_id": "charla", "language": "es", "encoding": "pcm16", "analyze": false});
    let mut stream = daemon.audio(config).await;
    stream.audio(&speech_pcm()).await;
    stream.end().await;
    stream.until("final_result").await;
    stream.close().await;
    daemon
        .eventually("/sessions/charla", |it| it["transcript"]["text"].as_str().is_some_and(|it| !it.is_empty()))
        .await;
    let mut events = daemon.socket("/ws/events?types=session.analysis").await;

    let (status, analysis) = daemon.post("/sessions/charla/analyze", "application/json", "").await;
    assert_eq!(status, 200, "{analysis}");
    let first = &analysis["transcript"][0];
    assert_eq!((&analysis["session_id"], &analysis["language"]), (&json!("charla"), &json!("es")));
    assert_eq!((&analysis["summary"], &analysis["complete"]), (&json!("Una prueba."), &json!(true)));
    assert_eq!(analysis["decisions"], json!([{"text": "Seguir", "evidence": [first["id"]]}]));
    assert_eq!((&analysis["risks"], &analysis["risk_evidence"]), (&json!(["Ninguno"]), &json!([[first["id"]]])));
    assert_eq!((&analysis["action_items"][0]["owner"], &analysis["engine"]), (&Value::Null, &json!("qwen")));
    assert_eq!(analysis["doubts"], json!([]));
    let event = events.until("session.analysis").await;
    assert_eq!((&event["data"], &event["session"]), (&analysis, &json!("charla")));
    daemon.eventually("/sessions/charla", |it| it["analysis"] == analysis).await;
    // It said more than JSON, so it was asked again without a schema.
    assert_eq!(fake.seen("/v1/chat/completions").len(), 2);
    let (status, error) = daemon.post("/sessions/none/analyze", "application/json", "").await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("not_found")), "{error}");
}

/// A server that hears `words` words in every piece of speech, so that a conversation is too long for one question.
fn long_talk(words: usize, chat: impl Fn(&str, &str) -> Act + Send + Sync + 'static) -> Fake {
    let text: Vec<String> = (0..words).map(|n| format!("palabra{n}")).collect();
    let heard = json!({
        "text": text.join(" "), "language": "spanish", "duration": 2.0,
        "segments": [{"id": 0, "start": 0.0, "end": 2.0, "text": text.join(" ")}],
    });
    Fake::start(move |path, body| match path {
        "/v1/audio/transcriptions" => Act::Answer("application/json", heard.to_string().into_bytes()),
        _ => {
            let said = |at: usize| body["messages"][at]["content"].as_str().unwrap();
            chat(said(0), said(1))
        }
    })
}

/// A session in which the fixture's sentence was said so often; the ids of its segments.
async fn talk(daemon: &Daemon, session: &str, times: usize) -> Vec<u64> {
    let config =
        json!({"type": "config", "session_id": session, "language": "es", "partials": false, "analyze": false});
    let mut stream = daemon.audio(config).await;
    for _ in 0..times {
        stream.audio(&speech_pcm()).await;
        stream.audio(&vec![0; 64_000]).await;
    }
    stream.end().await;
    let result = stream.until("final_result").await;
    stream.close().await;
    let segments = result["segments"].as_array().unwrap();
    assert!(segments.len() >= times, "{result}");
    daemon.eventually(&format!("/sessions/{session}"), |it| it["state"] == "closed").await;
    segments.iter().map(|segment| segment["id"].as_u64().unwrap()).collect()
}

fn ids_in(transcript: &str) -> Vec<u64> {
    transcript.lines().filter_map(|line| line.strip_prefix('[')?.split_once(']')?.0.parse().ok()).collect()
}

#[tokio::test]
async fn a_long_conversation_is_analysed_in_parts_and_told_as_one() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let fake = long_talk(400, move |system, asked| {
        if system.starts_with("These are summaries") {
            return said("Todo junto.");
        }
        let ids = ids_in(asked);
        // Not at the first part: what was said so far must not be told as the whole.
        if is_broken.load(Ordering::SeqCst) && !ids.contains(&1) {
            return Act::Refuse(500);
        }
        let analysis = json!({
            "summary": format!("De {ids:?}."),
            "decisions": [{"text": format!("Decisión de {}", ids[0]), "evidence": ids}, {"text": "La misma", "evidence": []}],
            "doubts": [], "risks": [{"text": "El mismo", "evidence": [ids[0]]}], "action_items": [],
        });
        said(&analysis.to_string())
    });
    let daemon = fake.daemon(&[
        "tasks.transcribe.remote=box",
        "tasks.transcribe.model=whisper",
        "remotes.box.breaker_failures=9",
    ]);
    let ids = talk(&daemon, "larga", 4).await;
    let (status, analysis) = daemon.post("/sessions/larga/analyze", "application/json", "").await;
    assert_eq!(status, 200, "{analysis}");
    let asked: Vec<Vec<u64>> = fake
        .seen("/v1/chat/completions")
        .iter()
        .map(|body| ids_in(body["messages"][1]["content"].as_str().unwrap()))
        .collect();
    let (parts, whole) = asked.split_at(asked.len() - 1);
    assert!(parts.len() >= 2 && whole[0].is_empty(), "several parts, then all of their summaries: {asked:?}");
    assert_eq!(parts.concat(), ids, "each segment is in one part");
    let summaries = fake.seen("/v1/chat/completions").last().unwrap()["messages"][1]["content"].clone();
    let of_parts: Vec<String> = parts.iter().map(|ids| format!("De {ids:?}.")).collect();
    assert_eq!(summaries, json!(of_parts.join("\n\n")));
    assert_eq!((&analysis["summary"], &analysis["complete"]), (&json!("Todo junto."), &json!(true)));
    let decisions: Vec<&Value> = analysis["decisions"].as_array().unwrap().iter().collect();
    assert_eq!(decisions.len(), parts.len() + 1, "what several parts say is told once: {decisions:?}");
    for part in parts {
        let text = format!("Decisión de {}", part[0]);
        assert!(decisions.iter().any(|it| it["text"] == *text && it["evidence"] == json!(part)), "{analysis}");
    }
    assert_eq!((&analysis["risks"], &analysis["risk_evidence"]), (&json!(["El mismo"]), &json!([[ids[0]]])));
    assert_eq!(analysis["transcript"].as_array().unwrap().len(), ids.len());

    // A part that fails fails the whole, and what was known stays.
    broken.store(true, Ordering::SeqCst);
    let (status, error) = daemon.post("/sessions/larga/analyze", "application/json", "").await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    daemon.eventually("/sessions/larga", |it| it["analysis"] == analysis).await;
}

#[tokio::test]
async fn who_leaves_an_analysis_ends_it_and_the_next_one_has_its_place() {
    let (left, leaving) = mpsc::channel();
    let held = Arc::new(AtomicBool::new(true));
    let holds = Arc::clone(&held);
    let fake = long_talk(5, move |_, _| match holds.load(Ordering::SeqCst) {
        true => Act::Hold(Vec::new(), left.clone()),
        false => said("{\"summary\": \"Una prueba.\"}"),
    });
    let sets = ["tasks.transcribe.remote=box", "tasks.transcribe.model=whisper", "jobs.queue_batch=1"];
    let daemon = fake.daemon(&sets);
    talk(&daemon, "charla", 1).await;
    let mut caller = tokio::net::TcpStream::connect(daemon.http).await.unwrap();
    caller.write_all(b"POST /sessions/charla/analyze HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    daemon.eventually("/api/health", |_| !fake.seen("/v1/chat/completions").is_empty()).await;
    drop(caller);
    tokio::task::spawn_blocking(move || leaving.recv_timeout(LIMIT).unwrap()).await.unwrap();

    held.store(false, Ordering::SeqCst);
    let (status, analysis) = daemon.post("/sessions/charla/analyze", "application/json", "").await;
    assert_eq!((status, &analysis["summary"]), (200, &json!("Una prueba.")), "{analysis}");
}
