//! From tokens with times to words with times.
//!
//! Knows no model: what a token reads as comes in as a function, because a token may be half a character. The rules that
//! tidy up times follow the reference's, but for one, which says so.

use super::SegmentText;
use crate::{base::Result, flow::Word};

/// Written without spaces: each character that is whole is a word.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];

/// Is a text of that language written without spaces?
pub(super) fn is_without_spaces(language: &str) -> bool {
    WITHOUT_SPACES.contains(&language)
}

/// ASCII's. Stands alone until it is joined to its word.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Belongs to the word after it.
const OPENING: &str = "\"'“¿([{-";
/// Belongs to the word before it.
const CLOSING: &str = "\"'.。,，!！?？:：”)]}、";
const SENTENCE_ENDS: [char; 6] = ['.', '。', '!', '！', '?', '？'];

/// No median of durations above this is believed.
const LONGEST_MEDIAN_SECS: f64 = 0.7;

/// A token of text, and when it is spoken, in seconds from the start of its piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TimedToken {
    pub(super) id: u32,
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) probability: f32,
    /// The second that it listened to most, where that was asked for.
    pub(super) attends_to: Option<f64>,
}

/// A word with the number of its tokens. Its text keeps the space before it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimedWord {
    text: String,
    tokens: usize,
    start: f64,
    end: f64,
    probability: f32,
    /// The latest of its tokens.
    attends_to: Option<f64>,
}

/// The words of a text in that language. `read` makes text of tokens, with U+FFFD where bytes are no UTF-8.
pub(super) fn words(
    tokens: &[TimedToken],
    language: &str,
    mut read: impl FnMut(&[u32]) -> Result<String>,
) -> Result<Vec<TimedWord>> {
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let mut words: Vec<TimedWord> = Vec::new();
    let mut first = 0;
    for (text, count) in whole_characters(&ids, &mut read)? {
        let tokens = &tokens[first..first + count];
        first += count;
        let alone = is_without_spaces(language) || text.starts_with(' ') || PUNCTUATION.contains(text.trim());
        let word = TimedWord {
            text,
            tokens: count,
            start: tokens[0].start,
            end: tokens[count - 1].end,
            probability: tokens.iter().map(|token| token.probability).sum::<f32>() / count as f32,
            attends_to: tokens.iter().filter_map(|token| token.attends_to).reduce(f64::max),
        };
        match words.last_mut() {
            Some(before) if !alone => before.append(word),
            _ => words.push(word),
        }
    }
    Ok(words)
}

/// The shortest runs of tokens that read as whole characters, in order.
fn whole_characters(ids: &[u32], read: &mut impl FnMut(&[u32]) -> Result<String>) -> Result<Vec<(String, usize)>> {
    const BROKEN: char = char::REPLACEMENT_CHARACTER;
    let all: Vec<char> = read(ids)?.chars().collect();
    let mut runs = Vec::new();
    let (mut first, mut characters) = (0, 0);
    for end in 1..=ids.len() {
        let text = read(&ids[first..end])?;
        // Broken here and in the whole text: the model itself wrote bytes that are no character.
        let whole = match text.chars().position(|character| character == BROKEN) {
            None => true,
            Some(at) => all.get(characters + at) == Some(&BROKEN),
        };
        if whole || end == ids.len() {
            characters += text.chars().count();
            runs.push((text, end - first));
            first = end;
        }
    }
    Ok(runs)
}

impl TimedWord {
    /// Joins the word that follows to this one.
    fn append(&mut self, next: TimedWord) {
        let (own, others) = (self.tokens as f32, next.tokens as f32);
        self.probability = (self.probability * own + next.probability * others) / (own + others);
        self.text.push_str(&next.text);
        self.tokens += next.tokens;
        self.end = next.end;
        self.attends_to = [self.attends_to, next.attends_to].into_iter().flatten().reduce(f64::max);
    }
}

/// Gives the words of a piece to its segments, whose text tokens they cover in order. `end_token` and above are no text.
pub(super) fn share_out(words: Vec<TimedWord>, segments: &mut [SegmentText], end_token: u32) {
    let mut words = join_punctuation(words).into_iter();
    for segment in segments {
        let wanted = segment.tokens.iter().filter(|token| **token < end_token).count();
        let mut taken = 0;
        segment.words.clear();
        segment.attends_to.clear();
        while taken < wanted {
            let Some(word) = words.next() else { break };
            taken += word.tokens;
            segment.attends_to.extend(word.attends_to);
            segment.words.push(word.into());
        }
    }
}

impl From<TimedWord> for Word {
    fn from(word: TimedWord) -> Word {
        Word { start: word.start, end: word.end, text: word.text.trim().to_owned(), probability: word.probability }
    }
}

/// Joined punctuation adds text and tokens; the time and the probability stay those of the word.
fn join_punctuation(words: Vec<TimedWord>) -> Vec<TimedWord> {
    // From the end, so that several marks before a word all reach it.
    let mut opened: Vec<TimedWord> = Vec::with_capacity(words.len());
    for mut word in words.into_iter().rev() {
        match opened.last_mut() {
            Some(next) if word.text.starts_with(' ') && OPENING.contains(word.text.trim()) => {
                word.text.push_str(&next.text);
                next.text = word.text;
                next.tokens += word.tokens;
            }
            _ => opened.push(word),
        }
    }
    let mut joined: Vec<TimedWord> = Vec::with_capacity(opened.len());
    for word in opened.into_iter().rev() {
        match joined.last_mut() {
            Some(before) if !before.text.ends_with(' ') && CLOSING.contains(&*word.text) => {
                before.text.push_str(&word.text);
                before.tokens += word.tokens;
            }
            _ => joined.push(word),
        }
    }
    joined
}

/// Makes words and segments of one window agree. Words are found by what the model listened to, and it listens to a pause
/// as well: the words beside one are far too long. `last_speech` is the second at which speech ended before the window.
pub(super) fn tidy(segments: &mut [SegmentText], mut last_speech: f64) {
    let median = median_secs(segments.iter().flat_map(|segment| &segment.words)).min(LONGEST_MEDIAN_SECS);
    let mut ended_sentence = false;
    for segment in segments.iter_mut().filter(|segment| !segment.words.is_empty()) {
        for word in &mut segment.words {
            // The pause after a sentence went to the first word of the next.
            if ended_sentence && median > 0.0 {
                word.start = word.start.max(word.end - 2.0 * median);
            }
            ended_sentence = word.text.ends_with(SENTENCE_ENDS);
        }
        shorten_after_pause(&mut segment.words, median, last_speech);
        agree(segment);
        last_speech = segment.end;
    }
}

fn median_secs<'a>(words: impl Iterator<Item = &'a Word>) -> f64 {
    let mut durations: Vec<f64> = words.map(|word| word.end - word.start).filter(|secs| *secs > 0.0).collect();
    durations.sort_by(f64::total_cmp);
    match durations.len() {
        0 => 0.0,
        count if count % 2 == 1 => durations[count / 2],
        count => (durations[count / 2 - 1] + durations[count / 2]) / 2.0,
    }
}

/// The first two words after a pause are no longer than words are.
fn shorten_after_pause(words: &mut [Word], median: f64, last_speech: f64) {
    let longest = 2.0 * median;
    let first = &words[0];
    let both_long = words.get(1).is_some_and(|second| second.end - first.start > 2.0 * longest);
    if first.end - last_speech <= 4.0 * median || !(first.end - first.start > longest || both_long) {
        return;
    }
    if let Some(second) = words.get_mut(1).filter(|second| second.end - second.start > longest) {
        let boundary = (second.end / 2.0).max(second.end - longest);
        second.start = boundary;
        words[0].end = boundary;
    }
    words[0].start = (words[0].end - longest).max(0.0);
}

/// A segment's own times are the model's word for where speech begins and ends, where it gives any. The path of the
/// attention must begin with the window, so the first word always does: within a word the segment's time is believed
/// (the reference lets a word be half a second off), and a segment ends with its words.
fn agree(segment: &mut SegmentText) {
    if let Some(first) = segment.words.first_mut() {
        if (first.start..first.end).contains(&segment.start) {
            first.start = segment.start;
        }
        segment.start = first.start;
    }
    if let Some(last) = segment.words.last_mut() {
        if last.start < segment.end && segment.end < last.end {
            last.end = segment.end;
        }
        segment.end = last.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 1000;

    /// Each token is bytes; a token of id `i` reads as `table[i]`.
    fn read<'a>(table: &'a [&'a [u8]]) -> impl FnMut(&[u32]) -> Result<String> + 'a {
        |ids| {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| table[*id as usize]).copied().collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    /// Tokens one after the other, 0.1 s each.
    fn tokens(count: u32) -> Vec<TimedToken> {
        (0..count)
            .map(|id| {
                let start = f64::from(id) / 10.0;
                TimedToken { id, start, end: start + 0.1, probability: 0.5, attends_to: Some(start + 0.05) }
            })
            .collect()
    }

    fn texts(words: &[TimedWord]) -> Vec<&str> {
        words.iter().map(|word| &*word.text).collect()
    }

    fn word(text: &str, start: f64, end: f64) -> TimedWord {
        TimedWord { text: text.to_owned(), tokens: 1, start, end, probability: 1.0, attends_to: Some(end) }
    }

    fn segment(start: f64, end: f64, tokens: usize) -> SegmentText {
        let text_tokens = std::iter::once(END + 5).chain(std::iter::repeat_n(7, tokens)).chain([END + 9]);
        SegmentText { start, end, tokens: text_tokens.collect(), ..SegmentText::default() }
    }

    #[test]
    fn tokens_join_to_words_at_spaces() {
        let table: [&[u8]; 6] = [b" Bue", b"nos", " d\u{ed}".as_bytes(), b"as", b".", b" S\xc3"];
        let words = words(&tokens(6), "es", read(&table)).unwrap();
        assert_eq!(texts(&words), [" Buenos", " días", ".", " S\u{fffd}"]);
        assert_eq!((words[0].start, words[0].end, words[0].tokens), (0.0, 0.2, 2));
        assert!(words[0].attends_to.is_some_and(|secs| (secs - 0.15).abs() < 1e-9), "its last token's");
    }

    #[test]
    fn a_character_in_several_tokens_is_one_piece() {
        let table: [&[u8]; 4] = [b" a\xc3", b"\xb1", b"o", b" \xe2\x82"];
        let words = words(&tokens(4), "es", read(&table)).unwrap();
        assert_eq!(texts(&words), [" año", " \u{fffd}"]);
        assert_eq!((words[0].tokens, words[1].tokens), (3, 1));
    }

    #[test]
    fn languages_without_spaces_are_cut_at_characters() {
        let table: [&[u8]; 4] = ["今日".as_bytes(), b"\xe3\x81", b"\xaf", "。".as_bytes()];
        let pieces = |language: &str| {
            texts(&words(&tokens(4), language, read(&table)).unwrap())
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(pieces("ja"), ["今日", "は", "。"]);
        assert_eq!(pieces("yue"), ["今日", "は", "。"]);
        assert_eq!(pieces("es"), ["今日は。"]);
    }

    #[test]
    fn bytes_that_are_no_character_cost_no_word() {
        let table: [&[u8]; 4] = [b" uno", b"\xff", b"\xfe", b" dos"];
        let words = words(&tokens(4), "es", read(&table)).unwrap();
        assert_eq!(words.iter().map(|word| word.tokens).sum::<usize>(), 4);
        assert_eq!(words.last().map(|word| &*word.text), Some(" dos"));
        assert!(super::words(&[], "es", read(&[])).unwrap().is_empty());
    }

    #[test]
    fn punctuation_joins_its_word_and_leaves_its_times() {
        let words = ["Dijo", " ¿", "qué", "?", "”", " -", " y", ","].map(|text| word(text, 0.0, 0.1)).to_vec();
        let joined = join_punctuation(words);
        assert_eq!(texts(&joined), ["Dijo", " ¿qué?”", " - y,"]);
        assert_eq!(joined.iter().map(|word| word.tokens).collect::<Vec<_>>(), [1, 4, 3]);
    }

    #[test]
    fn words_go_to_the_segments_whose_tokens_they_cover() {
        let words = vec![word(" uno", 0.0, 0.2), word(" dos", 0.2, 0.4), word(".", 0.4, 0.4), word(" tres", 0.4, 0.6)];
        let mut segments = [segment(0.0, 0.4, 3), segment(0.4, 0.6, 1), segment(0.6, 0.7, 1)];
        share_out(words, &mut segments, END);
        let all: Vec<Vec<&str>> = segments.iter().map(|it| it.words.iter().map(|word| &*word.text).collect()).collect();
        assert_eq!(all, [vec!["uno", "dos."], vec!["tres"], vec![]]);
        assert_eq!((segments[0].start, segments[0].words[1].end), (0.0, 0.4), "times are left as they are");
        assert_eq!(segments[0].attends_to, [0.2, 0.4]);
    }

    fn spoken(start: f64, end: f64, words: &[(&str, f64, f64)]) -> SegmentText {
        let words = words.iter().map(|(text, start, end)| Word::from(word(text, *start, *end)));
        SegmentText { words: words.collect(), ..segment(start, end, 0) }
    }

    fn times(segment: &SegmentText) -> Vec<(f64, f64)> {
        let cents = |secs: f64| (secs * 100.0).round() / 100.0;
        segment.words.iter().map(|word| (cents(word.start), cents(word.end))).collect()
    }

    #[test]
    fn a_pause_after_a_sentence_belongs_to_no_word() {
        let mut segments = [spoken(0.0, 4.4, &[("a", 0.0, 0.2), ("b.", 0.2, 0.4), ("c", 0.4, 4.2), ("d", 4.2, 4.4)])];
        tidy(&mut segments, 0.0);
        assert_eq!(times(&segments[0]), [(0.0, 0.2), (0.2, 0.4), (3.8, 4.2), (4.2, 4.4)]);
    }

    #[test]
    fn the_first_words_after_a_pause_are_no_longer_than_words_are() {
        let mut segments = [spoken(0.0, 3.6, &[("a", 0.0, 3.0), ("b", 3.0, 3.2), ("c", 3.2, 3.4), ("d", 3.4, 3.6)])];
        tidy(&mut segments, 0.0);
        assert_eq!(times(&segments[0])[0], (2.6, 3.0));
        assert_eq!(segments[0].start, segments[0].words[0].start);
        // Speech before has just ended: somebody draws a word out.
        let mut drawn = [spoken(0.0, 3.6, &[("a", 0.0, 0.7), ("b", 0.7, 0.9), ("c", 0.9, 1.1)])];
        tidy(&mut drawn, 0.0);
        assert_eq!(times(&drawn[0])[0], (0.0, 0.7));
    }

    #[test]
    fn the_models_own_times_cut_the_words_at_a_segments_edges() {
        let mut segments =
            [spoken(0.5, 0.9, &[("a", 0.0, 0.6), ("b", 0.6, 1.4)]), spoken(2.0, 3.0, &[("c", 1.4, 1.6)])];
        tidy(&mut segments, 0.0);
        assert_eq!(times(&segments[0]), [(0.5, 0.6), (0.6, 0.9)]);
        assert_eq!((segments[0].start, segments[0].end), (0.5, 0.9));
        // Where they do not meet at all, the words are believed.
        assert_eq!((segments[1].start, segments[1].end), (1.4, 1.6));
    }

    #[test]
    fn segments_without_words_keep_their_times() {
        let mut segments = [segment(1.0, 2.0, 3)];
        tidy(&mut segments, 0.0);
        assert_eq!(segments, [segment(1.0, 2.0, 3)]);
        tidy(&mut [], 0.0);
    }
}
