//! Starts the process of an engine so that it has only what it needs and cannot outlive the daemon.
//!
//! The kernel is asked to kill it when its parent dies, and by "parent" the kernel means the thread that started it:
//! so one thread that lives as long as the daemon starts them all.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::Stdio,
    sync::{OnceLock, mpsc},
};

use tokio::{
    process::{Child, Command},
    runtime,
    sync::oneshot,
};

use crate::{
    base::{Error, Result},
    engines::host::{Limits, RestartRules},
    settings,
};

/// Starts that may wait; each takes a millisecond.
const WAITING: usize = 16;
/// Variables that libraries of engines read. HOME is where the driver keeps the kernels that it has compiled, which
/// takes it minutes on a card that is newer than the library. Of the families below, the one that shows CUDA a single card.
const VARIABLES: [&str; 8] =
    ["LD_LIBRARY_PATH", "PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR", "LANG", "LC_ALL", "RUST_BACKTRACE"];
const FAMILIES: [&str; 2] = ["CUDA_", "NVIDIA_"];

/// How the process of an engine is started and kept.
#[derive(Debug, Clone)]
pub struct Launch {
    /// For the log and for `ps`.
    pub name: String,
    pub program: PathBuf,
    pub env: Vec<(OsString, OsString)>,
    /// Above 0, so that the kernel, when it must end something for memory, ends an engine and not the daemon.
    pub oom_score_adj: i16,
    pub limits: Limits,
    pub restarts: RestartRules,
}

impl Launch {
    pub fn new(name: &str) -> Launch {
        let wanted = |name: &str| VARIABLES.contains(&name) || FAMILIES.iter().any(|it| name.starts_with(it));
        Launch {
            name: name.to_owned(),
            // This very binary, also after an update has put another one at its path.
            program: PathBuf::from("/proc/self/exe"),
            env: settings::variables(wanted),
            oom_score_adj: 500,
            limits: Limits::default(),
            restarts: RestartRules::default(),
        }
    }
}

struct Request {
    command: Command,
    runtime: runtime::Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// The process has `socket` as its standard input, a pipe as its standard error, and nothing else. It is killed when
/// what is returned is dropped.
pub(super) async fn spawn(launch: &Launch, socket: UnixStream) -> Result<Child> {
    let failed = || Error::internal(format!("the process of the engine {} does not start", launch.name));
    let (reply, started) = oneshot::channel();
    let request = Request { command: command(launch, socket), runtime: runtime::Handle::current(), reply };
    spawner()?.try_send(request).map_err(|_| failed())?;
    let started = started.await.map_err(|_| failed())?;
    started.map_err(|error| failed().hint(format!("it is started as {}", launch.program.display())).cause(error))
}

fn spawner() -> Result<&'static mpsc::SyncSender<Request>> {
    static SPAWNER: OnceLock<io::Result<mpsc::SyncSender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::sync_channel::<Request>(WAITING);
        let run = move || {
            for Request { mut command, runtime, reply } in requests {
                let _entered = runtime.enter();
                // A runtime that is shutting down panics here; the thread's end would be that of all engines.
                let spawned = catch_unwind(AssertUnwindSafe(|| command.spawn()));
                // Where nobody waits any more, dropping the process kills it.
                drop(reply.send(spawned.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))));
            }
        };
        std::thread::Builder::new().name("spawner".to_owned()).spawn(run).map(|_| sender)
    });
    spawner.as_ref().map_err(|error| Error::internal("no thread to start engines").cause(error.to_string()))
}

fn command(launch: &Launch, socket: UnixStream) -> Command {
    let mut command = Command::new(&launch.program);
    command
        .arg0("vigia")
        .args(["engine-host", &launch.name])
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let (parent, oom_score_adj) = (std::process::id(), format!("{}", launch.oom_score_adj));
    let prepare = move || prepare(parent, oom_score_adj.as_bytes());
    // SAFETY: between fork(2) and execve(2) `prepare` makes system calls alone: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    command
}

/// In the new process, before it becomes the engine's.
fn prepare(parent: u32, oom_score_adj: &[u8]) -> io::Result<()> {
    // SAFETY: system calls with numbers, and with pointers to what lives across the call.
    unsafe {
        checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong))?;
        if libc::getppid().cast_unsigned() != parent {
            // It died before it could be asked to take this process with it.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // The kernel reads all of them, as long numbers.
        let (on, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, none, none, none))?;
        // A core of an engine is as large as its model.
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        checked(libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core))?;
        // Only lowering it needs a privilege; where it cannot be set at all, the kernel's own choice has to do.
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, oom_score_adj.as_ptr().cast(), oom_score_adj.len());
            libc::close(file);
        }
        close_others_on_exec()
    }
}

/// Libraries of the daemon open files without the flag that keeps them from other programs.
unsafe fn close_others_on_exec() -> io::Result<()> {
    const FIRST: libc::c_int = 3;
    // SAFETY: as in `prepare`; a flag on files of this process, which is about to become another program.
    unsafe {
        // By number, because glibc has a name for it only since 2.34.
        if libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return Ok(());
        }
        // Linux before 5.11, as in JetPack 5: one by one.
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        checked(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        for file in FIRST..libc::c_int::try_from(limit.rlim_cur).unwrap_or(libc::c_int::MAX) {
            libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        Ok(())
    }
}

fn checked(outcome: libc::c_int) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
