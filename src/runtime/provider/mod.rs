//! Where a graph runs and with what options: from the settings to ONNX Runtime, across the border to an engine's
//! process if need be.
//!
//! Never a silent second best: a provider that does not start is an error that names what is missing. Which card is none of
//! the options: a process is shown one alone (`Facts::cuda_variables`), and that is CUDA's first.

mod missing;

pub(super) use missing::{absent, needed};

use std::path::{Path, PathBuf};

use ort::{
    ep::{self, ArenaExtendStrategy, ExecutionProviderDispatch, cuda::ConvAlgorithmSearch},
    session::builder::SessionBuilder,
};
use serde::{Deserialize, Serialize};

pub use crate::settings::{ConvSearch, Provider};
use crate::{
    base::{ByteSize, Error, Result},
    runtime::{Runtime, driver},
    settings::Providers,
};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum ProviderOptions {
    #[default]
    Cpu,
    Cuda(CudaOptions),
    TensorRt(TensorRtOptions),
    NvRtx(NvRtxOptions),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CudaOptions {
    /// Of the arena of one graph.
    pub memory_limit_bytes: Option<u64>,
    pub conv_search: ConvSearch,
    pub tf32: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRtOptions {
    pub fp16: bool,
    pub int8: bool,
    pub workspace_bytes: Option<u64>,
    /// Where engines and timings are kept; without it an engine is built at every start.
    pub engines: Option<PathBuf>,
    /// The nodes that TensorRT does not take run here.
    pub rest: CudaOptions,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NvRtxOptions {
    pub workspace_bytes: Option<u64>,
    /// Where compiled kernels are kept.
    pub engines: Option<PathBuf>,
}

impl ProviderOptions {
    /// `engines`: where this model's engines are kept, for the providers that have any.
    pub fn new(provider: Provider, settings: &Providers, engines: Option<&Path>) -> ProviderOptions {
        let limit = |size: ByteSize| Some(size.get()).filter(|bytes| *bytes > 0);
        let engines = engines.map(Path::to_owned);
        let cuda = CudaOptions {
            memory_limit_bytes: limit(settings.cuda.memory_limit),
            conv_search: settings.cuda.conv_search,
            tf32: settings.cuda.tf32,
        };
        let tensorrt = &settings.tensorrt;
        let workspace_bytes = limit(tensorrt.workspace);
        match provider {
            Provider::Cpu => ProviderOptions::Cpu,
            Provider::Cuda => ProviderOptions::Cuda(cuda),
            Provider::TensorRt => ProviderOptions::TensorRt(TensorRtOptions {
                fp16: tensorrt.fp16,
                int8: tensorrt.int8,
                workspace_bytes,
                engines,
                rest: cuda,
            }),
            Provider::NvRtx => ProviderOptions::NvRtx(NvRtxOptions { workspace_bytes, engines }),
        }
    }

    pub fn provider(&self) -> Provider {
        match self {
            ProviderOptions::Cpu => Provider::Cpu,
            ProviderOptions::Cuda(_) => Provider::Cuda,
            ProviderOptions::TensorRt(_) => Provider::TensorRt,
            ProviderOptions::NvRtx(_) => Provider::NvRtx,
        }
    }

    /// What is registered, best first; ONNX Runtime itself adds the processor at the end.
    fn registrations(&self) -> Result<Vec<ExecutionProviderDispatch>> {
        Ok(match self {
            ProviderOptions::Cpu => Vec::new(),
            ProviderOptions::Cuda(options) => vec![cuda(options)],
            ProviderOptions::TensorRt(options) => vec![tensorrt(options)?, cuda(&options.rest)],
            ProviderOptions::NvRtx(options) => vec![nvrtx(options)?],
        })
    }
}

fn cuda(options: &CudaOptions) -> ExecutionProviderDispatch {
    let search = match options.conv_search {
        ConvSearch::Heuristic => ConvAlgorithmSearch::Heuristic,
        ConvSearch::Exhaustive => ConvAlgorithmSearch::Exhaustive,
        ConvSearch::Default => ConvAlgorithmSearch::Default,
    };
    let mut cuda = ep::CUDA::default()
        .with_conv_algorithm_search(search)
        // Said either way: ONNX Runtime's own choice is to round.
        .with_tf32(options.tf32)
        // Doubling would claim memory that the ledger has promised to others.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
    if let Some(bytes) = options.memory_limit_bytes {
        cuda = cuda.with_memory_limit(whole(bytes));
    }
    cuda.build().error_on_failure()
}

fn tensorrt(options: &TensorRtOptions) -> Result<ExecutionProviderDispatch> {
    let mut tensorrt = ep::TensorRT::default().with_fp16(options.fp16).with_int8(options.int8);
    if let Some(bytes) = options.workspace_bytes {
        tensorrt = tensorrt.with_max_workspace_size(whole(bytes));
    }
    if let Some(dir) = &options.engines {
        let dir = text(dir)?;
        tensorrt = tensorrt
            .with_engine_cache(true)
            .with_engine_cache_path(dir)
            .with_timing_cache(true)
            .with_timing_cache_path(dir);
    }
    Ok(tensorrt.build().error_on_failure())
}

fn nvrtx(options: &NvRtxOptions) -> Result<ExecutionProviderDispatch> {
    let mut nvrtx = ep::NVRTX::default();
    if let Some(bytes) = options.workspace_bytes {
        nvrtx = nvrtx.with_max_workspace(whole(bytes));
    }
    if let Some(dir) = &options.engines {
        nvrtx = nvrtx.with_runtime_cache_path(text(dir)?);
    }
    Ok(nvrtx.build().error_on_failure())
}

fn whole(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// ONNX Runtime takes paths as C text.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| Error::invalid(format!("{} is no path for ONNX Runtime: it is not text", path.display())))
}

/// Adds the provider to a session, or says what it lacks.
pub(super) fn register(
    runtime: &Runtime,
    builder: SessionBuilder,
    options: &ProviderOptions,
) -> Result<SessionBuilder> {
    let provider = options.provider();
    if provider == Provider::Cpu {
        return Ok(builder);
    }
    if !runtime.providers().contains(&provider) {
        return Err(missing::not_built_in(provider, runtime.library()));
    }
    // Asked for first: without a driver the libraries fail with words that lead elsewhere, TensorRT's even crashes.
    let driver = driver::check().map_err(|error| missing::no_driver(provider, error))?;
    if let Some(error) = missing::driver_is_old(provider, runtime.library(), driver) {
        return Err(error);
    }
    let registrations = options.registrations()?;
    let builder = builder
        .with_execution_providers(registrations)
        .map_err(|error| missing::explained(provider, &error.to_string(), runtime.library()))?;
    missing::no_cudnn(provider, runtime.library()).map_or(Ok(builder), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::Kind,
        settings::{DEFAULTS, Settings},
    };

    fn defaults() -> Providers {
        toml::from_str::<Settings>(DEFAULTS).unwrap().providers
    }

    #[test]
    fn options_come_from_the_settings_and_cross_to_another_process() {
        let mut settings = defaults();
        settings.cuda.memory_limit = ByteSize::mib(512);
        for provider in Provider::ALL {
            let options = ProviderOptions::new(provider, &settings, Some(Path::new("/engines/m")));
            assert_eq!(options.provider(), provider);
            let bytes = postcard::to_stdvec(&options).unwrap();
            assert_eq!(postcard::from_bytes::<ProviderOptions>(&bytes).unwrap(), options);
        }
        let ProviderOptions::TensorRt(options) = ProviderOptions::new(Provider::TensorRt, &settings, None) else {
            panic!("another provider")
        };
        assert_eq!(options.rest.memory_limit_bytes, Some(512 << 20));
        assert!(options.fp16 && !options.int8 && options.engines.is_none());
        assert!(!options.rest.tf32, "what 32 bits hold is kept");
        assert_eq!(options.workspace_bytes, Some(1 << 30));
    }

    #[test]
    fn tensorrt_brings_cuda_for_the_nodes_that_it_leaves() {
        let of = |provider| {
            let options = ProviderOptions::new(provider, &defaults(), Some(Path::new("/e"))).registrations().unwrap();
            options.iter().map(ExecutionProviderDispatch::name).collect::<Vec<_>>()
        };
        assert_eq!(of(Provider::TensorRt), ["TensorrtExecutionProvider", "CUDAExecutionProvider"]);
        assert_eq!(of(Provider::Cuda), ["CUDAExecutionProvider"]);
        assert_eq!(of(Provider::NvRtx), ["NvTensorRTRTXExecutionProvider"]);
        assert!(of(Provider::Cpu).is_empty());
    }

    #[test]
    fn a_folder_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let folder = Path::new(std::ffi::OsStr::from_bytes(b"/e\xff"));
        let options = ProviderOptions::new(Provider::TensorRt, &defaults(), Some(folder));
        assert_eq!(options.registrations().err().unwrap().kind(), Kind::Invalid);
    }
}
