//! Evaluation: its observation, and what its changes trigger.

use std::{collections::BTreeMap, sync::Arc};

use codex_crds::{Evaluation, EvaluationSpec, EvaluationStatus, TrainingRun};
use codex_plan::{
    Obstruction, Plan, Read, Received, StatusSeal,
    evaluation::{self, LedgerRead, ObservedEvaluation},
    trace::{self, Span},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::{
    cache::{Cache, Name},
    error::ObserveError,
    kind::{Kind, Observe},
    references::{Mounted, Work, of_data, work},
    stores::{Stores, get},
    triggers::Triggers,
    workers,
};
use crate::{context::Context, drift::Role, error::chain};

impl Kind for Evaluation {
    /// Returns the verdict, or before there is one, the phase.
    fn phase(&self) -> String {
        self.status.as_ref().map_or_else(|| "Pending".to_owned(), phase)
    }

    fn phase_since(&self) -> Option<Timestamp> {
        Some(self.status.as_ref()?.last_phase_transition_time.as_ref()?.0)
    }

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.changed(self);
        triggers.owner(self);
        triggers.users_of_evaluation(&self.namespace().unwrap_or_default(), &self.name_any());
    }
}

fn phase(status: &EvaluationStatus) -> String {
    if let Some(verdict) = status.verdict {
        return format!("{verdict:?}");
    }
    status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"))
}

impl Observe for Evaluation {
    type Status = EvaluationStatus;
    type Observed = ObservedEvaluation;

    fn unknown(stores: &Stores, namespace: &str) -> Option<String> {
        stores.unknown_evaluation(namespace)
    }

    fn store(context: &Context) -> &Cache<Self> {
        &context.stores.evaluations
    }

    fn status(&self) -> Option<&EvaluationStatus> {
        self.status.as_ref()
    }

    fn set_status(&mut self, status: Option<EvaluationStatus>) {
        self.status = status;
    }

    async fn observe(self: Arc<Self>, context: &Context) -> Result<ObservedEvaluation, ObserveError> {
        let (namespace, uid) = (self.namespace().unwrap_or_default(), self.uid().unwrap_or_default());
        let seal = self.check_seal(context);
        let name = self.spec.training_run.as_deref();
        let run = name.and_then(|name| get(&context.stores.training_runs, &namespace, name));
        let run = run.map(|run| Arc::unwrap_or_clone(run).believed(context));
        let job = workers::job(context, &namespace, &evaluation::job_name(&self, &seal), &uid);
        let compared: BTreeMap<String, Self> = compared(&self.spec)
            .filter_map(|name| {
                let other = get(&context.stores.evaluations, &namespace, name)?;
                Some((name.to_owned(), Arc::unwrap_or_clone(other).believed(context)))
            })
            .collect();
        let claims = mounted_claims(&self.spec, run.as_ref(), &compared);
        let mounted = Mounted { data: &self.spec.data, claims: &claims, config_maps: &[] };
        // While a run of a schedule is at work, the status has the verdict of a former one.
        let completed = self.status.as_ref().is_some_and(|status| {
            let active = status.schedule.as_ref().and_then(|schedule| schedule.active.as_ref());
            status.completed_at.is_some() && active.is_none()
        });
        let settled = completed && seal == StatusSeal::Valid;
        let needed = if settled { workers::Needed::Cached } else { workers::Needed::Ends };
        let work = work(context, &namespace, job, mounted, Role::Strict, needed).await?;
        let Work { job, pods, references, warnings, refused } = work;
        let mut observed = ObservedEvaluation {
            settings: context.settings.clone(),
            run,
            compared,
            references,
            warnings,
            refused: workers::with_endpoint(context, &namespace, &uid, refused),
            reads: BTreeMap::new(),
            admission: context.admission.current(),
            job,
            pods,
            reports: context.inbox.of(&uid),
            status_written_at: context.written.get(&uid),
            obstruction: None,
            seal,
            object: Arc::unwrap_or_clone(self),
        };
        if let Some(Read { problems, key, .. }) = evaluation::uncounted(&observed, context.now()) {
            let read = match context.ledger.number(context, problems, &key).await {
                Ok(number) => LedgerRead::Number(number),
                Err(failure) if failure.needs_attention().is_some() => LedgerRead::Uncounted(chain(&failure)),
                Err(failure) => return Err(failure.into()),
            };
            observed.reads.insert(problems, read);
        }
        Ok(observed)
    }

    fn reports(observed: &ObservedEvaluation) -> &[Received] {
        &observed.reports
    }

    fn obstruct(observed: &mut ObservedEvaluation, obstruction: Obstruction) {
        observed.obstruction = Some(obstruction);
    }

    fn recorded(observed: &mut ObservedEvaluation, status: EvaluationStatus, at: Timestamp) -> bool {
        observed.object.status = Some(status);
        observed.seal = StatusSeal::Valid;
        observed.status_written_at = Some(at);
        true
    }

    fn plan(observed: &ObservedEvaluation, now: Timestamp) -> Plan<EvaluationStatus> {
        evaluation::plan(observed, now)
    }

    fn spans(observed: &ObservedEvaluation, next: &EvaluationStatus, _: Timestamp) -> Vec<Span> {
        trace::evaluation(observed, next)
    }
}

/// Returns the names of the Evaluations that the gates of an Evaluation compare with.
pub(super) fn compared(spec: &EvaluationSpec) -> impl Iterator<Item = &str> {
    let with = spec.gates.iter().filter_map(|gate| gate.better_than.as_ref().or(gate.not_worse_than.as_ref()));
    with.map(|with| with.evaluation.as_str())
}

/// Returns the claims and the ConfigMaps of data that evaluators mount, as the spec names them.
pub(super) fn mounted(spec: &EvaluationSpec) -> impl Iterator<Item = Name> {
    let output = spec.output.as_ref().map(|output| &output.persistent_volume_claim.claim_name);
    let model = spec.model.as_ref().map(|model| &model.persistent_volume_claim.claim_name);
    output.into_iter().chain(model).cloned().map(Name::Claim).chain(of_data(&spec.data))
}

/// Returns the claims that evaluators mount besides the data: of the model, of the results and of the outcomes of `compared`
/// Evaluations. `run` is the run that made the model.
fn mounted_claims<'a>(
    spec: &'a EvaluationSpec,
    run: Option<&'a TrainingRun>,
    compared: &'a BTreeMap<String, Evaluation>,
) -> Vec<&'a str> {
    let outputs = run.map(|run| &run.spec.output).into_iter().chain(&spec.output);
    let mut claims: Vec<_> = outputs.map(|output| output.persistent_volume_claim.claim_name.as_str()).collect();
    claims.extend(spec.model.as_ref().map(|model| model.persistent_volume_claim.claim_name.as_str()));
    let outcomes = compared.values().filter_map(|other| other.status.as_ref()?.outcomes.as_ref());
    claims.extend(outcomes.map(|outcomes| outcomes.claim_name.as_str()));
    claims
}

#[cfg(test)]
mod tests {
    use codex_crds::EvaluationStatus;
    use serde_json::json;

    use super::phase;

    #[test]
    fn the_phase_is_the_verdict_and_before_that_the_phase_of_the_status() {
        let status = |value| phase(&serde_json::from_value(value).unwrap());
        for (value, expected) in [
            (json!({ "phase": "Judged", "verdict": "Inconclusive" }), "Inconclusive"),
            (json!({ "phase": "Running" }), "Running"),
            (json!({ "phase": "Suspended" }), "Suspended"),
            (json!({ "phase": "Stalled" }), "Stalled"),
            (json!({ "phase": "Failed" }), "Failed"),
        ] {
            assert_eq!(status(value), expected);
        }
        assert_eq!(phase(&EvaluationStatus::default()), "Pending");
    }
}
