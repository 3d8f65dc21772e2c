//! Protobuf as it is written, for the small graphs that are made here: a dozen fields of a format that does not change.
//! A library for it would bring a compiler. Reads nothing.

/// A message in the making.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn number(&mut self, field: u64, value: u64) -> &mut Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Message {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn text(&mut self, field: u64, text: &str) -> &mut Message {
        self.bytes(field, text.as_bytes())
    }

    pub fn message(&mut self, field: u64, message: &Message) -> &mut Message {
        self.bytes(field, &message.0)
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_written_as_protobuf_wants_them() {
        let mut message = Message::default();
        message.number(1, 300).text(2, "ab");
        assert_eq!(message.into_bytes(), [0x08, 0xac, 0x02, 0x12, 0x02, b'a', b'b']);
    }
}
