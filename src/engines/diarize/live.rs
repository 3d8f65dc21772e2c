//! Speakers of a live session: one voice a segment against those heard before. What was once called S2 stays S2.
//!
//! Pure: knows no clock, no session and no model. At the end of a take the whole of it is diarized anew, and its
//! speakers get the names that they already have (`LiveSpeakers::remap`).

use crate::engines::diarize::{
    Likeness, Turn, assign,
    embedder::{dot, unit},
};

/// Shorter segments say nothing of who speaks.
const SHORTEST_SECS: f64 = 0.5;
/// Shorter segments found no speaker and change no voice: they may only be recognised.
const FOUNDING_SECS: f64 = 1.5;
/// A short segment is noisier, and resembles even its own speaker less.
const SHORT_ALLOWANCE: f32 = 0.08;
/// Two speakers who turn out to be this much more alike than one utterance must be, are one.
const ONE_AFTER_ALL: f32 = 0.1;
/// Seconds after which a voice is known; from then on it only drifts.
const KNOWN_SECS: f64 = 120.0;
/// One more is told apart from nobody: a room with more voices than this is a crowd.
const MOST: usize = 24;

/// Numbered from 1, as people read it: `S1`.
pub fn speaker_name(speaker: usize) -> String {
    format!("S{}", speaker + 1)
}

/// A segment that was published with a speaker, in seconds of the take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpokenBy {
    pub start: f64,
    pub end: f64,
    pub speaker: usize,
}

pub struct LiveSpeakers {
    likeness: Likeness,
    /// By number; numbers are never given twice.
    voices: Vec<Running>,
}

struct Running {
    /// Of unit length.
    voice: Vec<f32>,
    secs: f64,
    /// Who this one turned out to be.
    is: Option<usize>,
}

impl LiveSpeakers {
    pub fn new(likeness: Likeness) -> LiveSpeakers {
        LiveSpeakers { likeness, voices: Vec::new() }
    }

    /// Who says this segment. None where it is too short to tell.
    pub fn hear(&mut self, voice: &[f32], secs: f64) -> Option<usize> {
        let heard = self.voices.iter().enumerate().filter(|(_, known)| known.is.is_none());
        let closest = heard
            .map(|(speaker, known)| (speaker, dot(&known.voice, voice)))
            .reduce(|best, other| if other.1 > best.1 { other } else { best });
        // 1. Too short for anything.
        if secs < SHORTEST_SECS || voice.is_empty() {
            return None;
        }
        // 2. Too short for a new speaker.
        if secs < FOUNDING_SECS {
            return closest
                .filter(|(_, alike)| *alike >= self.likeness.same - SHORT_ALLOWANCE)
                .map(|(speaker, _)| speaker);
        }
        match closest {
            // 3. Somebody who was heard before.
            Some((speaker, alike)) if alike >= self.likeness.same => {
                self.learn(speaker, voice, secs);
                self.merge(speaker);
                Some(self.resolve(speaker))
            }
            // 4. Somebody new, unless there are too many already.
            closest if self.voices.len() >= MOST => closest.map(|(speaker, _)| speaker),
            _ => {
                self.voices.push(Running { voice: unit(voice.to_vec()), secs, is: None });
                Some(self.voices.len() - 1)
            }
        }
    }

    /// The voice of a speaker, to look for among known voices.
    pub fn voice(&self, speaker: usize) -> Option<&[f32]> {
        self.voices.get(self.resolve(speaker)).map(|known| known.voice.as_slice())
    }

    /// Who a number stands for now: two numbers may turn out to be one person, who keeps the earlier.
    pub fn resolve(&self, mut speaker: usize) -> usize {
        while let Some(is) = self.voices.get(speaker).and_then(|known| known.is) {
            speaker = is;
        }
        speaker
    }

    /// The numbers of the speakers of the final turns: those under which they were published where they were, so that
    /// most of the time keeps its name; numbers never used for others.
    pub fn remap(&self, turns: &[Turn], published: &[SpokenBy]) -> Vec<usize> {
        let speakers = turns.iter().map(|turn| turn.speaker + 1).max().unwrap_or(0);
        let names = published.iter().map(|it| self.resolve(it.speaker) + 1).max().unwrap_or(0).max(self.voices.len());
        let mut shared = vec![vec![0.0; names]; speakers];
        for turn in turns {
            for segment in published {
                let secs = (turn.end.min(segment.end) - turn.start.max(segment.start)).max(0.0);
                shared[turn.speaker][self.resolve(segment.speaker)] += secs;
            }
        }
        let mut unused = names..;
        let named = assign(&shared).into_iter().enumerate().map(|(speaker, name)| {
            // The assignment also pairs those who share nothing.
            let known = name.filter(|name| shared[speaker][*name] > 0.0);
            known.or_else(|| unused.next()).unwrap_or(speaker)
        });
        named.collect()
    }

    fn learn(&mut self, speaker: usize, voice: &[f32], secs: f64) {
        let known = &mut self.voices[speaker];
        let share = (secs / (known.secs.min(KNOWN_SECS) + secs)) as f32;
        known.voice.iter_mut().zip(voice).for_each(|(known, heard)| *known += (heard - *known) * share);
        known.voice = unit(std::mem::take(&mut known.voice));
        known.secs += secs;
    }

    /// Whether the speaker who has just been learnt better is another one of those known.
    fn merge(&mut self, speaker: usize) {
        let limit = (self.likeness.same + ONE_AFTER_ALL).min(0.95);
        let same = (0..self.voices.len()).find(|other| {
            *other != speaker
                && self.voices[*other].is.is_none()
                && dot(&self.voices[*other].voice, &self.voices[speaker].voice) >= limit
        });
        if let Some(other) = same {
            let (stays, goes) = (speaker.min(other), speaker.max(other));
            let (voice, secs) = (self.voices[goes].voice.clone(), self.voices[goes].secs);
            self.learn(stays, &voice, secs);
            self.voices[goes].is = Some(stays);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIKENESS: Likeness = Likeness { merge: 0.7, coherence: 0.8, same: 0.7 };

    /// A voice at that angle: 0 and 90 degrees have nothing in common.
    fn voice(degrees: f32) -> Vec<f32> {
        vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
    }

    fn turn(start: f64, end: f64, speaker: usize) -> Turn {
        Turn { start, end, speaker }
    }

    fn spoken(start: f64, end: f64, speaker: usize) -> SpokenBy {
        SpokenBy { start, end, speaker }
    }

    #[test]
    fn a_speaker_keeps_the_number_and_a_new_one_gets_the_next() {
        let mut live = LiveSpeakers::new(LIKENESS);
        let heard: Vec<_> = [0.0, 90.0, 10.0, 80.0, 5.0].map(|degrees| live.hear(&voice(degrees), 3.0)).into();
        assert_eq!(heard, [Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(speaker_name(1), "S2");
    }

    #[test]
    fn short_segments_are_recognised_but_found_no_speaker_and_teach_nothing() {
        let mut live = LiveSpeakers::new(LIKENESS);
        assert_eq!(live.hear(&voice(0.0), 1.0), None);
        live.hear(&voice(0.0), 3.0);
        assert_eq!(live.hear(&voice(30.0), 1.0), Some(0));
        assert_eq!(live.hear(&voice(90.0), 1.0), None);
        assert_eq!(live.hear(&voice(0.0), 0.3), None);
        assert_eq!(live.voice(0), Some(&voice(0.0)[..]));
        assert_eq!(live.hear(&[], 3.0), None);
    }

    #[test]
    fn a_long_talk_moves_a_voice_and_a_short_one_hardly() {
        let mut live = LiveSpeakers::new(LIKENESS);
        live.hear(&voice(0.0), 100.0);
        live.hear(&voice(40.0), 2.0);
        assert!(dot(live.voice(0).unwrap(), &voice(0.0)) > 0.999);
    }

    #[test]
    fn two_numbers_that_turn_out_to_be_one_person_keep_the_earlier() {
        let mut live = LiveSpeakers::new(LIKENESS);
        live.hear(&voice(0.0), 2.0);
        assert_eq!(live.hear(&voice(50.0), 2.0), Some(1));
        live.hear(&voice(26.0), 30.0);
        let third = live.hear(&voice(26.0), 60.0);
        assert_eq!(third, Some(0));
        assert_eq!(live.resolve(1), 0);
        // The number of the one who went is not given to somebody else.
        assert_eq!(live.hear(&voice(150.0), 3.0), Some(2));
    }

    #[test]
    fn a_crowd_gets_no_more_numbers_than_there_is_room_for() {
        let mut live = LiveSpeakers::new(LIKENESS);
        for speaker in 0..MOST + 5 {
            let mut voice = vec![0.0; MOST + 5];
            voice[speaker] = 1.0;
            assert!(live.hear(&voice, 3.0).unwrap() < MOST);
        }
    }

    #[test]
    fn final_speakers_get_the_numbers_that_most_of_their_time_was_published_with() {
        let mut live = LiveSpeakers::new(LIKENESS);
        live.hear(&voice(0.0), 3.0);
        live.hear(&voice(90.0), 3.0);
        // Found in the other order, with a third whom nobody noticed.
        let turns = [turn(0.0, 4.0, 0), turn(4.0, 9.0, 1), turn(9.0, 10.0, 2), turn(10.0, 12.0, 0)];
        let published = [spoken(0.0, 4.2, 1), spoken(4.2, 10.0, 0), spoken(10.0, 12.0, 0)];
        assert_eq!(live.remap(&turns, &published), [1, 0, 2]);
        assert_eq!(live.remap(&[], &published), Vec::<usize>::new());
        assert_eq!(live.remap(&[turn(0.0, 1.0, 0)], &[]), [2]);
    }
}
