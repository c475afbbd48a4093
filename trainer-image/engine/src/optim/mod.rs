//! The optimizer: AdamW over flat vectors, and the norm of a gradient.

mod adamw;

pub(crate) use adamw::norm;
pub use adamw::{AdamW, Rates};
