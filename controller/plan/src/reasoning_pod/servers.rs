//! The servers of a Deployment: their counts, what they verified, what keeps them from starting. Pure.

use std::{collections::BTreeSet, time::Duration};

use codex_crds::{VerifiedStatus, annotation};
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{Report, ServingState, Stage as PodStage, State};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus},
        core::v1::PodSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{children::KEY_FINGERPRINT, observed::ObservedReasoningPod, target::Target};
use crate::{
    metadata::Owner,
    pods::{Facts, explained_again, newest_reports, refusals},
};

/// Returns the fingerprints of the keys that servers of this template accept.
pub(crate) fn keys(template: Option<&PodSpec>) -> BTreeSet<Sha256> {
    let arguments = template.into_iter().flat_map(|spec| &spec.containers).filter_map(|it| it.args.as_ref());
    let pairs = arguments.flat_map(|arguments| arguments.windows(2));
    pairs.filter(|pair| pair[0] == KEY_FINGERPRINT).filter_map(|pair| pair[1].parse().ok()).collect()
}

/// The servers of a Deployment.
pub(crate) struct Servers<'a> {
    /// The Deployment.
    pub(crate) live: &'a Deployment,
    facts: Vec<Facts<'a>>,
    /// The pods of former templates.
    former: Vec<Facts<'a>>,
    reports: Vec<Report>,
    observed: &'a ObservedReasoningPod,
}

/// The number of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) all: i32,
    pub(crate) ready: i32,
    /// Whether the wanted number of servers is ready and no pod of a former template is left.
    pub(crate) settled: bool,
}

impl<'a> Servers<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, owner: &Owner) -> Option<Self> {
        let live = observed.deployment.as_ref()?;
        let facts = Facts::of(&observed.pods);
        let reports = newest_reports(owner, &facts, &observed.reports);
        let former = Facts::of(&observed.former_pods);
        Some(Self { live, facts, former, reports, observed })
    }

    /// Returns the model and the promotion that the Deployment was rolled out for.
    pub(crate) fn made_for(&self) -> Option<(ModelDigest, PromotionDigest)> {
        let annotations = self.live.annotations();
        let model = annotations.get(annotation::MODEL_DIGEST)?.parse().ok()?;
        let promotion = annotations.get(annotation::PROMOTION_DIGEST)?.parse().ok()?;
        Some((model, promotion))
    }

    /// Whether the Deployment was rolled out for this model, this promotion and the keys that signed them.
    pub(crate) fn are_for(&self, target: &Target) -> bool {
        let template = self.live.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        self.made_for() == Some((target.model, target.promotion)) && keys(template) == target.keys()
    }

    pub(crate) fn counts(&self, wanted: i32) -> Counts {
        let Some(status) = &self.live.status else { return Counts::default() };
        let DeploymentStatus { replicas, ready_replicas, updated_replicas, observed_generation, .. } = status;
        // The Deployment counts every pod with its labels, including pods that others created.
        let own = self.facts.iter().chain(&self.former).filter(|facts| facts.is_ready()).count();
        let (all, ready) =
            (replicas.unwrap_or(0), ready_replicas.unwrap_or(0).min(i32::try_from(own).unwrap_or(i32::MAX)));
        let current = *observed_generation >= self.live.metadata.generation;
        let settled = current && all == wanted && ready == wanted && updated_replicas.unwrap_or(0) == wanted;
        Counts { all, ready, settled }
    }

    /// Returns the pods of the current template.
    fn current(&self) -> impl Iterator<Item = &Facts<'a>> {
        let promotion = self.live.annotations().get(annotation::PROMOTION_DIGEST);
        self.facts.iter().filter(move |facts| facts.pod.annotations().get(annotation::PROMOTION_DIGEST) == promotion)
    }

    fn state(&self, facts: &Facts<'_>) -> Option<(&Report, &ServingState)> {
        let report = self.reports.iter().rev().find(|report| report.pod_uid == facts.uid())?;
        match &report.state {
            State::Serving(state) => Some((report, state)),
            State::Training(_) | State::Evaluation(_) => None,
        }
    }

    /// Returns what a server of that model and promotion verified: what the status records while that server is running,
    /// else the first report.
    pub(crate) fn verified(
        &self,
        model: ModelDigest,
        promotion: PromotionDigest,
        held: Option<&VerifiedStatus>,
    ) -> Option<VerifiedStatus> {
        let holds = |facts: &&Facts<'_>| {
            self.state(facts).is_some_and(|(_, state)| {
                state.stage == PodStage::Running && state.verified == Some(model) && state.promotion == Some(promotion)
            })
        };
        let kept = held.filter(|held| held.digest == model).filter(|held| {
            // Reports are kept in the controller's memory. After a restart, a server that kept running stays verified.
            self.current().any(|facts| {
                facts.name() == held.by && facts.is_running() && (self.state(facts).is_none() || holds(&facts))
            })
        });
        if let Some(kept) = kept {
            return Some(kept.clone());
        }
        let at = |facts: &Facts<'_>| -> Option<Timestamp> {
            let received = self.observed.reports.iter().find(|received| received.report.pod_uid == facts.uid())?;
            Timestamp::from_second(received.at.as_second()).ok()
        };
        self.current()
            .filter(holds)
            .filter_map(|facts| Some((at(facts)?, facts.name())))
            .min()
            .map(|(at, by)| VerifiedStatus { digest: model, by, at: Time(at) })
    }

    /// Returns the ready servers of all templates that have verified what they serve, by their reports. A server without a report
    /// counts if `recorded` has its uid or `held` names it: reports are kept in the controller's memory, and servers repeat
    /// theirs.
    pub(crate) fn verified_pods(&self, recorded: &[&str], held: Option<&VerifiedStatus>) -> Vec<&Facts<'a>> {
        let wanted = self.made_for();
        let held = held.filter(|held| wanted.is_some_and(|(model, _)| model == held.digest)).map(|held| &held.by);
        let proven = |facts: &Facts<'_>, former: bool| match self.state(facts) {
            Some((_, state)) => {
                let verified = state.verified.zip(state.promotion).filter(|_| state.stage == PodStage::Running);
                verified.is_some() && (former || verified == wanted)
            }
            None => recorded.contains(&facts.uid()) || (!former && held == Some(&facts.name())),
        };
        let current = self.facts.iter().filter(|facts| proven(facts, false));
        let former = self.former.iter().filter(|facts| proven(facts, true));
        let mut servers: Vec<_> = current.chain(former).filter(|facts| facts.is_serving()).collect();
        servers.sort_by_key(|facts| facts.name());
        servers
    }

    /// Returns why a server of the current template refuses to serve.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.current().find_map(|facts| {
            let (_, state) = self.state(facts)?;
            let failure = state.failure.as_ref().filter(|_| state.stage == PodStage::Failed)?;
            Some(format!("pod {} refuses to serve: {}", facts.name(), failure.message))
        })
    }

    /// Returns what keeps a server of the current template from starting.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let warned = |facts: &Facts<'_>| facts.obstacle().or_else(|| facts.warned(&self.observed.warnings));
        let obstacle = self.current().find_map(warned).or_else(|| {
            self.current().filter(|facts| !facts.is_running()).find_map(|facts| {
                let ended = facts.ended()?;
                let reason = ended.reason.as_deref().unwrap_or("Error");
                Some(format!("pod {} terminated with {reason} (exit code {})", facts.name(), ended.exit_code))
            })
        });
        obstacle.or_else(|| self.unmade()).or_else(|| refusals(&self.observed.refused))
    }

    /// Returns when to check again why a server does not start.
    pub(crate) fn pod_due(&self, now: Timestamp) -> Option<Duration> {
        Some(explained_again(self.current().filter_map(Facts::unexplained).min()?, now))
    }

    /// Returns why the Deployment cannot create a pod.
    fn unmade(&self) -> Option<String> {
        let conditions = self.live.status.as_ref()?.conditions.as_deref()?;
        let failure = conditions.iter().find(|it| it.type_ == "ReplicaFailure" && it.status == "True")?;
        let said = failure.message.as_deref().or(failure.reason.as_deref()).unwrap_or("no message");
        Some(format!("the Deployment {} cannot create a pod: {said}", self.live.name_any()))
    }
}
