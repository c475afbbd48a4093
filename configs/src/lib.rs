//! YAML groups of configuration, and what composes them into typed values with a digest.
//!
//! Pure: the groups are embedded, and nothing here reads a file, a clock or the environment. Layers, weakest first:
//! `training/base.yaml`, the template, the object's `config`, its `overrides` in their order. A composed configuration
//! is written as one [`Resolved`] file; whoever reads that file hashes it again and never composes.

mod benchmark;
mod data;
mod error;
mod evaluation;
mod keys;
mod layers;
mod resolved;
mod rule;
mod training;

#[cfg(test)]
mod tests;

pub use benchmark::{BenchmarkFile, benchmark, benchmark_file};
pub use data::{BASELINE, Data, MAX_SYNTHETIC, PROBLEMS, Synthetic, TASKS, VALIDATION};
pub use error::{ConfigError, Origin};
pub use evaluation::{Evaluation, EvaluationSettings, Generation, METRICS, PRESETS, compose_evaluation};
pub use resolved::{MAX_SEED, Resolved, SCHEMA_VERSION, Spec};
pub use rule::Rule;
pub use training::{
    Dtype, Format, HEAD_WIDTHS, Metadata, MetricMode, ModelShape, Optimization, ParameterGroup, Response, Scheduler,
    SpikeAction, TEMPLATES, Training, TrainingSettings, compose_training, template_tasks,
};
