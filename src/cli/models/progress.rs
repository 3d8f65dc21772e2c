//! How far a download is: a bar for each file on a terminal, one plain line a file otherwise. On standard error, so
//! that standard output holds results alone.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Mutex,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    base::{ByteSize, lock, printable},
    models::pull::Told,
};

pub(super) struct Progress(Option<Bars>);

#[derive(Default)]
struct Bars {
    all: MultiProgress,
    by_path: Mutex<HashMap<String, ProgressBar>>,
}

impl Progress {
    pub(super) fn new(bars: bool) -> Progress {
        Progress(bars.then(Bars::default))
    }

    pub(super) fn tell(&self, told: &Told<'_>) {
        match &self.0 {
            Some(bars) => bars.tell(told),
            // A log that nobody takes any more ends no download.
            None => line(told).into_iter().for_each(|line| drop(writeln!(io::stderr(), "{line}"))),
        }
    }
}

impl Bars {
    fn tell(&self, told: &Told<'_>) {
        let with = |path: &str, act: &dyn Fn(&ProgressBar)| lock(&self.by_path).get(path).into_iter().for_each(act);
        match told {
            Told::Plan { .. } => (),
            Told::Begins { path, size } => {
                let bar = match size {
                    Some(size) => ProgressBar::new(*size).with_style(style()),
                    None => ProgressBar::new_spinner(),
                };
                let bar = self.all.add(bar).with_message((*path).to_owned());
                lock(&self.by_path).insert((*path).to_owned(), bar);
            }
            Told::At { path, bytes } => with(path, &|bar| {
                bar.set_position(*bytes);
                if bar.message() != *path {
                    // It waits no longer.
                    bar.set_message((*path).to_owned());
                }
            }),
            Told::Waits { path, because, time } => {
                let message = printable(&format!("{path}: {because}; again in {}", seconds(*time)));
                if lock(&self.by_path).contains_key(*path) {
                    with(path, &|bar| bar.set_message(message.clone()));
                } else {
                    // What cannot be drawn is not needed.
                    drop(self.all.println(message));
                }
            }
            Told::Done { path, .. } => with(path, &|bar| bar.finish_with_message((*path).to_owned())),
        }
    }
}

fn style() -> ProgressStyle {
    // The template is ours; were it wrong, a plain bar would do.
    ProgressStyle::with_template("{bar:24} {bytes:>11}/{total_bytes:11} {bytes_per_sec:>13} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What is worth a line in a log.
fn line(told: &Told<'_>) -> Option<String> {
    match told {
        Told::Plan { files: 0, .. } | Told::Begins { .. } | Told::At { .. } => None,
        Told::Plan { files, bytes } => {
            let files = if *files == 1 { "one file".to_owned() } else { format!("{files} files") };
            Some(bytes.map_or(files.clone(), |bytes| format!("{files}, {}", ByteSize(bytes))))
        }
        Told::Waits { path, because, time } => {
            Some(printable(&format!("{path}: {}; again in {}", because.full(), seconds(*time))))
        }
        Told::Done { path, bytes } => Some(format!("{path}: {}", ByteSize(*bytes))),
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;

    #[test]
    fn a_log_has_a_line_for_each_file_and_none_for_each_byte() {
        assert_eq!(line(&Told::At { path: "a", bytes: 7 }), None);
        assert_eq!(line(&Told::Done { path: "a", bytes: 2048 }).unwrap(), "a: 2 KiB");
        let because = Error::unavailable("cut").hint("wait");
        let waits = Told::Waits { path: "a", because: &because, time: Duration::from_secs(4) };
        assert_eq!(line(&waits).unwrap(), "a: cut (wait); again in 4 s");
        assert_eq!(line(&Told::Plan { files: 1, bytes: Some(2048) }).unwrap(), "one file, 2 KiB");
        assert_eq!(line(&Told::Plan { files: 3, bytes: None }).unwrap(), "3 files");
        // Bars on a terminal that is none must not fail either.
        let bars = Progress::new(true);
        bars.tell(&Told::Begins { path: "a", size: Some(9) });
        bars.tell(&Told::At { path: "a", bytes: 7 });
        bars.tell(&waits);
        bars.tell(&Told::Waits { path: "owner/name", because: &because, time: Duration::ZERO });
        bars.tell(&Told::Done { path: "a", bytes: 9 });
    }
}
