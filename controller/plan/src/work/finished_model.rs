//! The finished model of a TrainingRun that another object uses, or what that object waits for. Pure.

use codex_crds::{ConditionType, ModelStatus, Reason, TrainingRun};

use super::failure::WorkFailure;
use crate::conditions::is_true;

/// What an object waits for before it can use the model of a TrainingRun.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WaitingForModel {
    /// The run does not exist.
    Missing,
    /// The run is being deleted.
    Deleting,
    /// The run has not finished.
    Unfinished,
    /// The run stalled, with this message. It can still succeed once its spec is corrected.
    Stalled(String),
}

impl WaitingForModel {
    /// Returns what to wait for when `run` is not finished.
    pub(crate) fn for_run(run: &TrainingRun) -> Self {
        let reproduction = run.status.as_ref().and_then(|status| status.reproduction.as_ref());
        if let Some(why) = reproduction.and_then(|reproduction| reproduction.unreproducible.clone()) {
            return Self::Stalled(why);
        }
        let conditions = run.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if !is_true(conditions, ConditionType::Stalled) {
            return Self::Unfinished;
        }
        Self::Stalled(WorkFailure::recorded(conditions).message)
    }

    /// Whether the object stalls: nothing happens until a user acts.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, Self::Stalled(_))
    }

    /// Returns the reason and the message of the `Ready` condition. `field` names the run `name`.
    pub(crate) fn message(&self, field: &str, name: &str) -> (Reason, String) {
        match self {
            Self::Missing => {
                (Reason::NotFound, format!("{field} names {name:?}, which does not exist in this namespace: create it"))
            }
            Self::Deleting => (Reason::NotFound, format!("TrainingRun {name} is being deleted")),
            Self::Unfinished => (Reason::WaitingForTraining, format!("TrainingRun {name} has no model yet")),
            Self::Stalled(why) => {
                (Reason::WaitingForTraining, format!("TrainingRun {name} has no model and is stalled: {why}"))
            }
        }
    }
}

/// Returns the finished model of a run, also of one that is being deleted. It depends on sealed fields only: a failed run
/// records no model.
pub(crate) fn finished_model(run: &TrainingRun) -> Option<&ModelStatus> {
    let status = run.status.as_ref()?;
    status.model.as_ref().filter(|_| status.completed_at.is_some())
}
