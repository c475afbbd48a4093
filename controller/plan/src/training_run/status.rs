//! The status of a TrainingRun. Transitions are written at once, numbers at most every ten seconds. Pure.

use std::time::Duration;

use codex_crds::{
    AdoptionStatus, CheckpointStatus, ConditionType, CurriculumPhaseState, CurriculumPhaseStatus, CurriculumStatus,
    MAX_CURRICULUM_PHASES, ModelStatus, ProgressStatus, Reason, ReproductionStatus, TrainingRunPhase,
    TrainingRunStatus,
};
use codex_provenance::ConfigDigest;
use codex_reports::{Curriculum, PhaseStatus, Progress as Numbers};
use codex_verdict::Decimal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{adoption, outcome::Outcome, stage::Stage, verdict, view::View};
use crate::{
    conditions::{Conditions, phase_since},
    numbers::{count, decimal},
    pod_template::join,
    seal::{self, StatusSeal},
    throttle,
    work::{Active, stale_condition},
};

/// Returns the status, and when to plan again.
pub(crate) fn status(view: &View<'_>, outcome: &Outcome, stage: &Stage) -> (TrainingRunStatus, Option<Duration>) {
    let observed = view.observed;
    let phase = phase(view, stage);
    let recorded = (view.status.phase, view.status.last_phase_transition_time.as_ref());
    let mut next = TrainingRunStatus {
        observed_generation: observed.object.metadata.generation,
        phase: Some(phase),
        last_phase_transition_time: phase_since(recorded, phase, view.work.now()),
        base: view.base_status(),
        model: model(outcome, stage),
        attested: attested(view, outcome, stage),
        config_digest: config_digest(view, stage),
        computation: view.computation(),
        device: view.device(),
        reproduction: reproduction(view, stage),
        adoption: adoption::status(view),
        completed_at: completed_at(view, stage),
        conditions: conditions(view, stage),
        seal: view.status.seal.clone(),
        ..numbers(view, stage)
    };
    let again = match stage {
        Stage::Active(active) => active.requeue(&view.work),
        Stage::Done(_) | Stage::Succeeded(_) | Stage::Failed(_) | Stage::Unreproducible(_) => view.work.expiry_due(),
        Stage::Invalid(_) | Stage::Waiting { .. } | Stage::Discarded(_) => None,
    };
    let present = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    throttle::hold_attempts(present, &mut next, &view.status.work, |status| &mut status.work);
    let written = observed.status_written_at;
    throttle::hold(present, next, written, view.work.now(), again, with_numbers_of)
}

/// Returns `next` with the numbers of `present`.
fn with_numbers_of(next: &TrainingRunStatus, present: &TrainingRunStatus) -> TrainingRunStatus {
    TrainingRunStatus {
        observed_generation: next.observed_generation,
        phase: next.phase,
        last_phase_transition_time: next.last_phase_transition_time.clone(),
        base: next.base.clone(),
        model: next.model.clone(),
        attested: next.attested,
        config_digest: next.config_digest,
        computation: next.computation.clone(),
        device: next.device.clone(),
        reproduction: next.reproduction.clone(),
        adoption: next.adoption.clone(),
        completed_at: next.completed_at.clone(),
        lost_checkpoint: next.lost_checkpoint.clone(),
        curriculum: curriculum_with_numbers_of(next.curriculum.as_ref(), present.curriculum.as_ref()),
        conditions: next.conditions.clone(),
        seal: next.seal.clone(),
        ..present.clone()
    }
}

/// Returns the progress of a curriculum with the numbers of `present`: steps, and values in the reason. A phase that begins or waits
/// is no number.
fn curriculum_with_numbers_of(
    next: Option<&CurriculumStatus>,
    present: Option<&CurriculumStatus>,
) -> Option<CurriculumStatus> {
    let same = |next: &CurriculumStatus, present: &CurriculumStatus| {
        next.phases == present.phases
            && next.phase == present.phase
            && next.reason.is_some() == present.reason.is_some()
    };
    match (next, present) {
        (Some(next), Some(present)) if same(next, present) => Some(present.clone()),
        (next, _) => next.cloned(),
    }
}

/// Returns the numbers of the newest reports, pods and Job, over those that the status records already.
fn numbers(view: &View<'_>, stage: &Stage) -> TrainingRunStatus {
    let held = &view.status;
    if matches!(stage, Stage::Done(_)) {
        return held.clone();
    }
    let newest = view.states().next();
    let state = newest.map(|(_, state)| state);
    let checkpoint = state.and_then(|state| state.last_checkpoint.as_ref());
    let lost = view.lost_checkpoint();
    let newly_lost = lost != held.lost_checkpoint;
    let (before, executed) = match (&lost, newest) {
        // An emptied volume counts from 1 again.
        (Some(lost), Some((report, state))) => {
            let current = view.work.worker.is_current(&report.pod_uid);
            let more = if current { count(state.steps_executed) } else { 0 };
            let attempt = if current { i32::try_from(report.attempt).unwrap_or(i32::MAX) } else { 0 };
            (lost.attempts.saturating_add(attempt), Some(lost.steps_executed.saturating_add(more)))
        }
        _ => (0, view.states().map(|(_, state)| count(state.steps_executed)).max()),
    };
    let settled = matches!(stage, Stage::Succeeded(_) | Stage::Failed(_) | Stage::Unreproducible(_));
    let mut work = view.work.status(settled);
    work.attempts = work.attempts.map(|attempts| attempts.max(before));
    let reported = newest.and_then(|(report, state)| Some((report, state.progress.as_ref()?)));
    let reported = reported.map(|(report, numbers)| {
        let at = view.reported_at(report, count(numbers.step)).map(Time);
        ProgressStatus { reported_at: at, ..progress(numbers) }
    });
    TrainingRunStatus {
        progress: reported.or_else(|| held.progress.clone()).map(|progress| with_speed(progress, view, stage)),
        curriculum: state
            .and_then(|state| state.curriculum.as_ref())
            .map(|reported| curriculum(reported, held.curriculum.as_ref()))
            .or_else(|| held.curriculum.clone()),
        last_checkpoint: checkpoint
            .map(|checkpoint| CheckpointStatus { step: count(checkpoint.step), digest: checkpoint.digest })
            .or_else(|| held.last_checkpoint.clone().filter(|_| !newly_lost)),
        lost_checkpoint: lost,
        data_digests: view.work.data_digests(state.map(|state| state.data.as_slice()), &held.data_digests),
        steps_executed: executed.filter(|steps| *steps > 0).max(held.steps_executed),
        work,
        ..TrainingRunStatus::default()
    }
}

/// Returns `progress` without its speed if no step is being trained: the speed describes the past.
fn with_speed(progress: ProgressStatus, view: &View<'_>, stage: &Stage) -> ProgressStatus {
    let moves = match stage {
        Stage::Done(_) | Stage::Succeeded(_) => true,
        Stage::Active(Active::Running | Active::FinalReport(_)) => view.work.stale().is_none(),
        Stage::Failed(_)
        | Stage::Unreproducible(_)
        | Stage::Invalid(_)
        | Stage::Waiting { .. }
        | Stage::Discarded(_)
        | Stage::Active(_) => false,
    };
    if moves { progress } else { ProgressStatus { tokens_per_second: None, eta_seconds: None, ..progress } }
}

fn progress(numbers: &Numbers) -> ProgressStatus {
    let rounded = |number: f64| (number.is_finite() && number >= 0.0).then(|| number.round() as i64);
    ProgressStatus {
        step: count(numbers.step),
        total_steps: count(numbers.total_steps),
        steps: format!("{}/{}", numbers.step, numbers.total_steps),
        reported_at: None,
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

/// Returns the progress of a curriculum. What a pod sends is cut to what the status may hold; a report that was shortened to fit has
/// no list of phases, so that of the status stays.
fn curriculum(reported: &Curriculum, held: Option<&CurriculumStatus>) -> CurriculumStatus {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    let state = |status: PhaseStatus| match status {
        PhaseStatus::Pending => CurriculumPhaseState::Pending,
        PhaseStatus::Active => CurriculumPhaseState::Active,
        PhaseStatus::Completed => CurriculumPhaseState::Completed,
        PhaseStatus::Failed => CurriculumPhaseState::Failed,
        PhaseStatus::Skipped => CurriculumPhaseState::Skipped,
    };
    let phases = reported.phases.iter().take(MAX_CURRICULUM_PHASES).map(|phase| CurriculumPhaseStatus {
        id: cut(&phase.id, 63),
        status: state(phase.status),
        first_step: phase.first_step.map(count),
    });
    let held = held.map(|held| held.phases.clone()).filter(|_| reported.phases.is_empty());
    CurriculumStatus {
        phase: cut(&reported.phase, 63),
        index: i64::from(reported.index),
        of: i64::from(reported.of),
        steps: format!("{}/{}", reported.steps_done, reported.steps),
        reason: reported.reason.as_deref().map(|reason| cut(reason, 1024)),
        phases: held.unwrap_or_else(|| phases.collect()),
    }
}

fn phase(view: &View<'_>, stage: &Stage) -> TrainingRunPhase {
    match stage {
        Stage::Done(_) | Stage::Succeeded(_) => TrainingRunPhase::Succeeded,
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) => TrainingRunPhase::Failed,
        Stage::Unreproducible(_) => TrainingRunPhase::Unreproducible,
        _ if view.obstruction.is_some_and(|obstruction| !obstruction.waits) => TrainingRunPhase::Stalled,
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => TrainingRunPhase::Stalled,
        Stage::Waiting { .. } => TrainingRunPhase::Pending,
        Stage::Active(active) => match active {
            Active::Suspended => TrainingRunPhase::Suspended,
            Active::Running | Active::FinalReport(_) => TrainingRunPhase::Running,
            Active::Pending(_) | Active::LostReferences(_) if view.work.worker.has_started() => {
                TrainingRunPhase::Running
            }
            Active::Queued(_) | Active::Pending(_) | Active::LostReferences(_) | Active::MissingReferences(_) => {
                TrainingRunPhase::Pending
            }
        },
    }
}

/// Returns the model to record. It is recorded as soon as it is reported, however the pod ends that reported it.
fn model(outcome: &Outcome, stage: &Stage) -> Option<ModelStatus> {
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => Some(*model.clone()),
        Stage::Failed(_) | Stage::Unreproducible(_) | Stage::Invalid(_) | Stage::Discarded(_) => None,
        Stage::Waiting { .. } | Stage::Active(_) => outcome.model.clone(),
    }
}

/// Returns what the run reproduces, as it is recorded, or as the other run records it once nothing but the Job is missing.
fn reproduction(view: &View<'_>, stage: &Stage) -> Option<ReproductionStatus> {
    let reproduction = view.reproduction.as_ref()?;
    let (model, why) = match stage {
        Stage::Invalid(_) | Stage::Waiting { .. } | Stage::Discarded(_) => return view.status.reproduction.clone(),
        Stage::Unreproducible(why) => (None, Some(why.as_str())),
        Stage::Done(model) | Stage::Succeeded(model) => (Some(&**model), None),
        Stage::Failed(_) | Stage::Active(_) => (None, None),
    };
    reproduction.status(view.observed, model, why, verdict::signed(view, stage))
}

/// Returns whether the word of the trainer that reported the model is attested: as it was when the model was recorded, or as it
/// is now. `None` if it is not, or if the word of the trainer that computed an adopted model is not.
fn attested(view: &View<'_>, outcome: &Outcome, stage: &Stage) -> Option<bool> {
    model(outcome, stage)?;
    let recorded = view.status.attested.filter(|_| view.status.model.is_some());
    let computed = || !view.has_adopted() || view.former.as_ref().is_some_and(|former| former.attested);
    recorded.or_else(|| (!matches!(stage, Stage::Done(_)) && view.is_attested() && computed()).then_some(true))
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
        Stage::Succeeded(_) | Stage::Failed(_) | Stage::Unreproducible(_) => Some(view.work.completed_at(recorded)),
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
    // As an Evaluation with a failed verdict is ready, so is a run that found out that it cannot reproduce another one.
    conditions.set(Ready, done || matches!(stage, Stage::Unreproducible(_)), reason, &message);
    conditions.set(Trained, done, reason, &message);
    verdict::conditions(view, stage, (reason, &message), &mut conditions);
    match stage {
        Stage::Failed(_) | Stage::Invalid(_) | Stage::Discarded(_) => conditions.set(Stalled, true, reason, &message),
        Stage::Waiting { waiting, .. } if waiting.is_stalled() => conditions.set(Stalled, true, reason, &message),
        Stage::Done(_) | Stage::Succeeded(_) | Stage::Unreproducible(_) | Stage::Active(Active::Suspended) => {}
        Stage::Waiting { .. } | Stage::Active(_) => conditions.set(Reconciling, true, reason, &message),
    }
    if let Stage::Active(active) = stage {
        stale_condition(&mut conditions, active, &view.work);
    }
    if let Some(lost) = lost(view, stage) {
        conditions.set(ConditionType::CheckpointLost, true, Reason::CheckpointLost, &lost);
    }
    let settled = done || matches!(stage, Stage::Failed(_) | Stage::Unreproducible(_));
    seal::condition(&mut conditions, &view.observed.seal, settled);
    if let Some(obstruction) = view.obstruction {
        conditions.obstruct(obstruction, matches!(stage, Stage::Failed(_)));
    }
    conditions.finish()
}

/// Returns a sentence about a lost checkpoint, until its step is reached again.
fn lost(view: &View<'_>, stage: &Stage) -> Option<String> {
    let lost = view.lost_checkpoint().filter(|_| matches!(stage, Stage::Active(_)))?;
    let reached = view.states().find_map(|(_, state)| Some(count(state.progress.as_ref()?.step)));
    let reached = reached.or(view.status.progress.as_ref().map(|progress| progress.step)).unwrap_or(0);
    let output = &view.spec().output.persistent_volume_claim;
    let folder = join(&[&output.claim_name, &output.sub_path, &view.work.worker.owner.uid, "checkpoints"]);
    let began = match lost.resumed_from {
        0 => "training started over".to_owned(),
        step => format!("training resumed from step {step}"),
    };
    // A loss that was found now is one whatever an older report had reached.
    let found = view.status.lost_checkpoint.as_ref() != Some(&lost);
    (found || reached < lost.step).then(|| {
        format!(
            "the checkpoint of step {} is no longer in {folder}, or is damaged, so {began} and repeats the steps up to {}: if \
             the claim was replaced or emptied by mistake, set spec.suspend to true, restore the files and set it to false",
            lost.step, lost.step
        )
    })
}

/// Returns the reason and the message of the stage. The message must not change with every step.
fn message(view: &View<'_>, stage: &Stage) -> (Reason, String) {
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => {
            let stored = format!("the model {} is stored in {}", model.short, model.location);
            match adoption::status(view).filter(AdoptionStatus::is_done) {
                Some(AdoptionStatus { run, uid, .. }) => {
                    let why = "whose signed provenance states the inputs of this run";
                    (
                        Reason::Adopted,
                        format!("{stored}; it was adopted from the former TrainingRun {run} (uid {uid}), {why}"),
                    )
                }
                None => (Reason::Succeeded, stored),
            }
        }
        Stage::Failed(failure) | Stage::Discarded(failure) => (failure.reason, failure.message.clone()),
        Stage::Unreproducible(why) => (Reason::Unreproducible, why.clone()),
        Stage::Invalid(why) => (Reason::InvalidConfiguration, why.clone()),
        Stage::Waiting { field, run, waiting } => waiting.message(field, run),
        Stage::Active(active) => active.message(&view.work),
    }
}
