//! Log-mel features, as Whisper's models were trained on them. Pure: samples in, numbers out.
//!
//! ```text
//! 16 kHz → frames of n_fft every hop, around their centre → Hann → |FFT|² → slaney mel bins → log10 → within 8 of
//! the greatest → (x + 4) / 4
//! ```
//! The greatest is that of the padded window, or that of a whole recording which the caller has found with [`Loudest`].
//! In f64: a pure tone spans more than f32 can hold apart, and the transform costs a thousandth of real time.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex, num_complex::Complex};

use crate::{
    base::{Error, Result},
    flow::SAMPLE_RATE_HZ,
};

/// log10 of the least power that counts, 1e-10.
const SILENT: f32 = -10.0;
/// What is more than 80 dB below the greatest is cut off there.
const RANGE: f32 = 8.0;

/// The numbers that a model's files give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MelShape {
    pub(super) bins: usize,
    pub(super) n_fft: usize,
    pub(super) hop: usize,
    /// Frames of one window.
    pub(super) frames: usize,
}

/// The transform with its buffers.
pub(super) struct LogMel {
    shape: MelShape,
    fft: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    filters: Vec<Filter>,
    windowed: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    power: Vec<f64>,
    column: Vec<f32>,
}

/// One mel bin: its weights are zero outside a few neighbours.
struct Filter {
    first: usize,
    weights: Vec<f64>,
}

/// The features of one window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Features {
    /// Bin by bin, `MelShape::frames` each.
    pub(super) values: Vec<f32>,
    /// How many of the frames hold audio; the others are padding.
    pub(super) content: usize,
}

impl MelShape {
    pub(super) fn samples(&self) -> usize {
        self.frames * self.hop
    }

    pub(super) fn frame_secs(&self) -> f64 {
        self.hop as f64 / f64::from(SAMPLE_RATE_HZ)
    }
}

impl LogMel {
    pub(super) fn new(shape: MelShape) -> LogMel {
        let fft = RealFftPlanner::<f64>::new().plan_fft_forward(shape.n_fft);
        let turn = std::f64::consts::TAU / shape.n_fft as f64;
        LogMel {
            hann: (0..shape.n_fft).map(|i| 0.5 - 0.5 * (turn * i as f64).cos()).collect(),
            filters: filters(shape),
            windowed: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: vec![0.0; shape.n_fft / 2 + 1],
            column: vec![0.0; shape.bins],
            fft,
            shape,
        }
    }

    /// The features of `audio` from `lead` on. What lies before `lead`, and behind the window, is looked at by the frames
    /// that reach there and has no frames of its own.
    ///
    /// With `loudest` the audio is a part of a recording: frames behind its end are 0. Without, it is all there is:
    /// silence follows it.
    pub(super) fn features(&mut self, audio: &[f32], lead: usize, loudest: Option<f32>) -> Result<Features> {
        let MelShape { bins, hop, frames, .. } = self.shape;
        let len = audio.len().saturating_sub(lead);
        let (content, end) = match loudest {
            Some(_) => (len / hop, audio.len()),
            None => (len.div_ceil(hop), lead + self.shape.samples()),
        };
        let content = content.min(frames);
        let mut values = vec![SILENT; bins * frames];
        for frame in 0..frames {
            let centre = lead + frame * hop;
            // Behind the audio there is nothing but padding.
            if centre >= audio.len() + self.shape.n_fft / 2 || loudest.is_some() && frame >= content {
                break;
            }
            self.column(audio, centre, end)?;
            for (bin, value) in self.column.iter().enumerate() {
                values[bin * frames + frame] = *value;
            }
        }
        let greatest = loudest.unwrap_or_else(|| values.iter().copied().fold(SILENT, f32::max));
        let floor = greatest - RANGE;
        for bin in values.chunks_exact_mut(frames) {
            for (frame, value) in bin.iter_mut().enumerate() {
                let padding = loudest.is_some() && frame >= content;
                *value = if padding { 0.0 } else { (value.max(floor) + 4.0) / 4.0 };
            }
        }
        Ok(Features { values, content })
    }

    /// The log-mel values of the frame around `centre`, before they are scaled. The signal is `audio`, silent up to
    /// `end`, and mirrored at its two ends.
    fn column(&mut self, audio: &[f32], centre: usize, end: usize) -> Result<()> {
        let half = self.shape.n_fft / 2;
        let inside = centre.checked_sub(half).and_then(|from| audio.get(from..from + self.shape.n_fft));
        match inside {
            Some(samples) => {
                let samples = samples.iter().zip(&self.hann);
                self.windowed.iter_mut().zip(samples).for_each(|(to, (sample, hann))| *to = f64::from(*sample) * hann);
            }
            None => {
                for (i, to) in self.windowed.iter_mut().enumerate() {
                    let at = mirrored(centre as i64 + i as i64 - half as i64, end);
                    *to = f64::from(audio.get(at).copied().unwrap_or(0.0)) * self.hann[i];
                }
            }
        }
        self.fft
            .process_with_scratch(&mut self.windowed, &mut self.spectrum, &mut self.scratch)
            .map_err(|error| Error::internal("the features of a frame failed").cause(error))?;
        self.power.iter_mut().zip(&self.spectrum).for_each(|(power, value)| *power = value.norm_sqr());
        for (to, filter) in self.column.iter_mut().zip(&self.filters) {
            let powers = &self.power[filter.first..][..filter.weights.len()];
            let energy: f64 = powers.iter().zip(&filter.weights).map(|(power, weight)| power * weight).sum();
            // f32 is enough for a logarithm, and three times as fast.
            *to = (energy as f32).max(1e-10).log10();
        }
        Ok(())
    }
}

/// The greatest log-mel value of a recording of any length, found as its samples come.
pub struct Loudest {
    mel: LogMel,
    /// What frames still to come reach back to.
    kept: Vec<f32>,
    /// Where `kept` begins in the recording.
    kept_at: usize,
    next_frame: usize,
    greatest: f32,
}

impl Loudest {
    pub(super) fn new(shape: MelShape) -> Loudest {
        Loudest { mel: LogMel::new(shape), kept: Vec::new(), kept_at: 0, next_frame: 0, greatest: SILENT }
    }

    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        // In parts, so that a caller may push whatever it has.
        for part in samples.chunks(SAMPLE_RATE_HZ as usize) {
            self.kept.extend_from_slice(part);
            self.look(self.kept_at + self.kept.len())?;
        }
        Ok(())
    }

    /// The recording has ended.
    pub fn finish(mut self) -> Result<f32> {
        let half = self.mel.shape.n_fft / 2;
        self.look(self.kept_at + self.kept.len() + half)?;
        Ok(self.greatest)
    }

    /// Looks at every frame whose last sample lies before `until`.
    fn look(&mut self, until: usize) -> Result<()> {
        let MelShape { n_fft, hop, .. } = self.mel.shape;
        let total = self.kept_at + self.kept.len();
        loop {
            let centre = self.next_frame * hop;
            // The transform drops the frame around the very end.
            if centre + n_fft / 2 > until || centre + hop > total {
                break;
            }
            self.mel.column(&self.kept, centre - self.kept_at, self.kept.len())?;
            self.greatest = self.mel.column.iter().copied().fold(self.greatest, f32::max);
            self.next_frame += 1;
        }
        let needed_from = (self.next_frame * hop).saturating_sub(n_fft / 2).min(total);
        self.kept.drain(..needed_from.saturating_sub(self.kept_at));
        self.kept_at = self.kept_at.max(needed_from);
        Ok(())
    }
}

/// An index of a signal of `len` samples that is mirrored at its ends, the end itself not repeated.
fn mirrored(at: i64, len: usize) -> usize {
    let last = len.max(1) as i64 - 1;
    if last == 0 {
        return 0;
    }
    let at = at.rem_euclid(2 * last);
    at.min(2 * last - at) as usize
}

/// Slaney's mel scale, linear below 1 kHz, each triangle of the same area.
fn filters(shape: MelShape) -> Vec<Filter> {
    let rate = f64::from(SAMPLE_RATE_HZ);
    let step = 27.0 / 6.4_f64.ln();
    let to_mel = |hz: f64| if hz < 1000.0 { hz * 3.0 / 200.0 } else { 15.0 + (hz / 1000.0).ln() * step };
    let to_hz = |mel: f64| if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) / step).exp() };
    let top = to_mel(rate / 2.0);
    let corners: Vec<f64> = (0..shape.bins + 2).map(|i| to_hz(top * i as f64 / (shape.bins + 1) as f64)).collect();
    let hz_of = |index: usize| index as f64 * rate / shape.n_fft as f64;
    corners
        .windows(3)
        .map(|corner| {
            let weight = |index: usize| {
                let rising = (hz_of(index) - corner[0]) / (corner[1] - corner[0]);
                let falling = (corner[2] - hz_of(index)) / (corner[2] - corner[1]);
                rising.min(falling).max(0.0) * 2.0 / (corner[2] - corner[0])
            };
            let indexes = 0..shape.n_fft / 2 + 1;
            let first = indexes.clone().find(|index| weight(*index) > 0.0).unwrap_or(0);
            let weights = indexes.skip(first).map(weight).take_while(|weight| *weight > 0.0).collect();
            Filter { first, weights }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MelShape = MelShape { bins: 80, n_fft: 400, hop: 160, frames: 3000 };

    fn noise(len: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..len).map(|i| (random.f32() - 0.5) * (0.2 + (i % 40_000) as f32 / 40_000.0)).collect()
    }

    fn sum_and_max(bins: usize) -> (f64, f64) {
        let filters = filters(MelShape { bins, ..SHAPE });
        let weights = || filters.iter().flat_map(|filter| filter.weights.iter().copied());
        (weights().sum(), weights().fold(0.0, f64::max))
    }

    #[test]
    fn the_filters_are_those_of_the_reference() {
        let (sum, max) = sum_and_max(80);
        assert!((sum - 1.9990242).abs() < 1e-5 && (max - 0.0258807).abs() < 1e-6, "{sum} {max}");
        let (sum, max) = sum_and_max(128);
        assert!((sum - 3.1909857).abs() < 1e-5 && (max - 0.0416818).abs() < 1e-6, "{sum} {max}");
    }

    #[test]
    fn silence_and_nothing_at_all_have_features() {
        let mut mel = LogMel::new(SHAPE);
        for audio in [vec![], vec![0.0; 1], vec![0.0; 480_000]] {
            let features = mel.features(&audio, 0, None).unwrap();
            assert!(features.values.iter().all(|value| (value + 1.5).abs() < 1e-6));
            assert_eq!(features.content, audio.len().div_ceil(160));
        }
        assert!(mel.features(&[0.1], 0, Some(0.0)).unwrap().values.iter().all(|value| *value == 0.0));
    }

    #[test]
    fn parts_of_a_recording_have_the_features_of_the_whole() {
        let recording = noise(16_000 * 7);
        let shape = MelShape { frames: 700, ..SHAPE };
        let mut loudest = Loudest::new(shape);
        for part in recording.chunks(777) {
            loudest.push(part).unwrap();
        }
        let loudest = loudest.finish().unwrap();
        let whole = LogMel::new(shape).features(&recording, 0, None).unwrap();
        let greatest = whole.values.iter().copied().fold(f32::MIN, f32::max);
        assert!((loudest - (greatest * 4.0 - 4.0)).abs() < 1e-5);

        let mut part = LogMel::new(MelShape { frames: 300, ..SHAPE });
        for (first, lead, content) in [(0, 0, 300), (200, 200, 300), (1, 160, 300), (500, 320, 200)] {
            let from = first * 160 - lead;
            let to = (first * 160 + 300 * 160 + 200).min(recording.len());
            let features = part.features(&recording[from..to], lead, Some(loudest)).unwrap();
            assert_eq!(features.content, content);
            for bin in 0..80 {
                let (got, want) =
                    (&features.values[bin * 300..][..content], &whole.values[bin * 700 + first..][..content]);
                assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-5), "bin {bin} from {first}");
                assert!(features.values[bin * 300..][content..300].iter().all(|value| *value == 0.0));
            }
        }
    }

    #[test]
    fn indexes_are_mirrored_however_short_the_signal() {
        assert_eq!([-2, -1, 0, 1, 2, 3, 4, 5].map(|at| mirrored(at, 4)), [2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!([-5, 0, 5].map(|at| mirrored(at, 1)), [0, 0, 0]);
    }

    #[test]
    fn features_are_two_hundred_times_faster_than_real_time() {
        if std::env::var_os("VIGIA_TEST_FIGURES").is_none() {
            println!("SKIPPED: a figure of the release build (VIGIA_TEST_FIGURES is not set)");
            return;
        }
        let audio = noise(480_000);
        for bins in [80, 128] {
            let mut mel = LogMel::new(MelShape { bins, ..SHAPE });
            mel.features(&audio, 0, None).unwrap();
            let start = std::time::Instant::now();
            for _ in 0..10 {
                mel.features(&audio, 0, None).unwrap();
            }
            let factor = 300.0 / start.elapsed().as_secs_f64();
            println!("{bins} bins: {factor:.0} times real time on one core");
            assert!(factor > 200.0);
        }
    }
}
