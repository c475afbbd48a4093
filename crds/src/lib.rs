//! The Kubernetes API of Codex: the kinds of `codex-ml.dev/v1alpha1`, their conditions, and names of child objects.
//!
//! The doc comment of a field is its description in `kubectl explain`. Defaults, bounds, enumerations and immutability are
//! part of the CRDs, so that the API server itself refuses an invalid object. [`manifests`] renders the CRDs; nothing else
//! here does I/O.
#![allow(clippy::doc_markdown, reason = "kubectl explain shows the sentences as they are")]
#![allow(unreachable_pub, reason = "the KubeSchema derive writes public structs into function bodies")]

mod adoption;
mod autoscaling;
mod base;
mod conditions;
mod data;
mod device;
mod evaluation;
pub mod manifests;
mod names;
mod pod;
mod promotion_policy;
mod reasoning_pod;
mod redeploy;
mod reproduction;
mod rollout;
mod rules;
mod schedule;
mod shadow;
mod sign_off;
mod training_run;
mod work;

pub use adoption::AdoptionStatus;
pub use autoscaling::{Autoscaling, AutoscalingMetrics};
pub use base::{Base, BaseRun, BaseSigner, BaseStatus, HuggingFace, SecretKey};
pub use conditions::{ConditionType, Reason};
pub use data::{ConfigMapKey, DataItem, DataSource, Synthetic, VolumeClaimFolder, VolumeClaimPath};
pub use device::{Device, DeviceStatus};
pub use evaluation::{
    Evaluation, EvaluationPhase, EvaluationSpec, EvaluationStatus, GivenModel, JudgedModel, MetricStatus,
    OutcomesStatus, PageStatus, ReadStatus, ReferenceStatus,
};
pub use names::{annotation, bundle, child, is_subdomain, label};
pub use pod::{PodIds, TrainerPod, WorkerPod};
pub use promotion_policy::{ClusterPromotionPolicy, ClusterPromotionPolicySpec, PromotionPolicy, PromotionPolicySpec};
pub use reasoning_pod::{
    ApiKeys, ManifestStatus, PromotionStatus, ReasoningPod, ReasoningPodPhase, ReasoningPodSpec, ReasoningPodStatus,
    SafetyRules, Serving, SignOffStatus, Tls, VerifiedStatus,
};
pub use redeploy::{
    CyclePhase, CycleRecord, CycleStatus, EvaluationTemplate, MAX_CYCLE_EVALUATIONS, Redeploy, RedeployShadow,
    RedeployStatus, RedeployTemplate, ServedStatus,
};
pub use reproduction::{ComputationStatus, Reproduces, ReproductionStatus};
pub use rollout::{
    Agreement, AgreementStatus, Analysis, MAX_HISTORY, ParentRef, RejectedStatus, Rollout, RolloutGateway,
    RolloutPhase, RolloutRecord, RolloutResult, RolloutStatus, TimesStatus, TrafficStatus,
};
pub use schedule::{ActiveRun, ConcurrencyPolicy, FinishedRun, MAX_FINISHED, MissedRuns, Schedule, ScheduleStatus};
pub use shadow::{DifferenceStatus, MAX_SHADOW_SOURCES, Parity, Shadow, ShadowSource, ShadowStatus};
pub use sign_off::{SignOff, SignOffSpec};
pub use training_run::{
    CheckpointStatus, ClaimOutput, CurriculumPhaseState, CurriculumPhaseStatus, CurriculumStatus, DataStatus,
    FileStatus, LostCheckpointStatus, MAX_CURRICULUM_PHASES, MAX_MODEL_FILES, ModelStatus, Output, ProgressStatus,
    TemplateFrom, TrainingRun, TrainingRunPhase, TrainingRunSpec, TrainingRunStatus,
};
pub use work::{AttemptStatus, MAX_ATTEMPTS, WorkStatus};

/// The API group.
pub const GROUP: &str = "codex-ml.dev";
/// The API version.
pub const VERSION: &str = "v1alpha1";
