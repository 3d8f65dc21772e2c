//! Who speaks: which models serve that on this box. They are small and run on the processor alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    base::Result,
    engines::{
        SpeakersSpec, VoicesSpec,
        diarize::{VoiceFiles, graph_file, installed_dir, voices_dir},
        registry::{
            loader::Recipe,
            serving::{BuiltOf, Serving, Stock, WORKSPACE_BYTES},
        },
    },
    flow::Task,
};

/// One for each engine: live speech needs the others.
const THREADS: usize = 1;
/// What a model of voices takes on a thread of the daemon beside its weights, which are held twice while they are read.
const VOICES_WORKSPACE_BYTES: u64 = 48 << 20;
/// The family of models that hear several speakers and tell no voice.
const SEGMENTATION: &str = "pyannote-segmentation";

/// The diarizer, in a process of its own.
pub(super) fn speakers(stock: &Stock<'_>) -> Result<Serving> {
    #[cfg(any(test, feature = "test-engine"))]
    if stock.model(Task::Diarize)? == TEST {
        let (voices, library, detector) = (VoicesSpec::TestLoudness, stock.library()?, Some(stock.silero()?));
        let spec = SpeakersSpec { voices, library, detector, threads: THREADS };
        return serving(stock, "turns", 1 << 20, Recipe::of(spec));
    }
    let dir = installed_dir(&stock.places.models, stock.model(Task::Diarize)?)?;
    let mut bytes = weight(&dir) + WORKSPACE_BYTES;
    match is_segmentation(stock)? {
        true => bytes += weight(&voices_dir(&dir, &stock.places.models)?),
        // Said before anybody speaks.
        false => drop(stock.silero()?),
    }
    serving(stock, "turns", bytes, Recipe::of(speakers_spec(stock, None, THREADS)?))
}

/// The model of voices, on a thread: it answers for one utterance within milliseconds.
pub(super) fn voiceprints(stock: &Stock<'_>) -> Result<Serving> {
    #[cfg(any(test, feature = "test-engine"))]
    if stock.model(Task::Diarize)? == TEST {
        return serving(stock, "voices", 1 << 20, Recipe::small(VoicesSpec::TestLoudness));
    }
    let dir = installed_dir(&stock.places.models, stock.model(Task::Diarize)?)?;
    let of_voices = if is_segmentation(stock)? { voices_dir(&dir, &stock.places.models)? } else { dir };
    let spec = VoicesSpec::Files(files(stock, None, THREADS)?);
    serving(stock, "voices", 2 * weight(&of_voices) + VOICES_WORKSPACE_BYTES, Recipe::small(spec))
}

/// Of the models in `dir`, else of those that the settings name.
pub(super) fn speakers_spec(stock: &Stock<'_>, dir: Option<&Path>, threads: usize) -> Result<SpeakersSpec> {
    let files = files(stock, dir, threads)?;
    let library = files.library.clone();
    Ok(SpeakersSpec { voices: VoicesSpec::Files(files), library, detector: stock.silero().ok(), threads })
}

pub(super) fn files(stock: &Stock<'_>, dir: Option<&Path>, threads: usize) -> Result<VoiceFiles> {
    let places = stock.places.models.clone();
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => installed_dir(&places, stock.model(Task::Diarize)?)?,
    };
    Ok(VoiceFiles { library: stock.library()?, dir, places, threads })
}

/// What the two engines are told apart by in the ledger, where they stand under the same model.
fn serving(stock: &Stock<'_>, variant: &str, estimate_bytes: u64, recipe: Recipe) -> Result<Serving> {
    Ok(Serving {
        model: stock.model(Task::Diarize)?.to_owned(),
        variant: variant.to_owned(),
        providers: stock.settings.providers_for(Task::Diarize),
        estimate_bytes,
        resident: stock.settings.is_resident(Task::Diarize),
        checked: None,
        built_of: BuiltOf::Recipe(recipe),
    })
}

/// A folder that no entry describes is looked into when it is loaded.
fn is_segmentation(stock: &Stock<'_>) -> Result<bool> {
    let entry = stock.catalogue()?.get(stock.model(Task::Diarize)?);
    Ok(entry.is_some_and(|entry| entry.family == SEGMENTATION))
}

fn weight(dir: &Path) -> u64 {
    let size = |path: PathBuf| fs::metadata(path).map(|it| it.len()).unwrap_or(0);
    graph_file(dir).map(size).unwrap_or(0)
}

#[cfg(any(test, feature = "test-engine"))]
const TEST: &str = "test-loudness";
