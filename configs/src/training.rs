//! The configuration of a training run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use codex_provenance::{DataDigest, Sha256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AugmentationSettings, ConfigError, CurriculumSettings, Data, DpoSettings, EmaSettings, Environment, Explained,
    GrpoSettings, IntendedPreset, Located, LoggingSettings, MAX_SYNTHETIC, OptimizerSettings, Origin, PLUGIN_FILTER,
    PLUGIN_REWARD, PrivacySettings, ReasoningSettings, ReplaySettings, Resolved, SafetySettings, Sources, Synthetic,
    TraceCapture, TrackingSettings, VALIDATION, augmentation, curriculum, data,
    defaults::{is_header, parts},
    deployment,
    error::nearest,
    explained::explain,
    keys,
    layers::{Layers, recheck},
    optimizers,
    options::TRAINING,
    preferences, privacy, reasoning,
    resolved::Spec,
    rewards, safety,
};

/// The templates by name.
pub(crate) const GROUPS: &[(&str, &str, &str)] = &[
    ("answers-only", "templates/answers-only.yaml", include_str!("../templates/answers-only.yaml")),
    ("cot-padded", "templates/cot-padded.yaml", include_str!("../templates/cot-padded.yaml")),
    ("cot-plus", "templates/cot-plus.yaml", include_str!("../templates/cot-plus.yaml")),
    ("cot-starter", "templates/cot-starter.yaml", include_str!("../templates/cot-starter.yaml")),
    ("lora", "templates/lora.yaml", include_str!("../templates/lora.yaml")),
];
/// Every key with its default, by the path of its file.
pub(crate) const BASE: (&str, &str) = ("training/base.yaml", include_str!("../training/base.yaml"));

/// The names of the templates.
pub const TEMPLATES: &[&str] = &["answers-only", "cot-padded", "cot-plus", "cot-starter", "lora"];

/// A template of training runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The template's name.
    pub name: &'static str,
    /// What it is for: the comment at the head of its file.
    pub description: String,
    /// The synthetic tasks that it trains on if no data is named.
    pub tasks: &'static [&'static str],
    /// The settings of its file and of those that its defaults list names, by key.
    pub settings: Vec<TemplateSetting>,
}

/// A setting of a template.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateSetting {
    /// The key, such as `training.max_steps`.
    pub key: &'static str,
    /// The template's value.
    pub value: Value,
    /// The default, which `training/base.yaml` has; `null` also stands for no value.
    pub default: Value,
}

/// Returns what a template is and sets.
///
/// # Errors
/// [`ConfigError::UnknownName`] with the nearest name.
pub fn template(name: &str) -> Result<Template, ConfigError> {
    let (name, path, text) = group(name)?;
    let layer = |path, text| {
        let mut layers = layers();
        layers.all(&parts(&TRAINING, &[(Origin::Group(path), text)], None, &[])?, &[])?;
        Ok::<_, ConfigError>(layers.leaves())
    };
    let (defaults, own) = (layer(BASE.0, BASE.1)?, layer(path, text)?);
    let settings = own.into_iter().map(|(key, value)| {
        let default = defaults.get(key).cloned().unwrap_or_default();
        TemplateSetting { key, value, default }
    });
    let head = text.lines().filter(|line| !is_header(line));
    let comment = head.map_while(|line| line.strip_prefix('#')).map(str::trim);
    let description = comment.collect::<Vec<_>>().join(" ");
    Ok(Template { name, description, tasks: template_tasks(name), settings: settings.collect() })
}

/// Returns the template of this name: name, path and text.
fn group(template: &str) -> Result<(&'static str, &'static str, &'static str), ConfigError> {
    GROUPS.iter().find(|(name, ..)| *name == template).copied().ok_or_else(|| ConfigError::UnknownName {
        field: "template",
        name: template.to_owned(),
        nearest: nearest(template, TEMPLATES),
        known: TEMPLATES.to_vec(),
    })
}

pub(crate) fn layers() -> Layers {
    Layers::new(keys::TRAINING, ("training.max_steps=900", "training: {max_steps: 900}"), &TRAINING)
}

/// Returns the synthetic tasks that a template trains on if no data is named.
pub fn template_tasks(template: &str) -> &'static [&'static str] {
    match template {
        "cot-padded" => &["arithmetic-padded"],
        "cot-plus" => &["arithmetic-5", "multiplication", "word-problems-3"],
        "lora" => &[],
        _ => &["arithmetic", "word-problems"],
    }
}

/// Supported widths of an attention head, `hidden_size / num_attention_heads`.
pub const HEAD_WIDTHS: [usize; 12] = [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];

/// The configuration of a trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The template's name.
    pub template: String,
    /// Seed of the initial weights and of the order of the data.
    pub seed: u64,
    /// The settings.
    pub settings: TrainingSettings,
    /// Data files, mixed in equal shares. The file named `validation` is held out.
    pub data: Vec<Data>,
}

/// The settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSettings {
    /// The shape of the model.
    pub model: ModelShape,
    /// The optimization.
    pub training: Optimization,
    /// How files of data are read.
    pub data: DataSettings,
    /// The phases of training.
    pub curriculum: CurriculumSettings,
    /// The form of the responses.
    pub response: Response,
    /// The source of reasoning traces.
    pub trace_capture: TraceCapture,
    /// What the run logs.
    pub logging: LoggingSettings,
    /// The trackers that the run writes to.
    pub tracking: TrackingSettings,
    /// Metadata of the results.
    pub metadata: Metadata,
    /// The preset of the Evaluations that the run is meant for.
    #[serde(default, skip_serializing_if = "IntendedPreset::is_unset")]
    pub evaluation: IntendedPreset,
    /// The preset of the ReasoningPod that the run is meant for.
    #[serde(default, skip_serializing_if = "IntendedPreset::is_unset")]
    pub deployment: IntendedPreset,
}

/// The shape of a Llama-shaped decoder with tied embeddings. Names are those of Hugging Face's `LlamaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads, each `hidden_size / num_attention_heads` wide.
    pub num_attention_heads: usize,
    /// Maximum sequence length in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary position embeddings.
    pub rope_theta: f64,
}

/// The optimization: optimizer, learning-rate schedule, evaluation, checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimization {
    /// What is trained.
    pub method: Method,
    /// The adapters of [`Method::Lora`], and of [`Method::Dpo`] and [`Method::Grpo`] with `lora`.
    pub lora: LoraSettings,
    /// The objective of [`Method::Dpo`].
    pub dpo: DpoSettings,
    /// The objective of [`Method::Grpo`].
    pub grpo: GrpoSettings,
    /// Reasoning traces, and the weight of tool calls.
    pub reasoning: ReasoningSettings,
    /// Number of optimizer steps of the schedule.
    pub max_steps: u64,
    /// Number of epochs of the schedule. Replaces `max_steps`.
    pub max_epochs: Option<u64>,
    /// Optimizer step after which training stops, without a change of the schedule. 0 saves the initialized model.
    pub stop_after: Option<u64>,
    /// Number of examples in a forward pass.
    pub batch_size: usize,
    /// Whether each epoch shuffles the records.
    pub shuffle: bool,
    /// Number of forward passes per optimizer step.
    pub gradient_accumulation: usize,
    /// Device that computes.
    pub device: Device,
    /// Data type of the activations.
    pub dtype: Dtype,
    /// Whether activations are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// Peak learning rate of the schedule.
    pub learning_rate: f64,
    /// Learning-rate schedule after warm-up.
    pub scheduler: Scheduler,
    /// Number of warm-up steps, over which the learning rate rises linearly.
    pub warmup_steps: u64,
    /// Number of cycles of `cosine_with_restarts`.
    pub scheduler_cycles: u64,
    /// Power of `polynomial`.
    pub scheduler_power: f64,
    /// Final learning rate of `polynomial`.
    pub scheduler_end_rate: f64,
    /// Time scale of `inverse_sqrt` in steps. `None` means `warmup_steps`, or 10,000 if that is 0.
    pub scheduler_timescale: Option<u64>,
    /// Number of steps after which `step` multiplies the learning rate by `scheduler_gamma`.
    pub scheduler_step_size: u64,
    /// Factor of `step`.
    pub scheduler_gamma: f64,
    /// Learning rate and weight decay of particular tensors. The first group that matches a tensor applies.
    pub parameter_groups: Vec<ParameterGroup>,
    /// Steps between evaluations on the validation records.
    pub eval_every: Option<u64>,
    /// Number of validation records that are evaluated, the same each time.
    pub eval_records: usize,
    /// Number of validation prompts that are answered, as samples to read.
    pub eval_samples: usize,
    /// Maximum number of tokens of a sample.
    pub eval_max_new_tokens: usize,
    /// Number of consecutive evaluations without a better `best_metric` after which training stops.
    pub early_stop_patience: Option<u64>,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Maximum norm of the gradient, which is clipped to it.
    pub grad_clip_norm: f64,
    /// What updates the weights.
    pub optimizer: OptimizerSettings,
    /// The moving average of the weights.
    pub ema: EmaSettings,
    /// Whether the gradient noise scale is measured.
    pub gradient_noise_scale: bool,
    /// Differential privacy.
    pub privacy: PrivacySettings,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Seconds between additional checkpoints.
    pub checkpoint_interval_seconds: Option<u64>,
    /// Number of latest checkpoints that are kept.
    pub keep_last: usize,
    /// Checkpoints whose step is a multiple of this are never deleted.
    pub keep_every: Option<u64>,
    /// Number of best checkpoints that are kept.
    pub best_k: usize,
    /// Metric of the best checkpoints, such as `val_loss`.
    pub best_metric: String,
    /// Whether the lowest or the highest value of `best_metric` is the best.
    pub metric_mode: MetricMode,
    /// Steps between recorded digests of the training state. Checkpoints record it in any case.
    pub state_digest_every: Option<u64>,
    /// Reaction to a spike of the loss or of the gradient norm.
    pub spike_action: SpikeAction,
    /// Number of robust deviations above the median from which a value is a spike.
    pub spike_threshold: f64,
    /// Number of steps over which median and deviation are computed.
    pub spike_window: usize,
}

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All weights, from random ones or from a base.
    Sft,
    /// Adapters beside the frozen weights of a base. The resulting model has them merged into its weights.
    Lora,
    /// As `Sft` or `Lora`, on preferences: direct preference optimization (Rafailov et al. 2023).
    Dpo,
    /// As `Sft` or `Lora`, by the rewards of sampled answers: group relative policy optimization (Shao et al. 2024).
    Grpo,
    /// Nothing: the resulting model is the base.
    None,
}

/// The adapters of LoRA. Names are those of PEFT's `LoraConfig`, but for `targets`, which is `target_modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the adapters.
    pub rank: usize,
    /// Adapters are multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Probability with which an input of an adapter is set to 0.
    pub dropout: f64,
    /// Names of the projections that have adapters.
    pub targets: Vec<String>,
}

/// The device that computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU if the program can use one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU that CUDA shows.
    Cuda,
}

/// The data type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    Fp32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 half precision, on a GPU only. Losses are scaled.
    Fp16,
}

/// Direction in which a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricMode {
    /// Lower values are better.
    Min,
    /// Higher values are better.
    Max,
}

/// Reaction to a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpikeAction {
    /// Spikes are not detected.
    Ignore,
    /// A spike is counted and logged.
    Count,
    /// A spike is counted and logged, and its step does not update the weights.
    Skip,
}

/// Learning rate and weight decay of particular tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Pattern of tensor names of Hugging Face. `*` matches any characters, or none.
    pub pattern: String,
    /// Factor on the learning rate. `None` means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_multiplier: Option<f64>,
    /// Weight decay of the tensors. `None` keeps the default of each tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// A learning-rate schedule after warm-up. Names are those of Hugging Face's `SchedulerType`, and of torch's `StepLR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Constant, without warm-up.
    Constant,
    /// Constant, after warm-up.
    ConstantWithWarmup,
    /// Linear decay from the peak to 0 at `max_steps`.
    Linear,
    /// Cosine decay from the peak to 0 at `max_steps`.
    Cosine,
    /// Several cosine decays, each from the peak to 0.
    CosineWithRestarts,
    /// Polynomial decay from the peak to the final learning rate.
    Polynomial,
    /// Decay with the inverse square root of the step.
    InverseSqrt,
    /// Decay by a factor after a fixed number of steps.
    Step,
}

/// How files of data are read, and what of them is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// The format of files.
    pub format: DataFormat,
    /// Names of the fields of a record.
    pub fields: DataFields,
    /// Tokens that count for the loss.
    pub loss: Loss,
    /// Weights of sources by name. Sources that are not named have weight 1; `None` means equal weights.
    pub weights: Option<BTreeMap<String, f64>>,
    /// Whether only the first of records with the same tokens is trained on.
    pub deduplicate: bool,
    /// Languages of the records that are trained on, as ISO 639-3 codes. Empty means all.
    pub languages: Vec<String>,
    /// Safety rules over the records that are trained on.
    #[serde(default, skip_serializing_if = "SafetySettings::is_empty")]
    pub safety: SafetySettings,
    /// Records that are held out of training for validation.
    pub validation: HeldOutShare,
    /// Records of earlier phases that are trained on again.
    pub replay: ReplaySettings,
    /// Changed versions of prompts.
    pub augmentation: AugmentationSettings,
}

/// Records of each source that are held out of training for validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutShare {
    /// Share of the records of each source; 0 for none.
    pub share: f64,
    /// Seed of the choice.
    pub seed: u64,
}

/// The format of a file of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// By content and name of the file.
    Auto,
    /// One JSON object per line.
    Jsonl,
    /// A table with a header line.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// One text per line.
    Text,
}

/// Names of the fields of a record. It has a prompt and a response, or messages, or text; in preferences a prompt, a chosen and a
/// rejected response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFields {
    /// What the model reads.
    pub prompt: String,
    /// What the model is trained to write.
    pub response: String,
    /// The better response of a preference.
    pub chosen: String,
    /// The worse response of a preference.
    pub rejected: String,
    /// A conversation: a list of `{role, content}`.
    pub messages: String,
    /// Text without a prompt.
    pub text: String,
}

/// Tokens that count for the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Those of responses, of the assistant's messages, and of texts.
    Responses,
    /// All of them.
    All,
}

/// The form of the responses that a model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The format.
    pub format: Format,
}

/// The format of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Reasoning steps, then the answer.
    Steps,
    /// Only the answer.
    Answer,
}

/// Metadata of the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Owner of the run.
    pub owner: String,
    /// Whether the model directory has a model card, `README.md`, which is one of the files of the model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub model_card: bool,
}

/// Adds the phases of an included curriculum, if `curriculum.phase_schedule` names one. They may be there already: settings that
/// `codex config show` prints have them.
fn add_phases(composed: &mut Layers, environment: Environment<'_>) -> Result<(), ConfigError> {
    let schedule = composed.value("curriculum.phase_schedule", environment)?;
    let schedule = schedule.as_str().unwrap_or_default();
    let Some((path, text)) = curriculum::included(schedule) else { return Ok(()) };
    let Some(origin) = composed.origin(curriculum::PHASES).filter(|origin| !origin.is_base()) else {
        return composed.group(path, text);
    };
    let mut included = layers();
    included.group(path, text)?;
    if composed.value(curriculum::PHASES, environment)? == included.value(curriculum::PHASES, environment)? {
        return Ok(());
    }
    Err(curriculum::phases_beside(schedule, origin))
}

/// Composes the configuration of a trainer: base ← template ← options ← `config` ← overrides. Defaults lists of files name more of
/// them.
///
/// # Errors
/// [`ConfigError`] names the field or key that is wrong and what to write instead.
pub fn compose_training(
    template: &str,
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let (_, path, text) = group(template)?;
    compose(template, (Origin::Group(path), text), overrides, config, seed, data)
}

/// Composes the configuration of a trainer as [`compose_training`] does, from a template that is not included. Its name must not be
/// that of an included one.
///
/// # Errors
/// [`ConfigError`] names the field or key that is wrong and what to write instead.
pub fn compose_training_from(
    template: &str,
    text: &str,
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    compose(template, own(template, text)?, overrides, config, seed, data)
}

/// Returns the digest by which `spec.templateFrom` pins the text of a template, as `sha256sum` prints it.
pub fn template_digest(text: &str) -> String {
    Sha256::of(text).to_string()
}

/// Returns a template that is not included, with its text.
fn own<'a>(name: &str, text: &'a str) -> Result<(Origin, &'a str), ConfigError> {
    if TEMPLATES.contains(&name) {
        return Err(ConfigError::Conflict {
            key: "template",
            value: name.to_owned(),
            right: "an included template has this name; give yours another one".to_owned(),
        });
    }
    Ok((Origin::Template, text))
}

/// Composes a configuration over a template, which is a file and its text.
fn compose(
    name: &str,
    template: (Origin, &str),
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let mut layers = layers();
    layers.all(&parts(&TRAINING, &[base(), template], config, overrides)?, overrides)?;
    add_phases(&mut layers, Environment::ABSENT)?;
    let settings = layers.finish(Environment::ABSENT)?;
    Resolved::new(Training { template: name.to_owned(), seed, settings, data })
}

/// Returns the file with the default of every key, with its text.
fn base() -> (Origin, &'static str) {
    (Origin::Group(BASE.0), BASE.1)
}

/// Composes the configuration of a trainer with the origin of each value, as [`compose_training`] does. Without a template, the
/// base is the lowest layer alone. Without data, the configuration is checked with stand-ins for files that would do, and its
/// digest means nothing.
///
/// # Errors
/// [`Located`] names the field or key that is wrong, what to write instead, and the line.
pub fn explain_training(
    sources: &Sources<'_>,
    seed: u64,
    data: Option<Vec<Data>>,
) -> Result<Explained<Training>, Located> {
    let mut below = vec![base()];
    if let Some(template) = sources.group {
        let file = match sources.own {
            Some(text) => own(template, text),
            None => group(template).map(|(_, path, text)| (Origin::Group(path), text)),
        };
        below.push(file.map_err(Located::nowhere)?);
    }
    let parts = parts(&TRAINING, &below, sources.config, sources.overrides);
    let parts = parts.map_err(|error| Located::chosen(error, sources))?;
    explain(layers(), &parts, sources, |layers| {
        add_phases(layers, sources.environment)?;
        let settings: TrainingSettings = layers.finish(sources.environment)?;
        let data = data.unwrap_or_else(|| stand_ins(&settings));
        let template = sources.group.unwrap_or("base").to_owned();
        Resolved::new(Training { template, seed, settings, data })
    })
}

/// Returns files that a configuration accepts as its data.
fn stand_ins(settings: &TrainingSettings) -> Vec<Data> {
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let phases = || settings.curriculum.phases.iter().map(|phase| &phase.dataset);
    let weighted = settings.data.weights.iter().flat_map(BTreeMap::keys);
    let named: BTreeSet<&String> = weighted.chain(phases().flat_map(|dataset| &dataset.sources)).collect();
    let mut data: Vec<Data> = named.into_iter().filter(|name| *name != VALIDATION).map(|name| file(name)).collect();
    // A phase that names both tasks and sources needs a source of the task, which has any of its names.
    for task in phases().flat_map(|dataset| &dataset.tasks).collect::<BTreeSet<_>>() {
        let synthetic = || Some(Synthetic { task: task.clone(), seed: 1, count: MAX_SYNTHETIC });
        match data.iter_mut().find(|data| data.name == *task) {
            Some(item) => *item = Data { synthetic: synthetic(), sha256: None, ..item.clone() },
            None => data.push(Data { name: task.clone(), sha256: None, synthetic: synthetic() }),
        }
    }
    if data.is_empty() {
        data.push(file("records"));
    }
    if settings.training.eval_every.is_some() && settings.data.validation.share <= 0.0 {
        data.push(file(VALIDATION));
    }
    data
}

impl Training {
    /// Checks the settings that name data or hold records out.
    fn check_selection(&self) -> Result<(), ConfigError> {
        let DataSettings { weights, validation, .. } = &self.settings.data;
        let trained: Vec<&str> =
            self.data.iter().filter(|data| data.is_trained_on()).map(|data| data.name.as_str()).collect();
        if let Some(name) = weights.iter().flat_map(BTreeMap::keys).find(|name| !trained.contains(&name.as_str())) {
            let why =
                if name == VALIDATION { "validation records are not trained on" } else { "no data has that name" };
            return Err(ConfigError::Conflict {
                key: "data.weights",
                value: format!("set for {name:?}"),
                right: format!("{why}; name one of {}", trained.join(", ")),
            });
        }
        if validation.share > 0.0 {
            let right = if self.settings.training.eval_every.is_none() {
                "held-out records are evaluated every training.eval_every steps; set it, or write 0"
            } else if self.data.iter().any(|data| data.name == VALIDATION) {
                "data has an item named validation, too; remove it, or write 0"
            } else {
                return Ok(());
            };
            let (key, value) = ("data.validation.share", validation.share.to_string());
            return Err(ConfigError::Conflict { key, value, right: right.to_owned() });
        }
        Ok(())
    }
}

impl Spec for Training {
    const KIND: &'static str = "TrainingRun";

    fn seed(&self) -> u64 {
        self.seed
    }

    fn check(&self) -> Result<(), ConfigError> {
        recheck(keys::TRAINING, &self.settings)?;
        let TrainingSettings { model, training, .. } = &self.settings;
        let conflict =
            |key, value: u64, right: String| Err(ConfigError::Conflict { key, value: value.to_string(), right });
        let (width, heads) = (model.hidden_size, model.num_attention_heads);
        if !HEAD_WIDTHS.iter().any(|head| heads * head == width) {
            let known = HEAD_WIDTHS.map(|head| head.to_string()).join(", ");
            let right = format!("model.hidden_size ({width}) divided by it must be one of {known}");
            return conflict("model.num_attention_heads", heads as u64, right);
        }
        if training.dtype == Dtype::Fp16 && training.device == Device::Cpu {
            let (key, value) = ("training.dtype", "fp16".to_owned());
            let right = "training.device is cpu, and fp16 needs a GPU; write bf16 or fp32".to_owned();
            return Err(ConfigError::Conflict { key, value, right });
        }
        // First, because what breaks the guarantee would otherwise be told to be completed, such as dpo.
        privacy::check(self)?;
        optimizers::check(self)?;
        preferences::check(self)?;
        rewards::check(self)?;
        reasoning::check(self)?;
        augmentation::check(self)?;
        if self.settings.metadata.model_card && training.method == Method::None {
            return Err(ConfigError::Conflict {
                key: "metadata.model_card",
                value: "true".to_owned(),
                right: "training.method=none copies the files of the base as they are; write false, or another method"
                    .to_owned(),
            });
        }
        safety::check(self)?;
        deployment::check_intended(&self.settings)?;
        // With epochs, the trainer knows the steps only after it has read the data, and checks them then.
        if training.warmup_steps > training.max_steps && training.max_epochs.is_none() {
            let right = format!("write at most training.max_steps ({})", training.max_steps);
            return conflict("training.warmup_steps", training.warmup_steps, right);
        }
        if training.scheduler == Scheduler::Constant && training.warmup_steps > 0 {
            let right =
                "training.scheduler constant has no warm-up; write 0, or training.scheduler=constant_with_warmup";
            return conflict("training.warmup_steps", training.warmup_steps, right.to_owned());
        }
        if training.scheduler == Scheduler::Polynomial && training.scheduler_end_rate >= training.learning_rate {
            return Err(ConfigError::Conflict {
                key: "training.scheduler_end_rate",
                value: training.scheduler_end_rate.to_string(),
                right: format!("write less than training.learning_rate ({})", training.learning_rate),
            });
        }
        if let Some(patience) = training.early_stop_patience
            && training.eval_every.is_none()
        {
            let right = "set training.eval_every, because patience counts evaluations".to_owned();
            return conflict("training.early_stop_patience", patience, right);
        }
        if training.best_k > 0 && training.best_metric == "val_loss" {
            let Some(every) = training.eval_every else {
                let right =
                    "val_loss is measured by evaluations only; set training.eval_every, or training.best_metric=loss";
                return conflict("training.best_k", training.best_k as u64, right.to_owned());
            };
            if !training.checkpoint_every.is_multiple_of(every) {
                let right = format!(
                    "with training.best_k, write a multiple of training.eval_every ({every}), such as {}, because a checkpoint \
                     is ranked by the val_loss of its own step",
                    training.checkpoint_every.next_multiple_of(every)
                );
                return conflict("training.checkpoint_every", training.checkpoint_every, right);
            }
        }
        if let Some(stop) = training.stop_after
            && stop > training.max_steps
            && training.max_epochs.is_none()
        {
            let right = format!("write at most training.max_steps ({}), or null", training.max_steps);
            return conflict("training.stop_after", stop, right);
        }
        if self.data.is_empty() {
            let right = "name at least one file or synthetic task to train on".to_owned();
            return Err(ConfigError::Data { field: "data".to_owned(), value: "empty".to_owned(), right });
        }
        data::check(&self.data)?;
        data::check_plugins(&self.data, &[PLUGIN_REWARD, PLUGIN_FILTER])?;
        if !self.data.iter().any(Data::has_records) {
            let right = "name at least one file or synthetic task to train on".to_owned();
            return Err(ConfigError::Data { field: "data".to_owned(), value: "without records".to_owned(), right });
        }
        self.check_selection()?;
        curriculum::check(self)?;
        let share = self.settings.data.validation.share;
        let validation = self.data.iter().position(|data| data.name == VALIDATION);
        match (validation, training.eval_every) {
            (Some(index), None) => {
                let right =
                    "validation records are evaluated every training.eval_every steps; set it, or remove this item";
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right: right.to_owned() });
            }
            (Some(index), _) if !self.data.iter().any(Data::is_trained_on) => {
                let right = "validation records are not trained on; name other data to train on".to_owned();
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right });
            }
            (None, Some(every))
                if share <= 0.0 && self.data.iter().any(|data| data.is_trained_on() && data.synthetic.is_none()) =>
            {
                let right = format!(
                    "only synthetic data has validation records of its own; add the records to evaluate on to data, as \
                     {VALIDATION}, or hold some out with data.validation.share"
                );
                return conflict("training.eval_every", every, right);
            }
            _ => {}
        }
        let counts: Option<Vec<u64>> = self
            .data
            .iter()
            .filter(|item| item.is_trained_on())
            .map(|item| Some(item.synthetic.as_ref()?.count))
            .collect();
        if let Some(records) = counts.map(|counts| counts.iter().sum::<u64>())
            && training.batch_size as u64 > records
        {
            let right = format!("write at most the number of records ({records}), or raise data[].synthetic.count");
            return conflict("training.batch_size", training.batch_size as u64, right);
        }
        Ok(())
    }
}
