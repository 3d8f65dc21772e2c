//! What goes over the socket between the daemon and the process of an engine: a length of four bytes, then postcard.
//!
//! Both ends are the same binary, so the format may change with any version; the greeting only makes sure of it. What
//! comes in is never trusted: a frame that is cut, too long or not what it should be is an error, and memory grows with
//! what has arrived, not with what a length promises.

use std::io::{self, Read};

use bytes::BytesMut;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    base::{Error, Kind, Result},
    engines::EngineSpec,
};

/// Ten minutes of audio are 38 MB, the largest picture 48 MB.
pub(super) const MAX_FRAME_BYTES: usize = 64 << 20;
const LENGTH_BYTES: usize = 4;
/// What is read at once; a frame of 2 MB needs eight of these.
const READ_BYTES: usize = 256 << 10;

/// The first frame of each side.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    magic: [u8; 4],
    version: u16,
}

const MAGIC: [u8; 4] = *b"vgia";
const VERSION: u16 = 1;

impl Hello {
    pub(super) const OURS: Hello = Hello { magic: MAGIC, version: VERSION };

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Hello { magic: MAGIC, version: VERSION } => Ok(()),
            Hello { magic: MAGIC, version } => Err(broken(format!("version {version} instead of {VERSION}"))),
            Hello { .. } => Err(broken("what greets is not an engine of vigia")),
        }
    }
}

/// The second frame to an engine's process: what it is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) name: String,
    /// The daemon logs no more than this, so nothing below it need be written.
    pub(super) log_level: String,
    pub(super) spec: EngineSpec,
}

/// To an engine that is loaded, or loading.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToChild<A> {
    Ask {
        job: u64,
        /// Whether anybody listens to the steps.
        steps: bool,
        ask: A,
    },
    Cancel {
        job: u64,
    },
    Unload,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromChild<P, A> {
    /// With what the engine says of itself.
    Loaded(Result<Option<String>, WireError>),
    Progress {
        job: u64,
        step: P,
    },
    Answer {
        job: u64,
        answer: Result<A, WireError>,
    },
}

/// A `base::Error` as it travels; the cause as text, for the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireError {
    kind: Kind,
    message: String,
    hint: Option<String>,
    cause: Option<String>,
}

impl From<Error> for WireError {
    fn from(error: Error) -> WireError {
        WireError {
            kind: error.kind(),
            message: error.message().to_owned(),
            hint: error.hint_text().map(str::to_owned),
            cause: error.cause_text(),
        }
    }
}

impl From<WireError> for Error {
    fn from(WireError { kind, message, hint, cause }: WireError) -> Error {
        let mut error = Error::new(kind, message);
        if let Some(hint) = hint {
            error = error.hint(hint);
        }
        match cause {
            Some(cause) => error.cause(cause),
            None => error,
        }
    }
}

/// One frame, its length before it.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let encoded = postcard::to_extend(message, vec![0; LENGTH_BYTES])
        .map_err(|error| Error::internal("a message to or from an engine cannot be written").cause(error))?;
    framed(encoded)
}

/// Fills in the length.
fn framed(mut encoded: Vec<u8>) -> Result<Vec<u8>> {
    let length = encoded.len() - LENGTH_BYTES;
    if length > MAX_FRAME_BYTES {
        let (size, most) = (length >> 20, MAX_FRAME_BYTES >> 20);
        return Err(Error::new(Kind::TooLarge, format!("{size} MiB for an engine at once; at most {most}")));
    }
    encoded[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(encoded)
}

pub(super) fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(frame) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(broken(format!("{} bytes follow a message", rest.len()))),
        Err(error) => Err(broken("a message is not what it should be").cause(error)),
    }
}

/// Frames out of what arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    arrived: BytesMut,
}

impl Frames {
    /// The next frame; None at the end. May be dropped while it waits: nothing that has arrived is lost.
    pub(super) async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<Option<BytesMut>> {
        loop {
            if let Some(frame) = self.split()? {
                return Ok(Some(frame));
            }
            self.arrived.reserve(READ_BYTES);
            let count = from.read_buf(&mut self.arrived).await;
            if self.ended(count)? {
                return Ok(None);
            }
        }
    }

    /// As `next`, for a thread that may wait.
    pub(super) fn next_blocking(&mut self, from: &mut impl Read) -> Result<Option<BytesMut>> {
        let mut chunk = Vec::new();
        loop {
            if let Some(frame) = self.split()? {
                return Ok(Some(frame));
            }
            chunk.resize(READ_BYTES, 0);
            let count = from.read(&mut chunk);
            if let Ok(count) = &count {
                self.arrived.extend_from_slice(&chunk[..*count]);
            }
            if self.ended(count)? {
                return Ok(None);
            }
        }
    }

    fn split(&mut self) -> Result<Option<BytesMut>> {
        let Some(length) = self.arrived.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(broken(format!("a message of {length} bytes is announced")));
        }
        if self.arrived.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let mut frame = self.arrived.split_to(LENGTH_BYTES + length);
        Ok(Some(frame.split_off(LENGTH_BYTES)))
    }

    fn ended(&self, read: io::Result<usize>) -> Result<bool> {
        match read {
            Ok(0) if self.arrived.is_empty() => Ok(true),
            Ok(0) => Err(broken("a message is cut")),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            // An end that closed with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(broken("the socket cannot be read").cause(error)),
        }
    }
}

fn broken(what: impl Into<String>) -> Error {
    Error::internal(format!("between the daemon and an engine: {}", what.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engines::{TranscribeAsk, TranscribeStep};

    fn all(bytes: &[u8]) -> Result<Vec<BytesMut>> {
        let (mut frames, mut from, mut all) = (Frames::default(), bytes, Vec::new());
        while let Some(frame) = frames.next_blocking(&mut from)? {
            all.push(frame);
        }
        Ok(all)
    }

    #[test]
    fn an_ask_arrives_as_it_was_sent() {
        let ask = TranscribeAsk { words: true, ..TranscribeAsk::of(vec![0.25; 480_000].into(), "es") };
        let frame = encode(&ToChild::Ask { job: 7, steps: true, ask: &ask }).unwrap();
        let ToChild::Ask { job: 7, steps: true, ask: arrived } = decode(&all(&frame).unwrap()[0]).unwrap() else {
            panic!("another message");
        };
        assert_eq!(ask, arrived);
    }

    #[test]
    fn an_error_keeps_its_kind_text_hint_and_cause() {
        let error = Error::new(Kind::OverBudget, "too big").hint("a smaller one").cause(io::Error::other("ENOMEM"));
        let told = error.full();
        let frame = encode(&WireError::from(error)).unwrap();
        let arrived = Error::from(decode::<WireError>(&frame[LENGTH_BYTES..]).unwrap());
        assert_eq!((arrived.kind(), arrived.full()), (Kind::OverBudget, told));
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_before_it_is_sent() {
        assert!(framed(vec![0; LENGTH_BYTES + MAX_FRAME_BYTES]).is_ok());
        let error = framed(vec![0; LENGTH_BYTES + MAX_FRAME_BYTES + 1]).unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge);
    }

    #[test]
    fn a_length_that_only_promises_takes_no_memory() {
        let mut frames = Frames::default();
        let promise = (MAX_FRAME_BYTES as u32).to_le_bytes();
        assert!(frames.next_blocking(&mut promise.as_slice()).unwrap_err().message().contains("cut"));
        assert!(frames.arrived.capacity() <= 2 * READ_BYTES);
        assert!(all(&u32::MAX.to_le_bytes()).unwrap_err().message().contains("announced"));
    }

    #[test]
    fn greetings_of_others_are_refused() {
        assert!(Hello::OURS.check().is_ok());
        assert!(Hello { version: 2, ..Hello::OURS }.check().unwrap_err().message().contains("version 2"));
        assert!(Hello { magic: *b"HTTP", version: 1 }.check().is_err());
    }

    #[tokio::test]
    async fn frames_may_arrive_byte_by_byte() {
        let frame = encode(&ToChild::<()>::Cancel { job: 300 }).unwrap();
        let (mut far, mut near) = tokio::io::duplex(1);
        let sent = [frame.clone(), frame].concat();
        tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut far, &sent).await });
        let mut frames = Frames::default();
        for _ in 0..2 {
            let frame = frames.next(&mut near).await.unwrap().unwrap();
            assert!(matches!(decode(&frame).unwrap(), ToChild::<()>::Cancel { job: 300 }));
        }
        assert!(frames.next(&mut near).await.unwrap().is_none());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for frame in all(&bytes).unwrap_or_default() {
                decode::<Load>(&frame).map(drop).unwrap_or(());
                decode::<ToChild<TranscribeAsk>>(&frame).map(drop).unwrap_or(());
            }
            decode::<ToChild<TranscribeAsk>>(&bytes).map(drop).unwrap_or(());
            decode::<FromChild<TranscribeStep, Vec<crate::engines::PieceText>>>(&bytes).map(drop).unwrap_or(());
        }
    }
}
