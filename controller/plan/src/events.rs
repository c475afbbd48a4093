//! Events for the transitions between old and new conditions. Pure.

use codex_crds::{ConditionType, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    conditions::{NOTICE, find},
    obstruction::Obstruction,
    plan::{Event, EventType},
};

/// The conditions whose transitions cause Events. A reason causes one Event, for the first condition that has it.
const REPORTED: &[ConditionType] = &[
    ConditionType::StatusDiscarded,
    ConditionType::Revoked,
    ConditionType::ForeignPods,
    ConditionType::EndpointsWritten,
    ConditionType::CheckpointLost,
    ConditionType::ProgressStale,
    ConditionType::RunsMissed,
    ConditionType::RedeploysOnTime,
    ConditionType::KeyExpires,
    ConditionType::Stalled,
    // Other conditions have its reason while no server runs.
    ConditionType::Idle,
    ConditionType::Trained,
    ConditionType::GatesPassed,
    ConditionType::PolicyMet,
    ConditionType::SignedOff,
    ConditionType::Signed,
    ConditionType::Verified,
    ConditionType::RingMatched,
    ConditionType::ScalingActive,
    ConditionType::Canary,
    ConditionType::ParityHolding,
    ConditionType::ConfigResolved,
    ConditionType::Ready,
    // Until there is a verdict, it has the reason of Ready.
    ConditionType::Reproduced,
];

/// Returns the Events of the transition from `before` to `after`.
pub(crate) fn events(before: &[Condition], after: &[Condition], obstruction: Option<&Obstruction>) -> Vec<Event> {
    if obstruction.is_some() {
        return obstructed(before, after).into_iter().collect();
    }
    let mut events: Vec<Event> = Vec::new();
    for &kind in REPORTED {
        let Some(now) = find(after, kind) else { continue };
        let told = match find(before, kind) {
            Some(then) => then.status == now.status && then.reason == now.reason,
            // A configuration that is valid from the start is no news, unless there is something to notice.
            None if kind == ConditionType::ConfigResolved => !now.message.contains(NOTICE),
            // A new condition that is not true is no transition, except `Ready`, which says why the object is not ready.
            None => now.status != "True" && kind != ConditionType::Ready,
        };
        // The condition that blocks another one causes the Event.
        let told = told || now.reason == Reason::Blocked.name();
        if told || events.iter().any(|event| event.reason == now.reason || event.note == now.message) {
            continue;
        }
        events.push(Event {
            type_: if is_warning(kind, &now.reason) { EventType::Warning } else { EventType::Normal },
            reason: now.reason.clone(),
            action: kind.name().to_owned(),
            note: now.message.clone(),
        });
    }
    events
}

/// Returns the Event of an obstruction: once for each wording and generation.
fn obstructed(before: &[Condition], after: &[Condition]) -> Option<Event> {
    let said = |ready: &Condition| (ready.reason.clone(), ready.message.clone(), ready.observed_generation);
    let ready = find(after, ConditionType::Ready)?;
    let new = find(before, ConditionType::Ready).map(said) != Some(said(ready));
    new.then(|| Event {
        type_: EventType::Warning,
        reason: ready.reason.clone(),
        action: ConditionType::Stalled.name().to_owned(),
        note: ready.message.clone(),
    })
}

fn is_warning(kind: ConditionType, reason: &str) -> bool {
    const WARNINGS: &[Reason] = &[
        Reason::InvalidConfiguration,
        Reason::NotFound,
        Reason::Replaced,
        Reason::RetriesExhausted,
        Reason::DeadlineExceeded,
        Reason::DataMismatch,
        Reason::BaseMismatch,
        Reason::OOMKilled,
        Reason::PodFailed,
        Reason::BadInput,
        Reason::ModelMismatch,
        Reason::DigestsDiffer,
        Reason::Unreproducible,
        Reason::GateFailed,
        Reason::Inconclusive,
        Reason::ForeignEvaluation,
        Reason::SignerUnavailable,
        Reason::ForeignSignature,
        Reason::KeyNotTrusted,
        Reason::KeyExpires,
        Reason::VerificationFailed,
        Reason::GoldenTokensDiffer,
        Reason::NotSealed,
        Reason::Restored,
        Reason::Contradiction,
        Reason::PodChanged,
        Reason::ForeignPods,
        Reason::CheckpointLost,
        Reason::ScalingFailed,
        Reason::RolledBack,
        Reason::ParityLost,
        Reason::ProgressDeadlineExceeded,
        Reason::NodeLost,
        Reason::PolicyUnmet,
        Reason::Revoked,
        Reason::SignOffVoid,
        Reason::ReadUncounted,
        Reason::RunsMissed,
        Reason::CyclesMissed,
        Reason::CycleFailed,
        Reason::CycleBlocked,
    ];
    // A change of the ring reaches run and pod one after the other, so different rings are a step of a normal rollout.
    if reason == Reason::RingsDiffer.name() {
        return false;
    }
    kind == ConditionType::Stalled || WARNINGS.iter().any(|known| known.name() == reason)
}
