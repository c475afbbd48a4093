//! What the plan of an Evaluation depends on. Pure.

use std::{collections::BTreeMap, sync::Arc};

use codex_crds::{Evaluation, TrainingRun};
use codex_provenance::DataDigest;
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde::{Deserialize, Serialize};

use crate::{
    admission::Admission,
    obstruction::Obstruction,
    pods::{ClusterWarning, Received, References, RefusedPod},
    seal::StatusSeal,
    settings::Settings,
};

/// Everything that the plan of an Evaluation depends on, besides the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedEvaluation {
    /// The object with its status.
    pub object: Evaluation,
    /// The settings of the controller.
    pub settings: Arc<Settings>,
    /// The TrainingRun that `spec.trainingRun` names, if it names one that exists in the object's namespace.
    #[serde(default)]
    pub run: Option<TrainingRun>,
    /// The Evaluations that its gates compare with, by name, as far as they exist.
    #[serde(default)]
    pub compared: BTreeMap<String, Evaluation>,
    /// The claim of the run's output or those of the given model and of `spec.output`, those of the outcomes that gates compare
    /// with, and the claims and `ConfigMap`s of its own data, as far as they exist.
    #[serde(default)]
    pub references: Option<References>,
    /// The Job `codex-e-<name>`, if it exists and the object (by uid) controls it.
    #[serde(default)]
    pub job: Option<Job>,
    /// The Job's pods, in any order.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// What the cluster says about the Job or about pods that do not start.
    #[serde(default)]
    pub warnings: Vec<ClusterWarning>,
    /// The newest report of each pod, including pods that no longer exist, in any order.
    #[serde(default)]
    pub reports: Vec<Received>,
    /// Pods of the object whose reports are refused.
    #[serde(default)]
    pub refused: Vec<RefusedPod>,
    /// What the ledger says about a read of each set of problems that was reported and is not judged yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reads: BTreeMap<DataDigest, LedgerRead>,
    /// The admission policies that protect evidence.
    #[serde(default)]
    pub admission: Admission,
    /// What the seal of the object's status says. The statuses of other objects here are without the parts that were
    /// discarded.
    #[serde(default)]
    pub seal: StatusSeal,
    /// When this process last wrote the object's status.
    #[serde(default)]
    pub status_written_at: Option<Timestamp>,
    /// What kept this reconciliation from carrying out the plan without it.
    #[serde(default)]
    pub obstruction: Option<Obstruction>,
}

/// What the ledger says about a read of a set of problems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LedgerRead {
    /// The read has this number, or gets it when it is recorded.
    Number(i64),
    /// The read cannot be counted; the sentence says why, and what to do.
    Uncounted(String),
}
