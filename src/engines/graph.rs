//! One graph as it is, without a before and an after: `vigia bench load` measures with it how fast weights are there and
//! how truly they are gone. No task is served by it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::{Cancel, Engine, EngineSpec, Spec},
    runtime::{Graph, GraphOptions, Runtime, View},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphSpec {
    pub graph: PathBuf,
    /// ONNX Runtime.
    pub library: PathBuf,
    pub options: GraphOptions,
}

/// Every value of the graph's one input, which is a row of floats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphAsk {
    pub row: Vec<f32>,
}

pub struct PlainGraph {
    graph: Graph,
    input: String,
    output: String,
}

impl Spec for GraphSpec {
    type Engine = PlainGraph;

    fn build(&self) -> Result<PlainGraph> {
        let graph = Graph::open(&Runtime::open(&self.library)?, &self.graph, &self.options)?;
        let (inputs, outputs) = (graph.input_ports()?, graph.output_ports()?);
        match (&inputs[..], &outputs[..]) {
            ([input], [output]) => Ok(PlainGraph { input: input.name.clone(), output: output.name.clone(), graph }),
            _ => Err(Error::invalid(format!("{} has not one input and one output", self.graph.display()))),
        }
    }
}

impl From<GraphSpec> for EngineSpec {
    fn from(spec: GraphSpec) -> EngineSpec {
        EngineSpec::Graph(spec)
    }
}

impl Engine for PlainGraph {
    type Ask = GraphAsk;
    type Progress = ();
    type Answer = Vec<f32>;

    fn answer(&mut self, ask: &GraphAsk, _: &mut dyn FnMut(()), _: &Cancel) -> Result<Vec<f32>> {
        let shape = [1, ask.row.len()];
        let outputs = self.graph.run(&[(&self.input, View::F32(&shape, &ask.row))])?;
        Ok(outputs.f32(&self.output)?.to_vec())
    }
}
