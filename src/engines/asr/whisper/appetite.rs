//! What a Whisper model works in, by the shape that its config.json tells: for folders that no entry of the catalogue
//! describes. The figures of the entries follow from the same shapes, and a test holds them against these.

use std::path::Path;

use crate::{
    base::ByteSize,
    engines::asr::whisper::files::ModelFiles,
    models::catalogue::{Memory, Unit, Workspace},
    settings::Provider,
};

/// Numbers of 32 bits, whatever the weights have.
const NUMBER: usize = 4;
/// ONNX Runtime and the rest of the process.
const PROCESS: ByteSize = ByteSize::mib(48);
/// CUDA's context and libraries; not measured.
const CUDA: ByteSize = ByteSize::mib(500);
/// Tokens of the longest prompt, whose logits all come at once.
const PROMPT: usize = 228;

#[derive(Debug, Clone, Copy)]
struct Shape {
    frames: usize,
    width: usize,
    encoder_heads: usize,
    decoder_layers: usize,
    max_tokens: usize,
    vocabulary: usize,
}

/// Nothing is known of a folder that cannot be read; its load says better what is wrong.
pub fn memory(dir: &Path) -> Memory {
    let Ok(files) = ModelFiles::read(dir) else { return Memory::default() };
    let shape = Shape {
        frames: files.encoder_frames,
        width: files.decoder_heads * files.head_dim,
        encoder_heads: files.encoder_heads.unwrap_or(files.decoder_heads),
        decoder_layers: files.decoder_layers,
        max_tokens: files.max_tokens,
        vocabulary: files.vocabulary,
    };
    Memory::of(Unit::Window, |provider| shape.workspace(provider))
}

impl Shape {
    fn workspace(self, provider: Provider) -> Workspace {
        let Shape { frames, width, encoder_heads, decoder_layers, max_tokens, vocabulary } = self;
        let attention = encoder_heads * frames * frames;
        let layers = 2 * frames * 4 * width;
        let fixed = attention + layers + PROMPT * vocabulary;
        // Keys and values of the speech, and of the text before and after a step; and what was heard, kept and joined.
        let each = 2 * decoder_layers * width * (frames + 2 * max_tokens) + 2 * frames * width;
        let bytes = |numbers: usize| (numbers * NUMBER) as u64;
        let beside = if provider == Provider::Cpu { 0 } else { CUDA.get() };
        Workspace { fixed: ByteSize(PROCESS.get() + beside + bytes(fixed)), each: ByteSize(bytes(each)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::catalogue::Catalogue;

    #[test]
    fn the_catalogues_figures_follow_from_the_shapes() {
        let catalogue = Catalogue::load(None).unwrap();
        for (name, encoder_heads, width, decoder_layers) in [
            ("whisper-tiny", 6, 384, 4),
            ("whisper-base", 8, 512, 6),
            ("whisper-small", 12, 768, 12),
            ("whisper-large-v3", 20, 1280, 32),
            ("whisper-large-v3-turbo", 20, 1280, 4),
        ] {
            let (frames, max_tokens, vocabulary) = (1500, 448, 51_866);
            let shape = Shape { frames, width, encoder_heads, decoder_layers, max_tokens, vocabulary };
            for entry in [name.to_owned(), format!("{name}-timestamped")].iter().filter_map(|name| catalogue.get(name))
            {
                for provider in [Provider::Cpu, Provider::Cuda] {
                    let (said, wanted) = (entry.memory.workspace(provider).unwrap(), shape.workspace(provider));
                    for (said, wanted) in [(said.fixed, wanted.fixed), (said.each, wanted.each)] {
                        let off = said.get().abs_diff(wanted.get());
                        assert!(off <= 1 << 20, "{} on {}: {said} instead of {wanted}", entry.name, provider.name());
                    }
                }
            }
        }
    }

    #[test]
    fn a_folder_without_an_entry_tells_its_shape_and_one_that_cannot_be_read_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(memory(dir.path()), Memory::default());
        let config = r#"{"d_model": 384, "decoder_layers": 4, "decoder_attention_heads": 6, "vocab_size": 51865,
            "encoder_attention_heads": 6, "num_mel_bins": 80}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let workspace = memory(dir.path()).workspace(Provider::Cpu).unwrap();
        assert_eq!([workspace.fixed, workspace.each].map(|it| it.get() >> 20), [162, 32]);
    }
}
