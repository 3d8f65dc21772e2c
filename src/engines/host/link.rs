//! One process of an engine, from the daemon's side: its start, what is said over its socket, its end. Decides nothing
//! about jobs or restarts: `process` does.

use std::{
    collections::BTreeSet,
    io,
    marker::PhantomData,
    os::unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process,
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Error, Kind, Result, lock},
    device::ended_for_memory,
    engines::{
        Engine, EngineSpec,
        host::{
            Launch,
            spawn::spawn,
            stderr::Tail,
            wire::{Frames, FromChild, Hello, Load, ToChild, WireError, decode, encode},
        },
    },
    runtime::is_out_of_memory,
};

/// A process whose socket takes nothing for so long is stopped or lost: its socket is read by a thread of its own.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// A process that has closed its socket ends within a moment.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// How often the log hears of a process that the kernel does not end.
const STUCK_EVERY: Duration = Duration::from_secs(5);

pub(super) type Said<E> = FromChild<<E as Engine>::Progress, <E as Engine>::Answer>;

pub(super) struct Child<E: Engine> {
    name: String,
    grace: Duration,
    process: process::Child,
    pid: u32,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    frames: Frames,
    stderr: Tail,
    /// Processes that the kernel had ended for want of memory when this one was started.
    ended_before: Option<u64>,
    _alive: Alive,
    engine: PhantomData<fn() -> E>,
}

/// The processes of all engines, from their start until they have been waited for.
static ALIVE: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Those that are loading, or on their way out, hold memory as well.
pub(in crate::engines) fn alive() -> Vec<u32> {
    lock(&ALIVE).iter().copied().collect()
}

struct Alive(u32);

impl Alive {
    fn new(pid: u32) -> Alive {
        lock(&ALIVE).insert(pid);
        Alive(pid)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        lock(&ALIVE).remove(&self.0);
    }
}

/// Why a process is no use any more.
pub(super) enum Fault {
    /// It has ended, or its socket is closed, which comes to the same.
    Closed,
    Broken(Error),
}

impl Fault {
    pub(super) fn out_of_turn() -> Fault {
        Fault::Broken(Error::internal("it said something out of turn"))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Broken(error)
    }
}

/// Why there is no engine.
pub(super) struct Failed {
    pub(super) error: Error,
    /// Its process has died, or had to be killed, instead of saying what is wrong.
    pub(super) death: Option<String>,
}

impl Failed {
    fn refused(error: Error) -> Failed {
        Failed { error, death: None }
    }
}

impl<E: Engine> Child<E> {
    /// Starts a process and waits until the engine is there, or until it is not wanted any more; with what it says of
    /// itself.
    pub(super) async fn start(
        launch: &Launch,
        spec: &EngineSpec,
        closing: &CancellationToken,
    ) -> Result<(Child<E>, Option<String>), Failed> {
        let begun = Instant::now();
        let load =
            Load { name: launch.name.clone(), log_level: log::max_level().as_str().to_owned(), spec: spec.clone() };
        let greeting = encode(&Hello::OURS).and_then(|hello| Ok([hello, encode(&load)?].concat()));
        let greeting = greeting.map_err(Failed::refused)?;
        let mut child = Child::<E>::spawn(launch).await.map_err(Failed::refused)?;
        let limit = launch.limits.load;
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(limit, child.greet(&greeting)) => greeted,
            () = closing.cancelled() => {
                child.kill("").await;
                return Err(Failed::refused(Error::new(Kind::Cancelled, "it is unloaded before it was loaded")));
            }
        };
        match greeted {
            Ok(Ok(Ok(note))) => {
                let load_ms = begun.elapsed().as_millis() as u64;
                log::info!(engine = launch.name.as_str(), pid = child.pid, load_ms; "an engine's process is ready");
                Ok((child, note))
            }
            Ok(Ok(Err(refused))) => {
                child.end().await;
                Err(Failed::refused(refused.into()))
            }
            Ok(Err(fault)) => {
                let death = child.bury(fault).await;
                let error = Error::new(
                    kind_of(&death),
                    format!("the engine {} died while it was loading: {death}", launch.name),
                );
                Err(Failed { error, death: Some(death) })
            }
            Err(_) => {
                let overdue = format!("it did not load within {} s", limit.as_secs_f32());
                let error = Error::new(Kind::Timeout, format!("the engine {}: {overdue}", launch.name));
                Err(Failed { error, death: Some(child.kill(&overdue).await) })
            }
        }
    }

    async fn spawn(launch: &Launch) -> Result<Child<E>> {
        let failed = |error: io::Error| Error::internal("no socket for an engine").cause(error);
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let (reader, writer) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let mut process = spawn(launch, theirs).await?;
        let (Some(pid), Some(stderr)) = (process.id(), process.stderr.take()) else {
            return Err(Error::internal(format!("the process of the engine {} is not there", launch.name)));
        };
        Ok(Child {
            name: launch.name.clone(),
            grace: launch.limits.grace,
            process,
            pid,
            reader,
            writer,
            frames: Frames::default(),
            stderr: Tail::follow(&launch.name, stderr),
            ended_before: ended_for_memory(Path::new("/")),
            _alive: Alive::new(pid),
            engine: PhantomData,
        })
    }

    async fn greet(&mut self, greeting: &[u8]) -> Result<Result<Option<String>, WireError>, Fault> {
        self.write(greeting).await?;
        let hello = self.frames.next(&mut self.reader).await?.ok_or(Fault::Closed)?;
        decode::<Hello>(&hello)?.check()?;
        match self.said().await? {
            FromChild::Loaded(loaded) => Ok(loaded),
            FromChild::Progress { .. } | FromChild::Answer { .. } => Err(Fault::out_of_turn()),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// What it says next. May be dropped while it waits. After an error there is nothing but to `bury` it.
    pub(super) async fn said(&mut self) -> Result<Said<E>, Fault> {
        let frame = self.frames.next(&mut self.reader).await?.ok_or(Fault::Closed)?;
        Ok(decode(&frame)?)
    }

    pub(super) async fn write(&mut self, frame: &[u8]) -> Result<(), Fault> {
        match tokio::time::timeout(WRITE_LIMIT, self.writer.write_all(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Fault::Closed),
            Err(_) => Err(Error::internal("it takes nothing from its socket").into()),
        }
    }

    pub(super) async fn cancel(&mut self, job: u64) -> Result<(), Fault> {
        self.write(&encode(&ToChild::<()>::Cancel { job })?).await
    }

    /// Unloads the engine. Resolves when the process is no more.
    pub(super) async fn end(mut self) {
        let unloaded = match encode(&ToChild::<()>::Unload) {
            Ok(unload) => self.write(&unload).await,
            Err(error) => Err(error.into()),
        };
        if unloaded.is_ok() && tokio::time::timeout(self.grace, self.process.wait()).await.is_ok() {
            return;
        }
        log::warn!(engine = self.name.as_str(), pid = self.pid; "an engine does not unload and is killed");
        self.kill("").await;
    }

    /// The end of a process that no longer says what it should. Resolves when it is no more, with what it died of.
    pub(super) async fn bury(mut self, fault: Fault) -> String {
        if let Fault::Broken(error) = fault {
            return self.kill(&error.full()).await;
        }
        match tokio::time::timeout(EXIT_LIMIT, self.process.wait()).await {
            Ok(Ok(status)) => {
                let for_memory = ended_for_memory(Path::new("/")) > self.ended_before;
                with_last_words(died_of(status, for_memory), &self.stderr.last_words().await)
            }
            _ => self.kill("it closed its socket").await,
        }
    }

    /// SIGKILL, for it and whatever it has started. Resolves when it is no more, with `why` and its last words.
    pub(super) async fn kill(mut self, why: &str) -> String {
        self.kill_group();
        loop {
            match tokio::time::timeout(STUCK_EVERY, self.process.wait()).await {
                Ok(_) => return with_last_words(why.to_owned(), &self.stderr.last_words().await),
                Err(_) => {
                    log::error!(engine = self.name.as_str(), pid = self.pid;
                        "a killed engine does not end: the kernel or a driver holds it, with its memory");
                }
            }
        }
    }

    fn kill_group(&self) {
        // None once it has been waited for; the number may then be somebody else's.
        let Some(group) = self.process.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) else { return };
        // SAFETY: kill(2) takes numbers; this group is that of a process which we have not waited for yet.
        if unsafe { libc::kill(-group, libc::SIGKILL) } != 0 {
            let error = io::Error::last_os_error();
            log::debug!(engine = self.name.as_str(), pid = self.pid; "an engine cannot be killed: {error}");
        }
    }
}

/// What a death means for the job that it ended. A smaller variant may live where the device has no memory for this one.
pub(super) fn kind_of(death: &str) -> Kind {
    if is_out_of_memory(death) { Kind::OverBudget } else { Kind::Internal }
}

fn with_last_words(why: String, last_words: &[String]) -> String {
    if last_words.is_empty() { why } else { format!("{why}; its last words: {}", last_words.join(" | ")) }
}

/// `for_memory`: the kernel has ended something for want of memory while it lived.
fn died_of(status: ExitStatus, for_memory: bool) -> String {
    let Some(signal) = status.signal() else {
        return format!("it ended with the exit status {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        libc::SIGKILL if for_memory => "SIGKILL: the kernel was out of memory",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGABRT => "SIGABRT",
        libc::SIGILL => "SIGILL: a library for another processor?",
        libc::SIGFPE => "SIGFPE",
        libc::SIGTERM => "SIGTERM",
        other => return format!("it was killed by signal {other}"),
    };
    format!("it was killed by {name}")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::engines::{
        Limits,
        puppet::{Puppet, PuppetSpec},
    };

    #[tokio::test]
    async fn what_greets_well_and_then_talks_out_of_turn_or_nonsense_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (program, words) = (dir.path().join("program"), dir.path().join("words"));
        // It answers on the socket that is its standard input, and stays.
        fs::write(&program, format!("#!/bin/sh\ncat {} >&0\nexec sleep 600\n", words.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let hello = encode(&Hello::OURS).unwrap();
        let early = encode(&Said::<Puppet>::Answer { job: 1, answer: Ok(String::new()) }).unwrap();
        let mut endless = (u32::MAX).to_le_bytes().to_vec();
        endless.extend([0; 16]);
        for (second, told) in [
            (early, "it said something out of turn"),
            (vec![1, 0, 0, 0, 0xff], "between the daemon and an engine"),
            (endless, "a message of 4294967295 bytes"),
        ] {
            fs::write(&words, [hello.clone(), second].concat()).unwrap();
            let limits = Limits { load: Duration::from_secs(10), ..Limits::default() };
            let launch = Launch { program: program.clone(), limits, ..Launch::new("odd") };
            let spec = EngineSpec::from(PuppetSpec::default());
            let failed = Child::<Puppet>::start(&launch, &spec, &CancellationToken::new()).await.err().unwrap();
            assert_eq!(failed.error.kind(), Kind::Internal, "{told}");
            assert!(failed.error.message().contains(told), "{told}: {}", failed.error.full());
            assert!(failed.death.is_some(), "it counts as a death");
        }
    }

    #[test]
    fn a_death_is_told_in_words() {
        let died_of = |raw: i32, for_memory: bool| died_of(ExitStatus::from_raw(raw), for_memory);
        assert_eq!(died_of(9, false), "it was killed by SIGKILL");
        assert_eq!(died_of(31, true), "it was killed by signal 31");
        assert_eq!(died_of(101 << 8, true), "it ended with the exit status 101");
        let words = ["a".to_owned(), "b".to_owned()];
        assert_eq!(with_last_words("why".to_owned(), &words), "why; its last words: a | b");
    }

    #[test]
    fn a_death_for_want_of_memory_is_told_from_others() {
        let of_memory = died_of(ExitStatus::from_raw(9), true);
        let words = ["terminate called after throwing an instance of 'std::bad_alloc'".to_owned()];
        let aborted = with_last_words(died_of(ExitStatus::from_raw(6), false), &words);
        assert_eq!([kind_of(&of_memory), kind_of(&aborted)], [Kind::OverBudget; 2], "{of_memory}; {aborted}");
        for other in [died_of(ExitStatus::from_raw(9), false), died_of(ExitStatus::from_raw(11), true)] {
            assert_eq!(kind_of(&other), Kind::Internal, "{other}");
        }
    }
}
