//! Reporting: writes the status by server-side apply and records Events. I/O.

use codex_plan::{EventType, text::truncate_bytes};
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

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the status cannot be written: {0}")]
pub struct ReportError(#[source] kube::Error);

impl ReportError {
    /// Returns the metric label of the error.
    pub fn category(&self) -> &'static str {
        client_category(&self.0)
    }
}

/// Writes the status of a plan, if it differs from the status of `object`.
///
/// # Errors
/// When the API server refuses the status.
pub async fn status<K: Observe>(context: &Context, object: &K, status: &K::Status) -> Result<(), ReportError> {
    if object.status() == Some(status) {
        return Ok(());
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        let json = |status| serde_json::to_value(status).unwrap_or_default();
        if let Some(differs) = difference(&json(Some(status)), &json(object.status())) {
            debug!("status changed: {differs}");
        }
    }
    let (namespace, name, uid) = (object.namespace().unwrap_or_default(), object.name_any(), object.uid());
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    // The uid keeps the status from being written to a new object of the same name.
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
    Ok(())
}

/// Records Events. A lost Event is not an error: the status carries the same message.
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
            Err(failure) => warn!(error = chain(&failure), "failed to record an Event"),
        }
    }
}
