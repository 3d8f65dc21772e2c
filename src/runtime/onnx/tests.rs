//! What is read, changed and written computes the same; what is no model is an error.

use std::{fs, path::PathBuf};

use super::*;
use crate::runtime::{Element, Graph, GraphOptions, Port, Runtime, Tensor, Wanted, for_tests};

const SWITCH: &str = "use_cache_branch";
const PAST: &str = "past_key_values.";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper-tiny/onnx").join(name)
}

fn runtime() -> Option<Runtime> {
    for_tests().map(|library| Runtime::open(&library).unwrap())
}

/// Something for every input, the same for the same name.
fn input(port: &Port, past: usize) -> Tensor {
    let open = |(axis, size): (usize, &Option<usize>)| {
        size.unwrap_or(match (axis, &port.name) {
            (0, _) => 1,
            (2, name) if name.contains(".decoder.") => past,
            (1, name) if name == "input_ids" => 1,
            _ => 75,
        })
    };
    let shape: Vec<usize> = port.shape.iter().enumerate().map(open).collect();
    let mut random = fastrand::Rng::with_seed(port.name.len() as u64);
    let count = shape.iter().product();
    match port.element {
        Element::Bool => Tensor::bools(&shape, &vec![past > 0; count]).unwrap(),
        Element::I64 => Tensor::integers(Element::I64, &shape, &vec![7; count]).unwrap(),
        element => {
            Tensor::floats(element, &shape, &(0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>()).unwrap()
        }
    }
}

fn answers(mut graph: Graph, names: &[String], past: usize) -> Vec<Vec<f32>> {
    let ports = graph.input_ports().unwrap();
    let inputs: Vec<Tensor> = ports.iter().map(|port| input(port, past)).collect();
    let wanted = Wanted::new(names.iter().map(String::as_str)).unwrap();
    let named = ports.iter().map(|port| port.name.as_str()).zip(&inputs).collect();
    graph.run_tensors(named, &wanted).unwrap().iter().map(|it| it.f32().unwrap().to_vec()).collect()
}

fn assert_alike(got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.len(), want.len());
        let furthest = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(furthest < 1e-4, "{furthest}");
    }
}

fn keys(model: &Model) -> Vec<String> {
    let names = model.net.outputs.iter().map(|end| end.name.clone());
    names.filter(|name| name.ends_with(".decoder.key")).collect()
}

#[test]
fn a_model_is_written_small_and_computes_the_same() {
    let Some(runtime) = runtime() else { return };
    for name in ["encoder_model.onnx", "decoder_model.onnx"] {
        let model = Model::read(&path(name)).unwrap();
        assert!((model.to_bytes().len() as u64) < fs::metadata(path(name)).unwrap().len());
        let outputs: Vec<String> = model.net.outputs.iter().map(|end| end.name.clone()).collect();
        let plain = Graph::open(&runtime, &path(name), &GraphOptions::cpu(1)).unwrap();
        let changed = Graph::open_changed(&runtime, &model, &GraphOptions::cpu(1)).unwrap();
        assert_alike(&answers(changed, &outputs, 0), &answers(plain, &outputs, 0));
    }
}

#[test]
fn a_link_to_a_model_elsewhere_is_followed() {
    let Some(runtime) = runtime() else { return };
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("encoder_model.onnx");
    std::os::unix::fs::symlink(path("encoder_model.onnx"), &link).unwrap();
    Graph::open_changed(&runtime, &Model::read(&link).unwrap(), &GraphOptions::cpu(1)).unwrap();
}

#[test]
fn each_branch_computes_what_the_choice_did() {
    let Some(runtime) = runtime() else { return };
    let file = path("decoder_model_merged.onnx");
    let model = Model::read(&file).unwrap();
    for past in [0, 3] {
        let of_speech = |name: &str| name.contains(".encoder.");
        let branch = model.branch(SWITCH, past > 0, |name| past == 0 || !of_speech(name)).unwrap();
        assert!(branch.inputs().all(|name| name != SWITCH) && branch.net.nodes.iter().all(|node| node.op != "If"));
        let outputs: Vec<String> = branch.net.outputs.iter().map(|end| end.name.clone()).collect();
        let plain = Graph::open(&runtime, &file, &GraphOptions::cpu(1)).unwrap();
        let changed = Graph::open_changed(&runtime, &branch, &GraphOptions::cpu(1)).unwrap();
        assert_alike(&answers(changed, &outputs, past), &answers(plain, &outputs, past));
        // What makes the keys and values of the speech needs nothing but the speech.
        let speech = model.branch(SWITCH, false, of_speech).unwrap().ask_for_batch("encoder_hidden_states");
        assert_eq!(speech.inputs().collect::<Vec<_>>(), ["encoder_hidden_states"]);
        let outputs: Vec<String> = speech.net.outputs.iter().map(|end| end.name.clone()).collect();
        let plain = Graph::open(&runtime, &file, &GraphOptions::cpu(1)).unwrap();
        let changed = Graph::open_changed(&runtime, &speech, &GraphOptions::cpu(1)).unwrap();
        assert_alike(&answers(changed, &outputs, 0), &answers(plain, &outputs, 0));
    }
    assert!(model.branch("no_such_switch", true, |_| true).is_none());
    assert!(Model::read(&path("decoder_model.onnx")).unwrap().branch(SWITCH, true, |_| true).is_none());
}

#[test]
fn attention_at_once_hears_the_same() {
    let Some(runtime) = runtime() else { return };
    let file = path("encoder_model.onnx");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(path("../config.json")).unwrap()).unwrap();
    let heads = config["encoder_attention_heads"].as_u64().unwrap() as usize;
    let model = Model::read(&file).unwrap().attention_at_once(heads);
    let layers = config["encoder_layers"].as_u64().unwrap() as usize;
    let at_once = |node: &&Node| node.op == "MultiHeadAttention";
    assert_eq!(model.net.nodes.iter().filter(at_once).count(), layers);
    assert!(model.net.nodes.iter().all(|node| node.op != "Softmax"));
    let outputs = ["last_hidden_state".to_owned()];
    let plain = Graph::open(&runtime, &file, &GraphOptions::cpu(1)).unwrap();
    let changed = Graph::open_changed(&runtime, &model, &GraphOptions::cpu(1)).unwrap();
    assert_alike(&answers(changed, &outputs, 0), &answers(plain, &outputs, 0));
    // A mask between the product and its softmax is left alone.
    let masked = Model::read(&path("decoder_with_past_model.onnx")).unwrap();
    let softmaxes = |model: &Model| model.net.nodes.iter().filter(|node| node.op == "Softmax").count();
    let before = softmaxes(&masked);
    assert!(softmaxes(&masked.attention_at_once(heads)) >= before / 2);
}

#[test]
fn a_graph_that_compares_places_hides_what_follows() {
    let model = Model::read(&path("decoder_model_merged.onnx")).unwrap().branch(SWITCH, true, |_| true).unwrap();
    assert!(model.hides_what_follows("input_ids", &keys(&model), PAST));
    assert!(!model.hides_what_follows("input_ids", &[], PAST));
    // Traced with one token: nothing to compare, or places that do not depend on the tokens.
    let mut without = model.clone();
    without.net.nodes.iter_mut().filter(|node| node.op == "LessOrEqual").for_each(|node| node.op = "Or".to_owned());
    assert!(!without.hides_what_follows("input_ids", &keys(&model), PAST));
    assert!(!model.hides_what_follows("other_ids", &keys(&model), PAST));
    let mut unmasked = model.clone();
    unmasked.net.nodes.iter_mut().filter(|node| node.op == "Add").for_each(|node| node.op = "Sub".to_owned());
    assert!(!unmasked.hides_what_follows("input_ids", &keys(&model), PAST));
}

/// A graph of one quantised product, with its weights few or in the file.
fn quantised(width: usize) -> Vec<u8> {
    let end = |name: &str, element: u64, sizes: &[u64]| {
        let mut shape = Message::default();
        for size in sizes {
            shape.message(1, Message::default().number(1, *size));
        }
        let mut tensor = Message::default();
        tensor.number(1, element).message(2, &shape);
        let mut end = Message::default();
        end.text(1, name).message(2, Message::default().message(1, &tensor));
        end
    };
    let node = |op: &str, inputs: &[&str], outputs: &[&str]| {
        let mut node = Message::default();
        inputs.iter().for_each(|name| {
            node.text(1, name);
        });
        outputs.iter().for_each(|name| {
            node.text(2, name);
        });
        node.text(4, op);
        node
    };
    let weights: Vec<u8> = (0..width * width).map(|i| (i * 37 % 251) as u8).collect();
    let (mut weight, mut zero) = (Message::default(), Message::default());
    weight.number(1, width as u64).number(1, width as u64).number(2, 2).text(8, "weight").bytes(9, &weights);
    zero.number(2, 2).text(8, "zero").number(5, 119);
    let mut to = Message::default();
    to.text(1, "to").number(3, 1).number(20, 2);
    let mut cast = node("Cast", &["whole"], &["y"]);
    cast.message(5, &to);
    let mut graph = Message::default();
    graph
        .message(1, &node("DynamicQuantizeLinear", &["x"], &["bytes", "scale", "middle"]))
        .message(1, &node("MatMulInteger", &["bytes", "weight", "middle", "zero"], &["whole"]))
        .message(1, &cast)
        .text(2, "product")
        .message(5, &weight)
        .message(5, &zero)
        .message(11, &end("x", 1, &[1, width as u64]))
        .message(12, &end("y", 1, &[1, width as u64]));
    let mut model = Message::default();
    model.number(1, 8).message(7, &graph).message(8, Message::default().text(1, "").number(2, 17));
    model.into_bytes()
}

#[test]
fn signed_weights_give_the_same_products() {
    let Some(runtime) = runtime() else { return };
    let dir = tempfile::tempdir().unwrap();
    for width in [8, 64] {
        let file = dir.path().join(format!("{width}.onnx"));
        fs::write(&file, quantised(width)).unwrap();
        let model = Model::read(&file).unwrap();
        let signed = model.clone().signed().unwrap();
        assert_eq!(model.net.weights.iter().map(|weight| weight.element).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(signed.net.weights.iter().map(|weight| weight.element).collect::<Vec<_>>(), [3, 3]);
        let plain = Graph::open(&runtime, &file, &GraphOptions::cpu(1)).unwrap();
        let changed = Graph::open_changed(&runtime, &signed, &GraphOptions::cpu(1)).unwrap();
        let outputs = ["y".to_owned()];
        if signed_is_faster() {
            assert_eq!(answers(changed, &outputs, 0), answers(plain, &outputs, 0));
        }
        // A weight that something else reads stays as it is.
        let mut shared = model.clone();
        shared.net.nodes.push(Node::new("Identity", "other".to_owned(), &["weight"], "seen"));
        assert_eq!(shared.clone().signed().unwrap(), shared);
    }
}

#[test]
fn what_is_no_model_or_cut_off_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.onnx");
    let whole = fs::read(path("decoder_model_merged.onnx")).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut errors = 0;
    for round in 0..400 {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            bytes.truncate(random.usize(..bytes.len()));
        } else {
            // The graph is at the front, the weights behind it.
            (0..4).for_each(|_| {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            });
        }
        fs::write(&file, &bytes).unwrap();
        match Model::read(&file) {
            Ok(model) => {
                model.branch(SWITCH, true, |_| true);
                model.hides_what_follows("input_ids", &keys(&model), PAST);
            }
            Err(_) => errors += 1,
        }
    }
    assert!(errors >= 200, "{errors}");
    for bytes in [&b""[..], b"no model", &[0x3A, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]] {
        fs::write(&file, bytes).unwrap();
        assert!(Model::read(&file).is_err());
    }
    assert!(Model::read(dir.path()).is_err());
}
