//! Which tokens may come next: the reference's logit filters, in the reference's order.

use crate::engines::asr::whisper::{numbers::ln_sum_exp, tokens::Tokens};

const NEVER: f32 = f32::NEG_INFINITY;

/// The filters of one decode.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    suppress: Vec<u32>,
    begin_suppress: Vec<u32>,
    /// None: the text comes without times.
    timestamps: Option<TimestampRules>,
}

#[derive(Debug, Clone, Copy)]
struct TimestampRules {
    eot: usize,
    no_timestamps: usize,
    begin: usize,
    max_initial: Option<usize>,
}

impl Rules {
    /// `max_initial`: the latest first timestamp, counted from `<|0.00|>`.
    pub(super) fn new(tokens: &Tokens, timestamps: bool, max_initial: Option<usize>) -> Rules {
        Rules {
            suppress: tokens.suppress.clone(),
            begin_suppress: tokens.begin_suppress.clone(),
            timestamps: timestamps.then_some(TimestampRules {
                eot: tokens.eot as usize,
                no_timestamps: tokens.no_timestamps as usize,
                begin: tokens.timestamp_begin as usize,
                max_initial,
            }),
        }
    }

    /// Takes away what may not come after the tokens sampled so far. The logits may be shifted by any constant.
    pub(super) fn apply(&self, logits: &mut [f32], sampled: &[u32]) {
        let mut ban = |ids: &[u32]| {
            for id in ids {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit = NEVER;
                }
            }
        };
        // 1. The text does not begin with a blank or its end.
        if sampled.is_empty() {
            ban(&self.begin_suppress);
        }
        // 2. Tokens that are never said.
        ban(&self.suppress);
        // 3. Times.
        if let Some(rules) = &self.timestamps {
            rules.apply(logits, sampled);
        }
    }
}

impl TimestampRules {
    fn apply(&self, logits: &mut [f32], sampled: &[u32]) {
        let begin = self.begin.min(logits.len());
        let is_timestamp = |id: &u32| *id as usize >= begin;
        // a. Times were asked for.
        if let Some(logit) = logits.get_mut(self.no_timestamps) {
            *logit = NEVER;
        }
        // b. They come in pairs, but for the one that opens the text and the one that may end it.
        let last = sampled.last().is_some_and(is_timestamp);
        let before_last = sampled.len() < 2 || is_timestamp(&sampled[sampled.len() - 2]);
        if last && before_last {
            logits[begin..].fill(NEVER);
        } else if last {
            let text_end = self.eot.min(logits.len());
            logits[..text_end].fill(NEVER);
        }
        // c. They never go back; only the second of a pair may repeat the first.
        if let Some(latest) = sampled.iter().rev().find(|id| is_timestamp(id)) {
            let from = *latest as usize + usize::from(!last || before_last);
            let from = from.clamp(begin, logits.len());
            logits[begin..from].fill(NEVER);
        }
        // d. The first token is a time, and not a late one.
        if sampled.is_empty() {
            logits[..begin].fill(NEVER);
            if let Some(index) = self.max_initial {
                let from = (begin + index + 1).min(logits.len());
                logits[from..].fill(NEVER);
            }
        }
        // e. A time comes where all times together are likelier than any one text token.
        let (text, times) = logits.split_at_mut(begin);
        let likeliest = text.iter().copied().fold(NEVER, f32::max);
        if ln_sum_exp(times) > likeliest {
            text.fill(NEVER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u32 = 6;

    /// Ten tokens: four of text, the end at 4, notimestamps at 5, times from 6 on. Text is likelier by far.
    fn allowed(rules: &Rules, sampled: &[u32]) -> Vec<usize> {
        let mut logits = vec![0.0; 10];
        logits[..4].fill(50.0);
        rules.apply(&mut logits, sampled);
        (0..10).filter(|id| logits[*id] > NEVER).collect()
    }

    fn rules(max_initial: Option<usize>) -> Rules {
        let timestamps = TimestampRules { eot: 4, no_timestamps: 5, begin: BEGIN as usize, max_initial };
        Rules { suppress: vec![3, 99], begin_suppress: vec![0], timestamps: Some(timestamps) }
    }

    #[test]
    fn the_first_token_is_an_early_time() {
        assert_eq!(allowed(&rules(None), &[]), [6, 7, 8, 9]);
        assert_eq!(allowed(&rules(Some(1)), &[]), [6, 7]);
        assert_eq!(allowed(&rules(Some(99)), &[]), [6, 7, 8, 9]);
    }

    #[test]
    fn after_the_opening_time_comes_text() {
        assert_eq!(allowed(&rules(None), &[7]), [0, 1, 2, 4]);
    }

    #[test]
    fn times_never_go_back_and_only_the_second_of_a_pair_repeats_the_first() {
        assert_eq!(allowed(&rules(None), &[7, 1]), [0, 1, 2, 4, 8, 9]);
        assert_eq!(allowed(&rules(None), &[7, 1, 8]), [8, 9]);
        assert_eq!(allowed(&rules(None), &[7, 1, 8, 8]), [0, 1, 2, 4]);
    }

    #[test]
    fn times_win_where_together_they_are_likelier_than_the_likeliest_text() {
        let mut logits = vec![1.0; 10];
        rules(None).apply(&mut logits, &[7, 1]);
        assert_eq!((logits[1], logits[8]), (NEVER, 1.0));
    }

    #[test]
    fn without_times_only_the_lists_count() {
        let rules = Rules { timestamps: None, ..rules(None) };
        assert_eq!(allowed(&rules, &[]), [1, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(allowed(&rules, &[1]), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    }
}
