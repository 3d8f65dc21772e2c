//! A text as words that can be compared, each with where it ends in the text. Knows no language: which scripts are written
//! without spaces is read off the letters.

/// A word: as it is compared, and where it ends in its text. Marks behind it (a comma, a closing bracket) are not its own:
/// they change as long as it is not known what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wording {
    /// Small letters and digits alone.
    pub(super) key: String,
    /// In bytes of the text.
    pub(super) end: usize,
}

/// The words of a text, in order. What holds no letter and no digit is no word.
pub(super) fn wordings(text: &str) -> Vec<Wording> {
    let mut words: Vec<Wording> = Vec::new();
    let mut open = false;
    for (at, letter) in text.char_indices() {
        let end = at + letter.len_utf8();
        if is_mark(letter) {
            if let Some(word) = words.last_mut() {
                word.key.push(letter);
                word.end = end;
            }
        } else if letter.is_alphanumeric() {
            if !open || is_unspaced(letter) {
                words.push(Wording { key: String::new(), end });
            }
            open = !is_unspaced(letter);
            if let Some(word) = words.last_mut() {
                word.key.extend(letter.to_lowercase());
                word.end = end;
            }
        } else if letter.is_whitespace() {
            open = false;
        }
        // Other marks within a word ("l'amie", "3.5", "bien-être") part it from nothing.
    }
    words
}

/// Letters of a text, as far as they are compared: by these, words of another count can be laid over a text.
pub(super) fn letters(text: &str) -> usize {
    wordings(text).iter().map(|word| word.key.chars().count()).sum()
}

/// Thai, Lao, Burmese, Khmer, Japanese, Chinese: each letter counts as a word.
fn is_unspaced(letter: char) -> bool {
    matches!(u32::from(letter),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF
        | 0x20000..=0x3FFFF)
}

/// Sits on the letter before it: an accent of its own, a vowel or a tone of Thai, Lao, Burmese or Khmer.
fn is_mark(letter: char) -> bool {
    matches!(u32::from(letter),
        0x0300..=0x036F | 0x0E31 | 0x0E34..=0x0E3A | 0x0E47..=0x0E4E | 0x0EB1 | 0x0EB4..=0x0EBC | 0x0EC8..=0x0ECE
        | 0x102B..=0x103E | 0x17B4..=0x17D3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(String, &str)> {
        let mut from = 0;
        let words = wordings(text).into_iter().map(|word| {
            let part = &text[from..word.end];
            from = word.end;
            (word.key, part)
        });
        words.collect()
    }

    fn owned(words: &[(&'static str, &'static str)]) -> Vec<(String, &'static str)> {
        words.iter().map(|(key, part)| ((*key).to_owned(), *part)).collect()
    }

    #[test]
    fn marks_behind_a_word_are_not_its_own() {
        let words = split(" ¿Qué, dice? - Quince… y l'amie, 3.5!");
        let expected = [
            ("qué", " ¿Qué"),
            ("dice", ", dice"),
            ("quince", "? - Quince"),
            ("y", "… y"),
            ("lamie", " l'amie"),
            ("35", ", 3.5"),
        ];
        assert_eq!(words, owned(&expected));
    }

    #[test]
    fn scripts_without_spaces_are_words_by_letter_and_vowels_stay_on_theirs() {
        assert_eq!(split("今日は。OK"), owned(&[("今", "今"), ("日", "日"), ("は", "は"), ("ok", "。OK")]));
        assert_eq!(split("กิน"), owned(&[("กิ", "กิ"), ("น", "น")]));
        assert_eq!(split("cafe\u{301} y"), owned(&[("cafe\u{301}", "cafe\u{301}"), ("y", " y")]));
    }

    #[test]
    fn nothing_to_compare_is_no_word() {
        assert_eq!(split(" … - ¿? "), []);
        assert_eq!((letters("¡Año 9!"), letters("…")), (4, 0));
    }
}
