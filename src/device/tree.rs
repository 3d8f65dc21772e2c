//! Small text files below a root folder. An absent file is an answer; one that cannot be read is a note.
//! Never reads outside the root (but follows the links inside) and never more than a bounded part of a file.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

/// `/proc/cpuinfo` of 256 cores stays below this.
const MOST: u64 = 1 << 20;

pub(super) struct Tree {
    root: PathBuf,
    pub(super) notes: Vec<String>,
}

impl Tree {
    pub(super) fn new(root: &Path) -> Tree {
        Tree { root: root.to_owned(), notes: Vec::new() }
    }

    /// The text of a file, named from the root without a leading slash; NULs as line ends, as the device tree
    /// ends its strings with them.
    pub(super) fn text(&mut self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let read = File::open(self.root.join(path)).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
        match read {
            Ok(_) => Some(String::from_utf8_lossy(&bytes).replace('\0', "\n")),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(error) => {
                self.note(format!("/{path} cannot be read: {error}"));
                None
            }
        }
    }

    /// The first of these files that is there and says something.
    pub(super) fn first_text(&mut self, paths: &[&str]) -> Option<String> {
        paths.iter().find_map(|path| self.text(path).filter(|text| !text.trim().is_empty()))
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
