//! Reasoning traces: what is captured while training, the head that reads it, and how tokens of tool calls count. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, Method, Optimization, Training, TrainingSettings};

/// The most characters of the name of a tool.
pub(crate) const MAX_TOOL: usize = 63;
/// The most tools of a tool adapter.
pub(crate) const MAX_TOOLS: usize = 32;
/// The key of the name of the file of traces.
const STORE: &str = "training.reasoning.objective.trace_store";
/// The key of the weight of tokens of tool calls.
const SUPERVISION: &str = "training.reasoning.objective.tool_supervision_weight";
/// The files with this ending that a run writes beside its traces.
const TAKEN: &[&str] = &["errors.ndjson", "ledger.ndjson", "metrics.ndjson", "states.ndjson"];

/// What is captured of a model while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceCapture {
    /// The source of traces.
    pub mode: TraceMode,
    /// How the hidden states of a record become one vector, for [`TraceMode::Activations`].
    pub pooling: Pooling,
}

/// The source of traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceMode {
    /// Nothing is captured.
    #[default]
    Disabled,
    /// A fingerprint of the weights: the first numbers of the first trained tensor.
    Weights,
    /// The last hidden states of the first record of a step, pooled.
    Activations,
}

impl TraceMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disabled, Self::Weights, Self::Activations];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Weights => "weights",
            Self::Activations => "activations",
        }
    }
}

/// How the hidden states of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
}

/// What a run logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggingSettings {
    /// Whether reasoning traces are written.
    pub reasoning_trace: bool,
}

/// The reasoning harness of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReasoningSettings {
    /// Whether there is a harness at all. Otherwise its other settings have no effect.
    pub enabled: bool,
    /// Number of latest traces that the file of traces certainly holds.
    pub trace_history: u64,
    /// Traces whose most likely token has a lower probability are dropped.
    pub log_probability_threshold: f64,
    /// What the harness is for.
    pub objective: ObjectiveSettings,
    /// The head that reads what is captured.
    pub head: HeadSettings,
    /// The head that decides on a tool.
    pub tool_adapter: ToolAdapterSettings,
}

/// What the reasoning harness is for, and what it writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSettings {
    /// The objective.
    pub mode: ReasoningMode,
    /// Weight of the loss of the head: a factor on its learning rate.
    pub weight: f64,
    /// The most traces of an epoch. 0 means any number.
    pub max_traces_per_epoch: u64,
    /// Number of tokens that a trace names.
    pub log_top_k: usize,
    /// Name of the file of traces.
    pub trace_store: String,
    /// Weight of tokens of tool calls in the loss of the model, for [`ReasoningMode::ToolExecution`].
    pub tool_supervision_weight: f64,
}

/// The objective of a reasoning harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningMode {
    /// Steps in text.
    ChainOfThought,
    /// Calls of tools.
    ToolExecution,
}

impl ReasoningMode {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChainOfThought => "chain_of_thought",
            Self::ToolExecution => "tool_execution",
        }
    }
}

/// The shape of the head that reads what is captured: a linear layer, tanh, dropout, a linear layer, softmax.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSettings {
    /// Number of inputs. What is captured is cut to it, or padded with zeros.
    pub hidden_size: usize,
    /// Number of hidden units.
    pub projection_size: usize,
    /// Number of outputs.
    pub trace_vocab_size: usize,
    /// Probability that a hidden unit is left out while the head is trained.
    pub dropout: f64,
}

/// The head that decides on a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolAdapterSettings {
    /// Whether traces have a decision.
    pub enabled: bool,
    /// The tools that it chooses from.
    pub tools: Vec<String>,
    /// How the hidden states of a record become its input.
    pub pooling: Pooling,
    /// Divides the logits of its decision.
    pub temperature: f64,
    /// Number of hidden units.
    pub hidden_size: usize,
}

impl TrainingSettings {
    /// Returns the source of traces that takes effect.
    pub fn trace_mode(&self) -> TraceMode {
        let captured =
            self.training.reasoning.enabled && self.logging.reasoning_trace && self.training.method != Method::None;
        if captured { self.trace_capture.mode } else { TraceMode::Disabled }
    }
}

impl Optimization {
    /// Returns the weight of tokens of tool calls in the loss; `None` if they count as all others do.
    pub fn tool_supervision(&self) -> Option<f64> {
        let ReasoningSettings { enabled, objective, .. } = &self.reasoning;
        let weight = objective.tool_supervision_weight;
        let equal = (weight - 1.0).abs() < f64::EPSILON;
        (*enabled && objective.mode == ReasoningMode::ToolExecution && !equal).then_some(weight)
    }
}

/// Checks that the reasoning harness, the method and the data can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let training = &run.settings.training;
    let ReasoningSettings { objective, head, .. } = &training.reasoning;
    let conflict = |key, value: String, right: String| Err(ConfigError::Conflict { key, value, right });
    let store = &objective.trace_store;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if !store.ends_with(".ndjson") || store.starts_with('.') || !store.chars().all(is_plain) {
        let right = "write the name of a file in the artifacts of the run that ends in .ndjson, such as reasoning_traces.ndjson";
        return conflict(STORE, format!("{store:?}"), right.to_owned());
    }
    if TAKEN.contains(&store.as_str()) {
        let right = "the run writes another file of that name; write another name, such as reasoning_traces.ndjson";
        return conflict(STORE, store.clone(), right.to_owned());
    }
    if objective.log_top_k > head.trace_vocab_size {
        let right = format!("write at most training.reasoning.head.trace_vocab_size ({})", head.trace_vocab_size);
        return conflict("training.reasoning.objective.log_top_k", objective.log_top_k.to_string(), right);
    }
    let Some(weight) = training.tool_supervision() else { return Ok(()) };
    let method = match training.method {
        Method::Sft | Method::Lora => None,
        Method::Dpo => Some("dpo compares whole responses"),
        Method::Grpo => Some("grpo learns from rewards"),
        Method::None => Some("none trains nothing"),
    };
    if let Some(why) = method {
        let right = format!("training.method {why}; write 1, or training.method=sft or lora");
        return conflict(SUPERVISION, weight.to_string(), right);
    }
    if run.data.iter().filter(|data| data.is_trained_on()).all(|data| data.synthetic.is_some()) {
        let right = "synthetic tasks have no tool calls that it could weigh; add data whose records have some, between <tool_call> and \
                     </tool_call>, or write 1";
        return conflict(SUPERVISION, weight.to_string(), right.to_owned());
    }
    Ok(())
}
