//! One ONNX graph, ready to run. Owned by one thread, so it needs no lock.

use std::path::Path;

use ort::{
    session::{Session, SessionInputValue, SessionOutputs, builder::GraphOptimizationLevel},
    value::TensorRef,
};

use crate::{
    base::{Error, Result},
    runtime::Runtime,
};

/// How a graph is opened.
#[derive(Debug, Clone, Copy)]
pub struct GraphOptions {
    pub threads: usize,
}

/// A tensor that the caller keeps; nothing is copied.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    F32(&'a [usize], &'a [f32]),
    I64(&'a [usize], &'a [i64]),
}

pub struct Graph {
    session: Session,
    name: String,
}

pub struct Outputs<'a> {
    values: SessionOutputs<'a>,
    name: &'a str,
}

impl Graph {
    pub fn open(runtime: &Runtime, path: &Path, options: GraphOptions) -> Result<Graph> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let wrong = |error: String| {
            Error::unavailable(format!("the model {} cannot be opened: {error}", path.display()))
                .hint("check the file, or remove its folder and fetch it again")
        };
        if !path.is_file() {
            return Err(wrong("no such file".to_owned()));
        }
        let session = open_session(runtime, path, options).map_err(wrong)?;
        Ok(Graph { session, name })
    }

    pub fn inputs(&self) -> Vec<String> {
        self.session.inputs().iter().map(|input| input.name().to_owned()).collect()
    }

    pub fn run(&mut self, inputs: &[(&'static str, View<'_>)]) -> Result<Outputs<'_>> {
        let failed = |error: ort::Error| Error::internal(format!("the model {} failed", self.name)).cause(error);
        let mut values: Vec<(&'static str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, view) in inputs {
            let value = match view {
                View::F32(shape, data) => TensorRef::from_array_view((*shape, *data)).map_err(failed)?.into(),
                View::I64(shape, data) => TensorRef::from_array_view((*shape, *data)).map_err(failed)?.into(),
            };
            values.push((name, value));
        }
        let name = &self.name;
        let values = self
            .session
            .run(values)
            .map_err(|error| Error::internal(format!("the model {name} failed")).cause(error))?;
        Ok(Outputs { values, name })
    }
}

/// ort's builder errors carry the builder itself and cannot leave this thread: their text is what we keep.
fn open_session(runtime: &Runtime, path: &Path, options: GraphOptions) -> Result<Session, String> {
    macro_rules! text {
        ($step:expr) => {
            $step.map_err(|error| error.to_string())?
        };
    }
    let builder = text!(Session::builder(runtime.environment()));
    let builder = text!(builder.with_optimization_level(GraphOptimizationLevel::All));
    let builder = text!(builder.with_intra_threads(options.threads));
    let builder = text!(builder.with_inter_threads(1));
    // A spinning pool would burn a core while nobody speaks.
    let mut builder = text!(builder.with_intra_op_spinning(false));
    builder.commit_from_file(path).map_err(|error| error.to_string())
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
