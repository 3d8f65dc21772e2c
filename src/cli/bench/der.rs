//! The diarization error rate: what part of the speech has no speaker, a wrong one, or is none, with the best pairing
//! of speakers. Around every edge of the reference a collar is left out, and so is where several speak at once.

use crate::engines::{Turn, diarize::assign};

/// Seconds, of what is scored.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Errors {
    pub(super) speech: f64,
    pub(super) miss: f64,
    pub(super) false_alarm: f64,
    pub(super) confusion: f64,
}

impl Errors {
    pub(super) fn rate(&self) -> f64 {
        self.secs() / self.speech.max(f64::MIN_POSITIVE)
    }

    /// Of errors.
    pub(super) fn secs(&self) -> f64 {
        self.miss + self.false_alarm + self.confusion
    }
}

/// A stretch in which nothing changes.
struct Stretch {
    secs: f64,
    truth: Option<usize>,
    found: Vec<usize>,
}

pub(super) fn errors(truth: &[Turn], found: &[Turn], collar_secs: f64) -> Errors {
    let stretches = stretches(truth, found, collar_secs);
    let speakers = |turns: &[Turn]| turns.iter().map(|turn| turn.speaker + 1).max().unwrap_or(0);
    let mut shared = vec![vec![0.0; speakers(found)]; speakers(truth)];
    for stretch in &stretches {
        for speaker in &stretch.found {
            if let Some(truth) = stretch.truth {
                shared[truth][*speaker] += stretch.secs;
            }
        }
    }
    let partner = assign(&shared);
    let mut errors = Errors::default();
    for Stretch { secs, truth, found } in stretches {
        let speaking = usize::from(truth.is_some());
        let right = truth.and_then(|truth| partner[truth]).is_some_and(|partner| found.contains(&partner));
        errors.speech += secs * speaking as f64;
        errors.miss += secs * speaking.saturating_sub(found.len()) as f64;
        errors.false_alarm += secs * found.len().saturating_sub(speaking) as f64;
        errors.confusion += secs * (speaking.min(found.len()) - usize::from(right)) as f64;
    }
    errors
}

/// What is scored, cut at every edge.
fn stretches(truth: &[Turn], found: &[Turn], collar_secs: f64) -> Vec<Stretch> {
    let edges = |turns: &[Turn]| turns.iter().flat_map(|turn| [turn.start, turn.end]).collect::<Vec<f64>>();
    let collars: Vec<(f64, f64)> = edges(truth).iter().map(|edge| (edge - collar_secs, edge + collar_secs)).collect();
    let mut cuts = [edges(truth), edges(found), collars.iter().flat_map(|it| [it.0, it.1]).collect()].concat();
    cuts.sort_by(f64::total_cmp);
    let at = |turns: &[Turn], secs: f64| -> Vec<usize> {
        let here = turns.iter().filter(|turn| (turn.start..turn.end).contains(&secs));
        let mut speakers: Vec<usize> = here.map(|turn| turn.speaker).collect();
        speakers.sort_unstable();
        speakers.dedup();
        speakers
    };
    let mut stretches = Vec::new();
    for pair in cuts.windows(2) {
        let (secs, middle) = (pair[1] - pair[0], (pair[0] + pair[1]) / 2.0);
        let speaking = at(truth, middle);
        let outside = middle < 0.0 || speaking.len() > 1 || collars.iter().any(|it| (it.0..it.1).contains(&middle));
        if secs > 0.0 && !outside {
            stretches.push(Stretch { secs, truth: speaking.first().copied(), found: at(found, middle) });
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(turns: &[(f64, f64, usize)]) -> Vec<Turn> {
        turns.iter().map(|(start, end, speaker)| Turn { start: *start, end: *end, speaker: *speaker }).collect()
    }

    fn score(truth: &[(f64, f64, usize)], found: &[(f64, f64, usize)], collar: f64) -> [f64; 5] {
        let errors = errors(&turns(truth), &turns(found), collar);
        let all = [errors.speech, errors.miss, errors.false_alarm, errors.confusion, errors.rate()];
        all.map(|value| (value * 1e6).round() / 1e6)
    }

    #[test]
    fn the_names_of_speakers_do_not_matter() {
        let truth = [(0.0, 5.0, 0), (5.0, 8.0, 1)];
        assert_eq!(score(&truth, &[(0.0, 5.0, 1), (5.0, 8.0, 0)], 0.0), [8.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_missed_what_is_wrong_and_what_is_none_is_counted() {
        let truth = [(0.0, 10.0, 0)];
        assert_eq!(score(&truth, &[(2.0, 12.0, 0)], 0.0), [10.0, 2.0, 2.0, 0.0, 0.4]);
        assert_eq!(score(&truth, &[(0.0, 7.0, 0), (7.0, 10.0, 1)], 0.0), [10.0, 0.0, 0.0, 3.0, 0.3]);
        assert_eq!(score(&truth, &[], 0.0), [10.0, 10.0, 0.0, 0.0, 1.0]);
        // Two named where one speaks: one of them is too many.
        assert_eq!(score(&truth, &[(0.0, 10.0, 0), (4.0, 6.0, 1)], 0.0), [10.0, 0.0, 2.0, 0.0, 0.2]);
    }

    #[test]
    fn one_speaker_found_for_two_confuses_the_shorter() {
        assert_eq!(score(&[(0.0, 6.0, 0), (6.0, 8.0, 1)], &[(0.0, 8.0, 0)], 0.0), [8.0, 0.0, 0.0, 2.0, 0.25]);
    }

    #[test]
    fn edges_within_the_collar_and_overlaps_are_left_out() {
        assert_eq!(score(&[(1.0, 5.0, 0)], &[(0.8, 5.2, 0)], 0.25), [3.5, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(score(&[(1.0, 5.0, 0)], &[(0.5, 5.0, 0)], 0.25), [3.5, 0.0, 0.25, 0.0, 0.071429]);
        let overlap = [(0.0, 6.0, 0), (4.0, 8.0, 1)];
        assert_eq!(score(&overlap, &[(0.0, 4.0, 0), (6.0, 8.0, 1)], 0.0), [6.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(score(&[], &[], 0.25)[0], 0.0);
    }
}
