//! A snapshot of the state as named tensors, its digests, and its form as a safetensors file. Pure, except for the given writers.
//!
//! The file holds `parameters/NAME`, `first/NAME` and `second/NAME` for every tensor of the model, `average/NAME` if a moving average is
//! kept, `first.scale/NAME` and `second.scale/NAME` for moments in eight bits, which are of type `U8`, and all other state as one-dimensional tensors of `F64` or `U64`. Its bytes are those of `safetensors::serialize`, but it is written piece by piece:
//! a state can be larger than the free memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use codex_engine::{EightBit, EngineState, Layout, Moments, TensorNumbers};
use codex_provenance::Sha256;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use sha2::Digest as _;

/// State beside the engine's vectors, by name.
pub(crate) type Columns = BTreeMap<String, Column>;

/// A column of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Column {
    /// Floating-point values.
    F64(Vec<f64>),
    /// Counts.
    U64(Vec<u64>),
}

/// Copy of the state of a run after `step` steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Parameters and moments.
    pub(crate) engine: EngineState,
    /// Everything else.
    pub(crate) rest: Columns,
}

/// Digests of a state and of each of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digests {
    /// Digest over the step and all tensors.
    pub(crate) whole: Sha256,
    /// Digest over name, type, shape and bytes of each tensor.
    pub(crate) tensors: BTreeMap<String, Sha256>,
}

/// Values of one tensor.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a> {
    U8(&'a [u8]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    U64(&'a [u64]),
}

/// One tensor of a state.
pub(super) struct Leaf<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    numbers: Numbers<'a>,
}

pub(crate) const PARAMETERS: &str = "parameters";
pub(crate) const FIRST: &str = "first";
pub(crate) const SECOND: &str = "second";
/// Groups that exist only if moments are kept in eight bits: the scales of their blocks.
pub(crate) const FIRST_SCALE: &str = "first.scale";
pub(crate) const SECOND_SCALE: &str = "second.scale";
/// Group that exists only if a moving average of the parameters is kept.
pub(crate) const AVERAGE: &str = "average";
/// Number of values that are converted to bytes at once.
pub(crate) const PIECE: usize = 1 << 14;

fn pieces<const N: usize, T: Copy>(
    numbers: &[T],
    bytes: impl Fn(T) -> [u8; N],
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; N * PIECE.min(numbers.len())];
    for piece in numbers.chunks(PIECE) {
        let buffer = &mut buffer[..N * piece.len()];
        for (out, number) in buffer.chunks_exact_mut(N).zip(piece) {
            out.copy_from_slice(&bytes(*number));
        }
        sink(buffer)?;
    }
    Ok(())
}

impl Leaf<'_> {
    pub(super) fn dtype(&self) -> Dtype {
        match self.numbers {
            Numbers::U8(_) => Dtype::U8,
            Numbers::F32(_) => Dtype::F32,
            Numbers::F64(_) => Dtype::F64,
            Numbers::U64(_) => Dtype::U64,
        }
    }

    fn size(&self) -> usize {
        match self.numbers {
            Numbers::U8(numbers) => numbers.len(),
            Numbers::F32(numbers) => size_of_val(numbers),
            Numbers::F64(numbers) => size_of_val(numbers),
            Numbers::U64(numbers) => size_of_val(numbers),
        }
    }

    /// Passes the little-endian bytes to `sink`, piece by piece.
    pub(super) fn bytes(&self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.numbers {
            Numbers::U8(numbers) => numbers.chunks(PIECE).try_for_each(&mut sink),
            Numbers::F32(numbers) => pieces(numbers, f32::to_le_bytes, &mut sink),
            Numbers::F64(numbers) => pieces(numbers, f64::to_le_bytes, &mut sink),
            Numbers::U64(numbers) => pieces(numbers, u64::to_le_bytes, &mut sink),
        }
    }

    fn digest(&self) -> Sha256 {
        let mut hasher = tensor_hasher(&self.name, self.dtype(), &self.shape);
        let hashed = self.bytes(|bytes| {
            hasher.update(bytes);
            Ok(())
        });
        debug_assert!(hashed.is_ok(), "hashing does no I/O");
        Sha256::finish(hasher)
    }
}

/// Returns a hasher that has consumed the name, type and shape of a tensor.
pub(crate) fn tensor_hasher(name: &str, dtype: Dtype, shape: &[usize]) -> sha2::Sha256 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(format!("codex tensor 1\0{name}\0{dtype}\0"));
    hasher.update((shape.len() as u64).to_le_bytes());
    for extent in shape {
        hasher.update((*extent as u64).to_le_bytes());
    }
    hasher
}

impl Digests {
    /// Combines the digests of all tensors with the step.
    pub(crate) fn of(step: u64, tensors: BTreeMap<String, Sha256>) -> Self {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex state 1\0");
        hasher.update(step.to_le_bytes());
        for (name, digest) in &tensors {
            hasher.update(name.as_bytes());
            hasher.update([0]);
            hasher.update(digest.bytes());
        }
        Self { whole: Sha256::finish(hasher), tensors }
    }
}

/// Yields the tensors of moments in eight bits.
fn coded<'a>(layout: &'a Layout, moments: &'a EightBit, [group, scale]: [&str; 2]) -> Vec<Leaf<'a>> {
    let mut leaves = Vec::new();
    for (tensor, numbers) in layout.tensors().iter().zip(moments.tensors(layout)) {
        let mut add = |group: &str, shape, numbers| {
            leaves.push(Leaf { name: format!("{group}/{}", tensor.name), shape, numbers });
        };
        match numbers {
            TensorNumbers::Small(small) => add(group, tensor.shape.clone(), Numbers::F32(small)),
            TensorNumbers::Coded(codes, scales) => {
                add(group, tensor.shape.clone(), Numbers::U8(codes));
                add(scale, vec![scales.len()], Numbers::F32(scales));
            }
        }
    }
    leaves
}

impl Snapshot {
    /// Returns the tensors in file order: wide types first, so that all are aligned, then by name.
    pub(super) fn leaves(&self) -> Vec<Leaf<'_>> {
        let EngineState { layout, parameters, moments, average } = &self.engine;
        let mut leaves = Vec::new();
        let mut vectors = vec![(PARAMETERS, parameters)];
        match moments {
            Moments::F32 { first, second } => vectors.extend([(FIRST, first), (SECOND, second)]),
            Moments::EightBit { first, second } => {
                leaves.extend(coded(layout, first, [FIRST, FIRST_SCALE]));
                leaves.extend(coded(layout, second, [SECOND, SECOND_SCALE]));
            }
        }
        vectors.extend(average.iter().map(|average| (AVERAGE, average)));
        for (group, vector) in vectors {
            leaves.extend(layout.tensors().iter().map(|tensor| Leaf {
                name: format!("{group}/{}", tensor.name),
                shape: tensor.shape.clone(),
                numbers: Numbers::F32(&vector[tensor.range.clone()]),
            }));
        }
        leaves.extend(self.rest.iter().map(|(name, column)| {
            let (length, numbers) = match column {
                Column::F64(numbers) => (numbers.len(), Numbers::F64(numbers)),
                Column::U64(numbers) => (numbers.len(), Numbers::U64(numbers)),
            };
            Leaf { name: name.clone(), shape: vec![length], numbers }
        }));
        leaves.sort_by(|a, b| b.dtype().cmp(&a.dtype()).then_with(|| a.name.cmp(&b.name)));
        leaves
    }

    /// Computes the digests.
    pub(crate) fn digests(&self) -> Digests {
        Digests::of(self.step, self.leaves().into_iter().map(|leaf| (leaf.name.clone(), leaf.digest())).collect())
    }

    /// Writes the safetensors file.
    ///
    /// # Errors
    /// When writing to `out` fails.
    pub(crate) fn write(&self, mut out: impl Write) -> io::Result<()> {
        let leaves = self.leaves();
        let mut offset = 0;
        let infos = leaves.iter().map(|leaf| {
            let start = offset;
            offset += leaf.size();
            let info = TensorInfo { dtype: leaf.dtype(), shape: leaf.shape.clone(), data_offsets: (start, offset) };
            (leaf.name.clone(), info)
        });
        let metadata = Metadata::new(None, infos.collect()).map_err(io::Error::other)?;
        let mut header = serde_json::to_vec(&metadata)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for leaf in &leaves {
            leaf.bytes(|bytes| out.write_all(bytes))?;
        }
        Ok(())
    }
}

/// Returns the names whose values differ, or that only one map has.
pub(crate) fn differing_names<T: PartialEq>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}
