//! From folders to a diarizer: which models there are, and what goes with what.

use std::path::{Path, PathBuf};

use crate::{
    base::{Error, Result},
    engines::{
        VoiceDetector,
        diarize::{Ear, Observer, Segmenter, VoiceModel, files},
    },
    models::{catalogue::Catalogue, installed},
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
    let dirs = || places.iter().map(|place| place.join(model));
    let is_whole = |dir: &PathBuf| {
        let graph = files::graph(dir).ok().and_then(|graph| Some(graph.strip_prefix(dir).ok()?.display().to_string()));
        graph.is_some_and(|graph| installed::is_in_part(dir, &[graph]).is_ok_and(|in_part| !in_part))
    };
    dirs().find(is_whole).ok_or_else(|| {
        if dirs().any(|dir| installed::is_unfinished(&dir)) {
            let told = format!("the model {model} is here only in part: it is being fetched, or that was cut");
            return Error::unavailable(told).hint(format!("`vigia models pull {model}` goes on where it was"));
        }
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

    #[test]
    fn what_is_being_fetched_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().join("nowhere"), dir.path().to_owned()];
        let folder = dir.path().join("ge2e");
        std::fs::create_dir(&folder).unwrap();
        assert!(installed_dir(&places, "ge2e").unwrap_err().full().contains("is not installed"));
        let part = folder.join("model.onnx.part-0123456789abcdef");
        std::fs::write(&part, b"x").unwrap();
        let error = installed_dir(&places, "ge2e").unwrap_err();
        assert!(error.full().contains("only in part") && error.full().contains("goes on"), "{}", error.full());
        std::fs::rename(part, folder.join("model.onnx")).unwrap();
        assert_eq!(installed_dir(&places, "ge2e").unwrap(), folder);
        std::fs::write(folder.join("model.onnx_data.part-0123456789abcdef"), b"x").unwrap();
        assert!(installed_dir(&places, "ge2e").unwrap_err().full().contains("only in part"));
    }
}
