//! Settings of experiment trackers. Pure.

use serde::{Deserialize, Serialize};

/// The trackers that a training run writes its metrics to, beside its ledger.
#[allow(clippy::struct_excessive_bools, reason = "each turns an output on")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackingSettings {
    /// Whether the run writes a table, `artifacts/metrics.csv`.
    pub csv: bool,
    /// Whether the run writes event files of TensorBoard, in `artifacts/tensorboard/`.
    pub tensorboard: bool,
    /// What the run writes for MLflow.
    pub mlflow: MlflowSettings,
    /// Whether the run writes an offline directory of Weights & Biases, in `artifacts/wandb/`.
    #[serde(default)]
    pub wandb: bool,
    /// Whether the ledger, and with it the trackers, has rows about the machine: processors, memory, volume and GPUs.
    #[serde(default)]
    pub system_metrics: bool,
}

/// What a training run writes for MLflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlflowSettings {
    /// Whether the run writes a file store, `mlruns/`.
    pub files: bool,
    /// Whether the run sends its metrics to the tracking server that `MLFLOW_TRACKING_URI` names.
    pub server: bool,
}
