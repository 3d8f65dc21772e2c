//! Conversations made of recordings of single speakers, so that every boundary is known exactly.

use crate::{
    engines::Turn,
    flow::{SAMPLE_RATE_HZ, audio::samples_to_secs},
};

/// What one person says, in one or more recordings.
pub(super) struct Person {
    pub(super) utterances: Vec<Vec<f32>>,
}

pub(super) struct Mix {
    pub(super) name: String,
    pub(super) samples: Vec<f32>,
    pub(super) truth: Vec<Turn>,
}

/// Pauses between turns, in seconds; a pause below none is none.
const PAUSE_SECS: (f64, f64) = (-0.3, 0.8);
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
    let mut mix = Mix { name: format!("whole utterances, {}", seed), samples: Vec::new(), truth: Vec::new() };
    for (speaker, at) in order {
        mix.pause(0.6 * random.f64());
        mix.say(speaker, &people[speaker].utterances[at], 1.0);
    }
    mix
}

/// Parts of utterances, cut anywhere, of some of the people: as hard as turns can be.
pub(super) fn cut(people: &[Person], speakers: usize, secs: f64, seed: u64) -> Mix {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut present: Vec<usize> = (0..people.len()).collect();
    random.shuffle(&mut present);
    present.truncate(speakers);
    let name = format!("{speakers} speakers, {secs:.0} s, {seed}");
    let mut mix = Mix { name, samples: Vec::new(), truth: Vec::new() };
    let (shortest, longest) = if random.bool() { (1.5, 4.0) } else { (3.0, 9.0) };
    let mut waiting: Vec<usize> = (0..present.len()).collect();
    let mut last = None;
    while mix.secs() < secs || !waiting.is_empty() {
        let others: Vec<usize> = (0..present.len()).filter(|it| present.len() == 1 || Some(*it) != last).collect();
        let speaker = waiting.pop().or_else(|| random.choice(others)).unwrap_or(0);
        last = Some(speaker);
        let said = &people[present[speaker]].utterances;
        let said = &said[random.usize(..said.len())];
        let wanted = shortest + (longest - shortest) * random.f64();
        let len = ((wanted * f64::from(SAMPLE_RATE_HZ)) as usize).min(said.len());
        let from = random.usize(..=said.len() - len);
        mix.pause(PAUSE_SECS.0 + (PAUSE_SECS.1 - PAUSE_SECS.0) * random.f64());
        let level = 10.0_f64.powf(LEVEL_DB * (2.0 * random.f64() - 1.0) / 20.0);
        mix.say(speaker, &said[from..from + len], level as f32);
    }
    mix
}

impl Mix {
    pub(super) fn secs(&self) -> f64 {
        samples_to_secs(self.samples.len() as u64)
    }

    fn pause(&mut self, secs: f64) {
        let len = (secs.max(0.0) * f64::from(SAMPLE_RATE_HZ)) as usize;
        self.samples.resize(self.samples.len() + len, 0.0);
    }

    fn say(&mut self, speaker: usize, said: &[f32], level: f32) {
        let start = self.secs();
        self.samples.extend(said.iter().map(|sample| sample * level));
        self.truth.push(Turn { start, end: self.secs(), speaker });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn people() -> Vec<Person> {
        (1..=3).map(|person| Person { utterances: vec![vec![person as f32; 80_000]; 2] }).collect()
    }

    #[test]
    fn the_truth_of_a_mix_is_where_the_samples_are() {
        for mix in [whole(&people(), 1), cut(&people(), 2, 30.0, 2), cut(&people(), 3, 5.0, 3)] {
            let of_truth: usize =
                mix.truth.iter().map(|turn| ((turn.end - turn.start) * 16_000.0).round() as usize).sum();
            assert_eq!(of_truth, mix.samples.iter().filter(|sample| **sample != 0.0).count(), "{}", mix.name);
        }
    }

    #[test]
    fn everybody_who_is_present_speaks_and_the_same_seed_gives_the_same_mix() {
        let mix = cut(&people(), 3, 5.0, 9);
        let speakers: std::collections::BTreeSet<usize> = mix.truth.iter().map(|turn| turn.speaker).collect();
        assert_eq!(speakers.len(), 3);
        assert_eq!(mix.samples, cut(&people(), 3, 5.0, 9).samples);
    }
}
