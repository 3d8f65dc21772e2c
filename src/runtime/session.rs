//! Opens one session of ONNX Runtime: threads, provider, file. The one place where options become a session.

use std::path::Path;

use ort::session::{
    Session,
    builder::{GraphOptimizationLevel, SessionBuilder},
};

use crate::{
    base::{Error, Result},
    runtime::{GraphOptions, Runtime, failure::open_error, onnx::Model, provider, provider::Provider},
};

pub(super) fn open_session(runtime: &Runtime, path: &Path, options: &GraphOptions) -> Result<Session> {
    if !path.is_file() {
        return Err(Error::unavailable(format!("the model {} cannot be opened: no such file", path.display()))
            .hint("`vigia models pull` fetches what is missing"));
    }
    let mut builder = registered(runtime, options)?;
    builder.commit_from_file(path).map_err(|error| open_error(path, &error.to_string()))
}

/// A graph that was changed, with its weights in the file that it comes from.
pub(super) fn open_changed(runtime: &Runtime, model: &Model, options: &GraphOptions) -> Result<Session> {
    let refused = |text: String| Error::unavailable("ONNX Runtime cannot open sessions").cause(text);
    let folder = model.file().parent().and_then(Path::to_str);
    let folder = folder.ok_or_else(|| refused(format!("{} is no text", model.file().display())))?;
    let builder = registered(runtime, options)?
        .with_config_entry("session.model_external_initializers_file_folder_path", folder)
        .map_err(|error| refused(error.to_string()));
    let bytes = model.to_bytes();
    builder?.commit_from_memory(&bytes).map_err(|error| open_error(model.file(), &error.to_string()))
}

/// The graph of a proof, whole in memory. The provider that is asked for computes all of it, or it is no proof.
pub(super) fn open_proof(
    runtime: &Runtime,
    bytes: &[u8],
    options: &GraphOptions,
    failed: impl Fn(String) -> Error,
) -> Result<Session> {
    let mut builder = registered(runtime, options)?;
    if options.provider.provider() != Provider::Cpu {
        builder = builder.with_disable_cpu_fallback().map_err(|error| failed(error.to_string()))?;
    }
    builder.commit_from_memory(bytes).map_err(|error| failed(error.to_string()))
}

fn registered(runtime: &Runtime, options: &GraphOptions) -> Result<SessionBuilder> {
    let builder = prepared(runtime, options)
        .map_err(|text| Error::unavailable("ONNX Runtime cannot open sessions").cause(text))?;
    provider::register(runtime, builder, &options.provider)
}

/// ort's builder errors carry the builder itself and cannot leave this thread: their text is what we keep.
fn prepared(runtime: &Runtime, options: &GraphOptions) -> Result<SessionBuilder, String> {
    macro_rules! text {
        ($step:expr) => {
            $step.map_err(|error| error.to_string())?
        };
    }
    let builder = text!(Session::builder(runtime.environment()));
    let builder = text!(builder.with_optimization_level(GraphOptimizationLevel::All));
    let builder = text!(builder.with_intra_threads(options.threads));
    let builder = text!(builder.with_inter_threads(1));
    let builder = text!(builder.with_env_allocators());
    let builder = text!(builder.with_memory_pattern(options.same_shapes));
    let builder = text!(builder.with_intra_op_spinning(options.spinning));
    let packing = if options.mapped { "1" } else { "0" };
    let builder = text!(builder.with_config_entry("session.disable_prepacking", packing));
    // Between two runs nobody spins: a pool would burn a core while nobody speaks.
    Ok(text!(builder.with_config_entry("session.force_spinning_stop", "1")))
}
