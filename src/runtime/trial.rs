//! Runs a graph once on made-up inputs and says what came out, so that two providers can be compared.
//!
//! The same seed makes the same inputs on every machine and in every version.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use half::f16;
use ort::{
    session::SessionInputValue,
    value::{DynValue, PrimitiveTensorElementType, Tensor},
};

use crate::{
    base::{Error, Kind, Result},
    runtime::{ElementType, GraphOptions, Runtime, TensorSpec, failure::trial_error, session::open_session},
};

/// What came out, by output: numbers of whatever type as f32.
pub type Answers = BTreeMap<String, Vec<f32>>;

/// Opens the graph, which builds engines where there are none, and runs it once.
pub fn trial(
    runtime: &Runtime,
    graph: &Path,
    options: &GraphOptions,
    inputs: &BTreeMap<String, TensorSpec>,
    seed: u64,
) -> Result<Answers> {
    let mut session = open_session(runtime, graph, options)?;
    let failed = |error: ort::Error| {
        trial_error(format!("the model {} does not run on its check's inputs", graph.display()), &error.to_string())
    };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
    for (name, spec) in inputs {
        values.push((name.as_str().into(), made_up(name, spec, &mut random)?.map_err(failed)?.into()));
    }
    let outputs = session.run(values).map_err(failed)?;
    let mut answers = Answers::new();
    for (name, value) in &outputs {
        let numbers = numbers(&value).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("the output {name} of {} is no tensor of numbers", graph.display()))
        })?;
        answers.insert(name.to_owned(), numbers);
    }
    Ok(answers)
}

/// A tensor of the wanted kind: its value everywhere, else numbers between -1 and 1, or small whole ones.
fn made_up(name: &str, spec: &TensorSpec, random: &mut fastrand::Rng) -> Result<ort::Result<DynValue>> {
    let Some(shape) = spec.fixed_shape() else {
        return Err(Error::invalid(format!("the check's input {name} has an open axis ({spec})")));
    };
    let count = shape.iter().product::<usize>();
    let whole = matches!(spec.element, ElementType::I64 | ElementType::I32 | ElementType::Bool);
    let mut number = || match (spec.value, whole) {
        (Some(value), _) => value,
        (None, true) => f64::from(random.u8(0..2)),
        (None, false) => f64::from(random.f32() * 2.0 - 1.0),
    };
    let numbers = (0..count).map(|_| number());
    Ok(match spec.element {
        ElementType::F32 => tensor(shape, numbers.map(|it| it as f32).collect()),
        ElementType::F16 => tensor(shape, numbers.map(f16::from_f64).collect()),
        ElementType::I64 => tensor(shape, numbers.map(|it| it as i64).collect()),
        ElementType::I32 => tensor(shape, numbers.map(|it| it as i32).collect()),
        ElementType::Bool => tensor(shape, numbers.map(|it| it != 0.0).collect()),
    })
}

fn tensor<T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
    shape: Vec<usize>,
    data: Vec<T>,
) -> ort::Result<DynValue> {
    Tensor::from_array((shape, data)).map(Tensor::into_dyn)
}

fn numbers(value: &DynValue) -> Option<Vec<f32>> {
    fn all<T: PrimitiveTensorElementType + Copy>(value: &DynValue, to: fn(T) -> f32) -> Option<Vec<f32>> {
        value.try_extract_tensor::<T>().ok().map(|(_, data)| data.iter().copied().map(to).collect())
    }
    all::<f32>(value, |it| it)
        .or_else(|| all::<f16>(value, f16::to_f32))
        .or_else(|| all::<i64>(value, |it| it as f32))
        .or_else(|| all::<i32>(value, |it| it as f32))
        .or_else(|| all::<bool>(value, f32::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        runtime::{Provider, ProviderOptions},
        settings::{DEFAULTS, Settings},
    };

    /// Silero's graph, of the checkout; none where nothing was fetched.
    fn silero() -> Option<(Runtime, std::path::PathBuf, BTreeMap<String, TensorSpec>)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia");
        let library = root.join("runtime/libonnxruntime.so");
        let graph = root.join("state/models/silero-vad/silero_vad.onnx");
        if !library.is_file() || !graph.is_file() {
            println!("SKIPPED: {} or {} is not there", library.display(), graph.display());
            return None;
        }
        let inputs = [("input", "f32 1x576"), ("state", "f32 2x1x128"), ("sr", "i64 = 16000")];
        let inputs = inputs.map(|(name, spec)| (name.to_owned(), spec.parse().unwrap()));
        Some((Runtime::open(&library).unwrap(), graph, inputs.into()))
    }

    #[test]
    fn the_same_seed_gives_the_same_answers_and_another_gives_others() {
        let Some((runtime, graph, inputs)) = silero() else { return };
        let run = |seed| trial(&runtime, &graph, &GraphOptions::cpu(1), &inputs, seed).unwrap();
        let answers = run(7);
        assert_eq!(answers["output"].len(), 1);
        assert_eq!(answers["stateN"].len(), 256);
        assert_eq!(run(7), answers);
        assert_ne!(run(8), answers);
    }

    #[test]
    fn inputs_that_do_not_fit_the_graph_are_an_error() {
        let Some((runtime, graph, mut inputs)) = silero() else { return };
        inputs.insert("state".to_owned(), "f32 3x1x128".parse().unwrap());
        assert!(trial(&runtime, &graph, &GraphOptions::cpu(1), &inputs, 7).is_err());
        inputs.insert("state".to_owned(), "f32 2x?x128".parse().unwrap());
        let error = trial(&runtime, &graph, &GraphOptions::cpu(1), &inputs, 7).unwrap_err();
        assert!(error.message().contains("open axis"), "{}", error.full());
    }

    #[test]
    fn a_provider_that_the_library_lacks_is_an_error_and_never_the_processor() {
        let Some((runtime, graph, inputs)) = silero() else { return };
        let settings: Settings = toml::from_str(DEFAULTS).unwrap();
        for provider in Provider::ALL.into_iter().filter(|it| !runtime.providers().contains(it)) {
            let provider = ProviderOptions::new(provider, &settings.providers, None);
            let name = provider.provider().name();
            let error =
                trial(&runtime, &graph, &GraphOptions { provider, ..GraphOptions::cpu(1) }, &inputs, 7).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().contains(name) && error.hint_text().is_some(), "{}", error.full());
        }
    }
}
