//! The first bytes of a container, looked at before GStreamer sees them: is it what the client says it is, and can
//! it be decoded as a stream. GStreamer's demuxers would search on through anything, without end and without a word.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    base::{Error, Result},
    flow::Encoding,
};

/// Enough for every mark below.
const MARK_BYTES: usize = 12;
const ID3_BYTES: usize = 10;
const WHOLE_BOX_HEADER: usize = 16;

/// Boxes that stand at the top of an MP4.
const MP4_BOXES: [&[u8; 4]; 14] = [
    b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pdin", b"sidx", b"uuid", b"emsg",
    b"prft", b"meta",
];

/// Watches the begin of one stream.
pub(super) struct Head {
    encoding: Encoding,
    /// Bytes held back until they are enough to judge.
    held: BytesMut,
    /// Of an ID3 tag.
    skip: u64,
    settled: bool,
    boxes: Boxes,
}

/// Follows an MP4's top boxes up to its index.
#[derive(Default)]
struct Boxes {
    header: Vec<u8>,
    skip: u64,
    done: bool,
}

impl Head {
    /// `None` for encodings without a container.
    pub(super) fn new(encoding: Encoding) -> Option<Head> {
        let contained = encoding.bytes_per_sample().is_none() && encoding != Encoding::Opus;
        contained.then(|| Head { encoding, held: BytesMut::new(), skip: 0, settled: false, boxes: Boxes::default() })
    }

    /// What of the stream may go on. Free of cost once the begin is settled.
    pub(super) fn pass(&mut self, chunk: Bytes) -> Result<Bytes> {
        let chunk = if self.settled { chunk } else { self.settle(chunk)? };
        if self.encoding == Encoding::Mp4 && !self.boxes.done {
            self.boxes.follow(&chunk)?;
        }
        Ok(chunk)
    }

    /// The stream is over: was it long enough to be judged?
    pub(super) fn end(&self) -> Result<()> {
        if self.settled { Ok(()) } else { Err(not_this(self.encoding)) }
    }

    fn settle(&mut self, mut chunk: Bytes) -> Result<Bytes> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
        chunk.advance(skipped);
        self.skip -= skipped as u64;
        self.held.extend_from_slice(&chunk);
        if let Some(tag) = id3_bytes(&self.held) {
            let here = usize::try_from(tag).unwrap_or(usize::MAX).min(self.held.len());
            self.held.advance(here);
            self.skip = tag - here as u64;
        }
        if self.held.len() < MARK_BYTES {
            return Ok(Bytes::new());
        }
        if !is(self.encoding, &self.held) {
            return Err(not_this(self.encoding));
        }
        self.settled = true;
        Ok(self.held.split().freeze())
    }
}

/// What a whole file is, and where it begins behind its ID3 tag. None: not one of the wire's encodings.
pub(super) fn recognise(first: &[u8]) -> Option<(Encoding, u64)> {
    const CONTAINERS: [Encoding; 7] =
        [Encoding::Wav, Encoding::Ogg, Encoding::Webm, Encoding::Flac, Encoding::Mp4, Encoding::Aac, Encoding::Mp3];
    let start = id3_bytes(first).unwrap_or(0);
    let rest = usize::try_from(start).ok().and_then(|start| first.get(start..));
    let found = match rest {
        Some(rest) if rest.len() >= MARK_BYTES => CONTAINERS.into_iter().find(|it| is(*it, rest)),
        // The tag is longer than what was read: such tags stand before MP3.
        _ if start > 0 => Some(Encoding::Mp3),
        _ => None,
    };
    found.map(|it| (it, start))
}

fn is(encoding: Encoding, mark: &[u8]) -> bool {
    match encoding {
        Encoding::Wav => (mark.starts_with(b"RIFF") || mark.starts_with(b"RF64")) && &mark[8..12] == b"WAVE",
        Encoding::Ogg => mark.starts_with(b"OggS"),
        Encoding::Webm => mark.starts_with(&[0x1A, 0x45, 0xDF, 0xA3]),
        Encoding::Flac => mark.starts_with(b"fLaC"),
        // Eleven bits of sync, then a version and a layer that exist.
        Encoding::Mp3 => mark[0] == 0xFF && mark[1] & 0xE0 == 0xE0 && mark[1] & 0x18 != 0x08 && mark[1] & 0x06 != 0,
        // Twelve bits of sync, and layer 0, which MP3 never has.
        Encoding::Aac => mark[0] == 0xFF && mark[1] & 0xF6 == 0xF0,
        Encoding::Mp4 => MP4_BOXES.iter().any(|it| &mark[4..8] == *it),
        Encoding::Pcm16 | Encoding::PcmF32 | Encoding::Mulaw | Encoding::Alaw | Encoding::Opus => true,
    }
}

/// Length of the ID3v2 tag that stands here. Its pictures may hold what looks like the begin of a stream.
fn id3_bytes(bytes: &[u8]) -> Option<u64> {
    if !bytes.starts_with(b"ID3") || bytes.len() < ID3_BYTES {
        return None;
    }
    let size = bytes[6..10].iter().fold(0, |size, byte| size << 7 | u64::from(byte & 0x7F));
    let footer = if bytes[5] & 0x10 != 0 { ID3_BYTES as u64 } else { 0 };
    Some(size + ID3_BYTES as u64 + footer)
}

fn not_this(encoding: Encoding) -> Error {
    let name = encoding.name();
    Error::invalid(format!("what was sent does not begin like {name}"))
        .hint(format!("send the {name} data from its first byte on, or name another encoding"))
}

impl Boxes {
    fn follow(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !self.done && !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            self.judge()?;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<()> {
        let Some((&[a, b, c, d, ref kind @ ..], rest)) = self.header.split_first_chunk::<8>() else { return Ok(()) };
        match kind {
            b"moov" | b"moof" => {
                self.done = true;
                return Ok(());
            }
            b"mdat" => {
                return Err(Error::invalid(
                    "this MP4 has its index behind its audio, so it cannot be decoded as it comes",
                )
                .hint("record fragmented MP4, or run `ffmpeg -i in.m4a -c copy -movflags +faststart out.m4a`"));
            }
            kind if !MP4_BOXES.contains(&kind) => return Err(not_this(Encoding::Mp4)),
            _ => (),
        }
        let size = match (u32::from_be_bytes([a, b, c, d]), rest) {
            // The size stands in the next eight bytes.
            (1, rest) => match rest.first_chunk::<8>() {
                Some(size) => u64::from_be_bytes(*size),
                None => return Ok(()),
            },
            (size, _) => u64::from(size),
        };
        let header = if self.header.len() == WHOLE_BOX_HEADER { 16 } else { 8 };
        // A size of 0 means up to the end: no index will follow.
        self.skip = size.checked_sub(header).ok_or_else(|| not_this(Encoding::Mp4))?;
        self.header.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when `bytes` come in pieces of `size`.
    fn pass(encoding: Encoding, bytes: &[u8], size: usize) -> Result<Vec<u8>> {
        let mut head = Head::new(encoding).unwrap();
        let mut out = Vec::new();
        for piece in bytes.chunks(size) {
            out.extend_from_slice(&head.pass(Bytes::copy_from_slice(piece))?);
        }
        head.end().map(|()| out)
    }

    fn mp4_box(kind: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32 + 8).to_be_bytes(), &kind[..], payload].concat()
    }

    #[test]
    fn streams_pass_unchanged_in_pieces_of_any_size() {
        let begins: [(Encoding, &[u8]); 6] = [
            (Encoding::Wav, b"RIFF\0\0\0\0WAVEfmt "),
            (Encoding::Ogg, b"OggS\0\x02aaaaaaaaaaaa"),
            (Encoding::Webm, b"\x1A\x45\xDF\xA3aaaaaaaaaaaa"),
            (Encoding::Flac, b"fLaCaaaaaaaaaaaa"),
            (Encoding::Mp3, b"\xFF\xFB\x90\x64aaaaaaaaaaaa"),
            (Encoding::Aac, b"\xFF\xF1\x50\x80aaaaaaaaaaaa"),
        ];
        for (encoding, bytes) in begins {
            for size in [1, 3, 7, 100] {
                assert_eq!(pass(encoding, bytes, size).unwrap(), bytes, "{} by {size}", encoding.name());
            }
            let (found, start) = recognise(bytes).unwrap();
            assert_eq!((found, start), (encoding, 0));
        }
    }

    #[test]
    fn garbage_and_the_wrong_encoding_are_refused_at_once() {
        for encoding in Encoding::ALL.into_iter().filter(|it| Head::new(*it).is_some()) {
            for bytes in [&[0u8; 64][..], b"GIF89a..............", b"<html><body>no audio</body>"] {
                let error = pass(encoding, bytes, 5).unwrap_err();
                assert!(error.message().contains(encoding.name()), "{error}");
            }
            assert!(pass(encoding, b"ID", 1).is_err(), "too short to be judged");
        }
        assert_eq!(recognise(b"#EXTM3U\nhttp://example.org/a.ts"), None);
        assert_eq!(recognise(b""), None);
    }

    #[test]
    fn an_id3_tag_is_skipped_even_when_it_looks_like_audio() {
        let tag = [&b"ID3\x04\0\0\0\0\x01\x48"[..], &[0xFF; 200]].concat();
        let audio = b"\xFF\xFB\x90\x64aaaaaaaaaaaa";
        let bytes = [&tag[..], audio].concat();
        for size in [1, 9, 64, 1000] {
            assert_eq!(pass(Encoding::Mp3, &bytes, size).unwrap(), audio, "by {size}");
        }
        assert_eq!(recognise(&bytes).unwrap(), (Encoding::Mp3, 210));
        assert_eq!(recognise(&bytes[..50]).unwrap(), (Encoding::Mp3, 210));
    }

    #[test]
    fn mp4_needs_its_index_first() {
        let ftyp = mp4_box(b"ftyp", b"isom....");
        let free = mp4_box(b"free", &[0; 100]);
        let (moov, mdat) = (mp4_box(b"moov", &[1; 50]), mp4_box(b"mdat", &[2; 5000]));
        let long_free = [&1u32.to_be_bytes(), &b"free"[..], &116u64.to_be_bytes(), &[0; 100]].concat();
        let good = [&ftyp[..], &free, &long_free, &moov, &mdat].concat();
        let bad = [&ftyp[..], &free, &mdat, &moov].concat();
        for size in [1, 11, 4096] {
            assert_eq!(pass(Encoding::Mp4, &good, size).unwrap(), good);
            let error = pass(Encoding::Mp4, &bad, size).unwrap_err();
            assert!(error.hint_text().unwrap().contains("faststart"), "{error}");
        }
        let nonsense = [&ftyp[..], &mp4_box(b"\0\0\0\0", b""), &moov].concat();
        assert!(pass(Encoding::Mp4, &nonsense, 4096).is_err());
        let too_small = [&ftyp[..], &[0, 0, 0, 3], b"free", &moov].concat();
        assert!(pass(Encoding::Mp4, &too_small, 4096).is_err());
    }
}
