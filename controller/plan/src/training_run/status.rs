//! The status of a run. Transitions are written at once, numbers at most every ten seconds. Pure.

use std::time::Duration;

use codex_crds::{
    CheckpointStatus, ConditionType, Decimal, ModelStatus, ProgressStatus, Reason, TrainingRunPhase, TrainingRunStatus,
};
use codex_reports::Progress as Numbers;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::stage::{Stage, View, Waiting};
use crate::{
    conditions::Conditions,
    numbers::{count, decimal},
    throttle::{self, REFERENCES_AGAIN},
    worker::NO_OBSTACLE,
};

/// The status, and when to look again.
pub(crate) fn status(view: &View<'_>, stage: &Stage) -> (TrainingRunStatus, Option<Duration>) {
    let observed = view.observed;
    let next = TrainingRunStatus {
        observed_generation: observed.object.metadata.generation,
        phase: Some(phase(view, stage)),
        model: model(view, stage),
        config_digest: view.config_digest(stage),
        completed_at: completed_at(view, stage),
        conditions: conditions(view, stage),
        ..numbers(view, stage)
    };
    let again = match stage {
        Stage::Waiting(Waiting::References(_)) => Some(REFERENCES_AGAIN),
        Stage::Waiting(Waiting::LastReport(until)) => Some(throttle::until(view.worker.now, *until)),
        Stage::Waiting(Waiting::Pod(None)) => view.worker.pod_due(),
        _ => None,
    };
    let written = observed.status_written_at;
    throttle::hold(observed.object.status.as_ref(), next, written, view.worker.now, again, with_numbers_of)
}

/// `next` with everything of `present` that may wait.
fn with_numbers_of(next: &TrainingRunStatus, present: &TrainingRunStatus) -> TrainingRunStatus {
    TrainingRunStatus {
        observed_generation: next.observed_generation,
        phase: next.phase,
        model: next.model.clone(),
        config_digest: next.config_digest,
        completed_at: next.completed_at.clone(),
        conditions: next.conditions.clone(),
        ..present.clone()
    }
}

/// What accumulates: from reports, pods and the Job, over what the status holds already.
fn numbers(view: &View<'_>, stage: &Stage) -> TrainingRunStatus {
    let held = &view.status;
    if matches!(stage, Stage::Done(_)) {
        return held.clone();
    }
    let newest = view.states().next().map(|(_, state)| state);
    let read = newest.map(|state| view.read(state)).filter(|read| !read.is_empty());
    let checkpoint = newest.and_then(|state| state.last_checkpoint.as_ref());
    let executed = view.states().map(|(_, state)| count(state.steps_executed)).max();
    let settled = matches!(stage, Stage::Succeeded(_) | Stage::Failed(_));
    TrainingRunStatus {
        progress: newest.and_then(|state| state.progress.as_ref()).map(progress).or_else(|| held.progress.clone()),
        last_checkpoint: checkpoint
            .map(|checkpoint| CheckpointStatus { step: count(checkpoint.step), digest: checkpoint.digest })
            .or_else(|| held.last_checkpoint.clone()),
        data_digests: read.unwrap_or_else(|| held.data_digests.clone()),
        steps_executed: executed.filter(|steps| *steps > 0).max(held.steps_executed),
        work: if settled { view.worker.final_tally() } else { view.worker.tally() },
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
        Stage::Failed(_) | Stage::Invalid(_) => TrainingRunPhase::Failed,
        Stage::Suspended => TrainingRunPhase::Suspended,
        Stage::Running | Stage::Waiting(Waiting::LastReport(_)) => TrainingRunPhase::Running,
        Stage::Waiting(Waiting::Pod(_)) if view.worker.begun() => TrainingRunPhase::Running,
        Stage::Waiting(Waiting::Pod(_) | Waiting::References(_)) => TrainingRunPhase::Pending,
    }
}

/// A model is recorded as soon as it is reported, whatever becomes of the pod that reported it.
fn model(view: &View<'_>, stage: &Stage) -> Option<ModelStatus> {
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => Some(*model.clone()),
        Stage::Failed(_) | Stage::Invalid(_) => None,
        Stage::Suspended | Stage::Waiting(_) | Stage::Running => {
            view.model.as_ref().and_then(|model| model.as_ref().ok().cloned())
        }
    }
}

fn completed_at(view: &View<'_>, stage: &Stage) -> Option<Time> {
    let held = view.status.completed_at.clone();
    match stage {
        Stage::Done(_) => held,
        Stage::Succeeded(_) | Stage::Failed(_) => {
            held.or_else(|| Some(Time(view.worker.ended_at().unwrap_or(view.worker.now))))
        }
        Stage::Invalid(_) | Stage::Suspended | Stage::Waiting(_) | Stage::Running => None,
    }
}

fn conditions(view: &View<'_>, stage: &Stage) -> Vec<Condition> {
    use ConditionType::{ConfigResolved, Ready, Reconciling, Stalled, Trained};
    let generation = view.observed.object.metadata.generation;
    let mut conditions = Conditions::new(&view.status.conditions, generation, view.worker.now);
    match (stage, view.config_digest(stage)) {
        (Stage::Invalid(why), _) => conditions.set(ConfigResolved, false, Reason::InvalidConfiguration, why),
        (_, Some(digest)) => {
            conditions.set(ConfigResolved, true, Reason::Resolved, &format!("the configuration {digest} is valid"));
        }
        (_, None) => {}
    }
    let (reason, message) = told(view, stage);
    let done = matches!(stage, Stage::Done(_) | Stage::Succeeded(_));
    conditions.set(Ready, done, reason, &message);
    conditions.set(Trained, done, reason, &message);
    match stage {
        Stage::Waiting(_) | Stage::Running => conditions.set(Reconciling, true, reason, &message),
        Stage::Failed(_) | Stage::Invalid(_) => conditions.set(Stalled, true, reason, &message),
        Stage::Done(_) | Stage::Succeeded(_) | Stage::Suspended => {}
    }
    conditions.finish()
}

/// The stage in a word and a sentence. Nothing in it changes with every step.
fn told(view: &View<'_>, stage: &Stage) -> (Reason, String) {
    let before = view.worker.last_failure().map_or_else(String::new, |(_, told)| format!("; {told}"));
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => {
            (Reason::Succeeded, format!("the model {} lies in {}", model.short, model.location))
        }
        Stage::Failed(refusal) => (refusal.reason, refusal.message.clone()),
        Stage::Invalid(why) => (Reason::InvalidConfiguration, why.clone()),
        Stage::Suspended => (Reason::Suspended, "spec.suspend is true: set it to false to go on".to_owned()),
        Stage::Waiting(Waiting::References(missing)) => (Reason::NotFound, missing.join("; ")),
        Stage::Waiting(Waiting::Pod(None)) => (Reason::WaitingForPod, format!("{NO_OBSTACLE}{before}")),
        Stage::Waiting(Waiting::Pod(Some(obstacle))) => (Reason::WaitingForPod, format!("{obstacle}{before}")),
        Stage::Waiting(Waiting::LastReport(_)) => {
            (Reason::Running, "the trainer ended well; waiting for its last report".to_owned())
        }
        Stage::Running => (Reason::Running, format!("the trainer works{before}")),
    }
}
