//! The data of a run: training records, hashed, tokenized on disk and addressed by index; and the validation records of the
//! evaluations during training. Reads files, and writes token caches; everything else is pure.
//!
//! Inputs are read as streams (`input`, `formats`, `examples`), tokenized a bounded number of records at a time (`records`) and
//! stored (`token_store`), and again with changed prompts if the run asks for it (`augmentation`). `languages` and `safety` leave records out as they are read, `selection` does so afterwards, `mix` and `permutation` say which record an example is, `phases` does so
//! for the phases of a curriculum. Nothing grows with the size of an input but a bit per record while records are selected.

mod augmentation;
mod dataset;
mod encoder;
mod error;
mod examples;
mod formats;
mod input;
mod languages;
mod lengths;
mod mix;
mod permutation;
mod phases;
mod preferences;
mod records;
mod safety;
mod scratch;
mod selection;
mod source;
#[cfg(test)]
mod tests;
mod token_store;
mod tool_spans;
mod validation;

pub(crate) use dataset::{Address, Dataset, Places, check_first_record};
pub(crate) use encoder::Encoder;
pub use error::DataError;
#[cfg(test)]
pub(crate) use examples::testing::{read as read_records, settings as data_settings};
pub(crate) use examples::{Example, each_record};
pub(crate) use formats::FormatError;
pub(crate) use input::Input;
pub(crate) use lengths::{HeldOutLengths, RecordLengths};
pub(crate) use safety::count_safety_rules;
pub(crate) use token_store::Caches;
pub(crate) use validation::{Evaluated, Sample, SampleMetrics, ValidationSet};
