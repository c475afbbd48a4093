//! Examination of runs after the fact: take a step again, and find the first step and tensor in which two runs differ. Reads run
//! directories; writes nothing there.

mod bisect;
mod recorded_run;
mod replay;

pub use bisect::Bisect;
#[cfg(test)]
pub(crate) use bisect::{Files, compare};
pub(crate) use recorded_run::{RecordedRun, Rerun};
pub use replay::ReplayStep;
#[cfg(test)]
pub(crate) use replay::replay;
