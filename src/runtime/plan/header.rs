//! The first bytes of a plan: that it is one, and which TensorRT wrote it. As TensorRT's own `trtexec
//! --getPlanVersionOnly` reads them: the tag `ftrt`, a zero for the layout, the version at 24.

use std::{fs::File, io::Read, path::Path};

use crate::{
    base::{Error, Kind, Result},
    runtime::Version,
};

const TAG: &[u8; 4] = b"ftrt";
const LAYOUT: [u8; 4] = [0; 4];
const VERSION_AT: usize = 24;
const BYTES: usize = 28;

pub(super) fn read(plan: &Path) -> Result<Version> {
    let wrong = |what: &str| {
        Error::invalid(format!("{} is no plan of TensorRT: {what}", plan.display()))
            .hint("make it with TensorRT 8.6 or newer: `trtexec --onnx=… --saveEngine=…`")
    };
    let mut header = [0; BYTES];
    let mut file = File::open(plan)
        .map_err(|error| Error::unavailable(format!("{} cannot be opened", plan.display())).cause(error))?;
    file.read_exact(&mut header).map_err(|_| wrong("it is too short"))?;
    if !header.starts_with(TAG) {
        return Err(wrong("it does not begin like one"));
    }
    if header[TAG.len()..][..LAYOUT.len()] != LAYOUT || header[VERSION_AT] == 0 {
        return Err(wrong("it was written in another layout"));
    }
    let [major, minor, patch] = [0, 1, 2].map(|i| u32::from(header[VERSION_AT + i]));
    Ok(Version { major, minor, patch })
}

/// A plan runs on the version that wrote it, and on no other.
pub(super) fn check(plan: &Path, built_with: Version, library: Version) -> Result<()> {
    if built_with == library {
        return Ok(());
    }
    let message = format!("{} was built with TensorRT {built_with}, and TensorRT {library} is here", plan.display());
    let hint = if built_with.major == library.major {
        format!("build it again on this device with TensorRT {library}, or choose a variant with ONNX files")
    } else {
        format!("install TensorRT {} with an ONNX Runtime for it, or build the plan again", built_with.major)
    };
    Err(Error::new(Kind::Unsupported, message).hint(hint))
}

/// A header and nothing behind it.
#[cfg(test)]
pub(super) fn of(major: u8, minor: u8, patch: u8) -> Vec<u8> {
    let mut header = vec![0; BYTES];
    header[..4].copy_from_slice(TAG);
    header[VERSION_AT..].copy_from_slice(&[major, minor, patch, 6]);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_who_wrote_it_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.engine");
        std::fs::write(&file, of(10, 3, 1)).unwrap();
        assert_eq!(read(&file).unwrap().to_string(), "10.3.1");
        let mut other_layout = of(10, 3, 1);
        other_layout[4] = 9;
        for (bytes, word) in [
            (b"ftrt".to_vec(), "too short"),
            (vec![7; 64], "begin like"),
            (other_layout, "layout"),
            (of(0, 1, 1), "layout"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let error = read(&file).unwrap_err();
            assert!(error.message().contains(word) && error.hint_text().is_some(), "{}", error.full());
        }
        assert_eq!(read(&dir.path().join("none")).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn only_the_version_that_wrote_a_plan_runs_it() {
        let version = |major, minor| Version { major, minor, patch: 0 };
        let error = |library| check(Path::new("m.engine"), version(10, 3), library).unwrap_err();
        assert!(check(Path::new("m.engine"), version(10, 3), version(10, 3)).is_ok());
        assert!(error(version(10, 9)).hint_text().unwrap().contains("build it again on this device"));
        assert!(error(version(8, 6)).hint_text().unwrap().contains("install TensorRT 10"));
        assert_eq!(error(version(8, 6)).kind(), Kind::Unsupported);
    }
}
