//! Tests of the invariants: each finds its violation.

use serde_json::json;

use super::*;
use crate::lies::Refusal;

fn found(witness: &mut Witness, words: &str) {
    let violations = witness.violations();
    assert!(violations.len() == 1 && violations[0].contains(words), "{words:?} is not in {violations:?}");
}

fn request(pod: &str, resource: &str, name: &str, second: u32) -> Request {
    serde_json::from_value(json!({
        "verb": "update",
        "user": { "username": CONTROLLER_USER, "extra": { "authentication.kubernetes.io/pod-name": [pod] } },
        "objectRef": { "resource": resource, "namespace": NAMESPACE, "name": name },
        "responseStatus": { "code": 200 },
        "requestReceivedTimestamp": format!("2026-11-20T10:00:{second:02}.000000Z"),
        "stageTimestamp": format!("2026-11-20T10:00:{second:02}.500000Z"),
    }))
    .unwrap()
}

#[test]
fn an_old_leader_that_writes_is_found() {
    let log = |late: bool| {
        let mut witness = Witness::default();
        let lease = |pod, second| request(pod, "leases", CONTROLLER, second);
        let write = |pod, second| request(pod, "configmaps", "x", second);
        for request in [lease("a", 1), write("a", 2), write("b", 4), lease("b", 5), write("b", 6), lease("b", 9)] {
            witness.see_request(&request);
        }
        if late {
            witness.see_request(&write("a", 7));
        }
        witness
    };
    assert!(log(false).violations().is_empty(), "a write beside the acquisition is one of the leader");
    found(&mut log(true), "a wrote update /configmaps");
    let since = "2026-11-20T10:00:05Z".parse().unwrap();
    assert_eq!(log(false).writes_since(since).len(), 1, "the Lease does not count");
}

fn lease(holder: &str, acquired: u32, renewed: u32) -> Value {
    json!({ "kind": "Lease", "metadata": { "name": CONTROLLER }, "spec": {
        "holderIdentity": holder,
        "acquireTime": format!("2026-11-20T10:00:{acquired:02}.000000Z"),
        "renewTime": format!("2026-11-20T10:00:{renewed:02}.000000Z"),
        "leaseDurationSeconds": 30,
    }})
}

#[test]
fn a_lease_taken_before_it_expired_is_found() {
    let mut witness = Witness::default();
    for version in [lease("a", 0, 10), lease("b", 40, 40)] {
        witness.see(&version);
    }
    assert!(witness.violations().is_empty(), "it had expired");
    let mut witness = Witness::default();
    for version in [lease("a", 0, 10), lease("", 0, 12), lease("b", 13, 13)] {
        witness.see(&version);
    }
    assert!(witness.violations().is_empty(), "it was released");
    let mut witness = Witness::default();
    witness.see(&lease("a", 0, 10));
    witness.begin_again("Lease");
    witness.see(&lease("b", 39, 39));
    assert!(witness.violations().is_empty(), "the release may have been missed");
    witness.see(&lease("c", 50, 50));
    found(&mut witness, "c took the Lease");
}

fn job(name: &str, second: u32) -> Value {
    json!({ "kind": "Job", "metadata": {
        "name": name,
        "creationTimestamp": format!("2026-11-20T10:00:{second:02}Z"),
        "ownerReferences": [{ "uid": "u", "controller": true }],
    }})
}

#[test]
fn a_second_job_and_a_late_one_are_found() {
    let mut witness = Witness::default();
    witness.see(&job("codex-t-a", 1));
    witness.lose(&job("codex-t-a", 1));
    witness.see(&job("codex-t-a", 5));
    assert!(witness.violations().is_empty(), "one after the other");
    witness.see(&job("codex-t-b", 5));
    found(&mut witness, "several Jobs");

    let mut witness = Witness::default();
    witness.see(&job("codex-t-a", 1));
    witness.lose(&job("codex-t-a", 1));
    witness.see(&json!({
        "kind": "TrainingRun", "metadata": { "name": "a", "uid": "u" }, "status": { "completedAt": "2026-11-20T10:00:30Z" },
    }));
    assert!(witness.violations().is_empty());
    witness.see(&job("codex-t-a", 31));
    found(&mut witness, "was complete");
}

fn run(name: &str, model: &Value) -> Value {
    json!({
        "kind": "TrainingRun",
        "metadata": { "name": name, "uid": name, "generation": 1 },
        "spec": { "seed": 1 },
        "status": { "model": { "digest": model } },
    })
}

#[test]
fn a_model_that_changes_or_differs_is_found() {
    let mut witness = Witness::default();
    witness.see(&run("a", &json!(null)));
    witness.see(&run("a", &json!("m")));
    witness.see(&run("b", &json!("m")));
    assert!(witness.violations().is_empty());
    witness.see(&run("a", &json!(null)));
    found(&mut witness, "the model of TrainingRun a was m");

    let mut witness = Witness::default();
    witness.see(&run("a", &json!("m")));
    witness.see(&run("b", &json!("n")));
    found(&mut witness, "equal runs");

    let mut witness = Witness::default();
    witness.see(&run("a", &json!("m")));
    witness.see(&json!({
        "kind": "Evaluation",
        "metadata": { "name": "e", "uid": "e" },
        "status": { "trainingRunUid": "a", "verdict": "Passed", "model": { "digest": "n" } },
    }));
    found(&mut witness, "judged \"n\"");

    let mut witness = Witness::default();
    let mut changed = run("a", &json!("m"));
    changed["metadata"]["generation"] = json!(2);
    witness.see(&changed);
    found(&mut witness, "the spec of TrainingRun a");
}

#[test]
fn a_final_phase_stays() {
    let mut witness = Witness::default();
    let phase =
        |phase: &str| json!({ "kind": "TrainingRun", "metadata": { "uid": "u" }, "status": { "phase": phase } });
    witness.see(&phase("Running"));
    witness.see(&phase("Failed"));
    assert!(witness.violations().is_empty());
    witness.see(&phase("Running"));
    found(&mut witness, "the final phase");
}

fn bundle(payload: &str) -> Value {
    let payload = STANDARD.encode(payload);
    let text = json!({ "dsseEnvelope": { "payload": payload } }).to_string();
    json!({ "kind": "ConfigMap", "metadata": { "name": "codex-promo-1" }, "data": { "bundle.json": text } })
}

fn servers(model: &str, promotion: &str) -> Value {
    json!({ "kind": "Deployment", "metadata": {
        "name": "codex-s-a",
        "annotations": { annotation::MODEL_DIGEST: model, annotation::PROMOTION_DIGEST: promotion },
        "ownerReferences": [{ "name": "a", "uid": "u", "controller": true }],
    }})
}

#[test]
fn a_bundle_with_two_contents_and_unsigned_servers_are_found() {
    let mut witness = Witness::default();
    witness.see(&servers("m1", &Sha256::of("promotes m1").to_string()));
    witness.see(&bundle("promotes m1"));
    witness.see(&bundle("promotes m1"));
    assert!(witness.violations().is_empty(), "the watch of bundles may be later");
    witness.see(&bundle("promotes m2"));
    found(&mut witness, "two contents");

    let mut witness = Witness::default();
    witness.see(&bundle("promotes m1"));
    witness.see(&servers("m2", &Sha256::of("promotes m1").to_string()));
    found(&mut witness, "serves m2 without");

    let mut witness = Witness::default();
    witness.refuses("a");
    witness.see(&bundle("promotes m1"));
    witness.see(&servers("m1", &Sha256::of("promotes m1").to_string()));
    found(&mut witness, "a has servers");
}

fn answer(expected: Refusal, status: Option<u16>) -> Answer {
    Answer { what: "a foreign token", expected, status }
}

#[test]
fn an_accepted_lie_and_one_refused_for_another_reason_are_found() {
    let forbidden = Refusal::Status(403);
    let mut witness = Witness::default();
    witness.see_lies(&[answer(forbidden, Some(403)), answer(Refusal::TooLong, None)], true);
    witness.see_lies(&[answer(Refusal::TooLong, Some(413)), answer(forbidden, Some(503))], true);
    assert!(witness.violations().is_empty());
    witness.see_lies(&[answer(forbidden, Some(200))], true);
    found(&mut witness, "accepted a foreign token with 200");

    let mut witness = Witness::default();
    witness.see_lies(&[answer(forbidden, Some(401))], false);
    assert!(witness.violations().is_empty(), "the pod of the token was gone");
    witness.see_lies(&[answer(forbidden, Some(401))], true);
    found(&mut witness, "refused a foreign token with 401 instead of 403");

    let mut witness = Witness::default();
    witness.see_lies(&[answer(forbidden, Some(204))], false);
    found(&mut witness, "accepted a foreign token with 204");
}

#[test]
fn an_endpoint_that_judges_no_lie_is_found() {
    let forbidden = Refusal::Status(403);
    let unanswered = [Some(503), Some(429), None].map(|status| answer(forbidden, status));
    for exists in [true, false] {
        let mut witness = Witness::default();
        witness.see_lies(&[&unanswered[..], &[answer(Refusal::TooLong, None)]].concat(), exists);
        found(&mut witness, "answered none of 4 false reports");
    }
    let mut witness = Witness::default();
    witness.see_lies(&[&unanswered[..], &[answer(forbidden, Some(403))]].concat(), true);
    assert!(witness.violations().is_empty(), "one of them was refused");
    // A flood may overload it.
    for answer in unanswered {
        assert_eq!(witness.see_lie(&answer), Judgement::Unanswered);
    }
    assert!(witness.violations().is_empty());
}

#[test]
fn a_chain_settles_only_as_it_must() {
    let object = |kind: &str, status: Value| json!({ "kind": kind, "metadata": { "name": "a", "generation": 1 }, "status": status });
    let chain = |ending| [("a".to_owned(), ending)];
    let run = object("TrainingRun", json!({ "observedGeneration": 1, "phase": "Succeeded", "model": {} }));
    let passed = object("Evaluation", json!({ "observedGeneration": 1, "phase": "Judged", "verdict": "Passed" }));
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    let serving = object("ReasoningPod", json!({ "observedGeneration": 1, "phase": "Serving", "conditions": ready }));
    let all = [run.clone(), passed.clone(), serving];
    assert!(unsettled(&chain(Ending::Serves), &all).is_empty());
    assert_eq!(unsettled(&chain(Ending::Refused), &all).len(), 2);
    assert_eq!(unsettled(&chain(Ending::Fails), &all).len(), 1);
    assert!(unsettled(&chain(Ending::Serves), &[run, passed])[0].contains("ReasoningPod a is gone"));
}
