//! Silero VAD, generations 5 and 6: the graph with one recurrent `state`.
//!
//! Not supported: generation 4 and older (`h` and `c` of 64), the sequence form, 8 kHz.

use std::path::Path;

use crate::{
    base::{Error, Result},
    engines::{VoiceDetector, VoiceFrame, VoiceState},
    runtime::{Graph, GraphOptions, Runtime, View},
    segment::{Voiced, speech::FRAME},
};

/// The graph's name in its folder, as the wheel `silero-vad` has it.
pub const FILE: &str = "silero_vad.onnx";

const CONTEXT: usize = 64;
/// The model sees the end of the previous frame before each frame; without it, it answers garbage in silence.
const INPUT: usize = CONTEXT + FRAME as usize;
const STATE: usize = 128;

pub struct Silero {
    graph: Graph,
    input: Vec<f32>,
    state: Vec<f32>,
}

impl Silero {
    /// One thread is the fastest for live frames: they are too small to be shared out.
    pub fn open(runtime: &Runtime, path: &Path, threads: usize) -> Result<Silero> {
        let graph = Graph::open(runtime, path, &GraphOptions::cpu(threads))?;
        let inputs = graph.inputs();
        if !["input", "state", "sr"].iter().all(|name| inputs.iter().any(|input| input == name)) {
            return Err(Error::unavailable(format!(
                "{} is no Silero VAD of generation 5 or 6: its inputs are {}",
                path.display(),
                inputs.join(", ")
            ))
            .hint("take silero_vad.onnx from the wheel silero-vad 5 or newer"));
        }
        Ok(Silero { graph, input: Vec::new(), state: Vec::new() })
    }
}

impl VoiceDetector for Silero {
    fn detect(&mut self, frames: &mut [VoiceFrame<'_>]) -> Result<()> {
        let batch = frames.len();
        self.input.clear();
        for frame in frames.iter() {
            self.input.extend_from_slice(&frame.state.context);
            self.input.extend_from_slice(frame.samples);
        }
        // The state's first axis is the layer, the second the batch: [2, batch, 128].
        self.state.clear();
        for layer in 0..2 {
            for frame in frames.iter() {
                self.state.extend_from_slice(&frame.state.recurrent[layer * STATE..][..STATE]);
            }
        }
        let outputs = self.graph.run(&[
            ("input", View::F32(&[batch, INPUT], &self.input)),
            ("state", View::F32(&[2, batch, STATE], &self.state)),
            ("sr", View::I64(&[], &[16_000])),
        ])?;
        let probabilities = outputs.f32("output")?;
        let next_state = outputs.f32("stateN")?;
        if probabilities.len() != batch || next_state.len() != 2 * batch * STATE {
            return Err(Error::internal("Silero VAD answered in another shape than asked"));
        }
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.probability = probabilities[i];
            for layer in 0..2 {
                let row = &next_state[(layer * batch + i) * STATE..][..STATE];
                frame.state.recurrent[layer * STATE..][..STATE].copy_from_slice(row);
            }
            frame.state.context.copy_from_slice(&frame.samples[frame.samples.len() - CONTEXT..]);
        }
        Ok(())
    }
}

/// The probabilities of a whole recording.
pub fn probabilities(detector: &mut dyn VoiceDetector, samples: &[f32]) -> Result<Vec<f32>> {
    Ok(hear(detector, samples)?.into_iter().map(|voiced| voiced.probability).collect())
}

/// The frames of a whole recording; its last one is filled up with silence.
pub fn hear(detector: &mut dyn VoiceDetector, samples: &[f32]) -> Result<Vec<Voiced>> {
    let mut state = VoiceState::default();
    let mut heard = Vec::with_capacity(samples.len() / FRAME as usize + 1);
    let mut padded = [0.0; FRAME as usize];
    for chunk in samples.chunks(FRAME as usize) {
        let frame = if chunk.len() == FRAME as usize {
            chunk
        } else {
            padded[..chunk.len()].copy_from_slice(chunk);
            &padded[..]
        };
        let mut frames = [VoiceFrame { samples: frame, state: &mut state, probability: 0.0 }];
        detector.detect(&mut frames)?;
        heard.push(Voiced::new(frames[0].probability, frame));
    }
    Ok(heard)
}
