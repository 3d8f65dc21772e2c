//! Uncompressed audio: bytes of a message to mono f32, in the message's own rate. Pure and cheap: hundreds of
//! streams pass here.

use crate::{
    base::{Error, Result},
    flow::{AudioFormat, Encoding},
};

/// Samples of a message, its channels averaged.
pub(super) fn mono(format: &AudioFormat, bytes: &[u8]) -> Result<Vec<f32>> {
    let channels = usize::from(format.channels);
    let frame = format.encoding.bytes_per_sample().unwrap_or(1) * channels;
    if !bytes.len().is_multiple_of(frame) {
        return Err(Error::invalid(format!(
            "{} bytes are not whole samples: {} with {channels} channel(s) takes {frame} bytes each",
            bytes.len(),
            format.encoding.name(),
        ))
        .hint("send whole samples in each message"));
    }
    Ok(match format.encoding {
        Encoding::Pcm16 => mix(bytes, channels, |it| f32::from(i16::from_le_bytes(it)) / 32768.0),
        Encoding::PcmF32 => mix(bytes, channels, |it| bounded(f32::from_le_bytes(it))),
        Encoding::Mulaw => mix(bytes, channels, |[it]| f32::from(mulaw(it)) / 32768.0),
        Encoding::Alaw => mix(bytes, channels, |[it]| f32::from(alaw(it)) / 32768.0),
        other => return Err(Error::internal(format!("{} is no uncompressed encoding", other.name()))),
    })
}

/// One not-a-number would stay in the state of a recurrent model for the rest of the stream.
pub(super) fn bounded(sample: f32) -> f32 {
    if sample.is_nan() { 0.0 } else { sample.clamp(-1.0, 1.0) }
}

fn mix<const N: usize>(bytes: &[u8], channels: usize, sample: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (samples, _) = bytes.as_chunks::<N>();
    if channels == 1 {
        return samples.iter().map(|it| sample(*it)).collect();
    }
    let frames = samples.chunks_exact(channels);
    frames.map(|frame| frame.iter().map(|it| sample(*it)).sum::<f32>() / channels as f32).collect()
}

/// ITU-T G.711 µ-law: sign, three bits of exponent, four of mantissa, all inverted.
fn mulaw(code: u8) -> i16 {
    let code = !code;
    let magnitude = (((i16::from(code & 0x0F) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84;
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// ITU-T G.711 A-law: every other bit inverted; a set sign bit is positive.
fn alaw(code: u8) -> i16 {
    let code = code ^ 0x55;
    let exponent = (code >> 4) & 7;
    let mantissa = (i16::from(code & 0x0F) << 4) + 8;
    let magnitude = if exponent == 0 { mantissa } else { (mantissa + 0x100) << (exponent - 1) };
    if code & 0x80 == 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn format(encoding: Encoding, channels: u8) -> AudioFormat {
        AudioFormat { encoding, sample_rate: 16_000, channels }
    }

    #[test]
    fn pcm16_is_its_value_over_32768() {
        let bytes: Vec<u8> = [0i16, 16384, -32768, 32767].iter().flat_map(|it| it.to_le_bytes()).collect();
        let samples = mono(&format(Encoding::Pcm16, 1), &bytes).unwrap();
        assert_eq!(samples, [0.0, 0.5, -1.0, 32767.0 / 32768.0]);
    }

    #[test]
    fn channels_are_averaged() {
        for channels in 1..=8u8 {
            let frame: Vec<i16> = (0..channels).map(|it| i16::from(it) * 1000).collect();
            let bytes: Vec<u8> = [frame.clone(), frame].concat().iter().flat_map(|it| it.to_le_bytes()).collect();
            let samples = mono(&format(Encoding::Pcm16, channels), &bytes).unwrap();
            let mean = f32::from(channels - 1) * 500.0 / 32768.0;
            assert_eq!(samples.len(), 2);
            assert!(samples.iter().all(|it| (it - mean).abs() < 1e-6), "{samples:?}");
        }
    }

    #[test]
    fn floats_are_bounded_and_never_not_a_number() {
        let bytes: Vec<u8> =
            [0.25, f32::NAN, f32::INFINITY, -7.0].iter().flat_map(|it: &f32| it.to_le_bytes()).collect();
        assert_eq!(mono(&format(Encoding::PcmF32, 1), &bytes).unwrap(), [0.25, 0.0, 1.0, -1.0]);
    }

    #[test]
    fn telephone_codes_follow_the_tables_of_g711() {
        for (code, value) in [(0xFF, 0), (0x7F, 0), (0x80, 32124), (0x00, -32124), (0xF0, 120), (0xAB, 5116)] {
            assert_eq!(mulaw(code), value, "µ-law {code:#x}");
        }
        for (code, value) in [(0xD5, 8), (0x55, -8), (0xAA, 32256), (0x2A, -32256), (0x80, 5504)] {
            assert_eq!(alaw(code), value, "A-law {code:#x}");
        }
    }

    #[test]
    fn a_split_sample_is_refused_with_its_size() {
        for (encoding, channels, len) in [(Encoding::Pcm16, 1, 3), (Encoding::PcmF32, 1, 6), (Encoding::Mulaw, 2, 5)] {
            let error = mono(&format(encoding, channels), &vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().contains(&len.to_string()), "{error}");
        }
        assert!(mono(&format(Encoding::Pcm16, 1), &[]).unwrap().is_empty());
    }
}
