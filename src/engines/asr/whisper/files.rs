//! What a Whisper model's files say of it: every size, id and rule. Nothing about a model is known by heart here.
//!
//! Files come from anywhere, so each number is checked before memory is taken by it.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    base::{Error, Result},
    engines::asr::whisper::mel::MelShape,
    flow::SAMPLE_RATE_HZ,
};

/// The largest published configuration is some kB; a tokenizer is some MB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
pub(super) const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub(super) struct ModelFiles {
    pub(super) mel: MelShape,
    /// Frames of the encoder's output, half as many as of mel.
    pub(super) encoder_frames: usize,
    pub(super) vocabulary: usize,
    pub(super) max_tokens: usize,
    /// None: the files do not say.
    pub(super) encoder_heads: Option<usize>,
    /// Frames that a median of attention is taken of.
    pub(super) median_frames: usize,
    pub(super) decoder_layers: usize,
    pub(super) decoder_heads: usize,
    pub(super) head_dim: usize,
    pub(super) rules: TokenRules,
}

/// What the files say about tokens. An id that is None is looked up by its text alone.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenRules {
    pub(super) multilingual: bool,
    pub(super) eot: Option<u32>,
    pub(super) sot: Option<u32>,
    pub(super) no_timestamps: Option<u32>,
    /// None: the files say nothing about it.
    pub(super) suppress: Option<Vec<u32>>,
    pub(super) begin_suppress: Vec<u32>,
    pub(super) max_initial_timestamp: Option<usize>,
    /// Layer and head whose cross-attention follows the speech.
    pub(super) alignment_heads: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct Config {
    d_model: usize,
    decoder_layers: usize,
    decoder_attention_heads: usize,
    encoder_attention_heads: Option<usize>,
    median_filter_width: Option<usize>,
    vocab_size: usize,
    num_mel_bins: Option<usize>,
    max_source_positions: Option<usize>,
    max_target_positions: Option<usize>,
    decoder_start_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
}

#[derive(Default, Deserialize)]
struct Generation {
    is_multilingual: Option<bool>,
    lang_to_id: Option<serde_json::Map<String, serde_json::Value>>,
    decoder_start_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    no_timestamps_token_id: Option<u32>,
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
    max_initial_timestamp_index: Option<usize>,
    alignment_heads: Option<Vec<(usize, usize)>>,
    max_length: Option<usize>,
}

#[derive(Default, Deserialize)]
struct Preprocessor {
    feature_size: Option<usize>,
    n_fft: Option<usize>,
    hop_length: Option<usize>,
    sampling_rate: Option<u32>,
    chunk_length: Option<usize>,
    n_samples: Option<usize>,
    nb_max_frames: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn first(&self) -> Option<u32> {
        match self {
            OneOrMany::One(id) => Some(*id),
            OneOrMany::Many(ids) => ids.first().copied(),
        }
    }
}

impl ModelFiles {
    pub(super) fn read(dir: &Path) -> Result<ModelFiles> {
        let config: Config = read_json(&dir.join("config.json"))?;
        let generation: Generation = read_if_there(&dir.join("generation_config.json"))?;
        let preprocessor: Preprocessor = read_if_there(&dir.join("preprocessor_config.json"))?;
        let bounded = |name: &str, value: usize, range: std::ops::RangeInclusive<usize>| {
            range.contains(&value).then_some(value).ok_or_else(|| {
                wrong(dir, format!("{name} is {value}, and must lie between {} and {}", range.start(), range.end()))
            })
        };
        if preprocessor.sampling_rate.is_some_and(|rate| rate != SAMPLE_RATE_HZ) {
            return Err(wrong(dir, format!("it wants another sample rate than {SAMPLE_RATE_HZ} Hz")));
        }
        let hop = bounded("hop_length", preprocessor.hop_length.unwrap_or(160), 16..=4096)?;
        let samples =
            preprocessor.n_samples.or(preprocessor.chunk_length.map(|it| it.saturating_mul(SAMPLE_RATE_HZ as usize)));
        let heard = config.max_source_positions.map(|it| it.saturating_mul(2));
        let frames = preprocessor.nb_max_frames.or(samples.map(|it| it / hop)).or(heard).unwrap_or(3000);
        let frames = bounded("nb_max_frames", frames, 2..=6000)?;
        let bins = config.num_mel_bins.or(preprocessor.feature_size).unwrap_or(80);
        let mel = MelShape {
            bins: bounded("num_mel_bins", bins, 1..=512)?,
            n_fft: bounded("n_fft", preprocessor.n_fft.unwrap_or(400), 32..=8192)?,
            hop,
            frames,
        };
        if preprocessor.feature_size.is_some_and(|size| size != bins) {
            return Err(wrong(dir, "config.json and preprocessor_config.json differ in the number of mel bins"));
        }
        // 7: transformers' own default.
        let median_frames = bounded("median_filter_width", config.median_filter_width.unwrap_or(7), 1..=499)?;
        if median_frames % 2 == 0 {
            return Err(wrong(dir, format!("median_filter_width is {median_frames}, and must be odd")));
        }
        let heads = bounded("decoder_attention_heads", config.decoder_attention_heads, 1..=256)?;
        let max_tokens = generation.max_length.unwrap_or(usize::MAX).min(config.max_target_positions.unwrap_or(448));
        Ok(ModelFiles {
            mel,
            encoder_frames: bounded(
                "max_source_positions",
                config.max_source_positions.unwrap_or(frames / 2),
                1..=6000,
            )?,
            encoder_heads: config.encoder_attention_heads.filter(|heads| (1..=256).contains(heads)),
            median_frames,
            vocabulary: bounded("vocab_size", config.vocab_size, 8..=1_000_000)?,
            max_tokens: bounded("max_target_positions", max_tokens, 8..=16_384)?,
            decoder_layers: bounded("decoder_layers", config.decoder_layers, 1..=256)?,
            decoder_heads: heads,
            head_dim: bounded("d_model", config.d_model, 1..=65_536)? / heads,
            rules: token_rules(config, generation),
        })
    }
}

fn token_rules(config: Config, generation: Generation) -> TokenRules {
    let ids = |list: Vec<i64>| list.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
    // Where nobody has looked which heads follow the speech, those of the upper layers do on average: OpenAI's own rule.
    let (layers, heads) = (config.decoder_layers.min(256), config.decoder_attention_heads);
    let upper = || (layers / 2..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head))).collect();
    let languages = generation.lang_to_id.is_some_and(|languages| !languages.is_empty());
    TokenRules {
        // OpenAI's own rule, for files that do not say it: English models have one token less.
        multilingual: generation.is_multilingual.unwrap_or(languages || config.vocab_size >= 51_865),
        eot: generation.eos_token_id.or(config.eos_token_id).and_then(|ids| ids.first()),
        sot: generation.decoder_start_token_id.or(config.decoder_start_token_id),
        no_timestamps: generation.no_timestamps_token_id,
        suppress: generation.suppress_tokens.or(config.suppress_tokens).map(ids),
        begin_suppress: generation.begin_suppress_tokens.or(config.begin_suppress_tokens).map_or(Vec::new(), ids),
        max_initial_timestamp: generation.max_initial_timestamp_index,
        alignment_heads: generation.alignment_heads.filter(|heads| !heads.is_empty()).unwrap_or_else(upper),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_bounded(path, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::unavailable(format!("{} cannot be read: {error}", path.display()))
            .hint("remove the model's folder and fetch it again")
    })
}

fn read_if_there<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}

pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        Error::unavailable(format!("{} cannot be read: {error}", path.display()))
            .hint("the folder must hold config.json, tokenizer.json and onnx/; fetch the model again")
    };
    let found = path.metadata().map_err(failed)?;
    let bytes = found.len();
    // A pipe would be waited for without end.
    if !found.is_file() {
        return Err(failed(std::io::Error::other("it is no file")));
    }
    if bytes > max_bytes {
        return Err(Error::unavailable(format!("{} has {bytes} bytes, which is too many", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

pub(super) fn wrong(dir: &Path, what: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("the model in {} cannot be used: {what}", dir.display()))
        .hint("remove its folder and fetch it again, or choose another model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    const CONFIG: &str = r#"{"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "vocab_size": 51866,
        "num_mel_bins": 128, "eos_token_id": [7, 9]}"#;

    fn read(files: &[(&str, &str)]) -> Result<ModelFiles> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        ModelFiles::read(dir.path())
    }

    #[test]
    fn a_config_alone_is_enough_and_the_generation_config_wins() {
        let files = read(&[("config.json", CONFIG)]).unwrap();
        assert_eq!((files.mel.bins, files.mel.frames, files.head_dim, files.max_tokens), (128, 3000, 8, 448));
        assert_eq!((files.rules.eot, files.rules.multilingual, files.rules.suppress), (Some(7), true, None));
        assert_eq!((files.median_frames, files.encoder_heads), (7, None));
        let own = CONFIG.replacen('{', "{\"median_filter_width\": 3, \"encoder_attention_heads\": 6, ", 1);
        let files = read(&[("config.json", &own)]).unwrap();
        assert_eq!((files.median_frames, files.encoder_heads), (3, Some(6)));
        let generation =
            r#"{"eos_token_id": 3, "is_multilingual": false, "suppress_tokens": [-1, 4], "max_length": 100}"#;
        let files = read(&[("config.json", CONFIG), ("generation_config.json", generation)]).unwrap();
        assert_eq!((files.rules.eot, files.rules.multilingual, files.max_tokens), (Some(3), false, 100));
        assert_eq!(files.rules.suppress, Some(vec![4]));
    }

    #[test]
    fn what_the_files_leave_out_follows_from_what_they_say() {
        let files = read(&[("config.json", CONFIG)]).unwrap();
        assert_eq!(files.rules.alignment_heads, [(1, 0), (1, 1), (1, 2), (1, 3)]);
        let named = r#"{"alignment_heads": [[0, 2]]}"#;
        let files = read(&[("config.json", CONFIG), ("generation_config.json", named)]).unwrap();
        assert_eq!(files.rules.alignment_heads, [(0, 2)]);
        let short = CONFIG.replacen('{', "{\"max_source_positions\": 250, ", 1);
        let files = read(&[("config.json", &short)]).unwrap();
        assert_eq!((files.mel.frames, files.encoder_frames), (500, 250));
    }

    #[test]
    fn what_is_no_file_is_refused_instead_of_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("config.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = ModelFiles::read(dir.path()).unwrap_err();
        assert!(error.full().contains("no file"), "{}", error.full());
    }

    #[test]
    fn bad_files_are_errors_that_name_them() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "config.json"),
            (&[("config.json", "{")], "config.json"),
            (&[("config.json", r#"{"d_model": 32}"#)], "decoder_layers"),
            (&[("config.json", &CONFIG.replace("128", "99999999"))], "num_mel_bins"),
            (
                &[("config.json", &CONFIG.replace("\"decoder_attention_heads\": 4", "\"decoder_attention_heads\": 0"))],
                "heads",
            ),
            (&[("config.json", CONFIG), ("preprocessor_config.json", r#"{"feature_size": 80}"#)], "mel bins"),
            (&[("config.json", CONFIG), ("preprocessor_config.json", r#"{"hop_length": 0}"#)], "hop_length"),
            (&[("config.json", CONFIG), ("preprocessor_config.json", r#"{"sampling_rate": 8000}"#)], "sample rate"),
            (&[("config.json", CONFIG), ("generation_config.json", "[]")], "generation_config.json"),
            (&[("config.json", &CONFIG.replacen('{', "{\"median_filter_width\": 4, ", 1))], "median_filter_width"),
        ];
        for (files, named) in cases {
            let error = read(files).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(error.full().contains(named), "{}", error.full());
        }
    }
}
