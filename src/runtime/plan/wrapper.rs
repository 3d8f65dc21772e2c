//! The graph around a plan: one node `EPContext` that names the plan's file, in ONNX's protobuf. ONNX Runtime's
//! TensorRT provider takes such a node and runs the plan in its place.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    base::{Error, Result},
    runtime::{ElementType, Signature, TensorSpec, protobuf::Message},
};

/// Writes the graph and a link to its plan into the folder: the provider takes plans from beside their graph alone.
pub(super) fn write(plan: &Path, signature: &Signature, folder: &Path) -> Result<PathBuf> {
    let failed = |error: io::Error| {
        Error::unavailable(format!("{} cannot be made ready in {}", plan.display(), folder.display())).cause(error)
    };
    let plan = plan.canonicalize().map_err(failed)?;
    let name =
        plan.file_name().and_then(|name| name.to_str()).ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    fs::create_dir_all(folder).map_err(failed)?;
    let (graph, link) = (folder.join(name).with_extension("onnx"), folder.join(name));
    if link.canonicalize().ok().as_ref() != Some(&plan) {
        put(&link, |aside| std::os::unix::fs::symlink(&plan, aside)).map_err(failed)?;
    }
    put(&graph, |aside| fs::write(aside, model(name, signature))).map_err(failed)?;
    Ok(graph)
}

/// Whole or not at all, also when two processes do the same.
fn put(path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => make(&aside)?,
    }
    fs::rename(aside, path)
}

/// ONNX's `ModelProto`; the numbers are its fields'.
fn model(plan: &str, signature: &Signature) -> Vec<u8> {
    let mut node = Message::default();
    for name in signature.inputs.keys() {
        node.text(1, name);
    }
    for name in signature.outputs.keys() {
        node.text(2, name);
    }
    node.text(3, "plan").text(4, "EPContext").text(7, "com.microsoft");
    // The plan is a file beside this one: embedded, it would be in memory twice.
    node.message(5, Message::default().text(1, "embed_mode").number(3, 0).number(20, 2));
    for (name, value) in [("ep_cache_context", plan), ("source", "TensorrtExecutionProvider")] {
        node.message(5, Message::default().text(1, name).text(4, value).number(20, 3));
    }

    let mut graph = Message::default();
    graph.message(1, &node).text(2, "plan");
    for (field, tensors) in [(11, &signature.inputs), (12, &signature.outputs)] {
        for (name, spec) in tensors {
            graph.message(field, Message::default().text(1, name).message(2, &tensor_type(spec)));
        }
    }
    let mut model = Message::default();
    model.number(1, 8).message(7, &graph);
    model.message(8, Message::default().text(1, "").number(2, 17));
    model.message(8, Message::default().text(1, "com.microsoft").number(2, 1));
    model.into_bytes()
}

fn tensor_type(spec: &TensorSpec) -> Message {
    let element = match spec.element {
        ElementType::F32 => 1,
        ElementType::I32 => 6,
        ElementType::I64 => 7,
        ElementType::Bool => 9,
        ElementType::F16 => 10,
    };
    let mut shape = Message::default();
    for (i, axis) in spec.shape.iter().enumerate() {
        let mut dimension = Message::default();
        match axis {
            Some(length) => dimension.number(1, *length as u64),
            None => dimension.text(2, &format!("axis_{i}")),
        };
        shape.message(1, &dimension);
    }
    let mut tensor = Message::default();
    tensor.number(1, element).message(2, &shape);
    let mut kind = Message::default();
    kind.message(1, &tensor);
    kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Graph, GraphOptions, Runtime};

    fn signature() -> Signature {
        let of = |list: [(&str, &str); 2]| list.map(|(name, spec)| (name.to_owned(), spec.parse().unwrap())).into();
        Signature {
            inputs: of([("images", "f32 1x3x416x416"), ("ids", "i64 ?x300")]),
            outputs: of([("boxes", "f16 1x?x4"), ("seen", "bool")]),
        }
    }

    #[test]
    fn a_graph_and_a_link_to_its_plan_lie_side_by_side_and_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (plan, folder) = (dir.path().join("m.engine"), dir.path().join("ready"));
        for content in ["one", "two"] {
            fs::write(&plan, content).unwrap();
            let graph = write(&plan, &signature(), &folder).unwrap();
            assert_eq!(graph, folder.join("m.onnx"));
            assert_eq!(fs::read_to_string(folder.join("m.engine")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        assert!(write(&dir.path().join("none.engine"), &signature(), &folder).is_err());
    }

    /// ONNX Runtime reads the graph, understands it, and only finds nobody here who runs its node.
    #[test]
    fn onnx_runtime_reads_what_is_written() {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia/runtime/libonnxruntime.so");
        if !library.is_file() {
            println!("SKIPPED: {} is not there", library.display());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let plan = dir.path().join("m.engine");
        fs::write(&plan, "a plan").unwrap();
        let graph = write(&plan, &signature(), &dir.path().join("ready")).unwrap();
        let error = Graph::open(&Runtime::open(&library).unwrap(), &graph, &GraphOptions::cpu(1)).err().unwrap();
        let said = error.full();
        assert!(said.contains("EPContext") && said.contains("'plan'"), "{said}");
    }
}
