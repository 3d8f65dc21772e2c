//! One entry of the catalogue: what a model is for, where it comes from, and of which files each variant consists.
//! Checked when it is read, so that nobody after this meets a name that leads elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    base::{ByteSize, Error, Result},
    flow::Task,
    models::catalogue::{Memory, safe_name, safe_path, whole_of},
    runtime::{Signature, TensorSpec},
};

/// The variant of a model that has no variants.
pub const ONLY: &str = "only";

/// How the suffix of a serialized plan of TensorRT ends; it stands for the whole ending of the file.
pub const PLAN: &str = ".engine";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    pub title: String,
    pub tasks: Vec<Task>,
    /// Which engine reads it.
    pub family: String,
    pub licence: Licence,
    /// Codes, or "multilingual", or "any" where language does not matter.
    #[serde(default)]
    pub languages: Vec<String>,
    /// On a hub.
    pub repository: Option<String>,
    /// A commit, or a branch whose commit is recorded at the first download.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// How to get what no hub has.
    pub source: Option<String>,
    /// Models that this one does not work without.
    #[serde(default)]
    pub with: Vec<String>,
    /// What every variant needs beside its graphs.
    #[serde(default)]
    files: Vec<String>,
    /// What is taken where the hub has it.
    #[serde(default)]
    optional: Vec<String>,
    /// Graphs by role, without suffix and `.onnx`.
    #[serde(default)]
    graphs: BTreeMap<String, String>,
    /// For each variant the suffixes of its graphs by role; none where it is empty.
    #[serde(default)]
    variants: BTreeMap<String, BTreeMap<String, String>>,
    default_variant: Option<String>,
    /// Files that another repository holds.
    #[serde(default)]
    elsewhere: BTreeMap<String, String>,
    #[serde(default)]
    known: Vec<Known>,
    #[serde(default)]
    pub memory: Memory,
    /// What a new TensorRT engine of this model has to reproduce; without it none is built.
    pub check: Option<Check>,
    /// What goes into and comes out of each graph that is a TensorRT plan, by role.
    #[serde(default)]
    pub plans: BTreeMap<String, Signature>,
}

/// Made-up inputs for graphs by role, with the shapes that the engine will serve. Graphs that are left out never run on
/// TensorRT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    #[serde(default)]
    pub seed: u64,
    /// How far an answer may be off, as a part of the output's largest number.
    pub tolerance: f32,
    pub graphs: BTreeMap<String, BTreeMap<String, TensorSpec>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    pub name: String,
    /// False: a person has to accept the licence before the first download.
    #[serde(default = "yes")]
    pub commercial: bool,
}

/// What is known of a file beforehand. A size may be known without a hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    pub path: String,
    pub size: Option<u64>,
    pub sha256: Option<String>,
}

fn main_branch() -> String {
    "main".to_owned()
}

fn yes() -> bool {
    true
}

impl Entry {
    pub fn variants(&self) -> Vec<&str> {
        if self.variants.is_empty() { vec![ONLY] } else { self.variants.keys().map(String::as_str).collect() }
    }

    pub fn default_variant(&self) -> &str {
        self.default_variant.as_deref().unwrap_or(ONLY)
    }

    /// The variant of that name, or the default one.
    pub fn variant<'a>(&'a self, name: Option<&'a str>) -> Result<&'a str> {
        let name = name.unwrap_or(self.default_variant());
        if self.variants().contains(&name) {
            return Ok(name);
        }
        Err(Error::invalid(format!("{} has no variant `{name}`", self.name))
            .hint(format!("it has: {}", self.variants().join(", "))))
    }

    /// What a variant cannot be without.
    pub fn required(&self, variant: &str) -> Vec<String> {
        let graphs = self.graphs.keys().filter_map(|role| self.graph(variant, role));
        self.files.iter().cloned().chain(graphs).collect()
    }

    /// The file of one graph of a variant: ONNX, or a plan of TensorRT where the suffix says so.
    pub fn graph(&self, variant: &str, role: &str) -> Option<String> {
        let graph = self.graphs.get(role)?;
        let suffix = self.variants.get(variant).and_then(|by_role| by_role.get(role)).map_or("", String::as_str);
        let ending = if suffix.ends_with(PLAN) { "" } else { ".onnx" };
        Some(format!("{graph}{suffix}{ending}"))
    }

    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.graphs.keys().map(String::as_str)
    }

    pub fn optional(&self) -> &[String] {
        &self.optional
    }

    pub fn known(&self, path: &str) -> Option<&Known> {
        self.known.iter().find(|known| known.path == path)
    }

    /// Where a file of this model is on the hub; the weights beside a graph are where the graph is.
    pub fn repository_of(&self, path: &str) -> Option<&str> {
        let elsewhere = self.elsewhere.iter().find(|(file, _)| *file == path || is_side_file(file, path));
        elsewhere.map(|(_, repository)| repository.as_str()).or(self.repository.as_deref())
    }

    /// The size of a variant, if every file of it is known.
    pub fn size(&self, variant: &str) -> Option<ByteSize> {
        let sizes = self.required(variant).into_iter().map(|path| self.known(&path)?.size);
        sizes.collect::<Option<Vec<u64>>>().map(|sizes| ByteSize(sizes.into_iter().fold(0, u64::saturating_add)))
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid(what));
        safe_name(&self.name)?;
        let variants = || self.variants.keys().flat_map(|variant| self.required(variant));
        let files = self.required(ONLY).into_iter().chain(variants()).chain(self.optional.iter().cloned());
        for path in files.chain(self.known.iter().map(|known| known.path.clone())) {
            safe_path(&path)?;
        }
        if self.required(self.default_variant()).is_empty() {
            return wrong("it names neither files nor graphs".to_owned());
        }
        for repository in self.repository.iter().chain(self.elsewhere.values()) {
            let parts: Vec<&str> = repository.split('/').collect();
            if parts.len() != 2 || parts.iter().any(|part| safe_name(part).is_err()) {
                return wrong(format!("`{repository}` is no repository: write owner/name"));
            }
        }
        if safe_name(&self.revision).is_err() {
            return wrong(format!("`{}` is no revision: a commit, a tag or a branch without `/`", self.revision));
        }
        if self.repository.is_none() && self.source.is_none() {
            return wrong("neither `repository` nor `source` says where it comes from".to_owned());
        }
        let role = |role: &String| !self.graphs.contains_key(role);
        if let Some(role) = self.variants.values().flat_map(BTreeMap::keys).find(|it| role(it)) {
            return wrong(format!("a variant has a suffix for `{role}`, which is none of the graphs"));
        }
        if !self.variants().contains(&self.default_variant()) {
            return wrong(format!("`default_variant` must be one of: {}", self.variants().join(", ")));
        }
        self.memory.check(&self.variants())?;
        if let Some(check) = &self.check {
            if check.graphs.is_empty() || !check.graphs.keys().all(|role| self.graphs.contains_key(role)) {
                return wrong("`check.graphs` must have roles of `graphs`, each with its inputs".to_owned());
            }
            let specs = || check.graphs.values().flat_map(BTreeMap::iter);
            if let Some((input, spec)) = specs().find(|(_, spec)| spec.fixed_shape().is_none()) {
                return wrong(format!("the check's input `{input}` has an open axis: `{spec}`"));
            }
            if !(check.tolerance > 0.0 && check.tolerance < 1.0) {
                return wrong("`check.tolerance` is a part of the largest number: between 0 and 1".to_owned());
            }
        }
        let suffixes = || self.variants.values().flat_map(BTreeMap::iter);
        if let Some((role, _)) = suffixes().find(|(role, it)| it.ends_with(PLAN) && !self.plans.contains_key(*role)) {
            return wrong(format!("`{role}` is a plan: `plans.{role}` must say its inputs and outputs"));
        }
        let is_hash = |hash: &String| hash.len() == 64 && hash.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        match self.known.iter().filter_map(|known| known.sha256.as_ref()).find(|hash| !is_hash(hash)) {
            Some(hash) => wrong(format!("`{hash}` is no SHA-256: 64 digits, small letters")),
            None => Ok(()),
        }
    }
}

/// Weights too large for a graph lie beside it: `model.onnx_data`, `model.onnx_data_1`, `model.onnx.data`. A part of them
/// is none.
pub(crate) fn is_side_file(graph: &str, path: &str) -> bool {
    graph.ends_with(".onnx")
        && whole_of(path).is_none()
        && path.strip_prefix(graph).is_some_and(|rest| rest.starts_with("_data") || rest.starts_with(".data"))
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Entry> {
    let broken = |cause: String| {
        Error::invalid(format!("{origin} is no entry of the catalogue: {cause}")).hint(
            "it needs name, title, tasks, family, files or graphs, repository or source, and a [licence] with its name; \
             `vigia models show whisper-base --entry` prints one",
        )
    };
    let entry: Entry = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|at| text.get(..at.start));
        let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1)).unwrap_or_default();
        broken(line + &error.message().replace('\n', ", "))
    })?;
    entry.check().map_err(|error| broken(error.full()))?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        name = "m"
        title = "M"
        tasks = ["transcribe"]
        family = "whisper"
        repository = "o/m"
        default_variant = "mixed"
        files = ["config.json"]
        known = [{ path = "config.json", size = 7 }, { path = "onnx/d_q4.onnx", size = 5 }]
        [licence]
        name = "MIT"
        [graphs]
        encoder = "onnx/e"
        decoder = "onnx/d"
        [variants]
        fp32 = {}
        mixed = { decoder = "_q4" }
        [elsewhere]
        "onnx/d_q4.onnx" = "p/q"
    "#;

    #[test]
    fn a_variant_has_its_suffix_per_graph() {
        let entry = parse(TEXT, "test").unwrap();
        assert_eq!(entry.required("fp32"), ["config.json", "onnx/d.onnx", "onnx/e.onnx"]);
        assert_eq!(entry.required("mixed"), ["config.json", "onnx/d_q4.onnx", "onnx/e.onnx"]);
        assert_eq!(entry.variant(None).unwrap(), "mixed");
        assert!(entry.variant(Some("fp8")).unwrap_err().full().contains("fp32, mixed"));
        assert_eq!(entry.size("mixed"), None, "the encoder is not known");
        assert!(entry.licence.commercial && entry.revision == "main");
    }

    #[test]
    fn weights_beside_a_graph_come_from_where_the_graph_does() {
        let entry = parse(TEXT, "test").unwrap();
        assert_eq!(entry.repository_of("onnx/d_q4.onnx_data_1"), Some("p/q"));
        assert_eq!(entry.repository_of("onnx/e.onnx"), Some("o/m"));
        assert!(is_side_file("a.onnx", "a.onnx.data") && !is_side_file("a.onnx", "a.onnx"));
        assert!(!is_side_file("config.json", "config.json_data"));
        assert!(!is_side_file("a.onnx", "a.onnx_data.part-0123456789abcdef"));
    }

    #[test]
    fn a_plan_and_a_check_say_what_goes_in() {
        let more = r#"
            [variants.trt]
            encoder = "_sm87.engine"
            [plans.encoder]
            inputs = { x = "f32 1x80x3000" }
            outputs = { y = "f16 1x1500x?" }
            [check]
            tolerance = 0.02
            graphs.encoder = { x = "f32 1x80x3000" }
            graphs.decoder = { ids = "i64 1x4 = 1" }
        "#;
        let text = TEXT.replace("[elsewhere]", &format!("{more}\n[elsewhere]"));
        let entry = parse(&text, "test").unwrap();
        assert_eq!(entry.required("trt"), ["config.json", "onnx/d.onnx", "onnx/e_sm87.engine"]);
        assert_eq!(entry.plans["encoder"].outputs["y"].to_string(), "f16 1x1500x?");
        assert_eq!(entry.check.unwrap().graphs["decoder"].len(), 1);
        for (part, instead, word) in [
            ("plans.encoder", "plans.other", "plans.encoder"),
            ("graphs.decoder", "graphs.vocoder", "roles"),
            ("ids = \"i64 1x4 = 1\"", "ids = \"i64 1x? = 1\"", "open axis"),
            ("ids = \"i64 1x4 = 1\"", "ids = \"u8 1\"", "no tensor"),
            ("tolerance = 0.02", "tolerance = 2.0", "tolerance"),
        ] {
            assert!(text.contains(part), "{part}");
            let error = parse(&text.replace(part, instead), "mine.toml").unwrap_err();
            assert!(error.full().contains(word), "{word}: {}", error.full());
        }
    }

    #[test]
    fn an_entry_that_leads_elsewhere_or_says_nonsense_is_refused() {
        for (part, instead, word) in [
            ("name = \"m\"", "name = \"../m\"", "no name of a model"),
            ("files = [\"config.json\"]", "files = [\"../../etc/passwd\"]", "no safe name"),
            ("encoder = \"onnx/e\"", "encoder = \"/onnx/e\"", "no safe name"),
            ("\"o/m\"", "\"o/m/../x\"", "write owner/name"),
            ("\"o/m\"", "\"o/m?x\"", "write owner/name"),
            ("\"p/q\"", "\"p\"", "write owner/name"),
            ("family =", "revision = \"a/b\"\nfamily =", "no revision"),
            ("default_variant = \"mixed\"", "default_variant = \"fp8\"", "must be one of: fp32, mixed"),
            ("mixed = { decoder", "mixed = { vocoder", "none of the graphs"),
            ("mixed = { decoder = \"_q4\"", "mixed = { decoder = \"_q4.engine\"", "plans.decoder"),
            ("size = 7", "size = 7, sha256 = \"00\"", "no SHA-256"),
            ("family", "famly", "famly"),
            ("repository = \"o/m\"", "revision = \"main\"", "neither `repository` nor `source`"),
            ("[elsewhere]", "[memory]\nweights = { q8 = \"1 MiB\" }\n[elsewhere]", "no variant: fp32, mixed"),
        ] {
            assert!(TEXT.contains(part), "{part}");
            let error = parse(&TEXT.replace(part, instead), "mine.toml").unwrap_err();
            let told = error.full();
            assert!(told.starts_with("mine.toml is no entry") && told.contains(word), "{word}: {told}");
        }
        let nothing =
            "name = \"m\"\ntitle = \"M\"\ntasks = []\nfamily = \"f\"\nsource = \"s\"\n[licence]\nname = \"MIT\"";
        assert!(parse(nothing, "mine.toml").unwrap_err().full().contains("neither files nor graphs"));
    }
}
