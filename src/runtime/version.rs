//! Versions of TensorRT: what the library says of itself, and which one a provider was built for.

use std::{
    ffi::c_int,
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    runtime::{Runtime, driver, provider},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// TensorRT puts its version into one number: 8503 is 8.5.3, and since 10.0 101300 is 10.13.0.
    fn from_number(number: u32) -> Version {
        let unit = if number < 10_000 { 1000 } else { 10_000 };
        Version { major: number / unit, minor: number % unit / 100, patch: number % 100 }
    }
}

impl Runtime {
    /// The TensorRT that ONNX Runtime's provider will load. The driver is asked first. What was found stays, for it is asked
    /// at each job; what was not is looked for again.
    pub fn tensorrt_version(&self) -> Result<Version> {
        once(&self.tensorrt, || {
            driver::check()?;
            library_version(&tensorrt_library(self.library())?)
        })
    }
}

fn once(known: &OnceLock<Version>, look: impl FnOnce() -> Result<Version>) -> Result<Version> {
    match known.get() {
        Some(version) => Ok(*version),
        None => look().map(|version| *known.get_or_init(|| version)),
    }
}

/// `libnvinfer.so.10`, as the provider beside ONNX Runtime's library needs it.
fn tensorrt_library(onnxruntime: &Path) -> Result<PathBuf> {
    let real = onnxruntime.canonicalize().unwrap_or_else(|_| onnxruntime.to_owned());
    let provider = real.with_file_name("libonnxruntime_providers_tensorrt.so");
    let name = provider::needed(&provider)
        .ok()
        .and_then(|names| names.into_iter().find(|name| name.starts_with("libnvinfer.so.")));
    name.map(PathBuf::from).ok_or_else(|| {
        let message = format!("{} has no TensorRT provider beside it", onnxruntime.display());
        Error::new(Kind::Unsupported, message).hint("name a GPU build of ONNX Runtime in runtime.library")
    })
}

pub(super) fn library_version(library: &Path) -> Result<Version> {
    type Number = unsafe extern "C" fn() -> c_int;
    // SAFETY: `getInferLibVersion` is one of TensorRT's few plain C functions; it takes nothing, touches no GPU and has
    // had this signature since TensorRT 1. The library's initialisers are those that its provider will run as well.
    let number = unsafe {
        let library = libloading::Library::new(library).map_err(|error| {
            Error::unavailable(format!("TensorRT cannot be opened: {} is missing", library.display()))
                .hint("apt-get install libnvinfer10 from NVIDIA's repository, or of the number that is missing")
                .cause(error)
        })?;
        let version: libloading::Symbol<'_, Number> = library
            .get(b"getInferLibVersion")
            .map_err(|error| Error::unavailable("what was found as TensorRT's library is another one").cause(error))?;
        version()
    };
    Ok(Version::from_number(number.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_counting_are_read() {
        for (number, text) in [(8503, "8.5.3"), (8601, "8.6.1"), (100_300, "10.3.0"), (101_302, "10.13.2")] {
            assert_eq!(Version::from_number(number).to_string(), text);
        }
    }

    #[test]
    fn what_was_found_is_not_looked_for_again_and_what_was_not_is() {
        let known = OnceLock::new();
        assert!(once(&known, || Err(Error::unavailable("no driver yet"))).is_err());
        let version = once(&known, || Ok(Version::from_number(101_302))).unwrap();
        assert_eq!(once(&known, || panic!("asked again")).unwrap(), version);
    }

    #[test]
    fn the_library_is_the_one_that_the_provider_needs() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libonnxruntime.so");
        let error = tensorrt_library(&library).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        std::fs::write(dir.path().join("libonnxruntime_providers_tensorrt.so"), b"\0libnvinfer.so.10\0").unwrap();
        assert_eq!(tensorrt_library(&library).unwrap(), Path::new("libnvinfer.so.10"));
    }

    #[test]
    fn a_library_that_is_missing_or_another_is_an_error() {
        let error = library_version(Path::new("libnvinfer.so.99")).unwrap_err();
        assert!(error.full().contains("libnvinfer.so.99 is missing"), "{}", error.full());
        let error = library_version(Path::new("libc.so.6")).unwrap_err();
        assert!(error.full().contains("another one"), "{}", error.full());
    }
}
