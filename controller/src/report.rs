//! Reporting: status by server-side apply, then Events. I/O.

use codex_crds::{ConditionType, Reason};
use codex_plan::{EventType, conditions, text::truncate_bytes};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType as RecordedType},
};
use serde_json::json;
use tracing::{debug, info, warn};

use crate::{
    STATUS_MANAGER,
    context::Context,
    drift::difference,
    error::{chain, client_category},
    observe::{Observe, caught_up},
};

/// Why the status was not written.
#[derive(Debug, thiserror::Error)]
#[error("the status cannot be written: {0}")]
pub struct ReportError(#[source] kube::Error);

impl ReportError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        client_category(&self.0)
    }
}

/// Writes the status where it differs from what `object` has. Says whether it was written.
///
/// # Errors
/// When the API server does not take it.
pub async fn status<K: Observe>(context: &Context, object: &K, status: &K::Status) -> Result<bool, ReportError> {
    if object.status() == Some(status) {
        return Ok(false);
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        let json = |status| serde_json::to_value(status).unwrap_or_default();
        if let Some(differs) = difference(&json(Some(status)), &json(object.status())) {
            debug!("the status changes: {differs}");
        }
    }
    let (namespace, name, uid) = (object.namespace().unwrap_or_default(), object.name_any(), object.uid());
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    // With the uid, the status of one object cannot land on another that took its name.
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "namespace": namespace, "uid": uid },
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    let written = api.patch_status(&name, &params, &Patch::Apply(&body)).await.map_err(ReportError)?;
    context.metrics.wrote(&K::kind(&()), "status");
    context.written.insert(uid.as_deref().unwrap_or_default(), context.now());
    caught_up(K::store(context), &written).await;
    Ok(true)
}

/// Tells what happened. An Event that is lost is no failure: the status says the same.
pub async fn events<K: Observe>(context: &Context, object: &K, events: &[codex_plan::Event]) {
    let reference = object.object_ref(&());
    for event in events {
        info!(reason = event.reason, "{}", event.note);
        let recorded = Event {
            type_: match event.type_ {
                EventType::Normal => RecordedType::Normal,
                EventType::Warning => RecordedType::Warning,
            },
            reason: event.reason.clone(),
            // An Event's note has at most 1,024 bytes.
            note: Some(truncate_bytes(&event.note, 1024)),
            action: event.action.clone(),
            secondary: None,
        };
        match context.recorder.publish(&recorded, &reference).await {
            Ok(()) => context.metrics.wrote("Event", "record"),
            Err(failure) => warn!(error = chain(&failure), "an Event was not recorded"),
        }
    }
}

/// Why an object stalls although its plan does not.
#[derive(Clone, Copy, Debug)]
pub struct Stall<'a> {
    /// In a word.
    pub reason: Reason,
    /// In a sentence.
    pub sentence: &'a str,
    /// The generation of the spec that was planned for.
    pub generation: Option<i64>,
}

/// The conditions of an object one of whose children cannot be what is planned.
pub fn stalled(planned: &[Condition], before: &[Condition], why: &Stall<'_>, now: Timestamp) -> Vec<Condition> {
    let set = |kind: ConditionType, holds: &str| {
        let found = conditions::find(before, kind).filter(|found| found.status == holds);
        Condition {
            type_: kind.name().to_owned(),
            status: holds.to_owned(),
            reason: why.reason.name().to_owned(),
            message: truncate_bytes(why.sentence, 2000),
            observed_generation: why.generation,
            last_transition_time: found.map_or(Time(now), |found| found.last_transition_time.clone()),
        }
    };
    let replaced = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];
    let others = planned.iter().filter(|condition| replaced.iter().all(|kind| kind.name() != condition.type_));
    let mut all = vec![set(ConditionType::Ready, "False"), set(ConditionType::Stalled, "True")];
    all.extend(others.cloned());
    all
}

#[cfg(test)]
mod tests {
    use codex_crds::{ConditionType, Reason};
    use codex_plan::conditions::{find, is_true};
    use jiff::Timestamp;

    use super::{Stall, stalled};

    #[test]
    fn whoever_is_in_the_way_is_named_and_the_time_stands_still() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let why = Stall { reason: Reason::NameTaken, sentence: "the Job a exists", generation: Some(1) };
        let first = stalled(&[], &[], &why, at(1));
        let second = stalled(&[], &first, &why, at(2));
        assert_eq!(first, second);
        assert!(is_true(&first, ConditionType::Stalled) && !is_true(&first, ConditionType::Ready));
        assert_eq!(find(&first, ConditionType::Ready).unwrap().reason, "NameTaken");
    }
}
