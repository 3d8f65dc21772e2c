//! The dashboard at `/ui`: one static page without anything from outside. It holds no data: what it shows it asks
//! the API for, with the key that its reader gives it.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use sha2::{Digest as _, Sha256};

use crate::api::{
    call::{Call, Response, typed},
    error::Reply,
};

const STYLE: &str = include_str!("ui/ui.css");
const SCRIPT: &str = include_str!("ui/ui.js");

static PAGE: LazyLock<String> =
    LazyLock::new(|| include_str!("ui/ui.html").replace("/*style*/", STYLE).replace("/*script*/", SCRIPT));

/// Only the style and the script of the page itself may run, so even a text that slipped through could do nothing.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE),
    )
});

/// The dashboard
#[utoipa::path(get, path = "/ui", tag = "information", responses(
    (status = 200, description = "A page for people", body = String, content_type = "text/html"),
))]
pub(crate) async fn page(_: Call) -> Reply {
    Ok(html(&PAGE, &POLICY))
}

/// A page of ours, under a Content-Security-Policy.
pub(crate) fn html(page: &'static str, policy: &'static str) -> Response {
    let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn hash(inline: &str) -> String {
    STANDARD.encode(Sha256::digest(inline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_for_nothing_from_outside() {
        assert!(PAGE.contains(&format!("<style>{STYLE}</style>")));
        assert!(PAGE.contains(&format!("<script>{SCRIPT}</script>")));
        for outside in ["http://", "https://", "//cdn", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn every_text_of_the_page_is_there_in_both_languages() {
        let table = |language: &str| {
            let from = SCRIPT.find(&format!("{language}: {{")).unwrap();
            let text = &SCRIPT[from..from + SCRIPT[from..].find("\n  },").unwrap()];
            let keys =
                text.lines().skip(1).filter_map(|line| line.trim().split_once(": ")).map(|(key, _)| key.to_owned());
            keys.collect::<Vec<String>>()
        };
        assert_eq!(table("es"), table("en"));
        assert!(table("es").len() > 20);
    }
}
