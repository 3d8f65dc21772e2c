//! Who may call. Keys are looked up by their hash in the store; nothing here keeps or logs one.
//!
//! 1. Keys exist: a request needs one of them, from wherever it comes.
//! 2. None exist: everybody may call, but only over loopback or where `server.allow_anonymous` says so. Then a web
//!    page of a foreign origin may not start work or listen in through the browser of somebody on this box.

use std::net::SocketAddr;

use hyper::{HeaderMap, Method, Request, header};

use crate::{
    api::{Context, call::Query, listen::origin_allowed, ws},
    base::{Error, Kind, Result},
};

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// A key, where keys exist.
    Key,
    /// A key too; but a browser gets the page even so, with status 401: it holds no data and asks for the key.
    Page,
}

const HOW: &str = "send `Authorization: Bearer KEY` (`?token=KEY` on a WebSocket); `vigia keys add NAME` makes a key";

/// The rule at start: beyond loopback somebody must have decided who may listen in.
pub fn may_listen(address: SocketAddr, has_keys: bool, allow_anonymous: bool) -> Result<()> {
    if has_keys || anonymous_may_call(address, allow_anonymous) {
        return Ok(());
    }
    Err(Error::new(Kind::Unauthorized, format!("server.listen = \"{address}\" needs keys: anybody could listen in"))
        .hint("make one with `vigia keys add NAME`, or set server.allow_anonymous = true on a closed network"))
}

fn anonymous_may_call(address: SocketAddr, allow_anonymous: bool) -> bool {
    allow_anonymous || address.ip().to_canonical().is_loopback()
}

pub(crate) async fn admit(context: &Context, request: &Request<()>) -> Result<()> {
    let server = &context.settings.server;
    if context.store.has_keys().await? {
        let Some(key) = key(request) else {
            return Err(Error::new(Kind::Unauthorized, "this needs a key").hint(HOW));
        };
        return match context.store.check_key(&key).await? {
            Some(name) => {
                log::trace!("called with the key of {name}");
                Ok(())
            }
            None => Err(Error::new(Kind::Unauthorized, "this key is not known, or was revoked").hint(HOW)),
        };
    }
    // Here the last key may have been revoked while we were listening.
    if !anonymous_may_call(server.listen, server.allow_anonymous) {
        return Err(Error::new(Kind::Unauthorized, "no key exists, and none means nobody here").hint(HOW));
    }
    let acts = !matches!(*request.method(), Method::GET | Method::HEAD) || ws::is_upgrade(request.headers());
    if acts && !origin_allowed(request.headers(), &server.cors_origins) {
        return Err(Error::new(Kind::Unauthorized, "a page of this origin may not call")
            .hint("add its origin to server.cors_origins, or use a key"));
    }
    Ok(())
}

/// A browser cannot set headers on a WebSocket, hence `?token=` there. Elsewhere a key in the address would end up
/// in histories and logs.
fn key(request: &Request<()>) -> Option<String> {
    if let Some(key) = bearer(request.headers()) {
        return Some(key.to_owned());
    }
    let query = request.uri().query().filter(|_| ws::is_upgrade(request.headers()))?;
    Query::parse(query).get("token").map(str::to_owned)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_keys_or_a_decision_are_needed() {
        for (address, has_keys, anonymous, may) in [
            ("127.0.0.1:8090", false, false, true),
            ("[::1]:0", false, false, true),
            ("[::ffff:127.0.0.1]:0", false, false, true),
            ("0.0.0.0:8090", false, false, false),
            ("192.168.1.4:8090", false, false, false),
            ("192.168.1.4:8090", true, false, true),
            ("[::]:8090", false, true, true),
        ] {
            assert_eq!(may_listen(address.parse().unwrap(), has_keys, anonymous).is_ok(), may, "{address}");
        }
        let error = may_listen("0.0.0.0:1".parse().unwrap(), false, false).unwrap_err();
        assert!(error.hint_text().unwrap().contains("vigia keys add"));
    }

    #[test]
    fn a_bearer_is_read_however_it_is_spelt() {
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert_eq!(bearer(&with("Bearer vg_x")), Some("vg_x"));
        assert_eq!(bearer(&with("bearer   vg_x ")), Some("vg_x"));
        assert_eq!(bearer(&with("Basic vg_x")), None);
        assert_eq!(bearer(&with("Bearer ")), None);
        assert_eq!(bearer(&with("vg_x")), None);
    }
}
