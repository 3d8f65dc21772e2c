//! `vigia run`: the daemon. Settings, logs, limits of the process, then `daemon::run` until it is told to stop.

use std::path::PathBuf;

use anyhow::Context;

use crate::{
    api::RunningProfile,
    cli::{Chosen, Outcome, SettingsArgs, places},
    daemon,
    telemetry::{Logs, Metrics, logs::Colours},
};

/// Run the daemon
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Write {"http":"ADDRESS","mqtt":"ADDRESS"|null} to this file once everything listens
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    let no_colours = args.settings.sources().variable("NO_COLOR").is_some();
    let Chosen { loaded, facts, profile } = args.settings.load()?;
    let colours = if no_colours { Colours::Never } else { Colours::Auto };
    Logs { levels: loaded.settings.log.level.directives().to_vec(), colours }.install();
    Metrics::install();
    return_large_blocks();
    raise_open_files();
    log::info!(profile = profile.profile.name; "profile {}: {}", profile.profile.name, profile.why);

    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")?;
    let options = daemon::Options {
        places: places(&loaded.settings),
        settings: loaded.settings,
        facts,
        profile: RunningProfile { name: profile.profile.name.to_owned(), why: profile.why },
        announce: args.announce,
    };
    let ended = runtime.block_on(daemon::run(options));
    // The daemon has put everything down in order; what still blocks must not hold up the exit.
    runtime.shutdown_background();
    Ok(ended?)
}

/// glibc raises this threshold by itself with every large block that is freed, and then keeps what was meant to be
/// given back: 88 MB after some photos of 12 megapixels (189 instead of 101 MB resident). Set by hand, it stays.
#[cfg(target_env = "gnu")]
fn return_large_blocks() {
    const THRESHOLD_BYTES: libc::c_int = 1 << 20;
    // SAFETY: mallopt(3) only sets a number of the allocator; no other thread runs yet.
    if unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD_BYTES) } != 1 {
        log::debug!("the allocator keeps its own threshold for large blocks");
    }
}

#[cfg(not(target_env = "gnu"))]
fn return_large_blocks() {}

/// A connection is a file; the soft limit of 1024 that most systems start with is less than `max_connections`.
pub(super) fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) fills the struct that we own, setrlimit(2) only reads it.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if raised {
        log::debug!(open_files = limit.rlim_cur; "limit of open files raised");
    } else {
        log::warn!("the limit of open files stays as it is: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_files_becomes_the_hard_one() {
        raise_open_files();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let mut columns = line.split_whitespace();
        assert_eq!(columns.next(), columns.next());
    }
}
