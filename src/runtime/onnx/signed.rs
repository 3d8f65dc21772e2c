//! Weights of unsigned bytes as signed ones, where the processor multiplies those faster.
//!
//! A quantised weight is a byte minus its zero point: taking 128 from both changes nothing. Processors with dot products
//! of bytes (VNNI, AMX) have them for unsigned by signed, and ONNX Runtime uses them for nothing else: unsigned weights
//! take several times as long. Without them it multiplies signed ones inexactly, so they are left alone there.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
};

use super::{Model, Node, Weight};
use crate::{
    base::{Error, Result},
    runtime::protobuf::Message,
};

/// ONNX's numbers of the types.
const UNSIGNED: u64 = 2;
const SIGNED: u64 = 3;

/// Where the zero point of a node `MatMulInteger` stands, and its weight.
const ZERO_POINT: usize = 3;
const WEIGHT: usize = 1;

/// Whether this processor has dot products of bytes for signed weights alone.
pub fn signed_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

impl Model {
    /// The same products from signed weights.
    pub fn signed(mut self) -> Result<Model> {
        let failed = |error: io::Error| {
            Error::unavailable(format!("the weights of {} cannot be read", self.file.display())).cause(error)
        };
        let file = File::open(&self.file).map_err(failed)?;
        let products = self.net.nodes.iter().filter(|node| node.is("MatMulInteger"));
        let pair = |node: &Node| [WEIGHT, ZERO_POINT].map(|at| node.inputs.get(at).cloned().unwrap_or_default());
        let unsigned = |name: &String| self.net.weights.iter().any(|it| it.name == *name && it.element == UNSIGNED);
        let pairs: Vec<[String; 2]> = products.map(pair).filter(|pair| pair.iter().all(unsigned)).collect();
        let mut uses: HashMap<&String, usize> = HashMap::new();
        pairs.iter().flatten().for_each(|name| *uses.entry(name).or_default() += 1);
        // What anything else reads too must stay as it is, and then so must all: they may share their zero points.
        let inputs = || self.net.nodes.iter().flat_map(|node| &node.inputs);
        if !uses.iter().all(|(name, count)| inputs().filter(|input| input == name).count() == *count) {
            return Ok(self);
        }
        let changed: HashSet<String> = uses.into_keys().cloned().collect();
        for weight in self.net.weights.iter_mut().filter(|weight| changed.contains(&weight.name)) {
            *weight = weight.signed(&file).map_err(failed)?;
        }
        Ok(self)
    }
}

impl Weight {
    fn signed(&self, file: &File) -> io::Result<Weight> {
        let mut bytes = self.few.clone();
        if let Some((offset, length)) = self.place {
            bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            file.read_exact_at(&mut bytes, offset)?;
        }
        // 128 less, as a signed byte.
        bytes.iter_mut().for_each(|byte| *byte ^= 0x80);
        let mut whole = Message::default();
        for size in &self.dims {
            whole.number(1, *size);
        }
        whole.number(2, SIGNED).text(8, &self.name).bytes(9, &bytes);
        let few = if self.place.is_some() { Vec::new() } else { bytes };
        Ok(Weight {
            element: SIGNED,
            whole,
            few,
            place: None,
            beside: false,
            name: self.name.clone(),
            dims: self.dims.clone(),
        })
    }
}
