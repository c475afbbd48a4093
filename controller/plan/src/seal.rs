//! The seal of a status: which parts of it later steps depend on, and what remains of a status without a valid seal. Pure.
//!
//! Anyone who may write a status can write anything into it. Before the controller writes a status it seals the parts in
//! [`Sealable::SEALED`] with a key that only it has. A status that is observed without a valid seal loses these parts and
//! everything derived from them ([`Sealable::DERIVED`]), so that no plan depends on them.

use codex_crds::{ConditionType, EvaluationStatus, Reason, ReasoningPodStatus, TrainingRunStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::conditions::{Conditions, find, is_true};

/// What the seal of a recorded status says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StatusSeal {
    /// The seal is valid, or there is no status.
    #[default]
    Valid,
    /// The seal is missing or invalid: another client wrote the status, or the seal key was lost.
    Broken,
    /// The status was recorded for the object with this uid, as backup tools restore it.
    Restored(String),
}

/// A status with parts that are sealed.
pub trait Sealable: Serialize + DeserializeOwned + Default + Clone {
    /// The fields that the seal covers.
    const SEALED: &'static [&'static str];
    /// The fields that every plan computes again from the sealed ones.
    const DERIVED: &'static [&'static str];

    /// Returns the seal.
    fn seal(&self) -> Option<&str>;

    /// Replaces the seal.
    fn set_seal(&mut self, seal: Option<String>);

    /// Returns the failure that is recorded in the conditions and that later plans depend on.
    fn failure(&self) -> Option<&Condition>;

    /// Returns the parts that the seal covers.
    fn sealed(&self) -> Value {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|name, _| Self::SEALED.contains(&name.as_str()));
        }
        let failure = self.failure().map(|failure| (&failure.reason, &failure.message));
        json!({ "fields": fields, "failure": failure })
    }

    /// Returns the status without the parts that the seal covers and without those derived from them.
    #[must_use]
    fn discarded(&self) -> Self {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            let gone = |name: &str| Self::SEALED.contains(&name) || Self::DERIVED.contains(&name) || name == "seal";
            fields.retain(|name, _| !gone(name));
        }
        serde_json::from_value(fields).unwrap_or_default()
    }

    /// Returns the status if its seal is valid, else what remains of it.
    #[must_use]
    fn believed(self, seal: &StatusSeal) -> Self {
        if *seal == StatusSeal::Valid { self } else { self.discarded() }
    }
}

fn stalled(conditions: &[Condition]) -> Option<&Condition> {
    find(conditions, ConditionType::Stalled).filter(|stalled| stalled.status == "True")
}

impl Sealable for TrainingRunStatus {
    const SEALED: &'static [&'static str] = &[
        "configDigest",
        "dataDigests",
        "base",
        "model",
        "attested",
        "computation",
        "device",
        "reproduction",
        "adoption",
        "imageId",
        "startedAt",
        "completedAt",
    ];
    const DERIVED: &'static [&'static str] = &["phase", "lastPhaseTransitionTime"];

    fn seal(&self) -> Option<&str> {
        self.seal.as_deref()
    }

    fn set_seal(&mut self, seal: Option<String>) {
        self.seal = seal;
    }

    fn failure(&self) -> Option<&Condition> {
        stalled(&self.conditions).filter(|_| self.completed_at.is_some() && self.model.is_none())
    }
}

impl Sealable for EvaluationStatus {
    const SEALED: &'static [&'static str] = &[
        "trainingRunUid",
        "configDigest",
        "model",
        "metrics",
        "outcomes",
        "goldenTokens",
        "references",
        "reportDigest",
        "dataDigests",
        "reads",
        "schedule",
        "imageId",
        "startedAt",
        "completedAt",
        "evidence",
        "evidenceReason",
    ];
    const DERIVED: &'static [&'static str] =
        &["phase", "lastPhaseTransitionTime", "verdict", "gatesPassed", "gates", "gatesDigest"];

    fn seal(&self) -> Option<&str> {
        self.seal.as_deref()
    }

    fn set_seal(&mut self, seal: Option<String>) {
        self.seal = seal;
    }

    fn failure(&self) -> Option<&Condition> {
        stalled(&self.conditions).filter(|_| self.completed_at.is_some() && self.metrics.is_empty())
    }
}

impl Sealable for ReasoningPodStatus {
    const SEALED: &'static [&'static str] =
        &["trainingRunUid", "manifest", "promotion", "verified", "rollout", "shadow", "history", "current", "redeploy"];
    const DERIVED: &'static [&'static str] = &["evidence", "evidenceReason", "reportDigest", "signOffs"];

    fn seal(&self) -> Option<&str> {
        self.seal.as_deref()
    }

    fn set_seal(&mut self, seal: Option<String>) {
        self.seal = seal;
    }

    fn failure(&self) -> Option<&Condition> {
        None
    }
}

/// Why the recorded status of an object was discarded: now, or earlier without a new result since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discarded {
    /// Another client wrote it, or the seal key was lost.
    NotSealed,
    /// It was recorded for another object.
    Restored,
}

impl Discarded {
    /// Returns why the status was discarded. `recorded` holds the conditions of the status.
    pub(crate) fn of(seal: &StatusSeal, recorded: &[Condition]) -> Option<Self> {
        match seal {
            StatusSeal::Broken => Some(Self::NotSealed),
            StatusSeal::Restored(_) => Some(Self::Restored),
            StatusSeal::Valid if is_true(recorded, ConditionType::StatusDiscarded) => {
                let restored = find(recorded, ConditionType::StatusDiscarded)
                    .is_some_and(|condition| condition.reason == Reason::Restored.name());
                Some(if restored { Self::Restored } else { Self::NotSealed })
            }
            StatusSeal::Valid => None,
        }
    }

    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::NotSealed => Reason::NotSealed,
            Self::Restored => Reason::Restored,
        }
    }
}

/// Sets `StatusDiscarded` if the status was discarded now, or if it was discarded earlier and the object is not `settled`.
pub(crate) fn condition(conditions: &mut Conditions<'_>, seal: &StatusSeal, settled: bool) {
    let message = match seal {
        StatusSeal::Valid if settled => return,
        StatusSeal::Valid => return conditions.keep(ConditionType::StatusDiscarded),
        StatusSeal::Broken => {
            "the recorded status carries no valid seal of this controller, so another client wrote it or \
                               the Secret codex-seal was replaced: its results are discarded and determined again"
                .to_owned()
        }
        StatusSeal::Restored(uid) => format!(
            "the recorded status belongs to a former object (uid {uid}), as backup tools restore it: its results are \
             discarded"
        ),
    };
    let reason = if *seal == StatusSeal::Broken { Reason::NotSealed } else { Reason::Restored };
    conditions.set(ConditionType::StatusDiscarded, true, reason, &message);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> EvaluationStatus {
        serde_json::from_value(json!({
            "observedGeneration": 1, "verdict": "Passed", "gatesPassed": "1/1", "trainingRunUid": "run", "attempts": 1,
            "metrics": [{"name": "exact_match", "kind": "share", "n": 10, "successes": 9}], "seal": "x",
            "imageId": "codex@sha256:0", "completedAt": "2027-01-15T08:00:00Z", "evidence": "strong",
        }))
        .unwrap()
    }

    #[test]
    fn what_is_derived_is_not_sealed_and_what_is_sealed_is_discarded() {
        let sealed = status().sealed();
        assert_eq!(sealed["fields"]["metrics"][0]["successes"], 9);
        assert!(sealed["fields"].get("verdict").is_none() && sealed["fields"].get("seal").is_none(), "{sealed}");
        let edited = EvaluationStatus { verdict: None, gates_passed: None, ..status() };
        assert_eq!(edited.sealed()["fields"], sealed["fields"]);
        let rest = status().believed(&StatusSeal::Broken);
        assert_eq!(rest.sealed()["fields"], json!({}));
        assert_eq!((rest.verdict, rest.gates_passed, rest.seal), (None, None, None));
        assert_eq!((rest.observed_generation, rest.work.attempts), (Some(1), Some(1)));
        assert_eq!(status().believed(&StatusSeal::Valid), status());
    }

    #[test]
    fn every_sealed_or_derived_field_exists() {
        fn check<S: Sealable>(kind: &str) {
            let crds = codex_crds::manifests::all();
            let (_, crd) = crds.iter().find(|(_, crd)| crd.spec.names.kind == kind).unwrap();
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
            let properties = &schema["openAPIV3Schema"]["properties"]["status"]["properties"];
            for name in S::SEALED.iter().chain(S::DERIVED) {
                assert!(properties[name].is_object(), "{kind}: {name}");
            }
        }
        check::<TrainingRunStatus>("TrainingRun");
        check::<EvaluationStatus>("Evaluation");
        check::<ReasoningPodStatus>("ReasoningPod");
    }

    #[test]
    fn a_failure_is_sealed_with_its_reason_and_message() {
        let failed = |message: &str| -> TrainingRunStatus {
            serde_json::from_value(json!({
                "completedAt": "2027-01-15T08:00:00Z",
                "conditions": [{
                    "type": "Stalled", "status": "True", "reason": "PodFailed", "message": message,
                    "lastTransitionTime": "2027-01-15T08:00:00Z",
                }],
            }))
            .unwrap()
        };
        assert_ne!(failed("a").sealed(), failed("b").sealed());
        assert_ne!(failed("a").sealed()["failure"], Value::Null);
    }
}
