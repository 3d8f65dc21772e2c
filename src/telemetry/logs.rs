//! Where `log` goes: the journal with structured fields when systemd started us, else standard error in a form
//! that a person can read. A log line that cannot be written is dropped; logging never fails its caller.
//!
//! The process of an engine writes its lines to standard error for the daemon, which takes them apart again and logs
//! them as its own.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    panic,
    sync::Mutex,
    time::{Duration, Instant},
};

use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{Error, Key, Value, VisitSource},
};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::base::{clock, lock};

/// Libraries whose lines say nothing to a user; a directive of the settings overrides them.
const QUIET: &[(&str, LevelFilter)] = &[
    // The entering and leaving of spans, which arrives through `log` as if it were a message.
    ("tracing::span", LevelFilter::Off),
    // The broker calls every client that goes away an error.
    ("rumqttd", LevelFilter::Off),
    ("rumqttc", LevelFilter::Warn),
    ("ort", LevelFilter::Warn),
    ("hyper", LevelFilter::Warn),
    ("tungstenite", LevelFilter::Warn),
];

/// What is logged, per module path; the empty path is everything else.
pub struct Logs {
    pub levels: Vec<(String, LevelFilter)>,
    pub colours: Colours,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// Where standard error is a terminal.
    Auto,
    Never,
}

impl Logs {
    /// Becomes the process's logger and reports panics through it. Called twice, the first stays.
    pub fn install(self) {
        install(Filter::new(&self.levels), Sink::open(self.colours));
    }
}

/// For the process of an engine. The daemon has a filter of its own; what it never logs is not even written.
pub fn install_for_engine(level: LevelFilter) {
    install(Filter::new(&[(String::new(), level)]), Sink::Daemon);
}

fn install(filter: Filter, sink: Sink) {
    let level = filter.highest();
    if log::set_boxed_logger(Box::new(Logger { filter, sink })).is_err() {
        return;
    }
    log::set_max_level(level);
    // A panic costs one request or one engine; the line about it must reach the journal too.
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed").to_owned();
        let reason = panic.payload_as_str().unwrap_or("no message");
        log::error!(place = place.as_str(), thread = thread.as_str(); "panic: {reason}");
    }));
}

/// What ONNX Runtime complained of last, and when: a provider of it may tell its log alone why it failed.
static COMPLAINT: Mutex<Option<(Instant, String)>> = Mutex::new(None);
/// An older one is of something else.
const COMPLAINT_AGE: Duration = Duration::from_secs(10);

/// Each is told once.
pub fn last_complaint() -> Option<String> {
    let (at, text) = lock(&COMPLAINT).take()?;
    (at.elapsed() < COMPLAINT_AGE).then_some(text)
}

fn note_complaint(record: &Record<'_>) {
    if record.level() == Level::Error && covers("ort", record.target()) {
        *lock(&COMPLAINT) = Some((Instant::now(), record.args().to_string()));
    }
}

struct Logger {
    filter: Filter,
    sink: Sink,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.lets_pass(metadata.target(), metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        note_complaint(record);
        match &self.sink {
            Sink::Journal(journal) => journal.log(record),
            Sink::Stderr { colours } => write_line(&line(&clock::now_at(), record, *colours)),
            Sink::Daemon => write_line(&line_for_daemon(record)),
        }
    }

    fn flush(&self) {}
}

enum Sink {
    Journal(JournalLog),
    Stderr { colours: bool },
    Daemon,
}

impl Sink {
    fn open(colours: Colours) -> Sink {
        // True only when JOURNAL_STREAM names what standard error is connected to.
        if connected_to_journal()
            && let Ok(journal) = JournalLog::empty()
        {
            return Sink::Journal(journal.with_syslog_identifier("vigia".to_owned()));
        }
        Sink::Stderr { colours: colours == Colours::Auto && io::stderr().is_terminal() }
    }
}

/// The most specific directive decides.
struct Filter {
    /// Longest module path first.
    directives: Vec<(String, LevelFilter)>,
}

impl Filter {
    fn new(levels: &[(String, LevelFilter)]) -> Filter {
        let quiet = QUIET.iter().map(|(module, level)| ((*module).to_owned(), *level));
        let quiet = quiet.filter(|(module, _)| levels.iter().all(|(chosen, _)| chosen != module));
        let mut directives: Vec<_> = quiet.chain(levels.iter().cloned()).collect();
        directives.sort_by_key(|(module, _)| std::cmp::Reverse(module.len()));
        Filter { directives }
    }

    fn lets_pass(&self, target: &str, level: Level) -> bool {
        self.directives.iter().find(|(module, _)| covers(module, target)).is_some_and(|(_, limit)| level <= *limit)
    }

    fn highest(&self) -> LevelFilter {
        self.directives.iter().map(|(_, level)| *level).max().unwrap_or(LevelFilter::Off)
    }
}

/// `vigia::media` covers `vigia::media::bus`, and not `vigia::mediator`.
fn covers(module: &str, target: &str) -> bool {
    module.is_empty() || target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// One write a line, so that lines of several threads do not mix. Nobody can be told of a failure.
fn write_line(line: &str) {
    drop(io::stderr().lock().write_all(line.as_bytes()));
}

/// `<LEVEL>module: message key=value`.
fn line_for_daemon(record: &Record<'_>) -> String {
    let mut line = format!("<{}>{}: ", record.level(), record.target());
    push_message(&mut line, record, "", "");
    line
}

/// Level, module and message of a line that an engine has logged; None for what a library has printed.
pub fn from_engine(line: &str) -> Option<(Level, &str, &str)> {
    let (level, rest) = line.strip_prefix('<')?.split_once('>')?;
    let (target, text) = rest.split_once(": ")?;
    Some((level.parse().ok()?, target, text))
}

/// `time LEVEL module: message key=value`.
fn line(time: &str, record: &Record<'_>, colours: bool) -> String {
    let (level_colour, dim, plain) =
        if colours { (colour(record.level()), "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let module = record.target().strip_prefix("vigia::").unwrap_or(record.target());
    let mut line = format!("{dim}{time}{plain} {level_colour}{:5}{plain} {dim}{module}:{plain} ", record.level());
    push_message(&mut line, record, dim, plain);
    line
}

fn push_message(line: &mut String, record: &Record<'_>, dim: &'static str, plain: &'static str) {
    push_escaped(line, &record.args().to_string());
    if record.key_values().visit(&mut Pairs { line, dim, plain }).is_err() {
        line.push_str(" (fields cannot be shown)");
    }
    line.push('\n');
}

struct Pairs<'a> {
    line: &'a mut String,
    dim: &'static str,
    plain: &'static str,
}

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        write!(self.line, " {}{key}={}", self.dim, self.plain)?;
        let quoted = value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"');
        if quoted {
            write!(self.line, "{value:?}")?;
        } else {
            push_escaped(self.line, &value);
        }
        Ok(())
    }
}

/// Text of clients must not forge lines or steer a terminal.
fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::Error => "\x1b[1;31m",
        Level::Warn => "\x1b[33m",
        Level::Info => "\x1b[32m",
        Level::Debug => "\x1b[36m",
        Level::Trace => "\x1b[2m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(levels: &[(&str, LevelFilter)]) -> Filter {
        Filter::new(&levels.iter().map(|(module, level)| ((*module).to_owned(), *level)).collect::<Vec<_>>())
    }

    #[test]
    fn what_onnx_runtime_complained_of_is_told_once() {
        let note = |level, target: &str, text: &str| {
            note_complaint(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
        };
        note(Level::Warn, "ort::logging", "slow");
        note(Level::Error, "vigia::media", "no sound");
        note(Level::Error, "ort::logging", "[defaultAllocator.cpp] OutOfMemory");
        assert_eq!(last_complaint().as_deref(), Some("[defaultAllocator.cpp] OutOfMemory"));
        assert_eq!(last_complaint(), None);
    }

    #[test]
    fn the_most_specific_directive_decides() {
        let filter =
            filter(&[("", LevelFilter::Info), ("vigia::media", LevelFilter::Debug), ("ort", LevelFilter::Off)]);
        assert!(filter.lets_pass("vigia::api", Level::Info));
        assert!(!filter.lets_pass("vigia::api", Level::Debug));
        assert!(filter.lets_pass("vigia::media::bus", Level::Debug));
        assert!(!filter.lets_pass("vigia::mediator", Level::Debug));
        assert!(!filter.lets_pass("ort::logging", Level::Error));
        assert!(!filter.lets_pass("tracing::span", Level::Error));
        assert_eq!(filter.highest(), LevelFilter::Debug);
    }

    #[test]
    fn a_quiet_library_speaks_when_it_is_asked_to() {
        assert!(!filter(&[("", LevelFilter::Debug)]).lets_pass("rumqttd::router", Level::Error));
        assert!(filter(&[("rumqttd", LevelFilter::Debug)]).lets_pass("rumqttd::router", Level::Debug));
    }

    #[test]
    fn a_line_has_time_level_module_message_and_fields() {
        let pairs = [("session", "s1"), ("reason", "gone away"), ("empty", "")];
        let record = Record::builder()
            .level(Level::Warn)
            .target("vigia::api::listen")
            .args(format_args!("client left"))
            .key_values(&pairs)
            .build();
        assert_eq!(
            line("T", &record, false),
            "T WARN  api::listen: client left session=s1 reason=\"gone away\" empty=\"\"\n"
        );
        assert!(line("T", &record, true).contains("\x1b[33mWARN "));
    }

    #[test]
    fn a_line_of_an_engine_is_taken_apart_by_the_daemon() {
        let pairs = [("step", "3")];
        let record = Record::builder()
            .level(Level::Warn)
            .target("vigia::runtime")
            .args(format_args!("slow: very"))
            .key_values(&pairs)
            .build();
        let line = line_for_daemon(&record);
        assert_eq!(from_engine(line.trim_end()), Some((Level::Warn, "vigia::runtime", "slow: very step=3")));
        assert_eq!(from_engine("<b>html</b>: no"), None);
        assert_eq!(from_engine("cudaMalloc failed"), None);
    }

    #[test]
    fn what_clients_send_cannot_forge_a_line() {
        let pairs = [("device", "a\x1b[2J")];
        let record = Record::builder()
            .level(Level::Info)
            .target("x")
            .args(format_args!("hello\nT ERROR fake"))
            .key_values(&pairs)
            .build();
        let line = line("T", &record, false);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!line.contains('\x1b'), "{line}");
    }
}
