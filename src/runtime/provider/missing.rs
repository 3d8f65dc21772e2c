//! What a provider lacks, in words that say what to install: which libraries its own library needs and does not
//! find, as the file says it, and as ONNX Runtime does.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    base::{Error, Kind, Result},
    runtime::failure::{LOOK_AT_THE_CARD, is_of_the_card},
    settings::Provider,
};

/// The names of needed libraries stand at the beginning of a library, before its code.
const HEAD_BYTES: u64 = 4 << 20;

/// Beginnings of libraries' names, and where they come from. `#` stands for the number after `.so.`, or for the one beside
/// the name where a library was asked for without any.
const SOURCES: &[(&str, &str, &str)] = &[
    ("libonnxruntime_providers_", "", "take all files of onnxruntime-gpu's wheel into one folder"),
    ("libcudnn", "9", "apt-get install libcudnn#-cuda-12, or -13 where CUDA is 13"),
    ("libnvinfer", "10", "apt-get install libnvinfer# libnvinfer-plugin#"),
    ("libnvonnxparser", "10", "apt-get install libnvonnxparsers#"),
    ("libtensorrt_", "", "put TensorRT for RTX where the loader finds it"),
    ("libcu", "", CUDA),
    ("libnv", "", CUDA),
];
/// By the names that ONNX Runtime tries, in this order.
const CUDNN: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
const CUDA: &str = "apt-get install cuda-libraries-12-9, or -13-0 where libcudart is 13";

pub(super) fn not_built_in(provider: Provider, library: &Path) -> Error {
    let which = match provider {
        Provider::NvRtx => "a build of ONNX Runtime with TensorRT for RTX",
        _ => "a GPU build: the wheel onnxruntime-gpu, or NVIDIA's own build on a Jetson with JetPack 5 or 6",
    };
    let message = format!("{} has no provider `{}`", library.display(), provider.name());
    Error::new(Kind::Unsupported, message).hint(format!("name {which} in runtime.library"))
}

pub(super) fn no_driver(provider: Provider, error: Error) -> Error {
    let hint = error.hint_text().unwrap_or_default().to_owned();
    Error::unavailable(format!("the provider `{}` cannot start: {}", provider.name(), error.message())).hint(hint)
}

/// The driver brings support for CUDA up to some version; the provider is made with one of its own. Within a major
/// version any driver serves.
pub(super) fn driver_is_old(provider: Provider, library: &Path, driver: (u32, u32)) -> Option<Error> {
    let wanted = provider_files(provider, library).iter().filter_map(|file| made_with(&needed(file).ok()?)).max()?;
    if driver.0 >= wanted {
        return None;
    }
    let (major, minor) = driver;
    let message = format!(
        "the provider `{}` cannot start: it is made with CUDA {wanted}, and the NVIDIA driver brings CUDA {major}.{minor}",
        provider.name()
    );
    let newer = "install a newer driver (CUDA 13 wants 580 or more, CUDA 12 wants 525)";
    Some(Error::unavailable(message).hint(format!("{newer}, or a build of ONNX Runtime for CUDA {major}")))
}

/// The major version of CUDA, by its runtime's name.
fn made_with(needed: &BTreeSet<String>) -> Option<u32> {
    needed.iter().find_map(|name| name.strip_prefix("libcudart.so.")?.split('.').next()?.parse().ok())
}

/// Newer builds open some libraries only when a graph needs them. The one that these words miss, and where it comes from.
pub(in crate::runtime) fn absent(text: &str) -> Option<(String, String)> {
    const LATE: [(&str, &str); 4] = [
        ("cuDNN is not available", CUDNN[0]),
        ("cuDNN is unavailable", CUDNN[0]),
        ("cuFFT is not available", "libcufft"),
        ("cuFFT is unavailable", "libcufft"),
    ];
    let late = LATE.iter().find(|(words, _)| text.contains(words)).map(|(_, name)| (*name).to_owned());
    let name = late.or_else(|| missing_in(text).pop())?;
    let source = sources(&[name.clone()].into());
    Some((name, source))
}

/// A provider that opens cuDNN only when a graph needs it registers without it, and fails at the first convolution.
pub(super) fn no_cudnn(provider: Provider, library: &Path) -> Option<Error> {
    no_cudnn_among(&CUDNN, provider, library)
}

fn no_cudnn_among(names: &[&str], provider: Provider, library: &Path) -> Option<Error> {
    let files = match provider {
        Provider::Cuda | Provider::TensorRt => provider_files(provider, library),
        Provider::Cpu | Provider::NvRtx => return None,
    };
    let is_linked = |file: &PathBuf| needed(file).is_ok_and(|names| names.iter().any(|it| it.starts_with("libcudnn")));
    // What it is linked to has been found already.
    if files.is_empty() || files.iter().any(is_linked) || names.iter().any(|name| can_be_opened(name)) {
        return None;
    }
    let missing = BTreeSet::from([names[0].to_owned()]);
    Some(starts_not(provider, &missing).hint(sources(&missing)))
}

/// ONNX Runtime's own words, with all that is missing found in them and in the provider's file.
pub(super) fn explained(provider: Provider, text: &str, library: &Path) -> Error {
    let mut missing: BTreeSet<String> = missing_in(text).into_iter().collect();
    for file in provider_files(provider, library) {
        let needed = needed(&file).into_iter().flatten();
        // Its own name, and its companion's, which lies beside it.
        let foreign = needed.filter(|name| !name.starts_with("libonnxruntime"));
        missing.extend(foreign.filter(|name| !can_be_opened(name)));
    }
    let hint = if !missing.is_empty() {
        sources(&missing)
    } else if is_of_the_card(text) {
        LOOK_AT_THE_CARD.to_owned()
    } else {
        "`vigia doctor` shows ONNX Runtime's own words, and looks at the driver".to_owned()
    };
    starts_not(provider, &missing).hint(hint).cause(text.to_owned())
}

fn starts_not(provider: Provider, missing: &BTreeSet<String>) -> Error {
    let start = format!("the provider `{}` cannot start", provider.name());
    let names = missing.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Error::unavailable(match missing.len() {
        0 => start,
        1 => format!("{start}: {names} is missing"),
        _ => format!("{start}: {names} are missing"),
    })
}

/// The libraries that a provider consists of, as far as they are there.
fn provider_files(provider: Provider, library: &Path) -> Vec<PathBuf> {
    let names: &[&str] = match provider {
        Provider::Cpu => &[],
        Provider::Cuda => &["cuda"],
        Provider::TensorRt => &["tensorrt", "cuda"],
        Provider::NvRtx => &["nv_tensorrt_rtx"],
    };
    // The library's file may be a link into the folder where it lies with its companions.
    let real = library.canonicalize().unwrap_or_else(|_| library.to_owned());
    let file = |name: &&str| real.with_file_name(format!("libonnxruntime_providers_{name}.so"));
    names.iter().map(file).filter(|file| file.is_file()).collect()
}

/// The `lib….so.N` that a library's head names.
pub(in crate::runtime) fn needed(file: &Path) -> Result<BTreeSet<String>> {
    let mut head = Vec::new();
    File::open(file)
        .and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head))
        .map_err(|error| Error::unavailable(format!("{} cannot be read", file.display())).cause(error))?;
    let words = head.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    Ok(words.filter(|word| is_library(word) && has_number(word)).map(str::to_owned).collect())
}

/// What a library is linked to has one; a name without is what its code tries besides.
fn has_number(library: &str) -> bool {
    library.split_once(".so.").is_some_and(|(_, number)| number.starts_with(|c: char| c.is_ascii_digit()))
}

/// Every `lib….so…` that is said not to open.
fn missing_in(text: &str) -> Vec<String> {
    let Some((before, _)) = text.split_once("cannot open shared object file") else { return Vec::new() };
    let words = before.split(|c: char| c.is_whitespace() || c == ':' || c == ',');
    let last = words.filter_map(|word| word.rsplit('/').next()).rfind(|word| is_library(word));
    last.map(str::to_owned).into_iter().collect()
}

fn is_library(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    word.starts_with("lib") && word.contains(".so") && word.len() < 128 && word.chars().all(plain)
}

fn can_be_opened(name: &str) -> bool {
    // SAFETY: only what ONNX Runtime itself has just tried to open, or opens at the first graph that needs it.
    unsafe { libloading::Library::new(name) }.is_ok()
}

fn sources(missing: &BTreeSet<String>) -> String {
    let source = |name: &String| {
        let (_, usual, source) = SOURCES.iter().find(|(start, ..)| name.starts_with(start))?;
        let number = name.split(".so.").nth(1).and_then(|rest| rest.split('.').next()).unwrap_or(usual);
        Some(source.replace('#', number))
    };
    let sources: BTreeSet<String> = missing.iter().filter_map(source).collect();
    if sources.is_empty() {
        return "install what has them, or put their folder into LD_LIBRARY_PATH".to_owned();
    }
    let list = sources.into_iter().collect::<Vec<_>>().join("; ");
    format!("{list} (NVIDIA's repository has the packages)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_that_onnx_runtime_does_not_find_is_named_with_its_package() {
        let text = "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:1844 \
                    onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to \
                    load library /opt/ort/libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared \
                    object file: No such file or directory";
        let error = explained(Provider::Cuda, text, Path::new("/nowhere/libonnxruntime.so"));
        assert_eq!(error.message(), "the provider `cuda` cannot start: libcudnn.so.9 is missing");
        assert!(error.hint_text().unwrap().contains("libcudnn9-cuda-12"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("NVIDIA's repository"), "{error:?}");
        assert!(error.full().contains("provider_bridge_ort"), "the log has the whole text");
    }

    #[test]
    fn each_missing_library_has_its_source_once() {
        let names = ["libcublas.so.12", "libcudart.so.12", "libnvinfer.so.10", "libnvonnxparser.so.10", "libodd.so.1"];
        let hint = sources(&names.map(str::to_owned).into());
        assert_eq!(hint.matches("cuda-libraries").count(), 1, "{hint}");
        assert!(hint.contains("libnvinfer10") && hint.contains("libnvonnxparsers10"), "{hint}");
        assert!(sources(&["libodd.so.1".to_owned()].into()).contains("LD_LIBRARY_PATH"));
    }

    #[test]
    fn all_that_a_provider_needs_is_read_off_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let provider = dir.path().join("libonnxruntime_providers_cuda.so");
        std::fs::write(&provider, b"\x7fELF\0\xff\xfe\0libonnxruntime_providers_cuda.so\0libvigia-none-a.so.12\0libc.so.6\0libvigia-none-b.so.9\0libvigia-none-b.so\0").unwrap();
        let error = explained(Provider::Cuda, "it does not load", &dir.path().join("libonnxruntime.so"));
        let expected = "the provider `cuda` cannot start: libvigia-none-a.so.12, libvigia-none-b.so.9 are missing";
        assert_eq!(error.message(), expected);
    }

    #[test]
    fn a_driver_that_is_too_old_for_a_provider_is_told_before_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libonnxruntime.so");
        std::fs::write(dir.path().join("libonnxruntime_providers_cuda.so"), b"\0libcudart.so.13\0libcurand.so.10\0")
            .unwrap();
        std::fs::write(dir.path().join("libonnxruntime_providers_tensorrt.so"), b"\0libnvinfer.so.10\0").unwrap();
        for provider in [Provider::Cuda, Provider::TensorRt] {
            let error = driver_is_old(provider, &library, (12, 2)).unwrap();
            assert!(error.message().contains("made with CUDA 13, and the NVIDIA driver brings CUDA 12.2"), "{error:?}");
            assert!(error.hint_text().unwrap().contains("580"), "{error:?}");
            assert!(driver_is_old(provider, &library, (13, 0)).is_none());
            assert!(driver_is_old(provider, &library, (14, 1)).is_none());
        }
        assert!(driver_is_old(Provider::NvRtx, &library, (11, 0)).is_none(), "nothing is known of it");
    }

    #[test]
    fn cudnn_that_is_opened_late_is_looked_for_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libonnxruntime.so");
        let file = dir.path().join("libonnxruntime_providers_cuda.so");
        std::fs::write(&file, b"\0libcublas.so.13\0libcudart.so.13\0").unwrap();
        let none = ["libcudnn.so.909", "libcudnn.so"];
        let error = no_cudnn_among(&none, Provider::Cuda, &library).unwrap();
        assert_eq!(error.message(), "the provider `cuda` cannot start: libcudnn.so.909 is missing");
        assert!(error.hint_text().unwrap().contains("libcudnn909-cuda-12"), "{error:?}");
        assert!(no_cudnn_among(&["libcudnn.so.909", "libc.so.6"], Provider::Cuda, &library).is_none(), "one is enough");
        assert!(no_cudnn_among(&none, Provider::NvRtx, &library).is_none(), "it needs none");
        std::fs::write(&file, b"\0libcudart.so.12\0libcudnn.so.909\0").unwrap();
        assert!(no_cudnn_among(&none, Provider::Cuda, &library).is_none(), "the loader has found it");
    }

    #[test]
    fn a_library_without_a_number_has_the_package_of_the_usual_one() {
        assert!(sources(&["libcudnn.so".to_owned()].into()).contains("libcudnn9-cuda-12"));
        assert!(sources(&["libnvinfer.so".to_owned()].into()).contains("libnvinfer10"));
    }

    #[test]
    fn a_library_that_is_opened_late_is_named_too() {
        let (name, source) =
            absent("Conv node. Status Message: cuDNN is not available. Install cuDNN, update …").unwrap();
        assert!(name == "libcudnn.so.9" && source.contains("libcudnn9-cuda-12"), "{name}: {source}");
        let (name, source) = absent("libnvrtc.so.13: cannot open shared object file: No such file").unwrap();
        assert!(name == "libnvrtc.so.13" && source.contains("cuda-libraries"), "{name}: {source}");
        assert_eq!(absent("CUDA failure 2: out of memory"), None);
    }

    #[test]
    fn words_without_a_library_stay_words() {
        let error = explained(Provider::TensorRt, "CUDA failure 35", Path::new("/nowhere/libonnxruntime.so"));
        assert_eq!(error.message(), "the provider `tensorrt` cannot start");
        assert!(error.full().contains("CUDA failure 35"));
        assert!(error.hint_text().unwrap().contains("dmesg"), "{error:?}");
        let error = explained(Provider::Cuda, "undefined symbol", Path::new("/nowhere/libonnxruntime.so"));
        assert!(error.hint_text().unwrap().contains("vigia doctor"), "{error:?}");
    }
}
