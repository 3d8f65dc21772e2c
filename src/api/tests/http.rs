//! Routes, their answers and their errors, as a client on the wire sees them.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Answer, Server};
use crate::{
    flow::{Draft, EventType, SessionId},
    publish::MqttStatus,
    store::{Note, Progress},
};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0";

#[tokio::test]
async fn the_root_tells_programs_and_sends_people_on() {
    let server = Server::start(|_| ()).await;
    let about = server.get("/").await;
    assert_eq!(about.json(), json!({"name": "vigia", "version": "0.1.0", "docs": "/docs", "ui": "/ui"}));
    let browser = server.ask("GET /\nAccept: text/html,application/xhtml+xml", b"").await;
    assert_eq!((browser.status, browser.headers["location"].as_str()), (302, "/ui"));
    assert_eq!(server.get("/healthz").await.text(), "ok");
    assert_eq!(server.get("/readyz").await.text(), "ok");
}

#[tokio::test]
async fn health_names_what_is_not_as_the_settings_ask() {
    let server = Server::start(|settings| settings.tasks.clear()).await;
    let health = server.get("/api/health").await.json();
    assert_eq!((&health["status"], &health["problems"]), (&json!("ok"), &json!([])), "tasks without a model are off");
    assert_eq!(health["tasks"]["transcribe"]["state"], "unavailable");
    assert_eq!(health["hardware"]["cpu_cores"], 4);
    assert_eq!(health["mqtt"]["state"], "off");
    assert!(health["memory"]["daemon"].as_u64().unwrap() > 0);
    assert_eq!(health["memory"]["measured"], health["memory"]["daemon"]);

    server.mqtt.send(MqttStatus::Failed { reason: "refused".to_owned() }).unwrap();
    let health = server.get("/api/health").await.json();
    assert_eq!((&health["status"], &health["problems"][0]), (&json!("degraded"), &json!("mqtt: refused")));
}

#[tokio::test]
async fn capabilities_begin_with_what_the_seeds_name() {
    let server = Server::start(|_| ()).await;
    let capabilities = server.get("/api/system/capabilities").await;
    let expected =
        r#"{"cpu_cores":4,"ram_gb":16.0,"gpu_model":"CPU Only","gpu_vram_gb":0.0,"device":"cpu","profile":"cpu","#;
    assert!(capabilities.text().starts_with(expected), "{}", capabilities.text());
}

#[tokio::test]
async fn errors_have_one_shape() {
    let server = Server::start(|_| ()).await;
    let nothing = server.get("/nothing/here").await;
    assert_eq!((nothing.status, nothing.code().as_str()), (404, "not_found"));
    let wrong = server.ask("PUT /sessions/x", b"").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(wrong.headers["allow"], "OPTIONS, GET, HEAD, DELETE");
    let other = server.get("/nothing/here").await;
    assert_ne!(nothing.headers["x-request-id"], other.headers["x-request-id"]);
    let garbled = server.raw(b"GET / HTTP/9\r\n\r\n").await;
    assert!(garbled.starts_with(b"HTTP/1.1 400"), "{garbled:?}");
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let server = Server::start(|_| ()).await;
    let (get, head) = (server.get("/").await, server.ask("HEAD /", b"").await);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], get.body.len().to_string());
}

#[tokio::test]
async fn browsers_may_call_from_the_origins_of_the_settings() {
    let server = Server::start(|_| ()).await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /api/tts\nOrigin: {origin}\nAccess-Control-Request-Method: POST\nAccess-Control-Request-Headers: authorization"
        )
    };
    let allowed = server.ask(&preflight("http://localhost:5173"), b"").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.headers["access-control-allow-origin"], "http://localhost:5173");
    assert!(allowed.headers["access-control-allow-headers"].contains("authorization"));
    let foreign = server.ask(&preflight("http://evil.example"), b"").await;
    assert!(!foreign.headers.contains_key("access-control-allow-origin"));
    let plain = server.ask("GET /\nOrigin: http://localhost:4173", b"").await;
    assert_eq!(plain.headers["access-control-allow-origin"], "http://localhost:4173");
}

#[tokio::test]
async fn metrics_are_counted_by_route_and_not_by_path() {
    let server = Server::start(|_| ()).await;
    server.get("/sessions/counted-once").await;
    let metrics = server.get("/metrics").await;
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    assert!(metrics.text().contains(r#"route="/sessions/{id}""#));
    assert!(!metrics.text().contains("counted-once"));
}

#[tokio::test]
async fn pages_and_documents_come_out_of_the_binary() {
    let server = Server::start(|_| ()).await;
    for (path, content_type, beginning) in [
        ("/ui", "text/html", "<!doctype html>"),
        ("/docs", "text/html", "<!doctype html>"),
        ("/docs/start.js", "text/javascript", "'use strict'"),
        ("/docs/swagger-ui.css", "text/css", "."),
        ("/docs/swagger-ui-bundle.js", "text/javascript", "/*!"),
        ("/openapi.json", "application/json", "{\"openapi\":\"3.1"),
    ] {
        let page = server.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.headers["content-type"].starts_with(content_type), "{path}: {:?}", page.headers);
        assert!(page.body.starts_with(beginning.as_bytes()), "{path}: {:?}", &page.body[..40]);
    }
    assert!(server.get("/ui").await.headers["content-security-policy"].contains("default-src 'none'"));
    assert_eq!(server.get("/docs/..%2Fsecret").await.code(), "not_found");
}

#[tokio::test]
async fn what_is_asked_is_checked_though_no_engine_is_there() {
    let server = Server::start(|settings| settings.tasks.clear()).await;
    let long = "á".repeat(2001);
    let mut vast = PNG.to_vec();
    vast[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    for (path, body, code, word) in [
        ("/api/tts", json!({"inputs": "Hola"}), "unavailable", "speak"),
        ("/api/tts", json!({"inputs": "á".repeat(2000)}), "unavailable", "speak"),
        ("/api/tts", json!({"inputs": long}), "invalid", "2001"),
        ("/api/tts", json!({"inputs": " "}), "invalid", "empty"),
        ("/api/tts", json!({"inputs": "x", "speed": 9}), "invalid", "speed"),
        ("/api/tts", json!({"inputs": "x", "format": "midi"}), "invalid", "midi"),
        ("/api/tts", json!({"text": "x"}), "invalid", "inputs"),
        ("/api/image", json!({"prompt": "faro"}), "unavailable", "paint"),
        ("/api/image", json!({"prompt": "faro", "width": 1001}), "invalid", "width"),
        ("/api/image", json!({"prompt": "faro", "num_inference_steps": 0}), "invalid", "num_inference_steps"),
        ("/vision/frame_b64", json!({"image_b64": "!"}), "invalid", "base64"),
        ("/vision/frame_b64", json!({"image_b64": "AAAA"}), "unsupported", ""),
        ("/vision/frame_b64", json!({"image_b64": "iVBORw0KGgo", "session_id": "a b"}), "invalid", "session_id"),
        (
            "/vision/frame_b64",
            json!({"image_b64": format!("data:image/png;base64,{}", STANDARD.encode(PNG))}),
            "unavailable",
            "describe",
        ),
        ("/vision/frame_b64", json!({"image_b64": STANDARD.encode(vast)}), "too_large", "100000"),
    ] {
        let answer = server.ask(&format!("POST {path}"), body.to_string().as_bytes()).await;
        assert_eq!(answer.code(), code, "{path} {body}");
        assert!(answer.text().contains(word), "{path} {body}: {}", answer.text());
    }
    let malformed = server.ask("POST /api/tts", b"{\"inputs\": ").await;
    assert_eq!((malformed.status, malformed.code().as_str()), (400, "invalid"));
    assert_eq!(server.get("/api/jobs/7").await.code(), "not_found");
    assert_eq!(server.get("/vision/frames/7").await.code(), "not_found");
    assert_eq!(server.get("/api/tts/voices").await.json(), json!({"voices": []}));
}

async fn form(server: &Server, path: &str, parts: &[(&str, &[u8])]) -> Answer {
    let mut body = Vec::new();
    for (name, content) in parts {
        let head = format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n");
        body.extend([head.as_bytes(), content, b"\r\n"].concat());
    }
    body.extend(b"--XX--\r\n");
    server.ask(&format!("POST {path}\nContent-Type: multipart/form-data; boundary=XX"), &body).await
}

#[tokio::test]
async fn forms_are_checked_part_by_part() {
    let server = Server::start(|settings| settings.tasks.clear()).await;
    type Parts = &'static [(&'static str, &'static [u8])];
    let cases: [(&str, Parts, &str, &str); 9] = [
        ("/api/stt", &[("file", b"RIFF"), ("language", b"es"), ("words", b"true")], "unavailable", "transcribe"),
        ("/api/stt", &[("language", b"es")], "invalid", "file"),
        ("/api/stt", &[("file", b"")], "invalid", "empty"),
        ("/api/stt", &[("file", b"x"), ("file", b"y")], "invalid", "more than one"),
        ("/api/stt", &[("file", b"x"), ("language", b"Spanish!")], "invalid", "language"),
        ("/api/stt", &[("file", b"x"), ("task", b"sing")], "invalid", "task"),
        ("/api/stt", &[("file", b"x"), ("diarize", b"perhaps")], "invalid", "diarize"),
        ("/vision/frame", &[("file", PNG), ("session_id", b"s")], "unavailable", "describe"),
        ("/vision/frame", &[("file", b"GIF89a")], "unsupported", ""),
    ];
    for (path, parts, code, word) in cases {
        let answer = form(&server, path, parts).await;
        assert_eq!(answer.code(), code, "{path} {parts:?}");
        assert!(answer.text().contains(word), "{path} {parts:?}: {}", answer.text());
    }
    let large = vec![b'x'; 70_000];
    assert_eq!(form(&server, "/api/stt", &[("prompt", &large)]).await.code(), "too_large");
    let fields: Vec<(&str, &[u8])> = vec![("a", b"x"); 40];
    assert_eq!(form(&server, "/api/stt", &fields).await.code(), "invalid");
    assert_eq!(server.ask("POST /api/stt", b"RIFF").await.code(), "unsupported");
    let cut = server.ask("POST /api/stt\nContent-Type: multipart/form-data; boundary=XX", b"--XX\r\nContent-Dis").await;
    assert_eq!(cut.code(), "invalid");
}

/// A closed session with two segments.
async fn record(server: &Server, id: &str, device: &str) {
    let id = SessionId::parse(id).unwrap();
    let context = &server.context;
    context.store.session_opened(&id, device, "es").await.unwrap();
    let publish = async |kind, data: Value| {
        let (device, session) = (Arc::from(device), Some(id.clone()));
        context.hub.publish(Draft { kind, device, session, data }).await;
    };
    publish(EventType::SessionStart, json!({})).await;
    for (segment, text) in ["Hola.", "¿Qué tal?"].into_iter().enumerate() {
        let (start, end) = (segment as f64 * 2.0, segment as f64 * 2.0 + 1.5);
        let segment = json!({"id": segment, "start": start, "end": end, "text": text, "language": "es", "probability": 1.0, "speaker": null});
        publish(EventType::TranscriptSegment, json!({"segment": segment})).await;
    }
    publish(EventType::SessionEnd, json!({})).await;
    let progress = Progress { takes: 1, duration_secs: 3.5, next_segment: 2 };
    context.store.session_ended(&id, progress).await.unwrap();
    context.store.flush().await.unwrap();
}

#[tokio::test]
async fn sessions_are_listed_in_pages_the_newest_first() {
    let server = Server::start(|_| ()).await;
    for (id, device) in [("s1", "gafas"), ("s2", "gafas"), ("s3", "otra")] {
        record(&server, id, device).await;
    }
    let ids = |page: &Value| -> Vec<String> {
        let sessions = page["sessions"].as_array().unwrap();
        sessions.iter().map(|it| it["session_id"].as_str().unwrap().to_owned()).collect()
    };
    let first = server.get("/sessions?limit=2").await.json();
    assert_eq!(ids(&first), ["s3", "s2"]);
    let last = server.get(&format!("/sessions?limit=2&before={}", first["next"].as_str().unwrap())).await.json();
    assert_eq!((ids(&last), &last["next"]), (vec!["s1".to_owned()], &Value::Null));
    assert_eq!(ids(&server.get("/sessions?device=gafas").await.json()), ["s2", "s1"]);
    for wrong in ["limit=0", "limit=501", "limit=x"] {
        assert_eq!(server.get(&format!("/sessions?{wrong}")).await.code(), "invalid");
    }
}

#[tokio::test]
async fn a_session_has_its_transcript_and_its_events() {
    let server = Server::start(|_| ()).await;
    record(&server, "año", "gafas").await;
    let session = server.get("/sessions/a%C3%B1o").await.json();
    assert_eq!(
        (&session["state"], &session["duration"], &session["takes"]),
        (&json!("closed"), &json!(3.5), &json!(1))
    );
    assert_eq!(session["transcript"]["text"], "Hola. ¿Qué tal?");
    assert_eq!(session["analysis"], Value::Null);

    let path = "/sessions/a%C3%B1o/transcript";
    assert_eq!(server.get(&format!("{path}.txt")).await.text(), "Hola.\n¿Qué tal?\n");
    assert!(server.get(&format!("{path}.srt")).await.text().contains("00:00:02,000 --> 00:00:03,500\n¿Qué tal?"));
    let vtt = server.get(&format!("{path}.vtt")).await;
    assert!(vtt.text().starts_with("WEBVTT\n\n") && vtt.headers["content-type"].starts_with("text/vtt"));
    assert_eq!(server.get(&format!("{path}.json")).await.json()["segments"][1]["text"], "¿Qué tal?");
    assert_eq!(server.get(&format!("{path}.doc")).await.code(), "not_found");

    let events = server.get("/sessions/a%C3%B1o/events?limit=3").await.json();
    let seqs: Vec<u64> = events["events"].as_array().unwrap().iter().map(|it| it["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3]);
    let rest = server.get(&format!("/sessions/a%C3%B1o/events?from={}", events["next"])).await.json();
    assert_eq!((&rest["events"][0]["type"], &rest["next"]), (&json!("session.end"), &Value::Null));
    assert_eq!(server.ask("POST /sessions/a%C3%B1o/analyze", b"").await.code(), "unavailable");
    assert_eq!(server.ask("POST /sessions/a%C3%B1o/transcribe", b"").await.code(), "unavailable");
    assert_eq!(server.ask("POST /sessions/none/transcribe", b"").await.code(), "not_found");
}

#[tokio::test]
async fn who_hears_that_a_session_is_over_reads_that_it_is() {
    let server = Server::start(|_| ()).await;
    let id = SessionId::parse("s1").unwrap();
    server.context.store.session_opened(&id, "gafas", "es").await.unwrap();
    let mut live = server.context.hub.subscribe();
    let draft =
        Draft { kind: EventType::SessionEnd, device: "gafas".into(), session: Some(id.clone()), data: json!({}) };
    server.context.hub.publish_with(draft, vec![Note::Ended(id, Progress::default())]).await;
    live.recv().await.unwrap();
    assert_eq!(server.get("/sessions").await.json()["sessions"][0]["state"], "closed");
    assert_eq!(server.get("/sessions/s1").await.json()["state"], "closed");
}

#[tokio::test]
async fn a_session_is_forgotten_once_it_is_over() {
    let server = Server::start(|_| ()).await;
    record(&server, "over", "gafas").await;
    server.context.store.session_opened(&SessionId::parse("live").unwrap(), "gafas", "es").await.unwrap();
    assert_eq!(server.ask("DELETE /sessions/live", b"").await.code(), "invalid");
    let deleted = server.ask("DELETE /sessions/over", b"").await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    assert_eq!(server.ask("DELETE /sessions/over", b"").await.code(), "not_found");
    assert_eq!(server.get("/sessions/over/events").await.code(), "not_found");
    assert_eq!(server.get("/sessions/a%20b").await.code(), "invalid");
}
