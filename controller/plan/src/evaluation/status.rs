//! The status of an evaluation. Pure.

use std::time::Duration;

use codex_crds::{ConditionType, EvaluationPhase, EvaluationStatus, JudgedModel, Reason, ReferenceStatus};
use codex_provenance::EvidenceStrength;
use codex_verdict::{GateResult, Verdict};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::{
    gates::{Counted, Judged},
    metrics::written,
    outcome::Outcome,
    proof::wrong,
    stage::Stage,
    view::View,
};
use crate::{
    conditions::{Conditions, NOTICE, is_true, phase_since},
    seal::{self, StatusSeal},
    text::truncate_chars,
    throttle,
    work::{Active, stale_condition},
};

/// The most characters of `status.evidenceReason`.
const MAX_EVIDENCE_REASON: usize = 1_000;
/// How long to wait until the ledger of reads is looked at again.
const LEDGER_AGAIN: Duration = Duration::from_secs(60);
/// The message of strong evidence.
const PROTECTED: &str =
    "the admission policies were in place, unchanged, from before the Job was created until the verdict";

/// Returns the status, and when to plan again.
pub(crate) fn status(view: &View<'_>, outcome: &Outcome, stage: &Stage) -> (EvaluationStatus, Option<Duration>) {
    let observed = view.observed;
    let present = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    let (generation, conditions) = (observed.object.metadata.generation, conditions(view, stage));
    let phase = phase(view, stage);
    let recorded = (view.status.phase, view.status.last_phase_transition_time.as_ref());
    let last_phase_transition_time = phase_since(recorded, phase, view.work.now());
    let phase = Some(phase);
    if let Stage::Done(judged) = stage {
        let held = view.status.clone();
        let held =
            EvaluationStatus { observed_generation: generation, phase, last_phase_transition_time, conditions, ..held };
        return (with_result(held, judged), view.work.expiry_due());
    }
    let uid = observed.run.as_ref().and_then(ResourceExt::uid);
    let settled = matches!(stage, Stage::Judged(_) | Stage::Failed(_)) && !is_held(view, stage);
    let newest = view.states().next().map(|(_, state)| state.data.as_slice());
    let mut next = EvaluationStatus {
        observed_generation: generation,
        phase,
        last_phase_transition_time,
        training_run_uid: view.status.training_run_uid.clone().or(uid),
        config_digest: view.config_digest().or(view.status.config_digest),
        references: references(view, stage),
        device: view.device(),
        data_digests: view.work.data_digests(newest, &view.status.data_digests),
        work: view.work.status(settled),
        seal: view.status.seal.clone(),
        conditions,
        ..EvaluationStatus::default()
    };
    match (stage, &outcome.counted) {
        (Stage::Judged(judged), _) if is_held(view, stage) => next = with_numbers(next, &judged.counted),
        (Stage::Judged(judged), _) => next = with_result(next, judged),
        // The numbers are recorded before the end of the pod, so that a restarted controller knows them.
        (Stage::Active(_) | Stage::Uncounted(_), Some((counted, _))) => next = with_numbers(next, counted),
        _ => {}
    }
    if settled {
        next.completed_at = Some(view.work.completed_at(view.status.completed_at.as_ref()));
    }
    let again = match stage {
        Stage::Active(active) => active.requeue(&view.work),
        Stage::Done(_) | Stage::Judged(_) | Stage::Failed(_) => view.work.expiry_due(),
        Stage::Uncounted(_) => Some(LEDGER_AGAIN),
        Stage::Invalid(_)
        | Stage::Scheduled(_)
        | Stage::Waiting { .. }
        | Stage::WithoutReference(_)
        | Stage::Discarded(_) => None,
    };
    throttle::hold_attempts(present, &mut next, &view.status.work, |status| &mut status.work);
    throttle::hold(present, next, observed.status_written_at, view.work.now(), again, with_throttled_of)
}

/// Whether a verdict must not be published: the plan could not be carried out, so its read of the problems may not be counted.
fn is_held(view: &View<'_>, stage: &Stage) -> bool {
    matches!(stage, Stage::Judged(_)) && view.obstruction.is_some()
}

/// Returns `status.references`: those that the Job is created with.
fn references(view: &View<'_>, stage: &Stage) -> Vec<ReferenceStatus> {
    let kept = || view.status.references.clone();
    match (stage, &view.references) {
        (Stage::Active(_) | Stage::Judged(_) | Stage::Uncounted(_) | Stage::Failed(_), Ok(references)) => {
            references.clone()
        }
        _ => kept(),
    }
}

fn with_numbers(status: EvaluationStatus, counted: &Counted) -> EvaluationStatus {
    EvaluationStatus {
        model: Some(JudgedModel { digest: counted.model, short: counted.model.short() }),
        data_digests: counted.data.clone(),
        metrics: counted.metrics.iter().map(|(name, measurement)| written(name, measurement)).collect(),
        report_digest: Some(counted.digest),
        outcomes: counted.outcomes.clone(),
        page: counted.page.clone(),
        golden_tokens: counted.golden.clone(),
        references: counted.references.clone(),
        ..status
    }
}

/// Returns a status with a verdict.
pub(super) fn with_result(status: EvaluationStatus, judged: &Judged) -> EvaluationStatus {
    let strength = if judged.evidence.is_ok() { EvidenceStrength::Strong } else { EvidenceStrength::Weak };
    EvaluationStatus {
        verdict: Some(judged.verdict),
        gates_passed: Some(judged.passed.clone()),
        gates: judged.gates.clone(),
        gates_digest: Some(judged.gates_digest),
        reads: judged.read,
        evidence: Some(strength),
        evidence_reason: judged.evidence.as_ref().err().map(|why| truncate_chars(why, MAX_EVIDENCE_REASON)),
        ..with_numbers(status, &judged.counted)
    }
}

/// Returns `next` with the numbers of `present` that change often.
fn with_throttled_of(next: &EvaluationStatus, present: &EvaluationStatus) -> EvaluationStatus {
    EvaluationStatus { data_digests: present.data_digests.clone(), work: present.work.clone(), ..next.clone() }
}

fn phase(view: &View<'_>, stage: &Stage) -> EvaluationPhase {
    match stage {
        Stage::Judged(_) if is_held(view, stage) => EvaluationPhase::Stalled,
        Stage::Done(_) if view.replaced().is_some() => EvaluationPhase::Stalled,
        Stage::Done(_) | Stage::Judged(_) => EvaluationPhase::Judged,
        Stage::Failed(_) => EvaluationPhase::Failed,
        _ if view.obstruction.is_some() => EvaluationPhase::Stalled,
        Stage::Invalid(_) | Stage::Discarded(_) | Stage::Uncounted(_) => EvaluationPhase::Stalled,
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => EvaluationPhase::Stalled,
        Stage::WithoutReference(why) if why.stalled => EvaluationPhase::Stalled,
        Stage::Waiting { .. } | Stage::WithoutReference(_) | Stage::Scheduled(_) => EvaluationPhase::Pending,
        Stage::Active(active) => match active {
            Active::Suspended => EvaluationPhase::Suspended,
            Active::Running | Active::FinalReport(_) => EvaluationPhase::Running,
            Active::Queued(_) | Active::Pending(_) | Active::LostReferences(_) | Active::MissingReferences(_) => {
                EvaluationPhase::Pending
            }
        },
    }
}

fn conditions(view: &View<'_>, stage: &Stage) -> Vec<Condition> {
    use ConditionType::{ConfigResolved, EvidenceStrong, GatesPassed, Ready, Reconciling, Stalled};
    let generation = view.observed.object.metadata.generation;
    let mut conditions = Conditions::new(&view.status.conditions, generation, view.work.now());
    match (stage, view.config_digest()) {
        (Stage::Invalid(why), _) => conditions.set(ConfigResolved, false, Reason::InvalidConfiguration, why),
        // A verdict keeps the configuration that it was reached with, also after a controller upgrade.
        (Stage::Done(_), _) => conditions.keep(ConfigResolved),
        (_, Some(digest)) => {
            let notices: Vec<String> = view.notices.iter().map(|why| format!("{NOTICE}{why}")).collect();
            let message = format!("the configuration {digest} is valid{}", notices.concat());
            conditions.set(ConfigResolved, true, Reason::Resolved, &message);
        }
        (_, None) => {}
    }
    let (reason, message) = message(view, stage);
    if let Some(judged) = judged(stage).filter(|_| !is_held(view, stage)) {
        let (reason, message) = sentence(judged.verdict, &judged.passed, &judged.gates);
        conditions.set(GatesPassed, judged.verdict == Verdict::Passed, reason, &message);
        match (view.replaced(), view.gone()) {
            (Some(why), _) => {
                conditions.set(Ready, false, Reason::Replaced, &why);
                conditions.set(Stalled, true, Reason::Replaced, &why);
            }
            (None, Some(gone)) => conditions.set(Ready, true, Reason::Succeeded, &format!("{message}; {gone}")),
            (None, None) => conditions.set(Ready, true, Reason::Succeeded, &message),
        }
        match &judged.evidence {
            Ok(()) => conditions.set(EvidenceStrong, true, Reason::PoliciesIntact, PROTECTED),
            Err(why) => conditions.set(EvidenceStrong, false, Reason::PoliciesNotIntact, why),
        }
    } else {
        conditions.set(Ready, false, reason, &message);
        conditions.set(GatesPassed, false, Reason::WaitingForVerdict, "there is no verdict yet");
    }
    match stage {
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) | Stage::Uncounted(_) => {
            conditions.set(Stalled, true, reason, &message);
        }
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => conditions.set(Stalled, true, reason, &message),
        Stage::WithoutReference(why) if why.stalled => conditions.set(Stalled, true, reason, &message),
        Stage::Done(_) | Stage::Judged(_) | Stage::Scheduled(_) | Stage::Active(Active::Suspended) => {}
        Stage::Waiting { .. } | Stage::WithoutReference(_) | Stage::Active(_) => {
            conditions.set(Reconciling, true, reason, &message);
        }
    }
    if let Stage::Active(active) = stage {
        stale_condition(&mut conditions, active, &view.work);
    }
    let settled = matches!(stage, Stage::Done(_) | Stage::Judged(_) | Stage::Failed(_)) && !is_held(view, stage);
    seal::condition(&mut conditions, &view.observed.seal, settled);
    of_schedule(view, stage, &mut conditions);
    if let Some(obstruction) = view.obstruction {
        conditions.obstruct(obstruction, matches!(stage, Stage::Failed(_)));
    }
    conditions.finish()
}

/// Sets what a schedule adds. While a run is at work, the verdict of the former one stays.
fn of_schedule(view: &View<'_>, stage: &Stage, conditions: &mut Conditions<'_>) {
    use ConditionType::{EvidenceStrong, GatesPassed, Ready, Reconciling, RunsMissed, Stalled};
    let turn = &view.turn;
    let settled = matches!(stage, Stage::Done(_) | Stage::Judged(_) | Stage::Failed(_)) && !is_held(view, stage);
    if turn.holds && !settled {
        conditions.restore(GatesPassed);
        conditions.restore(EvidenceStrong);
        if !conditions.has(Stalled) && is_true(&view.status.conditions, Ready) {
            conditions.restore(Ready);
        }
    }
    if let Some(starts) = &turn.starts {
        conditions.set(Reconciling, true, Reason::WaitingForPod, starts);
    }
    match (&turn.missed, turn.replaced.as_ref().filter(|_| !settled)) {
        (Some(missed), Some(replaced)) => {
            conditions.set(RunsMissed, true, Reason::RunsMissed, &format!("{missed}; {replaced}"));
        }
        (Some(missed), None) => conditions.set(RunsMissed, true, Reason::RunsMissed, missed),
        (None, Some(replaced)) => conditions.set(RunsMissed, true, Reason::RunReplaced, replaced),
        (None, None) => {}
    }
    if let Some(problem) = &turn.problem {
        conditions.set(Ready, false, Reason::InvalidConfiguration, problem);
        // Later plans read the failure of a run there.
        if !matches!(stage, Stage::Failed(_)) {
            conditions.set(Stalled, true, Reason::InvalidConfiguration, problem);
        }
    }
}

fn judged(stage: &Stage) -> Option<&Judged> {
    match stage {
        Stage::Done(judged) | Stage::Judged(judged) => Some(judged),
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
        Stage::Done(_) | Stage::Judged(_) => (Reason::Succeeded, "the verdict is reached".to_owned()),
        Stage::Failed(failure) | Stage::Discarded(failure) => (failure.reason, failure.message.clone()),
        Stage::Invalid(why) => (Reason::InvalidConfiguration, why.clone()),
        Stage::Uncounted(why) => (Reason::ReadUncounted, why.clone()),
        Stage::Scheduled(waits) => (Reason::WaitingForSchedule, waits.clone()),
        Stage::Waiting { run, waiting } => waiting.message("spec.trainingRun", run),
        Stage::WithoutReference(why) => (why.reason, why.message.clone()),
        Stage::Active(active) => active.message(&view.work),
    }
}
