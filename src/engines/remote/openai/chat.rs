//! `/v1/chat/completions` for chatting and, with pictures as data URLs, for describing. Asks for a stream, and takes a
//! whole answer from servers that give no streams.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel, ChatAsk, Chatter, DescribeAsk, Describer, End, Message, Role, Said, Sampling, TextStep, Usage,
        remote::{
            link::{Answer, Link, Request},
            png::png,
            sse::Events,
            trouble::Trouble,
        },
    },
};

const PATH: &str = "/v1/chat/completions";

pub(crate) struct OpenAiChat {
    link: Link,
    model: String,
}

impl OpenAiChat {
    pub(crate) fn new(link: Link, model: &str) -> OpenAiChat {
        OpenAiChat { link, model: model.to_owned() }
    }

    fn complete(
        &self,
        messages: &Value,
        sampling: &Sampling,
        schema: Option<&str>,
        step: &mut dyn FnMut(TextStep),
        cancel: &Cancel,
    ) -> Result<Said> {
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "temperature": decimal(sampling.temperature),
            "top_p": decimal(sampling.top_p),
            "max_tokens": sampling.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if !sampling.stop.is_empty() {
            body["stop"] = json!(sampling.stop);
        }
        if let Some(seed) = sampling.seed {
            body["seed"] = json!(seed);
        }
        if let Some(schema) = schema {
            let schema: Value = serde_json::from_str(schema)
                .map_err(|error| Error::invalid("the schema of the answer is not JSON").cause(error))?;
            body["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
        }
        let said = self.link.ask(&Request::json(PATH, &body), cancel, |answer| match answer.kind() {
            "text/event-stream" => streamed(answer, step),
            _ => whole(answer, step),
        })?;
        let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&said.text).is_ok();
        if schema.is_some() && said.end == End::Stop && !is_json() {
            let name = &self.link.server.name;
            let message = format!("the remote {name} was asked for JSON and answers with something else");
            return Err(Error::new(Kind::Unsupported, message)
                .hint(format!("choose a server or a model that knows response_format for {}", self.model)));
        }
        Ok(said)
    }
}

impl Chatter for OpenAiChat {
    fn chat(&mut self, ask: &ChatAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        let messages =
            ask.messages.iter().map(|Message { role, text }| json!({"role": role, "content": text})).collect();
        self.complete(&messages, &ask.sampling, ask.schema.as_deref(), step, cancel)
    }
}

impl Describer for OpenAiChat {
    fn describe(&mut self, ask: &DescribeAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        let mut parts = Vec::new();
        for image in &ask.images {
            let png = png(image).map_err(|error| Error::internal("a photo could not be packed").cause(error))?;
            let url = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png));
            parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
        }
        parts.push(json!({"type": "text", "text": ask.prompt}));
        let mut messages = Vec::new();
        if let Some(system) = &ask.system {
            messages.push(json!({"role": Role::System, "content": system}));
        }
        messages.push(json!({"role": Role::User, "content": parts}));
        self.complete(&Value::Array(messages), &ask.sampling, ask.schema.as_deref(), step, cancel)
    }
}

/// 0.7 as people write it, not as the nearest of the small numbers reads.
fn decimal(number: f32) -> f64 {
    (f64::from(number) * 1000.0).round() / 1000.0
}

/// A whole answer, or a part of one. Servers differ in what they leave out.
#[derive(Deserialize)]
struct Completion {
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "message")]
    delta: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// What was said so far.
#[derive(Default)]
struct Saying {
    text: String,
    end: Option<End>,
    usage: Option<Usage>,
}

impl Saying {
    fn take(
        &mut self,
        completion: Completion,
        answer: &mut Answer<'_>,
        step: &mut dyn FnMut(TextStep),
    ) -> Result<(), Trouble> {
        if let Some(error) = completion.error.filter(|error| !error.is_null()) {
            return Err(answer.server.complained(&error));
        }
        if let Some(usage) = completion.usage {
            self.usage = Some(Usage { prompt_tokens: usage.prompt_tokens, answer_tokens: usage.completion_tokens });
        }
        let Some(choice) = completion.choices.into_iter().flatten().next() else { return Ok(()) };
        if let Some(text) = choice.delta.and_then(|it| it.content).filter(|text| !text.is_empty()) {
            answer.deliver();
            self.text.push_str(&text);
            step(TextStep { text });
        }
        if let Some(reason) = choice.finish_reason {
            self.end = Some(if reason == "length" { End::Length } else { End::Stop });
        }
        Ok(())
    }

    fn finish(self, answer: &Answer<'_>) -> Result<Said, Trouble> {
        let Saying { text, end, usage } = self;
        let end = end.ok_or_else(|| answer.server.cut(std::io::ErrorKind::UnexpectedEof.into()))?;
        Ok(Said { text, end, usage })
    }
}

fn streamed(answer: &mut Answer<'_>, step: &mut dyn FnMut(TextStep)) -> Result<Said, Trouble> {
    let mut events = Events::default();
    let mut saying = Saying::default();
    while let Some(data) = events.next(answer)? {
        if data == "[DONE]" {
            break;
        }
        let completion = serde_json::from_str(&data).map_err(|error| answer.not_json(error))?;
        saying.take(completion, answer, step)?;
    }
    saying.finish(answer)
}

fn whole(answer: &mut Answer<'_>, step: &mut dyn FnMut(TextStep)) -> Result<Said, Trouble> {
    let completion: Completion = answer.json()?;
    let mut saying = Saying::default();
    saying.take(completion, answer, step)?;
    if saying.end.is_none() {
        return Err(Trouble::lasting(answer.server.strange("answers without a choice that has an end")));
    }
    saying.finish(answer)
}
