//! ONNX Runtime, opened at run time: the only module that names `ort`.
//!
//! One library a process, chosen by path, so that one binary serves CPU, CUDA and Jetson builds of it. Never a
//! silent second best: what was asked for runs, or an error says what is missing. Knows no task and no model.

mod driver;
mod failure;
mod graph;
mod library;
pub mod onnx;
mod plan;
mod proof;
pub mod protobuf;
pub mod provider;
mod session;
mod tensor;
mod trial;
mod value;
mod version;

pub use failure::is_out_of_memory;
#[cfg(any(test, feature = "test-engine"))]
pub(crate) use failure::{open_error, run_error};
pub use graph::{Graph, GraphOptions, Outputs, View};
#[cfg(test)]
pub(crate) use library::for_tests;
pub use library::{Runtime, candidates, find};
pub use plan::open_plan;
pub use provider::{Provider, ProviderOptions};
pub use tensor::{ElementType, Signature, TensorSpec};
pub use trial::{Answers, trial};
pub use value::{Element, Port, Tensor, Wanted};
pub use version::Version;
