//! ReasoningPod: its observation, and what its changes trigger.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use codex_crds::{
    Evaluation, ReasoningPod, ReasoningPodStatus, Rollout, SignOff, TrainingRun, annotation, bundle, child,
};
use codex_plan::{
    Obstruction, Plan, Received,
    reasoning_pod::{self, Aims, Compared, HeldProof, Named, ObservedCycle, ObservedReasoningPod, RecordedPromotion},
    trace::{self, Span},
    unexplained,
};
use codex_provenance::{ModelDigest, attestation::AttestationKind};
use codex_verdict::{Ring, policy::Policy};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{Api, ResourceExt};

use super::{
    bundles,
    cache::{Cache, Name},
    cycles, endpoints,
    error::ObserveError,
    kind::{Kind, Observe},
    policies,
    served::{Served, foreign, served},
    shadows,
    stores::{Stores, get},
    triggers::Triggers,
    warnings::warnings,
    workers,
};
use crate::{context::Context, ownership::is_controlled_by};

impl Kind for ReasoningPod {
    fn phase(&self) -> String {
        let phase = self.status.as_ref().and_then(|status| status.phase);
        phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"))
    }

    fn phase_since(&self) -> Option<Timestamp> {
        Some(self.status.as_ref()?.last_phase_transition_time.as_ref()?.0)
    }

    fn ring(&self) -> String {
        self.spec.rollout_ring.to_string()
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.changed(self);
        let namespace = self.namespace().unwrap_or_default();
        triggers.shadows_of(&namespace, &self.name_any());
        if self.spec.shadow.is_some() {
            triggers.promoted_by_parity(&namespace, self.spec.rollout_ring);
        }
        // Also the one that it shadowed before its spec changed.
        let recorded = self.status.as_ref().and_then(|status| Some(&status.shadow.as_ref()?.of));
        let named = self.spec.shadow.as_ref().map(|shadow| &shadow.of);
        for of in named.into_iter().chain(recorded.filter(|recorded| Some(*recorded) != named)) {
            triggers.named::<Self>(&namespace, of);
        }
    }
}

impl Observe for ReasoningPod {
    type Status = ReasoningPodStatus;
    type Observed = ObservedReasoningPod;

    fn unknown(stores: &Stores, namespace: &str) -> Option<String> {
        stores.unknown_serving(namespace)
    }

    fn store(context: &Context) -> &Cache<Self> {
        &context.stores.reasoning_pods
    }

    fn status(&self) -> Option<&ReasoningPodStatus> {
        self.status.as_ref()
    }

    fn set_status(&mut self, status: Option<ReasoningPodStatus>) {
        self.status = status;
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedReasoningPod, ObserveError> {
        let (namespace, uid) = (self.namespace().unwrap_or_default(), self.uid().unwrap_or_default());
        let policies = policies::policies(context, &namespace);
        let rolled_out = self.status.as_ref().is_some_and(|status| status.training_run_uid.is_some());
        let live = servers(context, &namespace, &child::server(&self.name_any()), rolled_out).await?;
        let (deployment, tampered) = workers::deployment(context, live, &uid);
        let autoscaler = get(&context.stores.horizontal_pod_autoscalers, &namespace, &child::server(&self.name_any()))
            .filter(|found| is_controlled_by(&**found, &uid))
            .map(Arc::unwrap_or_clone);
        let http_route = get(&context.stores.http_routes, &namespace, &child::server(&self.name_any()))
            .filter(|found| is_controlled_by(&**found, &uid))
            .map(Arc::unwrap_or_clone);
        let behind = match &deployment {
            Some(deployment) => served(context, &uid, deployment).await?,
            None => Served::default(),
        };
        let canary = get(&context.stores.deployments, &namespace, &child::canary(&self.name_any()));
        let (canary, canary_tampered) = workers::deployment(context, canary.map(Arc::unwrap_or_clone), &uid);
        let tries = match &canary {
            Some(canary) => served(context, &uid, canary).await?,
            None => Served::default(),
        };
        let activator = get(&context.stores.deployments, &namespace, &child::activator(&self.name_any()));
        let (activator, activator_tampered) = workers::deployment(context, activator.map(Arc::unwrap_or_clone), &uid);
        let holds = match &activator {
            Some(activator) => served(context, &uid, activator).await?,
            None => Served::default(),
        };
        // The pods of a modified Deployment are not known.
        let foreign_pods = if deployment.is_none() || canary_tampered || activator_tampered {
            BTreeSet::new()
        } else {
            foreign(context, &namespace, &self.name_any(), &[&behind, &tries, &holds])
        };
        let seal = self.check_seal(context);
        let cycles = cycles::of(context, &self);
        let Aims { served: aim, candidate } = reasoning_pod::aims(&self, &seal, &cycles, deployment.as_ref());
        let (judged, candidate, trial) = {
            let pods = behind.current.iter().chain(&behind.former).chain(&tries.current).map(ResourceExt::annotations);
            let served: Vec<_> = deployment.iter().chain(&canary).map(ResourceExt::annotations).chain(pods).collect();
            let judge = |aim: Named, ring: Ring| Judged::of(context, &self, (aim, ring), &cycles, &policies, &served);
            let ring = self.spec.rollout_ring;
            let shadows = self.spec.redeploy.as_ref().is_some_and(|redeploy| redeploy.shadow.is_some());
            let before = ring.before().filter(|_| shadows);
            let trial = candidate.clone().zip(before).map(|(aim, before)| judge(aim, before));
            (judge(aim, ring), candidate.map(|aim| judge(aim, ring)), trial)
        };
        let Judged { object, run, evaluations, found, sign_offs, promotions, compared } = judged;
        let unprotected = context.admission.current().protects(&namespace).err();
        let serves = deployment.is_some() || tampered;
        let all = unprotected.is_some() && serves;
        let named = self.spec.rollout.as_ref().is_some_and(Rollout::names_canary);
        let of_canary = named.then(|| child::canary(&self.name_any()));
        let of_servers = activator.is_some().then(|| child::activator(&self.name_any()));
        let services: Vec<_> = std::iter::once(self.name_any()).chain(of_canary).chain(of_servers).collect();
        let slices = endpoints::slices(context, &namespace, &services, &uid, all).await?;
        let late: Vec<String> = [&behind.current, &tries.current, &holds.current]
            .into_iter()
            .flat_map(|pods| unexplained(None, pods, context.now()))
            .collect();
        let warnings = warnings(context, &namespace, &late).await;
        let held = held_bundles(context, &namespace, &uid);
        let observed = ObservedReasoningPod {
            settings: context.settings.clone(),
            run,
            evaluations,
            signer: found.signer,
            trusted: found.trusted,
            trusted_root: found.trusted_root,
            oms: found.oms,
            oms_again: found.oms_again,
            promotion: found.promotion,
            promotion_again: found.promotion_again,
            lent: found.lent,
            sign_offs,
            cycles,
            candidate: None,
            trial: None,
            policies,
            promotions,
            admission: context.admission.current(),
            pods: behind.current,
            warnings,
            former_pods: behind.former,
            incumbent: shadows::incumbent(context, &self),
            shadows: shadows::shadows(context, &self),
            compared,
            foreign_pods,
            unprotected,
            endpoint_slices: slices.own,
            foreign_slices: slices.foreign,
            refused: workers::with_endpoint(
                context,
                &namespace,
                &uid,
                behind.refused.into_iter().chain(tries.refused).chain(holds.refused).collect(),
            ),
            missing_bundles: missing_bundles(context, &namespace, self.status.as_ref()),
            held_bundles: held.iter().map(|found| found.name_any()).collect(),
            held_proofs: held.iter().filter_map(|found| Some((found.name_any(), proof(found)?))).collect(),
            canary,
            canary_pods: tries.current,
            activator,
            activator_pods: holds.current.into_iter().chain(holds.former).collect(),
            deployment,
            tampered,
            autoscaler,
            gateway_api: context.stores.http_routes.exists(),
            http_route,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            obstruction: None,
            seal,
            object,
        };
        Ok(match candidate {
            Some(candidate) => {
                let candidate = Box::new(candidate.beside(&observed));
                let trial = trial.map(|trial| Box::new(trial.beside(&observed)));
                ObservedReasoningPod { candidate: Some(candidate), trial, ..observed }
            }
            None => observed,
        })
    }

    fn reports(observed: &ObservedReasoningPod) -> &[Received] {
        &observed.reports
    }

    fn obstruct(observed: &mut ObservedReasoningPod, obstruction: Obstruction) {
        if let Some(candidate) = &mut observed.candidate {
            candidate.obstruction = Some(obstruction.clone());
        }
        observed.obstruction = Some(obstruction);
    }

    fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
        reasoning_pod::plan(observed, now)
    }

    fn spans(observed: &ObservedReasoningPod, next: &ReasoningPodStatus, now: Timestamp) -> Vec<Span> {
        trace::reasoning_pod(observed, next, now)
    }
}

/// What is known about a run and the Evaluations of its model.
struct Judged {
    object: ReasoningPod,
    run: Option<TrainingRun>,
    evaluations: BTreeMap<String, Evaluation>,
    found: bundles::Found,
    sign_offs: Vec<SignOff>,
    promotions: Vec<RecordedPromotion>,
    compared: Vec<Compared>,
}

impl Judged {
    /// Observes what `aim` names, which replaces what the spec of the object names, as it is judged for `ring`. `served` are the
    /// annotations of what is served.
    fn of(
        context: &Context,
        object: &ReasoningPod,
        (aim, ring): (Named, Ring),
        cycles: &[ObservedCycle],
        policies: &[Policy],
        served: &[&BTreeMap<String, String>],
    ) -> Self {
        let own = object.spec.rollout_ring;
        let mut object = object.clone();
        object.spec.rollout_ring = ring;
        let namespace = object.namespace().unwrap_or_default();
        let run = get(&context.stores.training_runs, &namespace, &aim.training_run);
        let run = run.filter(|run| aim.means(&**run, cycles));
        let mut run = run.map(|run| Arc::unwrap_or_clone(run).believed(context));
        if let Some(run) = run.as_mut().filter(|run| run.spec.rollout_ring == own) {
            run.spec.rollout_ring = ring;
        }
        let evaluations: BTreeMap<String, Evaluation> = aim
            .evaluations
            .iter()
            .filter_map(|name| {
                let evaluation = get(&context.stores.evaluations, &namespace, name)?;
                let means = aim.means(&*evaluation, cycles);
                means.then(|| (name.clone(), Arc::unwrap_or_clone(evaluation).believed(context)))
            })
            .collect();
        aim.aim(&mut object);
        let found = bundles::find(context, &object, run.as_ref(), &evaluations, policies);
        let (mut promotions, mut compared) = (Vec::new(), Vec::new());
        if !policies.is_empty() {
            let models = models(&object, run.as_ref(), served.iter().copied());
            let status = object.status.as_ref();
            let named = status.and_then(|status| Some(status.promotion.as_ref()?.bundle.as_str()));
            promotions = policies::promotions(context, &namespace, &models, named);
            compared = shadows::compared(context, &object, run.as_ref());
        }
        let sign_offs = policies::sign_offs(context, &object);
        Self { object, run, evaluations, found, sign_offs, promotions, compared }
    }

    /// Returns the observation with this run and these Evaluations.
    fn beside(self, observed: &ObservedReasoningPod) -> ObservedReasoningPod {
        let Self { object, run, evaluations, found, sign_offs, promotions, compared } = self;
        ObservedReasoningPod {
            object,
            run,
            evaluations,
            signer: found.signer,
            trusted: found.trusted,
            trusted_root: found.trusted_root,
            oms: found.oms,
            oms_again: found.oms_again,
            promotion: found.promotion,
            promotion_again: found.promotion_again,
            lent: found.lent,
            sign_offs,
            promotions,
            compared,
            ..observed.clone()
        }
    }
}

/// Returns the models whose promotions matter to policies: that of the run, and those that are served.
fn models<'a>(
    pod: &ReasoningPod,
    run: Option<&TrainingRun>,
    served: impl Iterator<Item = &'a BTreeMap<String, String>>,
) -> BTreeSet<ModelDigest> {
    let trained = run.and_then(|run| Some(run.status.as_ref()?.model.as_ref()?.digest));
    let recorded = pod.status.as_ref().and_then(|status| Some(status.manifest.as_ref()?.digest));
    let served = served.filter_map(|annotations| annotations.get(annotation::MODEL_DIGEST)?.parse().ok());
    served.chain(trained).chain(recorded).collect()
}

/// Returns the names of the bundles in a status that no longer exist.
fn missing_bundles(context: &Context, namespace: &str, status: Option<&ReasoningPodStatus>) -> BTreeSet<String> {
    let Some(status) = status else { return BTreeSet::new() };
    let manifest = status.manifest.as_ref().map(|manifest| &manifest.bundle);
    let recorded = manifest.into_iter().chain(status.promotion.as_ref().map(|promotion| &promotion.bundle));
    recorded.filter(|name| get(&context.stores.config_maps, namespace, name).is_none()).cloned().collect()
}

/// Returns the bundles that the object with this uid owns beside their run.
fn held_bundles(context: &Context, namespace: &str, uid: &str) -> Vec<Arc<ConfigMap>> {
    let mut owned = context.stores.config_maps.naming(namespace, &Name::Owner(uid.to_owned()));
    owned.retain(|found| !is_controlled_by(&**found, uid) && bundle::is_mounted(&found.name_any()));
    owned
}

/// Returns what a bundle proves, if it is a promotion with provenance that a run which is created again would find.
fn proof(bundle: &ConfigMap) -> Option<HeldProof> {
    bundle.data.as_ref()?.get(AttestationKind::SlsaProvenance.entry())?;
    bundle.annotations().get(annotation::CONFIG_DIGEST)?;
    let model = bundle.annotations().get(annotation::MODEL_DIGEST)?.parse().ok()?;
    Some(HeldProof { model, since: bundle.creation_timestamp()?.0 })
}

/// Returns the Deployment of that name. The cache selects by label. If a Deployment was rolled out and the cache does not
/// show it, the API server is asked, so that removing the label does not remove the servers.
async fn servers(
    context: &Context,
    namespace: &str,
    name: &str,
    rolled_out: bool,
) -> Result<Option<Deployment>, ObserveError> {
    let cached = get(&context.stores.deployments, namespace, name);
    if cached.is_some() || !rolled_out {
        return Ok(cached.map(Arc::unwrap_or_clone));
    }
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), namespace);
    let failed = |source| ObserveError::Client { kind: "Deployment", name: name.to_owned(), source };
    let found = api.get_opt(name).await.map_err(failed)?;
    Ok(found.filter(|found| found.metadata.deletion_timestamp.is_none()))
}
