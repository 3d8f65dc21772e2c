//! Codecs without a container: frames that each say how long they are. The last is whole, or the file was cut.

use std::io;

use super::{Ending, tail};
use crate::media::feed::Whole;

/// Many frames of any bit rate, and the tags that may follow them.
const TAIL: u64 = 64 << 10;

/// So many frames in a row are no chance.
const CHAIN: usize = 4;

const CUT: Ending = Ending::Cut("its last frame is not whole");

/// How long the frame is that begins here, and what all frames of a stream have in common.
type Frame = fn(&[u8]) -> Option<(usize, u16)>;

pub(super) fn mp3(file: &Whole) -> io::Result<Ending> {
    if let Some(promised) = promised(&file.peek(0, 256)?)
        && promised > file.len
    {
        return Ok(Ending::Cut("it promises more than there is"));
    }
    let (bytes, _) = tail(file, TAIL)?;
    Ok(last_frame(without_tags(&bytes), mp3_frame))
}

pub(super) fn adts(file: &Whole) -> io::Result<Ending> {
    let (bytes, _) = tail(file, TAIL)?;
    Ok(last_frame(without_tags(&bytes), adts_frame))
}

/// Walks from the first place where frames follow each other to the last one.
fn last_frame(bytes: &[u8], frame: Frame) -> Ending {
    let Some(mut at) = (0..bytes.len()).find(|at| chained(&bytes[*at..], frame)) else { return Ending::Whole };
    while let Some((len, _)) = frame(&bytes[at..]) {
        at += len;
        if at > bytes.len() {
            return CUT;
        }
    }
    // The begin of a head, or of what is none of ours.
    let rest = &bytes[at..];
    if (1..8).contains(&rest.len()) && rest[0] == 0xFF { CUT } else { Ending::Whole }
}

fn chained(bytes: &[u8], frame: Frame) -> bool {
    let Some((mut at, kind)) = frame(bytes) else { return false };
    for _ in 1..CHAIN {
        match bytes.get(at..).and_then(frame) {
            Some((len, other)) if other == kind => at += len,
            _ => return false,
        }
    }
    true
}

/// The bytes from the first frame on, where it is one that only describes the others (Xing's, LAME's).
fn promised(head: &[u8]) -> Option<u64> {
    const FRAMES: u8 = 1;
    const BYTES: u8 = 2;
    let (_, kind) = mp3_frame(head)?;
    let (mpeg1, mono) = (kind & 0x1800 == 0x1800, head.get(3)? & 0xC0 == 0xC0);
    let at = match (mpeg1, mono) {
        (true, false) => 36,
        (true, true) | (false, false) => 21,
        (false, true) => 13,
    };
    let told = head.get(at..)?;
    if !told.starts_with(b"Xing") && !told.starts_with(b"Info") {
        return None;
    }
    let flags = *told.get(7)?;
    let at = if flags & FRAMES != 0 { 12 } else { 8 };
    let bytes = u32::from_be_bytes(*told.get(at..)?.first_chunk::<4>()?);
    (flags & BYTES != 0).then_some(bytes.into())
}

fn mp3_frame(bytes: &[u8]) -> Option<(usize, u16)> {
    const MPEG1: [[u32; 14]; 3] = [
        [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
        [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
        [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    ];
    const MPEG2: [[u32; 14]; 3] = [
        [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
        [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    let [first, second, third, _] = *bytes.first_chunk::<4>()?;
    let (version, layer) = (second >> 3 & 3, 4 - usize::from(second >> 1 & 3));
    if first != 0xFF || second & 0xE0 != 0xE0 || version == 1 || layer == 4 {
        return None;
    }
    let table = if version == 3 { MPEG1 } else { MPEG2 };
    let kbps = *table[layer - 1].get(usize::from(third >> 4).checked_sub(1)?)?;
    let rate = *[44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? >> [2, 0, 1, 0][usize::from(version)];
    let padding = u32::from(third >> 1 & 1);
    let len = match (layer, version) {
        (1, _) => (12_000 * kbps / rate + padding) * 4,
        (3, 0 | 2) => 72_000 * kbps / rate + padding,
        _ => 144_000 * kbps / rate + padding,
    };
    // Version, layer and rate stay the same.
    Some((len as usize, u16::from(second & 0xFE) << 8 | u16::from(third & 0x0C)))
}

fn adts_frame(bytes: &[u8]) -> Option<(usize, u16)> {
    let head = bytes.first_chunk::<7>()?;
    if head[0] != 0xFF || head[1] & 0xF6 != 0xF0 {
        return None;
    }
    let len = usize::from(head[3] & 3) << 11 | usize::from(head[4]) << 3 | usize::from(head[5] >> 5);
    (len >= 7).then(|| (len, u16::from(head[1]) << 8 | u16::from(head[2] & 0xFC)))
}

/// What players write behind the audio: ID3 of the first version (its last 128 bytes), before it APE's tag.
fn without_tags(bytes: &[u8]) -> &[u8] {
    let mut end = bytes.len();
    if bytes.len() >= 128 && bytes[bytes.len() - 128..].starts_with(b"TAG") {
        end -= 128;
    }
    if let Some(footer) = end.checked_sub(32).map(|at| &bytes[at..end]).filter(|it| it.starts_with(b"APETAGEX")) {
        let items = footer.get(12..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |it| u32::from_le_bytes(*it));
        let head = if footer[23] & 0x80 != 0 { 32 } else { 0 };
        end = end.saturating_sub(items as usize + head);
    }
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::whole, *};

    /// MPEG 1, layer 3, 128 kbit/s, 44.1 kHz.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0xFF, 0xFB, 0x90, 0x64];
        frame.resize(417, 0x55);
        frame
    }

    fn ending(bytes: Vec<u8>) -> Ending {
        mp3(&whole(bytes)).unwrap()
    }

    #[test]
    fn tags_behind_the_last_frame_are_no_audio() {
        let all = frame().repeat(20);
        let mut id3 = b"TAG".to_vec();
        id3.resize(128, b' ');
        let mut ape = b"APETAGEX".to_vec();
        ape.extend(2000u32.to_le_bytes());
        ape.extend(72u32.to_le_bytes());
        ape.resize(32, 0);
        let ape = [&[b'x'; 40][..], &ape].concat();
        for tags in [Vec::new(), id3.clone(), ape.clone(), [&ape[..], &id3].concat()] {
            assert_eq!(ending([&all[..], &tags].concat()), Ending::Whole);
            assert_eq!(ending([&all[..all.len() - 9], &tags].concat()), CUT);
        }
        assert_eq!(ending([&all[..], &[0; 500]].concat()), Ending::Whole, "padding");
        assert_eq!(ending([&all[..], &[0xFF, 0xFB]].concat()), CUT);
        assert_eq!(ending(frame()), Ending::Whole, "one frame alone proves nothing");
    }

    #[test]
    fn a_frame_that_describes_the_others_is_believed() {
        let described = |bytes: u32| {
            let mut first = frame();
            first[36..48].copy_from_slice(b"Info\0\0\0\x03\0\0\0\x14");
            first[48..52].copy_from_slice(&bytes.to_be_bytes());
            [first, frame().repeat(19)].concat()
        };
        assert_eq!(ending(described(20 * 417)), Ending::Whole);
        assert!(matches!(ending(described(40 * 417)), Ending::Cut(_)));
    }
}
