//! The description of the API for programs (`/openapi.json`, OpenAPI 3.1) and for people (`/docs`, Swagger UI out of
//! the binary). Written from the handlers and the wire types; a test holds it to the table of routes.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use serde_json::json;
use utoipa::{
    OpenApi,
    openapi::{
        ContentBuilder, HttpMethod, Ref, RefOr, Response, ResponseBuilder, SecurityRequirement,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::{
    api::{
        call::{Call, not_found, typed},
        error::Reply,
        ui, wire,
    },
    base::Error,
};

/// Swagger UI sets styles on its elements, hence `unsafe-inline` for styles alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Vigía",
        description = "What comes in from glasses and cameras becomes text, warnings, speech and pictures, on this box.\n\n\
            Errors are `{\"error\":{\"code\",\"message\",\"hint\",\"request_id\"},\"detail\"}`; the hint says what to do. \
            Times end in `_at` (an instant, RFC 3339 UTC) or are seconds from the start of the session. \
            Fields are added, never renamed or removed."
    ),
    tags(
        (name = "information", description = "What this box is and how it is"),
        (name = "streams", description = "WebSockets: audio in, events out"),
        (name = "sessions", description = "What was said"),
        (name = "speech", description = "Text from audio, audio from text"),
        (name = "vision", description = "Photos"),
        (name = "images", description = "Pictures from text"),
    ),
    paths(
        super::info::about, super::info::healthz, super::info::readyz, super::info::health, super::info::capabilities,
        super::info::metrics, super::models::unload, openapi_json, page, file, super::ui::page,
        audio, super::events_ws::open,
        super::sessions::list, super::sessions::one, super::sessions::delete, super::sessions::events,
        super::sessions::transcript, super::sessions::analyze, super::sessions::transcribe,
        super::stt::stt, super::tts::tts, super::speech::voices, super::speech::image, super::speech::job,
        super::vision::frame, super::vision::frame_b64, super::vision::frame_result,
    ),
    components(schemas(wire::ErrorBody)),
)]
struct Description;

static DESCRIPTION: LazyLock<Bytes> = LazyLock::new(|| {
    // Maps with text for keys, so writing cannot fail; an empty body would be seen by the test.
    serde_json::to_vec(&describe()).unwrap_or_default().into()
});

/// Every error that any route may answer, by the name of its component: status, what it means, an example.
const ERRORS: &[(&str, &str, &str, &str, &str)] = &[
    ("Invalid", "400", "invalid", "The request makes no sense", "limit must be 1 to 500"),
    ("Unauthorized", "401", "unauthorized", "A key is needed, or this one is not known", "this needs a key"),
    ("NotFound", "404", "not_found", "There is no such thing", "session 7 does not exist"),
    ("SlowBody", "504", "timeout", "The body comes too slowly", "the body of the request comes too slowly"),
    ("TooLarge", "413", "too_large", "The body, or the photo, is over the limit", "the body is larger than 32 MiB"),
    ("Unsupported", "415", "unsupported", "A kind of data that is not understood", "this is no JPEG, PNG or WebP"),
    (
        "Internal",
        "500",
        "internal",
        "A fault in the server; the log has it under the request's id",
        "a fault in the server",
    ),
    (
        "Unavailable",
        "503",
        "unavailable",
        "Nobody can do this now: `unavailable`, `busy` (with `Retry-After`) or `over_budget`",
        "no model is set for the task speak",
    ),
    ("Timeout", "504", "timeout", "The work took too long and was cancelled", "the job took longer than 120 s"),
];

/// Which of them a route may answer.
fn errors(path: &str, method: &HttpMethod, open: bool, takes_body: bool) -> Vec<&'static str> {
    let mut errors = vec!["Internal"];
    if !open {
        errors.push("Unauthorized");
        errors.push("Unavailable");
    }
    if path.contains('{') {
        errors.push("NotFound");
    }
    let has_engine = path.starts_with("/api/stt") || path.starts_with("/api/tts") || path.starts_with("/api/image");
    if takes_body || *method != HttpMethod::Get || path.starts_with("/ws") || path.starts_with("/sessions") {
        errors.push("Invalid");
    }
    if takes_body {
        errors.extend(["SlowBody", "TooLarge", "Unsupported"]);
    }
    if takes_body && (has_engine || path.starts_with("/vision")) {
        errors.push("Timeout");
    }
    errors
}

fn describe() -> utoipa::openapi::OpenApi {
    let mut description = Description::openapi();
    let components = description.components.get_or_insert_default();
    for (name, _, code, meaning, example) in ERRORS {
        components.responses.insert((*name).to_owned(), error_response(code, meaning, example).into());
    }
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "A key made with `vigia keys add NAME`. On a WebSocket `?token=KEY` does as well. Without any key on the box, \
         none is needed.",
    ));
    components.add_security_scheme("key", SecurityScheme::Http(bearer.build()));
    description.security = Some(vec![SecurityRequirement::new::<_, _, &str>("key", [])]);

    for (path, item) in &mut description.paths.paths {
        let operations = [
            (HttpMethod::Get, &mut item.get),
            (HttpMethod::Post, &mut item.post),
            (HttpMethod::Delete, &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                complete(path, &method, operation);
            }
        }
    }
    description
}

fn complete(path: &str, method: &HttpMethod, operation: &mut Operation) {
    // The names of handlers are not unique across modules.
    let verb = match method {
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        _ => "get",
    };
    operation.operation_id = Some(format!("{verb}{}", path.replace(|c: char| !c.is_ascii_alphanumeric(), "_")));
    let open = path == "/healthz" || path.starts_with("/docs/");
    if open {
        operation.security = Some(Vec::new());
    }
    for name in errors(path, method, open, operation.request_body.is_some()) {
        let status = ERRORS.iter().find(|it| it.0 == name).map_or("default", |it| it.1);
        let response = RefOr::Ref(Ref::from_response_name(name));
        operation.responses.responses.entry(status.to_owned()).or_insert(response);
    }
}

fn error_response(code: &str, meaning: &str, example: &str) -> Response {
    let body = json!({
        "error": {"code": code, "message": example, "request_id": "01JD8Z0V6S8X2Q3W4E5R6T7Y8U"},
        "detail": example,
    });
    let schema = Ref::from_schema_name("ErrorBody");
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(body)).build();
    ResponseBuilder::new().description(meaning).content("application/json", content).build()
}

/// This description
#[utoipa::path(get, path = "/openapi.json", tag = "information", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub(crate) async fn openapi_json(_: Call) -> Reply {
    Ok(typed(StatusCode::OK, "application/json", DESCRIPTION.clone()))
}

/// This description, for people
#[utoipa::path(get, path = "/docs", tag = "information", responses(
    (status = 200, description = "Swagger UI", body = String, content_type = "text/html"),
))]
pub(crate) async fn page(_: Call) -> Reply {
    Ok(ui::html(include_str!("ui/docs.html"), POLICY))
}

/// The files that `/docs` is made of
///
/// Open to all: they are the same in every copy of the program.
#[utoipa::path(get, path = "/docs/{file}", tag = "information",
    params(("file" = String, Path, description = "A name", example = "swagger-ui.css")),
    responses((status = 200, description = "The file", body = String, content_type = "text/javascript")),
)]
pub(crate) async fn file(call: Call) -> Reply {
    let name = call.param("file")?;
    let (content_type, bytes) = match name {
        "start.js" => ("text/javascript; charset=utf-8", include_bytes!("ui/docs.js").as_slice().into()),
        "swagger-ui-bundle.js" => ("text/javascript; charset=utf-8", vendored(name)?),
        "swagger-ui.css" => ("text/css; charset=utf-8", vendored(name)?),
        _ => return Err(not_found(format_args!("/docs/{name}"))),
    };
    let mut response = typed(StatusCode::OK, content_type, bytes);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn vendored(name: &str) -> Result<Bytes, Error> {
    let config = Arc::new(utoipa_swagger_ui::Config::from("/openapi.json"));
    match utoipa_swagger_ui::serve(name, config) {
        Ok(Some(file)) => Ok(Bytes::from(file.bytes.into_owned())),
        Ok(None) => Err(Error::internal(format!("{name} is missing in this build"))),
        Err(error) => Err(Error::internal(format!("{name} cannot be read")).cause(error.to_string())),
    }
}

/// Live audio (WebSocket)
///
/// The client sends, as JSON in text messages unless said otherwise:
///
/// | message | meaning |
/// |---|---|
/// | `{"type":"config","session_id","sample_rate":16000,"encoding":"pcm16","language":"es"}` | first. Optional: `channels` 1, `partials` true, `diarize` true (said in `unavailable` only where it was asked for), `analyze` true, `words` false, `prompt`, `task`, `device`, `resume` false, `last_seq`. Encodings: `pcm16`, `pcm_f32`, `mulaw`, `alaw`, `opus` (one packet a message), and `wav`, `ogg`, `webm`, `flac`, `mp3`, `aac`, `mp4` as a byte stream. 8000 to 48000 Hz. |
/// | binary | audio |
/// | `{"type":"audio_chunk","chunk_id":1,"data_b64":"…"}` | audio in base64 |
/// | `{"type":"end_of_stream"}` | the take is over: its final result follows; more audio begins a new one |
/// | `{"type":"cancel"}` | drop this take |
///
/// The server sends, each with `session_id` and a gap-free `seq` that goes on over a session's connections: `config_ack`
/// (`resumed`, `take_open`, `received_samples`, `limits`, and `unavailable` tasks), `ack` (`received_samples` at 16 kHz that
/// are durable, and the newest `chunk_id` among them), `speech` (`state`, `at`), `partial_result` (`text`, `committed`, `segment`,
/// `start`), `segment_result` (`segment`), `final_result` (`text`, `language`, `duration`, `segments`, and
/// `warnings` as of `/api/stt` where there are any), `session_analysis`, and `error` (`code`, `message`, `hint`, `fatal`).
///
/// A segment's `speaker` is `S1`, `S2` … or the name of a known voice, the same for all takes of a session; null where
/// nobody can say. What was said in a segment is never said again, but the final result of a take may have other speakers,
/// and segments in parts where the speaker changes: the first part keeps the `id`, the others have new ones.
///
/// Going on after a cut line or a restart of the server, within `limits.resume_secs`: connect with the same `session_id`,
/// `"resume":true`, and the `last_seq` that came (or none, to be told every result of the session again). If the answer
/// says `take_open`, send on from sample `received_samples` of the session (containers begin anew), and
/// `end_of_stream` again if that was sent; else the take is being finished or is over, and its final result comes. Chunks
/// with a `chunk_id` that is not above the newest received of the take are passed over. `"resumed":false`: the session
/// was over or unknown, and a new take begins. A connection without `resume` to a session whose take is open waits until
/// that is finished. The newer of two clients wins; the older is closed with 1008. A client that closes with 1000, or
/// without a code, is done: its take is finished at once.
///
/// Closing codes: 1000 done, 1001 going away, 1008 access, 1009 message too large, 1011 internal, 1012 restarting, 1013 try
/// again later.
#[utoipa::path(get, path = "/ws/audio", tag = "streams",
    params(("token" = Option<String>, Query, description = "A key, for clients that cannot set headers")),
    responses((status = 101, description = "The WebSocket is open")),
)]
#[expect(dead_code, reason = "only its description is used: the handler is in audio_ws.rs")]
fn audio() {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::path::ROUTES;

    fn description() -> serde_json::Value {
        serde_json::from_slice(&DESCRIPTION).unwrap()
    }

    #[test]
    fn the_description_and_the_routes_are_the_same() {
        let description = description();
        assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
        let paths = description["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let routes: BTreeSet<(String, String)> =
            ROUTES.iter().map(|route| (route.path.to_owned(), route.method.to_string())).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn every_operation_says_what_it_does_and_how_it_fails() {
        let description = description();
        let mut ids = BTreeSet::new();
        for (path, item) in description["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let at = format!("{method} {path}");
                assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{at}");
                assert!(operation["summary"].as_str().is_some_and(|it| !it.is_empty()), "{at}");
                let responses = operation["responses"].as_object().unwrap();
                assert!(responses.contains_key("500"), "{at}");
                assert_eq!(responses.contains_key("401"), operation["security"] != json!([]), "{at}");
                assert_eq!(responses.contains_key("413"), operation.get("requestBody").is_some(), "{at}");
                for response in responses.values() {
                    if let Some(reference) = response["$ref"].as_str() {
                        assert!(description.pointer(&reference[1..]).is_some(), "{at}: {reference}");
                    }
                }
            }
        }
    }
}
