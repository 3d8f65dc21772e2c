//! Messages to text: what a chatter is asked and what it answers. The models that do it stand below.

mod ask;

pub use ask::{Chat, ChatAsk, Chatter, End, Message, Role, Said, Sampling, TextStep, Usage};
