//! A recording of one person alone, and where in it something is said: by a plain rule of energy, so that what is scored
//! owes nothing to the detectors that are measured.
//!
//! The rule is for clean recordings. It never sees a mix, nor what a line or a room makes of one.

use std::ops::Range;

use crate::flow::SAMPLE_RATE_HZ;

/// What is measured at once: 10 ms.
const FRAME: usize = SAMPLE_RATE_HZ as usize / 100;
/// The loud level is that of the loudest twentieth of all frames; the noise of a recording that of its quietest tenth.
const LOUD_PART: f64 = 0.95;
const NOISE_PART: f64 = 0.10;
/// So far below the loud level nothing is said, as consonants are; …
const QUIET_DB: f64 = -30.0;
/// … where the recording itself is noisier, what is no louder than its noise by this, …
const ABOVE_NOISE_DB: f64 = 6.0;
/// … but never what is nearer to the loud level than this.
const QUIET_AT_MOST_DB: f64 = -25.0;
/// Shorter pauses are part of what is said: stops of consonants, and what people who mark turns leave in.
const PAUSE: usize = SAMPLE_RATE_HZ as usize * 3 / 10;
/// Digital silence has no level.
const SILENCE: f64 = 1e-12;

pub(super) struct Utterance {
    pub(super) samples: Vec<f32>,
    /// Without its pauses, in order.
    spoken: Vec<Range<usize>>,
}

impl Utterance {
    pub(super) fn new(samples: Vec<f32>) -> Utterance {
        let spoken = spoken(&samples);
        Utterance { samples, spoken }
    }

    /// Where something is said in that part, counted from its start.
    pub(super) fn spoken_in(&self, part: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let within = |it: &Range<usize>| it.start.max(part.start) - part.start..it.end.min(part.end) - part.start;
        self.spoken.iter().filter(|it| it.start < part.end && it.end > part.start).map(within)
    }
}

fn spoken(samples: &[f32]) -> Vec<Range<usize>> {
    let level = |frame: &[f32]| {
        let energy: f64 = frame.iter().map(|sample| f64::from(*sample).powi(2)).sum();
        10.0 * (energy / frame.len() as f64 + SILENCE).log10()
    };
    let levels: Vec<f64> = samples.chunks(FRAME).map(level).collect();
    let mut sorted = levels.clone();
    sorted.sort_by(f64::total_cmp);
    let Some(most) = sorted.len().checked_sub(1) else { return Vec::new() };
    let [loud, noise] = [LOUD_PART, NOISE_PART].map(|part| sorted[(part * most as f64).round() as usize]);
    let quiet = (noise + ABOVE_NOISE_DB).clamp(loud + QUIET_DB, loud + QUIET_AT_MOST_DB);
    let mut spoken: Vec<Range<usize>> = Vec::new();
    for (at, _) in levels.iter().enumerate().filter(|(_, level)| **level > quiet) {
        let frame = at * FRAME..samples.len().min((at + 1) * FRAME);
        match spoken.last_mut() {
            Some(last) if frame.start - last.end < PAUSE => last.end = frame.end,
            _ => spoken.push(frame),
        }
    }
    spoken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels in dB of full scale, and for how many seconds.
    fn recording(parts: &[(f64, f64)]) -> Vec<f32> {
        let mut samples = Vec::new();
        for (level, secs) in parts {
            let amplitude = 10.0_f64.powf(level / 20.0) as f32;
            let len = (secs * f64::from(SAMPLE_RATE_HZ)) as usize;
            samples.extend((0..len).map(|at| if at % 2 == 0 { amplitude } else { -amplitude }));
        }
        samples
    }

    fn secs(spans: impl IntoIterator<Item = Range<usize>>) -> Vec<(f64, f64)> {
        let at = |sample: usize| sample as f64 / f64::from(SAMPLE_RATE_HZ);
        spans.into_iter().map(|it| (at(it.start), at(it.end))).collect()
    }

    #[test]
    fn long_pauses_are_no_speech_and_short_ones_are() {
        let clean = recording(&[(-90.0, 0.5), (-20.0, 2.0), (-80.0, 0.2), (-25.0, 1.0), (-70.0, 0.5), (-40.0, 1.0)]);
        assert_eq!(secs(spoken(&clean)), [(0.5, 3.7), (4.2, 5.2)]);
    }

    #[test]
    fn the_noise_of_a_recording_is_no_speech_and_a_quiet_voice_without_noise_is() {
        // 28 dB below the loud level: noise of the one, the end of a sentence in the other.
        let noisy = recording(&[(-48.0, 1.0), (-20.0, 2.0), (-48.0, 0.6), (-20.0, 1.0)]);
        assert_eq!(secs(spoken(&noisy)), [(1.0, 3.0), (3.6, 4.6)]);
        let clean = recording(&[(-90.0, 1.0), (-20.0, 2.0), (-48.0, 0.6), (-20.0, 1.0)]);
        assert_eq!(secs(spoken(&clean)), [(1.0, 4.6)]);
    }

    #[test]
    fn a_part_has_what_is_said_in_it_from_its_own_start() {
        let utterance = Utterance::new(recording(&[(-20.0, 1.0), (-90.0, 0.5), (-20.0, 1.0)]));
        let part = |from: f64, to: f64| {
            let [from, to] = [from, to].map(|secs| (secs * f64::from(SAMPLE_RATE_HZ)) as usize);
            secs(utterance.spoken_in(&(from..to)))
        };
        assert_eq!(part(0.5, 2.0), [(0.0, 0.5), (1.0, 1.5)]);
        assert_eq!(part(1.1, 1.4), []);
        assert_eq!(secs(utterance.spoken_in(&(0..utterance.samples.len()))), [(0.0, 1.0), (1.5, 2.5)]);
    }

    #[test]
    fn silence_and_nothing_say_nothing_wrong() {
        assert!(spoken(&[]).is_empty());
        // All of one level: nobody can tell it from speech.
        assert_eq!(spoken(&[0.0; 1600]).len(), 1);
    }
}
