//! `vigia check`: every fault of the settings at once, then what they name on the disk. The unit runs it before
//! each start. Changes nothing.

use std::{fs, path::Path};

use crate::{
    api,
    base::{Error, Result, printable},
    cli::{Chosen, Failure, Outcome, SettingsArgs, disk, places, print, warnings::no_room},
    device::Facts,
    engines::remote::Remote,
    models::catalogue::Catalogue,
    settings::{Fault, Loaded, Settings},
    store::Store,
};

/// Check the settings and what they name; exit code 78 when something is wrong
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, profile, facts } = args.settings.load()?;
    let faults = faults_on_disk(&loaded);
    if !faults.is_empty() {
        return Err(Failure::Settings(faults));
    }
    print(&format!("✓ the settings are in order\n  profile {}: {}\n", profile.profile.name, profile.why))?;
    print(&told(&warnings(&loaded.settings, &facts, places(&loaded.settings).own_entries.as_deref())?))
}

/// What the daemon can start with, and would lack.
fn warnings(settings: &Settings, facts: &Facts, own_entries: Option<&Path>) -> Result<Vec<String>> {
    let mut warnings = no_room(settings, facts);
    warnings.extend_from_slice(Catalogue::load(own_entries)?.problems());
    Ok(warnings)
}

fn told(warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("! {}\n", printable(warning))).collect()
}

/// What the settings name and the disk does not have.
fn faults_on_disk(loaded: &Loaded) -> Vec<Fault> {
    let settings = &loaded.settings;
    let problems = [
        ("server.listen", not_allowed_to_listen(settings)),
        ("store.dir", not_writable(&settings.store_dir())),
        ("models.dir", not_a_folder(&settings.models.dir)),
        ("pipelines.dir", not_a_folder(&settings.pipelines.dir)),
        ("runtime.library", not_a_file(&settings.runtime.library)),
        ("mqtt.password_file", no_password(&settings.mqtt.password_file)),
    ];
    let faults = problems.into_iter().filter_map(|(key, problem)| Some((key, problem?)));
    let remotes = settings.remotes.iter().flat_map(|(name, remote)| {
        // Reads the key and the certificates; asks the server nothing.
        let faults = Remote::open(name, remote).map_or_else(|error| vec![("url", error)], |it| it.faults());
        faults.into_iter().map(move |(key, error)| (format!("remotes.{name}.{key}"), error.full()))
    });
    let faults = faults.map(|(key, problem)| (key.to_owned(), problem)).chain(remotes);
    faults.map(|(key, problem)| Fault::new(&key, loaded.origin(&key), problem)).collect()
}

fn not_allowed_to_listen(settings: &Settings) -> Option<String> {
    let server = &settings.server;
    let allowed = |has_keys| api::may_listen(server.listen, has_keys, server.allow_anonymous);
    match allowed(false).or_else(|_| allowed(has_keys(&settings.store_dir())?)) {
        Ok(()) => None,
        Err(error) => Some(error.full()),
    }
}

fn has_keys(dir: &Path) -> Result<bool> {
    // Opening would make a store, and a check changes nothing.
    if !Store::exists(dir) {
        return Ok(false);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::internal("cannot read the keys").cause(error))?;
    let store = Store::open(dir)?;
    runtime.block_on(store.has_keys())
}

fn not_writable(dir: &Path) -> Option<String> {
    let existing = disk::nearest_existing(dir);
    let problem = || {
        format!("{} cannot be written to by this user: choose another folder or change its owner", existing.display())
    };
    (!disk::is_writable_dir(&existing)).then(problem)
}

/// Empty means the default, which need not exist.
fn not_a_folder(dir: &str) -> Option<String> {
    (!dir.is_empty() && !Path::new(dir).is_dir()).then(|| format!("there is no folder {dir}"))
}

fn not_a_file(path: &str) -> Option<String> {
    (!path.is_empty() && !Path::new(path).is_file()).then(|| format!("there is no file {path}"))
}

fn no_password(file: &str) -> Option<String> {
    if file.is_empty() {
        return None;
    }
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Some(format!("{file} is empty: write the password into it")),
        Ok(_) => None,
        Err(error) => Some(format!("{file} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, load};

    fn faults(sets: &[String]) -> Vec<String> {
        let loaded = load(&Sources { sets: sets.to_vec(), ..Sources::default() }).unwrap();
        faults_on_disk(&loaded).iter().map(Fault::to_string).collect()
    }

    #[test]
    fn what_keeps_models_from_serving_is_told_and_keeps_no_daemon_from_starting() {
        let own = tempfile::tempdir().unwrap();
        fs::write(own.path().join("bad.toml"), "name = 7").unwrap();
        let sets = vec!["memory.system=100 GiB".to_owned()];
        let settings = load(&Sources { sets, ..Sources::default() }).unwrap().settings;
        let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device/container-4gib");
        let warnings = warnings(&settings, &crate::device::probe(&machine), Some(own.path())).unwrap();
        let text = told(&warnings);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("! no model can be loaded: ") && text.contains("bad.toml is no entry"), "{text}");
    }

    #[test]
    fn a_remote_whose_key_is_not_there_is_named() {
        let faults = faults(&[
            "remotes.box.url=http://127.0.0.1:1".to_owned(),
            "remotes.box.key_file=/nowhere".to_owned(),
            "remotes.box.ca_file=/neither".to_owned(),
        ]);
        let [key, certificates] = &faults[..] else { panic!("{faults:#?}") };
        assert!(key.starts_with("remotes.box.key_file (--set): ") && key.contains("/nowhere"), "{key}");
        assert!(certificates.starts_with("remotes.box.ca_file (--set): "), "{certificates}");
    }

    #[test]
    fn what_is_not_there_is_named_with_where_it_was_set() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, " \n").unwrap();
        let file = file.display();
        let faults = faults(&[
            format!("store.dir={file}/below"),
            "models.dir=/nowhere".to_owned(),
            "pipelines.dir=/nowhere".to_owned(),
            "runtime.library=/nowhere.so".to_owned(),
            format!("mqtt.password_file={file}"),
            "mqtt.username=vigia".to_owned(),
        ]);
        assert_eq!(faults.len(), 5, "{faults:#?}");
        assert!(faults[0].starts_with("store.dir (--set): ") && faults[0].contains("cannot be written"));
        assert_eq!(faults[1], "models.dir (--set): there is no folder /nowhere");
        assert!(faults[4].contains("is empty: write the password into it"));
    }

    #[test]
    fn a_store_that_is_not_there_yet_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(faults(&[format!("store.dir={}/a/b", dir.path().display())]), [""; 0]);
    }
    #[test]
    fn beyond_loopback_keys_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let mut sets = vec![format!("store.dir={}", dir.path().display()), "server.listen=0.0.0.0:8090".to_owned()];
        let found = faults(&sets);
        assert!(found.len() == 1 && found[0].starts_with("server.listen (--set): "), "{found:?}");
        assert!(found[0].contains("vigia keys add"), "{found:?}");
        assert!(!Store::exists(dir.path()), "a check has made a store");

        sets.push("server.allow_anonymous=true".to_owned());
        assert_eq!(faults(&sets), [""; 0]);

        sets.pop();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Store::open(dir.path()).unwrap().add_key("phone")).unwrap();
        assert_eq!(faults(&sets), [""; 0]);
    }
}
