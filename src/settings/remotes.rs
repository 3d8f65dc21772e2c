//! Servers that lend their models: tables under free names, each with the same keys. What must hold of them, and how
//! their addresses are read. Pure: asks no server and resolves no name.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Duration};

use config::Value;
use serde::Deserialize;

use crate::{
    base::ByteSize,
    settings::{Settings, manual::schema},
};

/// What the keys of all remotes begin with.
pub(super) const SECTION: &str = "remotes.";

const URL_EXPECTED: &str =
    "an address such as \"http://192.168.1.20:8000\" or \"https://models.example/openai\", without user, `?` or `#`";

/// The tasks that a server can do for this box.
const LENT: [&str; 4] = ["chat", "describe", "speak", "transcribe"];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    pub url: String,
    pub protocol: Protocol,
    pub key_file: String,
    pub ca_file: String,
    pub insecure: bool,
    pub connect_timeout_secs: u64,
    pub timeout_secs: u64,
    pub retries: u32,
    pub max_answer: ByteSize,
    pub breaker_failures: u32,
    pub breaker_open_secs: u64,
    pub health_secs: u64,
    pub text_in: String,
    pub text_out: String,
    pub audio_in: String,
    pub audio_out: String,
    pub audio_out_hz: u32,
    pub image_in: String,
    pub binary_tensors: bool,
}

impl Remote {
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_secs)
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_secs)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Openai,
    Kserve,
}

/// `scheme://host[:port][/path]`, without a slash at its end. Holds no user and no key, so that it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    text: String,
    host: String,
    port: u16,
    encrypted: bool,
}

impl ServerUrl {
    /// A name or an address, without the brackets of IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ServerUrl, String> {
        let wrong = || format!("expected {URL_EXPECTED}");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let encrypted = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |c: char| c.is_ascii_graphic() && !"?#@\\\"<>^`{|}".contains(c);
        if !rest.chars().all(plain) {
            return Err(wrong());
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|it| it.split_once(']')) {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            Some(_) => return Err(wrong()),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port: u16 = match port {
            "" if encrypted => 443,
            "" => 80,
            port => port.strip_prefix(':').and_then(|it| it.parse().ok()).filter(|it| *it > 0).ok_or_else(wrong)?,
        };
        let in_a_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(in_a_name) {
            return Err(wrong());
        }
        let path = path.trim_end_matches('/');
        if path.ends_with("/v1") || path.ends_with("/v2") {
            return Err(format!("write it without its end, `{}`: that is added", &path[path.len() - 3..]));
        }
        let text = format!("{scheme}://{authority}{path}");
        Ok(ServerUrl { text, host: host.to_owned(), port, encrypted })
    }
}

/// Whether an address is of this machine or of a network of one's own: nobody outside listens there.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// Empty is the default; that it is set is asked of a remote that exists.
pub(super) fn url_or_empty(text: &str) -> Result<(), String> {
    match text.parse::<ServerUrl>() {
        Err(problem) if !text.is_empty() => Err(format!("{problem}; found \"{}\"", without_secrets(text))),
        _ => Ok(()),
    }
}

/// An address as it may be shown, whatever is wrong with it: without user, password and query.
pub fn without_secrets(address: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric());
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), address),
    };
    // A password that was not written as addresses want it may hold any of their signs.
    match (rest.rsplit_once('@'), rest.split_once(['?', '#'])) {
        (Some((_, host)), _) => {
            let end = host.find(|c: char| !(c.is_ascii_alphanumeric() || "-._:[]".contains(c)));
            format!("{scheme}…@{}", &host[..end.unwrap_or(host.len())])
        }
        (None, Some((plain, _))) => format!("{scheme}{plain}?…"),
        (None, None) => format!("{scheme}{rest}"),
    }
}

/// Small letters alone, because variables of the environment know no others.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// Name and key of `remotes.name.key`.
pub(super) fn split(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(SECTION)?.split_once('.')
}

/// The defaults of every remote of which one of `keys` is set.
pub(super) fn defaults<'a>(keys: impl Iterator<Item = &'a str>) -> BTreeMap<String, Value> {
    let example = || schema().iter().filter_map(|(key, value)| Some((split(key)?.1, value)));
    let names = keys.filter_map(|key| Some(split(key)?.0));
    names
        .flat_map(|name| example().map(move |(key, value)| (format!("{SECTION}{name}.{key}"), value.clone())))
        .collect()
}

/// What must hold between keys, the first of which is the one to change.
pub(super) fn relations(settings: &Settings) -> Vec<(Vec<String>, String)> {
    let mut problems = Vec::new();
    for (name, remote) in &settings.remotes {
        let key = |key: &str| format!("{SECTION}{name}.{key}");
        match remote.url.parse::<ServerUrl>() {
            Err(expected) => problems.push((vec![key("url")], expected)),
            Ok(url) => {
                let address = url.host().parse::<IpAddr>();
                if !url.is_encrypted() && !remote.insecure && address.is_ok_and(|address| !is_private(address)) {
                    let problem = format!(
                        "{url} is beyond this network, where everybody could listen in: use https://, or set {}",
                        key("insecure")
                    );
                    problems.push((vec![key("url"), key("insecure")], problem));
                }
            }
        }
    }
    for (task, choice) in settings.tasks.iter().filter(|(_, choice)| !choice.remote.is_empty()) {
        let key = format!("tasks.{task}.remote");
        if !LENT.contains(&task.as_str()) {
            let problem = format!("no server can do this task for the box; those that can: {}", LENT.join(", "));
            problems.push((vec![key], problem));
        } else if !settings.remotes.contains_key(&choice.remote) {
            let known: Vec<&str> = settings.remotes.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "there is none yet".to_owned() } else { known.join(", ") };
            // A table whose address is at fault is none, and that is told already.
            let keys = vec![key, format!("{SECTION}{}.url", choice.remote)];
            problems.push((keys, format!("there is no [{SECTION}{}]; known: {known}", choice.remote)));
        } else if choice.model.is_empty() {
            problems.push((
                vec![format!("tasks.{task}.model"), key],
                "name the model that the server is to use".to_owned(),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Fault, Loaded, Sources, effective, load};

    fn loaded(sets: &[&str]) -> Result<Loaded, Vec<String>> {
        let sources = Sources { sets: sets.iter().map(|&it| it.to_owned()).collect(), ..Sources::default() };
        load(&sources).map_err(|faults| faults.iter().map(Fault::to_string).collect())
    }

    #[test]
    fn a_remote_has_its_defaults_and_serves_the_tasks_that_name_it() {
        let sets = ["remotes.big-box.url=http://10.0.0.2:8000/", "tasks.chat.remote=big-box", "tasks.chat.model=qwen"];
        let loaded = loaded(&sets).unwrap();
        let (name, remote) = loaded.settings.remote_for("chat").unwrap();
        assert_eq!((name, remote.protocol, remote.retries), ("big-box", Protocol::Openai, 2));
        assert_eq!(loaded.origin("remotes.big-box.url"), "--set");
        assert_eq!(loaded.origin("remotes.big-box.timeout_secs"), "defaults");
        assert!(loaded.settings.remote_for("speak").is_none());
        let text = effective(&loaded.leaves);
        assert!(text.contains("[remotes.big-box]") && text.contains("max_answer = \"8 MiB\""), "{text}");
        let again: Settings = toml::from_str(&text).unwrap();
        assert_eq!(again.remotes["big-box"].url, "http://10.0.0.2:8000/");
    }

    #[test]
    fn a_variable_of_the_environment_sets_a_key_of_a_remote() {
        let env = vec![("VIGIA__REMOTES__BOX__URL".to_owned(), "https://box".to_owned())];
        let loaded = load(&Sources { env, ..Sources::default() }).unwrap();
        assert_eq!(loaded.settings.remotes["box"].url, "https://box");
    }

    #[test]
    fn what_does_not_fit_together_is_a_fault() {
        for (sets, expected) in [
            (&["remotes.a.retries=1"] as &[&str], "remotes.a.url (defaults): expected an address"),
            (&["remotes.a.url=ftp://box"], "remotes.a.url (--set): expected an address"),
            (
                &["remotes.a.url=http://box:81/v1"],
                "write it without its end, `/v1`: that is added; found \"http://box:81/v1\"",
            ),
            (&["remotes.a.url=http://u:secretpw@box"], "found \"http://…@box\""),
            (&["remotes.a.url=box", "tasks.chat.remote=a", "tasks.chat.model=m"], "remotes.a.url (--set): expected an"),
            (&["remotes.a.url=http://8.8.8.8"], "remotes.a.url (--set): http://8.8.8.8 is beyond this network"),
            (&["remotes.a.url=https://box", "remotes.a.retries=11"], "expected 0 to 10, found 11"),
            (&["remotes.a.url=https://box", "remotes.a.protocol=grpc"], "expected one of \"openai\", \"kserve\""),
            (&["tasks.chat.remote=a"], "there is no [remotes.a]; known: there is none yet"),
            (&["tasks.vad.remote=a", "remotes.a.url=https://box"], "no server can do this task"),
            (&["tasks.chat.remote=a", "remotes.a.url=https://box"], "tasks.chat.model (--set): name the model"),
        ] {
            let faults = loaded(sets).unwrap_err();
            assert_eq!(faults.len(), 1, "{sets:?}: {faults:?}");
            assert!(faults[0].contains(expected), "{sets:?}: {faults:?}");
            assert!(!faults[0].contains("secret"), "{faults:?}");
        }
        assert!(loaded(&["remotes.a.url=http://8.8.8.8", "remotes.a.insecure=true"]).is_ok());
        assert!(loaded(&["remotes.a.url=http://box.lan:1234/v"]).is_ok());
    }

    #[test]
    fn addresses_are_read_strictly() {
        let read = |text: &str| text.parse::<ServerUrl>().map(|url| (url.to_string(), url.host().to_owned()));
        let pair = |url: &str, host: &str| Ok((url.to_owned(), host.to_owned()));
        assert_eq!(read("https://box:8443/a/b//"), pair("https://box:8443/a/b", "box"));
        assert_eq!(read("http://[fd00::1]:80/"), pair("http://[fd00::1]:80", "fd00::1"));
        assert_eq!("https://box".parse::<ServerUrl>().unwrap().port(), 443);
        assert_eq!("http://box:81/a".parse::<ServerUrl>().unwrap().port(), 81);
        assert!("http://box:81/v1/".parse::<ServerUrl>().unwrap_err().contains("without its end"));
        for text in [
            "",
            "box:8000",
            "https://",
            "https://user:secret@box",
            "https://box?key=1",
            "https://box/a#b",
            "http://box:0",
            "http://box:99999",
            "http://[box]",
            "http://a b",
            "http://bóx",
            "HTTP//box",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_an_address_has_no_secret() {
        for (address, shown) in [
            ("http://box:81/a", "http://box:81/a"),
            ("/v1/chat/", "/v1/chat/"),
            ("http://user:secret@box:81/a", "http://…@box:81"),
            ("http://user:sec/ret?x#y@[fd00::1]/a", "http://…@[fd00::1]"),
            ("user:secret@box", "…@box"),
            ("user:secret@box://", "…@box:"),
            ("https://box/a?key=secret", "https://box/a?…"),
            ("https://box/a?from=me@box&key=secret", "https://…@box"),
            ("https://box#secret", "https://box?…"),
        ] {
            assert_eq!(without_secrets(address), shown);
        }
    }

    #[test]
    fn private_is_what_nobody_outside_can_hear() {
        for address in
            ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.20.0.1", "169.254.1.1", "::1", "fd00::1", "fe80::1"]
        {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "100.64.0.1", "0.0.0.0", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }
}
