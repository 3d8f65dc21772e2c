//! Whether a whole file ends where it says that it ends. A recorder that lost its power and a download that broke off leave
//! files that decode without an error, up to somewhere; who reads their text must know that it is not all.
//!
//! Looks at headers and at the last bytes, never at the audio itself, and never judges what is damaged: that the decoder
//! does. A container that promises nothing is taken for whole.
//!
//! - `sizes`: chunks and boxes with their lengths (WAV, MP4, AVI, AIFF, AU); `ebml`: the same in WebM
//! - `frames`: codecs without a container (MP3, AAC); `ogg`: pages

mod ebml;
mod frames;
mod ogg;
mod sizes;

use std::io;

use bytes::Bytes;

use super::feed::Whole;
use crate::flow::Encoding;

/// What a file's own words make of its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ending {
    /// Nothing says otherwise.
    Whole,
    /// It stops in the middle; why that is known.
    Cut(&'static str),
    /// There is to be that much audio; whether there is, its decoder shows.
    Secs(f64),
}

/// More elements than hours of audio have; what has more is made to keep us busy.
const MAX_STEPS: usize = 1 << 20;

/// `encoding` is None for a file that is none of the wire's.
pub(super) fn of(encoding: Option<Encoding>, file: &Whole) -> io::Result<Ending> {
    let Some(encoding) = encoding else { return sizes::other(file) };
    match encoding {
        Encoding::Wav => sizes::riff(file),
        Encoding::Mp4 => sizes::boxes(file),
        Encoding::Webm => ebml::ending(file),
        Encoding::Ogg => ogg::ending(file),
        Encoding::Mp3 => frames::mp3(file),
        Encoding::Aac => frames::adts(file),
        Encoding::Flac => flac(file),
        Encoding::Pcm16 | Encoding::PcmF32 | Encoding::Mulaw | Encoding::Alaw | Encoding::Opus => Ok(Ending::Whole),
    }
}

/// Its first block tells how many samples there are: 20 bits of rate, 8 of other things, 36 of samples.
fn flac(file: &Whole) -> io::Result<Ending> {
    let head = file.peek(0, 26)?;
    let Some(told) = head.get(18..26).and_then(<[u8]>::first_chunk::<8>) else {
        return Ok(Ending::Cut("its first block is not whole"));
    };
    let told = u64::from_be_bytes(*told);
    let (rate, samples) = (told >> 44, told & ((1 << 36) - 1));
    // 0: whoever wrote it did not know yet.
    Ok(if rate == 0 || samples == 0 { Ending::Whole } else { Ending::Secs(samples as f64 / rate as f64) })
}

/// The last bytes, and where they begin.
fn tail(file: &Whole, most: u64) -> io::Result<(Bytes, u64)> {
    let from = file.len.saturating_sub(most);
    Ok((file.peek(from, most as usize)?, from))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::media::{feed::Source, head};

    pub(super) fn whole(bytes: impl Into<Bytes>) -> Whole {
        Whole::new(Source::Bytes(bytes.into()), 0).unwrap()
    }

    fn ending(bytes: &[u8]) -> Ending {
        let known = head::recognise(&bytes[..bytes.len().min(4096)]);
        let file = Whole::new(Source::Bytes(Bytes::copy_from_slice(bytes)), known.map_or(0, |it| it.1)).unwrap();
        of(known.map(|it| it.0), &file).unwrap()
    }

    fn data(name: &str) -> Vec<u8> {
        fs::read(format!("{}/tests/data/media/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn whole_files_are_whole_and_cut_ones_are_not() {
        for name in [
            "tone.wav",
            "alaw.wav",
            "opus.ogg",
            "vorbis.ogg",
            "tone.mp3",
            "tone.aac",
            "faststart.m4a",
            "moov_last.m4a",
            "fragmented.mp4",
            "stereo.webm",
            "tone.aiff",
            "tone.au",
            "video.avi",
        ] {
            let bytes = data(name);
            assert_eq!(ending(&bytes), Ending::Whole, "{name}");
            for part in [0.4, 0.63, 0.9] {
                let at = (bytes.len() as f64 * part) as usize + 1;
                assert!(matches!(ending(&bytes[..at]), Ending::Cut(_)), "{name} cut at {at} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn flac_says_how_long_it_is() {
        let bytes = data("tone.flac");
        assert_eq!(ending(&bytes), Ending::Secs(2.0));
        assert_eq!(ending(&bytes[..bytes.len() / 2]), Ending::Secs(2.0));
        assert!(matches!(ending(&bytes[..20]), Ending::Cut(_)));
        let unknown = [&bytes[..21], &[bytes[21] & 0xF0, 0, 0, 0, 0], &bytes[26..]].concat();
        assert_eq!(ending(&unknown), Ending::Whole);
    }

    /// Whatever the bytes, an answer comes, and soon.
    #[test]
    fn no_bytes_lead_it_astray() {
        for name in
            ["tone.wav", "opus.ogg", "tone.mp3", "tone.aac", "fragmented.mp4", "stereo.webm", "tone.flac", "tone.aiff"]
        {
            let bytes = data(name);
            let encoding = head::recognise(&bytes).map(|it| it.0);
            for seed in 0..200_usize {
                let mut bytes = bytes.clone();
                for turn in 0..8 {
                    let at = (seed * 7919 + turn * 104_729) % bytes.len().min(4 << turn);
                    bytes[at] = [0, 0xFF, 0x7F, 0x80][(seed + turn) % 4];
                }
                of(encoding, &whole(bytes)).unwrap();
            }
            of(encoding, &whole(Vec::new())).unwrap();
        }
    }
}
