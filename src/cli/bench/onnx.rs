//! A model of random weights in the ONNX layout of large exports: a small graph, and its weights in a file beside it.
//! Knows only the few protobuf fields that such a graph needs.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::runtime::protobuf::Message;

/// Rows and columns of a layer: 64 MiB of weights.
const SIDE: usize = 4096;
const LAYER_BYTES: usize = SIDE * SIDE * size_of::<f32>();
const INPUT: &str = "x0";
pub(super) const INPUT_LEN: usize = SIDE;

/// Writes `graph` and its weights, as many layers of a matrix product as make up `bytes`; returns what was written.
pub(super) fn write_random(graph: &Path, bytes: usize) -> io::Result<u64> {
    let layers = (bytes / LAYER_BYTES).max(1);
    let weights = graph.with_extension("onnx_data");
    let location = weights.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut random = fastrand::Rng::with_seed(1);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&weights)?);
    for _ in 0..layers * SIDE * SIDE {
        // Small enough that a product of many stays finite.
        out.write_all(&((random.f32() - 0.5) * 0.02).to_le_bytes())?;
    }
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::write(graph, model(layers, &location))?;
    Ok((layers * LAYER_BYTES) as u64)
}

fn model(layers: usize, location: &str) -> Vec<u8> {
    let mut graph = Message::default();
    for layer in 0..layers {
        let mut node = Message::default();
        node.text(1, &format!("x{layer}")).text(1, &format!("w{layer}")).text(2, &format!("x{}", layer + 1));
        node.text(4, "MatMul");
        graph.message(1, &node);
    }
    graph.text(2, "random");
    for layer in 0..layers {
        let mut tensor = Message::default();
        tensor.number(1, SIDE as u64).number(1, SIDE as u64).number(2, FLOAT).text(8, &format!("w{layer}"));
        let offset = (layer * LAYER_BYTES).to_string();
        for (key, value) in [("location", location), ("offset", &offset), ("length", &LAYER_BYTES.to_string())] {
            let mut entry = Message::default();
            entry.text(1, key).text(2, value);
            tensor.message(13, &entry);
        }
        tensor.number(14, EXTERNAL);
        graph.message(5, &tensor);
    }
    graph.message(11, &row(INPUT)).message(12, &row(&format!("x{layers}")));

    let mut opset = Message::default();
    opset.text(1, "").number(2, 17);
    let mut model = Message::default();
    model.number(1, 9).message(7, &graph).message(8, &opset);
    model.into_bytes()
}

/// `TensorProto.DataType.FLOAT` and `TensorProto.DataLocation.EXTERNAL`.
const FLOAT: u64 = 1;
const EXTERNAL: u64 = 1;

/// The declaration of a tensor of one row.
fn row(name: &str) -> Message {
    let mut shape = Message::default();
    for side in [1, SIDE as u64] {
        let mut dimension = Message::default();
        dimension.number(1, side);
        shape.message(1, &dimension);
    }
    let (mut tensor, mut kind, mut value) = <(Message, Message, Message)>::default();
    tensor.number(1, FLOAT).message(2, &shape);
    kind.message(1, &tensor);
    value.text(1, name).message(2, &kind);
    value
}
