//! One TCP connection that speaks MQTT 3.1.1 or 5: bytes on one side, whole packets on the other.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttd::protocol::{Error as WireError, Packet, Protocol, v4::V4, v5::V5};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use crate::{
    base::{Error, Kind, Result},
    publish::MAX_PACKET_BYTES,
};

/// A client that takes nothing for this long is closed.
const SEND_LIMIT: Duration = Duration::from_secs(20);
/// Enough for a batch of usual packets.
const BUFFER_BYTES: usize = 4 << 10;
/// CONNECT, PUBLISH, its four answers, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT.
const FROM_CLIENTS: [u8; 10] = [1, 3, 4, 5, 6, 7, 8, 10, 12, 14];

pub(super) struct Line {
    stream: TcpStream,
    version: Version,
    inbox: BytesMut,
    outbox: BytesMut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V5,
}

impl Line {
    /// Reads until the first packet says which version the client speaks.
    pub(super) async fn open(mut stream: TcpStream) -> Result<Line> {
        stream.set_nodelay(true).map_err(broken)?;
        let mut inbox = BytesMut::with_capacity(BUFFER_BYTES);
        let level = loop {
            match level(&inbox)? {
                Some(level) => break level,
                None if stream.read_buf(&mut inbox).await.map_err(broken)? == 0 => return Err(gone()),
                None => (),
            }
        };
        let version = match level {
            4 => Version::V4,
            5 => Version::V5,
            other => {
                // CONNACK of 3.1.1, which older clients understand: unacceptable protocol version.
                stream.write_all(&[0x20, 2, 0, 1]).await.map_err(broken)?;
                return Err(Error::new(Kind::Unsupported, format!("it speaks level {other} of MQTT, not 3.1.1 or 5")));
            }
        };
        Ok(Line { stream, version, inbox, outbox: BytesMut::new() })
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The next packet of what has been read.
    pub(super) fn packet(&mut self) -> Result<Option<Packet>> {
        let limit = MAX_PACKET_BYTES;
        // rumqttd panics on some of those that only a broker sends.
        if let Some(kind) = self.inbox.first().map(|byte| byte >> 4).filter(|kind| !FROM_CLIENTS.contains(kind)) {
            return Err(Error::invalid(format!("it sends a packet of kind {kind}, which no client sends")));
        }
        let packet = match self.version {
            Version::V4 => V4.read_mut(&mut self.inbox, limit),
            Version::V5 => V5.read_mut(&mut self.inbox, limit),
        };
        match packet {
            Ok(packet) => Ok(Some(packet)),
            Err(WireError::InsufficientBytes(_)) => Ok(None),
            Err(WireError::PayloadSizeLimitExceeded(size)) => {
                Err(Error::new(Kind::TooLarge, format!("it sends a packet of {size} bytes; {limit} are allowed")))
            }
            Err(error) => Err(Error::invalid("it sends what is no MQTT").cause(error)),
        }
    }

    /// Waits for more bytes. May be cancelled at any time.
    pub(super) async fn fill(&mut self) -> Result<()> {
        if self.inbox.capacity() == self.inbox.len() {
            self.inbox.reserve(BUFFER_BYTES);
        }
        match self.stream.read_buf(&mut self.inbox).await.map_err(broken)? {
            0 => Err(gone()),
            _ => Ok(()),
        }
    }

    /// Packs a packet for the next `flush`.
    pub(super) fn put(&mut self, packet: Packet) -> Result<()> {
        let packed = match (self.version, packet) {
            // rumqttd panics on properties, which a publisher of version 5 may have given.
            (Version::V4, Packet::Publish(publish, _)) => V4.write(Packet::Publish(publish, None), &mut self.outbox),
            (Version::V4, packet) => V4.write(packet, &mut self.outbox),
            (Version::V5, packet) => V5.write(packet, &mut self.outbox),
        };
        packed.map(drop).map_err(|error| Error::internal("cannot pack a packet").cause(error))
    }

    /// Bytes that wait for the next `flush`.
    pub(super) fn packed(&self) -> usize {
        self.outbox.len()
    }

    pub(super) async fn flush(&mut self) -> Result<()> {
        let sent = time::timeout(SEND_LIMIT, self.stream.write_all(&self.outbox)).await;
        self.outbox.clear();
        if self.outbox.capacity() > BUFFER_BYTES {
            self.outbox = BytesMut::new();
        }
        match sent {
            Ok(sent) => sent.map_err(broken),
            Err(_) => Err(Error::new(Kind::Timeout, "it does not take what it subscribed to")),
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::new(Kind::Cancelled, "the connection broke").cause(error)
}

fn gone() -> Error {
    Error::new(Kind::Cancelled, "it hung up without a goodbye")
}

/// The protocol level of a CONNECT packet, as soon as enough of it is there.
fn level(mut bytes: &[u8]) -> Result<Option<u8>> {
    let no_mqtt = || Error::invalid("it does not begin with an MQTT CONNECT");
    if bytes.first().is_some_and(|byte| *byte != 0x10) {
        return Err(no_mqtt());
    }
    // Byte 0, up to four bytes of length, the name of the protocol with its length, the level.
    let Some(length_end) = bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0) else {
        return if bytes.len() < 5 { Ok(None) } else { Err(no_mqtt()) };
    };
    bytes.advance(length_end + 2);
    for name in [&b"\x00\x04MQTT"[..], b"\x00\x06MQIsdp"] {
        if let Some(rest) = bytes.strip_prefix(name) {
            return Ok(rest.first().copied());
        }
        if name.starts_with(bytes) {
            return Ok(None);
        }
    }
    Err(no_mqtt())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers that lengths and kinds of properties are made of come often.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![0_u8..48, any::<u8>(), Just(0)], 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn no_bytes_bring_the_reader_down(kind in prop::sample::select(&FROM_CLIENTS), flags in 0_u8..16, body in body()) {
            let first = kind << 4 | flags;
            let packet = [&[first, body.len() as u8][..], &body].concat();
            V4.read_mut(&mut BytesMut::from(&packet[..]), MAX_PACKET_BYTES).ok();
            V5.read_mut(&mut BytesMut::from(&packet[..]), MAX_PACKET_BYTES).ok();
            let connect = [&b"\x10\x00\x00\x04MQTT\x05"[..], &body].concat();
            let mut connect = BytesMut::from(&connect[..]);
            connect[1] = (connect.len() - 2) as u8;
            V5.read_mut(&mut connect.clone(), MAX_PACKET_BYTES).ok();
            connect[8] = 4;
            V4.read_mut(&mut connect, MAX_PACKET_BYTES).ok();
        }
    }

    #[test]
    fn the_version_is_known_as_soon_as_it_is_there() {
        let connect = b"\x10\x90\x01\x00\x04MQTT\x05\x02";
        for cut in 0..9 {
            assert_eq!(level(&connect[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(level(connect).unwrap(), Some(5));
        assert_eq!(level(b"\x10\x10\x00\x04MQTT\x04").unwrap(), Some(4));
        assert_eq!(level(b"\x10\x10\x00\x06MQIsdp\x03").unwrap(), Some(3));
    }

    #[test]
    fn what_is_no_mqtt_is_known_at_once() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x16\x03\x01", b"\x10\xff\xff\xff\xff\x01", b"\x10\x02\x00\x05"] {
            assert!(level(bytes).is_err(), "{bytes:?}");
        }
    }
}
