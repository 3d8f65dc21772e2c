//! `vigia try asr` and `vigia transcribe` on the small Whisper of the fixtures: what they print is what the reference
//! makes of the same sounds, and what is wrong is told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    asr::wav,
    harness::{common_sets, data, root, vigia},
};

fn fixture(name: &str) -> PathBuf {
    root().join("tests/data/whisper-tiny").join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&data("whisper-tiny/golden.json")).unwrap()
}

fn run(command: &mut Command) -> Output {
    let dir = tempfile::tempdir().unwrap();
    command.args(common_sets(dir.path())).output().unwrap()
}

fn tried(file: &Path, arguments: &[&str]) -> Value {
    let mut command = vigia();
    command.args(["try", "asr"]).arg(file).arg("--model").arg(fixture("")).arg("--json").args(arguments);
    let output = run(&mut command);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|it| it.as_u64().unwrap()).collect()
}

/// The prompt and what followed.
fn sequence(tried: &Value) -> Vec<u64> {
    [numbers(&tried["prompt_tokens"]), numbers(&tried["tokens"])].concat()
}

/// The longer recording of the reference, put together from its parts.
fn long_recording(dir: &Path) -> PathBuf {
    let golden = golden();
    let mut pcm = Vec::new();
    for part in golden["long"]["parts"].as_array().unwrap() {
        match part.as_str() {
            Some(sound) => pcm.extend(&data(&format!("whisper-tiny/{sound}.wav"))[44..]),
            None => pcm.resize(pcm.len() + (part.as_f64().unwrap() * 16_000.0) as usize * 2, 0),
        }
    }
    let path = dir.join("long.wav");
    fs::write(&path, [wav(pcm.len() as u32), pcm].concat()).unwrap();
    path
}

#[test]
fn single_windows_give_the_tokens_of_the_reference() {
    for (name, golden) in golden()["sounds"].as_object().unwrap() {
        let file = fixture(&format!("{name}.wav"));
        let greedy = tried(&file, &["--single-window", "--no-timestamps"]);
        assert_eq!(greedy["prompt_tokens"], golden["greedy"]["prompt"], "{name}");
        assert_eq!(greedy["tokens"], golden["greedy"]["tokens"], "{name}");
        assert_eq!(greedy["text"], json!(golden["greedy"]["text"].as_str().unwrap().trim()), "{name}");
        for (code, probability) in golden["language_probabilities"].as_object().unwrap() {
            let found = greedy["language_probabilities"][code].as_f64().unwrap();
            assert!((found - probability.as_f64().unwrap()).abs() < 1e-3, "{name} {code}: {found}");
        }
        for (arguments, expected) in [
            (&["--timestamps"][..], &golden["timestamps"]),
            (&["--no-timestamps", "--beam", "5"], &golden["beam5"]["tokens"]),
            (&["--beam", "5"], &golden["beam5_timestamps"]["tokens"]),
            (&["--no-timestamps", "--language", "es", "--task", "translate"], &golden["es_translate"]),
            (&["--no-timestamps", "--language", "es", "--prompt", "Hola Ana"], &golden["es_prompt"]["tokens"]),
        ] {
            let tried = tried(&file, &[&["--single-window"], arguments].concat());
            assert_eq!(sequence(&tried), numbers(expected), "{name} {arguments:?}");
        }
    }
}

#[test]
fn a_long_recording_window_after_window_gives_the_segments_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let file = long_recording(dir.path());
    let golden = golden();
    for (name, arguments) in [("default", &[][..]), ("es", &["--language", "es"])] {
        let tried = tried(&file, &[&["--long-form", "sequential", "--temperature", "0"], arguments].concat());
        let expected = golden["long"][name]["segments"].as_array().unwrap();
        let found = tried["segments"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{name}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found["tokens"], expected["tokens"], "{name}");
            for key in ["start", "end"] {
                let (found, expected) = (found[key].as_f64().unwrap(), expected[key].as_f64().unwrap());
                assert!((found - expected).abs() < 0.011, "{name} {key}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn words_are_told_where_the_export_can_and_named_where_not() {
    let file = fixture("steps.wav");
    let with = tried(&file, &["--single-window", "--words", "--language", "es"]);
    assert!(with.get("unavailable").is_none(), "{with}");
    let dir = tempfile::tempdir().unwrap();
    for part in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "onnx"] {
        std::os::unix::fs::symlink(fixture(part), dir.path().join(part)).unwrap();
    }
    let mut command = vigia();
    command.args(["try", "asr", "--single-window", "--words", "--json"]).arg(&file).arg("--model").arg(dir.path());
    let output = run(&mut command);
    let without: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(without["unavailable"], json!(["words"]), "{without}");
}

#[test]
fn a_recording_that_breaks_off_is_named_beside_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let whole = data("speech/speech.ogg");
    let cut = dir.path().join("cut.ogg");
    fs::write(&cut, &whole[..whole.len() * 3 / 4]).unwrap();
    let mut command = vigia();
    command.args(["transcribe", "--language", "es", "--format", "json", "--model"]).arg(fixture("")).arg(&cut);
    let output = run(&mut command);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("cut.ogg: the recording is cut off after"), "{told}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["warnings"][0]["code"], json!("cut"), "{object}");
    let output = {
        let mut command = vigia();
        command.args(["try", "vad", "--json"]).arg(&cut);
        run(&mut command)
    };
    assert!(String::from_utf8_lossy(&output.stderr).contains("cut off"), "{output:?}");
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok(), "{output:?}");
}

/// Nobody reads a log here: what stood in is said beside the text.
#[test]
fn what_stood_in_for_want_of_memory_is_said_without_a_daemon_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = vigia();
    command.args(["transcribe", "--format", "json"]).arg(root().join("tests/data/speech/speech.wav"));
    command.args(common_sets(dir.path())).args(["--set", "tasks.transcribe.model=test-large"]);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("transcribe runs as q8 on cpu: the device has no memory"),
        "{told}"
    );
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["warnings"][0]["code"], "instead", "{object}");
}

#[test]
fn recordings_are_transcribed_without_a_daemon_in_every_format() {
    let speech = root().join("tests/data/speech/speech.mp3");
    let written = tempfile::tempdir().unwrap();
    for (format, begin) in [("txt", ""), ("srt", ""), ("vtt", "WEBVTT"), ("json", "{")] {
        let mut command = vigia();
        command
            .args(["transcribe", "--words", "--language", "es", "--format", format, "--model"])
            .arg(fixture(""))
            .arg(&speech);
        let output = run(&mut command);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(text.starts_with(begin), "{format}: {text}");
        if format == "json" {
            let object: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&object["language"], &object["model"]), (&json!("es"), &json!("whisper-tiny")));
            assert!((object["duration"].as_f64().unwrap() - 4.06).abs() < 0.2, "{object}");
            assert_eq!(object["unavailable"], json!(["words"]), "{object}");
        }
    }
    let mut command = vigia();
    command.args(["transcribe", "--format", "srt", "--model"]).arg(fixture("")).arg("--output").arg(written.path());
    let output = run(command.arg(&speech).arg(fixture("steps.wav")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(written.path().join("speech.srt").is_file() && written.path().join("steps.srt").is_file());
}

#[test]
fn what_is_wrong_is_told_and_ends_with_an_error() {
    let nothing = tempfile::tempdir().unwrap();
    let broken = tempfile::tempdir().unwrap();
    for part in ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"] {
        fs::copy(fixture(part), broken.path().join(part)).unwrap();
    }
    fs::create_dir(broken.path().join("onnx")).unwrap();
    for graph in ["encoder_model.onnx", "decoder_model_merged.onnx"] {
        let bytes = data(&format!("whisper-tiny/onnx/{graph}"));
        fs::write(broken.path().join("onnx").join(graph), &bytes[..bytes.len() / 2]).unwrap();
    }
    let speech = root().join("tests/data/speech/speech.wav");
    let picture = root().join("tests/data/media/rgb.png");
    let model = fixture("");
    for (arguments, part) in [
        (vec!["try", "asr", speech.to_str().unwrap(), "--model", nothing.path().to_str().unwrap()], "config.json"),
        (vec!["try", "asr", speech.to_str().unwrap(), "--model", broken.path().to_str().unwrap()], ".onnx"),
        (vec!["try", "asr", picture.to_str().unwrap(), "--model", model.to_str().unwrap()], "no audio file"),
        (vec!["try", "asr", "/nowhere.wav", "--model", model.to_str().unwrap()], "/nowhere.wav"),
        (vec!["try", "asr", speech.to_str().unwrap(), "--model", model.to_str().unwrap(), "--language", "xx"], "xx"),
        (vec!["transcribe", speech.to_str().unwrap(), "--model", "no-such-model"], "no-such-model"),
        (vec!["transcribe", picture.to_str().unwrap(), "--model", model.to_str().unwrap()], "no audio file"),
        (vec!["transcribe", "--diarize", speech.to_str().unwrap(), "--model", model.to_str().unwrap()], "pyannote"),
        (vec!["transcribe", "a.wav", "b.wav", "--format", "srt"], "--output"),
        (vec!["transcribe", "a.wav", "b/a.mp3", "--output", nothing.path().to_str().unwrap()], "two recordings"),
        (vec!["transcribe", "a.wav", "--output", "/dev/null"], "names a folder"),
        (vec!["transcribe", "/no.wav", "/nor.wav", "--model", model.to_str().unwrap()], "2 of 2"),
    ] {
        let output = run(vigia().args(&arguments));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains(part) && output.stdout.is_empty(), "{arguments:?}: {told}");
    }
}
