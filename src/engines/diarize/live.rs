//! Speakers of a live session: one voice a segment against those heard before. What was once called S2 stays S2, over
//! all takes of the session. At the end of a take the whole of it is diarized anew, and its speakers get the numbers
//! that they already have (`LiveSpeakers::adopt`).
//!
//! Pure: knows no clock, no session and no model. The same segments in the same order give the same numbers, and a
//! state that was written (serde) and read back goes on as if nothing had happened: whoever keeps it after each segment
//! that was told loses nothing in a crash. It holds one voice a speaker, a few KiB in all.

use serde::{Deserialize, Serialize};

use crate::engines::diarize::{
    Cast, VoiceKind, Voices, assign,
    embedder::{dot, unit},
};

/// Shorter segments found no speaker and change no voice: they may only be recognised.
const FOUNDING_SECS: f64 = 1.5;
/// A short segment is noisier, and resembles even its own speaker less: so much less than `same` is asked of the shortest that
/// may found a speaker …
const AT_FIRST: f32 = 0.05;
/// … and of longer ones up to so much more than that, half of it where this much more is heard of both.
const SURER: f32 = 0.15;
const HALF_SURE_SECS: f32 = 5.0;
/// Of shorter segments, which can only be recognised, so much less than `same`.
const SHORT_ALLOWANCE: f32 = 0.13;
/// Two speakers who turn out to be this much more alike than one utterance must be, are one.
const ONE_AFTER_ALL: f32 = 0.1;
/// Seconds after which a voice is known; from then on it only drifts.
const KNOWN_SECS: f32 = 120.0;
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

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveSpeakers {
    /// None before the first voice.
    kind: Option<VoiceKind>,
    /// By number; numbers are never given twice.
    voices: Vec<Running>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Running {
    /// Of unit length; empty if another model heard it.
    voice: Vec<f32>,
    /// How much was heard; no more digits than the voice, so that both are read back as they were written.
    secs: f32,
    /// Who this one turned out to be.
    is: Option<usize>,
    /// Whose voice it is, where that is known.
    name: Option<String>,
}

impl LiveSpeakers {
    /// Shorter segments say nothing of who speaks.
    pub const SHORTEST_SECS: f64 = 0.5;

    /// Who says this segment. None where it is too short to tell.
    pub fn hear(&mut self, kind: &VoiceKind, voice: &[f32], secs: f64) -> Option<usize> {
        self.expect(kind);
        let same = kind.likeness.same;
        let heard = self.voices.iter().enumerate().filter(|(_, known)| known.is.is_none() && !known.voice.is_empty());
        let closest = heard
            .map(|(speaker, known)| (speaker, dot(&known.voice, voice)))
            .reduce(|best, other| if other.1 > best.1 { other } else { best });
        // 1. Too short for anything.
        if secs < Self::SHORTEST_SECS || voice.is_empty() {
            return None;
        }
        // 2. Too short for a new speaker.
        if secs < FOUNDING_SECS {
            return closest.filter(|(_, alike)| *alike >= same - SHORT_ALLOWANCE).map(|(speaker, _)| speaker);
        }
        match closest {
            // 3. Somebody who was heard before.
            Some((speaker, alike)) if alike >= asked(same, secs as f32, self.voices[speaker].secs) => {
                self.learn(speaker, voice, secs as f32);
                self.merge(speaker, same);
                Some(self.resolve(speaker))
            }
            // 4. Somebody new, unless there are too many already.
            closest if self.voices.len() >= MOST => closest.map(|(speaker, _)| speaker),
            _ => Some(self.found(voice, secs)),
        }
    }

    /// Looks for the speaker among known voices. Once recognised, a speaker keeps the name to the end of the session.
    pub fn recognise(&mut self, speaker: usize, known: &Voices) {
        let speaker = self.resolve(speaker);
        let (Some(kind), Some(running)) = (&self.kind, self.voices.get_mut(speaker)) else { return };
        if running.name.is_none() {
            running.name = known.name_of(&kind.model, &running.voice, kind.likeness.same).map(str::to_owned);
        }
    }

    /// What people read: the name, else the number.
    pub fn called(&self, speaker: usize) -> String {
        let speaker = self.resolve(speaker);
        let name = self.voices.get(speaker).and_then(|running| running.name.clone());
        name.unwrap_or_else(|| speaker_name(speaker))
    }

    /// Who a number stands for now: two numbers may turn out to be one person, who keeps the earlier.
    pub fn resolve(&self, mut speaker: usize) -> usize {
        while let Some(is) = self.voices.get(speaker).and_then(|known| known.is) {
            speaker = is;
        }
        speaker
    }

    /// Whom people read about: the opposite of `called`, as of now.
    pub fn number(&self, called: &str) -> Option<usize> {
        let named = self.voices.iter().position(|known| known.is.is_none() && known.name.as_deref() == Some(called));
        let numbered = || called.strip_prefix('S')?.parse::<usize>().ok()?.checked_sub(1);
        named.or_else(numbered).filter(|speaker| *speaker < self.voices.len()).map(|speaker| self.resolve(speaker))
    }

    /// The same numbers and names, and nobody's voice.
    pub fn without_voices(&self) -> LiveSpeakers {
        let mut without = self.clone();
        without.voices.iter_mut().for_each(|known| known.voice.clear());
        without
    }

    /// The numbers of the speakers of a whole take: those under which they were published where they were, so that most
    /// of the time keeps its name; else who sounds the same; else a new one.
    pub fn adopt(&mut self, cast: &Cast, published: &[SpokenBy]) -> Vec<usize> {
        let Some(kind) = cast.kind.as_ref().filter(|_| !cast.voices.is_empty()) else { return Vec::new() };
        self.expect(kind);
        let speakers = cast.voices.len();
        let names = published.iter().map(|it| self.resolve(it.speaker) + 1).max().unwrap_or(0);
        let mut shared = vec![vec![0.0; names]; speakers];
        let mut said = vec![0.0; speakers];
        for turn in &cast.turns {
            said[turn.speaker] += turn.end - turn.start;
            for segment in published {
                let secs = (turn.end.min(segment.end) - turn.start.max(segment.start)).max(0.0);
                shared[turn.speaker][self.resolve(segment.speaker)] += secs;
            }
        }
        // The assignment also pairs those who share nothing.
        let mut numbers: Vec<Option<usize>> = assign(&shared)
            .into_iter()
            .enumerate()
            .map(|(speaker, name)| name.filter(|name| shared[speaker][*name] > 0.0))
            .collect();
        numbers.resize(speakers, None);
        for speaker in 0..speakers {
            if numbers[speaker].is_none() {
                let voice = &cast.voices[speaker];
                let free = (0..self.voices.len())
                    .filter(|known| self.voices[*known].is.is_none() && !numbers.contains(&Some(*known)));
                let closest = free.map(|known| (known, dot(&self.voices[known].voice, voice)));
                let closest = closest.reduce(|best, other| if other.1 > best.1 { other } else { best });
                numbers[speaker] = match closest.filter(|(_, alike)| *alike >= kind.likeness.same) {
                    Some((known, _)) => Some(known),
                    None => Some(self.found(voice, said[speaker])),
                };
            }
        }
        numbers.into_iter().flatten().collect()
    }

    fn found(&mut self, voice: &[f32], secs: f64) -> usize {
        self.voices.push(Running { voice: unit(voice.to_vec()), secs: secs as f32, is: None, name: None });
        self.voices.len() - 1
    }

    /// Voices of another model cannot be compared with those that come; their numbers and names stay theirs.
    fn expect(&mut self, kind: &VoiceKind) {
        if self.kind.as_ref().is_some_and(|known| known.model != kind.model) {
            self.voices.iter_mut().for_each(|known| known.voice.clear());
        }
        if self.kind.as_ref() != Some(kind) {
            self.kind = Some(kind.clone());
        }
    }

    fn learn(&mut self, speaker: usize, voice: &[f32], secs: f32) {
        let known = &mut self.voices[speaker];
        let share = secs / (known.secs.min(KNOWN_SECS) + secs);
        known.voice.iter_mut().zip(voice).for_each(|(known, heard)| *known += (heard - *known) * share);
        known.voice = unit(std::mem::take(&mut known.voice));
        known.secs += secs;
    }

    /// Whether the speaker who has just been learnt better is another one of those known.
    fn merge(&mut self, speaker: usize, same: f32) {
        let other = (0..self.voices.len()).find(|other| {
            let limit = (asked(same, self.voices[*other].secs, self.voices[speaker].secs) + ONE_AFTER_ALL).min(0.95);
            *other != speaker
                && self.voices[*other].is.is_none()
                && dot(&self.voices[*other].voice, &self.voices[speaker].voice) >= limit
        });
        if let Some(other) = other {
            let (stays, goes) = (speaker.min(other), speaker.max(other));
            let Running { voice, secs, name, .. } = self.voices[goes].clone();
            self.learn(stays, &voice, secs);
            self.voices[goes].is = Some(stays);
            if self.voices[stays].name.is_none() {
                self.voices[stays].name = name;
            }
        }
    }
}

/// How alike two voices must be to be one, of which that much is heard: chance makes the longer less different.
fn asked(same: f32, secs: f32, other_secs: f32) -> f32 {
    let more = (secs.min(other_secs) - FOUNDING_SECS as f32).max(0.0);
    same - AT_FIRST + SURER * more / (more + HALF_SURE_SECS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engines::diarize::{Likeness, Turn, Voice};

    fn kind(model: &str) -> VoiceKind {
        VoiceKind { model: model.to_owned(), likeness: Likeness { merge: 0.7, coherence: 0.8, same: 0.7 } }
    }

    /// Of the model that most tests have.
    fn hear(live: &mut LiveSpeakers, voice: &[f32], secs: f64) -> Option<usize> {
        live.hear(&kind("m"), voice, secs)
    }

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
        let mut live = LiveSpeakers::default();
        let heard: Vec<_> = [0.0, 90.0, 10.0, 80.0, 5.0].map(|degrees| hear(&mut live, &voice(degrees), 3.0)).into();
        assert_eq!(heard, [Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(speaker_name(1), "S2");
    }

    #[test]
    fn short_segments_are_recognised_but_found_no_speaker_and_teach_nothing() {
        let mut live = LiveSpeakers::default();
        assert_eq!(hear(&mut live, &voice(0.0), 1.0), None);
        hear(&mut live, &voice(0.0), 3.0);
        assert_eq!(hear(&mut live, &voice(30.0), 1.0), Some(0));
        assert_eq!(hear(&mut live, &voice(90.0), 1.0), None);
        assert_eq!(hear(&mut live, &voice(0.0), 0.3), None);
        assert_eq!(live.voices[0].voice, voice(0.0));
        assert_eq!(hear(&mut live, &[], 3.0), None);
    }

    #[test]
    fn a_long_talk_moves_a_voice_and_a_short_one_hardly() {
        let mut live = LiveSpeakers::default();
        hear(&mut live, &voice(0.0), 100.0);
        hear(&mut live, &voice(40.0), 2.0);
        assert!(dot(&live.voices[0].voice, &voice(0.0)) > 0.999);
    }

    #[test]
    fn two_numbers_that_turn_out_to_be_one_person_keep_the_earlier() {
        let mut live = LiveSpeakers::default();
        hear(&mut live, &voice(0.0), 2.0);
        assert_eq!(hear(&mut live, &voice(50.0), 2.0), Some(1));
        hear(&mut live, &voice(26.0), 30.0);
        let third = hear(&mut live, &voice(26.0), 60.0);
        assert_eq!(third, Some(0));
        assert_eq!(live.resolve(1), 0);
        // The number of the one who went is not given to somebody else.
        assert_eq!(hear(&mut live, &voice(150.0), 3.0), Some(2));
    }

    #[test]
    fn a_crowd_gets_no_more_numbers_than_there_is_room_for() {
        let mut live = LiveSpeakers::default();
        for speaker in 0..MOST + 5 {
            let mut voice = vec![0.0; MOST + 5];
            voice[speaker] = 1.0;
            assert!(hear(&mut live, &voice, 3.0).unwrap() < MOST);
        }
    }

    fn cast(turns: Vec<Turn>, degrees: &[f32]) -> Cast {
        Cast { turns, voices: degrees.iter().map(|degrees| voice(*degrees)).collect(), kind: Some(kind("m")) }
    }

    #[test]
    fn final_speakers_get_the_numbers_that_most_of_their_time_was_published_with() {
        let mut live = LiveSpeakers::default();
        hear(&mut live, &voice(0.0), 3.0);
        hear(&mut live, &voice(90.0), 3.0);
        // Found in the other order, with a third whom nobody noticed.
        let turns = vec![turn(0.0, 4.0, 0), turn(4.0, 9.0, 1), turn(9.0, 10.0, 2), turn(10.0, 12.0, 0)];
        let published = [spoken(0.0, 4.2, 1), spoken(4.2, 10.0, 0), spoken(10.0, 12.0, 0)];
        let take = cast(turns, &[90.0, 0.0, 180.0]);
        assert_eq!(live.adopt(&take, &published), [1, 0, 2]);
        // The third is known from now on.
        assert_eq!(hear(&mut live, &voice(178.0), 3.0), Some(2));
        assert_eq!(live.adopt(&Cast::default(), &published), Vec::<usize>::new());
    }

    #[test]
    fn who_was_published_under_no_number_is_looked_for_among_those_of_earlier_takes() {
        let mut live = LiveSpeakers::default();
        hear(&mut live, &voice(0.0), 3.0);
        hear(&mut live, &voice(90.0), 3.0);
        let take = cast(vec![turn(0.0, 1.0, 0), turn(1.0, 2.0, 1)], &[85.0, 200.0]);
        assert_eq!(live.adopt(&take, &[]), [1, 2]);
    }

    #[test]
    fn a_known_voice_gives_its_name_once_and_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = Voices::open(dir.path()).unwrap();
        let (name, model, enrolled_at) = ("Ana".to_owned(), "m".to_owned(), "2026-01-01T00:00:00Z".to_owned());
        known.enroll(Voice { name, model, secs: 10.0, enrolled_at, voice: voice(40.0) }).unwrap();
        let mut live = LiveSpeakers::default();
        let speaker = hear(&mut live, &voice(0.0), 2.0).unwrap();
        live.recognise(speaker, &Voices::open(tempfile::tempdir().unwrap().path()).unwrap());
        assert_eq!(live.called(speaker), "S1");
        hear(&mut live, &voice(30.0), 20.0);
        live.recognise(speaker, &known);
        assert_eq!(live.called(speaker), "Ana");
        assert_eq!((live.number("Ana"), live.number("S1"), live.number("S2")), (Some(0), Some(0), None));
        known.remove("Ana").unwrap();
        live.recognise(speaker, &known);
        assert_eq!(live.called(speaker), "Ana");
    }

    #[test]
    fn voices_of_another_model_are_not_compared_and_their_numbers_not_given_again() {
        let mut live = LiveSpeakers::default();
        hear(&mut live, &voice(0.0), 3.0);
        assert_eq!(live.hear(&kind("n"), &[1.0, 0.0, 0.0], 3.0), Some(1));
        assert_eq!(live.hear(&kind("n"), &[0.99, 0.1, 0.0], 3.0), Some(1));
    }

    proptest! {
        #[test]
        fn a_state_that_was_kept_goes_on_as_if_nothing_had_happened(
            heard in prop::collection::vec((0.0..360.0_f32, 0.2..8.0_f64), 1..40),
            cut in 0..40_usize,
        ) {
            let mut through = LiveSpeakers::default();
            let mut kept = LiveSpeakers::default();
            for (at, (degrees, secs)) in heard.iter().enumerate() {
                if at == cut {
                    kept = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
                }
                let told = hear(&mut through, &voice(*degrees), *secs);
                prop_assert_eq!(hear(&mut kept, &voice(*degrees), *secs), told);
            }
            prop_assert_eq!(through, kept);
        }

        #[test]
        fn the_order_in_which_people_speak_decides_their_numbers_and_nothing_else(order in prop::collection::vec(0..6_usize, 1..60)) {
            // Six people who are no more alike than strangers.
            let voice_of = |person: usize| (0..6).map(|axis| if axis == person { 1.0 } else { 0.3 }).collect::<Vec<f32>>();
            let mut live = LiveSpeakers::default();
            let mut first_heard: Vec<usize> = Vec::new();
            for person in order {
                if !first_heard.contains(&person) {
                    first_heard.push(person);
                }
                let number = first_heard.iter().position(|it| *it == person);
                prop_assert_eq!(hear(&mut live, &unit(voice_of(person)), 2.0), number);
            }
        }
    }
}
