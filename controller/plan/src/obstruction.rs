//! What keeps the controller from carrying out a plan. Pure.

use codex_crds::Reason;
use serde::{Deserialize, Serialize};

/// A failure of apply that needs attention: another owner's object has the name of a child, a child keeps drifting from
/// the plan, or the API server refuses it. Or one that users must see while it is retried.
///
/// The controller plans again with the obstruction observed, so that the status names it. The children and effects of that
/// plan are those of the plan without it: the next reconciliation tries them again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Obstruction {
    /// The reason of the conditions that name it.
    pub reason: Reason,
    /// What happened, and what to change.
    pub message: String,
    /// The generation of the object that was being applied.
    #[serde(default)]
    pub generation: Option<i64>,
    /// Whether it can pass without a change by the user, such as a service that does not answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
}

impl Obstruction {
    /// Returns an observed obstruction if it concerns this generation of the object.
    pub(crate) fn current(observed: Option<&Self>, generation: Option<i64>) -> Option<&Self> {
        observed.filter(|obstruction| obstruction.generation == generation)
    }
}
