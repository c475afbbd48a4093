//! The observation of a ReasoningPod, in the form that its plan needs. Pure.

use codex_crds::{ReasoningPodSpec, ReasoningPodStatus};
use jiff::Timestamp;

use super::{
    autoscaling,
    evidence::Evidence,
    observed::ObservedReasoningPod,
    redeploy,
    servers::{Servers, Wanted},
    target::Target,
    trust::Trust,
};
use crate::{metadata::Owner, obstruction::Obstruction, seal::Sealable};

/// The observation of a ReasoningPod.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedReasoningPod,
    pub(crate) now: Timestamp,
    pub(crate) owner: Owner,
    pub(crate) obstruction: Option<&'a Obstruction>,
    /// The status as it is recorded, without the parts that were discarded.
    pub(crate) status: ReasoningPodStatus,
    pub(crate) evidence: Evidence<'a>,
    /// The evidence for the cycle that has not ended, while what is served is planned.
    pub(crate) candidate: Option<(&'a ObservedReasoningPod, Evidence<'a>)>,
    /// The view of that cycle in the ring before, where its shadow is promoted.
    pub(crate) trial: Option<Box<Self>>,
    /// What is planned is the rollout of a cycle.
    pub(crate) rolls_cycle: bool,
    pub(crate) servers: Option<Servers<'a>>,
    /// The servers of a canary.
    pub(crate) canary: Option<Servers<'a>>,
    /// The pods that hold requests while no server runs.
    pub(crate) activator: Option<Servers<'a>>,
    /// What the servers were rolled out for before their pod template was modified, as the status records it.
    pub(crate) former: Option<Target>,
    /// The same, also after their Deployment was deleted while a canary runs or after it failed: the canary must not replace them
    /// unseen.
    pub(crate) restorable: Option<Target>,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, now: Timestamp) -> Self {
        let owner = Owner::reasoning_pod(&observed.object);
        let status = observed.object.status.clone().unwrap_or_default().believed(&observed.seal);
        // A cycle is rolled out only once that was recorded.
        let rolling = redeploy::is_rolling(&status);
        let candidate = observed.candidate.as_deref();
        let rolls_cycle = rolling && candidate.is_some();
        let trial = observed.trial.as_deref().filter(|_| !rolling);
        let trial = trial.map(|trial| Box::new(Self::of(trial, now)));
        let observed = redeploy::planned(observed, &status);
        let candidate = candidate.filter(|_| !rolling).map(|candidate| (candidate, Evidence::of(candidate, now)));
        let recorded = Target::recorded(observed, Trust::of(observed, now)).filter(|_| observed.deployment.is_none());
        Self {
            observed,
            obstruction: Obstruction::current(observed.obstruction.as_ref(), observed.object.metadata.generation),
            now,
            evidence: Evidence::of(observed, now),
            candidate,
            trial,
            rolls_cycle,
            servers: Servers::of(observed, &owner),
            canary: Servers::of_canary(observed, &owner),
            activator: Servers::of_activator(observed, &owner),
            former: recorded.clone().filter(|_| observed.tampered),
            restorable: recorded.filter(|_| observed.tampered || status.rollout.is_some()),
            status,
            owner,
        }
    }

    pub(crate) fn spec(&self) -> &'a ReasoningPodSpec {
        &self.observed.object.spec
    }

    /// Returns the trusted keys.
    pub(crate) fn trust(&self) -> Trust<'a> {
        Trust::of(self.observed, self.now)
    }

    /// Whether a policy denies what servers serve.
    pub(crate) fn is_revoked(&self) -> bool {
        !self.evidence.policies.revoked.is_empty()
    }

    /// Returns the number of servers to wait for.
    pub(crate) fn wanted(&self) -> Wanted {
        autoscaling::wanted(self)
    }

    /// Returns the number of servers that stay or come back while no new rollout has begun; `None` leaves it to the
    /// HorizontalPodAutoscaler.
    pub(crate) fn kept_replicas(&self) -> Option<i32> {
        if self.is_revoked() { Some(0) } else { autoscaling::replicas(self) }
    }

    /// Whether no server is left.
    pub(crate) fn is_drained(&self) -> bool {
        let observed = self.observed;
        let pods = observed.pods.len() + observed.former_pods.len();
        pods == 0
            && !observed.tampered
            && self.servers.as_ref().is_none_or(|servers| servers.counts(Wanted::exactly(0)).all == 0)
    }

    /// Whether servers exist and stay, or come back as they were if the status records it.
    pub(crate) fn serves(&self) -> bool {
        !self.spec().dry_run && (self.servers.is_some() || self.observed.tampered)
    }
}
