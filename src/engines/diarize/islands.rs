//! Speakers from islands of speech: cluster the voices of their windows, then say for each moment whose it is.
//!
//! Pure. A window that lies across a change of speakers resembles neither; such windows may make a group of their own,
//! so a group counts as a speaker only if somebody is heard alone for one whole window (or one whole island).

use std::ops::Range;

use crate::engines::diarize::{
    Likeness,
    ask::{Island, Turn, VoiceWindow},
    cluster::{Group, agglomerate},
    embedder::dot,
};

/// Of voices: 1.6 s, which GE2E was trained on, one each 0.2 s.
pub(super) const WINDOW_SECS: f64 = 1.6;
pub(super) const STEP_SECS: f64 = 0.2;
/// Every second window is clustered: neighbours overlap by seven eighths and would say the same twice.
const CLUSTERED: usize = 2;
/// A group that owns less than this is noise, or lies across a change.
const LEAST_SECS: f64 = 1.0;
/// What a change of speakers costs, in cosine: half the spread of one window's likeness to its own speaker, for a change shows
/// in several windows.
const CHANGE: f32 = 0.05;
/// Islands closer than this are one stretch of speech that was cut by its length.
const TOUCHING_SECS: f64 = 0.05;
/// A word too short to tell its voice belongs to whoever speaks this close to it.
const NEAR_SECS: f64 = 1.0;
/// At first no two speakers may become one, for nothing parts them again: more likeness is asked than `merge` says …
const AT_FIRST: f32 = 0.05;
/// … and less among what then hears one speaker alone: it is cleaner, and rather one speaker too few than a part too many.
const REGROUP: f32 = 0.03;
/// Rounds of assigning and regrouping; they settle after two or three.
const ROUNDS: usize = 6;
/// How fine groups may be asked for, where a number of speakers is given and too few are found.
const FINER: [f32; 5] = [0.0, 0.04, 0.08, 0.12, 0.16];

/// One window in the order of time.
struct Moment<'a> {
    window: &'a VoiceWindow,
    /// The part of its island that is nearest to this window's middle.
    owns: (f64, f64),
}

/// Who speaks when, and what is known of each voice. `count`: how many speakers there are, where that is known.
pub(super) fn turns(islands: &[Island], likeness: &Likeness, count: Option<usize>) -> (Vec<Turn>, Vec<Group>) {
    let (moments, chains) = moments(islands);
    if moments.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let mut groups = Vec::new();
    for finer in if count.is_some() { &FINER[..] } else { &FINER[..1] } {
        groups = speakers(&moments, &chains, likeness, likeness.merge + finer);
        if count.is_none_or(|count| groups.len() >= count) {
            break;
        }
    }
    if let Some(count) = count {
        groups = agglomerate(groups, likeness, f32::NEG_INFINITY, count);
    }
    let centroids: Vec<Vec<f32>> = groups.iter().map(Group::centroid).collect();
    let labels = assign(&moments, &chains, &centroids);
    let mut turns: Vec<Turn> = moments
        .iter()
        .zip(labels)
        .map(|(moment, speaker)| Turn { start: moment.owns.0, end: moment.owns.1, speaker })
        .collect();
    adopt_short(islands, &mut turns);
    (turns, groups)
}

/// The windows of all islands, and which of them follow each other without a pause.
fn moments(islands: &[Island]) -> (Vec<Moment<'_>>, Vec<Range<usize>>) {
    let mut moments: Vec<Moment<'_>> = Vec::new();
    let mut chains: Vec<Range<usize>> = Vec::new();
    let mut last_end = f64::NEG_INFINITY;
    let middle = |window: &VoiceWindow| (window.start + window.end) / 2.0;
    for island in islands.iter().filter(|island| !island.windows.is_empty()) {
        let first = moments.len();
        for (at, window) in island.windows.iter().enumerate() {
            let between = |a: &VoiceWindow, b: &VoiceWindow| (middle(a) + middle(b)) / 2.0;
            let start = at.checked_sub(1).map_or(island.start, |before| between(&island.windows[before], window));
            let end = island.windows.get(at + 1).map_or(island.end, |next| between(window, next));
            moments.push(Moment { window, owns: (start, end) });
        }
        match chains.last_mut() {
            Some(chain) if island.start - last_end < TOUCHING_SECS => {
                chain.end = moments.len();
                // Both reach across the cut; they share the time between their middles.
                let shared = (middle(moments[first - 1].window) + middle(moments[first].window)) / 2.0;
                moments[first - 1].owns.1 = shared;
                moments[first].owns.0 = shared;
            }
            _ => chains.push(first..moments.len()),
        }
        last_end = island.end;
    }
    (moments, chains)
}

/// A group for each speaker, of windows that hear nobody else.
fn speakers(moments: &[Moment<'_>], chains: &[Range<usize>], likeness: &Likeness, merge: f32) -> Vec<Group> {
    let group = |at: usize| {
        let window = moments[at].window;
        Group::of(at, &window.voice, ((window.end - window.start) / WINDOW_SECS).clamp(0.1, 1.0) as f32)
    };
    let mut chosen = Vec::new();
    // With every second window left out, its neighbour answers for its time.
    let mut answers_for = vec![0.0; moments.len()];
    for at in
        chains.iter().flat_map(|chain| chain.clone().step_by(CLUSTERED).map(|at| at..chain.end.min(at + CLUSTERED)))
    {
        answers_for[at.start] = moments[at.end - 1].owns.1 - moments[at.start].owns.0;
        chosen.push(at.start);
    }
    let owned = |group: &Group| -> f64 { group.members.iter().map(|at| answers_for[*at]).sum() };
    let mut groups = agglomerate(chosen.into_iter().map(group).collect(), likeness, merge + AT_FIRST, 1);
    groups.sort_by(|a, b| owned(b).total_cmp(&owned(a)));
    let large = groups.iter().filter(|group| owned(group) >= LEAST_SECS).count();
    groups.truncate(large.max(1));

    for round in 0..ROUNDS {
        let centroids: Vec<Vec<f32>> = groups.iter().map(Group::centroid).collect();
        let labels = assign(moments, chains, &centroids);
        let mut heard_alone: Vec<Option<Group>> = vec![None; groups.len()];
        for chain in chains {
            for at in chain.clone().filter(|at| is_alone(moments, chain, &labels, *at)) {
                match &mut heard_alone[labels[at]] {
                    Some(known) => known.join(group(at)),
                    none => *none = Some(group(at)),
                }
            }
        }
        let before = groups.len();
        let alone: Vec<Group> = heard_alone.into_iter().flatten().collect();
        if alone.is_empty() {
            break;
        }
        groups = agglomerate(alone, likeness, merge - REGROUP, 1);
        if groups.len() == before && round > 0 {
            break;
        }
    }
    groups
}

/// Whether every window whose middle lies within this one is the same speaker's.
fn is_alone(moments: &[Moment<'_>], chain: &Range<usize>, labels: &[usize], at: usize) -> bool {
    let middle = |at: usize| (moments[at].window.start + moments[at].window.end) / 2.0;
    let near = |other: &usize| (middle(*other) - middle(at)).abs() <= WINDOW_SECS / 2.0;
    let before = (chain.start..at).rev().take_while(near);
    let after = (at + 1..chain.end).take_while(near);
    before.chain(after).all(|other| labels[other] == labels[at])
}

/// The speaker of each window: the most alike on the whole, where a change within a stretch of speech has its price.
fn assign(moments: &[Moment<'_>], chains: &[Range<usize>], centroids: &[Vec<f32>]) -> Vec<usize> {
    let best = |scores: &[f32]| (1..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best });
    let mut labels = vec![0; moments.len()];
    for chain in chains {
        let mut scores = vec![0.0; centroids.len()];
        // From whom each speaker took over, for every window after the first.
        let mut from: Vec<Vec<usize>> = Vec::with_capacity(chain.len());
        for at in chain.clone() {
            let loudest = best(&scores);
            let before = scores.clone();
            let mut came_from = Vec::with_capacity(centroids.len());
            for (speaker, centroid) in centroids.iter().enumerate() {
                let changes = before[loudest] - CHANGE > before[speaker];
                came_from.push(if changes { loudest } else { speaker });
                scores[speaker] = if changes { before[loudest] - CHANGE } else { before[speaker] }
                    + dot(&moments[at].window.voice, centroid);
            }
            from.push(came_from);
        }
        let mut speaker = best(&scores);
        for at in chain.clone().rev() {
            labels[at] = speaker;
            speaker = from[at - chain.start][speaker];
        }
    }
    labels
}

/// Islands without a voice go to who speaks nearest to them; those far from everybody are dropped.
fn adopt_short(islands: &[Island], turns: &mut Vec<Turn>) {
    let known = turns.clone();
    for island in islands.iter().filter(|island| island.windows.is_empty()) {
        let away = |turn: &Turn| (turn.start - island.end).max(island.start - turn.end);
        // Turns are in order: only the neighbours can be nearest.
        let next = known.partition_point(|turn| turn.start < island.start);
        let near =
            known[next.saturating_sub(1)..known.len().min(next + 1)].iter().min_by(|a, b| away(a).total_cmp(&away(b)));
        if let Some(near) = near.filter(|turn| away(turn) < NEAR_SECS) {
            turns.push(Turn { start: island.start, end: island.end, speaker: near.speaker });
        }
    }
    turns.sort_by(|a, b| a.start.total_cmp(&b.start));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::diarize::embedder::unit;

    const LIKENESS: Likeness = Likeness { merge: 0.7, coherence: 0.8, same: 0.7 };

    /// Speech by the parts of its islands: who speaks for how long. Windows across a change are mixtures.
    fn islands(parts: &[&[(usize, f64)]], pause: f64) -> Vec<Island> {
        let mut random = fastrand::Rng::with_seed(11);
        let mut at = 0.0;
        let mut islands = Vec::new();
        for parts in parts {
            let start = at;
            let end = start + parts.iter().map(|(_, secs)| secs).sum::<f64>();
            let mut windows = Vec::new();
            let steps = ((end - start - WINDOW_SECS) / STEP_SECS).ceil().max(0.0) as usize;
            for step in 0..=steps {
                let from = (start + step as f64 * STEP_SECS).min(end - WINDOW_SECS).max(start);
                let to = (from + WINDOW_SECS).min(end);
                let mut voice: Vec<f32> = (0..24).map(|_| (random.f32() - 0.5) * 0.25).collect();
                let mut part_start = start;
                for (speaker, secs) in *parts {
                    let overlap = (to.min(part_start + secs) - from.max(part_start)).max(0.0);
                    voice[*speaker] += (overlap / (to - from)) as f32;
                    part_start += secs;
                }
                windows.push(VoiceWindow { start: from, end: to, voice: unit(voice) });
            }
            if end - start < 0.5 {
                windows.clear();
            }
            islands.push(Island { start, end, windows });
            at = end + pause;
        }
        islands
    }

    fn speaker_at(turns: &[Turn], at: f64) -> Option<usize> {
        turns.iter().find(|turn| turn.start <= at && at < turn.end).map(|turn| turn.speaker)
    }

    fn count(turns: &[Turn]) -> usize {
        turns.iter().map(|turn| turn.speaker).collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn a_change_inside_an_island_is_found_where_it_is_and_makes_no_third_speaker() {
        let islands = islands(&[&[(0, 6.0), (1, 5.0), (0, 4.0)], &[(1, 3.0)]], 0.6);
        let turns = turns(&islands, &LIKENESS, None).0;
        assert_eq!(count(&turns), 2);
        for (at, same_as) in [(5.6, 0.5), (11.4, 0.5), (10.6, 6.4), (16.0, 6.4)] {
            assert_eq!(speaker_at(&turns, at), speaker_at(&turns, same_as), "at {at}");
        }
        assert_ne!(speaker_at(&turns, 0.5), speaker_at(&turns, 6.4));
    }

    #[test]
    fn one_short_island_of_another_speaker_is_a_speaker() {
        let islands = islands(&[&[(0, 8.0)], &[(1, 1.9)], &[(0, 5.0)]], 0.8);
        assert_eq!(count(&turns(&islands, &LIKENESS, None).0), 2);
    }

    #[test]
    fn a_given_number_of_speakers_is_kept_to() {
        let islands = islands(&[&[(0, 5.0)], &[(1, 5.0)], &[(2, 5.0)], &[(0, 5.0)]], 0.8);
        for wanted in 1..=3 {
            assert_eq!(count(&turns(&islands, &LIKENESS, Some(wanted)).0), wanted);
        }
    }

    #[test]
    fn a_word_too_short_for_a_voice_goes_to_its_neighbour_or_to_nobody() {
        let mut islands = islands(&[&[(0, 3.0)], &[(0, 0.4)]], 0.3);
        let near = turns(&islands, &LIKENESS, None).0;
        assert_eq!(speaker_at(&near, 3.5), speaker_at(&near, 1.0));
        islands[1].start += 5.0;
        islands[1].end += 5.0;
        assert_eq!(speaker_at(&turns(&islands, &LIKENESS, None).0, 8.5), None);
        assert!(turns(&islands[1..], &LIKENESS, None).0.is_empty());
        assert!(turns(&[], &LIKENESS, Some(2)).0.is_empty());
    }

    #[test]
    fn islands_that_were_cut_by_their_length_are_one_stretch_of_speech() {
        let islands = islands(&[&[(0, 4.0)], &[(0, 4.0)]], 0.0);
        let (moments, chains) = moments(&islands);
        assert_eq!((chains.len(), chains[0].clone()), (1, 0..moments.len()));
    }
}
