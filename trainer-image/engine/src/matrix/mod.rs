//! Matrix products of training, for each way of storing activations: [`fp32`] and [`bf16`]. Pure.

mod bf16;
mod fp32;

use super::{
    buffer::Kept,
    model::{Matrix, Model},
};

/// Where a product goes. Rows lie one after another.
pub(crate) enum Out<'a, N> {
    /// Activations, [`Number::stride`] apart.
    Store(&'a mut [N]),
    /// Instead of what is there, without gaps.
    Set(&'a mut [f32]),
    /// Added to what is there, without gaps.
    Add(&'a mut [f32]),
}

impl<N> Out<'_, N> {
    /// The same place once more.
    fn again(&mut self) -> Out<'_, N> {
        match self {
            Out::Store(out) => Out::Store(out),
            Out::Set(out) => Out::Set(out),
            Out::Add(out) => Out::Add(out),
        }
    }
}

/// One weight's gradient: `out` [left width, right width] += leftᵀ · right. Rows of both are [`Number::stride`] apart.
pub(crate) struct Gradient<'a, N> {
    pub(crate) left: &'a [N],
    pub(crate) left_width: usize,
    pub(crate) right: &'a [N],
    pub(crate) right_width: usize,
    pub(crate) out: &'a mut [f32],
}

/// A way of storing activations, and the products over them.
pub(crate) trait Number: Kept + Send + Sync + std::fmt::Debug {
    /// What products want beside the parameters, made anew when these have changed.
    type Packs: Default + Send + Sync + std::fmt::Debug;
    /// What gradients of weights want as room.
    type Room: Default + Send + Sync + std::fmt::Debug;

    /// Whether [`operand`](Self::operand) stores what it is given.
    const COPIES: bool;

    /// The name that records give the path.
    fn path() -> &'static str;

    /// How far apart rows of `width` lie.
    fn stride(width: usize) -> usize;

    /// Bytes of a right operand [depth, columns] as products want it.
    fn packed(depth: usize, columns: usize) -> usize;

    /// Makes the packs of all matrices of a model.
    fn pack(model: &Model, parameters: &[f32], packs: &mut Self::Packs);

    /// `x` [rows, inputs] · weightᵀ + bias, on this thread.
    fn forward(weight: Weight<Self>, x: &[Self], out: Out<Self>);

    /// `dy` [rows, outputs] · weight, on this thread.
    fn backward(weight: Weight<Self>, dy: &[Self], out: Out<Self>);

    /// Gradients of weights over the same rows, on all threads.
    fn gradients(jobs: Vec<Gradient<Self>>, room: &mut Self::Room);

    /// Bytes that packs and room take.
    fn bytes(packs: &Self::Packs, room: &Self::Room) -> usize;

    /// Stores rows of `width` that lie without gaps; what is behind the last column becomes 0.
    fn keep(rows: &[f32], width: usize, to: &mut [Self]);

    /// Stores numbers one after another.
    fn convert(numbers: &[f32], to: &mut [Self]);

    /// Reads the first `width` numbers of rows that are `stride` apart.
    fn gather(rows: &[Self], stride: usize, width: usize, to: &mut [f32]);

    /// A row as `f32`: as it is, or read into `room`. To be called in a kernel.
    fn read<'a>(row: &'a [Self], room: &'a mut [f32]) -> &'a [f32];

    /// Where a row is written as `f32`: in its place, or in `room`, from where [`finish`](Self::finish) stores it. To be called
    /// in a kernel.
    fn place<'a>(row: &'a mut [Self], room: &'a mut [f32]) -> &'a mut [f32];

    /// Stores what was written to [`place`](Self::place).
    fn finish(row: &mut [Self], room: &[f32]);

    /// Rows without gaps as an operand: as they are, or stored in `buffer`.
    fn operand<'a>(rows: &'a [f32], width: usize, buffer: &'a mut [Self]) -> &'a [Self];

    /// What [`operand`](Self::operand) gave for all rows, piece by piece, when `buffer` is all pieces' buffers.
    fn operands<'a>(rows: &'a [f32], buffer: &'a [Self]) -> &'a [Self];
}

/// A weight with what its product needs.
pub(crate) struct Weight<'a, N: Number> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) parameters: &'a [f32],
    pub(crate) packs: &'a N::Packs,
}
