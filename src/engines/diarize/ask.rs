//! What the engines of voices are asked and what they answer. Plain data: it crosses to the process of an engine.
//!
//! Long recordings are asked in pieces, so that no message grows with the recording and live speech is served in between;
//! who the speakers are is decided above the engine (`diarize::speakers`), from all that was observed.

use serde::{Deserialize, Serialize};

use crate::{
    engines::diarize::Likeness,
    flow::{Pcm, SAMPLE_RATE_HZ},
};

/// Live sessions wait for no more than the work that this makes.
pub const PIECE: usize = 30 * SAMPLE_RATE_HZ as usize;
/// A voice detector needs some frames until it hears well.
pub const LEAD: usize = 2 * SAMPLE_RATE_HZ as usize;
/// A window of the segmentation model begins in its piece and may reach beyond it.
pub const TAIL: usize = 10 * SAMPLE_RATE_HZ as usize;

/// Utterances of one speaker each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedAsk {
    pub utterances: Vec<Pcm>,
}

/// A voice of each, of unit length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    pub kind: VoiceKind,
    pub voices: Vec<Vec<f32>>,
}

/// Which model's voices these are: those of different models cannot be compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VoiceKind {
    pub model: String,
    pub likeness: Likeness,
}

/// A piece of a recording, with what surrounds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiarizeAsk {
    pub audio: Pcm,
    /// Where the piece begins in `audio`, in samples; before it lies what was there before.
    pub lead: usize,
    /// Samples of the piece; behind it lies what comes after.
    pub len: usize,
    /// Where the piece begins in the recording.
    pub start_secs: f64,
}

/// The asks that a whole recording takes, in order.
pub fn pieces(recording: &[f32]) -> impl Iterator<Item = DiarizeAsk> + '_ {
    (0..recording.len()).step_by(PIECE).map(|start| {
        let len = PIECE.min(recording.len() - start);
        let from = start.saturating_sub(LEAD);
        let to = (start + len + TAIL).min(recording.len());
        DiarizeAsk {
            audio: recording[from..to].to_vec().into(),
            lead: start - from,
            len,
            start_secs: start as f64 / f64::from(SAMPLE_RATE_HZ),
        }
    })
}

/// Told after every batch of voices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DiarizeStep {
    /// Of the piece.
    pub done_secs: f64,
}

/// What was heard in one piece. Times are seconds of the recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    pub kind: VoiceKind,
    pub heard: Heard,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Heard {
    /// With a voice detector alone: speech without a pause, and who speaks at even steps of it.
    Islands(Vec<Island>),
    /// With a segmentation model: who speaks when, by numbers that hold within one window only.
    Tracks(Vec<TrackWindow>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Island {
    pub start: f64,
    pub end: f64,
    /// None where the island is too short to tell a voice.
    pub windows: Vec<VoiceWindow>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VoiceWindow {
    pub start: f64,
    pub end: f64,
    /// Of unit length.
    pub voice: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackWindow {
    pub start: f64,
    /// Which of the window's speakers are heard in each frame: bit 0 for the first.
    pub active: Vec<u8>,
    /// None for a speaker who is not heard alone for long enough.
    pub voices: [Option<TrackVoice>; 3],
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackVoice {
    pub voice: Vec<f32>,
    /// How long this speaker is heard alone.
    pub clean_secs: f32,
}

/// From when to when somebody speaks. Speakers count from 0 in the order in which they are first heard.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    pub start: f64,
    pub end: f64,
    pub speaker: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_recording_once_and_carry_what_surrounds_them() {
        let recording: Vec<f32> = (0..PIECE * 2 + 1000).map(|i| i as f32).collect();
        let asks: Vec<DiarizeAsk> = pieces(&recording).collect();
        assert_eq!(asks.len(), 3);
        let cores: Vec<f32> = asks.iter().flat_map(|ask| ask.audio[ask.lead..ask.lead + ask.len].to_vec()).collect();
        assert_eq!(cores, recording);
        assert_eq!((asks[0].lead, asks[1].lead), (0, LEAD));
        assert_eq!(asks[0].audio.len(), PIECE + TAIL);
        assert_eq!(asks[1].start_secs, 30.0);
        assert_eq!(pieces(&[]).count(), 0);
    }
}
