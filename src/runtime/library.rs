//! Where ONNX Runtime's shared library is, and opening it once for the whole process.

use std::{
    ffi::CStr,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Mutex, OnceLock},
};

use ort::{
    AsPointer,
    environment::Environment,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
};

use crate::{
    base::{Error, Result, lock},
    runtime::Version,
    settings::Provider,
};

const FILE_NAME: &str = "libonnxruntime.so";
const HOW_TO_GET: &str = "scripts/run fetches it; or unpack it from the onnxruntime wheel (1.20 or newer) and name it in \
                          runtime.library or ORT_DYLIB_PATH";

/// The opened library. Cheap to clone; the library itself stays until the process ends.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    /// Once it is known.
    pub(super) tensorrt: Arc<OnceLock<Version>>,
}

/// Only one library can be in a process, so a second one asked for is an error, not a surprise.
static OPENED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Opens the library, or returns the one that is open already.
    pub fn open(library: &Path) -> Result<Runtime> {
        let mut opened = lock(&OPENED);
        if let Some(runtime) = &*opened {
            if runtime.library == library {
                return Ok(runtime.clone());
            }
            return Err(Error::internal(format!(
                "ONNX Runtime is open already, from {}; restart to use {}",
                runtime.library.display(),
                library.display()
            )));
        }
        let builder = ort::init_from(library).map_err(|error| {
            Error::unavailable(format!("ONNX Runtime cannot be opened from {}: {error}", library.display()))
                .hint(HOW_TO_GET)
        })?;
        let environment = builder.with_name("vigia").with_telemetry(false).build().map_err(|error| {
            Error::unavailable(format!("ONNX Runtime from {} does not start: {error}", library.display()))
        })?;
        share_memory(&environment).map_err(|error| {
            Error::unavailable(format!("ONNX Runtime from {} makes no arena", library.display())).cause(error)
        })?;
        let runtime = Runtime { environment, library: library.to_owned(), tensorrt: Arc::default() };
        *opened = Some(runtime.clone());
        Ok(runtime)
    }

    pub fn library(&self) -> &Path {
        &self.library
    }

    /// `1.31.1`, as the library says it of itself.
    pub fn version(&self) -> String {
        type ApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
        // SAFETY: the library is open in this process already, so no initialiser runs a second time; `OrtGetApiBase` has
        // had this signature since ONNX Runtime 1.0, and the text that it leads to is static.
        let version = unsafe {
            libloading::Library::new(&self.library).ok().and_then(|library| {
                let base = library.get::<ApiBase>(b"OrtGetApiBase").ok()?();
                let text = base.as_ref().map(|base| CStr::from_ptr((base.GetVersionString)()))?;
                Some(text.to_string_lossy().into_owned())
            })
        };
        version.unwrap_or_else(|| "unknown".to_owned())
    }

    /// Which providers the library was built with; whether one starts is known only once it is asked (`try_provider`).
    pub fn providers(&self) -> Vec<Provider> {
        use ort::ep::{CUDA, ExecutionProvider, NVRTX, TensorRT};
        let built_in = |provider: &Provider| match provider {
            Provider::Cpu => true,
            Provider::Cuda => CUDA::is_available().unwrap_or(false),
            Provider::TensorRt => TensorRT::is_available().unwrap_or(false),
            Provider::NvRtx => NVRTX::is_available().unwrap_or(false),
        };
        Provider::ALL.into_iter().filter(built_in).collect()
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// One arena of the processor's memory for all graphs of this process, instead of one for each that keeps the most it ever
/// took: graphs take turns, and what one worked in serves the next.
fn share_memory(environment: &Environment) -> ort::Result<()> {
    const NO_LIMIT: usize = 0;
    const AS_REQUESTED: i32 = 1;
    const DEFAULT: i32 = -1;
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let mut config = ptr::null_mut();
    // SAFETY: the library is open, `config` is made here and let go of here, and what is registered is copied.
    unsafe {
        let api = ort::api();
        ort::Error::result_from_status((api.CreateArenaCfg)(NO_LIMIT, AS_REQUESTED, DEFAULT, DEFAULT, &mut config))?;
        let made = (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), config);
        (api.ReleaseArenaCfg)(config);
        ort::Error::result_from_status(made)
    }
}

/// The places that are looked at when the settings name none, best first: the checkout that the binary was built
/// in, the folder of an installed Vigía, the system's library folders.
pub fn candidates(executable: &Path, working_dir: &Path) -> Vec<PathBuf> {
    let checkout = |dir: &Path| dir.join(".vigia/runtime").join(FILE_NAME);
    let mut places: Vec<PathBuf> = executable.ancestors().skip(1).take(4).map(checkout).collect();
    places.push(checkout(working_dir));
    let system = [
        "/usr/lib/vigia",
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/onnxruntime/lib",
    ];
    places.extend(system.iter().map(|dir| Path::new(dir).join(FILE_NAME)));
    places
}

/// The library to open: what the settings name (it must exist), else the first candidate that exists.
pub fn find(setting: &str, candidates: &[PathBuf]) -> Result<PathBuf> {
    if !setting.is_empty() {
        let path = PathBuf::from(setting);
        let found = path.is_file();
        return found.then_some(path).ok_or_else(|| {
            Error::unavailable(format!("ONNX Runtime's library is not at {setting}"))
                .hint("correct runtime.library or ORT_DYLIB_PATH")
        });
    }
    let found = candidates.iter().find(|path| path.is_file());
    found.cloned().ok_or_else(|| Error::unavailable("ONNX Runtime's shared library was not found").hint(HOW_TO_GET))
}

/// That of this checkout, for tests that need one.
#[cfg(test)]
pub(crate) fn for_tests() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = find("", &candidates(&root.join("target/debug/vigia"), root)).ok();
    if library.is_none() {
        println!("skipped: ONNX Runtime was not found");
    }
    library
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn a_named_library_must_exist_and_nothing_else_is_taken_instead() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join(FILE_NAME);
        std::fs::write(&other, b"x").unwrap();
        let error = find("/nowhere/libonnxruntime.so", &[other]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.full().contains("runtime.library"), "{}", error.full());
    }

    #[test]
    fn the_checkout_of_the_binary_comes_before_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join(".vigia/runtime").join(FILE_NAME);
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        std::fs::write(&library, b"x").unwrap();
        let executable = dir.path().join("target/release/vigia");
        assert_eq!(find("", &candidates(&executable, Path::new("/"))).unwrap(), library);
    }

    #[test]
    fn nothing_found_says_how_to_get_it() {
        let error = find("", &[]).unwrap_err();
        assert!(error.full().contains("scripts/run"), "{}", error.full());
    }
}
