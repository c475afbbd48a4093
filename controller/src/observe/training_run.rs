//! TrainingRun: its observation, and what its changes trigger.

use std::sync::Arc;

use codex_crds::{TrainingRun, TrainingRunStatus, child};
use codex_plan::{
    Obstruction, Plan, Received,
    training_run::{self, ObservedTrainingRun},
};
use jiff::Timestamp;
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
            obstruction: None,
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedTrainingRun) -> &[Received] {
        &observed.reports
    }

    fn obstruct(observed: &mut ObservedTrainingRun, obstruction: Obstruction) {
        observed.obstruction = Some(obstruction);
    }

    fn plan(observed: &ObservedTrainingRun, now: Timestamp) -> Plan<TrainingRunStatus> {
        training_run::plan(observed, now)
    }
}
