//! What happens before the first token of a text: which language is spoken, and the decoder reads its prompt.

use std::sync::Arc;

use crate::{
    base::{Error, Result},
    engines::{
        TranscribeAsk,
        asr::whisper::{
            decode::Prefilled,
            decoder::{Decoder, Memory},
            numbers::{argmax, ln_sum_exp},
            tokens::Tokens,
        },
    },
    runtime::Tensor,
};

/// What is known of a piece before its text.
pub(super) struct Heard {
    pub(super) language: String,
    /// None: this model takes none.
    pub(super) token: Option<u32>,
    /// The likeliest first; empty where the language was given.
    pub(super) probabilities: Vec<(String, f32)>,
}

/// The decoder after `sot` alone, from which the languages were read, a row for each piece.
pub(super) struct Detected {
    memory: Memory,
    no_speech: Vec<f32>,
}

/// The language of each piece: what was asked for, or what the model hears. The second costs a step, which is kept.
pub(super) fn languages(
    decoder: &mut Decoder,
    tokens: &Tokens,
    hidden: &[Arc<Tensor>],
    ask: &TranscribeAsk,
) -> Result<(Vec<Heard>, Option<Detected>)> {
    let asked = &*ask.language;
    if asked != "auto" || tokens.languages.is_empty() {
        let language = if asked == "auto" { "en" } else { asked };
        let token = tokens.language(language)?;
        let heard = |_| Heard { language: language.to_owned(), token, probabilities: Vec::new() };
        return Ok((hidden.iter().map(heard).collect(), None));
    }
    let rows: Vec<&Tensor> = hidden.iter().map(|it| &**it).collect();
    let (memory, mut step) = decoder.start(&rows, &vec![i64::from(tokens.sot); rows.len()])?;
    let (mut heard, mut no_speech) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in 0..rows.len() {
        let logits = step.last(row)?;
        no_speech.push(no_speech_probability(tokens, logits));
        heard.push(language_of(tokens, logits, ask.leaning.as_ref()));
    }
    Ok((heard, Some(Detected { memory, no_speech })))
}

/// The likeliest language, or the one leant to where it is likely enough.
fn language_of(tokens: &Tokens, logits: &[f32], leaning: Option<&(String, f32)>) -> Heard {
    let known: Vec<f32> = tokens.languages.iter().map(|(_, id)| logits[*id as usize]).collect();
    let total = ln_sum_exp(&known);
    let leant = leaning.and_then(|(language, least)| {
        let at = tokens.languages.iter().position(|(code, _)| code == language)?;
        ((known[at] - total).exp() >= *least).then_some(at)
    });
    let (language, token) = &tokens.languages[leant.unwrap_or_else(|| argmax(&known))];
    let codes = tokens.languages.iter().map(|(code, _)| code.clone());
    let mut probabilities: Vec<(String, f32)> = codes.zip(known.iter().map(|logit| (logit - total).exp())).collect();
    probabilities.sort_by(|a, b| b.1.total_cmp(&a.1));
    Heard { language: language.clone(), token: Some(*token), probabilities }
}

/// At the position of `sot`, as the reference reads it.
fn no_speech_probability(tokens: &Tokens, logits: &[f32]) -> f32 {
    tokens.no_speech.map_or(0.0, |id| (logits[id as usize] - ln_sum_exp(logits)).exp())
}

/// What is said to the model before a text: `[sop] hotwords, what was said before, sot language task`.
pub(super) struct Context {
    hotwords: Vec<u32>,
    said: Vec<u32>,
    sop: Option<u32>,
    longest: usize,
}

impl Context {
    pub(super) fn of(ask: &TranscribeAsk, tokens: &Tokens, longest: usize) -> Result<Context> {
        let encode = |text: &Option<String>| match text.as_deref().map(str::trim) {
            Some(text) if !text.is_empty() => tokens.encode(text),
            _ => Ok(Vec::new()),
        };
        let mut hotwords = encode(&ask.hotwords)?;
        // Words to expect leave room for what was said.
        hotwords.truncate(longest / 2);
        Ok(Context { hotwords, said: encode(&ask.prompt)?, sop: tokens.sop, longest })
    }

    pub(super) fn prompt(&self, previous: &[u32], task: Vec<u32>) -> Vec<u32> {
        let said = [&self.said[..], previous].concat();
        let kept = &said[said.len().saturating_sub(self.longest - self.hotwords.len())..];
        let mut prompt = Vec::with_capacity(1 + self.hotwords.len() + kept.len() + task.len());
        if let Some(sop) = self.sop.filter(|_| !self.hotwords.is_empty() || !kept.is_empty()) {
            prompt.push(sop);
            prompt.extend_from_slice(&self.hotwords);
            prompt.extend_from_slice(kept);
        }
        prompt.extend(task);
        prompt
    }
}

/// Prompts of equal length, by their place; each group is decoded together.
pub(super) fn alike(prompts: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        match groups.iter_mut().find(|group| prompts[group[0]].len() == prompt.len()) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

/// Lets the decoder read prompts of equal length, a row for each of `rows`.
pub(super) fn read_prompts(
    decoder: &mut Decoder,
    tokens: &Tokens,
    hidden: &[Arc<Tensor>],
    prompts: &[Vec<u32>],
    rows: &[usize],
    detected: Option<&Detected>,
) -> Result<(Memory, Vec<Prefilled>)> {
    let of_rows: Vec<&[u32]> = rows.iter().map(|row| &prompts[*row][..]).collect();
    let Some(prompt) = of_rows.first() else { return Err(Error::internal("no prompts to read")) };
    let sot = prompt.iter().rposition(|id| *id == tokens.sot).unwrap_or(0);
    let mut no_speech = Vec::with_capacity(rows.len());
    // What was read to find the language is not read again, unless other words come before it.
    let (memory, mut step) = match detected.filter(|_| sot == 0 && prompt.len() > 1) {
        Some(detected) => {
            no_speech.extend(rows.iter().map(|row| detected.no_speech[*row]));
            let mut memory = detected.memory.select(rows)?;
            let mut feed = |position: usize| {
                let ids: Vec<i64> = of_rows.iter().map(|prompt| i64::from(prompt[position])).collect();
                decoder.step(&mut memory, &ids, false)
            };
            let mut step = feed(1)?;
            for position in 2..prompt.len() {
                step = feed(position)?;
            }
            (memory, step)
        }
        None => {
            let hidden: Vec<&Tensor> = rows.iter().map(|row| &*hidden[*row]).collect();
            let ids: Vec<i64> = of_rows.concat().into_iter().map(i64::from).collect();
            let (memory, mut step) = decoder.start(&hidden, &ids)?;
            for row in 0..rows.len() {
                no_speech.push(no_speech_probability(tokens, step.at(row, sot)?));
            }
            (memory, step)
        }
    };
    let mut prefilled = Vec::with_capacity(rows.len());
    for (row, no_speech) in no_speech.into_iter().enumerate() {
        prefilled.push(Prefilled { piece: rows[row], row, first: step.last(row)?.to_vec(), no_speech });
    }
    Ok((memory, prefilled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_keeps_hotwords_and_the_end_of_what_was_said() {
        let context = Context { hotwords: vec![1, 2], said: vec![3, 4], sop: Some(90), longest: 5 };
        assert_eq!(context.prompt(&[5, 6], vec![91, 92]), [90, 1, 2, 4, 5, 6, 91, 92]);
        let nothing = Context { hotwords: vec![], said: vec![], sop: Some(90), longest: 5 };
        assert_eq!(nothing.prompt(&[], vec![91, 92]), [91, 92]);
        assert_eq!(Context { sop: None, ..nothing }.prompt(&[5], vec![91]), [91]);
    }

    #[test]
    fn prompts_of_equal_length_are_decoded_together() {
        assert_eq!(alike(&[vec![1], vec![2, 3], vec![4]]), [vec![0, 2], vec![1]]);
    }
}
