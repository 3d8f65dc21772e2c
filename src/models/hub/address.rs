//! Addresses of hubs and of the files on them: what is one, where a redirect leads, and how one is shown to people, who
//! may have written a password into it. Asks nobody.

use std::fmt;

use ureq::http::Uri;

use crate::{
    base::{Error, Result},
    models::hub::DEFAULT_ENDPOINT,
};

/// Where a hub is. Shows itself without a user and a password.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Without a slash at its end.
    pub(super) address: String,
    pub(super) is_encrypted: bool,
    /// On this machine.
    pub(super) is_local: bool,
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Endpoint> {
        let address = text.trim().trim_end_matches('/');
        let wrong = |why: &str| {
            Error::invalid(format!("`{}` is no address of a hub{why}", masked(address).escape_debug()))
                .hint(format!("HF_ENDPOINT is for example {DEFAULT_ENDPOINT}"))
        };
        if address.contains(['?', '#']) {
            return Err(wrong(": it ends with a path, and has no `?` and no `#`"));
        }
        let uri = address.parse::<Uri>().map_err(|error| wrong("").cause(error))?;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else { return Err(wrong("")) };
        let port = authority.as_str().rsplit('@').next().and_then(|it| it.strip_prefix(host)).unwrap_or_default();
        if !port.is_empty() && uri.port_u16().is_none() {
            return Err(wrong(": its port is no number up to 65535"));
        }
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("")),
        };
        let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
        Ok(Endpoint { address: address.to_owned(), is_encrypted, is_local })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.address))
    }
}

/// An address without a user and a password.
pub(super) fn masked(address: &str) -> String {
    let begin = address.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = address.split_at(begin);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}…{}", &rest[at..]),
        None => address.to_owned(),
    }
}

/// `https://host:port` of an address.
pub(super) fn origin(address: &str) -> Option<&str> {
    let host = address.find("://")? + 3;
    let end = address[host..].find(['/', '?', '#']).map_or(address.len(), |at| host + at);
    Some(&address[..end])
}

/// Where a redirect leads: another address, or a path on the same host. Never from an encrypted one to an open one.
pub(super) fn redirected(address: &str, to: &str) -> Option<String> {
    let (scheme, _) = address.split_once("://")?;
    let next = match to {
        _ if to.starts_with("//") => format!("{scheme}:{to}"),
        _ if to.starts_with('/') => format!("{}{to}", origin(address)?),
        _ => to.to_owned(),
    };
    let is_open = next.starts_with("http://");
    (next.starts_with("https://") || is_open && scheme == "http").then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_addresses_and_never_out_of_encryption() {
        let from = "https://hub.example/a/b?c";
        assert_eq!(redirected(from, "/x").as_deref(), Some("https://hub.example/x"));
        assert_eq!(redirected(from, "//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(redirected(from, "https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        for to in ["http://hub.example/x", "file:///etc/passwd", "x", ""] {
            assert_eq!(redirected(from, to), None, "{to}");
        }
        assert_eq!(redirected("http://a:1/b", "http://c:2/d").as_deref(), Some("http://c:2/d"));
        assert_ne!(origin("https://hub.example.evil/x"), origin("https://hub.example"));
        assert_ne!(origin("https://hub.example@evil/x"), origin("https://hub.example"));
    }

    #[test]
    fn a_hub_must_have_an_address_that_can_be_asked() {
        let told = |text: &str| Endpoint::parse(text).unwrap_err().full();
        for text in ["", "hub", "ftp://hub.example", "https://", "https://hub\u{1b}[31m"] {
            assert!(told(text).contains("HF_ENDPOINT") && !told(text).contains('\u{1b}'), "{text}");
        }
        for text in ["http://127.0.0.1:99999", "https://[::1]:70000/x", "https://u:p@hub.example:x"] {
            assert!(told(text).contains("no address of a hub"), "{text}: {}", told(text));
        }
        assert!(told("http://127.0.0.1:99999").contains("up to 65535"));
        for text in ["https://hub.example/?x=1", "https://hub.example/x#y"] {
            assert!(told(text).contains("has no `?`"), "{text}: {}", told(text));
        }
        let hub = Endpoint::parse(" https://hub.example:8443/mirror/ ").unwrap();
        assert_eq!(hub.address, "https://hub.example:8443/mirror");
        assert!(Endpoint::parse("http://[::1]:80").unwrap().is_local);
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        for (address, shown) in [
            ("https://user:secret@hub.example/x", "https://…@hub.example/x"),
            ("https://user:sec@ret@hub.example", "https://…@hub.example"),
            ("user:secret@hub.example", "…@hub.example"),
            ("https://hub.example/a@b", "https://hub.example/a@b"),
        ] {
            assert_eq!(masked(address), shown);
        }
        assert_eq!(Endpoint::parse("https://user:secret@hub.example").unwrap().to_string(), "https://…@hub.example");
        let told = Endpoint::parse("https://user:secret@hub.example:99999").unwrap_err().full();
        assert!(!told.contains("secret"), "{told}");
    }
}
