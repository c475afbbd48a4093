//! The optimizers: AdamW and Muon over flat vectors, their moments in 32 or 8 bits, the norm of a gradient, and the gradient of a private
//! step.

mod adamw;
mod eight;
mod moments;
pub(crate) mod muon;
mod private;

pub(crate) use adamw::norm;
pub use adamw::{AdamW, Rates};
pub use eight::{EightBit, TensorNumbers, TensorNumbersMut};
pub use moments::{MomentFormat, Moments};
pub use muon::{Muon, muon_memory};
pub use private::ClippedSum;
