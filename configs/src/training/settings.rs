//! The settings of a training run. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AugmentationSettings, CurriculumSettings, Data, DpoSettings, EmaSettings, GrpoSettings, IntendedPreset,
    LoggingSettings, OptimizerSettings, PrivacySettings, ReasoningSettings, ReplaySettings, SafetySettings,
    TraceCapture, TrackingSettings,
};

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
