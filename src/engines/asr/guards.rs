//! Guards against text that nobody said. Recognisers of Whisper's kind go on writing where there is no speech: they
//! repeat themselves, or write what subtitles end with.
//!
//! Looks at texts and times alone. That only speech is asked for, the first guard, is `longform`'s.

use std::{collections::HashSet, sync::LazyLock};

use super::{PieceText, SegmentText, accuracy::plain, words::is_without_spaces};
use crate::flow::Word;

/// Which guards stand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guards {
    /// Cut what a model says again and again.
    pub repetition: bool,
    /// Drop phrases that models are known to write into silence. Only where the model itself is in doubt, or the pace
    /// is nobody's: people do thank each other for watching.
    pub phrases: bool,
    /// Skip silence of this length around words that are hardly words. Needs the times of words. None, as in the
    /// reference: real speech with long pauses may look like it.
    pub silence_secs: Option<f64>,
}

impl Guards {
    pub const NONE: Guards = Guards { repetition: false, phrases: false, silence_secs: None };
}

impl Default for Guards {
    fn default() -> Guards {
        Guards { repetition: true, phrases: true, ..Guards::NONE }
    }
}

/// What is left of one segment of live speech: loops are cut, and phrases left out that nobody said. Each segment by itself,
/// so that what it says does not depend on what is remembered of others.
pub fn guarded(mut pieces: Vec<PieceText>) -> Vec<PieceText> {
    for PieceText { language, segments, .. } in &mut pieces {
        let mut guard = Guard::new(Guards::default());
        let heard = std::mem::take(segments).into_iter();
        *segments = heard.filter_map(|segment| guard.pass(segment, language).segment).collect();
    }
    pieces
}

/// Watches the segments of one recording go by.
#[derive(Debug)]
pub(super) struct Guard {
    guards: Guards,
    last: String,
    /// How often it was said in a row.
    times: usize,
}

#[derive(Debug, PartialEq)]
pub(super) struct Passed {
    pub(super) segment: Option<SegmentText>,
    /// The model went round in circles.
    pub(super) looped: bool,
}

impl Guard {
    pub(super) fn new(guards: Guards) -> Guard {
        Guard { guards, last: String::new(), times: 0 }
    }

    pub(super) fn pass(&mut self, mut segment: SegmentText, language: &str) -> Passed {
        let mut looped = false;
        if self.guards.repetition {
            looped = cut_loops(&mut segment, language);
            if self.is_said_again(&segment.text) {
                return Passed { segment: None, looped: true };
            }
        }
        let hallucinated = self.guards.phrases && is_doubtful(&segment) && is_known_phrase(&segment.text, language);
        Passed { segment: (!hallucinated).then_some(segment), looped }
    }

    /// More often in a row than people say it.
    fn is_said_again(&mut self, text: &str) -> bool {
        let text = plain(text);
        if text.is_empty() || text != self.last {
            (self.last, self.times) = (text, 1);
            return false;
        }
        self.times += 1;
        // Several may agree with a "sí" in turn; nobody says a sentence three times.
        let often = if self.last.split(' ').count() >= 3 { 2 } else { 5 };
        self.times > often
    }
}

/// The longest run of words that is looked for as a loop.
const LONGEST_LOOP: usize = 16;

/// A run of that many words said as often as this in a row is a loop. Laughter and cheers repeat a word or two.
fn loops_from(words: usize) -> usize {
    match words {
        1 => 10,
        2 => 6,
        _ => 4,
    }
}

/// Leaves each loop's first turn. True if there was one.
fn cut_loops(segment: &mut SegmentText, language: &str) -> bool {
    let spaced = !is_without_spaces(language);
    // Words with times, if there are, so that both stay in step.
    let units: Vec<String> = if !segment.words.is_empty() {
        segment.words.iter().map(|word| word.text.clone()).collect()
    } else if spaced {
        segment.text.split_whitespace().map(str::to_owned).collect()
    } else {
        segment.text.trim().chars().map(String::from).collect()
    };
    let keys: Vec<String> = units.iter().map(|unit| plain(unit)).collect();
    let kept = without_loops(&keys);
    if kept.len() == units.len() {
        return false;
    }
    let texts: Vec<&str> = kept.iter().map(|at| &*units[*at]).collect();
    segment.text = texts.join(if spaced { " " } else { "" });
    if !segment.words.is_empty() {
        segment.words = kept.iter().map(|at| segment.words[*at].clone()).collect();
        segment.end = segment.words.last().map_or(segment.end, |word| word.end);
    }
    true
}

/// The indexes that are left when of each loop only the first turn stays.
fn without_loops(keys: &[String]) -> Vec<usize> {
    let mut kept = Vec::with_capacity(keys.len());
    let mut at = 0;
    while at < keys.len() {
        let turns_of = |length: usize| {
            let (first, rest) = keys[at..].split_at(length);
            1 + rest.chunks_exact(length).take_while(|turn| *turn == first).count()
        };
        let longest = LONGEST_LOOP.min(keys.len() - at);
        let found = (1..=longest)
            .map(|length| (length, turns_of(length)))
            .find(|(length, turns)| *turns >= loops_from(*length));
        let (length, turns) = found.unwrap_or((1, 1));
        kept.extend(at..at + length);
        at += length * turns;
    }
    kept
}

/// Not even the model is sure, or nobody speaks so fast or so slowly.
fn is_doubtful(segment: &SegmentText) -> bool {
    let words = plain(&segment.text).split(' ').count() as f64;
    let secs = segment.end - segment.start;
    let possible = secs > 0.0 && (0.5..=7.0).contains(&(words / secs));
    segment.no_speech_probability > 0.3 || segment.avg_logprob < -0.5 || segment.temperature > 0.0 || !possible
}

static PHRASES: LazyLock<HashSet<(&str, String)>> = LazyLock::new(|| {
    let lines = include_str!("phrases.txt").lines().filter(|line| !line.starts_with('#'));
    let phrases = lines.filter_map(|line| line.split_once(' '));
    phrases
        .map(|(language, phrase)| {
            (language, format!("{}{}", plain(phrase), if phrase.ends_with('…') { "…" } else { "" }))
        })
        .collect()
});

fn is_known_phrase(text: &str, language: &str) -> bool {
    let text = plain(text);
    let ends = text.match_indices(' ').map(|(at, _)| at).chain([text.len()]);
    PHRASES.contains(&(language, text.clone()))
        || ends.into_iter().any(|end| PHRASES.contains(&(language, format!("{}…", &text[..end]))))
}

/// One window as the rule of silence sees it, in seconds of the recording.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    pub(super) window_start: f64,
    /// Where its audio ends.
    pub(super) window_end: f64,
    /// Where it would end if the recording did not.
    pub(super) full_window_end: f64,
    pub(super) recording_end: f64,
    /// Where the last word before it ended.
    pub(super) last_speech: f64,
}

/// A gap at an edge of the window that is shorter than this proves nothing.
const EDGE_SECS: f64 = 2.0;

impl Silence {
    /// Takes out what looks like words made of silence, with all behind it; says from where to go on.
    pub(super) fn cut(&self, segments: &mut Vec<SegmentText>, limit: f64) -> Option<f64> {
        // 1. The window begins with a long silence and then nonsense: begin where the nonsense does.
        if let Some(first) = segments.iter().find(|segment| !segment.words.is_empty())
            && is_anomaly(first)
            && first.start - self.window_start > limit
        {
            let start = first.start;
            segments.clear();
            return Some(start);
        }
        // 2. Nonsense between silences, or before more nonsense.
        let mut last_end = self.last_speech;
        for at in 0..segments.len() {
            let segment = &segments[at];
            if segment.words.is_empty() {
                continue;
            }
            if is_anomaly(segment) {
                let next = segments[at + 1..].iter().find(|next| !next.words.is_empty());
                let next_start = next.map_or(self.window_end, |next| next.words[0].start);
                let silent_before = segment.start - last_end > limit
                    || segment.start < limit
                    || segment.start - self.window_start < EDGE_SECS;
                let silent_after = next_start - segment.end > limit
                    || next.is_some_and(is_anomaly)
                    || self.full_window_end - segment.end < EDGE_SECS;
                if silent_before && silent_after {
                    let is_last = self.recording_end - segment.end < limit;
                    let from = if is_last { self.recording_end } else { segment.start.max(self.window_start + 1.0) };
                    segments.truncate(at);
                    return Some(from);
                }
            }
            last_end = segment.end;
        }
        None
    }
}

/// Most of its first words are unlikely, or shorter or longer than words are.
fn is_anomaly(segment: &SegmentText) -> bool {
    let words: Vec<&Word> = segment.words.iter().filter(|word| !plain(&word.text).is_empty()).take(8).collect();
    if segment.words.is_empty() {
        return false;
    }
    let score: f64 = words.iter().map(|word| anomaly(word)).sum();
    score >= 3.0 || score + 0.01 >= words.len() as f64
}

fn anomaly(word: &Word) -> f64 {
    let secs = word.end - word.start;
    let unlikely = if word.probability < 0.15 { 1.0 } else { 0.0 };
    unlikely + (0.133 - secs).max(0.0) * 15.0 + (secs - 2.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(text: &str) -> SegmentText {
        SegmentText { start: 0.0, end: 3.0, text: text.to_owned(), avg_logprob: -0.2, ..SegmentText::default() }
    }

    fn passes(text: &str, language: &str) -> Option<String> {
        Guard::new(Guards::default()).pass(segment(text), language).segment.map(|segment| segment.text)
    }

    #[test]
    fn a_loop_keeps_its_first_turn() {
        let looped = format!("Vamos a ver. {}y ya.", "Y eso es todo, ".repeat(6));
        assert_eq!(passes(&looped, "es").as_deref(), Some("Vamos a ver. Y eso es todo, y ya."));
        assert_eq!(passes(&"no ".repeat(30), "es").as_deref(), Some("no"));
        assert_eq!(passes(&"谢谢你".repeat(5), "zh").as_deref(), Some("谢谢你"));
        assert!(Guard::new(Guards::default()).pass(segment(&"a b c ".repeat(4)), "es").looped);
    }

    #[test]
    fn what_people_repeat_stays() {
        for text in
            ["No, no, no, no. Quince, quince y nueve.", "ja ja ja ja ja", "uno dos tres uno dos tres uno dos tres", ""]
        {
            assert_eq!(passes(text, "es").as_deref(), Some(text));
        }
    }

    #[test]
    fn a_loop_takes_its_words_along() {
        let mut looped = segment("");
        looped.words = (0..40u8)
            .map(|at| {
                let start = f64::from(at) / 10.0;
                let text = ["va", "a", "ser", "así"][usize::from(at) % 4].to_owned();
                Word { start, end: start + 0.1, text, probability: 0.9 }
            })
            .collect();
        let passed = Guard::new(Guards::default()).pass(looped, "es").segment.unwrap();
        assert_eq!((&*passed.text, passed.words.len(), passed.end), ("va a ser así", 4, 0.4));
    }

    #[test]
    fn a_sentence_said_again_and_again_ends() {
        let mut guard = Guard::new(Guards::default());
        let mut count =
            |text: &str, turns: usize| (0..turns).filter(|_| guard.pass(segment(text), "es").segment.is_some()).count();
        assert_eq!(count("Esto es una prueba.", 9), 2);
        assert_eq!(count("Sí.", 9), 5);
        assert_eq!(count("Esto es una prueba.", 1), 1);
    }

    #[test]
    fn known_phrases_go_only_where_they_are_doubtful() {
        let phrase = "¡Gracias por ver el vídeo!";
        assert_eq!(passes(phrase, "es").as_deref(), Some(phrase));
        let doubtful = [
            SegmentText { no_speech_probability: 0.5, ..segment(phrase) },
            SegmentText { avg_logprob: -0.8, ..segment(phrase) },
            SegmentText { end: 30.0, ..segment(phrase) },
            SegmentText { end: 0.1, ..segment(phrase) },
        ];
        for segment in doubtful {
            let pass = |language: &str| Guard::new(Guards::default()).pass(segment.clone(), language).segment;
            assert_eq!(pass("es"), None);
            assert!(pass("en").is_some(), "each language has its own");
            assert!(Guard::new(Guards::NONE).pass(segment.clone(), "es").segment.is_some());
        }
        let credits = SegmentText { avg_logprob: -0.8, ..segment("Subtítulos por Juan Pérez.") };
        assert_eq!(Guard::new(Guards::default()).pass(credits, "es").segment, None);
        let spoken = SegmentText { avg_logprob: -0.8, ..segment("Gracias por ver a mi madre.") };
        assert!(Guard::new(Guards::default()).pass(spoken, "es").segment.is_some());
    }

    fn spoken(start: f64, end: f64, probability: f32) -> SegmentText {
        let secs = (end - start) / 4.0;
        let words = (0..4u8).map(|at| {
            let from = start + f64::from(at) * secs;
            Word { start: from, end: from + secs, text: "hola".to_owned(), probability }
        });
        SegmentText { start, end, text: "hola".into(), words: words.collect(), ..SegmentText::default() }
    }

    const SILENCE: Silence =
        Silence { window_start: 0.0, window_end: 30.0, full_window_end: 30.0, recording_end: 100.0, last_speech: 0.0 };

    #[test]
    fn silence_before_nonsense_is_skipped() {
        let mut segments = vec![spoken(10.0, 12.0, 0.05), spoken(13.0, 15.0, 0.9)];
        assert_eq!(SILENCE.cut(&mut segments, 2.0), Some(10.0));
        assert!(segments.is_empty());
    }

    #[test]
    fn nonsense_between_silences_goes_with_all_behind_it() {
        let speech = spoken(0.5, 3.0, 0.9);
        let mut segments = vec![speech.clone(), spoken(10.0, 12.0, 0.05), spoken(20.0, 22.0, 0.9)];
        assert_eq!(SILENCE.cut(&mut segments, 2.0), Some(10.0));
        assert_eq!(segments, std::slice::from_ref(&speech));

        let mut last = vec![speech.clone(), spoken(10.0, 12.0, 0.05)];
        assert_eq!(Silence { recording_end: 13.0, window_end: 13.0, ..SILENCE }.cut(&mut last, 2.0), None);
        let mut last = vec![speech, spoken(10.0, 12.0, 0.05)];
        assert_eq!(Silence { recording_end: 12.5, window_end: 15.0, ..SILENCE }.cut(&mut last, 2.0), Some(12.5));
    }

    #[test]
    fn speech_and_segments_without_words_are_left_alone() {
        let mut segments =
            vec![spoken(5.0, 8.0, 0.9), segment("sin tiempos"), spoken(9.0, 11.0, 0.05), spoken(11.5, 14.0, 0.9)];
        let before = segments.clone();
        assert_eq!(SILENCE.cut(&mut segments, 2.0), None);
        assert_eq!(segments, before);
        assert_eq!(SILENCE.cut(&mut Vec::new(), 2.0), None);
    }

    #[test]
    fn every_line_of_the_list_is_read() {
        let lines = include_str!("phrases.txt").lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let (language, phrase) = line.split_once(' ').unwrap();
            assert!(language.len() == 2 && is_known_phrase(&phrase.replace('…', " tal"), language), "{line}");
        }
    }
}
