//! Matrix products of training for each type of activations: [`fp32`] and [`bf16`]. Pure.

mod bf16;
mod fp32;

pub(crate) use fp32::{Panels, product};
use rayon::prelude::*;

use super::buffer::Pooled;
use crate::model::Linear;

/// The destination of a product.
pub(crate) enum Out<'a, N> {
    /// Activations whose rows are [`Dtype::stride`] apart.
    Store(&'a mut [N]),
    /// Overwrites rows without gaps.
    Set(&'a mut [f32]),
    /// Adds to rows without gaps.
    Add(&'a mut [f32]),
}

impl<N> Out<'_, N> {
    /// Reborrows the destination.
    fn again(&mut self) -> Out<'_, N> {
        match self {
            Out::Store(out) => Out::Store(out),
            Out::Set(out) => Out::Set(out),
            Out::Add(out) => Out::Add(out),
        }
    }
}

/// A weight gradient: `out` [left width, right width] += leftᵀ · right. Rows of both factors are [`Dtype::stride`] apart.
pub(crate) struct Gradient<'a, N> {
    pub(crate) left: &'a [N],
    pub(crate) left_width: usize,
    pub(crate) right: &'a [N],
    pub(crate) right_width: usize,
    pub(crate) out: &'a mut [f32],
}

/// The width of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// [Eight bits](crate::cpu::eight), where that changes no number.
    Eight,
    /// The type of activations.
    Full,
}

/// A type of activations, and the products over it.
pub(crate) trait Dtype: Pooled + Send + Sync + std::fmt::Debug {
    /// Packed weights, rebuilt when the parameters have changed.
    type Packs: Default + Send + Sync + std::fmt::Debug;
    /// Buffers of the weight gradients.
    type Workspace: Default + Send + Sync + std::fmt::Debug;

    /// Whether [`operand`](Self::operand) copies its input.
    const COPIES: bool;

    /// Whether packed weights are exactly the parameters.
    const EXACT: bool;

    /// Returns the path's name for the records of a run.
    fn path() -> &'static str;

    /// Returns the distance between rows of `width`.
    fn stride(width: usize) -> usize;

    /// Returns the bytes of a packed right operand [depth, columns].
    fn packed(depth: usize, columns: usize) -> usize;

    /// Packs linear layers, given in the order of their indices, for the forward pass and, if `backward`, for the backward
    /// pass.
    fn pack(layers: &[&Linear], parameters: &[f32], packs: &mut Self::Packs, backward: bool);

    /// The widths in which weights may be packed for the forward pass, the smallest first. The last one takes all weights.
    const WIDTHS: &'static [Width];

    /// Makes room for one layer's packed weight of the forward pass.
    fn shape(matrix: &Linear, width: Width, packs: &mut Self::Packs);

    /// Packs some columns of one layer's weight for the forward pass after [`shape`](Self::shape): `data` has the rows of the
    /// stored weight from `first`, which is a multiple of [`COLUMNS`]; or all of a weight that is stored [inputs, outputs]. Returns
    /// false if the width is too small for the numbers.
    fn pack_columns(matrix: &Linear, first: usize, data: &[f32], packs: &mut Self::Packs) -> bool;

    /// Reads a column of a packed weight: what one output is computed with.
    fn column(matrix: &Linear, column: usize, packs: &Self::Packs, to: &mut [f32]);

    /// Computes `x` [rows, inputs] · weightᵀ + bias on this thread.
    fn forward(weight: Weight<Self>, x: &[Self], out: Out<Self>);

    /// As [`forward`](Self::forward) for at most [`FEW`] rows, on all threads, with the same bits.
    fn forward_few(weight: Weight<Self>, x: &[Self], out: Out<Self>);

    /// Computes `dy` [rows, outputs] · weight on this thread.
    fn backward(weight: Weight<Self>, dy: &[Self], out: Out<Self>);

    /// Computes weight gradients over the same rows on all threads.
    fn gradients(jobs: Vec<Gradient<Self>>, workspace: &mut Self::Workspace);

    /// Returns the bytes of packed weights and workspace.
    fn bytes(packs: &Self::Packs, workspace: &Self::Workspace) -> usize;

    /// Converts rows of `width` without gaps into activations, and clears their padding.
    fn keep(rows: &[f32], width: usize, to: &mut [Self]);

    /// Converts consecutive numbers.
    fn convert(numbers: &[f32], to: &mut [Self]);

    /// Reads the first `width` elements of rows that are `stride` apart.
    fn gather(rows: &[Self], stride: usize, width: usize, to: &mut [f32]);

    /// Returns a row as `f32`: in place, or converted into `buffer`. Call it in a kernel.
    fn read<'a>(row: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];

    /// Returns where a row is written as `f32`: in place, or in `buffer`, from where [`finish`](Self::finish) converts it.
    /// Call it in a kernel.
    fn place<'a>(row: &'a mut [Self], buffer: &'a mut [f32]) -> &'a mut [f32];

    /// Converts a row that was written to [`place`](Self::place).
    fn finish(row: &mut [Self], buffer: &[f32]);

    /// Returns rows without gaps as an operand: in place, or converted into `buffer`.
    fn operand<'a>(rows: &'a [f32], width: usize, buffer: &'a mut [Self]) -> &'a [Self];

    /// Returns the operand of all rows after [`operand`](Self::operand) ran for every chunk of `buffer`.
    fn operands<'a>(rows: &'a [f32], buffer: &'a [Self]) -> &'a [Self];
}

/// A linear layer with its parameters and packed weights.
pub(crate) struct Weight<'a, N: Dtype> {
    pub(crate) matrix: &'a Linear,
    pub(crate) parameters: &'a [f32],
    pub(crate) packs: &'a N::Packs,
}

#[allow(clippy::expl_impl_clone_on_copy, reason = "derived, it would require the packs to be `Copy`")]
impl<N: Dtype> Clone for Weight<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: Dtype> Copy for Weight<'_, N> {}

/// Columns that are packed together.
pub(crate) const COLUMNS: usize = 32;

/// Rows up to which threads share the columns of a product instead of its rows. They are one chunk of [`chunk_rows`] at most, so that
/// a team, which must not wait for the pool, works on no more.
pub(crate) const FEW: usize = SMALLEST;

/// The fewest rows of a chunk.
const SMALLEST: usize = 32;

/// As [`Dtype::forward`], on all threads, with the same bits.
pub(crate) fn forward_parallel<N: Dtype>(weight: Weight<N>, x: &[N], out: Out<N>) {
    let (inputs, outputs) = (N::stride(weight.matrix.inputs), weight.matrix.outputs);
    let rows = x.len() / inputs;
    if rows == 0 {
        return;
    }
    if rows <= FEW {
        return N::forward_few(weight, x, out);
    }
    let chunk = chunk_rows(rows);
    let x = x.par_chunks(chunk * inputs);
    match out {
        Out::Store(out) => x
            .zip(out.par_chunks_mut(chunk * N::stride(outputs)))
            .for_each(|(x, out)| N::forward(weight, x, Out::Store(out))),
        Out::Set(out) => {
            x.zip(out.par_chunks_mut(chunk * outputs)).for_each(|(x, out)| N::forward(weight, x, Out::Set(out)));
        }
        Out::Add(out) => {
            x.zip(out.par_chunks_mut(chunk * outputs)).for_each(|(x, out)| N::forward(weight, x, Out::Add(out)));
        }
    }
}

/// Returns the rows of a chunk among `rows`: few enough to fit into the cache, with enough chunks for all threads.
pub(crate) fn chunk_rows(rows: usize) -> usize {
    rows.div_ceil(8).next_multiple_of(SMALLEST).clamp(SMALLEST, 256)
}

/// Returns how many of `columns` panels one task of [`Dtype::forward_few`] takes.
fn panels_per_task(panels: usize) -> usize {
    panels.div_ceil(2 * rayon::current_num_threads()).max(1)
}
