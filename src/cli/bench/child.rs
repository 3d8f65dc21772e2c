//! A daemon started for a bench: this binary, a temporary folder, free ports. Ends with its guard; may be killed and
//! started anew on the same folder before.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    base::{Error, Result},
    cli::{SettingsArgs, places},
    runtime,
    settings::Settings,
};

const START_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Daemon {
    child: Child,
    dir: PathBuf,
    /// Of its command line, to start it anew.
    args: Vec<OsString>,
    pub(super) address: SocketAddr,
    /// From starting the process to its announcement.
    pub(super) ready: Duration,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) rss_bytes: u64,
    pub(super) cpu: Duration,
    pub(super) at: Instant,
}

impl Daemon {
    /// With the settings that the bench itself was given, as what is expected is made with them; `sets` above all.
    pub(super) fn start(settings: &SettingsArgs, sets: &[String]) -> Result<Daemon> {
        Daemon::start_beside(settings, sets, "daemon")
    }

    /// One of several of a bench, each with a name and a folder of its own.
    pub(super) fn start_beside(settings: &SettingsArgs, sets: &[String], name: &str) -> Result<Daemon> {
        let dir = std::env::temp_dir().join(format!("vigia-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).map_err(failed("no folder for it"))?;
        let mut args: Vec<OsString> = vec!["run".into(), "--announce".into(), dir.join("announce.json").into()];
        if let Some(config) = &settings.config {
            args.extend(["--config".into(), config.into()]);
        }
        let mut all = settings.sets.clone();
        all.extend(["server.listen=127.0.0.1:0".to_owned(), "mqtt.listen=127.0.0.1:0".to_owned()]);
        all.push(format!("store.dir={}", dir.join("state").display()));
        all.extend_from_slice(sets);
        args.extend(all.into_iter().flat_map(|set| ["--set".into(), set.into()]));
        let (child, address, ready) = spawn(&dir, &args)?;
        Ok(Daemon { child, dir, args, address, ready })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn store_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// SIGKILL, and another one on what it leaves.
    pub(super) fn kill_and_restart(&mut self) -> Result<()> {
        self.child.kill().map_err(failed("it cannot be killed"))?;
        self.child.wait().map_err(failed("it does not die"))?;
        (self.child, self.address, self.ready) = spawn(&self.dir, &self.args)?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended.
    pub(super) fn stop(&mut self, limit: Duration) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap_or_default();
        // SAFETY: kill(2) with the number of a child that has not been waited for, so that it is nobody else's.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let begun = Instant::now();
        while self.child.try_wait().map_err(failed("it cannot be watched"))?.is_none() {
            if begun.elapsed() > limit {
                return Err(Error::internal("the bench's daemon does not stop").hint("its log says why"));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// What the processes of its engines have in memory.
    pub(super) fn engines_rss_bytes(&self) -> u64 {
        let of_ours = |process: &PathBuf| {
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            parent.and_then(|parent| parent.trim().parse().ok()) == Some(self.child.id())
        };
        let Ok(processes) = fs::read_dir("/proc") else { return 0 };
        let processes = processes.flatten().map(|process| process.path()).filter(of_ours);
        processes.filter_map(|process| usage(&process)).map(|usage| usage.rss_bytes).sum()
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        usage(Path::new(&format!("/proc/{}", self.child.id())))
            .ok_or_else(|| Error::internal("the bench's daemon has ended in the middle").hint("its log says why"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It holds nothing of anybody's: ending it at once is enough. A folder that stays is only untidy.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
        fs::remove_dir_all(&self.dir).unwrap_or(());
    }
}

/// What a daemon of a bench is told besides the bench's own wishes: the speech model, and where its engine's library is.
pub(super) fn with_model(settings: &Settings, model: &Path) -> Result<Vec<String>> {
    let places = places(settings);
    let models = places.models.iter().find(|dir| dir.is_dir()).cloned().unwrap_or_else(|| settings.models_dir());
    let library = runtime::find(&settings.runtime.library, &places.library)?;
    let model = model.canonicalize().map_err(|error| {
        Error::unavailable(format!("{} cannot be read", model.display()))
            .cause(error)
            .hint("--model names a folder with config.json, tokenizer.json and onnx/")
    })?;
    Ok(vec![
        format!("models.dir={}", models.display()),
        format!("runtime.library={}", library.display()),
        format!("tasks.transcribe.model={}", model.display()),
        "mqtt.mode=off".to_owned(),
        "log.level=warn".to_owned(),
    ])
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::internal(format!("the bench's daemon: {what}")).cause(error)
}

/// Returns once it has announced itself, with its address and how long that took.
fn spawn(dir: &Path, args: &[OsString]) -> Result<(Child, SocketAddr, Duration)> {
    let announce = dir.join("announce.json");
    fs::remove_file(&announce).unwrap_or(());
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log"));
    let log = log.map_err(failed("no log for it"))?;
    let executable = std::env::current_exe().map_err(failed("this program's file is unknown"))?;
    let begun = Instant::now();
    let child = Command::new(executable).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    let mut child = child.map_err(failed("it does not start"))?;
    loop {
        if let Some(address) = read_announcement(&announce) {
            return Ok((child, address, begun.elapsed()));
        }
        let ended = child.try_wait().map_err(failed("it cannot be watched"))?;
        if ended.is_some() || begun.elapsed() > START_LIMIT {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            child.kill().unwrap_or(());
            return Err(Error::internal(format!("the bench's daemon did not become ready:\n{log}")));
        }
        // Not yielding: it needs the processor itself.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_announcement(path: &Path) -> Option<SocketAddr> {
    let text = fs::read(path).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    value["http"].as_str()?.parse().ok()
}

fn usage(process: &Path) -> Option<Usage> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib: u64 = rss.trim().trim_end_matches(" kB").parse().ok()?;
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // After the name, which may hold spaces: state is field 3, utime 14, stime 15, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Usage { rss_bytes: rss_kib << 10, cpu: Duration::from_millis(ticks * 10), at: Instant::now() })
}
