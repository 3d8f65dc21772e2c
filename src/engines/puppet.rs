//! An engine for tests of hosts: it does what it is told, the worst included. Never part of a release.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Result},
    engines::{Cancel, Engine, EngineSpec, Spec},
    flow::Pcm,
};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PuppetSpec {
    /// What loading it does; nothing by default.
    pub at_load: Option<Play>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Play {
    /// Answers with this text.
    Say(String),
    /// Answers with the number of samples.
    Hear(Pcm),
    /// Answers with the names of its environment's variables, sorted.
    Variables,
    /// Answers with the signal that the kernel sends it when its parent dies.
    DeathSignal,
    /// Writes a line to standard error.
    Print(String),
    /// Writes a line to the log.
    Log(String),
    Panic,
    Fail,
    /// SIGKILL, as the kernel does when there is no memory.
    Die,
    /// Dies where this file is not, and makes it.
    DieOnce(PathBuf),
    /// Fails where this file is not, and makes it; then no engine can be built in its process any more.
    Spoil(PathBuf),
    /// Works on for so long and looks at nothing.
    Hang(Duration),
    /// As `Hang`, and does not ask the kernel any more to be killed with its parent.
    HangAlone(Duration),
}

pub struct Puppet;

/// As a device is that was lost.
static SPOILT: AtomicBool = AtomicBool::new(false);

impl Spec for PuppetSpec {
    type Engine = Puppet;

    fn build(&self) -> Result<Puppet> {
        if SPOILT.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the device is lost"));
        }
        self.at_load.iter().try_for_each(|play| play.act().map(drop))?;
        Ok(Puppet)
    }
}

impl From<PuppetSpec> for EngineSpec {
    fn from(spec: PuppetSpec) -> EngineSpec {
        EngineSpec::Puppet(spec)
    }
}

impl Engine for Puppet {
    type Ask = Play;
    type Progress = ();
    type Answer = String;

    fn answer(&mut self, ask: &Play, step: &mut dyn FnMut(()), _: &Cancel) -> Result<String> {
        step(());
        ask.act()
    }
}

impl Play {
    fn act(&self) -> Result<String> {
        match self {
            Play::Say(text) => return Ok(text.clone()),
            Play::Hear(audio) => return Ok(audio.len().to_string()),
            Play::Variables => {
                let mut names: Vec<_> = crate::settings::variables(|_| true).into_iter().collect();
                names.sort();
                let names: Vec<_> = names.iter().map(|(name, _)| name.to_string_lossy()).collect();
                return Ok(names.join(" "));
            }
            Play::DeathSignal => {
                let mut signal: libc::c_int = 0;
                // SAFETY: prctl(2) writes one number, and it is ours.
                unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
                return Ok(signal.to_string());
            }
            Play::Print(line) => writeln!(std::io::stderr(), "{line}").map_err(|_| Error::internal("closed"))?,
            Play::Log(line) => log::warn!(play = "log"; "{line}"),
            Play::Panic => panic!("on purpose"),
            Play::Fail => return Err(Error::internal("on purpose")),
            Play::Die => die(),
            Play::DieOnce(marker) if marker.exists() => {}
            Play::DieOnce(marker) => {
                fs::write(marker, "").map_err(|error| Error::internal("no marker").cause(error))?;
                die();
            }
            Play::Spoil(marker) if marker.exists() => {}
            Play::Spoil(marker) => {
                fs::write(marker, "").map_err(|error| Error::internal("no marker").cause(error))?;
                SPOILT.store(true, Ordering::Relaxed);
                return Err(Error::internal("an illegal address"));
            }
            Play::Hang(time) => thread::sleep(*time),
            Play::HangAlone(time) => {
                // SAFETY: prctl(2) with numbers alone.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0 as libc::c_ulong) };
                thread::sleep(*time);
            }
        }
        Ok(String::new())
    }
}

fn die() {
    // SAFETY: raise(3) with a number; the process is gone after it.
    unsafe { libc::raise(libc::SIGKILL) };
}
