//! Comparison of reports that must say the same. Pure.

use std::collections::BTreeSet;

use codex_provenance::Sha256;
use serde_json::{Value, json};

use crate::{Report, State};

/// The most characters of a value in a sentence.
const MAX_VALUE: usize = 60;

impl Report {
    /// Returns the SHA-256 of the report, sorted by key and without its sequence number: a pod that repeats its final report
    /// numbers it anew.
    pub fn digest(&self) -> Sha256 {
        let mut comparable = self.comparable();
        comparable.sort_all_objects();
        Sha256::of(comparable.to_string())
    }

    /// Compares the report with another final report of the same pod. Returns the first field that differs, with both values.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        difference(&self.comparable(), &other.comparable(), "")
    }

    /// Compares a final report with the termination message of its pod, which may be shortened. Returns the first field that
    /// differs, with both values.
    pub fn contradicts_termination(&self, message: &Self) -> Option<String> {
        match message.digest {
            Some(digest) if digest == self.digest() => None,
            Some(digest) => self.contradicts_essentials(message).or_else(|| {
                Some(format!("the digest of the report is {}, but the message names {digest}", self.digest()))
            }),
            None => self.contradicts_essentials(message),
        }
    }

    fn contradicts_essentials(&self, other: &Self) -> Option<String> {
        difference(&self.essentials(), &other.essentials(), "")
    }

    /// Returns everything that two deliveries of the same report have in common.
    fn comparable(&self) -> Value {
        let mut all = serde_json::to_value(self).unwrap_or_default();
        if let Some(all) = all.as_object_mut() {
            all.remove("seq");
            all.remove("digest");
        }
        all
    }

    /// Returns the parts that a shortened report keeps and that decide something.
    fn essentials(&self) -> Value {
        let result = match &self.state {
            State::Training(state) => json!({ "model": state.model.as_ref().map(|model| model.digest) }),
            State::Evaluation(state) => json!({ "modelDigest": state.model_digest, "metrics": state.metrics }),
            State::Serving(state) => json!({ "verified": state.verified, "promotion": state.promotion }),
        };
        json!({
            "configDigest": self.config_digest,
            "failure": self.state.failure().map(|failure| (&failure.reason, failure.is_final)),
            "result": result,
            "stage": self.state.stage(),
        })
    }
}

fn difference(one: &Value, other: &Value, path: &str) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let value = |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
                difference(&value(one), &value(other), &path)
            })
        }
        (one, other) if one == other => None,
        (one, other) => Some(format!("{path} is {} in one and {} in the other", brief(one), brief(other))),
    }
}

fn brief(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    let text = value.to_string();
    if text.chars().count() <= MAX_VALUE {
        return text;
    }
    text.chars().take(MAX_VALUE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use codex_verdict::Measurement;

    use super::*;
    use crate::{EvaluationState, Kind, SCHEMA_VERSION, Stage, TrainingState};

    fn report(seq: u64, successes: u64) -> Report {
        let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes, n: 1_000 })]);
        Report {
            schema_version: SCHEMA_VERSION,
            kind: Kind::Evaluation,
            namespace: "team".to_owned(),
            name: "lite".to_owned(),
            object_uid: "object".to_owned(),
            pod_uid: "pod".to_owned(),
            attempt: 1,
            seq,
            config_digest: None,
            digest: None,
            state: State::Evaluation(EvaluationState { stage: Stage::Finished, metrics, ..EvaluationState::default() }),
        }
    }

    #[test]
    fn a_repeated_report_is_the_same_whatever_its_number() {
        assert_eq!(report(1, 9).digest(), report(2, 9).digest());
        assert_eq!(report(1, 9).contradicts(&report(2, 9)), None);
        assert_ne!(report(1, 9).digest(), report(1, 8).digest());
        assert_eq!(
            report(1, 1_000).contradicts(&report(2, 12)).as_deref(),
            Some("state.evaluation.metrics.exact_match.successes is 1000 in one and 12 in the other")
        );
    }

    #[test]
    fn a_number_that_is_not_finite_survives_the_wire() {
        let progress = serde_json::from_value(json!({
            "step": 1, "totalSteps": 2, "loss": null, "tokensPerSecond": null, "etaSeconds": null,
        }));
        let state = TrainingState { progress: Some(progress.unwrap()), ..TrainingState::default() };
        let sent = Report { state: State::Training(state), ..report(1, 1) };
        let read: Report = serde_json::from_slice(&serde_json::to_vec(&sent).unwrap()).unwrap();
        assert_eq!(read.digest(), sent.digest());
    }

    #[test]
    fn a_termination_message_confirms_a_report_by_digest_or_by_its_essentials() {
        let sent = report(5, 9);
        let named = |successes| Report { digest: Some(report(1, successes).digest()), ..report(4, successes) };
        assert_eq!(sent.contradicts_termination(&named(9)), None);
        assert_eq!(sent.contradicts_termination(&report(4, 9)), None, "a message without a digest");
        let told = sent.contradicts_termination(&named(8)).unwrap();
        assert!(told.starts_with("result.metrics.exact_match.successes is 9"), "{told}");
        // A shortened message names the digest of more than it holds.
        let other = Report { digest: Some(report(1, 7).digest()), ..report(4, 9) };
        assert!(sent.contradicts_termination(&other).unwrap().contains("the message names"));
    }
}
