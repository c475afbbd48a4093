//! Shadows: whose requests they get, whose copies they accept, and what the comparison proves. Pure.
//!
//! The incumbent learns of its shadows, and a shadow of the incumbent's keys, from a file in the ConfigMap that their pods mount
//! anyway. So neither is restarted when the other comes or goes.

use codex_crds::{
    ConditionType, DifferenceStatus, MAX_SHADOW_SOURCES, Parity, Reason, Shadow, ShadowSource, ShadowStatus,
};
use codex_provenance::ModelDigest;
use codex_reports::{Comparison, MirrorFile, MirrorTarget, ShadowFile, percentile_95};
use codex_verdict::{Rounding, Sample, bounds, needed_for_share, policy::PARITY_CONFIDENCE};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt as _;

use super::{
    agreement,
    children::PORT,
    evidence::{About, Block},
    observed::{Mirrored, ObservedReasoningPod},
    servers::{Servers, has_argument},
    stage::Stage,
    view::View,
};
use crate::{
    conditions::{Conditions, Truth, find},
    pod_template::CONFIG,
};

/// The confidence of the one-sided bounds that decide parity.
const CONFIDENCE: f64 = PARITY_CONFIDENCE;
/// The 95th percentile of latency, in seconds, that a shadow should not exceed. It is an edge of the histogram.
const TARGET: f64 = 0.7;
/// The argument of servers that names the file with their shadows.
const MIRROR: &str = "--mirror";
/// The argument that makes a server a shadow.
const SHADOW: &str = "--shadow";
/// The key of the file with the shadows of a server.
const MIRROR_FILE: &str = "mirror.json";
/// The key of the file with the keys whose copies a shadow accepts.
const SHADOW_FILE: &str = "shadow.json";

/// Returns the argument of servers that send copies, or of those that compare them.
pub(super) fn argument(view: &View<'_>) -> (&'static str, String) {
    match &view.spec().shadow {
        Some(_) => (SHADOW, format!("{CONFIG}/{SHADOW_FILE}")),
        None => (MIRROR, format!("{CONFIG}/{MIRROR_FILE}")),
    }
}

/// Whether the servers of a Deployment are shadows exactly if the spec says so. Others must not answer clients, or must.
pub(super) fn fits(view: &View<'_>, live: &Deployment) -> bool {
    has_argument(live, SHADOW) == view.spec().shadow.is_some()
}

/// Returns the file about shadows that the pods mount: its name and contents. It is there without shadows, too, so that one that
/// another client writes is replaced.
pub(super) fn file(view: &View<'_>) -> Option<(String, String)> {
    let (name, json) = if let Some(spec) = &view.spec().shadow {
        let keys = sources(view, spec).into_iter().map(|source| source.key).collect();
        (SHADOW_FILE, serde_json::to_string(&ShadowFile { uid: view.owner.uid.clone(), keys }))
    } else {
        let target = |shadow: &Mirrored| MirrorTarget {
            uid: shadow.uid.clone(),
            url: format!("http://{}.{}.svc:{PORT}", shadow.name, view.owner.namespace),
            sample_percent: shadow.sample_percent.clamp(0, 100).unsigned_abs(),
        };
        // Copies of what is encrypted would not be.
        let shadows = view.observed.shadows.iter().filter(|_| view.spec().serving.tls.is_none()).map(target);
        // A canary that is compared gets copies, too.
        let shadows = shadows.chain(agreement::target(view)).collect();
        (MIRROR_FILE, serde_json::to_string(&MirrorFile { shadows }))
    };
    // Texts and numbers are always JSON.
    json.ok().map(|json| (name.to_owned(), json))
}

/// Returns why the object cannot be a shadow of what its spec names.
pub(super) fn block(observed: &ObservedReasoningPod) -> Option<Block> {
    let spec = observed.object.spec.shadow.as_ref()?;
    let (name, of) = (observed.object.name_any(), &spec.of);
    let stalls = |sentence: String| Some(Block::stalls(About::Shadow, Reason::InvalidConfiguration, sentence));
    // The API server refuses this; an object that was stored before may say it.
    if *of == name {
        return stalls(format!(
            "spec.shadow.of is {of}, this ReasoningPod itself: name another one, whose requests are copied"
        ));
    }
    if observed.object.spec.autoscaling.is_some() || observed.object.spec.rollout.is_some() {
        return stalls(
            "spec.shadow excludes spec.autoscaling and spec.rollout: remove them, or remove spec.shadow".to_owned(),
        );
    }
    let Some(incumbent) = &observed.incumbent else {
        let sentence = format!(
            "spec.shadow.of is {of}, and no ReasoningPod of this name exists in this namespace: create it, or name another one"
        );
        return Some(Block::waits(About::Shadow, Reason::NotFound, sentence));
    };
    if incumbent.tls {
        return stalls(format!(
            "spec.shadow.of is {of}, whose spec.serving.tls encrypts requests, and copies of requests are not encrypted: remove \
             spec.serving.tls there and end TLS at a gateway or a service mesh, or delete this shadow"
        ));
    }
    let other = incumbent.shadow_of.as_ref()?;
    stalls(format!(
        "spec.shadow.of is {of}, which is itself a shadow of {other} and answers no requests: name {other}, or a ReasoningPod \
         without spec.shadow"
    ))
}

/// Returns the servers whose copies are accepted: those of the incumbent that have reported a key. The key of a pod that still exists
/// stays when the controller, which keeps reports in memory, has restarted.
fn sources(view: &View<'_>, spec: &Shadow) -> Vec<ShadowSource> {
    let Some(incumbent) = &view.observed.incumbent else { return Vec::new() };
    let held = view.status.shadow.as_ref().filter(|held| held.of == spec.of);
    let known = |pod: &String| {
        let held = || held?.sources.iter().find(|source| source.pod == *pod).map(|source| source.key.clone());
        let key = incumbent.keys.get(pod).cloned().or_else(held)?;
        Some(ShadowSource { pod: pod.clone(), key })
    };
    incumbent.pods.iter().filter_map(known).take(MAX_SHADOW_SOURCES).collect()
}

/// Returns the status of the comparison. Without `spec.shadow`, what a former shadow proved stays until its servers are replaced.
pub(super) fn status(view: &View<'_>, rolls: bool) -> Option<ShadowStatus> {
    let Some(spec) = &view.spec().shadow else { return view.status.shadow.clone().filter(|_| !rolls) };
    let of_digest = view.observed.incumbent.as_ref().and_then(|incumbent| incumbent.model);
    let digest = view.servers.as_ref().and_then(Servers::made_for).map(|(model, _)| model);
    let held = view.status.shadow.clone().filter(|held| {
        // What serves may be unknown for a while; another model begins anew.
        let same = |held: Option<ModelDigest>, now: Option<ModelDigest>| now.is_none() || held == now;
        held.of == spec.of && same(held.of_digest, of_digest) && same(held.digest, digest)
    });
    let mut next = held.unwrap_or_default();
    if next.max_divergence != spec.max_divergence {
        next.parity = None;
    }
    next.of.clone_from(&spec.of);
    next.max_divergence.clone_from(&spec.max_divergence);
    next.of_digest = of_digest.or(next.of_digest);
    next.digest = digest.or(next.digest);
    next.sources = sources(view, spec);
    let compared = view.servers.as_ref().zip(next.of_digest).and_then(|(servers, model)| servers.comparison(model));
    if let Some(compared) = compared {
        count(&mut next, &compared);
    }
    next.parity = match judge(spec, next.compared, next.agreed) {
        Judged::Holds => Some(Parity::Holds),
        Judged::Lost => Some(Parity::Lost),
        Judged::Undecided(_) => next.parity,
    };
    Some(next)
}

fn count(status: &mut ShadowStatus, compared: &Comparison) {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let p95 = |buckets: &[u64]| percentile_95(compared.compared, buckets);
    let milliseconds = |seconds: f64| (seconds * 1_000.0).round() as i64;
    let own = p95(&compared.latency);
    status.compared = number(compared.compared);
    status.agreed = number(compared.agreed);
    status.identical = number(compared.identical);
    status.skipped = number(compared.skipped);
    status.p95_milliseconds = own.map(milliseconds);
    status.of_p95_milliseconds = p95(&compared.other_latency).map(milliseconds);
    status.within_target = (compared.compared > 0).then(|| own.is_some_and(|seconds| seconds <= TARGET));
    status.first_difference = compared.first_difference.map(|difference| DifferenceStatus {
        token: number(difference.token),
        log_probability_gap: difference.gap_thousandths.map(|gap| format!("{}.{:03}", gap / 1_000, gap % 1_000)),
    });
}

/// What a comparison proves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Judged {
    /// The upper bound of the share that differs is at most the limit.
    Holds,
    /// The lower bound is above the limit.
    Lost,
    /// Neither. So many more requests would decide it, if they were like those that were compared.
    Undecided(Option<i64>),
}

/// Judges by the exact bounds of a share (Clopper and Pearson).
fn judge(spec: &Shadow, compared: i64, agreed: i64) -> Judged {
    // The API server accepts nothing else than decimals.
    let most = spec.max_divergence.parse::<f64>().unwrap_or(0.0);
    let n = u64::try_from(compared).unwrap_or(0);
    let successes = n.saturating_sub(u64::try_from(agreed).unwrap_or(0));
    let least = i64::from(spec.min_requests.unwrap_or(0));
    let found = (n > 0).then(|| bounds(&Sample::Share { successes, n }, CONFIDENCE)).flatten();
    match found {
        Some(found) if found.lower > most => Judged::Lost,
        Some(found) if found.upper <= most && compared >= least => Judged::Holds,
        _ => {
            let decided = found.is_some_and(|found| found.upper <= most);
            let all = if decided { None } else { needed_for_share(successes, n, most, CONFIDENCE) };
            let all = all.and_then(|all| i64::try_from(all).ok()).or_else(|| decided.then_some(least));
            Judged::Undecided(all.map(|all| (all.max(least) - compared).max(1)))
        }
    }
}

/// Sets the condition `ParityHolding`.
pub(super) fn condition(
    view: &View<'_>,
    stage: &Stage,
    status: Option<&ShadowStatus>,
    conditions: &mut Conditions<'_>,
) {
    let (Some(spec), Some(status)) = (&view.spec().shadow, status) else { return };
    let (holds, reason, message) = told(view, stage, spec, status);
    conditions.set(ConditionType::ParityHolding, holds, reason, &message);
}

fn told(view: &View<'_>, stage: &Stage, spec: &Shadow, status: &ShadowStatus) -> (Truth, Reason, String) {
    if let Some(block) = view.evidence.blocks.iter().find(|block| block.about == About::Shadow) {
        return (Truth::Unknown, block.reason, block.sentence.clone());
    }
    if view.spec().dry_run {
        return (Truth::Unknown, Reason::DryRun, "a dry run compares nothing".to_owned());
    }
    let ShadowStatus { of, compared, agreed, skipped, .. } = status;
    let differ = compared - agreed;
    let of_all = format!("{differ} of {compared} requests were answered differently than by {of}");
    let limit = format!("spec.shadow.maxDivergence is {}", spec.max_divergence);
    let sample =
        Sample::Share { successes: u64::try_from(differ).unwrap_or(0), n: u64::try_from(*compared).unwrap_or(0) };
    let found = (*compared > 0).then(|| bounds(&sample, CONFIDENCE)).flatten();
    match (status.parity, judge(spec, *compared, *agreed), found) {
        (_, Judged::Lost, Some(found)) => {
            let least = Rounding::Down.show(found.lower);
            let message = format!("{of_all}, so at least {least} of all with confidence {CONFIDENCE}; {limit}");
            (Truth::False, Reason::ParityLost, message)
        }
        (_, Judged::Holds, Some(found)) => {
            let most = Rounding::Up.show(found.upper);
            let message = format!("{of_all}, so at most {most} of all with confidence {CONFIDENCE}; {limit}");
            (Truth::True, Reason::ParityProved, message)
        }
        (Some(Parity::Lost), ..) => {
            let message =
                format!("parity was lost, and the requests since do not prove that it holds: {of_all}; {limit}");
            (Truth::False, Reason::ParityLost, message)
        }
        (Some(Parity::Holds), ..) => {
            let message =
                format!("parity was proved, and the requests since do not prove that it is lost: {of_all}; {limit}");
            (Truth::True, Reason::ParityProved, message)
        }
        (None, judged, _) => {
            let starts = !matches!(stage, Stage::Serving(_)) && *compared == 0;
            if starts {
                return (
                    Truth::Unknown,
                    Reason::RollingOut,
                    "no server of the shadow compares requests yet".to_owned(),
                );
            }
            let more = match judged {
                Judged::Undecided(Some(more)) => format!("about {more} more decide it"),
                _ => "no number of requests like these decides it".to_owned(),
            };
            let skipped = if *skipped > 0 {
                format!("; {skipped} copies were not compared, because the shadow was busy or its tokenizer differs")
            } else {
                String::new()
            };
            (Truth::Unknown, Reason::WaitingForRequests, format!("{of_all}; {limit}, and {more}{skipped}"))
        }
    }
}

/// Returns `next` with the numbers of `present`, if both have proved the same about the same models.
pub(super) fn with_numbers_of(next: Option<&ShadowStatus>, present: Option<&ShadowStatus>) -> Option<ShadowStatus> {
    let (Some(next), Some(present)) = (next, present) else { return next.cloned() };
    let about = |it: &ShadowStatus| (it.of.clone(), it.of_digest, it.digest, it.max_divergence.clone(), it.parity);
    if about(next) != about(present) {
        return Some(next.clone());
    }
    Some(ShadowStatus { sources: next.sources.clone(), ..present.clone() })
}

/// Returns `next` with the numbers that the present message of `ParityHolding` names, if nothing else about it changed.
pub(super) fn with_message_of(next: &[Condition], present: &[Condition]) -> Vec<Condition> {
    let known = find(present, ConditionType::ParityHolding);
    let told = |condition: &Condition| match known {
        Some(known)
            if known.type_ == condition.type_
                && known.status == condition.status
                && known.reason == condition.reason =>
        {
            Condition { message: known.message.clone(), ..condition.clone() }
        }
        _ => condition.clone(),
    };
    next.iter().map(told).collect()
}

/// Returns the name by which the servers of the incumbent are selected.
pub(super) fn incumbent<'a>(view: &View<'a>) -> Option<&'a str> {
    view.spec().shadow.as_ref().map(|shadow| shadow.of.as_str())
}

#[cfg(test)]
mod tests {
    use codex_crds::Shadow;

    use super::{Judged, judge};

    fn spec(most: &str, least: Option<i32>) -> Shadow {
        Shadow { of: "a".to_owned(), sample_percent: 10, max_divergence: most.to_owned(), min_requests: least }
    }

    #[test]
    fn parity_is_decided_by_exact_bounds() {
        // 0.99^459 is below 0.01, and 0.99^458 is not.
        for (compared, agreed, judged) in [
            (458, 458, Judged::Undecided(Some(2))),
            (459, 459, Judged::Holds),
            (100, 94, Judged::Lost),
            (100, 99, Judged::Undecided(None)),
            (0, 0, Judged::Undecided(Some(460))),
        ] {
            assert_eq!(judge(&spec("0.01", None), compared, agreed), judged, "{agreed} of {compared}");
        }
        assert_eq!(judge(&spec("0.5", Some(1_000)), 100, 100), Judged::Undecided(Some(900)));
        assert_eq!(judge(&spec("0.5", Some(1_000)), 100, 0), Judged::Lost, "a loss needs no least number");
        assert_eq!(judge(&spec("1", None), 1, 0), Judged::Holds, "nothing is above 1");
    }
}
