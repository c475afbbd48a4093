//! Where a rollout stands, out of what is observed. Pure.

use codex_crds::{ReasoningPodSpec, ReasoningPodStatus};
use jiff::Timestamp;

use super::{
    ObservedReasoningPod,
    blocks::Evidence,
    rollout::{Signing, Target},
    servers::Servers,
};
use crate::metadata::Owner;

/// The observation, made handy.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedReasoningPod,
    pub(crate) now: Timestamp,
    pub(crate) owner: Owner,
    pub(crate) status: ReasoningPodStatus,
    pub(crate) evidence: Evidence<'a>,
    pub(crate) servers: Option<Servers<'a>>,
    /// What served before somebody changed the servers' template, as the status recorded it.
    pub(crate) former: Option<Target>,
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Nothing blocks, and nothing is wanted but to know that.
    DryRun,
    /// Something blocks: what serves stays, unless a dry run is asked for.
    Blocked,
    /// A bundle is missing: what serves stays.
    Signing(Signing),
    /// Servers are being started.
    RollingOut(Box<Target>),
    /// A server refuses the bytes, a bundle, the key or the ring.
    Refused(Box<Target>, String),
    /// All servers are ready, and what they hold is verified.
    Serving(Box<Target>),
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, now: Timestamp) -> Self {
        let owner = Owner::reasoning_pod(&observed.object);
        Self {
            observed,
            now,
            status: observed.object.status.clone().unwrap_or_default(),
            evidence: Evidence::of(observed),
            servers: Servers::of(observed, &owner),
            former: Target::recorded(observed),
            owner,
        }
    }

    pub(crate) fn spec(&self) -> &'a ReasoningPodSpec {
        &self.observed.object.spec
    }

    /// Whether servers are there and stay, or come back as they were if that is known.
    pub(crate) fn serves(&self) -> bool {
        !self.spec().dry_run && (self.servers.is_some() || self.observed.tampered)
    }
}

impl Stage {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let Some(signing) = Signing::of(view.observed, &view.evidence) else {
            return Self::Blocked;
        };
        if view.spec().dry_run {
            return Self::DryRun;
        }
        let target = match signing {
            Signing::Model | Signing::Promotion(_) => return Self::Signing(signing),
            Signing::Recorded(target) => target,
        };
        let Some(servers) =
            view.servers.as_ref().filter(|servers| servers.made_for() == Some((target.model, target.promotion)))
        else {
            return Self::RollingOut(target);
        };
        if let Some(why) = servers.refusal() {
            return Self::Refused(target, why);
        }
        let wanted = view.spec().replicas;
        let verified = servers.verified(target.model, target.promotion, view.status.verified.as_ref());
        // Without servers there is nobody to verify.
        if servers.counts(wanted).settled && (wanted == 0 || verified.is_some()) {
            return Self::Serving(target);
        }
        Self::RollingOut(target)
    }
}
