//! Photos over HTTP: checked as far as can be without decoding them, then handed on.

use bytes::Bytes;

use crate::{
    api::{
        body,
        call::{Call, not_found},
        error::Reply,
        wire::{FrameAnswer, FrameB64, FrameForm, decode_base64},
    },
    base::Error,
    flow::{SessionId, Task},
};

/// Describe a photo
#[utoipa::path(post, path = "/vision/frame", tag = "vision",
    params(("wait" = Option<bool>, Query, description = "`false`: 202 with `frame_id` at once, the result as an event")),
    request_body(content = FrameForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "What it shows", body = FrameAnswer)),
)]
pub(crate) async fn frame(mut call: Call) -> Reply {
    let mut form = body::form(&mut call).await?;
    let photo = form.take_file()?;
    form.get("session_id").map(SessionId::parse).transpose()?;
    look(&call, photo)
}

/// Describe a photo sent in JSON
#[utoipa::path(post, path = "/vision/frame_b64", tag = "vision",
    params(("wait" = Option<bool>, Query, description = "`false`: 202 with `frame_id` at once, the result as an event")),
    request_body = FrameB64,
    responses((status = 200, description = "What it shows", body = FrameAnswer)),
)]
pub(crate) async fn frame_b64(mut call: Call) -> Reply {
    let frame: FrameB64 = body::json(&mut call).await?;
    frame.session_id.as_deref().map(SessionId::parse).transpose()?;
    let photo = decode_base64(&frame.image_b64)?;
    look(&call, photo.into())
}

/// The result of a photo sent with `wait=false`
#[utoipa::path(get, path = "/vision/frames/{id}", tag = "vision",
    params(("id" = String, Path, description = "The `frame_id`")),
    responses((status = 200, description = "What it shows", body = FrameAnswer)),
)]
pub(crate) async fn frame_result(call: Call) -> Reply {
    Err(not_found(format_args!("frame {}", call.param("id")?)))
}

fn look(call: &Call, photo: Bytes) -> Reply {
    let context = call.context();
    context.media.photo_info(&photo)?;
    for task in [Task::Describe, Task::Detect, Task::Read] {
        context.registry.installed(task)?;
    }
    Err(Error::unavailable("photos are not looked at yet").hint("a later version does").into())
}
