//! Observing the three kinds, from caches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use codex_crds::{
    DataItem, Evaluation, EvaluationStatus, ReasoningPod, ReasoningPodStatus, TrainingRun, TrainingRunStatus, child,
    is_subdomain,
};
use codex_plan::{
    Plan, Received, References,
    evaluation::{self, ObservedEvaluation},
    reasoning_pod::{self, ObservedReasoningPod},
    training_run::{self, ObservedTrainingRun},
};
use codex_reports::Kind;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{Api, Resource, ResourceExt, runtime::reflector::Store};
use serde::{Serialize, de::DeserializeOwned};

use super::{ObserveError, bundles, get, workers};
use crate::context::Context;

/// What differs between the three kinds.
pub trait Observe:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The type of its status.
    type Status: Serialize + Clone + PartialEq + Send + Sync;
    /// What its plan depends on.
    type Observed: Send + Sync;
    /// The kind.
    const KIND: Kind;

    /// Its cache.
    fn store(context: &Context) -> &Store<Self>;

    /// Its status.
    fn status(&self) -> Option<&Self::Status>;

    /// The conditions in a status.
    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition>;

    /// The generation that a status speaks of.
    fn observed_generation(status: &mut Self::Status) -> &mut Option<i64>;

    /// Looks at it and at everything around it.
    fn observe(self: Arc<Self>, context: &Context)
    -> impl Future<Output = Result<Self::Observed, ObserveError>> + Send;

    /// The reports that were observed.
    fn reports(observed: &Self::Observed) -> &[Received];

    /// What to do.
    fn plan(observed: &Self::Observed, now: Timestamp) -> Plan<Self::Status>;
}

impl Observe for TrainingRun {
    type Status = TrainingRunStatus;
    type Observed = ObservedTrainingRun;
    const KIND: Kind = Kind::TrainingRun;

    fn store(context: &Context) -> &Store<Self> {
        &context.stores.runs
    }

    fn status(&self) -> Option<&TrainingRunStatus> {
        self.status.as_ref()
    }

    fn conditions(status: &mut TrainingRunStatus) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    fn observed_generation(status: &mut TrainingRunStatus) -> &mut Option<i64> {
        &mut status.observed_generation
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedTrainingRun, ObserveError> {
        let (namespace, name, uid) = identity(&*self);
        let job = workers::job(context, &namespace, &child::trainer(&name), &uid);
        let Work { job, pods, references } = work(context, &namespace, job, &self.spec.data, Some(&*self)).await?;
        Ok(ObservedTrainingRun {
            settings: context.settings.clone(),
            references,
            job,
            pods,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedTrainingRun) -> &[Received] {
        &observed.reports
    }

    fn plan(observed: &ObservedTrainingRun, now: Timestamp) -> Plan<TrainingRunStatus> {
        training_run::plan(observed, now)
    }
}

impl Observe for Evaluation {
    type Status = EvaluationStatus;
    type Observed = ObservedEvaluation;
    const KIND: Kind = Kind::Evaluation;

    fn store(context: &Context) -> &Store<Self> {
        &context.stores.evaluations
    }

    fn status(&self) -> Option<&EvaluationStatus> {
        self.status.as_ref()
    }

    fn conditions(status: &mut EvaluationStatus) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    fn observed_generation(status: &mut EvaluationStatus) -> &mut Option<i64> {
        &mut status.observed_generation
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedEvaluation, ObserveError> {
        let (namespace, name, uid) = identity(&*self);
        let run = get(&context.stores.runs, &namespace, &self.spec.training_run);
        let job = workers::job(context, &namespace, &child::evaluator(&name), &uid);
        let Work { job, pods, references } = work(context, &namespace, job, &self.spec.data, run.as_deref()).await?;
        Ok(ObservedEvaluation {
            settings: context.settings.clone(),
            run: run.map(Arc::unwrap_or_clone),
            references,
            job,
            pods,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedEvaluation) -> &[Received] {
        &observed.reports
    }

    fn plan(observed: &ObservedEvaluation, now: Timestamp) -> Plan<EvaluationStatus> {
        evaluation::plan(observed, now)
    }
}

impl Observe for ReasoningPod {
    type Status = ReasoningPodStatus;
    type Observed = ObservedReasoningPod;
    const KIND: Kind = Kind::ReasoningPod;

    fn store(context: &Context) -> &Store<Self> {
        &context.stores.pods
    }

    fn status(&self) -> Option<&ReasoningPodStatus> {
        self.status.as_ref()
    }

    fn conditions(status: &mut ReasoningPodStatus) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    fn observed_generation(status: &mut ReasoningPodStatus) -> &mut Option<i64> {
        &mut status.observed_generation
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedReasoningPod, ObserveError> {
        let (namespace, name, uid) = identity(&*self);
        let run = get(&context.stores.runs, &namespace, &self.spec.training_run);
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
        let live = servers(context, &namespace, &child::server(&name), rolled_out).await?;
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
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedReasoningPod) -> &[Received] {
        &observed.reports
    }

    fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
        reasoning_pod::plan(observed, now)
    }
}

fn identity<K: Resource>(object: &K) -> (String, String, String) {
    (object.namespace().unwrap_or_default(), object.name_any(), object.uid().unwrap_or_default())
}

/// The Deployment of that name. The cache holds only what carries our label: one that was rolled out and is not there is
/// asked for, so that a label that somebody took away costs nobody the servers.
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

/// A Job with its pods; without one, what its pods would mount.
struct Work {
    job: Option<Job>,
    pods: Vec<Pod>,
    references: References,
}

async fn work(
    context: &Context,
    namespace: &str,
    job: Option<Job>,
    data: &[DataItem],
    run: Option<&TrainingRun>,
) -> Result<Work, ObserveError> {
    let (pods, references) = match &job {
        Some(job) => (workers::of_job(context, job), References::default()),
        None => (Vec::new(), references(context, namespace, data, run).await?),
    };
    Ok(Work { job, pods, references })
}

/// Which of the things that an object mounts exist. `run` names the claim that its output lies on.
async fn references(
    context: &Context,
    namespace: &str,
    data: &[DataItem],
    run: Option<&TrainingRun>,
) -> Result<References, ObserveError> {
    let output = run.map(|run| &run.spec.output.persistent_volume_claim.claim_name);
    let mounted =
        data.iter().filter_map(|item| item.source.persistent_volume_claim.as_ref()).map(|claim| &claim.claim_name);
    let claims =
        output.into_iter().chain(mounted).filter(|name| get(&context.stores.claims, namespace, name).is_some());
    let mut references = References { claims: claims.cloned().collect(), ..References::default() };
    let names: BTreeSet<_> = data.iter().filter_map(|item| Some(&item.source.config_map.as_ref()?.name)).collect();
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    // What can be no name leads elsewhere in the API, and is missing.
    for name in names.into_iter().filter(|name| is_subdomain(name)) {
        let found = api.get_opt(name).await.map_err(|source| ObserveError::Client {
            kind: "ConfigMap",
            name: name.clone(),
            source,
        })?;
        if let Some(found) = found {
            let texts = found.data.unwrap_or_default().into_keys();
            let keys = texts.chain(found.binary_data.unwrap_or_default().into_keys()).collect();
            references.config_maps.insert(name.clone(), keys);
        }
    }
    Ok(references)
}
