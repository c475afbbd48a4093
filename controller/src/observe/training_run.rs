//! TrainingRun: its observation, and what its changes trigger.

use std::sync::Arc;

use codex_crds::{TrainingRun, TrainingRunSpec, TrainingRunStatus, child};
use codex_plan::{
    CONFIG_FILE, Obstruction, Plan, Received, StatusSeal,
    trace::{self, Span},
    training_run::{self, ObservedTrainingRun, base_cycle, has_other_pod},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::{
    bundles,
    cache::{Cache, Name},
    error::ObserveError,
    formers,
    kind::{Kind, Observe},
    references::{Mounted, Work, of_data, text, work},
    stores::{Stores, get},
    triggers::Triggers,
    workers::{self, Needed},
};
use crate::{context::Context, drift::Role, ownership::is_controlled_by};

impl Kind for TrainingRun {
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
        triggers.owner(self);
        triggers.users_of_run(&self.namespace().unwrap_or_default(), &self.name_any());
    }
}

impl Observe for TrainingRun {
    type Status = TrainingRunStatus;
    type Observed = ObservedTrainingRun;

    fn unknown(stores: &Stores, namespace: &str) -> Option<String> {
        stores.unknown_training(namespace)
    }

    fn store(context: &Context) -> &Cache<Self> {
        &context.stores.training_runs
    }

    fn status(&self) -> Option<&TrainingRunStatus> {
        self.status.as_ref()
    }

    fn set_status(&mut self, status: Option<TrainingRunStatus>) {
        self.status = status;
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedTrainingRun, ObserveError> {
        let (namespace, uid) = (self.namespace().unwrap_or_default(), self.uid().unwrap_or_default());
        let job = workers::job(context, &namespace, &child::trainer(&self.name_any()), &uid);
        let find = |name: &str| get(&context.stores.training_runs, &namespace, name);
        let base = base_run(&self).and_then(find);
        let base = base.map(|run| Arc::unwrap_or_clone(run).believed(context));
        let base_cycle = base_cycle(&self, find);
        let reproduced = self.spec.reproduces.as_ref().and_then(|run| find(&run.name));
        let reproduced = reproduced.map(|run| Arc::unwrap_or_clone(run).believed(context));
        let seal = self.check_seal(context);
        let verdict = self.spec.reproduces.as_ref().map(|_| match seal {
            StatusSeal::Valid => bundles::verdict(context, &self),
            _ => bundles::verdict(context, &TrainingRun { status: None, ..TrainingRun::clone(&self) }),
        });
        let (signer, verdict) = verdict.map_or_else(Default::default, |(signer, verdict)| (Some(signer), verdict));
        let claims = mounted_claims(&self.spec, base.as_ref());
        let of_base = self.spec.base.as_ref().and_then(|base| base.signed_by.as_ref());
        let own = self.spec.template_from.as_ref().map(|from| &from.config_map);
        let template = match own.filter(|_| job.is_none()) {
            Some(source) => text(context, &namespace, source).await?,
            None => None,
        };
        let keys: Vec<&str> = of_base
            .map(|signer| &signer.config_map)
            .into_iter()
            .chain(own)
            .map(|source| source.name.as_str())
            .collect();
        let mounted = Mounted { data: &self.spec.data, claims: &claims, config_maps: &keys };
        let completed = self.status.as_ref().is_some_and(|status| status.completed_at.is_some());
        let needed = match &job {
            _ if completed && seal == StatusSeal::Valid => Needed::Cached,
            Some(job) if has_other_pod(&self, job) => Needed::Starts,
            _ => Needed::Ends,
        };
        let begins = job.is_none() && !completed && self.spec.reproduces.is_none();
        let records = if begins { formers::records(context, &self, template.as_deref()) } else { Vec::new() };
        let work = work(context, &namespace, job, mounted, Role::Trainer, needed).await?;
        let Work { job, pods, references, warnings, refused } = work;
        Ok(ObservedTrainingRun {
            settings: context.settings.clone(),
            template,
            base,
            base_cycle,
            reproduced_config: reproduced.as_ref().and_then(|run| config_of(context, run)),
            reproduced,
            signer,
            verdict,
            records,
            references,
            warnings,
            refused: workers::with_endpoint(context, &namespace, &uid, refused),
            job,
            pods,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            obstruction: None,
            seal,
            object: Arc::unwrap_or_clone(self),
        })
    }

    fn reports(observed: &ObservedTrainingRun) -> &[Received] {
        &observed.reports
    }

    fn obstruct(observed: &mut ObservedTrainingRun, obstruction: Obstruction) {
        observed.obstruction = Some(obstruction);
    }

    fn recorded(observed: &mut ObservedTrainingRun, status: TrainingRunStatus, at: Timestamp) -> bool {
        observed.object.status = Some(status);
        observed.seal = StatusSeal::Valid;
        observed.status_written_at = Some(at);
        true
    }

    fn plan(observed: &ObservedTrainingRun, now: Timestamp) -> Plan<TrainingRunStatus> {
        training_run::plan(observed, now)
    }

    fn spans(observed: &ObservedTrainingRun, next: &TrainingRunStatus, _: Timestamp) -> Vec<Span> {
        trace::training_run(observed, next)
    }
}

/// Returns the configuration file that the trainers of a run mounted, if it still exists.
fn config_of(context: &Context, run: &TrainingRun) -> Option<String> {
    let (namespace, name) = (run.namespace().unwrap_or_default(), child::trainer(&run.name_any()));
    let found = get(&context.stores.config_maps, &namespace, &name)?;
    let own = is_controlled_by(&*found, &run.uid().unwrap_or_default());
    found.data.as_ref().filter(|_| own)?.get(CONFIG_FILE).cloned()
}

/// Returns the name of the run that is the base of another one.
pub(super) fn base_run(run: &TrainingRun) -> Option<&str> {
    Some(&run.spec.base.as_ref()?.training_run.as_ref()?.name)
}

/// Returns the claims and the ConfigMaps of data that trainers mount, as the spec names them.
pub(super) fn mounted(spec: &TrainingRunSpec) -> impl Iterator<Item = Name> {
    let base = spec.base.as_ref().and_then(|base| base.persistent_volume_claim.as_ref());
    let claims = [&spec.output.persistent_volume_claim.claim_name].into_iter().chain(base.map(|base| &base.claim_name));
    let template = spec.template_from.as_ref().map(|from| Name::ConfigMap(from.config_map.name.clone()));
    claims.cloned().map(Name::Claim).chain(of_data(&spec.data)).chain(template)
}

/// Returns the claims that trainers mount besides the data: of the output and of the base. `base` is the run that is the base.
fn mounted_claims<'a>(spec: &'a TrainingRunSpec, base: Option<&'a TrainingRun>) -> Vec<&'a str> {
    let output = |spec: &'a TrainingRunSpec| spec.output.persistent_volume_claim.claim_name.as_str();
    let given = spec.base.as_ref().and_then(|base| base.persistent_volume_claim.as_ref());
    let mut claims = vec![output(spec)];
    claims.extend(given.map(|claim| claim.claim_name.as_str()));
    claims.extend(base.map(|run| output(&run.spec)));
    claims
}
