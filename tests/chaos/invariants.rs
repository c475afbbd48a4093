//! What must hold, whatever happens. The list:
//!
//! | | Invariant | Read from |
//! |---|---|---|
//! | 1 | A controller writes only while no other one has taken the Lease after it | audit log |
//! | 2 | The Lease changes hands only after its holder released it, or did not renew it for its duration | each version of the Lease |
//! | 3 | An object has at most one Job at a time | each Job |
//! | 4 | A finished run never trains again, a finished evaluation never scores again | each Job |
//! | 5 | A model, a verdict and a final phase never change | each status |
//! | 6 | Equal runs make equal models, however often they are interrupted | each status |
//! | 7 | A verdict is about the model of its run, and a server verified the model of its run | each status |
//! | 8 | A bundle has one content for ever | each ConfigMap |
//! | 9 | Servers exist only under a signed promotion of exactly their model | each Deployment |
//! | 10 | A model that did not pass has no servers | each Deployment and status |
//! | 11 | Controllers change no spec | each object |
//! | 12 | The endpoint accepts no false report, and refuses each with the status for its fault | each answer |
//! | 13 | Without faults every object ends as it must, with a status of its newest generation | the end |
//! | 14 | Each server answers with the model of its run | the end |
//! | 15 | A settled controller writes nothing | audit log, at the end |
//! | 16 | Nothing outlives its owner | the end, after everything was deleted |
//!
//! [`Witness`] checks 1 to 12 while it sees objects and requests, [`unsettled`] checks 13; `end.rs` checks the others. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use codex_crds::annotation;
use codex_provenance::Sha256;
use codex_tests::{
    audit::Request,
    install::{CONTROLLER, CONTROLLER_USER, NAMESPACE},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::lies::{Answer, Judgement};

/// Watches the cluster and remembers what it needs to check the invariants.
#[derive(Default)]
pub(crate) struct Witness {
    /// The Lease as it was seen last; `None` if versions may have been missed.
    lease: Option<Hold>,
    /// The names of the Jobs of each object, by its uid.
    jobs: BTreeMap<String, BTreeSet<String>>,
    /// When Jobs were created, by the uid of their object.
    created: BTreeSet<(String, Timestamp, String)>,
    /// When the work of an object was complete, by its uid.
    completed: BTreeMap<String, (Timestamp, String)>,
    /// Facts that never change, by the uid of their object and what they are.
    settled: BTreeMap<(String, &'static str), String>,
    /// The model of each spec of a run, and the first run that made it.
    recipes: BTreeMap<String, (String, String)>,
    /// The text of each bundle, by the name of its ConfigMap.
    bundles: BTreeMap<String, String>,
    /// The Deployments of servers, with the model and the promotion that they were made for.
    servers: BTreeSet<(String, String, String)>,
    /// The names of ReasoningPods whose model does not pass.
    refused: BTreeSet<String>,
    writes: Vec<Write>,
    violations: BTreeSet<String>,
}

/// A version of the Lease.
#[derive(Clone, Debug)]
struct Hold {
    holder: String,
    acquired: Option<Timestamp>,
    renewed: Option<Timestamp>,
    lasts: SignedDuration,
}

/// A write of a controller.
#[derive(Clone, Debug)]
struct Write {
    pod: String,
    received: Timestamp,
    answered: Timestamp,
    is_lease: bool,
    line: String,
}

impl Witness {
    /// Sees a version of an object.
    pub(crate) fn see(&mut self, object: &Value) {
        match text(&object["kind"]) {
            "Lease" => self.see_lease(object),
            "Job" => self.see_job(object),
            "ConfigMap" => self.see_bundle(object),
            "Deployment" => self.see_servers(object),
            "TrainingRun" => self.see_run(object),
            "Evaluation" => self.see_evaluation(object),
            "ReasoningPod" => self.see_pod(object),
            _ => {}
        }
    }

    /// Sees that an object is gone.
    pub(crate) fn lose(&mut self, object: &Value) {
        if object["kind"] == "Job"
            && let Some(jobs) = owner(object).and_then(|owner| self.jobs.get_mut(&owner))
        {
            jobs.remove(name(object));
        }
    }

    /// Is told that the watch of a kind begins again, so that versions may have been missed.
    pub(crate) fn begin_again(&mut self, kind: &str) {
        match kind {
            "Lease" => self.lease = None,
            "Job" => self.jobs.clear(),
            _ => {}
        }
    }

    /// Is told that the model of a ReasoningPod does not pass.
    pub(crate) fn refuses(&mut self, pod: &str) {
        self.refused.insert(pod.to_owned());
    }

    /// Sees the answer to a false report, and returns what it says of the endpoint. Invariant 12.
    pub(crate) fn see_lie(&mut self, answer: &Answer) -> Judgement {
        let Answer { what, expected, .. } = answer;
        let judgement = expected.judge(answer.status);
        match judgement {
            Judgement::Accepted => self.violate(format!("the endpoint accepted {what} with {answer}")),
            Judgement::Mistaken => {
                self.violate(format!("the endpoint refused {what} with {answer} instead of {expected}"));
            }
            Judgement::Refused | Judgement::Unanswered => {}
        }
        judgement
    }

    /// Sees the answers to a round of false reports, which no other fault disturbs. `sender_exists` says whether the pod that was to
    /// send them still exists: without it, the endpoint refuses its token or its Job. Invariant 12.
    pub(crate) fn see_lies(&mut self, answers: &[Answer], sender_exists: bool) {
        let judged = |answer: &Answer| answer.expected.judge(answer.status);
        for answer in answers.iter().filter(|answer| sender_exists || judged(answer) == Judgement::Accepted) {
            self.see_lie(answer);
        }
        // A closed connection may be one that the relay closed.
        if !answers.iter().any(|answer| answer.status.is_some() && judged(answer) != Judgement::Unanswered) {
            self.violate(format!("the endpoint answered none of {} false reports itself", answers.len()));
        }
    }

    /// Sees a request of the audit log.
    pub(crate) fn see_request(&mut self, request: &Request) {
        let object = request.object();
        // A review is created and stored nowhere.
        let is_review = ["authentication.k8s.io", "authorization.k8s.io"].contains(&object.api_group.as_str());
        if !request.is_write() || is_review || request.user.username != CONTROLLER_USER {
            return;
        }
        let Some(pod) = request.user.pod() else { return };
        self.writes.push(Write {
            pod: pod.to_owned(),
            received: request.request_received_timestamp,
            answered: request.stage_timestamp,
            is_lease: object.resource == "leases" && object.namespace == NAMESPACE && object.name == CONTROLLER,
            line: format!("{} {}/{}", request.right(), object.namespace, object.name),
        });
    }

    /// Returns the writes of controllers since then, apart from the Lease.
    pub(crate) fn writes_since(&self, since: Timestamp) -> Vec<String> {
        let writes = self.writes.iter().filter(|write| !write.is_lease && write.received > since);
        writes.map(|write| format!("{} by {}", write.line, write.pod)).collect()
    }

    /// Records the violation of an invariant that others check.
    pub(crate) fn add(&mut self, violation: String) {
        self.violate(violation);
    }

    /// Returns what was violated so far, without what can only be judged afterwards.
    pub(crate) fn violations_so_far(&self) -> Vec<String> {
        self.violations.iter().cloned().collect()
    }

    /// Returns what was violated, and checks what can only be judged afterwards.
    pub(crate) fn violations(&mut self) -> Vec<String> {
        self.check_leaders();
        self.check_finished();
        self.check_promotions();
        self.violations.iter().cloned().collect()
    }

    fn violate(&mut self, what: String) {
        self.violations.insert(what);
    }

    /// Records a fact that must never change. Invariant 5.
    fn settle(&mut self, object: &Value, what: &'static str, fact: &Value) {
        let key = (uid(object).to_owned(), what);
        match (self.settled.get(&key), fact.as_str()) {
            (Some(before), now) if Some(before.as_str()) != now => {
                let changed = format!("{what} of {} was {before} and is {fact}", of(object));
                self.violate(changed);
            }
            (None, Some(now)) => drop(self.settled.insert(key, now.to_owned())),
            _ => {}
        }
    }

    fn fact(&self, uid: &str, what: &'static str) -> Option<&String> {
        self.settled.get(&(uid.to_owned(), what))
    }

    fn see_lease(&mut self, lease: &Value) {
        if name(lease) != CONTROLLER {
            return;
        }
        let spec = &lease["spec"];
        let now = Hold {
            holder: text(&spec["holderIdentity"]).to_owned(),
            acquired: time(&spec["acquireTime"]),
            renewed: time(&spec["renewTime"]),
            lasts: SignedDuration::from_secs(spec["leaseDurationSeconds"].as_i64().unwrap_or(0)),
        };
        if let Some(before) = self.lease.take()
            && !before.holder.is_empty()
            && !now.holder.is_empty()
            && before.holder != now.holder
            && let (Some(renewed), Some(acquired)) = (before.renewed, now.acquired)
            && acquired.duration_since(renewed) < before.lasts
        {
            self.violate(format!(
                "{} took the Lease {} after {} had renewed it for {}",
                now.holder,
                acquired.duration_since(renewed),
                before.holder,
                before.lasts
            ));
        }
        self.lease = Some(now);
    }

    fn see_job(&mut self, job: &Value) {
        let Some(owner) = owner(job) else { return };
        if let Some(created) = time(&job["metadata"]["creationTimestamp"]) {
            self.created.insert((owner.clone(), created, name(job).to_owned()));
        }
        let jobs = self.jobs.entry(owner).or_default();
        jobs.insert(name(job).to_owned());
        if jobs.len() > 1 {
            let told = format!("one object has several Jobs: {jobs:?}");
            self.violate(told);
        }
    }

    fn see_bundle(&mut self, object: &Value) {
        let Some(bundle) = object["data"]["bundle.json"].as_str() else { return };
        let first = self.bundles.entry(name(object).to_owned()).or_insert_with(|| bundle.to_owned());
        if first != bundle {
            self.violate(format!("the bundle {} has two contents", name(object)));
        }
    }

    fn see_servers(&mut self, deployment: &Value) {
        let annotation = |name: &str| text(&deployment["metadata"]["annotations"][name]).to_owned();
        let (model, promotion) = (annotation(annotation::MODEL_DIGEST), annotation(annotation::PROMOTION_DIGEST));
        let owners = deployment["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let refused = owners.map(|owner| text(&owner["name"])).find(|name| self.refused.contains(*name));
        if let Some(refused) = refused {
            self.violate(format!("{refused} has servers, although its model did not pass"));
        }
        self.servers.insert((name(deployment).to_owned(), model, promotion));
    }

    fn see_run(&mut self, run: &Value) {
        self.see_ours(run);
        let model = &run["status"]["model"]["digest"];
        self.settle(run, "the model", model);
        if let Some(model) = model.as_str() {
            let first = self.recipes.entry(run["spec"].to_string());
            let (first, made) = first.or_insert_with(|| (name(run).to_owned(), model.to_owned()));
            if made != model {
                let told = format!("{} and {first} are equal runs, and made the models {model} and {made}", of(run));
                self.violate(told);
            }
        }
    }

    fn see_evaluation(&mut self, evaluation: &Value) {
        self.see_ours(evaluation);
        let status = &evaluation["status"];
        self.settle(evaluation, "the verdict", &status["verdict"]);
        if status["verdict"].is_string() {
            self.compare(evaluation, &status["model"]["digest"], "judged");
        }
    }

    fn see_pod(&mut self, pod: &Value) {
        self.see_ours(pod);
        let status = &pod["status"];
        if status["verified"].is_object() {
            self.compare(pod, &status["verified"]["digest"], "verified");
        }
        let serves = status["phase"] == "Serving" || status["phase"] == "RollingOut" || !status["promotion"].is_null();
        if serves && self.refused.contains(name(pod)) {
            self.violate(format!("{} is promoted, although its model did not pass", of(pod)));
        }
    }

    /// Invariant 7.
    fn compare(&mut self, object: &Value, model: &Value, what: &str) {
        let run = text(&object["status"]["trainingRunUid"]).to_owned();
        let made = self.fact(&run, "the model").cloned();
        if let Some(made) = made.filter(|made| model != made.as_str()) {
            self.violate(format!("{} {what} {model}, but its run made {made}", of(object)));
        }
    }

    fn see_ours(&mut self, object: &Value) {
        let deleted = object["metadata"]["deletionTimestamp"].is_string();
        if object["metadata"]["generation"].as_i64().is_some_and(|generation| generation > 1) && !deleted {
            self.violate(format!("the spec of {} was changed", of(object)));
        }
        let phase = &object["status"]["phase"];
        let is_final = ["Succeeded", "Failed", "Judged"].contains(&text(phase));
        if is_final || self.fact(uid(object), "the final phase").is_some() {
            self.settle(object, "the final phase", phase);
        }
        if let Some(at) = time(&object["status"]["completedAt"]) {
            self.completed.insert(uid(object).to_owned(), (at, of(object)));
        }
    }

    /// Invariant 1. A write needs that its controller was the last to write the Lease before it, or is the next one after it: the
    /// second covers a line of the log that a killed API server did not write.
    fn check_leaders(&mut self) {
        let mut leases: Vec<&Write> = self.writes.iter().filter(|write| write.is_lease).collect();
        leases.sort_by_key(|write| write.answered);
        let mut wrong = Vec::new();
        for write in self.writes.iter().filter(|write| !write.is_lease) {
            let after = leases.partition_point(|lease| lease.answered <= write.received);
            let (before, next) = (after.checked_sub(1).map(|last| leases[last]), leases.get(after));
            let leads = |lease: &Write| lease.pod == write.pod;
            if !(before.is_none_or(leads) || next.is_some_and(|next| leads(next))) {
                let leader = before.map_or("another controller", |lease| &lease.pod);
                wrong.push(format!("{} wrote {} at {} after {leader} led", write.pod, write.line, write.received));
            }
        }
        self.violations.extend(wrong);
    }

    /// Invariant 4.
    fn check_finished(&mut self) {
        let late = self.created.iter().filter_map(|(owner, created, job)| {
            let (at, what) = self.completed.get(owner)?;
            (created > at).then(|| format!("{what} was complete at {at} and got the Job {job} at {created}"))
        });
        let late: Vec<_> = late.collect();
        self.violations.extend(late);
    }

    /// Invariant 9.
    fn check_promotions(&mut self) {
        let payloads: Vec<_> = self.bundles.values().map(|bundle| payload(bundle)).collect();
        let unsigned = self.servers.iter().filter(|(_, model, promotion)| {
            model.is_empty()
                || !payloads.iter().any(|payload| {
                    Sha256::of(payload).to_string() == *promotion && String::from_utf8_lossy(payload).contains(model)
                })
        });
        let unsigned: Vec<_> = unsigned
            .map(|(name, model, promotion)| format!("{name} serves {model} without the promotion {promotion}"))
            .collect();
        self.violations.extend(unsigned);
    }
}

/// How the objects of a chain must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The model passes and is served.
    Serves,
    /// The model does not pass and is not served.
    Refused,
    /// The run fails, because its data has another digest.
    Fails,
}

/// Returns what has not ended as it must. `objects` are those of the three kinds. Invariant 13.
pub(crate) fn unsettled(chains: &[(String, Ending)], objects: &[Value]) -> Vec<String> {
    let mut open = Vec::new();
    for (chain, ending) in chains {
        let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind && name(object) == chain);
        let mut expect = |kind: &str, what: &str, holds: &dyn Fn(&Value) -> bool| match find(kind) {
            None => open.push(format!("{kind} {chain} is gone")),
            Some(object) => {
                let status = &object["status"];
                let current = status["observedGeneration"] == object["metadata"]["generation"];
                if !current || !holds(status) {
                    let (phase, ready) = (text(&status["phase"]), message(status));
                    open.push(format!("{kind} {chain} must {what}, and is {phase}: {ready}"));
                }
            }
        };
        let trained = |status: &Value| status["phase"] == "Succeeded" && status["model"].is_object();
        match ending {
            Ending::Serves => {
                expect("TrainingRun", "have its model", &trained);
                expect("Evaluation", "pass", &|status| status["verdict"] == "Passed");
                expect("ReasoningPod", "serve", &|status| status["phase"] == "Serving" && is_ready(status));
            }
            Ending::Refused => {
                expect("TrainingRun", "have its model", &trained);
                expect("Evaluation", "not pass", &|status| {
                    status["verdict"].is_string() && status["verdict"] != "Passed"
                });
                expect("ReasoningPod", "be blocked", &|status| status["phase"] == "Blocked");
            }
            Ending::Fails => expect("TrainingRun", "fail", &|status| status["phase"] == "Failed"),
        }
    }
    open
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status["conditions"].as_array().into_iter().flatten()
}

fn is_ready(status: &Value) -> bool {
    conditions(status).any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn message(status: &Value) -> &str {
    let ready = conditions(status).find(|condition| condition["type"] == "Ready");
    ready.map_or("without a condition", |ready| text(&ready["message"]))
}

/// Returns what a bundle signs.
fn payload(bundle: &str) -> Vec<u8> {
    let bundle: Value = serde_json::from_str(bundle).unwrap_or_default();
    STANDARD.decode(text(&bundle["dsseEnvelope"]["payload"])).unwrap_or_default()
}

/// Returns the uid of the object that controls this one.
pub(crate) fn owner(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut controllers = owners.filter(|owner| owner["controller"] == true);
    controllers.next().map(|owner| text(&owner["uid"]).to_owned())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn uid(object: &Value) -> &str {
    text(&object["metadata"]["uid"])
}

fn of(object: &Value) -> String {
    format!("{} {}", text(&object["kind"]), name(object))
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}
