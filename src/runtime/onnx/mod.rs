//! A model's file as data: its graph is read and changed, its weights stay where they are.
//!
//! ```text
//! file ─ read ─► Model ─ branch · signed · attention ─► Model ─ write ─► bytes ─► ONNX Runtime ─ maps the weights ─► file
//! ```
//! ONNX Runtime reads a file whole, copies each weight out of it, and copies it once more where a branch of the graph
//! uses it. Given the graph alone, whose weights point into the file, it maps them instead: they are in memory once, and
//! shared with every other graph of the file. Changes never alter what a graph computes, only how.

mod attention;
mod branch;
mod causal;
mod read;
mod signed;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use crate::runtime::protobuf::Message;

pub use signed::signed_is_faster;

/// One model, without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    file: PathBuf,
    version: u64,
    /// By domain; "" is ONNX's own.
    opsets: Vec<(String, u64)>,
    net: Net,
}

/// A graph, or one branch of a node of it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Net {
    name: String,
    nodes: Vec<Node>,
    weights: Vec<Weight>,
    inputs: Vec<End>,
    outputs: Vec<End>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Node {
    op: String,
    domain: String,
    name: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<Attribute>,
}

#[derive(Debug, Clone, PartialEq)]
enum Attribute {
    /// As it stands in the file; `numbers` where it is one whole number or several, `tensor` where it is a small one.
    Told {
        name: String,
        whole: Message,
        numbers: Vec<i64>,
        tensor: Option<Weight>,
    },
    Branch {
        name: String,
        net: Net,
    },
}

/// A constant tensor.
#[derive(Debug, Clone, PartialEq)]
struct Weight {
    name: String,
    /// ONNX's number of the type.
    element: u64,
    dims: Vec<u64>,
    /// Ready to be written, with a pointer into the file where the numbers are many.
    whole: Message,
    /// Where in the file its numbers are, and their bytes; None where they are few.
    place: Option<(u64, u64)>,
    /// The file itself says that they are in another one.
    beside: bool,
    /// The numbers where they are few: as bytes, whole ones in eight.
    few: Vec<u8>,
}

/// An input or output, described in the file.
#[derive(Debug, Clone, PartialEq)]
struct End {
    name: String,
    whole: Message,
}

impl Node {
    fn new(op: &str, name: String, inputs: &[&str], output: &str) -> Node {
        let inputs = inputs.iter().map(|&it| it.to_owned()).collect();
        Node { op: op.to_owned(), name, inputs, outputs: vec![output.to_owned()], ..Node::default() }
    }

    fn is(&self, op: &str) -> bool {
        self.op == op && self.domain.is_empty()
    }

    /// The small tensor that it holds.
    fn tensor(&self) -> Option<&Weight> {
        self.attributes.iter().find_map(|it| match it {
            Attribute::Told { tensor, .. } => tensor.as_ref(),
            Attribute::Branch { .. } => None,
        })
    }

    /// The whole numbers of an attribute; empty where it has none.
    fn numbers(&self, attribute: &str) -> &[i64] {
        let told = self.attributes.iter().find_map(|it| match it {
            Attribute::Told { name, numbers, .. } if name == attribute => Some(&numbers[..]),
            _ => None,
        });
        told.unwrap_or_default()
    }
}

impl Model {
    /// The file that the weights are in.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it computes with numbers of half the size.
    pub fn has_halves(&self) -> bool {
        // 10: ONNX's number of the type.
        self.net.weights.iter().any(|weight| weight.element == 10)
    }

    fn with(&self, net: Net) -> Model {
        Model { net, file: self.file.clone(), opsets: self.opsets.clone(), version: self.version }
    }
}

impl Net {
    /// A constant of few numbers, of either kind.
    fn constant(&self, value: &str) -> Option<&Weight> {
        let makes = |node: &&Node| node.is("Constant") && node.outputs.first().is_some_and(|output| output == value);
        let weight = self.weights.iter().find(|weight| weight.name == value);
        weight.or_else(|| self.nodes.iter().find(makes).and_then(Node::tensor))
    }

    /// Leaves out what no output needs. Nodes stand in the order in which they can run.
    fn prune(&mut self) {
        let mut needed: HashSet<String> = self.outputs.iter().map(|end| end.name.clone()).collect();
        let mut kept = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.drain(..).rev() {
            if node.outputs.iter().any(|output| needed.contains(output)) {
                node.needs(&mut needed);
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.weights.retain(|weight| needed.contains(&weight.name));
        self.inputs.retain(|end| needed.contains(&end.name));
    }
}

impl Weight {
    fn is_single(&self) -> bool {
        self.dims.iter().product::<u64>() == 1
    }
}

impl Node {
    /// A branch takes what it needs from around it by name.
    fn needs(&self, needed: &mut HashSet<String>) {
        needed.extend(self.inputs.iter().filter(|name| !name.is_empty()).cloned());
        for attribute in &self.attributes {
            if let Attribute::Branch { net, .. } = attribute {
                needed.extend(net.outputs.iter().map(|end| end.name.clone()));
                net.nodes.iter().for_each(|node| node.needs(needed));
            }
        }
    }
}
