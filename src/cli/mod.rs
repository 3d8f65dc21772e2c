//! The commands a person types, one file each. Parses, calls one thing, prints; decides nothing about audio,
//! models or events. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad settings.

mod bench;
mod card;
mod check;
mod disk;
mod doctor;
mod engine_host;
mod keys;
mod models;
mod run;
mod selftest;
mod settings;
mod spoken;
mod stream;
mod table;
mod transcribe;
mod try_asr;
mod try_diarize;
mod try_embed;
mod try_engine;
mod voices;
mod warnings;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    base::{Error, printable},
    device::{self, Facts},
    engines::Places,
    models::profiles::{self, Choice},
    settings::{Fault, Loaded, ProfileText, Settings, Sources},
};

/// EX_CONFIG of sysexits.h: the unit names it in RestartPreventExitStatus, so that systemd does not loop.
const BAD_SETTINGS: u8 = 78;
const FAILED: u8 = 1;

/// A private multimodal API for Jetson and RTX: live speech, vision, analysis, over WebSocket and MQTT.
#[derive(Debug, Parser)]
#[command(name = "vigia", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Settings(settings::Args),
    Keys(keys::Args),
    Voices(voices::Args),
    Models(models::Args),
    Doctor(doctor::Args),
    Selftest(selftest::Args),
    Transcribe(transcribe::Args),
    Stream(stream::Args),
    Try(try_engine::Args),
    Bench(bench::Args),
    EngineHost(engine_host::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(args),
        Command::Settings(args) => settings::run(args),
        Command::Keys(args) => keys::run(args),
        Command::Voices(args) => voices::run(args),
        Command::Models(args) => models::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Transcribe(args) => transcribe::run(args),
        Command::Stream(args) => stream::run(args),
        Command::Try(args) => try_engine::run(args),
        Command::Bench(args) => bench::run(args),
        Command::EngineHost(args) => engine_host::run(args),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    let (text, code) = failure.told();
    // Standard error may be closed; the exit code still says it.
    drop(io::stderr().write_all(text.as_bytes()));
    ExitCode::from(code)
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    Settings(Vec<Fault>),
    Other(anyhow::Error),
}

impl Failure {
    /// What to print, and the exit code.
    fn told(&self) -> (String, u8) {
        match self {
            Failure::Settings(faults) => (printable(&listed(faults)), BAD_SETTINGS),
            Failure::Other(error) => (printable(&format!("vigia: {error:#}\n")), FAILED),
        }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Other(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(anyhow::anyhow!(error.full()))
    }
}

fn listed(faults: &[Fault]) -> String {
    let count = if faults.len() == 1 { "one fault".to_owned() } else { format!("{} faults", faults.len()) };
    let mut text = format!("vigia: {count} in the settings\n");
    for fault in faults {
        text.push_str(&format!("  ✗ {fault}\n"));
    }
    text
}

/// What every command that needs settings takes.
#[derive(Debug, Clone, Default, clap::Args)]
struct SettingsArgs {
    /// Read this file instead of /etc/vigia/vigia.toml
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Set one value, above all files and the environment; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", global = true)]
    sets: Vec<String>,
}

/// The settings with what they were chosen by.
struct Chosen {
    loaded: Loaded,
    facts: Facts,
    profile: Choice,
}

impl SettingsArgs {
    fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone(), self.sets.clone())
    }

    /// Before anything else: CUDA is told which card it may see.
    fn load(&self) -> Outcome<Chosen> {
        let chosen = choose(self.sources(), device::probe(Path::new("/"))).map_err(Failure::Settings)?;
        card::show_alone(&chosen.facts);
        Ok(chosen)
    }
}

/// Where this binary, in its checkout or installed, looks for models and libraries.
fn places(settings: &Settings) -> Places {
    let executable = std::env::current_exe().unwrap_or_default();
    let working_dir = std::env::current_dir().unwrap_or_default();
    let own_entries = Some(PathBuf::from("/etc/vigia/models.d"));
    Places { own_entries, ..Places::new(settings, &executable, &working_dir) }
}

/// The card first, because a profile is chosen by it, then the profile, because it is a source of the settings itself.
fn choose(mut sources: Sources, mut facts: Facts) -> Result<Chosen, Vec<Fault>> {
    let no_card = card::choose(&sources, &mut facts);
    let (name, origin) = crate::settings::wanted_profile(&sources);
    let profile = profiles::choose(&name, &facts);
    if let Ok(Choice { profile, .. }) = &profile {
        sources.profile = Some(ProfileText { name: profile.name.to_owned(), toml: profile.settings_toml.clone() });
    }
    match (crate::settings::load(&sources), profile, no_card) {
        (Ok(loaded), Ok(profile), None) => Ok(Chosen { loaded, facts, profile }),
        (loaded, profile, no_card) => {
            let mut faults = loaded.err().unwrap_or_default();
            faults.extend(no_card);
            faults.extend(profile.err().map(|error| Fault::new("device.profile", origin, error.full())));
            Err(faults)
        }
    }
}

/// Standard error may be closed; nobody is kept from working by that.
fn eprintln_line(text: &str) {
    drop(io::stderr().write_all(format!("vigia: {text}\n").as_bytes()));
}

/// Writes to standard output; whoever closes the pipe early (`| head`) has seen enough.
fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output").into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn faults_are_listed_one_a_line_and_have_their_own_exit_code() {
        let faults = [Fault::new("a.b", "--set", "unknown key"), Fault::new("", "x.toml", "cannot be read")];
        let text = "vigia: 2 faults in the settings\n  ✗ a.b (--set): unknown key\n  ✗ x.toml: cannot be read\n";
        assert_eq!(Failure::Settings(faults.to_vec()).told(), (text.to_owned(), 78));
    }

    #[test]
    fn another_failure_shows_its_hint_and_every_cause() {
        let cut = Error::invalid("no name: \x1b[31m");
        assert_eq!(Failure::from(cut).told().0, "vigia: no name: \\u{1b}[31m\n", "a terminal obeys no stranger");
        let error = Error::unavailable("no store").cause(io::Error::other("EIO")).hint("see store.dir");
        assert_eq!(Failure::from(error).told(), ("vigia: no store: EIO (see store.dir)\n".to_owned(), 1));
    }

    #[test]
    fn an_unknown_profile_is_one_fault_among_the_others() {
        let root = tempfile::tempdir().unwrap();
        let sets = ["device.profile=toaster", "vad.threshold=2"].map(str::to_owned).to_vec();
        let sources = Sources { sets, ..Sources::default() };
        let faults = choose(sources, device::probe(root.path())).err().unwrap();
        let text = listed(&faults);
        assert!(text.contains("vad.threshold (--set)"), "{text}");
        assert!(text.contains("device.profile (--set): there is no profile `toaster`"), "{text}");
    }

    #[test]
    fn the_profile_is_a_source_below_what_a_person_sets() {
        let root = tempfile::tempdir().unwrap();
        let sources = Sources { sets: vec!["device.profile=cpu".to_owned()], ..Sources::default() };
        let chosen = choose(sources, device::probe(root.path())).unwrap();
        assert_eq!(chosen.profile.profile.name, "cpu");
        assert!(chosen.loaded.leaves.iter().any(|leaf| leaf.origin == "profile cpu"));
    }
}
