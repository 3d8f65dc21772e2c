//! How much room the disk has. What is acknowledged to a client must find some: whatever may be large asks first.

use std::{ffi::CString, mem::MaybeUninit, os::unix::ffi::OsStrExt, path::Path};

use crate::base::ByteSize;

/// What this user may still fill on the file system of the folder.
pub fn free(dir: &Path) -> Option<ByteSize> {
    let path = CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string and `stat` is large enough; statvfs(3) fills it when it returns 0.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    // Both are 64 bits wide on the processors that we build for.
    Some(ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_room_and_nothing_has_none() {
        assert!(free(&std::env::temp_dir()).unwrap().get() > 0);
        assert_eq!(free(Path::new("/proc/nothing")), None);
    }
}
