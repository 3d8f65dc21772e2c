//! Tensors that stay with ONNX Runtime: what one run answers is handed to the next without a copy.
//!
//! A graph's memory between steps (the keys and values of attention) is moved through here. Element types are read
//! from the graph, never assumed.

use half::f16;
use ort::{
    memory::Allocator,
    session::{HasSelectedOutputs, OutputSelector, RunOptions, SessionInputValue},
    value::{DynTensor, DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, ValueType},
};

use crate::{
    base::{Error, Result},
    runtime::{Graph, failure::run_error},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    I64,
    I32,
    Bool,
}

/// An input or output of a graph, as the file describes it. A dimension is None where it changes from run to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub element: Element,
    pub shape: Vec<Option<usize>>,
}

/// Owned by whoever holds it; its memory is ONNX Runtime's.
pub struct Tensor(DynValue);

/// Which outputs a run is to give back, in this order. Made once and kept.
pub struct Wanted(RunOptions<HasSelectedOutputs>);

impl Wanted {
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Wanted> {
        let options = RunOptions::new().map_err(failed)?;
        let selector = names.into_iter().fold(OutputSelector::no_default(), |selector, name| selector.with(name));
        Ok(Wanted(options.with_outputs(selector)))
    }
}

impl Graph {
    pub fn input_ports(&self) -> Result<Vec<Port>> {
        self.session.inputs().iter().map(|outlet| self.port(outlet)).collect()
    }

    pub fn output_ports(&self) -> Result<Vec<Port>> {
        self.session.outputs().iter().map(|outlet| self.port(outlet)).collect()
    }

    pub fn run_tensors(&mut self, inputs: Vec<(&str, &Tensor)>, wanted: &Wanted) -> Result<Vec<Tensor>> {
        let inputs: Vec<(&str, SessionInputValue<'_>)> =
            inputs.into_iter().map(|(name, tensor)| (name, SessionInputValue::from(&tensor.0))).collect();
        let name = &self.name;
        let outputs = self
            .session
            .run_with_options(inputs, &wanted.0)
            .map_err(|error| run_error(format!("the model {name} failed"), &error.to_string()))?;
        Ok(outputs.into_iter().map(|(_, value)| Tensor(value)).collect())
    }

    fn port(&self, outlet: &Outlet) -> Result<Port> {
        let unknown = || {
            Error::unavailable(format!(
                "the model {} has {} of a kind that is not known here",
                self.name,
                outlet.name()
            ))
            .hint("fetch an export in the Hugging Face ONNX layout")
        };
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unknown()) };
        let element = Element::of(*ty).ok_or_else(unknown)?;
        let shape = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        Ok(Port { name: outlet.name().to_owned(), element, shape })
    }
}

impl Element {
    fn of(element: TensorElementType) -> Option<Element> {
        Some(match element {
            TensorElementType::Float32 => Element::F32,
            TensorElementType::Float16 => Element::F16,
            TensorElementType::Int64 => Element::I64,
            TensorElementType::Int32 => Element::I32,
            TensorElementType::Bool => Element::Bool,
            _ => return None,
        })
    }

    fn tensor_type(self) -> TensorElementType {
        match self {
            Element::F32 => TensorElementType::Float32,
            Element::F16 => TensorElementType::Float16,
            Element::I64 => TensorElementType::Int64,
            Element::I32 => TensorElementType::Int32,
            Element::Bool => TensorElementType::Bool,
        }
    }
}

impl Tensor {
    /// All zero; a dimension may be 0.
    pub fn zeros(element: Element, shape: &[usize]) -> Result<Tensor> {
        let tensor = DynTensor::new(&Allocator::default(), element.tensor_type(), shape).map_err(failed)?;
        Ok(Tensor(tensor.into_dyn()))
    }

    /// Numbers for an input that wants `element`.
    pub fn floats(element: Element, shape: &[usize], data: &[f32]) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(element, shape)?;
        match element {
            Element::F32 => fill(tensor.data_mut::<f32>()?, data, |it| it)?,
            Element::F16 => fill(tensor.data_mut::<f16>()?, data, f16::from_f32)?,
            _ => return Err(Error::internal("an input of whole numbers was given others")),
        }
        Ok(tensor)
    }

    pub fn integers(element: Element, shape: &[usize], data: &[i64]) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(element, shape)?;
        match element {
            Element::I64 => fill(tensor.data_mut::<i64>()?, data, |it| it)?,
            // Token ids and positions are far below 2^31.
            Element::I32 => fill(tensor.data_mut::<i32>()?, data, |it| it as i32)?,
            _ => return Err(Error::internal("an input of other numbers was given whole ones")),
        }
        Ok(tensor)
    }

    pub fn bools(shape: &[usize], data: &[bool]) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(Element::Bool, shape)?;
        fill(tensor.data_mut::<bool>()?, data, |it| it)?;
        Ok(tensor)
    }

    pub fn element(&self) -> Result<Element> {
        let ValueType::Tensor { ty, .. } = self.0.dtype() else { return Err(Error::internal("no tensor")) };
        Element::of(*ty).ok_or_else(|| Error::internal(format!("a tensor of {ty} is not known here")))
    }

    pub fn shape(&self) -> Vec<usize> {
        match self.0.dtype() {
            ValueType::Tensor { shape, .. } => shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect(),
            _ => Vec::new(),
        }
    }

    /// The numbers in row order, where the tensor is of f32.
    pub fn f32(&self) -> Result<&[f32]> {
        self.data::<f32>()
    }

    /// To be changed in place, where the tensor is of f32.
    pub fn f32_mut(&mut self) -> Result<&mut [f32]> {
        self.data_mut::<f32>()
    }

    /// The same numbers as f32, without a copy where they are.
    pub fn into_f32(self) -> Result<Tensor> {
        self.into_element(Element::F32)
    }

    /// For an input that wants another precision than the output that it comes from.
    pub fn into_element(self, element: Element) -> Result<Tensor> {
        let from = self.element()?;
        if from == element {
            return Ok(self);
        }
        let mut tensor = Tensor::zeros(element, &self.shape())?;
        match (from, element) {
            (Element::F16, Element::F32) => fill(tensor.data_mut::<f32>()?, self.data::<f16>()?, f16::to_f32)?,
            (Element::F32, Element::F16) => fill(tensor.data_mut::<f16>()?, self.data::<f32>()?, f16::from_f32)?,
            _ => return Err(Error::internal(format!("{from:?} cannot become {element:?}"))),
        }
        Ok(tensor)
    }

    /// Rows of the first axis, in another order; a row may be taken more than once, or left out.
    pub fn rows(&self, order: &[usize]) -> Result<Tensor> {
        Tensor::gather(&order.iter().map(|row| (self, *row)).collect::<Vec<_>>())
    }

    /// One tensor of rows of several, which are alike but for their first axis.
    pub fn gather(rows: &[(&Tensor, usize)]) -> Result<Tensor> {
        let Some((first, _)) = rows.first() else { return Err(Error::internal("no rows to gather")) };
        let mut shape = first.shape();
        let row_len: usize = shape.iter().skip(1).product();
        if let Some(rows_of) = shape.first_mut() {
            *rows_of = rows.len();
        }
        let mut tensor = Tensor::zeros(first.element()?, &shape)?;
        match first.element()? {
            Element::F32 => copy_rows::<f32>(rows, row_len, tensor.data_mut()?)?,
            Element::F16 => copy_rows::<f16>(rows, row_len, tensor.data_mut()?)?,
            other => return Err(Error::internal(format!("rows of {other:?} are not gathered"))),
        }
        Ok(tensor)
    }

    fn data<T: PrimitiveTensorElementType>(&self) -> Result<&[T]> {
        Ok(self.0.try_extract_tensor::<T>().map_err(failed)?.1)
    }

    fn data_mut<T: PrimitiveTensorElementType>(&mut self) -> Result<&mut [T]> {
        Ok(self.0.try_extract_tensor_mut::<T>().map_err(failed)?.1)
    }
}

fn copy_rows<T: PrimitiveTensorElementType + Copy>(
    rows: &[(&Tensor, usize)],
    row_len: usize,
    to: &mut [T],
) -> Result<()> {
    if row_len == 0 {
        return Ok(());
    }
    for ((tensor, row), to) in rows.iter().zip(to.chunks_exact_mut(row_len)) {
        let from = tensor.data::<T>()?.get(row * row_len..(row + 1) * row_len);
        to.copy_from_slice(from.ok_or_else(|| Error::internal("a row that a tensor does not have"))?);
    }
    Ok(())
}

fn fill<From: Copy, To>(to: &mut [To], from: &[From], cast: impl Fn(From) -> To) -> Result<()> {
    if to.len() != from.len() {
        return Err(Error::internal(format!("{} values for a tensor of {}", from.len(), to.len())));
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = cast(*from));
    Ok(())
}

fn failed(error: ort::Error) -> Error {
    run_error("ONNX Runtime refuses a tensor", &error.to_string())
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::runtime::{Runtime, for_tests};

    #[test]
    fn tensors_that_do_not_fit_each_other_are_errors() {
        let Some(library) = for_tests() else { return };
        let _opened = Runtime::open(&library).unwrap();
        let whole = Tensor::integers(Element::I64, &[2, 1], &[1, 2]).unwrap();
        let broken = Tensor::floats(Element::F32, &[2, 1], &[1.0, 2.0]).unwrap();
        for (error, word) in [
            (Tensor::floats(Element::I64, &[1], &[0.5]).err(), "whole numbers was given others"),
            (Tensor::integers(Element::F32, &[1], &[7]).err(), "given whole ones"),
            (Tensor::floats(Element::F32, &[3], &[0.5]).err(), "1 values for a tensor of 3"),
            (Tensor::bools(&[1], &[true, false]).err(), "2 values for a tensor of 1"),
            (Tensor::gather(&[]).err(), "no rows"),
            (whole.rows(&[0]).err(), "I64 are not gathered"),
            (broken.rows(&[0, 2]).err(), "a row that a tensor does not have"),
            (whole.f32().err(), "refuses a tensor"),
            (whole.into_element(Element::F32).err(), "I64 cannot become F32"),
        ] {
            let error = error.unwrap_or_else(|| panic!("{word}: it was taken"));
            assert!(error.message().contains(word), "{word}: {}", error.full());
        }
    }
}
