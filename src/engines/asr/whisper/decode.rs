//! One text for each piece: decoded, doubted, decoded again at a higher temperature.

use std::io::Write;

use fastrand::Rng;
use flate2::{Compression, write::ZlibEncoder};

use crate::{
    base::{Error, Result},
    engines::{
        Decode,
        asr::whisper::{
            beam::Beam,
            decoder::Memory,
            sample::{Choice, Row},
            search::{Hypothesis, Progress, Search},
            tokens::Tokens,
        },
    },
};

/// A piece whose prompt the decoder has read.
pub(super) struct Prefilled {
    pub(super) piece: usize,
    /// Of the memory that it shares with others.
    pub(super) row: usize,
    /// The logits behind the prompt.
    pub(super) first: Vec<f32>,
    pub(super) no_speech: f32,
}

/// The text that was settled on.
#[derive(Debug, Clone)]
pub(super) struct Decoded {
    pub(super) hypothesis: Hypothesis,
    pub(super) avg_logprob: f32,
    pub(super) compression_ratio: f32,
    pub(super) temperature: f32,
}

/// An ask's settings must make sense before a model is run with them.
pub(super) fn check(decode: &Decode) -> Result<()> {
    let wrong = |what: &str| Err(Error::invalid(format!("the decoding is asked for with {what}")));
    if !(1..=16).contains(&decode.beam) || !(1..=16).contains(&decode.best_of) {
        return wrong("a beam or a best-of outside 1 to 16");
    }
    if !(decode.patience > 0.0 && decode.patience <= 16.0) {
        return wrong("a patience outside 0 to 16");
    }
    if decode.length_penalty.is_some_and(|penalty| !(-10.0..=10.0).contains(&penalty)) {
        return wrong("a length penalty outside -10 to 10");
    }
    if decode.temperatures.len() > 16 || !decode.temperatures.iter().all(|it| (0.0..=5.0).contains(it)) {
        return wrong("temperatures outside 0 to 5, or more than 16 of them");
    }
    if decode.max_new_tokens == Some(0) {
        return wrong("no new tokens at all");
    }
    Ok(())
}

/// Decodes the pieces of `memory`, a row each. They share the first attempt where it is greedy.
pub(super) fn decode(
    search: &mut Search<'_>,
    tokens: &Tokens,
    settings: &Decode,
    pieces: &[Prefilled],
    memory: &Memory,
    progress: &mut Progress<'_>,
) -> Result<Vec<Decoded>> {
    let temperatures = if settings.temperatures.is_empty() { &[0.0][..] } else { &settings.temperatures };
    let mut shared = vec![None; pieces.len()];
    if temperatures[0] == 0.0 && settings.beam == 1 {
        let rows = pieces.iter().map(|it| Row { piece: it.piece, choice: Choice::Likeliest }).collect();
        let first = pieces.iter().map(|it| it.first.clone()).collect();
        shared = search.sample(memory.clone(), first, rows, progress)?.into_iter().map(Some).collect();
    }
    let mut all = Vec::with_capacity(pieces.len());
    for (piece, shared) in pieces.iter().zip(&mut shared) {
        let mut attempts: Vec<Decoded> = Vec::new();
        for temperature in temperatures.iter().copied() {
            let hypothesis = match shared.take() {
                Some(hypothesis) => hypothesis,
                None => attempt(search, settings, piece, memory, temperature, progress)?,
            };
            let text = tokens.text(&hypothesis.tokens)?;
            let decoded = Decoded {
                avg_logprob: hypothesis.avg(tokens.eot),
                compression_ratio: compression_ratio(&text)?,
                temperature,
                hypothesis,
            };
            let doubted = is_doubted(settings, &decoded, piece.no_speech);
            attempts.push(decoded);
            if !doubted {
                break;
            }
        }
        all.push(settle(settings, attempts)?);
    }
    Ok(all)
}

fn attempt(
    search: &mut Search<'_>,
    settings: &Decode,
    piece: &Prefilled,
    memory: &Memory,
    temperature: f32,
    progress: &mut Progress<'_>,
) -> Result<Hypothesis> {
    if temperature == 0.0 && settings.beam > 1 {
        let beam = Beam { width: settings.beam, patience: settings.patience, length_penalty: settings.length_penalty };
        return search.beam(memory.select(&vec![piece.row; beam.width])?, &piece.first, beam, piece.piece, progress);
    }
    let samples = if temperature == 0.0 { 1 } else { settings.best_of };
    let row = |sample: usize| {
        let choice = match temperature {
            0.0 => Choice::Likeliest,
            // Each piece, temperature and sample has numbers of its own, and the same ones every time.
            _ => {
                let seed = settings.seed ^ (piece.piece as u64) << 40 ^ (sample as u64) << 32;
                Choice::Drawn { random: Rng::with_seed(seed ^ u64::from(temperature.to_bits())), temperature }
            }
        };
        Row { piece: piece.piece, choice }
    };
    let memory = memory.select(&vec![piece.row; samples])?;
    let first = vec![piece.first.clone(); samples];
    let texts = search.sample(memory, first, (0..samples).map(row).collect(), progress)?;
    let by_length = |text: &Hypothesis| match settings.length_penalty {
        None => text.sum() / text.tokens.len().max(1) as f32,
        Some(penalty) => text.sum() / ((5.0 + text.tokens.len() as f32) / 6.0).powf(penalty),
    };
    let best = texts.into_iter().max_by(|a, b| by_length(a).total_cmp(&by_length(b)));
    best.ok_or_else(|| Error::internal("a decode without a text"))
}

/// Silence, as the model itself says, unless the text is likely.
pub(super) fn is_silence(settings: &Decode, avg_logprob: f32, no_speech: f32) -> bool {
    let unlikely = settings.min_log_probability.is_none_or(|min| avg_logprob < min);
    settings.max_no_speech.is_some_and(|max| no_speech > max) && unlikely
}

fn is_doubted(settings: &Decode, decoded: &Decoded, no_speech: f32) -> bool {
    if is_silence(settings, decoded.avg_logprob, no_speech) {
        return false;
    }
    let unlikely = settings.min_log_probability.is_some_and(|min| decoded.avg_logprob < min);
    unlikely || repeats_itself(settings, decoded)
}

fn repeats_itself(settings: &Decode, decoded: &Decoded) -> bool {
    settings.max_compression_ratio.is_some_and(|max| decoded.compression_ratio > max)
}

/// The last attempt, if it was not doubted; else the likeliest of those that do not repeat themselves.
fn settle(settings: &Decode, mut attempts: Vec<Decoded>) -> Result<Decoded> {
    let last = attempts.pop().ok_or_else(|| Error::internal("a piece was not decoded"))?;
    let tried_all = attempts.len() + 1 >= settings.temperatures.len();
    let doubted = tried_all && !attempts.is_empty();
    if !doubted {
        return Ok(last);
    }
    let temperature = last.temperature;
    attempts.push(last);
    let sound = attempts.iter().any(|it| !repeats_itself(settings, it));
    attempts.retain(|it| !sound || !repeats_itself(settings, it));
    let best = attempts.into_iter().max_by(|a, b| a.avg_logprob.total_cmp(&b.avg_logprob));
    best.map(|best| Decoded { temperature, ..best }).ok_or_else(|| Error::internal("a piece was not decoded"))
}

/// How much shorter zlib makes a text: one that repeats itself becomes very short.
fn compression_ratio(text: &str) -> Result<f32> {
    let failed = |error| Error::internal("a text could not be compressed").cause(error);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(text.as_bytes()).map_err(failed)?;
    Ok(text.len() as f32 / encoder.finish().map_err(failed)?.len() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(avg_logprob: f32, compression_ratio: f32, temperature: f32) -> Decoded {
        Decoded { hypothesis: Hypothesis::default(), avg_logprob, compression_ratio, temperature }
    }

    #[test]
    fn a_text_that_repeats_itself_compresses_well() {
        assert!(compression_ratio("Buenos días, ¿qué tal todo?").unwrap() < 1.2);
        assert!(compression_ratio(&"gracias ".repeat(40)).unwrap() > 8.0);
        assert_eq!(compression_ratio("").unwrap(), 0.0);
    }

    #[test]
    fn unlikely_and_repeated_texts_are_doubted_and_silence_is_not() {
        let settings = Decode::default();
        assert!(!is_doubted(&settings, &decoded(-0.3, 1.5, 0.0), 0.0));
        assert!(is_doubted(&settings, &decoded(-1.3, 1.5, 0.0), 0.0));
        assert!(is_doubted(&settings, &decoded(-0.3, 2.5, 0.0), 0.0));
        assert!(!is_doubted(&settings, &decoded(-1.3, 1.5, 0.0), 0.7));
        assert!(is_silence(&settings, -1.3, 0.7) && !is_silence(&settings, -0.3, 0.7));
        let never = Decode { max_compression_ratio: None, min_log_probability: None, ..settings };
        assert!(!is_doubted(&never, &decoded(-9.0, 9.0, 0.0), 0.0));
    }

    #[test]
    fn when_all_attempts_were_doubted_the_likeliest_that_does_not_repeat_itself_is_taken() {
        let settings = Decode { temperatures: vec![0.0, 0.5, 1.0], ..Decode::default() };
        let attempts = vec![decoded(-0.1, 9.0, 0.0), decoded(-1.2, 1.0, 0.5), decoded(-1.5, 1.0, 1.0)];
        let settled = settle(&settings, attempts.clone()).unwrap();
        assert_eq!((settled.avg_logprob, settled.temperature), (-1.2, 1.0));
        let repeated = attempts.into_iter().map(|it| Decoded { compression_ratio: 9.0, ..it }).collect();
        assert_eq!(settle(&settings, repeated).unwrap().avg_logprob, -0.1);
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let bad: [fn(&mut Decode); 6] = [
            |it| it.beam = 0,
            |it| it.best_of = 1000,
            |it| it.patience = f32::NAN,
            |it| it.temperatures = vec![f32::NAN],
            |it| it.max_new_tokens = Some(0),
            |it| it.length_penalty = Some(f32::INFINITY),
        ];
        for change in bad {
            let mut settings = Decode::default();
            change(&mut settings);
            assert!(check(&settings).is_err());
        }
        check(&Decode::default()).unwrap();
    }
}
