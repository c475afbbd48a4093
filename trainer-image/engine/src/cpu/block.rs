//! One decoder block over packed sequences, forward and backward: `x₁ = x + attention(norm(x))`, `y = x₁ +
//! feed_forward(norm(x₁))`. Pure.
//!
//! Everything between two attentions is computed in chunks of rows that fit into the cache. The backward pass computes the
//! outputs of norms and activations again instead of keeping them.

use rayon::prelude::*;

use super::{
    activation::{Activation, ActivationBackward, activate, activation_backward},
    attention::{Sequences, attention, attention_backward},
    buffer::{Buffer, scratch},
    kernels::{add, add_columns},
    lora::{Layer, LoraContext},
    matrix::{Dtype, Gradient, Out, Weight},
    norm::{NormWeights, norm, norm_backward},
};
use crate::model::{Adapter, Block, BlockAdapters, Linear, Norm};

/// The parameters and shapes that a block is computed with.
pub(crate) struct Context<'a, N: Dtype> {
    pub(crate) sequences: Sequences<'a>,
    pub(crate) parameters: &'a [f32],
    pub(crate) packs: &'a N::Packs,
    pub(crate) activation: Activation,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width inside the feed-forward part.
    pub(crate) inner: usize,
    pub(crate) eps: f32,
    /// Rows of a chunk.
    pub(crate) chunk_rows: usize,
    /// The adapters, if only these are trained.
    pub(crate) lora: Option<LoraContext<'a, N>>,
}

#[allow(clippy::expl_impl_clone_on_copy, reason = "derived, it would require the packs to be `Copy`")]
impl<N: Dtype> Clone for Context<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: Dtype> Copy for Context<'_, N> {}

impl<'a, N: Dtype> Context<'a, N> {
    pub(crate) fn weight(&self, matrix: &'a Linear) -> Weight<'a, N> {
        Weight { matrix, parameters: self.parameters, packs: self.packs }
    }

    pub(crate) fn norm(&self, norm: &Norm) -> NormWeights<'a> {
        NormWeights::new(norm, self.parameters, self.eps)
    }

    /// Returns the sequences with the norms of a block.
    fn sequences(&self, block: &Block) -> Sequences<'a> {
        let heads = self.sequences.heads.of_block(block, self.parameters, self.eps);
        Sequences { heads, ..self.sequences }
    }

    /// Returns the width of a row's queries, and of its queries, keys and values.
    fn widths(&self) -> (usize, usize) {
        (self.sequences.heads.queries(), self.sequences.heads.all())
    }
}

/// Activations of a block that are saved for the backward pass.
#[derive(Debug, Default)]
pub(crate) struct Saved<N> {
    /// [rows, queries + keys + values]
    qkv: Buffer<N>,
    /// Output of attention [rows, queries].
    attn_out: Buffer<N>,
    /// x₁ [rows, hidden]
    residual: Buffer<f32>,
    /// Input of the activation: [rows, inner], or twice as wide.
    up: Buffer<N>,
}

impl<N: Dtype> Saved<N> {
    /// Resizes the buffers for `rows`.
    pub(crate) fn resize(&mut self, context: &Context<N>, rows: usize) {
        let (queries, all) = context.widths();
        self.qkv.resize(rows * N::stride(all));
        self.attn_out.resize(rows * N::stride(queries));
        self.residual.resize(rows * context.hidden);
        self.up.resize(rows * N::stride(context.activation.inputs(context.inner)));
    }

    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.attn_out.bytes() + self.residual.bytes() + self.up.bytes()
    }
}

/// The linear layers of a block with their adapters.
#[derive(Clone, Copy)]
struct Layers<'a> {
    qkv: Layer<'a>,
    output: Layer<'a>,
    up: Layer<'a>,
    down: Layer<'a>,
}

impl<'a> Layers<'a> {
    fn new(block: &'a Block, adapters: &'a BlockAdapters) -> Self {
        Self {
            qkv: Layer::new(&block.qkv, adapters.qkv.as_ref()),
            output: Layer::new(&block.output, adapters.output.as_ref()),
            up: Layer::new(&block.up, adapters.up.as_ref()),
            down: Layer::new(&block.down, adapters.down.as_ref()),
        }
    }
}

/// Computes `y` [rows, hidden] from `x`, and saves the activations that [`backward`] needs.
pub(crate) fn forward<N: Dtype>(
    context: Context<N>,
    (block, adapters): (&Block, &BlockAdapters),
    x: &[f32],
    y: &mut [f32],
    saved: &mut Saved<N>,
) {
    let layers = Layers::new(block, adapters);
    let Context { hidden, inner, chunk_rows, .. } = context;
    let (queries, all) = context.widths();
    let wide = N::stride(context.activation.inputs(inner));
    saved.resize(&context, x.len() / hidden);
    let Saved { qkv, attn_out, residual, up } = saved;
    let chunks = (qkv.par_chunks_mut(chunk_rows * N::stride(all)), x.par_chunks(chunk_rows * hidden));
    chunks.into_par_iter().enumerate().for_each(|(at, (qkv, x))| {
        let mut normed = scratch::<N>(x.len() / hidden * N::stride(hidden));
        norm(x, context.norm(&block.input_norm), &mut normed);
        layers.qkv.forward(context, at * chunk_rows, &normed, Out::Store(qkv));
    });
    attention(context.sequences(block), qkv, attn_out);
    let chunks = (
        residual.par_chunks_mut(chunk_rows * hidden),
        up.par_chunks_mut(chunk_rows * wide),
        y.par_chunks_mut(chunk_rows * hidden),
        x.par_chunks(chunk_rows * hidden),
        attn_out.par_chunks(chunk_rows * N::stride(queries)),
    );
    chunks.into_par_iter().enumerate().for_each(|(at, (residual, up, y, x, attn_out))| {
        let (start, rows) = (at * chunk_rows, x.len() / hidden);
        residual.copy_from_slice(x);
        layers.output.forward(context, start, attn_out, Out::Add(residual));
        let mut normed = scratch::<N>(rows * N::stride(hidden));
        norm(residual, context.norm(&block.inner_norm), &mut normed);
        layers.up.forward(context, start, &normed, Out::Store(up));
        let mut activated = scratch::<N>(rows * N::stride(inner));
        activate(context.activation, up, inner, &mut activated);
        y.copy_from_slice(residual);
        layers.down.forward(context, start, &activated, Out::Add(y));
    });
}

/// Buffers of the backward pass, shared by all blocks.
#[derive(Debug, Default)]
pub(crate) struct Workspace<N: Dtype> {
    /// Operands of the weight gradients, each [rows, …].
    normed: Buffer<N>,
    dy: Buffer<N>,
    dup: Buffer<N>,
    activated: Buffer<N>,
    dresidual: Buffer<N>,
    dattn_out: Buffer<N>,
    dqkv: Buffer<N>,
    /// The gradient by x₁, later by x [rows, hidden].
    dx: Buffer<f32>,
    /// Per chunk, the gradients of a norm.
    parts: Buffer<f32>,
    gradients: N::Workspace,
    /// Operands of the gradients of the adapters of qkv, output, up and down.
    adapters: [AdapterBuffers<N>; 4],
    /// The output of attention after dropout.
    dropped: Buffer<N>,
}

/// Operands of the gradients of an adapter, each [rows, targets · rank].
#[derive(Debug, Default)]
struct AdapterBuffers<N> {
    low: Buffer<N>,
    dlow: Buffer<N>,
}

/// The rows of [`AdapterBuffers`] that belong to a chunk.
struct AdapterChunk<'a, N> {
    low: &'a mut [N],
    dlow: &'a mut [N],
}

impl<N: Dtype> AdapterBuffers<N> {
    /// Resizes the buffers for `rows` and cuts them into chunks, which are empty without an adapter.
    fn chunks(&mut self, adapter: Option<&Adapter>, rows: usize, chunk_rows: usize) -> Vec<AdapterChunk<'_, N>> {
        let stride = adapter.map_or(0, |adapter| N::stride(adapter.a.outputs));
        self.low.resize(rows * stride);
        self.dlow.resize(rows * stride);
        let (mut low, mut dlow) = (&mut self.low[..], &mut self.dlow[..]);
        let counts = (0..rows).step_by(chunk_rows).map(|start| chunk_rows.min(rows - start));
        counts
            .map(|count| AdapterChunk { low: take(&mut low, count * stride), dlow: take(&mut dlow, count * stride) })
            .collect()
    }

    /// Returns the products of an adapter's gradients for its layer's input `x` after dropout and output gradient `dy`.
    fn jobs<'a>(
        &'a self,
        adapter: Option<&'a Adapter>,
        dy: &'a [N],
        x: &'a [N],
    ) -> Vec<(&'a Linear, &'a [N], &'a [N])> {
        let jobs = adapter.map(|adapter| [(&adapter.a, &self.dlow[..], x), (&adapter.b, dy, &self.low[..])]);
        jobs.into_iter().flatten().collect()
    }
}

impl<N: Dtype> Workspace<N> {
    fn resize(&mut self, context: &Context<N>, rows: usize) {
        let (queries, all) = context.widths();
        let hidden = rows * N::stride(context.hidden);
        self.normed.resize(hidden);
        if N::COPIES {
            self.dy.resize(hidden);
            self.dresidual.resize(hidden);
        }
        self.dup.resize(rows * N::stride(context.activation.inputs(context.inner)));
        self.activated.resize(rows * N::stride(context.inner));
        self.dattn_out.resize(rows * N::stride(queries));
        self.dqkv.resize(rows * N::stride(all));
        self.dx.resize(rows * context.hidden);
        self.parts.resize(rows.div_ceil(context.chunk_rows) * 2 * context.hidden);
    }

    /// Returns the bytes held.
    pub(crate) fn bytes(&self, packs: &N::Packs) -> usize {
        let numbers =
            [&self.normed, &self.dy, &self.dup, &self.activated, &self.dresidual, &self.dattn_out, &self.dqkv];
        let numbers: usize = numbers.iter().map(|buffer| buffer.bytes()).sum();
        let adapters: usize = self.adapters.iter().map(|buffers| buffers.low.bytes() + buffers.dlow.bytes()).sum();
        let adapters = adapters + self.dropped.bytes();
        numbers + adapters + self.dx.bytes() + self.parts.bytes() + N::bytes(packs, &self.gradients)
    }

    /// Adds the gradients of weights and biases over the same rows. A job is (layer, gradient of its output, its input).
    pub(crate) fn add_gradients(workspace: &mut N::Workspace, jobs: &[(&Linear, &[N], &[N])], gradients: &mut [f32]) {
        // Layers of a block lie in order, so that the vector can be split without a search.
        let mut sorted: Vec<&(&Linear, &[N], &[N])> = jobs.iter().collect();
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
        N::gradients(cut, workspace);
    }
}

/// Adds the sums over rows to the gradient of a bias.
fn add_bias<N: Dtype>(dy: &[N], width: usize, gradient: &mut [f32]) {
    const COLUMNS: usize = 64;
    let stride = N::stride(width);
    gradient.par_chunks_mut(COLUMNS).enumerate().for_each(|(at, sum)| add_columns(&dy[at * COLUMNS..], stride, sum));
}

/// Adds the gradients of a norm from all chunks.
pub(crate) fn add_norm(norm: &Norm, parts: &[f32], gradients: &mut [f32]) {
    let width = norm.weight.len();
    for part in parts.chunks_exact(2 * width) {
        add(&part[..width], &mut gradients[norm.weight.clone()]);
        if let Some(bias) = &norm.bias {
            add(&part[width..], &mut gradients[bias.clone()]);
        }
    }
}

/// Operands of one backward task between two attentions.
struct Chunk<'a, N> {
    dy: &'a [f32],
    residual: &'a [f32],
    up: &'a [N],
    dresidual: &'a mut [f32],
    normed: &'a mut [N],
    dup: &'a mut [N],
    activated: &'a mut [N],
    dattn_out: &'a mut [N],
    part: &'a mut [f32],
    dy_operand: &'a mut [N],
    dresidual_operand: &'a mut [N],
    /// First row in the batch.
    start: usize,
    attn_out: &'a [N],
    dropped: &'a mut [N],
    output: AdapterChunk<'a, N>,
    up_adapter: AdapterChunk<'a, N>,
    down: AdapterChunk<'a, N>,
}

/// Splits off the first `count` elements.
#[allow(clippy::mut_mut, reason = "the rest is left where the slice was")]
fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    rest.split_off_mut(..count).unwrap_or_default()
}

/// Replaces `dy` with the gradient by `x`, and adds the gradients of the trained weights to `gradients`: those of the adapters'
/// matrices, if only these are trained.
pub(crate) fn backward<N: Dtype>(
    context: Context<N>,
    (block, adapters): (&Block, &BlockAdapters),
    x: &[f32],
    saved: &Saved<N>,
    workspace: &mut Workspace<N>,
    dy: &mut Buffer<f32>,
    gradients: &mut [f32],
) {
    let Context { hidden, inner, chunk_rows, .. } = context;
    let (queries, all) = context.widths();
    let wide = N::stride(context.activation.inputs(inner));
    let layers = Layers::new(block, adapters);
    workspace.resize(&context, x.len() / hidden);
    let Workspace {
        adapters: [qkv_buffers, output_buffers, up_buffers, down_buffers],
        dropped,
        normed,
        dy: dy_stored,
        dup,
        activated,
        dresidual,
        dattn_out,
        dqkv,
        dx,
        parts,
        gradients: gradient_workspace,
    } = workspace;
    let Saved { qkv, attn_out, residual, up } = saved;
    let (narrow, copies) = (N::stride(hidden), if N::COPIES { N::stride(hidden) } else { 0 });
    parts.fill(0.0);
    let rows = x.len() / hidden;
    let (mut dx_rest, mut normed_rest, mut dup_rest, mut activated_rest) =
        (&mut dx[..], &mut normed[..], &mut dup[..], &mut activated[..]);
    let (mut dattn_out_rest, mut parts_rest) = (&mut dattn_out[..], &mut parts[..]);
    let (mut dy_rest, mut dresidual_rest) = (&mut dy_stored[..], &mut dresidual[..]);
    let attended = if adapters.output.is_some() { N::stride(queries) } else { 0 };
    dropped.resize(rows * attended);
    let mut dropped_rest = &mut dropped[..];
    let adapter_chunks = output_buffers
        .chunks(adapters.output.as_ref(), rows, chunk_rows)
        .into_iter()
        .zip(up_buffers.chunks(adapters.up.as_ref(), rows, chunk_rows))
        .zip(down_buffers.chunks(adapters.down.as_ref(), rows, chunk_rows));
    let chunks: Vec<_> = (0..rows)
        .step_by(chunk_rows)
        .zip(adapter_chunks)
        .map(|(start, ((output, up_adapter), down))| {
            let here = start..rows.min(start + chunk_rows);
            let count = here.len();
            Chunk {
                dy: &dy[here.start * hidden..here.end * hidden],
                residual: &residual[here.start * hidden..here.end * hidden],
                up: &up[here.start * wide..here.end * wide],
                dresidual: take(&mut dx_rest, count * hidden),
                normed: take(&mut normed_rest, count * narrow),
                dup: take(&mut dup_rest, count * wide),
                activated: take(&mut activated_rest, count * N::stride(inner)),
                dattn_out: take(&mut dattn_out_rest, count * N::stride(queries)),
                part: take(&mut parts_rest, 2 * hidden),
                dy_operand: take(&mut dy_rest, count * copies),
                dresidual_operand: take(&mut dresidual_rest, count * copies),
                start,
                attn_out: &attn_out[here.start * attended..here.end * attended],
                dropped: take(&mut dropped_rest, count * attended),
                output,
                up_adapter,
                down,
            }
        })
        .collect();
    chunks.into_par_iter().with_max_len(1).for_each(|chunk| {
        let Chunk {
            dy,
            residual,
            up,
            dresidual,
            normed,
            dup,
            activated,
            dattn_out,
            part,
            dy_operand,
            dresidual_operand,
            start,
            attn_out,
            dropped,
            output,
            up_adapter,
            down,
        } = chunk;
        let rows = dy.len() / hidden;
        let dy_stored = N::operand(dy, hidden, dy_operand);
        let mut dactivated = scratch::<N>(rows * N::stride(inner));
        layers.down.backward(context, start, dy_stored, down.dlow, Out::Store(&mut dactivated));
        activation_backward(ActivationBackward {
            activation: context.activation,
            width: inner,
            x: up,
            dy: &dactivated,
            y: activated,
            dx: dup,
        });
        layers.down.operands(context, start, activated, down.low);
        let mut dnormed = scratch::<f32>(dy.len());
        layers.up.backward(context, start, dup, up_adapter.dlow, Out::Set(&mut dnormed));
        let weights = context.norm(&block.inner_norm);
        norm(residual, weights, normed);
        dresidual.copy_from_slice(dy);
        norm_backward(residual, weights, &dnormed, dresidual, part);
        layers.up.operands(context, start, normed, up_adapter.low);
        let dresidual = N::operand(dresidual, hidden, dresidual_operand);
        layers.output.backward(context, start, dresidual, output.dlow, Out::Store(dattn_out));
        dropped.copy_from_slice(attn_out);
        layers.output.operands(context, start, dropped, output.low);
    });
    let (dresidual, dy_stored) = (N::operands(dx, dresidual), N::operands(dy, dy_stored));
    if context.lora.is_none() {
        add_norm(&block.inner_norm, parts, gradients);
        let jobs: [(&Linear, &[N], &[N]); 3] =
            [(&block.output, dresidual, attn_out), (&block.up, dup, normed), (&block.down, dy_stored, activated)];
        Workspace::add_gradients(gradient_workspace, &jobs, gradients);
    } else {
        let jobs = [
            output_buffers.jobs(adapters.output.as_ref(), dresidual, dropped),
            up_buffers.jobs(adapters.up.as_ref(), dup, normed),
            down_buffers.jobs(adapters.down.as_ref(), dy_stored, activated),
        ];
        Workspace::add_gradients(gradient_workspace, &jobs.concat(), gradients);
    }
    let norm_parts = attention_backward(context.sequences(block), qkv, dattn_out, dqkv);
    if let (Some([query_norm, key_norm]), None) = (&block.qk_norm, context.lora) {
        let width = 2 * context.sequences.heads.width;
        for parts in norm_parts.chunks_exact(2 * width) {
            add_norm(query_norm, &parts[..width], gradients);
            add_norm(key_norm, &parts[width..], gradients);
        }
    }
    parts.fill(0.0);
    let chunks = (
        dx.par_chunks_mut(chunk_rows * hidden),
        x.par_chunks(chunk_rows * hidden),
        dqkv.par_chunks(chunk_rows * N::stride(all)),
        normed.par_chunks_mut(chunk_rows * narrow),
        parts.par_chunks_mut(2 * hidden),
        qkv_buffers.chunks(adapters.qkv.as_ref(), rows, chunk_rows),
    );
    chunks.into_par_iter().enumerate().for_each(|(at, (dx, x, dqkv, normed, part, adapter))| {
        let weights = context.norm(&block.input_norm);
        norm(x, weights, normed);
        let mut dnormed = scratch::<f32>(x.len());
        layers.qkv.backward(context, at * chunk_rows, dqkv, adapter.dlow, Out::Set(&mut dnormed));
        norm_backward(x, weights, &dnormed, dx, part);
        layers.qkv.operands(context, at * chunk_rows, normed, adapter.low);
    });
    if context.lora.is_none() {
        add_norm(&block.input_norm, parts, gradients);
        Workspace::add_gradients(gradient_workspace, &[(&block.qkv, dqkv, normed)], gradients);
    } else {
        let jobs = qkv_buffers.jobs(adapters.qkv.as_ref(), dqkv, normed);
        Workspace::add_gradients(gradient_workspace, &jobs, gradients);
    }
    std::mem::swap(dy, dx);
}
