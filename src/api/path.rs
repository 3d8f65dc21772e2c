//! The routes, in one table, and the way of every request: find its route, let it in, answer it, count it. A panic
//! in a handler costs that one request.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::{FutureExt as _, future::BoxFuture};
use hyper::{
    Method, Request,
    body::Incoming,
    header::{HeaderName, HeaderValue},
};
use matchit::Router;
use percent_encoding::percent_decode_str;

use crate::{
    api::{
        audio_ws,
        auth::{self, Access},
        body::BodyMemory,
        call::{Call, Params, Response},
        docs,
        error::{Refusal, Reply},
        events_ws, info,
        listen::App,
        models, sessions, speech, stt, tts, ui, vision,
    },
    base::{Error, Kind},
    telemetry::{emit, events::HttpAnswered},
};

pub(crate) struct Route {
    pub(crate) method: Method,
    /// As `matchit` and OpenAPI write it.
    pub(crate) path: &'static str,
    access: Access,
    run: fn(Call) -> BoxFuture<'static, Reply>,
}

macro_rules! routes {
    ($($method:ident $path:literal $access:ident $handler:path;)*) => {
        pub(crate) static ROUTES: &[Route] = &[$(Route {
            method: Method::$method,
            path: $path,
            access: Access::$access,
            run: |call| Box::pin($handler(call)),
        }),*];
    };
}

routes! {
    GET    "/"                                     Key  info::about;
    GET    "/healthz"                              Open info::healthz;
    GET    "/readyz"                               Key  info::readyz;
    GET    "/api/health"                           Key  info::health;
    GET    "/api/system/capabilities"              Key  info::capabilities;
    GET    "/metrics"                              Key  info::metrics;
    GET    "/openapi.json"                         Key  docs::openapi_json;
    GET    "/docs"                                 Page docs::page;
    GET    "/docs/{file}"                          Open docs::file;
    GET    "/ui"                                   Page ui::page;
    POST   "/api/models/{model}/unload"            Key  models::unload;
    POST   "/api/stt"                              Key  stt::stt;
    POST   "/api/tts"                              Key  tts::tts;
    GET    "/api/tts/voices"                       Key  speech::voices;
    POST   "/api/image"                            Key  speech::image;
    GET    "/api/jobs/{id}"                        Key  speech::job;
    POST   "/vision/frame"                         Key  vision::frame;
    POST   "/vision/frame_b64"                     Key  vision::frame_b64;
    GET    "/vision/frames/{id}"                   Key  vision::frame_result;
    GET    "/sessions"                             Key  sessions::list;
    GET    "/sessions/{id}"                        Key  sessions::one;
    DELETE "/sessions/{id}"                        Key  sessions::delete;
    GET    "/sessions/{id}/events"                 Key  sessions::events;
    GET    "/sessions/{id}/transcript.{format}"    Key  sessions::transcript;
    POST   "/sessions/{id}/analyze"                Key  sessions::analyze;
    POST   "/sessions/{id}/transcribe"             Key  sessions::transcribe;
    GET    "/ws/audio"                             Key  audio_ws::open;
    GET    "/ws/events"                            Key  events_ws::open;
}

/// `ROUTES`, ready to be searched.
pub(crate) struct Paths(Router<Vec<&'static Route>>);

impl Paths {
    pub(crate) fn new() -> Paths {
        let mut paths: Vec<(&str, Vec<&Route>)> = Vec::new();
        for route in ROUTES {
            match paths.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, routes)) => routes.push(route),
                None => paths.push((route.path, vec![route])),
            }
        }
        let mut router = Router::new();
        for (path, routes) in paths {
            // Only a table that contradicts itself fails here, and a test looks each of its paths up.
            if let Err(error) = router.insert(path, routes) {
                log::error!("route {path}: {error}");
            }
        }
        Paths(router)
    }

    fn find(&self, method: &Method, path: &str) -> Result<(&'static Route, Params), Refusal> {
        let found = self.0.at(path).map_err(|_| {
            Error::new(Kind::NotFound, "there is nothing at this path").hint("GET /docs lists every route")
        })?;
        let wanted = if *method == Method::HEAD { &Method::GET } else { method };
        let Some(route) = found.value.iter().find(|route| route.method == *wanted) else {
            return Err(Refusal::method_not_allowed(&allow(found.value)));
        };
        let mut params = Params::new();
        for (name, value) in found.params.iter() {
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| Error::invalid("the path is not UTF-8 in percent-encoding"))?;
            params.push((name.to_owned(), value.into_owned()));
        }
        Ok((route, params))
    }
}

fn allow(routes: &[&Route]) -> String {
    let mut methods = vec!["OPTIONS"];
    for route in routes {
        methods.push(route.method.as_str());
        if route.method == Method::GET {
            methods.push("HEAD");
        }
    }
    methods.join(", ")
}

pub(crate) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Response {
    let started = Instant::now();
    let id = ulid::Ulid::new().to_string();
    let method = request.method().clone();
    let (pattern, reply) = match app.paths.find(&method, request.uri().path()) {
        Ok((route, params)) => {
            let (head, body) = request.into_parts();
            let body_memory = Arc::new(BodyMemory::new(Arc::clone(&app.body_memory)));
            let request = Request::from_parts(head, ());
            let call = Call { app, route: route.path, request, body: Some(body), body_memory, params };
            (route.path, guarded(run(route, call)).await)
        }
        Err(refusal) => ("unknown", Err(refusal)),
    };
    let mut response = reply.unwrap_or_else(|refusal| refusal.respond(&id));
    // A ULID is a valid header.
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
    }
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    log::debug!(request_id = id.as_str(); "{method} {pattern}: {status} in {elapsed:?}");
    emit(HttpAnswered { method: name(&method), route: pattern, status, elapsed });
    response
}

/// A panic ends this request and nothing else. The handler owns all it works on, so nothing half-done is left to others.
async fn guarded(handler: impl Future<Output = Reply>) -> Reply {
    let done = AssertUnwindSafe(handler).catch_unwind().await;
    done.unwrap_or_else(|_| Err(Error::internal("a fault in the server").into()))
}

/// Methods that we serve, as a closed list for the metrics: a client may make up any other.
fn name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

async fn run(route: &'static Route, call: Call) -> Reply {
    if route.access == Access::Open {
        return (route.run)(call).await;
    }
    match auth::admit(call.context(), &call.request).await {
        Ok(()) => (route.run)(call).await,
        Err(error) if route.access == Access::Page && error.kind() == Kind::Unauthorized && call.wants_html() => {
            let mut response = (route.run)(call).await?;
            *response.status_mut() = Refusal::from(error).status;
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_by_its_own_path() {
        let paths = Paths::new();
        for route in ROUTES {
            let (found, _) = paths.find(&route.method, route.path).unwrap();
            assert_eq!((found.path, &found.method), (route.path, &route.method));
        }
    }

    #[test]
    fn parts_of_a_path_are_decoded() {
        let (route, params) = Paths::new().find(&Method::GET, "/sessions/a%C3%B1o%201/transcript.srt").unwrap();
        assert_eq!(route.path, "/sessions/{id}/transcript.{format}");
        assert_eq!(params, [("id".to_owned(), "año 1".to_owned()), ("format".to_owned(), "srt".to_owned())]);
        assert!(Paths::new().find(&Method::GET, "/sessions/%FF").is_err());
    }

    #[tokio::test]
    async fn a_panic_costs_its_request_alone() {
        let refusal = guarded(async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(refusal.status, 500);
    }

    #[test]
    fn only_health_and_files_of_third_parties_are_open() {
        let open: Vec<&str> = ROUTES.iter().filter(|it| it.access == Access::Open).map(|it| it.path).collect();
        assert_eq!(open, ["/healthz", "/docs/{file}"]);
    }
}
