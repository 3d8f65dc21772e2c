//! `systemd/vigia.service` as systemd itself reads it. Where `systemd-analyze` is absent the test says so and passes.
#![allow(clippy::unwrap_used, reason = "clippy takes only the bodies of `#[test]` functions for tests")]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
};

/// On the scale of `systemd-analyze security` (100 is no hardening): the unit stands at 20, and nothing but the GPU,
/// the cameras and the network may raise it.
const MOST_EXPOSURE: &str = "--threshold=22";

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/vigia.service")).unwrap()
}

/// The value of the only line that sets this key.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{key} is not set"));
    assert_eq!(values.next(), None, "{key} is set twice");
    value
}

/// None without `systemd-analyze`.
fn analyze(args: &[&str], unit: &Path) -> Option<Output> {
    let output = Command::new("systemd-analyze").args(args).arg(unit).output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            // Past the capture of the test's output: a check that did not run must be seen.
            let note =
                format!("NOT VERIFIED: systemd-analyze cannot be run ({error}); it comes with the package systemd\n");
            std::io::stderr().write_all(note.as_bytes()).unwrap();
            None
        }
    }
}

#[test]
fn systemd_reads_the_unit_without_a_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vigia.service");
    // The check wants the program to be there.
    fs::write(&path, unit().replace("/usr/bin/vigia", env!("CARGO_BIN_EXE_vigia"))).unwrap();
    if let Some(output) = analyze(&["--man=no", "verify"], &path) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("vigia.service"), "{said}");
    }
    if let Some(output) = analyze(&["--no-pager", "security", "--offline=yes", MOST_EXPOSURE], &path) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn systemd_waits_longer_than_the_daemon_takes() {
    let unit = unit();
    let seconds = |key| value(&unit, key).parse::<u64>().unwrap();
    let settings: toml::Table = toml::from_str(vigia::settings::DEFAULTS).unwrap();
    let deadline = settings["shutdown"]["deadline_secs"].as_integer().unwrap() as u64;
    assert!(seconds("TimeoutStopSec") > deadline, "what is late must be named before it is killed");
    assert!(seconds("WatchdogSec") > deadline, "the last feeding at shutdown must last until the end");
}

#[test]
fn the_gpu_and_the_cameras_stay_in_sight() {
    let unit = unit();
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        let key = line.split('=').next().unwrap();
        let hides = ["PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute"];
        assert!(!hides.contains(&key), "{line}: see the note above the hardening");
    }
    assert_eq!(value(&unit, "User"), "vigia");
    assert_eq!(value(&unit, "Type"), "notify");
    assert_eq!(value(&unit, "RestartPreventExitStatus"), "78");
}
