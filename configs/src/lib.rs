//! Composes YAML configuration into typed values with a digest.
//!
//! Pure: the YAML files are embedded, and nothing here reads a file, a clock or the environment. Layers, weakest first:
//! `training/base.yaml`, the template, `spec.config`, `spec.overrides` in their order. The controller composes a
//! configuration once and mounts it as a [`Resolved`] file; pods read that file, check its digest and never compose.

mod benchmark;
mod data;
mod error;
mod evaluation;
mod keys;
mod layers;
mod preferences;
mod resolved;
mod rewards;
mod rule;
mod training;

#[cfg(test)]
mod tests;

pub use benchmark::{BenchmarkFile, benchmark, benchmark_file};
pub use data::{BASELINE, Data, MAX_SYNTHETIC, PROBLEMS, REFERENCE, Synthetic, TASKS, VALIDATION};
pub use error::{ConfigError, Origin};
pub use evaluation::{
    AnswerForm, Compare, Evaluation, EvaluationSettings, Generation, OnDemand, PRESETS, PromptForm, ReferenceForm,
    compose_evaluation,
};
pub use keys::LANGUAGES;
pub use preferences::DpoSettings;
pub use resolved::{MAX_SEED, Resolved, SCHEMA_VERSION, Spec};
pub use rewards::{GrpoSettings, RewardSettings};
pub use rule::Rule;
pub use training::{
    DataFields, DataFormat, DataSettings, Device, Dtype, Format, HEAD_WIDTHS, HeldOutShare, LoraSettings, Loss,
    Metadata, Method, MetricMode, ModelShape, Optimization, ParameterGroup, Response, Scheduler, SpikeAction,
    TEMPLATES, Template, TemplateSetting, Training, TrainingSettings, compose_training, template, template_tasks,
};
