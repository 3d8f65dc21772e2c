//! Speakers from the windows of a segmentation model: cluster the voices of their tracks, then let the windows vote.
//!
//! Pure. Windows overlap, so every moment is seen several times; as many speakers are named for it as its windows hear
//! on average, those with the most votes. Here two may speak at once.

use crate::engines::diarize::{
    Likeness,
    ask::{TrackWindow, Turn},
    cluster::{Group, agglomerate},
    embedder::dot,
    segmentation::{FRAME_STEP, frame_secs},
};
use crate::flow::SAMPLE_RATE_HZ;

/// Tracks heard alone for less than this say too little to found a speaker.
const FOUNDING_SECS: f32 = 1.5;
/// A speaker is heard in a tenth of the tracks, or in as many as ten seconds of speech make.
const SMALL_PART: f32 = 0.1;
const SMALL_TRACKS: usize = 6;
const FRAME_SECS: f64 = FRAME_STEP as f64 / SAMPLE_RATE_HZ as f64;

/// Who speaks when, and what is known of each voice. `count`: how many speakers there are, where that is known.
pub(super) fn turns(windows: &[TrackWindow], likeness: &Likeness, count: Option<usize>) -> (Vec<Turn>, Vec<Group>) {
    let groups = groups(windows, likeness, count);
    if groups.is_empty() {
        return (Vec::new(), groups);
    }
    let centroids: Vec<Vec<f32>> = groups.iter().map(Group::centroid).collect();
    let end = windows.iter().map(|window| first_frame(window) + window.active.len()).max().unwrap_or(0);
    let mut votes = vec![0_u16; end * centroids.len()];
    let mut heard = vec![(0_u16, 0_u16); end];
    for window in windows {
        let speakers = speakers_of(window, &centroids);
        for (at, active) in window.active.iter().enumerate() {
            let frame = first_frame(window) + at;
            heard[frame].0 += active.count_ones() as u16;
            heard[frame].1 += 1;
            for (track, speaker) in speakers.iter().enumerate() {
                if let Some(speaker) = speaker.filter(|_| active >> track & 1 == 1) {
                    votes[frame * centroids.len() + speaker] += 1;
                }
            }
        }
    }
    let mut turns: Vec<Turn> = Vec::new();
    let mut open: Vec<Option<usize>> = vec![None; centroids.len()];
    for frame in 0..=end {
        let named = if frame < end {
            named(&votes[frame * centroids.len()..][..centroids.len()], heard[frame])
        } else {
            Vec::new()
        };
        for (speaker, since) in open.iter_mut().enumerate() {
            match (named.contains(&speaker), *since) {
                (true, None) => *since = Some(frame),
                (false, Some(first)) => {
                    turns.push(Turn { start: edge_secs(first), end: edge_secs(frame), speaker });
                    *since = None;
                }
                _ => {}
            }
        }
    }
    turns.sort_by(|a, b| a.start.total_cmp(&b.start));
    (turns, groups)
}

fn first_frame(window: &TrackWindow) -> usize {
    (window.start / FRAME_SECS).round().max(0.0) as usize
}

/// Where a frame's share of time begins.
fn edge_secs(frame: usize) -> f64 {
    frame_secs(frame) - FRAME_SECS / 2.0
}

/// The speakers with the most votes in a frame, as many as its windows hear on average.
fn named(votes: &[u16], (active, windows): (u16, u16)) -> Vec<usize> {
    let count = (f32::from(active) / f32::from(windows.max(1))).round() as usize;
    let mut order: Vec<usize> = (0..votes.len()).filter(|speaker| votes[*speaker] > 0).collect();
    order.sort_by_key(|speaker| std::cmp::Reverse(votes[*speaker]));
    order.truncate(count);
    order
}

fn groups(windows: &[TrackWindow], likeness: &Likeness, count: Option<usize>) -> Vec<Group> {
    let tracks = || windows.iter().flat_map(|window| window.voices.iter().flatten());
    let founding = |least: f32| -> Vec<Group> {
        let long = tracks().filter(|track| track.clean_secs >= least).enumerate();
        long.map(|(member, track)| Group::of_stretch(member, &track.voice, likeness)).collect()
    };
    let mut groups = founding(FOUNDING_SECS);
    if groups.is_empty() {
        groups = founding(0.0);
    }
    let small = ((groups.len() as f32 * SMALL_PART).round() as usize).clamp(1, SMALL_TRACKS);
    let mut groups = agglomerate(groups, likeness, likeness.merge, count.unwrap_or(1));
    groups.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    let large = groups.iter().filter(|group| group.members.len() >= small).count();
    groups.truncate(large.max(count.unwrap_or(1)));
    if let Some(count) = count {
        groups = agglomerate(groups, likeness, f32::NEG_INFINITY, count);
    }
    groups
}

/// Who each track of a window is. Two tracks of one window are two people, so the closest choose first.
fn speakers_of(window: &TrackWindow, centroids: &[Vec<f32>]) -> [Option<usize>; 3] {
    let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
    for (track, voice) in window.voices.iter().enumerate() {
        if let Some(voice) = voice {
            pairs.extend(centroids.iter().enumerate().map(|(speaker, it)| (dot(it, &voice.voice), track, speaker)));
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut speakers = [None; 3];
    for (_, track, speaker) in pairs {
        if speakers[track].is_none() && !speakers.contains(&Some(speaker)) {
            speakers[track] = Some(speaker);
        }
    }
    speakers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::diarize::ask::TrackVoice;

    const LIKENESS: Likeness = Likeness { merge: 0.7, coherence: 0.8, same: 0.7 };
    const FRAMES: usize = 589;

    /// Who speaks when, in seconds, seen through windows of 10 s each 2 s, whose tracks are numbered anew in each.
    fn windows(truth: &[(f64, f64, usize)], secs: f64) -> Vec<TrackWindow> {
        let mut random = fastrand::Rng::with_seed(2);
        let mut windows = Vec::new();
        let mut start = 0.0;
        while start < secs {
            let mut order = [0, 1, 2];
            random.shuffle(&mut order);
            let mut active = vec![0_u8; FRAMES];
            let mut clean = [0.0_f32; 3];
            for (frame, active) in active.iter_mut().enumerate() {
                let at = start + frame_secs(frame);
                let speaking = truth.iter().filter(|(from, to, _)| (*from..*to).contains(&at));
                speaking.for_each(|(_, _, speaker)| *active |= 1 << order[*speaker]);
                if active.count_ones() == 1 {
                    clean[active.trailing_zeros() as usize] += FRAME_SECS as f32;
                }
            }
            let mut voices = [None, None, None];
            for speaker in 0..3 {
                let track = order[speaker];
                if clean[track] > 0.2 {
                    let mut voice: Vec<f32> = (0..16).map(|_| (random.f32() - 0.5) * 0.2).collect();
                    voice[speaker] += 1.0;
                    let voice = super::super::embedder::unit(voice);
                    voices[track] = Some(TrackVoice { voice, clean_secs: clean[track] });
                }
            }
            windows.push(TrackWindow { start, active, voices });
            start += 2.0;
        }
        windows
    }

    #[test]
    fn tracks_numbered_anew_in_every_window_become_whole_turns_with_their_overlap() {
        let truth = [(0.5, 8.0, 0), (7.0, 15.0, 1), (16.0, 22.0, 0), (23.0, 29.0, 2)];
        let (turns, groups) = turns(&windows(&truth, 30.0), &LIKENESS, None);
        assert_eq!(groups.len(), 3);
        assert_eq!(turns.len(), truth.len(), "{turns:?}");
        for (turn, (start, end, _)) in turns.iter().zip(truth) {
            assert!((turn.start - start).abs() < 0.1 && (turn.end - end).abs() < 0.1, "{turn:?}");
        }
        assert_eq!(turns[0].speaker, turns[2].speaker);
        assert_ne!(turns[0].speaker, turns[1].speaker);
        assert_ne!(turns[0].speaker, turns[3].speaker);
    }

    #[test]
    fn a_given_number_of_speakers_is_kept_to() {
        let windows = windows(&[(0.0, 9.0, 0), (10.0, 19.0, 1), (20.0, 29.0, 2)], 30.0);
        for wanted in 1..=3 {
            let (turns, _) = turns(&windows, &LIKENESS, Some(wanted));
            let speakers: std::collections::BTreeSet<usize> = turns.iter().map(|turn| turn.speaker).collect();
            assert_eq!(speakers.len(), wanted);
        }
    }

    #[test]
    fn silence_has_no_turns() {
        assert!(turns(&windows(&[], 20.0), &LIKENESS, None).0.is_empty());
        assert!(turns(&[], &LIKENESS, Some(3)).0.is_empty());
    }
}
