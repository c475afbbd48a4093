//! The criterion of agreement: how many requests were answered differently than by the present servers. Pure.

use codex_crds::{AgreementStatus, Analysis, TrafficStatus};
use codex_verdict::Rounding;

use super::{CONFIDENCE, lowest};

/// Returns why the comparisons fail the canary.
pub(super) fn breach(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let (limit, found) = (&analysis.agreement.as_ref()?.max_divergence, traffic.agreement?);
    let AgreementStatus { compared, agreed, skipped: _ } = found;
    let diverged = compared.saturating_sub(agreed);
    // The API server accepts nothing else than decimals.
    let lower = Some(lowest(diverged, compared)).filter(|lower| *lower > limit.parse::<f64>().unwrap_or(0.0))?;
    Some(format!(
        "{diverged} of {compared} requests were answered differently than by the present servers, so at least {} of all with \
         confidence {CONFIDENCE}; spec.rollout.analysis.agreement.maxDivergence is {limit}",
        Rounding::Down.show(lower)
    ))
}

/// Returns why the criterion is not decided, although enough requests were answered.
pub(super) fn undecided(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    const FIELD: &str = "spec.rollout.analysis.agreement is not decided";
    analysis.agreement.as_ref()?;
    let Some(AgreementStatus { compared, skipped, .. }) = traffic.agreement else {
        return Some(format!("{FIELD}: the servers of the canary have not reported what they compared"));
    };
    let least = i64::from(analysis.min_requests);
    let skipped = if skipped > 0 {
        format!("; {skipped} copies were not compared, because the canary was busy or its tokenizer differs")
    } else {
        String::new()
    };
    let few = compared < least;
    few.then(|| format!("{FIELD}: waiting for compared requests: {compared} of {least}{skipped}"))
}

#[cfg(test)]
mod tests {
    use codex_crds::{AgreementStatus, Analysis, TrafficStatus};

    use super::super::{breach, undecided};

    fn seen(compared: i64, agreed: i64, skipped: i64) -> TrafficStatus {
        let agreement = Some(AgreementStatus { compared, agreed, skipped });
        TrafficStatus { requests: 100, completed: 100, agreement, ..TrafficStatus::default() }
    }

    fn analysis(most: &str) -> Analysis {
        let agreement = serde_json::json!({"samplePercent": 10, "maxDivergence": most});
        serde_json::from_value(serde_json::json!({"minRequests": 20, "agreement": agreement})).unwrap()
    }

    #[test]
    fn answers_that_differ_fail_a_canary_only_with_confidence() {
        let limits = analysis("0.05");
        for (compared, agreed) in [(0, 0), (9, 0), (100, 100), (100, 95), (100, 89)] {
            assert_eq!(breach(&limits, seen(compared, agreed, 0)), None, "{agreed} of {compared}");
        }
        for (compared, agreed, told) in [(10, 0, "10 of 10 requests"), (100, 80, "20 of 100 requests")] {
            let why = breach(&limits, seen(compared, agreed, 0)).unwrap();
            let told = format!("{told} were answered differently than by the present servers, so at least 0.");
            assert!(why.starts_with(&told), "{why}");
            assert!(why.ends_with("spec.rollout.analysis.agreement.maxDivergence is 0.05"), "{why}");
            assert_eq!(
                breach(&Analysis::default(), seen(compared, agreed, 0)),
                None,
                "without a limit, answers may differ"
            );
        }
        assert_eq!(breach(&limits, seen(10, 10, 90)), None, "copies that were not compared do not count");
        assert!(breach(&analysis("0"), seen(10, 9, 0)).is_some(), "nothing may differ");
    }

    #[test]
    fn too_few_comparisons_decide_nothing() {
        let limits = analysis("0.05");
        assert_eq!(undecided(&limits, seen(20, 20, 5), true), None);
        let few = undecided(&limits, seen(19, 19, 0), true).unwrap();
        let told = "spec.rollout.analysis.agreement is not decided: waiting for compared requests: 19 of 20";
        assert_eq!(few, told);
        let busy = undecided(&limits, seen(19, 19, 5), true).unwrap();
        assert!(busy.starts_with(told) && busy.contains("5 copies were not compared"), "{busy}");
        let unknown = undecided(&limits, TrafficStatus { agreement: None, ..seen(0, 0, 0) }, true).unwrap();
        assert!(unknown.ends_with("have not reported what they compared"), "{unknown}");
        // At the last step there is nothing to compare with.
        assert_eq!(undecided(&limits, seen(0, 0, 0), false), None);
        assert_eq!(undecided(&Analysis::default(), seen(0, 0, 0), true), None);
    }
}
