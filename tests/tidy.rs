//! Keeps the map in `src/lib.rs` true. Runs with plain `cargo test`.
//!
//! It reads text, not meaning: good enough to catch honest mistakes, which is its job. Comments, strings and test
//! modules are taken out first, so that they may name whatever they like.
#![allow(clippy::unwrap_used, reason = "clippy takes only the bodies of `#[test]` functions for tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lower line first: a module may use any module of an earlier line, never of its own or a later one.
const LAYERS: &[&[&str]] = &[
    &["base"],
    &["flow", "settings", "telemetry"],
    &["media", "runtime", "device", "store", "systemd"],
    &["segment", "models"],
    &["engines", "publish"],
    &["jobs"],
    &["sources"],
    &["api"],
    &["daemon"],
    &["cli"],
];

/// A crate, and the places that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("config", &["settings"]),
    ("systemd_journal_logger", &["telemetry"]),
    ("metrics_exporter_prometheus", &["telemetry"]),
    ("gstreamer", &["media"]),
    ("gstreamer_app", &["media"]),
    ("gst", &["media"]),
    ("imagesize", &["media"]),
    ("ort", &["runtime"]),
    ("libloading", &["runtime"]),
    ("nvml_wrapper", &["device"]),
    ("rusqlite", &["store"]),
    ("sd_notify", &["systemd.rs"]),
    ("rumqttc", &["publish"]),
    ("rumqttd", &["publish"]),
    ("hyper", &["api"]),
    ("hyper_util", &["api"]),
    ("tungstenite", &["api"]),
    ("tokio_tungstenite", &["api"]),
    ("ureq", &["models/hub.rs", "models/hub", "engines/remote"]),
    ("tar", &["models/archive.rs"]),
    ("postcard", &["engines/host"]),
    ("tokenizers", &["engines"]),
    ("half", &["runtime"]),
    ("flate2", &["engines"]),
    ("realfft", &["engines"]),
    ("clap", &["cli", "main.rs"]),
    ("indicatif", &["cli"]),
    ("anyhow", &["cli", "main.rs"]),
];

/// A call, and the places that may make it.
const CALLS: &[(&str, &[&str])] = &[
    ("env::var", &["settings/load.rs"]),
    // Other threads may be reading it: only before there are any.
    ("env::set_var", &["cli/card.rs"]),
    ("process::exit", &["main.rs"]),
    // The process of an engine whose daemon is gone ends while the engine still works.
    ("libc::_exit", &["engines/host/child.rs"]),
];

/// Folders whose files are meant where a text names them in backticks.
const FOLDERS: &[&str] = &[
    "src/",
    "pipelines/",
    "models/profiles/",
    "models/catalogue/",
    "systemd/",
    "jetson/",
    "tests/",
    "scripts/",
    "docs/",
    ".ci/",
];

#[test]
fn modules_use_only_lower_layers() {
    let mut problems = Vec::new();
    for source in sources() {
        let from = source.module();
        let Some(from_layer) = layer(&from) else { continue };
        for to in used_modules(&source) {
            if to != from && layer(&to).is_some_and(|to_layer| from_layer <= to_layer) {
                problems.push(format!("src/{}: {from} may not use {to}", source.path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_module_has_its_layer_and_every_layer_its_modules() {
    let mut found: Vec<String> = sources().iter().map(Source::module).collect();
    found.retain(|module| !["lib", "main"].contains(&module.as_str()));
    found.sort();
    found.dedup();
    let mut named: Vec<&str> = LAYERS.concat();
    named.sort();
    assert_eq!(found, named);
}

#[test]
fn libraries_stay_behind_their_fence() {
    let mut problems = Vec::new();
    for source in sources() {
        let crates = CRATES.iter().filter(|(name, _)| names_crate(&source.code, name));
        let calls = CALLS.iter().filter(|(call, _)| starts_of(&source.code, call).next().is_some());
        for (word, homes) in crates.chain(calls) {
            if !homes.iter().any(|home| source.path.starts_with(home)) {
                problems.push(format!("src/{}: {word} belongs in {homes:?}", source.path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let opens =
        |text: &str| text.strip_prefix("//! ").is_some_and(|rest| rest.trim_start() == rest && !rest.is_empty());
    let missing: Vec<PathBuf> = sources().into_iter().filter(|it| !opens(&it.text)).map(|it| it.path).collect();
    assert!(missing.is_empty(), "no `//!` on the first line: {missing:?}");
}

#[test]
fn files_that_texts_point_to_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for entry in root.read_dir().unwrap() {
        let path = entry.unwrap().path();
        // Not what is built or fetched: only `.ci` of the hidden folders is ours.
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.') && !path.ends_with(".ci");
        if path.is_dir() && !hidden && !path.ends_with("target") {
            walk(&path, "md", &mut texts);
        } else if path.extension().is_some_and(|it| it == "md") {
            texts.push(path);
        }
    }
    let mut problems = Vec::new();
    for path in texts {
        let text = fs::read_to_string(&path).unwrap();
        let (links, mentions) = pointers(&text);
        let links = links.into_iter().map(|link| match link.strip_prefix('/') {
            Some(from_root) => root.join(from_root),
            None => path.parent().unwrap().join(link),
        });
        for target in links.chain(mentions.into_iter().map(|mention| root.join(mention))) {
            if !target.exists() {
                problems.push(format!("{}: {} is not there", path.display(), target.display()));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn this_test_sees_what_it_should() {
    let used = |path: &str, text: &str| used_modules(&Source::new(path.into(), text.to_owned()));
    assert_eq!(
        used("jobs/queue.rs", "use crate::{base::{Error, Kind}, flow,\n store::Store};"),
        ["base", "flow", "store"]
    );
    assert_eq!(
        used("jobs/queue.rs", "use super::Job; use super::super::api::Key; fn f() { crate::cli::g() }"),
        ["cli", "api"]
    );
    assert_eq!(used("systemd.rs", "use super::api;"), ["api"]);
    assert_eq!(
        used("a.rs", "// crate::b\n/* crate::c /* */ */ let s = \"crate::d // \\\"\"; r#\"crate::e\"#; crate::f"),
        ["f"]
    );
    assert_eq!(
        used("a.rs", "#[cfg(test)]\nmod tests { const BRACE: char = '}'; use crate::b; }\nuse crate::c;"),
        ["c"]
    );
    assert_eq!(used("a.rs", "#[cfg(test)]\nmod tests;\nfn f<'a>(it: &'a str) -> &'a str { crate::c(it) }"), ["c"]);

    assert!(names_crate("let it = config::Config::builder();", "config"));
    assert!(names_crate("use gstreamer as media_library;", "gstreamer"));
    assert!(names_crate("#[from] ::ort::Error", "ort"));
    assert!(!names_crate("crate::settings::config::load(); my_config::x; let config = 1; sort::x", "config"));
    assert!(!names_crate("sort::by(a)", "ort"));

    let (links, mentions) = pointers(
        "[a](docs/a.md#part) [b](https://x.org/b) `src/lib.rs` `src/*.rs` `cargo run` `src/api/`\n```\n[c](c.md)\n```\n",
    );
    assert_eq!((links, mentions), (vec!["docs/a.md"], vec!["src/lib.rs", "src/api/"]));
}

struct Source {
    /// From `src`.
    path: PathBuf,
    text: String,
    /// Without comments, contents of strings, and tests.
    code: String,
}

impl Source {
    fn new(path: PathBuf, text: String) -> Source {
        let code = without_tests(&without_comments_and_strings(&text));
        Source { path, text, code }
    }

    fn module(&self) -> String {
        self.path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
    }

    /// How many `super::` lead from here to the root of the crate.
    fn depth(&self) -> usize {
        self.path.components().count() - usize::from(self.path.ends_with("mod.rs"))
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|line| line.contains(&module))
}

/// The `a` and `b` of `crate::a::X`, of `crate::{a::X, b::{Y, Z}}` and of `super::super::a::X`.
fn used_modules(source: &Source) -> Vec<String> {
    let mut modules = Vec::new();
    for root in ["crate::".to_owned(), "super::".repeat(source.depth())] {
        for at in starts_of(&source.code, &root) {
            let rest = &source.code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(list) => first_idents(list, &mut modules),
                None => modules.push(ident(rest)),
            }
        }
    }
    modules
}

/// The first word of each item of a list in braces, whose opening one is behind us.
fn first_idents(list: &str, modules: &mut Vec<String>) {
    let (mut depth, mut at_start) = (1, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_start = true,
            c if depth == 1 && at_start && !c.is_whitespace() => {
                modules.push(ident(&list[at..]));
                at_start = false;
            }
            _ => (),
        }
        if depth == 0 {
            break;
        }
    }
}

/// A crate is named by a path that begins with it, or by `use`; not by a module or a variable that is called the same.
fn names_crate(code: &str, name: &str) -> bool {
    starts_of(code, name).any(|at| {
        let before = code[..at].trim_end();
        let inside_a_path =
            before.strip_suffix("::").is_some_and(|it| it.ends_with(|c: char| c.is_alphanumeric() || c == '_'));
        let after = &code[at + name.len()..];
        let whole_word = !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        whole_word && !inside_a_path && (after.starts_with("::") || before.ends_with("use"))
    })
}

/// Where a word begins; `gst` is not in `my_gst`.
fn starts_of<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let starts = move |at: &usize| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(word).map(|(at, _)| at).filter(starts)
}

fn ident(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The text with comments gone and strings and characters empty, so that its braces are those of the code.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let in_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let raw = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r').filter(|_| !in_word);
        let hashes = raw.map_or(0, |it| it.len() - it.trim_start_matches('#').len());
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = after_block_comment(rest);
        } else if let Some(body) = raw.and_then(|it| it[hashes..].strip_prefix('"')) {
            let end = format!("\"{}", "#".repeat(hashes));
            rest = body.split_once(&end).map_or("", |(_, rest)| rest);
            code.push_str("\"\"");
        } else if c == '"' {
            rest = after_quoted(rest, '"');
            code.push_str("\"\"");
        } else if c == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            rest = after_quoted(rest, '\'');
            code.push_str("' '");
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

fn after_block_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    &text[at..]
}

/// What follows the quoted text that begins here.
fn after_quoted(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return &text[at + 1..],
            _ => (),
        }
    }
    ""
}

/// The code without the items marked `#[cfg(test)]`: each ends at its `;`, or at the brace that closes it.
fn without_tests(code: &str) -> String {
    let mut parts = code.split("#[cfg(test)]");
    let mut kept = parts.next().unwrap().to_owned();
    for part in parts {
        let mut depth = 0;
        let end = part.char_indices().find(|(_, c)| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            depth == 0 && matches!(c, '}' | ';')
        });
        kept.push_str(end.map_or("", |(at, _)| &part[at + 1..]));
    }
    kept
}

/// The files that a Markdown text links to, and those it names in backticks; nothing out of its code blocks.
fn pointers(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut links, mut mentions) = (Vec::new(), Vec::new());
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ', '#']).next());
            links.extend(targets.filter(|it| !it.is_empty() && !it.contains(':')));
            // Every second part of a line lies between backticks.
            mentions.extend(line.split('`').skip(1).step_by(2).filter(|word| {
                let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
                FOLDERS.iter().any(|folder| word.starts_with(folder)) && word.chars().all(plain)
            }));
        }
    }
    (links, mentions)
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, "rs", &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        Source::new(path.strip_prefix(&root).unwrap().to_owned(), text)
    };
    paths.into_iter().map(read).collect()
}

fn walk(dir: &Path, extension: &str, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, extension, paths);
        } else if path.extension().is_some_and(|it| it == extension) {
            paths.push(path);
        }
    }
}
