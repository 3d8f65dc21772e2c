//! Graphs with the inputs and outputs of published models, and so little in them that what they answer can be computed by
//! hand: they show that each family is fed what its recipe says, and that a segmentation model leads to turns.

use std::{f32::consts::TAU, fs, path::Path};

use super::{
    embedder::unit,
    features::{Features, KaldiWindow, remove_mean},
    segmentation::FRAME_STEP,
    *,
};
use crate::{
    engines::{Cancel, Diarizer, Embedder},
    flow::SAMPLE_RATE_HZ,
    runtime::{Runtime, for_tests, protobuf::Message},
};

const FLOAT: u64 = 1;
/// Kinds of attributes.
const INT: u64 = 2;
const INTS: u64 = 7;
const BANDS: usize = 80;
/// What one frame of the segmentation model sees.
const SEES: usize = 991;

fn runtime() -> Option<Runtime> {
    for_tests().map(|library| Runtime::open(&library).unwrap())
}

/// `lists` and `numbers`: attributes.
fn node(op: &str, inputs: &[&str], output: &str, lists: &[(&str, &[u64])], numbers: &[(&str, u64)]) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.text(1, input);
    }
    node.text(2, output).text(4, op);
    for (name, values) in lists {
        let mut attribute = Message::default();
        attribute.text(1, name).number(20, INTS);
        for value in *values {
            attribute.number(8, *value);
        }
        node.message(5, &attribute);
    }
    for (name, value) in numbers {
        let mut attribute = Message::default();
        attribute.text(1, name).number(20, INT).number(3, *value);
        node.message(5, &attribute);
    }
    node
}

fn weights(name: &str, shape: &[usize], values: &[f32]) -> Message {
    let mut tensor = Message::default();
    for side in shape {
        tensor.number(1, *side as u64);
    }
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor.number(2, FLOAT).text(8, name).bytes(9, &raw);
    tensor
}

/// A tensor whose sizes are open where none is given.
fn port(name: &str, shape: &[Option<usize>]) -> Message {
    let mut sizes = Message::default();
    for (axis, size) in shape.iter().enumerate() {
        let mut dimension = Message::default();
        match size {
            Some(size) => dimension.number(1, *size as u64),
            None => dimension.text(2, &format!("n{axis}")),
        };
        sizes.message(1, &dimension);
    }
    let (mut tensor, mut kind, mut port) = <(Message, Message, Message)>::default();
    tensor.number(1, FLOAT).message(2, &sizes);
    kind.message(1, &tensor);
    port.text(1, name).message(2, &kind);
    port
}

fn write(path: &Path, nodes: &[Message], tensors: &[Message], input: &Message, output: &Message) {
    let (mut graph, mut opset, mut model) = <(Message, Message, Message)>::default();
    for node in nodes {
        graph.message(1, node);
    }
    graph.text(2, "stand-in");
    for tensor in tensors {
        graph.message(5, tensor);
    }
    graph.message(11, input).message(12, output);
    opset.text(1, "").number(2, 17);
    model.number(1, 8).message(7, &graph).message(8, &opset);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, model.into_bytes()).unwrap();
}

/// A model of voices that answers with how much each band changes over time: the sum of fourth powers, so that bands with a
/// little noise hardly count.
fn write_voices(dir: &Path, input: &str, output: &str) {
    let nodes = [
        node("Mul", &[input, input], "squares", &[], &[]),
        node("ReduceSumSquare", &["squares"], output, &[("axes", &[1])], &[("keepdims", 0)]),
    ];
    let ports = (port(input, &[None, None, Some(BANDS)]), port(output, &[None, Some(BANDS)]));
    write(&dir.join("onnx/model.onnx"), &nodes, &[], &ports.0, &ports.1);
}

/// A segmentation model that hears one speaker where samples are mostly above zero, another where they are mostly below,
/// and both where they are far above.
fn write_segmentation(dir: &Path, input: &str, output: &str) {
    // By class: how much of the mean of what a frame sees, and how much whatever it sees.
    let scores = [(0.0, 0.1), (1.0, 0.0), (-1.0, 0.0), (0.0, -9.0), (3.0, -1.5), (0.0, -9.0), (0.0, -9.0)];
    let kernels: Vec<f32> = scores.iter().flat_map(|(slope, _)| vec![slope / SEES as f32; SEES]).collect();
    let tensors = [weights("w", &[7, 1, SEES], &kernels), weights("b", &[7], &scores.map(|(_, offset)| offset))];
    let nodes = [
        node("Conv", &[input, "w", "b"], "classes", &[("strides", &[FRAME_STEP as u64])], &[]),
        node("Transpose", &["classes"], output, &[("perm", &[0, 2, 1])], &[]),
    ];
    let ports = (port(input, &[None, Some(1), None]), port(output, &[None, None, Some(7)]));
    write(&dir.join("model.onnx"), &nodes, &tensors, &ports.0, &ports.1);
}

/// A tone that comes and goes four times a second, over a little noise; its samples are `level` above zero.
fn voiced(hz: f32, level: f32, secs: f32, random: &mut fastrand::Rng) -> Vec<f32> {
    let rate = SAMPLE_RATE_HZ as f32;
    let sample = |at: usize| {
        let secs = at as f32 / rate;
        level + 0.3 * (TAU * hz * secs).sin() * (TAU * 4.0 * secs).sin().max(0.0)
    };
    (0..(secs * rate) as usize).map(|at| sample(at) + 0.004 * (random.f32() - 0.5)).collect()
}

fn by_hand(features: &Features, audio: &[f32]) -> Vec<f32> {
    let mut rows = features.rows(audio);
    remove_mean(&mut rows, BANDS);
    let change = |band: usize| rows.iter().skip(band).step_by(BANDS).map(|value| value.powi(4)).sum::<f32>();
    unit((0..BANDS).map(change).collect())
}

#[test]
fn each_family_is_fed_the_features_of_its_recipe() {
    let Some(runtime) = runtime() else { return };
    let families = [
        ("feats", "embs", KaldiWindow::Hamming, 32768.0, Likeness::WESPEAKER),
        ("input_features", "last_hidden_state", KaldiWindow::Hamming, 32768.0, Likeness::WESPEAKER),
        ("x", "embedding", KaldiWindow::Povey, 1.0, Likeness::CAM_PLUS),
    ];
    let random = &mut fastrand::Rng::with_seed(3);
    let audio = [voiced(300.0, 0.0, 2.0, random), voiced(2000.0, 0.1, 1.5, random)].concat();
    for (input, output, window, scale, likeness) in families {
        let dir = tempfile::tempdir().unwrap();
        write_voices(dir.path(), input, output);
        assert!(Segmenter::open(&runtime, dir.path(), 1).unwrap().is_none(), "{input}");
        let mut model = VoiceModel::open(&runtime, dir.path(), 1).unwrap();
        assert_eq!(model.kind().likeness, likeness);
        let features = Features::kaldi(window, scale);
        let cancel = Cancel::default();
        let assert_alike = |voice: &[f32], audio: &[f32]| {
            let off = voice.iter().zip(by_hand(&features, audio)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(voice.len() == BANDS && off < 1e-5, "{input}: {off}");
        };
        assert_alike(&model.embed(&audio, &cancel).unwrap(), &audio);
        // Stretches are heard as if there were nothing around them, whatever their lengths.
        let stretches = [0..16_000, 16_000..41_600, 28_800..56_000];
        let voices = model.embed_stretches(&audio, &stretches, &cancel).unwrap();
        for (voice, stretch) in voices.iter().zip(stretches) {
            assert_alike(voice, &audio[stretch]);
        }
    }
}

#[test]
fn a_segmentation_model_with_its_voices_leads_to_turns_that_may_overlap() {
    let Some(runtime) = runtime() else { return };
    for (input, output) in [("x", "y"), ("input_values", "logits")] {
        let places = tempfile::tempdir().unwrap();
        let dir = places.path().join("pyannote-segmentation-3.0");
        write_segmentation(&dir, input, output);
        write_voices(&places.path().join("wespeaker-resnet34-lm"), "input_features", "last_hidden_state");
        let no_detector = || panic!("a segmentation model needs no voice detector");
        let mut observer = Observer::open(&runtime, &dir, &[], 1, no_detector).unwrap();

        let random = &mut fastrand::Rng::with_seed(5);
        let mut audio = voiced(300.0, 0.5, 6.0, random);
        audio.extend(voiced(2000.0, -0.5, 5.0, random));
        // A pause, with its noise: digital silence at the edge of a track would be all that its voice tells.
        audio.extend(voiced(0.0, 0.0, 1.5, random));
        audio.extend(voiced(300.0, 0.5, 21.0, random));
        audio.extend(voiced(2000.0, 1.0, 2.0, random));
        audio.extend(voiced(2000.0, -0.5, 6.5, random));
        let observed: Vec<Observed> =
            pieces(&audio).map(|ask| observer.diarize(&ask, &mut |_| (), &Cancel::default()).unwrap()).collect();
        let expected = [(0.0, 6.0, 0), (6.0, 11.0, 1), (12.5, 35.5, 0), (33.5, 42.0, 1)];
        let turns = speakers(observed, None);
        assert_eq!(turns.len(), expected.len(), "{turns:?}");
        for (turn, (start, end, speaker)) in turns.iter().zip(expected) {
            assert_eq!(turn.speaker, speaker, "{turns:?}");
            assert!((turn.start - start).abs() < 0.15 && (turn.end - end).abs() < 0.15, "{turns:?}");
        }
    }
}
