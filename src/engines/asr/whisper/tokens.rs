//! A model's tokens: what its tokenizer says, the ids that mean something to Whisper, and prompts made of them.
//!
//! Ids are found by their text, for generations of Whisper give them different numbers, and files that are passed
//! around name wrong ones.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::{
    base::{Error, Kind, Result},
    engines::asr::whisper::files::{MAX_TOKENIZER_BYTES, TokenRules, read_bounded, wrong},
};

pub(super) struct Tokens {
    tokenizer: Tokenizer,
    pub(super) eot: u32,
    pub(super) sot: u32,
    pub(super) sop: Option<u32>,
    pub(super) no_speech: Option<u32>,
    pub(super) no_timestamps: u32,
    /// `<|0.00|>`; the ones behind it are 20 ms apart.
    pub(super) timestamp_begin: u32,
    transcribe: Option<u32>,
    translate: Option<u32>,
    /// By code; empty for a model of English alone.
    pub(super) languages: Vec<(String, u32)>,
    /// True where an id is no text.
    special: Vec<bool>,
    pub(super) suppress: Vec<u32>,
    pub(super) begin_suppress: Vec<u32>,
}

impl Tokens {
    pub(super) fn read(dir: &Path, rules: &TokenRules, vocabulary: usize) -> Result<Tokens> {
        let path = dir.join("tokenizer.json");
        let tokenizer = Tokenizer::from_bytes(read_bounded(&path, MAX_TOKENIZER_BYTES)?).map_err(|error| {
            Error::unavailable(format!("{} cannot be read: {error}", path.display()))
                .hint("remove the model's folder and fetch it again")
        })?;
        let id = |text: &str| tokenizer.token_to_id(text);
        let needed = |text: &str, or: Option<u32>| {
            id(text).or(or).ok_or_else(|| wrong(dir, format!("its tokenizer has no {text}; it is no Whisper model")))
        };
        let eot = needed("<|endoftext|>", rules.eot)?;
        let sot = needed("<|startoftranscript|>", rules.sot)?;
        let no_timestamps = needed("<|notimestamps|>", rules.no_timestamps)?;
        // Older files keep the timestamps out of the tokenizer.
        let timestamp_begin = id("<|0.00|>").unwrap_or(no_timestamps + 1);
        let added = tokenizer.get_added_tokens_decoder();
        let highest = added.keys().copied().chain([timestamp_begin]).max().unwrap_or(0) as usize;
        if highest >= vocabulary || tokenizer.get_vocab_size(true) > vocabulary {
            return Err(wrong(
                dir,
                format!("its tokenizer goes up to {highest}, its network knows {vocabulary} tokens"),
            ));
        }
        let mut special = vec![false; vocabulary];
        for (id, token) in &added {
            special[*id as usize] |= token.special;
        }
        special[timestamp_begin as usize..].fill(true);
        special[eot as usize] = true;

        let mut languages: Vec<(String, u32)> = Vec::new();
        if rules.multilingual {
            let codes = added.iter().filter_map(|(id, token)| Some((language_code(&token.content)?.to_owned(), *id)));
            languages.extend(codes);
            languages.sort_by_key(|(_, id)| *id);
            if languages.is_empty() {
                return Err(wrong(dir, "it is multilingual, and its tokenizer names no language"));
            }
        }
        let (transcribe, translate) = (id("<|transcribe|>"), id("<|translate|>"));
        let (sop, no_speech) = (id("<|startofprev|>"), id("<|nospeech|>").or_else(|| id("<|nocaptions|>")));
        let in_vocabulary = |ids: &[u32]| ids.iter().copied().filter(|id| (*id as usize) < vocabulary).collect();
        let control = [Some(sot), transcribe, translate, sop, no_speech, id("<|startoflm|>")];
        let suppress = rules.suppress.clone().unwrap_or_else(|| control.into_iter().flatten().collect());
        Ok(Tokens {
            eot,
            sot,
            sop,
            no_speech,
            no_timestamps,
            timestamp_begin,
            transcribe,
            translate,
            languages,
            special,
            suppress: in_vocabulary(&suppress),
            begin_suppress: in_vocabulary(&rules.begin_suppress),
            tokenizer,
        })
    }

    /// The text of tokens; what is no text among them is left out.
    pub(super) fn text(&self, ids: &[u32]) -> Result<String> {
        let is_text = |id: &u32| !self.special.get(*id as usize).copied().unwrap_or(true);
        let ids: Vec<u32> = ids.iter().copied().filter(is_text).collect();
        self.tokenizer.decode(&ids, false).map_err(|error| Error::internal(format!("tokens without a text: {error}")))
    }

    /// Of a text given by a person, as it would stand in a transcript.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode(format!(" {}", text.trim()), false)
            .map_err(|error| Error::invalid(format!("the prompt cannot be read: {error}")))?;
        let mut ids = encoding.get_ids().to_vec();
        // A prompt that spells a control token is not one.
        ids.retain(|id| !self.special.get(*id as usize).copied().unwrap_or(true));
        Ok(ids)
    }

    /// The token of a language code; None for a model of English alone, which takes none.
    pub(super) fn language(&self, code: &str) -> Result<Option<u32>> {
        if self.languages.is_empty() {
            return match code {
                "en" => Ok(None),
                _ => Err(Error::new(Kind::Unsupported, "this model understands English alone")
                    .hint("ask for en or auto, or choose a multilingual model")),
            };
        }
        let found = self.languages.iter().find(|(name, _)| name == code);
        found.map(|(_, id)| Some(*id)).ok_or_else(|| {
            Error::invalid(format!("this model does not know the language {code}"))
                .hint("give a code such as es or en, or auto")
        })
    }

    /// The tokens that say what is wanted: `sot lang task notimestamps`.
    pub(super) fn task(&self, language: Option<u32>, translate: bool, timestamps: bool) -> Result<Vec<u32>> {
        let mut prompt = vec![self.sot];
        if let Some(language) = language {
            let task = if translate { self.translate } else { self.transcribe };
            prompt.extend([language, task.ok_or_else(|| cannot("translate or transcribe on demand"))?]);
        } else if translate {
            return Err(cannot("translate"));
        }
        if !timestamps {
            prompt.push(self.no_timestamps);
        }
        Ok(prompt)
    }
}

fn cannot(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("this model cannot {what}")).hint("choose a multilingual model")
}

/// `es` of `<|es|>`: two or three small letters; no control token is so short.
fn language_code(token: &str) -> Option<&str> {
    let code = token.strip_prefix("<|")?.strip_suffix("|>")?;
    let is_code = (2..=3).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase());
    is_code.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_from_control_tokens() {
        assert_eq!(language_code("<|es|>"), Some("es"));
        assert_eq!(language_code("<|yue|>"), Some("yue"));
        for other in ["<|0.00|>", "<|transcribe|>", "<|endoftext|>", "es", "<|E1|>"] {
            assert_eq!(language_code(other), None);
        }
    }

    #[test]
    fn a_tokenizer_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let rules = TokenRules::default();
        assert!(Tokens::read(dir.path(), &rules, 100).is_err());
        for text in ["", "{}", "{\"model\": 3}"] {
            std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
            let Err(error) = Tokens::read(dir.path(), &rules, 100) else { panic!("read {text:?}") };
            assert!(error.full().contains("tokenizer.json"), "{}", error.full());
        }
    }
}
