//! The process as Prometheus sees it: memory, processor time, files, threads, out of `/proc`. Read when asked,
//! so that an idle daemon does nothing. What cannot be read is left out, never shown as zero.

use std::{fmt::Write, fs, path::Path};

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, 100 on x86-64 and on arm64.
const TICKS_PER_SEC: f64 = 100.0;

/// Prometheus text of the process whose folder in `/proc` is given.
pub(super) fn render(proc: &Path) -> String {
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
    // No `?` on entries: the folder changes while it is read, and a count is all that is asked.
    let open_fds = fs::read_dir(proc.join("fd")).ok().map(|entries| entries.count() as f64);
    let resident = field(&status, "VmRSS:").map(|kib| kib * 1024.0);
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("process_resident_memory_bytes", "gauge", "Memory in use.", resident),
        ("process_cpu_seconds_total", "counter", "Processor time used.", cpu_secs(&stat)),
        ("process_open_fds", "gauge", "Open files and sockets.", open_fds),
        ("process_threads", "gauge", "Threads.", field(&status, "Threads:")),
    ] {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _written = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    text
}

fn field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_secs(stat: &str) -> Option<f64> {
    // The program's name, in parentheses, may hold spaces and parentheses itself.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SEC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_its_folder() {
        let proc = tempfile::tempdir().unwrap();
        let path = proc.path();
        fs::write(path.join("status"), "Name:\tvigia\nVmRSS:\t   2048 kB\nThreads:\t7\n").unwrap();
        fs::write(path.join("stat"), "1 (vi) gia) S 0 1 1 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 7 0 5\n").unwrap();
        fs::create_dir(path.join("fd")).unwrap();
        fs::write(path.join("fd/0"), "").unwrap();
        let text = render(path);
        for line in [
            "process_resident_memory_bytes 2097152",
            "process_cpu_seconds_total 2",
            "# TYPE process_cpu_seconds_total counter",
            "process_open_fds 1",
            "process_threads 7",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(render(Path::new("/nowhere")), "");
        assert_eq!(cpu_secs("1 (cut"), None);
    }

    #[test]
    fn this_process_has_memory_and_threads() {
        let text = render(Path::new("/proc/self"));
        assert_eq!(text.matches("# TYPE").count(), 4, "{text}");
    }
}
