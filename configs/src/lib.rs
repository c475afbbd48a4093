//! Composes YAML configuration into typed values with a digest.
//!
//! Pure: the YAML files are embedded, and nothing here reads a file, a clock or the environment. Layers, weakest first:
//! `training/base.yaml`, the template, chosen options, `spec.config`, `spec.overrides` in their order; defaults lists of files name
//! more. The controller composes a configuration once and mounts it as a [`Resolved`] file; pods read that file, check its digest and
//! never compose.
//!
//! [`Explained`] has the layer and the line of every value, [`schema`] the JSON Schema of a file of settings, [`sweep`] the points
//! of a sweep.

mod augmentation;
mod benchmark;
mod change;
mod curriculum;
mod data;
mod defaults;
mod deployment;
mod error;
mod evaluation;
mod explained;
mod keys;
mod layers;
mod lines;
mod optimizers;
mod options;
mod preferences;
mod privacy;
mod reasoning;
mod references;
mod resolved;
mod rewards;
mod rule;
mod safety;
pub mod schema;
pub mod sweep;
mod tracking;
mod training;

#[cfg(test)]
mod tests;

pub use augmentation::{AugmentationKind, AugmentationSettings};
pub use benchmark::{BenchmarkFile, benchmark, benchmark_file};
pub use change::choose;
pub use curriculum::{
    CURRICULUM_PRESETS, CurriculumSettings, DIFFICULTIES, PHASE_METRICS, Phase, PhaseData, ReplaySampling,
    ReplaySettings,
};
pub use data::{
    BASELINE, Data, MAX_SYNTHETIC, PLUGIN_FILTER, PLUGIN_METRIC, PLUGIN_REWARD, PROBLEMS, REFERENCE, SAFETY_RULES,
    Synthetic, TASKS, VALIDATION,
};
pub use defaults::names_template;
pub use deployment::{DEPLOYMENT_PRESETS, IntendedPreset, deployment, deployment_preset};
pub use error::{ConfigError, Origin};
pub use evaluation::{
    AnswerForm, Compare, Evaluation, EvaluationSettings, Generation, OnDemand, PRESETS, PromptForm, ReferenceForm,
    compose_evaluation, explain_evaluation,
};
pub use explained::{
    Explained, Leaf, Located, ResolvedFile, Share, Sources, is_evaluation, is_settings, settings_groups,
};
pub use keys::LANGUAGES;
pub use lines::lines;
pub use optimizers::{EmaSettings, MomentType, OptimizerName, OptimizerSettings};
pub use options::{has_options, option_groups};
pub use preferences::DpoSettings;
pub use privacy::{PrivacySettings, Randomness};
pub use reasoning::{
    HeadSettings, LoggingSettings, ObjectiveSettings, Pooling, ReasoningMode, ReasoningSettings, ToolAdapterSettings,
    TraceCapture, TraceMode,
};
pub use references::{Environment, VARIABLES};
pub use resolved::{MAX_SEED, Resolved, SCHEMA_VERSION, Spec};
pub use rewards::{GrpoSettings, RewardSettings};
pub use rule::Rule;
pub use safety::{SAFETY_GROUPS, SafetySettings};
pub use tracking::{MlflowSettings, TrackingSettings};
pub use training::{
    DataFields, DataFormat, DataSettings, Device, Dtype, Format, HEAD_WIDTHS, HeldOutShare, LoraSettings, Loss,
    Metadata, Method, MetricMode, ModelShape, Optimization, ParameterGroup, Response, Scheduler, SpikeAction,
    TEMPLATES, Template, TemplateSetting, Training, TrainingSettings, compose_training, compose_training_from,
    explain_training, template, template_digest, template_names, template_tasks,
};
