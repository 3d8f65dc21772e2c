//! How much of the device's memory is in use now, and by whom: of a card by NVML, of memory that a GPU shares and of a
//! host by `/proc` and the cgroups that bind us. Asked every few seconds.
//!
//! Must never guess: what cannot be measured is an error or `None`, and whoever asks decides what to believe instead.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Facts, MemoryKind, fake, host, nvidia::CardMemory, tree::Tree};
use crate::base::{Error, Result};

/// In bytes. `used` is what could not be had now; what the system would give back at once counts as free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub total: u64,
    pub free: u64,
    pub used: u64,
}

/// Where models have their memory, ready to be asked again and again.
pub struct Meter {
    root: PathBuf,
    source: Source,
}

enum Source {
    Card(Box<CardMemory>),
    /// A card of a captured machine, by its number.
    Captured(u32),
    /// What its GPU takes is in no process's account.
    Shared,
    Host,
}

impl Usage {
    fn of(total: u64, free: u64) -> Usage {
        let free = free.min(total);
        Usage { total, free, used: total - free }
    }
}

impl Meter {
    /// For the memory that `facts` (probed below the same root) tell of.
    pub fn open(root: &Path, facts: &Facts) -> Result<Meter> {
        let source = match (facts.memory_kind, facts.gpus.first()) {
            (MemoryKind::Dedicated, Some(gpu)) if root == Path::new("/") => {
                Source::Card(Box::new(CardMemory::open(gpu).map_err(Error::unavailable)?))
            }
            (MemoryKind::Dedicated, Some(gpu)) => Source::Captured(gpu.index),
            (MemoryKind::Dedicated, None) => return Err(Error::unavailable("there is no card to measure")),
            (MemoryKind::Unified, _) => Source::Shared,
            (MemoryKind::None, _) => Source::Host,
        };
        Ok(Meter { root: root.to_owned(), source })
    }

    pub fn usage(&self) -> Result<Usage> {
        let measured = match &self.source {
            Source::Card(card) => card.usage(),
            Source::Captured(index) => fake::usage(&mut Tree::new(&self.root), *index),
            Source::Shared | Source::Host => {
                host::usage(&mut Tree::new(&self.root)).ok_or_else(|| "/proc/meminfo does not tell it".to_owned())
            }
        };
        measured
            .map(|(total, free)| Usage::of(total, free))
            .map_err(|why| Error::unavailable(format!("how much memory is in use cannot be measured: {why}")))
    }

    /// What these processes take of it and nobody else could have; a process that has ended takes nothing. `None`
    /// where the device does not tell by process.
    pub fn used_by(&self, processes: &[u32]) -> Option<u64> {
        match &self.source {
            Source::Card(card) => card.used_by(processes),
            Source::Captured(_) | Source::Shared => None,
            Source::Host => {
                let mut tree = Tree::new(&self.root);
                Some(processes.iter().map(|process| host::private_bytes(&mut tree, *process)).sum())
            }
        }
    }

    /// What everybody but our engines uses: all that is used, less what the engines' processes take. Where that is not
    /// told by process, what is `reserved` for them is believed.
    pub fn foreign(&self, engines: &[u32], reserved: u64) -> Result<u64> {
        let ours = self.used_by(engines).unwrap_or(reserved);
        Ok(self.usage()?.used.saturating_sub(ours))
    }
}

/// How many processes the kernel has ended since it started, because there was no memory for them. `None` where it does
/// not say.
pub fn ended_for_memory(root: &Path) -> Option<u64> {
    let text = Tree::new(root).text("proc/vmstat")?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::probe;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Meter) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let meter = Meter::open(dir.path(), &probe(dir.path())).unwrap();
        (dir, meter)
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable: 6291456 kB\n");

    #[test]
    fn what_the_kernel_ended_for_want_of_memory_is_counted_where_it_says_so() {
        let (dir, _) = machine(&[MEMINFO, ("proc/vmstat", "pgfault 12\noom_kill 3\noom_kills_other 9\n")]);
        assert_eq!(ended_for_memory(dir.path()), Some(3));
        let (dir, _) = machine(&[MEMINFO, ("proc/vmstat", "pgfault 12\n")]);
        assert_eq!(ended_for_memory(dir.path()), None);
        assert_eq!(ended_for_memory(Path::new("/nowhere")), None);
    }

    #[test]
    fn a_host_has_what_is_available() {
        let (_dir, meter) = machine(&[MEMINFO]);
        assert_eq!(meter.usage().unwrap(), Usage { total: 8 * GIB, free: 6 * GIB, used: 2 * GIB });
    }

    #[test]
    fn the_tightest_cgroup_binds_and_its_file_cache_is_free() {
        let (_dir, meter) = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/system.slice/vigia.service\n"),
            ("sys/fs/cgroup/system.slice/vigia.service/memory.max", "3221225472\n"),
            ("sys/fs/cgroup/system.slice/vigia.service/memory.current", "1073741824\n"),
            ("sys/fs/cgroup/system.slice/vigia.service/memory.stat", "anon 1\ninactive_file 536870912\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "3758096384\n"),
        ]);
        // 3 GiB − (1 − 0.5) in the inner one; the outer one has only half a GiB left.
        assert_eq!(meter.usage().unwrap(), Usage { total: 3 * GIB, free: 512 * MIB, used: 3 * GIB - 512 * MIB });
    }

    #[test]
    fn the_old_hierarchy_is_understood() {
        let (_dir, meter) = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/4f1c\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1610612736\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 536870912\n"),
        ]);
        assert_eq!(meter.usage().unwrap(), Usage { total: 2 * GIB, free: GIB, used: GIB });
    }

    #[test]
    fn a_cgroup_that_does_not_tell_its_use_still_binds_the_total() {
        let (_dir, meter) = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/memory.current", "lots\n"),
        ]);
        assert_eq!(meter.usage().unwrap(), Usage { total: GIB, free: GIB, used: 0 });
    }

    #[test]
    fn what_others_use_is_the_rest() {
        let (_dir, meter) = machine(&[
            MEMINFO,
            ("proc/7/smaps_rollup", "Rss: 9 kB\nPss_Anon: 524288 kB\nPss_File: 99 kB\nPss_Shmem: 262144 kB\n"),
            ("proc/8/status", "Name: x\nVmRSS: 9999 kB\nRssAnon: 262144 kB\nRssFile: 5 kB\nRssShmem: 0 kB\n"),
        ]);
        assert_eq!(meter.used_by(&[7, 8, 9]), Some(GIB), "9 has ended");
        assert_eq!(meter.foreign(&[7, 8], 0).unwrap(), GIB);
        assert_eq!(meter.foreign(&[], 5 * GIB).unwrap(), 2 * GIB, "what processes take is known here");
    }

    #[test]
    fn shared_memory_tells_nothing_by_process() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device/jetson-orin-nano-8gb");
        let meter = Meter::open(&root, &probe(&root)).unwrap();
        let usage = meter.usage().unwrap();
        assert_eq!((usage.total, usage.free), (7_802_572 * 1024, 3_901_286 * 1024));
        assert_eq!(meter.used_by(&[1]), None);
        assert_eq!(meter.foreign(&[1], GIB).unwrap(), usage.used - GIB);
        assert_eq!(meter.foreign(&[1], 100 * GIB).unwrap(), 0);
    }

    #[test]
    fn a_captured_card_has_what_the_driver_said_and_the_one_that_models_use_is_measured() {
        let (dir, meter) = machine(&[
            MEMINFO,
            (
                "nvml.toml",
                "[[card]]\nname = \"small\"\nvram_bytes = 10\nused_bytes = 3\n[[card]]\nname = \"large\"\nvram_bytes = 20\nused_bytes = 5\n",
            ),
        ]);
        assert_eq!(meter.usage().unwrap(), Usage { total: 20, free: 15, used: 5 });
        assert_eq!(meter.used_by(&[1]), None);
        let mut facts = probe(dir.path());
        facts.choose_card(0).unwrap();
        let meter = Meter::open(dir.path(), &facts).unwrap();
        assert_eq!(meter.usage().unwrap(), Usage { total: 10, free: 7, used: 3 });
    }

    #[test]
    fn a_machine_that_tells_nothing_is_an_error() {
        for files in [&[][..], &[("proc/meminfo", "MemTotal: 8388608 kB\n")], &[("proc/meminfo", "\0garbage")]] {
            let (_dir, meter) = machine(files);
            let error = meter.usage().unwrap_err();
            assert!(error.message().contains("/proc/meminfo"), "{}", error.full());
            assert!(meter.foreign(&[1], 0).is_err());
        }
    }

    #[test]
    fn this_machine_can_be_asked() {
        let root = Path::new("/");
        let meter = Meter::open(root, &probe(root)).unwrap();
        let usage = meter.usage().unwrap();
        assert!(usage.total > 0 && usage.free <= usage.total);
        if let Some(bytes) = meter.used_by(&[std::process::id()]) {
            assert!(bytes < usage.total);
        }
    }
}
