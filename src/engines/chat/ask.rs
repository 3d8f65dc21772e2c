//! What a chatter is asked and what it answers. Plain data: it crosses to the process of the engine.

use serde::{Deserialize, Serialize};

use crate::{
    base::Result,
    engines::{Cancel, Engine},
};

/// Goes on with a conversation. Looks at `cancel` and tells `step` after every token.
pub trait Chatter: Send {
    fn chat(&mut self, ask: &ChatAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said>;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatAsk {
    pub messages: Vec<Message>,
    pub sampling: Sampling,
    /// A JSON Schema that the answer must keep to, as text: JSON has no place in what crosses to the engine.
    pub schema: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// How tokens are chosen, and when to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0: always the likeliest.
    pub temperature: f32,
    pub top_p: f32,
    pub max_tokens: u32,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// The same seed gives the same text.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.7, top_p: 0.8, max_tokens: 1024, stop: Vec::new(), seed: None }
    }
}

/// The next part of the answer's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextStep {
    pub text: String,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    pub text: String,
    pub end: End,
    /// None where nobody counted.
    pub usage: Option<Usage>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, or at one of the stop texts.
    Stop,
    /// At `max_tokens`, or where the model can hold no more.
    Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub answer_tokens: u64,
}

/// Any chatter, as a host runs it.
pub struct Chat(pub Box<dyn Chatter>);

impl Engine for Chat {
    type Ask = ChatAsk;
    type Progress = TextStep;
    type Answer = Said;

    fn answer(&mut self, ask: &ChatAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        self.0.chat(ask, step, cancel)
    }
}
