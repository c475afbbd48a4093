//! Products of `bf16`, built on [`tile`](crate::cpu::tile). Pure.

use pulp::Simd;
use rayon::prelude::*;

use super::{Dtype, Gradient, Out, Weight, Width, panels_per_task};
use crate::{
    cpu::{
        bf16::Bf16,
        buffer::{Buffer, Scratch, scratch},
        dispatch::dispatched,
        eight::{self, BYTES, Side, unpack},
        team::spread,
        tile::{BLOCK, Block, DEPTH, Kind, Left, Pair, TILE, TILE_SIZE, products, widen},
    },
    model::Linear,
};

/// Returns the columns of the left factor per task of a weight gradient: enough work to pay for packing, few enough to
/// balance the threads.
fn share(rows: usize, left: usize, right: usize) -> usize {
    const WORK: usize = 1 << 22;
    let wanted = WORK.div_ceil((rows * right).max(1)).next_multiple_of(BLOCK);
    wanted.clamp(4 * BLOCK, 8 * BLOCK).min(left.next_multiple_of(BLOCK))
}

/// A right operand [depth, columns] in tiles: groups of 16 columns, each over the whole depth. Columns and depth are padded
/// with zeros to a multiple of 32.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    data: Buffer<Pair>,
    /// The same as bytes, instead of `data`, and their powers of two.
    bytes: Buffer<i8>,
    powers: Buffer<u8>,
    depth: usize,
    columns: usize,
}

impl Tiles {
    fn shape(&mut self, depth: usize, columns: usize) {
        self.depth = depth.div_ceil(DEPTH);
        self.columns = columns.div_ceil(BLOCK);
        self.data.resize(self.columns * 2 * self.depth * TILE_SIZE);
    }

    /// As [`shape`](Self::shape), for weights of eight bits.
    fn shape_bytes(&mut self, depth: usize, columns: usize) {
        self.depth = depth.div_ceil(DEPTH);
        self.columns = columns.div_ceil(BLOCK);
        self.bytes.resize(self.columns * 2 * self.depth * BYTES);
        self.powers.resize(self.columns * 2 * self.depth * TILE);
    }

    /// Returns whether these are weights of eight bits.
    fn has_bytes(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Returns room for what [`sides`](Self::sides) unpacks.
    fn room(&self) -> Scratch<Pair> {
        scratch(if self.has_bytes() { 2 * self.depth * TILE_SIZE } else { 0 })
    }

    /// Returns the tiles of the 32 columns from 32 · `at`: of the first 16 and of the others. Unpacks weights of eight bits into
    /// `room`.
    fn sides<'a>(&'a self, at: usize, room: &'a mut [Pair]) -> [&'a [Pair]; 2] {
        let size = self.depth * TILE_SIZE;
        if self.has_bytes() {
            for (side, room) in self.byte_sides(at).into_iter().zip(room.chunks_exact_mut(size)) {
                unpack(side.tiles, side.powers, room);
            }
            return room.split_at(size).into();
        }
        self.data[2 * at * size..][..2 * size].split_at(size).into()
    }

    /// Returns the same for weights of eight bits, packed.
    fn byte_sides(&self, at: usize) -> [Side<'_>; 2] {
        let (tiles, powers) = (self.depth * BYTES, self.depth * TILE);
        [2 * at, 2 * at + 1].map(|side| Side {
            tiles: &self.bytes[side * tiles..][..tiles],
            powers: &self.powers[side * powers..][..powers],
        })
    }
}

/// The packed weight for the forward and the backward pass.
#[derive(Debug, Default)]
pub(crate) struct WeightTiles {
    forward: Tiles,
    backward: Tiles,
}

/// Fills the tile of 16 pairs of lines by 16 columns at (`line`, `column`) of a matrix with consecutive lines.
#[inline(always)]
fn fill_across<T: Copy>(
    data: &[T],
    stride: usize,
    size: [usize; 2],
    at: [usize; 2],
    value: impl Fn(T) -> u16,
    tile: &mut [Pair],
) {
    let [lines, columns] = size;
    let [line, column] = at;
    let width = TILE.min(columns.saturating_sub(column));
    for (pair, out) in tile.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let first = line + 2 * pair;
        if width == TILE && first + 1 < lines {
            let (one, two) = (&data[first * stride + column..][..TILE], &data[(first + 1) * stride + column..][..TILE]);
            for lane in 0..TILE {
                out[lane] = u32::from(value(one[lane])) | u32::from(value(two[lane])) << 16;
            }
            continue;
        }
        for (lane, out) in out.iter_mut().enumerate() {
            let get = |line: usize| {
                if line < lines && lane < width { u32::from(value(data[line * stride + column + lane])) } else { 0 }
            };
            *out = get(first) | get(first + 1) << 16;
        }
    }
}

/// As [`fill_across`], for the transposed matrix: `lines` are columns of `data`.
#[inline(always)]
fn fill_along<T: Copy>(
    data: &[T],
    stride: usize,
    size: [usize; 2],
    at: [usize; 2],
    value: impl Fn(T) -> u16,
    tile: &mut [Pair],
) {
    let [lines, columns] = size;
    let [line, column] = at;
    let height = DEPTH.min(lines.saturating_sub(line));
    let width = TILE.min(columns.saturating_sub(column));
    if height < DEPTH || width < TILE {
        tile.fill(0);
    }
    for lane in 0..width {
        let row = &data[(column + lane) * stride + line..][..height];
        let (pairs, rest) = row.as_chunks::<2>();
        for (pair, [first, second]) in pairs.iter().enumerate() {
            tile[pair * TILE + lane] = u32::from(value(*first)) | u32::from(value(*second)) << 16;
        }
        if let [last] = rest {
            tile[height / 2 * TILE + lane] = u32::from(value(*last));
        }
    }
}

/// A task that packs 32 columns of a weight.
struct PackWeight<'a> {
    data: &'a [f32],
    stride: usize,
    /// [depth, columns]
    size: [usize; 2],
    /// Whether the operand's columns are contiguous in `data`.
    across: bool,
    column: usize,
    out: &'a mut [Pair],
}

dispatched!(pack_weight<'a>(work: PackWeight<'a>) = pack_weight_kernel);

#[inline(always)]
fn pack_weight_kernel<S: Simd>(_: S, work: PackWeight) {
    let PackWeight { data, stride, size, across, column, out } = work;
    let depth = size[0].div_ceil(DEPTH);
    for (at, tile) in out.chunks_exact_mut(TILE_SIZE).enumerate() {
        let at = [at % depth * DEPTH, column + at / depth * TILE];
        let value = |x: f32| Bf16::of(x).bits();
        if across {
            fill_across(data, stride, size, at, value, tile);
        } else {
            fill_along(data, stride, size, at, value, tile);
        }
    }
}

/// A task that packs 32 columns of activations as a right operand.
struct PackRows<'a> {
    data: &'a [Bf16],
    stride: usize,
    /// [rows, columns]
    size: [usize; 2],
    column: usize,
    out: &'a mut [Pair],
}

dispatched!(pack_rows<'a>(work: PackRows<'a>) = pack_rows_kernel);

#[inline(always)]
fn pack_rows_kernel<S: Simd>(_: S, work: PackRows) {
    let PackRows { data, stride, size, column, out } = work;
    let depth = size[0].div_ceil(DEPTH);
    for (at, tile) in out.chunks_exact_mut(TILE_SIZE).enumerate() {
        let at = [at % depth * DEPTH, column + at / depth * TILE];
        fill_across(data, stride, size, at, Bf16::bits, tile);
    }
}

/// Packs the transpose of `rows` of `data`, which are `stride` apart, as left tiles: per 16 of `columns`, tiles of 16
/// columns by 32 rows. Reads along the rows, so that the processor prefetches.
fn pack_left(kind: Kind, data: &[Bf16], stride: usize, rows: usize, columns: usize, out: &mut [Bf16]) {
    let depth = rows.div_ceil(DEPTH);
    for step in 0..depth {
        let row = step * DEPTH;
        for (at, column) in (0..columns.next_multiple_of(BLOCK)).step_by(TILE).enumerate() {
            let tile = &mut out[(at * depth + step) * TILE * DEPTH..][..TILE * DEPTH];
            let (height, width) = (DEPTH.min(rows - row), TILE.min(columns.saturating_sub(column)));
            if height == DEPTH && width == TILE {
                kind.transpose(&data[row * stride + column..], stride, tile);
                continue;
            }
            tile.fill(Bf16::default());
            for (at, lane) in (0..height).flat_map(|at| (0..width).map(move |lane| (at, lane))) {
                tile[lane * DEPTH + at] = data[(row + at) * stride + column + lane];
            }
        }
    }
}

/// The packed right operands of weight gradients, one for each that is computed at once.
#[derive(Debug, Default)]
pub(crate) struct Workspace(Vec<Tiles>);

/// Rows that are converted to `f32` at once where the processor has no products of `bf16`, so that they stay in the cache.
const WIDENED: usize = 2 * BLOCK;

/// Computes `x` [rows, depth] · `right` in blocks of 32 × 32 sums.
fn multiply_tiles(x: &[Bf16], depth: usize, right: &Tiles, columns: usize, bias: Option<&[f32]>, mut out: Out<Bf16>) {
    let kind = Kind::best();
    let mut sums = Block([[0.0; BLOCK]; BLOCK]);
    let mut room = right.room();
    if kind == Kind::Portable {
        let stride = Bf16::stride(depth);
        for (group, x) in x.chunks(WIDENED * stride).enumerate() {
            let mut rows = scratch::<f32>(x.len());
            widen(x, &mut rows);
            for panel in 0..right.columns {
                let sides = right.sides(panel, &mut room);
                for (block, rows) in rows.chunks(BLOCK * stride).enumerate() {
                    let height = rows.len() / stride;
                    products(rows, stride, height, sides, right.depth, &mut sums);
                    let place = Place { row: group * WIDENED + block * BLOCK, column: panel * BLOCK, columns };
                    put(&mut sums.0[..height], bias, place, out.again());
                }
            }
        }
        return;
    }
    kind.prepare();
    let rows = LeftRows::new(kind, x, depth);
    for panel in 0..right.columns {
        let sides = right.sides(panel, &mut room);
        for (block, left, height) in rows.blocks() {
            kind.block(left, height, sides, right.depth, &mut sums);
            let place = Place { row: block * BLOCK, column: panel * BLOCK, columns };
            put(&mut sums.0[..height], bias, place, out.again());
        }
    }
}

/// The rows of a left operand in blocks of 32.
struct LeftRows<'a> {
    x: &'a [Bf16],
    stride: usize,
    rows: usize,
    /// The last rows in a block of their own, for kernels that read whole blocks.
    last: Option<Scratch<Bf16>>,
}

impl<'a> LeftRows<'a> {
    fn new(kind: Kind, x: &'a [Bf16], depth: usize) -> Self {
        let stride = Bf16::stride(depth);
        let rows = x.len() / stride;
        let rest = rows % BLOCK;
        let last = (rest > 0 && kind.reads_whole_blocks()).then(|| {
            let mut last = scratch::<Bf16>(BLOCK * stride);
            last[..rest * stride].copy_from_slice(&x[(rows - rest) * stride..]);
            last[rest * stride..].fill(Bf16::default());
            last
        });
        Self { x, stride, rows, last }
    }

    /// Yields each block's index, rows, and number of valid rows.
    fn blocks(&self) -> impl Iterator<Item = (usize, Left<'_>, usize)> {
        (0..self.rows.div_ceil(BLOCK)).map(|block| {
            let height = BLOCK.min(self.rows - block * BLOCK);
            let data = match &self.last {
                Some(last) if height < BLOCK => last,
                _ => &self.x[block * BLOCK * self.stride..],
            };
            (block, Left { data, row: self.stride, step: DEPTH, half: TILE * self.stride }, height)
        })
    }
}

/// The place of a block of sums in the product.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
    /// Columns of the whole product.
    columns: usize,
}

dispatched!(put<'a>(sums: &'a mut [[f32; BLOCK]], bias: Option<&'a [f32]>, place: Place, out: Out<'a, Bf16>) = put_kernel);

#[inline(always)]
fn put_kernel<S: Simd>(_: S, sums: &mut [[f32; BLOCK]], bias: Option<&[f32]>, place: Place, mut out: Out<Bf16>) {
    let Place { row, column, columns } = place;
    let width = BLOCK.min(columns - column);
    if let Some(bias) = bias {
        for sums in &mut *sums {
            for (sum, bias) in sums.iter_mut().zip(&bias[column..][..width]) {
                *sum += bias;
            }
        }
    }
    for (at, sums) in sums.iter().enumerate() {
        let row = row + at;
        match &mut out {
            // Sums beyond the last column are 0, and rows have padding for them.
            Out::Store(out) => {
                let out = &mut out[row * Bf16::stride(columns) + column..][..BLOCK];
                for lane in 0..BLOCK {
                    out[lane] = Bf16::of(sums[lane]);
                }
            }
            Out::Set(out) => match out[row * columns + column..].first_chunk_mut() {
                Some(out) if width == BLOCK => *out = *sums,
                _ => out[row * columns + column..][..width].copy_from_slice(&sums[..width]),
            },
            Out::Add(out) => {
                for (out, sum) in out[row * columns + column..][..width].iter_mut().zip(sums) {
                    *out += sum;
                }
            }
        }
    }
}

/// Rows of a sum that are packed at once, so that they stay in the cache.
const SPAN: usize = 16 * DEPTH;

/// Computes `out` [columns of left, columns of right] += leftᵀ · right for the left columns from `first`.
fn multiply_transposed(
    left: &[Bf16],
    left_width: usize,
    first: usize,
    right: &Tiles,
    right_width: usize,
    out: &mut [f32],
) {
    let kind = Kind::best();
    kind.prepare();
    let stride = Bf16::stride(left_width);
    let rows = left.len() / stride;
    let columns = out.len() / right_width;
    let blocks = columns.div_ceil(BLOCK);
    let mut packed = scratch::<Bf16>(blocks * BLOCK * SPAN);
    let mut sums = Block([[0.0; BLOCK]; BLOCK]);
    for start in (0..rows).step_by(SPAN) {
        let span = SPAN.min(rows - start);
        let depth = span.div_ceil(DEPTH);
        let half = depth * TILE * DEPTH;
        let packed = &mut packed[..2 * blocks * half];
        let data = &left[start * stride + first..];
        pack_left(kind, data, stride, span, columns, packed);
        for panel in 0..right.columns {
            // The tiles of this span in both halves of the panel.
            let [near, far] = right.sides(panel, &mut []);
            let at = start / DEPTH * TILE_SIZE..(start / DEPTH + depth) * TILE_SIZE;
            for block in 0..blocks {
                let data = &packed[2 * block * half..];
                let left = Left { data, row: DEPTH, step: TILE * DEPTH, half };
                kind.block(left, BLOCK, [&near[at.clone()], &far[at.clone()]], depth, &mut sums);
                let height = BLOCK.min(columns - block * BLOCK);
                let place = Place { row: block * BLOCK, column: panel * BLOCK, columns: right_width };
                put(&mut sums.0[..height], None, place, Out::Add(out));
            }
        }
    }
}

impl Dtype for Bf16 {
    type Packs = Vec<WeightTiles>;
    type Workspace = Workspace;

    const COPIES: bool = true;
    const EXACT: bool = false;

    fn path() -> &'static str {
        Kind::best().path()
    }

    /// A multiple of a tile, and an odd number of cache lines, so that consecutive rows map to different cache sets.
    fn stride(width: usize) -> usize {
        DEPTH * (width.div_ceil(DEPTH) | 1)
    }

    fn packed(depth: usize, columns: usize) -> usize {
        depth.next_multiple_of(DEPTH) * columns.next_multiple_of(BLOCK) * size_of::<Bf16>()
    }

    fn pack(layers: &[&Linear], parameters: &[f32], packs: &mut Self::Packs, backward: bool) {
        packs.resize_with(layers.len(), WeightTiles::default);
        let mut tasks = Vec::new();
        let mut rest = packs.as_mut_slice();
        for matrix in layers {
            let Some(pack) = rest.split_off_first_mut() else { continue };
            let data = &parameters[matrix.weight.clone()];
            let (inputs, outputs) = (matrix.inputs, matrix.outputs);
            let stride = if matrix.inputs_first { outputs } else { inputs };
            let forward = (&mut pack.forward, [inputs, outputs], matrix.inputs_first);
            let backward = backward.then_some((&mut pack.backward, [outputs, inputs], !matrix.inputs_first));
            for (tiles, size, across) in [Some(forward), backward].into_iter().flatten() {
                tiles.shape(size[0], size[1]);
                let panel = 2 * tiles.depth * TILE_SIZE;
                let panels = tiles.data.chunks_exact_mut(panel).enumerate();
                tasks.extend(panels.map(|(panel, out)| PackWeight {
                    data,
                    stride,
                    size,
                    across,
                    column: panel * BLOCK,
                    out,
                }));
            }
        }
        tasks.into_par_iter().for_each(|task| pack_weight(task));
    }

    const WIDTHS: &'static [Width] = &[Width::Eight, Width::Full];

    fn shape(matrix: &Linear, width: Width, packs: &mut Self::Packs) {
        packs.resize_with(packs.len().max(matrix.index + 1), WeightTiles::default);
        let tiles = &mut packs[matrix.index].forward;
        *tiles = Tiles::default();
        match width {
            Width::Eight => tiles.shape_bytes(matrix.inputs, matrix.outputs),
            Width::Full => tiles.shape(matrix.inputs, matrix.outputs),
        }
    }

    fn pack_columns(matrix: &Linear, first: usize, data: &[f32], packs: &mut Self::Packs) -> bool {
        let across = matrix.inputs_first;
        let stride = if across { matrix.outputs } else { matrix.inputs };
        let columns = if across { matrix.outputs } else { data.len() / stride };
        let tiles = &mut packs[matrix.index].forward;
        let depth = tiles.depth;
        let (skipped, taken) = (first / BLOCK, columns.div_ceil(BLOCK));
        let size = [matrix.inputs, columns];
        if tiles.has_bytes() {
            let panels =
                tiles.bytes.chunks_exact_mut(2 * depth * BYTES).zip(tiles.powers.chunks_exact_mut(2 * depth * TILE));
            let tasks: Vec<_> = panels.skip(skipped).take(taken).enumerate().collect();
            return tasks.into_par_iter().all(|(panel, (bytes, powers))| {
                let tiles = bytes.as_chunks_mut::<BYTES>().0.iter_mut().zip(powers.as_chunks_mut::<TILE>().0);
                tiles.enumerate().all(|(at, (tile, powers))| {
                    let (line, column) = (at % depth * DEPTH, panel * BLOCK + at / depth * TILE);
                    let number = |row: usize, lane: usize| {
                        let (row, column) = (line + row, column + lane);
                        if row >= size[0] || column >= size[1] {
                            0.0
                        } else if across {
                            data[row * stride + column]
                        } else {
                            data[column * stride + row]
                        }
                    };
                    eight::pack(number, tile, powers)
                })
            });
        }
        let panels = tiles.data.chunks_exact_mut(2 * depth * TILE_SIZE).skip(skipped).take(taken).enumerate();
        let tasks: Vec<_> =
            panels.map(|(panel, out)| PackWeight { data, stride, size, across, column: panel * BLOCK, out }).collect();
        tasks.into_par_iter().for_each(|task| pack_weight(task));
        true
    }

    fn column(matrix: &Linear, column: usize, packs: &Self::Packs, to: &mut [f32]) {
        let tiles = &packs[matrix.index].forward;
        let lane = column % TILE;
        if tiles.has_bytes() {
            let side = tiles.byte_sides(column / BLOCK)[column % BLOCK / TILE];
            return eight::column(side.tiles, side.powers, lane, to);
        }
        let group = &tiles.data[column / TILE * tiles.depth * TILE_SIZE..][..tiles.depth * TILE_SIZE];
        for (to, pair) in to.chunks_mut(2).zip(group.as_chunks::<TILE>().0) {
            for (at, to) in to.iter_mut().enumerate() {
                // Half of a pair is the upper half of a number.
                *to = f32::from_bits(if at == 0 { pair[lane] << 16 } else { pair[lane] & 0xffff_0000 });
            }
        }
    }

    fn forward(weight: Weight<Self>, x: &[Self], out: Out<Self>) {
        let Weight { matrix, parameters, packs } = weight;
        let bias = matrix.bias.clone().map(|bias| &parameters[bias]);
        multiply_tiles(x, matrix.inputs, &packs[matrix.index].forward, matrix.outputs, bias, out);
    }

    fn forward_few(weight: Weight<Self>, x: &[Self], mut out: Out<Self>) {
        let Weight { matrix, parameters, packs } = weight;
        let (right, columns) = (&packs[matrix.index].forward, matrix.outputs);
        let kind = Kind::best();
        let rows = LeftRows::new(kind, x, matrix.inputs);
        let Some((_, left, height)) = rows.blocks().next() else { return };
        let mut widened = scratch::<f32>(if kind == Kind::Portable { x.len() } else { 0 });
        widen(x, &mut widened);
        let widened = &*widened;
        let task = panels_per_task(right.columns);
        let mut sums = scratch::<f32>(right.columns * height * BLOCK);
        spread(sums.chunks_mut(task * height * BLOCK).enumerate().collect(), |(at, sums)| {
            kind.prepare();
            let mut block = Block([[0.0; BLOCK]; BLOCK]);
            let mut room = right.room();
            for (panel, sums) in sums.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(height).enumerate() {
                let panel = at * task + panel;
                if !few_of_eight_bits(kind, left, widened, height, right, panel, &mut block) {
                    let sides = right.sides(panel, &mut room);
                    if kind == Kind::Portable {
                        products(widened, left.row, height, sides, right.depth, &mut block);
                    } else {
                        kind.block(left, height, sides, right.depth, &mut block);
                    }
                }
                sums.copy_from_slice(&block.0[..height]);
            }
        });
        let bias = matrix.bias.clone().map(|bias| &parameters[bias]);
        for (panel, sums) in sums.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(height).enumerate() {
            put(sums, bias, Place { row: 0, column: panel * BLOCK, columns }, out.again());
        }
    }

    fn backward(weight: Weight<Self>, dy: &[Self], out: Out<Self>) {
        let Weight { matrix, packs, .. } = weight;
        multiply_tiles(dy, matrix.outputs, &packs[matrix.index].backward, matrix.inputs, None, out);
    }

    fn gradients(jobs: Vec<Gradient<Self>>, Workspace(packed): &mut Workspace) {
        packed.resize_with(packed.len().max(jobs.len()), Tiles::default);
        let mut packing = Vec::new();
        for (job, tiles) in jobs.iter().zip(packed.iter_mut()) {
            let stride = Self::stride(job.right_width);
            let size = [job.right.len() / stride, job.right_width];
            tiles.shape(size[0], size[1]);
            let panels = tiles.data.chunks_exact_mut(2 * tiles.depth * TILE_SIZE).enumerate();
            packing.extend(panels.map(|(panel, out)| PackRows {
                data: job.right,
                stride,
                size,
                column: panel * BLOCK,
                out,
            }));
        }
        packing.into_par_iter().for_each(|task| pack_rows(task));
        let tasks: Vec<_> = jobs
            .into_iter()
            .zip(&*packed)
            .flat_map(|(job, tiles)| {
                let Gradient { left, left_width, right_width, out, .. } = job;
                let share = share(left.len() / Self::stride(left_width), left_width, right_width);
                let parts = out.chunks_mut(share * right_width).enumerate();
                parts.map(move |(part, out)| (left, left_width, part * share, tiles, right_width, out))
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(left, width, first, tiles, right_width, out)| {
            multiply_transposed(left, width, first, tiles, right_width, out);
        });
    }

    fn bytes(packs: &Self::Packs, Workspace(packed): &Workspace) -> usize {
        let both = packs.iter().flat_map(|pack| [&pack.forward, &pack.backward]);
        both.chain(packed).map(|tiles| tiles.data.bytes() + tiles.bytes.bytes() + tiles.powers.bytes()).sum()
    }

    fn keep(rows: &[f32], width: usize, to: &mut [Self]) {
        narrow(rows, width, to);
    }

    fn convert(numbers: &[f32], to: &mut [Self]) {
        convert(numbers, to);
    }

    fn gather(rows: &[Self], stride: usize, width: usize, to: &mut [f32]) {
        gather(rows, stride, width, to);
    }

    #[inline(always)]
    fn read<'a>(row: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..row.len()];
        for (to, x) in buffer.iter_mut().zip(row) {
            *to = x.to_f32();
        }
        buffer
    }

    #[inline(always)]
    fn place<'a>(row: &'a mut [Self], buffer: &'a mut [f32]) -> &'a mut [f32] {
        &mut buffer[..row.len()]
    }

    #[inline(always)]
    fn finish(row: &mut [Self], buffer: &[f32]) {
        for (to, x) in row.iter_mut().zip(buffer) {
            *to = Bf16::of(*x);
        }
    }

    fn operand<'a>(rows: &'a [f32], width: usize, buffer: &'a mut [Self]) -> &'a [Self] {
        let used = rows.len() / width * Self::stride(width);
        narrow(rows, width, &mut buffer[..used]);
        &buffer[..used]
    }

    fn operands<'a>(_: &'a [f32], buffer: &'a [Self]) -> &'a [Self] {
        buffer
    }
}

/// Multiplies few rows with the packed weights of a panel as `kind` does with unpacked ones, with the same bits. Returns false, and
/// computes nothing, if the weights have more bits, or no kernel does so.
fn few_of_eight_bits(
    kind: Kind,
    left: Left,
    widened: &[f32],
    height: usize,
    right: &Tiles,
    panel: usize,
    block: &mut Block,
) -> bool {
    if !right.has_bytes() {
        return false;
    }
    match kind {
        Kind::Portable if height <= eight::ROWS => {
            eight::products(widened, left.row, height, right.byte_sides(panel), block)
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 if height <= eight::DOT_ROWS => {
            eight::dot_products(left, height, right.byte_sides(panel), block);
            true
        }
        _ => false,
    }
}

dispatched!(narrow<'a>(rows: &'a [f32], width: usize, to: &'a mut [Bf16]) = narrow_rows);
dispatched!(convert<'a>(numbers: &'a [f32], to: &'a mut [Bf16]) = convert_all);
dispatched!(gather<'a>(rows: &'a [Bf16], stride: usize, width: usize, to: &'a mut [f32]) = gather_rows);

/// Converts rows without gaps into activations, and clears their padding.
#[inline(always)]
fn narrow_rows<S: Simd>(simd: S, rows: &[f32], width: usize, to: &mut [Bf16]) {
    for (row, to) in rows.chunks_exact(width).zip(to.chunks_exact_mut(Bf16::stride(width))) {
        let (to, behind) = to.split_at_mut(width);
        convert_all(simd, row, to);
        behind.fill(Bf16::default());
    }
}

#[inline(always)]
fn convert_all<S: Simd>(_: S, numbers: &[f32], to: &mut [Bf16]) {
    for (to, x) in to.iter_mut().zip(numbers) {
        *to = Bf16::of(*x);
    }
}

#[inline(always)]
fn gather_rows<S: Simd>(_: S, rows: &[Bf16], stride: usize, width: usize, to: &mut [f32]) {
    for (row, to) in rows.chunks(stride).zip(to.chunks_exact_mut(width)) {
        for (to, x) in to.iter_mut().zip(&row[..width]) {
            *to = x.to_f32();
        }
    }
}
