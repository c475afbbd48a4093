//! What must hold, whatever happens. The list:
//!
//! | | Checked |
//! |---|---|
//! | 1 | A process that does not hold the Lease writes nothing | at each write |
//! | 2 | Controllers change no spec and no object of others; they create and delete only objects of cycles | at each write |
//! | 3 | Every child has an owner that is its controller, but for the policy that trainers and evaluators share | at each write |
//! | 4 | An object has at most one Job at a time | at each write |
//! | 5 | A finished run never trains again, a finished evaluation never scores again | at each write |
//! | 6 | A run's model is the one that its trainer wrote | at each write |
//! | 7 | A verdict is the one that the model deserves | at each write |
//! | 8 | A server's `verified` names a digest that a server said | at each write |
//! | 9 | Nothing is signed twice with different content, for the same Evaluation objects | at each write |
//! | 10 | Only models that passed are promoted; servers start only under a promotion of exactly these bytes | at each write |
//! | 11 | While a canary runs and after it has failed, nothing that it tries replaces the servers; there is one Deployment of servers, and one of the canary | at each write |
//! | 12 | A report with the token of another pod is refused, whether that pod exists or not | at each report |
//! | 13 | Without faults everything settles, and a settled controller writes nothing | at the end |
//! | 14 | Each status is true: of the newest generation, and of what exists | at the end |
//! | 15 | Without a cause of its own nothing fails | at the end |
//! | 16 | No child outlives its owner, and no child is left over | at the end |
//! | 17 | The read of a verdict is counted before the verdict is published, once and under a number of its own | at each write |
//! | 18 | What servers mount outlives its run | when garbage is collected |
//! | 19 | The policy that trainers and evaluators share is there while a Job may have pods, and goes with the last object | at the end |
//! | 20 | A Job has the settings of pods that the spec of its owner had at one time | at each write |
//! | 21 | The Job of a run is not deleted after a pod of it has started | at each write |
//! | 22 | Settings that change before a pod starts are those that it starts with; equal ones, written otherwise, replace no Job | when everything works again |

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use codex_provenance::Sha256;
use serde_json::{Value, json};

use super::{
    cluster, make, pod_settings,
    server::{NAMESPACE, Sender, Server},
};

/// What the simulation knows beyond what the objects say.
#[derive(Default)]
pub(super) struct Known {
    /// The uids of objects whose status has said that their work is complete.
    pub(super) finished: BTreeSet<String>,
    /// The uids of objects to which something happened that may fail them.
    pub(super) disturbed: BTreeSet<String>,
    /// The payloads of the bundles ever made, by the name of its ConfigMap.
    signed: BTreeMap<String, Vec<Vec<u8>>>,
    /// The uid of the Evaluation whose verdict was the read of this number of these problems.
    reads: BTreeMap<(String, i64), String>,
    /// The digests that servers of each object reported.
    pub(super) verified: BTreeSet<(String, String)>,
    /// The settings of pods that the spec of each run and each Evaluation has had, by its uid.
    settings: BTreeMap<String, Vec<Value>>,
}

/// Returns the contents of the model that the run with this uid trains.
pub(super) fn contents(run: &str) -> String {
    format!("trained by {run}")
}

/// Whether the model of the run with this uid is good enough to pass: six of ten are.
pub(super) fn is_good(run: &str) -> bool {
    (1..=6).contains(&chance(run))
}

/// Whether the model of the run with this uid answers as the ones before it: eight of ten do, and two of three good ones.
pub(super) fn is_alike(run: &str) -> bool {
    ![3, 6].contains(&chance(run))
}

/// Returns a number below ten that only the uid decides. Uids are counted, so their digits would come in turns.
fn chance(run: &str) -> u8 {
    Sha256::of(run).bytes()[0] % 10
}

/// Returns the digest of the model that the run with this uid trains.
pub(super) fn model(run: &str) -> String {
    make::model(&contents(run)).digest.to_string()
}

/// Checks that a process that writes holds the Lease.
pub(super) fn check_leader(server: &mut Server, sender: &Sender, line: &str) {
    let lease = server.objects.get("/apis/coordination.k8s.io/v1/namespaces/codex-system/leases/codex-controller");
    let holder = lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str()).unwrap_or_default();
    if sender.identity != holder {
        let violation = format!("process {} does not hold the Lease and wrote {line}", sender.process);
        server.violations.push(violation);
    }
}

/// Checks a write of a process; `before` and `after` are the object's states.
pub(super) fn check_write(
    server: &mut Server,
    process: Option<&Sender>,
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
) {
    if process.is_none() || path.contains("codex-system") {
        return;
    }
    let mut wrong = Vec::new();
    let object = after.or(before).unwrap();
    let (kind, name) =
        (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
    let what = format!("the {kind} {name}");
    if path.contains("/codex-ml.dev/") {
        // Objects of cycles are created and deleted, and never changed.
        let of_cycle = Server::owner(object).is_some();
        let changed = |before: &Value| after.is_some_and(|after| before["spec"] != after["spec"]);
        if before.is_some_and(changed) || (!of_cycle && (before.is_none() || after.is_none())) {
            wrong.push(format!("a controller changed the spec of {what}"));
        }
        if let Some(after) = after {
            check_status(&mut server.known, kind, after, &mut wrong);
            if kind == "Evaluation" {
                check_read(server, after, &mut wrong);
            }
        }
    } else if is_shared(path) {
        // It has no owner.
    } else if let Some(before) = before
        && Server::owners(before).next().is_none()
    {
        wrong.push(format!("a controller changed {what}, which is not its own"));
    } else if after.is_some_and(|after| Server::owner(after).is_none())
        && before.is_none_or(|before| Server::owner(before).is_some())
    {
        wrong.push(format!("{what} has no owner"));
    }
    match (kind, before, after) {
        ("Job", None, Some(job)) => check_job(server, path, job, &mut wrong),
        ("Job", Some(job), None) => check_deleted_job(server, job, &mut wrong),
        ("ConfigMap", None, Some(bundle)) if bundle["data"]["bundle.json"].is_string() => {
            check_bundle(server, name, bundle, &mut wrong);
        }
        ("Deployment", before, Some(deployment)) => {
            check_servers(server, before, deployment, &mut wrong);
            check_canary(server, before, deployment, &mut wrong);
        }
        _ => {}
    }
    server.violations.extend(wrong);
}

/// Whether an object is the policy that trainers and evaluators share.
fn is_shared(path: &str) -> bool {
    path.ends_with("/networkpolicies/codex-workers")
}

/// Remembers the settings of pods that an object has.
pub(super) fn note_settings(known: &mut Known, object: &Value) {
    if object["kind"] == "TrainingRun" || object["kind"] == "Evaluation" {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let (had, now) = (known.settings.entry(uid.to_owned()).or_default(), pod_settings::of_object(object));
        if !had.contains(&now) {
            had.push(now);
        }
    }
}

/// Invariants 4, 5 and 20.
fn check_job(server: &Server, path: &str, job: &Value, wrong: &mut Vec<String>) {
    let Some(owner) = Server::owner(job) else { return };
    if server.known.finished.contains(owner) {
        wrong.push(format!("a finished run never trains again, but {owner} gets the Job {path}"));
    }
    let other = server
        .objects
        .iter()
        .find(|(other, object)| *other != path && object["kind"] == "Job" && Server::owner(object) == Some(owner));
    if let Some((other, _)) = other {
        wrong.push(format!("an object has at most one Job, but {owner} has {other} and gets {path}"));
    }
    let settings = pod_settings::of_job(job);
    if !server.known.settings.get(owner).is_some_and(|had| had.contains(&settings)) {
        wrong.push(format!("the Job {path} has settings of pods that {owner} never had: {settings}"));
    }
}

/// Invariant 21. What a controller has read may be late, but not by more than a leader may be that is about to lose its Lease.
fn check_deleted_job(server: &Server, job: &Value, wrong: &mut Vec<String>) {
    let of_run = |owner: &&str| {
        server.objects.values().any(|it| it["metadata"]["uid"] == **owner && it["kind"] == "TrainingRun")
    };
    let Some(owner) = Server::owner(job).filter(of_run) else { return };
    let own = |object: &&Value| object["kind"] == "Pod" && Server::owner(object) == job["metadata"]["uid"].as_str();
    let started = server.objects.values().filter(own).filter_map(cluster::started_at).min();
    let late = 2 * server.timing().duration();
    if let Some(started) = started.filter(|at| server.now().duration_since(*at).unsigned_abs() > late) {
        wrong.push(format!("the Job of {owner} is deleted after a pod of it has started, at {started}"));
    }
}

/// Invariants 6 to 8.
fn check_status(known: &mut Known, kind: &str, object: &Value, wrong: &mut Vec<String>) {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    let status = &object["status"];
    if status["completedAt"].is_string() {
        known.finished.insert(uid.to_owned());
    }
    match kind {
        "TrainingRun" => {
            if let Some(digest) = status["model"]["digest"].as_str()
                && digest != model(uid)
            {
                wrong.push(format!("the model of {uid} is said to be {digest}, which its trainer did not write"));
            }
        }
        "Evaluation" => {
            if let Some(verdict) = status["verdict"].as_str() {
                let run = status["trainingRunUid"].as_str().unwrap_or_default();
                let passed = verdict == "Passed";
                if passed != is_good(run) || status["model"]["digest"] != json!(model(run)) {
                    wrong.push(format!("the verdict of {uid} on the model of {run} is {verdict}: {}", status["model"]));
                }
            }
        }
        _ => {
            for verified in [&status["verified"], &status["rollout"]["verified"]] {
                if let Some(digest) = verified["digest"].as_str()
                    && !known.verified.contains(&(uid.to_owned(), digest.to_owned()))
                {
                    wrong.push(format!("{uid} says that a server verified {digest}, which none reported"));
                }
            }
        }
    }
}

/// Invariant 17.
fn check_read(server: &mut Server, evaluation: &Value, wrong: &mut Vec<String>) {
    let (uid, status) = (evaluation["metadata"]["uid"].as_str().unwrap_or_default(), &evaluation["status"]);
    if !status["verdict"].is_string() {
        return;
    }
    let problems = status["reads"]["dataDigest"].as_str().unwrap_or_default().to_owned();
    let number = status["reads"]["number"].as_i64().unwrap_or_default();
    let counted = server.objects.iter().any(|(path, object)| {
        let text = object["data"]["reads.json"].as_str().filter(|_| path.contains("/codex-system/"));
        let sheet: Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let listed = sheet["newest"].as_array().into_iter().flatten();
        sheet["problems"] == json!(problems)
            && listed.into_iter().any(|entry| entry["key"] == json!(uid) && entry["number"] == json!(number))
    });
    if !counted {
        wrong.push(format!("the verdict of {uid} was published before its read was counted: {}", status["reads"]));
    }
    let known = &mut server.known.reads;
    let other = known.insert((problems.clone(), number), uid.to_owned()).filter(|other| other != uid);
    if let Some(other) = other {
        wrong.push(format!("read {number} of {problems} is that of {uid} and of {other}"));
    }
    let numbers = known.iter().filter(|((of, _), reader)| *of == problems && *reader == uid);
    if numbers.count() > 1 {
        wrong.push(format!("the read of {uid} was counted twice: {known:?}"));
    }
}

/// Returns what the bundles of a ConfigMap sign.
fn payloads(bundle: &Value) -> Vec<Vec<u8>> {
    let entries = bundle["data"].as_object().into_iter().flatten().filter(|(name, _)| *name != "key.pem");
    let signed = entries.map(|(_, text)| {
        let bundle: Value = serde_json::from_str(text.as_str().unwrap_or_default()).unwrap_or_default();
        let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap_or_default();
        STANDARD.decode(payload).unwrap_or_else(|_| payload.as_bytes().to_vec())
    });
    signed.collect()
}

/// Returns the uids of the Evaluations that a promotion statement names. A user who deletes an Evaluation and its bundle, and
/// creates the Evaluation again, gets a statement about another object under the same name: the name covers what was decided, and
/// the statement also says by which object, when, and at which read.
fn evaluations(payloads: &[Vec<u8>]) -> Vec<String> {
    let named = payloads.iter().flat_map(|payload| {
        let statement: Value = serde_json::from_slice(payload).unwrap_or_default();
        statement["predicate"]["evaluations"].as_array().cloned().unwrap_or_default()
    });
    named.filter_map(|evaluation| Some(evaluation["uid"].as_str()?.to_owned())).collect()
}

/// Invariant 9 and the first half of 10.
fn check_bundle(server: &mut Server, name: &str, bundle: &Value, wrong: &mut Vec<String>) {
    let payloads = payloads(bundle);
    match server.known.signed.get(name) {
        Some(known) if *known != payloads && evaluations(known) == evaluations(&payloads) => {
            wrong.push(format!("the bundle {name} is signed twice with different content"));
        }
        _ => {}
    }
    if name.starts_with("codex-promo-") {
        let run = Server::owner(bundle).unwrap_or_default();
        let names = |payload: &Vec<u8>| String::from_utf8_lossy(payload).contains(&model(run));
        if !is_good(run) || payloads.is_empty() || !payloads.iter().all(names) {
            wrong.push(format!("the bundle {name} promotes what did not pass: {run}"));
        }
    }
    server.known.signed.insert(name.to_owned(), payloads);
}

/// The second half of invariant 10.
fn check_servers(server: &Server, before: Option<&Value>, deployment: &Value, wrong: &mut Vec<String>) {
    let template = |deployment: &Value| deployment["spec"]["template"].clone();
    if before.is_some_and(|before| template(before) == template(deployment)) {
        return;
    }
    let annotation = |name: &str| {
        deployment["metadata"]["annotations"][format!("codex-ml.dev/{name}")].as_str().unwrap_or_default().to_owned()
    };
    let (model, promotion) = (annotation("model-digest"), annotation("promotion-digest"));
    let holds = server.known.signed.values().flatten().any(|payload| {
        Sha256::of(payload).to_string() == promotion && String::from_utf8_lossy(payload).contains(&model)
    });
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    if !holds || !arguments.contains(&model) || !arguments.contains(&promotion) {
        wrong.push(format!("servers of {model} start without a promotion of exactly these bytes: {promotion}"));
    }
}

/// Invariant 11.
fn check_canary(server: &Server, before: Option<&Value>, deployment: &Value, wrong: &mut Vec<String>) {
    let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
    if name == "codex-c-rc" {
        return;
    }
    // The shadow of a cycle has servers of its own.
    let shadow =
        name.strip_prefix("codex-s-rc-").is_some_and(|minute| minute.bytes().all(|digit| digit.is_ascii_digit()));
    if shadow {
        return;
    }
    if name != "codex-s-rc" {
        wrong.push(format!("servers run in a Deployment of another name: {name}"));
    }
    let Some(owner) = Server::owner(deployment) else { return };
    let object = server.objects.values().find(|object| object["metadata"]["uid"] == *owner);
    let Some(rollout) = object.map(|object| &object["status"]["rollout"]) else { return };
    let made_for = |deployment: &Value| {
        let annotations = &deployment["metadata"]["annotations"];
        let of = |key: &str| annotations[format!("codex-ml.dev/{key}")].as_str().unwrap_or_default().to_owned();
        (of("promotion-digest"), of("attempt"))
    };
    // A modified Deployment is restored with the settings of the spec.
    let Some(before) = before.filter(|before| before["spec"]["template"]["spec"]["containers"][0]["image"] != "evil:1")
    else {
        return;
    };
    let tried = rollout["phase"] == "Running" || rollout["phase"] == "RolledBack";
    if tried && made_for(before) != made_for(deployment) && rollout["promotion"] == json!(made_for(deployment).0) {
        wrong.push(format!("the servers are replaced by what their canary tries: {rollout}"));
    }
}

/// Invariant 18: an object that is garbage must not be mounted by servers of an object that exists.
pub(super) fn check_collected(server: &mut Server, path: &str) {
    let Some(name) = path.rsplit_once("/configmaps/").map(|(_, name)| name) else { return };
    let uids: BTreeSet<&str> =
        server.objects.values().filter_map(|object| object["metadata"]["uid"].as_str()).collect();
    let mounts = |object: &&Value| {
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten();
        object["kind"] == "Deployment"
            && Server::owners(object).any(|owner| uids.contains(owner))
            && volumes.into_iter().any(|volume| volume["configMap"]["name"] == name)
    };
    if let Some(servers) = server.objects.values().find(mounts) {
        let wrong = format!("the ConfigMap {name} is collected, but {} mounts it", servers["metadata"]["name"]);
        server.violations.push(wrong);
    }
}

/// Invariant 19.
fn check_shared(server: &Server, wrong: &mut Vec<String>) {
    let shared = server.objects.keys().any(|path| is_shared(path));
    let of_kind = |kind: &'static str| server.objects.values().filter(move |object| object["kind"] == kind);
    if shared && of_kind("TrainingRun").chain(of_kind("Evaluation")).next().is_none() {
        wrong.push("the policy of trainers and evaluators is left over".to_owned());
    }
    let ended = |job: &Value| {
        let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|it| (it["type"] == "Complete" || it["type"] == "Failed") && it["status"] == "True")
    };
    if let Some(job) = of_kind("Job").find(|job| !shared && !ended(job)) {
        wrong.push(format!("the pods of the Job {} lack their policy", job["metadata"]["name"]));
    }
}

/// Returns what is wrong with a cluster in which everything has settled.
pub(super) fn check_end(server: &Server) -> Vec<String> {
    let mut wrong = Vec::new();
    let of = |plural: &str, name: &str| {
        server.objects.get(&format!("/apis/codex-ml.dev/v1alpha1/namespaces/{NAMESPACE}/{plural}/{name}"))
    };
    let uids: BTreeSet<&str> =
        server.objects.values().filter_map(|object| object["metadata"]["uid"].as_str()).collect();
    for (path, object) in &server.objects {
        let ours = object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "codex-controller";
        let owned = Server::owners(object).any(|owner| uids.contains(owner)) || is_shared(path);
        if ours && !owned && !path.contains("codex-system") {
            wrong.push(format!("{path} outlives its owner"));
        }
        if path.contains("/codex-ml.dev/") && object["status"]["observedGeneration"] != object["metadata"]["generation"]
        {
            wrong.push(format!("the status of {path} is not of its generation: {}", object["status"]));
        }
    }
    let (run, evaluation, pod) = (of("trainingruns", "cot"), of("evaluations", "lite"), of("reasoningpods", "rc"));
    check_shared(server, &mut wrong);
    let condition = |object: &Value, kind: &str| {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let succeeded = run.is_some_and(|run| run["status"]["phase"] == "Succeeded");
    if let Some(run) = run {
        if condition(run, "Trained") != run["status"]["model"].is_object()
            || succeeded != run["status"]["model"].is_object()
        {
            wrong.push(format!("the run's phase, condition and model disagree: {}", run["status"]));
        }
        if !succeeded && !server.known.disturbed.contains(&uid(run)) {
            wrong.push(format!("the run failed without a cause: {}", run["status"]));
        }
    }
    let mut passes = false;
    if let (Some(run), Some(evaluation)) = (run.filter(|_| succeeded), evaluation) {
        let judged = evaluation["status"]["trainingRunUid"] == run["metadata"]["uid"];
        passes = judged && evaluation["status"]["verdict"] == "Passed";
        let undisturbed = !server.known.disturbed.contains(&uid(evaluation));
        // Its status was discarded, and its evaluator reads the model of a run that is gone.
        let stalled = evaluation["status"]["conditions"].as_array().into_iter().flatten();
        let replaced = stalled.into_iter().any(|it| it["type"] == "Stalled" && it["reason"] == "Replaced");
        if undisturbed
            && !replaced
            && (evaluation["status"]["trainingRunUid"].is_null() || judged)
            && !evaluation["status"]["verdict"].is_string()
        {
            wrong.push(format!("the evaluation has no verdict without a cause: {}", evaluation["status"]));
        }
    }
    if let Some(pod) = pod {
        let serves = pod["status"]["phase"] == "Serving";
        let deployment = server.objects.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/codex-s-rc"));
        let ready = deployment.map_or(0, |deployment| deployment["status"]["readyReplicas"].as_i64().unwrap_or(0));
        let wanted = pod["spec"]["replicas"].as_i64().unwrap_or(0);
        if passes && !serves && wanted > 0 && !server.known.disturbed.contains(&uid(pod)) {
            wrong.push(format!("the model passes, but the servers do not serve: {}", pod["status"]));
        }
        if serves && wanted > 0 && (ready < 1 || !condition(pod, "Ready") && ready >= wanted) {
            wrong.push(format!("{ready} of {wanted} servers are ready, but the status says: {}", pod["status"]));
        }
        let blocked = pod["status"]["blockedBy"].as_array().is_some_and(|blocked| !blocked.is_empty());
        if !passes && !serves && !blocked {
            wrong.push(format!("nothing serves, and nothing is said to block it: {}", pod["status"]));
        }
    }
    wrong
}
