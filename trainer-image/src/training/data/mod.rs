//! The data of a run: training records, read and hashed once, tokenized and addressed by index; and the validation records of the
//! evaluations during training. Reads files; everything else is pure.

mod dataset;
mod error;
mod files;
mod lengths;
mod permutation;
mod source;
mod validation;

pub(crate) use dataset::{Address, Dataset};
pub use error::DataError;
pub(crate) use files::Stop;
pub(crate) use lengths::{HeldOutLengths, RecordLengths};
pub(crate) use validation::{Evaluated, Sample, ValidationSet};
