//! The parts of Kubernetes that act on the objects: the Job controller, the Deployment controller, the kubelet and the garbage
//! collector; and what pods say.

use codex_provenance::Sha256;
use codex_reports::{
    Comparison, DataFile, Kind, LATENCY_EDGES, Report, ServingState, Stage, State, Traffic, TrainingState,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    invariants::{self, contents, is_alike, is_good},
    make, pod_settings,
    server::{NAMESPACE, Server},
};

/// A pod of the controller's Jobs and Deployments, as the simulation sees it.
#[derive(Clone, Debug)]
pub(super) struct PodView {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) running: bool,
    /// The kind, name and uid of the object that it works for.
    pub(super) kind: Kind,
    pub(super) object: String,
    pub(super) object_uid: String,
    /// The digest of the configuration that the pod mounts.
    config: Option<String>,
    /// The promotion that a server verifies.
    promotion: Option<String>,
    /// The model that a server is told to serve.
    pub(super) model: Option<String>,
    /// Whether a server is told to report its requests.
    counts: bool,
    /// Whether a server is a shadow.
    compares: bool,
}

fn pods_path(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}")
}

/// Returns the pods, in the order of their names.
pub(super) fn pods(server: &Server) -> Vec<PodView> {
    server.of_kind("Pod").iter().filter_map(|path| view(server, path)).collect()
}

fn by_uid<'a>(server: &'a Server, uid: &str) -> Option<&'a Value> {
    server.objects.values().find(|object| object["metadata"]["uid"] == *uid)
}

fn view(server: &Server, path: &str) -> Option<PodView> {
    let pod = &server.objects[path];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut parent = by_uid(server, Server::owner(pod)?)?;
    if parent["kind"] == "ReplicaSet" {
        parent = by_uid(server, Server::owner(parent)?)?;
    }
    let owners = parent["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == json!(true))?;
    let kind = match owner["kind"].as_str()? {
        "TrainingRun" => Kind::TrainingRun,
        "Evaluation" => Kind::Evaluation,
        _ => Kind::ReasoningPod,
    };
    let told = |argument: &str| {
        let arguments = pod["spec"]["containers"][0]["args"].as_array();
        arguments.is_some_and(|all| all.contains(&json!(argument)))
    };
    let annotation = |of: &Value, name: &str| text(&of["metadata"]["annotations"][format!("codex-ml.dev/{name}")]);
    Some(PodView {
        path: path.to_owned(),
        name: text(&pod["metadata"]["name"])?,
        uid: text(&pod["metadata"]["uid"])?,
        running: pod["status"]["phase"] == "Running",
        kind,
        object: text(&owner["name"])?,
        object_uid: text(&owner["uid"])?,
        config: annotation(parent, "config-digest"),
        promotion: annotation(pod, "promotion-digest"),
        model: annotation(pod, "model-digest"),
        counts: told("--report-traffic"),
        compares: told("--shadow"),
    })
}

impl PodView {
    /// Returns the pod's token.
    pub(super) fn token(&self) -> String {
        format!("{}/{}", self.name, self.uid)
    }

    /// Returns a report of this pod.
    pub(super) fn report(&self, seq: u64, state: State) -> Report {
        let config = self.config.as_ref().and_then(|digest| digest.parse().ok());
        let mut report = make::report(self.kind, &self.object_uid, &self.uid, seq, config, state);
        report.name.clone_from(&self.object);
        report
    }

    /// Returns what this pod says when it is at work.
    pub(super) fn progress(&self, step: u64) -> State {
        match self.kind {
            Kind::TrainingRun => State::Training(make::training(step)),
            Kind::Evaluation => {
                let mut state = make::evaluated("", 0);
                (state.stage, state.done, state.model_digest) = (Stage::Running, step.min(499), None);
                (state.metrics, state.outcomes) = (std::collections::BTreeMap::new(), None);
                State::Evaluation(state)
            }
            Kind::ReasoningPod => State::Serving(ServingState::default()),
        }
    }

    /// Returns what this pod says truthfully in the end.
    pub(super) fn truth(&self, server: &Server) -> State {
        match self.kind {
            Kind::TrainingRun => State::Training(make::trained(&contents(&self.object_uid))),
            Kind::Evaluation => {
                // The volume holds what the run whose folder is mounted has trained.
                let run = run_of(server, self).unwrap_or_default();
                State::Evaluation(make::evaluated(&contents(&run), if is_good(&run) { 500 } else { 100 }))
            }
            Kind::ReasoningPod => State::Serving(ServingState {
                stage: Stage::Running,
                verified: self.model.as_ref().and_then(|model| model.parse().ok()),
                promotion: self.promotion.as_ref().and_then(|digest| digest.parse().ok()),
                traffic: self.counts.then(|| traffic(server)),
                comparisons: comparison(server, self).into_iter().collect(),
                ..ServingState::default()
            }),
        }
    }

    /// Returns a lie: another model than the one on the volume.
    pub(super) fn lie(&self) -> State {
        match self.kind {
            Kind::TrainingRun => State::Training(TrainingState {
                data: vec![DataFile {
                    name: "file".to_owned(),
                    sha256: codex_provenance::DataDigest(Sha256::of("other data")),
                    size: 9,
                    records: Some(3),
                }],
                ..make::trained("a lie")
            }),
            Kind::Evaluation => State::Evaluation(make::evaluated("a lie", 500)),
            Kind::ReasoningPod => State::Serving(ServingState {
                stage: Stage::Running,
                verified: Some(make::model("a lie").digest),
                promotion: self.promotion.as_ref().and_then(|digest| digest.parse().ok()),
                ..ServingState::default()
            }),
        }
    }
}

/// Returns requests that were all answered, and more with each write of a controller.
fn traffic(server: &Server) -> Traffic {
    let requests = server.writes.len() as u64;
    Traffic { requests, completed: requests, latency: vec![requests; LATENCY_EDGES.len()], ..Traffic::default() }
}

/// Returns what a shadow has compared with the ReasoningPod of the simulation.
fn comparison(server: &Server, pod: &PodView) -> Option<Comparison> {
    let incumbent = server.objects.get(&super::simulator::object_path("reasoningpods", "rc"))?;
    let served = incumbent["status"]["verified"]["digest"].as_str()?.parse().ok()?;
    let run = run_of(server, pod).filter(|_| pod.compares)?;
    let agreed = if is_alike(&run) { 200 } else { 100 };
    Some(Comparison { model: served, ..make::comparison(200, agreed, agreed) })
}

/// Returns the uid of the run whose folder a pod mounts.
fn run_of(server: &Server, pod: &PodView) -> Option<String> {
    let mounts = server.objects[&pod.path]["spec"]["containers"][0]["volumeMounts"].as_array()?.clone();
    let folders = mounts.iter().filter_map(|mount| mount["subPath"].as_str());
    folders.filter_map(|folder| folder.split('/').find(|part| part.starts_with("run-"))).map(str::to_owned).next()
}

fn state(pod: &mut Value, phase: &str, state: &Value) {
    let name = pod["spec"]["containers"][0]["name"].clone();
    let image = pod["spec"]["containers"][0]["image"].clone();
    pod["status"] = json!({"phase": phase, "containerStatuses": [{
        "name": name, "image": image, "imageID": "sha256:image", "ready": phase == "Running", "restartCount": 0, "state": state,
    }]});
}

/// Acts as the scheduler and the kubelet: every pod that waits starts if it fits a node, or is told that it fits none.
pub(super) fn start_pods(server: &mut Server, now: Timestamp) {
    for path in server.of_kind("Pod") {
        let mut pod = server.objects[&path].clone();
        if pod["status"]["phase"] != "Pending" {
            continue;
        }
        if pod_settings::fits(server, &pod) {
            state(&mut pod, "Running", &json!({"running": {"startedAt": now}}));
            server.put(&path, pod);
        } else if pod["status"]["conditions"].is_null() {
            pod["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            }]);
            server.put(&path, pod);
        }
    }
}

/// Returns when the container of a pod started.
pub(super) fn started_at(pod: &Value) -> Option<Timestamp> {
    let state = &pod["status"]["containerStatuses"][0]["state"];
    ["running", "terminated"].iter().find_map(|of| state[*of]["startedAt"].as_str()?.parse().ok())
}

/// Ends a running pod.
pub(super) fn end_pod(server: &mut Server, path: &str, code: i32, message: &str, now: Timestamp) {
    let Some(mut pod) = server.objects.get(path).cloned() else { return };
    let started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].clone();
    let reason = match code {
        0 => "Completed",
        137 => "OOMKilled",
        _ => "Error",
    };
    let ended = json!({"terminated": {
        "exitCode": code, "reason": reason, "message": message, "startedAt": started, "finishedAt": now,
    }});
    state(&mut pod, if code == 0 { "Succeeded" } else { "Failed" }, &ended);
    server.put(path, pod);
}

fn create_pod(server: &mut Server, parent: &Value, name: &str, now: Timestamp) {
    let template = &parent["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!("node");
    let owner = json!({
        "apiVersion": parent["apiVersion"], "kind": parent["kind"], "name": parent["metadata"]["name"],
        "uid": parent["metadata"]["uid"], "controller": true,
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"],
            "ownerReferences": [owner], "creationTimestamp": now,
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    });
    server.put(&pods_path(name), pod);
}

fn exit_code(pod: &Value) -> Option<i64> {
    pod.pointer("/status/containerStatuses/0/state/terminated/exitCode").and_then(Value::as_i64)
}

fn children(server: &Server, uid: &Value) -> Vec<(String, Value)> {
    let of = |object: &&Value| {
        object["kind"] == "Pod" && Server::owner(object).map(|owner| json!(owner)).as_ref() == Some(uid)
    };
    server.objects.iter().filter(|(_, object)| of(object)).map(|(path, pod)| (path.clone(), pod.clone())).collect()
}

/// Acts as the Job controller: creates and deletes pods, and sets the conditions of Jobs.
pub(super) fn sync_jobs(server: &mut Server, now: Timestamp) {
    for path in server.of_kind("Job") {
        let mut job = server.objects[&path].clone();
        let holds = |job: &Value, kind: &str| {
            let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        if holds(&job, "Complete") || holds(&job, "Failed") || job["spec"]["template"]["spec"].is_null() {
            continue;
        }
        let own = children(server, &job["metadata"]["uid"]);
        let active: Vec<_> =
            own.iter().filter(|(_, pod)| exit_code(pod).is_none()).map(|(path, _)| path.clone()).collect();
        let codes: Vec<i64> = own.iter().filter_map(|(_, pod)| exit_code(pod)).collect();
        let now_text = json!(now);
        if job["spec"]["suspend"] == true {
            for pod in &active {
                server.remove(pod);
            }
            if !holds(&job, "Suspended") {
                job["status"]["startTime"] = Value::Null;
                job["status"]["conditions"] =
                    json!([{"type": "Suspended", "status": "True", "lastTransitionTime": now_text}]);
                server.put(&path, job);
            }
            continue;
        }
        let before = job.clone();
        if holds(&job, "Suspended") || job["status"]["startTime"].is_null() {
            job["status"]["startTime"] = now_text.clone();
            job["status"]["conditions"] =
                json!([{"type": "Suspended", "status": "False", "lastTransitionTime": now_text}]);
        }
        let failed = codes.iter().filter(|code| ![0, 143].contains(*code)).count();
        let retries = usize::try_from(job["spec"]["backoffLimit"].as_i64().unwrap_or(6)).unwrap();
        let ended = |kind: &str, reason: &str| json!([{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now_text}]);
        job["status"]["failed"] = json!(failed);
        if codes.contains(&0) {
            job["status"]["conditions"] = ended("Complete", "CompletionsReached");
            job["status"]["completionTime"] = now_text.clone();
        } else if codes.contains(&2) {
            job["status"]["conditions"] = ended("Failed", "PodFailurePolicy");
        } else if failed > retries {
            job["status"]["conditions"] = ended("Failed", "BackoffLimitExceeded");
        } else if active.is_empty() {
            let name = format!(
                "{}-{}",
                job["metadata"]["name"].as_str().unwrap(),
                server.objects.len() + server.changes.len()
            );
            let name = unused(server, &name);
            create_pod(server, &job, &name, now);
        }
        if job != before {
            server.put(&path, job);
        }
    }
}

fn unused(server: &Server, name: &str) -> String {
    (0..u32::MAX)
        .map(|index| format!("{name}-{index}"))
        .find(|name| !server.objects.contains_key(&pods_path(name)))
        .unwrap()
}

/// Acts as the Deployment controller: one ReplicaSet for each template, pods of the newest one, and those of others until enough
/// of the newest are ready. `ready` says which pods are.
pub(super) fn sync_servers(server: &mut Server, now: Timestamp, ready: impl Fn(&str) -> bool) {
    for path in server.of_kind("Deployment") {
        let mut deployment = server.objects[&path].clone();
        let template = deployment["spec"]["template"].clone();
        let hash = Sha256::of(template.to_string()).to_string();
        let name = format!("{}-{}", deployment["metadata"]["name"].as_str().unwrap(), &hash[..8]);
        let set_path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/replicasets/{name}");
        if !server.objects.contains_key(&set_path) {
            let owner = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"],
                "uid": deployment["metadata"]["uid"], "controller": true,
            });
            let set = json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "metadata": {
                    "name": name, "ownerReferences": [owner], "annotations": deployment["metadata"]["annotations"],
                    "labels": template["metadata"]["labels"],
                },
                "spec": {"selector": deployment["spec"]["selector"], "template": template},
            });
            server.put(&set_path, set);
        }
        let set = server.objects[&set_path].clone();
        let wanted = usize::try_from(deployment["spec"]["replicas"].as_i64().unwrap_or(1)).unwrap();
        let of_deployment: Vec<String> = server
            .objects
            .iter()
            .filter(|(_, object)| object["kind"] == "ReplicaSet")
            .filter(|(_, object)| {
                Server::owner(object).map(|owner| json!(owner)).as_ref() == Some(&deployment["metadata"]["uid"])
            })
            .map(|(path, _)| path.clone())
            .collect();
        let current = children(server, &set["metadata"]["uid"]);
        for (pod, _) in current.iter().skip(wanted) {
            server.remove(pod);
        }
        for _ in current.len()..wanted {
            let pod = unused(server, &name);
            create_pod(server, &set, &pod, now);
        }
        let current = children(server, &set["metadata"]["uid"]);
        let answering = current.iter().filter(|(_, pod)| ready(pod["metadata"]["uid"].as_str().unwrap())).count();
        if answering >= wanted {
            for other in of_deployment.iter().filter(|other| **other != set_path) {
                let uid = server.objects[other]["metadata"]["uid"].clone();
                for (pod, _) in children(server, &uid) {
                    server.remove(&pod);
                }
            }
        }
        let status = json!({
            "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": answering, "availableReplicas": answering,
            "observedGeneration": deployment["metadata"]["generation"],
        });
        if deployment["status"] != status {
            deployment["status"] = status;
            server.put(&path, deployment);
        }
    }
}

/// Removes servers whose container has terminated. The kubelet would start it again, until the pod is replaced.
pub(super) fn replace_ended_servers(server: &mut Server) {
    for path in server.of_kind("Pod") {
        let pod = &server.objects[&path];
        let serves = pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet";
        if serves && exit_code(pod).is_some() {
            server.remove(&path);
        }
    }
}

/// Acts as the garbage collector: deletes objects whose owners are all gone, and removes those that are gone from the others.
pub(super) fn collect_garbage(server: &mut Server) {
    loop {
        let uids: std::collections::BTreeSet<String> = server
            .objects
            .values()
            .filter_map(|object| object["metadata"]["uid"].as_str())
            .map(str::to_owned)
            .collect();
        let gone = |object: &Value| Server::owners(object).any(|owner| !uids.contains(owner));
        let orphans: Vec<_> = server
            .objects
            .iter()
            .filter(|(_, object)| gone(object))
            .map(|(path, it)| (path.clone(), it.clone()))
            .collect();
        if orphans.is_empty() {
            return;
        }
        for (path, mut object) in orphans {
            let owners = object["metadata"]["ownerReferences"].as_array_mut().unwrap();
            owners.retain(|owner| owner["uid"].as_str().is_some_and(|uid| uids.contains(uid)));
            if owners.is_empty() {
                invariants::check_collected(server, &path);
                server.remove(&path);
            } else {
                server.put(&path, object);
            }
        }
    }
}
