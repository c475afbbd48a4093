//! Products of `f32`, built on [`panel`](crate::cpu::panel). Pure.

use pulp::Simd;
use rayon::prelude::*;

use super::{Dtype, Gradient, Out, Weight, Width, panels_per_task};
use crate::{
    cpu::{
        buffer::{Buffer, scratch},
        dispatch::dispatched,
        panel::{self, Left, PANEL, Place, tall},
        team::spread,
    },
    model::Linear,
};

/// A right operand [depth, columns] in panels of 32 columns, each over the whole depth. Columns are padded with zeros.
#[derive(Debug, Default)]
pub(crate) struct Panels {
    data: Buffer<f32>,
    depth: usize,
}

impl Panels {
    fn shape(&mut self, depth: usize, columns: usize) {
        self.depth = depth;
        self.data.resize(depth * columns.next_multiple_of(PANEL));
    }

    /// Yields each panel with its first column.
    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.data.chunks_exact(self.depth * PANEL).enumerate().map(|(at, panel)| (at * PANEL, panel))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut [f32])> {
        self.data.chunks_exact_mut(self.depth * PANEL).enumerate().map(|(at, panel)| (at * PANEL, panel))
    }
}

/// The packed weight for the forward and the backward pass.
#[derive(Debug, Default)]
pub(crate) struct WeightPanels {
    forward: Panels,
    backward: Panels,
}

/// A task that fills a panel from a matrix whose rows are `stride` apart: from its columns (`across`) or its rows, starting
/// at `column`.
struct Filling<'a> {
    data: &'a [f32],
    stride: usize,
    across: bool,
    column: usize,
    /// Columns from `column` to the end.
    width: usize,
    panel: &'a mut [f32],
}

dispatched!(fill<'a>(work: Filling<'a>) = fill_kernel);

#[inline(always)]
fn fill_kernel<S: Simd>(_: S, work: Filling) {
    /// Lines of a panel that fit into the L1 cache.
    const LINES: usize = 64;
    let Filling { data, stride, across, column, width, panel } = work;
    let lines = panel.as_chunks_mut::<PANEL>().0;
    if width < PANEL {
        lines.fill([0.0; PANEL]);
    }
    if across {
        for (line, row) in lines.iter_mut().zip(data.chunks(stride)) {
            match row[column..].first_chunk() {
                Some(whole) if width >= PANEL => *line = *whole,
                _ => line[..width].copy_from_slice(&row[column..][..width]),
            }
        }
        return;
    }
    for (at, lines) in lines.chunks_mut(LINES).enumerate() {
        for lane in 0..width.min(PANEL) {
            let row = &data[(column + lane) * stride + at * LINES..][..lines.len()];
            for (line, x) in lines.iter_mut().zip(row) {
                line[lane] = *x;
            }
        }
    }
}

/// The product `x` [rows, depth] · `right` [depth, columns].
struct Product<'a> {
    x: &'a [f32],
    right: &'a Panels,
    columns: usize,
    out: &'a mut [f32],
    add: bool,
}

dispatched!(multiply<'a>(work: Product<'a>) = multiply_kernel);

#[inline(always)]
fn multiply_kernel<S: Simd>(simd: S, work: Product) {
    let Product { x, right, columns, out, add } = work;
    let left = Left { data: x, row: right.depth, step: 1 };
    for (column, panel) in right.iter() {
        let width = PANEL.min(columns - column);
        let mut place = Place { data: &mut out[column..], stride: columns, width, add };
        panel::multiply(simd, left, x.len() / right.depth, panel, &mut place);
    }
}

/// Computes `x` [rows, depth] · `right` [depth, columns] on this thread. A `transposed` right factor is stored [columns, depth].
/// `panels` is room for its copy.
pub(crate) fn product(
    x: &[f32],
    right: &[f32],
    (depth, columns): (usize, usize),
    transposed: bool,
    panels: &mut Panels,
    out: &mut [f32],
) {
    panels.shape(depth, columns);
    let stride = if transposed { depth } else { columns };
    for (column, panel) in panels.iter_mut() {
        fill(Filling { data: right, stride, across: !transposed, column, width: columns - column, panel });
    }
    multiply(Product { x, right: panels, columns, out, add: false });
}

/// The products of a few rows `x` with some panels, each [rows, 32].
struct PanelProduct<'a> {
    x: &'a [f32],
    depth: usize,
    panels: &'a [f32],
    out: &'a mut [f32],
}

dispatched!(multiply_panels<'a>(work: PanelProduct<'a>) = multiply_panels_kernel);

#[inline(always)]
fn multiply_panels_kernel<S: Simd>(simd: S, work: PanelProduct) {
    let PanelProduct { x, depth, panels, out } = work;
    let rows = x.len() / depth;
    let left = Left { data: x, row: depth, step: 1 };
    for (panel, out) in panels.chunks_exact(depth * PANEL).zip(out.chunks_exact_mut(rows * PANEL)) {
        let mut place = Place { data: out, stride: PANEL, width: PANEL, add: false };
        panel::multiply(simd, left, rows, panel, &mut place);
    }
}

/// Columns of the left factor per task of a weight gradient.
const SHARE: usize = 96;
/// Rows of a sum that are packed at once, so that they stay in the cache.
const SPAN: usize = 1024;

/// The product `out` [columns of left, columns of right] += leftᵀ · right for some columns of the left factor from `first`.
struct Transposed<'a> {
    left: &'a [f32],
    left_width: usize,
    first: usize,
    right: &'a Panels,
    right_width: usize,
    out: &'a mut [f32],
}

dispatched!(multiply_transposed<'a>(work: Transposed<'a>) = multiply_transposed_kernel);

#[inline(always)]
fn multiply_transposed_kernel<S: Simd>(simd: S, work: Transposed) {
    let Transposed { left, left_width, first, right, right_width, out } = work;
    let columns = out.len() / right_width;
    let tall = tall::<S>();
    let mut packed = scratch::<f32>(columns.next_multiple_of(tall) * SPAN);
    for (span, left) in left.chunks(SPAN * left_width).enumerate() {
        let rows = left.len() / left_width;
        let columns_of = left.chunks_exact(left_width).map(|row| &row[first..first + columns]);
        if tall == 12 {
            group::<12>(columns_of, rows, &mut packed);
        } else {
            group::<6>(columns_of, rows, &mut packed);
        }
        for (column, panel) in right.iter() {
            let panel = &panel[span * SPAN * PANEL..][..rows * PANEL];
            let width = PANEL.min(right_width - column);
            for group in 0..columns.div_ceil(tall) {
                let left = Left { data: &packed[group * rows * tall..], row: 1, step: tall };
                let out = &mut out[group * tall * right_width + column..];
                let mut place = Place { data: out, stride: right_width, width, add: true };
                panel::multiply(simd, left, tall.min(columns - group * tall), panel, &mut place);
            }
        }
    }
}

/// Packs `count` rows in groups of `TALL` columns; a group holds its columns of a row side by side.
#[inline(always)]
fn group<'a, const TALL: usize>(rows: impl Iterator<Item = &'a [f32]>, count: usize, packed: &mut [f32]) {
    let packed = packed.as_chunks_mut::<TALL>().0;
    for (at, row) in rows.enumerate() {
        let (groups, rest) = row.as_chunks::<TALL>();
        for (group, numbers) in groups.iter().enumerate() {
            packed[group * count + at] = *numbers;
        }
        if !rest.is_empty() {
            packed[groups.len() * count + at][..rest.len()].copy_from_slice(rest);
        }
    }
}

impl Dtype for f32 {
    type Packs = Vec<WeightPanels>;
    /// The packed right operands of weight gradients, one for each that is computed at once.
    type Workspace = Vec<Panels>;

    const COPIES: bool = false;
    const EXACT: bool = true;

    fn path() -> &'static str {
        "cpu-f32"
    }

    fn stride(width: usize) -> usize {
        width
    }

    fn packed(depth: usize, columns: usize) -> usize {
        depth * columns.next_multiple_of(PANEL) * size_of::<f32>()
    }

    fn pack(layers: &[&Linear], parameters: &[f32], packs: &mut Self::Packs, backward: bool) {
        packs.resize_with(layers.len(), WeightPanels::default);
        let mut tasks = Vec::new();
        for (matrix, pack) in layers.iter().zip(packs) {
            let data = &parameters[matrix.weight.clone()];
            let (inputs, outputs) = (matrix.inputs, matrix.outputs);
            let stride = if matrix.inputs_first { outputs } else { inputs };
            let forward = (&mut pack.forward, inputs, outputs, matrix.inputs_first);
            let backward = backward.then_some((&mut pack.backward, outputs, inputs, !matrix.inputs_first));
            for (panels, depth, columns, across) in [Some(forward), backward].into_iter().flatten() {
                panels.shape(depth, columns);
                tasks.extend(panels.iter_mut().map(|(column, panel)| Filling {
                    data,
                    stride,
                    across,
                    column,
                    width: columns - column,
                    panel,
                }));
            }
        }
        tasks.into_par_iter().for_each(|task| fill(task));
    }

    const WIDTHS: &'static [Width] = &[Width::Full];

    fn shape(matrix: &Linear, _: Width, packs: &mut Self::Packs) {
        packs.resize_with(packs.len().max(matrix.index + 1), WeightPanels::default);
        packs[matrix.index].forward.shape(matrix.inputs, matrix.outputs);
    }

    fn pack_columns(matrix: &Linear, first: usize, data: &[f32], packs: &mut Self::Packs) -> bool {
        let across = matrix.inputs_first;
        let stride = if across { matrix.outputs } else { matrix.inputs };
        let columns = if across { matrix.outputs } else { data.len() / stride };
        let panels = packs[matrix.index].forward.iter_mut().skip(first / PANEL).take(columns.div_ceil(PANEL));
        let tasks: Vec<_> = panels
            .map(|(column, panel)| {
                let column = column - first;
                Filling { data, stride, across, column, width: columns - column, panel }
            })
            .collect();
        tasks.into_par_iter().for_each(|task| fill(task));
        true
    }

    fn column(matrix: &Linear, column: usize, packs: &Self::Packs, to: &mut [f32]) {
        let Panels { data, depth } = &packs[matrix.index].forward;
        let panel = &data[column / PANEL * depth * PANEL..][..depth * PANEL];
        for (to, line) in to.iter_mut().zip(panel.as_chunks::<PANEL>().0) {
            *to = line[column % PANEL];
        }
    }

    fn forward(weight: Weight<Self>, x: &[Self], out: Out<Self>) {
        let Weight { matrix, parameters, packs } = weight;
        let (out, mut add) = place(out);
        if let Some(bias) = &matrix.bias {
            let bias = &parameters[bias.clone()];
            for row in out.chunks_exact_mut(matrix.outputs) {
                if add {
                    row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                } else {
                    row.copy_from_slice(bias);
                }
            }
            add = true;
        }
        multiply(Product { x, right: &packs[matrix.index].forward, columns: matrix.outputs, out, add });
    }

    fn forward_few(weight: Weight<Self>, x: &[Self], out: Out<Self>) {
        let Weight { matrix, parameters, packs } = weight;
        let (right, columns) = (&packs[matrix.index].forward, matrix.outputs);
        let rows = x.len() / right.depth;
        let panels = columns.div_ceil(PANEL);
        let task = panels_per_task(panels);
        let mut sums = scratch::<f32>(panels * rows * PANEL);
        let pieces = sums.chunks_mut(task * rows * PANEL).zip(right.data.chunks(task * right.depth * PANEL));
        spread(pieces.collect(), |(sums, panels)| {
            multiply_panels(PanelProduct { x, depth: right.depth, panels, out: sums });
        });
        let (out, add) = place(out);
        let bias = matrix.bias.clone().map(|bias| &parameters[bias]);
        for (at, sums) in sums.chunks_exact(rows * PANEL).enumerate() {
            let column = at * PANEL;
            let width = PANEL.min(columns - column);
            for (row, sums) in sums.chunks_exact(PANEL).enumerate() {
                let out = &mut out[row * columns + column..][..width];
                match bias.map(|bias| &bias[column..][..width]) {
                    None if add => out.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
                    None => out.copy_from_slice(&sums[..width]),
                    Some(bias) if add => {
                        out.iter_mut().zip(bias).zip(sums).for_each(|((y, bias), sum)| *y = *y + bias + sum);
                    }
                    Some(bias) => out.iter_mut().zip(bias).zip(sums).for_each(|((y, bias), sum)| *y = bias + sum),
                }
            }
        }
    }

    fn backward(weight: Weight<Self>, dy: &[Self], out: Out<Self>) {
        let Weight { matrix, packs, .. } = weight;
        let (out, add) = place(out);
        multiply(Product { x: dy, right: &packs[matrix.index].backward, columns: matrix.inputs, out, add });
    }

    fn gradients(jobs: Vec<Gradient<Self>>, workspace: &mut Self::Workspace) {
        workspace.resize_with(workspace.len().max(jobs.len()), Panels::default);
        let mut packing = Vec::new();
        for (job, panels) in jobs.iter().zip(workspace.iter_mut()) {
            let (data, stride) = (job.right, job.right_width);
            panels.shape(data.len() / stride, stride);
            packing.extend(panels.iter_mut().map(|(column, panel)| Filling {
                data,
                stride,
                across: true,
                column,
                width: stride - column,
                panel,
            }));
        }
        packing.into_par_iter().for_each(|task| fill(task));
        let tasks: Vec<_> = jobs
            .into_iter()
            .zip(&*workspace)
            .flat_map(|(job, right)| {
                let Gradient { left, left_width, right_width, out, .. } = job;
                let parts = out.chunks_mut(SHARE * right_width).enumerate();
                parts.map(move |(part, out)| Transposed {
                    left,
                    left_width,
                    first: part * SHARE,
                    right,
                    right_width,
                    out,
                })
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|task| multiply_transposed(task));
    }

    fn bytes(packs: &Self::Packs, workspace: &Self::Workspace) -> usize {
        let both = packs.iter().flat_map(|pack| [&pack.forward, &pack.backward]);
        both.chain(workspace).map(|panels| panels.data.bytes()).sum()
    }

    fn keep(rows: &[f32], _: usize, to: &mut [Self]) {
        to.copy_from_slice(rows);
    }

    fn convert(numbers: &[f32], to: &mut [Self]) {
        to.copy_from_slice(numbers);
    }

    fn gather(rows: &[Self], stride: usize, width: usize, to: &mut [f32]) {
        for (row, to) in rows.chunks(stride).zip(to.chunks_exact_mut(width)) {
            to.copy_from_slice(&row[..width]);
        }
    }

    #[inline(always)]
    fn read<'a>(row: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        row
    }

    #[inline(always)]
    fn place<'a>(row: &'a mut [Self], _: &'a mut [f32]) -> &'a mut [f32] {
        row
    }

    #[inline(always)]
    fn finish(_: &mut [Self], _: &[f32]) {}

    fn operand<'a>(rows: &'a [f32], _: usize, _: &'a mut [Self]) -> &'a [Self] {
        rows
    }

    fn operands<'a>(rows: &'a [f32], _: &'a [Self]) -> &'a [Self] {
        rows
    }
}

/// Returns the destination, and whether the product is added to it.
fn place(out: Out<'_, f32>) -> (&mut [f32], bool) {
    match out {
        Out::Store(out) | Out::Set(out) => (out, false),
        Out::Add(out) => (out, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns [rows, columns] without gaps.
    fn numbers(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|at| (at * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// Returns [rows, columns] = Σ over depth of `term(row, column, depth)`.
    fn sums(rows: usize, columns: usize, depth: usize, term: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
        let sum = |at: usize| (0..depth).map(|k| f64::from(term(at / columns, at % columns, k))).sum::<f64>() as f32;
        (0..rows * columns).map(sum).collect()
    }

    fn close(left: &[f32], right: &[f32]) -> bool {
        left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < 1e-3)
    }

    #[test]
    fn products_of_any_shape_are_right() {
        for (rows, depth, columns) in [(1, 1, 1), (12, 33, 32), (29, 70, 31), (17, 5, 97), (64, 64, 64)] {
            let x = numbers(rows, depth);
            for across in [true, false] {
                let weight = if across { numbers(depth, columns) } else { numbers(columns, depth) };
                let stride = if across { columns } else { depth };
                let mut right = Panels::default();
                right.shape(depth, columns);
                for (column, panel) in right.iter_mut() {
                    fill(Filling { data: &weight, stride, across, column, width: columns - column, panel });
                }
                let at = |k: usize, column: usize| if across { k * stride + column } else { column * stride + k };
                let expected = sums(rows, columns, depth, |row, column, k| x[row * depth + k] * weight[at(k, column)]);
                let mut out = vec![f32::NAN; rows * columns];
                multiply(Product { x: &x, right: &right, columns, out: &mut out, add: false });
                assert!(close(&out, &expected), "{rows} {depth} {columns} {across}");
                multiply(Product { x: &x, right: &right, columns, out: &mut out, add: true });
                let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
                assert!(close(&out, &twice), "{rows} {depth} {columns} {across}");
            }
        }
    }

    #[test]
    fn gradients_are_added() {
        // More rows than a span and more columns than a task.
        let (rows, left_width, right_width) = (SPAN + 7, SHARE + 5, 40);
        let (left, right) = (numbers(rows, left_width), numbers(rows, right_width));
        let mut out = vec![1.0; left_width * right_width];
        let job = Gradient { left: &left, left_width, right: &right, right_width, out: &mut out };
        f32::gradients(vec![job], &mut Vec::new());
        let expected = sums(left_width, right_width, rows, |row, column, k| {
            left[k * left_width + row] * right[k * right_width + column]
        });
        let expected: Vec<f32> = expected.iter().map(|x| 1.0 + x).collect();
        assert!(close(&out, &expected));
    }
}
