//! The criteria of a canary: what the requests and responses of a step say about it. Pure.
//!
//! Each criterion compares a share with its limit: the canary fails once the exact lower confidence bound of the share (Clopper and
//! Pearson) is above the limit.

mod agreement;
mod requests;
mod tokens;

use codex_crds::{AgreementStatus, Analysis, RejectedStatus, TimesStatus, TrafficStatus};
use codex_verdict::{Rounding, Sample, bounds};

/// The confidence of the one-sided bounds that fail a canary.
const CONFIDENCE: f64 = 0.99;
/// The share of requests that may take longer than the 95th percentile.
const SLOW: f64 = 0.05;
/// The number of requests from which on they can fail a canary.
const LEAST: i64 = 10;

/// Returns the requests since `before`; `None` if there are fewer, because a server was replaced.
pub(super) fn since(total: TrafficStatus, before: TrafficStatus) -> Option<TrafficStatus> {
    let more = |total: i64, before: i64| total.checked_sub(before).filter(|more| *more >= 0);
    let times = |total: Option<TimesStatus>, before: Option<TimesStatus>| {
        let Some(total) = total else { return Some(None) };
        let before = before.unwrap_or_default();
        let (responses, slow) = (more(total.responses, before.responses)?, more(total.slow, before.slow)?);
        Some(Some(TimesStatus { responses, slow }))
    };
    let rejected = match total.rejected {
        None => None,
        Some(total) => {
            let held = before.rejected.unwrap_or_default();
            let (before, answers) = (more(total.before, held.before)?, more(total.answers, held.answers)?);
            Some(RejectedStatus { before, answers })
        }
    };
    let agreement = match total.agreement {
        None => None,
        Some(total) => {
            let held = before.agreement.unwrap_or_default();
            let (compared, agreed) = (more(total.compared, held.compared)?, more(total.agreed, held.agreed)?);
            Some(AgreementStatus { compared, agreed, skipped: more(total.skipped, held.skipped)? })
        }
    };
    Some(TrafficStatus {
        requests: more(total.requests, before.requests)?,
        errors: more(total.errors, before.errors)?,
        refused: more(total.refused, before.refused)?,
        completed: more(total.completed, before.completed)?,
        slow: more(total.slow, before.slow)?,
        rejected,
        first_token: times(total.first_token, before.first_token)?,
        inter_token: times(total.inter_token, before.inter_token)?,
        agreement,
    })
}

/// Returns why the requests and responses fail the canary.
pub(super) fn breach(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let of_answers = || agreement::breach(analysis, traffic);
    requests::breach(analysis, traffic).or_else(|| tokens::breach(analysis, traffic)).or_else(of_answers)
}

/// Returns why a criterion is not decided, although enough requests were answered: servers do not report its numbers, or these are few.
/// A step does not end before, because a criterion that was never judged would look as if it were met. `compares` says that the step has
/// requests to compare.
pub(super) fn undecided(analysis: &Analysis, traffic: TrafficStatus, compares: bool) -> Option<String> {
    let of_answers = || agreement::undecided(analysis, traffic).filter(|_| compares);
    requests::undecided(analysis, traffic).or_else(|| tokens::undecided(analysis, traffic)).or_else(of_answers)
}

/// Returns the lower bound of a share.
fn lowest(counted: i64, n: i64) -> f64 {
    let sample = Sample::Share { successes: u64::try_from(counted).unwrap_or(0), n: u64::try_from(n).unwrap_or(0) };
    if n < LEAST { 0.0 } else { bounds(&sample, CONFIDENCE).map_or(0.0, |bounds| bounds.lower) }
}

/// A limit of a time that 95 of 100 requests or responses must keep.
struct TimeLimit<'a> {
    /// The seconds.
    limit: Option<&'a String>,
    /// Its field in `spec.rollout.analysis`.
    field: &'static str,
    /// How many took longer, and how many there are.
    counted: (i64, i64),
    /// What those that took longer did, up to the limit.
    what: &'static str,
}

impl TimeLimit<'_> {
    /// Returns why the limit is broken. The 95th percentile is above it exactly if more than 5 of 100 take longer.
    fn breach(&self) -> Option<String> {
        let Self { limit, field, counted: (slow, n), what } = *self;
        let limit = limit?;
        let lower = Some(lowest(slow, n)).filter(|lower| *lower > SLOW)?;
        Some(format!(
            "{slow} of {n} {what} spec.rollout.analysis.{field}, {limit}, so at least {} of all with confidence \
             {CONFIDENCE}; {SLOW} may",
            Rounding::Down.show(lower)
        ))
    }
}

/// Returns that servers do not report the numbers of a criterion.
fn unreported(field: &str, what: &str) -> String {
    format!(
        "spec.rollout.analysis.{field} is not decided: servers of the canary do not report {what}, because their image is of an \
         earlier version than the controller: update the images that the controller is configured with, or remove the field"
    )
}

#[cfg(test)]
mod tests {
    use codex_crds::{AgreementStatus, RejectedStatus, TimesStatus, TrafficStatus};

    use super::since;

    #[test]
    fn numbers_that_fall_are_no_numbers_of_this_step() {
        let of = |requests: i64| TrafficStatus { requests, completed: requests, ..TrafficStatus::default() };
        assert_eq!(since(of(12), of(5)), Some(of(7)));
        assert_eq!(since(of(4), of(5)), None);
        let timed = |responses: i64, slow: i64| TrafficStatus {
            first_token: Some(TimesStatus { responses, slow }),
            rejected: Some(RejectedStatus { before: slow, answers: 0 }),
            ..of(responses)
        };
        assert_eq!(since(timed(12, 3), timed(5, 1)), Some(timed(7, 2)));
        assert_eq!(since(timed(12, 0), timed(5, 1)), None);
        assert_eq!(since(timed(12, 3), TrafficStatus::default()), Some(timed(12, 3)), "nothing was known before");
        assert_eq!(since(of(12), timed(5, 1)), Some(of(7)), "nothing is known any more");
        let compared = |compared: i64, agreed: i64, skipped: i64| TrafficStatus {
            agreement: Some(AgreementStatus { compared, agreed, skipped }),
            ..of(12)
        };
        let more = TrafficStatus { requests: 0, completed: 0, ..compared(7, 6, 2) };
        assert_eq!(since(compared(9, 8, 4), compared(2, 2, 2)), Some(more));
        assert_eq!(since(compared(9, 1, 4), compared(2, 2, 2)), None);
    }
}
