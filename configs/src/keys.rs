//! The keys of each kind of configuration with their rules, and the keys that are fields of an object instead. Pure.

use serde_json::Value;

use crate::{Rule, curriculum, reasoning, safety::SAFETY_GROUPS};

/// A key and the values that it accepts.
pub(crate) struct Key {
    pub(crate) path: &'static str,
    pub(crate) rule: Rule,
    /// The default, as JSON, of a key that resolved files leave out while it has the default.
    pub(crate) unwritten: Option<&'static str>,
}

const fn key(path: &'static str, rule: Rule) -> Key {
    Key { path, rule, unwritten: None }
}

/// Returns a key that came after the digests of configurations were first recorded. Resolved files leave it out while it has its default,
/// which is JSON here, so that a configuration without it keeps its digest. The typed field has `serde(default, skip_serializing_if)`.
const fn later(path: &'static str, rule: Rule, default: &'static str) -> Key {
    Key { path, rule, unwritten: Some(default) }
}

impl Key {
    /// Returns the value of the key in the settings of a resolved file. Null if the key is missing and may not be.
    pub(crate) fn value(&self, settings: &Value) -> Value {
        let found = self.path.split('.').fold(settings, |value, word| &value[word]);
        match self.unwritten {
            Some(default) if found.is_null() => serde_json::from_str(default).unwrap_or_default(),
            _ => found.clone(),
        }
    }
}

const STEPS: u64 = 100_000_000;

/// The projections that LoRA can adapt.
const PROJECTIONS: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The metrics that are measured where something asks for them.
const ON_DEMAND: &[&str] = &[
    "lowest_trace_coverage",
    "token_f1",
    "rouge_l",
    "distinct_1",
    "distinct_2",
    "token_accuracy",
    "bleu",
    "perplexity",
];

/// How hidden states become one vector.
const POOLINGS: &[&str] = &["mean", "cls", "last"];

/// Where an answer is in a text.
const ANSWERS: &[&str] = &["marked", "last_number", "after", "regex", "choice", "whole"];

/// What is changed of the words of prompts.
const AUGMENTATIONS: &[&str] = &["case", "whitespace", "punctuation", "typos", "dropout"];

/// The languages that records can be selected by, as ISO 639-3 codes.
pub const LANGUAGES: &[&str] = &[
    "afr", "aka", "amh", "ara", "aze", "bel", "ben", "bul", "cat", "ces", "cmn", "cym", "dan", "deu", "ell", "eng",
    "epo", "est", "fin", "fra", "guj", "heb", "hin", "hrv", "hun", "hye", "ind", "ita", "jav", "jpn", "kan", "kat",
    "khm", "kor", "lat", "lav", "lit", "mal", "mar", "mkd", "mya", "nep", "nld", "nob", "ori", "pan", "pes", "pol",
    "por", "ron", "rus", "sin", "slk", "slv", "sna", "spa", "srp", "swe", "tam", "tel", "tgl", "tha", "tuk", "tur",
    "ukr", "urd", "uzb", "vie", "yid", "zul",
];

/// The keys of a training run. A test compares them with `training/base.yaml` and with the typed settings.
pub(crate) const TRAINING: &[Key] = &[
    key("model.hidden_size", Rule::Whole { min: 8, max: 8192 }),
    key("model.intermediate_size", Rule::Whole { min: 8, max: 32_768 }),
    key("model.num_hidden_layers", Rule::Whole { min: 1, max: 128 }),
    key("model.num_attention_heads", Rule::Whole { min: 1, max: 128 }),
    key("model.max_position_embeddings", Rule::Whole { min: 16, max: 131_072 }),
    key("model.rope_theta", Rule::Above { above: 1.0, most: 1e9 }),
    key("training.max_steps", Rule::Whole { min: 1, max: STEPS }),
    key("training.max_epochs", Rule::WholeOrNull { min: 1, max: 100_000, null: "training.max_steps instead" }),
    key("training.stop_after", Rule::WholeOrNull { min: 0, max: STEPS, null: "all of training.max_steps" }),
    key("training.batch_size", Rule::Whole { min: 1, max: 65_536 }),
    key("training.shuffle", Rule::Flag),
    key("training.gradient_accumulation", Rule::Whole { min: 1, max: 4096 }),
    key("training.device", Rule::Choice(&["auto", "cpu", "cuda"])),
    key("training.dtype", Rule::Choice(&["fp32", "bf16", "fp16"])),
    key("training.gradient_checkpointing", Rule::Flag),
    key("training.learning_rate", Rule::Above { above: 0.0, most: 1.0 }),
    key(
        "training.scheduler",
        Rule::Choice(&[
            "constant",
            "constant_with_warmup",
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "inverse_sqrt",
            "step",
        ]),
    ),
    key("training.warmup_steps", Rule::Whole { min: 0, max: STEPS }),
    key("training.scheduler_cycles", Rule::Whole { min: 1, max: 10_000 }),
    key("training.scheduler_power", Rule::Above { above: 0.0, most: 100.0 }),
    key("training.scheduler_end_rate", Rule::From { min: 0.0, below: 1.0 }),
    key(
        "training.scheduler_timescale",
        Rule::WholeOrNull { min: 1, max: STEPS, null: "training.warmup_steps (10000 where that is 0)" },
    ),
    key("training.scheduler_step_size", Rule::Whole { min: 1, max: STEPS }),
    key("training.scheduler_gamma", Rule::Above { above: 0.0, most: 1.0 }),
    key("training.parameter_groups", Rule::ParameterGroups { max: 64 }),
    key("training.eval_every", Rule::WholeOrNull { min: 1, max: STEPS, null: "no evaluation while training" }),
    key("training.eval_records", Rule::Whole { min: 1, max: 1_000_000 }),
    key("training.eval_samples", Rule::Whole { min: 0, max: 1000 }),
    key("training.eval_max_new_tokens", Rule::Whole { min: 1, max: 131_072 }),
    key(
        "training.early_stop_patience",
        Rule::WholeOrNull { min: 1, max: 1_000_000, null: "training on to the last step" },
    ),
    key("training.weight_decay", Rule::From { min: 0.0, below: 1.0 }),
    key("training.beta1", Rule::From { min: 0.0, below: 1.0 }),
    key("training.beta2", Rule::From { min: 0.0, below: 1.0 }),
    key("training.epsilon", Rule::Above { above: 0.0, most: 0.1 }),
    key("training.grad_clip_norm", Rule::Above { above: 0.0, most: 1e9 }),
    key("training.optimizer.name", Rule::Choice(&["adamw", "muon"])),
    key("training.optimizer.momentum", Rule::From { min: 0.0, below: 1.0 }),
    key("training.optimizer.moments", Rule::Choice(&["fp32", "8bit"])),
    key("training.ema.decay", Rule::AboveOrNull { above: 0.0, most: 0.999_999_9, null: "no average" }),
    key("training.gradient_noise_scale", Rule::Flag),
    key(
        "training.privacy.noise_multiplier",
        Rule::AboveOrNull { above: 0.1, most: 1e6, null: "no noise, unless training.privacy.target_epsilon is set" },
    ),
    key(
        "training.privacy.target_epsilon",
        Rule::AboveOrNull { above: 0.0, most: 1e4, null: "training.privacy.noise_multiplier instead" },
    ),
    key("training.privacy.target_delta", Rule::Above { above: 0.0, most: 0.1 }),
    key("training.privacy.max_grad_norm", Rule::Above { above: 0.0, most: 1e6 }),
    key("training.privacy.randomness", Rule::Choice(&["secret", "seed"])),
    key("training.checkpoint_every", Rule::Whole { min: 1, max: STEPS }),
    key(
        "training.checkpoint_interval_seconds",
        Rule::WholeOrNull { min: 1, max: 86_400, null: "checkpoints by training.checkpoint_every alone" },
    ),
    key("training.keep_last", Rule::Whole { min: 1, max: 1000 }),
    key("training.keep_every", Rule::WholeOrNull { min: 1, max: STEPS, null: "no checkpoint that is kept for good" }),
    key("training.best_k", Rule::Whole { min: 0, max: 1000 }),
    key("training.best_metric", Rule::Choice(&["val_loss", "loss"])),
    key("training.metric_mode", Rule::Choice(&["min", "max"])),
    key("training.state_digest_every", Rule::WholeOrNull { min: 1, max: STEPS, null: "checkpoints alone" }),
    key("training.spike_action", Rule::Choice(&["ignore", "count", "skip"])),
    key("training.spike_threshold", Rule::Above { above: 1.0, most: 1e6 }),
    key("training.spike_window", Rule::Whole { min: 8, max: 4096 }),
    key("training.method", Rule::Choice(&["sft", "dpo", "grpo", "lora", "none"])),
    key("training.lora.rank", Rule::Whole { min: 1, max: 1024 }),
    key("training.lora.alpha", Rule::Above { above: 0.0, most: 65_536.0 }),
    key("training.lora.dropout", Rule::From { min: 0.0, below: 1.0 }),
    key("training.lora.targets", Rule::Choices(PROJECTIONS)),
    key("training.dpo.beta", Rule::Above { above: 0.0, most: 100.0 }),
    key("training.dpo.label_smoothing", Rule::From { min: 0.0, below: 0.5 }),
    key("training.dpo.lora", Rule::Flag),
    key("training.grpo.group", Rule::Whole { min: 2, max: 1024 }),
    key("training.grpo.max_new_tokens", Rule::Whole { min: 1, max: 131_072 }),
    key("training.grpo.lora", Rule::Flag),
    key("training.grpo.reward.version", Rule::Whole { min: 1, max: 1 }),
    key("training.grpo.reward.answer", Rule::Choice(ANSWERS)),
    key("training.grpo.reward.after", Rule::TextOrNull { max: 64, null: "no marker" }),
    key("training.grpo.reward.pattern", Rule::TextOrNull { max: 512, null: "no regular expression" }),
    key("training.grpo.reward.choices", Rule::Whole { min: 2, max: 26 }),
    key("training.grpo.reward.reference", Rule::Choice(&["same", "whole"])),
    key("training.grpo.reward.compare", Rule::Choice(&["exact", "numeric", "set"])),
    key("training.grpo.reward.tolerance", Rule::From { min: 0.0, below: 1e12 }),
    key("training.grpo.reward.correct", Rule::From { min: 0.0, below: 1e6 }),
    key("training.grpo.reward.format", Rule::From { min: 0.0, below: 1e6 }),
    key("training.grpo.reward.steps", Rule::From { min: 0.0, below: 1e6 }),
    key("training.reasoning.enabled", Rule::Flag),
    key("training.reasoning.trace_history", Rule::Whole { min: 1, max: 1_000_000 }),
    key("training.reasoning.log_probability_threshold", Rule::Above { above: 0.0, most: 1.0 }),
    key("training.reasoning.objective.mode", Rule::Choice(&["chain_of_thought", "tool_execution"])),
    key("training.reasoning.objective.weight", Rule::Above { above: 0.0, most: 2.0 }),
    key("training.reasoning.objective.max_traces_per_epoch", Rule::Whole { min: 0, max: STEPS }),
    key("training.reasoning.objective.log_top_k", Rule::Whole { min: 1, max: 64 }),
    key("training.reasoning.objective.trace_store", Rule::Text { max: 63 }),
    key("training.reasoning.objective.tool_supervision_weight", Rule::From { min: 0.0, below: 1000.0 }),
    key("training.reasoning.head.hidden_size", Rule::Whole { min: 1, max: 8192 }),
    key("training.reasoning.head.projection_size", Rule::Whole { min: 1, max: 8192 }),
    key("training.reasoning.head.trace_vocab_size", Rule::Whole { min: 2, max: 65_536 }),
    key("training.reasoning.head.dropout", Rule::From { min: 0.0, below: 1.0 }),
    key("training.reasoning.tool_adapter.enabled", Rule::Flag),
    key("training.reasoning.tool_adapter.tools", Rule::Names { max: reasoning::MAX_TOOLS }),
    key("training.reasoning.tool_adapter.pooling", Rule::Choice(POOLINGS)),
    key("training.reasoning.tool_adapter.temperature", Rule::Above { above: 0.0, most: 100.0 }),
    key("training.reasoning.tool_adapter.hidden_size", Rule::Whole { min: 1, max: 8192 }),
    key("data.format", Rule::Choice(&["auto", "jsonl", "csv", "parquet", "text"])),
    key("data.fields.prompt", Rule::Text { max: 200 }),
    key("data.fields.response", Rule::Text { max: 200 }),
    key("data.fields.chosen", Rule::Text { max: 200 }),
    key("data.fields.rejected", Rule::Text { max: 200 }),
    key("data.fields.messages", Rule::Text { max: 200 }),
    key("data.fields.text", Rule::Text { max: 200 }),
    key("data.loss", Rule::Choice(&["responses", "all"])),
    key("data.weights", Rule::WeightsOrNull),
    key("data.deduplicate", Rule::Flag),
    key("data.languages", Rule::AnyOf(LANGUAGES)),
    later("data.safety.block", Rule::AnyOf(SAFETY_GROUPS), "[]"),
    later("data.safety.redact", Rule::AnyOf(SAFETY_GROUPS), "[]"),
    key("data.validation.share", Rule::From { min: 0.0, below: 1.0 }),
    key("data.validation.seed", Rule::Whole { min: 0, max: crate::MAX_SEED }),
    key("data.augmentation.probability", Rule::From { min: 0.0, below: 1.0 }),
    key("data.augmentation.rate", Rule::Above { above: 0.0, most: 1.0 }),
    key("data.augmentation.variants", Rule::Whole { min: 1, max: 256 }),
    key("data.augmentation.kinds", Rule::Choices(AUGMENTATIONS)),
    key("data.replay.buffer", Rule::Whole { min: 1, max: 1_000_000 }),
    key("data.replay.ratio", Rule::From { min: 0.0, below: 1.0 }),
    key("data.replay.interleave_every", Rule::Whole { min: 1, max: STEPS }),
    key("data.replay.sampling", Rule::Choice(&["uniform", "difficulty_balanced"])),
    key("curriculum.preset", Rule::Choice(curriculum::CURRICULUM_PRESETS)),
    key("curriculum.phase_schedule", Rule::Choice(curriculum::SCHEDULES)),
    key(curriculum::PHASES, Rule::Phases { max: curriculum::MAX_PHASES }),
    key("response.format", Rule::Choice(&["steps", "answer"])),
    key("trace_capture.mode", Rule::Choice(&["disabled", "weights", "activations"])),
    key("trace_capture.pooling", Rule::Choice(POOLINGS)),
    key("logging.reasoning_trace", Rule::Flag),
    key("tracking.csv", Rule::Flag),
    key("tracking.tensorboard", Rule::Flag),
    key("tracking.mlflow.files", Rule::Flag),
    key("tracking.mlflow.server", Rule::Flag),
    key("tracking.wandb", Rule::Flag),
    key("tracking.system_metrics", Rule::Flag),
    key("metadata.owner", Rule::Text { max: 63 }),
    later("metadata.model_card", Rule::Flag, "false"),
    later("evaluation.preset", Rule::TextOrNull { max: 63, null: "none in particular" }, "null"),
    later("deployment.preset", Rule::TextOrNull { max: 63, null: "none in particular" }, "null"),
];

/// The keys of an evaluation. A test compares them with the presets and with the typed settings.
pub(crate) const EVALUATION: &[Key] = &[
    key("evaluation.limit", Rule::WholeOrNull { min: 1, max: 10_000_000, null: "all problems" }),
    key("evaluation.batch_size", Rule::Whole { min: 1, max: 65_536 }),
    key("evaluation.max_new_tokens", Rule::Whole { min: 1, max: 131_072 }),
    key("evaluation.samples", Rule::Whole { min: 1, max: 1024 }),
    key("evaluation.k", Rule::WholeOrNull { min: 1, max: 1024, null: "evaluation.samples" }),
    key("evaluation.temperature", Rule::From { min: 0.0, below: 100.0 }),
    key("evaluation.top_p", Rule::Above { above: 0.0, most: 1.0 }),
    key("evaluation.top_k", Rule::WholeOrNull { min: 1, max: 1_000_000, null: "all tokens" }),
    key("evaluation.stop", Rule::Texts { most: 16, max: 64 }),
    key("evaluation.prompt", Rule::Choice(&["auto", "plain", "chat"])),
    key("evaluation.answer", Rule::Choice(ANSWERS)),
    key("evaluation.after", Rule::TextOrNull { max: 64, null: "no marker" }),
    key("evaluation.pattern", Rule::TextOrNull { max: 512, null: "no regular expression" }),
    key("evaluation.choices", Rule::Whole { min: 2, max: 26 }),
    key("evaluation.reference", Rule::Choice(&["same", "whole"])),
    key("evaluation.compare", Rule::Choice(&["exact", "numeric", "set"])),
    key("evaluation.tolerance", Rule::From { min: 0.0, below: 1e12 }),
    key("evaluation.metrics", Rule::ChoicesOrNull { words: ON_DEMAND, null: "those of gates alone" }),
    key("evaluation.confidence", Rule::Above { above: 0.5, most: codex_verdict::MAX_BOOTSTRAP_CONFIDENCE }),
];

/// The keys of a deployment. A test compares them with the preset that has all of them.
pub(crate) const DEPLOYMENT: &[Key] = &[
    key("deployment.dry_run", Rule::Flag),
    key("deployment.replicas", Rule::Whole { min: 1, max: 1000 }),
    key(
        "deployment.autoscaling.min_replicas",
        Rule::WholeOrNull { min: 0, max: 1000, null: "deployment.replicas servers at all times" },
    ),
    key("deployment.autoscaling.max_replicas", Rule::Whole { min: 1, max: 1000 }),
    key("deployment.autoscaling.cpu_percent", Rule::Whole { min: 1, max: 1000 }),
    key("deployment.resources.requests.cpu", Rule::Text { max: 32 }),
    key("deployment.resources.requests.memory", Rule::Text { max: 32 }),
    key("deployment.resources.limits.cpu", Rule::Text { max: 32 }),
    key("deployment.resources.limits.memory", Rule::Text { max: 32 }),
    key("deployment.serving.request_timeout_seconds", Rule::WholeOrNull { min: 1, max: 86_400, null: "no limit" }),
    key("deployment.serving.rate_limit", Rule::TextOrNull { max: 32, null: "no limit of the preset" }),
    key("deployment.serving.max_num_seqs", Rule::WholeOrNull { min: 1, max: 65_535, null: "that of the server" }),
    key("deployment.shadow.of", Rule::TextOrNull { max: 52, null: "no shadow" }),
    key("deployment.shadow.sample_percent", Rule::Whole { min: 1, max: 100 }),
    key("deployment.shadow.max_divergence", Rule::Text { max: 16 }),
];

/// Parts of keys that name a field of an object, and the field.
const RESERVED: &[(&str, &str)] = &[
    ("seed", "seed"),
    ("ring", "rolloutRing"),
    ("rollout_ring", "rolloutRing"),
    ("rolloutRing", "rolloutRing"),
    ("output", "output"),
    ("output_dir", "output"),
    ("data", "data"),
    ("template", "template"),
    ("preset", "preset"),
];

/// Returns the field of the object that `key` refers to.
pub(crate) fn reserved(key: &str) -> Option<&'static str> {
    key.split('.').find_map(|word| RESERVED.iter().find(|(name, _)| *name == word)).map(|(_, field)| *field)
}
