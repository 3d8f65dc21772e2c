//! From tokens with times to words with times.
//!
//! Knows no model: what a token reads as comes in as a function, because a token may be half a character. The rules that
//! tidy up times are the reference's (contracts of Whisper, part 7).

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
const SENTENCE_ENDS: &str = ".。!！?？";

/// No median of durations above this is believed.
const LONGEST_MEDIAN_SECS: f64 = 0.7;
/// A segment's own time is taken where a word is off by more than this.
const BELIEVED_SECS: f64 = 0.5;

/// A token of text, and when it is spoken, in seconds from the start of its piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TimedToken {
    pub(super) id: u32,
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) probability: f32,
}

/// A word with the number of its tokens. Its text keeps the space before it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimedWord {
    text: String,
    tokens: usize,
    start: f64,
    end: f64,
    probability: f32,
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
    }

    fn secs(&self) -> f64 {
        self.end - self.start
    }
}

/// Gives the words of a piece to its segments, whose text tokens they cover in order, and tidies the times of both.
/// `end_token` and above are no text. `last_speech` is the second at which speech ended before the piece, counted from
/// its start; answers with where it ends now.
pub(super) fn share_out(
    mut words: Vec<TimedWord>,
    segments: &mut [SegmentText],
    end_token: u32,
    mut last_speech: f64,
) -> f64 {
    let median = median_secs(&words).min(LONGEST_MEDIAN_SECS);
    shorten_at_sentence_ends(&mut words, 2.0 * median);
    let mut words = join_punctuation(words).into_iter().peekable();
    for segment in segments {
        let wanted = segment.tokens.iter().filter(|token| **token < end_token).count();
        let (mut taken, mut own) = (0, Vec::new());
        while let Some(word) = words.next_if(|_| taken < wanted) {
            taken += word.tokens;
            own.push(word);
        }
        if !own.is_empty() {
            tidy(&mut own, segment, median, last_speech);
            last_speech = segment.end;
        }
        segment.words = own.into_iter().map(Word::from).collect();
    }
    last_speech
}

impl From<TimedWord> for Word {
    fn from(word: TimedWord) -> Word {
        Word { start: word.start, end: word.end, text: word.text.trim().to_owned(), probability: word.probability }
    }
}

fn median_secs(words: &[TimedWord]) -> f64 {
    let mut durations: Vec<f64> = words.iter().map(TimedWord::secs).filter(|secs| *secs != 0.0).collect();
    durations.sort_by(f64::total_cmp);
    match durations.len() {
        0 => 0.0,
        count if count % 2 == 1 => durations[count / 2],
        count => (durations[count / 2 - 1] + durations[count / 2]) / 2.0,
    }
}

/// The pause after a sentence goes to its mark or to the next word, which is then far too long.
fn shorten_at_sentence_ends(words: &mut [TimedWord], longest: f64) {
    if longest == 0.0 {
        return;
    }
    for i in 1..words.len() {
        if words[i].secs() > longest {
            if SENTENCE_ENDS.contains(&*words[i].text) {
                words[i].end = words[i].start + longest;
            } else if SENTENCE_ENDS.contains(&*words[i - 1].text) {
                words[i].start = words[i].end - longest;
            }
        }
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

/// Words at the edges of a segment swallow the pause beside it.
fn tidy(words: &mut [TimedWord], segment: &mut SegmentText, median: f64, last_speech: f64) {
    let longest = 2.0 * median;
    // 1. The first two words after a pause.
    let after_pause = words[0].end - last_speech > 4.0 * median;
    let second_end = words.get(1).map(|second| second.end);
    if after_pause && (words[0].secs() > longest || second_end.is_some_and(|end| end - words[0].start > 2.0 * longest))
    {
        if let Some(second) = words.get_mut(1).filter(|second| second.secs() > longest) {
            let boundary = (second.end / 2.0).max(second.end - longest);
            second.start = boundary;
            words[0].end = boundary;
        }
        words[0].start = (words[0].end - longest).max(0.0);
    }
    // 2. The segment's start is believed where the first word begins long before it.
    if segment.start < words[0].end && segment.start - BELIEVED_SECS > words[0].start {
        words[0].start = (words[0].end - median).min(segment.start).max(0.0);
    } else {
        segment.start = words[0].start;
    }
    // 3. So is its end where the last word goes on long after it.
    let last = &mut words[words.len() - 1];
    if segment.end > last.start && segment.end + BELIEVED_SECS < last.end {
        last.end = (last.start + median).max(segment.end);
    } else {
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
                TimedToken { id, start, end: start + 0.1, probability: 0.5 }
            })
            .collect()
    }

    fn texts(words: &[TimedWord]) -> Vec<&str> {
        words.iter().map(|word| &*word.text).collect()
    }

    fn word(text: &str, start: f64, end: f64) -> TimedWord {
        TimedWord { text: text.to_owned(), tokens: 1, start, end, probability: 1.0 }
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
        let mut segments = [segment(0.0, 0.4, 3), segment(0.4, 0.6, 1), segment(0.6, 0.7, 0)];
        let last = share_out(words, &mut segments, END, 0.0);
        let all: Vec<Vec<&str>> = segments.iter().map(|it| it.words.iter().map(|word| &*word.text).collect()).collect();
        assert_eq!(all, [vec!["uno", "dos."], vec!["tres"], vec![]]);
        assert_eq!((segments[0].start, segments[0].end, last), (0.0, 0.4, 0.6));
    }

    #[test]
    fn a_pause_at_a_sentence_end_belongs_to_no_word() {
        let mut words = vec![word(" a", 0.0, 0.2), word(".", 0.2, 2.0), word(" b", 2.0, 4.0), word(" c", 4.0, 4.2)];
        shorten_at_sentence_ends(&mut words, 0.4);
        assert_eq!((words[1].start, words[1].end), (0.2, 0.6000000000000001));
        assert_eq!((words[2].start, words[2].end), (3.6, 4.0));
    }

    #[test]
    fn the_first_words_after_a_pause_are_limited_and_edges_follow_the_segment() {
        let mut words = vec![word(" a", 0.0, 3.0), word(" b", 3.0, 3.2), word(" c", 3.2, 3.4)];
        let mut long = segment(2.6, 3.4, 3);
        tidy(&mut words, &mut long, 0.2, 0.0);
        assert_eq!((words[0].start, words[0].end), (2.6, 3.0));
        assert_eq!((long.start, long.end), (2.6, 3.4));

        // The last word runs two seconds past the segment's end: the segment is believed.
        let mut words = vec![word(" a", 0.0, 0.2), word(" b", 0.2, 3.0)];
        let mut short = segment(0.0, 0.6, 2);
        tidy(&mut words, &mut short, 0.2, 0.0);
        assert_eq!((words[1].end, short.end), (0.6, 0.6));
    }

    #[test]
    fn the_median_ignores_words_without_length() {
        let words = [word(" a", 0.0, 0.0), word(" b", 0.0, 0.2), word(" c", 0.2, 0.6)];
        assert!((median_secs(&words) - 0.3).abs() < 1e-9);
        assert_eq!(median_secs(&[]), 0.0);
    }
}
