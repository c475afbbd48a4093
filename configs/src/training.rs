//! The configuration of a training run. Pure.

use serde::{Deserialize, Serialize};

use crate::{
    ConfigError, Data, Resolved, VALIDATION, data,
    error::nearest,
    keys,
    layers::{Layers, recheck},
    resolved::Spec,
};

/// The templates by name.
const GROUPS: &[(&str, &str, &str)] = &[
    ("answers-only", "templates/answers-only.yaml", include_str!("../templates/answers-only.yaml")),
    ("cot-padded", "templates/cot-padded.yaml", include_str!("../templates/cot-padded.yaml")),
    ("cot-plus", "templates/cot-plus.yaml", include_str!("../templates/cot-plus.yaml")),
    ("cot-starter", "templates/cot-starter.yaml", include_str!("../templates/cot-starter.yaml")),
];
const BASE: &str = include_str!("../training/base.yaml");

/// The names of the templates.
pub const TEMPLATES: &[&str] = &["answers-only", "cot-padded", "cot-plus", "cot-starter"];

/// The synthetic tasks that a template was made for: what it learns where no data is named.
pub fn template_tasks(template: &str) -> &'static [&'static str] {
    match template {
        "cot-padded" => &["arithmetic-padded"],
        "cot-plus" => &["arithmetic-5", "multiplication", "word-problems-3"],
        _ => &["arithmetic", "word-problems"],
    }
}

/// Widths of an attention head, `hidden_size / num_attention_heads`, that can be trained and served.
pub const HEAD_WIDTHS: [usize; 8] = [16, 32, 48, 64, 80, 96, 112, 128];

/// What a trainer is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The template's name.
    pub template: String,
    /// Chooses initial weights and the order of data.
    pub seed: u64,
    /// Everything that can be configured.
    pub settings: TrainingSettings,
    /// Mixed with equal weight; what is named `validation` is held out.
    pub data: Vec<Data>,
}

/// Everything that can be configured about a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSettings {
    /// The shape of the model.
    pub model: ModelShape,
    /// How it learns.
    pub training: Optimization,
    /// What it learns to answer.
    pub response: Response,
    /// What is written beside the results.
    pub metadata: Metadata,
}

/// The shape of a Llama-shaped decoder with tied embeddings. Names are those of Hugging Face's `LlamaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads, each `hidden_size / num_attention_heads` wide.
    pub num_attention_heads: usize,
    /// The longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// The base of rotary position embeddings.
    pub rope_theta: f64,
}

/// How a model learns: AdamW with warm-up, a schedule and clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimization {
    /// Optimiser steps that the schedule is laid out for.
    pub max_steps: u64,
    /// Passes over the data that the schedule is laid out for instead.
    pub max_epochs: Option<u64>,
    /// Optimiser steps after which to end early, the schedule unchanged; 0 saves the model as it was initialised.
    pub stop_after: Option<u64>,
    /// Examples in one forward pass.
    pub batch_size: usize,
    /// Whether each pass over the data takes the records in an order of its own, rather than in that of their file.
    pub shuffle: bool,
    /// Forward passes whose gradients make one step.
    pub gradient_accumulation: usize,
    /// How activations are stored.
    pub dtype: Dtype,
    /// Whether blocks are computed again on the way back rather than kept.
    pub gradient_checkpointing: bool,
    /// The peak of the schedule.
    pub learning_rate: f64,
    /// How the learning rate goes on after warm-up.
    pub scheduler: Scheduler,
    /// Steps over which the learning rate rises linearly.
    pub warmup_steps: u64,
    /// Of `cosine_with_restarts`: cosines from the peak to 0.
    pub scheduler_cycles: u64,
    /// Of `polynomial`: its power.
    pub scheduler_power: f64,
    /// Of `polynomial`: the rate at its end.
    pub scheduler_end_rate: f64,
    /// Of `inverse_sqrt`: the steps after which the rate begins to fall; none takes `warmup_steps`, or 10,000 where that is 0.
    pub scheduler_timescale: Option<u64>,
    /// Of `step`: steps after which the rate is multiplied by `scheduler_gamma`.
    pub scheduler_step_size: u64,
    /// Of `step`: what the rate is multiplied by.
    pub scheduler_gamma: f64,
    /// Tensors that learn in another way than the rest; the first group that matches decides.
    pub parameter_groups: Vec<ParameterGroup>,
    /// Steps between evaluations on held-out records.
    pub eval_every: Option<u64>,
    /// Held-out records that are looked at, the same each time.
    pub eval_records: usize,
    /// Prompts of those that are answered for a person to read.
    pub eval_samples: usize,
    /// The most tokens of such an answer.
    pub eval_max_new_tokens: usize,
    /// Evaluations in a row that may pass without a better `best_metric`.
    pub early_stop_patience: Option<u64>,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Gradients are scaled down to this norm.
    pub grad_clip_norm: f64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Seconds between checkpoints, beside those by steps.
    pub checkpoint_interval_seconds: Option<u64>,
    /// Newest checkpoints by steps that are kept.
    pub keep_last: usize,
    /// Checkpoints whose step is a multiple of this are kept for good.
    pub keep_every: Option<u64>,
    /// Checkpoints that are kept because they are the best.
    pub best_k: usize,
    /// What the best are chosen by, such as `val_loss`.
    pub best_metric: String,
    /// Whether the least or the greatest value of `best_metric` is the best.
    pub metric_mode: MetricMode,
    /// Steps between recorded digests of the whole state, beside those with checkpoints.
    pub state_digest_every: Option<u64>,
    /// What is done about a spike of the loss or the gradient norm.
    pub spike_action: SpikeAction,
    /// Robust deviations above the median from which a value is a spike.
    pub spike_threshold: f64,
    /// Steps that median and deviation are taken over.
    pub spike_window: usize,
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// In single precision.
    Fp32,
    /// Rounded to the upper half of single precision.
    Bf16,
}

/// Which end of a metric is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricMode {
    /// Less is better.
    Min,
    /// More is better.
    Max,
}

/// What is done about a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpikeAction {
    /// Nothing is looked for.
    Ignore,
    /// It is counted and logged.
    Count,
    /// It is counted and logged, and its step changes no weight.
    Skip,
}

/// Tensors that learn in another way than the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Names of tensors as Hugging Face writes them; `*` stands for any characters, none included.
    pub pattern: String,
    /// What the learning rate is multiplied by; none leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_multiplier: Option<f64>,
    /// The weight decay in place of the tensor's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// How the learning rate goes on after warm-up. Names are those of Hugging Face's `SchedulerType`, and of torch's `StepLR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Stays at the peak; takes no warm-up.
    Constant,
    /// Stays at the peak.
    ConstantWithWarmup,
    /// A straight line from the peak to 0 at `max_steps`.
    Linear,
    /// Half a cosine from the peak to 0 at `max_steps`.
    Cosine,
    /// Several half cosines, each from the peak to 0.
    CosineWithRestarts,
    /// A power of the share that is left, from the peak to the end rate.
    Polynomial,
    /// Falls with the root of the step.
    InverseSqrt,
    /// Falls by a factor after every so many steps.
    Step,
}

/// What a model learns to answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Steps and answer, or the answer alone.
    pub format: Format,
}

/// The form of the responses that are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The steps, then the answer.
    Steps,
    /// The answer alone.
    Answer,
}

/// What is written beside the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Who answers for the run.
    pub owner: String,
}

/// Composes what a trainer is told: base ← template ← `config` ← overrides.
///
/// # Errors
/// [`ConfigError`] says which field or key is wrong and what would be right.
pub fn compose_training(
    template: &str,
    overrides: &[String],
    config: Option<&str>,
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let Some((_, path, text)) = GROUPS.iter().find(|(name, ..)| *name == template) else {
        return Err(ConfigError::UnknownName {
            field: "template",
            name: template.to_owned(),
            nearest: nearest(template, TEMPLATES),
            known: TEMPLATES.to_vec(),
        });
    };
    let mut layers = Layers::new(keys::TRAINING, ("training.max_steps=900", "training: {max_steps: 900}"));
    layers.group("training/base.yaml", BASE)?;
    layers.group(path, text)?;
    layers.config(config.unwrap_or_default())?;
    layers.overrides(overrides)?;
    Resolved::new(Training { template: template.to_owned(), seed, settings: layers.finish()?, data })
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
        // With epochs, the trainer knows the steps once it has read the data, and checks them then.
        if training.warmup_steps > training.max_steps && training.max_epochs.is_none() {
            let right = format!("write at most training.max_steps ({})", training.max_steps);
            return conflict("training.warmup_steps", training.warmup_steps, right);
        }
        if training.scheduler == Scheduler::Constant && training.warmup_steps > 0 {
            let right = "training.scheduler constant takes none: write 0, or training.scheduler=constant_with_warmup";
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
            let right = "set training.eval_every, for patience counts evaluations".to_owned();
            return conflict("training.early_stop_patience", patience, right);
        }
        if training.best_k > 0 && training.best_metric == "val_loss" {
            let Some(every) = training.eval_every else {
                let right = "set training.eval_every, for nothing else measures val_loss, or training.best_metric=loss";
                return conflict("training.best_k", training.best_k as u64, right.to_owned());
            };
            if !training.checkpoint_every.is_multiple_of(every) {
                let right = format!(
                    "with training.best_k, write a multiple of training.eval_every ({every}), such as {}: a checkpoint is judged by \
                     the val_loss of its own step",
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
            let right = "name at least one file or synthetic task to learn from".to_owned();
            return Err(ConfigError::Data { field: "data".to_owned(), value: "empty".to_owned(), right });
        }
        data::check(&self.data)?;
        let validation = self.data.iter().position(|data| data.name == VALIDATION);
        match (validation, training.eval_every) {
            (Some(index), None) => {
                let right =
                    "held-out records are looked at every training.eval_every steps: set that, or leave them out";
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right: right.to_owned() });
            }
            (Some(index), _) if self.data.len() == 1 => {
                let right = "held-out records are not trained on: name others to learn from".to_owned();
                let (field, value) = (format!("data[{index}].name"), format!("{VALIDATION:?}"));
                return Err(ConfigError::Data { field, value, right });
            }
            (None, Some(every)) if self.data.iter().any(|data| data.synthetic.is_none()) => {
                let right = format!(
                    "only synthetic data keeps records back by itself: name held-out records in data, as {VALIDATION}"
                );
                return conflict("training.eval_every", every, right);
            }
            _ => {}
        }
        let counts: Option<Vec<u64>> = self
            .data
            .iter()
            .filter(|item| item.name != VALIDATION)
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
