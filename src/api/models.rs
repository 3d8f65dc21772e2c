//! Models in memory, over HTTP: taking one out by hand. What is loaded stands in `/api/health`.

use hyper::StatusCode;

use crate::api::{
    call::{Call, json},
    error::Reply,
    wire::ModelUnloaded,
};

/// Take a model out of memory
///
/// Answers once its memory is back; `busy` while somebody uses it. The next job that needs it loads it again.
#[utoipa::path(post, path = "/api/models/{model}/unload", tag = "information",
    params(("model" = String, Path, description = "Its name, as in `/api/health`")),
    responses((status = 200, description = "It is out", body = ModelUnloaded)),
)]
pub(crate) async fn unload(call: Call) -> Reply {
    let model = call.param("model")?.to_owned();
    call.context().registry.unload(&model).await?;
    Ok(json(StatusCode::OK, &ModelUnloaded { model, state: "unloaded" }))
}
