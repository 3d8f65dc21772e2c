//! What a tensor is before there is data: its type, its shape, and perhaps the one value that it holds. Written in
//! the catalogue as `"f32 1x80x3000"`, `"i64 1x4 = 50258"` or `"i64 = 16000"` (a scalar); `?` is an open axis.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// More axes than any model has, and more elements than a check needs.
const MAX_AXES: usize = 8;
const MAX_ELEMENTS: usize = 1 << 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElementType {
    F32,
    F16,
    I64,
    I32,
    Bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TensorSpec {
    pub element: ElementType,
    /// None is an axis whose length only a run knows.
    pub shape: Vec<Option<usize>>,
    /// Every element; else a check makes them up.
    pub value: Option<f64>,
}

/// What goes into a graph and what comes out, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub inputs: BTreeMap<String, TensorSpec>,
    pub outputs: BTreeMap<String, TensorSpec>,
}

const NAMES: [(&str, ElementType); 5] = [
    ("f32", ElementType::F32),
    ("f16", ElementType::F16),
    ("i64", ElementType::I64),
    ("i32", ElementType::I32),
    ("bool", ElementType::Bool),
];

impl TensorSpec {
    /// The shape, where no axis is open.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().copied().collect()
    }
}

impl FromStr for TensorSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<TensorSpec, String> {
        let wrong = || format!("`{text}` is no tensor: write \"f32 1x80x3000\", \"i64 1x4 = 7\" or \"i64 = 7\"");
        let (kind, value) = match text.split_once('=') {
            Some((kind, value)) => (kind, Some(value.trim().parse::<f64>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let mut words = kind.split_whitespace();
        let name = words.next().ok_or_else(wrong)?;
        let (_, element) = NAMES.into_iter().find(|(known, _)| *known == name).ok_or_else(wrong)?;
        let axis = |axis: &str| if axis == "?" { Some(None) } else { axis.parse().ok().filter(|it| *it > 0).map(Some) };
        let shape: Vec<Option<usize>> = match words.next() {
            Some(shape) => shape.split('x').map(axis).collect::<Option<_>>().ok_or_else(wrong)?,
            None => Vec::new(),
        };
        let elements = shape.iter().flatten().try_fold(1_usize, |product, axis| product.checked_mul(*axis));
        if words.next().is_some() || shape.len() > MAX_AXES || elements.is_none_or(|it| it > MAX_ELEMENTS) {
            return Err(wrong());
        }
        Ok(TensorSpec { element, shape, value })
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.into_iter().find(|(_, element)| *element == self.element).map_or("", |(name, _)| name);
        f.write_str(name)?;
        for (i, axis) in self.shape.iter().enumerate() {
            f.write_str(if i == 0 { " " } else { "x" })?;
            match axis {
                Some(length) => write!(f, "{length}")?,
                None => f.write_str("?")?,
            }
        }
        self.value.map_or(Ok(()), |value| write!(f, " = {value}"))
    }
}

impl TryFrom<String> for TensorSpec {
    type Error = String;

    fn try_from(text: String) -> Result<TensorSpec, String> {
        text.parse()
    }
}

impl From<TensorSpec> for String {
    fn from(spec: TensorSpec) -> String {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_read_and_print_as_the_catalogue_writes_them() {
        for text in ["f32 1x80x3000", "f16 ?x4", "i64 1x4 = 50258", "i64 = 16000", "bool 1 = 1", "f32 2 = 0.5", "i32"] {
            assert_eq!(text.parse::<TensorSpec>().unwrap().to_string(), text);
        }
        let spec: TensorSpec = "f32 1x?".parse().unwrap();
        assert_eq!((spec.shape.clone(), spec.fixed_shape()), (vec![Some(1), None], None));
    }

    #[test]
    fn nonsense_says_what_is_expected() {
        let huge = "f32 99999999999x99999999999";
        for text in ["", "f64 1", "f32 1x0", "f32 1xx2", "f32 1 2", "f32 -1", "i64 = x", huge, "f32 1x1x1x1x1x1x1x1x1"]
        {
            assert!(text.parse::<TensorSpec>().unwrap_err().contains("f32 1x80x3000"), "{text}");
        }
    }
}
