//! One request on its way to its handler, and the shapes that answers take.

use std::{convert::Infallible, io, sync::Arc};

use crate::{
    api::{Context, body::BodyMemory, error::Refusal, listen::App},
    base::{Error, Kind, Result},
    flow::SessionId,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use serde::Serialize;

/// Whole or streamed; a stream that fails ends the connection, which tells the client that it is cut.
pub(crate) type Body = BoxBody<Bytes, io::Error>;
pub(crate) type Response = hyper::Response<Body>;

/// The named parts of a path, decoded.
pub(crate) type Params = Vec<(String, String)>;

/// A request with what its route found out. Lives until the answer's head is made.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    /// The pattern, for metrics.
    pub(crate) route: &'static str,
    pub(crate) request: Request<()>,
    /// Until `body` has read it.
    pub(crate) body: Option<Incoming>,
    pub(crate) body_memory: Arc<BodyMemory>,
    pub(crate) params: Params,
}

impl Call {
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.app.context
    }

    /// A part of the path that its route names, decoded.
    pub(crate) fn param(&self, name: &str) -> Result<&str> {
        let found = self.params.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| Error::internal(format!("route without {{{name}}}")))
    }

    /// The `{id}` of a session's route.
    pub(crate) fn session_id(&self) -> Result<SessionId> {
        SessionId::parse(self.param("id")?)
    }

    pub(crate) fn query(&self) -> Query {
        Query::parse(self.request.uri().query().unwrap_or_default())
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// A person's browser, not a program.
    pub(crate) fn wants_html(&self) -> bool {
        self.header(header::ACCEPT).is_some_and(|accept| accept.contains("text/html"))
    }
}

/// The parameters after `?`; a name given twice counts once, the first time.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// Empty is absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Error::invalid(format!("{name} must be a whole number, not `{text}`")))?;
        Ok(Some(number))
    }

    pub(crate) fn session(&self, name: &str) -> Result<Option<SessionId>> {
        self.get(name).map(SessionId::parse).transpose()
    }
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub(crate) fn typed(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    typed(status, "text/plain; charset=utf-8", text)
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(status, "application/json", bytes),
        // Only maps with keys that are no text fail, and the wire has none.
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write JSON: {error}")),
    }
}

pub(crate) fn found(location: &'static str) -> Response {
    let mut response = text(StatusCode::FOUND, location);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(location));
    response
}

pub(crate) fn not_found(what: impl std::fmt::Display) -> Refusal {
    Error::new(Kind::NotFound, format!("{what} does not exist")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_checked() {
        let query = Query::parse("device=gafas%20de%20Ana&limit=7&before=&n=x&device=other");
        assert_eq!(query.get("device"), Some("gafas de Ana"));
        assert_eq!(query.number("limit").unwrap(), Some(7));
        assert_eq!(query.get("before"), None);
        assert!(query.number("n").unwrap_err().message().contains("`x`"));
        assert!(Query::parse("session=a%2Fb").session("session").is_err());
    }
}
