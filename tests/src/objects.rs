//! The objects that tests create: a tiny model that learns in seconds, its evaluation, its server. Pure.

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use serde_json::{Value, json};

/// The claim of every team.
pub const CLAIM: &str = "tiny-models";
/// The ConfigMap of every team, with held-out problems under [`PROBLEMS_KEY`].
pub const PROBLEMS: &str = "problems";
/// The key of the problems.
pub const PROBLEMS_KEY: &str = "held-out.jsonl";
/// The number of problems.
pub const PROBLEM_COUNT: usize = 120;
/// Steps between two checkpoints of a tiny run.
pub const CHECKPOINT_EVERY: i64 = 100;

/// Steps of a tiny run.
pub const STEPS: i64 = 700;
/// Overrides of `cot-starter` with which a model learns many of the steps within seconds: with the seeds 1, 2 and 3 the lower
/// bound of `trace_coverage` over the team's problems was 0.83, 0.23 and 0.79.
pub const TINY: [&str; 9] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "training.max_steps=700",
    "training.learning_rate=0.01",
    "training.warmup_steps=20",
    "training.batch_size=32",
    "training.checkpoint_every=100",
];

/// A bound that the tiny model reaches and an untrained model, whose upper bound is 0.072, does not.
pub const TRACE_COVERAGE: &str = "0.1";

/// Returns a tiny run. `overrides` follow those of [`TINY`]; the later one of two with the same key applies.
pub fn run(name: &str, overrides: &[&str]) -> TrainingRun {
    let overrides: Vec<_> = TINY.iter().chain(overrides).collect();
    read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": { "name": name },
        "spec": {
            "rolloutRing": "0A_base_",
            "template": "cot-starter",
            "overrides": overrides,
            "seed": 1,
            "data": [{ "name": "arithmetic", "source": { "synthetic": { "task": "arithmetic", "seed": 1, "count": 20000 } } }],
            "output": { "persistentVolumeClaim": { "claimName": CLAIM, "subPath": "runs" } },
            "pod": pod("512Mi"),
        },
    }))
}

/// Returns an evaluation of `run` over the team's problems, whose SHA-256 is `problems`, with one gate that a trained tiny
/// model passes with confidence.
pub fn evaluation(name: &str, run: &str, problems: &str) -> Evaluation {
    read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1",
        "kind": "Evaluation",
        "metadata": { "name": name },
        "spec": {
            "trainingRun": run,
            "preset": "cot-lite",
            "overrides": ["evaluation.max_new_tokens=64"],
            "data": [{
                "name": "problems",
                "sha256": problems,
                "source": { "configMap": { "name": PROBLEMS, "key": PROBLEMS_KEY } },
            }],
            "gates": [{ "metric": "trace_coverage", "min": TRACE_COVERAGE, "minSamples": 100, "confidence": "0.95" }],
            "pod": pod("512Mi"),
        },
    }))
}

/// Returns a ReasoningPod for `run`, gated by `evaluation`, with `dryRun: false`.
pub fn reasoning_pod(name: &str, run: &str, evaluation: &str) -> ReasoningPod {
    read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1",
        "kind": "ReasoningPod",
        "metadata": { "name": name },
        "spec": {
            "rolloutRing": "0A_base_",
            "trainingRun": run,
            "evaluations": [evaluation],
            "dryRun": false,
            "pod": pod("256Mi"),
        },
    }))
}

fn pod(memory: &str) -> Value {
    json!({ "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": memory } } })
}

/// Deserializes an object that is written in this file.
#[allow(clippy::expect_used, reason = "the text is in this file, and every test reads it")]
fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the object matches the API")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_can_be_read() {
        assert!(TINY.contains(&&*format!("training.max_steps={STEPS}")));
        assert_eq!(run("a", &["training.max_steps=5"]).spec.overrides.len(), TINY.len() + 1);
        assert_eq!(evaluation("a", "b", &"0".repeat(64)).spec.gates.len(), 1);
        assert!(!reasoning_pod("a", "b", "c").spec.dry_run);
    }
}
