//! One ONNX graph, ready to run. Owned by one thread, so it needs no lock.

use std::path::Path;

use ort::{
    session::{Session, SessionInputValue, SessionOutputs},
    value::TensorRef,
};
use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    runtime::{
        Runtime,
        failure::run_error,
        onnx::Model,
        provider::ProviderOptions,
        session::{open_changed, open_session},
    },
};

/// How a graph is opened, and where it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphOptions {
    pub threads: usize,
    pub provider: ProviderOptions,
    /// Threads wait actively while a run lasts. For graphs that run many small steps in a row; a graph that runs a few
    /// times a second would burn a core for nothing.
    pub spinning: bool,
    /// Shapes stay the same from run to run, so that a plan of the memory is worth keeping.
    pub same_shapes: bool,
    /// Weights beside the graph stay in their file, mapped into memory, instead of being packed anew for the processor:
    /// loaded at once and shared, a little slower in large products.
    pub mapped: bool,
}

impl GraphOptions {
    pub fn cpu(threads: usize) -> GraphOptions {
        GraphOptions { threads, provider: ProviderOptions::Cpu, spinning: false, same_shapes: true, mapped: false }
    }
}

/// A tensor that the caller keeps; nothing is copied.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    F32(&'a [usize], &'a [f32]),
    I64(&'a [usize], &'a [i64]),
}

pub struct Graph {
    pub(super) session: Session,
    pub(super) name: String,
}

pub struct Outputs<'a> {
    values: SessionOutputs<'a>,
    name: &'a str,
}

impl Graph {
    pub fn open(runtime: &Runtime, path: &Path, options: &GraphOptions) -> Result<Graph> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Graph { session: open_session(runtime, path, options)?, name })
    }

    /// A model that was read and changed; its weights are mapped from its file.
    pub fn open_changed(runtime: &Runtime, model: &Model, options: &GraphOptions) -> Result<Graph> {
        let name = model.file().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Graph { session: open_changed(runtime, model, options)?, name })
    }

    pub fn inputs(&self) -> Vec<String> {
        self.session.inputs().iter().map(|input| input.name().to_owned()).collect()
    }

    pub fn run(&mut self, inputs: &[(&str, View<'_>)]) -> Result<Outputs<'_>> {
        let name = &self.name;
        let failed = |error: ort::Error| run_error(format!("the model {name} failed"), &error.to_string());
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, view) in inputs {
            let value = match view {
                View::F32(shape, data) => TensorRef::from_array_view((*shape, *data)).map_err(failed)?.into(),
                View::I64(shape, data) => TensorRef::from_array_view((*shape, *data)).map_err(failed)?.into(),
            };
            values.push((name, value));
        }
        let values = self.session.run(values).map_err(failed)?;
        Ok(Outputs { values, name })
    }
}

impl Outputs<'_> {
    /// The values of one output, in row order.
    pub fn f32(&self, output: &str) -> Result<&[f32]> {
        let value = self
            .values
            .get(output)
            .ok_or_else(|| Error::internal(format!("the model {} has no output {output}", self.name)))?;
        let (_, data) = value
            .try_extract_tensor::<f32>()
            .map_err(|error| Error::internal(format!("{}: output {output}", self.name)).cause(error))?;
        Ok(data)
    }
}
