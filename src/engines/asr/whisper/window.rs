//! From the tokens of one window to segments, and to where the next window begins. Pure.
//!
//! ```text
//! <0.00> text <2.40><2.40> text <4.80><4.80>      cut where time meets time; the next window begins at 4.80
//! <0.00> text <2.40><2.40> text <4.80>            one time at the end: nothing follows, the next begins behind
//! <0.00> text                                     cut off or without times: one segment, the next begins behind
//! ```

use crate::engines::asr::whisper::tokens::Tokens;

/// A part of a window's text, in ticks of the timestamps from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The last slice of a text that goes on also has the time that opens what follows, as the reference gives it.
    pub(super) tokens: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) slices: Vec<Slice>,
    /// In ticks; None: the whole window.
    pub(super) advance: Option<usize>,
}

/// `ids` without prompt and end token; `content`: ticks of the window that hold audio.
pub(super) fn cut(ids: &[u32], tokens: &Tokens, content: usize) -> Cut {
    cut_at(ids, tokens.timestamp_begin, content)
}

fn cut_at(ids: &[u32], begin: u32, content: usize) -> Cut {
    let tick = |id: u32| id.checked_sub(begin).map(|tick| tick as usize);
    let meetings: Vec<usize> =
        (1..ids.len()).filter(|at| tick(ids[at - 1]).is_some() && tick(ids[*at]).is_some()).collect();
    let Some(last_meeting) = meetings.last().copied() else {
        if ids.is_empty() {
            return Cut { slices: Vec::new(), advance: None };
        }
        let last = ids.iter().rev().find_map(|id| tick(*id)).filter(|tick| *tick > 0);
        let whole = Slice { start: 0, end: last.unwrap_or(content), tokens: ids.to_vec() };
        return Cut { slices: vec![whole], advance: None };
    };
    let ended = matches!(ids, [.., before, last] if tick(*before).is_none() && tick(*last).is_some());
    let mut ends = meetings;
    match ended {
        true => ends.push(ids.len()),
        false => {
            ends.pop();
            ends.push(last_meeting + 1);
        }
    }
    let mut slices = Vec::with_capacity(ends.len());
    let mut from = 0;
    for (number, end) in ends.iter().enumerate() {
        let part = &ids[from..*end];
        let open = number + 1 == ends.len() && !ended;
        let closing = part.len().checked_sub(if open { 2 } else { 1 }).and_then(|at| part.get(at));
        let ticks = |id: Option<&u32>| id.and_then(|id| tick(*id)).unwrap_or(0);
        slices.push(Slice { start: ticks(part.first()), end: ticks(closing), tokens: part.to_vec() });
        from = *end;
    }
    // A model without sense may end where it began; the recording must still go on.
    let advance = tick(ids[last_meeting - 1]).filter(|tick| !ended && *tick > 0);
    Cut { slices, advance }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(start: usize, end: usize, tokens: &[u32]) -> Slice {
        Slice { start, end, tokens: tokens.to_vec() }
    }

    #[test]
    fn a_text_that_goes_on_is_taken_up_where_its_last_segment_ended() {
        let cut = cut_at(&[100, 1, 2, 110, 110, 3, 120, 120], 100, 1500);
        assert_eq!(cut.slices, [slice(0, 10, &[100, 1, 2, 110]), slice(10, 20, &[110, 3, 120, 120])]);
        assert_eq!(cut.advance, Some(20));
        // What the model began and did not end is said again in the next window.
        let cut = cut_at(&[100, 1, 110, 111, 3], 100, 1500);
        assert_eq!((cut.slices, cut.advance), (vec![slice(0, 10, &[100, 1, 110, 111])], Some(10)));
    }

    #[test]
    fn a_single_time_at_the_end_says_that_nothing_follows() {
        let cut = cut_at(&[100, 1, 110, 112, 3, 120], 100, 1500);
        assert_eq!(cut.slices, [slice(0, 10, &[100, 1, 110]), slice(12, 20, &[112, 3, 120])]);
        assert_eq!(cut.advance, None);
    }

    #[test]
    fn without_a_meeting_of_times_there_is_one_segment() {
        assert_eq!(cut_at(&[103, 1, 110], 100, 1500).slices, [slice(0, 10, &[103, 1, 110])]);
        assert_eq!(cut_at(&[1, 2], 100, 600).slices, [slice(0, 600, &[1, 2])]);
        assert_eq!(cut_at(&[100, 2], 100, 600).slices, [slice(0, 600, &[100, 2])]);
        assert_eq!(cut_at(&[], 100, 600), Cut { slices: vec![], advance: None });
    }

    #[test]
    fn no_sequence_of_tokens_breaks_the_cut() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..2000 {
            let ids: Vec<u32> = (0..random.usize(..9)).map(|_| 98 + random.u32(..5)).collect();
            let cut = cut_at(&ids, 100, 1500);
            assert!(cut.slices.iter().map(|slice| slice.tokens.len()).sum::<usize>() <= ids.len());
        }
    }
}
