//! `vigia stream` and the bench that cuts its line: the client as a process of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::harness::{Daemon, common_sets, root, vigia};

fn fixture() -> String {
    root().join("tests/data/speech/speech.wav").display().to_string()
}

fn stream(daemon: &Daemon, more: &[&str]) -> Output {
    let url = format!("http://{}", daemon.http);
    vigia().args(["stream", &fixture(), "--url", &url]).args(more).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_becomes_captions_and_its_text() {
    let daemon = Daemon::start();
    let output = stream(&daemon, &["--fast", "--session", "s1", "--language", "en"]);
    let text = stdout(&output);
    let session = daemon.eventually("/sessions/s1", |session| session["state"] == "closed").await;
    assert_eq!(text.trim_end(), session["transcript"]["text"]);
    assert_eq!((&session["language"], &session["device"]), (&"en".into(), &"vigia-stream".into()));
    let captions = String::from_utf8(output.stderr).unwrap();
    assert!(captions.contains("session s1") && captions.contains(text.trim_end()), "{captions}");
    assert!(!captions.contains('\x1b'), "no colours beside a terminal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_messages_are_printed_one_a_line() {
    let daemon = Daemon::start();
    let text = stdout(&stream(&daemon, &["--pace", "10", "--json"]));
    let messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = messages.iter().map(|message| message["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("config_ack", "final_result"));
    assert!(kinds.contains(&"segment_result") && kinds.contains(&"ack"));
    // At ten times the pace of speech.
    let secs = messages.last().unwrap()["duration"].as_f64().unwrap();
    assert!((fs::metadata(fixture()).unwrap().len() as f64 / 32_000.0 - secs).abs() < 0.1);
}

#[test]
fn what_cannot_be_reached_is_said_with_what_to_do() {
    let run = |args: &[&str]| {
        let output = vigia().arg("stream").args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let file = fixture();
    for (args, word) in [
        (vec![&*file, "--url", "box:8090"], "http://"),
        (vec![&*file, "--url", "https://box"], "TLS"),
        (vec![&*file, "--url", "http://127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
        (vec!["/no/such.wav", "--url", "http://127.0.0.1:1"], "/no/such.wav"),
        (vec![&*file, "--mic"], "cannot be used with"),
        (vec![], "required"),
        (vec![&*file, "--pace", "0"], "0.1"),
    ] {
        let said = run(&args);
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_needed_where_there_are_keys() {
    let daemon = Daemon::start();
    let made = vigia().args(["keys", "add", "phone"]).args(common_sets(daemon.dir())).output().unwrap();
    let key = stdout(&made).lines().find(|line| !line.contains(' ') && line.len() > 20).unwrap().trim().to_owned();
    let refused = stream(&daemon, &["--fast"]);
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("wants a key") && said.contains("vigia keys add"), "{said}");
    stdout(&stream(&daemon, &["--fast", "--key", &key]));
    let url = format!("http://{}", daemon.http);
    let from_environment =
        vigia().args(["stream", &fixture(), "--fast", "--url", &url]).env("VIGIA_KEY", &key).output().unwrap();
    stdout(&from_environment);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_back_when_the_daemon_does() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "server.listen=127.0.0.1:0"]);
    let url = format!("http://{}", daemon.http);
    let mut child = vigia()
        .args(["stream", &fixture(), "--json", "--pace", "2", "--session", "s1", "--url", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut until = |kind: &str| -> Value {
        loop {
            let message: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
            if message["type"] == kind {
                return message;
            }
        }
    };
    until("ack");
    // On its old port, where it is looked for.
    let listen = format!("server.listen={}", daemon.http);
    let _daemon = daemon.kill_and_restart_with(&listen);
    assert_eq!(until("config_ack")["resumed"], true);
    let result = until("final_result");
    assert_eq!(result["segments"].as_array().unwrap().len(), 1, "{result}");
    assert!(child.wait().unwrap().success());
}

/// A few cuts and kills; `vigia bench durability` by itself does a thousand.
#[test]
fn cuts_and_kills_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let long = std::env::var_os("VIGIA_TEST_LONG").is_some();
    let (secs, cuts, kills) = if long { ("600", "200", "40") } else { ("40", "8", "3") };
    let output = vigia()
        .args(["bench", "durability", "--audio", &fixture(), "--model", "test-echo", "--secs", secs])
        .args(["--cuts", cuts, "--kills", kills, "--pace", "6"])
        .args(common_sets(dir.path()))
        .output()
        .unwrap();
    let figures = stdout(&output);
    assert!(figures.contains("identical") && !figures.contains('✗'), "{figures}");
    println!("{figures}");
}
