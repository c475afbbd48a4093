//! Fused causal attention over packed sequences, forward and backward. Pure.
//!
//! Rows hold queries, keys and values side by side; sequences lie one after another without padding. Queries are processed
//! in tiles of eight, so that their scores stay in the L1 cache and memory does not grow with the square of a sequence. A
//! task is one key-value head of one sequence with all query heads that share it. RoPE rotates the first half of a head
//! against the second, as in Llama.

use std::{marker::PhantomData, ops::Range};

use pulp::Simd;
use rayon::prelude::*;

use super::{
    buffer::{Scratch, scratch},
    dispatch::dispatched,
    kernels::{add, dot, exponentials, scale, softmax_backward},
    matrix::Dtype,
    norm::{NormWeights, norm, norm_backward},
};
use crate::{ModelConfig, model::Block};

/// The cosines and sines of rotary positions: [positions, width / 2] each.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// Computes the tables of a model; `None` if its positions are learned.
    pub(crate) fn of(config: &ModelConfig) -> Option<Self> {
        let frequencies = config.inverse_frequencies();
        let angles = (0..config.max_position_embeddings)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        (!frequencies.is_empty()).then_some(Self { cos, sin, half: config.head_dim / 2 })
    }

    /// Rotates one head at `position` and multiplies it by `scale`. `direction` is 1, or −1 for the inverse rotation.
    #[inline(always)]
    pub(crate) fn apply_rope(&self, head: &mut [f32], position: usize, scale: f32, direction: f32) {
        let at = position * self.half..(position + 1) * self.half;
        let (first, second) = head.split_at_mut(self.half);
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        let (first, second, sin) = (&mut first[..cos.len()], &mut second[..cos.len()], &sin[..cos.len()]);
        for i in 0..cos.len() {
            let (a, b, cos, sin) = (first[i], second[i], scale * cos[i], scale * direction * sin[i]);
            first[i] = a * cos - b * sin;
            second[i] = b * cos + a * sin;
        }
    }
}

/// The shape of attention: its heads, positions and norms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape<'a> {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key-value heads; each serves the same number of query heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) width: usize,
    /// Tables of the rotary positions, if the model has them.
    pub(crate) rotary: Option<&'a Rotary>,
    /// The norms of each head of queries and keys, if the model has them.
    pub(crate) norms: Option<[NormWeights<'a>; 2]>,
}

/// The shape of the attention over a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences<'a> {
    /// The first row of each sequence, then the number of rows.
    pub(crate) cu_seqlens: &'a [usize],
    /// The number of rows before the first sequence. They precede the rows of every sequence.
    pub(crate) prefix: usize,
    pub(crate) heads: AttentionShape<'a>,
}

impl<'a> AttentionShape<'a> {
    /// Returns the shape for a model, without norms.
    pub(crate) fn new(config: &ModelConfig, rotary: Option<&'a Rotary>) -> Self {
        let (heads, kv_heads, width) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        Self { heads, kv_heads, width, rotary, norms: None }
    }

    /// Adds the norms of a block.
    pub(crate) fn of_block(self, block: &Block, parameters: &'a [f32], eps: f32) -> Self {
        let norms =
            block.qk_norm.as_ref().map(|norms| norms.each_ref().map(|norm| NormWeights::new(norm, parameters, eps)));
        Self { norms, ..self }
    }

    /// Width of the queries of a row.
    pub(crate) fn queries(&self) -> usize {
        self.heads * self.width
    }

    /// Width of the queries, keys and values of a row.
    pub(crate) fn all(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
    }

    /// Reads the keys at column `column` of the rows `qkv`, which begin at `position`, normalizes and rotates them.
    pub(crate) fn keys<N: Dtype>(&self, qkv: &[N], column: usize, position: usize, keys: &mut [f32]) {
        N::gather(&qkv[column..], N::stride(self.all()), self.width, keys);
        normalize(self.norms.map(|norms| norms[1]), keys);
        apply_rope(self.rotary, keys, Rope { width: self.width, position, step: 1, scale: 1.0, direction: 1.0 });
    }

    /// Reads the queries at column `column` of the rows `qkv` of a whole sequence, normalizes, rotates and scales them.
    fn query_rows<N: Dtype>(&self, qkv: &[N], column: usize, queries: &mut [f32]) {
        N::gather(&qkv[column..], N::stride(self.all()), self.width, queries);
        normalize(self.norms.map(|norms| norms[0]), queries);
        let scale = 1.0 / (self.width as f32).sqrt();
        apply_rope(self.rotary, queries, Rope { width: self.width, position: 0, step: 1, scale, direction: 1.0 });
    }

    /// Reads adjacent query heads of one row at `position`, normalizes, rotates and scales them.
    pub(crate) fn query_group<N: Dtype>(&self, row: &[N], position: usize, queries: &mut [f32]) {
        N::gather(row, self.width, self.width, queries);
        normalize(self.norms.map(|norms| norms[0]), queries);
        let scale = 1.0 / (self.width as f32).sqrt();
        apply_rope(self.rotary, queries, Rope { width: self.width, position, step: 0, scale, direction: 1.0 });
    }
}

impl Sequences<'_> {
    /// Returns the tasks: the rows of a sequence and a key-value head. The longest sequences come first to balance the
    /// threads.
    fn tasks(&self) -> Vec<(Range<usize>, usize)> {
        let mut rows: Vec<Range<usize>> =
            self.cu_seqlens.windows(2).map(|bounds| bounds[0]..bounds[1]).filter(|rows| !rows.is_empty()).collect();
        rows.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
        rows.into_iter().flat_map(|rows| (0..self.heads.kv_heads).map(move |head| (rows.clone(), head))).collect()
    }
}

/// Rows of a matrix whose columns several tasks write concurrently.
pub(super) struct DisjointRows<'a, N> {
    data: *mut N,
    length: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [N]>,
}

// SAFETY: this is a mutable slice whose parts `row` hands out; the contract of `row` keeps the tasks disjoint.
#[allow(unsafe_code)]
unsafe impl<N: Send> Sync for DisjointRows<'_, N> {}

impl<'a, N> DisjointRows<'a, N> {
    pub(super) fn new(data: &'a mut [N], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), length: data.len(), stride, lifetime: PhantomData }
    }

    /// Returns some columns of a row.
    ///
    /// # Safety
    /// No other reference to these columns of this row exists meanwhile.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [N] {
        assert!(columns.start <= columns.end && columns.end <= self.stride && (row + 1) * self.stride <= self.length);
        // SAFETY: the assertion keeps the range inside the slice; the caller keeps it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + columns.start), columns.len()) }
    }
}

/// The rows of a batch when every sequence has its own copy of the rows that all share.
struct Unshared {
    /// For each row, its row in the batch.
    rows: Vec<usize>,
    cu_seqlens: Vec<usize>,
}

impl Unshared {
    fn of(sequences: Sequences) -> Self {
        let (mut rows, mut cu_seqlens) = (Vec::new(), vec![0]);
        for bounds in sequences.cu_seqlens.windows(2) {
            rows.extend((0..sequences.prefix).chain(bounds[0]..bounds[1]));
            cu_seqlens.push(rows.len());
        }
        Self { rows, cu_seqlens }
    }

    fn sequences<'a>(&'a self, heads: AttentionShape<'a>) -> Sequences<'a> {
        Sequences { cu_seqlens: &self.cu_seqlens, prefix: 0, heads }
    }

    /// Copies rows of the batch, which are `stride` apart.
    fn spread<N: Dtype>(&self, from: &[N], stride: usize) -> Scratch<N> {
        let mut to = scratch::<N>(self.rows.len() * stride);
        to.par_chunks_exact_mut(stride).zip(&self.rows).for_each(|(to, row)| {
            to.copy_from_slice(&from[row * stride..][..stride]);
        });
        to
    }
}

/// Computes `out` [rows, queries] from `qkv` [rows, queries + keys + values]. Leaves the padding of the rows unchanged.
pub(crate) fn attention<N: Dtype>(sequences: Sequences, qkv: &[N], out: &mut [N]) {
    if sequences.prefix == 0 {
        return attention_of_sequences(sequences, qkv, out);
    }
    let (heads, unshared) = (sequences.heads, Unshared::of(sequences));
    let (queries, narrow) = (heads.queries(), N::stride(heads.queries()));
    let spread_qkv = unshared.spread(qkv, N::stride(heads.all()));
    let mut spread_out = scratch::<N>(unshared.rows.len() * narrow);
    attention_of_sequences(unshared.sequences(heads), &spread_qkv, &mut spread_out);
    // The copies of a shared row have the same bits.
    for (row, from) in unshared.rows.iter().zip(spread_out.chunks_exact(narrow)) {
        out[row * narrow..][..queries].copy_from_slice(&from[..queries]);
    }
}

/// Computes [`attention`] for sequences that share no rows.
fn attention_of_sequences<N: Dtype>(sequences: Sequences, qkv: &[N], out: &mut [N]) {
    let heads = sequences.heads;
    let width = heads.width;
    let out = DisjointRows::new(out, N::stride(heads.queries()));
    sequences.tasks().into_par_iter().with_max_len(1).for_each(|(rows, kv_head)| {
        let mut task = Task::new(width, rows.len());
        task.keys_and_values(&heads, qkv, rows.start, kv_head);
        let mut stored = scratch::<N>(rows.len() * width);
        let group = heads.heads / heads.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            task.queries(&heads, qkv, rows.start, head);
            task.run(width, false);
            N::convert(&task.attn_out[..stored.len()], &mut stored);
            for (row, stored) in rows.clone().zip(stored.chunks_exact(width)) {
                // SAFETY: only this task writes this sequence's rows and this head's columns.
                #[allow(unsafe_code)]
                let out = unsafe { out.row(row, head * width..(head + 1) * width) };
                out.copy_from_slice(stored);
            }
        }
    });
}

/// Computes the gradient of [`attention`] by `qkv` into `dqkv`. Returns the gradients of the norms of queries and keys, if there
/// are any: for each task, in a fixed order, [queries, keys] of [weight, bias] each.
pub(crate) fn attention_backward<N: Dtype>(sequences: Sequences, qkv: &[N], dout: &[N], dqkv: &mut [N]) -> Vec<f32> {
    if sequences.prefix == 0 {
        return backward_of_sequences(sequences, qkv, dout, dqkv);
    }
    let (heads, prefix, unshared) = (sequences.heads, sequences.prefix, Unshared::of(sequences));
    let (all, wide, narrow) = (heads.all(), N::stride(heads.all()), N::stride(heads.queries()));
    let spread_qkv = unshared.spread(qkv, wide);
    let mut spread_dout = unshared.spread(dout, narrow);
    // The first sequence has the gradients of the shared rows' own outputs.
    let copies = unshared.cu_seqlens.iter().take(sequences.cu_seqlens.len() - 1);
    for start in copies.clone().skip(1) {
        spread_dout[start * narrow..(start + prefix) * narrow].fill(N::default());
    }
    let mut spread_dqkv = scratch::<N>(spread_qkv.len());
    let parts = backward_of_sequences(unshared.sequences(heads), &spread_qkv, &spread_dout, &mut spread_dqkv);
    let own = unshared.rows.iter().zip(spread_dqkv.chunks_exact(wide)).filter(|(row, _)| **row >= prefix);
    for (row, from) in own {
        dqkv[row * wide..][..all].copy_from_slice(&from[..all]);
    }
    let (mut sum, mut copy) = (scratch::<f32>(prefix * all), scratch::<f32>(prefix * all));
    sum.fill(0.0);
    for start in copies {
        N::gather(&spread_dqkv[start * wide..(start + prefix) * wide], wide, all, &mut copy);
        add(&copy, &mut sum);
    }
    for (sum, dqkv) in sum.chunks_exact(all).zip(dqkv.chunks_exact_mut(wide)) {
        N::convert(sum, &mut dqkv[..all]);
    }
    parts
}

/// Computes [`attention_backward`] for sequences that share no rows.
fn backward_of_sequences<N: Dtype>(sequences: Sequences, qkv: &[N], dout: &[N], dqkv: &mut [N]) -> Vec<f32> {
    let heads = sequences.heads;
    let (queries, width) = (heads.queries(), heads.width);
    let values = queries + heads.kv_heads * width;
    let (stride, dout_stride) = (N::stride(heads.all()), N::stride(queries));
    let dqkv = DisjointRows::new(dqkv, stride);
    let tasks = sequences.tasks();
    let part = if heads.norms.is_some() { 4 * width } else { 0 };
    let mut parts = vec![0.0; tasks.len() * part];
    let mut rest = parts.as_mut_slice();
    let tasks: Vec<_> = tasks.into_iter().map(|task| (task, rest.split_off_mut(..part).unwrap_or_default())).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|((rows, kv_head), part)| {
        let (query_part, key_part) = part.split_at_mut(part.len() / 2);
        let mut task = Task::new(width, rows.len());
        task.keys_and_values(&heads, qkv, rows.start, kv_head);
        task.clear_gradients_of_keys(width);
        let used = rows.len() * width;
        let mut stored = scratch::<N>(used);
        let mut put = |first: usize, numbers: &[f32]| {
            N::convert(numbers, &mut stored);
            for (row, stored) in rows.clone().zip(stored.chunks_exact(width)) {
                // SAFETY: only this task writes this sequence's rows and the columns of this key-value head and of the query
                // heads that share it.
                #[allow(unsafe_code)]
                let out = unsafe { dqkv.row(row, first..first + width) };
                out.copy_from_slice(stored);
            }
        };
        let raw = |column: usize| &qkv[rows.start * stride + column..];
        let group = heads.heads / heads.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            task.queries(&heads, qkv, rows.start, head);
            let dout = &dout[rows.start * dout_stride + head * width..];
            N::gather(dout, dout_stride, width, &mut task.dattn_out[..used]);
            task.run(width, true);
            let scale = 1.0 / (width as f32).sqrt();
            let dquery = &mut task.dquery[..used];
            apply_rope(heads.rotary, dquery, Rope { width, position: 0, step: 1, scale, direction: -1.0 });
            if let Some([norm, _]) = heads.norms {
                normalize_backward(norm, raw(head * width), stride, dquery, query_part);
            }
            put(head * width, dquery);
        }
        let (dkey, key) = (&mut task.dkey[..used], queries + kv_head * width);
        apply_rope(heads.rotary, dkey, Rope { width, position: 0, step: 1, scale: 1.0, direction: -1.0 });
        if let Some([_, norm]) = heads.norms {
            normalize_backward(norm, raw(key), stride, dkey, key_part);
        }
        put(key, dkey);
        put(values + kv_head * width, &task.dvalue[..used]);
    });
    parts
}

/// Normalizes the rows of a head in place, if there is a norm.
fn normalize(weights: Option<NormWeights>, rows: &mut [f32]) {
    if let Some(weights) = weights {
        let mut x = scratch::<f32>(rows.len());
        x.copy_from_slice(rows);
        norm(&x, weights, rows);
    }
}

/// Replaces the gradient by the normalized rows of a head with the gradient by the rows, which are `stride` apart in `rows`. Adds
/// the gradient of the norm to `gradient`.
fn normalize_backward<N: Dtype>(weights: NormWeights, rows: &[N], stride: usize, dx: &mut [f32], gradient: &mut [f32]) {
    let (mut x, mut dy) = (scratch::<f32>(dx.len()), scratch::<f32>(dx.len()));
    N::gather(rows, stride, weights.weight.len(), &mut x);
    dy.copy_from_slice(dx);
    dx.fill(0.0);
    norm_backward(&x, weights, &dy, dx, gradient);
}

/// A rotation of rows of `width`.
#[derive(Clone, Copy)]
struct Rope {
    width: usize,
    /// Position of the first row.
    position: usize,
    /// Distance between the positions of consecutive rows.
    step: usize,
    scale: f32,
    /// 1, or −1 for the inverse rotation.
    direction: f32,
}

/// Rotates the rows of a head by their positions and scales them.
fn apply_rope(rotary: Option<&Rotary>, rows: &mut [f32], rope: Rope) {
    apply_rope_dispatched(rotary, rows, rope);
}

dispatched!(apply_rope_dispatched<'a>(rotary: Option<&'a Rotary>, rows: &'a mut [f32], rope: Rope) = apply_rope_rows);

#[inline(always)]
fn apply_rope_rows<S: Simd>(_: S, rotary: Option<&Rotary>, rows: &mut [f32], rope: Rope) {
    let Rope { width, position, step, scale, direction } = rope;
    match rotary {
        Some(rotary) => {
            for (at, row) in rows.chunks_exact_mut(width).enumerate() {
                rotary.apply_rope(row, position + at * step, scale, direction);
            }
        }
        None => rows.iter_mut().for_each(|x| *x *= scale),
    }
}

/// Query rows per tile.
const QUERIES: usize = 8;
/// Rows are padded to a multiple of this: of a tile and of every processor's register.
const PADDED: usize = 16;

/// The buffers of a task. Rows are padded with zeros, so that kernels need no special cases.
struct Task {
    rows: usize,
    /// [padded, width], rotated and scaled by 1/√width
    query: Scratch<f32>,
    /// [padded, width], rotated
    key: Scratch<f32>,
    value: Scratch<f32>,
    /// Transposed rows in register-wide groups: [padded / lanes, width, lanes].
    key_columns: Scratch<f32>,
    value_columns: Scratch<f32>,
    /// Probabilities of a tile of queries, and the gradients of their scores: [QUERIES, padded] each.
    scores: Scratch<f32>,
    dscores: Scratch<f32>,
    /// Attention's output [padded, width], and its gradient.
    attn_out: Scratch<f32>,
    dattn_out: Scratch<f32>,
    dquery: Scratch<f32>,
    dkey: Scratch<f32>,
    dvalue: Scratch<f32>,
}

impl Task {
    fn new(width: usize, rows: usize) -> Self {
        let padded = rows.next_multiple_of(PADDED);
        let numbers = || {
            let mut numbers = scratch::<f32>(padded * width);
            numbers[rows * width..].fill(0.0);
            numbers
        };
        Self {
            rows,
            query: numbers(),
            key: numbers(),
            value: numbers(),
            key_columns: numbers(),
            value_columns: numbers(),
            scores: scratch(QUERIES * padded),
            dscores: scratch(QUERIES * padded),
            attn_out: numbers(),
            dattn_out: numbers(),
            dquery: numbers(),
            dkey: numbers(),
            dvalue: numbers(),
        }
    }

    /// Reads one head of keys and values from `qkv`, starting at row `first`.
    fn keys_and_values<N: Dtype>(&mut self, heads: &AttentionShape, qkv: &[N], first: usize, head: usize) {
        let (width, stride) = (heads.width, N::stride(heads.all()));
        let used = self.rows * width;
        let key = heads.queries() + head * width;
        let value = key + heads.kv_heads * width;
        heads.keys(&qkv[first * stride..], key, 0, &mut self.key[..used]);
        N::gather(&qkv[first * stride + value..], stride, width, &mut self.value[..used]);
    }

    /// Reads one head of queries from `qkv`, starting at row `first`.
    fn queries<N: Dtype>(&mut self, heads: &AttentionShape, qkv: &[N], first: usize, head: usize) {
        let (width, stride) = (heads.width, N::stride(heads.all()));
        heads.query_rows(&qkv[first * stride..], head * width, &mut self.query[..self.rows * width]);
    }

    fn clear_gradients_of_keys(&mut self, width: usize) {
        let used = self.rows.next_multiple_of(PADDED) * width;
        self.dkey[..used].fill(0.0);
        self.dvalue[..used].fill(0.0);
    }

    /// Computes the attention of the queries, or, if `back`, the gradients of queries, keys and values.
    fn run(&mut self, width: usize, back: bool) {
        match width {
            16 => run::<16>(self, back),
            32 => run::<32>(self, back),
            48 => run::<48>(self, back),
            64 => run::<64>(self, back),
            80 => run::<80>(self, back),
            96 => run::<96>(self, back),
            112 => run::<112>(self, back),
            128 => run::<128>(self, back),
            160 => run::<160>(self, back),
            192 => run::<192>(self, back),
            224 => run::<224>(self, back),
            _ => run::<256>(self, back),
        }
    }
}

fn run<const W: usize>(task: &mut Task, back: bool) {
    if back { backward_dispatched::<W>(task) } else { forward_dispatched::<W>(task) }
}

dispatched!(forward_dispatched[const W]<'a>(task: &'a mut Task) = forward::<S, W>);
dispatched!(backward_dispatched[const W]<'a>(task: &'a mut Task) = backward::<S, W>);

/// Returns how many keys the tile of queries at `row` is computed over.
#[inline(always)]
fn reach(row: usize) -> usize {
    (row + QUERIES).next_multiple_of(PADDED)
}

/// [rows][W] → [rows / lanes, W, lanes]
#[inline(always)]
fn transpose<S: Simd, const W: usize>(rows: &[[f32; W]], columns: &mut [f32]) {
    for (block, rows) in columns.chunks_exact_mut(W * S::F32_LANES).zip(rows.chunks_exact(S::F32_LANES)) {
        for (lane, row) in rows.iter().enumerate() {
            for column in 0..W {
                block[column * S::F32_LANES + lane] = row[column];
            }
        }
    }
}

/// Yields register indices of `count`, and whether the next two are processed together: each broadcast then serves both, if
/// there are enough registers for the sums.
#[inline(always)]
fn side_by_side<S: Simd>(count: usize) -> impl Iterator<Item = (usize, bool)> {
    let paired = if S::REGISTER_COUNT >= 4 * QUERIES { count / 2 * 2 } else { 0 };
    (0..paired).step_by(2).map(|at| (at, true)).chain((paired..count).map(|at| (at, false)))
}

/// Multiplies a tile of rows with the first `reach` rows of `columns`: `out` [QUERIES, reach].
#[inline(always)]
fn products<S: Simd, const W: usize>(simd: S, tile: &[[f32; W]], columns: &[f32], reach: usize, out: &mut [f32]) {
    for (at, two) in side_by_side::<S>(reach / S::F32_LANES) {
        if two {
            products_at::<S, W, 2>(simd, tile, columns, reach, at, out);
        } else {
            products_at::<S, W, 1>(simd, tile, columns, reach, at, out);
        }
    }
}

/// As [`products`], for `N` registers of rows from index `at`.
#[inline(always)]
fn products_at<S: Simd, const W: usize, const N: usize>(
    simd: S,
    tile: &[[f32; W]],
    columns: &[f32],
    reach: usize,
    at: usize,
    out: &mut [f32],
) {
    let tile: [&[f32; W]; QUERIES] = std::array::from_fn(|row| &tile[row]);
    let columns = S::as_simd_f32s(columns).0;
    let columns: [&[S::f32s]; N] = std::array::from_fn(|n| &columns[(at + n) * W..][..W]);
    let mut sums = [[simd.splat_f32s(0.0); N]; QUERIES];
    for column in 0..W {
        for row in 0..QUERIES {
            let left = simd.splat_f32s(tile[row][column]);
            for n in 0..N {
                sums[row][n] = simd.mul_add_e_f32s(left, columns[n][column], sums[row][n]);
            }
        }
    }
    for row in 0..QUERIES {
        S::as_mut_simd_f32s(&mut out[row * reach..][..reach]).0[at..][..N].copy_from_slice(&sums[row]);
    }
}

/// Computes `out` [QUERIES][W] = `left` [QUERIES, reach] · `right` [reach][W].
#[inline(always)]
fn along_rows<S: Simd, const W: usize>(simd: S, left: &[f32], right: &[[f32; W]], out: &mut [[f32; W]]) {
    for (at, two) in side_by_side::<S>(W / S::F32_LANES) {
        if two {
            along_rows_at::<S, W, 2>(simd, left, right, at, out);
        } else {
            along_rows_at::<S, W, 1>(simd, left, right, at, out);
        }
    }
}

/// As [`along_rows`], for `N` registers of a row from index `at`.
#[inline(always)]
fn along_rows_at<S: Simd, const W: usize, const N: usize>(
    simd: S,
    left: &[f32],
    right: &[[f32; W]],
    at: usize,
    out: &mut [[f32; W]],
) {
    let left: [&[f32]; QUERIES] = std::array::from_fn(|row| &left[row * right.len()..][..right.len()]);
    let mut sums = [[simd.splat_f32s(0.0); N]; QUERIES];
    for (k, line) in right.iter().enumerate() {
        let line = &S::as_simd_f32s(line).0[at..][..N];
        for row in 0..QUERIES {
            let left = simd.splat_f32s(left[row][k]);
            for n in 0..N {
                sums[row][n] = simd.mul_add_e_f32s(left, line[n], sums[row][n]);
            }
        }
    }
    for row in 0..QUERIES {
        S::as_mut_simd_f32s(&mut out[row]).0[at..][..N].copy_from_slice(&sums[row]);
    }
}

/// Computes `out` [reach][W] += `left` [QUERIES, reach]ᵀ · `right` [QUERIES][W].
#[inline(always)]
fn along_columns<S: Simd, const W: usize>(simd: S, left: &[f32], right: &[[f32; W]], out: &mut [[f32; W]]) {
    for (at, two) in side_by_side::<S>(W / S::F32_LANES) {
        if two {
            along_columns_at::<S, W, 2>(simd, left, right, at, out);
        } else {
            along_columns_at::<S, W, 1>(simd, left, right, at, out);
        }
    }
}

/// As [`along_columns`], for `N` registers of a row from index `at`.
#[inline(always)]
fn along_columns_at<S: Simd, const W: usize, const N: usize>(
    simd: S,
    left: &[f32],
    right: &[[f32; W]],
    at: usize,
    out: &mut [[f32; W]],
) {
    let left: [&[f32]; QUERIES] = std::array::from_fn(|row| &left[row * out.len()..][..out.len()]);
    let right: [[S::f32s; N]; QUERIES] =
        std::array::from_fn(|row| std::array::from_fn(|n| S::as_simd_f32s(&right[row]).0[at + n]));
    for (k, out) in out.iter_mut().enumerate() {
        let out = &mut S::as_mut_simd_f32s(out).0[at..][..N];
        let mut sums: [S::f32s; N] = std::array::from_fn(|n| out[n]);
        for row in 0..QUERIES {
            let left = simd.splat_f32s(left[row][k]);
            for n in 0..N {
                sums[n] = simd.mul_add_e_f32s(left, right[row][n], sums[n]);
            }
        }
        out.copy_from_slice(&sums);
    }
}

/// Fills `scores` [QUERIES, reach] with the probabilities of the tile at `start`; later keys and padding get 0.
#[inline(always)]
fn attend<S: Simd, const W: usize>(simd: S, task: &mut Task, start: usize, reach: usize) {
    let tile = &task.query.as_chunks::<W>().0[start..start + QUERIES];
    products::<S, W>(simd, tile, &task.key_columns, reach, &mut task.scores);
    for (row, scores) in task.scores.chunks_exact_mut(reach).take(QUERIES).enumerate() {
        let row = start + row;
        if row >= task.rows {
            scores.fill(0.0);
            continue;
        }
        let (seen, later) = scores.split_at_mut(row + 1);
        let (_, sum) = exponentials(simd, seen);
        scale(simd, seen, 1.0 / sum);
        later.fill(0.0);
    }
}

#[inline(always)]
fn forward<S: Simd, const W: usize>(simd: S, task: &mut Task) {
    transpose::<S, W>(task.key.as_chunks().0, &mut task.key_columns);
    for start in (0..task.rows).step_by(QUERIES) {
        let reach = reach(start);
        attend::<S, W>(simd, task, start, reach);
        let out = &mut task.attn_out.as_chunks_mut().0[start..start + QUERIES];
        along_rows::<S, W>(simd, &task.scores, &task.value.as_chunks().0[..reach], out);
    }
}

#[inline(always)]
fn backward<S: Simd, const W: usize>(simd: S, task: &mut Task) {
    transpose::<S, W>(task.key.as_chunks().0, &mut task.key_columns);
    transpose::<S, W>(task.value.as_chunks().0, &mut task.value_columns);
    for start in (0..task.rows).step_by(QUERIES) {
        let reach = reach(start);
        attend::<S, W>(simd, task, start, reach);
        // Gradients of scores: p · (dp − Σ p·dp), where dp = dattn_out · value.
        let dattn_out = &task.dattn_out.as_chunks().0[start..start + QUERIES];
        products::<S, W>(simd, dattn_out, &task.value_columns, reach, &mut task.dscores);
        for (dscores, scores) in task.dscores.chunks_exact_mut(reach).zip(task.scores.chunks_exact(reach)).take(QUERIES)
        {
            let mean = dot(simd, dscores, scores);
            softmax_backward(simd, scores, mean, dscores);
        }
        let dquery = &mut task.dquery.as_chunks_mut().0[start..start + QUERIES];
        along_rows::<S, W>(simd, &task.dscores, &task.key.as_chunks().0[..reach], dquery);
        let query = &task.query.as_chunks().0[start..start + QUERIES];
        along_columns::<S, W>(simd, &task.dscores, query, &mut task.dkey.as_chunks_mut().0[..reach]);
        along_columns::<S, W>(simd, &task.scores, dattn_out, &mut task.dvalue.as_chunks_mut().0[..reach]);
    }
}
