//! Which engine serves which task, in memory only as long as the ledger lets it, and how each task stands.

mod appetite;
mod hire;
mod kinds;
mod loader;
mod memory;
mod place;
mod plans;
mod serving;
mod shortages;
mod smaller;
mod status;
mod tensorrt;
#[cfg(test)]
mod tests;
mod voices;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use tokio::sync::{self, OnceCell, broadcast};

use crate::{
    base::{Error, Kind, Result, lock},
    device::{Facts, Gpu},
    engines::{
        Asr, Embedder, Speakers, Voice, VoiceDetector, VoiceLimits, Voiceprints,
        diarize::Observer,
        prepare::{Digests, EngineStatus, Engines},
        remote::{Probe, Remote, RemoteHealth},
        vad::Silero,
    },
    flow::{Priority, Task},
    models::{
        Ledger, ModelState,
        catalogue::{self, Catalogue},
        installed,
    },
    runtime::{self, Runtime},
    settings::{Provider, Settings},
};

pub use hire::{Hireable, Hired};
pub use loader::Hosting;
use loader::Loaded;
use memory::Memory;
use serving::{Serving, Stock};
use shortages::Shortages;
pub use status::{TaskState, TaskStatus};

/// Where the files of engines are looked for, and where engines run.
#[derive(Debug, Clone)]
pub struct Places {
    pub models: Vec<PathBuf>,
    /// ONNX Runtime, when the settings name no library.
    pub library: Vec<PathBuf>,
    /// A folder with entries of the catalogue of one's own.
    pub own_entries: Option<PathBuf>,
    pub hosting: Hosting,
}

impl Places {
    pub fn new(settings: &Settings, executable: &Path, working_dir: &Path) -> Places {
        Places {
            models: catalogue::places(&settings.models_dir(), executable),
            library: runtime::candidates(executable, working_dir),
            own_entries: None,
            hosting: Hosting::Processes,
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    settings: Settings,
    places: Places,
    /// Or why it cannot be read.
    catalogue: Result<Catalogue, String>,
    voice: OnceCell<Voice>,
    voice_state: Mutex<TaskState>,
    /// Once it has begun.
    memory: OnceLock<Memory>,
    gpu: OnceLock<Gpu>,
    /// What TensorRT has built.
    engines: Engines,
    digests: Digests,
    /// Keep an eye on the servers elsewhere.
    probes: Mutex<Vec<Probe>>,
    remotes: BTreeMap<String, Result<Remote, String>>,
    /// The threads that speak with them. Held while one is started.
    elsewhere: sync::Mutex<BTreeMap<Task, Loaded>>,
    /// Why a task that is installed does not run, until it does.
    failures: Mutex<BTreeMap<Task, Failure>>,
    shortages: Mutex<Shortages>,
}

impl Registry {
    /// Looks at what is installed; loads nothing.
    pub fn new(settings: &Settings, places: Places) -> Registry {
        let remotes = settings.remotes.iter().map(|(name, remote)| {
            // The reason is told to each who asks.
            (name.clone(), Remote::open(name, remote).map_err(|error| error.full()))
        });
        let remotes = remotes.collect();
        Registry(Arc::new(Inner {
            settings: settings.clone(),
            catalogue: Catalogue::load(places.own_entries.as_deref()).map_err(|error| error.full()),
            places,
            voice: OnceCell::new(),
            voice_state: Mutex::new(TaskState::Cold),
            memory: OnceLock::new(),
            gpu: OnceLock::new(),
            engines: Engines::new(settings.engines_dir()),
            digests: Digests::default(),
            probes: Mutex::default(),
            remotes,
            elsewhere: sync::Mutex::default(),
            failures: Mutex::default(),
            shortages: Mutex::default(),
        }))
    }

    /// Whether a task can be served; the error says what is missing and how to get it.
    pub fn installed(&self, task: Task) -> Result<()> {
        if let Some((name, _)) = self.0.settings.remote_for(task) {
            return self.remote(name).map(drop);
        }
        match task {
            Task::Vad => {
                let stock = self.stock();
                stock.silero()?;
                stock.library().map(drop)
            }
            _ => self.has_a_place(&kinds::serving(task, &self.stock())?),
        }
    }

    /// A voice detector of the caller's own, for whole recordings.
    pub fn open_silero(&self, threads: usize) -> Result<Silero> {
        let stock = self.stock();
        Silero::open(&Runtime::open(&stock.library()?)?, &stock.silero()?, threads)
    }

    /// A diarizer of the caller's own: of the models in `dir`, else of those that the settings name.
    pub fn open_observer(&self, dir: Option<&Path>, threads: usize) -> Result<Observer> {
        voices::speakers_spec(&self.stock(), dir, threads)?.open()
    }

    /// A model of voices of the caller's own: that in `dir`, else the one that goes with the settings' diarizer.
    pub fn open_voices(&self, dir: Option<&Path>, threads: usize) -> Result<Box<dyn Embedder>> {
        voices::voices_spec(&self.stock(), dir, threads)?.open()
    }

    /// The voice detector, loaded by the first who asks. It is small and lives as long as the daemon.
    pub async fn voice(&self) -> Result<Voice> {
        let voice = self.0.voice.get_or_try_init(|| async {
            *lock(&self.0.voice_state) = TaskState::Loading;
            let loaded = self.load_voice().await;
            *lock(&self.0.voice_state) = if loaded.is_ok() { TaskState::Ready } else { TaskState::Cold };
            self.remember(Task::Vad, &loaded);
            loaded
        });
        Ok(voice.await?.clone())
    }

    /// The voice detector if it is loaded.
    pub fn voice_if_loaded(&self) -> Option<Voice> {
        self.0.voice.get().cloned()
    }

    /// From now on models may be in memory, within the budget of this machine; loads what the settings want there from
    /// the beginning, in the background. Within a runtime.
    pub fn begin(&self, facts: &Facts) {
        let Inner { settings, places, memory, .. } = &*self.0;
        memory.get_or_init(|| Memory::start(settings, facts, places.hosting));
        if let Some(gpu) = facts.gpus.first() {
            self.0.gpu.get_or_init(|| gpu.clone());
        }
        self.catalogue_problems().iter().for_each(|problem| log::warn!("{problem}"));
        for remote in self.remotes_in_use() {
            match remote.spawn_probe() {
                Ok(probe) => lock(&self.0.probes).push(probe),
                Err(error) => log::warn!("{}", error.full()),
            }
        }
        self.warm::<Asr>();
        self.warm::<Speakers>();
        self.warm::<Voiceprints>();
    }

    /// Loads what the settings want in memory from the beginning.
    fn warm<E: Hireable>(&self) {
        let settings = &self.0.settings;
        let wanted = settings.is_resident(E::TASK) && settings.remote_for(E::TASK).is_none();
        if wanted && self.installed(E::TASK).is_ok() {
            let registry = self.clone();
            tokio::spawn(async move {
                if let Err(error) = registry.hire::<E>(Priority::Interactive).await {
                    log::warn!("{}", error.full());
                }
            });
        }
    }

    /// What every memory is used for, the GPU's first. None before `begin`.
    pub fn ledgers(&self) -> Vec<Ledger> {
        self.0.memory.get().map(Memory::ledgers).unwrap_or_default()
    }

    /// Changes of models' states from now on.
    pub fn model_states(&self) -> Vec<broadcast::Receiver<ModelState>> {
        self.0.memory.get().map(Memory::states).unwrap_or_default()
    }

    /// How it stands with what TensorRT builds.
    pub fn engine_builds(&self) -> Vec<EngineStatus> {
        self.0.engines.statuses()
    }

    pub fn remote_health(&self) -> Vec<RemoteHealth> {
        self.0.remotes.values().filter_map(|remote| Some(remote.as_ref().ok()?.health())).collect()
    }

    /// Asks the servers that do a task how they are, all at once and for some seconds at most.
    pub fn look_at_remotes(&self) {
        std::thread::scope(|scope| {
            for remote in self.remotes_in_use() {
                scope.spawn(|| remote.look());
            }
        });
    }

    /// Nothing is sent to a server that no task names.
    fn remotes_in_use(&self) -> impl Iterator<Item = &Remote> {
        let Inner { settings, remotes, .. } = &*self.0;
        let is_named = |name: &str| settings.tasks.values().any(|task| task.remote == name);
        remotes.iter().filter(move |(name, _)| is_named(name)).filter_map(|(_, remote)| remote.as_ref().ok())
    }

    /// Why entries of a user's own are left out.
    pub fn catalogue_problems(&self) -> &[String] {
        self.0.catalogue.as_ref().map(Catalogue::problems).unwrap_or_default()
    }

    /// Takes a model out of memory; `Kind::Busy` while somebody uses it.
    pub async fn unload(&self, model: &str) -> Result<()> {
        self.memory()?.unload(model).await
    }

    /// Ends every engine; resolves when their memory is back.
    pub async fn close(&self) {
        self.0.engines.close();
        lock(&self.0.probes).clear();
        if let Some(memory) = self.0.memory.get() {
            memory.close().await;
        }
    }

    fn remote(&self, name: &str) -> Result<&Remote> {
        match self.0.remotes.get(name) {
            Some(Ok(remote)) => Ok(remote),
            Some(Err(reason)) => Err(Error::unavailable(reason.clone())),
            None => Err(Error::unavailable(format!("there is no table [remotes.{name}]"))),
        }
    }

    fn memory(&self) -> Result<&Memory> {
        self.0.memory.get().ok_or_else(|| Error::internal("no memory is managed for models here"))
    }

    async fn load_voice(&self) -> Result<Voice> {
        let (file, library) = (self.stock().silero()?, self.stock().library()?);
        Voice::start(VoiceLimits::default(), move || {
            let runtime = Runtime::open(&library)?;
            Ok(Box::new(Silero::open(&runtime, &file, 1)?) as Box<dyn VoiceDetector>)
        })
        .await
    }

    fn stock(&self) -> Stock<'_> {
        let Inner { settings, places, catalogue, .. } = &*self.0;
        Stock { settings, catalogue, places }
    }

    /// A provider that this machine cannot have is told before anybody speaks. Where TensorRT lacks something, which may
    /// be the card itself, the next provider serves and says so.
    fn has_a_place(&self, serving: &Serving) -> Result<()> {
        let next = match &serving.providers[..] {
            [Provider::TensorRt, next, ..] if serving.beside.is_none() => Some(next),
            providers => providers.first(),
        };
        match (self.0.memory.get(), next) {
            (Some(memory), Some(provider)) => memory.shelf(*provider).map(drop),
            _ => Ok(()),
        }
    }

    /// Why a task does not run, or not as it should. A failure counts for the files that it was met with: with others it
    /// is not known whether the task runs.
    fn failure(&self, task: Task) -> Option<Failure> {
        let failure = lock(&self.0.failures).get(&task).cloned()?;
        if failure.files.as_ref().is_none_or(|files| *files == self.files_of(task)) {
            return Some(failure);
        }
        // Not what was met meanwhile.
        let mut failures = lock(&self.0.failures);
        if failures.get(&task) == Some(&failure) {
            failures.remove(&task);
        }
        None
    }

    fn files_of(&self, task: Task) -> Files {
        installed::stamp(&self.0.places.models, self.0.settings.model_for(task)?)
    }

    fn remember<T>(&self, task: Task, loaded: &Result<T>) {
        let mut failures = lock(&self.0.failures);
        match loaded {
            // One that runs elsewhere than it should keeps saying so.
            Ok(_) => failures.retain(|other, failure| *other != task || failure.runs()),
            // Whoever waited too long or left says nothing of the engine.
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::Timeout | Kind::Cancelled) => {}
            Err(error) => {
                let failure = Failure { reason: error.full(), files: Some(self.files_of(task)) };
                if failures.insert(task, failure).is_none_or(|before| before.reason != error.full()) {
                    log::warn!(task = task.name(); "{}", error.full());
                }
            }
        }
    }
}

/// Why a task does not run, or not as it should.
#[derive(Clone, PartialEq)]
struct Failure {
    reason: String,
    /// Those that it was met with. None: the task runs, elsewhere than it should or in another variant.
    files: Option<Files>,
}

impl Failure {
    fn runs(&self) -> bool {
        self.files.is_none()
    }
}

/// As `installed::stamp` tells them.
type Files = Option<BTreeMap<String, (u64, std::time::SystemTime)>>;
