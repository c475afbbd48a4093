//! The status of a TrainingRun. Transitions are written at once, numbers at most every ten seconds. Pure.

use std::time::Duration;

use codex_crds::{
    CheckpointStatus, ConditionType, ModelStatus, ProgressStatus, Reason, TrainingRunPhase, TrainingRunStatus,
};
use codex_provenance::ConfigDigest;
use codex_reports::Progress as Numbers;
use codex_verdict::Decimal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{base::RUN_FIELD, outcome::Outcome, stage::Stage, view::View};
use crate::{
    conditions::Conditions,
    numbers::{count, decimal},
    seal::{self, StatusSeal},
    throttle,
    work::Active,
};

/// Returns the status, and when to plan again.
pub(crate) fn status(view: &View<'_>, outcome: &Outcome, stage: &Stage) -> (TrainingRunStatus, Option<Duration>) {
    let observed = view.observed;
    let next = TrainingRunStatus {
        observed_generation: observed.object.metadata.generation,
        phase: Some(phase(view, stage)),
        base: view.base_status(),
        model: model(outcome, stage),
        attested: attested(view, outcome, stage),
        config_digest: config_digest(view, stage),
        completed_at: completed_at(view, stage),
        conditions: conditions(view, stage),
        seal: view.status.seal.clone(),
        ..numbers(view, stage)
    };
    let again = match stage {
        Stage::Active(active) => active.requeue(&view.work),
        Stage::Done(_)
        | Stage::Succeeded(_)
        | Stage::Failed(_)
        | Stage::Invalid(_)
        | Stage::Waiting { .. }
        | Stage::Discarded(_) => None,
    };
    let present = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    let written = observed.status_written_at;
    throttle::hold(present, next, written, view.work.now(), again, with_numbers_of)
}

/// Returns `next` with the numbers of `present`.
fn with_numbers_of(next: &TrainingRunStatus, present: &TrainingRunStatus) -> TrainingRunStatus {
    TrainingRunStatus {
        observed_generation: next.observed_generation,
        phase: next.phase,
        base: next.base.clone(),
        model: next.model.clone(),
        attested: next.attested,
        config_digest: next.config_digest,
        completed_at: next.completed_at.clone(),
        conditions: next.conditions.clone(),
        seal: next.seal.clone(),
        ..present.clone()
    }
}

/// Returns the numbers of the newest reports, pods and Job, over those that the status records already.
fn numbers(view: &View<'_>, stage: &Stage) -> TrainingRunStatus {
    let held = &view.status;
    if matches!(stage, Stage::Done(_)) {
        return held.clone();
    }
    let newest = view.states().next().map(|(_, state)| state);
    let checkpoint = newest.and_then(|state| state.last_checkpoint.as_ref());
    let executed = view.states().map(|(_, state)| count(state.steps_executed)).max();
    TrainingRunStatus {
        progress: newest.and_then(|state| state.progress.as_ref()).map(progress).or_else(|| held.progress.clone()),
        last_checkpoint: checkpoint
            .map(|checkpoint| CheckpointStatus { step: count(checkpoint.step), digest: checkpoint.digest })
            .or_else(|| held.last_checkpoint.clone()),
        data_digests: view.work.data_digests(newest.map(|state| state.data.as_slice()), &held.data_digests),
        steps_executed: executed.filter(|steps| *steps > 0).max(held.steps_executed),
        work: view.work.status(matches!(stage, Stage::Succeeded(_) | Stage::Failed(_))),
        ..TrainingRunStatus::default()
    }
}

fn progress(numbers: &Numbers) -> ProgressStatus {
    let rounded = |number: f64| (number.is_finite() && number >= 0.0).then(|| number.round() as i64);
    ProgressStatus {
        step: count(numbers.step),
        total_steps: count(numbers.total_steps),
        steps: format!("{}/{}", numbers.step, numbers.total_steps),
        loss: numbers.loss.and_then(|loss| decimal(loss, 4)).map(Decimal),
        tokens_per_second: numbers.tokens_per_second.and_then(rounded),
        eta_seconds: numbers.eta_seconds.map(count),
        learning_rate: numbers.learning_rate.and_then(|rate| decimal(rate, 8)).map(Decimal),
        gradient_norm: numbers.gradient_norm.and_then(|norm| decimal(norm, 4)).map(Decimal),
        gflops: numbers.gflops.and_then(rounded),
        data_wait: numbers.data_wait.and_then(|share| decimal(share, 4)).map(Decimal),
        memory_bytes: numbers.memory_bytes.map(count),
        val_loss: numbers.val_loss.and_then(|loss| decimal(loss, 4)).map(Decimal),
    }
}

fn phase(view: &View<'_>, stage: &Stage) -> TrainingRunPhase {
    match stage {
        Stage::Done(_) | Stage::Succeeded(_) => TrainingRunPhase::Succeeded,
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) => TrainingRunPhase::Failed,
        Stage::Waiting { .. } => TrainingRunPhase::Pending,
        Stage::Active(active) => match active {
            Active::Suspended => TrainingRunPhase::Suspended,
            Active::Running | Active::FinalReport(_) => TrainingRunPhase::Running,
            Active::Pending(_) if view.work.worker.has_started() => TrainingRunPhase::Running,
            Active::Pending(_) | Active::MissingReferences(_) => TrainingRunPhase::Pending,
        },
    }
}

/// Returns the model to record. It is recorded as soon as it is reported, however the pod ends that reported it.
fn model(outcome: &Outcome, stage: &Stage) -> Option<ModelStatus> {
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => Some(*model.clone()),
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) => None,
        Stage::Waiting { .. } | Stage::Active(_) => outcome.model.clone(),
    }
}

/// Returns whether the word of the trainer that reported the model is attested: as it was when the model was recorded, or as it
/// is now. `None` if it is not.
fn attested(view: &View<'_>, outcome: &Outcome, stage: &Stage) -> Option<bool> {
    model(outcome, stage)?;
    let recorded = view.status.attested.filter(|_| view.status.model.is_some());
    recorded.or_else(|| (!matches!(stage, Stage::Done(_)) && view.is_attested()).then_some(true))
}

/// Returns the digest of the configuration. A finished run keeps the one that it records.
fn config_digest(view: &View<'_>, stage: &Stage) -> Option<ConfigDigest> {
    let recorded = view.status.config_digest;
    if matches!(stage, Stage::Done(_)) { recorded } else { view.work.config_digest().or(recorded) }
}

fn completed_at(view: &View<'_>, stage: &Stage) -> Option<Time> {
    let recorded = view.status.completed_at.as_ref();
    match stage {
        Stage::Done(_) => recorded.cloned(),
        Stage::Succeeded(_) | Stage::Failed(_) => Some(view.work.completed_at(recorded)),
        Stage::Invalid(_) | Stage::Waiting { .. } | Stage::Discarded(_) | Stage::Active(_) => None,
    }
}

fn conditions(view: &View<'_>, stage: &Stage) -> Vec<Condition> {
    use ConditionType::{ConfigResolved, Ready, Reconciling, Stalled, Trained};
    let generation = view.observed.object.metadata.generation;
    let mut conditions = Conditions::new(&view.status.conditions, generation, view.work.now());
    match (stage, config_digest(view, stage)) {
        (Stage::Invalid(why), _) => conditions.set(ConfigResolved, false, Reason::InvalidConfiguration, why),
        (_, Some(digest)) => {
            conditions.set(ConfigResolved, true, Reason::Resolved, &format!("the configuration {digest} is valid"));
        }
        (_, None) => {}
    }
    let (reason, message) = message(view, stage);
    let done = matches!(stage, Stage::Done(_) | Stage::Succeeded(_));
    conditions.set(Ready, done, reason, &message);
    conditions.set(Trained, done, reason, &message);
    match stage {
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) => conditions.set(Stalled, true, reason, &message),
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => conditions.set(Stalled, true, reason, &message),
        Stage::Done(_) | Stage::Succeeded(_) | Stage::Active(Active::Suspended) => {}
        Stage::Waiting { .. } | Stage::Active(_) => conditions.set(Reconciling, true, reason, &message),
    }
    let settled = done || matches!(stage, Stage::Failed(_));
    seal::condition(&mut conditions, &view.observed.seal, settled);
    if let Some(obstruction) = view.obstruction {
        conditions.obstruct(obstruction, matches!(stage, Stage::Failed(_)));
    }
    conditions.finish()
}

/// Returns the reason and the message of the stage. The message must not change with every step.
fn message(view: &View<'_>, stage: &Stage) -> (Reason, String) {
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => {
            (Reason::Succeeded, format!("the model {} is stored in {}", model.short, model.location))
        }
        Stage::Failed(failure) | Stage::Discarded(failure) => (failure.reason, failure.message.clone()),
        Stage::Invalid(why) => (Reason::InvalidConfiguration, why.clone()),
        Stage::Waiting { run, waiting } => waiting.message(RUN_FIELD, run),
        Stage::Active(active) => active.message(&view.work),
    }
}
