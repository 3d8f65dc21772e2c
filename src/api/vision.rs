//! Photos over HTTP: checked as far as can be without decoding them, described, and what comes of it published.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::json;
use ulid::Ulid;

use crate::{
    api::{
        Context, body,
        call::{Call, json as answer_json, not_found},
        error::Reply,
        speech::language,
        wire::{FrameAnswer, FrameB64, FrameForm, FrameTaken, decode_base64},
    },
    base::{Error, Result},
    flow::{Draft, EventType, SessionId, Task},
    jobs::{Looking, Scene},
};

const MAX_PROMPT_CHARS: usize = 2000;
const MAX_DEVICE: usize = 128;

/// Describe a photo
#[utoipa::path(post, path = "/vision/frame", tag = "vision",
    params(("wait" = Option<bool>, Query, description = "`false`: 202 with `frame_id` at once, the result as an event")),
    request_body(content = FrameForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "What it shows", body = FrameAnswer),
        (status = 202, description = "With `wait=false`: it is looked at", body = FrameTaken),
    ),
)]
pub(crate) async fn frame(mut call: Call) -> Reply {
    let mut form = body::form(&mut call).await?;
    let photo = form.take_file()?;
    let field = |name: &str| form.get(name).map(str::to_owned);
    let asked = Asked::new(&call, [field("session_id"), field("prompt"), field("language"), field("device")])?;
    look(&call, photo, asked).await
}

/// Describe a photo sent in JSON
#[utoipa::path(post, path = "/vision/frame_b64", tag = "vision",
    params(("wait" = Option<bool>, Query, description = "`false`: 202 with `frame_id` at once, the result as an event")),
    request_body = FrameB64,
    responses(
        (status = 200, description = "What it shows", body = FrameAnswer),
        (status = 202, description = "With `wait=false`: it is looked at", body = FrameTaken),
    ),
)]
pub(crate) async fn frame_b64(mut call: Call) -> Reply {
    let frame: FrameB64 = body::json(&mut call).await?;
    let FrameB64 { session_id, image_b64, metadata: _, prompt, language, device } = frame;
    let asked = Asked::new(&call, [session_id, prompt, language, device])?;
    let photo = decode_base64(&image_b64)?;
    look(&call, photo.into(), asked).await
}

/// The result of a photo sent with `wait=false`
///
/// The last few hundred are kept until the daemon ends.
#[utoipa::path(get, path = "/vision/frames/{id}", tag = "vision",
    params(("id" = String, Path, description = "The `frame_id`")),
    responses(
        (status = 200, description = "What it shows", body = FrameAnswer),
        (status = 202, description = "It is still looked at", body = FrameTaken),
    ),
)]
pub(crate) async fn frame_result(call: Call) -> Reply {
    let id = call.param("id")?;
    let frame = call.context().frames.get(id).ok_or_else(|| not_found(format_args!("frame {id}")))?;
    match frame.outcome() {
        Some(outcome) => Ok(answer_json(StatusCode::OK, &outcome?)),
        None => Ok(taken(id)),
    }
}

fn taken(frame_id: &str) -> crate::api::call::Response {
    answer_json(StatusCode::ACCEPTED, &FrameTaken { frame_id: frame_id.to_owned(), state: "working" })
}

/// What comes with a photo, checked.
struct Asked {
    session: Option<SessionId>,
    prompt: Option<String>,
    language: String,
    device: String,
    wait: bool,
}

impl Asked {
    /// Empty is absent.
    fn new(call: &Call, texts: [Option<String>; 4]) -> Result<Asked> {
        let [session, prompt, spoken, device] = texts.map(|text| text.filter(|text| !text.trim().is_empty()));
        let session = session.as_deref().map(SessionId::parse).transpose()?;
        if prompt.as_ref().is_some_and(|prompt| prompt.chars().count() > MAX_PROMPT_CHARS) {
            return Err(Error::invalid(format!("prompt has more than {MAX_PROMPT_CHARS} characters")));
        }
        let device = device.unwrap_or_else(|| "default".to_owned());
        if device.len() > MAX_DEVICE || device.chars().any(char::is_control) {
            return Err(Error::invalid(format!("device must have at most {MAX_DEVICE} characters")));
        }
        let spoken = spoken.unwrap_or_else(|| call.context().settings.audio.language.clone());
        language(&spoken)?;
        // Nobody has said anything yet that would tell it.
        let language = if spoken == "auto" { "es".to_owned() } else { spoken };
        let wait = match call.query().get("wait") {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => return Err(Error::invalid(format!("wait must be true or false, not `{other}`"))),
        };
        Ok(Asked { session, prompt, language, device, wait })
    }
}

async fn look(call: &Call, photo: Bytes, asked: Asked) -> Reply {
    let begun = Instant::now();
    let context = Arc::clone(call.context());
    context.media.photo_info(&photo)?;
    context.registry.installed(Task::Describe)?;
    let image = context.media.photo(photo).await?;
    let (width, height) = image.original_size;
    let looking = Looking::begin(&context.queue, image, asked.prompt.as_deref(), &asked.language)?;
    let frame = Photo { id: Ulid::new().to_string(), size: [width, height], begun, asked };
    if frame.asked.wait {
        let answer = frame.answer(&context, looking.scene().await?);
        frame.publish(&context, &answer).await;
        return Ok(answer_json(StatusCode::OK, &answer));
    }
    let id = frame.id.clone();
    context.frames.begin(&id);
    // As many as the queue takes, which refuses the next one.
    tokio::spawn(async move {
        let outcome = looking.scene().await.map(|scene| frame.answer(&context, scene));
        context.frames.end(&frame.id, &outcome);
        match &outcome {
            Ok(answer) => frame.publish(&context, answer).await,
            Err(error) => log::warn!(frame = frame.id.as_str(); "a photo was not described: {}", error.full()),
        }
    });
    Ok(taken(&id))
}

/// A photo on its way.
struct Photo {
    id: String,
    size: [u32; 2],
    begun: Instant,
    asked: Asked,
}

impl Photo {
    fn answer(&self, context: &Context, scene: Scene) -> FrameAnswer {
        let Scene { description, hazards, suggestions } = scene;
        let mut unavailable = vec![Task::Detect.name(), Task::Read.name()];
        unavailable.extend(hazards.is_none().then_some("hazards"));
        unavailable.extend(suggestions.is_none().then_some("suggestions"));
        FrameAnswer {
            frame_id: self.id.clone(),
            session_id: self.asked.session.as_ref().map(ToString::to_string),
            size: self.size,
            description,
            hazards,
            suggestions,
            objects: None,
            text: None,
            language: self.asked.language.clone(),
            model: context.settings.model_for(Task::Describe).unwrap_or_default().to_owned(),
            elapsed_ms: self.begun.elapsed().as_millis() as u64,
            unavailable,
        }
    }

    /// As a `scene`, and each hazard by itself for those who only listen to these.
    async fn publish(&self, context: &Context, answer: &FrameAnswer) {
        let session = match &self.asked.session {
            // Events are numbered by session: one that does not exist numbers nothing.
            Some(id) => context.store.session(id).await.ok().flatten().map(|row| row.id),
            None => None,
        };
        let draft = |kind, data| {
            let (device, session) = (self.asked.device.as_str().into(), session.clone());
            Draft { kind, device, session, data }
        };
        let scene = serde_json::to_value(answer).unwrap_or_default();
        context.hub.publish(draft(EventType::Scene, scene)).await;
        for hazard in answer.hazards.iter().flatten() {
            let data =
                json!({ "frame_id": self.id, "what": hazard.what, "why": hazard.why, "severity": hazard.severity });
            context.hub.publish(draft(EventType::Hazard, data)).await;
        }
    }
}
