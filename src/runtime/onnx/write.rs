//! Writes a model without its weights: small, whatever the model's size.

use super::{Attribute, Model, Net, Node};
use crate::runtime::protobuf::Message;

impl Model {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut model = Message::default();
        model.number(1, self.version).message(7, &net(&self.net));
        for (domain, version) in &self.opsets {
            model.message(8, Message::default().text(1, domain).number(2, *version));
        }
        model.into_bytes()
    }
}

fn net(net: &Net) -> Message {
    let mut message = Message::default();
    for it in &net.nodes {
        message.message(1, &node(it));
    }
    message.text(2, &net.name);
    for weight in &net.weights {
        message.message(5, &weight.whole);
    }
    for (field, ends) in [(11, &net.inputs), (12, &net.outputs)] {
        for end in ends {
            message.message(field, &end.whole);
        }
    }
    message
}

fn node(node: &Node) -> Message {
    let mut message = Message::default();
    for (field, names) in [(1, &node.inputs), (2, &node.outputs)] {
        for name in names {
            message.text(field, name);
        }
    }
    message.text(3, &node.name).text(4, &node.op);
    for attribute in &node.attributes {
        match attribute {
            Attribute::Told { whole, .. } => message.message(5, whole),
            // 5: the type of an attribute that is a graph.
            Attribute::Branch { name, net: branch } => {
                message.message(5, Message::default().text(1, name).message(6, &net(branch)).number(20, 5))
            }
        };
    }
    message.text(7, &node.domain);
    message
}
