//! What values may be: one rule a key, then what must hold between keys. Pure: what touches the disk or a
//! device is checked by `vigia check`.

use std::{borrow::Cow, fmt, net::SocketAddr, ops::RangeInclusive};

use config::ValueKind;

use crate::{
    base::ByteSize,
    settings::{AUTO, Levels, MqttMode, Provider, Settings, manual::general, remotes},
};

/// One thing wrong with the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Empty when the source as a whole cannot be read.
    pub key: String,
    /// Where it was set: a file, the environment, `--set`.
    pub origin: String,
    /// What is wrong and what is expected.
    pub problem: String,
}

impl Fault {
    pub fn new(key: impl Into<String>, origin: impl Into<String>, problem: impl Into<String>) -> Fault {
        Fault { key: key.into(), origin: origin.into(), problem: problem.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { key, origin, problem } = self;
        if key.is_empty() { write!(f, "{origin}: {problem}") } else { write!(f, "{key} ({origin}): {problem}") }
    }
}

enum Rule {
    /// Any value of the right type.
    Any,
    Whole(RangeInclusive<i64>),
    Number(RangeInclusive<f64>),
    Size(RangeInclusive<ByteSize>),
    /// A text, or each text of a list, that the function accepts; the words say what is expected.
    Text(fn(&str) -> bool, &'static str),
    /// A text of which the function says what is wrong with it.
    Read(fn(&str) -> Result<(), String>),
    OneOf(&'static [&'static str]),
    Levels,
    /// "auto", or a number, in quotes or without.
    Auto(RangeInclusive<i64>),
}

const ADDRESS: Rule =
    Rule::Text(|text| text.parse::<SocketAddr>().is_ok(), "an address with a port, such as \"127.0.0.1:8090\"");
const MODEL: Rule = Rule::Text(|text| !text.contains(char::is_whitespace), "the name of a model without spaces");
const MAYBE_NO_LIMIT: Rule = Rule::Size(ByteSize::mib(0)..=ByteSize::mib(1 << 20));
const REMOTE: Rule = Rule::Text(|text| text.is_empty() || remotes::is_name(text), "the name of a table [remotes.NAME]");
const TENSOR: Rule = Rule::Text(|text| !text.is_empty(), "the name of a tensor");
const QUEUE: Rule = Rule::Whole(1..=1_000_000);
/// A term of the memory budget.
const TERM: Rule = Rule::Size(ByteSize(0)..=ByteSize(1 << 40));
const KIB: u64 = 1 << 10;

const RULES: &[(&str, Rule)] = &[
    ("node.name", Rule::Text(is_node_name, "at most 64 letters, digits, `-`, `_` and `.`")),
    ("device.profile", Rule::Text(|text| !text.is_empty(), "\"auto\" or the name of a profile")),
    ("server.listen", ADDRESS),
    ("server.allow_anonymous", Rule::Any),
    ("server.cors_origins", Rule::Text(is_origin, "origins such as \"http://localhost:5173\", without a path")),
    ("server.max_connections", Rule::Whole(1..=65_536)),
    ("server.max_body", Rule::Size(ByteSize(KIB)..=ByteSize(4 << 30))),
    ("server.max_upload", Rule::Size(ByteSize(KIB)..=ByteSize(1 << 40))),
    ("server.max_message", Rule::Size(ByteSize(KIB)..=ByteSize::mib(64))),
    ("server.request_timeout_secs", Rule::Whole(1..=3600)),
    ("server.send_timeout_secs", Rule::Whole(1..=3600)),
    ("server.idle_timeout_secs", Rule::Whole(1..=86_400)),
    ("audio.language", Rule::Text(is_language, "a language code such as \"es\", or \"auto\"")),
    ("audio.max_sessions", Rule::Whole(1..=100_000)),
    ("audio.max_pipelines", Rule::Whole(1..=10_000)),
    ("audio.partials", Rule::OneOf(&["agreement", "attention"])),
    ("audio.first_partial_ms", Rule::Whole(100..=10_000)),
    ("audio.partial_interval_ms", Rule::Whole(50..=60_000)),
    ("audio.attention_margin_ms", Rule::Whole(0..=10_000)),
    ("audio.resume_secs", Rule::Whole(0..=604_800)),
    ("vision.max_pixels", Rule::Whole(1..=1_000_000_000)),
    ("vision.max_side", Rule::Whole(16..=16_384)),
    ("vad.threshold", Rule::Number(0.0..=1.0)),
    ("vad.hysteresis", Rule::Number(0.0..=1.0)),
    ("vad.min_speech_ms", Rule::Whole(0..=60_000)),
    ("vad.min_silence_ms", Rule::Whole(1..=60_000)),
    ("vad.settle_ms", Rule::Whole(1..=60_000)),
    ("vad.pad_ms", Rule::Whole(0..=5_000)),
    ("vad.max_segment_secs", Rule::Number(1.0..=600.0)),
    ("jobs.queue_live", QUEUE),
    ("jobs.queue_interactive", QUEUE),
    ("jobs.queue_batch", QUEUE),
    ("jobs.timeout_secs", Rule::Whole(1..=86_400)),
    ("models.dir", Rule::Any),
    ("memory.limit", Rule::Text(is_size_or_empty, "a size such as \"3.5 GiB\", or nothing")),
    ("memory.system", TERM),
    ("memory.media", TERM),
    ("memory.margin", TERM),
    ("memory.idle_secs", Rule::Whole(1..=31_536_000)),
    ("memory.wait_secs", Rule::Whole(1..=86_400)),
    ("memory.retry_secs", Rule::Whole(1..=86_400)),
    ("memory.foreign_secs", Rule::Whole(1..=3600)),
    ("runtime.library", Rule::Any),
    ("providers.order", Rule::OneOf(&["tensorrt", "nvrtx", "cuda", "cpu"])),
    ("providers.device_id", Rule::Auto(0..=63)),
    ("providers.engines_dir", Rule::Any),
    ("providers.cuda.memory_limit", MAYBE_NO_LIMIT),
    ("providers.cuda.conv_search", Rule::OneOf(&["heuristic", "exhaustive", "default"])),
    ("providers.cuda.tf32", Rule::Any),
    ("providers.tensorrt.fp16", Rule::Any),
    ("providers.tensorrt.int8", Rule::Any),
    ("providers.tensorrt.workspace", MAYBE_NO_LIMIT),
    ("pipelines.dir", Rule::Any),
    ("pipelines.variant", Rule::OneOf(&["cpu", "jetson", "rtx"])),
    ("mqtt.mode", Rule::OneOf(&["embedded", "external", "off"])),
    ("mqtt.listen", ADDRESS),
    ("mqtt.host", Rule::Text(is_host, "a host name or an address, without a port")),
    ("mqtt.port", Rule::Whole(1..=65_535)),
    ("mqtt.username", Rule::Any),
    ("mqtt.password_file", Rule::Any),
    ("mqtt.prefix", Rule::Text(is_topic_part, "letters, digits, `-` and `_`")),
    ("mqtt.discovery", Rule::Any),
    ("store.dir", Rule::Any),
    ("store.keep_days", Rule::Whole(1..=36_500)),
    ("store.keep_audio", Rule::Any),
    ("store.max_audio", Rule::Size(ByteSize::mib(64)..=ByteSize::mib(1 << 24))),
    ("log.level", Rule::Levels),
    ("shutdown.deadline_secs", Rule::Whole(1..=3600)),
    ("tasks.*.model", MODEL),
    ("tasks.*.provider", Rule::OneOf(&["", "tensorrt", "nvrtx", "cuda", "cpu"])),
    ("tasks.*.variant", Rule::Text(are_variants, "names of variants without spaces, separated by commas")),
    ("tasks.*.remote", REMOTE),
    ("tasks.*.resident", Rule::Any),
    ("remotes.NAME.url", Rule::Read(remotes::url_or_empty)),
    ("remotes.NAME.protocol", Rule::OneOf(&["openai", "kserve"])),
    ("remotes.NAME.key_file", Rule::Any),
    ("remotes.NAME.ca_file", Rule::Any),
    ("remotes.NAME.insecure", Rule::Any),
    ("remotes.NAME.connect_timeout_secs", Rule::Whole(1..=60)),
    ("remotes.NAME.timeout_secs", Rule::Whole(1..=86_400)),
    ("remotes.NAME.retries", Rule::Whole(0..=10)),
    ("remotes.NAME.max_answer", Rule::Size(ByteSize(KIB)..=ByteSize(1 << 30))),
    ("remotes.NAME.breaker_failures", Rule::Whole(1..=1000)),
    ("remotes.NAME.breaker_open_secs", Rule::Whole(1..=86_400)),
    ("remotes.NAME.health_secs", Rule::Whole(1..=86_400)),
    ("remotes.NAME.text_in", TENSOR),
    ("remotes.NAME.text_out", TENSOR),
    ("remotes.NAME.audio_in", TENSOR),
    ("remotes.NAME.audio_out", TENSOR),
    ("remotes.NAME.audio_out_hz", Rule::Whole(8_000..=192_000)),
    ("remotes.NAME.image_in", TENSOR),
    ("remotes.NAME.binary_tensors", Rule::Any),
];

fn rule(key: &str) -> Option<&'static Rule> {
    let key = remotes::split(key).map_or_else(|| shared(key), |(_, rest)| Cow::Owned(general(rest)));
    RULES.iter().find(|(known, _)| *known == key).map(|(_, rule)| rule)
}

/// Whether a whole number may stand at the key although its default is a text.
pub(super) fn takes_numbers_too(key: &str) -> bool {
    matches!(rule(key), Some(Rule::Auto(_)))
}

/// Whether one value may stand at its key; its type is right already.
pub(super) fn leaf(key: &str, value: &ValueKind) -> Result<(), String> {
    let Some(rule) = rule(key) else { return Ok(()) };
    match value {
        ValueKind::I64(number) => rule.number(*number as f64),
        ValueKind::Float(number) => rule.number(*number),
        ValueKind::String(text) => rule.text(text),
        ValueKind::Array(items) => items.iter().try_for_each(|item| match &item.kind {
            ValueKind::String(text) => rule.text(text),
            _ => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// Every task has the same keys.
fn shared(key: &str) -> Cow<'_, str> {
    match key.strip_prefix("tasks.").and_then(|rest| rest.split_once('.')) {
        Some((_, leaf)) => Cow::Owned(format!("tasks.*.{leaf}")),
        None => Cow::Borrowed(key),
    }
}

impl Rule {
    fn number(&self, number: f64) -> Result<(), String> {
        let (from, to) = match self {
            Rule::Whole(range) | Rule::Auto(range) => (*range.start() as f64, *range.end() as f64),
            Rule::Number(range) => (*range.start(), *range.end()),
            _ => return Ok(()),
        };
        // Not a number is in no range.
        if (from..=to).contains(&number) { Ok(()) } else { Err(format!("expected {from} to {to}, found {number}")) }
    }

    fn text(&self, text: &str) -> Result<(), String> {
        match self {
            Rule::Text(accepts, expected) if !accepts(text) => Err(format!("expected {expected}, found \"{text}\"")),
            Rule::Read(read) => read(text),
            Rule::OneOf(list) if !list.contains(&text) => {
                let list = list.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ");
                Err(format!("expected one of {list}, found \"{text}\""))
            }
            Rule::Size(range) => {
                let size: ByteSize = text.parse()?;
                let (from, to) = (range.start(), range.end());
                if range.contains(&size) { Ok(()) } else { Err(format!("expected {from} to {to}, found {size}")) }
            }
            Rule::Levels => text.parse::<Levels>().map(drop),
            Rule::Auto(range) if text != AUTO && !text.trim().parse().is_ok_and(|it: i64| range.contains(&it)) => {
                Err(format!("expected \"{AUTO}\", or {} to {}, found \"{text}\"", range.start(), range.end()))
            }
            _ => Ok(()),
        }
    }
}

fn is_size_or_empty(text: &str) -> bool {
    text.is_empty() || text.parse::<ByteSize>().is_ok()
}

/// Best first; nothing is the model's default.
fn are_variants(text: &str) -> bool {
    text.is_empty() || text.split(',').all(|name| !name.is_empty() && !name.contains(char::is_whitespace))
}

fn is_topic_part(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Empty is allowed: the host name is taken then.
fn is_node_name(text: &str) -> bool {
    text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|host| !host.is_empty() && !host.contains(|c: char| c == '/' || c == '*' || !c.is_ascii_graphic()))
}

fn is_language(text: &str) -> bool {
    let (code, region) = text.split_once('-').unwrap_or((text, "xx"));
    text == "auto"
        || (matches!(code.len(), 2 | 3)
            && code.chars().all(|c| c.is_ascii_lowercase())
            && matches!(region.len(), 2..=8)
            && region.chars().all(|c| c.is_ascii_alphanumeric()))
}

fn is_host(text: &str) -> bool {
    let looks_like_port = text.matches(':').count() == 1;
    !text.is_empty() && !looks_like_port && text.chars().all(|c| c.is_ascii_graphic() && c != '/')
}

/// What must hold between keys: the keys concerned, the first of them the one to change, and the problem.
pub(super) fn relations(settings: &Settings) -> Vec<(&'static [&'static str], String)> {
    let Settings { server, vad, mqtt, providers, .. } = settings;
    let mut problems: Vec<(&'static [&'static str], String)> = Vec::new();
    let twice = |it: &Provider| providers.order.iter().filter(|other| *other == it).count() > 1;
    if providers.order.is_empty() {
        problems.push((&["providers.order"], "needs one provider at least: \"cpu\" is always there".to_owned()));
    } else if let Some(provider) = providers.order.iter().find(|it| twice(it)) {
        problems.push((&["providers.order"], format!("names {} twice", provider.name())));
    }
    if vad.hysteresis >= vad.threshold {
        let problem = format!("must be smaller than vad.threshold ({}), or no speech would ever end", vad.threshold);
        problems.push((&["vad.hysteresis", "vad.threshold"], problem));
    }
    if vad.max_segment_secs * 1000.0 <= f64::from(vad.min_speech_ms) {
        let problem = format!("must be longer than vad.min_speech_ms ({} ms)", vad.min_speech_ms);
        problems.push((&["vad.max_segment_secs", "vad.min_speech_ms"], problem));
    }
    if settings.providers_for("vad") != [Provider::Cpu] {
        let problem = "must be \"cpu\": its frames of 32 ms are done before they would reach a card".to_owned();
        problems.push((&["tasks.vad.provider"], problem));
    }
    if settings.providers_for("diarize") != [Provider::Cpu] {
        problems.push((&["tasks.diarize.provider"], "must be \"cpu\": so far it runs there alone".to_owned()));
    }
    let embedded = mqtt.mode == MqttMode::Embedded;
    if embedded
        && !mqtt.listen.ip().to_canonical().is_loopback()
        && (mqtt.username.is_empty() || mqtt.password_file.is_empty())
    {
        let problem = format!(
            "{} is open to the network: set mqtt.username and mqtt.password_file, or listen on 127.0.0.1",
            mqtt.listen
        );
        problems.push((&["mqtt.listen", "mqtt.username", "mqtt.password_file"], problem));
    } else if mqtt.mode != MqttMode::Off && !mqtt.username.is_empty() && mqtt.password_file.is_empty() {
        let problem = "a user needs a password: set mqtt.password_file".to_owned();
        problems.push((&["mqtt.username", "mqtt.password_file"], problem));
    }
    if mqtt.username.is_empty() && !mqtt.password_file.is_empty() {
        let problem = "a password needs a user: set mqtt.username".to_owned();
        problems.push((&["mqtt.password_file", "mqtt.username"], problem));
    }
    if embedded && mqtt.listen.port() != 0 && mqtt.listen.port() == server.listen.port() {
        let problem = format!("port {} is server.listen's already: choose another", mqtt.listen.port());
        problems.push((&["mqtt.listen", "server.listen"], problem));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, load, manual::schema};

    #[test]
    fn every_key_has_one_rule_that_its_default_obeys() {
        let mut ruled: Vec<&str> = RULES.iter().map(|(key, _)| *key).collect();
        ruled.sort_unstable();
        let mut keys: Vec<_> = schema().keys().map(|key| shared(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(ruled, keys);
        for (key, default) in schema() {
            assert_eq!(leaf(key, &default.kind), Ok(()), "{key}");
        }
    }

    /// The faults of `--set`s, as text.
    fn faults(sets: &[&str]) -> Vec<String> {
        let sources = Sources { sets: sets.iter().map(|&it| it.to_owned()).collect(), ..Sources::default() };
        load(&sources).err().unwrap_or_default().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn values_out_of_their_rule_say_what_is_expected() {
        for (set, expected) in [
            ("vad.threshold=1.5", "expected 0 to 1, found 1.5"),
            ("vad.threshold=NaN", "expected 0 to 1"),
            ("mqtt.port=0", "expected 1 to 65535, found 0"),
            ("mqtt.port=70000", "expected 1 to 65535, found 70000"),
            ("server.max_body=much", "\"20 MiB\""),
            ("server.max_body=0 B", "expected 1 KiB to 4 GiB, found 0 B"),
            ("memory.limit=much", "a size such as"),
            ("memory.margin=2 TiB", "is not a size"),
            ("memory.wait_secs=0", "expected 1 to 86400"),
            ("server.listen=8090", "an address with a port"),
            ("server.cors_origins=*", "origins such as"),
            ("server.cors_origins=http://ok,localhost", "found \"localhost\""),
            ("audio.language=Spanish", "a language code"),
            ("audio.max_sessions=0", "expected 1 to 100000"),
            ("log.level=loud", "`loud` is no log level"),
            ("pipelines.variant=gpu", "expected one of \"cpu\", \"jetson\", \"rtx\", found \"gpu\""),
            ("mqtt.mode=on", "\"embedded\", \"external\", \"off\""),
            ("mqtt.host=broker:1883", "without a port"),
            ("mqtt.prefix=a/#", "letters, digits"),
            ("node.name=my box", "at most 64 letters"),
            ("tasks.chat.model=my model", "without spaces"),
            ("tasks.chat.provider=gpu", "\"cuda\", \"cpu\", found \"gpu\""),
            ("tasks.chat.variant=fp 16", "without spaces"),
            ("tasks.chat.variant=fp16,,q8", "separated by commas"),
            ("memory.retry_secs=0", "1"),
            ("providers.order=cuda,gpu", "found \"gpu\""),
            ("providers.order=cuda,cuda", "names cuda twice"),
            ("providers.device_id=-1", "expected \"auto\", or 0 to 63, found \"-1\""),
            ("providers.device_id=first", "found \"first\""),
            ("providers.tensorrt.workspace=1 furlong", "\"20 MiB\""),
        ] {
            let faults = faults(&[set]);
            assert_eq!(faults.len(), 1, "{set}: {faults:?}");
            assert!(faults[0].contains(expected), "{set}: {faults:?}");
            assert!(faults[0].contains("(--set)"), "{set}: {faults:?}");
        }
    }

    #[test]
    fn good_values_are_no_fault() {
        let good = [
            "audio.language=pt-BR",
            "audio.language=auto",
            "mqtt.host=fd00::1",
            "server.max_body=100 MiB",
            "memory.limit=3.5 GiB",
            "providers.device_id=auto",
            "providers.device_id=1",
        ];
        assert_eq!(faults(&good), [""; 0]);
    }

    #[test]
    fn relations_between_keys_are_checked() {
        assert!(faults(&["vad.threshold=0.1"])[0].starts_with("vad.hysteresis (--set): must be smaller"));
        assert!(faults(&["vad.max_segment_secs=1", "vad.min_speech_ms=2000"])[0].contains("longer than"));
        assert!(faults(&["mqtt.listen=0.0.0.0:1883"])[0].contains("open to the network"));
        assert!(faults(&["mqtt.password_file=/etc/secret"])[0].contains("needs a user"));
        assert!(faults(&["mqtt.username=vigia"])[0].contains("mqtt.username (--set): a user needs a password"));
        assert_eq!(faults(&["mqtt.username=vigia", "mqtt.mode=off"]), [""; 0]);
        assert!(faults(&["tasks.vad.provider=cuda"])[0].contains("must be \"cpu\""));
        assert!(faults(&["tasks.diarize.provider=cuda"])[0].contains("must be \"cpu\""));
        assert!(faults(&["mqtt.listen=127.0.0.1:8090"])[0].contains("server.listen's already"));
        let closed = ["mqtt.listen=0.0.0.0:1883", "mqtt.username=vigia", "mqtt.password_file=/etc/secret"];
        assert_eq!(faults(&closed), [""; 0]);
        assert_eq!(faults(&["mqtt.listen=0.0.0.0:1883", "mqtt.mode=external"]), [""; 0]);
        assert_eq!(faults(&["mqtt.listen=127.0.0.1:0", "server.listen=127.0.0.1:0"]), [""; 0]);
    }
}
