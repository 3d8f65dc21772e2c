//! A daemon started for a bench: this binary, a temporary folder, free ports. Ends with its guard.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    base::{Error, Result},
    cli::SettingsArgs,
};

const START_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Daemon {
    child: Child,
    dir: PathBuf,
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
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| Error::internal(format!("the bench's daemon: {what}")).cause(error)
        };
        let dir = std::env::temp_dir().join(format!("vigia-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(failed("no folder for it"))?;
        let announce = dir.join("announce.json");
        let log = fs::File::create(dir.join("log")).map_err(failed("no log for it"))?;
        let executable = std::env::current_exe().map_err(failed("this program's file is unknown"))?;
        let mut command = Command::new(executable);
        command.arg("run").arg("--announce").arg(&announce);
        if let Some(config) = &settings.config {
            command.arg("--config").arg(config);
        }
        for set in &settings.sets {
            command.arg("--set").arg(set);
        }
        command.args(["--set", "server.listen=127.0.0.1:0", "--set", "mqtt.listen=127.0.0.1:0"]);
        command.arg("--set").arg(format!("store.dir={}", dir.join("state").display()));
        for set in sets {
            command.arg("--set").arg(set);
        }
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut child = child.map_err(failed("it does not start"))?;
        let address = loop {
            if let Some(address) = read_announcement(&announce) {
                break address;
            }
            let ended = child.try_wait().map_err(failed("it cannot be watched"))?;
            if ended.is_some() || begun.elapsed() > START_LIMIT {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                child.kill().unwrap_or(());
                return Err(Error::internal(format!("the bench's daemon did not become ready:\n{log}")));
            }
            std::thread::yield_now();
        };
        Ok(Daemon { child, dir, address, ready: begun.elapsed() })
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
