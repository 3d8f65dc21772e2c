//! Reads a model's file without its weights. The numbers in `match` are those of the fields in ONNX's format.
//!
//! Files come from anywhere: what is read is bounded, in depth too.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::Path,
};

use super::{Attribute, End, Model, Net, Node, Weight};
use crate::{
    base::{Error, Result},
    runtime::protobuf::{Message, Reader, Value, number, wrong},
};

/// A tensor of fewer bytes is read with its graph.
const FEW_BYTES: u64 = 1024;
/// A graph without weights takes some hundred kB.
const MOST_BYTES: u64 = 128 << 20;
const MOST_DEPTH: usize = 4;

impl Model {
    pub fn read(path: &Path) -> Result<Model> {
        let failed = |error: io::Error| {
            Error::unavailable(format!("the model {} cannot be read", path.display()))
                .cause(error)
                .hint("check the file, or remove its folder and fetch it again")
        };
        // A link's own name would lead ONNX Runtime out of its folder, which it refuses; but weights in files beside the
        // model are beside the link.
        let model = read(&path.canonicalize().map_err(failed)?).map_err(failed)?;
        if model.net.has_weights_beside() { read(path).map_err(failed) } else { Ok(model) }
    }
}

fn read(path: &Path) -> io::Result<Model> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| wrong("its name is no text"))?;
    Reading { reader: Reader::new(file, MOST_BYTES), file: name }.model(end, path)
}

impl Net {
    fn has_weights_beside(&self) -> bool {
        let of_node = |node: &Node| {
            node.attributes.iter().any(|it| matches!(it, Attribute::Branch { net, .. } if net.has_weights_beside()))
        };
        self.weights.iter().any(|weight| weight.beside) || self.nodes.iter().any(of_node)
    }
}

struct Reading<'a, R> {
    reader: Reader<R>,
    /// What weights that stay are told to be in.
    file: &'a str,
}

impl<R: Read + Seek> Reading<'_, R> {
    fn model(&mut self, end: u64, path: &Path) -> io::Result<Model> {
        let mut model = Model { file: path.to_owned(), version: 0, opsets: Vec::new(), net: Net::default() };
        let mut graphs = 0;
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Number(version)) => model.version = version,
                (7, Value::Bytes(length)) => {
                    model.net = self.net(length, 0)?;
                    graphs += 1;
                }
                (8, Value::Bytes(length)) => model.opsets.push(self.opset(length)?),
                // Functions and training are of no model that is changed here.
                (20 | 25, _) => return Err(wrong("it has functions of its own")),
                (_, value) => self.pass(value)?,
            }
        }
        if graphs == 1 && model.version > 0 { Ok(model) } else { Err(wrong("it is no ONNX model")) }
    }

    fn opset(&mut self, length: u64) -> io::Result<(String, u64)> {
        let end = self.reader.at() + length;
        let mut opset = (String::new(), 0);
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Bytes(length)) => opset.0 = self.reader.text(length)?,
                (2, Value::Number(version)) => opset.1 = version,
                (_, value) => self.pass(value)?,
            }
        }
        Ok(opset)
    }

    fn net(&mut self, length: u64, depth: usize) -> io::Result<Net> {
        if depth > MOST_DEPTH {
            return Err(wrong("its branches have too many branches"));
        }
        let end = self.reader.at() + length;
        let mut net = Net::default();
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Bytes(length)) => net.nodes.push(self.node(length, depth)?),
                (2, Value::Bytes(length)) => net.name = self.reader.text(length)?,
                (5, Value::Bytes(length)) => net.weights.push(self.weight(length)?),
                (11, Value::Bytes(length)) => net.inputs.push(self.end(length)?),
                (12, Value::Bytes(length)) => net.outputs.push(self.end(length)?),
                (15, _) => return Err(wrong("it has sparse weights")),
                // Descriptions of what lies between: ONNX Runtime finds them out by itself.
                (_, value) => self.pass(value)?,
            }
        }
        Ok(net)
    }

    fn node(&mut self, length: u64, depth: usize) -> io::Result<Node> {
        let end = self.reader.at() + length;
        let mut node = Node::default();
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Bytes(length)) => node.inputs.push(self.reader.text(length)?),
                (2, Value::Bytes(length)) => node.outputs.push(self.reader.text(length)?),
                (3, Value::Bytes(length)) => node.name = self.reader.text(length)?,
                (4, Value::Bytes(length)) => node.op = self.reader.text(length)?,
                (5, Value::Bytes(length)) => node.attributes.push(self.attribute(length, depth)?),
                (7, Value::Bytes(length)) => node.domain = self.reader.text(length)?,
                (_, value) => self.pass(value)?,
            }
        }
        Ok(node)
    }

    fn attribute(&mut self, length: u64, depth: usize) -> io::Result<Attribute> {
        let end = self.reader.at() + length;
        let (mut name, mut whole) = (String::new(), Message::default());
        let (mut branch, mut numbers, mut tensor) = (None, Vec::new(), None);
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (6, Value::Bytes(length)) => branch = Some(self.net(length, depth + 1)?),
                (11, _) => return Err(wrong("a node has a list of graphs")),
                (1, Value::Bytes(length)) => {
                    name = self.reader.text(length)?;
                    whole.text(1, &name);
                }
                (5, Value::Bytes(length)) => {
                    let bytes = self.reader.taken(length)?;
                    whole.bytes(5, &bytes);
                    if length <= FEW_BYTES {
                        let reader = Reader::new(io::Cursor::new(&bytes), FEW_BYTES);
                        tensor = Some(Reading { reader, file: self.file }.weight(length)?);
                    }
                }
                (3 | 8, Value::Number(value)) => {
                    numbers.push(value.cast_signed());
                    whole.number(field, value);
                }
                (8, Value::Bytes(length)) => {
                    for value in self.numbers(length)? {
                        numbers.push(value.cast_signed());
                        whole.number(8, value);
                    }
                }
                (field, value) => self.copy(field, value, &mut whole)?,
            }
        }
        Ok(match branch {
            Some(net) => Attribute::Branch { name, net },
            None => Attribute::Told { name, whole, numbers, tensor },
        })
    }

    fn weight(&mut self, length: u64) -> io::Result<Weight> {
        let end = self.reader.at() + length;
        let (mut name, mut element, mut dims) = (String::new(), 0, Vec::new());
        let (mut whole, mut place, mut few, mut beside) = (Message::default(), None, Vec::new(), false);
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Number(size)) => dims.push(size),
                (1, Value::Bytes(length)) => dims.extend(self.numbers(length)?),
                (2, Value::Number(of)) => element = of,
                (8, Value::Bytes(length)) => name = self.reader.text(length)?,
                (9, Value::Bytes(length)) if length > FEW_BYTES => {
                    place = Some((self.reader.at(), length));
                    self.reader.skip(length)?;
                }
                (9, Value::Bytes(length)) => {
                    few = self.reader.taken(length)?;
                    whole.bytes(9, &few);
                }
                // Small whole numbers are also written one by one.
                (14, Value::Number(1)) => {
                    beside = true;
                    whole.number(14, 1);
                }
                (5, Value::Number(number)) => {
                    few.push(number as u8);
                    whole.number(5, number);
                }
                (5, Value::Bytes(length)) => {
                    for number in self.numbers(length)? {
                        few.push(number as u8);
                        whole.number(5, number);
                    }
                }
                (7, Value::Number(number)) => {
                    few.extend(number.to_le_bytes());
                    whole.number(7, number);
                }
                (7, Value::Bytes(length)) => {
                    for number in self.numbers(length)? {
                        few.extend(number.to_le_bytes());
                        whole.number(7, number);
                    }
                }
                (field, value) => self.copy(field, value, &mut whole)?,
            }
        }
        if let Some((offset, length)) = place {
            let told =
                [("location", self.file.to_owned()), ("offset", offset.to_string()), ("length", length.to_string())];
            for (key, value) in told {
                whole.message(13, Message::default().text(1, key).text(2, &value));
            }
            // 1: the numbers are elsewhere.
            whole.number(14, 1);
        }
        for size in &dims {
            whole.number(1, *size);
        }
        whole.number(2, element).text(8, &name);
        Ok(Weight { name, element, dims, whole, place, few, beside })
    }

    fn end(&mut self, length: u64) -> io::Result<End> {
        let end = self.reader.at() + length;
        let (mut name, mut whole) = (String::new(), Message::default());
        while let Some((field, value)) = self.reader.field(end)? {
            match (field, value) {
                (1, Value::Bytes(length)) => {
                    name = self.reader.text(length)?;
                    whole.text(1, &name);
                }
                (field, value) => self.copy(field, value, &mut whole)?,
            }
        }
        Ok(End { name, whole })
    }

    /// A list in one field.
    fn numbers(&mut self, length: u64) -> io::Result<Vec<u64>> {
        let bytes = self.reader.taken(length)?;
        let mut numbers = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            numbers.push(number(&mut rest)?);
        }
        Ok(numbers)
    }

    fn copy(&mut self, field: u64, value: Value, to: &mut Message) -> io::Result<()> {
        match value {
            Value::Number(number) => to.number(field, number),
            Value::Float(number) => to.float(field, number),
            Value::Bytes(length) => to.bytes(field, &self.reader.taken(length)?),
        };
        Ok(())
    }

    fn pass(&mut self, value: Value) -> io::Result<()> {
        if let Value::Bytes(length) = value { self.reader.skip(length) } else { Ok(()) }
    }
}
