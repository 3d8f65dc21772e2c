//! pyannote segmentation 3.0: 10 s of audio in, for every 17 ms which of up to three people speak, two at most at once.
//!
//! Its speakers are numbered within one window only; who they are is for the voices to say.

use std::path::Path;

use crate::{
    base::{Error, Kind, Result},
    engines::diarize::files,
    flow::SAMPLE_RATE_HZ,
    runtime::{Graph, GraphOptions, Runtime, View},
};

/// Samples that the model takes at a time.
pub(super) const WINDOW: usize = 10 * SAMPLE_RATE_HZ as usize;
/// Samples from one frame to the next, and what one frame sees.
pub(super) const FRAME_STEP: usize = 270;
const FRAME_SEES: usize = 991;
/// The classes of the powerset in their order: nobody, 1, 2, 3, 1 and 2, 1 and 3, 2 and 3.
const CLASSES: [u8; 7] = [0b000, 0b001, 0b010, 0b100, 0b011, 0b101, 0b110];

pub struct Segmenter {
    graph: Graph,
    input: &'static str,
    output: &'static str,
}

impl Segmenter {
    /// Whether the folder holds a segmentation model, by what its graph takes; if so, the model.
    pub fn open(runtime: &Runtime, dir: &Path, threads: usize) -> Result<Option<Segmenter>> {
        let graph = Graph::open(runtime, &files::graph(dir)?, &GraphOptions::cpu(threads))?;
        let inputs = graph.inputs();
        // The exports of Hugging Face and of sherpa-onnx. Models of voices have an `x` too: a second of silence tells.
        let (input, output) = match inputs.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["input_values"] => ("input_values", "logits"),
            ["x"] => ("x", "y"),
            _ => return Ok(None),
        };
        let mut segmenter = Segmenter { graph, input, output };
        let silence = vec![0.0; SAMPLE_RATE_HZ as usize];
        Ok(segmenter.run(&silence).is_ok().then_some(segmenter))
    }

    /// Who is active in each frame of a window, which is filled up with silence: bit 0 for the window's first speaker.
    pub(super) fn active(&mut self, window: &[f32]) -> Result<Vec<u8>> {
        if window.len() > WINDOW {
            return Err(Error::new(Kind::Invalid, "the segmentation model takes 10 s at most"));
        }
        let mut samples = window.to_vec();
        samples.resize(WINDOW, 0.0);
        self.run(&samples)
    }

    fn run(&mut self, samples: &[f32]) -> Result<Vec<u8>> {
        let outputs = self.graph.run(&[(self.input, View::F32(&[1, 1, samples.len()], samples))])?;
        decode(outputs.f32(self.output)?)
    }
}

fn decode(scores: &[f32]) -> Result<Vec<u8>> {
    let (frames, rest) = scores.as_chunks::<{ CLASSES.len() }>();
    if frames.is_empty() || !rest.is_empty() {
        return Err(Error::internal("the segmentation model answered in another shape than seven classes a frame"));
    }
    let likeliest = |frame: &[f32; CLASSES.len()]| {
        let best = (1..CLASSES.len()).fold(0, |best, class| if frame[class] > frame[best] { class } else { best });
        CLASSES[best]
    };
    Ok(frames.iter().map(likeliest).collect())
}

/// The middle of a frame, in seconds from the start of its window.
pub(super) fn frame_secs(frame: usize) -> f64 {
    (frame as f64 * FRAME_STEP as f64 + FRAME_SEES as f64 / 2.0) / f64::from(SAMPLE_RATE_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_class_says_who_speaks() {
        let mut scores = Vec::new();
        for class in 0..7 {
            let mut frame = [-5.0; 7];
            frame[class] = -0.1;
            scores.extend(frame);
        }
        assert_eq!(decode(&scores).unwrap(), CLASSES);
        // Equal scores: nobody.
        assert_eq!(decode(&[-1.9; 7]).unwrap(), [0]);
        assert!(decode(&[0.0; 8]).is_err());
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn frames_lie_17_ms_apart() {
        assert!((frame_secs(0) - 0.031).abs() < 1e-3);
        assert!((frame_secs(588) - 9.953).abs() < 1e-2);
    }
}
