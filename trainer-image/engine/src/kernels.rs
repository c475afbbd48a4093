//! The arithmetic of the model on plain slices, forwards and backwards. Pure.
//!
//! Kernels are compiled for the instruction sets that the processor may have; which one runs is chosen at run time. Whoever
//! calls them cuts the work into pieces of [`ROWS`] rows, whatever the number of threads, and sums over pieces are taken in
//! their order: the same bits for any number of threads.

use pulp::Simd;
use rayon::prelude::*;

/// Rows of a piece of work.
pub(crate) const ROWS: usize = 256;

/// Makes a function that runs a kernel compiled for the instruction set of this processor:
/// `dispatched!(name<'a>(argument: &'a [f32]) = kernel)`, where `kernel` is generic over `pulp::Simd` and takes it first.
#[macro_export]
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis $name:ident$([const $width:ident])?<$life:lifetime>(
        $($argument:ident: $type:ty),* $(,)?
    ) = $kernel:expr) => {
        $(#[$doc])*
        $vis fn $name<$life $(, const $width: usize)?>($($argument: $type),*) {
            struct Work<$life $(, const $width: usize)?> {
                $($argument: $type),*
            }
            impl<$life $(, const $width: usize)?> pulp::WithSimd for Work<$life $(, $width)?> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, simd: S) {
                    $kernel(simd, $(self.$argument),*);
                }
            }
            pulp::Arch::new().dispatch(Work::<$life $(, $width)?> { $($argument),* });
        }
    };
}
pub(crate) use dispatched;

/// `each!(simd, out; a, b => expression)`: replaces every number of `out` by the expression over `out`, `a` and `b`, each of
/// which is a vector of numbers in it. (A macro, for a closure need not be inlined, and then it is compiled for the oldest
/// processor.)
macro_rules! each {
    ($simd:ident: $s:ident, $out:ident; $($input:ident),* => $value:expr) => {{
        $(let $input = &$input[..$out.len()];)*
        let (whole, rest) = $s::as_mut_simd_f32s($out);
        let count = whole.len();
        {
            $(let $input = &$s::as_simd_f32s($input).0[..count];)*
            for index in 0..count {
                let $out = whole[index];
                $(let $input = $input[index];)*
                let _ = $out;
                whole[index] = $value;
            }
        }
        if !rest.is_empty() {
            let $out = $simd.partial_load_f32s(rest);
            $(let $input = $simd.partial_load_f32s($s::as_simd_f32s($input).1);)*
            let _ = $out;
            $simd.partial_store_f32s(rest, $value);
        }
    }};
}

/// e^x for x ≤ 88, within two units in the last place; 10⁻³⁸ below −87, NaN of NaN. (Cephes' `expf`, without its branches.)
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding it leaves a number rounded to whole in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let splat = |value: f32| simd.splat_f32s(value);
    // In this order of arguments, NaN stays NaN.
    let x = simd.min_f32s(splat(88.3), simd.max_f32s(splat(-87.3), x));
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_f32s(n, splat(-0.693_359_4), x);
    let r = simd.mul_add_f32s(n, splat(2.121_944_4e-4), r);
    let p = simd.mul_add_f32s(splat(1.987_569_1e-4), r, splat(1.398_2e-3));
    let p = simd.mul_add_f32s(p, r, splat(8.333_452e-3));
    let p = simd.mul_add_f32s(p, r, splat(4.166_579_6e-2));
    let p = simd.mul_add_f32s(p, r, splat(1.666_666_5e-1));
    let p = simd.mul_add_f32s(p, r, splat(5.000_000_3e-1));
    let p = simd.mul_add_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    // 2ⁿ: n + 127 is the exponent, and what stands above it in `shifted` falls out of the register.
    let exponent = simd.add_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(127));
    let power = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// Σ a·b
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let whole_b = &whole_b[..whole_a.len()];
    let mut sum = simd.splat_f32s(0.0);
    for index in 0..whole_a.len() {
        sum = simd.mul_add_f32s(whole_a[index], whole_b[index], sum);
    }
    if !rest_a.is_empty() {
        sum = simd.mul_add_f32s(simd.partial_load_f32s(rest_a), simd.partial_load_f32s(rest_b), sum);
    }
    simd.reduce_sum_f32s(sum)
}

/// The largest of `values`; −∞ of none.
#[inline(always)]
fn maximum<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(values);
    let mut top = simd.splat_f32s(f32::NEG_INFINITY);
    for values in whole {
        top = simd.max_f32s(top, *values);
    }
    let mut top = simd.reduce_max_f32s(top);
    for value in rest {
        top = if *value > top { *value } else { top };
    }
    top
}

/// Replaces `values` by e^(value − their maximum) and returns (the maximum, the sum of the results).
#[inline(always)]
pub fn exponentials<S: Simd>(simd: S, values: &mut [f32]) -> (f32, f32) {
    let top = maximum(simd, values);
    let shift = simd.splat_f32s(top);
    each!(simd: S, values; => exp(simd, simd.sub_f32s(values, shift)));
    let (whole, rest) = S::as_simd_f32s(values);
    let mut sum = simd.splat_f32s(0.0);
    for values in whole {
        sum = simd.add_f32s(sum, *values);
    }
    if !rest.is_empty() {
        sum = simd.add_f32s(sum, simd.partial_load_f32s(rest));
    }
    (top, simd.reduce_sum_f32s(sum))
}

/// Multiplies `values` by `factor`.
#[inline(always)]
pub fn scale<S: Simd>(simd: S, values: &mut [f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    each!(simd: S, values; => simd.mul_f32s(values, factor));
}

/// The slope of a softmax: `slopes = scores · (slopes − mean)`.
#[inline(always)]
pub(crate) fn softmax_slopes<S: Simd>(simd: S, scores: &[f32], mean: f32, slopes: &mut [f32]) {
    let mean = simd.splat_f32s(mean);
    each!(simd: S, slopes; scores => simd.mul_f32s(scores, simd.sub_f32s(slopes, mean)));
}

#[inline(always)]
fn exponentials_rows<S: Simd>(simd: S, values: &mut [f32], width: usize, totals: &mut [(f32, f32)]) {
    for (row, total) in values.chunks_exact_mut(width).zip(totals) {
        *total = exponentials(simd, row);
    }
}

/// 1 / sqrt(mean(x²) + eps)
#[inline(always)]
fn inverse_norm<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(simd, x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_rows<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let factor = simd.splat_f32s(inverse_norm(simd, x, eps));
        each!(simd: S, y; x, weight => simd.mul_f32s(simd.mul_f32s(x, factor), weight));
    }
}

#[inline(always)]
fn rms_norm_backward_rows<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let width = weight.len();
    let mut slopes = vec![0.0_f32; width];
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let norm = inverse_norm(simd, x, eps);
        let factor = simd.splat_f32s(norm);
        let dw = &mut *dw;
        each!(simd: S, dw; x, dy => simd.mul_add_f32s(simd.mul_f32s(dy, factor), x, dw));
        let along = {
            let slopes = slopes.as_mut_slice();
            each!(simd: S, slopes; dy, weight => simd.mul_f32s(dy, weight));
            dot(simd, slopes, x) * norm * norm * norm / width as f32
        };
        let (along, slopes) = (simd.splat_f32s(-along), slopes.as_slice());
        each!(simd: S, dx; slopes, x => simd.mul_add_f32s(factor, slopes, simd.mul_add_f32s(along, x, dx)));
    }
}

/// Adds vectors to `sum` in their order.
pub(crate) fn sum_in_order(parts: &[Vec<f32>], sum: &mut [f32]) {
    const WIDTH: usize = 4096;
    sum.par_chunks_mut(WIDTH).enumerate().for_each(|(index, sum)| {
        for part in parts {
            add(&part[index * WIDTH..][..sum.len()], sum);
        }
    });
}

#[inline(always)]
fn add_all<S: Simd>(simd: S, part: &[f32], sum: &mut [f32]) {
    each!(simd: S, sum; part => simd.add_f32s(sum, part));
}

/// 1 / (1 + e^−x)
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

#[inline(always)]
fn swiglu_rows<S: Simd>(simd: S, gate_up: &[f32], width: usize, y: &mut [f32]) {
    for (y, x) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = x.split_at(width);
        each!(simd: S, y; gate, up => simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, gate)), up));
    }
}

#[inline(always)]
fn swiglu_backward_rows<S: Simd>(simd: S, gate_up: &[f32], width: usize, dy: &[f32], dx: &mut [f32]) {
    let rows = dx.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width)).zip(dy.chunks_exact(width));
    let one = simd.splat_f32s(1.0);
    for ((dx, x), dy) in rows {
        let (gate, up) = x.split_at(width);
        let (dgate, dup) = dx.split_at_mut(width);
        // dup holds the sigmoid until dgate is done.
        each!(simd: S, dup; gate => sigmoid(simd, gate));
        {
            let share = &*dup;
            each!(simd: S, dgate; gate, up, dy, share => {
                let slope = simd.mul_add_f32s(gate, simd.sub_f32s(one, share), one);
                simd.mul_f32s(simd.mul_f32s(dy, up), simd.mul_f32s(share, slope))
            });
        }
        each!(simd: S, dup; gate, dy => simd.mul_f32s(simd.mul_f32s(dy, gate), dup));
    }
}

dispatched!(
    /// [`exponentials`] of every row of `values`, `width` wide; (maximum, sum) of each row goes to `totals`.
    pub(crate) exponentials_of_rows<'a>(
        values: &'a mut [f32], width: usize, totals: &'a mut [(f32, f32)],
    ) = exponentials_rows
);
dispatched!(
    /// `RMSNorm` of every row of `x`: `y = x / sqrt(mean(x²) + eps) · weight`.
    pub rms_norm<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, y: &'a mut [f32]) = rms_norm_rows
);
dispatched!(
    /// Adds the gradients of [`rms_norm`] by `x` to `dx` and by `weight` to `dw`.
    pub(crate) rms_norm_backward<'a>(
        x: &'a [f32], weight: &'a [f32], eps: f32, dy: &'a [f32], dx: &'a mut [f32], dw: &'a mut [f32],
    ) = rms_norm_backward_rows
);
dispatched!(
    /// `SwiGLU` of rows that hold gate and up side by side: `y = silu(gate) · up`, each `width` wide.
    pub swiglu<'a>(gate_up: &'a [f32], width: usize, y: &'a mut [f32]) = swiglu_rows
);
dispatched!(
    /// The gradient of [`swiglu`] by its input.
    pub(crate) swiglu_backward<'a>(
        gate_up: &'a [f32], width: usize, dy: &'a [f32], dx: &'a mut [f32],
    ) = swiglu_backward_rows
);
dispatched!(add<'a>(part: &'a [f32], sum: &'a mut [f32]) = add_all);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_enough() {
        let mut values: Vec<f32> = (-8700..=0).map(|step| step as f32 / 100.0).collect();
        let expected: Vec<f64> = values.iter().map(|x| f64::from(*x).exp()).collect();
        let mut totals = [(0.0, 0.0)];
        let width = values.len();
        exponentials_of_rows(&mut values, width, &mut totals);
        for (value, expected) in values.iter().zip(&expected) {
            assert!((f64::from(*value) - expected).abs() <= 3e-7 * expected, "{value} {expected}");
        }
        assert!(totals[0].0.abs() < f32::EPSILON);
        assert!((f64::from(totals[0].1) - expected.iter().sum::<f64>()).abs() < 1e-3);
    }

    #[test]
    fn nan_stays_nan() {
        let (mut values, mut totals) = ([0.0, f32::NAN, 1.0], [(0.0, 0.0)]);
        exponentials_of_rows(&mut values, 3, &mut totals);
        assert!(totals[0].1.is_nan());
    }

    #[test]
    fn what_does_not_fill_a_register_is_computed_too() {
        let (gate_up, mut y) = (vec![1.0; 2 * 37], vec![0.0; 37]);
        swiglu(&gate_up, 37, &mut y);
        assert!(y.iter().all(|y| (y - 0.731_058_6).abs() < 1e-6), "{y:?}");
        let mut normed = vec![0.0; 37];
        rms_norm(&gate_up[..37], &[2.0; 37], 0.0, &mut normed);
        assert!(normed.iter().all(|y| (y - 2.0).abs() < 1e-6), "{normed:?}");
    }

    #[test]
    fn sums_cover_every_piece() {
        let parts = vec![vec![1.0; 10_000], vec![2.0; 10_000]];
        let mut sum = vec![0.5; 10_000];
        sum_in_order(&parts, &mut sum);
        assert!(sum.iter().all(|x| (x - 3.5).abs() < f32::EPSILON));
    }
}
