//! The text of somebody who is speaking: committed words stay, and the final text is that of the recording. With a model
//! whose texts are gibberish (`tests/data/whisper-tiny`), and with a small trained one where `VIGIA_TEST_ASSETS` names it.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{Daemon, LIMIT, Stream, root, speech_pcm};

/// 100 ms of 16 kHz PCM.
const CHUNK: usize = 3_200;
/// Reading half a second takes a fraction of this even on a busy machine.
const READ_LIMIT: Duration = Duration::from_secs(4);

fn config(language: &str) -> Value {
    json!({ "type": "config", "sample_rate": 16000, "encoding": "pcm16", "language": language })
}

/// The fixture's model as it is published: with or without what its decoder listens to.
fn gibberish(dir: &Path, attention: bool) -> PathBuf {
    let from = root().join("tests/data/whisper-tiny");
    let to = dir.join("whisper-tiny");
    fs::create_dir_all(to.join("onnx")).unwrap();
    for file in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let decoder = if attention { "onnx_timestamped" } else { "onnx" };
    fs::copy(from.join("onnx/encoder_model.onnx"), to.join("onnx/encoder_model.onnx")).unwrap();
    let merged = "decoder_model_merged.onnx";
    fs::copy(from.join(decoder).join(merged), to.join("onnx").join(merged)).unwrap();
    to
}

/// At the pace of speech, or slower where every partial is to have its time even on a busy machine.
async fn speak(stream: &mut Stream, pcm: &[u8], slower: u32) -> Value {
    let mut pace = tokio::time::interval(Duration::from_millis(100) * slower);
    for chunk in pcm.chunks(CHUNK) {
        pace.tick().await;
        stream.audio(chunk).await;
    }
    stream.end().await;
    tokio::time::timeout(LIMIT, stream.until("final_result")).await.unwrap()
}

/// Half a second at a time, each once what came before has been read: so the machine's speed decides nothing.
async fn speak_step_by_step(stream: &mut Stream, pcm: &[u8]) -> Value {
    for step in pcm.chunks(5 * CHUNK) {
        stream.audio(step).await;
        // Where nobody speaks nothing is read.
        drop(tokio::time::timeout(READ_LIMIT, stream.until("partial_result")).await);
    }
    stream.end().await;
    tokio::time::timeout(LIMIT, stream.until("final_result")).await.unwrap()
}

/// Every committed text begins all that comes after it of its segment. How many letters were committed at last.
fn assert_nothing_is_taken_back(seen: &[Value]) -> usize {
    let mut committed: BTreeMap<u64, String> = BTreeMap::new();
    let mut finals = BTreeMap::new();
    for message in seen {
        match message["type"].as_str().unwrap() {
            "partial_result" => {
                let id = message["segment"].as_u64().unwrap();
                assert!(!finals.contains_key(&id), "a partial after the final text: {message}");
                let (text, now) = (message["text"].as_str().unwrap(), message["committed"].as_str().unwrap());
                let before = committed.entry(id).or_default();
                assert!(text.starts_with(now) && now.starts_with(&**before), "{before:?}, then {message}");
                *before = now.to_owned();
            }
            "segment_result" => {
                let segment = &message["segment"];
                let text = segment["text"].as_str().unwrap().to_owned();
                let id = segment["id"].as_u64().unwrap();
                let before = committed.get(&id).cloned().unwrap_or_default();
                assert!(text.starts_with(&before), "{before:?} was committed of {segment}");
                finals.insert(id, text);
            }
            _ => {}
        }
    }
    assert!(committed.iter().all(|(id, text)| text.is_empty() || finals.contains_key(id)), "{committed:?}");
    committed.values().map(String::len).sum()
}

async fn committed_words_of_gibberish_stay(attention: bool) {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("tasks.transcribe.model={}", gibberish(dir.path(), attention).display());
    let partials = format!("audio.partials={}", if attention { "attention" } else { "agreement" });
    let daemon = Daemon::start_with(&[&model, &partials, "audio.partial_interval_ms=100"]);
    let mut stream = daemon.audio(config("es")).await;
    let result = speak(&mut stream, &speech_pcm(), 3).await;
    assert_eq!(result["segments"].as_array().unwrap().len(), stream.of("segment_result").len(), "{result}");
    assert!(!stream.of("partial_result").is_empty(), "{:#?}", stream.seen);
    assert_nothing_is_taken_back(&stream.seen);
}

#[tokio::test]
async fn committed_words_stay_by_agreement() {
    committed_words_of_gibberish_stay(false).await;
}

#[tokio::test]
async fn committed_words_stay_by_attention() {
    committed_words_of_gibberish_stay(true).await;
}

#[tokio::test]
async fn finals_come_without_partials_and_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("tasks.transcribe.model={}", gibberish(dir.path(), false).display());
    let daemon = Daemon::start_with(&[&model]);
    let mut texts = Vec::new();
    // The second time nothing is begun on trial: the whole audio is there at once.
    for paced in [true, false] {
        let mut config = config("es");
        config["partials"] = json!(false);
        let mut stream = daemon.audio(config).await;
        let result = match paced {
            true => speak(&mut stream, &speech_pcm(), 1).await,
            false => {
                stream.audio(&speech_pcm()).await;
                stream.end().await;
                stream.until("final_result").await
            }
        };
        assert!(stream.of("partial_result").is_empty());
        texts.push(result["segments"].clone());
    }
    assert_eq!(texts[0], texts[1]);
}

/// The trained model, and a clip's samples with what is said in it.
fn trained(clip: &str) -> Option<(PathBuf, Vec<u8>, String)> {
    let Ok(assets) = env::var("VIGIA_TEST_ASSETS") else {
        eprintln!("skipped: VIGIA_TEST_ASSETS is not set");
        return None;
    };
    let model = Path::new(&assets).join("real/micro-whisper");
    let list: Value = serde_json::from_slice(&fs::read(model.join("clips/clips.json")).unwrap()).unwrap();
    let entry = list.as_array().unwrap().iter().find(|entry| entry["file"] == clip).unwrap();
    let pcm = fs::read(model.join("clips").join(clip)).unwrap()[44..].to_vec();
    Some((model, pcm, entry["text"].as_str().unwrap().to_owned()))
}

/// How many letters were committed of them before.
async fn final_text_is_what_was_said(clip: &str, language: &str) -> usize {
    let Some((model, pcm, said)) = trained(clip) else { return usize::MAX };
    let model = format!("tasks.transcribe.model={}", model.display());
    let daemon = Daemon::start_with(&[&model, "audio.partial_interval_ms=300"]);
    let mut stream = daemon.audio(config(language)).await;
    let result = speak_step_by_step(&mut stream, &pcm).await;
    assert_eq!(result["text"], json!(said), "{:#?}", stream.seen);
    assert_eq!(result["language"], json!(&clip[..2]));
    assert!(!stream.of("partial_result").is_empty());
    let segment = &result["segments"][0];
    assert!(segment["probability"].as_f64().unwrap() > 0.5, "{segment}");
    assert_nothing_is_taken_back(&stream.seen)
}

#[tokio::test]
async fn spanish_is_read_while_it_is_spoken() {
    // How much of it is committed depends on the machine: the model makes up ends for half a sentence.
    final_text_is_what_was_said("es_short_00.wav", "es").await;
}

#[tokio::test]
async fn english_is_recognised_and_committed_while_it_is_spoken() {
    assert!(final_text_is_what_was_said("en_short_00.wav", "auto").await > 0);
}
