//! Children that kept drifting after an apply.

use std::fmt;

use crate::{by_uid::ByUid, drift::Difference};

/// A child that still differs from its plan after it was applied and corrected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmendedChild {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The first difference from the plan.
    pub difference: Difference,
}

impl fmt::Display for UnmendedChild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, difference } = self;
        write!(f, "the {kind} {name} keeps drifting from the desired state: {difference}")
    }
}

/// The unmended child of each object, by the object's uid. Applying it again would only trigger another
/// reconciliation, so apply waits until the object's backoff has passed.
pub type Unmended = ByUid<UnmendedChild>;
