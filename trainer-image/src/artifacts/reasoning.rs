//! `reasoning.json` and the file of reasoning traces: what a run captures of its model. Pure.
//!
//! A trace is a measurement of numbers in a model, read by a small head beside it. It is not what the model thinks, nor a text that it
//! wrote.

use codex_configs::{
    LoggingSettings, Pooling, ReasoningMode, ReasoningSettings, TraceCapture, TraceMode, TrainingSettings,
};
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The name of [`Reasoning`]'s file.
pub const FILE: &str = "reasoning.json";
/// The value of `schemaVersion`.
pub const SCHEMA_VERSION: u32 = 1;
/// The value of `type` in each line of the file of traces.
pub const TYPE: &str = "reasoning_trace";
/// The value of `trace_mode` in traces of a server that name the weights alone.
pub const WEIGHTS: &str = "weights";
/// The value of `trace_mode` in traces of a server that also measure hidden states.
pub const ACTIVATIONS: &str = "activations";

/// The content of `reasoning.json`: the harness as it is configured, and what of it took effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "reasoning.json")]
pub struct Reasoning {
    /// The version of the file's shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: u32,
    /// The settings `trace_capture` of the configuration.
    #[schemars(schema_with = "settings")]
    pub trace_capture: TraceCapture,
    /// The settings `logging` of the configuration.
    #[schemars(schema_with = "settings")]
    pub logging: LoggingSettings,
    /// The settings `training.reasoning` of the configuration.
    #[schemars(schema_with = "settings")]
    pub harness: ReasoningSettings,
    /// What traces are made with.
    pub runtime: Runtime,
    /// What took effect.
    pub effective: Effective,
}

/// What traces are made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The objective of the harness, such as `chain_of_thought`.
    #[schemars(schema_with = "word")]
    pub mode: ReasoningMode,
    /// Number of tokens that a trace names.
    pub top_k: usize,
    /// Traces whose most likely token has a lower probability are dropped.
    pub threshold: f64,
}

/// What took effect of the settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Effective {
    /// The source of traces: `disabled`, `weights` or `activations`.
    #[schemars(schema_with = "word")]
    pub trace_mode: TraceMode,
    /// Why nothing is captured; absent if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the numbers come from: the name of a tensor, or `hidden_states`; absent if nothing is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How hidden states become one vector; absent for other sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "word")]
    pub pooling: Option<Pooling>,
    /// Number of captured numbers that the head reads; absent if nothing is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<usize>,
    /// The file of traces in the same folder; absent if nothing is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_store: Option<String>,
    /// Whether traces have a decision on a tool.
    pub tool_adapter: bool,
    /// Weight of tokens of tool calls in the loss of the model; absent if they count as all others do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_supervision_weight: Option<f64>,
}

impl Reasoning {
    /// Returns what a configuration leads to, where the numbers come from `source`, of which the head reads `inputs`.
    pub fn of(settings: &TrainingSettings, source: Option<(String, usize)>) -> Self {
        let TrainingSettings { training, trace_capture, logging, .. } = settings;
        let harness = &training.reasoning;
        let trace_mode = settings.trace_mode();
        let captured = trace_mode != TraceMode::Disabled;
        let reason = if captured {
            None
        } else if trace_capture.mode == TraceMode::Disabled {
            Some("trace_capture.mode is disabled")
        } else if !harness.enabled {
            Some("training.reasoning.enabled is false")
        } else if !logging.reasoning_trace {
            Some("logging.reasoning_trace is false")
        } else {
            Some("training.method is none")
        };
        let (source, inputs) = source.filter(|_| captured).unzip();
        let effective = Effective {
            trace_mode,
            reason: reason.map(str::to_owned),
            source,
            pooling: (trace_mode == TraceMode::Activations).then_some(trace_capture.pooling),
            inputs,
            trace_store: captured.then(|| harness.objective.trace_store.clone()),
            tool_adapter: captured && harness.tool_adapter.enabled,
            tool_supervision_weight: training.tool_supervision(),
        };
        Self {
            schema_version: SCHEMA_VERSION,
            trace_capture: *trace_capture,
            logging: *logging,
            harness: harness.clone(),
            runtime: Runtime {
                mode: harness.objective.mode,
                top_k: harness.objective.log_top_k,
                threshold: harness.log_probability_threshold,
            },
            effective,
        }
    }
}

/// A captured trace: a line of the file of traces. The order of the keys is part of the format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "reasoning_traces.ndjson: one line")]
pub struct TraceRow {
    /// The type of the event.
    #[serde(rename = "type")]
    #[schemars(extend("const" = TYPE))]
    pub kind: String,
    /// The epoch of the step, from 0: an epoch has as many examples as all data has records.
    pub epoch: u64,
    /// Optimizer steps done.
    pub step: u64,
    /// The objective of the harness, such as `chain_of_thought`.
    pub mode: String,
    /// The source of the trace: `weights` or `activations`.
    pub trace_mode: String,
    /// The most likely outputs of the head, the most likely one first. Output i stands for the tokens whose id is i modulo the number
    /// of outputs.
    pub top_tokens: Vec<u32>,
    /// The probability of the first of them.
    pub top_probability: f64,
    /// The Euclidean norm of the numbers that the head read.
    pub embedding_norm: f64,
    /// What the tool adapter decided; null without one.
    pub tool_decision: Option<ToolDecision>,
}

/// A trace of an answered request: a line of the file of `codex serve --trace-store`. The order of the keys is part of the format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "File of codex serve --trace-store: one line")]
pub struct ServedTrace {
    /// The type of the event.
    #[serde(rename = "type")]
    #[schemars(extend("const" = TYPE))]
    pub kind: String,
    /// When the response was complete.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub timestamp: Timestamp,
    /// The number of the request among those of the server, from 1.
    pub request: u64,
    /// The source of the trace.
    #[schemars(extend("enum" = [WEIGHTS, ACTIVATIONS]))]
    pub trace_mode: String,
    /// The fingerprint of the weights that answered: the model digest that the server verified.
    pub weights: String,
    /// Number of tokens of the prompt.
    pub prompt_tokens: u64,
    /// Number of tokens of the response.
    pub completion_tokens: u64,
    /// Why the response ended: `stop`, `length` or `context`; `closed` by a stop text, or because the client went.
    pub end: String,
    /// The most likely first tokens of the response, the most likely one first.
    pub top_tokens: Vec<u32>,
    /// The probability of the first of them, before temperature and other settings.
    pub top_probability: f64,
    /// With `activations`, the Euclidean norm of the mean of the hidden states, after the final norm, that the tokens of the response
    /// were chosen by; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_norm: Option<f64>,
}

/// A decision of the tool adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDecision {
    /// The tool; null if it decided on none.
    pub tool: Option<String>,
    /// The probability of the decision.
    pub probability: f64,
}

fn settings(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object" })
}

fn word(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string" })
}
