//! From folders to a diarizer: which models there are, and what goes with what.

use std::path::{Path, PathBuf};

use crate::{
    base::{Error, Result},
    engines::{
        VoiceDetector,
        diarize::{Ear, Observer, Segmenter, VoiceModel, files},
    },
    models::catalogue::Catalogue,
    runtime::Runtime,
};

/// What goes with a segmentation model that the catalogue does not know.
const USUAL_VOICES: &str = "wespeaker-resnet34-lm";

impl Observer {
    /// A folder with a segmentation model (its model of voices lies in one of `places`), or with a model of voices, for
    /// which `detector` says where speech is.
    pub fn open(
        runtime: &Runtime,
        dir: &Path,
        places: &[PathBuf],
        threads: usize,
        detector: impl FnOnce() -> Result<Box<dyn VoiceDetector>>,
    ) -> Result<Observer> {
        let (ear, voices) = match Segmenter::open(runtime, dir, threads)? {
            Some(segmenter) => (Ear::Segmenter(segmenter), voices_dir(dir, places)?),
            None => (Ear::Detector(detector()?), dir.to_owned()),
        };
        Ok(Observer { ear, voices: Box::new(VoiceModel::open(runtime, &voices, threads)?) })
    }
}

/// The folder of a model that is installed.
pub fn installed_dir(places: &[PathBuf], model: &str) -> Result<PathBuf> {
    let mut dirs = places.iter().map(|place| place.join(model));
    dirs.find(|dir| files::graph(dir).is_ok()).ok_or_else(|| {
        Error::unavailable(format!("the model {model} is not installed"))
            .hint(format!("`vigia models pull {model}`; `vigia models show {model}` says where it comes from"))
    })
}

/// The model of voices that goes with the segmentation model of that folder, or with that of the settings.
pub fn voices_dir(segmentation_dir: &Path, places: &[PathBuf]) -> Result<PathBuf> {
    let name = segmentation_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let catalogue = Catalogue::load(None)?;
    let with = catalogue.get(&name).and_then(|entry| entry.with.first()).map_or(USUAL_VOICES, String::as_str);
    let beside = segmentation_dir.parent().map(Path::to_owned);
    let places: Vec<PathBuf> = places.iter().cloned().chain(beside).collect();
    installed_dir(&places, with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voices_of_a_segmentation_model_are_looked_for_beside_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let segmentation = dir.path().join("pyannote-segmentation-3.0");
        let voices = dir.path().join(USUAL_VOICES);
        let error = voices_dir(&segmentation, &[]).unwrap_err();
        assert!(error.full().contains("vigia models pull wespeaker-resnet34-lm"), "{}", error.full());
        std::fs::create_dir_all(voices.join("onnx")).unwrap();
        std::fs::write(voices.join("onnx/model.onnx"), b"x").unwrap();
        assert_eq!(voices_dir(&segmentation, &[]).unwrap(), voices);
    }
}
