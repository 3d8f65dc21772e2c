//! What of a text that is still being spoken may be committed: shown as it will stay.
//!
//! Each time the open segment has been read anew, the machine is given the reading; it says what to show, the committed
//! part first. Two rules:
//!
//! - *Local agreement* of two: what two readings in a row begin with. The last word waits for its successor, for where
//!   audio is cut off a word may be half, or made up.
//! - *Attention* (AlignAtt): words that listen to a moment well before the end of the audio, at once. Only where the model
//!   tells what it listens to; else the first rule serves.
//!
//! What is committed never changes: it is a prefix, letter by letter, of every later text of the segment, the final one
//! included. Knows no model and no time of day.

use std::ops::Range;

use super::wording::{Wording, letters, wordings};

/// Attention that goes back further than this from one word to the next has lost its place.
const LOST_PLACE_SECS: f64 = 4.0;

/// Which words may be committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CommitRule {
    Agreement,
    /// Words that listen to the last so many seconds of the audio wait.
    Attention {
        margin_secs: f64,
    },
}

/// One reading of the open segment. Seconds count from its start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    pub text: String,
    pub language: String,
    /// How much audio it was made of.
    pub heard_secs: f64,
    /// The words of the text, where the model tells their times.
    pub words: Vec<ReadWord>,
    /// The model itself does not trust it: nothing is committed on its word.
    pub doubted: bool,
}

/// A word of a reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadWord {
    pub text: String,
    pub end: f64,
    /// The moment that it listens to most.
    pub attends_to: Option<f64>,
}

/// What to show of the open segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    pub text: String,
    /// Begins the text, and every later one.
    pub committed: String,
}

/// How a final text goes with what was committed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It begins with it.
    Same,
    /// The words are the same; their spelling or punctuation was kept as committed.
    Spelling,
    /// It says something else: the committed words were kept.
    Words,
}

/// Of one segment.
#[derive(Debug, Clone)]
pub struct Committer {
    rule: CommitRule,
    committed: String,
    keys: Vec<String>,
    before: Option<Read>,
}

/// A reading laid beside what was committed.
#[derive(Debug, Clone)]
struct Read {
    reading: Reading,
    words: Vec<Timed>,
    /// The first word that is not committed.
    open: usize,
}

/// A word of the text, with what the model's words over it tell.
#[derive(Debug, Clone)]
struct Timed {
    word: Wording,
    end: Option<f64>,
    attends_to: Option<f64>,
}

impl Committer {
    pub fn new(rule: CommitRule) -> Committer {
        Committer { rule, committed: String::new(), keys: Vec::new(), before: None }
    }

    /// Of a segment of which that was committed before a crash. What was read of it is lost, and no more of it is committed
    /// on the word of a reading that nobody remembers.
    pub fn resumed(rule: CommitRule, committed: String) -> Committer {
        let keys = wordings(&committed).into_iter().map(|word| word.key).collect();
        Committer { rule, committed, keys, before: None }
    }

    pub fn committed(&self) -> &str {
        &self.committed
    }

    /// Takes the next reading. `cut_after_secs`: the segment may still be cut there, and words behind it become another
    /// segment's; None while it may not.
    pub fn read(&mut self, reading: Reading, cut_after_secs: Option<f64>) -> Shown {
        let read = self.lay_beside(reading);
        let may = self.committable(&read, cut_after_secs);
        let text = self.joined(&read.reading.text, &read.words, read.open);
        let committed = match may.is_empty() {
            true => self.committed.clone(),
            false => self.joined(&read.reading.text[..read.words[may.end - 1].word.end], &read.words, read.open),
        };
        self.keys.extend(read.words[may.clone()].iter().map(|it| it.word.key.clone()));
        self.committed.clone_from(&committed);
        if !read.reading.doubted && self.has_grown(&read) {
            self.before = Some(Read { open: may.end, ..read });
        } else if let Some(before) = &mut self.before {
            before.open += may.len();
        }
        Shown { text, committed }
    }

    /// The final text, which begins with what was committed whatever the final reading says.
    pub fn settle(&self, text: &str) -> (String, Fit) {
        if text.starts_with(&self.committed) {
            return (text.to_owned(), Fit::Same);
        }
        let words: Vec<Timed> = wordings(text).into_iter().map(Timed::from).collect();
        let open = self.matched(&words);
        let same = open == self.keys.len() && self.keys.iter().zip(&words).all(|(key, it)| *key == it.word.key);
        (self.joined(text, &words, open), if same { Fit::Spelling } else { Fit::Words })
    }

    /// The same audio read twice agrees with itself, and says nothing.
    fn has_grown(&self, read: &Read) -> bool {
        const LEAST_SECS: f64 = 0.1;
        self.before.as_ref().is_none_or(|it| read.reading.heard_secs >= it.reading.heard_secs + LEAST_SECS)
    }

    fn lay_beside(&self, reading: Reading) -> Read {
        let words = timed(&reading);
        let open = self.matched(&words);
        Read { words, open, reading }
    }

    /// How many of the words say what is committed: those that are nearest to it. The same audio was read again, so where
    /// nothing is alike it is as many words.
    fn matched(&self, words: &[Timed]) -> usize {
        let committed = self.keys.len();
        // The distance between all that is committed and the first words, by their number.
        let mut row: Vec<usize> = (0..=words.len()).collect();
        for (number, key) in self.keys.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = number + 1;
            for (at, it) in words.iter().enumerate() {
                let substituted = diagonal + usize::from(it.word.key != *key);
                diagonal = row[at + 1];
                row[at + 1] = substituted.min(diagonal + 1).min(row[at] + 1);
            }
        }
        let nearest = (0..row.len()).min_by_key(|count| (row[*count], count.abs_diff(committed)));
        nearest.unwrap_or_default()
    }

    /// What is committed, then the text behind its first `open` words.
    fn joined(&self, text: &str, words: &[Timed], open: usize) -> String {
        let from = open.checked_sub(1).and_then(|last| words.get(last)).map_or(0, |it| it.word.end);
        let rest = &text[from..];
        if self.committed.is_empty() {
            return rest.to_owned();
        }
        let space = if from == 0 && !rest.is_empty() && !rest.starts_with(' ') { " " } else { "" };
        format!("{}{space}{rest}", self.committed)
    }

    /// Which words may be committed now.
    fn committable(&self, read: &Read, cut_after: Option<f64>) -> Range<usize> {
        let nothing = read.open..read.open;
        if read.reading.doubted {
            return nothing;
        }
        let attended = read.words[read.open..].iter().all(|it| it.attends_to.is_some());
        let (end, heard_secs) = match self.rule {
            CommitRule::Attention { margin_secs } if attended => (read.attended(margin_secs), read.reading.heard_secs),
            _ => match &self.before {
                Some(before) if before.reading.language == read.reading.language && self.has_grown(read) => {
                    (read.agreed(before), before.reading.heard_secs)
                }
                _ => return nothing,
            },
        };
        // Words of the segment alone: either they are known to end before the place of a cut, or no audio was behind it.
        let before_cut =
            |it: &Timed| cut_after.is_none_or(|cut| heard_secs <= cut || it.end.is_some_and(|end| end <= cut));
        let end = (read.open..end).find(|at| !before_cut(&read.words[*at])).unwrap_or(end);
        read.open..end
    }
}

impl Read {
    /// Up to where both say the same, the last word left out unless it has surely been heard to its end.
    fn agreed(&self, before: &Read) -> usize {
        // How long a word must have been over to be whole.
        const OVER_SECS: f64 = 0.3;
        let pairs = self.words[self.open..].iter().zip(before.words.get(before.open..).unwrap_or_default());
        let same = pairs.take_while(|(it, other)| it.word.key == other.word.key).count();
        let end = self.open + same;
        let is_last = end == self.words.len() && same > 0;
        let over = |it: &Timed| it.end.is_some_and(|end| end + OVER_SECS <= self.reading.heard_secs);
        if is_last && !over(&self.words[end - 1]) { end - 1 } else { end }
    }

    /// Up to the first word that listens to the end of the audio, or has lost its place.
    fn attended(&self, margin_secs: f64) -> usize {
        let until = self.reading.heard_secs - margin_secs;
        let mut last = f64::NEG_INFINITY;
        for (at, it) in self.words.iter().enumerate().skip(self.open) {
            let moment = it.attends_to.unwrap_or(f64::INFINITY);
            if moment > until || moment < last - LOST_PLACE_SECS {
                return at;
            }
            last = moment;
        }
        self.words.len()
    }
}

impl From<Wording> for Timed {
    fn from(word: Wording) -> Timed {
        Timed { word, end: None, attends_to: None }
    }
}

/// Lays the model's words over those of the text, by their letters: it cuts at other places, and joins marks.
fn timed(reading: &Reading) -> Vec<Timed> {
    let mut words: Vec<Timed> = wordings(&reading.text).into_iter().map(Timed::from).collect();
    let told: Vec<usize> = reading.words.iter().map(|it| letters(&it.text)).collect();
    let all: usize = words.iter().map(|it| it.word.key.chars().count()).sum();
    if told.iter().sum::<usize>() != all {
        return words;
    }
    let mut theirs = reading.words.iter().zip(told);
    let (mut covered, mut spoken) = (0, 0);
    let mut current = None;
    for it in &mut words {
        spoken += it.word.key.chars().count();
        while covered < spoken {
            let Some((word, letters)) = theirs.next() else { break };
            covered += letters;
            if letters > 0 {
                current = Some(word);
            }
        }
        it.end = current.map(|word: &ReadWord| word.end);
        it.attends_to = current.and_then(|word| word.attends_to);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(text: &str, heard_secs: f64) -> Reading {
        Reading { text: text.to_owned(), language: "es".to_owned(), heard_secs, ..Reading::default() }
    }

    /// Each word with its end and what it listens to.
    fn told(words: &[(&str, f64, f64)], heard_secs: f64) -> Reading {
        let text = words.iter().map(|(text, ..)| *text).collect::<Vec<_>>().join(" ");
        let words = words.iter().map(|(text, end, moment)| ReadWord {
            text: (*text).to_owned(),
            end: *end,
            attends_to: Some(*moment),
        });
        Reading { words: words.collect(), ..reading(&text, heard_secs) }
    }

    #[test]
    fn what_was_committed_before_a_crash_is_gone_on_from() {
        let mut it = Committer::resumed(CommitRule::Agreement, "La pantalla, dice".to_owned());
        let shown = it.read(reading("la pantalla dice quince y", 4.0), None);
        assert_eq!((&*shown.committed, &*shown.text), ("La pantalla, dice", "La pantalla, dice quince y"));
        assert_eq!(it.read(reading("la pantalla dice quince y", 5.0), None).committed, "La pantalla, dice quince");
    }

    fn agreement() -> Committer {
        Committer::new(CommitRule::Agreement)
    }

    /// Each time there is more audio than before.
    fn committed(committer: &mut Committer, text: &str) -> String {
        let heard_secs = committer.before.as_ref().map_or(0.0, |before| before.reading.heard_secs) + 1.0;
        let Shown { text, committed } = committer.read(reading(text, heard_secs), None);
        assert!(text.starts_with(&committed), "{committed:?} does not begin {text:?}");
        committed
    }

    #[test]
    fn what_two_readings_begin_with_is_committed_but_for_the_last_word() {
        let mut it = agreement();
        assert_eq!(committed(&mut it, "La pan"), "");
        assert_eq!(committed(&mut it, "La pantalla."), "La");
        assert_eq!(committed(&mut it, "La pantalla dice"), "La pantalla");
        assert_eq!(committed(&mut it, "La pantalla, dice quince"), "La pantalla, dice");
        assert_eq!(it.read(reading("La pantalla. Dice quince y", 9.0), None).text, "La pantalla, dice quince y");
        assert_eq!(it.committed(), "La pantalla, dice quince");
    }

    #[test]
    fn a_last_word_that_is_long_over_is_whole() {
        let mut it = agreement();
        it.read(told(&[("hola", 0.4, 0.3), ("Ana", 0.9, 0.8)], 1.0), None);
        assert_eq!(it.read(told(&[("Hola", 0.4, 0.3), ("Ana.", 0.9, 0.8)], 1.3), None).committed, "Hola Ana");
    }

    #[test]
    fn a_reading_that_shrinks_is_silent_or_is_doubted_takes_nothing_back() {
        let mut it = agreement();
        for text in ["uno dos tres cuatro", "uno dos tres cuatro"] {
            committed(&mut it, text);
        }
        assert_eq!(it.read(reading("uno", 3.0), None).text, "uno dos tres");
        assert_eq!(it.read(reading("", 3.0), None).text, "uno dos tres");
        let doubted = Reading { doubted: true, ..reading("gracias gracias gracias gracias", 3.0) };
        for _ in 0..2 {
            let shown = it.read(doubted.clone(), None);
            assert_eq!((&*shown.text, &*shown.committed), ("uno dos tres gracias", "uno dos tres"));
        }
        assert_eq!(
            committed(&mut it, "uno dos tres cuatro cinco"),
            "uno dos tres",
            "the last that was trusted is silence"
        );
    }

    #[test]
    fn the_same_audio_read_twice_says_nothing_new() {
        let mut it = agreement();
        for _ in 0..3 {
            assert_eq!(it.read(reading("uno dos tres", 2.0), None).committed, "");
        }
        assert_eq!(it.read(reading("uno dos tres", 2.5), None).committed, "uno dos");
    }

    #[test]
    fn readings_of_two_languages_agree_in_nothing() {
        let mut it = agreement();
        it.read(reading("no, no", 1.0), None);
        let other = Reading { language: "en".to_owned(), ..reading("no, no more", 1.5) };
        assert_eq!(it.read(other, None).committed, "");
    }

    #[test]
    fn words_that_may_become_another_segments_wait() {
        let mut it = agreement();
        it.read(reading("uno dos tres", 2.0), None);
        assert_eq!(it.read(reading("uno dos tres", 3.0), Some(1.0)).committed, "", "the audio went over the place");
        assert_eq!(it.read(reading("uno dos tres", 4.0), Some(3.5)).committed, "uno dos");
        let timed = |heard| told(&[("uno", 0.5, 0.4), ("dos", 1.0, 0.9), ("tres", 1.5, 1.4)], heard);
        let mut it = agreement();
        it.read(timed(2.0), Some(1.2));
        assert_eq!(it.read(timed(3.0), Some(1.2)).committed, "uno dos");
    }

    #[test]
    fn attention_commits_at_once_what_listens_well_before_the_end() {
        let mut it = Committer::new(CommitRule::Attention { margin_secs: 0.5 });
        let words = [("La", 0.2, 0.1), ("pantalla", 0.8, 0.5), ("di", 1.2, 0.9)];
        let shown = it.read(told(&words, 1.2), None);
        assert_eq!((shown.committed.as_str(), shown.text.as_str()), ("La pantalla", "La pantalla di"));
        // What listens to a moment long past has lost its place, and so has all behind it.
        let words = [("La", 0.2, 0.1), ("pantalla", 0.8, 0.5), ("dice", 6.0, 5.5), ("La", 6.2, 0.1), ("x", 6.2, 5.9)];
        assert_eq!(it.read(told(&words, 9.0), None).committed, "La pantalla dice");
        // A model that does not tell what it listens to is asked twice.
        let mut silent = Committer::new(CommitRule::Attention { margin_secs: 0.5 });
        assert_eq!(committed(&mut silent, "uno dos"), "");
        assert_eq!(committed(&mut silent, "uno dos"), "uno");
    }

    #[test]
    fn the_models_words_are_laid_over_those_of_the_text() {
        let mut reading = told(&[("Dijo:", 0.2, 0.1), ("-¿qué?", 0.5, 0.4), ("l'amie", 0.9, 0.8)], 1.0);
        reading.text = "Dijo: - ¿qué? l'amie".to_owned();
        let ends = |reading: &Reading| timed(reading).iter().map(|it| it.end).collect::<Vec<_>>();
        assert_eq!(ends(&reading), [Some(0.2), Some(0.5), Some(0.9)]);
        // Times of another text are none of this one's.
        reading.text.push_str(" más");
        assert_eq!(ends(&reading), [None; 4]);
    }

    #[test]
    fn a_final_text_keeps_what_was_committed() {
        let mut it = agreement();
        for text in ["la pantalla dice quince", "la pantalla dice quince"] {
            committed(&mut it, text);
        }
        let settled = |text: &str| it.settle(text);
        assert_eq!(settled("la pantalla dice quince."), ("la pantalla dice quince.".to_owned(), Fit::Same));
        assert_eq!(settled("La pantalla, dice 15."), ("la pantalla dice 15.".to_owned(), Fit::Spelling));
        assert_eq!(settled("La pantalla es nueva."), ("la pantalla dice nueva.".to_owned(), Fit::Words));
        assert_eq!(settled("Y la pantalla dice quince."), ("la pantalla dice quince.".to_owned(), Fit::Words));
        assert_eq!(settled(""), ("la pantalla dice".to_owned(), Fit::Words));
        assert_eq!(agreement().settle(" cualquier cosa").1, Fit::Same);
    }

    /// Texts of a few words, spelt in several ways, so that readings agree and disagree often.
    fn texts() -> impl Strategy<Value = String> {
        let word =
            prop::sample::select(vec!["uno", "Uno", "dos,", "dos.", "¿tres?", "tres", "-", "今日", "año", "año…"]);
        prop::collection::vec(word, 0..8).prop_map(|words| words.join(" "))
    }

    fn readings() -> impl Strategy<Value = Reading> {
        let times = prop::option::of(prop::collection::vec((0.0..9.0f64, 0.0..9.0f64), 8));
        (texts(), 0.0..9.0f64, times, prop::bool::weighted(0.1), prop::bool::weighted(0.2)).prop_map(
            |(text, heard_secs, times, doubted, english)| {
                let words = times.map_or_else(Vec::new, |times| {
                    let words = text.split(' ').zip(times);
                    words
                        .map(|(text, (end, moment))| ReadWord { text: text.to_owned(), end, attends_to: Some(moment) })
                        .collect()
                });
                let language = if english { "en" } else { "es" }.to_owned();
                Reading { text, language, heard_secs, words, doubted }
            },
        )
    }

    proptest! {
        #[test]
        fn committed_text_is_never_revised(
            readings in prop::collection::vec(
                (readings(), prop::option::of(0.0..9.0f64), prop::bool::weighted(0.2)), 1..12,
            ),
            last in texts(),
            attention in any::<bool>(),
        ) {
            let rule = if attention { CommitRule::Attention { margin_secs: 0.5 } } else { CommitRule::Agreement };
            let mut committer = Committer::new(rule);
            let mut before = String::new();
            for (reading, cut, crashes) in readings {
                if crashes {
                    let resumed = Committer::resumed(rule, before.clone());
                    prop_assert_eq!(&resumed.keys, &committer.keys);
                    committer = resumed;
                }
                let shown = committer.read(reading, cut);
                prop_assert!(shown.committed.starts_with(&before), "{before:?} became {:?}", shown.committed);
                prop_assert!(shown.text.starts_with(&shown.committed), "{shown:?}");
                before = shown.committed;
            }
            let (text, fit) = committer.settle(&last);
            prop_assert!(text.starts_with(&before), "{before:?} does not begin {text:?}");
            prop_assert_eq!(fit == Fit::Same, last.starts_with(&before));
        }

        #[test]
        fn readings_that_only_grow_are_committed_word_by_word_and_the_final_text_is_left_alone(
            words in prop::collection::vec("[a-z]{1,5}[,.]?", 1..12),
        ) {
            let mut committer = agreement();
            for count in 1..=words.len() {
                let shown = committer.read(reading(&words[..count].join(" "), count as f64), None);
                prop_assert_eq!(shown.text, words[..count].join(" "));
                let whole = wordings(&shown.committed).len();
                prop_assert_eq!(whole, count - 1, "{:?}", shown.committed);
            }
            let text = words.join(" ");
            prop_assert_eq!(committer.settle(&text), (text.clone(), Fit::Same));
        }
    }
}
