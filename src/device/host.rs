//! Processor, memory and its use, cgroup limits, kernel and distribution, out of `/proc`, `/sys/fs/cgroup` and `/etc`.

use std::path::{Component, Path};

use super::tree::Tree;

pub(super) struct Host {
    pub(super) arch: String,
    pub(super) kernel: Option<String>,
    pub(super) os: Option<String>,
    pub(super) cpu_model: Option<String>,
    pub(super) cpu_cores: usize,
    pub(super) ram_bytes: u64,
    pub(super) cgroup_memory_limit: Option<u64>,
}

/// Cores of ARM (implementer, part) by the numbers of their MIDR; the kernel gives no names.
const ARM_CORES: [(&str, &str, &str); 7] = [
    ("0x41", "0xd07", "Cortex-A57"),
    ("0x41", "0xd08", "Cortex-A72"),
    ("0x41", "0xd0b", "Cortex-A76"),
    ("0x41", "0xd42", "Cortex-A78AE"),
    ("0x41", "0xd83", "Neoverse-V3AE"),
    ("0x4e", "0x003", "Denver 2"),
    ("0x4e", "0x004", "Carmel"),
];

pub(super) fn read(tree: &mut Tree) -> Host {
    let cpuinfo = tree.text("proc/cpuinfo").unwrap_or_default();
    let mut cpu_cores = cpuinfo.lines().filter(|line| key_is(line, "processor")).count();
    if cpu_cores == 0 {
        tree.note("/proc/cpuinfo names no processor: one core is assumed");
        cpu_cores = 1;
    }
    let ram_bytes = memory_total(tree);
    Host {
        arch: arch(&cpuinfo),
        kernel: tree.text("proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
        os: os(tree),
        cpu_model: cpu_model(&cpuinfo),
        cpu_cores,
        ram_bytes,
        cgroup_memory_limit: cgroup_memory_limit(tree).filter(|limit| *limit < ram_bytes || ram_bytes == 0),
    }
}

/// As the file tells it, so that a captured machine keeps its own; else what this binary was built for.
fn arch(cpuinfo: &str) -> String {
    let arch = if field(cpuinfo, "vendor_id").is_some() {
        "x86_64"
    } else if field(cpuinfo, "CPU implementer").is_some() {
        "aarch64"
    } else {
        std::env::consts::ARCH
    };
    arch.to_owned()
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let implementer = field(cpuinfo, "CPU implementer");
    let part = field(cpuinfo, "CPU part");
    let core = ARM_CORES.iter().find(|core| Some(core.0) == implementer && Some(core.1) == part);
    core.map(|core| core.2).or_else(|| field(cpuinfo, "model name")).map(str::to_owned)
}

fn memory_total(tree: &mut Tree) -> u64 {
    let meminfo = tree.text("proc/meminfo").unwrap_or_default();
    kib_field(&meminfo, "MemTotal").unwrap_or_else(|| {
        tree.note("/proc/meminfo gives no MemTotal: the size of the memory is unknown");
        0
    })
}

fn os(tree: &mut Tree) -> Option<String> {
    let text = tree.first_text(&["etc/os-release", "usr/lib/os-release"])?;
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// All memory and what of it can be had now, as the system and each cgroup above us have it.
pub(super) fn usage(tree: &mut Tree) -> Option<(u64, u64)> {
    let meminfo = tree.text("proc/meminfo")?;
    let mut total = kib_field(&meminfo, "MemTotal")?;
    let mut free = kib_field(&meminfo, "MemAvailable")?;
    for group in cgroups(tree) {
        total = total.min(group.limit);
        // Not every level tells its use to everybody; its limit binds us all the same.
        let Some(used) = tree.text(&group.file("memory.current", "memory.usage_in_bytes")) else { continue };
        let Ok(used) = used.trim().parse::<u64>() else { continue };
        let stat = tree.text(&group.file("memory.stat", "memory.stat")).unwrap_or_default();
        let cache = if group.unified { "inactive_file " } else { "total_inactive_file " };
        let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok()).unwrap_or(0);
        free = free.min(group.limit.saturating_sub(used.saturating_sub(cache)));
    }
    Some((total, free))
}

/// What a process holds that the system could give to nobody else: not its mapped files, which are read again.
pub(super) fn private_bytes(tree: &mut Tree, process: u32) -> u64 {
    let sum = |text: &str, keys: [&str; 2]| keys.iter().filter_map(|key| kib_field(text, key)).sum();
    match tree.text(&format!("proc/{process}/smaps_rollup")).filter(|text| !text.is_empty()) {
        Some(text) => sum(&text, ["Pss_Anon", "Pss_Shmem"]),
        None => {
            let status = tree.text(&format!("proc/{process}/status")).unwrap_or_default();
            sum(&status, ["RssAnon", "RssShmem"])
        }
    }
}

/// The smallest limit from our own cgroup up to the root: each of them binds us.
fn cgroup_memory_limit(tree: &mut Tree) -> Option<u64> {
    cgroups(tree).into_iter().map(|group| group.limit).min()
}

/// A cgroup that limits the memory.
struct Cgroup {
    folder: String,
    /// Of the one hierarchy (v2), not of the old one for memory alone.
    unified: bool,
    limit: u64,
}

impl Cgroup {
    fn file(&self, unified: &str, old: &str) -> String {
        format!("{}{}", self.folder, if self.unified { unified } else { old })
    }
}

fn cgroups(tree: &mut Tree) -> Vec<Cgroup> {
    let mut found = Vec::new();
    for line in tree.text("proc/self/cgroup").unwrap_or_default().lines() {
        // `0::/path` is the unified hierarchy (v2), `4:memory:/path` the old one.
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            tree.note(format!("/proc/self/cgroup has a line of another form: `{line}`"));
            continue;
        };
        let unified = id == "0" && controllers.is_empty();
        let (base, limit_file) = if unified {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        // A path that leaves the namespace (`/../..`), or that a container does not show, is passed over; the
        // root of what is shown is always asked.
        let path: Vec<&str> = Path::new(path)
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { name.to_str() } else { None })
            .collect();
        for depth in (0..=path.len()).rev() {
            let level = path[..depth].iter().map(|name| format!("{name}/")).collect::<String>();
            let folder = format!("{base}/{level}");
            let file = format!("{folder}{limit_file}");
            let Some(text) = tree.text(&file) else { continue };
            match text.trim() {
                "max" => (),
                text => match text.parse() {
                    Ok(limit) => found.push(Cgroup { folder, unified, limit }),
                    Err(_) => tree.note(format!("/{file} holds no number: `{text}`")),
                },
            }
        }
    }
    found
}

/// The value of `key: 12 kB`, in bytes.
fn kib_field(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The value of the first `key : value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| key_is(line, key))?;
    line.split_once(':').map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}

fn key_is(line: &str, key: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| name.trim() == key)
}
