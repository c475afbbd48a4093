//! Reporting: writes the status by server-side apply and records Events. I/O.

use std::borrow::Cow;

use kube::{
    ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
    core::Request,
};
use serde::{Deserialize, Serialize};
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

/// What is sent to write a status.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a, S> {
    api_version: Cow<'a, str>,
    kind: Cow<'a, str>,
    metadata: BodyMetadata<'a>,
    status: &'a S,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BodyMetadata<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: Option<&'a str>,
    resource_version: Option<&'a str>,
}

/// What is read of the answer.
#[derive(Deserialize)]
struct Written {
    metadata: ObjectMeta,
}

/// Writes the status of a plan, if it differs from the status of `object`. Returns the resource version that has it.
///
/// # Errors
/// When the API server refuses the status, for example because the object has changed since it was observed.
pub async fn status<K: Observe>(
    context: &Context,
    object: &K,
    status: &K::Status,
) -> Result<Option<String>, ReportError> {
    if object.status() == Some(status) {
        return Ok(None);
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        let json = |status| serde_json::to_value(status).unwrap_or_default();
        if let Some(differs) = difference(&json(Some(status)), &json(object.status())) {
            debug!("status changed: {differs}");
        }
    }
    let (namespace, name, uid) = (object.namespace().unwrap_or_default(), object.name_any(), object.uid());
    // The uid keeps the status from being written to a new object of the same name, and the version keeps what a late cache shows from
    // replacing what was recorded since.
    let body = Body {
        api_version: K::api_version(&()),
        kind: K::kind(&()),
        metadata: BodyMetadata {
            name: &name,
            namespace: &namespace,
            uid: uid.as_deref(),
            resource_version: object.meta().resource_version.as_deref(),
        },
        status,
    };
    let params = PatchParams::apply(STATUS_MANAGER).force();
    let request = Request::new(K::url_path(&(), Some(&namespace)))
        .patch_subresource("status", &name, &params, &Patch::Apply(&body))
        .map_err(|source| ReportError(kube::Error::BuildRequest(source)))?;
    let Written { metadata } = context.client.request(request).await.map_err(ReportError)?;
    context.metrics.wrote(&K::kind(&()), "status");
    context.written.insert(uid.as_deref().unwrap_or_default(), context.now());
    caught_up(K::store(context), &metadata).await;
    Ok(metadata.resource_version)
}

/// Records Events. A lost Event is not an error: the status carries the same message.
pub async fn events<K: Observe>(context: &Context, object: &K, events: &[codex_plan::Event]) {
    let reference = object.object_ref(&());
    for event in events {
        info!(reason = event.reason, "{}", event.note);
        match context.recorder.record(event, &reference, context.now()).await {
            Ok(()) => context.metrics.wrote("Event", "record"),
            Err(failure) => warn!(error = chain(&failure), "failed to record an Event"),
        }
    }
}
