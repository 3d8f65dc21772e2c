//! A model of voices for tests: who speaks louder is somebody else. Never part of a release.

use std::ops::Range;

use crate::{
    base::Result,
    engines::{
        Cancel, Embedder,
        diarize::{Likeness, VoiceKind},
    },
};

/// So much louder, and a voice has nothing in common with the other.
const NOTHING_IN_COMMON_DB: f64 = 20.0;

pub struct Loudness;

impl Embedder for Loudness {
    fn embed(&mut self, utterance: &[f32], _: &Cancel) -> Result<Vec<f32>> {
        let energy: f64 = utterance.iter().map(|sample| f64::from(*sample).powi(2)).sum();
        let level_db = 10.0 * (energy / utterance.len().max(1) as f64).max(1e-10).log10();
        // Below 0 dB by 80 at most: half a turn and more would begin anew.
        let angle = (-level_db).clamp(0.0, 80.0) / NOTHING_IN_COMMON_DB * std::f64::consts::FRAC_PI_2 / 2.0;
        Ok(vec![angle.cos() as f32, angle.sin() as f32])
    }

    fn embed_stretches(&mut self, audio: &[f32], stretches: &[Range<usize>], cancel: &Cancel) -> Result<Vec<Vec<f32>>> {
        stretches.iter().map(|stretch| self.embed(&audio[stretch.clone()], cancel)).collect()
    }

    fn kind(&self) -> VoiceKind {
        let likeness = Likeness { merge: 0.84, coherence: 0.97, same: 0.9 };
        VoiceKind { model: "test-loudness".to_owned(), likeness }
    }
}
