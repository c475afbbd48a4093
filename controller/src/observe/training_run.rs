//! TrainingRun: its observation, and what its changes trigger.

use std::sync::Arc;

use codex_crds::{TrainingRun, TrainingRunStatus, child};
use codex_plan::{
    Plan, Received,
    training_run::{self, ObservedTrainingRun},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{ResourceExt, runtime::reflector::Store};

use super::{
    error::ObserveError,
    kind::{Kind, Observe},
    references::{Work, work},
    triggers::Triggers,
    workers,
};
use crate::context::Context;

impl Kind for TrainingRun {
    fn phase(&self) -> String {
        let phase = self.status.as_ref().and_then(|status| status.phase);
        phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"))
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.object(self);
        triggers.users_of_run(&self.namespace().unwrap_or_default(), &self.name_any());
    }
}

impl Observe for TrainingRun {
    type Status = TrainingRunStatus;
    type Observed = ObservedTrainingRun;

    fn store(context: &Context) -> &Store<Self> {
        &context.stores.training_runs
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
        let (namespace, uid) = (self.namespace().unwrap_or_default(), self.uid().unwrap_or_default());
        let job = workers::job(context, &namespace, &child::trainer(&self.name_any()), &uid);
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
