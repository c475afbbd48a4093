//! The agreement of a canary with the present servers: who copies requests to it, whose copies it accepts, and what it compared. Pure.
//!
//! As with a shadow, both learn of each other from files in the ConfigMap that their pods mount anyway, so no present server is restarted.
//! Unlike a shadow, a canary answers clients, too.

use codex_crds::{
    Agreement, AgreementStatus, MAX_SHADOW_SOURCES, RolloutPhase, RolloutStatus, ShadowSource, TrafficStatus, child,
};
use codex_reports::{MirrorTarget, ShadowFile};
use k8s_openapi::api::apps::v1::Deployment;

use super::{
    canary::ALL,
    children::PORT,
    servers::{Servers, has_argument},
    view::View,
};
use crate::pod_template::CONFIG;

/// The argument of servers that answer clients and compare copies, too.
const COMPARE: &str = "--compare";
/// The key of the file with the keys whose copies a canary accepts.
const COMPARE_FILE: &str = "compare.json";

/// Returns what the spec asks of the agreement.
fn wanted<'a>(view: &View<'a>) -> Option<&'a Agreement> {
    view.spec().rollout.as_ref()?.analysis.agreement.as_ref()
}

/// Returns the argument of the servers of a canary.
pub(super) fn argument(view: &View<'_>) -> Option<(&'static str, String)> {
    wanted(view).map(|_| (COMPARE, format!("{CONFIG}/{COMPARE_FILE}")))
}

/// Whether the servers of a canary compare copies exactly if the spec says so.
pub(super) fn fits(view: &View<'_>, canary: &Deployment) -> bool {
    has_argument(canary, COMPARE) == wanted(view).is_some()
}

/// Returns the canary whose step has requests to copy: below 100, where present servers answer.
fn compares<'a>(view: &'a View<'_>) -> Option<(&'a Agreement, &'a RolloutStatus)> {
    let held = view.status.rollout.as_ref()?;
    let copies = held.phase == RolloutPhase::Running && held.step < ALL;
    // Copies of what is encrypted would not be. The API server refuses both; an object that was stored before may have both.
    wanted(view).filter(|_| copies && view.spec().serving.tls.is_none()).map(|wanted| (wanted, held))
}

/// Whether the present servers send copies to the canary.
pub(super) fn is_compared(view: &View<'_>) -> bool {
    compares(view).is_some()
}

/// Returns the recipient that copies are signed for. It names the object and the revision of its canary, so no other canary or shadow
/// accepts them.
fn recipient(view: &View<'_>, held: &RolloutStatus) -> String {
    format!("{}/canary-{}", view.owner.uid, held.revision)
}

/// Returns where the present servers send copies.
pub(super) fn target(view: &View<'_>) -> Option<MirrorTarget> {
    let (wanted, held) = compares(view)?;
    Some(MirrorTarget {
        uid: recipient(view, held),
        url: format!("http://{}.{}.svc:{PORT}", child::canary(&view.owner.name), view.owner.namespace),
        sample_percent: wanted.sample_percent.clamp(0, 100).unsigned_abs(),
    })
}

/// Returns the file with the keys whose copies the canary accepts: its name and contents. It is there without a canary, too, so that one
/// that another client writes is replaced.
pub(super) fn file(view: &View<'_>) -> Option<(String, String)> {
    wanted(view)?;
    let accepted = compares(view).map(|(_, held)| ShadowFile {
        uid: recipient(view, held),
        keys: sources(view).into_iter().map(|source| source.key).collect(),
    });
    // Texts are always JSON.
    let json = serde_json::to_string(&accepted.unwrap_or_default()).ok()?;
    Some((COMPARE_FILE.to_owned(), json))
}

/// Returns the present servers that have reported a key. The key of a pod that still exists stays when the controller, which keeps reports
/// in memory, has restarted.
pub(super) fn sources(view: &View<'_>) -> Vec<ShadowSource> {
    if wanted(view).is_none() {
        return Vec::new();
    }
    let held = view.status.rollout.as_ref().map(|held| held.sources.as_slice()).unwrap_or_default();
    let known = |(pod, key): (&str, Option<&str>)| {
        let held = || held.iter().find(|source| source.pod == pod).map(|source| source.key.clone());
        Some(ShadowSource { pod: pod.to_owned(), key: key.map(str::to_owned).or_else(held)? })
    };
    let mut found: Vec<_> = view.servers.iter().flat_map(Servers::copies_keys).filter_map(known).collect();
    found.sort();
    found.truncate(MAX_SHADOW_SOURCES);
    found
}

/// Returns what the servers of the canary have compared with the present model since they started; `None` without the criterion, and
/// until all of them have reported.
pub(super) fn compared(view: &View<'_>, canary: &Servers<'_>) -> Option<AgreementStatus> {
    wanted(view)?;
    let (model, _) = view.servers.as_ref()?.made_for()?;
    let found = canary.comparison(model)?;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (compared, agreed, skipped) = (number(found.compared), number(found.agreed), number(found.skipped));
    Some(AgreementStatus { compared, agreed, skipped })
}

/// Returns why no request was compared, if none can be.
pub(super) fn obstacle(view: &View<'_>, traffic: TrafficStatus) -> Option<String> {
    let none = traffic.agreement.is_none_or(|found| found.compared == 0);
    (none && is_compared(view) && sources(view).is_empty()).then(|| {
        "spec.rollout.analysis.agreement is not decided: no present server has reported the key with which it signs copies of requests"
            .to_owned()
    })
}
