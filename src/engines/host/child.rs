//! The process of an engine, from its own side: standard input is the socket to the daemon. One thread reads it, so
//! that a cancel arrives while the engine works, and so that the end of the daemon is the end of this process, whatever
//! the engine is doing.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::mpsc,
};

use log::LevelFilter;
use serde::Serialize;

use crate::{
    base::{Error, Result},
    engines::{
        Cancel, Engine, Spec,
        host::{
            runner::Runner,
            wire::{Frames, FromChild, Hello, Load, ToChild, WireError, decode, encode},
        },
    },
    telemetry::logs,
};

/// What the daemon asks next waits here while the engine works: it asks one thing at a time.
const WAITING: usize = 1;

/// Serves the daemon that has started this process until it has enough.
pub(crate) fn serve() -> Result<()> {
    let not_ours = || Error::invalid("this command is started by the daemon, for an engine").hint("use `vigia run`");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|error| not_ours().cause(error))?;
    let socket = UnixStream::from(socket);
    socket.peer_addr().map_err(|error| not_ours().cause(error))?;
    let reader = socket.try_clone().map_err(|error| Error::internal("the socket cannot be shared").cause(error))?;
    let mut link = Link { reader, frames: Frames::default(), writer: Writer(socket) };
    link.writer.send(&Hello::OURS)?;
    link.next::<Hello>()?.check()?;
    let load: Load = link.next()?;
    logs::install_for_engine(load.log_level.parse().unwrap_or(LevelFilter::Info));
    load.spec.serve(&load.name, link)
}

/// The socket while it is read and written by one thread.
pub(in crate::engines) struct Link {
    reader: UnixStream,
    frames: Frames,
    writer: Writer,
}

struct Writer(UnixStream);

impl Writer {
    fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let gone = |error| Error::unavailable("the daemon is gone").cause(error);
        io::Write::write_all(&mut self.0, &encode(message)?).map_err(gone)
    }
}

struct Job<A> {
    job: u64,
    steps: bool,
    ask: A,
    cancel: Cancel,
}

impl Link {
    fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let frame = self.frames.next_blocking(&mut self.reader)?;
        decode(&frame.ok_or_else(|| Error::unavailable("the daemon has left before it said what to load"))?)
    }

    /// Builds the engine and works until it is unloaded.
    pub(in crate::engines) fn serve<S: Spec>(self, name: &str, spec: S) -> Result<()> {
        let Link { reader, frames, mut writer } = self;
        let (jobs, inbox) = mpsc::sync_channel(WAITING);
        std::thread::Builder::new()
            .name("socket".to_owned())
            .spawn(move || match listen::<S::Engine>(reader, frames, &jobs) {
                // Dropping `jobs` lets the engine's thread finish.
                Ok(Heard::Unload) => {}
                Ok(Heard::End) => end_now(0),
                Err(error) => {
                    log::error!("{}", error.full());
                    end_now(1)
                }
            })
            .map_err(|error| Error::internal("no thread for the socket").cause(error))?;
        let mut runner = match Runner::start(name, || spec.build()) {
            Ok(runner) => runner,
            Err(error) => return writer.send(&loaded::<S::Engine>(Err(error.into()))),
        };
        writer.send(&loaded::<S::Engine>(Ok(runner.note())))?;
        for Job { job, steps, ask, cancel } in inbox {
            let mut tell = |step| {
                if steps {
                    let told = writer.send(&FromChild::<_, ()>::Progress { job, step });
                    // The thread at the socket sees the end as well, and acts on it.
                    told.unwrap_or_else(|error| log::debug!("{}", error.full()));
                }
            };
            let answer = runner.answer(&ask, &mut tell, &cancel);
            if let (Err(error), true) = (&answer, runner.is_spoilt()) {
                // Its last words; the next process has this job.
                log::error!("it failed, and cannot be built anew in this process: {}", error.full());
                end_now(1);
            }
            let answer = answer.map_err(WireError::from);
            writer.send(&FromChild::<(), _>::Answer { job, answer })?;
        }
        Ok(())
    }
}

fn loaded<E: Engine>(loaded: Result<Option<String>, WireError>) -> FromChild<E::Progress, E::Answer> {
    FromChild::Loaded(loaded)
}

enum Heard {
    Unload,
    /// The daemon is gone.
    End,
}

fn listen<E: Engine>(
    mut reader: UnixStream,
    mut frames: Frames,
    jobs: &mpsc::SyncSender<Job<E::Ask>>,
) -> Result<Heard> {
    let mut current: Option<(u64, Cancel)> = None;
    while let Some(frame) = frames.next_blocking(&mut reader)? {
        match decode(&frame)? {
            ToChild::Ask { job, steps, ask } => {
                let cancel = Cancel::default();
                current = Some((job, cancel.clone()));
                jobs.try_send(Job { job, steps, ask, cancel })
                    .map_err(|_| Error::internal("the daemon asks before it has its answer"))?;
            }
            ToChild::Cancel { job } => match &current {
                Some((running, cancel)) if *running == job => cancel.cancel(),
                // It was answered while the cancel was on its way.
                _ => {}
            },
            ToChild::Unload => return Ok(Heard::Unload),
        }
    }
    Ok(Heard::End)
}

/// Without what libraries have put down to be done at an exit: they would do it under the engine that is still working,
/// and may hang.
fn end_now(status: i32) -> ! {
    // SAFETY: _exit(2) ends the process and touches no memory of it.
    unsafe { libc::_exit(status) }
}
