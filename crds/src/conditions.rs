//! Condition types and the one enumeration of their reasons. Pure.

/// The types of condition that the three kinds carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object has reached what its spec asks for.
    Ready,
    /// Work goes on; present only when true.
    Reconciling,
    /// A person has to change something; present only when true.
    Stalled,
    /// The configuration was composed and is valid.
    ConfigResolved,
    /// The run has finished and its model is known.
    Trained,
    /// Every gate of every evaluation holds for exactly this model.
    GatesPassed,
    /// The run's ring equals the pod's ring.
    RingMatched,
    /// Both bundles exist and are recorded.
    Signed,
    /// The server verified the bytes that it holds.
    Verified,
}

impl ConditionType {
    /// The type as conditions carry it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::ConfigResolved => "ConfigResolved",
            Self::Trained => "Trained",
            Self::GatesPassed => "GatesPassed",
            Self::RingMatched => "RingMatched",
            Self::Signed => "Signed",
            Self::Verified => "Verified",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Why a condition is as it is. Events carry the same word.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of this list.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason as conditions and Events carry it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

reasons! {
    /// The configuration is valid.
    Resolved,
    /// The configuration is not valid; the message says what to change.
    InvalidConfiguration,
    /// A referenced object does not exist (yet).
    NotFound,
    /// A referenced object was deleted and created again under the same name.
    Replaced,
    /// Waiting for a pod to be scheduled or started.
    WaitingForPod,
    /// The pods are at work.
    Running,
    /// Stopped because `suspend` is true.
    Suspended,
    /// The work is finished.
    Succeeded,
    /// The pods failed more often than `retries` allows.
    RetriesExhausted,
    /// The work took longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// A data file's SHA-256 differs from the spec's.
    DataMismatch,
    /// A container used more memory than its limit.
    OOMKilled,
    /// The pods ended without saying why.
    PodFailed,
    /// The pod refused its input.
    BadInput,
    /// The bytes that were hashed are not those of the run's model.
    ModelMismatch,
    /// Every gate passed.
    AllGatesPassed,
    /// A gate failed.
    GateFailed,
    /// Too little is known to say that a gate holds or fails.
    Inconclusive,
    /// The evaluation has no verdict yet.
    WaitingForVerdict,
    /// The run has no model yet.
    WaitingForTraining,
    /// The rings are equal.
    RingsEqual,
    /// The rings differ.
    RingsDiffer,
    /// The evaluation belongs to another run.
    ForeignEvaluation,
    /// The dry run found nothing that blocks.
    DryRun,
    /// Something blocks the rollout; `status.blockedBy` says what.
    Blocked,
    /// Both bundles were made and recorded.
    BundlesRecorded,
    /// The signer has no usable key.
    SignerUnavailable,
    /// What is recorded was signed by another key.
    ForeignSignature,
    /// The server holds exactly the bytes that were signed.
    BytesVerified,
    /// The server refused the bytes, a bundle, the key or the ring.
    VerificationFailed,
    /// The replicas are being rolled out.
    RollingOut,
    /// All replicas are ready.
    Serving,
    /// An object that somebody else made, or changed, stands where a child should.
    NameTaken,
    /// The API server refuses a child; the message holds its sentence.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn reasons_are_distinct_camel_case_words() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.starts_with(|c: char| c.is_ascii_uppercase())));
    }
}
