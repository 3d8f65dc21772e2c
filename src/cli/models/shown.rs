//! What `vigia models` prints of what is known and what is here, for people and as JSON. Changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::Shelf;
use crate::{
    base::{ByteSize, Error, Result},
    cli::table::{Report, Row, Section, State, columns},
    models::{
        catalogue::{self, Entry},
        installed::{self, Found, Verdict},
    },
};

impl Shelf {
    pub(super) fn list(&self, json: bool) -> Result<String> {
        let mut listed = Vec::new();
        for entry in self.catalogue.entries() {
            listed.push((Some(entry), entry.name.clone(), installed::find(entry, &self.places)?));
        }
        let unlisted = installed::unlisted(&self.catalogue, &self.places)?;
        listed.extend(unlisted.into_iter().map(|(name, found)| (None, name, Some(found))));
        if json {
            let model = |(entry, name, found): (Option<&Entry>, String, Option<Found>)| json!({"name": name, "entry": entry, "found": found});
            return pretty(&listed.into_iter().map(model).collect::<Vec<_>>());
        }
        let rows: Vec<[String; 5]> = listed
            .into_iter()
            .map(|(entry, name, found)| {
                let installed = installed(entry, found.as_ref());
                let size = size(entry, found.as_ref());
                let tasks = entry.map_or_else(|| "?".to_owned(), tasks);
                [name, tasks, size, entry.map_or_else(|| "?".to_owned(), licence), installed]
            })
            .collect();
        Ok(columns(["name", "task", "size", "licence", "installed"], &rows))
    }

    pub(super) fn show(&self, name: &str, json: bool) -> Result<String> {
        let found = self.found(name)?;
        // A bare folder has no entry; what is neither has nothing to show.
        let entry = if found.is_some() { self.catalogue.get(name) } else { Some(self.catalogue.require(name)?) };
        if json {
            return pretty(&json!({"name": name, "entry": entry, "found": found}));
        }
        let fact = |name: &str, value: String| Row::new(State::Info, name, value);
        let mut rows = Vec::new();
        if let Some(entry) = entry {
            rows.push(fact("what", entry.title.clone()));
            rows.push(fact("task", tasks(entry)));
            rows.push(fact("languages", entry.languages.join(", ")));
            rows.push(fact("licence", licence(entry)));
            rows.push(match (&entry.repository, &entry.source) {
                (Some(repository), _) => fact("from", format!("{repository} at {}", entry.revision)),
                (None, source) => fact("from", source.clone().unwrap_or_default()),
            });
            if entry.variants().len() > 1 {
                let usual = entry.default_variant();
                rows.push(fact("variants", format!("{} (usual: {usual})", entry.variants().join(", "))));
            }
            if !entry.with.is_empty() {
                rows.push(fact("with", entry.with.join(", ")));
            }
            rows.push(fact("files", entry.required(entry.default_variant()).join(", ")));
            for (what, told) in entry.memory.told() {
                rows.push(fact(what, told.join(", ")));
            }
        } else if let Some(found) = &found {
            rows.push(fact("what", "a folder of your own, which no entry describes".to_owned()));
            let graphs = installed::files_below(&found.dir)?.into_keys().filter(|path| path.ends_with(".onnx"));
            rows.push(fact("graphs", graphs.collect::<Vec<_>>().join(", ")));
        }
        rows.push(match &found {
            Some(found) if !found.variants.is_empty() => {
                Row::new(State::Good, "installed", installed(entry, Some(found)))
            }
            Some(_) => Row::new(State::Warn, "installed", "in part").hint(how_to_complete(entry, name)),
            None => Row::new(State::Warn, "installed", "no").hint(how_to_get(entry, name)),
        });
        if let Some(found) = &found {
            rows.push(fact("folder", format!("{} ({})", found.dir.display(), ByteSize(found.bytes))));
        }
        Ok(Report::new(vec![Section { title: "Model", rows }]).to_text(false))
    }

    pub(super) fn entry(&self, name: &str) -> Result<String> {
        let text = catalogue::built_in(name).map(str::to_owned);
        text.ok_or_else(|| match self.catalogue.require(name) {
            Ok(_) => Error::invalid(format!("{name} is an entry of your own")).hint("it is in /etc/vigia/models.d"),
            Err(error) => error,
        })
    }

    /// What to print, and whether every file is what it was.
    pub(super) fn verify(&self, names: &[String], json: bool) -> Result<(String, bool)> {
        let mut verdicts = BTreeMap::new();
        for name in if names.is_empty() { self.installed()? } else { names.to_vec() } {
            let found = self.folder(&name)?;
            let files = installed::verify(self.catalogue.get(&name), &found.dir)?;
            verdicts.insert(name, files);
        }
        let wrong = |verdict: &Verdict| matches!(verdict, Verdict::Missing | Verdict::Changed);
        let right = !verdicts.values().flat_map(BTreeMap::values).any(wrong);
        if json {
            return Ok((pretty(&json!({"ok": right, "models": verdicts}))?, right));
        }
        let mut text = String::new();
        for (name, files) in &verdicts {
            let count = |wanted: Verdict| files.values().filter(|verdict| **verdict == wanted).count();
            let good = count(Verdict::Good);
            let unknown = match count(Verdict::Unknown) {
                0 => String::new(),
                n => format!(", {n} with nothing to compare with"),
            };
            let mark = if files.values().any(wrong) { '✗' } else { '✓' };
            text.push_str(&format!("{mark} {name}: {good} of {} files as they were{unknown}\n", files.len()));
            for (path, verdict) in files.iter().filter(|(_, verdict)| wrong(verdict)) {
                let what = if *verdict == Verdict::Missing { "missing" } else { "changed" };
                text.push_str(&format!("    {what}: {path}\n"));
            }
        }
        if verdicts.is_empty() {
            text.push_str("no model is installed\n");
        }
        Ok((text, right))
    }

    /// Everything that is here, if only in part.
    fn installed(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.catalogue.entries() {
            if installed::find(entry, &self.places)?.is_some() {
                names.push(entry.name.clone());
            }
        }
        names.extend(installed::unlisted(&self.catalogue, &self.places)?.into_keys());
        Ok(names)
    }
}

fn tasks(entry: &Entry) -> String {
    entry.tasks.iter().map(|task| task.name()).collect::<Vec<_>>().join(", ")
}

fn licence(entry: &Entry) -> String {
    let name = &entry.licence.name;
    if entry.licence.commercial { name.clone() } else { format!("{name} (not commercial)") }
}

/// What it takes here, or what would come.
fn size(entry: Option<&Entry>, found: Option<&Found>) -> String {
    let known = entry.and_then(|entry| entry.size(entry.default_variant()));
    found.map(|found| ByteSize(found.bytes)).or(known).map_or_else(|| "?".to_owned(), |size| size.to_string())
}

fn installed(entry: Option<&Entry>, found: Option<&Found>) -> String {
    match found {
        None => "no".to_owned(),
        Some(found) if found.variants.is_empty() => "in part".to_owned(),
        Some(found) if entry.is_some_and(|entry| entry.variants().len() > 1) => {
            let others = if found.unfinished.is_empty() { "" } else { ", another in part" };
            found.variants.join(", ") + others
        }
        Some(_) => "yes".to_owned(),
    }
}

/// What is here in part: it is being fetched, or that was cut, or somebody has copied half of it.
pub(super) fn how_to_complete(entry: Option<&Entry>, name: &str) -> String {
    match entry {
        Some(_) => how_to_get(entry, name),
        None => "copy the rest of it there; a file whose name ends with .part-… is not whole".to_owned(),
    }
}

fn how_to_get(entry: Option<&Entry>, name: &str) -> String {
    let source = entry.and_then(|entry| entry.source.clone());
    source.unwrap_or_else(|| format!("vigia models pull {name}"))
}

fn pretty(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Error::internal("this cannot be written as JSON").cause(error))
}
