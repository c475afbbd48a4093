//! The token embedding of a model whose weights are not trained. Pure.

use rayon::prelude::*;

use super::bf16::Bf16;

/// The rows of the token embedding: in `bf16` if that is exact.
#[derive(Debug)]
pub(crate) enum Embedding {
    /// Rows in `f32`.
    F32(Vec<f32>),
    /// Rows in `bf16`.
    Bf16(Vec<Bf16>),
}

/// Returns whether numbers are the same in `bf16`.
pub(crate) fn exact(numbers: &[f32]) -> bool {
    numbers.par_iter().all(|x| Bf16::of(*x).to_f32().to_bits() == x.to_bits())
}

impl Embedding {
    /// Copies the rows.
    pub(crate) fn new(weight: &[f32]) -> Self {
        if exact(weight) {
            Self::Bf16(weight.iter().map(|x| Bf16::of(*x)).collect())
        } else {
            Self::F32(weight.to_vec())
        }
    }

    /// Appends rows.
    pub(crate) fn extend(&mut self, rows: &[f32]) {
        match self {
            Self::Bf16(weight) if exact(rows) => weight.extend(rows.iter().map(|x| Bf16::of(*x))),
            Self::Bf16(weight) => {
                let mut all: Vec<f32> = weight.iter().map(|x| x.to_f32()).collect();
                all.extend_from_slice(rows);
                *self = Self::F32(all);
            }
            Self::F32(weight) => weight.extend_from_slice(rows),
        }
    }

    /// Reads the row of a token.
    pub(crate) fn read(&self, token: u32, row: &mut [f32]) {
        let range = token as usize * row.len()..(token as usize + 1) * row.len();
        match self {
            Self::F32(weight) => row.copy_from_slice(&weight[range]),
            Self::Bf16(weight) => row.iter_mut().zip(&weight[range]).for_each(|(to, x)| *to = x.to_f32()),
        }
    }

    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(weight) => size_of_val(weight.as_slice()),
            Self::Bf16(weight) => size_of_val(weight.as_slice()),
        }
    }
}
