//! The data of a run: training records, read and hashed once, tokenized and addressed by index; and the validation records of the
//! evaluations during training. Reads files; everything else is pure.

mod dataset;
mod encoder;
mod error;
mod examples;
mod files;
mod formats;
mod lengths;
mod permutation;
mod preferences;
mod source;
mod validation;

pub(crate) use dataset::{Address, Dataset};
pub(crate) use encoder::Encoder;
pub use error::DataError;
#[cfg(test)]
pub(crate) use examples::read_examples;
pub(crate) use files::Stop;
pub(crate) use formats::FormatError;
pub(crate) use lengths::{HeldOutLengths, RecordLengths};
pub(crate) use validation::{Evaluated, Sample, ValidationSet};
