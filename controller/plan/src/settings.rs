//! What the controller was started with, as far as plans depend on it. Pure.

use serde::{Deserialize, Serialize};

/// What the controller was started with, as far as plans depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The version of the controller, for `app.kubernetes.io/version`.
    pub version: String,
    /// The image of trainers whose TrainingRun names none.
    pub trainer_image: String,
    /// The image of every evaluator and server: no user names one.
    pub worker_image: String,
    /// Where pods report to, such as `https://codex-controller.codex-system.svc:8443/v1/reports`.
    pub report_url: String,
    /// The certificates, in PEM, by which pods know the report endpoint.
    pub report_ca: String,
    /// The namespace of the report endpoint, for the servers' NetworkPolicy.
    pub controller_namespace: String,
    /// The port on which the controller's pods take reports, for the servers' NetworkPolicy.
    pub report_port: i32,
}
