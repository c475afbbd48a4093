//! Counts existing objects for the metrics, from the caches. It runs only when metrics are requested.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use codex_crds::{ConditionType, Evaluation, Reason, ReasoningPod, TrainingRun, TrainingRunPhase};
use codex_plan::conditions::{find, is_true};
use codex_verdict::ComparisonSpec;
use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use tokio::task::yield_now;

use crate::{
    inbox::{Inbox, Moves},
    kinds::kinds,
    observe::{Failures, Kind, Queues, Stores},
};

/// Number of objects that are counted before the thread does other work.
const AT_ONCE: usize = 64;

/// The gate of a metric that has the lowest margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tightest {
    /// The distance of the bound from the limit; negative if the gate is missed.
    pub margin: f64,
    /// The bound that was judged: that of the value, or that of the mean difference if the gate compares.
    pub bound: f64,
    /// What the gate requires of the bound: at least this, or at most this for `max`.
    pub limit: f64,
}

/// What a leader knows about objects.
pub struct Leader {
    /// The caches.
    pub stores: Arc<Stores>,
    /// The newest reports.
    pub inbox: Arc<Inbox>,
    /// The queues.
    pub queues: Queues,
    /// Why watches fail.
    pub failures: Failures,
    /// When the process began to reconcile.
    pub since: Timestamp,
}

/// The counts, by the values of the labels.
#[derive(Debug, Default, PartialEq)]
pub struct Census {
    /// By kind: the objects that wait to be reconciled, and how long the one that waits longest has waited.
    pub waiting: BTreeMap<String, (i64, Duration)>,
    /// By kind, phase and ring.
    pub objects: BTreeMap<[String; 3], i64>,
    /// By kind and phase: when the first of the objects in the phase got there, if their statuses say so.
    pub phases: BTreeMap<[String; 2], Timestamp>,
    /// By kind, type, status and reason: the objects, and when the first of them got the condition.
    pub conditions: BTreeMap<[String; 4], (i64, Timestamp)>,
    /// By metric and verdict.
    pub gates: BTreeMap<[String; 2], i64>,
    /// By metric: the gate with the lowest margin.
    pub tightest: BTreeMap<String, Tightest>,
    /// By the first digits of the digest of problems: the highest number of a read.
    pub reads: BTreeMap<String, i64>,
    /// Steps that existing runs have completed.
    pub completed_steps: i64,
    /// Steps that they executed, including repeated ones.
    pub executed_steps: i64,
    /// The latest step of the running run that stands still longest.
    pub progress_oldest: Option<Timestamp>,
    /// The newest checkpoint of the running run whose newest checkpoint is the oldest.
    pub checkpoint_oldest: Option<Timestamp>,
    /// Ready servers by ring.
    pub serving: BTreeMap<String, i64>,
    /// ReasoningPods with ready servers whose status proves no verified model, or says that a policy denies it.
    pub unverified: i64,
    /// ReasoningPods whose model, or what they serve, is on a deny-list.
    pub revoked: i64,
    /// ReasoningPods that redeploy by the phase of their latest cycle.
    pub redeploying: BTreeMap<String, i64>,
    /// Sign-offs that promoted cycles had.
    pub cycle_overrides: i64,
}

macro_rules! count_kinds {
    (
        reconciled { $($reconciled:ident: $kind:ty, $label:expr;)* }
        referenced { $($referenced:ident: $referenced_kind:ty;)* }
    ) => {
        async fn count_objects(census: &mut Census, leader: &Leader) {
            $(
                census.waiting.insert(<$kind>::kind(&()).into_owned(), (0, Duration::ZERO));
                for (index, object) in leader.stores.$reconciled.all().enumerate() {
                    census.object(&*object);
                    object.details(census, leader);
                    if index % AT_ONCE == AT_ONCE - 1 {
                        yield_now().await;
                    }
                }
            )*
            $(leader.stores.$referenced.all().for_each(|object| census.object(&*object));)*
        }
    };
}

kinds!(count_kinds);

/// A reconciled kind, of which more is counted than of every kind.
trait Details {
    fn details(&self, census: &mut Census, leader: &Leader);
}

impl Details for TrainingRun {
    fn details(&self, census: &mut Census, leader: &Leader) {
        census.run(self, leader.since, leader.inbox.moves(&self.uid().unwrap_or_default()));
    }
}

impl Details for Evaluation {
    fn details(&self, census: &mut Census, _: &Leader) {
        census.evaluation(self);
    }
}

impl Details for ReasoningPod {
    fn details(&self, census: &mut Census, _: &Leader) {
        census.reasoning_pod(self);
    }
}

impl Census {
    /// Counts everything. Thousands of objects take a second, in which the thread also does its other work.
    pub async fn of(leader: &Leader) -> Self {
        let mut census = Self::default();
        count_objects(&mut census, leader).await;
        census.waiting.extend(leader.queues.waiting().by_kind());
        census
    }

    fn object<K: Kind>(&mut self, object: &K) {
        let kind = K::kind(&()).into_owned();
        *self.objects.entry([kind.clone(), object.phase(), object.ring()]).or_default() += 1;
        if let Some(since) = object.phase_since() {
            let first = self.phases.entry([kind.clone(), object.phase()]).or_insert(since);
            *first = since.min(*first);
        }
        for condition in object.conditions() {
            let key = [kind.clone(), condition.type_.clone(), condition.status.clone(), condition.reason.clone()];
            let since = condition.last_transition_time.0;
            let (objects, oldest) = self.conditions.entry(key).or_insert((0, since));
            *objects += 1;
            *oldest = since.min(*oldest);
        }
    }

    fn run(&mut self, run: &TrainingRun, since: Timestamp, moves: Moves) {
        let Some(status) = &run.status else { return };
        let completed = status.progress.as_ref().map_or(0, |progress| progress.step);
        self.completed_steps += completed;
        // Reports of a run may name its progress before they count its steps.
        self.executed_steps += status.steps_executed.unwrap_or(0).max(completed);
        if status.phase == Some(TrainingRunPhase::Running) {
            // Reports from before this process led are unknown. A run that has just started is not late.
            let started = status.work.active_since.as_ref().or(status.work.started_at.as_ref());
            let earliest = started.map_or(since, |started| started.0.max(since));
            let seen = |at: Option<Timestamp>| at.unwrap_or(earliest).max(earliest);
            let oldest = |known: Option<Timestamp>, at| Some(known.map_or(at, |known| known.min(at)));
            self.progress_oldest = oldest(self.progress_oldest, seen(moves.stepped()));
            self.checkpoint_oldest = oldest(self.checkpoint_oldest, seen(moves.saved()));
        }
    }

    fn evaluation(&mut self, evaluation: &Evaluation) {
        let Some(status) = &evaluation.status else { return };
        if let Some(read) = &status.reads {
            let most = self.reads.entry(read.data_digest.short()).or_default();
            *most = read.number.max(*most);
        }
        for (result, gate) in status.gates.iter().zip(&evaluation.spec.gates) {
            let verdict = format!("{:?}", result.verdict);
            *self.gates.entry([result.metric.clone(), verdict]).or_default() += 1;
            // Gates that were changed are judged again; until then they may not fit the results.
            if gate.metric != result.metric {
                continue;
            }
            let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
            let by = |with: &ComparisonSpec| with.by.as_ref().map_or(Some(0.0), |by| number(&by.0));
            let limit = match (&gate.min, &gate.max, &gate.better_than, &gate.not_worse_than) {
                (Some(min), None, None, None) => number(&min.0),
                (None, Some(max), None, None) => number(&max.0),
                (None, None, Some(with), None) => by(with),
                // Of a difference, so that 0 - 0 is not -0.
                (None, None, None, Some(with)) => by(with).map(|by| 0.0 - by),
                _ => None,
            };
            // A comparison by 0 of a share is decided by McNemar's test, which has no bound.
            let bound = match (&gate.confidence, &gate.max) {
                (None, _) => &result.value,
                (Some(_), None) => &result.lower,
                (Some(_), Some(_)) => &result.upper,
            };
            let bound = bound.as_ref().and_then(|bound| number(&bound.0));
            let (Some(bound), Some(limit)) = (bound, limit) else { continue };
            let margin = if gate.max.is_some() { limit - bound } else { bound - limit };
            let found = Tightest { margin, bound, limit };
            let tightest = self.tightest.entry(result.metric.clone()).or_insert(found);
            // Of equal margins the lower limit counts, so that the order of the objects does not matter.
            if [margin, limit] < [tightest.margin, tightest.limit] {
                *tightest = found;
            }
        }
    }

    fn reasoning_pod(&mut self, pod: &ReasoningPod) {
        let Some(status) = &pod.status else { return };
        if let Some(redeploy) = &status.redeploy {
            let phase = redeploy.phase.map_or_else(|| "Waiting".to_owned(), |phase| format!("{phase:?}"));
            *self.redeploying.entry(phase).or_default() += 1;
            self.cycle_overrides += redeploy.manual_overrides;
        }
        self.revoked += i64::from(is_true(&status.conditions, ConditionType::Revoked));
        let ready = i64::from(status.ready_replicas.unwrap_or(0));
        if ready == 0 {
            return;
        }
        *self.serving.entry(pod.spec.rollout_ring.to_string()).or_default() += ready;
        let same = |digest| status.verified.as_ref().is_some_and(|verified| verified.digest == digest);
        let proven = status.promotion.is_some()
            && status.manifest.as_ref().is_some_and(|manifest| same(manifest.digest))
            && is_true(&status.conditions, ConditionType::Verified);
        // With another reason, only a model that is not served is denied.
        let denied = find(&status.conditions, ConditionType::Revoked)
            .is_some_and(|revoked| revoked.status == "True" && revoked.reason == Reason::Revoked.name());
        self.unverified += i64::from(!proven || denied);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{Census, Tightest};
    use crate::inbox::Moves;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn object<K: serde::de::DeserializeOwned>(kind: &str, spec: &Value, status: &Value) -> K {
        let object = json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": kind, "metadata": { "name": "x" }, "spec": spec, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn condition(kind: &str, status: &str, reason: &str, second: i64) -> Value {
        json!({ "type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": at(second).to_string() })
    }

    fn run(status: &Value) -> codex_crds::TrainingRun {
        let spec = json!({
            "rolloutRing": "main", "template": "cot-starter", "data": [],
            "output": { "persistentVolumeClaim": { "claimName": "runs" } },
        });
        object("TrainingRun", &spec, status)
    }

    #[test]
    fn objects_are_counted_with_their_ring_and_conditions() {
        let mut census = Census::default();
        let status = |second| {
            json!({
                "phase": "Failed",
                "lastPhaseTransitionTime": at(second + 5).to_string(),
                "conditions": [condition("Ready", "False", "PodFailed", second)],
            })
        };
        for second in [70, 50, 60] {
            census.object(&run(&status(second)));
        }
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(census.objects[&words(&["TrainingRun", "Failed", "main"])[..]], 3);
        assert_eq!(census.conditions[&words(&["TrainingRun", "Ready", "False", "PodFailed"])[..]], (3, at(50)));
        // A status of an earlier release does not say when its phase began.
        census.object(&run(&json!({ "phase": "Failed" })));
        assert_eq!(census.phases[&words(&["TrainingRun", "Failed"])[..]], at(55));
    }

    #[test]
    fn the_run_that_stands_still_longest_counts() {
        let mut census = Census::default();
        let running = json!({
            "phase": "Running", "startedAt": at(100).to_string(), "stepsExecuted": 12,
            "progress": { "step": 9, "totalSteps": 20, "steps": "9/20" },
        });
        census.run(&run(&json!({ "phase": "Succeeded" })), at(50), Moves::default());
        assert_eq!(census.progress_oldest, None);
        census.run(&run(&running), at(50), Moves::at(Some(at(300)), None));
        assert_eq!((census.progress_oldest, census.checkpoint_oldest), (Some(at(300)), Some(at(100))));
        census.run(&run(&running), at(200), Moves::at(Some(at(240)), Some(at(180))));
        // What happened before this process led is not known to be late.
        assert_eq!((census.progress_oldest, census.checkpoint_oldest), (Some(at(240)), Some(at(100))));
        assert_eq!((census.completed_steps, census.executed_steps), (18, 24));
    }

    #[test]
    fn margins_are_those_of_the_bound_that_decides() {
        let with = |by: &str| json!({ "evaluation": "before", "by": by });
        let gates = json!([
            { "metric": "exact_match", "min": "0.5", "confidence": "0.95" },
            { "metric": "exact_match", "min": "0.9", "confidence": "0.95" },
            { "metric": "trace_coverage", "max": "0.5", "confidence": "0.95" },
            { "metric": "reasoning.win_rate", "min": "0.5" },
            { "metric": "bleu", "notWorseThan": with("0.1"), "confidence": "0.95" },
            { "metric": "perplexity", "betterThan": { "evaluation": "before" } },
        ]);
        let result = |metric: &str, verdict: &str| json!({ "metric": metric, "verdict": verdict, "value": "0.7", "lower": "0.6", "upper": "0.8", "message": "" });
        let status = json!({ "gates": [
            result("exact_match", "Passed"), result("exact_match", "Failed"), result("trace_coverage", "Failed"),
            result("reasoning.win_rate", "Passed"), result("bleu", "Passed"), result("perplexity", "Passed"),
        ], "reads": { "dataDigest": "1".repeat(64), "number": 3 } });
        let mut census = Census::default();
        census.evaluation(&object(
            "Evaluation",
            &json!({ "trainingRun": "x", "preset": "cot-lite", "gates": gates }),
            &status,
        ));
        for (metric, margin, bound, limit) in [
            // Of two gates on a metric, all three numbers are those of the one that is missed.
            ("exact_match", -0.3, 0.6, 0.9),
            ("trace_coverage", -0.3, 0.8, 0.5),
            // Without confidence the value decides.
            ("reasoning.win_rate", 0.2, 0.7, 0.5),
            // Comparisons are about the mean difference.
            ("bleu", 0.7, 0.6, -0.1),
            ("perplexity", 0.7, 0.7, 0.0),
        ] {
            let found = census.tightest[metric];
            assert!((found.margin - margin).abs() < 1e-9, "{metric}: {found:?}");
            assert_eq!((found.bound, found.limit), (bound, limit), "{metric}");
        }
        assert_eq!(census.tightest.len(), 5);
        assert_eq!(census.reads, [("1".repeat(12), 3)].into());
        assert_eq!(census.gates.values().sum::<i64>(), 6);
        assert_eq!(census.gates[&["exact_match".to_owned(), "Failed".to_owned()]], 1);
    }

    #[test]
    fn the_same_gate_is_the_tightest_in_any_order_and_one_without_a_bound_is_left_out() {
        let evaluation = |gate: Value, result: Value| {
            let spec = json!({ "trainingRun": "x", "preset": "cot-lite", "gates": [gate] });
            object("Evaluation", &spec, &json!({ "gates": [result] }))
        };
        let result =
            |value: &str| json!({ "metric": "exact_match", "verdict": "Passed", "value": value, "message": "" });
        let (low, high) =
            (json!({ "metric": "exact_match", "min": "0.25" }), json!({ "metric": "exact_match", "min": "0.5" }));
        let [one, other] = [evaluation(low, result("0.5")), evaluation(high, result("0.75"))];
        for order in [[&one, &other], [&other, &one]] {
            let mut census = Census::default();
            for evaluation in order {
                census.evaluation(evaluation);
            }
            let expected = Tightest { margin: 0.25, bound: 0.5, limit: 0.25 };
            assert_eq!(census.tightest, [("exact_match".to_owned(), expected)].into());
        }
        // McNemar's test decides by a p-value.
        let compares =
            json!({ "metric": "exact_match", "betterThan": { "evaluation": "before" }, "confidence": "0.95" });
        let mut census = Census::default();
        census.evaluation(&evaluation(compares, result("0.5")));
        assert_eq!((census.tightest.len(), census.gates.len()), (0, 1));
    }

    #[test]
    fn servers_without_a_verified_model_are_counted() {
        let (one, other) = ("a".repeat(64), "b".repeat(64));
        let status = |verified: &str, holds: &str| {
            json!({
                "readyReplicas": 2,
                "manifest": { "digest": one, "short": "aaaaaaaaaaaa", "signer": "s", "bundle": "b" },
                "promotion": { "ring": "main", "digest": one, "bundle": "b" },
                "verified": { "digest": verified, "by": "pod", "at": at(1).to_string() },
                "conditions": [condition("Verified", holds, "BytesVerified", 1)],
            })
        };
        let unverified = |status: &Value| {
            let mut census = Census::default();
            let spec = json!({ "rolloutRing": "main", "trainingRun": "x", "evaluations": ["y"] });
            census.reasoning_pod(&object("ReasoningPod", &spec, status));
            (census.serving.get("main").copied(), census.unverified)
        };
        assert_eq!(unverified(&status(&one, "True")), (Some(2), 0));
        assert_eq!(unverified(&status(&one, "False")), (Some(2), 1));
        assert_eq!(unverified(&status(&other, "True")), (Some(2), 1));
        let mut unsigned = status(&one, "True");
        unsigned["promotion"] = Value::Null;
        assert_eq!(unverified(&unsigned), (Some(2), 1));
        assert_eq!(unverified(&json!({ "readyReplicas": 0 })), (None, 0));
        // What is served is denied and still answers; what follows is denied, or nothing is any more.
        for (state, reason, counted) in
            [("True", "Revoked", 1), ("True", "Blocked", 0), ("False", "RevocationLifted", 0)]
        {
            let mut denied = status(&one, "True");
            denied["conditions"].as_array_mut().unwrap().push(condition("Revoked", state, reason, 1));
            assert_eq!(unverified(&denied), (Some(2), counted), "{state} {reason}");
            denied["readyReplicas"] = json!(0);
            assert_eq!(unverified(&denied), (None, 0), "{state} {reason}");
        }
    }

    #[test]
    fn redeployments_are_counted_by_the_phase_of_their_latest_cycle() {
        let mut census = Census::default();
        let spec = json!({ "rolloutRing": "main", "trainingRun": "x", "evaluations": ["y"] });
        for (phase, overrides) in [(json!("Training"), 2), (json!("Training"), 0), (Value::Null, 0)] {
            let redeploy = json!({ "phase": phase, "promoted": 0, "manualOverrides": overrides });
            census.reasoning_pod(&object("ReasoningPod", &spec, &json!({ "redeploy": redeploy })));
        }
        census.reasoning_pod(&object("ReasoningPod", &spec, &json!({})));
        let counted = [("Training".to_owned(), 2), ("Waiting".to_owned(), 1)];
        assert_eq!((census.redeploying, census.cycle_overrides), (counted.into(), 2));
    }

    #[test]
    fn revoked_objects_are_counted_also_without_servers() {
        let revoked = |status: &str| {
            let mut census = Census::default();
            let spec = json!({ "rolloutRing": "main", "trainingRun": "x", "evaluations": ["y"] });
            let status = json!({ "readyReplicas": 0, "conditions": [condition("Revoked", status, "Revoked", 1)] });
            census.reasoning_pod(&object("ReasoningPod", &spec, &status));
            census.revoked
        };
        assert_eq!((revoked("True"), revoked("False")), (1, 0));
    }
}
