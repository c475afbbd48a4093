//! The servers of a Deployment: their counts, what they verified, what keeps them from starting. Pure.

use std::{collections::BTreeSet, time::Duration};

use codex_crds::{
    Analysis, DeviceStatus, Reason, RejectedStatus, TimesStatus, TrafficStatus, VerifiedStatus, annotation,
};
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{
    Comparison, INTER_TOKEN_EDGES, LATENCY_EDGES, Rejected, Report, ServingState, Stage as PodStage, State, Times,
    Traffic,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus},
        core::v1::{Pod, PodSpec},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{
    children::{KEY_FINGERPRINT, ROOT_DIGEST},
    observed::ObservedReasoningPod,
    target::Target,
};
use crate::{
    device::device_status,
    metadata::Owner,
    pods::{Facts, explained_again, newest_reports, refusals},
};

/// The label by which the cluster tells the pods of a Deployment's templates apart.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";

/// Returns the fingerprints of the keys and identities that servers of this template accept, and the digest of their trusted root.
pub(crate) fn keys(template: Option<&PodSpec>) -> BTreeSet<Sha256> {
    digests(template, &[KEY_FINGERPRINT, ROOT_DIGEST]).collect()
}

/// Returns the values of these arguments that are digests.
pub(crate) fn digests<'a>(template: Option<&'a PodSpec>, names: &'a [&str]) -> impl Iterator<Item = Sha256> + 'a {
    let arguments = template.into_iter().flat_map(|spec| &spec.containers).filter_map(|it| it.args.as_ref());
    let pairs = arguments.flat_map(|arguments| arguments.windows(2));
    pairs.filter(|pair| names.contains(&pair[0].as_str())).filter_map(|pair| pair[1].parse().ok())
}

/// Whether the servers of a Deployment have this argument.
pub(crate) fn has_argument(deployment: &Deployment, name: &str) -> bool {
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut arguments =
        template.into_iter().flat_map(|spec| &spec.containers).filter_map(|it| it.args.as_ref()).flatten();
    arguments.any(|argument| argument == name)
}

/// Adds a reported number to that of a status.
fn add(sum: &mut i64, more: u64) {
    *sum = sum.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
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

/// The number of servers to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) replicas: i32,
    /// The number of ready servers from which on the rollout is complete.
    pub(crate) least: i32,
    /// Whether a HorizontalPodAutoscaler changes the number.
    pub(crate) scaled: bool,
}

impl Wanted {
    pub(crate) fn exactly(replicas: i32) -> Self {
        Self { replicas, least: replicas, scaled: false }
    }
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
        Some(Self::new(observed, owner, live, &observed.pods, &observed.former_pods))
    }

    /// Returns the servers of the canary.
    pub(crate) fn of_canary(observed: &'a ObservedReasoningPod, owner: &Owner) -> Option<Self> {
        let live = observed.canary.as_ref()?;
        Some(Self::new(observed, owner, live, &observed.canary_pods, &[]))
    }

    /// Returns the pods of the activator, which report as servers do.
    pub(crate) fn of_activator(observed: &'a ObservedReasoningPod, owner: &Owner) -> Option<Self> {
        let live = observed.activator.as_ref()?;
        Some(Self::new(observed, owner, live, &observed.activator_pods, &[]))
    }

    fn new(
        observed: &'a ObservedReasoningPod,
        owner: &Owner,
        live: &'a Deployment,
        pods: &'a [Pod],
        former: &'a [Pod],
    ) -> Self {
        let facts = Facts::of(pods);
        let reports = newest_reports(owner, &facts, &observed.reports);
        Self { live, facts, former: Facts::of(former), reports, observed }
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

    pub(crate) fn counts(&self, wanted: Wanted) -> Counts {
        let Some(status) = &self.live.status else { return Counts::default() };
        let DeploymentStatus { replicas, ready_replicas, updated_replicas, observed_generation, .. } = status;
        // The Deployment counts every pod with its labels, including pods that others created.
        let own = self.facts.iter().chain(&self.former).filter(|facts| facts.is_ready()).count();
        let (all, ready) =
            (replicas.unwrap_or(0), ready_replicas.unwrap_or(0).min(i32::try_from(own).unwrap_or(i32::MAX)));
        let current = *observed_generation >= self.live.metadata.generation;
        let fits = wanted.scaled || all == wanted.replicas;
        let settled = current && fits && ready >= wanted.least && updated_replicas.unwrap_or(0) == all;
        Counts { all, ready, settled }
    }

    /// Returns the label [`TEMPLATE_HASH`] that all ready pods have. `None` if no pod is ready, or while pods are replaced: those of a
    /// former template, and of the same one by `kubectl rollout restart`.
    pub(crate) fn template_hash(&self) -> Option<String> {
        let mut hashes = self.ready().map(|facts| facts.pod.labels().get(TEMPLATE_HASH));
        let first = hashes.next()??;
        hashes.all(|hash| hash == Some(first)).then(|| first.clone())
    }

    /// Returns the ready pods of all templates.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Facts<'a>> {
        self.facts.iter().chain(&self.former).filter(|facts| facts.is_ready())
    }

    /// Whether requests wait for a server, by the report of a pod that exists.
    pub(crate) fn waiting(&self) -> bool {
        self.facts.iter().any(|facts| self.state(facts).is_some_and(|(_, state)| state.waiting))
    }

    /// Returns when the last request of the ready servers ended; `None` while one runs, and until all of them have reported it. Reports
    /// are kept in the controller's memory, and servers repeat theirs.
    pub(crate) fn idle_since(&self) -> Option<Timestamp> {
        let since = |facts: &Facts<'_>| Timestamp::from_second(self.state(facts)?.1.idle_since?).ok();
        let all: Option<Vec<_>> = self.ready().map(since).collect();
        all?.into_iter().max()
    }

    /// Whether there are servers, or are about to be.
    pub(crate) fn exist(&self) -> bool {
        !self.facts.is_empty() || self.counts(Wanted::exactly(0)).all > 0
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
        let golden = |facts: &Facts<'_>| self.state(facts)?.1.golden_tokens.map(|it| it.name().to_owned());
        self.current()
            .filter(holds)
            .filter_map(|facts| Some((at(facts)?, facts.name(), golden(facts))))
            .min()
            .map(|(at, by, golden_tokens)| VerifiedStatus { digest: model, by, at: Time(at), golden_tokens })
    }

    /// Returns the device that the server with this name reported.
    pub(crate) fn device(&self, name: &str) -> Option<DeviceStatus> {
        let (_, state) = self.state(self.current().find(|facts| facts.name() == name)?)?;
        state.device.as_ref().map(device_status)
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

    /// Returns the requests that the ready servers of the current template have answered since they started; `None` until all have
    /// reported them. The limits say which requests and responses are slow.
    pub(crate) fn traffic(&self, limits: &Analysis) -> Option<TrafficStatus> {
        let ready = self.current().filter(|facts| facts.is_ready());
        let reported: Option<Vec<_>> = ready.map(|facts| self.state(facts)?.1.traffic.as_ref()).collect();
        let reported = reported?;
        let seconds = |limit: &Option<String>| limit.as_ref().and_then(|seconds| seconds.parse::<f64>().ok());
        let limit = seconds(&limits.max_p95_seconds);
        let times = |limit: &Option<String>, edges: &[f64], of: fn(&Traffic) -> Option<&Times>| {
            let (limit, mut sum) = (seconds(limit)?, TimesStatus::default());
            for traffic in &reported {
                let times = of(traffic)?;
                add(&mut sum.responses, times.responses);
                add(&mut sum.slow, times.slower_than(limit, edges));
            }
            // Without servers nothing is known.
            (!reported.is_empty()).then_some(sum)
        };
        let mut sum = TrafficStatus {
            rejected: (!reported.is_empty()).then(RejectedStatus::default),
            first_token: times(&limits.max_first_token_seconds, &LATENCY_EDGES, |traffic| traffic.first_token.as_ref()),
            inter_token: times(&limits.max_inter_token_seconds, &INTER_TOKEN_EDGES, |traffic| {
                traffic.inter_token.as_ref()
            }),
            ..TrafficStatus::default()
        };
        for traffic in &reported {
            add(&mut sum.requests, traffic.requests);
            add(&mut sum.errors, traffic.errors);
            add(&mut sum.refused, traffic.refused);
            add(&mut sum.completed, traffic.completed);
            add(&mut sum.slow, limit.map_or(0, |limit| traffic.slower_than(limit)));
            sum.rejected = sum.rejected.zip(traffic.rejected).map(|(mut sum, Rejected { keys, prompts, answers })| {
                add(&mut sum.before, keys.saturating_add(prompts));
                add(&mut sum.answers, answers);
                sum
            });
        }
        Some(sum)
    }

    /// Returns what the ready servers of the current template have compared with a model since they started; `None` until all of them
    /// have reported.
    pub(crate) fn comparison(&self, model: ModelDigest) -> Option<Comparison> {
        let mut sum = Comparison::of(model);
        let mut ready = self.current().filter(|facts| facts.is_ready()).peekable();
        ready.peek()?;
        for facts in ready {
            let (_, state) = self.state(facts)?;
            let Some(found) = state.comparisons.iter().find(|found| found.model == model) else { continue };
            for (sum, more) in [
                (&mut sum.compared, found.compared),
                (&mut sum.agreed, found.agreed.min(found.compared)),
                (&mut sum.identical, found.identical),
                (&mut sum.skipped, found.skipped),
            ] {
                *sum = sum.saturating_add(more);
            }
            let buckets = sum.latency.iter_mut().zip(&found.latency);
            let buckets = buckets.chain(sum.other_latency.iter_mut().zip(&found.other_latency));
            buckets.for_each(|(sum, more)| *sum = sum.saturating_add(*more));
            sum.first_difference = [sum.first_difference, found.first_difference].into_iter().flatten().min();
        }
        Some(sum)
    }

    /// Returns the uids of the pods of all templates, with the keys with which they sign copies of requests, as far as they have reported
    /// them.
    pub(crate) fn copies_keys(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let all = self.facts.iter().chain(&self.former);
        all.map(move |facts| (facts.uid(), self.state(facts).and_then(|(_, state)| state.valid_copies_key())))
    }

    /// Returns how a server of the current template crashed after this time.
    pub(crate) fn crashed(&self, since: Timestamp) -> Option<String> {
        self.current().filter(|facts| facts.pod.metadata.deletion_timestamp.is_none()).find_map(|facts| {
            let ended = facts.ended()?;
            let at = ended.finished_at.as_ref().is_some_and(|at| at.0 > since);
            let reason = ended.reason.as_deref().unwrap_or("Error");
            let told = format!("pod {} terminated with {reason} (exit code {})", facts.name(), ended.exit_code);
            (at && ended.exit_code != 0).then_some(told)
        })
    }

    /// Returns why a server of the current template refuses to serve.
    pub(crate) fn refusal(&self) -> Option<(Reason, String)> {
        self.current().find_map(|facts| {
            let (_, state) = self.state(facts)?;
            let failure = state.failure.as_ref().filter(|_| state.stage == PodStage::Failed)?;
            let known = Some(Reason::GoldenTokensDiffer).filter(|known| known.name() == failure.reason);
            let reason = known.unwrap_or(Reason::VerificationFailed);
            Some((reason, format!("pod {} refuses to serve: {}", facts.name(), failure.message)))
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
