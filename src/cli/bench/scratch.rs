//! A folder that a bench writes into, which goes with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::base::{Error, Result};

pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(bench: &str) -> Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("vigia-bench-{bench}-{}", std::process::id()));
        let failed = |error| Error::unavailable(format!("{} cannot be made", dir.display())).cause(error);
        fs::create_dir_all(&dir).map_err(failed)?;
        Ok(Scratch(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays is only untidy.
        fs::remove_dir_all(&self.0).unwrap_or(());
    }
}
