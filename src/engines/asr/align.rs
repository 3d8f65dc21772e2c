//! From cross-attention to frames: which moment of the audio each token of a text listened to.
//!
//! Pure arithmetic over rows that a decoder kept; knows no model and no token. Time and memory are bounded by the shape
//! of the rows: one head is looked at after the other, and a window of 448 tokens over 1500 frames takes milliseconds.

use crate::base::{Error, Result};

/// What nearly all models take the median of.
const USUAL: usize = 7;

/// What the heads that follow the audio paid attention to: `[heads][tokens][frames]`, each row a softmax.
pub(super) struct Attention<'a> {
    pub(super) weights: &'a [f32],
    pub(super) heads: usize,
    pub(super) tokens: usize,
    pub(super) frames: usize,
    /// Frames that a median is taken of, an odd number: heads flicker by a frame or two.
    pub(super) median: usize,
}

impl Attention<'_> {
    /// The first frame that each token listens to, of the first `audio_frames` of the window.
    ///
    /// The row of a token, told when it was fed, shows where the *next* one is spoken: that is what the decoder looks at to
    /// find it. Rows count as the graph gives them, a softmax over the whole window, and the tokens of the prompt are not
    /// among them: as in transformers. (The first implementation puts the finished text through the decoder once
    /// more, scales its rows to the audio alone, and has no times of segments among its tokens to take up the pauses.)
    pub(super) fn first_frames(&self, audio_frames: usize) -> Result<Vec<usize>> {
        let (mut focus, width) = self.focus(audio_frames)?;
        if focus.is_empty() {
            return Ok(vec![0; self.tokens]);
        }
        // The path of the greatest attention is the path of the least cost.
        focus.iter_mut().for_each(|value| *value = -*value);
        Ok(cheapest_path(&focus, width))
    }

    /// The frame that each token listened to most when it was fed, whatever the others listened to.
    pub(super) fn most_attended(&self, audio_frames: usize) -> Result<Vec<usize>> {
        let (focus, width) = self.focus(audio_frames)?;
        if focus.is_empty() {
            return Ok(vec![0; self.tokens]);
        }
        let loudest = |row: &[f32]| (0..width).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or_default();
        Ok(focus.chunks_exact(width).map(loudest).collect())
    }

    /// `[tokens][width]` and the width: what all heads together listen to, each frame against the other tokens' share of
    /// it, without flicker. Empty where there is nothing to look at.
    fn focus(&self, audio_frames: usize) -> Result<(Vec<f32>, usize)> {
        if self.weights.len() != self.heads * self.tokens * self.frames {
            return Err(Error::internal("the attention of a text has another shape than its tokens"));
        }
        let width = audio_frames.min(self.frames);
        if self.tokens == 0 || width == 0 || self.heads == 0 {
            return Ok((Vec::new(), width));
        }
        let mut head = vec![0.0; self.tokens * width];
        let mut sum = vec![0.0; self.tokens * width];
        let mut row = Vec::with_capacity(width + self.median);
        for rows in self.weights.chunks_exact(self.tokens * self.frames) {
            crop(rows, self.frames, width, &mut head);
            standardise(&mut head, width);
            for (values, sum) in head.chunks_exact(width).zip(sum.chunks_exact_mut(width)) {
                add_medians(values, self.median, &mut row, sum);
            }
        }
        let heads = self.heads as f32;
        sum.iter_mut().for_each(|value| *value /= heads);
        Ok((sum, width))
    }
}

fn crop(rows: &[f32], frames: usize, width: usize, head: &mut [f32]) {
    for (from, to) in rows.chunks_exact(frames).zip(head.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[..width]);
        // What is no number says nothing, and must not spread over the row.
        to.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 0.0);
    }
}

/// Each frame's attention against that of the other tokens: mean 0, deviation 1 over the tokens.
fn standardise(head: &mut [f32], width: usize) {
    let tokens = (head.len() / width) as f64;
    let mut mean = vec![0.0f64; width];
    for row in head.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value));
    }
    mean.iter_mut().for_each(|mean| *mean /= tokens);
    let mut deviation = vec![0.0f64; width];
    for row in head.chunks_exact(width) {
        for ((deviation, value), mean) in deviation.iter_mut().zip(row).zip(&mean) {
            *deviation += (f64::from(*value) - mean).powi(2);
        }
    }
    deviation.iter_mut().for_each(|deviation| *deviation = (*deviation / tokens).sqrt());
    for row in head.chunks_exact_mut(width) {
        for ((value, mean), deviation) in row.iter_mut().zip(&mean).zip(&deviation) {
            // A frame that all tokens see alike tells them not apart.
            *value = if *deviation > 0.0 { ((f64::from(*value) - mean) / deviation) as f32 } else { 0.0 };
        }
    }
}

/// Adds each frame's median with its neighbours, `of` frames in all; the row is mirrored at its ends.
fn add_medians(row: &[f32], of: usize, mirrored: &mut Vec<f32>, sum: &mut [f32]) {
    let reach = of / 2;
    if row.len() <= reach {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        return;
    }
    mirrored.clear();
    mirrored.extend(row[1..=reach].iter().rev());
    mirrored.extend_from_slice(row);
    mirrored.extend(row[row.len() - 1 - reach..row.len() - 1].iter().rev());
    let mut sorted = Vec::with_capacity(of);
    for (near, sum) in mirrored.windows(2 * reach + 1).zip(sum) {
        *sum += match near.first_chunk::<USUAL>() {
            Some(near) if of == USUAL => median(*near),
            _ => {
                sorted.clear();
                sorted.extend_from_slice(near);
                *sorted.select_nth_unstable_by(reach, f32::total_cmp).1
            }
        };
    }
}

/// Without branches, for it is taken of every frame of every token of every head.
fn median(mut near: [f32; USUAL]) -> f32 {
    // A sorting network that leaves the median in its place.
    const STEPS: [(usize, usize); 13] =
        [(0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)];
    for (low, high) in STEPS {
        (near[low], near[high]) = (near[low].min(near[high]), near[low].max(near[high]));
    }
    near[USUAL / 2]
}

/// Where a step of the cheapest path came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Both,
    Token,
    Frame,
}

/// Dynamic time warping: the cheapest path from the first token at the first frame to the last at the last, and on it
/// the first frame of each token. Equal costs are told apart as the reference does, since texts with repeated words are
/// full of them.
fn cheapest_path(cost: &[f32], width: usize) -> Vec<usize> {
    let tokens = cost.len() / width;
    let mut steps = vec![Step::Frame; cost.len()];
    // One column before the first frame, out of reach but for the very first step.
    let mut above = vec![f32::INFINITY; width + 1];
    above[0] = 0.0;
    let mut current = vec![f32::INFINITY; width + 1];
    for (cost, steps) in cost.chunks_exact(width).zip(steps.chunks_exact_mut(width)) {
        let mut left = f32::INFINITY;
        current[0] = left;
        for frame in 0..width {
            let (both, token) = (above[frame], above[frame + 1]);
            let (least, step) = if both < token && both < left {
                (both, Step::Both)
            } else if token < both && token < left {
                (token, Step::Token)
            } else {
                (left, Step::Frame)
            };
            left = cost[frame] + least;
            current[frame + 1] = left;
            steps[frame] = step;
        }
        std::mem::swap(&mut above, &mut current);
    }

    let mut first = vec![0; tokens];
    let (mut token, mut frame) = (tokens - 1, width - 1);
    loop {
        first[token] = frame;
        let step = match (token, frame) {
            (0, 0) => return first,
            (0, _) => Step::Frame,
            (_, 0) => Step::Token,
            _ => steps[token * width + frame],
        };
        token -= usize::from(step != Step::Frame);
        frame -= usize::from(step != Step::Token);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// The definition, word for word and slow.
    fn plain(attention: &Attention<'_>, width: usize) -> Vec<usize> {
        let Attention { weights, heads, tokens, frames, median } = *attention;
        let reach = (median / 2) as isize;
        let mut all = vec![vec![vec![0.0f64; width]; tokens]; heads];
        for (head, rows) in all.iter_mut().enumerate() {
            for (token, row) in rows.iter_mut().enumerate() {
                for (frame, value) in row.iter_mut().enumerate() {
                    *value = weights[(head * tokens + token) * frames + frame].into();
                }
            }
            for frame in 0..width {
                let column: Vec<f64> = rows.iter().map(|row| row[frame]).collect();
                let mean = column.iter().sum::<f64>() / tokens as f64;
                let deviation = (column.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / tokens as f64).sqrt();
                rows.iter_mut().for_each(|row| row[frame] = (row[frame] - mean) / deviation);
            }
        }
        let mirrored = |at: isize| {
            let last = width as isize - 1;
            (if at < 0 {
                -at
            } else if at > last {
                2 * last - at
            } else {
                at
            }) as usize
        };
        let value = |token: usize, frame: usize| {
            let medians = all.iter().map(|rows| {
                let mut near: Vec<f64> =
                    (-reach..=reach).map(|by| rows[token][mirrored(frame as isize + by)]).collect();
                near.sort_by(f64::total_cmp);
                near[median / 2]
            });
            medians.sum::<f64>() / heads as f64
        };
        plain_path((0..tokens).map(|token| (0..width).map(|frame| -value(token, frame)).collect()).collect())
    }

    fn plain_path(rows: Vec<Vec<f64>>) -> Vec<usize> {
        let (count, width) = (rows.len(), rows[0].len());
        let mut cost = vec![vec![f64::INFINITY; width + 1]; count + 1];
        let mut from = vec![vec![2u8; width + 1]; count + 1];
        cost[0][0] = 0.0;
        for frame in 1..=width {
            for token in 1..=count {
                let (both, up, left) = (cost[token - 1][frame - 1], cost[token - 1][frame], cost[token][frame - 1]);
                let (least, step) = if both < up && both < left {
                    (both, 0)
                } else if up < both && up < left {
                    (up, 1)
                } else {
                    (left, 2)
                };
                cost[token][frame] = least + rows[token - 1][frame - 1];
                from[token][frame] = step;
            }
        }
        let mut path = Vec::new();
        let (mut token, mut frame) = (count, width);
        while token > 0 || frame > 0 {
            path.push((token - 1, frame - 1));
            match if token == 0 {
                2
            } else if frame == 0 {
                1
            } else {
                from[token][frame]
            } {
                0 => (token, frame) = (token - 1, frame - 1),
                1 => token -= 1,
                _ => frame -= 1,
            }
        }
        let mut first = Vec::new();
        for (token, frame) in path.into_iter().rev() {
            if token == first.len() {
                first.push(frame);
            }
        }
        first
    }

    /// Rows with a ridge that wanders through the audio, and noise.
    fn rows(seed: u64, heads: usize, tokens: usize, frames: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut all = Vec::new();
        for _ in 0..heads {
            for token in 0..tokens {
                let ridge = (token as f32 + random.f32()) / tokens as f32 * frames as f32;
                let row: Vec<f32> = (0..frames)
                    .map(|frame| (-((frame as f32 - ridge) / 4.0).powi(2)).exp() + 0.2 * random.f32())
                    .collect();
                let total: f32 = row.iter().sum();
                all.extend(row.iter().map(|value| value / total));
            }
        }
        all
    }

    #[test]
    fn frames_equal_the_definition() {
        for (seed, heads, tokens, frames, width, median) in [
            (1, 3, 12, 80, 60, 7),
            (2, 1, 5, 9, 9, 7),
            (3, 4, 40, 120, 100, 7),
            (4, 2, 7, 30, 4, 7),
            (5, 1, 30, 30, 20, 7),
            (6, 2, 20, 60, 50, 1),
            (7, 2, 20, 60, 50, 3),
            (8, 2, 20, 60, 50, 11),
        ] {
            let weights = rows(seed, heads, tokens, frames);
            let attention = Attention { weights: &weights, heads, tokens, frames, median };
            let frames = attention.first_frames(width).unwrap();
            assert_eq!(frames, plain(&attention, width), "seed {seed}");
        }
    }

    #[test]
    fn a_clear_diagonal_is_followed() {
        let (tokens, frames) = (10, 100);
        let weights: Vec<f32> =
            (0..tokens * frames).map(|at| if at % frames / 10 == at / frames { 0.1 } else { 0.0 }).collect();
        let found = Attention { weights: &weights, heads: 1, tokens, frames, median: 7 }.first_frames(frames).unwrap();
        for (token, frame) in found.into_iter().enumerate() {
            assert!(frame.abs_diff(token * 10) <= 3, "{frame} for token {token}");
        }
    }

    #[test]
    fn the_frame_that_is_listened_to_most_may_go_back() {
        let (tokens, frames) = (5, 60);
        let ridges = [5, 40, 20, 50, 30];
        // Without noise, frames that nobody listens to would be told apart by nothing but rounding.
        let mut random = fastrand::Rng::with_seed(4);
        let weights: Vec<f32> = (0..tokens * frames)
            .map(|at| {
                let off = (at % frames) as f32 - ridges[at / frames] as f32;
                (-off.powi(2) / 8.0).exp() + 0.1 * random.f32()
            })
            .collect();
        let attention = Attention { weights: &weights, heads: 1, tokens, frames, median: 7 };
        let found = attention.most_attended(frames).unwrap();
        for (frame, ridge) in found.into_iter().zip(ridges) {
            assert!(frame.abs_diff(ridge) <= 3, "{frame} instead of {ridge}");
        }
        let cropped = attention.most_attended(30).unwrap();
        assert!(cropped.iter().all(|frame| *frame < 30), "{cropped:?}");
    }

    #[test]
    fn equal_costs_are_told_apart_as_the_definition_does() {
        assert_eq!(cheapest_path(&[0.0; 12], 4), [0, 0, 0]);
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..300 {
            let (tokens, width) = (random.usize(1..9), random.usize(1..12));
            let cost: Vec<f32> = (0..tokens * width).map(|_| random.i8(-1..=1).into()).collect();
            let rows = cost.chunks(width).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
            assert_eq!(cheapest_path(&cost, width), plain_path(rows), "{width} wide: {cost:?}");
        }
    }

    #[test]
    fn the_median_is_that_of_a_sort() {
        let mut random = fastrand::Rng::with_seed(9);
        for _ in 0..5_000 {
            let near: [f32; USUAL] = std::array::from_fn(|_| random.u32(0..9) as f32);
            let mut sorted = near;
            sorted.sort_by(f32::total_cmp);
            assert_eq!(median(near), sorted[USUAL / 2], "{near:?}");
        }
    }

    #[test]
    fn rows_that_make_no_sense_give_frames_all_the_same_and_never_panic() {
        let (heads, tokens, frames) = (2, 6, 20);
        for value in [0.0, f32::NAN, f32::INFINITY, 1e-30] {
            let weights = vec![value; heads * tokens * frames];
            for width in [0, 1, 2, 3, 4, 20, 99] {
                let attention = Attention { weights: &weights, heads, tokens, frames, median: 7 };
                let found = attention.first_frames(width).unwrap();
                assert_eq!(found.len(), tokens);
                assert_eq!(attention.most_attended(width).unwrap().len(), tokens);
                assert!(found.is_sorted() && found.iter().all(|frame| *frame <= width.min(frames)), "{found:?}");
            }
        }
        let short = Attention { weights: &[0.5; 7], heads, tokens, frames, median: 7 };
        assert!(short.first_frames(20).is_err());
        let none = Attention { weights: &[], heads: 0, tokens: 4, frames, median: 7 };
        assert_eq!(none.first_frames(20).unwrap(), [0; 4]);
    }

    #[test]
    fn a_full_window_is_aligned_within_bounded_time() {
        let weights = rows(7, 1, 448, 1500);
        let attention = Attention { weights: &weights, heads: 1, tokens: 448, frames: 1500, median: 7 };
        let begun = Instant::now();
        assert!(attention.first_frames(1500).unwrap().is_sorted());
        // A few milliseconds in a release; a debug build on a busy machine is far slower.
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
