//! The texts in `pipelines/`: what GStreamer is asked to build on this kind of device, and which elements that takes.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use gstreamer as gst;
use serde::{Deserialize, Serialize};

use crate::base::{Error, Result};

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../pipelines/", $name, ".toml"))),)*]
    };
}

const BUILT_IN: &[(&str, &str)] = built_in![
    "resample",
    "opus",
    "wav",
    "ogg",
    "webm",
    "flac",
    "mp3",
    "aac",
    "mp4",
    "container",
    "jpeg",
    "png",
    "webp",
    "speech-mp3",
    "speech-ogg",
    "speech-flac",
    "microphone"
];

/// The one for whole files that are none of the wire's encodings.
pub(super) const CONTAINER: &str = "container";

/// The one that takes nothing in.
pub(super) const MICROPHONE: &str = "microphone";

/// One pipeline, as this device builds it.
#[derive(Debug)]
pub(super) struct Recipe {
    pub name: &'static str,
    pub launch: String,
    /// Element → the Debian package it comes in.
    pub elements: BTreeMap<String, String>,
}

/// Whether an element is installed, for `vigia doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ElementCheck {
    pub element: String,
    pub pipeline: &'static str,
    pub found: bool,
    pub package: String,
}

pub(super) struct Recipes(BTreeMap<&'static str, Arc<Recipe>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    variant: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Variant {
    Own {
        launch: String,
        elements: BTreeMap<String, String>,
    },
    /// Said by the file, so that no device falls back in silence.
    Same {
        #[serde(rename = "as")]
        other: String,
    },
}

impl Recipes {
    /// The built-in texts, each replaced by the file of its name in `dir` (empty: none).
    pub(super) fn load(dir: &str, variant: &str) -> Result<Recipes> {
        let mut replaced = if dir.is_empty() { BTreeMap::new() } else { read_dir(Path::new(dir))? };
        let mut recipes = BTreeMap::new();
        for &(name, built_in) in BUILT_IN {
            let own = replaced.remove(name);
            let recipe = parse(name, variant, own.as_deref().unwrap_or(built_in))?;
            recipes.insert(name, Arc::new(recipe));
        }
        if let Some(unknown) = replaced.keys().next() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            return Err(Error::invalid(format!("{dir}/{unknown}.toml: there is no pipeline of that name"))
                .hint(format!("the names are {}", names.join(", "))));
        }
        Ok(Recipes(recipes))
    }

    pub(super) fn get(&self, name: &str) -> Result<Arc<Recipe>> {
        self.0.get(name).cloned().ok_or_else(|| Error::internal(format!("there is no pipeline `{name}`")))
    }

    /// GStreamer must have been started.
    pub(super) fn checks(&self) -> Vec<ElementCheck> {
        self.0.values().flat_map(|recipe| recipe.checks()).collect()
    }
}

impl Recipe {
    fn checks(&self) -> impl Iterator<Item = ElementCheck> {
        self.elements.iter().map(|(element, package)| ElementCheck {
            element: element.clone(),
            pipeline: self.name,
            found: gst::ElementFactory::find(element).is_some(),
            package: package.clone(),
        })
    }

    /// It brings its audio itself.
    pub(super) fn is_source(&self) -> bool {
        self.name == MICROPHONE
    }

    /// What it does, for errors: a decoder of what came, or an encoder of speech.
    pub(super) fn work(&self) -> &'static str {
        if self.name.starts_with("speech-") { "encoder" } else { "decoder" }
    }

    /// What it decodes is not known before.
    pub(super) fn is_container(&self) -> bool {
        self.name == CONTAINER
    }

    /// An error that names what to install, if an element is missing.
    pub(super) fn ensure_installed(&self) -> Result<()> {
        let missing: Vec<ElementCheck> = self.checks().filter(|check| !check.found).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let elements: Vec<&str> = missing.iter().map(|it| it.element.as_str()).collect();
        let mut packages: Vec<&str> = missing.iter().map(|it| it.package.as_str()).collect();
        packages.sort_unstable();
        packages.dedup();
        Err(Error::unavailable(format!("GStreamer lacks {} for the pipeline `{}`", elements.join(", "), self.name))
            .hint(format!("sudo apt-get install {}", packages.join(" "))))
    }

    /// The packages of this pipeline, for errors that cannot say which element was missing.
    pub(super) fn packages(&self) -> String {
        let mut packages: Vec<&str> = self.elements.values().map(String::as_str).collect();
        packages.sort_unstable();
        packages.dedup();
        packages.join(" ")
    }
}

fn read_dir(dir: &Path) -> Result<BTreeMap<String, String>> {
    let cannot = |error: std::io::Error| {
        Error::invalid(format!("cannot read the pipelines in {}", dir.display())).cause(error).hint("see pipelines.dir")
    };
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|it| it == "toml")
            && let Some(name) = path.file_stem().and_then(|it| it.to_str())
        {
            texts.insert(name.to_owned(), fs::read_to_string(&path).map_err(cannot)?);
        }
    }
    Ok(texts)
}

fn parse(name: &'static str, variant: &str, text: &str) -> Result<Recipe> {
    let wrong = |what: String| Error::invalid(format!("pipelines/{name}.toml: {what}"));
    let mut file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let none = |variant: &str| wrong(format!("has no variant `{variant}`"));
    let mut chosen = file.variant.remove(variant).ok_or_else(|| none(variant))?;
    if let Variant::Same { other } = &chosen {
        chosen = file.variant.remove(other).ok_or_else(|| none(other))?;
    }
    match chosen {
        Variant::Own { launch, elements } => Ok(Recipe { name, launch, elements }),
        Variant::Same { .. } => Err(wrong(format!("variant `{variant}` points to one that only points on"))),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use gstreamer::prelude::*;

    use super::*;
    use crate::{base::Kind, media::pool};

    const VARIANTS: [&str; 3] = ["cpu", "jetson", "rtx"];

    #[test]
    fn every_pipeline_has_every_variant() {
        for variant in VARIANTS {
            let recipes = Recipes::load("", variant).unwrap();
            for recipe in recipes.0.values() {
                assert_eq!(recipe.elements.contains_key("appsrc"), !recipe.is_source(), "{}", recipe.name);
                for word in recipe.launch.split_whitespace().filter(|it| it.chars().all(|c| c.is_ascii_lowercase())) {
                    let known = recipe.elements.contains_key(word) || word == "capsfilter";
                    assert!(known, "{}: `{word}` stands in launch and not in elements", recipe.name);
                }
            }
        }
    }

    #[test]
    fn every_cpu_pipeline_parses_and_every_element_of_it_is_installed() {
        pool::start_gstreamer().unwrap();
        for recipe in Recipes::load("", "cpu").unwrap().0.values() {
            recipe.ensure_installed().unwrap();
            let built = gst::parse::launch(&recipe.launch).unwrap();
            let names: Vec<String> = built
                .downcast::<gst::Pipeline>()
                .unwrap()
                .iterate_elements()
                .into_iter()
                .map(|it| it.unwrap().name().into())
                .collect();
            let has = |name: &str| names.iter().any(|it| it == name);
            assert!(has("in") != recipe.is_source() && has("out"), "{names:?}");
        }
    }

    #[test]
    fn the_line_in_every_header_runs() {
        if Command::new("gst-launch-1.0").arg("--version").output().is_err() {
            println!("skipped: gst-launch-1.0 is not installed (gstreamer1.0-tools)");
            return;
        }
        // Where tests run there is no microphone.
        for (name, text) in BUILT_IN.iter().filter(|(name, _)| *name != MICROPHONE) {
            let line = text.lines().find_map(|line| line.strip_prefix("# gst-launch-1.0 ")).expect(name);
            let output = Command::new("gst-launch-1.0")
                .args(line.split_whitespace())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn a_missing_element_names_its_package() {
        pool::start_gstreamer().unwrap();
        let recipe = Recipe {
            name: "jpeg",
            launch: String::new(),
            elements: [("nosuchdec".to_owned(), "gstreamer1.0-nosuch".to_owned())].into(),
        };
        let error = recipe.ensure_installed().unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains("nosuchdec"), "{error}");
        assert_eq!(error.hint_text(), Some("sudo apt-get install gstreamer1.0-nosuch"));
    }

    #[test]
    fn a_folder_replaces_pipelines_and_its_faults_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let own = "[variant.cpu]\nlaunch = \"appsrc name=in ! appsink name=out\"\nelements = {}\n";
        fs::write(dir.path().join("opus.toml"), own).unwrap();
        let recipes = Recipes::load(path, "cpu").unwrap();
        assert_eq!(recipes.get("opus").unwrap().launch, "appsrc name=in ! appsink name=out");
        assert!(recipes.get("ogg").unwrap().launch.contains("decodebin"));

        let missing = Recipes::load(path, "jetson").err().unwrap();
        assert_eq!(missing.message(), "pipelines/opus.toml: has no variant `jetson`");
        fs::write(dir.path().join("opus.toml"), "launch = 3").unwrap();
        assert_eq!(Recipes::load(path, "cpu").err().unwrap().kind(), Kind::Invalid);
        fs::write(dir.path().join("opus.toml"), own).unwrap();
        fs::write(dir.path().join("typo.toml"), own).unwrap();
        assert!(Recipes::load(path, "cpu").err().unwrap().message().contains("typo.toml"));
        assert!(Recipes::load("/nonexistent", "cpu").err().unwrap().message().contains("/nonexistent"));
    }
}
