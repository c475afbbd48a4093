//! The criteria of requests: how many failed, were refused, or took too long. Pure.

use codex_crds::{Analysis, TrafficStatus};
use codex_verdict::Rounding;

use super::{CONFIDENCE, TimeLimit, lowest, unreported};

/// Returns why the requests fail the canary.
pub(super) fn breach(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let TrafficStatus { requests, errors, refused, completed, slow, rejected, .. } = traffic;
    let rejected = rejected.unwrap_or_default();
    let before = refused.saturating_add(rejected.before);
    let (turned_away, came) = (before.saturating_add(rejected.answers), requests.saturating_add(before));
    let rates = [
        (Some(&analysis.max_error_rate), errors, requests, "failed", "maxErrorRate"),
        (analysis.max_refusal_rate.as_ref(), turned_away, came, "were refused", "maxRefusalRate"),
    ];
    let rates = rates.into_iter().find_map(|(limit, counted, n, what, field)| {
        let limit = limit?;
        // The API server accepts nothing else than decimals.
        let lower = Some(lowest(counted, n)).filter(|lower| *lower > limit.parse::<f64>().unwrap_or(0.0))?;
        Some(format!(
            "{counted} of {n} requests {what}, so at least {} of all with confidence {CONFIDENCE}; \
             spec.rollout.analysis.{field} is {limit}",
            Rounding::Down.show(lower)
        ))
    });
    rates.or_else(|| {
        let limit = analysis.max_p95_seconds.as_ref();
        let what = "requests took longer than";
        TimeLimit { limit, field: "maxP95Seconds", counted: (slow, completed), what }.breach()
    })
}

/// Returns why a criterion is not decided, although enough requests were answered.
pub(super) fn undecided(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let unknown = analysis.max_refusal_rate.is_some() && traffic.rejected.is_none();
    unknown.then(|| unreported("maxRefusalRate", "all refused requests"))
}

#[cfg(test)]
mod tests {
    use codex_crds::{Analysis, RejectedStatus, TrafficStatus};

    use super::super::{breach, undecided};

    #[test]
    fn a_canary_fails_only_with_confidence() {
        let analysis: Analysis =
            serde_json::from_value(serde_json::json!({"maxErrorRate": "0.01", "maxP95Seconds": "0.7"})).unwrap();
        let seen = |errors: i64, slow: i64| TrafficStatus {
            requests: 100,
            errors,
            refused: 9,
            completed: 100,
            slow,
            ..TrafficStatus::default()
        };
        // With 1 error in 100 requests, 4 or more of 100 happen in 1 of 54 cases, which is no proof; 6 or more in 1 of 1,900.
        for (errors, slow) in [(0, 0), (1, 5), (4, 11)] {
            assert_eq!(breach(&analysis, seen(errors, slow)), None, "{errors} {slow}");
        }
        let errors = breach(&analysis, seen(6, 0)).unwrap();
        assert!(errors.starts_with("6 of 100 requests failed, so at least 0.0"), "{errors}");
        let slow = breach(&analysis, seen(0, 20)).unwrap();
        assert!(slow.starts_with("20 of 100 requests took longer"), "{slow}");
        for (requests, fails) in [(0, false), (9, false), (10, true)] {
            let all = TrafficStatus { requests, errors: requests, ..TrafficStatus::default() };
            assert_eq!(breach(&analysis, all).is_some(), fails, "{requests} failed requests");
        }
        assert_eq!(breach(&Analysis::default(), seen(0, 100)), None, "without a limit, latency does not matter");
    }

    #[test]
    fn refusals_of_every_kind_fail_a_canary_if_they_are_limited() {
        let analysis: Analysis = serde_json::from_value(serde_json::json!({"maxRefusalRate": "0.1"})).unwrap();
        let seen = |requests: i64, refused: i64, before: i64, answers: i64| TrafficStatus {
            requests,
            refused,
            rejected: Some(RejectedStatus { before, answers }),
            ..TrafficStatus::default()
        };
        for quiet in [seen(90, 10, 0, 0), seen(90, 4, 6, 0), seen(100, 0, 0, 10), seen(0, 9, 0, 0)] {
            assert_eq!(breach(&analysis, quiet), None, "{quiet:?}");
        }
        for (fails, told) in [
            (seen(80, 20, 0, 0), "20 of 100 requests were refused"),
            (seen(80, 0, 20, 0), "20 of 100 requests were refused"),
            (seen(100, 0, 0, 20), "20 of 100 requests were refused"),
            (seen(0, 4, 6, 0), "10 of 10 requests were refused"),
        ] {
            let why = breach(&analysis, fails).unwrap();
            assert!(why.starts_with(told) && why.ends_with("spec.rollout.analysis.maxRefusalRate is 0.1"), "{why}");
            assert_eq!(breach(&Analysis::default(), fails), None, "without a limit, refusals do not matter");
        }
        assert_eq!(undecided(&analysis, seen(50, 0, 0, 0), true), None);
        let unknown = TrafficStatus { rejected: None, ..seen(50, 2, 0, 0) };
        let why = undecided(&analysis, unknown, true).unwrap();
        assert!(why.starts_with("spec.rollout.analysis.maxRefusalRate is not decided: servers of the canary"), "{why}");
        assert_eq!(undecided(&Analysis::default(), unknown, true), None);
        // What is known can fail it all the same.
        assert!(breach(&analysis, TrafficStatus { rejected: None, ..seen(50, 50, 0, 0) }).is_some());
    }
}
