//! Attention as one step instead of three.
//!
//! Each place of a window looks at each other: as a product, a softmax and a product again, 1500 by 1500 numbers go through
//! memory for each head, and back. ONNX Runtime has a node that goes through them in parts that stay in the processor.
//!
//! ```text
//! q [b,h,n,s] ─┬─ MatMul (─ Mul) ─ Softmax ─ MatMul ─► [b,h,n,s]
//! kᵀ[b,h,s,n] ─┘                               │                      becomes
//! v [b,h,n,s] ─────────────────────────────────┘                      MultiHeadAttention(q [b,n,h·s], k, v) ─► [b,n,h·s]
//! ```

use std::collections::HashMap;

use super::{Attribute, Model, Net, Node, Weight};
use crate::runtime::protobuf::Message;

const DOMAIN: &str = "com.microsoft";
const FLAT: &str = "attention/flat";
const APART: &str = "attention/apart";

impl Model {
    /// The same attention of so many heads, where nothing else looks at its weights; one with a mask is left alone.
    pub fn attention_at_once(mut self, heads: usize) -> Model {
        // Before, a softmax went over all axes from the second on where it did not say which.
        if self.opsets.iter().any(|(domain, version)| domain.is_empty() && *version < 13) {
            return self;
        }
        let pattern = Pattern::new(&self.net);
        let mut changed = Vec::with_capacity(self.net.nodes.len());
        for node in &self.net.nodes {
            match pattern.attention(node) {
                Some(attention) => changed.extend(attention.at_once(heads)),
                None => changed.push(node.clone()),
            }
        }
        if changed.len() == self.net.nodes.len() {
            return self;
        }
        self.net.nodes = changed;
        // A size of 0 stays as it is, −1 is what is left.
        for (name, sizes) in [(FLAT, &[0, 0, -1][..]), (APART, &[0, 0, heads as i64, -1])] {
            self.net.weights.push(Weight::integers(name, sizes));
        }
        if !self.opsets.iter().any(|(domain, _)| domain == DOMAIN) {
            self.opsets.push((DOMAIN.to_owned(), 1));
        }
        self.net.prune();
        self
    }
}

struct Pattern<'a> {
    net: &'a Net,
    makers: HashMap<&'a str, &'a Node>,
    /// How often each value is read.
    readers: HashMap<&'a str, usize>,
}

struct Found<'a> {
    q: &'a str,
    /// Turned, for the product.
    k: &'a str,
    v: &'a str,
    /// What all scores are multiplied by.
    scale: Option<&'a str>,
    output: &'a str,
}

impl<'a> Pattern<'a> {
    fn new(net: &'a Net) -> Pattern<'a> {
        let (mut makers, mut readers) = (HashMap::new(), HashMap::new());
        for node in &net.nodes {
            makers.extend(node.outputs.iter().map(|output| (output.as_str(), node)));
            node.inputs.iter().for_each(|input| *readers.entry(input.as_str()).or_default() += 1);
        }
        net.outputs.iter().for_each(|end| *readers.entry(end.name.as_str()).or_default() += 1);
        Pattern { net, makers, readers }
    }

    /// The node that makes a value which nobody else reads.
    fn alone(&self, value: &'a str, op: &str) -> Option<&'a Node> {
        let node = self.makers.get(value).filter(|node| node.is(op) && self.readers.get(value) == Some(&1));
        node.copied()
    }

    fn attention(&self, product: &'a Node) -> Option<Found<'a>> {
        let ([weights, v], [output]) = (&product.inputs[..], &product.outputs[..]) else { return None };
        let softmax = self.alone(weights, "Softmax").filter(|_| product.is("MatMul"))?;
        // Older exports lay batch and heads in one axis.
        let four_axes = self.makers.get(v.as_str())?.numbers("perm").len() == 4;
        let rows = matches!(softmax.numbers("axis"), [] | [-1 | 3]);
        let scores = softmax.inputs.first().filter(|_| rows && four_axes)?;
        let (scores, scale) = match self.alone(scores, "Mul").map(|node| &node.inputs[..]) {
            Some([scores, scale]) if self.net.constant(scale).is_some_and(Weight::is_single) => {
                (scores, Some(scale.as_str()))
            }
            Some(_) => return None,
            None => (scores, None),
        };
        let [q, k] = &self.alone(scores, "MatMul")?.inputs[..] else { return None };
        Some(Found { q, k, v, scale, output })
    }
}

impl Found<'_> {
    fn at_once(&self, heads: usize) -> Vec<Node> {
        let output = self.output;
        let name = |part: &str| format!("{output}/{part}");
        let node = |op: &str, inputs: &[&str], part: &str| Node::new(op, name(part), inputs, &name(part));
        let turned = |from: &str, part: &str, order: [u64; 4]| {
            let mut node = node("Transpose", &[from], part);
            node.attributes.push(Attribute::numbers("perm", &order));
            node
        };
        let mut nodes = Vec::with_capacity(7);
        let mut q = self.q.to_owned();
        if let Some(scale) = self.scale {
            nodes.push(node("Mul", &[&q, scale], "q_scaled"));
            q = name("q_scaled");
        }
        let mut attention = node("MultiHeadAttention", &[&name("q"), &name("k"), self.v], "mixed");
        attention.domain = DOMAIN.to_owned();
        attention.attributes = vec![Attribute::number("num_heads", heads as u64), Attribute::float("scale", 1.0)];
        let mut last = turned(&name("apart"), "turned", [0, 2, 1, 3]);
        last.outputs = vec![output.to_owned()];
        nodes.extend([
            turned(&q, "q_rows", [0, 2, 1, 3]),
            node("Reshape", &[&name("q_rows"), FLAT], "q"),
            turned(self.k, "k", [0, 1, 3, 2]),
            attention,
            node("Reshape", &[&name("mixed"), APART], "apart"),
            last,
        ]);
        nodes
    }
}

/// The numbers at the end are ONNX's of the kinds of attributes.
impl Attribute {
    fn told(name: &str, fill: impl FnOnce(&mut Message)) -> Attribute {
        let mut whole = Message::default();
        whole.text(1, name);
        fill(&mut whole);
        Attribute::Told { name: name.to_owned(), whole, numbers: Vec::new(), tensor: None }
    }

    fn number(name: &str, value: u64) -> Attribute {
        Attribute::told(name, |whole| {
            whole.number(3, value).number(20, 2);
        })
    }

    fn float(name: &str, value: f32) -> Attribute {
        Attribute::told(name, |whole| {
            whole.float(2, value).number(20, 1);
        })
    }

    fn numbers(name: &str, values: &[u64]) -> Attribute {
        Attribute::told(name, |whole| {
            for value in values {
                whole.number(8, *value);
            }
            whole.number(20, 7);
        })
    }
}

impl Weight {
    fn integers(name: &str, values: &[i64]) -> Weight {
        let (dims, mut whole) = (vec![values.len() as u64], Message::default());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // 7: whole numbers of 64 bits.
        whole.number(1, dims[0]).number(2, 7).text(8, name).bytes(9, &bytes);
        Weight { name: name.to_owned(), element: 7, dims, whole, place: None, beside: false, few: bytes }
    }
}
