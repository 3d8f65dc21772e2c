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
    /// The words of a window of which so many frames of the encoder hold audio.
    pub(super) fn words_of(&self, text: &Hypothesis, language: &str, audio_frames: usize) -> Result<Vec<TimedWord>> {
        let ends = self.token_ends(text, audio_frames)?;
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
            })
            .collect();
        words(&spoken, language, |ids| self.tokens.text(ids))
    }

    /// The frame at which each token but the last has been spoken: where the decoder began to listen for the next, when it
    /// was fed this one.
    fn token_ends(&self, text: &Hypothesis, audio_frames: usize) -> Result<Vec<usize>> {
        let (heads, tokens) = (self.decoder.alignment_heads(), text.attention.len());
        let Some(frames) = text.attention.first().and_then(|row| row.len().checked_div(heads)) else {
            return Ok(Vec::new());
        };
        let mut weights = Vec::with_capacity(heads * tokens * frames);
        for head in 0..heads {
            for row in &text.attention {
                weights.extend_from_slice(row.get(head * frames..(head + 1) * frames).unwrap_or_default());
            }
        }
        Attention { weights: &weights, heads, tokens, frames }.first_frames(audio_frames)
    }
}
