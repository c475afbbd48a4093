//! The optimizers: AdamW and Muon over flat vectors, the norm of a gradient, and the gradient of a private step.

mod adamw;
pub(crate) mod muon;
mod private;

pub(crate) use adamw::norm;
pub use adamw::{AdamW, Rates};
pub use muon::{Muon, muon_memory};
pub use private::ClippedSum;
