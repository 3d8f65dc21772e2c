//! What a line or a room does to speech, for mixes of a bench: a telephone's band and its eight bits, and noise.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use crate::flow::SAMPLE_RATE_HZ;

/// What a telephone lets through.
const BAND_HZ: (f64, f64) = (300.0, 3400.0);
/// Of the companding of telephone exchanges.
const MU: f32 = 255.0;
/// The noise of rooms and streets is mostly low.
const NOISE_BELOW_HZ: f64 = 500.0;

/// Band-limited, then companded to eight bits and back.
pub(super) fn telephone(samples: &mut [f32]) {
    for _ in 0..2 {
        Section::high_pass(BAND_HZ.0).run(samples);
        Section::low_pass(BAND_HZ.1).run(samples);
    }
    let loudest = samples.iter().fold(f32::MIN_POSITIVE, |loudest, sample| loudest.max(sample.abs()));
    for sample in samples {
        let companded = (1.0 + MU * (*sample / loudest).abs()).ln() / (1.0 + MU).ln();
        let level = (companded * 127.0).round() / 127.0;
        *sample = sample.signum() * ((1.0 + MU).powf(level) - 1.0) / MU * loudest;
    }
}

/// Noise that many decibels below the mean of the whole.
pub(super) fn add_noise(samples: &mut [f32], below_db: f64, random: &mut fastrand::Rng) {
    let mut noise: Vec<f32> = samples.iter().map(|_| random.f32() - 0.5).collect();
    Section::low_pass(NOISE_BELOW_HZ).run(&mut noise);
    let power = |samples: &[f32]| samples.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
    let gain = (power(samples) / power(&noise).max(f64::MIN_POSITIVE)).sqrt() * 10.0_f64.powf(-below_db / 20.0);
    samples.iter_mut().zip(noise).for_each(|(sample, noise)| *sample += noise * gain as f32);
}

/// A filter of second order without a peak.
struct Section {
    forward: [f64; 3],
    back: [f64; 2],
}

impl Section {
    fn low_pass(hz: f64) -> Section {
        Section::of(hz, |cosine| [(1.0 - cosine) / 2.0, 1.0 - cosine])
    }

    fn high_pass(hz: f64) -> Section {
        Section::of(hz, |cosine| [(1.0 + cosine) / 2.0, -1.0 - cosine])
    }

    /// `forward`: the outer and the middle coefficient, before they are scaled.
    fn of(hz: f64, forward: impl Fn(f64) -> [f64; 2]) -> Section {
        let angle = TAU * hz / f64::from(SAMPLE_RATE_HZ);
        let width = angle.sin() / (2.0 * FRAC_1_SQRT_2);
        let [outer, middle] = forward(angle.cos()).map(|value| value / (1.0 + width));
        let back = [-2.0 * angle.cos(), 1.0 - width].map(|value| value / (1.0 + width));
        Section { forward: [outer, middle, outer], back }
    }

    fn run(&self, samples: &mut [f32]) {
        let mut held = [0.0; 2];
        for sample in samples {
            let input = f64::from(*sample);
            let output = self.forward[0] * input + held[0];
            held[0] = self.forward[1] * input - self.back[0] * output + held[1];
            held[1] = self.forward[2] * input - self.back[1] * output;
            *sample = output as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64) -> Vec<f32> {
        (0..16_000).map(|at| (TAU * hz * f64::from(at) / 16_000.0).sin() as f32 * 0.5).collect()
    }

    fn level(samples: &[f32]) -> f32 {
        // Once the filters have settled.
        let settled = &samples[2000..];
        (settled.iter().map(|it| it * it).sum::<f32>() / settled.len() as f32).sqrt()
    }

    #[test]
    fn a_telephone_lets_its_band_through_and_nothing_else() {
        // Not the tone alone, or its own loudness would be the scale.
        let heard = |hz: f64| {
            let mut both: Vec<f32> = tone(hz).iter().zip(tone(1000.0)).map(|(tone, other)| tone + other).collect();
            telephone(&mut both);
            let mut other = tone(1000.0);
            telephone(&mut other);
            (level(&both).powi(2) - level(&other).powi(2)).max(0.0).sqrt() / level(&tone(hz))
        };
        assert!(heard(800.0) > 0.9 && heard(2500.0) > 0.75);
        assert!(heard(80.0) < 0.2 && heard(7000.0) < 0.1);
    }

    #[test]
    fn noise_lies_so_far_below_what_is_said() {
        let mut random = fastrand::Rng::with_seed(1);
        let said = tone(1000.0);
        let mut noisy = said.clone();
        add_noise(&mut noisy, 20.0, &mut random);
        let noise: Vec<f32> = noisy.iter().zip(&said).map(|(noisy, said)| noisy - said).collect();
        assert!((level(&noise) / level(&said) - 0.1).abs() < 0.01);
        let mut silence = vec![0.0; 100];
        add_noise(&mut silence, 20.0, &mut random);
        assert_eq!(silence, [0.0; 100]);
    }
}
