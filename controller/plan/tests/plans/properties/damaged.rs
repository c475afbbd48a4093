//! Plans of damaged observations: there is one for everything that parses.

use std::{cell::RefCell, collections::BTreeMap};

use codex_crds::Reason;
use codex_plan::{Obstruction, evaluation, reasoning_pod, training_run};
use proptest::{prelude::*, test_runner::TestRunner};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::busy;
use crate::{canaries::trying, make};

/// Collects the JSON pointers of all values in a value.
fn places(value: &Value, path: &str, all: &mut Vec<String>) {
    all.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                places(inner, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                places(inner, &format!("{path}/{index}"), all);
            }
        }
        _ => {}
    }
}

/// Replaces values of an observation by strange ones, so that it still parses; returns it with the number of damages.
fn damage<O: DeserializeOwned>(observed: &impl Serialize, hits: &[(prop::sample::Index, usize)]) -> (O, usize) {
    let strange = [
        Value::Null,
        json!(""),
        json!(-1),
        json!(i64::MAX),
        json!(0),
        json!("NaN"),
        json!([]),
        json!({}),
        json!("True"),
        json!("2026-01-01T00:00:00Z"),
        json!("9999-12-30T22:00:00Z"),
        json!("ä".repeat(70)),
    ];
    let mut value = serde_json::to_value(observed).unwrap();
    let mut damages = 0;
    for (index, kind) in hits {
        let mut all = Vec::new();
        places(&value, "", &mut all);
        let first = index.index(all.len());
        // Some places, such as the digests, take no strange value: the next place that takes one is damaged.
        let (before, after) = all.split_at(first);
        damages += usize::from(after.iter().chain(before).any(|place| {
            let sound = value.pointer(place).unwrap().clone();
            let candidates = (0..strange.len()).map(|offset| &strange[(kind % strange.len() + offset) % strange.len()]);
            let parses = candidates.filter(|strange| **strange != sound).any(|strange| {
                *value.pointer_mut(place).unwrap() = strange.clone();
                serde_json::from_value::<O>(value.clone()).is_ok()
            });
            if !parses {
                *value.pointer_mut(place).unwrap() = sound;
            }
            parses
        }));
    }
    (serde_json::from_value(value).unwrap(), damages)
}

fn obstruction() -> impl Strategy<Value = Option<Obstruction>> {
    let reasons = prop::sample::select(vec![Reason::NameTaken, Reason::Refused, Reason::Serving]);
    prop::option::of(
        (reasons, ".{0,9}", prop::option::of(1_i64..3)).prop_map(|(reason, message, generation)| Obstruction {
            reason,
            message,
            generation,
            waits: false,
        }),
    )
}

#[test]
fn plans_are_total() {
    let cases = (
        prop::collection::vec((any::<prop::sample::Index>(), any::<usize>()), 1..5),
        -1_000_000_000_i64..1_000_000_000,
        any::<bool>(),
        any::<bool>(),
        obstruction(),
    );
    // For each kind: the damages that were generated, and those that left an observation that parses.
    let counts = RefCell::new([(0, 0); 3]);
    let finished = busy();
    let mut tried = trying();
    tried.object.spec.autoscaling = Some(make::from(json!({"metrics": {"queueDepth": 2}})));
    let mut runner = TestRunner::new(ProptestConfig { cases: 600, ..ProptestConfig::default() });
    let result = runner.run(&cases, |(hits, second, unfinished, based, obstruction)| {
        let mut run = finished.observed_run();
        let mut evaluation = finished.observed_evaluation();
        let mut pod = finished.observed_pod();
        if based {
            let base = json!({"trainingRun": {"name": "b"}, "digest": make::model("a").digest});
            (run.base, run.object.spec.base) = (Some(finished.run.clone()), Some(make::from(base)));
            run.base_cycle = vec!["b".to_owned()];
            evaluation.object.spec.training_run = None;
            let model = json!({"persistentVolumeClaim": {"claimName": "output", "path": "llama"}});
            evaluation.object.spec.model = Some(make::from(model));
            evaluation.object.spec.output = Some(run.object.spec.output.clone());
            pod = tried.clone();
        }
        if unfinished {
            run.object.status = None;
            evaluation.object.status.as_mut().unwrap().completed_at = None;
            evaluation.run = Some(run.object.clone());
            pod.run = Some(run.object.clone());
            pod.evaluations = BTreeMap::from([("lite".to_owned(), evaluation.object.clone())]);
        }
        run.obstruction.clone_from(&obstruction);
        evaluation.obstruction.clone_from(&obstruction);
        pod.obstruction = obstruction;
        let (run, hurt_run) = damage(&run, &hits);
        training_run::plan(&run, make::at(second));
        let (evaluation, hurt_evaluation) = damage(&evaluation, &hits);
        evaluation::plan(&evaluation, make::at(second));
        let (pod, hurt_pod) = damage(&pod, &hits);
        reasoning_pod::plan(&pod, make::at(second));
        for ((all, done), hurt) in counts.borrow_mut().iter_mut().zip([hurt_run, hurt_evaluation, hurt_pod]) {
            (*all, *done) = (*all + hits.len(), *done + hurt);
        }
        Ok(())
    });
    result.unwrap();
    for (kind, (all, done)) in ["TrainingRun", "Evaluation", "ReasoningPod"].into_iter().zip(counts.into_inner()) {
        assert!(
            all >= 600 && done * 10 >= all * 9,
            "{kind}: only {done} of {all} damages left an observation that parses"
        );
    }
}
