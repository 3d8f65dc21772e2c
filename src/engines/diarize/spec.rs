//! How a diarizer and a model of voices are built: plain data, so that a process of their own builds the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::{
        Embedder, EngineSpec, Speakers, Spec, VoiceDetector, Voiceprints,
        diarize::{Observer, Segmenter, VoiceModel, voices_dir},
        vad::Silero,
    },
    runtime::Runtime,
};

/// A model of voices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum VoicesSpec {
    Files(VoiceFiles),
    #[cfg(any(test, feature = "test-engine"))]
    TestLoudness,
}

/// Where a model of voices lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VoiceFiles {
    /// ONNX Runtime's shared library.
    pub library: PathBuf,
    /// The model, or a segmentation model whose voices lie in one of `places`.
    pub dir: PathBuf,
    pub places: Vec<PathBuf>,
    pub threads: usize,
}

impl VoiceFiles {
    fn open(&self) -> Result<VoiceModel> {
        let runtime = Runtime::open(&self.library)?;
        match Segmenter::open(&runtime, &self.dir, self.threads)? {
            Some(_) => VoiceModel::open(&runtime, &voices_dir(&self.dir, &self.places)?, self.threads),
            None => VoiceModel::open(&runtime, &self.dir, self.threads),
        }
    }
}

impl VoicesSpec {
    pub fn open(&self) -> Result<Box<dyn Embedder>> {
        match self {
            VoicesSpec::Files(files) => Ok(Box::new(files.open()?)),
            #[cfg(any(test, feature = "test-engine"))]
            VoicesSpec::TestLoudness => Ok(Box::new(crate::engines::loudness::Loudness)),
        }
    }
}

impl Spec for VoicesSpec {
    type Engine = Voiceprints;

    fn build(&self) -> Result<Voiceprints> {
        self.open().map(Voiceprints)
    }
}

impl From<VoicesSpec> for EngineSpec {
    fn from(spec: VoicesSpec) -> EngineSpec {
        EngineSpec::Voices(spec)
    }
}

/// A diarizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeakersSpec {
    pub voices: VoicesSpec,
    /// ONNX Runtime's shared library.
    pub library: PathBuf,
    /// The voice detector, for want of a segmentation model.
    pub detector: Option<PathBuf>,
    pub threads: usize,
}

impl SpeakersSpec {
    pub fn open(&self) -> Result<Observer> {
        let runtime = Runtime::open(&self.library)?;
        let detector = || -> Result<Box<dyn VoiceDetector>> {
            let missing =
                || Error::unavailable("the voice detector is not installed").hint("`vigia models pull silero-vad`");
            let file = self.detector.as_ref().ok_or_else(missing)?;
            Ok(Box::new(Silero::open(&runtime, file, self.threads)?))
        };
        match &self.voices {
            VoicesSpec::Files(files) => Observer::open(&runtime, &files.dir, &files.places, self.threads, detector),
            #[cfg(any(test, feature = "test-engine"))]
            VoicesSpec::TestLoudness => Ok(Observer {
                ear: crate::engines::diarize::Ear::Detector(detector()?),
                voices: Box::new(crate::engines::loudness::Loudness),
            }),
        }
    }
}

impl Spec for SpeakersSpec {
    type Engine = Speakers;

    fn build(&self) -> Result<Speakers> {
        Ok(Speakers(Box::new(self.open()?)))
    }
}

impl From<SpeakersSpec> for EngineSpec {
    fn from(spec: SpeakersSpec) -> EngineSpec {
        EngineSpec::Speakers(spec)
    }
}
