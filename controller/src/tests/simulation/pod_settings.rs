//! Settings of the pods of runs: users change them before and after a pod has started, and the pods of one size fit no node.

use std::time::Duration;

use codex_crds::child;
use rand::Rng;
use serde_json::{Value, json};

use super::{
    cluster, make,
    server::{NAMESPACE, Server},
    simulator::{Simulator, object_path},
};

/// The label and the taint of nodes by which pods choose the size of theirs.
const SIZE: &str = "example.com/size";
/// The size that no node has until everything works again.
const NOWHERE: &str = "0";
/// How long a controller may take to act on a change when everything works.
const ACTS: Duration = Duration::from_secs(60);
/// The run whose settings change before its pod starts.
const SIZED: &str = "sized";

/// Returns settings as `spec.pod` has them. Those of different sizes differ in every field.
fn of_size(size: u32) -> Value {
    json!({
        "nodeSelector": { SIZE: size.to_string() },
        "tolerations": [{"key": SIZE, "operator": "Equal", "value": size.to_string(), "effect": "NoSchedule"}],
        "priorityClassName": format!("size-{size}"),
        "resources": {"requests": {"cpu": format!("{}m", 100 * (size + 1))}},
    })
}

/// Returns the settings of a pod without what users of the simulation do not choose. `container` has its resources.
fn chosen(pod: &Value, container: &Value) -> Value {
    json!([pod["nodeSelector"], pod["tolerations"], pod["priorityClassName"], container["resources"]])
}

/// Returns the settings in the spec of an object.
pub(super) fn of_object(object: &Value) -> Value {
    let pod = &object["spec"]["pod"];
    chosen(pod, pod)
}

/// Returns the settings with which a Job was created.
pub(super) fn of_job(job: &Value) -> Value {
    let pod = &job["spec"]["template"]["spec"];
    chosen(pod, &pod["containers"][0])
}

/// Whether a node takes a pod.
pub(super) fn fits(server: &Server, pod: &Value) -> bool {
    server.every_size || pod["spec"]["nodeSelector"][SIZE] != *NOWHERE
}

/// Returns why the API server refuses a change of `spec.pod`, by the rules in the CRDs.
pub(super) fn refusal(before: &Value, after: &Value) -> Option<&'static str> {
    if before["spec"]["pod"] == after["spec"]["pod"] {
        return None;
    }
    match before["kind"].as_str() {
        Some("Evaluation") => Some("spec.pod is immutable"),
        Some("TrainingRun") if before["status"]["startedAt"].is_string() => {
            Some("spec.pod is immutable once a pod has started")
        }
        _ => None,
    }
}

impl Simulator {
    /// A user changes the settings of the pod of an object.
    pub(super) fn resize(&mut self, plural: &str, name: &str) {
        let size = self.random.random_range(0..5);
        self.begin(format!("a user changes spec.pod of {name} to size {size}"));
        self.edit(&object_path(plural, name), |object| object["spec"]["pod"] = of_size(size));
    }

    /// A user changes the settings of a run before its pod starts, while everything works (invariant 22).
    pub(super) async fn resize_before_the_start(&mut self) -> Result<(), String> {
        let path = object_path("trainingruns", SIZED);
        let mut run = serde_json::to_value(make::run()).unwrap();
        run.as_object_mut().unwrap().remove("status");
        run["metadata"]["name"] = json!(SIZED);
        run["metadata"]["uid"] = json!("run-sized");
        run["spec"]["pod"] = of_size(1);
        self.begin(format!("a user creates {SIZED}"));
        self.server.lock().put(&path, run);
        let (first, _) = self.job_of_sized().await;
        self.begin(format!("a user changes spec.pod of {SIZED}"));
        self.edit(&path, |run| run["spec"]["pod"] = of_size(2));
        let (second, settings) = self.job_of_sized().await;
        self.begin(format!("a user writes spec.pod of {SIZED} otherwise"));
        self.edit(&path, |run| run["spec"]["pod"]["resources"]["requests"]["cpu"] = json!("0.3"));
        let (third, _) = self.job_of_sized().await;
        let wanted = of_object(&json!({"spec": {"pod": of_size(2)}}));
        let wrong = if first.is_null() || second.is_null() || second == first || settings != wanted {
            Some(format!("settings that changed before its pod started are not those of its Job: {settings}"))
        } else if third != second {
            Some("equal settings that are written otherwise replaced its Job".to_owned())
        } else {
            None
        };
        self.server.lock().violations.extend(wrong.map(|wrong| format!("{SIZED}: {wrong}")));
        self.check()
    }

    /// Lets the controllers and then the Job controller act, and returns the uid and the settings of the Job; nulls without one.
    async fn job_of_sized(&mut self) -> (Value, Value) {
        self.tick(ACTS).await;
        cluster::sync_jobs(&mut self.server.lock(), self.now());
        let server = self.server.lock();
        let path = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{}", child::trainer(SIZED));
        let job = server.objects.get(&path);
        job.map_or_else(Default::default, |job| (job["metadata"]["uid"].clone(), of_job(job)))
    }
}
