//! Models of voices: audio in, one vector of unit length out. Which family a model is, its graph's inputs say.
//!
//! Families: GE2E (`mels`), WeSpeaker ResNet (`feats` of pyannote's and of WeSpeaker's own export, `input_features` of
//! the Hugging Face export), CAM++ and ERes2Net of 3D-Speaker (`x`). Not supported: NeMo's TitaNet, ECAPA of SpeechBrain.

use std::{ops::Range, path::Path};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel, Embedder,
        diarize::{
            Likeness, VoiceKind,
            features::{Features, HOP, KaldiWindow, remove_mean},
            files,
        },
    },
    flow::SAMPLE_RATE_HZ,
    runtime::{Graph, GraphOptions, Runtime, View},
};

/// Less tells no voice from another.
const SHORTEST: usize = SAMPLE_RATE_HZ as usize / 4;
/// Windows that go through the model together: more get no cheaper and hold up whoever wants to stop.
const BATCH: usize = 16;
/// Longer utterances are taken in parts, so that memory does not grow with them.
const LONGEST: usize = 30 * SAMPLE_RATE_HZ as usize;
/// Rows of GE2E's windows, and the steps between them, as its reference takes them (1.6 s, 1.3 a second).
const GE2E_ROWS: usize = 160;
const GE2E_STEP: usize = 77;
/// GE2E heard nothing quieter than this in training.
const GE2E_LEVEL_DB: f32 = -30.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Ge2e,
    WeSpeaker,
    CamPlus,
}

/// One model of voices of any family.
pub struct VoiceModel {
    /// Of its folder.
    name: String,
    graph: Graph,
    family: Family,
    input: &'static str,
    output: &'static str,
    features: Features,
}

impl VoiceModel {
    /// The model in that folder.
    pub fn open(runtime: &Runtime, dir: &Path, threads: usize) -> Result<VoiceModel> {
        let path = files::graph(dir)?;
        let graph = Graph::open(runtime, &path, &GraphOptions::cpu(threads))?;
        let inputs = graph.inputs();
        let (family, input, output) = match inputs.first().map(String::as_str) {
            Some("mels") => (Family::Ge2e, "mels", "embeds"),
            Some("feats") => (Family::WeSpeaker, "feats", "embs"),
            Some("input_features") => (Family::WeSpeaker, "input_features", "last_hidden_state"),
            Some("x") => (Family::CamPlus, "x", "embedding"),
            _ => {
                let text = format!("{} is no model of voices: its inputs are {}", path.display(), inputs.join(", "));
                return Err(Error::new(Kind::Unsupported, text)
                    .hint("take GE2E, WeSpeaker ResNet or CAM++; `vigia models list` shows those that are known"));
            }
        };
        let features = match family {
            Family::Ge2e => Features::ge2e(),
            Family::WeSpeaker => Features::kaldi(KaldiWindow::Hamming, 32768.0),
            Family::CamPlus => Features::kaldi(KaldiWindow::Povey, 1.0),
        };
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(VoiceModel { name, graph, family, input, output, features })
    }

    /// Every window's rows, whatever its length, through the model: windows of one length go together.
    fn run(&mut self, windows: &[Vec<f32>], cancel: &Cancel) -> Result<Vec<Vec<f32>>> {
        let width = self.features.width();
        let mut voices = vec![Vec::new(); windows.len()];
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by_key(|index| windows[*index].len());
        for same in order.chunk_by(|a, b| windows[*a].len() == windows[*b].len()) {
            for batch in same.chunks(BATCH) {
                if cancel.is_cancelled() {
                    return Err(Error::new(Kind::Cancelled, "cancelled"));
                }
                let rows: Vec<f32> = batch.iter().flat_map(|index| windows[*index].iter().copied()).collect();
                let shape = [batch.len(), rows.len() / width / batch.len(), width];
                let outputs = self.graph.run(&[(self.input, View::F32(&shape, &rows))])?;
                let answers = outputs.f32(self.output)?;
                let dims = answers.len() / batch.len();
                if dims == 0 || answers.len() != dims * batch.len() || answers.iter().any(|it| !it.is_finite()) {
                    return Err(Error::internal("the model of voices answered with no vector for each window"));
                }
                for (index, voice) in batch.iter().zip(answers.chunks(dims)) {
                    voices[*index] = unit(voice.to_vec());
                }
            }
        }
        Ok(voices)
    }

    /// The rows of stretches of an audio, as the model takes them.
    fn cut(&self, audio: &[f32], stretches: &[Range<usize>]) -> Vec<Vec<f32>> {
        let width = self.features.width();
        let rows = self.features.rows(audio);
        let total = rows.len() / width;
        let cut = |stretch: &Range<usize>| {
            let count = match self.family {
                Family::Ge2e => stretch.len() / HOP,
                _ => self.features.count(stretch.len()),
            };
            let count = count.clamp(1, total);
            let first = (stretch.start / HOP).min(total - count);
            let mut rows = rows[first * width..(first + count) * width].to_vec();
            if self.family != Family::Ge2e {
                remove_mean(&mut rows, width);
            }
            rows
        };
        stretches.iter().map(cut).collect()
    }
}

impl Embedder for VoiceModel {
    fn embed(&mut self, utterance: &[f32], cancel: &Cancel) -> Result<Vec<f32>> {
        if utterance.len() < SHORTEST {
            return Err(Error::invalid("the audio is too short to tell a voice").hint("give at least 0.25 s of speech"));
        }
        let windows = match self.family {
            Family::Ge2e => {
                let stretches = ge2e_windows(utterance.len());
                let mut audio = raised(utterance);
                let end = stretches.last().map_or(0, |last| last.end);
                audio.resize(audio.len().max(end), 0.0);
                self.cut(&audio, &stretches)
            }
            _ => utterance
                .chunks(LONGEST)
                .filter(|part| part.len() >= SHORTEST)
                .flat_map(|part| self.cut(part, std::slice::from_ref(&(0..part.len()))))
                .collect(),
        };
        let voices = self.run(&windows, cancel)?;
        Ok(unit(mean(&voices)))
    }

    fn embed_stretches(&mut self, audio: &[f32], stretches: &[Range<usize>], cancel: &Cancel) -> Result<Vec<Vec<f32>>> {
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        if stretches.iter().any(|it| it.end > audio.len() || it.len() < SHORTEST) {
            return Err(Error::invalid("a stretch of audio lies outside of it, or is too short to tell a voice"));
        }
        let windows = match self.family {
            Family::Ge2e => self.cut(&raised(audio), stretches),
            _ => self.cut(audio, stretches),
        };
        self.run(&windows, cancel)
    }

    fn kind(&self) -> VoiceKind {
        let likeness = match self.family {
            Family::Ge2e => Likeness::GE2E,
            Family::WeSpeaker => Likeness::WESPEAKER,
            Family::CamPlus => Likeness::CAM_PLUS,
        };
        VoiceKind { model: self.name.clone(), likeness }
    }
}

/// Where the reference puts its windows; the last is kept if three quarters of it lie within the audio.
fn ge2e_windows(samples: usize) -> Vec<Range<usize>> {
    let rows = (samples + 1).div_ceil(HOP);
    let steps = (rows + GE2E_STEP + 1).saturating_sub(GE2E_ROWS).max(1);
    let window = |row: usize| row * HOP..(row + GE2E_ROWS) * HOP;
    let mut windows: Vec<Range<usize>> = (0..steps).step_by(GE2E_STEP).map(window).collect();
    let covered = windows.last().map_or(0, |last| samples.saturating_sub(last.start));
    if windows.len() > 1 && covered * 4 < GE2E_ROWS * HOP * 3 {
        windows.pop();
    }
    windows
}

/// Quiet audio raised to the level of the training; loud audio stays.
fn raised(audio: &[f32]) -> Vec<f32> {
    let energy: f64 = audio.iter().map(|sample| f64::from(*sample).powi(2)).sum();
    let rms = (energy / audio.len().max(1) as f64).sqrt() as f32;
    let gain = 10.0_f32.powf(GE2E_LEVEL_DB / 20.0) / rms;
    if !gain.is_finite() || gain <= 1.0 {
        return audio.to_vec();
    }
    audio.iter().map(|sample| sample * gain).collect()
}

fn mean(voices: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0; voices.first().map_or(0, Vec::len)];
    for voice in voices {
        sum.iter_mut().zip(voice).for_each(|(sum, value)| *sum += value);
    }
    sum
}

/// Of length one; a vector of zeros stays.
pub(super) fn unit(mut voice: Vec<f32>) -> Vec<f32> {
    let length = dot(&voice, &voice).sqrt();
    if length > 0.0 {
        voice.iter_mut().for_each(|value| *value /= length);
    }
    voice
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_ge2e_are_those_of_its_reference() {
        let rows = |secs: f64| -> Vec<usize> {
            ge2e_windows((secs * 16_000.0) as usize).iter().map(|window| window.start / HOP).collect()
        };
        assert_eq!(rows(0.5), [0]);
        assert_eq!(rows(1.6), [0]);
        // 77 rows on, 1.23 of 1.6 s are there: kept. At 1.96 s they are 1.19: dropped.
        assert_eq!(rows(2.0), [0, 77]);
        assert_eq!(rows(1.96), [0]);
        assert_eq!(rows(5.0), [0, 77, 154, 231, 308]);
    }

    #[test]
    fn quiet_audio_is_raised_and_loud_audio_and_silence_stay() {
        let quiet = raised(&[0.001; 100]);
        assert!((quiet[0] - 0.0316).abs() < 1e-4);
        assert_eq!(raised(&[0.5; 100]), vec![0.5; 100]);
        assert_eq!(raised(&[0.0; 100]), vec![0.0; 100]);
        assert!(raised(&[]).is_empty());
    }

    #[test]
    fn a_vector_of_zeros_has_no_direction_and_makes_no_nan() {
        assert_eq!(unit(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(unit(vec![3.0, 4.0]), [0.6, 0.8]);
    }
}
