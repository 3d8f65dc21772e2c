//! The whole of diarization: turns out of what was observed, and the real model where its files are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;
use crate::{
    base::Kind,
    engines::{Cancel, Embedder},
    flow::Pcm,
    media::{AudioFile, Media},
    runtime::{self, Runtime},
    settings,
};

fn model(assets: &Path) -> VoiceModel {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = runtime::find("", &runtime::candidates(checkout, checkout)).unwrap();
    VoiceModel::open(&Runtime::open(&library).unwrap(), &assets.join("real/ge2e"), 1).unwrap()
}

async fn decode(path: PathBuf) -> Pcm {
    let settings = settings::load(&settings::Sources::default()).unwrap().settings;
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision).unwrap();
    media.decode_file(AudioFile::Path(path), Duration::from_secs(60)).await.unwrap().whole().unwrap()
}

#[tokio::test]
async fn voices_of_ge2e_are_those_of_its_reference() {
    let Some(assets) = assets() else { return };
    let text = std::fs::read(assets.join("real/ge2e/expected_embeddings.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let expected: BTreeMap<String, Vec<f32>> = serde_json::from_value(reference["embeddings"].clone()).unwrap();
    let mut model = model(&assets);
    // Two are enough for every run of the tests; `vigia bench diarize` compares them all.
    for (file, wanted) in expected.iter().filter(|(file, _)| file.ends_with("-0003.flac")) {
        let pcm = decode(assets.join("real/speakers").join(file)).await;
        let voice = model.embed(&pcm, &Cancel::default()).unwrap();
        let off = voice.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-3, "{file}: {off}");
        assert_eq!(voice.len(), wanted.len());
    }
}

#[test]
fn audio_too_short_for_a_voice_and_stretches_outside_are_refused() {
    let Some(assets) = assets() else { return };
    let mut model = model(&assets);
    let cancel = Cancel::default();
    assert_eq!(model.embed(&[0.1; 3999], &cancel).unwrap_err().kind(), Kind::Invalid);
    let outside = [0..8000, 1..8001];
    assert_eq!(model.embed_stretches(&[0.1; 8000], &outside, &cancel).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(model.embed_stretches(&[], &[], &cancel).unwrap(), Vec::<Vec<f32>>::new());
    // Silence has a voice like any other audio: no NaN.
    assert!(model.embed(&[0.0; 16_000], &cancel).unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn a_graph_that_is_no_model_of_voices_is_named() {
    let Some(assets) = assets() else { return };
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = runtime::find("", &runtime::candidates(checkout, checkout)).unwrap();
    let runtime = Runtime::open(&library).unwrap();
    let error = VoiceModel::open(&runtime, &assets.join("real/silero-vad"), 1).err().unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(Segmenter::open(&runtime, &assets.join("real/ge2e"), 1).unwrap().is_none());
}
