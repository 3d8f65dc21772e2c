//! Which files a model consists of, and where they lie. A model is a folder, named as the settings name it, below one
//! of the places where models are kept.

use std::path::{Path, PathBuf};

use crate::base::{Error, Result};

/// Where models may lie, best first: the models' folder of the settings, then the checkout that the binary was built in.
pub fn places(models_dir: &Path, executable: &Path) -> Vec<PathBuf> {
    let checkouts = executable.ancestors().skip(1).take(4).map(|dir| dir.join(".vigia/state/models"));
    let mut places = vec![models_dir.to_owned()];
    places.extend(checkouts.filter(|dir| dir.is_dir()));
    places
}

/// A file of a model, or an error that says how to get it.
pub fn file(places: &[PathBuf], model: &str, file: &str) -> Result<PathBuf> {
    let candidates = || places.iter().map(|place| place.join(model).join(file));
    candidates().find(|path| path.is_file()).ok_or_else(|| {
        let missing = candidates().next().unwrap_or_default();
        Error::unavailable(format!("the model {model} is not installed: {} is missing", missing.display()))
            .hint("scripts/run fetches the models that it can; or copy the folder there")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_model_names_the_file_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = file(&[dir.path().to_owned()], "silero-vad", "silero_vad.onnx").unwrap_err();
        assert!(error.full().contains("silero-vad/silero_vad.onnx"), "{}", error.full());
        assert!(error.full().contains("scripts/run"));
    }

    #[test]
    fn the_models_folder_comes_before_the_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let (own, checkout) = (dir.path().join("models"), dir.path().join(".vigia/state/models"));
        for place in [&own, &checkout] {
            std::fs::create_dir_all(place.join("m")).unwrap();
            std::fs::write(place.join("m/f"), b"x").unwrap();
        }
        let places = places(&own, &dir.path().join("target/release/vigia"));
        assert_eq!(file(&places, "m", "f").unwrap(), own.join("m/f"));
        std::fs::remove_file(own.join("m/f")).unwrap();
        assert_eq!(file(&places, "m", "f").unwrap(), checkout.join("m/f"));
    }
}
