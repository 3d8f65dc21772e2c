//! Speaks with a hub of models over HTTP, as Hugging Face does and others after it: what a repository holds, and one
//! file of it, resumed where an earlier try was cut. Blocks; its callers have threads of their own.
//!
//! Never sends the token to another host than the hub's, never writes more than was announced, never waits for ever.

mod address;
pub(crate) mod certificates;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{Response, StatusCode, header},
    tls::TlsConfig,
};

use crate::{
    base::{Error, Kind, Result},
    models::{
        catalogue::safe_path,
        digest::{Digest, pass},
        hub::{
            address::{Endpoint, masked, origin, redirected},
            certificates::trusted,
        },
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
const MISTRUST: &str = "SSL_CERT_FILE names a PEM file with certificates of your own; something between here and the \
                        hub may also have put its own in place";
/// How often whoever waits is asked whether to go on.
const LOOK: Duration = Duration::from_millis(100);
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

/// What a person may have set beside the address.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access<'a> {
    /// Empty counts as none.
    pub token: Option<&'a str>,
    /// Certificates to believe instead of those that browsers believe.
    pub ca_file: Option<&'a Path>,
}

pub struct Hub {
    agent: Agent,
    endpoint: Endpoint,
    token: Option<String>,
    patience: Patience,
}

impl Hub {
    pub fn new(endpoint: &str, access: Access<'_>, patience: Patience) -> Result<Hub> {
        let endpoint = Endpoint::parse(endpoint)?;
        let token = access.token.map(str::trim).filter(|token| !token.is_empty());
        if token.is_some_and(|token| !token.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/=".contains(c))) {
            return Err(Error::invalid("HF_TOKEN holds a character that no token has")
                .hint("set it to the token alone, without quotes, blanks or line breaks"));
        }
        if token.is_some() && !endpoint.is_encrypted && !endpoint.is_local {
            return Err(Error::invalid(format!("HF_TOKEN would go to {endpoint} where everybody can read it"))
                .hint("name the hub with https://, or unset HF_TOKEN"));
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
        if endpoint.is_local {
            // The environment's proxy, which the library knows of, cannot see this machine's own loopback.
            config = config.proxy(None);
        }
        if let Some(file) = access.ca_file {
            config = config.tls_config(TlsConfig::builder().root_certs(trusted(file)?).build());
        }
        Ok(Hub { agent: config.build().new_agent(), endpoint, token: token.map(str::to_owned), patience })
    }

    /// What a repository holds at a revision, and which commit that is. `waits` hears of every pause before another try.
    pub fn listing(&self, repository: &str, revision: &str, waits: &dyn Fn(&Error, Duration)) -> Result<Listing> {
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
        let address = format!("{}/api/models/{path}?blobs=true", self.endpoint.address);
        let body = self.patiently(LISTING_TRIES, waits, &|| true, || {
            let mut response = self.get((repository, None), &address, 0)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
            body.map_err(|error| Trouble::passing(unreachable(&self.endpoint.to_string()).cause(error)))
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
            let is_hash = |hash: &String| hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
            let sha256 = it.lfs.map(|lfs| lfs.sha256).filter(is_hash);
            (it.rfilename, Listed { size: it.size, sha256: sha256.map(|hash| hash.to_ascii_lowercase()) })
        });
        Ok(Listing { commit: info.sha, files: files.collect() })
    }

    /// Gets a file into `part`, going on where that ends already, and says its size and hash. What comes out wrong is
    /// deleted; what was cut stays for the next time. `told` hears how many bytes are there, and of every pause.
    pub fn fetch(&self, wanted: &Wanted, part: &Path, told: &dyn Fn(Step<'_>) -> bool) -> Result<(u64, String)> {
        safe_path(&wanted.path)?;
        let address = format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint.address,
            encoded(&wanted.repository),
            encoded(&wanted.commit),
            encoded(&wanted.path)
        );
        if part.is_symlink() {
            // What it leads to is not ours to write to.
            fs::remove_file(part).map_err(|error| disk(part, error))?;
        }
        let mut digest =
            if part.exists() { Digest::of_file(part).map_err(|error| disk(part, error))? } else { Digest::default() };
        if wanted.size.is_some_and(|size| digest.size() > size) {
            digest = Digest::default();
        }
        let mut good_until = digest.size();
        let waits = |because: &Error, time| {
            told(Step::Waits(because, time));
        };
        self.patiently(self.patience.tries, &waits, &|| told(Step::Still), || {
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
        let mut response = self.get((&wanted.repository, Some(&wanted.path)), address, digest.size())?;
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

    /// A request, through redirects, to its answer. Anything but success is trouble. `what`: of which repository, and
    /// which file of it.
    fn get(&self, what: (&str, Option<&str>), address: &str, from: u64) -> Result<Response<Body>, Trouble> {
        let mut address = address.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address);
            // The place of a file may be signed for a stranger: the token is the hub's alone.
            let is_hub = origin(&address) == origin(&self.endpoint.address);
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let place = || masked(origin(&address).unwrap_or(&self.endpoint.address));
            let response = request.call().map_err(|error| {
                if is_mistrust(&error) {
                    let told = format!("{} cannot prove who it is", place());
                    return Trouble::lasting(Error::unavailable(told).cause(error).hint(MISTRUST));
                }
                Trouble::passing(unreachable(&place()).cause(error))
            })?;
            let status = response.status();
            if !status.is_redirection() {
                let resumable = status == StatusCode::RANGE_NOT_SATISFIABLE && from > 0;
                return if status.is_success() || resumable {
                    Ok(response)
                } else {
                    Err(self.refused(what, &response))
                };
            }
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = to.and_then(|to| redirected(&address, to));
            address =
                next.ok_or_else(|| Trouble::lasting(Error::unavailable(format!("{} sends us nowhere", place()))))?;
        }
        let (repository, _) = what;
        Err(Trouble::lasting(Error::unavailable(format!("{repository}: more than {MAX_REDIRECTS} redirects"))))
    }

    fn refused(&self, (repository, path): (&str, Option<&str>), response: &Response<Body>) -> Trouble {
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
            StatusCode::NOT_FOUND => {
                let told = match path {
                    Some(path) => format!("{path} of {repository} is not on the hub, which lists it"),
                    None => format!("the hub has no such repository or revision of {repository}"),
                };
                Trouble::lasting(Error::new(Kind::NotFound, told).hint(format!("see {page}")))
            }
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

    /// Tries until it works, until trouble lasts, or until patience ends: that of whoever waits too, who is told of each
    /// pause, and asked during it.
    fn patiently<T>(
        &self,
        most: u32,
        waits: &dyn Fn(&Error, Duration),
        goes_on: &dyn Fn() -> bool,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T> {
        let (mut tries, mut pause) = (0, self.patience.first_pause);
        loop {
            let trouble = match attempt() {
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
            // A time the hub asks for is kept, up to the longest that a person would wait.
            let time = trouble.pause.unwrap_or(pause).min(self.patience.longest_pause);
            waits(&trouble.error, time);
            let until = Instant::now() + time;
            while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                if !goes_on() {
                    return Err(trouble.error);
                }
                std::thread::sleep(rest.min(LOOK));
            }
            pause = (pause * 2).min(self.patience.longest_pause);
        }
    }
}

/// What a fetch tells while it goes on; the answer `false` stops it.
#[derive(Debug)]
pub enum Step<'a> {
    At(u64),
    /// Because of this there is another try after this time.
    Waits(&'a Error, Duration),
    /// It waits.
    Still,
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

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(endpoint: &str, access: Access<'_>) -> Result<Hub> {
        Hub::new(endpoint, access, Patience::default())
    }

    #[test]
    fn a_token_needs_encryption_and_is_one_word() {
        let told = |endpoint, token| {
            hub(endpoint, Access { token: Some(token), ..Access::default() }).err().map(|it| it.full())
        };
        assert_eq!(told("https://hub.example/", "secret"), None);
        assert_eq!(told("http://127.0.0.1:1", "secret"), None);
        assert!(hub("http://hub.example", Access::default()).is_ok());
        let open = told("http://hub.example", "secret").unwrap();
        assert!(open.contains("https://") && !open.contains("secret"), "{open}");
        for token in ["\"secret\"", "sec ret", "secret\nX: y", "sécret", "secret\u{200b}"] {
            let told = told("https://hub.example", token).unwrap();
            assert!(told.contains("HF_TOKEN holds a character") && !told.contains("secr"), "{told}");
        }
        for blank in ["", " ", " \n"] {
            let access = Access { token: Some(blank), ..Access::default() };
            assert_eq!(hub("http://hub.example", access).unwrap().token, None, "none is sent, and none is at risk");
        }
    }
}
