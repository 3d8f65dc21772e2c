//! Builds TensorRT engines in a process of their own, within the budget of memory: the builder takes minutes, much
//! memory, and foreign code that may crash.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::runtime;

/// A small device builds the encoder of a large model for the better part of an hour.
const BUILD_LIMIT: Duration = Duration::from_secs(2 * 3600);

use super::{Builder, GraphAnswers, OnnxBuilder};
use crate::{
    base::{Error, Kind, Result},
    engines::{Cancel, Engine, EngineSpec, Hired, Spec},
};

/// One step of making an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Step {
    Record,
    /// Into this folder.
    Build(PathBuf),
    Answer(PathBuf),
}

/// In the engine host's process.
pub struct Workbench(OnnxBuilder);

impl Spec for OnnxBuilder {
    type Engine = Workbench;

    fn build(&self) -> Result<Workbench> {
        Ok(Workbench(self.clone()))
    }
}

impl From<OnnxBuilder> for EngineSpec {
    fn from(spec: OnnxBuilder) -> EngineSpec {
        EngineSpec::Workbench(spec)
    }
}

impl Engine for Workbench {
    type Ask = Step;
    /// From 0 to 1.
    type Progress = f32;
    type Answer = GraphAnswers;

    fn answer(&mut self, ask: &Step, step: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<GraphAnswers> {
        match ask {
            Step::Record => self.0.record(cancel),
            Step::Build(folder) => Builder::build(&mut self.0, folder, step, cancel).map(|()| GraphAnswers::new()),
            Step::Answer(folder) => self.0.answer(folder, cancel),
        }
    }
}

/// In the daemon: asks the workbench, on a thread that waits for it.
pub struct HostedBuilder {
    pub runtime: runtime::Handle,
    /// Each step has a lease of its own, so that others come in between.
    pub hire: Box<dyn Fn() -> BoxFuture<'static, Result<Hired<Workbench>>> + Send>,
}

impl HostedBuilder {
    fn step(&self, step: Step, progress: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<GraphAnswers> {
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "given up"));
        }
        let (told, mut tellings) = tokio::sync::mpsc::channel(16);
        self.runtime.block_on(async {
            let hired = (self.hire)().await?;
            let bench = hired.limited(BUILD_LIMIT);
            let mut answer = std::pin::pin!(bench.ask_with(step, move |fraction| {
                // Whoever is behind hears of the next one.
                told.try_send(fraction).unwrap_or(());
            }));
            loop {
                tokio::select! {
                    answer = &mut answer => return answer,
                    Some(fraction) = tellings.recv() => progress(fraction),
                }
            }
        })
    }
}

impl Builder for HostedBuilder {
    fn record(&mut self, cancel: &Cancel) -> Result<GraphAnswers> {
        self.step(Step::Record, &mut |_| (), cancel)
    }

    fn build(&mut self, folder: &Path, progress: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<()> {
        self.step(Step::Build(folder.to_owned()), progress, cancel).map(drop)
    }

    fn answer(&mut self, folder: &Path, cancel: &Cancel) -> Result<GraphAnswers> {
        self.step(Step::Answer(folder.to_owned()), &mut |_| (), cancel)
    }
}
