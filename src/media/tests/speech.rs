//! Speech that was encoded is heard as it was spoken, part by part; and who asks for too much is told.

use super::*;
use crate::{
    base::Kind,
    media::{SpeechContainer, recipe::Recipes},
};

const ALL: [(SpeechContainer, Encoding, &[u8]); 3] = [
    (SpeechContainer::Mp3, Encoding::Mp3, b"\xff"),
    (SpeechContainer::Ogg, Encoding::Ogg, b"OggS"),
    (SpeechContainer::Flac, Encoding::Flac, b"fLaC"),
];

/// Everything, written and read at the same time.
async fn encode(media: &Media, container: SpeechContainer, rate_hz: u32) -> Vec<Bytes> {
    let encoder = media.speech_encoder(container, rate_hz).await.unwrap();
    let write = async {
        for part in tone(rate_hz).chunks(999) {
            encoder.room().await.unwrap();
            encoder.push(part);
        }
        encoder.end();
    };
    let read = async {
        let mut parts = Vec::new();
        while let Some(part) = encoder.next().await {
            parts.push(part.unwrap_or_else(|error| panic!("{}", error.full())));
        }
        parts
    };
    tokio::time::timeout(LIMIT, async { tokio::join!(write, read) }).await.unwrap().1
}

#[tokio::test]
async fn every_container_gives_the_tone_back_at_every_rate() {
    let media = media();
    for (container, encoding, begin) in ALL {
        media.can_encode(container).await.unwrap();
        // The second of a container is made by the pipeline of the first.
        for rate_hz in [24_000, 22_050, 16_000, 44_100] {
            let parts = encode(&media, container, rate_hz).await;
            let file = parts.concat();
            assert!(file.starts_with(begin) && parts.len() > 2, "{container:?}: it comes in parts");
            assert!(file.len() < 4 * rate_hz as usize, "{container:?} at {rate_hz}: {} bytes", file.len());
            let decoded = decode(&media, super::container(encoding), &[file.into()]).await.unwrap().whole();
            let what = format!("{container:?} at {rate_hz}: {} samples", decoded.len());
            assert!(decoded.len().abs_diff(32_000) < 3200, "{what}");
            assert!(likeness(&decoded, 1600) > 0.9, "{what}");
        }
    }
}

#[tokio::test]
async fn an_encoder_takes_one_of_the_seats_and_gives_it_back() {
    let media = media_with(1);
    let encoder = media.speech_encoder(SpeechContainer::Ogg, 24_000).await.unwrap();
    let error = media.speech_encoder(SpeechContainer::Flac, 24_000).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    drop(encoder);
    let again = async {
        while media.speech_encoder(SpeechContainer::Flac, 24_000).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test]
async fn a_container_whose_encoder_is_missing_is_unsupported_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[variant.cpu]\nlaunch = \"appsrc name=in ! nosuchenc ! appsink name=out\"\n\
                [variant.cpu.elements]\nappsrc = \"a\"\nnosuchenc = \"gstreamer1.0-nosuch\"\n";
    fs::write(dir.path().join("speech-mp3.toml"), text).unwrap();
    assert!(Recipes::load(dir.path().to_str().unwrap(), "cpu").is_ok());
    let settings = load(&Sources::default()).unwrap().settings;
    let pipelines = Pipelines { dir: dir.path().display().to_string(), variant: "cpu".to_owned() };
    let media = Media::new(&pipelines, &settings.audio, &settings.vision).unwrap();
    let error = media.can_encode(SpeechContainer::Mp3).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.full().contains("nosuchenc") && error.full().contains("gstreamer1.0-nosuch"), "{}", error.full());
    media.can_encode(SpeechContainer::Flac).await.unwrap();
}
