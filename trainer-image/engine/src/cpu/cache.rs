//! The key-value cache of a sequence, and the attention of new rows over it. Pure.
//!
//! Every sum is taken in the same order as in [`attention`](super::attention), so that a cached row has the bits of a row in a
//! forward pass over the whole sequence.

use pulp::Simd;

use super::{
    attention::{AttentionShape, DisjointRows},
    buffer::scratch,
    dispatch::dispatched_for,
    kernels::{exponentials, scale},
    matrix::Dtype,
    team::spread,
};

/// Positions whose keys are interleaved: a multiple of every processor's register.
const SPAN: usize = 16;
/// Queries that share each read of the cache.
const TILE: usize = 8;
/// Rows of a sequence per task.
const ROWS: usize = 16;

/// The keys and values of one sequence in one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// Normalized and rotated: [positions / SPAN, key-value heads, width, SPAN].
    keys: Vec<f32>,
    /// [positions, key-value heads, width]
    values: Vec<f32>,
}

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The slot of the sequence.
    pub(crate) slot: usize,
    /// First row in the batch.
    pub(crate) row: usize,
    /// Number of rows.
    pub(crate) count: usize,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
}

impl Cache {
    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<f32>() * (self.keys.capacity() + self.values.capacity())
    }

    /// Replaces the contents with the first `count` positions of another cache.
    pub(crate) fn copy(&mut self, heads: &AttentionShape, from: &Self, count: usize) {
        let shared = heads.kv_heads * heads.width;
        self.keys.clear();
        self.keys.extend_from_slice(&from.keys[..count.next_multiple_of(SPAN) * shared]);
        self.values.clear();
        self.values.extend_from_slice(&from.values[..count * shared]);
    }

    /// Appends the keys and values of new rows `qkv`. Positions from `position` on are overwritten.
    fn append<N: Dtype>(&mut self, heads: &AttentionShape, qkv: &[N], position: usize) {
        let (width, stride) = (heads.width, N::stride(heads.all()));
        let rows = qkv.len() / stride;
        let shared = heads.kv_heads * width;
        fit(&mut self.keys, (position + rows).div_ceil(SPAN) * shared * SPAN);
        fit(&mut self.values, (position + rows) * shared);
        let mut head = scratch::<f32>(rows * width);
        for kv_head in 0..heads.kv_heads {
            let key = heads.queries() + kv_head * width;
            heads.keys(qkv, key, position, &mut head);
            for (row, key) in head.chunks_exact(width).enumerate() {
                let at = position + row;
                let block = &mut self.keys[(at / SPAN * heads.kv_heads + kv_head) * width * SPAN..][..width * SPAN];
                for (line, key) in block.chunks_exact_mut(SPAN).zip(key) {
                    line[at % SPAN] = *key;
                }
            }
            N::gather(&qkv[key + shared..], stride, width, &mut head);
            for (row, value) in head.chunks_exact(width).enumerate() {
                self.values[(position + row) * shared + kv_head * width..][..width].copy_from_slice(value);
            }
        }
    }
}

/// Resizes a buffer. It grows by doubling, so it has at most twice its length; what a longer sequence left is given back.
fn fit(buffer: &mut Vec<f32>, length: usize) {
    buffer.resize(length, 0.0);
    if buffer.capacity() / 2 > length {
        buffer.shrink_to_fit();
    }
}

/// Appends the keys and values of a batch `qkv` to the caches of its slots, and computes the attention of its rows into `out`
/// [rows, queries]. Leaves the padding of `out` unchanged.
pub(crate) fn attend<N: Dtype>(heads: &AttentionShape, parts: &[Part], caches: &mut [Cache], qkv: &[N], out: &mut [N]) {
    let stride = N::stride(heads.all());
    let rows = |part: &Part| &qkv[part.row * stride..(part.row + part.count) * stride];
    let mut by_slot = vec![None; caches.len()];
    for part in parts {
        by_slot[part.slot] = Some(*part);
    }
    let appended = caches.iter_mut().zip(&by_slot).filter_map(|(cache, part)| Some((cache, part.as_ref()?)));
    spread(appended.collect(), |(cache, part)| cache.append(heads, rows(part), part.position));
    let out = DisjointRows::new(out, N::stride(heads.queries()));
    let tasks: Vec<(Part, usize)> = parts
        .iter()
        .flat_map(|part| {
            let pieces = (0..part.count).step_by(ROWS).map(|start| Part {
                row: part.row + start,
                count: ROWS.min(part.count - start),
                position: part.position + start,
                ..*part
            });
            pieces.flat_map(|piece| (0..heads.kv_heads).map(move |kv_head| (piece, kv_head)))
        })
        .collect();
    let caches = &*caches;
    spread(tasks, |(part, kv_head)| {
        attend_dispatched(QueryRows { heads, part, kv_head, cache: &caches[part.slot], qkv: rows(&part), out: &out });
    });
}

/// The rows of one sequence and the query heads of one key-value head.
#[derive(Clone, Copy)]
struct QueryRows<'a, N> {
    heads: &'a AttentionShape<'a>,
    part: Part,
    kv_head: usize,
    cache: &'a Cache,
    /// The rows of the part.
    qkv: &'a [N],
    out: &'a DisjointRows<'a, N>,
}

dispatched_for!(attend_dispatched<'a, N>(work: QueryRows<'a, N>) = attend_rows);

#[inline(always)]
fn attend_rows<S: Simd, N: Dtype>(simd: S, work: QueryRows<N>) {
    let QueryRows { heads, part, kv_head, cache, qkv, out } = work;
    let (width, stride) = (heads.width, N::stride(heads.all()));
    let group = heads.heads / heads.kv_heads;
    let first = kv_head * group * width;
    let count = part.count * group;
    let mut queries = scratch::<f32>(count * width);
    for (row, queries) in queries.chunks_exact_mut(group * width).enumerate() {
        heads.query_group(&qkv[row * stride + first..][..group * width], part.position + row, queries);
    }
    let mut scores = scratch::<f32>(TILE * (part.position + part.count).next_multiple_of(SPAN));
    let mut mixed = scratch::<f32>(TILE * width);
    let mut buffer = scratch::<f32>(width);
    let mut start = 0;
    while start < count {
        let tile =
            Tile { heads, kv_head, cache, queries: &queries, start, seen: &|query| part.position + query / group + 1 };
        let size = match count - start {
            8.. => tile.run::<S, 8>(simd, &mut scores, &mut mixed),
            4.. => tile.run::<S, 4>(simd, &mut scores, &mut mixed),
            3 => tile.run::<S, 3>(simd, &mut scores, &mut mixed),
            2 => tile.run::<S, 2>(simd, &mut scores, &mut mixed),
            _ => tile.run::<S, 1>(simd, &mut scores, &mut mixed),
        };
        for (query, mixed) in (start..start + size).zip(mixed.chunks_exact(width)) {
            let column = first + query % group * width;
            // SAFETY: only this task writes these rows and the columns of these heads.
            #[allow(unsafe_code)]
            let out = unsafe { out.row(part.row + query / group, column..column + width) };
            N::place(out, &mut buffer).copy_from_slice(mixed);
            N::finish(out, &buffer);
        }
        start += size;
    }
}

/// Queries of one key-value head from `start` on.
struct Tile<'a> {
    heads: &'a AttentionShape<'a>,
    kv_head: usize,
    cache: &'a Cache,
    /// [queries, width], normalized, rotated and scaled.
    queries: &'a [f32],
    start: usize,
    /// How many keys a query sees.
    seen: &'a dyn Fn(usize) -> usize,
}

impl Tile<'_> {
    /// Computes the attention of `T` queries into `out` [T, width]. Returns `T`.
    #[inline(always)]
    fn run<S: Simd, const T: usize>(&self, simd: S, scores: &mut [f32], out: &mut [f32]) -> usize {
        let AttentionShape { kv_heads, width, .. } = *self.heads;
        let queries: [&[f32]; T] = std::array::from_fn(|query| &self.queries[(self.start + query) * width..][..width]);
        let seen: [usize; T] = std::array::from_fn(|query| (self.seen)(self.start + query));
        let longest = seen[T - 1];
        let padded = longest.next_multiple_of(SPAN);
        let registers = SPAN / S::F32_LANES;
        for (at, block) in self.cache.keys.chunks_exact(kv_heads * width * SPAN).take(padded / SPAN).enumerate() {
            let lines = S::as_simd_f32s(&block[self.kv_head * width * SPAN..][..width * SPAN]).0;
            for part in 0..registers {
                let mut sums = [simd.splat_f32s(0.0); T];
                for (column, line) in lines.chunks_exact(registers).enumerate() {
                    for query in 0..T {
                        let left = simd.splat_f32s(queries[query][column]);
                        sums[query] = simd.mul_add_e_f32s(left, line[part], sums[query]);
                    }
                }
                for query in 0..T {
                    let scores = &mut scores[query * padded + at * SPAN..][..SPAN];
                    S::as_mut_simd_f32s(scores).0[part] = sums[query];
                }
            }
        }
        for (scores, seen) in scores.chunks_exact_mut(padded).zip(seen) {
            let (scores, later) = scores.split_at_mut(seen);
            let (_, sum) = exponentials(simd, scores);
            scale(simd, scores, 1.0 / sum);
            later.fill(0.0);
        }
        let scores: [&[f32]; T] = std::array::from_fn(|query| &scores[query * padded..][..longest]);
        let shared = kv_heads * width;
        let mut part = 0;
        while part < width / S::F32_LANES {
            part += if part + 2 <= width / S::F32_LANES {
                self.values::<S, T, 2>(simd, scores, shared, part, out)
            } else {
                self.values::<S, T, 1>(simd, scores, shared, part, out)
            };
        }
        T
    }

    /// Computes `N` registers of the output from register `part` on. Returns `N`.
    #[inline(always)]
    fn values<S: Simd, const T: usize, const N: usize>(
        &self,
        simd: S,
        scores: [&[f32]; T],
        shared: usize,
        part: usize,
        out: &mut [f32],
    ) -> usize {
        let width = self.heads.width;
        let first = self.kv_head * width + part * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); N]; T];
        for (key, value) in self.cache.values.chunks_exact(shared).take(scores[0].len()).enumerate() {
            let line = S::as_simd_f32s(&value[first..][..N * S::F32_LANES]).0;
            for query in 0..T {
                let left = simd.splat_f32s(scores[query][key]);
                for n in 0..N {
                    sums[query][n] = simd.mul_add_e_f32s(left, line[n], sums[query][n]);
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(width).zip(sums) {
            S::as_mut_simd_f32s(out).0[part..][..N].copy_from_slice(&sums);
        }
        N
    }
}
