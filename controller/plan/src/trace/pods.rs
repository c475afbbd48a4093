//! Spans of the pods of a Job. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{Trace, span_id};
use crate::pods::Facts;

/// Adds a span for each pod that ended, from its creation to its end, and within it one for its container.
pub(super) fn ended(trace: &mut Trace, pods: &[Pod], names: (&'static str, &'static str)) {
    let root = trace.root;
    for facts in Facts::of(pods) {
        let (Some(created), Some(end)) = (facts.pod.creation_timestamp(), facts.terminated()) else { continue };
        let Some(finished) = end.finished_at.as_ref().map(|time| time.0) else { continue };
        let pod = span_id(facts.uid(), "pod");
        // A pod that was interrupted exits with a code of its own and is no failure.
        let failed = !matches!(end.exit_code, codex_reports::exit::FINISHED | codex_reports::exit::INTERRUPTED);
        let failure = failed.then(|| format!("exit code {}", end.exit_code));
        let span = trace.add(pod, Some(root), names.0, created.0, finished);
        span.text("k8s.pod.name", facts.name()).text("k8s.pod.uid", facts.uid());
        span.text("k8s.node.name", facts.node().unwrap_or_default());
        span.text("container.image.id", facts.image_id().unwrap_or_default());
        span.failure.clone_from(&failure);
        if let Some(started) = end.started_at.as_ref().map(|time| time.0) {
            let span = trace.add(span_id(facts.uid(), "container"), Some(pod), names.1, started, finished);
            span.number("codex.exit_code", Some(i64::from(end.exit_code)));
            span.failure = failure;
        }
    }
}

/// Adds the span in which an object waited for its first pod to start.
pub(super) fn waited(trace: &mut Trace, uid: &str, since: Option<Timestamp>, started: Option<Timestamp>) {
    if let (Some(since), Some(started)) = (since, started) {
        let root = trace.root;
        trace.add(span_id(uid, &format!("waiting {since}")), Some(root), "wait for a pod", since, started);
    }
}
