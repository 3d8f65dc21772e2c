//! Builds engines by opening a model's graphs with TensorRT, which writes what it builds into the cache. Belongs into
//! an engine host's process: it takes minutes, much memory, and foreign code that may crash.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel,
        prepare::{Builder, GraphAnswers},
    },
    models::catalogue::Check,
    runtime::{GraphOptions, ProviderOptions, Runtime, provider::TensorRtOptions, trial},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnnxBuilder {
    pub library: PathBuf,
    /// By role, as in the check.
    pub graphs: BTreeMap<String, PathBuf>,
    pub check: Check,
    pub tensorrt: TensorRtOptions,
    /// Whose answers count.
    pub reference: ProviderOptions,
    pub threads: usize,
}

impl OnnxBuilder {
    fn on(&self, provider: &ProviderOptions, cancel: &Cancel, progress: &mut dyn FnMut(f32)) -> Result<GraphAnswers> {
        let runtime = Runtime::open(&self.library)?;
        let options = GraphOptions { provider: provider.clone(), ..GraphOptions::cpu(self.threads) };
        let mut answers = GraphAnswers::new();
        for (done, (role, inputs)) in self.check.graphs.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::new(Kind::Cancelled, "given up"));
            }
            // TensorRT tells nothing from within a graph.
            progress(done as f32 / self.check.graphs.len() as f32);
            let graph = self.graphs.get(role);
            let graph = graph.ok_or_else(|| Error::internal(format!("the check's graph {role} has no file")))?;
            answers.insert(role.clone(), trial(&runtime, graph, &options, inputs, self.check.seed)?);
        }
        Ok(answers)
    }

    fn with_cache(&self, folder: &Path) -> ProviderOptions {
        ProviderOptions::TensorRt(TensorRtOptions { engines: Some(folder.to_owned()), ..self.tensorrt.clone() })
    }
}

impl Builder for OnnxBuilder {
    fn record(&mut self, cancel: &Cancel) -> Result<GraphAnswers> {
        self.on(&self.reference, cancel, &mut |_| ())
    }

    fn build(&mut self, folder: &Path, progress: &mut dyn FnMut(f32), cancel: &Cancel) -> Result<()> {
        self.on(&self.with_cache(folder), cancel, progress).map(drop)
    }

    /// Opens the graphs again, from the cache alone: what is checked is what will be loaded.
    fn answer(&mut self, folder: &Path, cancel: &Cancel) -> Result<GraphAnswers> {
        self.on(&self.with_cache(folder), cancel, &mut |_| ())
    }
}
