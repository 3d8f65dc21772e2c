//! The engines against a server that does what servers should not.

mod kserve;
mod openai;
mod trouble;

use serde_json::json;

use crate::{
    base::Result,
    engines::{
        Cancel, ChatAsk, Message, Role, Said, Sampling,
        remote::{Remote, fake::Act},
    },
};

pub(super) fn chat_ask() -> ChatAsk {
    let message = |role, text: &str| Message { role, text: text.to_owned() };
    let messages = vec![message(Role::System, "be short"), message(Role::User, "hola")];
    ChatAsk { messages, sampling: Sampling::default(), schema: None }
}

/// What was said, and in which parts it came.
pub(super) fn chat(remote: &Remote) -> (Result<Said>, Vec<String>) {
    let mut parts = Vec::new();
    let mut chatter = remote.chatter("qwen").unwrap();
    let said = chatter.chat(&chat_ask(), &mut |step| parts.push(step.text), &Cancel::default());
    (said, parts)
}

pub(super) fn delta(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}))
}

const END: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

pub(super) fn stream(text: &str) -> Act {
    Act::reply(200, "text/event-stream", text)
}

pub(super) fn hola() -> Act {
    stream(&format!("{}{}{END}", delta("ho"), delta("la")))
}
