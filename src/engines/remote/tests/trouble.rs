//! What goes wrong on the way: every error has its kind, its words, its number of tries and its end.

use std::{
    io::Write,
    net::TcpListener,
    time::{Duration, Instant},
};

use super::{chat, chat_ask, delta, hola, stream};
use crate::{
    base::{Error, Kind},
    engines::{
        Cancel, SpeakAsk,
        remote::{
            Remote, RemoteState,
            fake::{Act, Fake, remote, remote as remote_at, until},
            wav::wav,
        },
    },
    flow::Task,
};

fn failed(fake: &Fake) -> Error {
    let (said, parts) = chat(&fake.remote());
    assert_eq!(parts, [""; 0]);
    said.unwrap_err()
}

#[test]
fn nobody_there_is_told_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let remote = remote(&url, |settings| settings.retries = 1);
    let error = chat(&remote).0.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains(&url) && error.message().contains("box"), "{}", error.full());
    assert_eq!(remote.health().state, RemoteState::Failing);
}

#[test]
fn a_slow_server_is_left_when_the_time_is_over() {
    for act in [Act::Silence, Act::Hold { kind: "text/event-stream", body: delta("a").into() }] {
        let fake = Fake::start([act]);
        let began = Instant::now();
        let (said, _) = chat(&fake.remote_with(|settings| settings.timeout_secs = 1));
        let error = said.unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout, "{}", error.full());
        assert!(error.full().contains("remotes.box.timeout_secs"));
        assert!(began.elapsed() < Duration::from_secs(4));
        assert_eq!(fake.seen().len(), 1);
        until(|| fake.left() == 1);
    }
}

#[test]
fn who_listens_slowly_is_not_held_against_the_server() {
    let fake = Fake::start([Act::Hold { kind: "text/event-stream", body: delta("a").into() }]);
    let remote = fake.remote_with(|settings| (settings.timeout_secs, settings.breaker_failures) = (1, 1));
    let mut chatter = remote.chatter("qwen").unwrap();
    let mut slow = |_| std::thread::sleep(Duration::from_millis(1100));
    let error = chatter.chat(&chat_ask(), &mut slow, &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.message().contains("taken too slowly"), "{}", error.full());
    assert_eq!((remote.trouble(Task::Chat), fake.seen().len()), (None, 1));
    fake.play([hola()]);
    assert_eq!(chat(&remote).0.unwrap().text, "hola");
}

#[test]
fn a_cut_answer_is_asked_for_again_only_while_nothing_was_delivered() {
    let fake = Fake::start([Act::Cut { kind: "text/event-stream", body: Vec::new() }, hola()]);
    assert_eq!(chat(&fake.remote()).0.unwrap().text, "hola");
    assert_eq!(fake.seen().len(), 2);

    let fake = Fake::start([Act::Cut { kind: "text/event-stream", body: delta("ho").into() }, hola()]);
    let (said, parts) = chat(&fake.remote());
    let error = said.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("cut off"), "{}", error.full());
    assert_eq!((parts, fake.seen().len()), (vec!["ho".to_owned()], 1));

    // An end without the last word is a cut as well.
    let fake = Fake::start([stream(&delta("ho"))]);
    assert!(chat(&fake.remote()).0.unwrap_err().message().contains("cut off"));
}

#[test]
fn a_refused_key_is_named_by_its_file_and_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    writeln!(&file, "sk-secret").unwrap();
    let path = file.path().display().to_string();
    let fake = Fake::start([Act::status(401, &[])]);
    let remote = fake.remote_with(|settings| settings.key_file = path.clone());
    let error = chat(&remote).0.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains(&format!("the key in {path} was refused")), "{}", error.full());
    assert_eq!(fake.seen().len(), 1);
    assert_eq!(fake.seen()[0].headers["authorization"], "Bearer sk-secret");

    // A server that repeats the key must not bring it to the log.
    fake.play([Act::reply(400, "application/json", r#"{"error": "I know sk-secret"}"#)]);
    let error = chat(&remote).0.unwrap_err();
    assert_eq!((error.kind(), error.full().contains("secret")), (Kind::Invalid, false), "{}", error.full());

    fake.play([Act::status(403, &[])]);
    assert!(failed(&fake).full().contains("remotes.box.key_file"));
}

#[test]
fn what_lasts_is_asked_once_and_has_its_kind() {
    for (act, kind, words) in [
        (Act::status(404, &[]), Kind::Unavailable, "tasks.*.model"),
        (Act::status(400, &[]), Kind::Invalid, "said the fake"),
        (Act::status(405, &[]), Kind::Unavailable, "does not have this"),
        (Act::status(413, &[]), Kind::TooLarge, "will not take so much"),
        (Act::status(415, &[]), Kind::Invalid, "refuses the request"),
        (Act::status(422, &[]), Kind::Invalid, "refuses the request"),
        (Act::status(501, &[]), Kind::Unavailable, "is not well"),
        (Act::status(418, &[]), Kind::Unavailable, "answers strangely"),
        (
            Act::status(307, &["Location: http://127.0.0.1:1/"]),
            Kind::Unavailable,
            "sends us on to http://127.0.0.1:1/ (307",
        ),
        (
            Act::status(301, &["Location: https://u:secret@box/a?key=secret"]),
            Kind::Unavailable,
            "on to https://…@box (301",
        ),
        (Act::status(302, &[]), Kind::Unavailable, "on to another place (302"),
        (Act::status(429, &["Retry-After: 9999"]), Kind::Busy, "try again in 9999 s"),
        (stream("data: {\"choices\": [\n\n"), Kind::Unavailable, "JSON that is broken"),
        (Act::reply(200, "application/json", "[1, 2"), Kind::Unavailable, "JSON that is broken"),
        (Act::reply(200, "application/json", "{}"), Kind::Unavailable, "without a choice"),
        (Act::reply(200, "text/html", "<html>log in</html>"), Kind::Unavailable, "\"text/html\" instead of JSON"),
        (stream("data: \u{1}\n\n"), Kind::Unavailable, "JSON that is broken"),
        (Act::reply(200, "text/event-stream", b"data: \xff\xfe\n\n".to_vec()), Kind::Unavailable, "broken text"),
        (Act::Endless { kind: "text/event-stream", body: vec![b'a'; 4096] }, Kind::Unavailable, "does not end"),
        (Act::Endless { kind: "application/json", body: vec![b' '; 4096] }, Kind::Unavailable, "more than 8 MiB"),
        (
            Act::Endless { kind: "text/event-stream", body: b": wait\n".repeat(500) },
            Kind::Unavailable,
            "more than 8 MiB",
        ),
        (Act::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()), Kind::Unavailable, "not HTTP"),
    ] {
        let about = format!("{act:?}").chars().take(80).collect::<String>();
        let fake = Fake::start([act]);
        let error = failed(&fake);
        assert_eq!(error.kind(), kind, "{about}: {}", error.full());
        assert!(error.full().contains(words), "{about}: {}", error.full());
        assert!(!error.full().contains("secret"), "{about}: {}", error.full());
        assert_eq!(fake.seen().len(), 1, "{about}");
    }
}

#[test]
fn what_passes_is_asked_again() {
    for act in [
        Act::status(408, &[]),
        Act::status(429, &["Retry-After: 0"]),
        Act::status(500, &[]),
        Act::status(503, &[]),
        stream("data: {\"error\": {\"message\": \"oh\"}}\n\n"),
    ] {
        let fake = Fake::start([act, hola()]);
        assert_eq!(chat(&fake.remote()).0.unwrap().text, "hola");
        assert_eq!(fake.seen().len(), 2);
    }
    let fake = Fake::start([Act::status(500, &[])]);
    let (said, _) = chat(&fake.remote_with(|settings| settings.retries = 1));
    assert!(said.unwrap_err().message().contains("is not well (500 Internal Server Error): said the fake"));
    assert_eq!(fake.seen().len(), 2);
}

#[test]
fn a_busy_server_is_asked_when_it_wants_to_be() {
    let fake = Fake::start([Act::status(429, &["Retry-After: 1"]), hola()]);
    let began = Instant::now();
    assert_eq!(chat(&fake.remote()).0.unwrap().text, "hola");
    assert!(began.elapsed() >= Duration::from_secs(1));
    let health = fake.remote().health();
    assert_eq!(health.state, RemoteState::Unknown);
}

#[test]
fn who_asks_is_told_when_to_come_again_rather_than_kept_waiting() {
    let fake = Fake::start([Act::status(429, &["Retry-After: 100"])]);
    let began = Instant::now();
    let error = failed(&fake);
    assert_eq!((error.kind(), error.retry_after_time()), (Kind::Busy, Some(Duration::from_secs(100))));
    assert!(error.hint_text().unwrap().contains("100 s"), "{}", error.full());
    assert_eq!(fake.seen().len(), 1);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // It asks for a day at most, and for little more than once.
    fake.play([Act::status(503, &["Retry-After: 18446744073709551615"])]);
    let error = failed(&fake);
    assert_eq!((error.kind(), error.retry_after_time()), (Kind::Unavailable, Some(Duration::from_secs(86_400))));
    fake.play([Act::status(429, &["Retry-After: 3"])]);
    let asked = fake.seen().len();
    assert_eq!(failed(&fake).retry_after_time(), Some(Duration::from_secs(3)));
    assert_eq!(fake.seen().len(), asked + 2);
}

/// `/v1/models` answers, whatever becomes of the jobs.
fn looked_well(fake: &Fake, remote: &Remote) {
    fake.play([Act::reply(200, "application/json", "{}")]);
    remote.look();
}

#[test]
fn a_task_that_is_refused_is_not_well_until_a_job_of_it_goes() {
    for (act, words) in [
        (Act::status(401, &[]), "wants a key"),
        (Act::status(403, &[]), "wants a key"),
        (Act::status(404, &[]), "does not have this"),
        (Act::status(500, &[]), "is not well"),
        (Act::reply(200, "text/html", "<html>log in</html>"), "instead of JSON"),
        // It takes the question and hangs up.
        (Act::Raw(Vec::new()), "ended the connection without an answer"),
    ] {
        let fake = Fake::start([act.clone()]);
        let remote = fake.remote_with(|settings| settings.retries = 0);
        looked_well(&fake, &remote);
        assert_eq!((remote.health().state, remote.trouble(Task::Chat)), (RemoteState::Ready, None));
        for _ in 0..2 {
            fake.play([act.clone()]);
            assert!(chat(&remote).0.is_err());
            looked_well(&fake, &remote);
            let reason = remote.trouble(Task::Chat).unwrap_or_default();
            assert!(reason.contains(words), "{words}: {reason}");
            assert_eq!(remote.trouble(Task::Speak), None, "{words}");
            let health = remote.health();
            assert_eq!(health.state, RemoteState::Failing, "{words}");
            assert!(health.reason.unwrap().starts_with("chat: "), "{words}");
        }
        fake.play([hola()]);
        chat(&remote).0.unwrap();
        assert_eq!((remote.health().state, remote.trouble(Task::Chat)), (RemoteState::Ready, None), "{words}");
    }
}

#[test]
fn what_is_wrong_with_one_request_says_nothing_of_the_task() {
    for act in [Act::status(400, &[]), Act::status(413, &[]), Act::status(429, &["Retry-After: 9"])] {
        let fake = Fake::start([act]);
        let remote = fake.remote();
        assert!(chat(&remote).0.is_err());
        assert_eq!(remote.trouble(Task::Chat), None);
    }
}

#[test]
fn speech_without_a_sound_is_an_error_and_no_trouble_of_the_task() {
    let fake = Fake::start([Act::reply(200, "audio/wav", wav(&[]))]);
    let remote = fake.remote();
    let ask = SpeakAsk { text: "…".into(), voice: "b".into(), language: "es".into(), speed: 1.0 };
    let error = remote.speaker("kokoro").unwrap().speak(&ask, &mut |_| {}, &Cancel::default()).unwrap_err();
    assert_eq!((error.kind(), remote.trouble(Task::Speak)), (Kind::Unavailable, None), "{}", error.full());
    assert!(error.message().contains("says nothing"), "{}", error.full());
}

#[test]
fn a_server_that_was_gone_is_well_for_all_when_it_is_seen_again() {
    let fake = Fake::start([hola()]);
    let remote = fake.remote_with(|settings| (settings.retries, settings.key_file) = (0, "/absent/key".into()));
    let error = chat(&remote).0.unwrap_err();
    assert!(fake.seen().is_empty() && !error.message().contains("os error"), "{}", error.message());
    assert!(error.hint_text().unwrap().contains("remotes.box.key_file"));
    for task in [Task::Chat, Task::Speak] {
        assert!(remote.trouble(task).unwrap().contains("/absent/key"));
    }
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let remote = remote_at(&format!("http://{address}"), |settings| settings.retries = 0);
    assert!(chat(&remote).0.is_err());
    assert!(remote.trouble(Task::Speak).unwrap().contains("cannot be reached"));
    let back = Fake::at(TcpListener::bind(address).unwrap(), [Act::reply(200, "application/json", "{}")]);
    remote.look();
    assert_eq!((remote.trouble(Task::Speak), remote.trouble(Task::Chat)), (None, None));
    drop(back);
}

#[test]
fn a_server_that_does_its_jobs_need_not_tell_its_models() {
    let fake = Fake::start([hola()]);
    let remote = fake.remote();
    chat(&remote).0.unwrap();
    fake.play([Act::status(404, &[])]);
    remote.look();
    assert_eq!(remote.health().state, RemoteState::Ready);
    fake.play([Act::status(502, &[])]);
    remote.look();
    assert_eq!(remote.health().state, RemoteState::Failing);
}

#[test]
fn what_a_server_says_is_short_and_printable_and_without_the_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    writeln!(&file, "sk-secret").unwrap();
    let path = file.path().display().to_string();
    let evil = format!("\u{1b}[31msk-secret\n{}", "a".repeat(5000));
    for act in [
        Act::json(&serde_json::json!({"choices": evil})),
        Act::reply(200, &format!("text/{}", "a".repeat(5000)), "x"),
        Act::reply(500, "text/plain", evil.clone()),
    ] {
        let fake = Fake::start([act]);
        let remote = fake.remote_with(|settings| (settings.retries, settings.key_file) = (0, path.clone()));
        let told = chat(&remote).0.unwrap_err().full();
        assert!(told.len() < 1000 && !told.contains("secret") && !told.contains(char::is_control), "{told}");
    }
}

#[test]
fn a_server_that_fails_is_left_alone_by_all_and_tried_again() {
    let fake = Fake::start([Act::status(500, &[])]);
    let remote = fake.remote_with(|settings| {
        (settings.retries, settings.breaker_failures, settings.breaker_open_secs) = (0, 2, 1);
    });
    assert!(chat(&remote).0.is_err() && chat(&remote).0.is_err());
    let ask = SpeakAsk { text: "a".into(), voice: "b".into(), language: "es".into(), speed: 1.0 };
    let spoken = remote.speaker("kokoro").unwrap().speak(&ask, &mut |_| {}, &Cancel::default());
    let error = spoken.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.full().contains("the remote box failed too often"), "{}", error.full());
    assert!(error.hint_text().unwrap().contains("tried again in 1 s"), "{}", error.full());
    assert_eq!(fake.seen().len(), 2);
    assert_eq!(remote.health().state, RemoteState::Resting);

    fake.play([hola()]);
    until(|| chat(&remote).0.is_ok());
    assert_eq!(fake.seen().len(), 3);
    let health = remote.health();
    assert_eq!((health.state, health.reason, health.last_ok_secs), (RemoteState::Ready, None, Some(0)));
}

#[test]
fn a_server_that_says_no_is_well() {
    let fake = Fake::start([Act::status(400, &[])]);
    let remote = fake.remote_with(|settings| settings.breaker_failures = 1);
    for _ in 0..3 {
        assert_eq!(chat(&remote).0.unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(fake.seen().len(), 3);
}

#[test]
fn a_cancel_is_obeyed_at_once_wherever_the_answer_is() {
    for act in [Act::Silence, Act::Hold { kind: "text/event-stream", body: delta("ho").into() }] {
        let fake = Fake::start([act]);
        let remote = fake.remote_with(|settings| settings.breaker_failures = 1);
        let cancel = Cancel::default();
        let asked = {
            let (remote, cancel) = (remote.clone(), cancel.clone());
            std::thread::spawn(move || remote.chatter("qwen").unwrap().chat(&chat_ask(), &mut |_| {}, &cancel))
        };
        until(|| fake.seen().len() == 1);
        let began = Instant::now();
        cancel.cancel();
        let error = asked.join().unwrap().unwrap_err();
        // 50 ms on a quiet machine.
        assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
        assert_eq!(error.kind(), Kind::Cancelled);
        // The server hears of it, and can stop too; and it is not held against it.
        until(|| fake.left() == 1);
        fake.play([hola()]);
        assert_eq!(chat(&remote).0.unwrap().text, "hola");
    }
}

#[test]
fn a_cancel_ends_the_pause_between_two_tries() {
    let fake = Fake::start([Act::status(503, &["Retry-After: 5"])]);
    let remote = fake.remote();
    let cancel = Cancel::default();
    let asked = {
        let cancel = cancel.clone();
        std::thread::spawn(move || remote.chatter("qwen").unwrap().chat(&chat_ask(), &mut |_| {}, &cancel))
    };
    until(|| fake.seen().len() == 1);
    cancel.cancel();
    assert_eq!(asked.join().unwrap().unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn nothing_is_said_in_clear_beyond_this_network() {
    let remote = remote("http://8.8.8.8:9", |_| ());
    let error = chat(&remote).0.unwrap_err();
    assert!(error.full().contains("8.8.8.8:9, beyond this network"), "{}", error.full());
    assert!(error.full().contains("remotes.box.insecure"), "{}", error.full());
}

#[test]
fn who_cannot_prove_who_they_are_hears_nothing() {
    let fake = Fake::start([Act::Raw(b"this is no handshake".to_vec())]);
    let remote = remote(&fake.url().replace("http://", "https://"), |settings| settings.retries = 0);
    let error = chat(&remote).0.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(fake.seen().is_empty() || !fake.seen()[0].text().contains("hola"));
}

#[test]
fn keys_and_certificates_that_cannot_be_read_are_told_and_may_come_later() {
    let file = tempfile::NamedTempFile::new().unwrap();
    writeln!(&file, "two words").unwrap();
    let path = file.path().display().to_string();
    let fake = Fake::start([hola()]);
    let told = |key_file: &str, ca_file: &str| {
        let remote = fake.remote_with(|settings| {
            (settings.key_file, settings.ca_file) = (key_file.to_owned(), ca_file.to_owned());
        });
        let [(key, error)] = &remote.faults()[..] else { panic!("one of them is wrong") };
        remote.look();
        let health = remote.health();
        assert_eq!((health.state, health.reason), (RemoteState::Failing, Some(error.full())));
        format!("{key}: {}", error.full())
    };
    assert!(told("/absent/key", "").starts_with("key_file: ") && told("/absent/key", "").contains("cannot be read"));
    assert!(told("/dev/null", "").contains("is no file"));
    assert!(told(&path, "").contains("not one word") && !told(&path, "").contains("two words"));
    assert!(told("", "/absent/ca.pem").starts_with("ca_file: ") && told("", "/absent/ca.pem").contains("cannot be"));
    assert!(told("", "/dev/null").contains("are in no file"));
    assert!(told("", &path).contains("are none"));
    assert!(fake.seen().is_empty());

    let remote = fake.remote_with(|settings| settings.key_file = path.clone());
    assert!(chat(&remote).0.unwrap_err().message().contains("not one word"));
    std::fs::write(&path, "sk-new").unwrap();
    chat(&remote).0.unwrap();
    assert_eq!(fake.seen()[0].headers["authorization"], "Bearer sk-new");
    assert_eq!(remote.health().state, RemoteState::Ready);
}

#[test]
fn health_is_looked_after_until_the_guard_goes() {
    let fake = Fake::start([Act::reply(200, "application/json", "{}")]);
    let remote = fake.remote_with(|settings| settings.health_secs = 1);
    assert_eq!(remote.health().state, RemoteState::Unknown);
    let probe = remote.spawn_probe().unwrap();
    until(|| remote.health().state == RemoteState::Ready);
    assert!(remote.health().latency_ms.is_some());
    assert_eq!(remote.health().url, fake.url());
    assert_eq!(fake.seen()[0].path, "/v1/models");
    fake.play([Act::status(401, &[])]);
    until(|| remote.health().state == RemoteState::Failing);
    assert!(remote.health().reason.unwrap().contains("wants a key"));
    fake.play([Act::Silence]);
    let asked = fake.seen().len();
    until(|| fake.seen().len() > asked);
    drop(probe);
    until(|| fake.left() == 1);
}
