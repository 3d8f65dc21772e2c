//! What a model and its files may be called. Names come from hubs, archives and files of users, and become paths: none
//! may lead out of the model's own folder, onto what Vigía keeps there itself, or into an address.

use crate::base::{Error, Result};

/// Fits the name of a member of an archive, beside the model's own name.
const MAX_PATH: usize = 150;
const MAX_PART: usize = 100;
const MAX_NAME: usize = 64;
/// Ends the name of a file that is not whole yet, before what tells its content.
const PART: &str = ".part-";
const PART_DIGITS: usize = 16;

/// A folder below the models' folder: `whisper-tiny`.
pub(crate) fn safe_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= MAX_NAME && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!("`{}` is no name of a model: letters, digits, `-`, `_` and `.`", shown(name))))
}

/// A file below the model's folder: `onnx/model.onnx`.
pub(crate) fn safe_path(path: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+ ()=,@".contains(c);
    // A leading dot is `..`, or a file of our own such as the lock.
    let part_is_safe =
        |part: &str| (1..=MAX_PART).contains(&part.len()) && !part.starts_with(['.', ' ']) && part.chars().all(plain);
    if path.len() <= MAX_PATH && path.split('/').all(part_is_safe) {
        return Ok(());
    }
    Err(Error::invalid(format!("`{}` is no safe name of a file of a model", shown(path))))
}

/// What a file is called while it comes. The name says which content it is a part of, so that nothing is resumed with
/// another revision's rest.
pub(crate) fn part_of(path: &str, content: &str) -> String {
    let content: String = content.chars().chain(std::iter::repeat('0')).take(PART_DIGITS).collect();
    format!("{path}{PART}{content}")
}

/// The file that this is a part of.
pub(crate) fn whole_of(path: &str) -> Option<&str> {
    let (whole, content) = path.rsplit_once(PART)?;
    let is_content = content.len() == PART_DIGITS && content.chars().all(|c| c.is_ascii_alphanumeric());
    is_content.then_some(whole)
}

/// Hostile names may be long and hold control characters.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "../up",
            "a/../b",
            "a//b",
            "a/",
            ".vigia-lock.json",
            "a/.hidden",
            "a\\b",
            "a\0b",
            "a\nb",
            "http://x/y",
            "a?b",
            "a%2e",
            &"a".repeat(101),
            &"a/".repeat(90),
        ] {
            assert!(safe_path(path).is_err(), "{path:?}");
        }
        for name in ["", ".", "..", ".x", "a/b", "-rf", "a b", &"a".repeat(65)] {
            assert!(safe_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_part_is_told_from_a_file_of_the_model() {
        let part = part_of("onnx/model.onnx_data", "0123456789abcdef0123");
        assert_eq!(part, "onnx/model.onnx_data.part-0123456789abcdef");
        assert_eq!(whole_of(&part), Some("onnx/model.onnx_data"));
        assert_eq!(whole_of(&part_of("a", "main")), Some("a"), "however short the name of a revision is");
        for path in ["a", "a.part-1", "a.part-01234567-9abcdef", "a.part-0123456789abcdef.onnx"] {
            assert_eq!(whole_of(path), None, "{path}");
        }
    }

    #[test]
    fn names_of_models_as_they_are_pass() {
        for path in ["config.json", "onnx/model_q4.onnx_data_1", "voices/af_heart.bin", "tokenizer_2/vocab.json"] {
            safe_path(path).unwrap();
        }
        safe_name("qwen2.5-0.5b-instruct").unwrap();
    }
}
