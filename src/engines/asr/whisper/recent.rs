//! What the encoder made of the last windows. A live segment is asked for more than once: as it stands when somebody
//! pauses, again when it is final, and again in another language where the first was the wrong one. Where the audio is the
//! same, the encoder's work, the larger part of a short text's, is done once.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

use crate::{base::Result, runtime::Tensor};

/// Windows that are kept. A model of the largest size makes 8 MB of each; more sessions than this at a time share less.
const KEPT: usize = 4;

#[derive(Default)]
pub(super) struct Recent {
    /// The latest first.
    windows: VecDeque<(u64, Arc<Tensor>)>,
}

impl Recent {
    /// What the encoder hears in these features, which `encode` asks it for where it has not heard them lately.
    pub(super) fn heard(&mut self, features: &[f32], encode: impl FnOnce() -> Result<Tensor>) -> Result<Arc<Tensor>> {
        let print = fingerprint(features);
        let known = self.windows.iter().position(|(known, _)| *known == print).and_then(|at| self.windows.remove(at));
        let hidden = match known {
            Some((_, hidden)) => hidden,
            None => Arc::new(encode()?),
        };
        self.windows.push_front((print, Arc::clone(&hidden)));
        self.windows.truncate(KEPT);
        Ok(hidden)
    }
}

/// Of 64 bits: among four windows two different ones share theirs never.
fn fingerprint(features: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for pair in features.chunks(2) {
        let [low, high] = [pair[0], pair.get(1).copied().unwrap_or_default()].map(|it| u64::from(it.to_bits()));
        hasher.write_u64(high << 32 | low);
    }
    hasher.write_usize(features.len());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::Error, runtime::Element};

    fn encoded(recent: &mut Recent, features: &[f32]) -> bool {
        let mut ran = false;
        let encode = || {
            ran = true;
            Tensor::floats(Element::F32, &[1, 1], &features[..1])
        };
        let hidden = recent.heard(features, encode).unwrap();
        assert_eq!(hidden.f32().unwrap(), &features[..1]);
        ran
    }

    #[test]
    fn the_same_audio_is_encoded_once_while_it_is_recent() {
        let mut recent = Recent::default();
        assert!(encoded(&mut recent, &[1.0, 2.0, 3.0]));
        assert!(!encoded(&mut recent, &[1.0, 2.0, 3.0]));
        assert!(encoded(&mut recent, &[1.0, 2.0]), "another length");
        assert!(encoded(&mut recent, &[1.0, 2.0, 3.5]), "another last sample");
        assert!(!encoded(&mut recent, &[1.0, 2.0, 3.0]));
        (0..KEPT).for_each(|at| assert!(encoded(&mut recent, &[10.0 + at as f32])));
        assert!(encoded(&mut recent, &[1.0, 2.0, 3.0]), "no longer recent");
        assert!(recent.windows.len() <= KEPT);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let mut recent = Recent::default();
        assert!(recent.heard(&[1.0], || Err(Error::internal("no"))).is_err());
        assert!(encoded(&mut recent, &[1.0]));
    }
}
