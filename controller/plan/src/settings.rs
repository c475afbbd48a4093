//! The settings of the controller that plans depend on. Pure.

use serde::{Deserialize, Serialize};

/// The settings of the controller that plans depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The version of the controller, for `app.kubernetes.io/version`.
    pub version: String,
    /// The image of trainers whose TrainingRun does not set one.
    pub trainer_image: String,
    /// The image of all evaluators and servers.
    pub worker_image: String,
    /// The URL that pods report to, such as `https://codex-controller.codex-system.svc:8443/v1/reports`.
    pub report_url: String,
    /// The certificates, in PEM, with which pods verify the report endpoint.
    pub report_ca: String,
    /// The namespace of the report endpoint, for the servers' NetworkPolicy.
    pub controller_namespace: String,
    /// The port of the report endpoint in the controller's pods, for the servers' NetworkPolicy.
    pub report_port: i32,
}
