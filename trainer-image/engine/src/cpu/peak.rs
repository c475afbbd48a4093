//! The speed of a large product of the kernels. Reads the clock.

use super::{
    buffer::Buffer,
    matrix::{Dtype, Out, Weight, forward_parallel},
};
use crate::{model::Linear, peak};

/// Measures the floating-point operations in a second of a large product in the type of activations `N`, on all threads.
pub(crate) fn peak_flops<N: Dtype>() -> f64 {
    const SIZE: usize = peak::SIZE;
    let matrix =
        Linear { index: 0, inputs: SIZE, outputs: SIZE, weight: 0..SIZE * SIZE, bias: None, inputs_first: false };
    let parameters = vec![1.0; SIZE * SIZE];
    let mut packs = N::Packs::default();
    N::pack(&[&matrix], &parameters, &mut packs, false);
    let (mut x, mut y) = (Buffer::<N>::default(), vec![0.0; SIZE * SIZE]);
    x.resize(SIZE * N::stride(SIZE));
    N::keep(&parameters, SIZE, &mut x);
    let weight = Weight { matrix: &matrix, parameters: &parameters, packs: &packs };
    peak::fastest(|| forward_parallel(weight, &x, Out::Set(&mut y)))
}
