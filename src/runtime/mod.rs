//! ONNX Runtime, opened at run time: the only module that names `ort`.
//!
//! One library a process, chosen by path, so that one binary serves CPU, CUDA and Jetson builds of it. Never a
//! silent second best: what was asked for runs, or an error says what is missing. Knows no task and no model.

mod graph;
mod library;

pub use graph::{Graph, GraphOptions, Outputs, View};
pub use library::{Runtime, candidates, find};
