//! Reads the sources in their order and merges them; the only place that reads the environment.
//!
//! Never stops at the first fault: every source is read, every leaf of it is checked, and all that is wrong is
//! reported together. A leaf at fault is left out, so that the rest can still be checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use config::{Config, Source, Value};

use crate::settings::{
    Fault, Settings, check,
    layer::{Layer, flatten},
    manual::{DEFAULTS, DEFAULTS_ORIGIN, literal},
    remotes,
};

const ENV_PREFIX: &str = "VIGIA__";

/// Where settings come from besides the defaults. The default reads no file and no environment.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The device profile's settings, once it is chosen.
    pub profile: Option<ProfileText>,
    /// Folder of `vigia.toml` and `conf.d/`, `/etc/vigia` in production.
    pub etc_dir: Option<PathBuf>,
    /// Read instead of `<etc_dir>/vigia.toml`; unlike that, it must exist.
    pub config: Option<PathBuf>,
    /// The process environment.
    pub env: Vec<(String, String)>,
    /// `section.key=value`, as given to `--set`.
    pub sets: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ProfileText {
    pub name: String,
    pub toml: String,
}

/// One merged value, as text, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    pub key: String,
    pub value: String,
    pub origin: String,
}

#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// Every key, sorted, for `vigia settings --effective` and for naming origins.
    pub leaves: Vec<Leaf>,
}

impl Loaded {
    /// Where a key got its value.
    pub fn origin(&self, key: &str) -> &str {
        self.leaves.iter().find(|leaf| leaf.key == key).map_or(DEFAULTS_ORIGIN, |leaf| &leaf.origin)
    }
}

impl Sources {
    /// What a process started by a person or by systemd has.
    pub fn of_process(config: Option<PathBuf>, sets: Vec<String>) -> Sources {
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Sources { profile: None, etc_dir: Some(PathBuf::from("/etc/vigia")), config, env, sets }
    }

    /// A variable of the environment; empty counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(it, value)| it == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

/// The variables of this process that are wanted, for a process that is given nothing else.
pub fn variables(wanted: impl Fn(&str) -> bool) -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(&wanted)).collect()
}

/// The settings, or everything that is wrong with them.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut layers = layers(sources, &mut faults);
    let set = leaves(&layers);
    layers.insert(0, Layer(remotes::defaults(set.keys().map(String::as_str))));
    layers.push(fill_in(&set, sources));
    let leaves = leaves(&layers);
    let settings: Settings = match merge(&layers).and_then(Config::try_deserialize) {
        Ok(settings) => settings,
        Err(error) => {
            // Rules and structs are kept equal by tests; should they differ, this is still no panic.
            faults.push(Fault::new("", "settings", error.to_string()));
            return Err(faults);
        }
    };

    // A relation with a key that is at fault itself would be compared with a value that nobody chose.
    let at_fault: BTreeSet<String> = faults.iter().map(|fault| fault.key.clone()).collect();
    let relations = check::relations(&settings).into_iter();
    let relations = relations.map(|(keys, problem)| (keys.iter().map(|&key| key.to_owned()).collect(), problem));
    for (keys, problem) in relations.chain(remotes::relations(&settings)) {
        let keys: Vec<String> = keys;
        if keys.iter().any(|key| at_fault.contains(key)) {
            continue;
        }
        // The one that somebody set is the one to change.
        let mut origins = keys.iter().filter_map(|key| leaves.get(key)?.origin());
        let origin = origins.find(|origin| *origin != DEFAULTS_ORIGIN).unwrap_or(DEFAULTS_ORIGIN);
        faults.push(Fault::new(&keys[0], origin, problem));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let leaves = leaves
        .into_iter()
        .map(|(key, value)| {
            let origin = value.origin().unwrap_or(DEFAULTS_ORIGIN).to_owned();
            Leaf { key, value: literal(&value), origin }
        })
        .collect();
    Ok(Loaded { settings, leaves })
}

/// What `device.profile` says and where, before the profile can be a source itself. Faults are left to `load`.
pub fn wanted_profile(sources: &Sources) -> (String, String) {
    let leaves = leaves(&layers(sources, &mut Vec::new()));
    let wanted = leaves.get("device.profile");
    let origin = wanted.and_then(Value::origin).unwrap_or(DEFAULTS_ORIGIN).to_owned();
    let name = wanted.and_then(|value| value.clone().into_string().ok()).unwrap_or_else(|| "auto".to_owned());
    (name, origin)
}

/// Which card `providers.device_id` names, if it names one, and where: a profile is chosen by what that card has. Faults are
/// left to `load`.
pub fn wanted_card(sources: &Sources) -> Option<(u32, String)> {
    let leaves = leaves(&layers(sources, &mut Vec::new()));
    let wanted = leaves.get("providers.device_id")?;
    let number = wanted.clone().into_string().ok()?.trim().parse().ok()?;
    Some((number, wanted.origin().unwrap_or(DEFAULTS_ORIGIN).to_owned()))
}

/// Lowest first.
fn layers(sources: &Sources, faults: &mut Vec<Fault>) -> Vec<Layer> {
    let mut layers = vec![Layer::from_toml(DEFAULTS_ORIGIN, DEFAULTS, faults)];
    if let Some(ProfileText { name, toml }) = &sources.profile {
        layers.push(Layer::from_toml(&format!("profile {name}"), toml, faults));
    }
    for (path, must_exist) in files(sources, faults) {
        let origin = path.display().to_string();
        match fs::read_to_string(&path) {
            Ok(text) => layers.push(Layer::from_toml(&origin, &text, faults)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => (),
            Err(error) => faults.push(Fault::new("", origin, format!("cannot be read: {error}"))),
        }
    }
    layers.push(environment(&sources.env, faults));
    layers.push(command_line(&sources.sets, faults));
    layers
}

/// The settings files in their order, and whether each must be there.
fn files(sources: &Sources, faults: &mut Vec<Fault>) -> Vec<(PathBuf, bool)> {
    let mut files = Vec::new();
    match (&sources.config, &sources.etc_dir) {
        (Some(config), _) => files.push((config.clone(), true)),
        (None, Some(etc_dir)) => files.push((etc_dir.join("vigia.toml"), false)),
        (None, None) => (),
    }
    if let Some(etc_dir) = &sources.etc_dir {
        let conf_d = etc_dir.join("conf.d");
        match toml_files(&conf_d) {
            Ok(found) => files.extend(found.into_iter().map(|path| (path, true))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => {
                faults.push(Fault::new("", conf_d.display().to_string(), format!("cannot be read: {error}")));
            }
        }
    }
    files
}

fn toml_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn environment(env: &[(String, String)], faults: &mut Vec<Fault>) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in env {
        if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
            let key = rest.to_ascii_lowercase().replace("__", ".");
            layer.take_text(&key, value, &format!("environment {name}"), faults);
        }
    }
    layer
}

fn command_line(sets: &[String], faults: &mut Vec<Fault>) -> Layer {
    let mut layer = Layer::default();
    for set in sets {
        match set.split_once('=') {
            Some((key, value)) => layer.take_text(key.trim(), value, "--set", faults),
            None => faults.push(Fault::new(set, "--set", "expected section.key=value")),
        }
    }
    layer
}

fn merge(layers: &[Layer]) -> Result<Config, config::ConfigError> {
    layers.iter().cloned().fold(Config::builder(), |builder, layer| builder.add_source(layer)).build()
}

/// The winning leaves, each with its origin.
fn leaves(layers: &[Layer]) -> BTreeMap<String, Value> {
    merge(layers).and_then(|merged| merged.collect()).map(flatten).unwrap_or_default()
}

/// What an empty value stands for, where that depends on the machine or the process.
fn fill_in(leaves: &BTreeMap<String, Value>, sources: &Sources) -> Layer {
    let mut layer = Layer::default();
    let mut fill = |key: &str, found: Option<(String, &str)>| {
        let empty = leaves.get(key).is_some_and(|value| literal(value) == "\"\"");
        if let Some((value, origin)) = found.filter(|_| empty) {
            layer.0.insert(key.to_owned(), Value::new(Some(&origin.to_owned()), value));
        }
    };
    fill("node.name", Some((host_name(), "host name")));
    fill("store.dir", Some(store_dir(sources)));
    let library = sources.variable("ORT_DYLIB_PATH");
    fill("runtime.library", library.map(|path| (path.to_owned(), "environment ORT_DYLIB_PATH")));
    layer
}

fn store_dir(sources: &Sources) -> (String, &'static str) {
    if let Some(dirs) = sources.variable("STATE_DIRECTORY") {
        // systemd lists several folders with colons; the first is ours.
        let first = dirs.split(':').next().unwrap_or(dirs);
        return (first.to_owned(), "environment STATE_DIRECTORY");
    }
    if let Some(data) = sources.variable("XDG_DATA_HOME") {
        return (format!("{data}/vigia"), "environment XDG_DATA_HOME");
    }
    if let Some(home) = sources.variable("HOME") {
        return (format!("{home}/.local/share/vigia"), "environment HOME");
    }
    // A service without a home and without StateDirectory.
    ("/var/lib/vigia".to_owned(), "no home folder")
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "vigia".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(toml: &str) -> Option<ProfileText> {
        Some(ProfileText { name: "cpu".to_owned(), toml: toml.to_owned() })
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_card_is_wanted_by_its_number_and_auto_wants_none() {
        let wanted = |toml: &str| {
            let profile = Some(ProfileText { name: "p".to_owned(), toml: toml.to_owned() });
            let sources = Sources { profile, ..Sources::default() };
            (wanted_card(&sources), load(&sources).unwrap().settings.providers.device_id)
        };
        let one = (Some((1, "profile p".to_owned())), Some(1));
        assert_eq!(wanted("[providers]\ndevice_id = 1"), one);
        assert_eq!(wanted("[providers]\ndevice_id = \"1\""), one);
        assert_eq!(wanted("[providers]\ndevice_id = \"auto\""), (None, None));
        assert_eq!(wanted(""), (None, None));
    }

    #[test]
    fn later_sources_win_and_each_leaf_keeps_its_origin() {
        let etc = tempfile::tempdir().unwrap();
        write(etc.path(), "vigia.toml", "[audio]\nmax_sessions = 3\nmax_pipelines = 3\n[vad]\npad_ms = 3\n");
        write(etc.path(), "conf.d/20-b.toml", "[vad]\npad_ms = 5\n[audio]\npartial_interval_ms = 500");
        write(etc.path(), "conf.d/10-a.toml", "[vad]\npad_ms = 4");
        write(etc.path(), "conf.d/readme.txt", "not settings");
        let sources = Sources {
            profile: profile("[audio]\nlanguage = \"en\"\nmax_sessions = 2"),
            etc_dir: Some(etc.path().to_owned()),
            config: None,
            env: env(&[("VIGIA__AUDIO__PARTIAL_INTERVAL_MS", "600"), ("VIGIA__VAD__THRESHOLD", "0.6"), ("PATH", "/")]),
            sets: strings(&["vad.threshold=0.7", "server.cors_origins=http://a"]),
        };
        let loaded = load(&sources).unwrap();
        let audio = &loaded.settings.audio;
        assert_eq!((audio.language.as_str(), audio.max_sessions, audio.max_pipelines), ("en", 3, 3));
        assert_eq!((loaded.settings.vad.pad_ms, audio.partial_interval_ms), (5, 600));
        assert_eq!(loaded.settings.vad.threshold, 0.7);
        assert_eq!(loaded.settings.server.cors_origins, ["http://a"]);
        for (key, origin) in [
            ("audio.language", "profile cpu".to_owned()),
            ("audio.max_pipelines", etc.path().join("vigia.toml").display().to_string()),
            ("vad.pad_ms", etc.path().join("conf.d/20-b.toml").display().to_string()),
            ("audio.partial_interval_ms", "environment VIGIA__AUDIO__PARTIAL_INTERVAL_MS".to_owned()),
            ("vad.threshold", "--set".to_owned()),
            ("server.cors_origins", "--set".to_owned()),
            ("server.listen", "defaults".to_owned()),
        ] {
            assert_eq!(loaded.origin(key), origin, "{key}");
        }
    }

    #[test]
    fn all_faults_of_all_sources_come_at_once() {
        let etc = tempfile::tempdir().unwrap();
        write(etc.path(), "vigia.toml", "[server]\nlisen = \"x\"\n[vad]\nthreshold = 2.0\n");
        write(etc.path(), "conf.d/broken.toml", "[node\n");
        let sources = Sources {
            profile: profile("[audio]\nlanguage = 3"),
            etc_dir: Some(etc.path().to_owned()),
            config: None,
            env: env(&[("VIGIA__SERVER__PORT", "1"), ("VIGIA__MQTT__PORT", "none")]),
            sets: strings(&["nonsense", "mqtt.listen=0.0.0.0:1883"]),
        };
        let faults = load(&sources).unwrap_err();
        let text = faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n");
        assert_eq!(faults.len(), 8, "{text}");
        for expected in [
            "audio.language (profile cpu): expected a text",
            "vigia.toml): unknown key; did you mean `server.listen`?",
            "vigia.toml): expected 0 to 1, found 2",
            "conf.d/broken.toml: not TOML at line 1",
            "server.port (environment VIGIA__SERVER__PORT): unknown key",
            "mqtt.port (environment VIGIA__MQTT__PORT): expected a whole number, found `none`",
            "nonsense (--set): expected section.key=value",
            "mqtt.listen (--set): 0.0.0.0:1883 is open to the network",
        ] {
            assert!(text.contains(expected), "missing: {expected}\n{text}");
        }
    }

    #[test]
    fn a_given_file_replaces_vigia_toml_and_must_exist() {
        let etc = tempfile::tempdir().unwrap();
        write(etc.path(), "vigia.toml", "[node]\nname = \"etc\"");
        write(etc.path(), "mine.toml", "[audio]\nlanguage = \"en\"");
        let mut sources = Sources {
            etc_dir: Some(etc.path().to_owned()),
            config: Some(etc.path().join("mine.toml")),
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.settings.audio.language, "en");
        assert_ne!(loaded.settings.node.name, "etc");
        sources.config = Some(etc.path().join("absent.toml"));
        let faults = load(&sources).unwrap_err();
        assert!(faults[0].to_string().contains("absent.toml: cannot be read"), "{faults:?}");
    }

    #[test]
    fn empty_values_that_depend_on_the_machine_are_filled_in() {
        let store_dir = |pairs: &[(&str, &str)]| {
            let loaded = load(&Sources { env: env(pairs), ..Sources::default() }).unwrap();
            loaded.settings.store.dir.clone()
        };
        assert_eq!(store_dir(&[("STATE_DIRECTORY", "/s:/t"), ("HOME", "/h")]), "/s");
        assert_eq!(store_dir(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), "/x/vigia");
        assert_eq!(store_dir(&[("HOME", "/h"), ("XDG_DATA_HOME", "")]), "/h/.local/share/vigia");
        assert_eq!(store_dir(&[("HOME", "/h"), ("VIGIA__STORE__DIR", "/mine")]), "/mine");

        let loaded = load(&Sources { env: env(&[("ORT_DYLIB_PATH", "/o.so")]), ..Sources::default() }).unwrap();
        assert_eq!(loaded.settings.runtime.library, "/o.so");
        assert_eq!(loaded.origin("runtime.library"), "environment ORT_DYLIB_PATH");
        assert!(!loaded.settings.node.name.is_empty());
    }

    #[test]
    fn the_wanted_profile_is_known_before_the_profile_is_read() {
        assert_eq!(wanted_profile(&Sources::default()), ("auto".to_owned(), "defaults".to_owned()));
        let sources = Sources { sets: strings(&["device.profile=rtx-4gb", "bad"]), ..Sources::default() };
        assert_eq!(wanted_profile(&sources), ("rtx-4gb".to_owned(), "--set".to_owned()));
    }

    #[test]
    fn effective_values_print_as_a_file_that_loads_again() {
        let sources = Sources { sets: strings(&["node.name=box \"1\""]), ..Sources::default() };
        assert_eq!(load(&sources).unwrap_err().len(), 1);
        let sets = strings(&["mqtt.username=a \"b\"", "mqtt.password_file=/p", "vad.threshold=1"]);
        let sources = Sources { sets, ..Sources::default() };
        let loaded = load(&sources).unwrap();
        let text = crate::settings::effective(&loaded.leaves);
        let again: Settings = toml::from_str(&text).unwrap();
        assert_eq!(again.mqtt.username, "a \"b\"");
        assert_eq!(again.vad.threshold, 1.0);
        assert!(text.lines().any(|line| line.starts_with("threshold = 1.0 ") && line.ends_with("# --set")), "{text}");
        assert!(text.contains("[tasks.vad]\nmodel = \"silero-vad\""), "{text}");
    }
}
