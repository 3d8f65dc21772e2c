//! Every encoding of the wire, as a phone sends it, gives the same sentence at the same time.

use serde_json::{Value, json};

use crate::harness::{Daemon, Stream, data, speech_pcm};

struct Case {
    encoding: &'static str,
    rate: u32,
    channels: u32,
    messages: Vec<Vec<u8>>,
}

fn chunked(bytes: Vec<u8>, size: usize) -> Vec<Vec<u8>> {
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

/// Each packet is preceded by its length.
fn packets(file: Vec<u8>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = &file[..];
    while let Some((length, after)) = rest.split_at_checked(2) {
        let (packet, after) = after.split_at(usize::from(u16::from_be_bytes([length[0], length[1]])));
        packets.push(packet.to_vec());
        rest = after;
    }
    packets
}

fn f32_stereo(pcm: &[u8]) -> Vec<u8> {
    let samples = pcm.chunks_exact(2).map(|it| f32::from(i16::from_le_bytes([it[0], it[1]])) / 32768.0);
    samples.flat_map(|sample| [sample, sample]).flat_map(f32::to_le_bytes).collect()
}

fn cases() -> Vec<Case> {
    let file = |name: &str| data(&format!("speech/speech.{name}"));
    let raw = |encoding, rate, channels, bytes| Case { encoding, rate, channels, messages: chunked(bytes, 4096) };
    let mut cases = vec![
        raw("pcm16", 16_000, 1, speech_pcm()),
        raw("pcm_f32", 16_000, 2, f32_stereo(&speech_pcm())),
        raw("mulaw", 8_000, 1, file("mulaw")),
        raw("alaw", 8_000, 1, file("alaw")),
        Case { encoding: "opus", rate: 48_000, channels: 1, messages: packets(file("packets")) },
    ];
    for encoding in ["wav", "ogg", "webm", "flac", "mp3", "aac", "mp4"] {
        cases.push(Case { encoding, rate: 16_000, channels: 1, messages: chunked(file(encoding), 1000) });
    }
    cases
}

async fn transcribe(stream: &mut Stream, messages: &[Vec<u8>]) -> Value {
    for message in messages {
        stream.audio(message).await;
    }
    stream.end().await;
    stream.until("final_result").await
}

#[tokio::test]
async fn every_encoding_gives_the_same_sentence() {
    let daemon = Daemon::start();
    for Case { encoding, rate, channels, messages } in cases() {
        let config = json!({ "type": "config", "encoding": encoding, "sample_rate": rate, "channels": channels });
        let mut stream = daemon.audio(config).await;
        // Twice: the second take has a decoder of its own.
        for take in 0..2 {
            let result = transcribe(&mut stream, &messages).await;
            let segments = result["segments"].as_array().unwrap();
            assert_eq!(segments.len(), 1, "{encoding}: {result}");
            assert!(stream.of("error").is_empty(), "{encoding}: {:?}", stream.of("error"));
            let duration = result["duration"].as_f64().unwrap();
            assert!((duration - 4.06).abs() < 0.12, "{encoding}: {duration} s");
            let start = segments[0]["start"].as_f64().unwrap() - f64::from(take) * duration;
            assert!((start - 0.58).abs() < 0.15, "{encoding}: starts at {start}");
        }
        stream.close().await;
    }
}

#[tokio::test]
async fn audio_in_base64_is_the_same_audio() {
    use base64::Engine as _;
    let daemon = Daemon::start();
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    for (number, chunk) in speech_pcm().chunks(3200).enumerate() {
        let data = if number % 2 == 0 {
            base64::prelude::BASE64_STANDARD.encode(chunk)
        } else {
            base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(chunk)
        };
        stream.send(json!({ "type": "audio_chunk", "chunk_id": number, "data_b64": data })).await;
    }
    stream.end().await;
    let in_base64 = stream.until("final_result").await;
    let last = speech_pcm().chunks(3200).count() - 1;
    assert_eq!(stream.of("ack").last().unwrap()["chunk_id"], json!(last));
    let mut stream = daemon.audio(json!({ "type": "config" })).await;
    let in_binary = transcribe(&mut stream, &chunked(speech_pcm(), 3200)).await;
    assert_eq!(in_base64["text"], in_binary["text"]);
}

#[tokio::test]
async fn a_truncated_ogg_gives_what_was_there_and_the_session_goes_on() {
    let daemon = Daemon::start();
    let mut stream = daemon.audio(json!({ "type": "config", "encoding": "ogg" })).await;
    let ogg = data("speech/speech.ogg");
    let cut = transcribe(&mut stream, &chunked(ogg[..ogg.len() * 2 / 3].to_vec(), 1000)).await;
    let duration = cut["duration"].as_f64().unwrap();
    assert!((1.0..4.0).contains(&duration), "{cut}");
    let whole = transcribe(&mut stream, &chunked(ogg, 1000)).await;
    assert_eq!(whole["segments"].as_array().unwrap().len(), 1, "{whole}");
}

#[tokio::test]
async fn bytes_that_are_no_container_are_a_clear_error_and_the_session_goes_on() {
    let daemon = Daemon::start();
    for encoding in ["ogg", "webm", "flac", "mp3", "aac", "mp4", "wav"] {
        let mut stream = daemon.audio(json!({ "type": "config", "encoding": encoding })).await;
        let noise: Vec<u8> = (0..20_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let result = transcribe(&mut stream, &chunked(noise, 1000)).await;
        assert_eq!(result["segments"], json!([]), "{encoding}");
        let errors = stream.of("error");
        assert!(!errors.is_empty() && errors.iter().all(|error| error["fatal"] == false), "{encoding}: {errors:?}");
        let good = transcribe(&mut stream, &chunked(data(&format!("speech/speech.{encoding}")), 1000)).await;
        assert_eq!(good["segments"].as_array().unwrap().len(), 1, "{encoding}: {good}");
        stream.close().await;
    }
}

#[tokio::test]
async fn a_take_that_finds_every_pipeline_taken_is_refused_once() {
    let daemon = Daemon::start_with(&["tasks.transcribe.model=test-echo", "audio.max_pipelines=1"]);
    let config = json!({ "type": "config", "encoding": "ogg" });
    let mut stream = daemon.audio(config.clone()).await;
    let ogg = chunked(data("speech/speech.ogg"), 1000);
    transcribe(&mut stream, &ogg).await;
    // Another client takes the only pipeline; until the first one's is given back it may be told to wait.
    let mut other = daemon.socket("/ws/audio").await;
    loop {
        other.send(config.clone()).await;
        if other.next().await["type"] == "config_ack" {
            break;
        }
        other = daemon.socket("/ws/audio").await;
    }
    let refused = transcribe(&mut stream, &ogg).await;
    assert_eq!(refused["segments"], json!([]));
    let errors: Vec<&Value> = stream.of("error").iter().map(|error| &error["code"]).collect();
    assert_eq!(errors, ["busy"]);
    assert_eq!(transcribe(&mut other, &ogg).await["segments"].as_array().unwrap().len(), 1);
}
