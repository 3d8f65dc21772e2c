//! Spectral features of voices: Kaldi's log filter banks, and the plain mel spectrogram that GE2E was trained on.
//!
//! Both are exact to their references (fixtures of `tests/data/diarize`). Knows no model; never changes the audio's
//! level: that belongs to whoever knows the model.

use std::{f64::consts::TAU, sync::Arc};

use realfft::{RealFftPlanner, RealToComplex, num_complex::Complex};

use crate::flow::SAMPLE_RATE_HZ;

/// 10 ms.
pub(super) const HOP: usize = 160;
/// 25 ms.
const WINDOW: usize = 400;
/// Kaldi's floor below the logarithm: the smallest step of an f32 at one.
const FLOOR: f32 = f32::EPSILON;
const PRE_EMPHASIS: f32 = 0.97;

/// Turns samples into rows of `width` values, one row each 10 ms.
pub(super) struct Features {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    filters: Vec<Filter>,
    style: Style,
}

enum Style {
    /// Rows centred on multiples of the hop, zeros beyond the ends, power left as it is.
    Centred,
    /// Rows that lie within the audio; offset removed, pre-emphasised, logarithm of the power.
    Kaldi { scale: f32 },
}

struct Filter {
    first_bin: usize,
    weights: Vec<f32>,
}

/// The windows that Kaldi's users choose between.
#[derive(Debug, Clone, Copy)]
pub(super) enum KaldiWindow {
    Hamming,
    Povey,
}

impl Features {
    /// librosa's power mel spectrogram: periodic Hann, 40 Slaney bands over the whole spectrum, not logged.
    pub(super) fn ge2e() -> Features {
        let window = (0..WINDOW).map(|i| (0.5 - 0.5 * (TAU * i as f64 / WINDOW as f64).cos()) as f32).collect();
        Features::new(WINDOW, window, |fft_len| slaney_filters(40, fft_len), Style::Centred)
    }

    /// Kaldi's `fbank` of 80 bands from 20 to 8000 Hz without dither. `scale`: samples in ±1 become this.
    pub(super) fn kaldi(shape: KaldiWindow, scale: f32) -> Features {
        let at = |i: usize| (TAU * i as f64 / (WINDOW - 1) as f64).cos();
        let value = |i: usize| match shape {
            KaldiWindow::Hamming => 0.54 - 0.46 * at(i),
            KaldiWindow::Povey => (0.5 - 0.5 * at(i)).powf(0.85),
        };
        let window = (0..WINDOW).map(|i| value(i) as f32).collect();
        Features::new(WINDOW.next_power_of_two(), window, |fft_len| kaldi_filters(80, fft_len), Style::Kaldi { scale })
    }

    fn new(fft_len: usize, window: Vec<f32>, filters: impl Fn(usize) -> Vec<Filter>, style: Style) -> Features {
        let fft = RealFftPlanner::new().plan_fft_forward(fft_len);
        Features { fft, window, filters: filters(fft_len), style }
    }

    pub(super) fn width(&self) -> usize {
        self.filters.len()
    }

    /// How many rows that many samples give.
    pub(super) fn count(&self, samples: usize) -> usize {
        match self.style {
            Style::Centred => 1 + samples / HOP,
            Style::Kaldi { .. } if samples < WINDOW => 0,
            Style::Kaldi { .. } => 1 + (samples - WINDOW) / HOP,
        }
    }

    /// The rows of the audio, one behind the other.
    pub(super) fn rows(&self, audio: &[f32]) -> Vec<f32> {
        let count = self.count(audio.len());
        let mut rows = Vec::with_capacity(count * self.width());
        let mut input = self.fft.make_input_vec();
        let mut output = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = vec![0.0; output.len()];
        for row in 0..count {
            input.fill(0.0);
            self.frame(audio, row * HOP, &mut input[..WINDOW]);
            // The lengths are the plan's own, so the transform cannot refuse.
            if self.fft.process_with_scratch(&mut input, &mut output, &mut scratch).is_ok() {
                power
                    .iter_mut()
                    .zip(&output)
                    .for_each(|(power, bin): (&mut f32, &Complex<f32>)| *power = bin.norm_sqr());
            }
            rows.extend(self.filters.iter().map(|filter| {
                let bins = &power[filter.first_bin..][..filter.weights.len()];
                let energy: f32 = bins.iter().zip(&filter.weights).map(|(power, weight)| power * weight).sum();
                if matches!(self.style, Style::Centred) { energy } else { energy.max(FLOOR).ln() }
            }));
        }
        rows
    }

    /// One window of samples as the transform takes it.
    fn frame(&self, audio: &[f32], at: usize, frame: &mut [f32]) {
        match self.style {
            Style::Centred => {
                for (i, slot) in frame.iter_mut().enumerate() {
                    let sample = (at + i).checked_sub(WINDOW / 2).and_then(|index| audio.get(index));
                    *slot = sample.copied().unwrap_or(0.0);
                }
            }
            Style::Kaldi { scale } => {
                frame.copy_from_slice(&audio[at..at + WINDOW]);
                let offset = frame.iter().sum::<f32>() / WINDOW as f32;
                frame.iter_mut().for_each(|sample| *sample = (*sample - offset) * scale);
                for i in (1..WINDOW).rev() {
                    frame[i] -= PRE_EMPHASIS * frame[i - 1];
                }
                frame[0] -= PRE_EMPHASIS * frame[0];
            }
        }
        frame.iter_mut().zip(&self.window).for_each(|(sample, weight)| *sample *= weight);
    }
}

/// Takes the mean over time out of every band, as the models of voices that use Kaldi's features want it.
pub(super) fn remove_mean(rows: &mut [f32], width: usize) {
    let count = (rows.len() / width).max(1) as f32;
    for band in 0..width {
        let mean = rows.iter().skip(band).step_by(width).sum::<f32>() / count;
        rows.iter_mut().skip(band).step_by(width).for_each(|value| *value -= mean);
    }
}

/// Triangles with equal areas, linear below 1 kHz and logarithmic above.
fn slaney_filters(bands: usize, fft_len: usize) -> Vec<Filter> {
    const LINEAR_HZ: f64 = 200.0 / 3.0;
    let step = 6.4_f64.ln() / 27.0;
    let to_hz = |mel: f64| if mel < 15.0 { mel * LINEAR_HZ } else { 1000.0 * ((mel - 15.0) * step).exp() };
    let top = 15.0 + (f64::from(SAMPLE_RATE_HZ) / 2000.0).ln() / step;
    let edge = |i: usize| to_hz(top * i as f64 / (bands + 1) as f64);
    let triangle = |band: usize, hz: f64| {
        let (low, middle, high) = (edge(band), edge(band + 1), edge(band + 2));
        ((hz - low) / (middle - low)).min((high - hz) / (high - middle)).max(0.0) * 2.0 / (high - low)
    };
    (0..bands).map(|band| filter(fft_len, fft_len / 2 + 1, |hz| triangle(band, hz))).collect()
}

/// Triangles in mel itself; the highest bin of the transform belongs to none.
fn kaldi_filters(bands: usize, fft_len: usize) -> Vec<Filter> {
    let to_mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let (low, high) = (to_mel(20.0), to_mel(f64::from(SAMPLE_RATE_HZ) / 2.0));
    let step = (high - low) / (bands + 1) as f64;
    let triangle = |band: usize, hz: f64| {
        let from_left = (to_mel(hz) - low) / step - band as f64;
        from_left.min(2.0 - from_left).max(0.0)
    };
    (0..bands).map(|band| filter(fft_len, fft_len / 2, |hz| triangle(band, hz))).collect()
}

fn filter(fft_len: usize, bins: usize, weight: impl Fn(f64) -> f64) -> Filter {
    let hz = |bin: usize| bin as f64 * f64::from(SAMPLE_RATE_HZ) / fft_len as f64;
    let all: Vec<f32> = (0..bins).map(|bin| weight(hz(bin)) as f32).collect();
    let first_bin = all.iter().position(|weight| *weight > 0.0).unwrap_or(0);
    let end = all.iter().rposition(|weight| *weight > 0.0).map_or(first_bin, |last| last + 1);
    Filter { first_bin, weights: all[first_bin..end].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same signal as the script of the fixture makes.
    fn signal() -> Vec<f32> {
        let at = |i: usize| {
            let secs = i as f64 / f64::from(SAMPLE_RATE_HZ);
            let noise = ((i * 7919) % 1000) as f64 / 1000.0 - 0.5;
            0.3 * (TAU * (200.0 + 900.0 * secs) * secs).sin() + 0.05 * noise + 0.02
        };
        (0..4000).map(|i| at(i) as f32).collect()
    }

    fn fixture(name: &str) -> Vec<Vec<f32>> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/diarize/features.json");
        let all: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        serde_json::from_value(all[name].clone()).unwrap()
    }

    fn assert_rows(features: &Features, expected: &[Vec<f32>], tolerance: f32) {
        let audio = signal();
        let rows = features.rows(&audio);
        assert_eq!(features.count(audio.len()), expected.len());
        for (at, (row, wanted)) in rows.chunks(features.width()).zip(expected).enumerate() {
            for (value, wanted) in row.iter().zip(wanted) {
                assert!((value - wanted).abs() < tolerance, "row {at}: {value} is not {wanted}");
            }
        }
    }

    #[test]
    fn filter_banks_are_those_of_kaldi() {
        assert_rows(&Features::kaldi(KaldiWindow::Hamming, 32768.0), &fixture("hamming"), 2e-3);
        assert_rows(&Features::kaldi(KaldiWindow::Povey, 1.0), &fixture("povey"), 2e-3);
    }

    #[test]
    fn the_mel_spectrogram_is_that_of_librosa() {
        assert_rows(&Features::ge2e(), &fixture("ge2e"), 1e-3);
    }

    #[test]
    fn too_little_audio_gives_no_row_and_no_panic() {
        assert!(Features::kaldi(KaldiWindow::Povey, 1.0).rows(&[0.5; 399]).is_empty());
        assert_eq!(Features::ge2e().rows(&[]).len(), 40);
        remove_mean(&mut [], 80);
    }

    #[test]
    fn the_mean_of_every_band_is_taken_out() {
        let mut rows = [1.0, 10.0, 3.0, 20.0];
        remove_mean(&mut rows, 2);
        assert_eq!(rows, [-1.0, -5.0, 1.0, 5.0]);
    }
}
