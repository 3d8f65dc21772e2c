//! Whether NVIDIA's driver is there and has a GPU, asked of the driver itself before any library that builds on it.
//! Loads nothing but the driver's own library and keeps nothing.

use std::ffi::{c_int, c_uint};

use crate::base::{Error, Result};

/// Comes with the driver, never with CUDA.
const LIBRARY: &str = "libcuda.so.1";

/// What `cuInit` answers, as CUDA's driver API numbers it.
const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const DEVICE_UNAVAILABLE: c_int = 46;
const SYSTEM_DRIVER_MISMATCH: c_int = 803;
/// "Unknown", which mostly is the device node for CUDA that nobody has made since the machine started.
const UNKNOWN: c_int = 999;

/// The driver's version of CUDA, such as 12.4; an error says what to install.
pub(super) fn check() -> Result<(u32, u32)> {
    check_library(LIBRARY)
}

fn check_library(name: &str) -> Result<(u32, u32)> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: these three functions have had these signatures since CUDA 2.2, and are called with valid pointers; the
    // driver's library has no initialisers that need anything of us.
    let (initialised, devices, version) = unsafe {
        let library = libloading::Library::new(name).map_err(|error| {
            Error::unavailable(format!("no NVIDIA driver is installed ({name} is not there)"))
                .hint("install NVIDIA's driver and restart the machine; `nvidia-smi` then shows the card")
                .cause(error)
        })?;
        let broken = |error| Error::unavailable(format!("{name} is not NVIDIA's driver, or a broken one")).cause(error);
        let init: libloading::Symbol<'_, Init> = library.get(b"cuInit").map_err(broken)?;
        let count: libloading::Symbol<'_, Number> = library.get(b"cuDeviceGetCount").map_err(broken)?;
        let version: libloading::Symbol<'_, Number> = library.get(b"cuDriverGetVersion").map_err(broken)?;
        let initialised = init(0);
        let number = |ask: &libloading::Symbol<'_, Number>| {
            let mut number = 0;
            (initialised == SUCCESS && ask(&mut number) == SUCCESS).then_some(number)
        };
        (initialised, number(&count), number(&version))
    };
    told(initialised, devices, version)
}

/// What the driver's numbers mean to a person.
fn told(initialised: c_int, devices: Option<c_int>, version: Option<c_int>) -> Result<(u32, u32)> {
    match (initialised, devices) {
        (SUCCESS, Some(1..)) => {
            let version = version.unwrap_or_default().unsigned_abs();
            Ok((version / 1000, version % 1000 / 10))
        }
        (SUCCESS | NO_DEVICE, _) => Err(Error::unavailable("the NVIDIA driver is installed, and finds no GPU")
            .hint("`nvidia-smi` says what it sees; in a container, pass the GPU through (`--gpus all`)")),
        (DEVICE_UNAVAILABLE, _) => Err(Error::unavailable("the GPU is taken by another process in exclusive mode")
            .hint("`nvidia-smi --compute-mode=0` lets several processes use it")),
        (SYSTEM_DRIVER_MISMATCH, _) => {
            Err(Error::unavailable("the NVIDIA driver was updated while running").hint("restart the machine"))
        }
        (UNKNOWN, _) => Err(Error::unavailable(format!("the NVIDIA driver does not start (CUDA error {UNKNOWN})"))
            .hint("/dev/nvidia-uvm must be there: `sudo nvidia-modprobe -c 0 -u` makes it; else see `dmesg`")),
        (code, _) => Err(Error::unavailable(format!("the NVIDIA driver does not start (CUDA error {code})"))
            .hint("see `nvidia-smi` and `dmesg`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        let error = check_library("libcuda-that-is-not-there.so.1").unwrap_err();
        assert!(error.message().contains("no NVIDIA driver is installed"), "{}", error.full());
        assert!(error.hint_text().unwrap().contains("nvidia-smi"));
    }

    #[test]
    fn every_answer_of_the_driver_says_what_to_do() {
        assert_eq!(told(SUCCESS, Some(2), Some(12_040)).unwrap(), (12, 4));
        for (code, devices, words) in [
            (SUCCESS, Some(0), "--gpus all"),
            (SUCCESS, None, "finds no GPU"),
            (NO_DEVICE, None, "finds no GPU"),
            (DEVICE_UNAVAILABLE, None, "--compute-mode=0"),
            (SYSTEM_DRIVER_MISMATCH, None, "restart the machine"),
            (999, None, "CUDA error 999"),
            (999, None, "nvidia-modprobe -c 0 -u"),
            (3, None, "CUDA error 3"),
        ] {
            let error = told(code, devices, None).unwrap_err();
            assert!(error.kind() == Kind::Unavailable && error.full().contains(words), "{words}: {}", error.full());
        }
    }

    #[test]
    fn another_library_is_not_taken_for_the_driver() {
        let error = check_library("libc.so.6").unwrap_err();
        assert!(error.full().contains("not NVIDIA's driver"), "{}", error.full());
    }
}
