//! One source of settings as leaves (`server.listen` → value), each compared with the schema: unknown keys and
//! wrong types are faults here, so that what is merged later can only be right. Pure: reads no file.

use std::collections::BTreeMap;

use config::{FileFormat, Format, Map, Value, ValueKind};

use crate::settings::{
    Fault, check,
    manual::{general, known, literal, nearest, schema},
    remotes,
};

/// The good leaves of one source. What was wrong went to the faults.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(pub(super) BTreeMap<String, Value>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

impl Layer {
    /// A TOML file: the profile, vigia.toml, a file of conf.d.
    pub(super) fn from_toml(origin: &str, text: &str, faults: &mut Vec<Fault>) -> Layer {
        let table = match FileFormat::Toml.parse(Some(&origin.to_owned()), text) {
            Ok(table) => table,
            Err(error) => {
                faults.push(Fault::new("", origin, broken_toml(&error.to_string())));
                return Layer::default();
            }
        };
        let mut layer = Layer::default();
        for (key, value) in flatten(table) {
            layer.take(key, value, faults);
        }
        layer
    }

    /// One `key=value` of the environment or of `--set`: text, read as the type that the schema wants.
    pub(super) fn take_text(&mut self, key: &str, text: &str, origin: &str, faults: &mut Vec<Fault>) {
        let Some(default) = known(key) else {
            faults.push(Fault::new(key, origin, unknown(key)));
            return;
        };
        match read(text, &default.kind) {
            Some(kind) => self.take(key.to_owned(), Value::new(Some(&origin.to_owned()), kind), faults),
            None => {
                let problem = format!("expected {}, found `{text}`", expected(&default.kind));
                faults.push(Fault::new(key, origin, problem));
            }
        }
    }

    fn take(&mut self, key: String, value: Value, faults: &mut Vec<Fault>) {
        let problem = match known(&key) {
            None => Some(unknown(&key)),
            Some(default) if !same_type(&default.kind, &value.kind) && !is_number_too(&key, &value.kind) => {
                Some(format!("expected {}, found {}", expected(&default.kind), found(&value)))
            }
            Some(_) => check::leaf(&key, &value.kind).err(),
        };
        match problem {
            Some(problem) => faults.push(Fault::new(key, value.origin().unwrap_or_default(), problem)),
            None => {
                self.0.insert(key, value);
            }
        }
    }
}

/// Tables within tables become dotted keys. An empty table sets nothing.
pub(super) fn flatten(table: Map<String, Value>) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    let mut open: Vec<(String, Value)> = table.into_iter().collect();
    while let Some((key, value)) = open.pop() {
        if let ValueKind::Table(inner) = value.kind {
            open.extend(inner.into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
        } else {
            leaves.insert(key, value);
        }
    }
    leaves
}

fn unknown(key: &str) -> String {
    if let Some((name, rest)) = remotes::split(key) {
        if !remotes::is_name(name) {
            return format!("`{name}` is no name for a remote: use small letters, digits, `-` and `_`");
        }
        return match nearest(&general(rest)).and_then(|it| remotes::split(it)) {
            Some((_, nearest)) => format!("unknown key; did you mean `{}{name}.{nearest}`?", remotes::SECTION),
            None => "unknown key; `vigia settings` prints all of them".to_owned(),
        };
    }
    let section = format!("{key}.");
    let is_remote = key.strip_prefix(remotes::SECTION).is_some_and(remotes::is_name);
    if is_remote || schema().keys().any(|known| known.starts_with(&section)) {
        return format!("is a section: write [{key}] and its keys below it");
    }
    match nearest(key) {
        Some(nearest) => format!("unknown key; did you mean `{nearest}`?"),
        None => "unknown key; `vigia settings` prints all of them".to_owned(),
    }
}

fn same_type(schema: &ValueKind, given: &ValueKind) -> bool {
    match (schema, given) {
        (ValueKind::Boolean(_), ValueKind::Boolean(_))
        | (ValueKind::I64(_), ValueKind::I64(_))
        | (ValueKind::Float(_), ValueKind::Float(_) | ValueKind::I64(_))
        | (ValueKind::String(_), ValueKind::String(_)) => true,
        (ValueKind::Array(_), ValueKind::Array(items)) => {
            items.iter().all(|item| matches!(item.kind, ValueKind::String(_)))
        }
        _ => false,
    }
}

fn is_number_too(key: &str, given: &ValueKind) -> bool {
    matches!(given, ValueKind::I64(_)) && check::takes_numbers_too(key)
}

fn expected(schema: &ValueKind) -> &'static str {
    match schema {
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) => "a whole number",
        ValueKind::Float(_) => "a number",
        ValueKind::Array(_) => "a list of texts such as [\"a\", \"b\"]",
        _ => "a text in quotes",
    }
}

fn found(value: &Value) -> String {
    let literal = literal(value);
    match value.kind {
        ValueKind::Boolean(_) | ValueKind::Array(_) => literal,
        ValueKind::String(_) => format!("the text {literal}"),
        _ => format!("the number {literal}"),
    }
}

/// Text of the environment or the command line as the schema's type; `None`: it is not of that type.
fn read(text: &str, schema: &ValueKind) -> Option<ValueKind> {
    let trimmed = text.trim();
    match schema {
        ValueKind::Boolean(_) => trimmed.parse().ok().map(ValueKind::Boolean),
        ValueKind::I64(_) => trimmed.parse().ok().map(ValueKind::I64),
        ValueKind::Float(_) => trimmed.parse().ok().map(ValueKind::Float),
        ValueKind::Array(_) if trimmed.starts_with('[') => {
            let mut table = FileFormat::Toml.parse(None, &format!("list = {trimmed}")).ok()?;
            Some(table.remove("list")?.kind)
        }
        ValueKind::Array(_) => {
            let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(ValueKind::Array(items.map(|item| Value::new(None, item)).collect()))
        }
        _ => Some(ValueKind::String(text.to_owned())),
    }
}

/// TOML's own message is a drawing of several lines; its place and its reason fit one.
fn broken_toml(message: &str) -> String {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let place = lines.next().unwrap_or_default().replace("TOML parse error", "not TOML");
    match lines.next_back() {
        Some(reason) => format!("{place}: {reason}"),
        None => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        Layer::from_toml("vigia.toml", text, &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_known_one() {
        assert_eq!(
            faults("[server]\nlisen = \"x\""),
            ["server.lisen (vigia.toml): unknown key; did you mean `server.listen`?"]
        );
        assert!(faults("server = 3")[0].contains("is a section: write [server]"));
        assert!(faults("[weather]\ntomorrow = 1")[0].contains("`vigia settings` prints all of them"));
        assert!(faults("[server.listen]\nport = 1")[0].contains("server.listen.port"));
        assert_eq!(
            faults("[remotes.box]\nkeyfile = \"x\""),
            ["remotes.box.keyfile (vigia.toml): unknown key; did you mean `remotes.box.key_file`?"]
        );
        assert!(faults("[remotes.Box]\nurl = \"http://box\"")[0].contains("`Box` is no name for a remote"));
        assert!(faults("[remotes]\nbox = 1")[0].contains("is a section: write [remotes.box]"));
        assert!(faults("[remotes.box]\nretries = \"2\"")[0].contains("expected a whole number"));
    }

    #[test]
    fn wrong_types_say_what_is_expected_and_what_was_found() {
        let text = "[server]\nallow_anonymous = \"yes\"\nmax_connections = 1.5\nmax_body = 3\ncors_origins = [1]";
        let faults = faults(text);
        assert_eq!(faults.len(), 4, "{faults:#?}");
        for expected in [
            "server.allow_anonymous (vigia.toml): expected true or false, found the text \"yes\"",
            "server.max_connections (vigia.toml): expected a whole number, found the number 1.5",
            "server.max_body (vigia.toml): expected a text in quotes, found the number 3",
            "server.cors_origins (vigia.toml): expected a list of texts such as [\"a\", \"b\"], found [1]",
        ] {
            assert!(faults.iter().any(|fault| fault == expected), "{expected}\n{faults:#?}");
        }
    }

    #[test]
    fn a_whole_number_is_a_number_too() {
        assert!(faults("[vad]\nmax_segment_secs = 20").is_empty());
    }

    #[test]
    fn a_card_is_a_number_with_or_without_quotes_or_auto() {
        for good in ["1", "\"1\"", "\"auto\""] {
            assert_eq!(faults(&format!("[providers]\ndevice_id = {good}")), [""; 0], "{good}");
        }
        for bad in ["64", "-1", "1.5", "true", "\"\""] {
            assert_eq!(faults(&format!("[providers]\ndevice_id = {bad}")).len(), 1, "{bad}");
        }
    }

    #[test]
    fn broken_toml_has_its_line_and_reason() {
        let faults = faults("[node]\nname = \n");
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("vigia.toml: not TOML at line 2, column"), "{faults:?}");
        assert_eq!(faults[0].lines().count(), 1);
    }

    #[test]
    fn text_is_read_as_the_type_of_its_key() {
        let mut faults = Vec::new();
        let mut layer = Layer::default();
        for (key, text) in [
            ("server.allow_anonymous", "true"),
            ("server.max_connections", " 12 "),
            ("vad.threshold", "0.4"),
            ("node.name", "12"),
            ("server.cors_origins", "http://a, http://b"),
        ] {
            layer.take_text(key, text, "--set", &mut faults);
        }
        assert!(faults.is_empty(), "{faults:?}");
        let literals: Vec<String> = layer.0.values().map(literal).collect();
        assert_eq!(literals, ["\"12\"", "true", "[\"http://a\", \"http://b\"]", "12", "0.4"]);

        layer.take_text("server.cors_origins", "[\"http://c\"]", "--set", &mut faults);
        assert_eq!(literal(&layer.0["server.cors_origins"]), "[\"http://c\"]");
        assert!(faults.is_empty(), "{faults:?}");

        for (key, text) in [("server.max_connections", "many"), ("server.allow_anonymous", "1"), ("nod.name", "x")] {
            layer.take_text(key, text, "--set", &mut faults);
        }
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].to_string().contains("expected a whole number, found `many`"));
    }
}
