//! ReasoningPod: its observation, and what its changes trigger.

use std::{collections::BTreeMap, sync::Arc};

use codex_crds::{Evaluation, ReasoningPod, ReasoningPodStatus, child};
use codex_plan::{
    Obstruction, Plan, Received,
    reasoning_pod::{self, ObservedReasoningPod},
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt, runtime::reflector::Store};

use super::{
    bundles,
    error::ObserveError,
    kind::{Kind, Observe},
    stores::get,
    triggers::Triggers,
    workers,
};
use crate::context::Context;

impl Kind for ReasoningPod {
    fn phase(&self) -> String {
        let phase = self.status.as_ref().and_then(|status| status.phase);
        phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"))
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.object(self);
    }
}

impl Observe for ReasoningPod {
    type Status = ReasoningPodStatus;
    type Observed = ObservedReasoningPod;

    fn store(context: &Context) -> &Store<Self> {
        &context.stores.reasoning_pods
    }

    fn status(&self) -> Option<&ReasoningPodStatus> {
        self.status.as_ref()
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedReasoningPod, ObserveError> {
        let (namespace, uid) = (self.namespace().unwrap_or_default(), self.uid().unwrap_or_default());
        let run = get(&context.stores.training_runs, &namespace, &self.spec.training_run);
        let evaluations: BTreeMap<String, Evaluation> = self
            .spec
            .evaluations
            .iter()
            .filter_map(|name| {
                Some((name.clone(), Arc::unwrap_or_clone(get(&context.stores.evaluations, &namespace, name)?)))
            })
            .collect();
        let found = bundles::find(context, &self, run.as_deref(), &evaluations);
        let rolled_out = self.status.as_ref().is_some_and(|status| status.training_run_uid.is_some());
        let live = servers(context, &namespace, &child::server(&self.name_any()), rolled_out).await?;
        let (deployment, tampered) = workers::deployment(context, live, &uid);
        Ok(ObservedReasoningPod {
            settings: context.settings.clone(),
            run: run.map(Arc::unwrap_or_clone),
            evaluations,
            signer: found.signer,
            oms: found.oms,
            promotion: found.promotion,
            pods: deployment.as_ref().map(|deployment| workers::of_deployment(context, deployment)).unwrap_or_default(),
            deployment,
            tampered,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            obstruction: None,
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedReasoningPod) -> &[Received] {
        &observed.reports
    }

    fn obstruct(observed: &mut ObservedReasoningPod, obstruction: Obstruction) {
        observed.obstruction = Some(obstruction);
    }

    fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
        reasoning_pod::plan(observed, now)
    }
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
