//! Which engine serves which task, in memory only as long as the ledger lets it, and how each task stands.

mod loader;
mod memory;
mod serving;
mod tensorrt;

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use serde::Serialize;
use tokio::sync::{OnceCell, broadcast};

use crate::{
    base::{Error, Kind, Result, lock},
    device::{Facts, Gpu},
    engines::{
        Asr, Engine, Handle, Limits, Voice, VoiceDetector, VoiceLimits,
        diarize::{self, Observer, Segmenter, VoiceModel},
        prepare::{EngineStatus, Engines},
        remote::{Probe, Remote, RemoteHealth, RemoteState},
        vad::{self, Silero},
    },
    flow::{Priority, Task},
    models::{
        Lease, Ledger, ModelKey, ModelState, Need, Phase,
        catalogue::{self, Catalogue},
    },
    runtime::{self, Runtime},
    settings::{Provider, Settings},
};

pub use loader::Hosting;
use loader::{Loaded, Recipe};
use memory::Memory;
use serving::{Serving, Stock};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Ready,
    /// Installed; loaded by the first who needs it.
    Cold,
    Loading,
    Unavailable,
}

impl TaskState {
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Ready => "ready",
            TaskState::Cold => "cold",
            TaskState::Loading => "loading",
            TaskState::Unavailable => "unavailable",
        }
    }
}

/// What `/api/health` says of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskStatus {
    pub task: Task,
    pub state: TaskState,
    pub model: Option<String>,
    pub variant: Option<String>,
    pub provider: Option<String>,
    pub device: Option<String>,
    pub reason: Option<String>,
}

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

/// An engine for one job. While this lives it stays in memory.
pub struct Hired<E: Engine> {
    handle: Handle<E>,
    /// None for an engine elsewhere.
    lease: Option<Lease<Loaded>>,
}

impl<E: Engine> Hired<E> {
    /// Resolves when more urgent work needs the memory: give the job up at its next step, and ask again later.
    pub async fn asked_to_yield(&self) {
        match &self.lease {
            Some(lease) => lease.asked_to_yield().await,
            None => std::future::pending().await,
        }
    }
}

impl<E: Engine> Deref for Hired<E> {
    type Target = Handle<E>;

    fn deref(&self) -> &Handle<E> {
        &self.handle
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
    /// Keep an eye on the servers elsewhere.
    probes: Mutex<Vec<Probe>>,
    remotes: BTreeMap<String, Result<Remote, String>>,
    remote_transcriber: OnceCell<Handle<Asr>>,
    /// Why a task that is installed does not run, until it does.
    failures: Mutex<BTreeMap<Task, String>>,
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
            probes: Mutex::default(),
            remotes,
            remote_transcriber: OnceCell::new(),
            failures: Mutex::default(),
        }))
    }

    /// How every task stands now.
    pub fn statuses(&self) -> Vec<TaskStatus> {
        let ledgers = self.ledgers();
        Task::ALL.into_iter().map(|task| self.status(task, &ledgers)).collect()
    }

    pub fn state(&self, task: Task) -> TaskState {
        self.status(task, &self.ledgers()).state
    }

    /// Whether a task can be served; the error says what is missing and how to get it.
    pub fn installed(&self, task: Task) -> Result<()> {
        if let Some((name, _)) = self.0.settings.remote_for(task) {
            return self.remote(name).map(drop);
        }
        match task {
            Task::Vad => {
                self.silero_file()?;
                self.library().map(drop)
            }
            Task::Transcribe => self.has_a_place(&self.transcribes_with()?),
            _ => {
                let model = self.model(task)?;
                Err(Error::unavailable(format!("this version cannot run {model} yet"))
                    .hint("see the README for what works today"))
            }
        }
    }

    /// A voice detector of the caller's own, for whole recordings.
    pub fn open_silero(&self, threads: usize) -> Result<Silero> {
        Silero::open(&Runtime::open(&self.library()?)?, &self.silero_file()?, threads)
    }

    /// A diarizer of the caller's own: of the models in `dir`, else of those that the settings name.
    pub fn open_observer(&self, dir: Option<&Path>, threads: usize) -> Result<Observer> {
        let dir = self.diarizer_dir(dir)?;
        let runtime = Runtime::open(&self.library()?)?;
        let detector = || Ok(Box::new(self.open_silero(threads)?) as Box<dyn VoiceDetector>);
        Observer::open(&runtime, &dir, &self.0.places.models, threads, detector)
    }

    /// A model of voices of the caller's own: that in `dir`, else the one that goes with the settings' diarizer.
    pub fn open_voices(&self, dir: Option<&Path>, threads: usize) -> Result<VoiceModel> {
        let runtime = Runtime::open(&self.library()?)?;
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => {
                let dir = self.diarizer_dir(None)?;
                let segments = Segmenter::open(&runtime, &dir, threads)?.is_some();
                if segments { diarize::voices_dir(&dir, &self.0.places.models)? } else { dir }
            }
        };
        VoiceModel::open(&runtime, &dir, threads)
    }

    fn diarizer_dir(&self, dir: Option<&Path>) -> Result<PathBuf> {
        match dir {
            Some(dir) => Ok(dir.to_owned()),
            None => diarize::installed_dir(&self.0.places.models, self.model(Task::Diarize)?),
        }
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

    /// A transcriber, loaded if it is not yet; waits for memory.
    pub async fn transcriber(&self, priority: Priority) -> Result<Hired<Asr>> {
        let task = Task::Transcribe;
        let hired = match self.0.settings.remote_for(task) {
            Some((name, _)) => self.hire_remote(name).await,
            None => self.hire(task, &self.transcribes_with()?, priority).await,
        };
        self.remember(task, &hired);
        hired
    }

    /// From now on models may be in memory, within the budget of this machine; loads what the settings want there from
    /// the beginning, in the background. Within a runtime.
    pub fn begin(&self, facts: &Facts) {
        let Inner { settings, places, memory, .. } = &*self.0;
        memory.get_or_init(|| Memory::start(settings, facts, places.hosting));
        if let Some(gpu) = facts.gpus.first() {
            self.0.gpu.get_or_init(|| gpu.clone());
        }
        for remote in self.0.remotes.values().flatten() {
            match remote.spawn_probe() {
                Ok(probe) => lock(&self.0.probes).push(probe),
                Err(error) => log::warn!("{}", error.full()),
            }
        }
        let resident = |task: &Task| self.0.settings.is_resident(task) && self.0.settings.remote_for(task).is_none();
        if resident(&Task::Transcribe) && self.installed(Task::Transcribe).is_ok() {
            let registry = self.clone();
            tokio::spawn(async move {
                if let Err(error) = registry.transcriber(Priority::Interactive).await {
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

    async fn hire(&self, task: Task, serving: &Serving, priority: Priority) -> Result<Hired<Asr>> {
        let memory = self.memory()?;
        let order = self.order(&serving.providers, serving.checked.as_ref())?;
        let mut instead = order.told;
        let mut refused = None;
        for provider in &order.providers {
            let key = ModelKey {
                model: serving.model.clone(),
                variant: serving.variant.clone(),
                provider: provider.name().to_owned(),
            };
            memory.shelf(*provider)?.put(&key, Recipe::Asr(serving.spec(*provider, &self.0.settings)));
            let need = Need {
                key,
                estimate_bytes: serving.estimate_bytes,
                priority,
                resident: serving.resident,
                yields: priority == Priority::Batch,
            };
            match memory.lease(*provider, need).await {
                Ok(lease) => {
                    let mut failures = lock(&self.0.failures);
                    match instead {
                        Some(why) => failures.insert(task, format!("{INSTEAD}{}: {why}", provider.name())),
                        None => failures.remove(&task),
                    };
                    drop(failures);
                    let Loaded::Asr(handle) = &*lease else {
                        return Err(Error::internal("another engine was loaded"));
                    };
                    return Ok(Hired { handle: handle.clone(), lease: Some(lease) });
                }
                // There is no room for it there, whoever leaves: the profile may permit another place.
                Err(error) if error.kind() == Kind::OverBudget => {
                    log::warn!(task = task.name(), provider = provider.name(); "{}", error.full());
                    instead = Some(error.full());
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| Error::unavailable("no provider is set").hint("set providers.order")))
    }

    async fn hire_remote(&self, name: &str) -> Result<Hired<Asr>> {
        let start = || async {
            let (remote, model) = (self.remote(name)?.clone(), self.model(Task::Transcribe)?.to_owned());
            Handle::thread(name, &Limits::default(), move || Ok(Asr(remote.transcriber(&model)?))).await
        };
        let handle = self.0.remote_transcriber.get_or_try_init(start).await?.clone();
        Ok(Hired { handle, lease: None })
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
        let (file, library) = (self.silero_file()?, self.library()?);
        Voice::start(VoiceLimits::default(), move || {
            let runtime = Runtime::open(&library)?;
            Ok(Box::new(Silero::open(&runtime, &file, 1)?) as Box<dyn VoiceDetector>)
        })
        .await
    }

    fn model(&self, task: Task) -> Result<&str> {
        self.0.settings.model_for(task).ok_or_else(|| {
            Error::unavailable(format!("no model is set for the task {}", task.name()))
                .hint(format!("set tasks.{}.model, or choose a profile that has one", task.name()))
        })
    }

    fn transcribes_with(&self) -> Result<Serving> {
        let Inner { settings, places, catalogue, .. } = &*self.0;
        let catalogue = catalogue.as_ref().map_err(Error::unavailable)?;
        let stock = Stock { settings, catalogue, places: &places.models, library: self.library() };
        stock.transcriber(self.model(Task::Transcribe)?)
    }

    /// A provider that this machine cannot have is told before anybody speaks. What TensorRT lacks is told as it builds.
    fn has_a_place(&self, serving: &Serving) -> Result<()> {
        match (self.0.memory.get(), serving.providers.first()) {
            (Some(memory), Some(provider)) if *provider != Provider::TensorRt => memory.shelf(*provider).map(drop),
            _ => Ok(()),
        }
    }

    fn silero_file(&self) -> Result<PathBuf> {
        catalogue::file(&self.0.places.models, self.model(Task::Vad)?, vad::FILE)
    }

    fn library(&self) -> Result<PathBuf> {
        runtime::find(&self.0.settings.runtime.library, &self.0.places.library)
    }

    fn remember<T>(&self, task: Task, loaded: &Result<T>) {
        let mut failures = lock(&self.0.failures);
        match loaded {
            // One that runs elsewhere than it should keeps saying so.
            Ok(_) => failures.retain(|other, reason| *other != task || reason.starts_with(INSTEAD)),
            // Whoever waited too long or left says nothing of the engine.
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::Timeout | Kind::Cancelled) => {}
            Err(error) => {
                if failures.insert(task, error.full()).as_ref() != Some(&error.full()) {
                    log::warn!(task = task.name(); "{}", error.full());
                }
            }
        }
    }

    fn status(&self, task: Task, ledgers: &[Ledger]) -> TaskStatus {
        let failure = lock(&self.0.failures).get(&task).cloned();
        let model = self.0.settings.model_for(task).map(str::to_owned);
        let mut status = TaskStatus {
            task,
            state: TaskState::Cold,
            model,
            variant: None,
            provider: None,
            device: None,
            reason: failure.clone(),
        };
        if let Err(error) = self.installed(task) {
            return TaskStatus { state: TaskState::Unavailable, reason: Some(error.full()), ..status };
        }
        if let Some((name, _)) = self.0.settings.remote_for(task) {
            status.provider = Some("remote".to_owned());
            status.device = Some(name.to_owned());
            let health = self.remote(name).map(Remote::health);
            status.state = match &health {
                Ok(RemoteHealth { state: RemoteState::Failing | RemoteState::Resting, .. }) => TaskState::Unavailable,
                _ => TaskState::Ready,
            };
            status.reason = health.ok().and_then(|health| health.reason).or(status.reason);
        } else if task == Task::Vad {
            status.provider = Some(Provider::Cpu.name().to_owned());
            status.device = Some("cpu".to_owned());
            status.state = *lock(&self.0.voice_state);
        } else if let Ok(serving) = self.transcribes_with() {
            let rows = || ledgers.iter().flat_map(|ledger| &ledger.models).filter(|row| row.key.model == serving.model);
            let row = rows().find(|row| row.state == Phase::Ready).or_else(|| rows().next());
            status.state = match row.map(|row| row.state) {
                Some(Phase::Ready) => TaskState::Ready,
                Some(Phase::Loading) => TaskState::Loading,
                _ => TaskState::Cold,
            };
            let wanted = serving.providers.first().map(|provider| provider.name().to_owned());
            let provider = row.map(|row| row.key.provider.clone()).or(wanted);
            status.device = provider.as_ref().map(|name| if name == "cpu" { "cpu" } else { "gpu" }.to_owned());
            status.provider = provider;
            status.variant = Some(serving.variant);
        }
        let fails = failure.is_some_and(|reason| !reason.starts_with(INSTEAD));
        let works = status.state == TaskState::Ready || !fails;
        if works { status } else { TaskStatus { state: TaskState::Unavailable, ..status } }
    }
}

/// How the reason begins when a task runs elsewhere than the settings want it first.
const INSTEAD: &str = "runs on ";
