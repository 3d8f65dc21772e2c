//! One token after the other, for several rows at once: the likeliest, or one drawn at a temperature.

use fastrand::Rng;

use crate::{
    base::Result,
    engines::asr::whisper::{
        decoder::{Memory, Step},
        numbers::{argmax, ln_sum_exp, max},
        search::{Hypothesis, Progress, Search},
    },
};

/// How a row's next token is chosen.
#[derive(Debug, Clone)]
pub(super) enum Choice {
    Likeliest,
    Drawn { random: Rng, temperature: f32 },
}

/// A text that is being made in one row of the decoder's memory.
pub(super) struct Row {
    /// Which piece is told of its steps.
    pub(super) piece: usize,
    pub(super) choice: Choice,
}

impl Choice {
    /// The token, and how likely it was among those that may come.
    fn next(&mut self, logits: &mut [f32]) -> (u32, f32) {
        let total = ln_sum_exp(logits);
        let token = match self {
            Choice::Likeliest => argmax(logits),
            Choice::Drawn { random, temperature } => draw(logits, *temperature, random),
        };
        (token as u32, logits[token] - total)
    }
}

/// One of the tokens, each as often as its share of softmax(logits / temperature).
fn draw(logits: &[f32], temperature: f32, random: &mut Rng) -> usize {
    let greatest = max(logits);
    let share = |logit: &f32| f64::from((logit - greatest) / temperature).exp();
    let mut left = logits.iter().map(share).sum::<f64>() * random.f64();
    let drawn = logits.iter().position(|logit| {
        left -= share(logit);
        left < 0.0
    });
    // Rounding may leave a rest behind the last.
    drawn.unwrap_or_else(|| argmax(logits))
}

impl Search<'_> {
    /// A text for each row. `first` are the logits behind the prompts.
    pub(super) fn sample(
        &mut self,
        mut memory: Memory,
        first: Vec<Vec<f32>>,
        rows: Vec<Row>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Hypothesis>> {
        let mut texts: Vec<Hypothesis> = rows.iter().map(|_| Hypothesis::default()).collect();
        let mut rows = rows;
        // Which text each row of the memory belongs to.
        let mut live: Vec<usize> = (0..rows.len()).collect();
        let mut logits = Logits::First(first);
        loop {
            for (at, index) in live.iter().enumerate() {
                let (text, row) = (&mut texts[*index], &mut rows[*index]);
                if self.has_ended(text) {
                    continue;
                }
                let logits = logits.row(at)?;
                self.rules.apply(logits, &text.tokens);
                let (token, logprob) = row.choice.next(logits);
                text.push(token, logprob);
                progress.token(row.piece, text.tokens.len())?;
            }
            let going: Vec<usize> = (0..live.len()).filter(|at| !self.has_ended(&texts[live[*at]])).collect();
            if going.is_empty() {
                return Ok(texts);
            }
            // Leaving rows out copies the others' memory, so it must pay.
            if going.len() * 4 <= live.len() * 3 {
                memory = memory.select(&going)?;
                live = going.into_iter().map(|at| live[at]).collect();
            }
            let fed: Vec<i64> =
                live.iter().map(|index| i64::from(texts[*index].tokens.last().copied().unwrap_or(self.eot))).collect();
            let step = self.decoder.step(&mut memory, &fed, self.attention)?;
            for (at, index) in live.iter().enumerate() {
                if !self.has_ended(&texts[*index]) {
                    texts[*index].fed(step.attention(at));
                }
            }
            logits = Logits::Next(step);
        }
    }

    pub(super) fn has_ended(&self, text: &Hypothesis) -> bool {
        text.tokens.last() == Some(&self.eot) || text.tokens.len() >= self.max_new_tokens
    }
}

/// Behind the prompts, later behind the last tokens.
enum Logits {
    First(Vec<Vec<f32>>),
    Next(Step),
}

impl Logits {
    fn row(&mut self, row: usize) -> Result<&mut [f32]> {
        match self {
            Logits::First(rows) => Ok(&mut rows[row]),
            Logits::Next(step) => step.last(row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_their_share() {
        let logits = [1.0_f32.ln(), 3.0_f32.ln(), f32::NEG_INFINITY, 4.0_f32.ln()];
        let count = |temperature: f32| {
            let mut random = Rng::with_seed(3);
            let mut counts = [0; 4];
            (0..8000).for_each(|_| counts[draw(&logits, temperature, &mut random)] += 1);
            counts
        };
        let counts = count(1.0);
        assert!((900..1100).contains(&counts[0]) && (2800..3200).contains(&counts[1]) && counts[2] == 0, "{counts:?}");
        assert_eq!(counts, count(1.0));
        assert!(count(0.1)[3] > 7000);
    }
}
