//! What needs a process of its own, because a process opens one ONNX Runtime: a library that cannot be opened, and the
//! GPU build that a real card needs. That is opt-in: `VIGIA_TEST_GPU=1`, with `ORT_DYLIB_PATH` naming the build.
#![allow(clippy::unwrap_used, reason = "clippy takes only the bodies of `#[test]` functions for tests")]

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use vigia::{
    base::Kind,
    runtime::{GraphOptions, Provider, ProviderOptions, Runtime, TensorSpec, trial},
    settings::{DEFAULTS, Settings},
};

#[test]
fn a_file_that_is_no_library_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libonnxruntime.so");
    std::fs::write(&file, b"not an ELF file").unwrap();
    let Err(error) = Runtime::open(&file) else { panic!("opened a text file") };
    // Beside the test of the card, another one may be open.
    let opened = env::var_os("VIGIA_TEST_GPU").is_some() && error.kind() == Kind::Internal;
    assert!(opened || error.kind() == Kind::Unavailable && error.full().contains("scripts/run"), "{}", error.full());
}

#[test]
fn the_card_computes_what_the_processor_does() {
    if env::var_os("VIGIA_TEST_GPU").is_none() {
        println!("SKIPPED: VIGIA_TEST_GPU is not set");
        return;
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia");
    let library = env::var_os("ORT_DYLIB_PATH").map_or(checkout.join("runtime/libonnxruntime.so"), PathBuf::from);
    let runtime = Runtime::open(&library).unwrap();
    let settings: Settings = toml::from_str(DEFAULTS).unwrap();
    let run = |graph: &Path, inputs: &BTreeMap<String, TensorSpec>, provider| {
        let provider = ProviderOptions::new(provider, &settings.providers, None);
        let answers = trial(&runtime, graph, &GraphOptions { provider, ..GraphOptions::cpu(1) }, inputs, 7);
        answers.unwrap_or_else(|error| panic!("{}: {}", graph.display(), error.full()))
    };
    for (graph, inputs) in graphs(&checkout) {
        let expected = run(&graph, &inputs, Provider::Cpu);
        let found = run(&graph, &inputs, Provider::Cuda);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (output, expected) in &expected {
            let found = &found[output];
            assert_eq!(found.len(), expected.len(), "{output}");
            let apart = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{}: {output}: {apart} apart", graph.display());
            assert!(apart <= 1e-3, "{}: {output}: {apart} apart", graph.display());
        }
    }
}

/// Silero's graph, and the golden Whisper's encoder where the assets are there.
fn graphs(checkout: &Path) -> Vec<(PathBuf, BTreeMap<String, TensorSpec>)> {
    let of = |list: &[(&str, &str)]| list.iter().map(|(name, it)| ((*name).to_owned(), it.parse().unwrap())).collect();
    let silero = of(&[("input", "f32 1x576"), ("state", "f32 2x1x128"), ("sr", "i64 = 16000")]);
    let mut graphs = vec![(checkout.join("state/models/silero-vad/silero_vad.onnx"), silero)];
    if let Some(assets) = env::var_os("VIGIA_TEST_ASSETS").map(PathBuf::from) {
        let whisper = of(&[("input_features", "f32 1x80x3000")]);
        graphs.push((assets.join("golden/whisper-tiny-random/onnx/encoder_model.onnx"), whisper));
    }
    graphs
}
