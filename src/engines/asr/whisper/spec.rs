//! Which Whisper to open, of which files, and how each of its graphs becomes a session.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    runtime::{Graph, GraphOptions, ProviderOptions, Runtime, Signature, onnx::Model, open_plan},
};

/// Which model to open, and how. Plain data: it crosses to the process of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhisperSpec {
    /// With config.json, tokenizer.json and the graphs.
    pub dir: PathBuf,
    /// ONNX Runtime.
    pub library: PathBuf,
    pub encoder: GraphFile,
    pub decoder: GraphFile,
    /// Of the graphs that are no plans and have none of their own.
    pub provider: ProviderOptions,
    pub plans: PlanPlace,
    pub threads: usize,
    /// Pieces decoded together.
    pub batch: usize,
}

/// One graph of an export: `onnx/decoder_model_merged_q4.onnx` is of the folder `onnx` and has the suffix `_q4`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphFile {
    /// Within the model's folder.
    pub folder: String,
    pub suffix: String,
    /// What goes into a plan and comes out of it; its suffix is the whole ending of its file. None: it is ONNX.
    pub plan: Option<Signature>,
    /// Where it runs, if that is not where the others do.
    pub provider: Option<ProviderOptions>,
}

impl Default for GraphFile {
    fn default() -> GraphFile {
        GraphFile { folder: "onnx".to_owned(), suffix: String::new(), plan: None, provider: None }
    }
}

impl GraphFile {
    /// Its weights and products are of bytes. ONNX Runtime has kernels for such products, as the published exports use
    /// them, for processors alone: beside a GPU each of them would run there all the same, with copies to and fro, in
    /// memory that nobody has reserved.
    pub fn is_in_bytes(&self) -> bool {
        matches!(self.suffix.as_str(), "_quantized" | "_int8" | "_uint8")
    }

    /// Within the model's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        let ending = if self.plan.is_some() { "" } else { ".onnx" };
        Path::new(&self.folder).join(format!("{name}{}{ending}", self.suffix))
    }
}

/// Where plans run, and where what they need beside them is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanPlace {
    pub provider: ProviderOptions,
    pub folder: PathBuf,
}

impl WhisperSpec {
    /// The unquantised graphs of a folder, as they are published.
    pub fn of(dir: &Path, library: &Path, threads: usize) -> WhisperSpec {
        WhisperSpec {
            dir: dir.to_owned(),
            library: library.to_owned(),
            encoder: GraphFile::default(),
            decoder: GraphFile::default(),
            provider: ProviderOptions::Cpu,
            plans: PlanPlace::default(),
            threads,
            batch: 8,
        }
    }

    pub(super) fn path(&self, file: &GraphFile, name: &str) -> PathBuf {
        self.dir.join(file.path(name))
    }

    pub(super) fn provider_of<'a>(&'a self, file: &'a GraphFile) -> &'a ProviderOptions {
        file.provider.as_ref().unwrap_or(&self.provider)
    }

    fn options(&self, provider: &ProviderOptions, same_shapes: bool) -> GraphOptions {
        // Beside a GPU the processor has next to nothing to do, and would wait for it on all cores.
        let threads = if *provider == ProviderOptions::Cpu { self.threads } else { 1 };
        GraphOptions { threads, provider: provider.clone(), spinning: threads > 1, same_shapes, mapped: false }
    }

    pub(super) fn open(&self, runtime: &Runtime, file: &GraphFile, name: &str, same_shapes: bool) -> Result<Graph> {
        let path = self.path(file, name);
        match &file.plan {
            Some(signature) => {
                let options = self.options(&self.plans.provider, same_shapes);
                open_plan(runtime, &path, signature, &options, &self.plans.folder)
            }
            None => Graph::open(runtime, &path, &self.options(self.provider_of(file), same_shapes)),
        }
    }

    pub(super) fn open_changed(
        &self,
        runtime: &Runtime,
        file: &GraphFile,
        model: &Model,
        same_shapes: bool,
    ) -> Result<Graph> {
        Graph::open_changed(runtime, model, &self.options(self.provider_of(file), same_shapes))
    }

    /// The graph as data, where it is to be changed. TensorRT keeps engines by the file that they are made of.
    pub(super) fn read(&self, file: &GraphFile, name: &str) -> Result<Option<Model>> {
        let path = self.path(file, name);
        let changes =
            matches!(self.provider_of(file), ProviderOptions::Cpu | ProviderOptions::Cuda(_)) && file.plan.is_none();
        if changes && path.is_file() { Model::read(&path).map(Some) } else { Ok(None) }
    }

    /// Said where a graph had to be opened as it is published: slower, and larger in memory, but right.
    pub(super) fn unchanged(&self, file: &GraphFile, name: &str, why: &Error) -> String {
        let note = format!("{} is used as it is published: {}", file.path(name).display(), why.full());
        log::warn!("{note}");
        note
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_named_by_its_whole_ending() {
        let plan = Some(Signature::default());
        let plan = GraphFile { suffix: "_sm87.engine".to_owned(), plan, ..GraphFile::default() };
        assert_eq!(GraphFile::default().path("encoder_model"), Path::new("onnx/encoder_model.onnx"));
        assert_eq!(plan.path("encoder_model"), Path::new("onnx/encoder_model_sm87.engine"));
    }
}
