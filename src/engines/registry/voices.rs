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
            appetite::Appetite,
            loader::Recipe,
            serving::{BuiltOf, Serving, Stock},
        },
    },
    flow::Task,
    models::catalogue::Memory,
    settings::Provider,
};

/// One for each engine: live speech needs the others.
const THREADS: usize = 1;
/// The family of models that hear several speakers and tell no voice.
const SEGMENTATION: &str = "pyannote-segmentation";

/// The diarizer, in a process of its own.
pub(super) fn speakers(stock: &Stock<'_>) -> Result<Serving> {
    let recipe = Recipe::of(speakers_spec(stock, None, THREADS)?);
    if is_test(stock, None) {
        return serving(stock, "turns", Appetite::new(1 << 20, &Memory::default()), recipe);
    }
    let dir = installed_dir(&stock.places.models, stock.model(Task::Diarize)?)?;
    let mut bytes = weight(&dir);
    match is_segmentation(stock)? {
        true => bytes += weight(&voices_dir(&dir, &stock.places.models)?),
        // Said before anybody speaks.
        false => drop(stock.silero()?),
    }
    serving(stock, "turns", Appetite::new(bytes, &memory(stock, &dir)?), recipe)
}

/// The model of voices, on a thread: it answers for one utterance within milliseconds.
pub(super) fn voiceprints(stock: &Stock<'_>) -> Result<Serving> {
    let recipe = Recipe::small(voices_spec(stock, None, THREADS)?);
    if is_test(stock, None) {
        return serving(stock, "voices", Appetite::new(1 << 20, &Memory::default()), recipe);
    }
    let dir = installed_dir(&stock.places.models, stock.model(Task::Diarize)?)?;
    let of_voices = if is_segmentation(stock)? { voices_dir(&dir, &stock.places.models)? } else { dir };
    // Weights are held twice while they are read.
    serving(stock, "voices", Appetite::new(2 * weight(&of_voices), &memory(stock, &of_voices)?), recipe)
}

/// Of the models in `dir`, else of those that the settings name.
pub(super) fn speakers_spec(stock: &Stock<'_>, dir: Option<&Path>, threads: usize) -> Result<SpeakersSpec> {
    let (voices, library) = (voices_spec(stock, dir, threads)?, stock.library()?);
    Ok(SpeakersSpec { voices, library, detector: stock.silero().ok(), threads })
}

pub(super) fn voices_spec(stock: &Stock<'_>, dir: Option<&Path>, threads: usize) -> Result<VoicesSpec> {
    #[cfg(any(test, feature = "test-engine"))]
    if is_test(stock, dir) {
        return Ok(VoicesSpec::TestLoudness);
    }
    let places = stock.places.models.clone();
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => installed_dir(&places, stock.model(Task::Diarize)?)?,
    };
    Ok(VoicesSpec::Files(VoiceFiles { library: stock.library()?, dir, places, threads }))
}

/// Whether the model is that of the tests, which is in no folder.
fn is_test(stock: &Stock<'_>, dir: Option<&Path>) -> bool {
    cfg!(any(test, feature = "test-engine"))
        && dir.is_none()
        && stock.model(Task::Diarize).is_ok_and(|model| model == "test-loudness")
}

/// What the two engines are told apart by in the ledger, where they stand under the same model.
fn serving(stock: &Stock<'_>, variant: &str, appetite: Appetite, recipe: Recipe) -> Result<Serving> {
    let wanted = stock.settings.providers_for(Task::Diarize);
    let is_wanted = wanted.first() == Some(&Provider::Cpu);
    Ok(Serving {
        model: stock.model(Task::Diarize)?.to_owned(),
        variant: variant.to_owned(),
        providers: vec![Provider::Cpu],
        told: (!is_wanted).then(|| "what tells voices apart is made for processors".to_owned()),
        appetite,
        resident: stock.settings.is_resident(Task::Diarize),
        checked: None,
        beside: None,
        built_of: BuiltOf::Recipe(recipe),
    })
}

/// A folder that no entry describes is looked into when it is loaded.
fn is_segmentation(stock: &Stock<'_>) -> Result<bool> {
    let entry = stock.catalogue()?.get(stock.model(Task::Diarize)?);
    Ok(entry.is_some_and(|entry| entry.family == SEGMENTATION))
}

/// As the entry of a model says, whose folder has its name.
fn memory(stock: &Stock<'_>, dir: &Path) -> Result<Memory> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(stock.catalogue()?.get(name).map(|entry| entry.memory.clone()).unwrap_or_default())
}

fn weight(dir: &Path) -> u64 {
    let size = |path: PathBuf| fs::metadata(path).map(|it| it.len()).unwrap_or(0);
    graph_file(dir).map(size).unwrap_or(0)
}
