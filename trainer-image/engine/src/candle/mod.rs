//! The same models in candle's operations, differentiated by candle's autograd: the oracle that the kernels are tested against.

mod decoder;
mod engine;

pub(crate) use decoder::CandleDecoder;
pub(crate) use engine::CandleEngine;
