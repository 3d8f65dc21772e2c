//! Errors as clients see them: one table from `base::Kind` to HTTP statuses, one body for all of them.
//!
//! The cause of an error goes to the log with the request's id, never over the wire.

use std::{fmt, time::Duration};

use hyper::{
    StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use crate::{
    api::{
        call::{Response, json},
        wire,
        ws::cut,
    },
    base::{Error, Kind},
};

pub(crate) type Reply = Result<Response, Refusal>;

/// What a client that was told `busy` is asked to wait, where nobody knows better.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(2);

/// An error may quote what it was sent, and that may be megabytes.
const MAX_MESSAGE_BYTES: usize = 1000;

/// The message of an error, as long as a client needs it.
pub(crate) fn told(error: &Error) -> &str {
    cut(error.message(), MAX_MESSAGE_BYTES)
}

/// Why a request is not served.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    code: &'static str,
    error: Error,
    /// What its answer says beside the body.
    header: Option<(HeaderName, HeaderValue)>,
}

/// The one table. No `_`: a new kind must be placed here.
pub(crate) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Busy | Kind::OverBudget | Kind::Unavailable | Kind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let wait = error.retry_after_time().or((error.kind() == Kind::Busy).then_some(RETRY_AFTER));
        let header = match error.kind() {
            Kind::Unauthorized => Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            // What is left of the body will not be read, so the connection cannot be used again.
            Kind::TooLarge => Some((header::CONNECTION, HeaderValue::from_static("close"))),
            _ => wait.map(|wait| (header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64))),
        };
        Refusal { status: status(error.kind()), code: error.kind().code(), error, header }
    }
}

impl Refusal {
    pub(crate) fn method_not_allowed(allow: &str) -> Refusal {
        let header = HeaderValue::from_str(allow).ok().map(|allow| (header::ALLOW, allow));
        let error = Error::invalid(format!("this path takes {allow}")).hint("GET /docs lists every route");
        Refusal { status: StatusCode::METHOD_NOT_ALLOWED, code: "method_not_allowed", error, header }
    }

    /// The rest of the body is not waited for, so the connection cannot go on.
    pub(crate) fn slow_body() -> Refusal {
        let error = Error::new(Kind::Timeout, "the body of the request comes too slowly")
            .hint("send it again; server.request_timeout_secs is how long each part may take");
        let header = Some((header::CONNECTION, HeaderValue::from_static("close")));
        Refusal { status: StatusCode::GATEWAY_TIMEOUT, code: Kind::Timeout.code(), error, header }
    }

    pub(crate) fn respond(self, request_id: &str) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            log::error!(request_id; "{}", self.error.full());
        } else {
            log::debug!(request_id; "refused, {}: {}", self.status.as_u16(), self.error.full());
        }
        let mut response = json(self.status, &wire::ErrorBody::new(self.code, &self.error, request_id));
        response.headers_mut().extend(self.header);
        response
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

/// So that it can pass through a multipart parser and come out again.
impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_statuses_of_the_protocol() {
        for (kind, expected) in [
            (Kind::Invalid, 400),
            (Kind::Unauthorized, 401),
            (Kind::NotFound, 404),
            (Kind::TooLarge, 413),
            (Kind::Unsupported, 415),
            (Kind::Busy, 503),
            (Kind::OverBudget, 503),
            (Kind::Unavailable, 503),
            (Kind::Cancelled, 503),
            (Kind::Timeout, 504),
            (Kind::Internal, 500),
        ] {
            assert_eq!(status(kind).as_u16(), expected, "{kind}");
        }
    }

    #[test]
    fn busy_says_when_to_come_back() {
        let response = Refusal::from(Error::new(Kind::Busy, "full")).respond("r");
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        for kind in [Kind::Busy, Kind::Unavailable] {
            let error = Error::new(kind, "full elsewhere").retry_after(Duration::from_millis(6500));
            assert_eq!(Refusal::from(error).respond("r").headers()[header::RETRY_AFTER], "7");
        }
        assert!(!Refusal::from(Error::unavailable("no")).respond("r").headers().contains_key(header::RETRY_AFTER));
    }
}
