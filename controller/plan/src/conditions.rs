//! Conditions that follow metav1 and kstatus. Pure.
//!
//! `Ready` is always present; `Reconciling` and `Stalled` only while true; `lastTransitionTime` changes only with the
//! status.

use codex_crds::{ConditionType, Reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{obstruction::Obstruction, text::truncate_chars, throttle::whole_seconds};

/// The most characters of a message: far below the limit of the API.
const MAX_MESSAGE: usize = 2_000;

/// Before each notice in the message of `ConfigResolved`.
pub(crate) const NOTICE: &str = "; notice: ";

/// Returns when an object got its phase `next`. `recorded` is its recorded phase with that time, which statuses of earlier releases lack
/// until the phase changes.
pub(crate) fn phase_since<P: PartialEq>(recorded: (Option<P>, Option<&Time>), next: P, now: Timestamp) -> Option<Time> {
    let (phase, since) = recorded;
    if phase == Some(next) { since.cloned() } else { Some(Time(whole_seconds(now))) }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Builds the next conditions of an object from its present ones.
pub(crate) struct Conditions<'a> {
    before: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    next: Vec<(ConditionType, Condition)>,
}

impl<'a> Conditions<'a> {
    pub(crate) fn new(before: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { before, generation, now, next: Vec::new() }
    }

    pub(crate) fn set(&mut self, kind: ConditionType, holds: impl Into<Truth>, reason: Reason, message: &str) {
        let status = holds.into().name();
        let since = find(self.before, kind)
            .filter(|before| before.status == status)
            .map_or(Time(self.now), |before| before.last_transition_time.clone());
        let condition = Condition {
            type_: kind.name().to_owned(),
            status: status.to_owned(),
            reason: reason.name().to_owned(),
            message: truncate_chars(message, MAX_MESSAGE),
            observed_generation: self.generation,
            last_transition_time: since,
        };
        self.next.retain(|(present, _)| *present != kind);
        self.next.push((kind, condition));
    }

    /// Whether the object has a condition of this type.
    pub(crate) fn knew(&self, kind: ConditionType) -> bool {
        find(self.before, kind).is_some()
    }

    /// Names an obstruction: the object is neither ready nor, unless it waits, reconciling. `Stalled` keeps the failure of an object
    /// that has `failed`, because later plans read the failure there.
    pub(crate) fn obstruct(&mut self, obstruction: &Obstruction, failed: bool) {
        self.next.retain(|(present, _)| *present != ConditionType::Reconciling);
        self.set(ConditionType::Ready, false, obstruction.reason, &obstruction.message);
        if obstruction.waits {
            self.set(ConditionType::Reconciling, true, obstruction.reason, &obstruction.message);
        } else if !failed {
            self.set(ConditionType::Stalled, true, obstruction.reason, &obstruction.message);
        }
    }

    /// Keeps a condition, with the current generation.
    pub(crate) fn keep(&mut self, kind: ConditionType) {
        if let Some(before) = find(self.before, kind) {
            let condition = Condition { observed_generation: self.generation, ..before.clone() };
            self.next.push((kind, condition));
        }
    }

    /// Sets a condition back to what it was, if it was there.
    pub(crate) fn restore(&mut self, kind: ConditionType) {
        if self.knew(kind) {
            self.next.retain(|(present, _)| *present != kind);
            self.keep(kind);
        }
    }

    /// Whether a condition has been set.
    pub(crate) fn has(&self, kind: ConditionType) -> bool {
        self.next.iter().any(|(present, _)| *present == kind)
    }

    /// Returns the conditions in the order of [`ConditionType`].
    pub(crate) fn finish(mut self) -> Vec<Condition> {
        self.next.sort_by_key(|(kind, _)| *kind);
        self.next.into_iter().map(|(_, condition)| condition).collect()
    }
}

/// Returns the condition of a type.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.name())
}

/// Whether the condition of a type is `True`.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_with_the_status_alone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let make = |before: &[Condition], holds: bool, reason, second| {
            let mut conditions = Conditions::new(before, Some(second), at(second));
            conditions.set(ConditionType::Stalled, Truth::Unknown, reason, "a");
            conditions.set(ConditionType::Ready, holds, reason, "m");
            conditions.finish()
        };
        let first = make(&[], false, Reason::Running, 1);
        let second = make(&first, false, Reason::Suspended, 2);
        let third = make(&second, true, Reason::Succeeded, 3);
        let since = |conditions: &[Condition]| find(conditions, ConditionType::Ready).unwrap().last_transition_time.0;
        assert_eq!((since(&first), since(&second), since(&third)), (at(1), at(1), at(3)));
        assert_eq!(second[0].observed_generation, Some(2));
        assert_eq!(third.iter().map(|condition| &*condition.type_).collect::<Vec<_>>(), ["Ready", "Stalled"]);
    }
}
