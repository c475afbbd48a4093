//! The same models in candle's operations, differentiated by candle's autograd: the oracle that the kernels are tested against.

mod engine;

pub(crate) use engine::CandleEngine;
