//! The defaults file as the reference: the schema of all keys, the nearest known key, and the merged values
//! printed in the same form.

use std::{collections::BTreeMap, sync::LazyLock};

use config::{FileFormat, Format, Value, ValueKind};

use crate::settings::{Leaf, layer, remotes};

/// The commented defaults: the reference of all keys.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// What a leaf is called that nobody changed.
pub(super) const DEFAULTS_ORIGIN: &str = "defaults";

/// Every known key with its default; the default's type is the key's type.
pub(super) fn schema() -> &'static BTreeMap<String, Value> {
    static SCHEMA: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
        // The file is part of the binary, and a test reads it: it cannot fail where a person could mend it.
        let parse = |text| FileFormat::Toml.parse(Some(&DEFAULTS_ORIGIN.to_owned()), text).unwrap_or_default();
        let mut schema = layer::flatten(parse(DEFAULTS));
        schema.extend(layer::flatten(parse(&remote_example())));
        schema
    });
    &SCHEMA
}

/// The table of one remote with its defaults: a comment in the defaults file, because its name is free.
pub(super) fn remote_example() -> String {
    let lines = DEFAULTS.lines().skip_while(|line| *line != "# [remotes.NAME]");
    let lines = lines.map_while(|line| line.strip_prefix("# "));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The default of a key, if there is such a key: `remotes.box.url` is known as `remotes.NAME.url`.
pub(super) fn known(key: &str) -> Option<&'static Value> {
    match remotes::split(key) {
        Some((name, rest)) if remotes::is_name(name) => schema().get(&general(rest)),
        Some(_) => None,
        None => schema().get(key),
    }
}

/// A key of any remote, as the schema has it.
pub(super) fn general(rest: &str) -> String {
    format!("{}NAME.{rest}", remotes::SECTION)
}

/// The known key that was probably meant.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    // A third of the letters wrong is another word, not a slip.
    let limit = (key.len() / 3).max(2);
    let (best, distance) = schema().keys().map(|known| (known, distance(key, known))).min_by_key(|(_, it)| *it)?;
    (distance <= limit).then_some(best.as_str())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// A value as it stands in a settings file.
pub(super) fn literal(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => toml::Value::String(text.clone()).to_string(),
        ValueKind::Float(number) => toml::Value::Float(*number).to_string(),
        ValueKind::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// The merged values as a settings file, each with where it came from.
pub fn effective(leaves: &[Leaf]) -> String {
    let mut text = String::new();
    let mut section = "";
    let width = leaves.iter().map(|leaf| name(leaf).len() + leaf.value.chars().count()).max().unwrap_or(0).min(60);
    for leaf in leaves {
        let (in_section, name) = leaf.key.rsplit_once('.').unwrap_or(("", &leaf.key));
        if in_section != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}[{in_section}]\n"));
            section = in_section;
        }
        let pad = width.saturating_sub(name.len() + leaf.value.chars().count());
        text.push_str(&format!("{name} = {}{:pad$}  # {}\n", leaf.value, "", leaf.origin));
    }
    text
}

fn name(leaf: &Leaf) -> &str {
    leaf.key.rsplit('.').next().unwrap_or(&leaf.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flow::Task, settings::Settings};

    #[test]
    fn the_structs_and_the_defaults_have_the_same_keys() {
        // Every struct denies unknown fields and none has a default: a key without a field fails here, and so
        // does a field without a key.
        let settings: Settings = toml::from_str(DEFAULTS).unwrap();
        let mut tasks: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
        tasks.sort_unstable();
        assert_eq!(settings.tasks.keys().collect::<Vec<_>>(), tasks);
        assert_eq!(settings.model_for(Task::Vad), Some("silero-vad"));
        assert_eq!(settings.model_for(Task::Chat), None);
        assert!(schema().len() > 50, "{}", schema().len());

        let with_remote: Settings = toml::from_str(&format!("{DEFAULTS}\n{}", remote_example())).unwrap();
        assert_eq!(with_remote.remotes["NAME"].timeout_secs, 120);
        assert_eq!(schema().keys().filter(|key| key.starts_with("remotes.NAME.")).count(), 19);
    }

    #[test]
    fn the_name_of_a_remote_is_free_and_its_keys_are_not() {
        assert!(known("remotes.box-2.url").is_some());
        for key in
            ["remotes.box.ulr", "remotes.NAME.url", "remotes.a b.url", "remotes..url", "remotes.box", "remotes.a.b.url"]
        {
            assert!(known(key).is_none(), "{key}");
        }
    }

    #[test]
    fn each_key_has_a_comment_above_it() {
        // What all tasks have is explained once, above the first of them.
        let (settings, tasks) = DEFAULTS.split_once("[tasks.").unwrap();
        let of_all_tasks = settings.lines().rev().take_while(|line| line.starts_with('#')).collect::<String>();
        let is_key = |line: &str| line.contains(" = ") && !line.starts_with('#');
        let example = remote_example();
        for text in [settings, tasks, &example] {
            for (above, line) in text.lines().zip(text.lines().skip(1)).filter(|(_, line)| is_key(line)) {
                let (key, _) = line.split_once(" = ").unwrap();
                let of_a_task = text == tasks && of_all_tasks.contains(&format!("`{key}`"));
                assert!(above.starts_with("# ") || of_a_task, "no comment above `{line}`");
            }
        }
    }

    #[test]
    fn a_slip_finds_the_key_that_was_meant() {
        assert_eq!(nearest("server.lisen"), Some("server.listen"));
        assert_eq!(nearest("serve.listen"), Some("server.listen"));
        assert_eq!(nearest("vad.treshold"), Some("vad.threshold"));
        assert_eq!(nearest("weather.tomorrow"), None);
    }
}
