//! Speaks with a hub of models over HTTP, as Hugging Face does and others after it: what a repository holds, and one
//! file of it, resumed where an earlier try was cut. Blocks; its callers have threads of their own.
//!
//! Never sends the token to another host than the hub's, never writes more than was announced, never waits for ever.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, Write},
    path::Path,
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::{
    Agent, Body, ResponseExt as _,
    http::{Response, StatusCode, Uri, header},
};

use crate::{
    base::{Error, Kind, Result},
    models::{
        catalogue::safe_path,
        digest::{Digest, pass},
    },
};

/// Where models come from unless `HF_ENDPOINT` names another hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

const MAX_REDIRECTS: usize = 5;
/// Nothing is shown yet while a listing is waited for: whoever mistyped an address should not wait long to hear it.
const LISTING_TRIES: u32 = 3;
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// A file whose size nobody told is no model's weights.
const MAX_UNKNOWN_BYTES: u64 = 1 << 30;
/// A try that brought this much was a good one, and the next may fail as often as the first.
const PROGRESS_BYTES: u64 = 1 << 20;
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// How long the hub is waited for, and how often it is asked again.
#[derive(Debug, Clone)]
pub struct Patience {
    pub connect: Duration,
    /// Without a byte.
    pub silence: Duration,
    pub tries: u32,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(30),
            tries: 6,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// A file as the hub lists it. Small files have no hash there.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub size: Option<u64>,
    pub sha256: Option<String>,
}

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    pub commit: String,
    pub files: BTreeMap<String, Listed>,
}

/// One file to get, and what it must be where that is known.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub repository: String,
    pub commit: String,
    pub path: String,
    pub size: Option<u64>,
    pub sha256: Option<String>,
}

pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    patience: Patience,
}

impl Hub {
    pub fn new(endpoint: &str, token: Option<&str>, patience: Patience) -> Result<Hub> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let wrong = || {
            Error::invalid(format!("`{endpoint}` is no address of a hub"))
                .hint(format!("HF_ENDPOINT is for example {DEFAULT_ENDPOINT}"))
        };
        let uri = endpoint.parse::<Uri>().map_err(|error| wrong().cause(error))?;
        let host = uri.host().ok_or_else(wrong)?;
        let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
        match uri.scheme_str() {
            Some("https") => (),
            Some("http") if is_local || token.is_none() => (),
            Some("http") => {
                return Err(Error::invalid(format!("HF_TOKEN would go to {host} where everybody can read it"))
                    .hint("name the hub with https://, or unset HF_TOKEN"));
            }
            _ => return Err(wrong()),
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .user_agent(concat!("vigia/", env!("CARGO_PKG_VERSION")));
        if is_local {
            // The environment's proxy, which the library knows of, cannot see this machine's own loopback.
            config = config.proxy(None);
        }
        Ok(Hub { agent: config.build().new_agent(), endpoint, token: token.map(str::to_owned), patience })
    }

    /// What a repository holds at a revision, and which commit that is.
    pub fn listing(&self, repository: &str, revision: &str) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
        }
        let path = format!("{}/revision/{}", encoded(repository), encoded(revision));
        let address = format!("{}/api/models/{path}?blobs=true", self.endpoint);
        let body = self.patiently(repository, LISTING_TRIES, |_| {
            let mut response = self.get(repository, &address, 0)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
            body.map_err(|error| Trouble::passing(unreachable(&self.endpoint).cause(error)))
        })?;
        let strange = || {
            Error::unavailable(format!("{} does not answer as a hub of models does", self.endpoint))
                .hint("check HF_ENDPOINT")
        };
        let info: Info = serde_json::from_slice(&body).map_err(|error| strange().cause(error))?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(strange());
        }
        // A repository may hold files with any name; those that no model of ours could have are not for us.
        let safe = info.siblings.into_iter().filter(|it| safe_path(&it.rfilename).is_ok());
        let files = safe.map(|it| {
            let sha256 = it.lfs.map(|lfs| lfs.sha256).filter(|hash| hash.len() == 64);
            (it.rfilename, Listed { size: it.size, sha256: sha256.map(|hash| hash.to_ascii_lowercase()) })
        });
        Ok(Listing { commit: info.sha, files: files.collect() })
    }

    /// Gets a file into `part`, going on where that ends already, and says its size and hash. What comes out wrong is
    /// deleted; what was cut stays for the next time. `told` hears how many bytes are there, and every new try.
    pub fn fetch(&self, wanted: &Wanted, part: &Path, told: &dyn Fn(Step<'_>) -> bool) -> Result<(u64, String)> {
        safe_path(&wanted.path)?;
        let address = format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint,
            encoded(&wanted.repository),
            encoded(&wanted.commit),
            encoded(&wanted.path)
        );
        let mut digest =
            if part.exists() { Digest::of_file(part).map_err(|error| disk(part, error))? } else { Digest::default() };
        if wanted.size.is_some_and(|size| digest.size() > size) {
            digest = Digest::default();
        }
        let mut good_until = digest.size();
        self.patiently(&wanted.path, self.patience.tries, |again| {
            if let Some(error) = again {
                told(Step::Again(error));
            }
            if wanted.size == Some(digest.size()) && digest.size() > 0 {
                return Ok(());
            }
            let got = self.fetch_rest(wanted, &address, part, &mut digest, told);
            got.map_err(|mut trouble| {
                trouble.progressed = digest.size() >= good_until + PROGRESS_BYTES;
                good_until = digest.size();
                trouble
            })
        })?;
        let size = digest.size();
        let sha256 = digest.sha256();
        let differs = wanted.sha256.as_ref().is_some_and(|hash| *hash != sha256);
        if differs || wanted.size.is_some_and(|wanted| wanted != size) {
            fs::remove_file(part).map_err(|error| disk(part, error))?;
            return Err(Error::invalid(format!(
                "{} of {} is not the file that it should be: it was deleted",
                wanted.path, wanted.repository
            ))
            .hint("something between here and the hub changes files, or the hub has another revision"));
        }
        Ok((size, sha256))
    }

    /// One request for what is missing.
    fn fetch_rest(
        &self,
        wanted: &Wanted,
        address: &str,
        part: &Path,
        digest: &mut Digest,
        told: &dyn Fn(Step<'_>) -> bool,
    ) -> Result<(), Trouble> {
        let on_disk = |error| Trouble::lasting(disk(part, error));
        let mut response = self.get(&wanted.repository, address, digest.size())?;
        let begins_at = (response.status() == StatusCode::PARTIAL_CONTENT).then(|| range_start(&response)).flatten();
        let mut file = File::options().create(true).write(true).truncate(false).open(part).map_err(on_disk)?;
        if begins_at != Some(digest.size()) {
            // The whole file comes, or another part than the one asked for, which has no use here.
            *digest = Digest::default();
        }
        file.set_len(digest.size()).and_then(|()| file.seek(io::SeekFrom::End(0))).map_err(on_disk)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE || begins_at.is_some_and(|at| at != digest.size()) {
            return Err(Trouble::passing(Error::unavailable(format!(
                "{} cannot be resumed: from the start",
                wanted.path
            ))));
        }
        let limit = wanted.size.unwrap_or(MAX_UNKNOWN_BYTES);
        let announced = response.body().content_length().map(|length| digest.size() + length);
        let mut stopped = None;
        let received = pass(&mut response.body_mut().as_reader(), |bytes| {
            if digest.size() + bytes.len() as u64 > limit {
                stopped = Some(Trouble::lasting(too_long(wanted, part)));
            } else if let Err(error) = file.write_all(bytes) {
                stopped = Some(Trouble::lasting(disk(part, error)));
            } else {
                digest.add(bytes);
                if !told(Step::At(digest.size())) {
                    stopped = Some(Trouble::lasting(Error::new(Kind::Cancelled, "stopped")));
                }
            }
            if stopped.is_some() { Err(io::Error::other("stopped")) } else { Ok(()) }
        });
        if let Some(trouble) = stopped {
            return Err(trouble);
        }
        file.sync_all().map_err(on_disk)?;
        let cut = || Error::unavailable(format!("{} was cut at {} bytes", wanted.path, digest.size()));
        received.map_err(|error| Trouble::passing(cut().cause(error)))?;
        if announced.or(wanted.size).is_some_and(|size| digest.size() < size) {
            return Err(Trouble::passing(cut()));
        }
        Ok(())
    }

    /// A request, through redirects, to its answer. Anything but success is trouble.
    fn get(&self, repository: &str, address: &str, from: u64) -> Result<Response<Body>, Trouble> {
        let mut address = address.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address);
            // The place of a file may be signed for a stranger: the token is the hub's alone.
            if let Some(token) = self.token.as_ref().filter(|_| origin(&address) == origin(&self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| {
                let passes = !is_mistrust(&error);
                let place = origin(&address).unwrap_or(&self.endpoint);
                Trouble { passes, ..Trouble::passing(unreachable(place).cause(error)) }
            })?;
            let status = response.status();
            if !status.is_redirection() {
                let resumable = status == StatusCode::RANGE_NOT_SATISFIABLE && from > 0;
                return if status.is_success() || resumable {
                    Ok(response)
                } else {
                    Err(self.refused(repository, &response))
                };
            }
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = to.and_then(|to| redirected(&address, to));
            address = next.ok_or_else(|| {
                Trouble::lasting(Error::unavailable(format!("{} sends us nowhere", response.get_uri())))
            })?;
        }
        Err(Trouble::lasting(Error::unavailable(format!("{repository}: more than {MAX_REDIRECTS} redirects"))))
    }

    fn refused(&self, repository: &str, response: &Response<Body>) -> Trouble {
        let status = response.status();
        let page = format!("{}/{repository}", self.endpoint);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let error = Error::new(Kind::Unauthorized, format!("the hub does not give {repository} ({status})"));
                Trouble::lasting(match self.token {
                    // For what is not there the hub asks strangers for a token as well.
                    None => error.hint(format!(
                        "it is gated, private or gone: accept its licence at {page}, and set HF_TOKEN to a token of yours"
                    )),
                    Some(_) => error.hint(format!("accept its licence at {page}, with the account of HF_TOKEN")),
                })
            }
            StatusCode::NOT_FOUND => Trouble::lasting(
                Error::new(Kind::NotFound, format!("the hub has no such file, revision or repository of {repository}"))
                    .hint(format!("see {page}")),
            ),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => self.later(repository, response),
            status if status.is_server_error() => self.later(repository, response),
            _ => Trouble::lasting(Error::unavailable(format!("the hub answers {status} for {repository}"))),
        }
    }

    fn later(&self, repository: &str, response: &Response<Body>) -> Trouble {
        let after = response.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok()?.trim().parse().ok());
        let error = Error::unavailable(format!("the hub answers {} for {repository}", response.status()))
            .hint("try again later; what has come so far is kept");
        Trouble { pause: after.map(Duration::from_secs), ..Trouble::passing(error) }
    }

    /// Tries until it works, until trouble lasts, or until patience ends.
    fn patiently<T>(
        &self,
        what: &str,
        most: u32,
        mut attempt: impl FnMut(Option<&Error>) -> Result<T, Trouble>,
    ) -> Result<T> {
        let (mut tries, mut pause) = (0, self.patience.first_pause);
        let mut last = None;
        loop {
            let trouble = match attempt(last.as_ref()) {
                Ok(value) => return Ok(value),
                Err(trouble) => trouble,
            };
            if trouble.progressed {
                (tries, pause) = (0, self.patience.first_pause);
            }
            tries += 1;
            if !trouble.passes || tries >= most {
                return Err(trouble.error);
            }
            log::debug!("{what}: {}", trouble.error.full());
            // A time the hub asks for is kept, up to the longest that a person would wait.
            let wait = trouble.pause.unwrap_or(pause).min(self.patience.longest_pause);
            std::thread::sleep(wait);
            pause = (pause * 2).min(self.patience.longest_pause);
            last = Some(trouble.error);
        }
    }
}

/// What a fetch tells while it goes on; the answer `false` stops it.
#[derive(Debug)]
pub enum Step<'a> {
    At(u64),
    /// Another try, because of this.
    Again(&'a Error),
}

/// Why a request came to nothing, and whether another may come to something.
#[derive(Debug)]
struct Trouble {
    error: Error,
    passes: bool,
    pause: Option<Duration>,
    progressed: bool,
}

impl Trouble {
    fn passing(error: Error) -> Trouble {
        Trouble { error, passes: true, pause: None, progressed: false }
    }

    fn lasting(error: Error) -> Trouble {
        Trouble { passes: false, ..Trouble::passing(error) }
    }
}

/// A certificate that is wrong now will be wrong in a second.
fn is_mistrust(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

fn unreachable(place: &str) -> Error {
    Error::unavailable(format!("{place} cannot be reached"))
        .hint("check the network and HF_ENDPOINT; `vigia models import` takes an archive made on another machine")
}

fn disk(path: &Path, error: io::Error) -> Error {
    Error::unavailable(format!("{} cannot be written", path.display())).cause(error)
}

fn too_long(wanted: &Wanted, part: &Path) -> Error {
    let error = Error::invalid(format!("{} is longer than it should be: it was deleted", wanted.path));
    match fs::remove_file(part) {
        Ok(()) => error,
        Err(cause) => error.cause(cause),
    }
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, IN_A_PATH).to_string()
}

/// `https://host:port` of an address.
fn origin(address: &str) -> Option<&str> {
    let host = address.find("://")? + 3;
    let end = address[host..].find(['/', '?', '#']).map_or(address.len(), |at| host + at);
    Some(&address[..end])
}

/// Where a redirect leads: another address, or a path on the same host. Never from an encrypted one to an open one.
fn redirected(address: &str, to: &str) -> Option<String> {
    let (scheme, _) = address.split_once("://")?;
    let next = match to {
        _ if to.starts_with("//") => format!("{scheme}:{to}"),
        _ if to.starts_with('/') => format!("{}{to}", origin(address)?),
        _ => to.to_owned(),
    };
    let is_open = next.starts_with("http://");
    (next.starts_with("https://") || is_open && scheme == "http").then_some(next)
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
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
    fn a_hub_must_have_an_address_and_a_token_needs_encryption() {
        let hub = |endpoint, token| Hub::new(endpoint, token, Patience::default()).err().map(|error| error.full());
        assert_eq!(hub("https://hub.example/", Some("secret")), None);
        assert_eq!(hub("http://127.0.0.1:1", Some("secret")), None);
        assert_eq!(hub("http://hub.example", None), None);
        let open = hub("http://hub.example", Some("secret")).unwrap();
        assert!(open.contains("https://") && !open.contains("secret"), "{open}");
        for endpoint in ["", "hub", "ftp://hub.example", "https://"] {
            assert!(hub(endpoint, None).unwrap().contains("HF_ENDPOINT"), "{endpoint}");
        }
    }
}
