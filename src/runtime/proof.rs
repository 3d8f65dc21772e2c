//! Whether a provider computes on this machine, by letting it: registering one proves only that its options can be read,
//! even where there is no card. The graph is one convolution, since that is what needs most of a card's libraries.

use ort::value::TensorRef;

use crate::{
    base::{Error, Result},
    runtime::{GraphOptions, ProviderOptions, Runtime, failure::trial_error, protobuf::Message, session::open_proof},
};

/// A picture of ones, of which the filter of ones sums three by three: nines, in whatever precision they are summed.
const SIDE: usize = 8;
const FILTER: usize = 3;
const ANSWER: f32 = (FILTER * FILTER) as f32;

impl Runtime {
    /// Whether a provider computes on this machine, and all of it there. TensorRT takes seconds.
    pub fn try_provider(&self, options: &ProviderOptions) -> Result<()> {
        let name = options.provider().name();
        let failed = |text: String| trial_error(format!("the provider `{name}` does not compute"), &text);
        let options = GraphOptions { provider: options.clone(), ..GraphOptions::cpu(1) };
        let mut session = open_proof(self, &model(), &options, failed)?;
        let picture = [1.0_f32; SIDE * SIDE];
        let picture = TensorRef::from_array_view(([1, 1, SIDE, SIDE], &picture[..]));
        let picture = picture.map_err(|error| failed(error.to_string()))?;
        let outputs = session.run(ort::inputs![picture]).map_err(|error| failed(error.to_string()))?;
        let (_, sums) = outputs[0].try_extract_tensor::<f32>().map_err(|error| failed(error.to_string()))?;
        let wrong = sums.iter().find(|sum| **sum != ANSWER);
        if sums.is_empty() || wrong.is_some() {
            let message = format!("the provider `{name}` computes {wrong:?} where {ANSWER} is right");
            return Err(Error::unavailable(message).hint("do not use it: its driver or the card is broken"));
        }
        Ok(())
    }
}

/// ONNX's `ModelProto`; the numbers are its fields'.
fn model() -> Vec<u8> {
    const FLOAT: u64 = 1;
    let mut node = Message::default();
    node.text(1, "picture").text(1, "filter").text(2, "sums").text(3, "convolution").text(4, "Conv");
    let mut filter = Message::default();
    for length in [1, 1, FILTER, FILTER] {
        filter.number(1, length as u64);
    }
    filter.number(2, FLOAT).text(8, "filter").bytes(9, &1.0_f32.to_le_bytes().repeat(FILTER * FILTER));
    let end = |name: &str, side: usize| {
        let mut shape = Message::default();
        for length in [1, 1, side, side] {
            shape.message(1, Message::default().number(1, length as u64));
        }
        let mut tensor = Message::default();
        tensor.number(1, FLOAT).message(2, &shape);
        let mut end = Message::default();
        end.text(1, name).message(2, Message::default().message(1, &tensor));
        end
    };
    let mut graph = Message::default();
    graph.message(1, &node).text(2, "proof").message(5, &filter);
    graph.message(11, &end("picture", SIDE)).message(12, &end("sums", SIDE - FILTER + 1));
    let mut model = Message::default();
    model.number(1, 8).message(7, &graph).message(8, Message::default().text(1, "").number(2, 17));
    model.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        runtime::library,
        settings::{DEFAULTS, Provider, Settings},
    };

    #[test]
    fn the_processor_computes_and_what_is_not_built_in_says_so() {
        let Some(library) = library::for_tests() else { return };
        let runtime = Runtime::open(&library).unwrap();
        runtime.try_provider(&ProviderOptions::Cpu).unwrap();
        let settings: Settings = toml::from_str(DEFAULTS).unwrap();
        for provider in Provider::ALL.into_iter().filter(|it| !runtime.providers().contains(it)) {
            let error = runtime.try_provider(&ProviderOptions::new(provider, &settings.providers, None)).unwrap_err();
            assert!(error.message().contains(&format!("no provider `{}`", provider.name())), "{error:?}");
        }
    }

    /// The graph is a whole one: another model than the one that is written would not open.
    #[test]
    fn a_broken_graph_is_told_by_the_words_that_it_is_given() {
        let Some(library) = library::for_tests() else { return };
        let runtime = Runtime::open(&library).unwrap();
        let half = model();
        let told = |text: String| trial_error("it does not compute", &text);
        let error = open_proof(&runtime, &half[..half.len() / 2], &GraphOptions::cpu(1), told).err().unwrap();
        assert_eq!(error.message(), "it does not compute");
        assert!(error.cause_text().is_some());
    }
}
