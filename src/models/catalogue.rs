//! Which models are known, which files each consists of, and where they lie. A model is a folder, named as the settings
//! name it, below one of the places where models are kept.
//!
//! Entries are the files of `models/catalogue`, built in, and a user's own below `/etc/vigia/models.d`, which win.

mod entry;
mod memory;
mod names;
mod own;

use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};

pub(crate) use entry::is_side_file;
pub use entry::{Check, Entry, Known, Licence, ONLY, PLAN};
pub use memory::{Memory, Unit, Workspace};
pub(crate) use names::{part_of, safe_name, safe_path, whole_of};

/// In the order in which people are shown them.
const FILES: &[(&str, &str)] = &[
    ("silero-vad", include_str!("../../models/catalogue/silero-vad.toml")),
    ("whisper-tiny", include_str!("../../models/catalogue/whisper-tiny.toml")),
    ("whisper-tiny-timestamped", include_str!("../../models/catalogue/whisper-tiny-timestamped.toml")),
    ("whisper-base", include_str!("../../models/catalogue/whisper-base.toml")),
    ("whisper-base-timestamped", include_str!("../../models/catalogue/whisper-base-timestamped.toml")),
    ("whisper-small", include_str!("../../models/catalogue/whisper-small.toml")),
    ("whisper-small-timestamped", include_str!("../../models/catalogue/whisper-small-timestamped.toml")),
    ("whisper-large-v3", include_str!("../../models/catalogue/whisper-large-v3.toml")),
    ("whisper-large-v3-turbo", include_str!("../../models/catalogue/whisper-large-v3-turbo.toml")),
    (
        "whisper-large-v3-turbo-timestamped",
        include_str!("../../models/catalogue/whisper-large-v3-turbo-timestamped.toml"),
    ),
    ("pyannote-segmentation-3.0", include_str!("../../models/catalogue/pyannote-segmentation-3.0.toml")),
    ("wespeaker-resnet34-lm", include_str!("../../models/catalogue/wespeaker-resnet34-lm.toml")),
    ("ge2e", include_str!("../../models/catalogue/ge2e.toml")),
    ("campplus", include_str!("../../models/catalogue/campplus.toml")),
    ("kokoro-82m", include_str!("../../models/catalogue/kokoro-82m.toml")),
    ("qwen2.5-0.5b-instruct", include_str!("../../models/catalogue/qwen2.5-0.5b-instruct.toml")),
    ("qwen2.5-1.5b-instruct", include_str!("../../models/catalogue/qwen2.5-1.5b-instruct.toml")),
    ("qwen2.5-7b-instruct", include_str!("../../models/catalogue/qwen2.5-7b-instruct.toml")),
    ("qwen2-vl-2b-instruct", include_str!("../../models/catalogue/qwen2-vl-2b-instruct.toml")),
    ("qwen2.5-vl-3b-instruct", include_str!("../../models/catalogue/qwen2.5-vl-3b-instruct.toml")),
    ("sdxl-lightning-4step", include_str!("../../models/catalogue/sdxl-lightning-4step.toml")),
    ("yolox-nano", include_str!("../../models/catalogue/yolox-nano.toml")),
    ("pp-ocr", include_str!("../../models/catalogue/pp-ocr.toml")),
];

/// Every model that can be asked for by name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: Vec<Entry>,
    problems: Vec<String>,
}

impl Catalogue {
    /// What is built in, with a user's own entries.
    pub fn load(own: Option<&Path>) -> Result<Catalogue> {
        let parsed = FILES.iter().map(|(name, text)| entry::parse(text, &format!("models/catalogue/{name}.toml")));
        let mut entries = parsed.collect::<Result<Vec<Entry>>>()?;
        let own = own.map(|dir| own::load(dir, &entries)).unwrap_or_default();
        for entry in own.entries {
            match entries.iter_mut().find(|known| known.name == entry.name) {
                Some(known) => *known = entry,
                None => entries.push(entry),
            }
        }
        Ok(Catalogue { entries, problems: own.problems })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Why entries of a user's own are left out.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    pub fn require(&self, name: &str) -> Result<&Entry> {
        self.get(name).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no model `{name}` in the catalogue"))
                .hint("`vigia models list` shows those that are known; /etc/vigia/models.d takes entries of your own")
        })
    }
}

/// How a built-in entry is written, for whoever writes one.
pub fn built_in(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

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
            .hint(format!("scripts/run fetches what it can; `vigia models show {model}` says how the others come"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{device, models::profiles, settings::DEFAULTS};

    fn catalogue() -> Catalogue {
        Catalogue::load(None).unwrap()
    }

    #[test]
    fn every_file_is_built_in_and_named_as_its_model() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/catalogue");
        let mut files: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let mut built_in: Vec<String> = catalogue().entries().iter().map(|it| format!("{}.toml", it.name)).collect();
        built_in.sort();
        assert_eq!(files, built_in);
        let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, catalogue().entries().iter().map(|it| it.name.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn every_model_of_a_profile_or_a_default_is_in_the_catalogue_and_does_that_task() {
        let facts = device::probe(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device/pc-rtx-5070"));
        let texts = profiles::names().map(|name| profiles::choose(name, &facts).unwrap().profile.settings_toml);
        for text in texts.chain([DEFAULTS.to_owned()]) {
            let settings: toml::Table = toml::from_str(&text).unwrap();
            for (task, choice) in settings.get("tasks").and_then(toml::Value::as_table).into_iter().flatten() {
                let model = choice["model"].as_str().unwrap();
                if !model.is_empty() {
                    let entry = catalogue().require(model).unwrap().clone();
                    assert!(entry.tasks.iter().any(|it| it.name() == task), "{model} does not {task}");
                }
            }
        }
    }

    #[test]
    fn what_the_product_names_is_there_and_can_be_had_or_says_how() {
        for entry in catalogue().entries() {
            assert!(entry.repository.is_some() != entry.source.is_some(), "{}", entry.name);
            assert!(!entry.title.is_empty() && !entry.languages.is_empty(), "{}", entry.name);
        }
        assert!(!catalogue().require("qwen2.5-vl-3b-instruct").unwrap().licence.commercial);
        assert!(catalogue().require("qwen2-vl-2b-instruct").unwrap().licence.commercial);
        let error = catalogue().require("whisper-huge").unwrap_err();
        assert!(error.full().contains("vigia models list"), "{}", error.full());
    }

    #[test]
    fn an_entry_of_ones_own_is_added_or_takes_the_place_of_a_built_in_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = "name = \"NAME\"\ntitle = \"Mine\"\ntasks = [\"chat\"]\nfamily = \"qwen2\"\nsource = \"copy it\"\n\
                    files = [\"m.onnx\"]\n[licence]\nname = \"MIT\"\n";
        for name in ["mine", "whisper-tiny"] {
            fs::write(dir.path().join(format!("{name}.toml")), text.replace("NAME", name)).unwrap();
        }
        fs::write(dir.path().join("notes.txt"), "no entry").unwrap();
        let catalogue = Catalogue::load(Some(dir.path())).unwrap();
        assert_eq!(catalogue.entries().len(), FILES.len() + 1);
        assert_eq!(catalogue.get("whisper-tiny").unwrap().title, "Mine");
        assert!(catalogue.problems().is_empty());
    }

    #[test]
    fn no_built_in_entry_comes_with_an_unknown_one() {
        let catalogue = catalogue();
        let all = catalogue.entries().iter().flat_map(|entry| &entry.with);
        assert!(all.clone().count() > 0);
        all.for_each(|with| assert!(catalogue.get(with).is_some(), "{with}"));
    }

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
