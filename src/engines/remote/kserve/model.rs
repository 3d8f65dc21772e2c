//! One model of a KServe server: what its tensors are, asked once and again when they do not fit, and one inference.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Cancel,
        remote::{
            kserve::tensor::{Data, Input, Output, output, request},
            link::{Link, Request},
            trouble::Trouble,
        },
    },
};

const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(super) struct Model {
    pub(super) link: Link,
    name: String,
    path: String,
    tensors: Option<Tensors>,
}

/// What a model takes and gives.
#[derive(Debug, Deserialize)]
struct Tensors {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    /// -1 where it varies. Some servers write the numbers as texts.
    shape: Vec<Value>,
}

/// A tensor before its shape is known.
pub(super) struct Given<'a> {
    /// The key of the settings that holds `name`.
    pub(super) key: &'static str,
    pub(super) name: &'a str,
    /// The last sizes of the shape; what the model has more of is 1.
    pub(super) sizes: Vec<usize>,
    pub(super) data: Data<'a>,
}

/// The output that is wanted.
pub(super) struct Wanted<'a> {
    pub(super) key: &'static str,
    pub(super) name: &'a str,
}

impl Model {
    pub(super) fn new(link: Link, name: &str) -> Model {
        let path = format!("/v2/models/{}", utf8_percent_encode(name, IN_A_PATH));
        Model { link, name: name.to_owned(), path, tensors: None }
    }

    /// One inference. `read` takes what it needs of the output; None: it is of another type.
    pub(super) fn infer<T>(
        &mut self,
        given: &[Given<'_>],
        parameters: &Value,
        wanted: &Wanted<'_>,
        cancel: &Cancel,
        read: impl Fn(&Output) -> Option<T>,
    ) -> Result<T> {
        let tensors = match self.tensors.take() {
            Some(tensors) => tensors,
            None => self.ask_tensors(cancel)?,
        };
        let inputs = self.inputs(&tensors, given, wanted).inspect_err(|error| self.link.note(error))?;
        let path = format!("{}/infer", self.path);
        let binary = self.link.server.settings.binary_tensors;
        let request = request(&path, &inputs, parameters.clone(), wanted.name, binary);
        let inferred = self.link.ask(&request, cancel, |answer| {
            let output = output(answer, wanted.name)?;
            read(&output).ok_or_else(|| {
                let text = format!("answers with {} as {}, which we cannot read", wanted.name, output.datatype);
                Trouble::lasting(answer.server.strange(&text))
            })
        });
        // A model that refuses what fits may be another by now, as may one that does not fit: both are asked anew.
        if !matches!(&inferred, Err(error) if error.kind() == Kind::Invalid) {
            self.tensors = Some(tensors);
        }
        inferred
    }

    /// What is given, in the shapes of the model; an error where the model is another than the settings say.
    fn inputs<'a>(&self, tensors: &Tensors, given: &[Given<'a>], wanted: &Wanted<'_>) -> Result<Vec<Input<'a>>> {
        self.find(&tensors.outputs, wanted.key, wanted.name)?;
        let input = |Given { key, name, sizes, data }: &Given<'a>| {
            let tensor = self.find(&tensors.inputs, key, name)?;
            if tensor.datatype != data.datatype() {
                let text =
                    format!("{} takes {name} as {}, and we have {}", self.name, tensor.datatype, data.datatype());
                return Err(self.other(&text, key));
            }
            let shape = shape(tensor.shape.len(), sizes, data);
            let shape =
                shape.ok_or_else(|| self.other(&format!("{} has too few dimensions for {name}", self.name), key))?;
            Ok(Input { name, shape, data: *data })
        };
        given.iter().map(input).collect()
    }

    fn ask_tensors(&self, cancel: &Cancel) -> Result<Tensors> {
        let ready = format!("{}/ready", self.path);
        self.link.ask(&Request::get(&ready), cancel, |_| Ok(())).map_err(|error| match error.kind() {
            // Triton says 400 for a model that it does not have or has not loaded.
            Kind::Invalid => {
                let text = format!("the model {} is not ready at {}", self.name, self.link.server.name);
                let error = Error::unavailable(text).hint("load it there, or change tasks.*.model").cause(error);
                self.link.note(&error);
                error
            }
            _ => error,
        })?;
        self.link.ask(&Request::get(&self.path), cancel, |answer| answer.json())
    }

    fn find<'a>(&self, tensors: &'a [Tensor], key: &str, name: &str) -> Result<&'a Tensor> {
        tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
            let known: Vec<&str> = tensors.iter().take(8).map(|tensor| tensor.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            self.other(&format!("{} has no tensor {name}; it has {known}", self.name), key)
        })
    }

    /// Whoever asked can do nothing about it.
    fn other(&self, text: &str, key: &str) -> Error {
        let server = &self.link.server;
        Error::unavailable(format!("the model {}", server.clean(text)))
            .hint(format!("see remotes.{}.{key}", server.name))
    }
}

/// The sizes behind as many ones as the model has dimensions more; for a model with fewer, all in one.
fn shape(rank: usize, sizes: &[usize], data: &Data<'_>) -> Option<Vec<usize>> {
    match rank.checked_sub(sizes.len()) {
        Some(ones) => Some([vec![1; ones], sizes.to_vec()].concat()),
        None if rank == 1 => Some(vec![data.len()]),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_filled_up_to_what_the_model_has() {
        assert_eq!(shape(1, &[1], &Data::Text("a")), Some(vec![1]));
        assert_eq!(shape(2, &[1], &Data::Text("a")), Some(vec![1, 1]));
        assert_eq!(shape(4, &[2, 1, 3], &Data::U8(&[0; 6])), Some(vec![1, 2, 1, 3]));
        assert_eq!(shape(1, &[2, 1, 3], &Data::U8(&[0; 6])), Some(vec![6]));
        assert_eq!(shape(2, &[2, 1, 3], &Data::U8(&[0; 6])), None);
        assert_eq!(shape(0, &[1], &Data::Text("a")), None);
    }
}
