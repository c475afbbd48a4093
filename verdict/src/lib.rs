//! The vocabulary of evaluations (metrics, measurements, gates, verdicts, rings) and the statistics that turn
//! measurements into verdicts. Pure; the API, the controller and the evaluator use the same code.
//!
//! A [`GateSpec`] is a bound on a [`Metric`] as a spec states it, a [`Gate`] is a valid one. A bound is a number or the result
//! of another evaluation, which is compared item by item. [`judge`] compares gates with
//! the [`Measurement`]s of an evaluator, and gives each gate a [`GateResult`] with its reason. What is missing, impossible
//! or about another model never passes. [`recheck`] does the same for the statement of a promotion.

mod bootstrap;
mod bounds;
pub mod cel;
mod clusters;
mod corpus;
mod decimal;
mod digests;
mod gate;
mod judge;
mod lowest;
mod measured;
mod measurement;
mod metric;
mod needed;
mod paired;
pub mod policy;
mod power;
mod receipt;
mod recheck;
mod ring;
mod sample;
mod text;
mod verdict;

#[cfg(test)]
mod tests;

pub use bootstrap::{MAX_BOOTSTRAP_CONFIDENCE, MIN_BOOTSTRAP, RESAMPLES, Resampling};
pub use bounds::{Bounds, bounds};
pub use clusters::ClusteredValues;
pub use corpus::{BleuCounts, CorpusItem, Likelihood, compare_corpus, corpus};
pub use decimal::{Decimal, Rounding};
pub use digests::{gates_digest, report_digest};
pub use gate::{Bound, Comparison, ComparisonSpec, Gate, GateError, GateSpec};
pub use judge::{GateResult, Judgement, judge, judge_one};
pub use lowest::{Categorized, compare_lowest, lowest_mean};
pub use measured::stated_metrics;
pub use measurement::{Kind, Measurement, Method};
pub use metric::{Metric, Scale, UnknownMetric};
pub use needed::needed_for_share;
pub use paired::{Inconsistent, MAX_REFERENCES, PairedDifferences, paired_name, reference_file};
pub use power::{Powerless, fewest_items, notices, powerless};
pub use receipt::{Unacceptable, accept};
pub use recheck::{Refuted, Stated, check_comparison, measurements, recheck};
pub use ring::{Ring, UnknownRing};
pub use sample::{Impossible, Sample};
pub use verdict::Verdict;

/// The most gates of an evaluation.
pub const MAX_GATES: usize = 32;
/// The most metrics that a report or a status holds.
pub const MAX_METRICS: usize = 80;
/// The longest name of a metric, in characters.
pub const MAX_METRIC_NAME: usize = 127;
/// The longest sentence of a gate, in characters.
pub const MAX_MESSAGE: usize = 1024;
