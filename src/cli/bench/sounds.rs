//! Hours of what nobody says: silence, noises, music-like tones. The same in every run.

use std::f64::consts::TAU;

use clap::ValueEnum;

use crate::flow::SAMPLE_RATE_HZ;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sound {
    /// Digital silence, and the hiss of a microphone that hears nothing.
    Silence,
    /// Hiss, rumble, knocks, from barely audible to loud.
    Noise,
    /// Chords, melodies and sweeps with overtones.
    Tones,
}

/// A sound without an end.
pub(super) struct Source {
    sound: Sound,
    random: fastrand::Rng,
    /// Samples so far.
    at: u64,
    scene: Scene,
}

/// What is heard until `until`.
#[derive(Default)]
struct Scene {
    until: u64,
    from: u64,
    level: f64,
    /// How much of the sample before is kept: 0 is hiss, near 1 is rumble.
    dark: f64,
    before: f64,
    /// Of a note of each voice, in Hz.
    pitches: Vec<f64>,
    /// Semitones that the pitches rise within a second.
    rise: f64,
    phases: Vec<f64>,
}

impl Source {
    pub(super) fn new(sound: Sound, seed: u64) -> Source {
        Source { sound, random: fastrand::Rng::with_seed(seed), at: 0, scene: Scene::default() }
    }

    pub(super) fn next(&mut self, samples: usize) -> Vec<f32> {
        (0..samples).map(|_| self.sample() as f32).collect()
    }

    fn sample(&mut self) -> f64 {
        if self.at >= self.scene.until {
            self.scene = self.another();
        }
        self.at += 1;
        let hiss = 2.0 * self.random.f64() - 1.0;
        let scene = &mut self.scene;
        let secs = (self.at - scene.from) as f64 / f64::from(SAMPLE_RATE_HZ);
        let left = (scene.until - self.at) as f64 / f64::from(SAMPLE_RATE_HZ);
        match self.sound {
            Sound::Silence => hiss * scene.level,
            Sound::Noise => {
                scene.before = scene.dark * scene.before + (1.0 - scene.dark) * hiss;
                // Knocks die away within a tenth of a second, twice a second.
                let knock = if scene.rise > 0.0 { (-(secs % 0.5) * 30.0).exp() } else { 1.0 };
                (scene.before * scene.level * knock / (1.0 - scene.dark).sqrt()).clamp(-1.0, 1.0)
            }
            Sound::Tones => {
                let bend = (scene.rise * secs / 12.0).exp2();
                let mut sum = 0.0;
                for (pitch, phase) in scene.pitches.iter().zip(&mut scene.phases) {
                    *phase += TAU * pitch * bend / f64::from(SAMPLE_RATE_HZ);
                    sum += phase.sin() + 0.5 * (2.0 * *phase).sin() + 0.25 * (3.0 * *phase).sin();
                }
                let swell = (secs * 20.0).min(left * 20.0).min(1.0) * (-secs * 0.7).exp();
                (sum / scene.pitches.len().max(1) as f64 * scene.level * swell / 1.75).clamp(-1.0, 1.0)
            }
        }
    }

    fn another(&mut self) -> Scene {
        let random = &mut self.random;
        let level = 10_f64.powf(-(6.0 + 44.0 * random.f64()) / 20.0);
        let secs = |secs: f64| (secs * f64::from(SAMPLE_RATE_HZ)) as u64 + 1;
        let scene = Scene { from: self.at, ..Scene::default() };
        match self.sound {
            Sound::Silence => {
                let level = if random.bool() { 0.0 } else { 10_f64.powf(-(60.0 + 30.0 * random.f64()) / 20.0) };
                Scene { until: self.at + secs(60.0), level, ..scene }
            }
            Sound::Noise => {
                let (dark, rise) = ([0.0, 0.7, 0.95, 0.995][random.usize(..4)], f64::from(random.u8(..3) == 0));
                Scene { until: self.at + secs(5.0 + 25.0 * random.f64()), level, dark, rise, ..scene }
            }
            Sound::Tones => {
                let voices = random.usize(1..5);
                // Of the scale of C, from A2 to A5.
                let note = |random: &mut fastrand::Rng| {
                    let step = [0, 2, 3, 5, 7, 8, 10][random.usize(..7)] + 12 * random.i32(0..3);
                    110.0 * (f64::from(step) / 12.0).exp2()
                };
                let pitches: Vec<f64> = (0..voices).map(|_| note(random)).collect();
                let rise = if random.u8(..5) == 0 { 24.0 * random.f64() - 12.0 } else { 0.0 };
                let until = self.at + secs(0.2 + 2.8 * random.f64());
                Scene { until, level, phases: vec![0.0; pitches.len()], pitches, rise, ..scene }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sounds_are_what_they_say_and_the_same_each_time() {
        let minute = 60 * SAMPLE_RATE_HZ as usize;
        for (sound, most, least) in [(Sound::Silence, 0.002, 0.0), (Sound::Noise, 1.0, 0.05), (Sound::Tones, 1.0, 0.05)]
        {
            let heard = Source::new(sound, 7).next(2 * minute);
            let peak = heard.iter().fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
            assert!((least..=most).contains(&peak), "{sound:?}: {peak}");
            assert_eq!(heard, Source::new(sound, 7).next(2 * minute));
        }
    }
}
