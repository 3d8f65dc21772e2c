//! The engine of diarization: hears one piece of a recording, where speech is and what voices it has.
//!
//! With a segmentation model it hears overlaps and short turns; without one, a voice detector and even windows serve.
//! Who the speakers are it does not say: that takes the whole recording (`diarize::speakers`).

use std::ops::Range;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel, Diarizer, Embedder, VoiceDetector,
        diarize::{
            ask::{DiarizeAsk, DiarizeStep, Heard, Island, Observed, TrackVoice, TrackWindow, VoiceWindow},
            islands::{STEP_SECS, WINDOW_SECS},
            segmentation::{self, Segmenter},
        },
        vad,
    },
    flow::{SAMPLE_RATE_HZ, audio::samples_to_secs},
    segment::{Offline, Rules},
};

const fn samples(secs: f64) -> usize {
    (secs * SAMPLE_RATE_HZ as f64) as usize
}

/// Shorter islands tell no voice.
const SHORTEST_SECS: f64 = 0.5;
/// Pauses shorter than this do not end an island: they are inside of sentences.
const PAUSE_MS: u32 = 250;
/// From one window of the segmentation model to the next: each moment is heard five times.
const HOP_SECS: f64 = 2.0;
/// A track needs this much of its speaker alone.
const CLEAN_SECS: f32 = 0.5;

pub enum Ear {
    Detector(Box<dyn VoiceDetector>),
    Segmenter(Segmenter),
}

pub struct Observer {
    pub ear: Ear,
    pub voices: Box<dyn Embedder>,
}

impl Diarizer for Observer {
    fn diarize(&mut self, ask: &DiarizeAsk, step: &mut dyn FnMut(DiarizeStep), cancel: &Cancel) -> Result<Observed> {
        let piece = ask.lead..ask.lead + ask.len;
        if piece.end > ask.audio.len() {
            return Err(Error::invalid("the piece lies outside of its audio"));
        }
        let kind = self.voices.kind();
        let heard = match &mut self.ear {
            Ear::Detector(detector) => {
                Heard::Islands(islands(&mut **detector, &mut *self.voices, ask, piece, step, cancel)?)
            }
            Ear::Segmenter(segmenter) => Heard::Tracks(tracks(segmenter, &mut *self.voices, ask, piece, step, cancel)?),
        };
        Ok(Observed { kind, heard })
    }
}

fn islands(
    detector: &mut dyn VoiceDetector,
    voices: &mut dyn Embedder,
    ask: &DiarizeAsk,
    piece: Range<usize>,
    step: &mut dyn FnMut(DiarizeStep),
    cancel: &Cancel,
) -> Result<Vec<Island>> {
    let mut offline = Offline::new(Rules { min_silence: u64::from(PAUSE_MS) * 16, ..Rules::reference() });
    let audio = &ask.audio[..piece.end];
    vad::probabilities(detector, audio)?.into_iter().for_each(|probability| offline.push(probability));
    let secs = |sample: usize| ask.start_secs + samples_to_secs(sample as u64) - samples_to_secs(ask.lead as u64);
    let mut islands = Vec::new();
    for span in offline.finish(audio.len() as u64) {
        let (start, end) = (span.start as usize, span.end as usize);
        if end <= piece.start {
            continue;
        }
        // Of speech that goes on from the piece before, the windows that lie across the cut are heard here.
        let start = start.max(piece.start.saturating_sub(samples(WINDOW_SECS - STEP_SECS)));
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "cancelled"));
        }
        let stretches = windows(end - start);
        let heard = voices.embed_stretches(&audio[start..end], &stretches, cancel)?;
        let windows = stretches.into_iter().zip(heard).map(|(stretch, voice)| VoiceWindow {
            start: secs(start + stretch.start),
            end: secs(start + stretch.end),
            voice,
        });
        islands.push(Island { start: secs(start), end: secs(end), windows: windows.collect() });
        step(DiarizeStep { done_secs: samples_to_secs((end - piece.start) as u64) });
    }
    Ok(islands)
}

/// Windows at even steps, the last of them at the island's end; one for the whole of a short island.
fn windows(len: usize) -> Vec<Range<usize>> {
    let (window, step) = (samples(WINDOW_SECS), samples(STEP_SECS));
    if len < samples(SHORTEST_SECS) {
        return Vec::new();
    }
    if len <= window {
        return std::iter::once(0..len).collect();
    }
    let last = len - window;
    (0..last).step_by(step).chain([last]).map(|start| start..start + window).collect()
}

fn tracks(
    segmenter: &mut Segmenter,
    voices: &mut dyn Embedder,
    ask: &DiarizeAsk,
    piece: Range<usize>,
    step: &mut dyn FnMut(DiarizeStep),
    cancel: &Cancel,
) -> Result<Vec<TrackWindow>> {
    let mut windows = Vec::new();
    for start in piece.clone().step_by(samples(HOP_SECS)) {
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "cancelled"));
        }
        let window = &ask.audio[start..ask.audio.len().min(start + segmentation::WINDOW)];
        let mut active = segmenter.active(window)?;
        active.truncate((window.len() / segmentation::FRAME_STEP).max(1));
        let mut tracks = [None, None, None];
        for (track, slot) in tracks.iter_mut().enumerate() {
            let alone = alone(window, &active, 1 << track);
            let clean_secs = samples_to_secs(alone.len() as u64) as f32;
            if clean_secs >= CLEAN_SECS {
                *slot = Some(TrackVoice { voice: voices.embed(&alone, cancel)?, clean_secs });
            }
        }
        let start_secs = ask.start_secs + samples_to_secs((start - piece.start) as u64);
        windows.push(TrackWindow { start: start_secs, active, voices: tracks });
        step(DiarizeStep { done_secs: samples_to_secs((start - piece.start) as u64) });
    }
    Ok(windows)
}

/// What is heard of one track while nobody else speaks, one behind the other.
fn alone(window: &[f32], active: &[u8], track: u8) -> Vec<f32> {
    let frames = active.iter().enumerate().filter(|(_, active)| **active == track);
    let samples = |(frame, _): (usize, &u8)| {
        let start = frame * segmentation::FRAME_STEP;
        &window[start.min(window.len())..window.len().min(start + segmentation::FRAME_STEP)]
    };
    frames.flat_map(samples).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{
        VoiceFrame,
        diarize::{Likeness, VoiceKind},
    };

    /// Loud frames are speech.
    struct Loud;

    impl VoiceDetector for Loud {
        fn detect(&mut self, frames: &mut [VoiceFrame<'_>]) -> Result<()> {
            for frame in frames {
                frame.probability = if frame.samples.iter().any(|sample| sample.abs() > 0.1) { 0.9 } else { 0.1 };
            }
            Ok(())
        }
    }

    /// The voice is the sign of the samples: positive and negative speakers.
    struct Sign;

    impl Embedder for Sign {
        fn embed(&mut self, utterance: &[f32], _: &Cancel) -> Result<Vec<f32>> {
            let positive = utterance.iter().filter(|sample| **sample > 0.0).count() as f32 / utterance.len() as f32;
            Ok(crate::engines::diarize::embedder::unit(vec![positive, 1.0 - positive]))
        }

        fn embed_stretches(
            &mut self,
            audio: &[f32],
            stretches: &[Range<usize>],
            cancel: &Cancel,
        ) -> Result<Vec<Vec<f32>>> {
            stretches.iter().map(|stretch| self.embed(&audio[stretch.clone()], cancel)).collect()
        }

        fn kind(&self) -> VoiceKind {
            let likeness = Likeness { merge: 0.7, coherence: 0.8, same: 0.7 };
            VoiceKind { model: "sign".to_owned(), likeness }
        }
    }

    fn observer() -> Observer {
        Observer { ear: Ear::Detector(Box::new(Loud)), voices: Box::new(Sign) }
    }

    fn speech(parts: &[(f32, f64)]) -> Vec<f32> {
        parts.iter().flat_map(|(level, secs)| vec![*level; samples(*secs)]).collect()
    }

    #[test]
    fn a_recording_of_several_pieces_is_one_conversation() {
        let mut recording = Vec::new();
        for _ in 0..28 {
            recording.extend(speech(&[(0.5, 4.0), (0.0, 0.5), (-0.5, 3.0), (0.0, 0.7)]));
        }
        let mut observer = observer();
        let mut steps = 0;
        let observed: Vec<Observed> = crate::engines::diarize::pieces(&recording)
            .map(|ask| observer.diarize(&ask, &mut |_| steps += 1, &Cancel::default()).unwrap())
            .collect();
        assert_eq!(observed.len(), 8);
        assert!(steps >= 56);
        let turns = crate::engines::diarize::speakers(observed, None);
        assert_eq!(turns.len(), 56, "{turns:?}");
        assert!(turns.iter().enumerate().all(|(at, turn)| turn.speaker == at % 2));
        // The cut at 30 s lies inside of a turn of the second speaker, and is not seen.
        assert!(turns.iter().any(|turn| turn.start < 29.9 && turn.end > 30.5));
    }

    #[test]
    fn speech_across_a_cut_is_heard_as_if_there_were_none() {
        // The speaker changes half a second behind the cut at 30 s.
        let recording = speech(&[(0.0, 2.0), (0.5, 28.5), (-0.5, 6.0)]);
        let mut observer = observer();
        let mut observe = |ask| observer.diarize(&ask, &mut |_| (), &Cancel::default()).unwrap();
        let pieces: Vec<Observed> = crate::engines::diarize::pieces(&recording).map(&mut observe).collect();
        let mut starts: Vec<f64> = Vec::new();
        for piece in &pieces {
            let Heard::Islands(islands) = &piece.heard else { panic!("no detector") };
            starts.extend(islands.iter().flat_map(|it| &it.windows).map(|it| it.start));
        }
        // Steps begin anew at the cut; none is longer than the others.
        assert!(starts.windows(2).all(|pair| (0.0..0.201).contains(&(pair[1] - pair[0]))), "{starts:?}");
        let turns = crate::engines::diarize::speakers(pieces, None);
        assert_eq!(turns.len(), 2, "{turns:?}");
        assert!((turns[1].start - 30.5).abs() < 0.3, "{turns:?}");
    }

    #[test]
    fn a_cancelled_piece_ends_at_its_next_step() {
        let cancel = Cancel::default();
        cancel.cancel();
        let recording = speech(&[(0.5, 4.0)]);
        let ask = crate::engines::diarize::pieces(&recording).next().unwrap();
        let error = observer().diarize(&ask, &mut |_| (), &cancel).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }

    #[test]
    fn a_piece_outside_of_its_audio_is_refused() {
        let ask = DiarizeAsk { audio: vec![0.0; 100].into(), lead: 50, len: 51, start_secs: 0.0 };
        assert_eq!(observer().diarize(&ask, &mut |_| (), &Cancel::default()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn windows_reach_from_the_start_to_the_end_of_an_island() {
        assert!(windows(samples(0.49)).is_empty());
        assert_eq!(windows(samples(1.0)).len(), 1);
        let windows = windows(samples(3.05));
        assert_eq!(windows.first().unwrap().start, 0);
        assert_eq!(windows.last().unwrap().end, samples(3.05));
        assert!(windows.iter().all(|window| window.len() == samples(WINDOW_SECS)));
    }

    #[test]
    fn only_frames_of_one_speaker_alone_make_its_voice() {
        let window: Vec<f32> = (0..270 * 4).map(|i| (i / 270) as f32).collect();
        assert_eq!(alone(&window, &[1, 3, 1, 2], 1), [vec![0.0; 270], vec![2.0; 270]].concat());
        assert!(alone(&window, &[0, 0, 0, 0], 1).is_empty());
        assert!(alone(&[], &[1], 1).is_empty());
    }
}
