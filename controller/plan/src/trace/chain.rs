//! The spans of each kind. Pure.

use codex_crds::{
    ConditionType, EvaluationPhase, EvaluationStatus, ReasoningPodPhase, ReasoningPodStatus, RolloutResult,
    TrainingRunPhase, TrainingRunStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt};

use super::{Span, Trace, pods, span_id};
use crate::{
    conditions::find,
    evaluation::ObservedEvaluation,
    reasoning_pod::{ObservedReasoningPod, planned},
    seal::Sealable,
    training_run::ObservedTrainingRun,
};

/// Returns the spans of a run that end with the status `next`.
pub fn training_run(observed: &ObservedTrainingRun, next: &TrainingRunStatus) -> Vec<Span> {
    let object = &observed.object;
    let before = object.status.clone().unwrap_or_default();
    let (uid, created) = (object.uid().unwrap_or_default(), created(object));
    let mut trace = Trace::of_run(object);
    if before.work.started_at.is_none() {
        pods::waited(&mut trace, &uid, created, next.work.started_at.as_ref().map(|time| time.0));
    }
    if let (None, Some(created), Some(ended)) = (&before.completed_at, created, &next.completed_at) {
        let (root, parent) = (trace.root, trace.parent);
        let base = observed.base.as_ref().map(Trace::of_run);
        let span = trace.add(root, parent, "TrainingRun", created, ended.0);
        named(span, object).text("codex.training_run.name", object.name_any()).text("codex.training_run.uid", &*uid);
        span.text("codex.ring", object.spec.rollout_ring.to_string());
        span.text("codex.config.digest", next.config_digest.map(|it| it.to_string()).unwrap_or_default());
        span.text("codex.model.digest", next.model.as_ref().map(|it| it.digest.to_string()).unwrap_or_default());
        span.number("codex.attempts", next.work.attempts.map(i64::from)).number("codex.steps", next.steps_executed);
        span.link = base.map(|base| (base.id, base.root));
        span.failure = (next.phase == Some(TrainingRunPhase::Failed)).then(|| stalled(&next.conditions));
        pods::ended(&mut trace, &observed.pods, ("trainer pod", "train"));
    }
    trace.spans
}

/// Returns the spans of an evaluation that end with the status `next`. Each run of a repeated evaluation has its own.
pub fn evaluation(observed: &ObservedEvaluation, next: &EvaluationStatus) -> Vec<Span> {
    let object = &observed.object;
    let before = object.status.clone().unwrap_or_default();
    let uid = object.uid().unwrap_or_default();
    let mut trace = Trace::of(object, observed.run.as_ref());
    // A run of a repeated evaluation has a number and the time for which it was started.
    let turn =
        next.schedule.as_ref().and_then(|schedule| Some((schedule.runs, schedule.last_schedule_time.as_ref()?.0)));
    if let Some((number, _)) = turn {
        trace.root = span_id(&uid, &format!("run {number}"));
    }
    let since = turn.map(|(_, scheduled)| scheduled).or(created(object));
    let started = next.work.started_at.as_ref().map(|time| time.0);
    if before.work.started_at.as_ref().map(|time| time.0) != started {
        pods::waited(&mut trace, &uid, since, started);
    }
    if let (Some(since), Some(ended)) = (since, &next.completed_at)
        && before.completed_at.as_ref() != Some(ended)
    {
        let (root, parent) = (trace.root, trace.parent);
        let span = trace.add(root, parent, "Evaluation", since, ended.0);
        named(span, object).text("codex.evaluation.name", object.name_any()).text("codex.evaluation.uid", &*uid);
        span.number("codex.evaluation.run", turn.map(|(number, _)| number)).text("codex.preset", &*object.spec.preset);
        // A model that does not pass is no failure of the evaluation.
        span.text("codex.verdict", next.verdict.map(|it| format!("{it:?}")).unwrap_or_default());
        span.text("codex.gates_passed", next.gates_passed.clone().unwrap_or_default());
        span.text("codex.report.digest", next.report_digest.map(|it| it.to_string()).unwrap_or_default());
        span.text("codex.model.digest", next.model.as_ref().map(|it| it.digest.to_string()).unwrap_or_default());
        span.number("codex.attempts", next.work.attempts.map(i64::from));
        span.failure = (next.phase == Some(EvaluationPhase::Failed)).then(|| stalled(&next.conditions));
        pods::ended(&mut trace, &observed.pods, ("evaluator pod", "evaluate"));
    }
    trace.spans
}

/// Returns the spans of a ReasoningPod that end with the status `next`, which is written `now`.
pub fn reasoning_pod(observed: &ObservedReasoningPod, next: &ReasoningPodStatus, now: Timestamp) -> Vec<Span> {
    let before = observed.object.status.clone().unwrap_or_default();
    let observed = planned(observed, &before.clone().believed(&observed.seal));
    let object = &observed.object;
    let (uid, Some(created)) = (object.uid().unwrap_or_default(), created(object)) else { return Vec::new() };
    let mut trace = Trace::of(object, observed.run.as_ref());
    let parent = trace.parent;
    // When the last of what a promotion needs was there.
    let judged = observed.evaluations.values().filter_map(|it| Some(it.status.as_ref()?.completed_at.as_ref()?.0));
    let run = observed.run.as_ref().and_then(|run| Some(run.status.as_ref()?.completed_at.as_ref()?.0));
    let proven = judged.chain(run).chain([created]).max().unwrap_or(created);
    let promoted = |status: &ReasoningPodStatus| status.promotion.as_ref().map(|it| it.digest);
    if let Some(promotion) = next.promotion.as_ref().filter(|it| promoted(&before) != Some(it.digest)) {
        let id = span_id(&uid, &format!("promotion {}", promotion.digest));
        let span = trace.add(id, parent, "promotion", proven, now);
        named(span, object)
            .text("codex.reasoning_pod.name", object.name_any())
            .text("codex.ring", promotion.ring.to_string());
        span.text("codex.promotion.digest", promotion.digest.to_string())
            .text("codex.promotion.bundle", &*promotion.bundle);
        span.text("codex.model.digest", next.manifest.as_ref().map(|it| it.digest.to_string()).unwrap_or_default());
        let counted = next.sign_offs.iter().filter(|it| it.counts).count();
        span.number("codex.sign_offs", i64::try_from(counted).ok());
    }
    // A rollout with servers that stop while idle ends without one; what a request starts later is another one.
    let serves = |phase| matches!(phase, Some(ReasoningPodPhase::Serving | ReasoningPodPhase::Idle));
    if serves(next.phase) && !serves(before.phase) {
        let waiting = find(&before.conditions, ConditionType::Ready).filter(|ready| ready.status != "True");
        let since = waiting.map_or(created, |ready| ready.last_transition_time.0).max(proven);
        let span = trace.add(span_id(&uid, &format!("rollout {now}")), parent, "rollout", since, now);
        named(span, object).text("codex.reasoning_pod.name", object.name_any());
        span.text("codex.model.digest", next.manifest.as_ref().map(|it| it.digest.to_string()).unwrap_or_default());
        span.text("codex.verified_by", next.verified.as_ref().map(|it| it.by.clone()).unwrap_or_default());
        span.number("codex.replicas", next.ready_replicas.map(i64::from));
    }
    for ended in next.history.iter().filter(|it| !before.history.iter().any(|known| known.revision == it.revision)) {
        let id = span_id(&uid, &format!("canary {}", ended.revision));
        let span = trace.add(id, parent, "canary", ended.started.0, ended.ended.0);
        named(span, object)
            .text("codex.reasoning_pod.name", object.name_any())
            .number("codex.revision", Some(ended.revision));
        span.text("codex.model.digest", ended.digest.to_string()).text("codex.result", format!("{:?}", ended.result));
        span.failure = (ended.result == RolloutResult::RolledBack).then(|| ended.reason.clone());
    }
    trace.spans
}

fn created(object: &impl Resource) -> Option<Timestamp> {
    object.meta().creation_timestamp.as_ref().map(|time| time.0)
}

fn named<'a>(span: &'a mut Span, object: &impl Resource) -> &'a mut Span {
    span.text("k8s.namespace.name", object.meta().namespace.clone().unwrap_or_default())
}

/// Returns the sentence of the failure.
fn stalled(conditions: &[Condition]) -> String {
    find(conditions, ConditionType::Stalled).map(|stalled| stalled.message.clone()).unwrap_or_default()
}
