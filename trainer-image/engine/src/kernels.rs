//! The arithmetic of the model on plain slices, forwards and backwards. Pure.
//!
//! Kernels are compiled for the instruction sets that the processor may have; which one runs is chosen at run time. Whoever
//! calls them cuts the work into pieces whatever the number of threads, and sums over pieces are taken in their order: the same
//! bits for any number of threads.

use pulp::Simd;

use super::{buffer::scratch, matrix::Number};

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
            $crate::arch().dispatch(Work::<$life $(, $width)?> { $($argument),* });
        }
    };
}
pub(crate) use dispatched;

/// As [`dispatched!`], for a kernel that is generic over how activations are stored, too.
macro_rules! dispatched_for {
    ($(#[$doc:meta])* $vis:vis $name:ident<$life:lifetime, $number:ident>(
        $($argument:ident: $type:ty),* $(,)?
    ) = $kernel:ident) => {
        $(#[$doc])*
        $vis fn $name<$life, $number: $crate::matrix::Number>($($argument: $type),*) {
            struct Work<$life, $number> {
                $($argument: $type),*
            }
            impl<$life, $number: $crate::matrix::Number> pulp::WithSimd for Work<$life, $number> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, simd: S) {
                    $kernel::<S, $number>(simd, $(self.$argument),*);
                }
            }
            $crate::arch().dispatch(Work::<$life, $number> { $($argument),* });
        }
    };
}

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
    // In this order of arguments, instructions keep a NaN; Rust's own `min` and `max`, which one number at a time has, do not.
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
fn rms_norm_row<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let factor = simd.splat_f32s(inverse_norm(simd, x, eps));
    each!(simd: S, y; x, weight => simd.mul_f32s(simd.mul_f32s(x, factor), weight));
}

#[inline(always)]
fn rms_norm_rows<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        rms_norm_row(simd, x, weight, eps, y);
    }
}

/// Σ x
#[inline(always)]
fn total<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let mut sum = simd.splat_f32s(0.0);
    for x in whole {
        sum = simd.add_f32s(sum, *x);
    }
    if !rest.is_empty() {
        sum = simd.add_f32s(sum, simd.partial_load_f32s(rest));
    }
    simd.reduce_sum_f32s(sum)
}

/// `to = (x − mean(x)) / sqrt(var(x) + eps)`; returns 1 / sqrt(var(x) + eps).
#[inline(always)]
fn standardise<S: Simd>(simd: S, x: &[f32], eps: f32, to: &mut [f32]) -> f32 {
    let mean = simd.splat_f32s(total(simd, x) / x.len() as f32);
    {
        let to = &mut *to;
        each!(simd: S, to; x => simd.sub_f32s(x, mean));
    }
    let norm = inverse_norm(simd, to, eps);
    scale(simd, to, norm);
    norm
}

/// The numbers of a norm: `RMSNorm` (Zhang and Sennrich 2019) without a bias, `LayerNorm` (Ba et al. 2016) with one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormWeights<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

#[inline(always)]
fn norm_rows<S: Simd, N: Number>(simd: S, x: &[f32], norm: NormWeights, y: &mut [N]) {
    let NormWeights { weight, bias, eps } = norm;
    let width = weight.len();
    let mut room = scratch::<f32>(width);
    for (y, x) in y.chunks_exact_mut(N::stride(width)).zip(x.chunks_exact(width)) {
        let (y, behind) = y.split_at_mut(width);
        {
            let y = N::place(y, &mut room);
            match bias {
                None => rms_norm_row(simd, x, weight, eps, y),
                Some(bias) => {
                    standardise(simd, x, eps, y);
                    each!(simd: S, y; weight, bias => simd.mul_add_f32s(y, weight, bias));
                }
            }
        }
        N::finish(y, &room);
        behind.fill(N::default());
    }
}

#[inline(always)]
fn norm_backward_rows<S: Simd>(simd: S, x: &[f32], norm: NormWeights, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let NormWeights { weight, bias, eps } = norm;
    let width = weight.len();
    let (dw, dbias) = dw.split_at_mut(width);
    let (mut slopes, mut normed) = (scratch::<f32>(width), scratch::<f32>(width));
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let slopes = &mut slopes[..];
        let dw = &mut *dw;
        if bias.is_none() {
            let norm = inverse_norm(simd, x, eps);
            let factor = simd.splat_f32s(norm);
            each!(simd: S, dw; x, dy => simd.mul_add_f32s(simd.mul_f32s(dy, factor), x, dw));
            {
                let slopes = &mut *slopes;
                each!(simd: S, slopes; dy, weight => simd.mul_f32s(dy, weight));
            }
            let along = dot(simd, slopes, x) * norm * norm * norm / width as f32;
            let (along, slopes) = (simd.splat_f32s(-along), &*slopes);
            each!(simd: S, dx; slopes, x => simd.mul_add_f32s(factor, slopes, simd.mul_add_f32s(along, x, dx)));
        } else {
            let normed = &mut normed[..];
            let norm = standardise(simd, x, eps, normed);
            let normed = &*normed;
            let dbias = &mut *dbias;
            each!(simd: S, dw; normed, dy => simd.mul_add_f32s(dy, normed, dw));
            each!(simd: S, dbias; dy => simd.add_f32s(dbias, dy));
            {
                let slopes = &mut *slopes;
                each!(simd: S, slopes; dy, weight => simd.mul_f32s(dy, weight));
            }
            let mean = simd.splat_f32s(-total(simd, slopes) / width as f32);
            let along = simd.splat_f32s(-dot(simd, slopes, normed) / width as f32);
            let (factor, slopes) = (simd.splat_f32s(norm), &*slopes);
            each!(simd: S, dx; slopes, normed => {
                let slope = simd.mul_add_f32s(along, normed, simd.add_f32s(slopes, mean));
                simd.mul_add_f32s(factor, slope, dx)
            });
        }
    }
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

/// `y = silu(gate) · up`
#[inline(always)]
fn swiglu_row<S: Simd>(simd: S, gate: &[f32], up: &[f32], y: &mut [f32]) {
    each!(simd: S, y; gate, up => simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, gate)), up));
}

#[inline(always)]
fn swiglu_rows<S: Simd>(simd: S, gate_up: &[f32], width: usize, y: &mut [f32]) {
    for (y, x) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = x.split_at(width);
        swiglu_row(simd, gate, up, y);
    }
}

/// tanh(√(2/π) · (x + 0.044715 · x³)) and its slope by x.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let splat = |value: f32| simd.splat_f32s(value);
    let square = simd.mul_f32s(x, x);
    let inner = simd.mul_f32s(simd.mul_f32s(splat(ROOT), x), simd.mul_add_f32s(splat(CUBE), square, splat(1.0)));
    // tanh(u) = 2 · sigmoid(2u) − 1
    let tanh = simd.mul_add_f32s(splat(2.0), sigmoid(simd, simd.add_f32s(inner, inner)), splat(-1.0));
    let slope = simd.mul_f32s(splat(ROOT), simd.mul_add_f32s(splat(3.0 * CUBE), square, splat(1.0)));
    let along = simd.sub_f32s(splat(1.0), simd.mul_f32s(tanh, tanh));
    (tanh, simd.mul_f32s(along, slope))
}

/// `y = x / 2 · (1 + tanh(…))`, Hugging Face's `gelu_new`.
#[inline(always)]
fn gelu_row<S: Simd>(simd: S, x: &[f32], y: &mut [f32]) {
    let half = simd.splat_f32s(0.5);
    each!(simd: S, y; x => {
        let (tanh, _) = gelu_tanh(simd, x);
        let share = simd.mul_f32s(half, x);
        simd.mul_add_f32s(share, tanh, share)
    });
}

/// How a feed-forward block bends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bend {
    /// Of rows that hold gate and up side by side: `silu(gate) · up`.
    SwiGlu,
    /// `gelu_new`
    Gelu,
}

impl Bend {
    /// The width that it takes to give `width`.
    pub(crate) fn inputs(self, width: usize) -> usize {
        match self {
            Self::SwiGlu => 2 * width,
            Self::Gelu => width,
        }
    }
}

#[inline(always)]
fn bend_rows<S: Simd, N: Number>(simd: S, bend: Bend, x: &[N], width: usize, y: &mut [N]) {
    let wide = bend.inputs(width);
    let (mut room_x, mut room_y) = (scratch::<f32>(wide), scratch::<f32>(width));
    for (x, y) in x.chunks_exact(N::stride(wide)).zip(y.chunks_exact_mut(N::stride(width))) {
        let (y, behind) = y.split_at_mut(width);
        let x = N::read(&x[..wide], &mut room_x);
        {
            let y = N::place(y, &mut room_y);
            match bend {
                Bend::SwiGlu => swiglu_row(simd, &x[..width], &x[width..], y),
                Bend::Gelu => gelu_row(simd, x, y),
            }
        }
        N::finish(y, &room_y);
        behind.fill(N::default());
    }
}

/// What the way back of a [`Bend`] reads and writes: rows of `x` and `dx` are as wide as it takes, those of `y` and `dy` as wide
/// as it gives.
pub(crate) struct BendBackward<'a, N> {
    pub(crate) bend: Bend,
    pub(crate) width: usize,
    pub(crate) x: &'a [N],
    pub(crate) dy: &'a [N],
    /// What came out, computed again.
    pub(crate) y: &'a mut [N],
    pub(crate) dx: &'a mut [N],
}

#[inline(always)]
fn bend_backward_rows<S: Simd, N: Number>(simd: S, work: BendBackward<N>) {
    let BendBackward { bend, width, x, dy, y, dx } = work;
    let wide = bend.inputs(width);
    let (mut room_x, mut room_dx) = (scratch::<f32>(wide), scratch::<f32>(wide));
    let (mut room_y, mut room_dy) = (scratch::<f32>(width), scratch::<f32>(width));
    let (narrow, wider) = (N::stride(width), N::stride(wide));
    let rows = x.chunks_exact(wider).zip(dx.chunks_exact_mut(wider));
    let rows = rows.zip(dy.chunks_exact(narrow).zip(y.chunks_exact_mut(narrow)));
    for ((x, dx), (dy, y)) in rows {
        let ((dx, behind_dx), (y, behind_y)) = (dx.split_at_mut(wide), y.split_at_mut(width));
        let (x, dy) = (N::read(&x[..wide], &mut room_x), N::read(&dy[..width], &mut room_dy));
        {
            let (dx, y) = (N::place(dx, &mut room_dx), N::place(y, &mut room_y));
            match bend {
                Bend::SwiGlu => swiglu_backward_row(simd, x, dy, y, dx),
                Bend::Gelu => gelu_backward_row(simd, x, dy, y, dx),
            }
        }
        N::finish(dx, &room_dx);
        N::finish(y, &room_y);
        behind_dx.fill(N::default());
        behind_y.fill(N::default());
    }
}

#[inline(always)]
fn swiglu_backward_row<S: Simd>(simd: S, x: &[f32], dy: &[f32], y: &mut [f32], dx: &mut [f32]) {
    let one = simd.splat_f32s(1.0);
    let (gate, up) = x.split_at(y.len());
    let (dgate, dup) = dx.split_at_mut(y.len());
    // dup holds the sigmoid until dgate is done.
    {
        let dup = &mut *dup;
        each!(simd: S, dup; gate => sigmoid(simd, gate));
    }
    {
        let share = &*dup;
        each!(simd: S, dgate; gate, up, dy, share => {
            let slope = simd.mul_add_f32s(gate, simd.sub_f32s(one, share), one);
            simd.mul_f32s(simd.mul_f32s(dy, up), simd.mul_f32s(share, slope))
        });
        each!(simd: S, y; gate, up, share => simd.mul_f32s(simd.mul_f32s(gate, share), up));
    }
    each!(simd: S, dup; gate, dy => simd.mul_f32s(simd.mul_f32s(dy, gate), dup));
}

#[inline(always)]
fn gelu_backward_row<S: Simd>(simd: S, x: &[f32], dy: &[f32], y: &mut [f32], dx: &mut [f32]) {
    let half = simd.splat_f32s(0.5);
    gelu_row(simd, x, y);
    each!(simd: S, dx; x, dy => {
        let (tanh, slope) = gelu_tanh(simd, x);
        let slope = simd.mul_add_f32s(x, slope, simd.add_f32s(simd.splat_f32s(1.0), tanh));
        simd.mul_f32s(simd.mul_f32s(half, dy), slope)
    });
}

#[inline(always)]
fn add_columns_rows<S: Simd, N: Number>(simd: S, rows: &[N], stride: usize, sum: &mut [f32]) {
    let mut room = scratch::<f32>(sum.len());
    for row in rows.chunks(stride) {
        let row = N::read(&row[..sum.len()], &mut room);
        let sum = &mut *sum;
        each!(simd: S, sum; row => simd.add_f32s(sum, row));
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
    /// `SwiGLU` of rows that hold gate and up side by side: `y = silu(gate) · up`, each `width` wide.
    pub swiglu<'a>(gate_up: &'a [f32], width: usize, y: &'a mut [f32]) = swiglu_rows
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
    /// The norm of every row of `x`, which lie without gaps.
    pub(crate) norm<'a, N>(x: &'a [f32], norm: NormWeights<'a>, y: &'a mut [N]) = norm_rows
);
dispatched!(
    /// Adds the gradients of [`norm`] by `x` to `dx`, and those by weight and bias to `dw`, one after the other.
    pub(crate) norm_backward<'a>(
        x: &'a [f32], norm: NormWeights<'a>, dy: &'a [f32], dx: &'a mut [f32], dw: &'a mut [f32],
    ) = norm_backward_rows
);
dispatched_for!(
    /// Bends every row of `x` into one of `y`, which is `width` wide.
    pub(crate) bend<'a, N>(bend: Bend, x: &'a [N], width: usize, y: &'a mut [N]) = bend_rows
);
dispatched_for!(
    /// The gradient of [`bend`] by its input.
    pub(crate) bend_backward<'a, N>(work: BendBackward<'a, N>) = bend_backward_rows
);
dispatched_for!(
    /// Adds the sums over `rows`, which are `stride` apart, of their first columns to `sum`.
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

    #[test]
    fn what_does_not_fill_a_register_is_computed_too() {
        let (gate_up, mut y) = (vec![1.0; 2 * 37], vec![0.0; 37]);
        swiglu(&gate_up, 37, &mut y);
        assert!(y.iter().all(|y| (y - 0.731_058_6).abs() < 1e-6), "{y:?}");
        let mut normed = vec![0.0; 37];
        rms_norm(&gate_up[..37], &[2.0; 37], 0.0, &mut normed);
        assert!(normed.iter().all(|y| (y - 2.0).abs() < 1e-6), "{normed:?}");
    }
}
