//! Which language a session is in that left it to the model: decided by its first words, kept against doubtful ones, and
//! changed where a segment clearly is in another.
//!
//! What is remembered is one number, how far the segments so far speak for the language (log odds, with a ceiling: old
//! evidence must not outweigh a person who goes over to another language). It is worked out from what was published of
//! each segment alone, so a session that is recovered goes on as if it had not been broken off.

/// What a caller says who leaves it to the model.
const AUTO: &str = "auto";
/// A segment this long counts in full; shorter ones say less ("no" is a word of many languages).
const FULL_WEIGHT_SECS: f64 = 2.0;
/// One segment's log odds count no more than this, and no less than its negative: models are sure of themselves.
const MOST_ODDS: f64 = 4.0;
/// Ceiling of the conviction: a whole segment that gives the session's language less than 12 % changes it.
const CONVINCED: f64 = 2.0;
/// A language that the model gives less than this takes no other's place.
const CLEAR: f32 = 0.5;

/// A language, and how likely the model finds it.
pub type Likelihood = (String, f32);

#[derive(Debug, Clone, PartialEq)]
pub struct SessionLanguage {
    asked: String,
    /// The language that was decided on, with the conviction.
    decided: Option<(String, f64)>,
}

impl SessionLanguage {
    pub fn new(asked: &str) -> SessionLanguage {
        SessionLanguage { asked: asked.to_owned(), decided: None }
    }

    /// Its client is another by now, and may name a language or leave it to the model.
    pub fn set_asked(&mut self, asked: &str) {
        asked.clone_into(&mut self.asked);
    }

    /// What to ask an engine for.
    pub fn asked(&self) -> &str {
        &self.asked
    }

    /// Until how low a likelihood the session's language stays, in a segment of that length; None where the model is to
    /// decide alone, or nothing is to be decided.
    pub fn leaning(&self, secs: f64) -> Option<Likelihood> {
        let (language, conviction) = self.decided.as_ref().filter(|_| self.asked == AUTO)?;
        let odds = conviction / weight(secs);
        // Beyond that no segment of this length says enough against it.
        let least = if odds < MOST_ODDS { 1.0 / (1.0 + odds.exp()) } else { 0.0 };
        Some((language.clone(), least as f32))
    }

    /// The language of a segment, with its likelihood. `likely`: as the model heard it, the likeliest first; None where it
    /// had nothing to decide.
    pub fn choose(&self, likely: &[Likelihood], secs: f64) -> Option<Likelihood> {
        let best = likely.first().filter(|_| self.asked == AUTO)?;
        let Some((decided, conviction)) = &self.decided else { return Some(best.clone()) };
        let likelihood = likely.iter().find(|(language, _)| language == decided).map_or(0.0, |(_, it)| *it);
        let doubted = conviction + evidence(likelihood, secs) < 0.0;
        let stays = !doubted || best.1 <= CLEAR || best.0 == *decided;
        Some(if stays { (decided.clone(), likelihood) } else { best.clone() })
    }

    /// A segment was published, in a language and with the likelihood that `choose` gave.
    pub fn published(&mut self, language: &str, likelihood: f32, secs: f64) {
        if self.asked != AUTO || language.is_empty() {
            return;
        }
        let before = match self.decided.take() {
            Some((decided, conviction)) if decided == language => conviction,
            _ => 0.0,
        };
        self.decided = Some((language.to_owned(), (before + evidence(likelihood, secs)).clamp(0.0, CONVINCED)));
    }
}

fn weight(secs: f64) -> f64 {
    (secs / FULL_WEIGHT_SECS).clamp(0.05, 1.0)
}

/// What a segment says for (or against) a language.
fn evidence(likelihood: f32, secs: f64) -> f64 {
    let likelihood = f64::from(likelihood).clamp(0.0, 1.0);
    let odds = (likelihood / (1.0 - likelihood)).ln().clamp(-MOST_ODDS, MOST_ODDS);
    weight(secs) * odds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Spanish and English, and a third for the rest.
    fn likely(es: f32, en: f32) -> Vec<Likelihood> {
        let mut all = vec![("es".to_owned(), es), ("en".to_owned(), en), ("pt".to_owned(), (1.0 - es - en).max(0.0))];
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    fn heard(session: &mut SessionLanguage, likely: &[Likelihood], secs: f64) -> String {
        let (language, likelihood) = session.choose(likely, secs).unwrap();
        session.published(&language, likelihood, secs);
        language
    }

    #[test]
    fn a_language_that_was_asked_for_is_never_decided() {
        let mut session = SessionLanguage::new("es");
        assert_eq!((session.choose(&likely(0.1, 0.9), 3.0), session.leaning(3.0)), (None, None));
        session.published("en", 0.9, 3.0);
        assert_eq!((session.asked(), session.leaning(3.0)), ("es", None));
    }

    #[test]
    fn the_first_words_decide_and_doubtful_ones_change_nothing() {
        let mut session = SessionLanguage::new("auto");
        assert_eq!(session.leaning(3.0), None);
        assert_eq!(heard(&mut session, &likely(0.9, 0.05), 3.0), "es");
        for _ in 0..2 {
            assert_eq!(heard(&mut session, &likely(0.4, 0.55), 2.0), "es");
        }
        // A short word of many languages, however sure the model is.
        assert_eq!(heard(&mut session, &likely(0.02, 0.97), 0.4), "es");
        // No language is clear.
        assert_eq!(heard(&mut session, &likely(0.06, 0.45), 9.0), "es");
    }

    #[test]
    fn a_clear_segment_or_many_doubtful_ones_change_it() {
        let mut session = SessionLanguage::new("auto");
        heard(&mut session, &likely(0.99, 0.0), 4.0);
        assert_eq!(heard(&mut session, &likely(0.05, 0.94), 2.5), "en");
        assert_eq!(heard(&mut session, &likely(0.98, 0.01), 2.5), "es", "and back");
        let changes = (0..20).find(|_| heard(&mut session, &likely(0.3, 0.65), 2.0) == "en");
        assert!(changes.is_some_and(|at| at > 0), "{changes:?}");
    }

    #[test]
    fn a_first_word_that_was_misheard_is_soon_mended() {
        let mut session = SessionLanguage::new("auto");
        assert_eq!(heard(&mut session, &likely(0.35, 0.6), 0.4), "en");
        assert_eq!(heard(&mut session, &likely(0.8, 0.15), 2.0), "es");
    }

    proptest! {
        #[test]
        fn what_is_published_is_all_that_is_remembered(
            segments in prop::collection::vec((0.0..1.0f32, 0.1..9.0f64), 1..20),
        ) {
            let mut session = SessionLanguage::new("auto");
            let mut again = SessionLanguage::new("auto");
            for (es, secs) in segments {
                let likely = likely(es, 1.0 - es);
                let leaning = session.leaning(secs);
                let (language, likelihood) = session.choose(&likely, secs).unwrap();
                // An engine that is told the leaning comes to the same.
                if let Some((decided, least)) = leaning && (es - 0.5).abs() > 1e-3 {
                    let own = likely.iter().find(|it| it.0 == decided).map_or(0.0, |it| it.1);
                    if (own - least).abs() > 1e-4 {
                        prop_assert_eq!(language == decided, own >= least || likely[0].0 == decided);
                    }
                }
                session.published(&language, likelihood, secs);
                again.published(&language, likelihood, secs);
                prop_assert_eq!(&session, &again);
            }
        }
    }
}
