//! The observation of a ReasoningPod, in the form that its plan needs. Pure.

use codex_crds::{ReasoningPodSpec, ReasoningPodStatus};
use jiff::Timestamp;

use super::{evidence::Evidence, observed::ObservedReasoningPod, servers::Servers, target::Target};
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
    pub(crate) servers: Option<Servers<'a>>,
    /// What the servers were rolled out for before their pod template was modified, as the status records it.
    pub(crate) former: Option<Target>,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, now: Timestamp) -> Self {
        let owner = Owner::reasoning_pod(&observed.object);
        Self {
            observed,
            obstruction: Obstruction::current(observed.obstruction.as_ref(), observed.object.metadata.generation),
            now,
            status: observed.object.status.clone().unwrap_or_default().believed(&observed.seal),
            evidence: Evidence::of(observed),
            servers: Servers::of(observed, &owner),
            former: Target::recorded(observed),
            owner,
        }
    }

    pub(crate) fn spec(&self) -> &'a ReasoningPodSpec {
        &self.observed.object.spec
    }

    /// Whether servers exist and stay, or come back as they were if the status records it.
    pub(crate) fn serves(&self) -> bool {
        !self.spec().dry_run && (self.servers.is_some() || self.observed.tampered)
    }
}
