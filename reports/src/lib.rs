//! What pods tell the controller: the wire types of progress, results and evaluation numbers. No I/O.
//!
//! A [`Report`] is cumulative: the newest one says everything, so a lost one costs nothing and an older one (a lower
//! `seq` of the same pod) is dropped. The final one is also the pod's termination message, as far as it fits.

mod evaluation;
mod serving;
mod training;

use codex_provenance::ConfigDigest;
use serde::{Deserialize, Serialize};

pub use evaluation::{EvaluationState, Measurement};
pub use serving::ServingState;
pub use training::{Checkpoint, DataFile, Model, Progress, TrainingState};

/// The version of these types. A receiver refuses one it does not know.
pub const SCHEMA_VERSION: u32 = 1;
/// The audience that a pod's projected token is bound to.
pub const AUDIENCE: &str = "codex-ml.dev/reports";
/// Where the controller takes reports.
pub const PATH: &str = "/v1/reports";
/// The most bytes that one report may have.
pub const MAX_BYTES: usize = 64 * 1024;
/// The most bytes of a termination message that the kubelet keeps.
pub const MAX_TERMINATION_BYTES: usize = 4096;

/// Exit codes of the pods' processes.
pub mod exit {
    /// The work is finished.
    pub const FINISHED: i32 = 0;
    /// Anything that another attempt may mend.
    pub const FAILED: i32 = 1;
    /// Bad input: another attempt cannot succeed.
    pub const BAD_INPUT: i32 = 2;
    /// Interrupted by SIGTERM after a checkpoint was written.
    pub const INTERRUPTED: i32 = 143;
}

/// The kinds of object that pods work for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A trainer's object.
    TrainingRun,
    /// An evaluator's object.
    Evaluation,
    /// A server's object.
    ReasoningPod,
}

impl Kind {
    /// Returns the name of the kind, as in `kind:` of its objects.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainingRun => "TrainingRun",
            Self::Evaluation => "Evaluation",
            Self::ReasoningPod => "ReasoningPod",
        }
    }
}

/// One report of one pod about one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The kind of the object that the pod works for.
    pub kind: Kind,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The object's uid.
    pub object_uid: String,
    /// The reporting pod's uid.
    pub pod_uid: String,
    /// Which attempt at the work this is, counted from 1 by the work's own directory.
    pub attempt: u32,
    /// Grows with every report of one pod.
    pub seq: u64,
    /// The digest of the configuration that the pod mounted and hashed again; none for a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// What there is to say.
    pub state: State,
}

/// What a pod says, by the kind of its work.
#[allow(clippy::large_enum_variant, reason = "there is one a report, and reports are rare")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// From a trainer.
    Training(TrainingState),
    /// From an evaluator.
    Evaluation(EvaluationState),
    /// From a server.
    Serving(ServingState),
}

impl State {
    /// Returns the stage of the pod's work.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Training(state) => state.stage,
            Self::Evaluation(state) => state.stage,
            Self::Serving(state) => state.stage,
        }
    }

    /// Returns why the pod gave up, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Training(state) => state.failure.as_ref(),
            Self::Evaluation(state) => state.failure.as_ref(),
            Self::Serving(state) => state.failure.as_ref(),
        }
    }
}

/// How far the work of a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Reading configuration, data, checkpoints.
    #[default]
    Starting,
    /// At work.
    Running,
    /// Stopped by SIGTERM after a checkpoint; another attempt goes on.
    Interrupted,
    /// Done; the results stand.
    Finished,
    /// Given up; `failure` says why.
    Failed,
}

/// Why a pod gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// True when another attempt cannot succeed (exit code 2).
    #[serde(rename = "final")]
    pub is_final: bool,
    /// A CamelCase word, such as `DataMismatch`, `InvalidConfiguration`, `ModelMismatch`, `VerificationFailed`.
    pub reason: String,
    /// One sentence that names the field, the value and what would be right.
    pub message: String,
}
