//! Server-sent events out of an answer: the `data` of each, one after the other. A line without an end is refused, not
//! collected.

use crate::engines::remote::{link::Answer, trouble::Trouble};

/// More than any part of a text takes; a line beyond it is no event.
const MAX_LINE_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Events {
    /// Read and not yet taken.
    rest: Vec<u8>,
    /// How much of `rest` was searched for a line's end already.
    searched: usize,
    data: Option<String>,
}

impl Events {
    /// None at the end of the answer. An event that was cut before its empty line is none.
    pub(super) fn next(&mut self, answer: &mut Answer<'_>) -> Result<Option<String>, Trouble> {
        loop {
            let Some(line) = self.line(answer)? else { return Ok(None) };
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Ok(Some(data));
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    Some(data) if data.len() + value.len() < MAX_LINE_BYTES => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    Some(_) => return Err(endless(answer)),
                    None => self.data = Some(value.to_owned()),
                }
            }
        }
    }

    fn line(&mut self, answer: &mut Answer<'_>) -> Result<Option<String>, Trouble> {
        let mut chunk = [0; 8 << 10];
        loop {
            if let Some(at) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + at;
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                self.searched = 0;
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                let line = String::from_utf8(line);
                return line
                    .map(Some)
                    .map_err(|error| Trouble::lasting(answer.server.strange("answers with broken text").cause(error)));
            }
            self.searched = self.rest.len();
            if self.rest.len() > MAX_LINE_BYTES {
                return Err(endless(answer));
            }
            match answer.read(&mut chunk)? {
                0 => return Ok(None),
                count => self.rest.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

fn endless(answer: &Answer<'_>) -> Trouble {
    Trouble::lasting(answer.server.strange("answers with a line that does not end"))
}
