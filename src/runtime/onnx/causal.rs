//! Whether a decoder that is given several tokens at once hides from each what follows it.
//!
//! An export that was traced with one token at a time has no need to, and then cannot: each token would see the ones behind
//! it. It shows in the graph: what attention finds among the tokens so far is masked by a comparison of places, which are
//! known by the number of new tokens and of those before.

use std::collections::{HashMap, HashSet};

use super::{Model, Net, Node};

impl Model {
    /// `ids` is the input of new tokens, `keys` are the outputs that hold the keys of all tokens, by layer, and `past`
    /// begins the names of the inputs that hold those of the tokens before. False also where it cannot be told.
    pub fn hides_what_follows(&self, ids: &str, keys: &[String], past: &str) -> bool {
        let graph = Lookup::new(&self.net);
        !keys.is_empty() && keys.iter().all(|key| graph.is_masked(key, ids, past))
    }
}

struct Lookup<'a> {
    makers: HashMap<&'a str, &'a Node>,
    readers: HashMap<&'a str, Vec<&'a Node>>,
}

impl<'a> Lookup<'a> {
    fn new(net: &'a Net) -> Lookup<'a> {
        let mut lookup = Lookup { makers: HashMap::new(), readers: HashMap::new() };
        for node in &net.nodes {
            lookup.makers.extend(node.outputs.iter().map(|output| (output.as_str(), node)));
            node.inputs.iter().for_each(|input| lookup.readers.entry(input).or_default().push(node));
        }
        lookup
    }

    /// Whether all that is made of the keys meets such a mask before its softmax.
    fn is_masked(&self, key: &str, ids: &str, past: &str) -> bool {
        let (mut left, mut masked) = (vec![key], false);
        while let Some(value) = left.pop() {
            for node in self.readers.get(value).into_iter().flatten() {
                match node.op.as_str() {
                    "Shape" => (),
                    "Transpose" | "Identity" | "Mul" | "Div" | "MatMul" => {
                        left.extend(node.outputs.iter().map(String::as_str));
                    }
                    "Add" => {
                        let mut others = node.inputs.iter().filter(|input| *input != value);
                        if !others.any(|mask| self.compares_places(mask, ids, past)) {
                            return false;
                        }
                        masked = true;
                    }
                    _ => return false,
                }
            }
        }
        masked
    }

    fn compares_places(&self, mask: &str, ids: &str, past: &str) -> bool {
        const COMPARISONS: [&str; 4] = ["Less", "LessOrEqual", "Greater", "GreaterOrEqual"];
        let (nodes, _) = self.before(mask);
        nodes.into_iter().filter(|node| COMPARISONS.contains(&node.op.as_str())).any(|node| {
            let (_, names) = self.before(&node.outputs[0]);
            names.contains(ids) && names.iter().any(|name| name.starts_with(past))
        })
    }

    /// All nodes that a value comes from, and all names.
    fn before(&self, value: &'a str) -> (Vec<&'a Node>, HashSet<&'a str>) {
        let (mut left, mut nodes, mut names) = (vec![value], Vec::new(), HashSet::from([value]));
        while let Some(value) = left.pop() {
            if let Some(node) = self.makers.get(value) {
                nodes.push(*node);
                left.extend(node.inputs.iter().map(String::as_str).filter(|input| names.insert(input)));
            }
        }
        (nodes, names)
    }
}
