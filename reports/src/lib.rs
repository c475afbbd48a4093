//! Reports of pods to the controller: the wire types of progress, results and measurements. No I/O.
//!
//! A [`Report`] is cumulative: the latest one holds everything, so a lost report costs nothing, and an older one (a lower
//! `seq` of the same pod) is dropped. The final report is also the termination message of the pod, as far as it fits.

mod adoption;
mod chain;
mod contradiction;
mod copies;
mod evaluation;
mod serving;
mod training;
mod writer;

use codex_provenance::{ConfigDigest, Sha256};
use serde::{Deserialize, Serialize};

pub use adoption::{Adoption, FORMER_VARIABLE, Former};
pub use chain::{chain, chain_until};
pub use codex_provenance::Device;
pub use copies::{
    COPIES_PATH, COPY_KEY_HEADER, COPY_SIGNATURE_HEADER, CopiedGrammar, CopiedSampling, CopiedThinking, MAX_COPY,
    MirrorFile, MirrorTarget, RequestCopy, ShadowFile, signed_copy,
};
pub use evaluation::EvaluationState;
pub use serving::{
    Comparison, Difference, INTER_TOKEN_EDGES, LATENCY_EDGES, MAX_COMPARISONS, Rejected, Reproduction, ServingState,
    Times, Traffic, latency_buckets, percentile_95,
};
pub use training::{
    Base, Checkpoint, Computation, Curriculum, CurriculumPhase, DataFile, Model, PhaseStatus, Progress, TrainingState,
    is_commit,
};
pub use writer::{CHALLENGE_HEADER, KEY_HEADER, SIGNATURE_HEADER, signed_message};

/// Version of the report format. A receiver refuses other versions.
pub const SCHEMA_VERSION: u32 = 1;
/// Audience of the projected token that a pod sends with its reports.
pub const AUDIENCE: &str = "codex-ml.dev/reports";
/// URL path of the report endpoint.
pub const PATH: &str = "/v1/reports";
/// Maximum size of a report in bytes.
pub const MAX_BYTES: usize = 64 * 1024;
/// Maximum size in bytes of a termination message; the kubelet cuts longer ones.
pub const MAX_TERMINATION_BYTES: usize = 4096;

/// Exit codes of `codex`.
pub mod exit {
    /// The work has finished.
    pub const FINISHED: i32 = 0;
    /// The work failed, and another attempt may succeed.
    pub const FAILED: i32 = 1;
    /// The input is invalid, and another attempt cannot succeed.
    pub const BAD_INPUT: i32 = 2;
    /// `codex evaluate` failed, and another attempt may succeed. It has its own code, because 1 says that a gate failed.
    pub const NOT_EVALUATED: i32 = 3;
    /// SIGTERM interrupted the work, and a checkpoint was written.
    pub const INTERRUPTED: i32 = 143;
}

/// Kind of the object that owns a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The pod is a trainer.
    TrainingRun,
    /// The pod is an evaluator.
    Evaluation,
    /// The pod is a server.
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

/// A report of a pod about the object that owns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// Version of the report format, [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Kind of the object.
    pub kind: Kind,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    pub object_uid: String,
    /// Uid of the pod that reports.
    pub pod_uid: String,
    /// Number of the attempt, from 1. It is counted in the output directory.
    pub attempt: u32,
    /// Sequence number, which grows with every report of a pod.
    pub seq: u64,
    /// Digest that the pod computed from its mounted configuration. `None` for a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// In a termination message, which may be shortened: [`Report::digest`] of the final report that the pod sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Sha256>,
    /// State of the work.
    pub state: State,
}

/// State of the work of a pod, by kind.
#[allow(clippy::large_enum_variant, reason = "a report holds one, and reports are rare")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// State of a trainer.
    Training(TrainingState),
    /// State of an evaluator.
    Evaluation(EvaluationState),
    /// State of a server.
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

/// Stage of the work of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The pod reads configuration, data and checkpoints.
    #[default]
    Starting,
    /// The pod trains, evaluates or serves.
    Running,
    /// SIGTERM stopped the pod after a checkpoint. Another attempt resumes.
    Interrupted,
    /// The work has finished.
    Finished,
    /// The work failed; `failure` holds the reason.
    Failed,
}

impl Stage {
    /// Whether a report with this stage is the last one of its process.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

/// Failure of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// Whether another attempt cannot succeed (exit code 2).
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Reason in CamelCase, such as `DataMismatch`, `GoldenTokensDiffer`, `InvalidConfiguration`, `ModelMismatch`,
    /// `VerificationFailed`.
    pub reason: String,
    /// One sentence that names the field, its value and what to change.
    pub message: String,
}
