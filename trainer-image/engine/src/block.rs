//! One decoder block over packed sequences, forwards and backwards:
//! `x₁ = x + attention(norm(x))`, `y = x₁ + feed(norm(x₁))`. Pure.
//!
//! What lies between two attentions is computed piece by piece, so that it stays in the processor's cache. Norms and what a
//! bend gives are computed again on the way back rather than kept.

use rayon::prelude::*;

use super::{
    attention::{Sequences, attention, attention_backward},
    buffer::{Buffer, scratch},
    kernels::{Bend, BendBackward, NormWeights, add, add_columns, bend, bend_backward, norm, norm_backward},
    matrix::{Gradient, Number, Out, Weight},
    model::{Block, Matrix, Norm},
};

/// What a block is computed with.
pub(crate) struct Context<'a, N: Number> {
    pub(crate) sequences: Sequences<'a>,
    pub(crate) parameters: &'a [f32],
    pub(crate) packs: &'a N::Packs,
    pub(crate) bend: Bend,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width inside the feed-forward part.
    pub(crate) inner: usize,
    pub(crate) eps: f32,
    /// Rows of a piece of work.
    pub(crate) piece: usize,
}

#[allow(clippy::expl_impl_clone_on_copy, reason = "derived, it would ask the packs to be `Copy`, too")]
impl<N: Number> Clone for Context<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: Number> Copy for Context<'_, N> {}

impl<'a, N: Number> Context<'a, N> {
    pub(crate) fn weight(&self, matrix: &'a Matrix) -> Weight<'a, N> {
        Weight { matrix, parameters: self.parameters, packs: self.packs }
    }

    pub(crate) fn norm(&self, norm: &Norm) -> NormWeights<'a> {
        let bias = norm.bias.clone().map(|bias| &self.parameters[bias]);
        NormWeights { weight: &self.parameters[norm.weight.clone()], bias, eps: self.eps }
    }

    /// Width of the queries of a row, and of its queries, keys and values.
    fn widths(&self) -> (usize, usize) {
        (self.sequences.heads * self.sequences.width, self.sequences.all())
    }
}

/// Rows of a piece of work among `rows`: few enough to stay in the processor's cache, and enough pieces to share.
pub(crate) fn piece(rows: usize) -> usize {
    rows.div_ceil(8).next_multiple_of(32).clamp(32, 256)
}

/// What the way back of a block needs of the way there.
#[derive(Debug, Default)]
pub(crate) struct Saved<N> {
    /// [rows, queries + keys + values]
    qkv: Buffer<N>,
    /// What attention gathered [rows, queries].
    mixed: Buffer<N>,
    /// x₁ [rows, hidden]
    middle: Buffer<f32>,
    /// What is bent [rows, inner], or twice as wide.
    up: Buffer<N>,
}

impl<N: Number> Saved<N> {
    /// Makes room for `rows`.
    pub(crate) fn resize(&mut self, context: &Context<N>, rows: usize) {
        let (queries, all) = context.widths();
        self.qkv.resize(rows * N::stride(all));
        self.mixed.resize(rows * N::stride(queries));
        self.middle.resize(rows * context.hidden);
        self.up.resize(rows * N::stride(context.bend.inputs(context.inner)));
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.mixed.bytes() + self.middle.bytes() + self.up.bytes()
    }
}

/// `y` [rows, hidden] of `x`, and what [`backward`] needs.
pub(crate) fn forward<N: Number>(context: Context<N>, block: &Block, x: &[f32], y: &mut [f32], saved: &mut Saved<N>) {
    let Context { hidden, inner, piece, .. } = context;
    let (queries, all) = context.widths();
    let wide = N::stride(context.bend.inputs(inner));
    saved.resize(&context, x.len() / hidden);
    let Saved { qkv, mixed, middle, up } = saved;
    (qkv.par_chunks_mut(piece * N::stride(all)), x.par_chunks(piece * hidden)).into_par_iter().for_each(|(qkv, x)| {
        let mut normed = scratch::<N>(x.len() / hidden * N::stride(hidden));
        norm(x, context.norm(&block.input_norm), &mut normed);
        N::forward(context.weight(&block.qkv), &normed, Out::Store(qkv));
    });
    attention(context.sequences, qkv, mixed);
    let pieces = (
        middle.par_chunks_mut(piece * hidden),
        up.par_chunks_mut(piece * wide),
        y.par_chunks_mut(piece * hidden),
        x.par_chunks(piece * hidden),
        mixed.par_chunks(piece * N::stride(queries)),
    );
    pieces.into_par_iter().for_each(|(middle, up, y, x, mixed)| {
        let rows = x.len() / hidden;
        middle.copy_from_slice(x);
        N::forward(context.weight(&block.output), mixed, Out::Add(middle));
        let mut normed = scratch::<N>(rows * N::stride(hidden));
        norm(middle, context.norm(&block.inner_norm), &mut normed);
        N::forward(context.weight(&block.up), &normed, Out::Store(up));
        let mut bent = scratch::<N>(rows * N::stride(inner));
        bend(context.bend, up, inner, &mut bent);
        y.copy_from_slice(middle);
        N::forward(context.weight(&block.down), &bent, Out::Add(y));
    });
}

/// Room for the way back of one block at a time.
#[derive(Debug, Default)]
pub(crate) struct Room<N: Number> {
    /// Operands of gradients, each [rows, …].
    normed: Buffer<N>,
    dy: Buffer<N>,
    dup: Buffer<N>,
    bent: Buffer<N>,
    dmiddle: Buffer<N>,
    dmixed: Buffer<N>,
    dqkv: Buffer<N>,
    /// The gradient by x₁, and then by x [rows, hidden].
    dx: Buffer<f32>,
    /// Of each piece, the gradients of a norm.
    parts: Buffer<f32>,
    gradients: N::Room,
}

impl<N: Number> Room<N> {
    fn resize(&mut self, context: &Context<N>, rows: usize) {
        let (queries, all) = context.widths();
        let hidden = rows * N::stride(context.hidden);
        self.normed.resize(hidden);
        if N::COPIES {
            self.dy.resize(hidden);
            self.dmiddle.resize(hidden);
        }
        self.dup.resize(rows * N::stride(context.bend.inputs(context.inner)));
        self.bent.resize(rows * N::stride(context.inner));
        self.dmixed.resize(rows * N::stride(queries));
        self.dqkv.resize(rows * N::stride(all));
        self.dx.resize(rows * context.hidden);
        self.parts.resize(rows.div_ceil(context.piece) * 2 * context.hidden);
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self, packs: &N::Packs) -> usize {
        let numbers = [&self.normed, &self.dy, &self.dup, &self.bent, &self.dmiddle, &self.dmixed, &self.dqkv];
        let numbers: usize = numbers.iter().map(|buffer| buffer.bytes()).sum();
        numbers + self.dx.bytes() + self.parts.bytes() + N::bytes(packs, &self.gradients)
    }

    /// Gradients of weights over the same rows, and of their biases: the matrix, the gradient by what it gives, and what it
    /// takes.
    pub(crate) fn add_gradients(room: &mut N::Room, jobs: &[(&Matrix, &[N], &[N])], gradients: &mut [f32]) {
        // The matrices of a block lie in their order, so that cutting the vector needs no search.
        let mut sorted: Vec<&(&Matrix, &[N], &[N])> = jobs.iter().collect();
        sorted.sort_by_key(|(matrix, ..)| matrix.weight.start);
        for (matrix, dy, _) in &sorted {
            if let Some(bias) = &matrix.bias {
                add_bias(dy, matrix.outputs, &mut gradients[bias.clone()]);
            }
        }
        let (mut rest, mut start) = (gradients, 0);
        let mut cut = Vec::with_capacity(sorted.len());
        for (matrix, dy, x) in sorted {
            let (_, tail) = rest.split_at_mut(matrix.weight.start - start);
            let (out, tail) = tail.split_at_mut(matrix.weight.len());
            (rest, start) = (tail, matrix.weight.end);
            let (outputs, inputs) = (matrix.outputs, matrix.inputs);
            cut.push(if matrix.inputs_first {
                Gradient { left: x, left_width: inputs, right: dy, right_width: outputs, out }
            } else {
                Gradient { left: dy, left_width: outputs, right: x, right_width: inputs, out }
            });
        }
        N::gradients(cut, room);
    }
}

/// Adds the sums over rows to a bias' gradient.
fn add_bias<N: Number>(dy: &[N], width: usize, gradient: &mut [f32]) {
    const COLUMNS: usize = 64;
    let stride = N::stride(width);
    gradient.par_chunks_mut(COLUMNS).enumerate().for_each(|(at, sum)| add_columns(&dy[at * COLUMNS..], stride, sum));
}

/// Adds the gradients of a norm, of which every piece has its own.
pub(crate) fn add_norm(norm: &Norm, parts: &[f32], gradients: &mut [f32]) {
    let width = norm.weight.len();
    for part in parts.chunks_exact(2 * width) {
        add(&part[..width], &mut gradients[norm.weight.clone()]);
        if let Some(bias) = &norm.bias {
            add(&part[width..], &mut gradients[bias.clone()]);
        }
    }
}

/// What one task of the way back reads and writes between two attentions.
struct Piece<'a, N> {
    dy: &'a [f32],
    middle: &'a [f32],
    up: &'a [N],
    dmiddle: &'a mut [f32],
    normed: &'a mut [N],
    dup: &'a mut [N],
    bent: &'a mut [N],
    dmixed: &'a mut [N],
    part: &'a mut [f32],
    dy_room: &'a mut [N],
    dmiddle_room: &'a mut [N],
}

/// Cuts the first `count` numbers off.
#[allow(clippy::mut_mut, reason = "the rest is left where the slice was")]
fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    rest.split_off_mut(..count).unwrap_or_default()
}

/// Replaces `dy` by the gradient by `x`, and adds those by the weights to `gradients`.
pub(crate) fn backward<N: Number>(
    context: Context<N>,
    block: &Block,
    x: &[f32],
    saved: &Saved<N>,
    room: &mut Room<N>,
    dy: &mut Buffer<f32>,
    gradients: &mut [f32],
) {
    let Context { hidden, inner, piece, .. } = context;
    let (queries, all) = context.widths();
    let wide = N::stride(context.bend.inputs(inner));
    room.resize(&context, x.len() / hidden);
    let Room { normed, dy: dy_stored, dup, bent, dmiddle, dmixed, dqkv, dx, parts, gradients: gradient_room } = room;
    let Saved { qkv, mixed, middle, up } = saved;
    let (narrow, copies) = (N::stride(hidden), if N::COPIES { N::stride(hidden) } else { 0 });
    parts.fill(0.0);
    let rows = x.len() / hidden;
    let (mut dx_rest, mut normed_rest, mut dup_rest, mut bent_rest) =
        (&mut dx[..], &mut normed[..], &mut dup[..], &mut bent[..]);
    let (mut dmixed_rest, mut parts_rest) = (&mut dmixed[..], &mut parts[..]);
    let (mut dy_rest, mut dmiddle_rest) = (&mut dy_stored[..], &mut dmiddle[..]);
    let pieces: Vec<_> = (0..rows)
        .step_by(piece)
        .map(|start| {
            let here = start..rows.min(start + piece);
            let count = here.len();
            Piece {
                dy: &dy[here.start * hidden..here.end * hidden],
                middle: &middle[here.start * hidden..here.end * hidden],
                up: &up[here.start * wide..here.end * wide],
                dmiddle: take(&mut dx_rest, count * hidden),
                normed: take(&mut normed_rest, count * narrow),
                dup: take(&mut dup_rest, count * wide),
                bent: take(&mut bent_rest, count * N::stride(inner)),
                dmixed: take(&mut dmixed_rest, count * N::stride(queries)),
                part: take(&mut parts_rest, 2 * hidden),
                dy_room: take(&mut dy_rest, count * copies),
                dmiddle_room: take(&mut dmiddle_rest, count * copies),
            }
        })
        .collect();
    pieces.into_par_iter().with_max_len(1).for_each(|piece| {
        let Piece { dy, middle, up, dmiddle, normed, dup, bent, dmixed, part, dy_room, dmiddle_room } = piece;
        let rows = dy.len() / hidden;
        let dy_stored = N::operand(dy, hidden, dy_room);
        let mut dbent = scratch::<N>(rows * N::stride(inner));
        N::backward(context.weight(&block.down), dy_stored, Out::Store(&mut dbent));
        bend_backward(BendBackward { bend: context.bend, width: inner, x: up, dy: &dbent, y: bent, dx: dup });
        let mut dnormed = scratch::<f32>(dy.len());
        N::backward(context.weight(&block.up), dup, Out::Set(&mut dnormed));
        let weights = context.norm(&block.inner_norm);
        norm(middle, weights, normed);
        dmiddle.copy_from_slice(dy);
        norm_backward(middle, weights, &dnormed, dmiddle, part);
        let dmiddle = N::operand(dmiddle, hidden, dmiddle_room);
        N::backward(context.weight(&block.output), dmiddle, Out::Store(dmixed));
    });
    add_norm(&block.inner_norm, parts, gradients);
    let jobs: [(&Matrix, &[N], &[N]); 3] = [
        (&block.output, N::operands(dx, dmiddle), mixed),
        (&block.up, dup, normed),
        (&block.down, N::operands(dy, dy_stored), bent),
    ];
    Room::add_gradients(gradient_room, &jobs, gradients);
    attention_backward(context.sequences, qkv, dmixed, dqkv);
    parts.fill(0.0);
    let pieces = (
        dx.par_chunks_mut(piece * hidden),
        x.par_chunks(piece * hidden),
        dqkv.par_chunks(piece * N::stride(all)),
        normed.par_chunks_mut(piece * narrow),
        parts.par_chunks_mut(2 * hidden),
    );
    pieces.into_par_iter().for_each(|(dx, x, dqkv, normed, part)| {
        let weights = context.norm(&block.input_norm);
        norm(x, weights, normed);
        let mut dnormed = scratch::<f32>(x.len());
        N::backward(context.weight(&block.qkv), dqkv, Out::Set(&mut dnormed));
        norm_backward(x, weights, &dnormed, dx, part);
    });
    add_norm(&block.input_norm, parts, gradients);
    Room::add_gradients(gradient_room, &[(&block.qkv, dqkv, normed)], gradients);
    std::mem::swap(dy, dx);
}
