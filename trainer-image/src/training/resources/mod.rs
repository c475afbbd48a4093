//! Memory of a training: the limits of the machine and the control group, the estimate for a configuration, and the check of one
//! against the other before the first step.

mod error;
mod estimate;
mod limits;
mod memory_check;

pub use error::MemoryError;
pub(crate) use estimate::Bytes;
pub(crate) use limits::{log_memory, memory_limit, oom_kills, release_memory, resident_memory};
pub(crate) use memory_check::{RecordRows, check_estimate, check_model_size, estimate, snapshot_size};
