//! Voices, and pictures made on demand: what is asked is checked here in full, so that a client learns of a mistake even
//! while the engine is missing.

use hyper::StatusCode;

use crate::{
    api::{
        body,
        call::{Call, json, not_found},
        error::Reply,
        wire::{ImageRequest, JobInfo, VoiceList},
    },
    base::{Error, Result},
    flow::Task,
};

const MAX_PROMPT_CHARS: usize = 2000;
const SIDES: std::ops::RangeInclusive<u32> = 64..=2048;
const STEPS: std::ops::RangeInclusive<u32> = 1..=100;

/// The voices that can be asked for
#[utoipa::path(get, path = "/api/tts/voices", tag = "speech",
    responses((status = 200, description = "Empty while no voice is installed", body = VoiceList)),
)]
pub(crate) async fn voices(_: Call) -> Reply {
    Ok(json(StatusCode::OK, &VoiceList { voices: Vec::new() }))
}

/// Draw a picture
#[utoipa::path(post, path = "/api/image", tag = "images", request_body = ImageRequest,
    responses((status = 200, description = "The picture; `X-Vigia-Seed` says its seed", content((Vec<u8> = "image/png")))),
)]
pub(crate) async fn image(mut call: Call) -> Reply {
    let request: ImageRequest = body::json(&mut call).await?;
    if request.prompt.trim().is_empty() {
        return Err(Error::invalid("prompt is empty").into());
    }
    for (name, text) in [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)] {
        if text.chars().count() > MAX_PROMPT_CHARS {
            return Err(Error::invalid(format!("{name} has more than {MAX_PROMPT_CHARS} characters")).into());
        }
    }
    for (name, side) in [("width", request.width), ("height", request.height)] {
        if !side.is_multiple_of(8) || !SIDES.contains(&side) {
            let (min, max) = (SIDES.start(), SIDES.end());
            return Err(Error::invalid(format!("{name} must be a multiple of 8 from {min} to {max}")).into());
        }
    }
    if !STEPS.contains(&request.num_inference_steps) {
        return Err(Error::invalid("num_inference_steps must be 1 to 100").into());
    }
    call.context().registry.installed(Task::Paint)?;
    Err(Error::unavailable("nothing is drawn yet").hint("a later version does").into())
}

/// How far a long job is
#[utoipa::path(get, path = "/api/jobs/{id}", tag = "images",
    params(("id" = String, Path, description = "The job")),
    responses((status = 200, description = "Its progress", body = JobInfo)),
)]
pub(crate) async fn job(call: Call) -> Reply {
    Err(not_found(format_args!("job {}", call.param("id")?)))
}

pub(crate) fn language(code: &str) -> Result<()> {
    let known = code == "auto" || (2..=3).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase());
    if known {
        return Ok(());
    }
    Err(Error::invalid(format!("`{code}` is no language")).hint("a code such as `es` or `en`, or `auto`"))
}
