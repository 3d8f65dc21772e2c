//! Which engine serves which task, loaded when first needed, and what each is doing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::Serialize;
use tokio::sync::OnceCell;

use crate::{
    base::{Error, Result, lock},
    engines::{
        Asr, Handle, Voice, VoiceDetector, VoiceLimits,
        vad::{self, Silero},
    },
    flow::Task,
    models::catalogue,
    runtime::{self, Runtime},
    settings::Settings,
};

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

pub type TranscriberHost = Handle<Asr>;

/// Where the files of engines are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    pub models: Vec<PathBuf>,
    /// ONNX Runtime, when the settings name no library.
    pub library: Vec<PathBuf>,
}

impl Places {
    pub fn new(settings: &Settings, executable: &Path, working_dir: &Path) -> Places {
        Places {
            models: catalogue::places(&settings.models_dir(), executable),
            library: runtime::candidates(executable, working_dir),
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    choices: BTreeMap<Task, String>,
    library: String,
    places: Places,
    voice: OnceCell<Voice>,
    transcriber: OnceCell<TranscriberHost>,
    statuses: Mutex<BTreeMap<Task, TaskStatus>>,
}

impl Registry {
    /// Looks at what is installed; loads nothing.
    pub fn new(settings: &Settings, places: Places) -> Registry {
        let choices = Task::ALL
            .into_iter()
            .filter_map(|task| settings.model_for(task).map(|model| (task, model.to_owned())))
            .collect();
        let registry = Registry(Arc::new(Inner {
            choices,
            library: settings.runtime.library.clone(),
            places,
            voice: OnceCell::new(),
            transcriber: OnceCell::new(),
            statuses: Mutex::default(),
        }));
        for task in Task::ALL {
            let (state, reason) = match registry.installed(task) {
                Ok(()) => (TaskState::Cold, None),
                Err(error) => (TaskState::Unavailable, Some(error.full())),
            };
            registry.set(task, state, reason);
        }
        registry
    }

    pub fn statuses(&self) -> Vec<TaskStatus> {
        lock(&self.0.statuses).values().cloned().collect()
    }

    pub fn state(&self, task: Task) -> TaskState {
        lock(&self.0.statuses).get(&task).map_or(TaskState::Unavailable, |status| status.state)
    }

    /// Whether a task can be served; the error says what is missing and how to get it.
    pub fn installed(&self, task: Task) -> Result<()> {
        let Some(model) = self.0.choices.get(&task) else {
            return Err(Error::unavailable(format!("no model is set for the task {}", task.name()))
                .hint(format!("set tasks.{}.model, or choose a profile that has one", task.name())));
        };
        match task {
            Task::Vad => {
                self.silero_file(model)?;
                self.library().map(drop)
            }
            #[cfg(any(test, feature = "test-engine"))]
            Task::Transcribe if model == "test-echo" => Ok(()),
            _ => Err(Error::unavailable(format!("this version cannot run {model} yet"))
                .hint("see the README for what works today")),
        }
    }

    /// A voice detector of the caller's own, for whole recordings.
    pub fn open_silero(&self, threads: usize) -> Result<Silero> {
        self.installed(Task::Vad)?;
        let file = self.silero_file(&self.0.choices[&Task::Vad])?;
        Silero::open(&Runtime::open(&self.library()?)?, &file, threads)
    }

    /// The voice detector, loaded by the first who asks.
    pub async fn voice(&self) -> Result<Voice> {
        let voice = self.0.voice.get_or_try_init(|| self.load(Task::Vad, self.load_voice())).await?;
        Ok(voice.clone())
    }

    /// The voice detector if it is loaded.
    pub fn voice_if_loaded(&self) -> Option<Voice> {
        self.0.voice.get().cloned()
    }

    /// The transcriber, loaded by the first who asks.
    pub async fn transcriber(&self) -> Result<TranscriberHost> {
        let load = || self.load(Task::Transcribe, self.load_transcriber());
        Ok(self.0.transcriber.get_or_try_init(load).await?.clone())
    }

    async fn load<T>(&self, task: Task, loading: impl Future<Output = Result<T>>) -> Result<T> {
        self.set(task, TaskState::Loading, None);
        let loaded = loading.await;
        match &loaded {
            Ok(_) => self.set(task, TaskState::Ready, None),
            Err(error) => {
                log::warn!(task = task.name(); "{}", error.full());
                self.set(task, TaskState::Unavailable, Some(error.full()));
            }
        }
        loaded
    }

    async fn load_voice(&self) -> Result<Voice> {
        self.installed(Task::Vad)?;
        let file = self.silero_file(&self.0.choices[&Task::Vad])?;
        let library = self.library()?;
        Voice::start(VoiceLimits::default(), move || {
            let runtime = Runtime::open(&library)?;
            Ok(Box::new(Silero::open(&runtime, &file, 1)?) as Box<dyn VoiceDetector>)
        })
        .await
    }

    async fn load_transcriber(&self) -> Result<TranscriberHost> {
        self.installed(Task::Transcribe)?;
        #[cfg(any(test, feature = "test-engine"))]
        {
            use crate::engines::{AsrSpec, Limits, Spec};
            Handle::thread("transcriber", &Limits::default(), || AsrSpec::TestEcho.build()).await
        }
        #[cfg(not(any(test, feature = "test-engine")))]
        Err(Error::internal("a transcriber is said to be installed and is not"))
    }

    fn silero_file(&self, model: &str) -> Result<PathBuf> {
        catalogue::file(&self.0.places.models, model, vad::FILE)
    }

    fn library(&self) -> Result<PathBuf> {
        runtime::find(&self.0.library, &self.0.places.library)
    }

    fn set(&self, task: Task, state: TaskState, reason: Option<String>) {
        let on_cpu = matches!(state, TaskState::Ready | TaskState::Cold | TaskState::Loading);
        let status = TaskStatus {
            task,
            state,
            model: self.0.choices.get(&task).cloned(),
            variant: None,
            provider: on_cpu.then(|| "cpu".to_owned()),
            device: on_cpu.then(|| "cpu".to_owned()),
            reason,
        };
        lock(&self.0.statuses).insert(task, status);
    }
}
