//! `vigia doctor`: what this machine has, what the daemon would make of it, and what to install. Looks only:
//! starts nothing, changes nothing, and a fault in one section hides no other. Servers that do a task are asked how they
//! are.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use crate::{
    base::{ByteSize, Error},
    cli::{
        Chosen, Outcome, SettingsArgs, card, choose, disk, places, print,
        table::{Report, Row, Section, State},
        warnings::no_room,
    },
    device::{self, Facts, MemoryKind},
    engines::{Places, Registry, TaskStatus},
    flow::Task,
    media::{ElementCheck, Media},
    models::profiles::Choice,
    runtime::{self, Provider, ProviderOptions, Runtime},
    settings::{Fault, MqttMode, Settings, Sources},
    store::space,
};

/// Less free space than this and recordings will soon fill the disk.
const LITTLE_SPACE: ByteSize = ByteSize::mib(1024);

/// Show what this machine has and what is missing
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    let sources = args.settings.sources();
    let colours = io::stdout().is_terminal() && sources.variable("NO_COLOR").is_none();
    let mut facts = device::probe(Path::new("/"));
    // A card that is not there is told with the other faults of the settings.
    card::choose(&sources, &mut facts);
    card::show_alone(&facts);
    let report = examine(sources, facts, places);
    if args.json { print(&report.to_json().map_err(anyhow::Error::new)?) } else { print(&report.to_text(colours)) }
}

fn examine(sources: Sources, facts: Facts, places: impl Fn(&Settings) -> Places) -> Report {
    let mut sections = vec![machine(&facts)];
    match choose(sources, facts) {
        Ok(Chosen { loaded, profile, facts }) => {
            let settings = &loaded.settings;
            let places = places(settings);
            sections.push(settings_in_order(&profile));
            sections.push(media(settings));
            sections.push(runtime(settings, &places.library));
            sections.push(models(settings, places, &facts));
            sections.push(ports(settings));
            sections.push(storage(settings));
        }
        Err(faults) => sections.push(settings_at_fault(&faults)),
    }
    Report::new(sections)
}

fn machine(facts: &Facts) -> Section {
    let info = |name: &str, value: String| Row::new(State::Info, name, value);
    let unknown = || "unknown".to_owned();
    let mut rows = vec![
        info("device", facts.title().to_owned()),
        info("system", format!("{}, {}", facts.os.clone().unwrap_or_else(unknown), facts.arch)),
        info("kernel", facts.kernel.clone().unwrap_or_else(unknown)),
        info("processor", {
            let cores = if facts.cpu_cores == 1 { "1 core".to_owned() } else { format!("{} cores", facts.cpu_cores) };
            format!("{}, {cores}", facts.cpu_model.clone().unwrap_or_else(unknown))
        }),
        info("memory", {
            let limit = facts.cgroup_memory_limit.map(|limit| format!(", limited to {}", ByteSize(limit)));
            format!("{}{}", ByteSize(facts.ram_bytes), limit.unwrap_or_default())
        }),
    ];
    let several = facts.gpus.len() > 1;
    for (at, gpu) in facts.gpus.iter().enumerate() {
        let mut parts = vec![gpu.name.clone(), ByteSize(gpu.vram_bytes).to_string()];
        if facts.memory_kind == MemoryKind::Unified {
            parts.push("shared with the system".to_owned());
        }
        parts.extend(gpu.driver.as_ref().map(|driver| format!("driver {driver}")));
        parts.extend(gpu.compute_capability.as_ref().map(|version| format!("compute capability {version}")));
        if several {
            parts.push(if at == 0 { "models run here" } else { "not used (providers.device_id)" }.to_owned());
        }
        let name = if several { format!("GPU {}", gpu.index) } else { "GPU".to_owned() };
        rows.push(Row::new(State::Good, name, parts.join(", ")));
    }
    if facts.gpus.is_empty() {
        rows.push(info("GPU", "none: models run on the processor".to_owned()));
    }
    if let Some(jetson) = &facts.jetson {
        let jetpack = jetson.jetpack.as_deref().map_or_else(unknown, str::to_owned);
        let l4t = jetson.l4t.as_deref().map_or_else(unknown, str::to_owned);
        rows.push(info("JetPack", format!("{jetpack} (Jetson Linux {l4t})")));
    }
    rows.extend(facts.notes.iter().map(|note| Row::new(State::Warn, "note", note.clone())));
    Section { title: "Machine", rows }
}

fn settings_in_order(Choice { profile, why }: &Choice) -> Section {
    let rows = vec![
        Row::new(State::Good, "settings", "in order (`vigia settings --effective` shows each and its origin)"),
        Row::new(State::Good, "profile", format!("{}: {}", profile.name, profile.title)),
        Row::new(State::Info, "why", why.clone()),
    ];
    Section { title: "Settings", rows }
}

fn settings_at_fault(faults: &[Fault]) -> Section {
    let row = |fault: &Fault| {
        let name = if fault.key.is_empty() { "settings" } else { &fault.key };
        Row::new(State::Bad, name, fault.problem.clone()).hint(format!("set in: {}", fault.origin))
    };
    Section { title: "Settings", rows: faults.iter().map(row).collect() }
}

fn media(settings: &Settings) -> Section {
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision);
    let rows = match media.and_then(|media| media.elements()) {
        Ok(checks) => pipelines(&checks),
        Err(error) => vec![bad("GStreamer", &error)],
    };
    Section { title: "Media (GStreamer)", rows }
}

/// One row a pipeline; what is missing with the packages that have it.
fn pipelines(checks: &[ElementCheck]) -> Vec<Row> {
    let mut by_name: BTreeMap<&str, Vec<&ElementCheck>> = BTreeMap::new();
    for check in checks {
        by_name.entry(check.pipeline).or_default().push(check);
    }
    let row = |(name, checks): (&str, Vec<&ElementCheck>)| {
        let missing: Vec<&ElementCheck> = checks.iter().copied().filter(|check| !check.found).collect();
        if missing.is_empty() {
            return Row::new(State::Good, name, elements(&checks));
        }
        let packages: BTreeSet<&str> = missing.iter().map(|check| check.package.as_str()).collect();
        let packages = packages.into_iter().collect::<Vec<_>>().join(" ");
        Row::new(State::Bad, name, format!("missing: {}", elements(&missing)))
            .hint(format!("apt-get install {packages}"))
    };
    by_name.into_iter().map(row).collect()
}

fn elements(checks: &[&ElementCheck]) -> String {
    checks.iter().map(|check| check.element.as_str()).collect::<Vec<_>>().join(", ")
}

fn runtime(settings: &Settings, library_places: &[PathBuf]) -> Section {
    let library = runtime::find(&settings.runtime.library, library_places);
    let rows = match library.and_then(|library| Runtime::open(&library)) {
        Ok(runtime) => {
            let mut rows = vec![
                Row::new(State::Good, "version", runtime.version()),
                Row::new(State::Info, "library", runtime.library().display().to_string()),
            ];
            rows.extend(Provider::ALL.into_iter().map(|provider| provider_row(provider, settings, &runtime)));
            rows
        }
        Err(error) => vec![bad("library", &error)],
    };
    Section { title: "ONNX Runtime", rows }
}

/// Whether a provider starts here; what is missing is a fault only where the settings want it.
fn provider_row(provider: Provider, settings: &Settings, runtime: &Runtime) -> Row {
    let wanted = Task::ALL.into_iter().any(|task| settings.providers_for(task).contains(&provider));
    let options = ProviderOptions::new(provider, &settings.providers, None);
    match runtime.try_provider(&options) {
        Ok(()) => Row::new(State::Good, provider.name(), if wanted { "computes" } else { "computes, and is not used" }),
        Err(error) if wanted => with_cause(bad(provider.name(), &error), &error),
        Err(error) => Row::new(State::Info, provider.name(), format!("not used: {}", error.message())),
    }
}

/// Whatever stands behind the message, in one line. Of a long text both ends: ONNX Runtime begins with where in its sources
/// it was, and what CUDA said comes last.
fn with_cause(row: Row, error: &Error) -> Row {
    const BEGINNING: usize = 100;
    const END: usize = 400;
    let Some(cause) = error.cause_text() else { return row };
    let line: Vec<char> = cause.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    let text: String = match line.len().checked_sub(END) {
        Some(end) if end > BEGINNING => [&line[..BEGINNING], &[' ', '…', ' '], &line[end..]].concat().iter().collect(),
        _ => line.iter().collect(),
    };
    Row { value: format!("{}: {text}", row.value), ..row }
}

fn bad(name: &str, error: &Error) -> Row {
    let row = Row::new(State::Bad, name, error.message());
    error.hint_text().into_iter().fold(row, |row, hint| row.hint(hint))
}

fn models(settings: &Settings, places: Places, facts: &Facts) -> Section {
    let row = |TaskStatus { task, model, reason, .. }: TaskStatus| {
        let server = settings.remote_for(task).map(|(server, _)| format!(", by the server {server}"));
        let served = model.map(|model| format!("{model}{}", server.unwrap_or_default()));
        match (served, reason) {
            (None, _) => Row::new(State::Info, task.name(), "off"),
            (Some(served), None) => Row::new(State::Good, task.name(), served),
            (Some(served), Some(reason)) => Row::new(State::Warn, task.name(), served).hint(reason),
        }
    };
    let mut rows = vec![Row::new(State::Info, "folder", settings.models_dir().display().to_string())];
    let registry = Registry::new(settings, places);
    registry.look_at_remotes();
    rows.extend(registry.statuses().into_iter().map(row));
    rows.extend(
        no_room(settings, facts).into_iter().map(|told| {
            Row::new(State::Warn, "memory", told).hint("lower memory.system, memory.media or memory.margin")
        }),
    );
    rows.extend(registry.catalogue_problems().iter().map(|told| Row::new(State::Warn, "entry", told)));
    Section { title: "Models", rows }
}

fn ports(settings: &Settings) -> Section {
    let mut rows = vec![port("HTTP", settings.server.listen, "server.listen")];
    match settings.mqtt.mode {
        MqttMode::Embedded => rows.push(port("MQTT", settings.mqtt.listen, "mqtt.listen")),
        MqttMode::External => {
            let broker = format!("external broker {}:{}", settings.mqtt.host, settings.mqtt.port);
            rows.push(Row::new(State::Info, "MQTT", broker));
        }
        MqttMode::Off => rows.push(Row::new(State::Info, "MQTT", "off")),
    }
    Section { title: "Ports", rows }
}

fn port(name: &str, address: SocketAddr, key: &str) -> Row {
    match TcpListener::bind(address) {
        Ok(_) => Row::new(State::Good, name, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Row::new(State::Warn, name, format!("{address} is taken"))
                .hint(format!("by a running vigia, or else set {key} to another port"))
        }
        Err(error) => {
            Row::new(State::Bad, name, format!("cannot listen on {address}: {error}")).hint(format!("change {key}"))
        }
    }
}

fn storage(settings: &Settings) -> Section {
    let dir = settings.store_dir();
    let existing = disk::nearest_existing(&dir);
    let store = if disk::is_writable_dir(&existing) {
        Row::new(State::Good, "store", dir.display().to_string())
    } else {
        Row::new(State::Bad, "store", format!("{} cannot be written to", existing.display()))
            .hint("set store.dir, or change the folder's owner")
    };
    let space = match space::free(&existing) {
        Some(free) if free < LITTLE_SPACE => Row::new(State::Warn, "free", free.to_string())
            .hint("lower store.keep_days, or move store.dir to a larger disk"),
        Some(free) => Row::new(State::Good, "free", free.to_string()),
        None => Row::new(State::Warn, "free", "unknown"),
    };
    Section { title: "Disk", rows: vec![store, space] }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::engines::Hosting;

    /// A machine without any library.
    fn nowhere(settings: &Settings) -> Places {
        let models = vec![settings.models_dir()];
        Places { models, library: Vec::new(), own_entries: None, hosting: Hosting::Processes }
    }

    fn sources(sets: &[String]) -> Sources {
        Sources { sets: sets.to_vec(), ..Sources::default() }
    }

    /// A machine of `tests/data/device`.
    fn captured(name: &str) -> Facts {
        device::probe(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device").join(name))
    }

    fn row<'a>(report: &'a Report, title: &str, name: &str) -> &'a Row {
        let section = report.sections.iter().find(|section| section.title == title).unwrap();
        section.rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name} in {section:#?}"))
    }

    #[test]
    fn a_jetson_is_shown_with_its_profile_and_why() {
        let report = examine(sources(&[]), captured("jetson-orin-nano-8gb"), nowhere);
        assert!(row(&report, "Machine", "device").value.contains("Orin Nano"));
        assert!(row(&report, "Machine", "GPU").value.contains("shared with the system"));
        assert!(row(&report, "Machine", "JetPack").value.contains("Jetson Linux"));
        assert!(row(&report, "Settings", "profile").value.starts_with("jetson-orin-nano-8gb: "));
        assert!(!row(&report, "Settings", "why").value.is_empty());
    }

    #[test]
    fn bad_settings_are_shown_beside_the_machine() {
        let report = examine(sources(&["vad.threshold=7".to_owned()]), captured("pc-rtx-5070"), nowhere);
        assert!(!report.ok);
        let fault = row(&report, "Settings", "vad.threshold");
        assert_eq!((fault.state, fault.hint.as_deref()), (State::Bad, Some("set in: --set")));
        assert!(row(&report, "Machine", "GPU").value.contains("5070"));
    }

    #[test]
    fn ports_models_runtime_and_disk_are_looked_at() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("models/silero-vad")).unwrap();
        let report = examine(
            sources(&[
                format!("server.listen={}", taken.local_addr().unwrap()),
                "mqtt.listen=127.0.0.1:0".to_owned(),
                format!("store.dir={}", dir.path().display()),
                "tasks.chat.model=somebody".to_owned(),
                // Nobody listens there.
                "remotes.box.url=http://127.0.0.1:1".to_owned(),
                "tasks.speak.remote=box".to_owned(),
                "tasks.speak.model=kokoro".to_owned(),
                "device.profile=cpu".to_owned(),
            ]),
            captured("pc-rtx-5070"),
            nowhere,
        );
        let http = row(&report, "Ports", "HTTP");
        assert!(http.state == State::Warn && http.value.ends_with("is taken"), "{http:?}");
        assert_eq!(row(&report, "Ports", "MQTT").state, State::Good);
        // The folder alone is no model.
        let vad = row(&report, "Models", "vad");
        assert!(vad.state == State::Warn && vad.hint.as_ref().unwrap().contains("silero_vad.onnx"), "{vad:?}");
        let chat = row(&report, "Models", "chat");
        assert!(chat.state == State::Warn && chat.value == "somebody" && chat.hint.is_some(), "{chat:?}");
        let speak = row(&report, "Models", "speak");
        assert_eq!(speak.value, "kokoro, by the server box");
        assert!(speak.state == State::Warn && speak.hint.as_ref().unwrap().contains("cannot be reached"), "{speak:?}");
        let library = row(&report, "ONNX Runtime", "library");
        assert!(library.state == State::Bad && library.hint.is_some(), "{library:?}");
        assert_eq!(row(&report, "Disk", "store").value, dir.path().display().to_string());
    }

    #[test]
    fn a_provider_that_does_not_compute_is_shown_with_the_words_of_its_library() {
        let told = |cause: String| {
            let error = Error::unavailable("it does not compute").hint("see `dmesg`").cause(cause);
            with_cause(bad("cuda", &error), &error)
        };
        let row = told("CUDA failure 719:\n   launch failure".to_owned());
        assert_eq!(row.value, "it does not compute: CUDA failure 719: launch failure");
        assert_eq!((row.state, row.hint.as_deref()), (State::Bad, Some("see `dmesg`")));
        let row = told(format!("cuda_call.cc:154 {} CUDA failure 801", "ñ".repeat(10_000)));
        assert!(row.value.contains("cuda_call.cc") && row.value.ends_with("CUDA failure 801"), "{}", row.value);
        assert!(row.value.chars().count() < 600, "{}", row.value);
    }

    #[test]
    fn what_keeps_every_model_from_serving_and_entries_that_are_left_out_are_named() {
        let own = tempfile::tempdir().unwrap();
        std::fs::write(own.path().join("bad.toml"), "name = 7").unwrap();
        let places = |settings: &Settings| Places { own_entries: Some(own.path().to_owned()), ..nowhere(settings) };
        let report = examine(sources(&["memory.system=100 GiB".to_owned()]), captured("container-4gib"), places);
        let memory = row(&report, "Models", "memory");
        assert!(memory.state == State::Warn && memory.value.contains("less 100 GiB for the system"), "{memory:?}");
        let entry = row(&report, "Models", "entry");
        assert!(entry.state == State::Warn && entry.value.contains("bad.toml is no entry"), "{entry:?}");
    }

    #[test]
    fn a_missing_element_names_its_package_once() {
        let check = |pipeline, element: &str, found| ElementCheck {
            element: element.to_owned(),
            pipeline,
            found,
            package: "gstreamer1.0-plugins-bad".to_owned(),
        };
        let rows = pipelines(&[
            check("webp", "webpdec", false),
            check("opus", "opusdec", true),
            check("opus", "appsink", true),
            check("webp", "other", false),
        ]);
        assert_eq!(rows[0], Row::new(State::Good, "opus", "opusdec, appsink"));
        let hint = "apt-get install gstreamer1.0-plugins-bad";
        assert_eq!(rows[1], Row::new(State::Bad, "webp", "missing: webpdec, other").hint(hint));
    }
}
