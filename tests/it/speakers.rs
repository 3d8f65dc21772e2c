//! Who speaks: in recordings and in live sessions. The engine of voices here takes who speaks louder for somebody else,
//! so that a test decides who speaks; with the models of the assets real people are told apart.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    asr::{asked, events, form, stt, wav},
    harness::{Daemon, LIMIT, Stream, common_sets, data, speech_pcm, vigia},
};

const SETS: [&str; 2] = ["tasks.transcribe.model=test-echo", "tasks.diarize.model=test-loudness"];

/// The sentence of the fixtures, so much quieter.
fn sentence(quieter: i16) -> Vec<u8> {
    let samples = speech_pcm();
    let (samples, _) = samples.as_chunks::<2>();
    samples.iter().flat_map(|it| (i16::from_le_bytes(*it) / quieter).to_le_bytes()).collect()
}

/// By turns, each followed by silence.
fn conversation(turns: &[i16], gap_secs: usize) -> Vec<u8> {
    let mut pcm = Vec::new();
    for quieter in turns {
        pcm.extend(sentence(*quieter));
        pcm.resize(pcm.len() + gap_secs * 32_000, 0);
    }
    pcm
}

fn file(pcm: &[u8]) -> Vec<u8> {
    [wav(pcm.len() as u32), pcm.to_vec()].concat()
}

fn speakers(segments: &Value) -> Vec<&str> {
    segments.as_array().unwrap().iter().map(|it| it["speaker"].as_str().unwrap_or("nobody")).collect()
}

#[tokio::test]
async fn speakers_of_a_recording_are_told_apart() {
    let daemon = Daemon::start_with(&SETS);
    let recording = file(&conversation(&[1, 8, 1, 8], 30));
    let (status, answer) = stt(&daemon, &recording, &[("diarize", "true")]).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(speakers(&answer["segments"]), ["S1", "S2", "S1", "S2"], "{answer}");
    assert!(answer["segments"][0].get("words").is_none(), "{answer}");
    let (_, plain) = stt(&daemon, &recording, &[]).await;
    assert_eq!((&plain["text"], &plain["segments"][0]["speaker"]), (&answer["text"], &Value::Null));
    let (_, one) = stt(&daemon, &recording, &[("diarize", "true"), ("speakers", "1"), ("words", "true")]).await;
    assert_eq!(speakers(&one["segments"]), ["S1"], "{one}");
    assert_eq!(one["segments"][0]["words"].as_array().unwrap().len(), 4, "{one}");
    let (_, health) = daemon.get("/api/health").await;
    assert_eq!(health["tasks"]["diarize"]["state"], json!("ready"), "{health}");
    for wrong in ["0", "65", "two", "-1"] {
        let (status, error) = stt(&daemon, &recording, &[("diarize", "true"), ("speakers", wrong)]).await;
        assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid")), "{error}");
    }
    let silence = file(&vec![0; 5 * 32_000]);
    let (status, answer) = stt(&daemon, &silence, &[("diarize", "true")]).await;
    assert_eq!((status, &answer["segments"]), (200, &json!([])), "{answer}");
}

#[tokio::test]
async fn a_segment_is_cut_where_the_speaker_changes_and_the_last_event_has_the_parts() {
    let daemon = Daemon::start_with(&SETS);
    // Two sentences in one window of speech.
    let body = form(&file(&conversation(&[1, 8], 0)), &[("diarize", "true")]);
    let mut tcp = asked(&daemon, "text/event-stream", &body).await;
    let mut answer = String::new();
    timeout(LIMIT, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
    let events = events(&answer);
    let told: Vec<&Value> = events.iter().filter(|(name, _)| name == "segment").map(|(_, it)| it).collect();
    assert!(told.iter().all(|it| it["speaker"].is_null() && it.get("words").is_none()), "{answer}");
    let (last, done) = events.last().unwrap();
    assert_eq!(last, "done", "{answer}");
    assert_eq!(speakers(&done["segments"]), ["S1", "S2"], "{done}");
    let segments = done["segments"].as_array().unwrap();
    assert_eq!((&segments[0]["id"], &segments[1]["id"]), (&told[0]["id"], &json!(told.len())), "{done}");
    let parts: Vec<&str> = segments.iter().map(|it| it["text"].as_str().unwrap()).collect();
    assert_eq!(parts.join(" "), told[0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn without_a_model_a_recording_that_is_to_have_speakers_is_refused() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "tasks.diarize.model=ge2e"]);
    let (status, error) = stt(&daemon, &data("speech/speech.wav"), &[("diarize", "true")]).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("vigia models"), "{error}");
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let sets = SETS.iter().flat_map(|set| ["--set", set]);
    vigia().args(arguments).args(common_sets(dir)).args(sets).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_known_voice_is_called_by_its_name_and_one_that_was_removed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, pcm: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, file(pcm)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (quiet, talk) = (write("quiet.wav", &sentence(8)), write("talk.wav", &conversation(&[1, 8, 1], 30)));
    text(&run(dir.path(), &["voices", "enroll", "Ana", &quiet]));
    assert!(text(&run(dir.path(), &["voices", "list"])).contains("test-loudness"));
    let transcribe = ["transcribe", &talk, "--diarize", "--language", "es"];
    let names = |text: &str| text.lines().map(|line| line.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&text(&run(dir.path(), &transcribe))), ["S1", "Ana", "S1"]);
    let vtt = text(&run(dir.path(), &[&transcribe[..], &["--format", "vtt"]].concat()));
    assert!(vtt.contains("<v Ana>") && vtt.contains("<v S1>"), "{vtt}");
    text(&run(dir.path(), &["voices", "remove", "Ana"]));
    assert_eq!(names(&text(&run(dir.path(), &transcribe))), ["S1", "S2", "S1"]);
    let srt = text(&run(dir.path(), &[&transcribe[..], &["--speakers", "1", "--format", "srt"]].concat()));
    assert!(srt.contains("S1: ") && !srt.contains("S2: "), "{srt}");
    let refused = run(dir.path(), &["transcribe", &talk, "--speakers", "2"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--diarize"));
}

fn config(session: &str) -> Value {
    json!({ "type": "config", "session_id": session, "language": "es" })
}

/// Sends a take and ends it; its final result.
async fn take(stream: &mut Stream, pcm: &[u8]) -> Value {
    for chunk in pcm.chunks(3200) {
        stream.audio(chunk).await;
    }
    stream.end().await;
    timeout(LIMIT, stream.until("final_result")).await.unwrap()
}

fn told(stream: &Stream) -> Vec<String> {
    let segments = stream.of("segment_result");
    segments.iter().map(|it| it["segment"]["speaker"].as_str().unwrap_or("nobody").to_owned()).collect()
}

#[tokio::test]
async fn segments_name_their_speakers_while_they_are_spoken_over_all_takes() {
    let daemon = Daemon::start_with(&SETS);
    let mut stream = daemon.audio(config("live")).await;
    let first = take(&mut stream, &conversation(&[1, 8, 1], 0)).await;
    assert_eq!(speakers(&first["segments"]), ["S1", "S2", "S1"], "{first}");
    assert!(first["segments"][0].get("words").is_none() && first.get("unavailable").is_none(), "{first}");
    let second = take(&mut stream, &conversation(&[8, 1], 0)).await;
    assert_eq!(speakers(&second["segments"]), ["S2", "S1"], "{second}");
    assert_eq!(told(&stream), ["S1", "S2", "S1", "S2", "S1"]);
    stream.close().await;
    let segments: Vec<Value> =
        daemon.replay("live").await.into_iter().filter(|it| it["type"] == "transcript.segment").collect();
    assert_eq!(segments[1]["data"]["segment"]["speaker"], json!("S2"));
    let (_, transcript) = daemon.get("/sessions/live/transcript.json").await;
    assert_eq!(speakers(&transcript["segments"]), ["S1", "S2", "S1", "S2", "S1"], "{transcript}");
}

#[tokio::test]
async fn speakers_are_who_they_were_after_the_daemon_was_killed() {
    let daemon = Daemon::start_with(&SETS);
    let audio = conversation(&[1, 8, 1, 8, 1], 0);
    let undisturbed = take(&mut daemon.audio(config("undisturbed")).await, &audio).await;
    assert_eq!(speakers(&undisturbed["segments"]), ["S1", "S2", "S1", "S2", "S1"], "{undisturbed}");
    let mut stream = daemon.audio(config("killed")).await;
    for chunk in audio[..audio.len() / 2].chunks(3200) {
        stream.audio(chunk).await;
    }
    timeout(LIMIT, stream.until("segment_result")).await.unwrap();
    timeout(LIMIT, stream.until("segment_result")).await.unwrap();
    let daemon = daemon.kill_and_restart();
    let mut resume = config("killed");
    resume["resume"] = json!(true);
    let mut stream = daemon.audio(resume).await;
    let from = stream.seen[0]["received_samples"].as_u64().unwrap() as usize * 2;
    let result = take(&mut stream, &audio[from..]).await;
    assert_eq!(result["segments"], undisturbed["segments"]);
}

#[tokio::test]
async fn the_final_result_has_a_segment_in_parts_where_the_speaker_changes_in_it() {
    let sets = [&SETS[..], &["vad.min_silence_ms=3000"]].concat();
    let daemon = Daemon::start_with(&sets);
    let mut stream = daemon.audio(config("parts")).await;
    let result = take(&mut stream, &conversation(&[1, 1, 8], 0)).await;
    assert_eq!(stream.of("segment_result").len(), 1, "{:#?}", stream.seen);
    assert_eq!(speakers(&result["segments"]), ["S1", "S2"], "{result}");
    let ids: Vec<u64> = result["segments"].as_array().unwrap().iter().map(|it| it["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [0, 1]);
    // What follows is numbered above the parts.
    let next = take(&mut stream, &sentence(1)).await;
    assert_eq!(next["segments"][0]["id"], json!(2), "{next}");
}

#[tokio::test]
async fn a_segment_that_was_told_before_the_daemon_was_killed_is_split_too() {
    let sets = [&SETS[..], &["vad.min_silence_ms=3000"]].concat();
    let daemon = Daemon::start_with(&sets);
    let mut stream = daemon.audio(config("killed")).await;
    let mut audio = conversation(&[1, 1, 8], 0);
    audio.resize(audio.len() + 4 * 32_000, 0);
    for chunk in audio.chunks(3200) {
        stream.audio(chunk).await;
    }
    let told = timeout(LIMIT, stream.until("segment_result")).await.unwrap();
    assert!(told["segment"].get("words").is_none(), "{told}");
    // It may have come before the segment.
    let all = json!(audio.len() / 2);
    while stream.of("ack").last().is_none_or(|ack| ack["received_samples"] != all) {
        stream.next().await;
    }
    let daemon = daemon.kill_and_restart();
    let mut resume = config("killed");
    resume["resume"] = json!(true);
    let mut stream = daemon.audio(resume).await;
    let result = take(&mut stream, &[]).await;
    assert_eq!(speakers(&result["segments"]), ["S1", "S2"], "{result}");
    assert!(result["segments"][0].get("words").is_none(), "{result}");
}

#[tokio::test]
async fn a_known_voice_has_its_name_in_a_session() {
    let daemon = Daemon::start_with(&SETS);
    let quiet = daemon.dir().join("quiet.wav");
    fs::write(&quiet, file(&sentence(8))).unwrap();
    text(&run(daemon.dir(), &["voices", "enroll", "Ana", quiet.to_str().unwrap()]));
    let mut stream = daemon.audio(config("named")).await;
    let result = take(&mut stream, &conversation(&[1, 8], 0)).await;
    assert_eq!(speakers(&result["segments"]), ["S1", "Ana"], "{result}");
    assert_eq!(told(&stream), ["S1", "Ana"]);
}

#[tokio::test]
async fn a_client_that_asks_who_speaks_is_told_where_nobody_can_say() {
    let daemon = Daemon::start();
    for (diarize, unavailable) in
        [(Value::Null, Value::Null), (json!(true), json!(["diarize"])), (json!(false), Value::Null)]
    {
        let mut config = config(&format!("asked-{diarize}"));
        if !diarize.is_null() {
            config["diarize"] = diarize;
        }
        let mut stream = daemon.audio(config).await;
        assert_eq!(stream.seen[0]["unavailable"], unavailable);
        let result = take(&mut stream, &sentence(1)).await;
        assert_eq!((&result["unavailable"], &result["segments"][0]["speaker"]), (&unavailable, &Value::Null));
    }
    let daemon = Daemon::start_with(&SETS);
    let mut config = config("not-asked");
    config["diarize"] = json!(false);
    let result = take(&mut daemon.audio(config).await, &sentence(1)).await;
    assert!(result["segments"][0]["speaker"].is_null() && result.get("unavailable").is_none(), "{result}");
}

#[tokio::test]
async fn real_people_are_told_apart() {
    let Some(assets) = std::env::var_os("VIGIA_TEST_ASSETS").map(std::path::PathBuf::from) else {
        println!("skipped: VIGIA_TEST_ASSETS is not set");
        return;
    };
    let model = format!("tasks.diarize.model={}", assets.join("real/ge2e").display());
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", &model]);
    let (status, answer) =
        stt(&daemon, &fs::read(assets.join("real/diarization/falcon_test.wav")).unwrap(), &[("diarize", "true")]).await;
    assert_eq!(status, 200, "{answer}");
    let mut heard = speakers(&answer["segments"]);
    heard.sort();
    heard.dedup();
    assert_eq!(heard, ["S1", "S2", "S3"], "{answer}");
}
