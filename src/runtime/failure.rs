//! What the libraries that run graphs mean by their words, for they give no code that can be told apart. That memory has
//! run out has a kind of its own, because a smaller variant, or another place, may still serve.

use std::path::Path;

use crate::{
    base::{Error, Kind},
    runtime::provider,
};

/// In small letters, as ONNX Runtime, its arena, CUDA, cuBLAS, cuDNN, TensorRT, a Jetson's driver, C++ and Rust put it.
const SIGNS: [&str; 10] = [
    "out of memory",
    "outofmemory",
    "cuda failure 2:",
    "cudaerrormemoryallocation",
    "failed to allocate memory",
    "is smaller than requested bytes",
    "_status_alloc_failed",
    "nvmapmemalloc",
    "bad_alloc",
    "memory allocation of",
];

/// Also of the last words of a process that ended because of it.
pub fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// What opening a graph failed with.
pub(crate) fn open_error(path: &Path, text: &str) -> Error {
    let error = if is_out_of_memory(text) {
        Error::new(Kind::OverBudget, format!("there is not enough memory to load the model {}", path.display()))
            .hint("unload another model, choose a smaller variant, or lower what else runs on this device")
    } else if let Some((library, source)) = provider::absent(text) {
        Error::unavailable(format!("the model {} cannot be opened: {library} is missing", path.display())).hint(source)
    } else {
        Error::unavailable(format!("the model {} cannot be opened", path.display()))
            .hint("check the file, or remove its folder and fetch it again")
    };
    error.cause(text.to_owned())
}

/// What a run of a graph, or a tensor for it, failed with; `what` begins the sentence.
pub(crate) fn run_error(what: impl Into<String>, text: &str) -> Error {
    let what = what.into();
    let error = if is_out_of_memory(text) {
        Error::new(Kind::OverBudget, format!("{what}: there is not enough memory for what it works in"))
            .hint("choose a smaller variant, a larger memory.margin, or lower what else runs on this device")
    } else if let Some((library, source)) = provider::absent(text) {
        Error::unavailable(format!("{what}: {library} is missing")).hint(source)
    } else {
        Error::internal(what)
    };
    error.cause(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As they were met, or stand in the sources of those libraries.
    const WORDS: [&str; 9] = [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc((void**)&p, size);",
        "Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 1048576 is smaller than requested bytes of 4194304",
        "Non-zero status code returned while running MatMul node. CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "NvMapMemAllocInternalTagged: 1075072515 error 12",
        "std::bad_alloc",
        "memory allocation of 8589934592 bytes failed",
    ];

    #[test]
    fn out_of_memory_has_its_own_kind_however_it_is_said() {
        for text in WORDS {
            assert_eq!(open_error(Path::new("m.onnx"), text).kind(), Kind::OverBudget, "{text}");
            let error = run_error("the model m.onnx failed", text);
            assert_eq!(error.kind(), Kind::OverBudget, "{text}");
            assert!(error.full().contains(text) && error.full().contains("smaller variant"), "{}", error.full());
        }
    }

    #[test]
    fn whatever_else_goes_wrong_is_no_lack_of_memory() {
        for text in ["Protobuf parsing failed.", "CUDA failure 222: PTX was compiled with another toolkit", ""] {
            assert_eq!(open_error(Path::new("m.onnx"), text).kind(), Kind::Unavailable, "{text}");
            assert_eq!(run_error("the model m.onnx failed", text).kind(), Kind::Internal, "{text}");
        }
        let late = "Non-zero status code while running Conv node. cuDNN is not available. Install cuDNN";
        for error in [open_error(Path::new("m.onnx"), late), run_error("the model m.onnx failed", late)] {
            assert!(
                error.kind() == Kind::Unavailable && error.message().contains("libcudnn.so.9 is missing"),
                "{error:?}"
            );
        }
        let error = open_error(Path::new("m.onnx"), "Protobuf parsing failed.");
        assert!(error.full().contains("Protobuf parsing failed"), "{}", error.full());
    }
}
