//! Condition types and reasons. Pure.

use serde::{Deserialize, Serialize};

/// A type of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object has reached the state that its spec describes.
    Ready,
    /// The controller or a pod is working towards the spec. Present only while true.
    Reconciling,
    /// The object cannot proceed until a user changes something. Present only while true.
    Stalled,
    /// The recorded status carried no valid seal and was discarded. Present only while true.
    StatusDiscarded,
    /// Pods that the controller did not create match the selector of the Service. Present only while true.
    ForeignPods,
    /// The Service has no selector, and the controller writes its EndpointSlices, because admission policies do not protect the
    /// labels of servers. Present only while true.
    EndpointsWritten,
    /// A recorded checkpoint is no longer on the volume, and its steps are trained again. Present only while true.
    CheckpointLost,
    /// The running pod has reported no progress for `spec.progressDeadlineSeconds`. Present only while true.
    ProgressStale,
    /// Times of `spec.schedule` have passed without a run, or the latest run was replaced before it finished. Present only while true:
    /// until a run starts in time, or finishes.
    RunsMissed,
    /// Cycles of `spec.redeploy` start in time, and the latest one was promoted. Present only with `spec.redeploy`; Unknown until a
    /// cycle has ended, and while it is suspended.
    RedeploysOnTime,
    /// A policy denies what the servers serve, or the model that would be served: nothing serves it. It stays, with the status False,
    /// after the policy was changed.
    Revoked,
    /// The signing key, a key that signed what is served, or the trusted root expires within 30 days. Present only while true.
    KeyExpires,
    /// The configuration is complete and valid.
    ConfigResolved,
    /// The TrainingRun has finished and its model is recorded.
    Trained,
    /// The run that `spec.reproduces` names was trained again and gave the same model, bit for bit. Unknown until the models are
    /// compared, and if the recorded conditions cannot be had again. Present only with `spec.reproduces`.
    Reproduced,
    /// Every gate of every Evaluation has passed for exactly this model.
    GatesPassed,
    /// Every promotion policy holds for this model in this ring. Unknown if no policy has a rule for the ring.
    PolicyMet,
    /// People have signed for exactly this model and these reports. Present only if a SignOff concerns the object.
    SignedOff,
    /// Admission policies protected the evaluation from its start to its verdict.
    EvidenceStrong,
    /// The ring of the TrainingRun equals the ring of the ReasoningPod.
    RingMatched,
    /// The signature and the promotion are signed and recorded; of a TrainingRun with `spec.reproduces`, the verdict.
    Signed,
    /// The servers have verified the model that they hold in memory.
    Verified,
    /// The HorizontalPodAutoscaler scales the servers. Present only with `spec.autoscaling`.
    ScalingActive,
    /// No server runs, and a request starts one. Present only with `spec.autoscaling.minReplicas` 0.
    Idle,
    /// The Gateways of `spec.rollout.gateway` have accepted the HTTPRoute. Present only with that field.
    RouteAccepted,
    /// A canary runs beside the servers. Present once there has been one.
    Canary,
    /// The shadow answers as the ReasoningPod that it shadows. Present only with `spec.shadow`; Unknown until enough requests were
    /// compared.
    ParityHolding,
}

impl ConditionType {
    /// Returns the type as it is written in conditions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::StatusDiscarded => "StatusDiscarded",
            Self::ForeignPods => "ForeignPods",
            Self::EndpointsWritten => "EndpointsWritten",
            Self::CheckpointLost => "CheckpointLost",
            Self::ProgressStale => "ProgressStale",
            Self::RunsMissed => "RunsMissed",
            Self::RedeploysOnTime => "RedeploysOnTime",
            Self::Revoked => "Revoked",
            Self::KeyExpires => "KeyExpires",
            Self::ConfigResolved => "ConfigResolved",
            Self::Trained => "Trained",
            Self::Reproduced => "Reproduced",
            Self::GatesPassed => "GatesPassed",
            Self::PolicyMet => "PolicyMet",
            Self::SignedOff => "SignedOff",
            Self::EvidenceStrong => "EvidenceStrong",
            Self::RingMatched => "RingMatched",
            Self::Signed => "Signed",
            Self::Verified => "Verified",
            Self::ScalingActive => "ScalingActive",
            Self::Idle => "Idle",
            Self::RouteAccepted => "RouteAccepted",
            Self::Canary => "Canary",
            Self::ParityHolding => "ParityHolding",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The reason of a condition. Events use the same reasons.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the reason as it is written in conditions and Events.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

reasons! {
    /// The configuration is valid.
    Resolved,
    /// The configuration is invalid. The message says what to change.
    InvalidConfiguration,
    /// A referenced object does not exist.
    NotFound,
    /// A referenced object was deleted and created again under the same name.
    Replaced,
    /// A pod is waiting to be scheduled or started.
    WaitingForPod,
    /// A pod is running.
    Running,
    /// Suspended by `spec.suspend`.
    Suspended,
    /// The Job waits for quota: Kueue starts it.
    WaitingForQuota,
    /// The work has finished.
    Succeeded,
    /// Pods failed more often than `spec.retries` allows.
    RetriesExhausted,
    /// The Job exceeded `spec.activeDeadlineSeconds`.
    DeadlineExceeded,
    /// The SHA-256 of a data file differs from `spec.data[].sha256`.
    DataMismatch,
    /// The digest of the base differs from `spec.base.digest`, or from the one that the run started from, or the base is not signed
    /// as `spec.base.signedBy` requires.
    BaseMismatch,
    /// A container exceeded its memory limit.
    OOMKilled,
    /// A pod failed without reporting a reason.
    PodFailed,
    /// A pod refused its input.
    BadInput,
    /// The evaluated files are not the model of the TrainingRun, or do not have the digest that `spec.model` requires.
    ModelMismatch,
    /// Every gate passed.
    AllGatesPassed,
    /// A gate failed.
    GateFailed,
    /// The data is too small to decide whether a gate passes or fails.
    Inconclusive,
    /// An Evaluation has no verdict yet.
    WaitingForVerdict,
    /// An Evaluation that gates compare with has no result yet.
    WaitingForReference,
    /// The TrainingRun has no model yet.
    WaitingForTraining,
    /// The model of a former run with the same inputs was adopted, and nothing was trained.
    Adopted,
    /// The model was trained again and has the same digest.
    Reproduced,
    /// The model was trained again under the recorded conditions and has another digest.
    DigestsDiffer,
    /// The program, engine, instruction set or data of the run cannot be had again. The message says which.
    Unreproducible,
    /// The ring of the TrainingRun equals the ring of the ReasoningPod.
    RingsEqual,
    /// The ring of the TrainingRun differs from the ring of the ReasoningPod.
    RingsDiffer,
    /// An Evaluation scores another TrainingRun.
    ForeignEvaluation,
    /// `spec.dryRun` is true, and nothing blocks the rollout.
    DryRun,
    /// Something blocks the rollout; `status.blockedBy` lists it.
    Blocked,
    /// The signature and the promotion are signed and recorded.
    BundlesRecorded,
    /// The signing key is missing or unusable.
    SignerUnavailable,
    /// A recorded bundle was signed with another key.
    ForeignSignature,
    /// The key that signed what is served is no longer trusted: it expired, is not valid yet, was revoked or is no longer listed.
    KeyNotTrusted,
    /// A key expires within 30 days.
    KeyExpires,
    /// The servers hold exactly the bytes that were signed.
    BytesVerified,
    /// A server refused the model, a bundle, the key or the ring.
    VerificationFailed,
    /// A server holds the signed bytes, but generates other tokens from them than the evaluator recorded.
    GoldenTokensDiffer,
    /// Server pods are being started or replaced.
    RollingOut,
    /// All server pods are ready.
    Serving,
    /// Another object has the name of a child, or a child was modified.
    NameTaken,
    /// The API server refused a child. The message quotes its answer.
    Refused,
    /// The status carries no valid seal: another client wrote it, or the seal key was lost.
    NotSealed,
    /// The status was recorded for another object of this name, as backup tools restore it.
    Restored,
    /// Two reports of a pod, or a report and the end of its pod, contradict each other.
    Contradiction,
    /// A pod differs from its template, so its reports are refused.
    PodChanged,
    /// The admission policies were in place from before the start to the verdict.
    PoliciesIntact,
    /// The admission policies were not shown to protect the evaluation from before its start to its verdict, or do not protect
    /// the labels of servers now.
    PoliciesNotIntact,
    /// Pods that the controller did not create match the selector of the Service.
    ForeignPods,
    /// The volume no longer holds a recorded checkpoint.
    CheckpointLost,
    /// The running pod has reported no progress for `spec.progressDeadlineSeconds`.
    ProgressDeadlineExceeded,
    /// The node of the running pod no longer answers.
    NodeLost,
    /// No promotion policy has a rule for the ring.
    NoPolicy,
    /// Every promotion policy holds.
    PoliciesMet,
    /// A promotion policy does not hold. The message cites it.
    PolicyUnmet,
    /// A promotion policy demands that the model has been in another ring for longer. It will hold later.
    WaitingForTime,
    /// A promotion policy denies the model, its base, its data or its key.
    Revoked,
    /// No promotion policy denies the model any more.
    RevocationLifted,
    /// Every SignOff that concerns the object counts.
    SignedOff,
    /// A canary answers requests beside the servers.
    CanaryRunning,
    /// The canary has passed every step, and the servers are being replaced.
    Promoting,
    /// The canary has passed every step, and the servers were replaced.
    Promoted,
    /// The canary has failed. The servers stay.
    RolledBack,
    /// The canary was abandoned, because the spec asked for something else.
    Superseded,
    /// The HorizontalPodAutoscaler computes the number of servers.
    Scaling,
    /// The HorizontalPodAutoscaler has not computed a number of servers yet.
    WaitingForMetrics,
    /// The HorizontalPodAutoscaler cannot compute or set the number of servers. The message quotes its condition.
    ScalingFailed,
    /// No server runs, because no request came for `spec.autoscaling.idleSeconds` or since the rollout. A request starts one.
    Idle,
    /// A request has started a server.
    Activated,
    /// Every Gateway has accepted the HTTPRoute.
    Accepted,
    /// No implementation of the Gateway API has answered for a Gateway of the HTTPRoute yet.
    WaitingForGateway,
    /// A Gateway refuses the HTTPRoute. The message quotes its condition.
    RouteRefused,
    /// The cluster has no HTTPRoutes of the Gateway API, or the controller may not read them.
    GatewayApiMissing,
    /// A SignOff names another model, report or ring than those of now.
    SignOffVoid,
    /// The read of the problems cannot be counted, so the verdict is not published.
    ReadUncounted,
    /// The next run of `spec.schedule` is not due yet.
    WaitingForSchedule,
    /// Times of `spec.schedule` have passed without a run.
    RunsMissed,
    /// The next run of `spec.schedule` replaced one that had not finished.
    RunReplaced,
    /// Times of `spec.redeploy.schedule` have passed without a cycle.
    CyclesMissed,
    /// A cycle has started.
    CycleStarted,
    /// The latest cycle was promoted, without a time of `spec.redeploy.schedule` having been missed since.
    CyclePromoted,
    /// The latest cycle failed, so what was served before is served.
    CycleFailed,
    /// A cycle is kept from being promoted.
    CycleBlocked,
    /// The answers of a shadow certainly differ in at most `spec.shadow.maxDivergence` of the requests.
    ParityProved,
    /// The answers of a shadow certainly differ in more than `spec.shadow.maxDivergence` of the requests.
    ParityLost,
    /// Too few requests were compared to decide whether parity holds.
    WaitingForRequests,
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn reasons_are_distinct_and_in_camel_case() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.starts_with(|c: char| c.is_ascii_uppercase())));
    }
}
