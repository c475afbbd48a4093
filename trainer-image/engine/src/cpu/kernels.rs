//! Elementary kernels on slices: exponentials, softmax, sums. Pure.
//!
//! Kernels are compiled for every instruction set and dispatched at run time. Callers split the work independently of the
//! number of threads and sum the parts in order, so that the bits do not depend on it.

use pulp::Simd;

use super::{
    buffer::scratch,
    dispatch::{dispatched, dispatched_for, each},
    matrix::Dtype,
};

/// Returns e^x for x ≤ 88, within two units in the last place; 10⁻³⁸ below −87, NaN for NaN. (Cephes' `expf` without
/// branches.)
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding this rounds to an integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let splat = |value: f32| simd.splat_f32s(value);
    // In this order of arguments, the instructions propagate NaN. Rust's `min` and `max`, which the scalar path uses, do
    // not.
    if S::IS_SCALAR && simd.reduce_sum_f32s(x).is_nan() {
        return x;
    }
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
    // 2ⁿ: n + 127 is the exponent; the shift drops the other bits of `shifted`.
    let exponent = simd.add_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(127));
    let power = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// Returns Σ a·b.
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

/// Returns the maximum of `values`; −∞ if empty.
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

/// Replaces `values` with e^(value − maximum). Returns the maximum and the sum of the results.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, values: &mut [f32]) -> (f32, f32) {
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
pub(crate) fn scale<S: Simd>(simd: S, values: &mut [f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    each!(simd: S, values; => simd.mul_f32s(values, factor));
}

/// Computes the gradient of a softmax: `dscores = scores · (dscores − mean)`.
#[inline(always)]
pub(crate) fn softmax_backward<S: Simd>(simd: S, scores: &[f32], mean: f32, dscores: &mut [f32]) {
    let mean = simd.splat_f32s(mean);
    each!(simd: S, dscores; scores => simd.mul_f32s(scores, simd.sub_f32s(dscores, mean)));
}

#[inline(always)]
fn exponentials_rows<S: Simd>(simd: S, values: &mut [f32], width: usize, totals: &mut [(f32, f32)]) {
    for (row, total) in values.chunks_exact_mut(width).zip(totals) {
        *total = exponentials(simd, row);
    }
}

#[inline(always)]
fn add_all<S: Simd>(simd: S, part: &[f32], sum: &mut [f32]) {
    each!(simd: S, sum; part => simd.add_f32s(sum, part));
}

#[inline(always)]
fn add_columns_rows<S: Simd, N: Dtype>(simd: S, rows: &[N], stride: usize, sum: &mut [f32]) {
    let mut buffer = scratch::<f32>(sum.len());
    for row in rows.chunks(stride) {
        let row = N::read(&row[..sum.len()], &mut buffer);
        let sum = &mut *sum;
        each!(simd: S, sum; row => simd.add_f32s(sum, row));
    }
}

dispatched!(
    /// Applies [`exponentials`] to every row of `values`; `totals` receives (maximum, sum) of each row.
    pub(crate) exponentials_of_rows<'a>(
        values: &'a mut [f32], width: usize, totals: &'a mut [(f32, f32)],
    ) = exponentials_rows
);
dispatched!(
    /// Adds `part` to `sum`.
    pub(crate) add<'a>(part: &'a [f32], sum: &'a mut [f32]) = add_all
);
dispatched!(
    /// Multiplies `numbers` by `factor`.
    pub(crate) multiply_all<'a>(numbers: &'a mut [f32], factor: f32) = scale
);
dispatched_for!(
    /// Adds the sums over `rows` of their first columns to `sum`. Rows are `stride` apart.
    pub(crate) add_columns<'a, N>(rows: &'a [N], stride: usize, sum: &'a mut [f32]) = add_columns_rows
);

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
}
