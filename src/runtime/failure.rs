//! What the libraries that run graphs mean by their words, for they give no code that can be told apart. That memory has
//! run out has a kind of its own, because a smaller variant, or another place, may still serve.

use std::{borrow::Cow, path::Path};

use crate::{
    base::{Error, Kind},
    runtime::provider,
    telemetry::logs,
};

/// In small letters, as ONNX Runtime, its arena, CUDA, cuBLAS, cuDNN, cuFFT, TensorRT, a Jetson's driver, C++ and Rust put
/// it.
const SIGNS: [&str; 12] = [
    "out of memory",
    "outofmemory",
    "cuda failure 2:",
    "cudaerrormemoryallocation",
    "failed to allocate memory",
    "is smaller than requested bytes",
    "_status_alloc_failed",
    "_allocation_failed",
    "cufft_alloc_failed",
    "nvmapmem",
    "bad_alloc",
    "memory allocation of",
];

/// How ONNX Runtime begins what the card or its libraries answered.
const DEVICE: [&str; 6] =
    ["CUDA failure", "CUBLAS failure", "CUDNN failure", "CUDNN_FE failure", "CUFFT failure", "TensorRT EP"];
pub(super) const LOOK_AT_THE_CARD: &str = "`nvidia-smi` and `dmesg` tell how the card is; restart vigia, and the machine if that \
                                does not help";

/// Code is compiled for kinds of cards, and CUDA runs none that was made for others.
const NO_KERNEL: &str = "no kernel image is available";
const ANOTHER_BUILD: &str = "`nvidia-smi --query-gpu=name,compute_cap --format=csv` shows the card's kind; it is older than \
                             this build serves (onnxruntime-gpu for CUDA 13 begins with 7.5), or newer: name a build of \
                             ONNX Runtime for it in runtime.library, or set providers.order = [\"cpu\"]";

/// TensorRT tells why it failed in the log alone; its provider then says no more than that it did.
const NO_MORE: &str = "TensorRT EP";

fn with_complaint(text: &str, complaint: Option<String>) -> Cow<'_, str> {
    match complaint.filter(|_| text.contains(NO_MORE)) {
        Some(complaint) => Cow::Owned(format!("{text}; {complaint}")),
        None => Cow::Borrowed(text),
    }
}

/// What can be done about a failure depends on what it was.
enum Reason {
    Memory,
    /// A library, and where it comes from.
    Missing(String, String),
    NoKernel,
    Device,
    Other,
}

fn reason(text: &str) -> Reason {
    if is_out_of_memory(text) {
        Reason::Memory
    } else if let Some((library, source)) = provider::absent(text) {
        Reason::Missing(library, source)
    } else if text.contains(NO_KERNEL) {
        Reason::NoKernel
    } else if is_of_the_card(text) {
        Reason::Device
    } else {
        Reason::Other
    }
}

/// Whether the card, or a library of it, said so.
pub(super) fn is_of_the_card(text: &str) -> bool {
    DEVICE.iter().any(|words| text.contains(words))
}

/// Also of the last words of a process that ended because of it.
pub fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// What opening a graph failed with.
pub(crate) fn open_error(path: &Path, text: &str) -> Error {
    let text = &*with_complaint(text, logs::last_complaint());
    let what = format!("the model {} cannot be opened", path.display());
    let error = match reason(text) {
        Reason::Memory => {
            Error::new(Kind::OverBudget, format!("there is not enough memory to load the model {}", path.display()))
                .hint("unload another model, choose a smaller variant, or lower what else runs on this device")
        }
        Reason::Missing(library, source) => Error::unavailable(format!("{what}: {library} is missing")).hint(source),
        Reason::NoKernel => no_kernel(&what),
        Reason::Device => Error::unavailable(format!("{what}: the card failed")).hint(LOOK_AT_THE_CARD),
        Reason::Other => Error::unavailable(what).hint("check the file, or remove its folder and fetch it again"),
    };
    error.cause(text.to_owned())
}

/// What a run of a graph, or a tensor for it, failed with; `what` begins the sentence. What is internal costs an engine's
/// process its life, as it must where the card failed: nothing computes any more in a process that CUDA has given up.
pub(crate) fn run_error(what: impl Into<String>, text: &str) -> Error {
    failed(Kind::Internal, what.into(), text)
}

/// The same of a run that only tries something.
pub(super) fn trial_error(what: impl Into<String>, text: &str) -> Error {
    failed(Kind::Unavailable, what.into(), text)
}

fn failed(kind: Kind, what: String, text: &str) -> Error {
    let text = &*with_complaint(text, logs::last_complaint());
    let error = match reason(text) {
        Reason::Memory => {
            Error::new(Kind::OverBudget, format!("{what}: there is not enough memory for what it works in"))
                .hint("choose a smaller variant, a larger memory.margin, or lower what else runs on this device")
        }
        Reason::Missing(library, source) => Error::unavailable(format!("{what}: {library} is missing")).hint(source),
        Reason::NoKernel => no_kernel(&what),
        Reason::Device => Error::new(kind, format!("{what}: the card failed")).hint(LOOK_AT_THE_CARD),
        Reason::Other => Error::new(kind, what),
    };
    error.cause(text.to_owned())
}

fn no_kernel(what: &str) -> Error {
    let message = format!("{what}: this build of ONNX Runtime has no code for this kind of card");
    Error::new(Kind::Unsupported, message).hint(ANOTHER_BUILD)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As they were met, or stand in the sources of those libraries.
    const WORDS: [&str; 11] = [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc((void**)&p, size);",
        "Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 1048576 is smaller than requested bytes of 4194304",
        "Non-zero status code returned while running MatMul node. CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "CUDNN failure 5000: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "CUFFT failure 2: CUFFT_ALLOC_FAILED ; GPU=0 ; expr=cufftCreate(&plan);",
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
    fn what_tensorrt_told_the_log_alone_counts_too() {
        let text = "TensorRT EP failed to create context for fused node: encoder";
        let whole = with_complaint(text, Some("[allocator] Error Code 1: OutOfMemory".to_owned()));
        assert!(is_out_of_memory(&whole) && !is_out_of_memory(text));
        assert_eq!(with_complaint("no protobuf", Some("OutOfMemory".to_owned())), "no protobuf", "it tells itself");
    }

    #[test]
    fn whatever_else_goes_wrong_is_no_lack_of_memory() {
        for text in ["Protobuf parsing failed.", "CUDA failure 222: PTX was compiled with another toolkit", ""] {
            assert_eq!(open_error(Path::new("m.onnx"), text).kind(), Kind::Unavailable, "{text}");
            assert_eq!(run_error("the model m.onnx failed", text).kind(), Kind::Internal, "{text}");
        }
        let error = open_error(Path::new("m.onnx"), "Protobuf parsing failed.");
        assert!(error.full().contains("Protobuf parsing failed"), "{}", error.full());
    }
    /// As opening says it, and as running does.
    fn both(text: &str) -> [Error; 2] {
        [open_error(Path::new("m.onnx"), text), run_error("the model m.onnx failed", text)]
    }

    #[test]
    fn a_library_that_is_opened_late_and_missing_is_named() {
        for text in [
            "Non-zero status code while running Conv node. cuDNN is not available. Install cuDNN",
            "Status Message: cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for \
             libcudnn.so: libcudnn.so: cannot open shared object file: No such file or directory",
        ] {
            for error in both(text) {
                assert_eq!(error.kind(), Kind::Unavailable);
                assert!(error.message().contains("libcudnn.so.9 is missing"), "{error:?}");
                assert!(error.hint_text().unwrap().contains("libcudnn9-cuda-12"), "{error:?}");
            }
        }
    }

    #[test]
    fn a_card_without_code_for_it_wants_another_build() {
        let text = "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ; hostname=box";
        for error in both(text) {
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().ends_with("no code for this kind of card"), "{error:?}");
            assert!(error.hint_text().unwrap().contains("runtime.library"), "{error:?}");
        }
    }

    #[test]
    fn a_card_that_fails_is_looked_at_and_the_model_is_not_fetched_again() {
        for text in [
            "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=box",
            "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0",
            "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUDART",
            "TensorRT EP failed to create engine from network for fused node",
        ] {
            for error in both(text) {
                let hint = error.hint_text().unwrap();
                assert!(hint.contains("nvidia-smi") && hint.contains("dmesg") && !hint.contains("fetch"), "{error:?}");
            }
        }
    }
}
