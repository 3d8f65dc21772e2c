//! The one language of a recording, from what its first windows sound like.

use crate::engines::asr::PieceText;

/// What a caller says who leaves it to the model.
const AUTO: &str = "auto";
/// A model that gives a language more than this is believed at once.
const BELIEVED: f32 = 0.5;

/// Decides after `windows` at the latest.
#[derive(Debug)]
pub(super) struct Language {
    asked: String,
    windows: usize,
    heard: Vec<(String, f32)>,
    settled: Option<(String, f32)>,
}

impl Language {
    pub(super) fn new(asked: &str, windows: usize) -> Language {
        let settled = (asked != AUTO).then(|| (asked.to_owned(), 1.0));
        Language { asked: asked.to_owned(), windows, heard: Vec::new(), settled }
    }

    /// What to ask the engine for.
    pub(super) fn ask(&self) -> &str {
        self.settled().unwrap_or(&self.asked)
    }

    pub(super) fn settled(&self) -> Option<&str> {
        self.settled.as_ref().map(|(language, _)| &**language)
    }

    pub(super) fn probability(&self) -> f32 {
        self.settled.as_ref().map_or(0.0, |(_, probability)| *probability)
    }

    /// Takes the next window's answer.
    pub(super) fn hear(&mut self, text: &PieceText) {
        if self.settled.is_some() {
            return;
        }
        // A model of one language is as sure of it as can be.
        let probability = text.language_probabilities.first().map_or(1.0, |(_, probability)| *probability);
        self.heard.push((text.language.clone(), probability));
        if probability > BELIEVED {
            self.settled = Some((text.language.clone(), probability));
        } else if self.heard.len() >= self.windows {
            self.settle();
        }
    }

    /// No window follows: what most of those heard say, and of equals the surest.
    pub(super) fn settle(&mut self) {
        if self.settled.is_some() {
            return;
        }
        let votes = |language: &str| self.heard.iter().filter(|(heard, _)| heard == language).count();
        let best =
            self.heard.iter().max_by(|(a, sure_a), (b, sure_b)| votes(a).cmp(&votes(b)).then(sure_a.total_cmp(sure_b)));
        self.settled = best.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(language: &str, probability: f32) -> PieceText {
        PieceText {
            language: language.to_owned(),
            language_probabilities: vec![(language.to_owned(), probability)],
            ..PieceText::default()
        }
    }

    #[test]
    fn a_language_that_was_asked_for_stays() {
        let mut language = Language::new("es", 4);
        language.hear(&heard("en", 0.99));
        assert_eq!((language.ask(), language.settled(), language.probability()), ("es", Some("es"), 1.0));
    }

    #[test]
    fn a_sure_window_decides_at_once() {
        let mut language = Language::new("auto", 4);
        language.hear(&heard("cy", 0.4));
        assert_eq!((language.ask(), language.settled()), ("auto", None));
        language.hear(&heard("es", 0.9));
        assert_eq!((language.ask(), language.probability()), ("es", 0.9));
    }

    #[test]
    fn else_the_most_windows_decide_and_of_equals_the_surest() {
        let mut language = Language::new("auto", 4);
        for (code, probability) in [("en", 0.3), ("es", 0.2), ("pt", 0.45), ("es", 0.25)] {
            language.hear(&heard(code, probability));
        }
        assert_eq!((language.settled(), language.probability()), (Some("es"), 0.25));

        let mut two = Language::new("auto", 4);
        two.hear(&heard("en", 0.3));
        two.hear(&heard("es", 0.4));
        two.settle();
        assert_eq!(two.settled(), Some("es"));
        let mut none = Language::new("auto", 4);
        none.settle();
        assert_eq!(none.settled(), None);
    }
}
