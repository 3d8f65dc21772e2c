//! The decoder, one step at a time, with the memory that it keeps between steps.
//!
//! Keys and values move from one step to the next without a copy. Those of the speech are computed by the first step and
//! kept: what later steps give back for them is empty. Steps after the first take one token a row, for graphs of older
//! exports let a token of several see the ones behind it.

use std::sync::Arc;

use crate::{
    base::{Error, Result},
    engines::asr::whisper::{
        files::ModelFiles,
        graphs::{DecoderGraph, DecoderGraphs, Names},
    },
    runtime::{Element, Graph, Port, Tensor, Wanted},
};

pub(super) struct Decoder {
    graphs: DecoderGraphs,
    files: ModelFiles,
    /// Layer and head, of those that the graph tells.
    alignment: Vec<(usize, usize)>,
}

/// What the decoder remembers of a number of rows. Cheap to clone: a retry goes on from the same memory.
#[derive(Clone)]
pub(super) struct Memory {
    rows: usize,
    length: usize,
    own: Vec<Arc<Tensor>>,
    cross: Vec<Arc<Tensor>>,
    hidden: Arc<Tensor>,
}

/// What a step answers.
pub(super) struct Step {
    logits: Tensor,
    rows: usize,
    positions: usize,
    vocabulary: usize,
    /// Of the last token: by row, then by alignment head, then by frame. Empty where it was not asked for.
    attention: Vec<f32>,
}

impl Step {
    /// The logits behind the last token of a row, to be changed in place.
    pub(super) fn last(&mut self, row: usize) -> Result<&mut [f32]> {
        self.at(row, self.positions - 1)
    }

    pub(super) fn at(&mut self, row: usize, position: usize) -> Result<&mut [f32]> {
        let from = (row * self.positions + position) * self.vocabulary;
        let vocabulary = self.vocabulary;
        let logits = self.logits.f32_mut()?.get_mut(from..from + vocabulary);
        logits.ok_or_else(|| Error::internal("a row that the decoder did not answer"))
    }

    /// What the last token of a row paid attention to; empty where it was not asked for.
    pub(super) fn attention(&self, row: usize) -> &[f32] {
        let rows = self.attention.len() / self.rows.max(1);
        &self.attention[row * rows..(row + 1) * rows]
    }
}

impl Memory {
    /// Other rows: some left out, some taken several times.
    pub(super) fn select(&self, order: &[usize]) -> Result<Memory> {
        if order.iter().copied().eq(0..self.rows) {
            return Ok(self.clone());
        }
        let select = |tensors: &[Arc<Tensor>]| -> Result<Vec<Arc<Tensor>>> {
            tensors.iter().map(|tensor| tensor.rows(order).map(Arc::new)).collect()
        };
        Ok(Memory {
            rows: order.len(),
            length: self.length,
            own: select(&self.own)?,
            cross: select(&self.cross)?,
            hidden: Arc::new(self.hidden.rows(order)?),
        })
    }

    /// Rows of the same speech in another order: what is of the speech stays as it is.
    pub(super) fn reorder(&mut self, order: &[usize]) -> Result<()> {
        if !order.iter().copied().eq(0..self.rows) {
            for tensor in &mut self.own {
                *tensor = Arc::new(tensor.rows(order)?);
            }
        }
        Ok(())
    }
}

impl Decoder {
    pub(super) fn new(graphs: DecoderGraphs, files: ModelFiles) -> Decoder {
        let told = graphs.later.as_ref().map_or(&graphs.first.attentions, |later| &later.attentions);
        let heads = files.rules.alignment_heads.iter().copied();
        let alignment = heads.filter(|(layer, head)| told.contains(layer) && *head < files.decoder_heads).collect();
        Decoder { graphs, files, alignment }
    }

    /// How many heads tell their attention; 0 where the export has none.
    pub(super) fn alignment_heads(&self) -> usize {
        self.alignment.len()
    }

    /// The first step: the same number of tokens for each row, one row for each of `hidden`.
    pub(super) fn start(&mut self, hidden: &[&Tensor], ids: &[i64]) -> Result<(Memory, Step)> {
        let rows = hidden.len();
        let DecoderGraphs { speech, first, .. } = &mut self.graphs;
        let DecoderGraph { graph, names, start, .. } = first;
        let hidden = Tensor::gather(&hidden.iter().map(|hidden| (*hidden, 0)).collect::<Vec<_>>())?;
        let nothing = |ports: &[Port]| -> Result<Vec<Arc<Tensor>>> {
            let shape = [rows, self.files.decoder_heads, 0, self.files.head_dim];
            ports.iter().map(|port| Tensor::zeros(port.element, &shape).map(Arc::new)).collect()
        };
        let wanted = speech.as_ref().map(|speech| &speech.input).or(names.hidden.as_ref());
        let hidden = Arc::new(hidden.into_element(wanted.map_or(Element::F32, |port| port.element))?);
        let cross = match speech {
            Some(speech) => speech.run(&hidden)?.into_iter().map(Arc::new).collect(),
            None => nothing(&names.cross_past)?,
        };
        let mut memory = Memory { rows, length: 0, own: nothing(&names.own_past)?, cross, hidden };
        let (step, cross) = run(graph, names, &mut memory, ids, true, start)?;
        if names.cross_count > 0 {
            memory.cross = cross.into_iter().map(Arc::new).collect();
        }
        if step.vocabulary != self.files.vocabulary {
            let (has, says) = (step.vocabulary, self.files.vocabulary);
            return Err(Error::unavailable(format!("the decoder knows {has} tokens where its config says {says}"))
                .hint("remove the model's folder and fetch it again"));
        }
        Ok((memory, step))
    }

    /// One more token a row.
    pub(super) fn step(&mut self, memory: &mut Memory, ids: &[i64], attention: bool) -> Result<Step> {
        let DecoderGraph { graph, names, attentions, step, step_with_attention, .. } = self.graphs.of_later_steps();
        let wanted = step_with_attention.as_ref().filter(|_| attention).unwrap_or(step);
        let (mut answer, layers) = run(graph, names, memory, ids, false, wanted)?;
        answer.attention = alignment_rows(layers, attentions, &self.alignment, memory.rows)?;
        Ok(answer)
    }
}

/// One run: the answer, and what the graph was asked for besides the logits and its own keys and values.
fn run(
    graph: &mut Graph,
    names: &Names,
    memory: &mut Memory,
    ids: &[i64],
    first: bool,
    wanted: &Wanted,
) -> Result<(Step, Vec<Tensor>)> {
    let fed = ids.len() / memory.rows.max(1);
    let ids = Tensor::integers(names.ids.element, &[memory.rows, fed], ids)?;
    let use_cache = Tensor::bools(&[1], &[!first])?;
    let positions = match &names.cache_position {
        Some(port) => {
            let positions: Vec<i64> = (memory.length..memory.length + fed).map(|position| position as i64).collect();
            Some((port, Tensor::integers(port.element, &[fed], &positions)?))
        }
        None => None,
    };
    let mut inputs = Vec::with_capacity(4 + names.own_past.len() + names.cross_past.len());
    inputs.push((names.ids.name.as_str(), &ids));
    inputs.extend(names.hidden.iter().map(|port| (port.name.as_str(), &*memory.hidden)));
    inputs.extend(names.use_cache.iter().map(|port| (port.name.as_str(), &use_cache)));
    inputs.extend(positions.iter().map(|(port, positions)| (port.name.as_str(), positions)));
    let past = names.own_past.iter().zip(&memory.own).chain(names.cross_past.iter().zip(&memory.cross));
    inputs.extend(past.map(|(port, tensor)| (port.name.as_str(), &**tensor)));

    let mut outputs = graph.run_tensors(inputs, wanted)?.into_iter();
    let logits =
        outputs.next().ok_or_else(|| Error::internal("the decoder answered nothing"))?.into_element(Element::F32)?;
    memory.own = outputs.by_ref().take(names.own_count).map(Arc::new).collect();
    memory.length += fed;
    match logits.shape()[..] {
        [rows, positions, vocabulary] if rows == memory.rows && positions == fed && positions > 0 => {
            Ok((Step { logits, rows, positions, vocabulary, attention: Vec::new() }, outputs.collect()))
        }
        _ => Err(Error::internal(format!("the decoder answered in the shape {:?}", logits.shape()))),
    }
}

/// What the last token of each row paid attention to, out of `[rows, heads, tokens, frames]` of each layer.
fn alignment_rows(
    tensors: Vec<Tensor>,
    layers: &[usize],
    alignment: &[(usize, usize)],
    rows: usize,
) -> Result<Vec<f32>> {
    if tensors.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = || Error::internal("the decoder told its attention in another shape than expected");
    let tensors: Vec<Tensor> = tensors.into_iter().map(|it| it.into_element(Element::F32)).collect::<Result<_>>()?;
    let mut attention = Vec::new();
    for row in 0..rows {
        for (layer, head) in alignment {
            let tensor = layers.iter().zip(&tensors).find(|(it, _)| *it == layer).ok_or_else(wrong)?.1;
            let [_, heads, tokens, frames] = tensor.shape()[..] else { return Err(wrong()) };
            let from = ((row * heads + head) * tokens + tokens.saturating_sub(1)) * frames;
            attention.extend_from_slice(tensor.f32()?.get(from..from + frames).ok_or_else(wrong)?);
        }
    }
    Ok(attention)
}
