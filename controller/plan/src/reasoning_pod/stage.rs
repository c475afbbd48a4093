//! The stage of a rollout, derived from its observation. Pure.

use codex_crds::Reason;

use super::{canary, idle, signing::Signing, target::Target, view::View};

/// The stage of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Nothing blocks the rollout; `spec.dryRun` keeps it from starting.
    DryRun,
    /// Something blocks the rollout. Servers that exist stay, unless `spec.dryRun` is true.
    Blocked,
    /// A policy denies what the servers serve: they are scaled to zero before anything else is rolled out.
    Revoked,
    /// A bundle has to be signed. Servers that exist stay.
    Signing(Signing),
    /// The target is tried by a canary, or has failed as one. The servers stay.
    Canary(Box<Target>),
    /// Servers are starting.
    RollingOut(Box<Target>),
    /// A server refuses the bytes, a bundle, the key or the ring, or does not reproduce the golden tokens; the text says why.
    Refused(Box<Target>, Reason, String),
    /// All servers are ready, and one has verified the bytes that it serves; or none should run, and the activator is ready.
    Serving(Box<Target>),
}

impl Stage {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let revoked = view.is_revoked() && view.serves();
        match Self::unless_revoked(view) {
            // Another model may follow once nothing serves the denied one.
            Self::Blocked => {
                if revoked {
                    Self::Revoked
                } else {
                    Self::Blocked
                }
            }
            _ if revoked && !view.is_drained() => Self::Revoked,
            stage => stage,
        }
    }

    fn unless_revoked(view: &View<'_>) -> Self {
        let Some(signing) = Signing::of(view.observed, &view.evidence, view.trust()) else {
            return Self::Blocked;
        };
        if view.spec().dry_run {
            return Self::DryRun;
        }
        let target = match signing {
            Signing::Model | Signing::Promotion(_) => return Self::Signing(signing),
            Signing::Recorded(target) => target,
        };
        if canary::holds(view, &target) {
            return Self::Canary(target);
        }
        let Some(servers) = view.servers.as_ref().filter(|_| canary::is_current(view, &target)) else {
            return Self::RollingOut(target);
        };
        if let Some((reason, why)) = servers.refusal() {
            return Self::Refused(target, reason, why);
        }
        if idle::sleeps(view) {
            return if idle::is_ready(view) { Self::Serving(target) } else { Self::RollingOut(target) };
        }
        let wanted = view.wanted();
        let verified = servers.verified(target.model, target.promotion, view.status.verified.as_ref());
        // With zero replicas no server can verify anything.
        if servers.counts(wanted).settled && (wanted.replicas == 0 || verified.is_some()) {
            return Self::Serving(target);
        }
        Self::RollingOut(target)
    }
}
