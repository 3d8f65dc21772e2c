//! Pictures to text: what a describer is asked. The models that do it stand below.

mod ask;

pub use ask::{Describe, DescribeAsk, Describer};
