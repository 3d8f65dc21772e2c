//! Who speaks: in recordings and in live sessions. The engine of voices here takes who speaks louder for somebody else,
//! so that a test decides who speaks; with the models of the assets real people are told apart.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    asr::{asked, events, form, stt, wav},
    harness::{Daemon, LIMIT, common_sets, data, speech_pcm, vigia},
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

#[tokio::test]
async fn two_real_people_are_two_speakers() {
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
