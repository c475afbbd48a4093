//! The arithmetic of the model on plain slices, forwards and backwards. Pure.
//!
//! Kernels are compiled for the instruction sets that the processor may have; which one runs is chosen at run time. Work
//! is cut into pieces of [`ROWS`] rows, whatever the number of threads, and sums over pieces are taken in their order: the
//! same bits for any number of threads.

use rayon::prelude::*;

/// Rows of a piece of work.
pub(super) const ROWS: usize = 256;
/// Partial sums that a reduction keeps, so that it can use vector registers.
const LANES: usize = 16;

/// Makes a function that runs a kernel compiled for the instruction set of this processor. (A closure would not do: it
/// need not be inlined, and then it is compiled for the oldest processor.)
macro_rules! dispatched {
    ($vis:vis $name:ident$([const $width:ident])?<$life:lifetime>($($argument:ident: $type:ty),* $(,)?) = $kernel:expr) => {
        $vis fn $name<$life $(, const $width: usize)?>($($argument: $type),*) {
            struct Work<$life $(, const $width: usize)?> {
                $($argument: $type),*
            }
            impl<$life $(, const $width: usize)?> pulp::WithSimd for Work<$life $(, $width)?> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) {
                    $kernel($(self.$argument),*);
                }
            }
            pulp::Arch::new().dispatch(Work::<$life $(, $width)?> { $($argument),* });
        }
    };
}
pub(super) use dispatched;

/// e^x for x ≤ 88, within two units in the last place; 0 below −87. (Cephes' `expf`, without its branches.)
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1] {
        p = p.mul_add(r, c);
    }
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    p.mul_add(r * r, r + 1.0) * power
}

/// Σ a·b
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let count = a.len().min(b.len());
    let (blocks_a, blocks_b) = (a[..count].chunks_exact(LANES), b[..count].chunks_exact(LANES));
    let (rest_a, rest_b) = (blocks_a.remainder(), blocks_b.remainder());
    for (block_a, block_b) in blocks_a.zip(blocks_b) {
        for lane in 0..LANES {
            lanes[lane] = block_a[lane].mul_add(block_b[lane], lanes[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane = a.mul_add(*b, *lane);
    }
    fold(lanes)
}

/// Σ lanes, halved again and again.
#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of `values`; −∞ of none.
#[inline(always)]
fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = values.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces `values` by e^(value − their maximum) and returns (the maximum, the sum of the results).
#[inline(always)]
pub(super) fn exponentials(values: &mut [f32]) -> (f32, f32) {
    let top = maximum(values);
    let mut lanes = [0.0_f32; LANES];
    let mut blocks = values.chunks_exact_mut(LANES);
    for block in blocks.by_ref() {
        for lane in 0..LANES {
            block[lane] = exp(block[lane] - top);
            lanes[lane] += block[lane];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(blocks.into_remainder()) {
        *value = exp(*value - top);
        *lane += *value;
    }
    (top, fold(lanes))
}

/// [`exponentials`] of every row of `values`, `width` wide; (maximum, sum) of each row goes to `totals`.
pub(super) fn exponentials_of_rows(values: &mut [f32], width: usize, totals: &mut [(f32, f32)]) {
    exponentials_piece(values, width, totals);
}

#[inline(always)]
fn exponentials_rows(values: &mut [f32], width: usize, totals: &mut [(f32, f32)]) {
    for (row, total) in values.chunks_exact_mut(width).zip(totals) {
        *total = exponentials(row);
    }
}

/// `RMSNorm` of every row of `x`: `y = x / sqrt(mean(x²) + eps) · weight`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    let pieces = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
    pieces.for_each(|(y, x)| rms_norm_piece(x, weight, eps, y));
}

#[inline(always)]
fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

/// The gradients of [`rms_norm`] by `x` (written to `dx`) and by `weight` (returned).
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) -> Vec<f32> {
    let width = weight.len();
    let pieces = dx.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(dy.par_chunks(ROWS * width));
    let partial: Vec<Vec<f32>> = pieces
        .map(|((dx, x), dy)| {
            let mut dw = vec![0.0; width];
            rms_norm_backward_piece(x, weight, eps, dy, dx, &mut dw);
            dw
        })
        .collect();
    sum_in_order(partial, width)
}

#[inline(always)]
fn rms_norm_backward_rows(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for (((dx, dy), w), (x, dw)) in dx.iter_mut().zip(dy).zip(weight).zip(x.iter().zip(dw.iter_mut())) {
            *dx = dy * w;
            *dw = (dy * scale).mul_add(*x, *dw);
        }
        let along = dot(dx, x) * scale * scale * scale / width as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale.mul_add(*dx, -along * x);
        }
    }
}

/// Adds vectors of `width` numbers in their order.
pub(super) fn sum_in_order(partial: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut parts = partial.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; width]);
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sum
}

/// `SwiGLU` of rows that hold gate and up side by side: `y = silu(gate) · up`, each `width` wide.
pub(super) fn swiglu(gate_up: &[f32], width: usize, y: &mut [f32]) {
    let pieces = y.par_chunks_mut(ROWS * width).zip(gate_up.par_chunks(2 * ROWS * width));
    pieces.for_each(|(y, x)| swiglu_piece(x, width, y));
}

#[inline(always)]
fn swiglu_rows(gate_up: &[f32], width: usize, y: &mut [f32]) {
    for (y, x) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = x.split_at(width);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// The gradient of [`swiglu`] by its input.
pub(super) fn swiglu_backward(gate_up: &[f32], width: usize, dy: &[f32], dx: &mut [f32]) {
    let pieces =
        dx.par_chunks_mut(2 * ROWS * width).zip(gate_up.par_chunks(2 * ROWS * width)).zip(dy.par_chunks(ROWS * width));
    pieces.for_each(|((dx, x), dy)| swiglu_backward_piece(x, width, dy, dx));
}

#[inline(always)]
fn swiglu_backward_rows(gate_up: &[f32], width: usize, dy: &[f32], dx: &mut [f32]) {
    let rows = dx.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width)).zip(dy.chunks_exact(width));
    for ((dx, x), dy) in rows {
        let (gate, up) = x.split_at(width);
        let (dgate, dup) = dx.split_at_mut(width);
        for (((dgate, dup), (gate, up)), dy) in dgate.iter_mut().zip(dup).zip(gate.iter().zip(up)).zip(dy) {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            *dup = dy * gate * sigmoid;
            *dgate = dy * up * sigmoid * (gate * (1.0 - sigmoid) + 1.0);
        }
    }
}

dispatched!(exponentials_piece<'a>(
    values: &'a mut [f32], width: usize, totals: &'a mut [(f32, f32)],
) = exponentials_rows);
dispatched!(pub(super) rms_norm_piece<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, y: &'a mut [f32]) = rms_norm_rows);
dispatched!(rms_norm_backward_piece<'a>(
    x: &'a [f32], weight: &'a [f32], eps: f32, dy: &'a [f32], dx: &'a mut [f32], dw: &'a mut [f32],
) = rms_norm_backward_rows);
dispatched!(pub(super) swiglu_piece<'a>(gate_up: &'a [f32], width: usize, y: &'a mut [f32]) = swiglu_rows);
dispatched!(swiglu_backward_piece<'a>(
    gate_up: &'a [f32], width: usize, dy: &'a [f32], dx: &'a mut [f32],
) = swiglu_backward_rows);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_enough() {
        for step in -8700..=0 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= 3e-7 * expected, "{x}");
        }
    }

    #[test]
    fn reductions_cover_the_remainder() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert!((dot(&values, &values) - 16_206.0).abs() < 0.5);
        let (top, sum) = exponentials(&mut values.clone());
        assert!((top - 36.0).abs() < f32::EPSILON && (sum - 1.581_976_7).abs() < 1e-5, "{top} {sum}");
    }
}
