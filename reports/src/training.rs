//! What a trainer says. No I/O.

use codex_provenance::{DataDigest, ModelDigest, OmsRoot, Sha256, manifest::Manifest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Failure, Stage};

/// A trainer's cumulative state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingState {
    /// How far the work is.
    pub stage: Stage,
    /// The newest numbers of the loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The step that this attempt went on from; none when it began at step 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u64>,
    /// Steps that all attempts executed together, repeated ones counted again.
    #[serde(default)]
    pub steps_executed: u64,
    /// The newest checkpoint on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<Checkpoint>,
    /// The data files as they were read, hashed while they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
    /// The finished model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// What a person should know: a damaged checkpoint that was passed over, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// Why the trainer gave up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// The newest numbers of a training loop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps that the run has.
    pub total_steps: u64,
    /// Mean cross-entropy per target token in nats; none before the first step, and when it is not finite.
    pub loss: Option<f64>,
    /// Tokens (padding left out) that the loop goes through in a second.
    pub tokens_per_second: Option<f64>,
    /// Seconds that the remaining steps will take at this speed.
    pub eta_seconds: Option<u64>,
    /// What the newest step was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The Euclidean norm of the newest gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Floating-point operations of the model in a second, in units of 10⁹.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// The share of the time, from 0 to 1, that the loop waits for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<f64>,
    /// The memory that the process holds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The newest loss on held-out records; none before the first evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

/// A checkpoint on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoint {
    /// Optimiser steps that it holds.
    pub step: u64,
    /// SHA-256 of its manifest.
    pub digest: Sha256,
}

/// A data file as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataFile {
    /// The name it has in the object's `data`.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: DataDigest,
    /// Bytes.
    pub size: u64,
    /// Records; none when it was refused before they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// A finished model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// The digest of `manifest`; the receiver computes it again.
    pub digest: ModelDigest,
    /// The OMS root over the same files.
    pub oms_root: OmsRoot,
    /// The model's files.
    pub manifest: Manifest,
    /// Numbers that training chose.
    pub parameters: u64,
}
