//! Protobuf as it is written and read, for models: a dozen fields of a format that does not change. A library for it would
//! bring a compiler, and would read gigabytes of weights into memory that are better left in their file.

use std::io::{self, BufReader, Read, Seek};

/// A message in the making.
#[derive(Debug, Clone, Default, PartialEq)]
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

    pub fn float(&mut self, field: u64, value: f32) -> &mut Message {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
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

/// What stands in a field. Bytes (texts and messages among them) are still to be read, or skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    Number(u64),
    Float(f32),
    Bytes(u64),
}

/// Reads messages field by field. Knows where it is, so that what is skipped can be found again; never takes more memory
/// than `left` was at first.
pub struct Reader<R> {
    from: BufReader<R>,
    at: u64,
    left: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// `most`: bytes that may be taken into memory.
    pub fn new(from: R, most: u64) -> Reader<R> {
        Reader { from: BufReader::with_capacity(64 << 10, from), at: 0, left: most }
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next field of a message that ends at `end`.
    pub fn field(&mut self, end: u64) -> io::Result<Option<(u64, Value)>> {
        if self.at >= end {
            return if self.at == end { Ok(None) } else { Err(wrong("a message that is longer than what holds it")) };
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            2 => {
                let length = self.number()?;
                if length > end.saturating_sub(self.at) {
                    return Err(wrong("a field that is longer than its message"));
                }
                Value::Bytes(length)
            }
            5 => {
                let mut bytes = [0; 4];
                self.read_exact(&mut bytes)?;
                Value::Float(f32::from_le_bytes(bytes))
            }
            kind => return Err(wrong(&format!("a field of kind {kind}"))),
        };
        Ok(Some((key >> 3, value)))
    }

    pub fn taken(&mut self, length: u64) -> io::Result<Vec<u8>> {
        self.left = self.left.checked_sub(length).ok_or_else(|| wrong("more than can be taken into memory"))?;
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn text(&mut self, length: u64) -> io::Result<String> {
        String::from_utf8(self.taken(length)?).map_err(|_| wrong("a name that is no text"))
    }

    pub fn skip(&mut self, length: u64) -> io::Result<()> {
        self.from.seek_relative(i64::try_from(length).map_err(io::Error::other)?)?;
        self.at += length;
        Ok(())
    }

    fn number(&mut self) -> io::Result<u64> {
        number(self)
    }
}

/// Counts what is read.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The next number of a list.
pub fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7F) << shift;
        if byte[0] < 0x80 {
            return Ok(value);
        }
    }
    Err(wrong("a number without an end"))
}

pub fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn numbers_and_texts_are_written_as_protobuf_wants_them() {
        let mut message = Message::default();
        message.number(1, 300).text(2, "ab");
        assert_eq!(message.into_bytes(), [0x08, 0xac, 0x02, 0x12, 0x02, b'a', b'b']);
    }

    #[test]
    fn what_is_written_is_read_and_what_is_skipped_is_where_it_says() {
        let mut message = Message::default();
        message.number(1, u64::MAX).text(2, "skipped").float(3, 0.5).text(15, "ñ");
        let bytes = message.into_bytes();
        let mut reader = Reader::new(Cursor::new(&bytes), 2);
        let end = bytes.len() as u64;
        assert_eq!(reader.field(end).unwrap(), Some((1, Value::Number(u64::MAX))));
        assert_eq!(reader.field(end).unwrap(), Some((2, Value::Bytes(7))));
        let at = reader.at() as usize;
        assert_eq!(&bytes[at..at + 7], b"skipped");
        reader.skip(7).unwrap();
        assert_eq!(reader.field(end).unwrap(), Some((3, Value::Float(0.5))));
        assert_eq!(reader.field(end).unwrap(), Some((15, Value::Bytes(2))));
        assert_eq!(reader.text(2).unwrap(), "ñ");
        assert_eq!(reader.field(end).unwrap(), None);
    }

    #[test]
    fn lengths_that_lie_are_errors_and_take_no_memory() {
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new(Cursor::new(bytes), 1 << 20);
            while let Some((_, value)) = reader.field(bytes.len() as u64)? {
                if let Value::Bytes(length) = value {
                    reader.taken(length)?;
                }
            }
            io::Result::Ok(())
        };
        let endless = [&[0x08][..], &[0xFF; 12]].concat();
        for bytes in [&[0x12, 0x7F, 0][..], &[0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], &[0x0B], &endless] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
