//! Containers that say how long they or their pieces are: chunks of RIFF, boxes of MP4. What says more than there is was
//! not written to its end.

use std::io;

use super::{Ending, MAX_STEPS};
use crate::media::feed::Whole;

const CUT: Ending = Ending::Cut("its last part is shorter than it says");

/// What writes into a pipe cannot go back to fill in how much it was, and leaves some great number.
const NO_SIZE_FROM: u64 = 0x7FF0_0000;

/// WAV: the audio is one chunk, `data`.
pub(super) fn riff(file: &Whole) -> io::Result<Ending> {
    let mut at = 12;
    let mut long_data = None;
    for _ in 0..MAX_STEPS {
        let head = file.peek(at, 16)?;
        let Some((kind, size)) = head.first_chunk::<8>().map(|it| (&it[..4], le32(&it[4..]))) else { break };
        if kind == b"ds64" {
            // RF64: sizes beyond 32 bits, that of `data` behind that of all.
            let sizes = file.peek(at + 8, 16)?;
            long_data = sizes.get(8..16).and_then(<[u8]>::first_chunk::<8>).map(|it| u64::from_le_bytes(*it));
        }
        let size = match long_data {
            Some(long) if kind == b"data" && size == u64::from(u32::MAX) => long,
            _ if kind == b"data" && (size == 0 || size >= NO_SIZE_FROM) => return Ok(Ending::Whole),
            _ => size,
        };
        let Some(end) = (at + 8).checked_add(size) else { return Ok(CUT) };
        if end > file.len {
            return Ok(CUT);
        }
        if kind == b"data" {
            return Ok(Ending::Whole);
        }
        at = end + size % 2;
    }
    // The audio was to come, and did not.
    Ok(CUT)
}

/// Containers beyond those of the wire that say at their begin how long they are.
pub(super) fn other(file: &Whole) -> io::Result<Ending> {
    let head = file.peek(0, 12)?;
    let Some(head) = head.first_chunk::<12>() else { return Ok(Ending::Whole) };
    let end = match &head[..4] {
        b"RIFF" => 8 + le32(&head[4..8]),
        b"FORM" => 8 + be32(&head[4..8]),
        // Where the audio begins, and its bytes.
        b".snd" if be32(&head[8..]) < NO_SIZE_FROM => be32(&head[4..8]) + be32(&head[8..]),
        _ => return Ok(Ending::Whole),
    };
    Ok(if end > file.len && end < NO_SIZE_FROM { CUT } else { Ending::Whole })
}

/// MP4: boxes up to the end of the file.
pub(super) fn boxes(file: &Whole) -> io::Result<Ending> {
    let mut at = 0;
    for _ in 0..MAX_STEPS {
        if at == file.len {
            break;
        }
        let head = file.peek(at, 16)?;
        let Some((size, kind)) = head.first_chunk::<8>().map(|it| (be32(&it[..4]), &it[4..])) else { return Ok(CUT) };
        if !kind.iter().all(|it| it.is_ascii_graphic() || *it == b' ') {
            // No box: what stands here is not MP4's.
            break;
        }
        let size = match (size, head.get(8..16).and_then(<[u8]>::first_chunk::<8>)) {
            // Up to the end, wherever that is.
            (0, _) => break,
            (1, Some(long)) => u64::from_be_bytes(*long),
            (1, None) => return Ok(CUT),
            (size, _) => size,
        };
        if size < 8 {
            break;
        }
        match at.checked_add(size) {
            Some(end) if end <= file.len => at = end,
            _ => return Ok(CUT),
        }
    }
    Ok(Ending::Whole)
}

fn le32(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn be32(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::whole, *};

    fn wav(data_size: u32, data: usize) -> Vec<u8> {
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0aaaaodd \x01\0\0\0b\0data".to_vec();
        bytes.extend(data_size.to_le_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_wav_is_as_long_as_its_data_says_and_one_from_a_pipe_says_nothing() {
        assert_eq!(riff(&whole(wav(100, 100))).unwrap(), Ending::Whole);
        assert_eq!(riff(&whole(wav(100, 400))).unwrap(), Ending::Whole, "what follows is no audio");
        assert_eq!(riff(&whole(wav(100, 99))).unwrap(), CUT);
        assert_eq!(riff(&whole(wav(100, 0))).unwrap(), CUT);
        assert_eq!(riff(&whole(wav(0, 0))).unwrap(), Ending::Whole);
        for unknown in [0, u32::MAX, 0x7FFF_F000] {
            assert_eq!(riff(&whole(wav(unknown, 100))).unwrap(), Ending::Whole);
        }
        assert_eq!(riff(&whole(wav(100, 0)[..20].to_vec())).unwrap(), CUT, "no audio was ever reached");
    }

    #[test]
    fn long_wavs_tell_their_size_in_a_chunk_of_its_own() {
        let long = |size: u64, data: usize| {
            let mut bytes = b"RF64\xFF\xFF\xFF\xFFWAVEds64\x1C\0\0\0".to_vec();
            bytes.extend([0; 8]);
            bytes.extend(size.to_le_bytes());
            bytes.extend([0; 12]);
            bytes.extend(b"data\xFF\xFF\xFF\xFF");
            bytes.resize(bytes.len() + data, 0);
            riff(&whole(bytes)).unwrap()
        };
        assert_eq!(long(100, 100), Ending::Whole);
        assert_eq!(long(100, 50), CUT);
        assert_eq!(long(u64::MAX, 50), CUT);
    }

    #[test]
    fn boxes_may_be_long_or_open() {
        let long = [&1u32.to_be_bytes()[..], b"mdat", &26u64.to_be_bytes(), &[0; 10]].concat();
        assert_eq!(boxes(&whole(long.clone())).unwrap(), Ending::Whole);
        assert_eq!(boxes(&whole(long[..20].to_vec())).unwrap(), CUT);
        assert_eq!(boxes(&whole(long[..10].to_vec())).unwrap(), CUT);
        assert_eq!(boxes(&whole(b"\0\0\0\0mdataaaa".to_vec())).unwrap(), Ending::Whole);
        assert_eq!(boxes(&whole(b"\0\0\0\x08free\0\0\0".to_vec())).unwrap(), CUT);
        assert_eq!(boxes(&whole(b"\0\0\0\x08free\0\0\0\0\0\0\0\0".to_vec())).unwrap(), Ending::Whole, "padding");
    }
}
