//! Conversations made of recordings of single speakers, so that every boundary is known exactly: where somebody says
//! something, with the longer pauses inside of utterances left out.

use std::ops::Range;

use crate::{
    cli::bench::{channels, utterance::Utterance},
    engines::Turn,
    flow::{SAMPLE_RATE_HZ, audio::samples_to_secs},
};

/// What one person says, in one or more recordings.
pub(super) struct Person {
    pub(super) utterances: Vec<Utterance>,
}

pub(super) struct Mix {
    pub(super) name: String,
    pub(super) samples: Vec<f32>,
    pub(super) truth: Vec<Turn>,
    /// Where what was said last begins, pauses and all.
    last_start_secs: f64,
}

/// What makes a mix hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Parts of utterances, cut anywhere.
    Plain,
    /// Hardly a sentence each.
    Short,
    /// One says about five sixths of it.
    Unequal,
    /// They fall into each other's words.
    Overlapping,
    /// All over one telephone line.
    Telephone,
    /// 10 to 20 dB above a noise.
    Noisy,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] =
        [Kind::Plain, Kind::Short, Kind::Unequal, Kind::Overlapping, Kind::Telephone, Kind::Noisy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Plain => "cut anywhere",
            Kind::Short => "short turns",
            Kind::Unequal => "one speaks most",
            Kind::Overlapping => "overlapping",
            Kind::Telephone => "telephone",
            Kind::Noisy => "noisy",
        }
    }
}

/// Pauses between turns, in seconds; a pause below none is none …
const PAUSE_SECS: (f64, f64) = (-0.3, 0.8);
/// … but where they overlap.
const OVERLAP_SECS: (f64, f64) = (-1.0, 0.6);
/// How much louder or quieter a turn may be, as when somebody leans back.
const LEVEL_DB: f64 = 4.0;

/// Whole utterances of everybody, in any order, with pauses of up to 0.6 s.
pub(super) fn whole(people: &[Person], seed: u64) -> Mix {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<(usize, usize)> = people
        .iter()
        .enumerate()
        .flat_map(|(speaker, person)| (0..person.utterances.len()).map(move |at| (speaker, at)))
        .collect();
    random.shuffle(&mut order);
    let mut mix = Mix::new(format!("whole utterances, {seed}"));
    for (speaker, at) in order {
        mix.pause(0.6 * random.f64());
        let utterance = &people[speaker].utterances[at];
        mix.say(speaker, utterance, 0..utterance.samples.len(), 1.0);
    }
    mix
}

/// Parts of utterances, cut anywhere, of some of the people: as hard as turns can be.
pub(super) fn cut(people: &[Person], kind: Kind, speakers: usize, secs: f64, seed: u64) -> Mix {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut present: Vec<usize> = (0..people.len()).collect();
    random.shuffle(&mut present);
    present.truncate(speakers);
    let mut mix = Mix::new(format!("  {speakers} speakers, {secs:.0} s, {seed}"));
    let of_any_length = if random.bool() { (1.5, 4.0) } else { (3.0, 9.0) };
    let (shortest, longest) = if kind == Kind::Short { (0.8, 3.0) } else { of_any_length };
    let pauses = if kind == Kind::Overlapping { OVERLAP_SECS } else { PAUSE_SECS };
    let mut waiting: Vec<usize> = (0..present.len()).collect();
    let mut last = None;
    while mix.secs() < secs || !waiting.is_empty() {
        let speaker = waiting.pop().unwrap_or_else(|| next(kind, present.len(), last, &mut random));
        let before = last.replace(speaker);
        let said = &people[present[speaker]].utterances;
        let said = &said[random.usize(..said.len())];
        let wanted = shortest + (longest - shortest) * random.f64();
        let len = ((wanted * f64::from(SAMPLE_RATE_HZ)) as usize).min(said.samples.len());
        let from = random.usize(..=said.samples.len() - len);
        let part = from..from + len;
        let pause = pauses.0 + (pauses.1 - pauses.0) * random.f64();
        let level = 10.0_f64.powf(LEVEL_DB * (2.0 * random.f64() - 1.0) / 20.0);
        if kind == Kind::Overlapping && pause < 0.0 && before != Some(speaker) {
            mix.interrupt(speaker, said, part, level as f32, -pause);
        } else {
            mix.pause(pause);
            mix.say(speaker, said, part, level as f32);
        }
    }
    match kind {
        Kind::Telephone => channels::telephone(&mut mix.samples),
        Kind::Noisy => channels::add_noise(&mut mix.samples, 10.0 + 10.0 * random.f64(), &mut random),
        Kind::Plain | Kind::Short | Kind::Unequal | Kind::Overlapping => {}
    }
    mix
}

/// Who speaks next.
fn next(kind: Kind, present: usize, last: Option<usize>, random: &mut fastrand::Rng) -> usize {
    // The first goes on after everybody else, and often after a pause.
    if kind == Kind::Unequal && (last != Some(0) || random.f64() < 0.8) {
        return 0;
    }
    let others: Vec<usize> = (0..present).filter(|it| present == 1 || Some(*it) != last).collect();
    random.choice(others).unwrap_or(0)
}

impl Mix {
    fn new(name: String) -> Mix {
        Mix { name, samples: Vec::new(), truth: Vec::new(), last_start_secs: 0.0 }
    }

    pub(super) fn secs(&self) -> f64 {
        samples_to_secs(self.samples.len() as u64)
    }

    fn pause(&mut self, secs: f64) {
        let len = (secs.max(0.0) * f64::from(SAMPLE_RATE_HZ)) as usize;
        self.samples.resize(self.samples.len() + len, 0.0);
    }

    fn say(&mut self, speaker: usize, said: &Utterance, part: Range<usize>, level: f32) {
        self.say_at(self.samples.len(), speaker, said, part, level);
    }

    /// Begins that much before what was said so far ends, but not before it is under way.
    fn interrupt(&mut self, speaker: usize, said: &Utterance, part: Range<usize>, level: f32, before_secs: f64) {
        let under_way = self.last_start_secs + 0.5;
        let start = (self.secs() - before_secs).max(under_way).min(self.secs());
        self.say_at((start * f64::from(SAMPLE_RATE_HZ)) as usize, speaker, said, part, level);
    }

    fn say_at(&mut self, from: usize, speaker: usize, said: &Utterance, part: Range<usize>, level: f32) {
        self.last_start_secs = samples_to_secs(from as u64);
        self.samples.resize(self.samples.len().max(from + part.len()), 0.0);
        let heard = &said.samples[part.clone()];
        self.samples[from..].iter_mut().zip(heard).for_each(|(sample, heard)| *sample += heard * level);
        let secs = |sample: usize| samples_to_secs((from + sample) as u64);
        let turns = said.spoken_in(&part).map(|it| Turn { start: secs(it.start), end: secs(it.end), speaker });
        self.truth.extend(turns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn people() -> Vec<Person> {
        let utterance = |level: f32| Utterance::new(vec![level; 80_000]);
        (1..=3).map(|person| Person { utterances: (0..2).map(|_| utterance(person as f32)).collect() }).collect()
    }

    #[test]
    fn the_truth_of_a_mix_is_where_the_samples_are() {
        let cuts = [Kind::Plain, Kind::Short, Kind::Unequal].map(|kind| cut(&people(), kind, 2, 30.0, 2));
        for mix in cuts.into_iter().chain([whole(&people(), 1)]) {
            let of_truth: usize =
                mix.truth.iter().map(|turn| ((turn.end - turn.start) * 16_000.0).round() as usize).sum();
            assert_eq!(of_truth, mix.samples.iter().filter(|sample| **sample != 0.0).count(), "{}", mix.name);
        }
    }

    #[test]
    fn pauses_inside_of_utterances_are_nobodys() {
        let with_a_pause = [vec![0.5; 16_000], vec![0.0; 8_000], vec![0.5; 16_000]].concat();
        let people = vec![Person { utterances: vec![Utterance::new(with_a_pause)] }];
        let mix = whole(&people, 1);
        let edges = mix.truth.iter().flat_map(|turn| [turn.start, turn.end]);
        let edges: Vec<usize> = edges.map(|secs| (secs * 16_000.0).round() as usize).collect();
        let start = mix.samples.len() - 40_000;
        assert_eq!(edges, [start, start + 16_000, start + 24_000, start + 40_000]);
    }

    #[test]
    fn everybody_who_is_present_speaks_and_the_same_seed_gives_the_same_mix() {
        for kind in Kind::ALL {
            let mix = cut(&people(), kind, 3, 5.0, 9);
            let speakers: std::collections::BTreeSet<usize> = mix.truth.iter().map(|turn| turn.speaker).collect();
            assert_eq!(speakers.len(), 3);
            assert_eq!(mix.samples, cut(&people(), kind, 3, 5.0, 9).samples);
        }
    }

    #[test]
    fn who_interrupts_is_heard_beside_the_other() {
        let mix = cut(&people(), Kind::Overlapping, 2, 60.0, 4);
        let both = |pair: &[Turn]| pair[0].end - pair[1].start;
        let overlaps: Vec<f64> = mix.truth.windows(2).map(both).filter(|secs| *secs > 0.0).collect();
        assert!(overlaps.len() > 3 && overlaps.iter().all(|secs| *secs <= 1.0), "{overlaps:?}");
        assert!(mix.truth.iter().all(|turn| turn.end <= mix.secs()));
    }

    #[test]
    fn where_one_speaks_most_the_others_have_little() {
        let mix = cut(&people(), Kind::Unequal, 3, 120.0, 5);
        let said = |of: &dyn Fn(usize) -> bool| -> f64 {
            mix.truth.iter().filter(|turn| of(turn.speaker)).map(|turn| turn.end - turn.start).sum()
        };
        assert!(said(&|speaker| speaker == 0) > 3.0 * said(&|speaker| speaker != 0));
    }
}
