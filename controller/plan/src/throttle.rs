//! Limits how often a status is written, and how long a plan waits. Pure.

use std::{mem, time::Duration};

use codex_crds::WorkStatus;
use jiff::{SignedDuration, Timestamp};

/// The time between two writes that change only numbers.
const NUMBERS: Duration = Duration::from_secs(10);
/// The time until missing references are checked again.
pub(crate) const REFERENCES_AGAIN: Duration = Duration::from_secs(15);

/// How long to wait for the final report of a pod that exited 0: the end of a Job may be observed before that of its pod.
const FINAL_REPORT: SignedDuration = SignedDuration::from_secs(60);

/// Returns how long to wait for the final report of a Job that completed at `complete`; `None` if that time has passed or
/// is unknown.
pub(crate) fn final_report_until(complete: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    complete?.checked_add(FINAL_REPORT).ok().filter(|until| now < *until)
}

/// Truncates to whole seconds: times in the API have no fractions.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Returns the time from `now` until `then`: at least one second.
pub(crate) fn until(now: Timestamp, then: Timestamp) -> Duration {
    let seconds = then.as_second().saturating_sub(now.as_second()).max(1);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
}

/// Returns the status to write, and when to plan again. A transition is written at once. A change of numbers alone waits
/// until the last write is ten seconds old; until then `present` stays. `numbers_of(next, present)` returns `next` with the
/// numbers of `present`.
pub(crate) fn hold<S: PartialEq + Clone>(
    present: Option<&S>,
    next: S,
    written_at: Option<Timestamp>,
    now: Timestamp,
    again: Option<Duration>,
    numbers_of: impl Fn(&S, &S) -> S,
) -> (S, Option<Duration>) {
    let (Some(present), Some(written_at)) = (present, written_at) else { return (next, again) };
    if *present == next || numbers_of(&next, present) != *present {
        return (next, again);
    }
    let age = u64::try_from(now.as_second().saturating_sub(written_at.as_second())).unwrap_or(0);
    let rest = NUMBERS.saturating_sub(Duration::from_secs(age));
    if rest.is_zero() {
        return (next, again);
    }
    (present.clone(), Some(again.map_or(rest, |again| again.min(rest))))
}

/// Keeps the recorded attempts in `next` if nothing else differs from `present`: an attempt that ended is followed by another
/// change, and does not need a write of its own.
pub(crate) fn hold_attempts<S: PartialEq>(
    present: Option<&S>,
    next: &mut S,
    recorded: &WorkStatus,
    work: impl Fn(&mut S) -> &mut WorkStatus,
) {
    let Some(present) = present else { return };
    let newer = mem::replace(&mut work(next).recent_attempts, recorded.recent_attempts.clone());
    if next != present {
        work(next).recent_attempts = newer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wait_and_transitions_do_not() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let hold = |present: Option<(u8, u8)>, next, written: Option<i64>| {
            hold(present.as_ref(), next, written.map(at), at(100), None, |next: &(u8, u8), present| (next.0, present.1))
        };
        assert_eq!(hold(Some((1, 1)), (1, 2), Some(97)), ((1, 1), Some(Duration::from_secs(7))));
        assert_eq!(hold(Some((1, 1)), (1, 2), Some(90)), ((1, 2), None));
        assert_eq!(hold(Some((1, 1)), (1, 2), None), ((1, 2), None));
        assert_eq!(hold(Some((1, 1)), (2, 2), Some(97)), ((2, 2), None));
        assert_eq!(hold(None, (1, 2), Some(97)), ((1, 2), None));
        assert_eq!(hold(Some((1, 1)), (1, 1), Some(97)), ((1, 1), None));
    }
}
