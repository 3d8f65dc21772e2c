//! Which voices are one speaker's: agglomeration by mean likeness, in two stages, so that hours fit in little memory.
//!
//! Pure. Two groups are compared by the mean product of their voices, as a part of what the voices of one speaker have
//! among themselves. What is asked of it grows with what was heard: of a few windows much is chance, while long groups of
//! one speaker come close to one, and those of two stay where they are.

use serde::{Deserialize, Serialize};

use crate::engines::diarize::embedder::dot;

/// What a model of voices makes of the same and of different speakers. Thresholds are of the model, not of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Likeness {
    /// Groups of one window more alike than this are one speaker.
    pub merge: f32,
    /// Mean product of two windows of one speaker.
    pub coherence: f32,
    /// A whole utterance this close to a known voice (cosine) is that speaker's.
    pub same: f32,
}

impl Likeness {
    /// Measured over 24 people, clean, by telephone, in noise and in rooms. Its vectors have no negative values, so everything
    /// is alike to some degree. Among groups of 1 s the threshold lies at 0.74, where as many of one speaker are below as of
    /// two above; of 6 s at 0.80, of 20 s at 0.84. Of those of 6 s a little more is asked (`HALF_SURE`): what was joined is
    /// never parted again, and what was not may still be.
    pub const GE2E: Likeness = Likeness { merge: 0.74, coherence: 0.78, same: 0.75 };
    /// From the figures of its authors (equal error at 0.3 to 0.35 for whole utterances), not from trials here.
    pub const WESPEAKER: Likeness = Likeness { merge: 0.60, coherence: 0.55, same: 0.50 };
    /// Measured over 23 people: windows of one have 0.52 to 0.86 in common, those of two up to 0.50, by telephone 0.58; whole
    /// utterances of one mostly 0.65 and more.
    pub const CAM_PLUS: Likeness = Likeness { merge: 0.72, coherence: 0.68, same: 0.65 };
}

/// How many voices are compared with each other at once: 1.4 MB of likenesses.
const BLOCK: usize = 600;
/// So much more likeness is asked of groups of which much is heard; half of it where the shorter has `HALF_SURE` windows.
const SURER: f32 = 0.12;
const HALF_SURE: f32 = 6.0;

/// Voices taken for one speaker's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    sum: Vec<f32>,
    weight: f32,
    /// What the caller numbers them by.
    pub(super) members: Vec<usize>,
}

impl Group {
    /// `weight`: one for a whole window, less for a shorter one.
    pub(super) fn of(member: usize, voice: &[f32], weight: f32) -> Group {
        let sum = voice.iter().map(|value| value * weight).collect();
        Group { sum, weight, members: vec![member] }
    }

    /// `voice`: of many seconds at once. Those have more in common than windows have, of what these lack half; beside them it
    /// is shortened by that.
    pub(super) fn of_stretch(member: usize, voice: &[f32], likeness: &Likeness) -> Group {
        let coherence = (1.0 + likeness.coherence) / 2.0;
        let shortened: Vec<f32> = voice.iter().map(|value| value * (likeness.coherence / coherence).sqrt()).collect();
        Group::of(member, &shortened, 1.0)
    }

    pub(super) fn join(&mut self, other: Group) {
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, value)| *sum += value);
        self.weight += other.weight;
        self.members.extend(other.members);
    }

    /// The same voices under one number of the caller's.
    pub(super) fn numbered(self, member: usize) -> Group {
        Group { members: vec![member], ..self }
    }

    pub(super) fn weight(&self) -> f32 {
        self.weight
    }

    /// The direction of the speaker's voice.
    pub(super) fn centroid(&self) -> Vec<f32> {
        super::embedder::unit(self.sum.clone())
    }

    /// About one for two groups of one speaker.
    fn alike(&self, other: &Group, likeness: &Likeness) -> f32 {
        dot(&self.sum, &other.sum) / (self.weight * other.weight * likeness.coherence)
    }

    /// What is held against the threshold.
    fn close(&self, other: &Group, likeness: &Likeness) -> f32 {
        let more = self.weight.min(other.weight).max(1.0) - 1.0;
        self.alike(other, likeness) - SURER * more / (more + HALF_SURE)
    }
}

/// Joins the two most alike until none are more alike than `merge`, or `at_least` are left.
pub(super) fn agglomerate(mut groups: Vec<Group>, likeness: &Likeness, merge: f32, at_least: usize) -> Vec<Group> {
    // First among neighbours in time, then among what those became; each stage sees a bounded number.
    while groups.len() > BLOCK {
        let before = groups.len();
        let mut joined = Vec::new();
        let mut rest = groups.into_iter();
        loop {
            let block: Vec<Group> = rest.by_ref().take(BLOCK).collect();
            if block.is_empty() {
                break;
            }
            joined.extend(agglomerate_block(block, likeness, merge, 1));
        }
        groups = joined;
        if groups.len() * 2 > before {
            // Hardly any are alike, which no recording of people gives: join what is closest, to an end.
            groups =
                groups.chunks(BLOCK).flat_map(|it| agglomerate_block(it.to_vec(), likeness, -1.0, BLOCK / 4)).collect();
        }
    }
    agglomerate_block(groups, likeness, merge, at_least)
}

fn agglomerate_block(mut groups: Vec<Group>, likeness: &Likeness, merge: f32, at_least: usize) -> Vec<Group> {
    let mut alike: Vec<Vec<f32>> =
        (0..groups.len()).map(|a| (0..a).map(|b| groups[a].close(&groups[b], likeness)).collect()).collect();
    while groups.len() > at_least.max(1) {
        let mut best = (f32::NEG_INFINITY, 0, 0);
        for (a, row) in alike.iter().enumerate() {
            for (b, value) in row.iter().enumerate() {
                if *value > best.0 {
                    best = (*value, a, b);
                }
            }
        }
        let (value, later, earlier) = best;
        if value < merge {
            break;
        }
        // The last one takes the place of the one that goes; then what became of the two is compared anew.
        let gone = groups.swap_remove(later);
        let moved = alike.pop().unwrap_or_default();
        if later < groups.len() {
            for (other, value) in moved.into_iter().enumerate().filter(|(other, _)| *other != later) {
                *pair(&mut alike, later, other) = value;
            }
        }
        groups[earlier].join(gone);
        for other in (0..groups.len()).filter(|other| *other != earlier) {
            *pair(&mut alike, earlier, other) = groups[earlier].close(&groups[other], likeness);
        }
    }
    groups
}

fn pair(alike: &mut [Vec<f32>], a: usize, b: usize) -> &mut f32 {
    &mut alike[a.max(b)][a.min(b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIKENESS: Likeness = Likeness { merge: 0.7, coherence: 0.8, same: 0.7 };

    /// Voices of a speaker: one axis of their own, with noise over all axes.
    fn voice(speaker: usize, noise: f32, random: &mut fastrand::Rng) -> Vec<f32> {
        let mut voice: Vec<f32> = (0..32).map(|_| (random.f32() - 0.5) * noise).collect();
        voice[speaker] += 1.0;
        super::super::embedder::unit(voice)
    }

    fn cluster(count: usize, speakers: usize, noise: f32, at_least: usize) -> Vec<Group> {
        let mut random = fastrand::Rng::with_seed(7);
        let groups =
            (0..count).map(|member| Group::of(member, &voice(member % speakers, noise, &mut random), 1.0)).collect();
        agglomerate(groups, &LIKENESS, LIKENESS.merge, at_least)
    }

    fn assert_pure(groups: &[Group], count: usize, speakers: usize) {
        assert_eq!(groups.len(), speakers);
        assert_eq!(groups.iter().map(|group| group.members.len()).sum::<usize>(), count);
        for group in groups {
            let speaker = group.members[0] % speakers;
            assert!(group.members.iter().all(|member| member % speakers == speaker));
        }
    }

    #[test]
    fn noisy_voices_fall_into_their_speakers() {
        for speakers in 1..=5 {
            assert_pure(&cluster(60, speakers, 0.3, 1), 60, speakers);
        }
    }

    #[test]
    fn two_stages_give_what_one_gives() {
        assert_pure(&cluster(BLOCK + 150, 4, 0.3, 1), BLOCK + 150, 4);
    }

    #[test]
    fn joining_stops_where_as_many_are_left_as_were_asked_for() {
        assert_eq!(cluster(40, 4, 0.3, 6).len(), 6);
        assert!(cluster(0, 1, 0.3, 3).is_empty());
    }

    #[test]
    fn voices_that_are_all_different_come_to_an_end_too() {
        let random = &mut fastrand::Rng::with_seed(3);
        let noise = |_| super::super::embedder::unit((0..64).map(|_| random.f32() - 0.5).collect::<Vec<f32>>());
        let groups: Vec<Group> =
            (0..BLOCK + 10).map(noise).enumerate().map(|(member, voice)| Group::of(member, &voice, 1.0)).collect();
        let groups = agglomerate(groups, &LIKENESS, LIKENESS.merge, 1);
        assert!((1..=BLOCK).contains(&groups.len()));
    }

    #[test]
    fn a_short_group_of_the_same_speaker_is_as_alike_as_a_long_one_and_less_is_asked_of_it() {
        let random = &mut fastrand::Rng::with_seed(5);
        let mut group = |speaker: usize, count: usize| {
            let mut group = Group::of(0, &voice(speaker, 0.25, random), 1.0);
            (1..count).for_each(|member| group.join(Group::of(member, &voice(speaker, 0.25, random), 1.0)));
            group
        };
        let (one, four, many, other) = (group(0, 1), group(0, 4), group(0, 50), group(1, 50));
        let expected = many.alike(&many, &LIKENESS);
        assert!((many.alike(&one, &LIKENESS) - expected).abs() < 0.1);
        assert!((many.alike(&four, &LIKENESS) - expected).abs() < 0.1);
        assert_eq!(many.close(&one, &LIKENESS), many.alike(&one, &LIKENESS));
        let asked = |a: &Group, b: &Group| a.alike(b, &LIKENESS) - a.close(b, &LIKENESS);
        assert!(asked(&many, &four) < asked(&many, &other) && asked(&many, &other) < SURER);
    }

    #[test]
    fn one_voice_of_many_seconds_is_about_as_alike_as_its_windows_are() {
        let random = &mut fastrand::Rng::with_seed(6);
        let mut windows = |speaker: usize| {
            let mut group = Group::of(0, &voice(speaker, 0.25, random), 1.0);
            (1..50).for_each(|member| group.join(Group::of(member, &voice(speaker, 0.25, random), 1.0)));
            group
        };
        let (first, again, other) = (windows(0), windows(0), windows(1));
        let [of_first, of_again, of_other] =
            [&first, &again, &other].map(|it| Group::of_stretch(0, &it.centroid(), &LIKENESS));
        assert!((first.alike(&again, &LIKENESS) - of_first.alike(&of_again, &LIKENESS)).abs() < 0.1);
        assert!((first.alike(&other, &LIKENESS) - of_first.alike(&of_other, &LIKENESS)).abs() < 0.1);
    }
}
