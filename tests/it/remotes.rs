//! Tasks that a server elsewhere does: spoken, described, analysed by a fake of it, through the real daemon.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
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
enum Act {
    Answer(&'static str, Vec<u8>),
    Refuse(u16),
    /// Sends this, then nothing more until the other side leaves, which it tells.
    Hold(Vec<u8>, mpsc::Sender<()>),
}

/// An OpenAI-compatible server on a port of this machine. Its thread ends with the test's process.
struct Fake {
    url: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Fake {
    fn start(act: impl Fn(&str, &Value) -> Act + Send + Sync + 'static) -> Fake {
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
    fn daemon(&self, more: &[&str]) -> Daemon {
        let mut sets = vec![format!("remotes.box.url={}", self.url), "remotes.box.retries=0".to_owned()];
        for (task, model) in [("speak", "kokoro"), ("describe", "qwen-vl"), ("chat", "qwen")] {
            sets.push(format!("tasks.{task}.remote=box"));
            sets.push(format!("tasks.{task}.model={model}"));
        }
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Daemon::start_with(&sets)
    }

    fn seen(&self, path: &str) -> Vec<Value> {
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
fn wav(samples: &[i16]) -> Vec<u8> {
    let mut file = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    file.extend(22_050_u32.to_le_bytes());
    file.extend(44_100_u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data\xff\xff\xff\xff");
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    file
}

fn said(text: &str) -> Act {
    let answer = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
    Act::Answer("application/json", answer.to_string().into_bytes())
}

async fn speak(daemon: &Daemon, body: Value) -> (u16, Bytes) {
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

    for (body, status, code) in [
        (json!({"inputs": "Hola.", "format": "mp3"}), 415, "unsupported"),
        (json!({"inputs": "Hola.", "voice_preset": "a b"}), 400, "invalid"),
        (json!({"inputs": "a".repeat(2001)}), 400, "invalid"),
        (json!({"inputs": "no"}), 400, "invalid"),
        (json!({"inputs": "silence"}), 500, "internal"),
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
        json!({"type": "config", "session_id": "charla", "language": "es", "sample_rate": 16000, "encoding": "pcm16"});
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
