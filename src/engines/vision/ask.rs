//! What a describer is asked; it answers as a chatter does. Plain data: it crosses to the process of the engine.

use serde::{Deserialize, Serialize};

use crate::{
    base::Result,
    engines::{Cancel, Engine, Said, Sampling, TextStep},
    flow::Image,
};

/// Says what is to be seen. Looks at `cancel` and tells `step` after every token.
pub trait Describer: Send {
    fn describe(&mut self, ask: &DescribeAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said>;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DescribeAsk {
    /// In the order in which the prompt speaks of them.
    pub images: Vec<Image>,
    pub prompt: String,
    /// How to answer; None: as the model does by itself.
    pub system: Option<String>,
    pub sampling: Sampling,
    /// As for a chatter.
    pub schema: Option<String>,
}

/// Any describer, as a host runs it.
pub struct Describe(pub Box<dyn Describer>);

impl Engine for Describe {
    type Ask = DescribeAsk;
    type Progress = TextStep;
    type Answer = Said;

    fn answer(&mut self, ask: &DescribeAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        self.0.describe(ask, step, cancel)
    }
}
