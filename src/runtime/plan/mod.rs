//! Serialized plans of TensorRT (`*.engine`) as graphs: a plan is checked, wrapped into a graph of one node, and run
//! by the TensorRT that ONNX Runtime's provider opens at run time. Why so: `docs/decisions/006-tensorrt.md`.
//!
//! Only for an engine's own process: a plan is code of another machine's making. Loads nothing before the driver is
//! asked, and nothing at all where the versions differ: TensorRT may crash on what it does not know.

#[cfg(feature = "tensorrt")]
mod header;
#[cfg(feature = "tensorrt")]
mod wrapper;

use std::path::Path;

use crate::{
    base::Result,
    runtime::{Graph, GraphOptions, Runtime, Signature},
};

/// Opens a plan. `folder` may be written to: the graph around the plan is kept there.
#[cfg(feature = "tensorrt")]
pub fn open_plan(
    runtime: &Runtime,
    plan: &Path,
    signature: &Signature,
    options: &GraphOptions,
    folder: &Path,
) -> Result<Graph> {
    use crate::{base::Error, runtime::provider::Provider};

    if options.provider.provider() != Provider::TensorRt {
        let message = format!(
            "{} is a plan of TensorRT and cannot run on `{}`",
            plan.display(),
            options.provider.provider().name()
        );
        return Err(Error::invalid(message).hint("set provider = \"tensorrt\" for its task, or choose another variant"));
    }
    let built_with = header::read(plan)?;
    header::check(plan, built_with, runtime.tensorrt_version()?)?;
    let graph = wrapper::write(plan, signature, folder)?;
    Graph::open(runtime, &graph, options)
}

#[cfg(not(feature = "tensorrt"))]
pub fn open_plan(_: &Runtime, plan: &Path, _: &Signature, _: &GraphOptions, _: &Path) -> Result<Graph> {
    use crate::base::{Error, Kind};

    let message = format!("{} is a plan of TensorRT, and this vigia was built without them", plan.display());
    Err(Error::new(Kind::Unsupported, message).hint("build it with `--features tensorrt`, or choose another variant"))
}

#[cfg(all(test, feature = "tensorrt"))]
mod tests {
    use super::*;
    use crate::{
        base::Kind,
        runtime::{Provider, ProviderOptions},
        settings::{DEFAULTS, Settings},
    };

    #[test]
    fn a_plan_without_its_driver_or_library_is_a_clear_error() {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia/runtime/libonnxruntime.so");
        if !library.is_file() {
            println!("SKIPPED: {} is not there", library.display());
            return;
        }
        let runtime = Runtime::open(&library).unwrap();
        let settings: Settings = toml::from_str(DEFAULTS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plan = dir.path().join("m.engine");
        std::fs::write(&plan, header::of(10, 13, 2)).unwrap();
        let open = |provider| {
            let provider = ProviderOptions::new(provider, &settings.providers, None);
            let options = GraphOptions { provider, ..GraphOptions::cpu(1) };
            open_plan(&runtime, &plan, &Signature::default(), &options, dir.path()).err().unwrap()
        };
        let error = open(Provider::Cpu);
        assert!(error.kind() == Kind::Invalid && error.message().contains("cannot run on `cpu`"), "{}", error.full());
        // No driver here, or a driver and no provider beside the library: each says so.
        let error = open(Provider::TensorRt);
        let said = ["NVIDIA driver", "no TensorRT provider"].iter().any(|words| error.message().contains(words));
        assert!(said && error.hint_text().is_some(), "{}", error.full());
        assert!(!dir.path().join("m.onnx").exists(), "nothing is prepared for what cannot run");
    }
}
