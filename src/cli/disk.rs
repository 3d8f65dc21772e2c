//! Whether the disk lets us write there. Asks, never writes.

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The folder itself, or the nearest one above it that exists and would have to be written to.
pub(super) fn nearest_existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|ancestor| ancestor.exists());
    found.filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Whether files can be made in the folder, by this user, on this file system.
pub(super) fn is_writable_dir(dir: &Path) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` is a C string that lives through the call; access(2) only reads it.
    dir.is_dir() && unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_counts_as_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(&dir.path().join("a/b/c")), dir.path());
        assert_eq!(nearest_existing(Path::new("no/such/folder")), Path::new("."));
        assert!(is_writable_dir(dir.path()));
    }

    #[test]
    fn a_file_or_nothing_is_no_folder_to_write_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_writable_dir(file.path()));
        assert!(!is_writable_dir(Path::new("/proc/nothing")));
    }
}
