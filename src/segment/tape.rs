//! The last stretch of a stream's samples, addressed by their number since its start. Holds only what a segment may
//! still need: whoever cuts also says what may be forgotten.

use crate::flow::Pcm;

#[derive(Default)]
pub struct Tape {
    samples: Vec<f32>,
    /// Number of the first sample that is still held.
    first: u64,
}

/// Forgotten samples are moved out in strides of this size, so that forgetting costs next to nothing per frame.
const STRIDE: usize = 16_000;

impl Tape {
    /// Of a stream that goes on with that sample.
    pub fn from(first: u64) -> Tape {
        Tape { samples: Vec::new(), first }
    }

    pub fn push(&mut self, samples: &[f32]) {
        self.samples.extend_from_slice(samples);
    }

    /// A copy of `[start, end)`, as far as it is held.
    pub fn cut(&self, start: u64, end: u64) -> Pcm {
        let index = |sample: u64| (sample.saturating_sub(self.first) as usize).min(self.samples.len());
        let (from, to) = (index(start), index(end));
        Pcm::from(self.samples[from..to.max(from)].to_vec())
    }

    /// Nothing before `sample` will be asked for again.
    pub fn forget_before(&mut self, sample: u64) {
        let count = (sample.saturating_sub(self.first) as usize).min(self.samples.len());
        if count >= STRIDE {
            self.samples.drain(..count);
            self.first += count as u64;
            // After a long segment the room would stay: minutes of a session's life for seconds of use.
            self.samples.shrink_to(self.samples.len() + STRIDE);
        }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.samples.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_exact_after_forgetting() {
        let mut tape = Tape::default();
        let all: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
        for chunk in all.chunks(1_234) {
            tape.push(chunk);
            let end = chunk[chunk.len() - 1] as u64;
            tape.forget_before(end.saturating_sub(20_000));
            assert!(tape.held() <= 20_000 + STRIDE + 1_234);
        }
        assert_eq!(&*tape.cut(90_000, 90_003), &[90_000.0, 90_001.0, 90_002.0]);
        assert_eq!(tape.cut(99_999, 200_000).len(), 1);
        assert!(tape.cut(5, 2).is_empty());
    }
}
