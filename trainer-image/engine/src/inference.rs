//! What generation shares with training: rotary positions, kernels, and weights laid out for few rows at a time.

pub use crate::{
    attention::Rotary,
    kernels::{exponentials, rms_norm, scale, swiglu},
    layout::BlockWeights,
    linear::Panels,
};
