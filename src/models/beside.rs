//! The files beside a graph that hold its weights, as the graph itself names them. Reads what a graph is made of, once, and
//! no weights; what is no graph names none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use crate::{
    base::lock,
    models::catalogue::safe_path,
    runtime::protobuf::{Reader, Value},
};

/// A larger graph holds its weights itself.
const MOST_GRAPH_BYTES: u64 = 64 << 20;
/// Of names, which are all that is taken into memory.
const MOST_BYTES: u64 = 16 << 20;
/// Graphs within graphs, each four messages deep.
const MOST_DEPTH: usize = 16;

/// More graphs than any box has.
const MOST_KNOWN: usize = 256;

/// By file, what it named when it had that size and time: the daemon looks at a model's folder before every job.
static KNOWN: Mutex<BTreeMap<PathBuf, (Version, BTreeSet<String>)>> = Mutex::new(BTreeMap::new());

type Version = (u64, SystemTime);

/// What of ONNX's format may lead to weights. The numbers are those of its fields.
#[derive(Clone, Copy)]
enum Part {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

impl Part {
    fn within(self, field: u64) -> Option<Part> {
        Some(match (self, field) {
            (Part::Model, 7) | (Part::Attribute, 6 | 11) => Part::Graph,
            (Part::Graph, 1) => Part::Node,
            (Part::Node, 5) => Part::Attribute,
            (Part::Graph, 5) | (Part::Attribute, 5 | 10) => Part::Tensor,
            _ => return None,
        })
    }
}

/// Files with weights of a graph that are not there: `file` is the graph, which in its model's folder is called `graph`.
pub(super) fn lacking(file: &Path, graph: &str, is_there: impl Fn(&str) -> bool) -> BTreeSet<String> {
    // Whoever cannot read it will say so when it is loaded.
    let named = named(file).unwrap_or_default();
    let folder = graph.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
    let paths = named.into_iter().map(|name| format!("{folder}{}", name.trim_start_matches("./")));
    paths.filter(|path| safe_path(path).is_ok() && !is_there(path)).collect()
}

fn named(file: &Path) -> io::Result<BTreeSet<String>> {
    let found = fs::metadata(file)?;
    let version = (found.len(), found.modified()?);
    if found.len() > MOST_GRAPH_BYTES {
        return Ok(BTreeSet::new());
    }
    if let Some((known, names)) = lock(&KNOWN).get(file)
        && *known == version
    {
        return Ok(names.clone());
    }
    let names = read(file, found.len()).unwrap_or_default();
    let mut all = lock(&KNOWN);
    if all.len() >= MOST_KNOWN {
        all.clear();
    }
    all.insert(file.to_owned(), (version, names.clone()));
    Ok(names)
}

fn read(file: &Path, end: u64) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    walk(&mut Reader::new(File::open(file)?, MOST_BYTES), Part::Model, end, 0, &mut names)?;
    Ok(names)
}

fn walk<R: Read + Seek>(
    reader: &mut Reader<R>,
    part: Part,
    end: u64,
    depth: usize,
    names: &mut BTreeSet<String>,
) -> io::Result<()> {
    while let Some((field, value)) = reader.field(end)? {
        let Value::Bytes(length) = value else { continue };
        let within = reader.at() + length;
        match (part, field) {
            (Part::Tensor, 13) => names.extend(location(reader, within)?),
            _ => match part.within(field).filter(|_| depth < MOST_DEPTH) {
                Some(part) => walk(reader, part, within, depth + 1, names)?,
                None => reader.skip(length)?,
            },
        }
    }
    Ok(())
}

/// Of a pair that says where a tensor's numbers are: the file.
fn location<R: Read + Seek>(reader: &mut Reader<R>, end: u64) -> io::Result<Option<String>> {
    let (mut key, mut told) = (String::new(), None);
    while let Some((field, value)) = reader.field(end)? {
        match (field, value) {
            (1, Value::Bytes(length)) => key = reader.text(length)?,
            (2, Value::Bytes(length)) => told = Some(reader.text(length)?),
            (_, Value::Bytes(length)) => reader.skip(length)?,
            _ => (),
        }
    }
    Ok(told.filter(|_| key == "location"))
}

/// A graph whose weights are in such files, one of them in a branch.
#[cfg(test)]
pub(crate) fn graph_with(files: &[&str]) -> Vec<u8> {
    use crate::runtime::protobuf::Message;
    let mut graph = Message::default();
    for (at, file) in files.iter().enumerate() {
        let mut tensor = Message::default();
        for (key, value) in [("location", *file), ("offset", "0"), ("length", "4")] {
            tensor.message(13, Message::default().text(1, key).text(2, value));
        }
        tensor.number(14, 1).text(8, "w");
        let mut inner = Message::default();
        inner.message(5, &tensor);
        match at {
            0 => graph.message(5, &tensor),
            _ => graph.message(1, Message::default().message(5, Message::default().message(6, &inner))),
        };
    }
    let mut model = Message::default();
    model.number(1, 8).message(7, &graph);
    model.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_says_where_its_weights_are_and_what_is_none_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.onnx");
        let lacking = |content: &[u8], there: &[&str]| -> Vec<String> {
            std::fs::write(&file, content).unwrap();
            lacking(&file, "onnx/m.onnx", |path| there.contains(&path)).into_iter().collect()
        };
        let graph = graph_with(&["m.onnx_data", "./other.bin", "../../etc/passwd", "/etc/passwd"]);
        assert_eq!(lacking(&graph, &[]), ["onnx/m.onnx_data", "onnx/other.bin"]);
        assert_eq!(lacking(&graph, &["onnx/m.onnx_data"]), ["onnx/other.bin"]);
        assert_eq!(lacking(&graph_with(&[]), &[]), [""; 0]);
        for content in [&b""[..], b"graph", &graph[..graph.len() - 3], &[0xff; 99]] {
            assert_eq!(lacking(content, &[]), [""; 0], "{content:?}");
        }
        // What is known of a file is known of that content.
        let (one, other) = (graph_with(&["a.bin"]), graph_with(&["b.bin"]));
        let at = |secs| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
        for (content, secs, name) in [(&one, 1, "a.bin"), (&other, 1, "a.bin"), (&other, 2, "b.bin")] {
            fs::write(&file, content).unwrap();
            File::options().append(true).open(&file).unwrap().set_modified(at(secs)).unwrap();
            assert_eq!(named(&file).unwrap().into_iter().collect::<Vec<_>>(), [name], "read once for each time");
        }
        let absent = super::lacking(&dir.path().join("absent"), "m.onnx", |_| false);
        assert!(absent.is_empty());
        // The tests' own model holds its weights itself.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper-tiny/onnx/encoder_model.onnx");
        assert!(named(&root).unwrap().is_empty());
    }
}
