//! What ReasoningPods observe of each other: a shadow of the one that it shadows, and that one of its shadows. From the caches.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::ReasoningPod;
use codex_plan::reasoning_pod::{Incumbent, Mirrored};
use codex_reports::State;
use kube::ResourceExt;

use super::{cache::Name, kind::Observe, stores::get};
use crate::{context::Context, ownership::controller};

/// The length of a public key in hexadecimal digits.
const KEY: usize = 64;

/// Returns the ReasoningPod that a shadow shadows.
pub(super) fn incumbent(context: &Context, pod: &ReasoningPod) -> Option<Incumbent> {
    let of = &pod.spec.shadow.as_ref()?.of;
    let namespace = pod.namespace().unwrap_or_default();
    let found = get(&context.stores.reasoning_pods, &namespace, of)?;
    let uid = found.uid().unwrap_or_default();
    // A forged label adds a uid, for which there is no report.
    let labelled = context.stores.pods.naming(&namespace, &Name::ReasoningPod(found.name_any()));
    let servers = labelled.iter().filter(|pod| controller(&***pod).is_some_and(|owner| owner.kind == "ReplicaSet"));
    let pods: BTreeSet<String> = servers.filter_map(|pod| pod.uid()).collect();
    let key = |state: &State| match state {
        State::Serving(state) => state.copies_key.clone(),
        State::Training(_) | State::Evaluation(_) => None,
    };
    let keys: BTreeMap<String, String> = context
        .inbox
        .of(&uid)
        .into_iter()
        .filter_map(|received| Some((received.report.pod_uid.clone(), key(&received.report.state)?)))
        .filter(|(_, key)| key.len() == KEY && key.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .collect();
    let shadow_of = found.spec.shadow.as_ref().map(|shadow| shadow.of.clone());
    let believed = std::sync::Arc::unwrap_or_clone(found).believed(context);
    let model = believed.status.and_then(|status| Some(status.verified?.digest));
    Some(Incumbent { model, shadow_of, pods, keys })
}

/// Returns the shadows of a ReasoningPod. A shadow has none: it answers no requests.
pub(super) fn shadows(context: &Context, pod: &ReasoningPod) -> Vec<Mirrored> {
    if pod.spec.shadow.is_some() {
        return Vec::new();
    }
    let namespace = pod.namespace().unwrap_or_default();
    let all = context.stores.reasoning_pods.naming(&namespace, &Name::ReasoningPod(pod.name_any()));
    let all = all.into_iter().filter(|other| !other.spec.dry_run && other.metadata.deletion_timestamp.is_none());
    let mirrored = |other: &ReasoningPod| {
        let sample_percent = other.spec.shadow.as_ref()?.sample_percent;
        Some(Mirrored { name: other.name_any(), uid: other.uid()?, sample_percent })
    };
    let mut shadows: Vec<_> = all.filter_map(|other| mirrored(&other)).collect();
    shadows.sort();
    shadows
}
