//! Opens one session of ONNX Runtime: threads, provider, file. The one place where options become a session.

use std::path::Path;

use ort::session::{
    Session,
    builder::{GraphOptimizationLevel, SessionBuilder},
};

use crate::{
    base::{Error, Result},
    runtime::{GraphOptions, Runtime, provider},
};

pub(super) fn open_session(runtime: &Runtime, path: &Path, options: &GraphOptions) -> Result<Session> {
    if !path.is_file() {
        return Err(Error::unavailable(format!("the model {} cannot be opened: no such file", path.display()))
            .hint("`vigia models pull` fetches what is missing"));
    }
    let builder = prepared(runtime, options)
        .map_err(|text| Error::unavailable("ONNX Runtime cannot open sessions").cause(text))?;
    let mut builder = provider::register(runtime, builder, &options.provider)?;
    builder.commit_from_file(path).map_err(|error| provider::open_error(path, &error.to_string()))
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
    let builder = text!(builder.with_memory_pattern(options.same_shapes));
    let builder = text!(builder.with_intra_op_spinning(options.spinning));
    let packing = if options.mapped { "1" } else { "0" };
    let builder = text!(builder.with_config_entry("session.disable_prepacking", packing));
    // Between two runs nobody spins: a pool would burn a core while nobody speaks.
    Ok(text!(builder.with_config_entry("session.force_spinning_stop", "1")))
}
