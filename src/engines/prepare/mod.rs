//! TensorRT engines are built beside the work: until a new one is there and has reproduced its model's check, the next
//! provider of the profile serves, and health says why. One that answers otherwise is quarantined.
//!
//! Never builds in the way of a request, never serves an engine that was not checked, never tries a quarantined one
//! again before the model, a version, the card or an option has changed.

mod builder;
mod check;
mod decide;
mod key;
mod shelf;
mod workbench;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use serde::Serialize;

pub use builder::OnnxBuilder;
pub use check::GraphAnswers;
pub use decide::{Decision, decide};
pub(in crate::engines) use key::files;
pub use key::{Digests, EngineKey};
pub use workbench::{HostedBuilder, Step, Workbench};

use crate::{
    base::{Error, Kind, Result, lock},
    engines::Cancel,
    models::catalogue::Check,
    settings::Provider,
};

/// How it stands with one engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EngineState {
    Absent,
    /// From 0 to 1, as far as it is known.
    Building {
        progress: f32,
    },
    Ready,
    /// It answered otherwise than its model.
    Quarantined {
        reason: String,
    },
    /// Tried again after the next start.
    Failed {
        reason: String,
    },
}

/// What health says of an engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineStatus {
    pub model: String,
    pub variant: String,
    #[serde(flatten)]
    pub state: EngineState,
}

/// Builds and tries one model's engine: in an engine host's process, or as a fake.
pub trait Builder: Send + 'static {
    /// The check's answers of the provider that serves meanwhile.
    fn record(&mut self, cancel: &Cancel) -> Result<GraphAnswers>;
    /// Fills the folder.
    fn build(&mut self, folder: &Path, progress: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<()>;
    /// The check's answers of the engine that the folder holds.
    fn answer(&mut self, folder: &Path, cancel: &Cancel) -> Result<GraphAnswers>;
}

/// Where a model is to run now.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub provider: Provider,
    /// TensorRT's cache, where it serves.
    pub engines: Option<PathBuf>,
    /// Whether an engine is wanted: call `start`.
    pub build: bool,
    /// Why it is not the first of the order.
    pub told: Option<String>,
}

/// All engines of this device. Cheap to clone.
#[derive(Clone)]
pub struct Engines(Arc<Inner>);

struct Inner {
    shelf: shelf::Shelf,
    /// What is known of each engine by its id; the shelf is read once.
    states: Mutex<BTreeMap<String, (EngineKey, EngineState)>>,
    /// Held by the one that builds: two at a time would not fit a small card.
    building: Mutex<()>,
    cancel: Cancel,
}

impl Engines {
    pub fn new(folder: PathBuf) -> Engines {
        let (shelf, states, building) = (shelf::Shelf::new(folder), Mutex::default(), Mutex::default());
        Engines(Arc::new(Inner { shelf, states, building, cancel: Cancel::default() }))
    }

    pub fn state(&self, key: &EngineKey) -> EngineState {
        let mut states = lock(&self.0.states);
        let (_, state) = states.entry(key.id()).or_insert_with(|| (key.clone(), self.0.shelf.state(key)));
        state.clone()
    }

    pub fn statuses(&self) -> Vec<EngineStatus> {
        let status = |(key, state): &(EngineKey, EngineState)| EngineStatus {
            model: key.model.clone(),
            variant: key.variant.clone(),
            state: state.clone(),
        };
        lock(&self.0.states).values().map(status).collect()
    }

    /// Where the model runs now, by the order that its task permits. Without a key TensorRT is not to be had here.
    pub fn choose(&self, key: Result<&EngineKey, &Error>, order: &[Provider], has_check: bool) -> Result<Choice> {
        let state = key.map_or_else(|error| EngineState::Failed { reason: error.full() }, |key| self.state(key));
        let Decision { serve, build, told } = decide(order, &state, has_check);
        match serve {
            Some(provider) => {
                let key = key.ok().filter(|_| provider == Provider::TensorRt);
                Ok(Choice { provider, engines: key.map(|key| self.0.shelf.folder(key)), build, told })
            }
            None => Err(Error::unavailable(told.unwrap_or_else(|| "no provider is set".to_owned()))
                .hint("add \"cuda\" behind it in providers.order, or set the task's provider")),
        }
    }

    /// Begins to build on a thread of its own; `done` is told how it ended. False if that is under way or was tried.
    pub fn start(
        &self,
        key: EngineKey,
        check: Check,
        mut builder: Box<dyn Builder>,
        done: impl FnOnce(&EngineState) + Send + 'static,
    ) -> Result<bool> {
        if self.state(&key) != EngineState::Absent {
            return Ok(false);
        }
        self.set(&key, EngineState::Building { progress: 0.0 });
        let (engines, of_thread) = (self.clone(), key.clone());
        let work = move || {
            let _one_at_a_time = lock(&engines.0.building);
            let run = AssertUnwindSafe(|| engines.make(&of_thread, &check, builder.as_mut()));
            let made =
                panic::catch_unwind(run).unwrap_or_else(|_| Err(Error::internal("the engine's builder panicked")));
            let state = made.unwrap_or_else(|error| EngineState::Failed { reason: error.full() });
            match &state {
                EngineState::Quarantined { reason } | EngineState::Failed { reason } => {
                    log::warn!(model = of_thread.model; "no TensorRT engine: {reason}");
                }
                _ => {
                    log::info!(model = of_thread.model; "the TensorRT engine is there and reproduces the model's check")
                }
            }
            engines.set(&of_thread, state.clone());
            done(&state);
        };
        let spawned = thread::Builder::new().name(format!("build-{}", key.model)).spawn(work);
        spawned.map(|_| true).map_err(|error| {
            self.set(&key, EngineState::Failed { reason: "no thread for it".to_owned() });
            Error::unavailable("the engine's builder cannot start").cause(error)
        })
    }

    /// Gives up what is being built, at its next step.
    pub fn close(&self) {
        self.0.cancel.cancel();
    }

    /// Builds, checks and marks.
    fn make(&self, key: &EngineKey, check: &Check, builder: &mut dyn Builder) -> Result<EngineState> {
        let Inner { shelf, cancel, .. } = &*self.0;
        let go_on = || if cancel.is_cancelled() { Err(Error::new(Kind::Cancelled, "given up")) } else { Ok(()) };
        go_on()?;
        let expected = match shelf.recorded(key, check) {
            Some(expected) => expected,
            None => {
                let answers = builder.record(cancel)?;
                check::usable(&answers)?;
                shelf.record(key, check, &answers)?;
                answers
            }
        };
        go_on()?;
        let folder = shelf.begin(key)?;
        let mut progress = |progress: f32| self.set(key, EngineState::Building { progress: progress.clamp(0.0, 1.0) });
        builder.build(&folder, &mut progress, cancel)?;
        shelf.require_engine(key)?;
        go_on()?;
        let found = builder.answer(&folder, cancel)?;
        if let Err(difference) = check::compare(&expected, &found, check.tolerance) {
            shelf.quarantine(key, &difference)?;
            return Ok(EngineState::Quarantined { reason: difference });
        }
        shelf.ready(key)?;
        Ok(EngineState::Ready)
    }

    fn set(&self, key: &EngineKey, state: EngineState) {
        lock(&self.0.states).insert(key.id(), (key.clone(), state));
    }
}
