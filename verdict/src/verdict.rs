//! The three verdicts. Pure.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Result of a gate or of all gates together.
// Ordered from worst to best by discriminant; the order of declaration is that of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Verdict {
    /// The evidence shows that the gate holds.
    Passed = 2,
    /// The evidence shows that the gate does not hold.
    Failed = 0,
    /// The evidence is insufficient for either.
    Inconclusive = 1,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "Passed",
            Self::Failed => "Failed",
            Self::Inconclusive => "Inconclusive",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Failed, Inconclusive, Passed};

    #[test]
    fn verdicts_are_ordered_from_worst_to_best() {
        assert!(Failed < Inconclusive && Inconclusive < Passed);
    }
}
