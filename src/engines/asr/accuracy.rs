//! How far a text is from what was said: the word error rate, as benches and tests state it.

/// What it takes to make one text of the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WordErrors {
    pub substituted: usize,
    pub missing: usize,
    pub added: usize,
    /// Words that were said.
    pub words: usize,
}

impl WordErrors {
    /// The fewest errors. Case and punctuation do not count; accents do.
    pub fn between(said: &str, understood: &str) -> WordErrors {
        let (said, understood) = (plain(said), plain(understood));
        let (said, understood): (Vec<&str>, Vec<&str>) =
            (said.split_whitespace().collect(), understood.split_whitespace().collect());
        // One row of the table of edit distances; each entry says how it was reached.
        let mut row: Vec<WordErrors> =
            (0..=understood.len()).map(|added| WordErrors { added, ..WordErrors::default() }).collect();
        for (number, word) in said.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = WordErrors { missing: number + 1, ..WordErrors::default() };
            for (at, other) in understood.iter().enumerate() {
                let above = row[at + 1];
                let substituted = diagonal.substituted + usize::from(word != other);
                let same = WordErrors { substituted, ..diagonal };
                let missing = WordErrors { missing: above.missing + 1, ..above };
                let added = WordErrors { added: row[at].added + 1, ..row[at] };
                let best = [missing, added]
                    .into_iter()
                    .fold(same, |best, it| if it.count() < best.count() { it } else { best });
                diagonal = above;
                row[at + 1] = best;
            }
        }
        WordErrors { words: said.len(), ..row.pop().unwrap_or_default() }
    }

    pub fn count(&self) -> usize {
        self.substituted + self.missing + self.added
    }

    /// Errors for each word that was said. Where nothing was said, each word that was understood is one too many.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.words.max(1) as f64
    }
}

impl std::ops::AddAssign for WordErrors {
    /// Of a whole set: long texts weigh more.
    fn add_assign(&mut self, other: WordErrors) {
        self.substituted += other.substituted;
        self.missing += other.missing;
        self.added += other.added;
        self.words += other.words;
    }
}

/// Lower case, letters and digits alone, one space between words. An apostrophe within a word is a part of it.
pub(super) fn plain(text: &str) -> String {
    let lower = text.to_lowercase().replace('’', "'");
    let spaced: String =
        lower.chars().map(|letter| if letter.is_alphanumeric() || letter == '\'' { letter } else { ' ' }).collect();
    let words = spaced.split_whitespace().map(|word| word.trim_matches('\'')).filter(|word| !word.is_empty());
    words.collect::<Vec<&str>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(said: &str, understood: &str) -> [usize; 4] {
        let WordErrors { substituted, missing, added, words } = WordErrors::between(said, understood);
        [substituted, missing, added, words]
    }

    #[test]
    fn each_kind_of_error_is_counted() {
        assert_eq!(errors("¿Cómo llego a la estación?", " como  llego a la Estación"), [1, 0, 0, 5]);
        assert_eq!(errors("La pantalla dice quince, quince y nueve.", "la pantalla dice quince y nueve"), [0, 1, 0, 7]);
        assert_eq!(errors("uno dos", "uno y dos tres"), [0, 0, 2, 2]);
        assert_eq!(errors("uno dos tres", "cuatro"), [1, 2, 0, 3]);
        assert_eq!(errors("don’t go, 'now'", "Don't go now"), [0, 0, 0, 3]);
    }

    #[test]
    fn silence_that_stays_silent_is_right() {
        assert_eq!(WordErrors::between("", " … ").rate(), 0.0);
        assert_eq!(WordErrors::between("", "gracias por ver").rate(), 3.0);
        assert_eq!(WordErrors::between("hola", "").rate(), 1.0);
    }

    #[test]
    fn a_set_weighs_each_word_alike() {
        let mut all = WordErrors::between("a b c d e f g h i", "a b c d e f g h i");
        all += WordErrors::between("a", "b");
        assert!((all.rate() - 0.1).abs() < 1e-9);
    }
}
