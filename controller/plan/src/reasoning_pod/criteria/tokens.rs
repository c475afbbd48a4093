//! The criteria of tokens: how many responses began too late or continued too slowly. Pure.

use codex_crds::{Analysis, TimesStatus, TrafficStatus};

use super::{TimeLimit, unreported};

/// A criterion of the times of tokens.
struct Criterion<'a> {
    limit: Option<&'a String>,
    field: &'static str,
    /// `None` if servers do not report it.
    times: Option<TimesStatus>,
    /// What slow responses did, up to the limit.
    what: &'static str,
    /// Which responses count.
    which: &'static str,
}

fn criteria<'a>(analysis: &'a Analysis, traffic: &TrafficStatus) -> [Criterion<'a>; 2] {
    [
        Criterion {
            limit: analysis.max_first_token_seconds.as_ref(),
            field: "maxFirstTokenSeconds",
            times: traffic.first_token,
            what: "responses had their first token later than",
            which: "with a first token",
        },
        Criterion {
            limit: analysis.max_inter_token_seconds.as_ref(),
            field: "maxInterTokenSeconds",
            times: traffic.inter_token,
            what: "responses took longer between tokens than",
            which: "of two tokens or more",
        },
    ]
}

/// Returns why the responses fail the canary.
pub(super) fn breach(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    criteria(analysis, &traffic).into_iter().find_map(|Criterion { limit, field, times, what, .. }| {
        let counted = times.map_or((0, 0), |times| (times.slow, times.responses));
        TimeLimit { limit, field, counted, what }.breach()
    })
}

/// Returns why a criterion is not decided, although enough requests were answered.
pub(super) fn undecided(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let least = i64::from(analysis.min_requests);
    criteria(analysis, &traffic).into_iter().find_map(|Criterion { limit, field, times, which, .. }| {
        limit?;
        let Some(TimesStatus { responses, .. }) = times else {
            return Some(unreported(field, "the times of their tokens"));
        };
        let few = responses < least;
        few.then(|| {
            format!(
                "spec.rollout.analysis.{field} is not decided: waiting for responses {which}: {responses} of {least}"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use codex_crds::{Analysis, TimesStatus, TrafficStatus};

    use super::{breach, undecided};

    #[test]
    fn times_of_tokens_fail_a_canary_only_with_confidence_and_pass_only_with_responses() {
        for field in ["maxFirstTokenSeconds", "maxInterTokenSeconds"] {
            let limits = serde_json::json!({"minRequests": 20, field: "0.5"});
            let analysis: Analysis = serde_json::from_value(limits).unwrap();
            let seen = |times: Option<TimesStatus>| {
                let traffic = TrafficStatus { requests: 100, completed: 100, ..TrafficStatus::default() };
                match field {
                    "maxFirstTokenSeconds" => TrafficStatus { first_token: times, ..traffic },
                    _ => TrafficStatus { inter_token: times, ..traffic },
                }
            };
            let of = |slow: i64, responses: i64| seen(Some(TimesStatus { responses, slow }));
            for (slow, responses) in [(0, 100), (5, 100), (11, 100), (9, 9)] {
                assert_eq!(breach(&analysis, of(slow, responses)), None, "{field}: {slow} of {responses}");
            }
            for (slow, responses) in [(20, 100), (10, 10)] {
                let why = breach(&analysis, of(slow, responses)).unwrap();
                assert!(why.starts_with(&format!("{slow} of {responses} responses ")), "{why}");
                assert!(why.contains(&format!("spec.rollout.analysis.{field}, 0.5, so at least ")), "{why}");
            }
            assert_eq!(breach(&Analysis::default(), of(100, 100)), None);
            assert_eq!(undecided(&analysis, of(0, 20)), None);
            let few = undecided(&analysis, of(0, 19)).unwrap();
            assert!(few.starts_with(&format!("spec.rollout.analysis.{field} is not decided: ")), "{few}");
            assert!(few.ends_with(": 19 of 20"), "{few}");
            let unknown = undecided(&analysis, seen(None)).unwrap();
            assert!(
                unknown.contains(&format!("{field} is not decided: servers of the canary do not report")),
                "{unknown}"
            );
        }
    }
}
