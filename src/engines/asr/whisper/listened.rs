//! When the words of a text are spoken, by what the decoder listened to while it found them: no second pass is needed.
//!
//! Times are left as the attention gives them, which the reference's can be laid beside; `words::tidy` makes them fit for
//! people.

use crate::{
    base::Result,
    engines::asr::{
        align::Attention,
        whisper::{Whisper, search::Hypothesis},
        words::{TimedToken, TimedWord, words},
    },
};

impl Whisper {
    /// The words of a window of which so many frames of the encoder hold audio; with what each listened to where `attention`
    /// is asked for.
    pub(super) fn words_of(
        &self,
        text: &Hypothesis,
        language: &str,
        audio_frames: usize,
        attention: bool,
    ) -> Result<Vec<TimedWord>> {
        let weights = self.weights(text);
        let rows = weights.rows(self.decoder.alignment_heads(), text.attention.len());
        // The frame at which each token but the last has been spoken: where the decoder began to listen for the next, when
        // it was fed this one.
        let ends = rows.first_frames(audio_frames)?;
        let attended = if attention { rows.most_attended(audio_frames)? } else { Vec::new() };
        let Some(last) = ends.last() else { return Ok(Vec::new()) };
        let end_of = |index: usize| *ends.get(index).unwrap_or(last) as f64 * self.tick_secs();
        let tokens = text.tokens.iter().zip(&text.logprobs).enumerate();
        let spoken: Vec<TimedToken> = tokens
            .filter(|(_, (id, _))| **id < self.tokens.eot)
            .map(|(index, (id, logprob))| TimedToken {
                id: *id,
                start: index.checked_sub(1).map_or(0.0, end_of),
                end: end_of(index),
                probability: logprob.exp(),
                // A token is looked for when the one before it is fed.
                attends_to: index
                    .checked_sub(1)
                    .and_then(|at| attended.get(at))
                    .map(|at| *at as f64 * self.tick_secs()),
            })
            .collect();
        words(&spoken, language, |ids| self.tokens.text(ids))
    }

    /// What each token but the last paid attention to when it was fed, by head.
    fn weights(&self, text: &Hypothesis) -> Weights {
        let heads = self.decoder.alignment_heads();
        let frames = text.attention.first().and_then(|row| row.len().checked_div(heads)).unwrap_or(0);
        let mut weights = Vec::with_capacity(heads * text.attention.len() * frames);
        for head in 0..heads {
            for row in &text.attention {
                weights.extend_from_slice(row.get(head * frames..(head + 1) * frames).unwrap_or_default());
            }
        }
        Weights { weights, frames, median: self.files.median_frames }
    }
}

/// Rows of attention, by head, then by token.
struct Weights {
    weights: Vec<f32>,
    frames: usize,
    median: usize,
}

impl Weights {
    fn rows(&self, heads: usize, tokens: usize) -> Attention<'_> {
        Attention { weights: &self.weights, heads, tokens, frames: self.frames, median: self.median }
    }
}
