//! How numbers become verdicts: statistics and gates. Pure; the controller and the evaluator use the same code.
//!
//! A [`Gate`] bounds one metric. [`judge`] holds the gates against what an evaluator counted and says Passed, Failed or
//! Inconclusive, each with its reason. What is missing, impossible or about another model never passes.

mod bounds;
mod decimal;
mod digests;
mod gate;
mod judge;
mod needed;
mod sample;

#[cfg(test)]
mod tests;

pub use bounds::{Bounds, bounds};
pub use decimal::Rounding;
pub use digests::{gates_digest, report_digest};
pub use gate::{Bound, Gate, GateError, WrittenGate};
pub use judge::{GateResult, Judgement, Verdict, judge};
pub use sample::{Impossible, Sample};
