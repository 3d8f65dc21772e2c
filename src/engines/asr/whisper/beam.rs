//! Beam search: several texts are followed at once, and the likeliest by length wins.
//!
//! As the reference searches: scores are log-probabilities before the filters; of the best continuations those that end go
//! to a pool, the others go on, until none of them could still beat the worst of the pool.

use crate::{
    base::Result,
    engines::asr::whisper::{
        decoder::Memory,
        numbers::{greatest, ln_sum_exp},
        search::{Hypothesis, Progress, Search},
    },
};

#[derive(Debug, Clone, Copy)]
pub(super) struct Beam {
    pub(super) width: usize,
    /// How many ended texts are waited for, in widths.
    pub(super) patience: f32,
    /// None: a score is divided by the length.
    pub(super) length_penalty: Option<f32>,
}

/// A continuation: a text that is followed, one more token, and the score of both.
struct Candidate {
    score: f32,
    from: usize,
    token: u32,
    logprob: f32,
}

impl Beam {
    fn by_length(&self, score: f32, tokens: usize) -> f32 {
        match self.length_penalty {
            None => score / tokens as f32,
            Some(penalty) => score / ((5.0 + tokens as f32) / 6.0).powf(penalty),
        }
    }
}

impl Search<'_> {
    /// The best text of one piece. `memory` has a row for each text that is followed, all alike; `first` are the
    /// logits behind the prompt.
    pub(super) fn beam(
        &mut self,
        mut memory: Memory,
        first: &[f32],
        beam: Beam,
        piece: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Hypothesis> {
        let pool_size = ((beam.width as f32 * beam.patience).round() as usize).max(1);
        let mut pool: Vec<(f32, Hypothesis)> = Vec::new();
        // At first all rows are alike: the first stands for all.
        let mut candidates = self.candidates(0, &Hypothesis::default(), &mut first.to_vec(), beam.width);
        let mut live = vec![Hypothesis::default()];
        loop {
            candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
            candidates.truncate(2 * beam.width);
            let (mut next, mut order) = (Vec::with_capacity(beam.width), Vec::with_capacity(beam.width));
            for (rank, candidate) in candidates.drain(..).enumerate() {
                let mut text = live[candidate.from].clone();
                text.push(candidate.token, candidate.logprob);
                if !self.has_ended(&text) {
                    if next.len() < beam.width {
                        next.push(text);
                        order.push(candidate.from);
                    }
                } else if rank < beam.width {
                    pool.push((beam.by_length(candidate.score, text.tokens.len()), text));
                }
            }
            pool.sort_by(|a, b| b.0.total_cmp(&a.0));
            pool.truncate(pool_size);
            let Some(best) = next.first() else { break };
            let hopeless = |(worst, _): &(f32, Hypothesis)| beam.by_length(best.sum(), best.tokens.len()) <= *worst;
            if pool.len() == pool_size && pool.last().is_some_and(hopeless) {
                break;
            }
            progress.token(piece, best.tokens.len())?;
            // Where there are too few continuations the rows left over follow the first, and are not looked at.
            order.resize(beam.width, order.first().copied().unwrap_or(0));
            memory.reorder(&order)?;
            live = next;
            let fed =
                |row: usize| i64::from(live.get(row).unwrap_or(&live[0]).tokens.last().copied().unwrap_or(self.eot));
            let fed: Vec<i64> = (0..beam.width).map(fed).collect();
            let mut step = self.decoder.step(&mut memory, &fed, self.attention)?;
            live.iter_mut().enumerate().for_each(|(row, text)| text.fed(step.attention(row)));
            for (row, text) in live.iter().enumerate() {
                candidates.extend(self.candidates(row, text, step.last(row)?, beam.width));
            }
        }
        // Nothing ended where no token could follow; what was said so far is then all there is.
        Ok(pool.into_iter().next().map_or_else(|| live.swap_remove(0), |(_, text)| text))
    }

    fn candidates(&self, from: usize, text: &Hypothesis, logits: &mut [f32], width: usize) -> Vec<Candidate> {
        let total = ln_sum_exp(logits);
        self.rules.apply(logits, &text.tokens);
        let before = text.sum();
        let candidate = |(logit, token): (f32, usize)| {
            let logprob = logit - total;
            Candidate { score: before + logprob, from, token: token as u32, logprob }
        };
        greatest(logits, 2 * width).into_iter().map(candidate).collect()
    }
}
