//! Whose words are whose: lays turns over a transcript. Pure.
//!
//! 1. Where words have times, each belongs to who speaks most while it is said; a segment in which the speaker changes
//!    is cut there. Its first part keeps the id; the others get ids that nobody has used.
//! 2. Without them a segment is never cut, for nobody knows which of its words are whose: it belongs to who speaks most
//!    in it.
//! 3. Where nobody is found, who speaks nearest to it, within a second; beyond that it stays as it was.

use crate::{
    engines::diarize::ask::Turn,
    flow::{TextSegment, Word},
};

/// Beyond this a word or a segment has nothing to do with a turn.
const NEAR_SECS: f64 = 1.0;
/// One word that is shorter than this makes no part of its own: the edge of a turn is no more exact.
const LONE_WORD_SECS: f64 = 0.5;

/// The segments with their speakers, by `name`. `next_id` is above all ids that were ever used, and stays so.
pub fn attribute(
    segments: Vec<TextSegment>,
    turns: &[Turn],
    name: impl Fn(usize) -> String,
    next_id: &mut u64,
) -> Vec<TextSegment> {
    let mut attributed = Vec::with_capacity(segments.len());
    for mut segment in segments {
        let near = near(turns, segment.start, segment.end);
        let parts = parts(&segment.words, near);
        match cut(&segment, &parts) {
            Some(cut) => {
                for (at, (part, (_, speaker))) in cut.into_iter().zip(&parts).enumerate() {
                    let id = if at == 0 { segment.id } else { fresh(next_id) };
                    attributed.push(TextSegment { id, speaker: Some(name(*speaker)), ..part });
                }
            }
            None => {
                if let Some(speaker) = whose(near, segment.start, segment.end) {
                    segment.speaker = Some(name(speaker));
                }
                attributed.push(segment);
            }
        }
    }
    attributed
}

fn fresh(next_id: &mut u64) -> u64 {
    let id = *next_id;
    *next_id += 1;
    id
}

/// The turns that may have to do with that time. Turns are in the order of their starts, and may overlap.
fn near(turns: &[Turn], start: f64, end: f64) -> &[Turn] {
    let until = turns.partition_point(|turn| turn.start <= end + NEAR_SECS);
    let from = turns[..until].iter().position(|turn| turn.end >= start - NEAR_SECS).unwrap_or(until);
    &turns[from..until]
}

/// Who speaks most between the two, else nearest to them.
fn whose(turns: &[Turn], start: f64, end: f64) -> Option<usize> {
    let speakers = turns.iter().map(|turn| turn.speaker + 1).max()?;
    let mut shared = vec![0.0; speakers];
    for turn in turns {
        shared[turn.speaker] += (turn.end.min(end) - turn.start.max(start)).max(0.0);
    }
    // The first of equals, so that the same always comes out.
    let most = (0..speakers).fold(0, |most, speaker| if shared[speaker] > shared[most] { speaker } else { most });
    if shared[most] > 0.0 {
        return Some(most);
    }
    let away = |turn: &&Turn| (turn.start - end).max(start - turn.end);
    let nearest = turns.iter().min_by(|a, b| away(a).total_cmp(&away(b)))?;
    (away(&nearest) <= NEAR_SECS).then_some(nearest.speaker)
}

/// Words of one speaker each: how many there are, and whose. None of a segment without words.
fn parts(words: &[Word], turns: &[Turn]) -> Vec<(usize, usize)> {
    let mut owners: Vec<Option<usize>> = words.iter().map(|word| whose(turns, word.start, word.end)).collect();
    // A word in nobody's turn is said by who said the one before it.
    for at in 1..owners.len() {
        owners[at] = owners[at].or(owners[at - 1]);
    }
    let Some(first) = owners.iter().flatten().next().copied() else { return Vec::new() };
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for owner in owners {
        match parts.last_mut() {
            Some((count, speaker)) if owner.is_none_or(|owner| owner == *speaker) => *count += 1,
            _ => parts.push((1, owner.unwrap_or(first))),
        }
    }
    without_lone_words(words, parts)
}

fn without_lone_words(words: &[Word], parts: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let mut kept: Vec<(usize, usize)> = Vec::new();
    let (mut at, mut waiting) = (0, 0);
    for (count, speaker) in parts {
        let lone = count == 1 && words[at].end - words[at].start < LONE_WORD_SECS;
        at += count;
        match kept.last_mut() {
            Some((before, _)) if lone => *before += count,
            // At the beginning it goes to those who follow.
            None if lone => waiting += count,
            Some((before, same)) if *same == speaker => *before += count,
            _ => kept.push((count + std::mem::take(&mut waiting), speaker)),
        }
    }
    kept
}

/// The segment in as many parts. None where it is one, or where its words are not found in its text.
fn cut(segment: &TextSegment, parts: &[(usize, usize)]) -> Option<Vec<TextSegment>> {
    if parts.len() < 2 {
        return None;
    }
    let mut starts = Vec::with_capacity(segment.words.len());
    let mut from = 0;
    for word in &segment.words {
        let text = word.text.trim();
        let start = from + segment.text[from..].find(text)?;
        starts.push(start);
        from = start + text.len();
    }
    let mut cut = Vec::with_capacity(parts.len());
    let mut first = 0;
    for (count, _) in parts {
        let words = &segment.words[first..first + count];
        let text_from = if first == 0 { 0 } else { starts[first] };
        let text_to = starts.get(first + count).copied().unwrap_or(segment.text.len());
        let start = if first == 0 { segment.start } else { words[0].start };
        let end = if first + count == segment.words.len() { segment.end } else { words[count - 1].end };
        cut.push(TextSegment {
            start,
            end: end.max(start),
            text: segment.text[text_from..text_to].trim().to_owned(),
            words: words.to_vec(),
            ..segment.clone()
        });
        first += count;
    }
    Some(cut)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engines::diarize::speaker_name;

    fn turn(start: f64, end: f64, speaker: usize) -> Turn {
        Turn { start, end, speaker }
    }

    /// Words of half a second each, from `start` on; with their times or without.
    fn segment(id: u64, start: f64, text: &str, timed: bool) -> TextSegment {
        let mut segment = TextSegment {
            id,
            start,
            end: start,
            text: text.to_owned(),
            language: "es".to_owned(),
            probability: 0.9,
            speaker: None,
            words: Vec::new(),
        };
        for word in text.split_inclusive(' ') {
            let (start, end) = (segment.end, segment.end + 0.5);
            segment.words.push(Word { start, end, text: format!(" {}", word.trim()), probability: 1.0 });
            segment.end = end;
        }
        if !timed {
            segment.words.clear();
        }
        segment
    }

    fn told(segments: Vec<TextSegment>, turns: &[Turn]) -> Vec<(u64, String, Option<String>)> {
        let mut next_id = 10;
        let attributed = attribute(segments, turns, speaker_name, &mut next_id);
        attributed.into_iter().map(|it| (it.id, it.text, it.speaker)).collect()
    }

    fn said(id: u64, text: &str, speaker: &str) -> (u64, String, Option<String>) {
        (id, text.to_owned(), Some(speaker.to_owned()))
    }

    #[test]
    fn a_segment_is_cut_where_the_speaker_changes_and_only_with_the_times_of_its_words() {
        let turns = [turn(0.0, 1.4, 0), turn(1.6, 4.0, 1)];
        let text = "¿Vienes mañana, Ana? Sí, claro.";
        let parts = [said(3, "¿Vienes mañana, Ana?", "S1"), said(10, "Sí, claro.", "S2")];
        assert_eq!(told(vec![segment(3, 0.0, text, true)], &turns), parts);
        assert_eq!(told(vec![segment(3, 0.0, text, false)], &turns), [said(3, text, "S1")]);
        // A text that is not made of its words stays whole.
        let other = TextSegment { text: "Are you coming? Yes.".to_owned(), ..segment(3, 0.0, text, true) };
        assert_eq!(told(vec![other], &turns), [said(3, "Are you coming? Yes.", "S1")]);
    }

    #[test]
    fn times_of_the_parts_are_those_of_the_words_and_of_the_whole() {
        let turns = [turn(0.0, 1.0, 0), turn(1.0, 2.0, 1), turn(2.0, 3.1, 0)];
        let mut next_id = 7;
        let parts = attribute(
            vec![segment(0, 0.0, "uno dos tres cuatro cinco seis", true)],
            &turns,
            speaker_name,
            &mut next_id,
        );
        let times: Vec<(f64, f64)> = parts.iter().map(|part| (part.start, part.end)).collect();
        assert_eq!(times, [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]);
        assert_eq!((parts[2].id, next_id), (8, 9));
        assert_eq!(parts.iter().map(|part| part.words.len()).collect::<Vec<_>>(), [2, 2, 2]);
    }

    #[test]
    fn one_short_word_is_no_part_and_a_word_in_nobodys_turn_is_its_neighbours() {
        let mut short = segment(0, 0.0, "bueno sí pues vale", true);
        short.words[1].end = 0.9;
        let turns = [turn(0.0, 0.5, 0), turn(0.5, 0.95, 1), turn(1.0, 2.0, 0)];
        assert_eq!(told(vec![short], &turns), [said(0, "bueno sí pues vale", "S1")]);
        let gap = [turn(0.0, 1.0, 0), turn(4.0, 5.0, 1)];
        let long = segment(0, 0.0, "a b c d e f g h i j", true);
        assert_eq!(told(vec![long], &gap), [said(0, "a b c d e", "S1"), said(10, "f g h i j", "S2")]);
    }

    #[test]
    fn without_anybody_near_a_segment_stays_as_it_was() {
        let mut far = segment(0, 20.0, "hola", false);
        far.speaker = Some("S4".to_owned());
        assert_eq!(told(vec![far.clone()], &[turn(0.0, 2.0, 0)]), [said(0, "hola", "S4")]);
        assert_eq!(told(vec![far.clone()], &[]), [said(0, "hola", "S4")]);
        assert_eq!(told(vec![far], &[turn(0.0, 19.5, 0)]), [said(0, "hola", "S1")]);
    }

    proptest! {
        #[test]
        fn no_word_is_lost_no_id_given_twice_and_the_order_is_kept(
            turns in prop::collection::vec((0.0..30.0_f64, 0.0..6.0_f64, 0..3_usize), 0..12),
            texts in prop::collection::vec("[a-zñ]{1,4}( [a-zñ]{1,4}){0,9}", 1..6),
        ) {
            let mut turns: Vec<Turn> = turns.into_iter().map(|(start, secs, speaker)| turn(start, start + secs, speaker)).collect();
            turns.sort_by(|a, b| a.start.total_cmp(&b.start));
            let segments: Vec<TextSegment> =
                texts.iter().enumerate().map(|(at, text)| segment(at as u64, at as f64 * 6.0, text, true)).collect();
            let mut next_id = segments.len() as u64;
            let attributed = attribute(segments.clone(), &turns, speaker_name, &mut next_id);
            let words = |segments: &[TextSegment]| -> Vec<String> {
                segments.iter().flat_map(|it| it.text.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
            };
            prop_assert_eq!(words(&attributed), words(&segments));
            prop_assert!(attributed.is_sorted_by(|a, b| a.start <= b.start));
            let mut ids: Vec<u64> = attributed.iter().map(|it| it.id).collect();
            ids.sort_unstable();
            prop_assert!(ids.is_sorted_by(|a, b| a < b) && ids.last().unwrap() < &next_id);
            for segment in &segments {
                prop_assert!(attributed.iter().any(|it| it.id == segment.id && it.start == segment.start));
            }
        }
    }
}
