//! How often a status is written and looked at. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Between two writes of numbers alone.
const NUMBERS: Duration = Duration::from_secs(10);
/// Until things that an object refers to are looked for again.
pub(crate) const REFERENCES_AGAIN: Duration = Duration::from_secs(15);

/// How long to wait for the last report of a pod that ended well: its Job may be seen before its own end is.
const LAST_WORDS: SignedDuration = SignedDuration::from_secs(60);

/// Until when to wait for the last report of work that was complete at that time; none once that is over, or when that time is unknown.
pub(crate) fn last_words(complete: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    complete?.checked_add(LAST_WORDS).ok().filter(|until| now < *until)
}

/// From now until then, at least a second.
pub(crate) fn until(now: Timestamp, then: Timestamp) -> Duration {
    let seconds = then.as_second().saturating_sub(now.as_second()).max(1);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
}

/// The status to write, and when to look again: `next` at once if it is a transition; if it is numbers alone, what is
/// there (`present`), until the last write is ten seconds old. `numbers_of(next, present)` is `next` with the numbers of
/// `present`.
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
