//! The status of an evaluation. Pure.

use std::time::Duration;

use codex_crds::{ConditionType, EvaluationStatus, JudgedModel, Reason};
use codex_verdict::{GateResult, Verdict};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::{gates::Judged, metrics::written, proof::wrong, stage::Stage, view::View};
use crate::{conditions::Conditions, throttle, work::Active};

/// Returns the status, and when to plan again.
pub(crate) fn status(view: &View<'_>, stage: &Stage) -> (EvaluationStatus, Option<Duration>) {
    let observed = view.observed;
    let generation = observed.object.metadata.generation;
    let conditions = conditions(view, stage);
    if let Stage::Done = stage {
        let held = view.status.clone();
        return (EvaluationStatus { observed_generation: generation, conditions, ..held }, None);
    }
    let uid = observed.run.as_ref().and_then(ResourceExt::uid);
    let settled = matches!(stage, Stage::Judged(_) | Stage::Failed(_));
    let newest = view.states().next().map(|(_, state)| state.data.as_slice());
    let mut next = EvaluationStatus {
        observed_generation: generation,
        training_run_uid: view.status.training_run_uid.clone().or(uid),
        data_digests: view.work.data_digests(newest, &view.status.data_digests),
        work: view.work.status(settled),
        conditions,
        ..EvaluationStatus::default()
    };
    if let Stage::Judged(judged) = stage {
        let Judged { counted, verdict, passed, gates, gates_digest } = (**judged).clone();
        next.model = Some(JudgedModel { digest: counted.model, short: counted.model.short() });
        next.data_digests = counted.data;
        next.metrics = counted.metrics.iter().map(|(name, measurement)| written(name, measurement)).collect();
        next.report_digest = Some(counted.digest);
        next.verdict = Some(verdict);
        next.gates_passed = Some(passed);
        next.gates = gates;
        next.gates_digest = Some(gates_digest);
    }
    if settled {
        next.completed_at = Some(view.work.completed_at(view.status.completed_at.as_ref()));
    }
    let again = match stage {
        Stage::Active(active) => active.requeue(&view.work),
        Stage::Done | Stage::Judged(_) | Stage::Failed(_) | Stage::Invalid(_) | Stage::Waiting { .. } => None,
    };
    let at = observed.status_written_at;
    throttle::hold(observed.object.status.as_ref(), next, at, view.work.now(), again, with_numbers_of)
}

/// Returns `next` with the numbers of `present`.
fn with_numbers_of(next: &EvaluationStatus, present: &EvaluationStatus) -> EvaluationStatus {
    EvaluationStatus { data_digests: present.data_digests.clone(), work: present.work.clone(), ..next.clone() }
}

fn conditions(view: &View<'_>, stage: &Stage) -> Vec<Condition> {
    use ConditionType::{ConfigResolved, GatesPassed, Ready, Reconciling, Stalled};
    let generation = view.observed.object.metadata.generation;
    let mut conditions = Conditions::new(&view.status.conditions, generation, view.work.now());
    match (stage, view.work.config_digest()) {
        (Stage::Invalid(why), _) => conditions.set(ConfigResolved, false, Reason::InvalidConfiguration, why),
        // A verdict keeps the configuration that it was reached with, also after a controller upgrade.
        (Stage::Done, _) => conditions.keep(ConfigResolved),
        (_, Some(digest)) => {
            conditions.set(ConfigResolved, true, Reason::Resolved, &format!("the configuration {digest} is valid"));
        }
        (_, None) => {}
    }
    let (reason, message) = message(view, stage);
    if let Some((verdict, passed, gates)) = judged(view, stage) {
        let (reason, message) = sentence(verdict, passed, gates);
        conditions.set(Ready, true, Reason::Succeeded, &message);
        conditions.set(GatesPassed, verdict == Verdict::Passed, reason, &message);
    } else {
        conditions.set(Ready, false, reason, &message);
        conditions.set(GatesPassed, false, Reason::WaitingForVerdict, "there is no verdict yet");
    }
    match stage {
        Stage::Failed(_) | Stage::Invalid(_) => conditions.set(Stalled, true, reason, &message),
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => conditions.set(Stalled, true, reason, &message),
        Stage::Done | Stage::Judged(_) | Stage::Active(Active::Suspended) => {}
        Stage::Waiting { .. } | Stage::Active(_) => conditions.set(Reconciling, true, reason, &message),
    }
    if let Some(obstruction) = view.obstruction {
        conditions.obstruct(obstruction, matches!(stage, Stage::Failed(_)));
    }
    conditions.finish()
}

fn judged<'a>(view: &'a View<'_>, stage: &'a Stage) -> Option<(Verdict, &'a str, &'a [GateResult])> {
    match stage {
        Stage::Judged(judged) => Some((judged.verdict, &judged.passed, &judged.gates)),
        Stage::Done => {
            let status = &view.status;
            Some((status.verdict?, status.gates_passed.as_deref().unwrap_or_default(), &status.gates))
        }
        _ => None,
    }
}

/// Returns the reason and the message of a verdict. The message names each gate that did not pass.
fn sentence(verdict: Verdict, passed: &str, gates: &[GateResult]) -> (Reason, String) {
    let wrong = || format!("{passed} gates passed; {}", wrong(gates).join("; "));
    match verdict {
        Verdict::Passed => (Reason::AllGatesPassed, format!("{passed} gates passed")),
        Verdict::Failed => (Reason::GateFailed, wrong()),
        Verdict::Inconclusive => (Reason::Inconclusive, wrong()),
    }
}

/// Returns the reason and the message of the stage. The message must not change with every problem.
fn message(view: &View<'_>, stage: &Stage) -> (Reason, String) {
    match stage {
        Stage::Done | Stage::Judged(_) => (Reason::Succeeded, "the verdict is reached".to_owned()),
        Stage::Failed(failure) => (failure.reason, failure.message.clone()),
        Stage::Invalid(why) => (Reason::InvalidConfiguration, why.clone()),
        Stage::Waiting { run, waiting } => waiting.message("spec.trainingRun", run),
        Stage::Active(active) => active.message(&view.work),
    }
}
