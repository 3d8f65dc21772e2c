//! WAV as it goes to a server, and as it comes back from one, part by part. Believes no length that a header tells: who
//! streams does not know it.

use crate::flow::SAMPLE_RATE_HZ;

const PCM: u16 = 1;
const FLOAT: u16 = 3;
const EXTENSIBLE: u16 = 0xfffe;
/// A header with all that people put into it is far smaller.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// 16 kHz mono, 16 bits: what every server of speech takes.
pub(super) fn wav(samples: &[f32]) -> Vec<u8> {
    let data_bytes = samples.len() as u32 * 2;
    let mut file = Vec::with_capacity(44 + data_bytes as usize);
    file.extend(b"RIFF");
    file.extend((36 + data_bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16_u32.to_le_bytes());
    file.extend(PCM.to_le_bytes());
    file.extend(1_u16.to_le_bytes());
    file.extend(SAMPLE_RATE_HZ.to_le_bytes());
    file.extend((SAMPLE_RATE_HZ * 2).to_le_bytes());
    file.extend(2_u16.to_le_bytes());
    file.extend(16_u16.to_le_bytes());
    file.extend(b"data");
    file.extend(data_bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|sample| ((sample.clamp(-1.0, 1.0) * 32767.0).round() as i16).to_le_bytes()));
    file
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Format {
    float: bool,
    channels: usize,
    rate_hz: u32,
}

/// Takes a WAV file as it comes.
#[derive(Default)]
pub(super) struct Wav {
    rest: Vec<u8>,
    format: Option<Format>,
}

impl Wav {
    /// Known once the header has come.
    pub(super) fn rate_hz(&self) -> Option<u32> {
        self.format.map(|format| format.rate_hz)
    }

    /// The samples that are whole now, of all channels mixed; an error says what is wrong with the file.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<f32>, &'static str> {
        self.rest.extend_from_slice(bytes);
        let format = match self.format {
            Some(format) => format,
            None => match header(&self.rest)? {
                Some((format, begin)) => {
                    self.rest.drain(..begin);
                    *self.format.insert(format)
                }
                None if self.rest.len() > MAX_HEADER_BYTES => return Err("a WAV file without sound"),
                None => return Ok(Vec::new()),
            },
        };
        let sample_bytes = if format.float { 4 } else { 2 };
        let frame_bytes = sample_bytes * format.channels;
        let whole = self.rest.len() / frame_bytes * frame_bytes;
        let frames = self.rest[..whole].chunks_exact(frame_bytes);
        let samples = frames.map(|frame| {
            let values = frame.chunks_exact(sample_bytes).map(|value| match *value {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] => f32::from(i16::from_le_bytes([a, b])) / 32768.0,
                _ => 0.0,
            });
            values.sum::<f32>() / format.channels as f32
        });
        let samples: Vec<f32> = samples.map(|it| if it.is_finite() { it.clamp(-1.0, 1.0) } else { 0.0 }).collect();
        self.rest.drain(..whole);
        Ok(samples)
    }
}

/// The format, and where the sound begins. None: more must come first.
fn header(bytes: &[u8]) -> Result<Option<(Format, usize)>, &'static str> {
    let begins = |at: usize, name: &[u8]| bytes.get(at..at + name.len()).map(|it| it == name);
    match (begins(0, b"RIFF"), begins(8, b"WAVE")) {
        (Some(false), _) | (_, Some(false)) => return Err("no WAV file"),
        (Some(true), Some(true)) => (),
        _ => return Ok(None),
    }
    let mut format = None;
    let mut at = 12_usize;
    while let Some(&[a, b, c, d, e, f, g, h]) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([e, f, g, h]) as usize;
        let content = at + 8;
        match &[a, b, c, d] {
            b"data" => return format.map(|format| Some((format, content))).ok_or("a WAV file without its format"),
            b"fmt " => match bytes.get(content..content.saturating_add(length)) {
                Some(content) => format = Some(read_format(content)?),
                None => return Ok(None),
            },
            _ => (),
        }
        // Odd ones are filled up.
        at = content.saturating_add(length).saturating_add(length % 2);
    }
    Ok(None)
}

fn read_format(content: &[u8]) -> Result<Format, &'static str> {
    let short = |at: usize| content.get(at..at + 2).map_or(0, |it| u16::from_le_bytes([it[0], it[1]]));
    let rate_hz = u32::from(short(4)) | u32::from(short(6)) << 16;
    let kind = if short(0) == EXTENSIBLE { short(24) } else { short(0) };
    let float = match (kind, short(14)) {
        (PCM, 16) => false,
        (FLOAT, 32) => true,
        _ => return Err("WAV of a kind other than 16 bits or float"),
    };
    let channels = usize::from(short(2));
    if !(1..=8).contains(&channels) || !(8_000..=192_000).contains(&rate_hz) {
        return Err("WAV with a strange rate or number of channels");
    }
    Ok(Format { float, channels, rate_hz })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(file: &[u8], part: usize) -> Result<(Vec<f32>, Option<u32>), &'static str> {
        let mut wav = Wav::default();
        let mut samples = Vec::new();
        for bytes in file.chunks(part) {
            samples.extend(wav.take(bytes)?);
        }
        Ok((samples, wav.rate_hz()))
    }

    #[test]
    fn what_is_written_is_read_again_in_parts_of_any_size() {
        let file = wav(&[0.0, 0.5, -0.5, 2.0]);
        for part in [1, 3, 7, 45, 1000] {
            let (samples, rate_hz) = taken(&file, part).unwrap();
            assert_eq!(rate_hz, Some(16_000));
            assert_eq!(samples.len(), 4);
            for (sample, expected) in samples.iter().zip([0.0, 0.5, -0.5, 1.0]) {
                assert!((sample - expected).abs() < 1e-4, "{samples:?}");
            }
        }
    }

    #[test]
    fn a_stream_with_other_parts_and_no_length_is_read() {
        let mut file = b"RIFF\xff\xff\xff\xffWAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0\x03\0\x02\0".to_vec();
        file.extend(24_000_u32.to_le_bytes());
        file.extend([0, 0, 0, 0, 8, 0, 32, 0]);
        file.extend(b"data\xff\xff\xff\xff");
        for sample in [0.5_f32, -0.5, 1.0, 0.0, f32::NAN, 0.0] {
            file.extend(sample.to_le_bytes());
        }
        assert_eq!(taken(&file, 5).unwrap(), (vec![0.0, 0.5, 0.0], Some(24_000)));
    }

    #[test]
    fn what_is_no_wav_says_so() {
        assert_eq!(taken(b"{\"error\": 1} and more", 100), Err("no WAV file"));
        assert_eq!(taken(b"ID3\x04", 1), Err("no WAV file"));
        let mut strange = wav(&[0.0]);
        strange[34] = 24;
        assert_eq!(taken(&strange, 100), Err("WAV of a kind other than 16 bits or float"));
        let mut mute = wav(&[0.0]);
        mute[22] = 0;
        assert!(taken(&mute, 100).unwrap_err().contains("channels"));
        assert_eq!(taken(b"RIFF\0\0\0\0WAVEdata\0\0\0\0", 100), Err("a WAV file without its format"));
        let endless = [b"RIFF\0\0\0\0WAVE".as_slice(), &[0; 70_000]].concat();
        assert_eq!(taken(&endless, 80_000).map(|it| it.1), Err("a WAV file without sound"));
        let far = [b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff".as_slice(), &[0; 70_000]].concat();
        assert_eq!(taken(&far, 80_000).map(|it| it.1), Err("a WAV file without sound"));
    }
}
