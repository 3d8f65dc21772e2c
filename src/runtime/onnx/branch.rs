//! One branch of a graph that chooses between two: as a graph of its own, without the other and without the choice.
//!
//! A node that chooses runs its branch as a graph within the graph, each with memory, packed weights and constants of its
//! own; and what stands before the choice runs even where the branch has no use for it.

use super::{Attribute, Model, Net, Node};

impl Model {
    /// The model where the input `switch` is `on`, with the outputs that `keep` names. None: it has no such choice, or
    /// chooses in a way that is not known here.
    pub fn branch(&self, switch: &str, on: bool, keep: impl Fn(&str) -> bool) -> Option<Model> {
        let chooses = |node: &Node| node.is("If") && node.inputs == [switch];
        let mut choices = self.net.nodes.iter().filter(|node| chooses(node));
        let (choice, None) = (choices.next()?, choices.next()) else { return None };
        if !self.inputs().any(|name| name == switch) {
            return None;
        }
        let wanted = if on { "then_branch" } else { "else_branch" };
        let branch = choice.attributes.iter().find_map(|attribute| match attribute {
            Attribute::Branch { name, net } if name == wanted => Some(net),
            _ => None,
        })?;
        if branch.outputs.len() != choice.outputs.len() {
            return None;
        }
        let mut net = Net { name: self.net.name.clone(), weights: self.net.weights.clone(), ..Net::default() };
        net.weights.extend(branch.weights.iter().cloned());
        net.inputs.clone_from(&self.net.inputs);
        net.outputs = self.net.outputs.iter().filter(|end| keep(&end.name)).cloned().collect();
        for node in &self.net.nodes {
            if !chooses(node) {
                net.nodes.push(node.clone());
                continue;
            }
            net.nodes.extend(branch.nodes.iter().cloned());
            for (inner, outer) in branch.outputs.iter().zip(&choice.outputs) {
                if inner.name != *outer {
                    net.nodes.push(Node::new("Identity", format!("{outer}/of_branch"), &[&inner.name], outer));
                }
            }
        }
        net.prune();
        Some(self.with(net))
    }
}

impl Model {
    /// Lets what asks for the number of rows in a batch ask the input `of` for it. Exports ask whatever is at hand, and then
    /// a part of the graph needs all that comes before it, for a number that every input has.
    pub fn ask_for_batch(mut self, of: &str) -> Model {
        let first = |node: &Node| {
            let index = node.inputs.get(1).and_then(|index| self.net.constant(index));
            node.is("Gather")
                && index.is_some_and(|index| {
                    index.is_single() && !index.few.is_empty() && index.few.iter().all(|byte| *byte == 0)
                })
        };
        let mut asks = Vec::new();
        for (at, node) in self.net.nodes.iter().enumerate().filter(|(_, node)| node.is("Shape")) {
            let [output] = &node.outputs[..] else { continue };
            let mut readers = self.net.nodes.iter().filter(|reader| reader.inputs.contains(output)).peekable();
            // A part of the shape, from the first axis up to the second: that is the first.
            let whole = node.attributes.is_empty();
            let only_first = matches!((node.numbers("start"), node.numbers("end")), ([] | [0], [1]));
            if only_first || whole && readers.peek().is_some() && readers.all(first) {
                asks.push(at);
            }
        }
        for at in asks {
            self.net.nodes[at].inputs = vec![of.to_owned()];
        }
        self.net.prune();
        self
    }

    /// The model with those of its outputs alone that `keep` names, and what they need.
    pub fn with_outputs(mut self, keep: impl Fn(&str) -> bool) -> Model {
        self.net.outputs.retain(|end| keep(&end.name));
        self.net.prune();
        self
    }

    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.net.inputs.iter().map(|end| end.name.as_str())
    }
}
