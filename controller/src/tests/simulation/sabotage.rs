//! Faults that are built in on purpose: they prove that the invariants can fail. Most of them change requests between plans and the
//! API server. The fence, the tokens of reports and the garbage collector are broken where the simulation makes them.

use http::{Method, request::Parts};
use serde_json::{Value, json};

use super::server::NAMESPACE;

/// What is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// It is not.
    #[default]
    None,
    /// Jobs lose their owner.
    DropOwner,
    /// Each Job is created twice, under two names.
    DoubleJob,
    /// A run that has succeeded gets another Job.
    Retrain,
    /// Servers are told to serve another model than the promoted one.
    SwapModel,
    /// A promotion is made for another ring under the same name.
    Resign,
    /// Every evaluation passes.
    PassAll,
    /// Each status is written with a new time.
    RestlessStatus,
    /// A canary replaces the servers at once.
    SkipCanary,
    /// The ledger of reads is written without the reads.
    DropReads,
    /// The pods of Jobs get a priority that nobody chose.
    MixSettings,
    /// The Job of a run is deleted while its trainer is at work.
    DropStarted,
    /// No Job is deleted.
    KeepJobs,
    /// The fence lets every write pass, so that a former leader goes on writing.
    OpenFence,
    /// The spec of a run is changed with its status.
    EditSpec,
    /// The ConfigMap of a user is deleted when a Job is created.
    DropForeign,
    /// The status of a run names another model than its trainer reported.
    SwapTrained,
    /// The status of a ReasoningPod names another model than a server reported.
    SwapVerified,
    /// A report is accepted as one of the pod that it names, whatever its token is.
    TrustReports,
    /// Each status of a ReasoningPod is said to be of no generation.
    ForgetGeneration,
    /// A run that has succeeded is said to have failed.
    FailRuns,
    /// The garbage collector deletes nothing.
    KeepOrphans,
}

impl Sabotage {
    /// Every way to break something, with words of the invariant that finds it.
    pub(super) const ALL: &[(Self, &str)] = &[
        (Self::DropOwner, "has no owner"),
        (Self::DoubleJob, "at most one Job"),
        (Self::Retrain, "never trains again"),
        (Self::SwapModel, "exactly these bytes"),
        (Self::Resign, "signed twice"),
        (Self::PassAll, "verdict"),
        (Self::RestlessStatus, "writes nothing"),
        (Self::SkipCanary, "what their canary tries"),
        (Self::DropReads, "published before its read was counted"),
        (Self::MixSettings, "never had"),
        (Self::DropStarted, "after a pod of it has started"),
        (Self::KeepJobs, "changed before its pod started"),
        (Self::OpenFence, "does not hold the Lease"),
        (Self::EditSpec, "changed the spec of"),
        (Self::DropForeign, "which is not its own"),
        (Self::SwapTrained, "which its trainer did not write"),
        (Self::SwapVerified, "which none reported"),
        (Self::TrustReports, "with the token of another pod was accepted"),
        (Self::ForgetGeneration, "is not of its generation"),
        (Self::FailRuns, "failed without a cause"),
        (Self::KeepOrphans, "outlives its owner"),
    ];

    /// Whether a request is answered, and not carried out.
    pub(super) fn swallows(self, parts: &Parts) -> bool {
        self == Self::KeepJobs && parts.method == Method::DELETE && parts.uri.path().contains("/jobs/")
    }

    /// Changes a request, and returns requests that are sent after it.
    pub(super) fn apply(self, parts: &Parts, body: &mut Value) -> Vec<(Method, String, Value)> {
        let path = parts.uri.path();
        let kind = body["kind"].as_str().unwrap_or_default().to_owned();
        let writes = matches!(parts.method, Method::PATCH | Method::POST | Method::PUT);
        if !writes {
            return Vec::new();
        }
        match self {
            Self::DropOwner if kind == "Job" => {
                body["metadata"].as_object_mut().unwrap().remove("ownerReferences");
            }
            Self::DoubleJob if kind == "Job" => {
                let mut second = body.clone();
                second["metadata"]["name"] = json!(format!("{}-again", body["metadata"]["name"].as_str().unwrap()));
                let (collection, _) = path.rsplit_once('/').unwrap();
                return vec![(Method::POST, collection.to_owned(), second)];
            }
            Self::Retrain if kind == "TrainingRun" && body["status"]["completedAt"].is_string() => {
                let owner =
                    json!({"kind": "TrainingRun", "name": "cot", "uid": body["metadata"]["uid"], "controller": true});
                let job = json!({"kind": "Job", "metadata": {"name": "codex-t-again", "ownerReferences": [owner]}, "spec": {}});
                return vec![(Method::POST, "/apis/batch/v1/namespaces/team/jobs".to_owned(), job)];
            }
            Self::SwapModel if kind == "Deployment" => {
                body["metadata"]["annotations"]["codex-ml.dev/model-digest"] = json!("0".repeat(64));
            }
            Self::Resign if kind == "ConfigMap" && body["data"]["bundle.json"].is_string() => {
                let bundle =
                    body["data"]["bundle.json"].as_str().unwrap().replacen("\"payload\":\"", "\"payload\":\"e30", 1);
                let second = json!({"data": {"bundle.json": bundle}, "kind": "ConfigMap", "metadata": {
                    "name": body["metadata"]["name"], "ownerReferences": body["metadata"]["ownerReferences"],
                }});
                let name = body["metadata"]["name"].as_str().unwrap();
                return vec![
                    (Method::DELETE, format!("{path}/{name}"), Value::Null),
                    (Method::POST, path.to_owned(), second),
                ];
            }
            Self::PassAll if kind == "Evaluation" && body["status"]["verdict"].is_string() => {
                body["status"]["verdict"] = json!("Passed");
            }
            Self::SkipCanary if kind == "Deployment" && path.ends_with("/codex-c-rc") => {
                let mut servers = body.clone();
                servers["metadata"]["name"] = json!("codex-s-rc");
                return vec![(Method::PATCH, path.replace("/codex-c-", "/codex-s-"), servers)];
            }
            Self::DropReads if kind == "ConfigMap" && body["data"]["reads.json"].is_string() => {
                body["data"]["reads.json"] = json!(r#"{"total":0,"newest":[]}"#);
            }
            Self::MixSettings if kind == "Job" => {
                body["spec"]["template"]["spec"]["priorityClassName"] = json!("size-9");
            }
            Self::DropStarted
                if kind == "TrainingRun"
                    && body["status"]["progress"].is_object()
                    && body["status"]["completedAt"].is_null() =>
            {
                let job = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs/codex-t-cot");
                return vec![(Method::DELETE, job, Value::Null)];
            }
            Self::EditSpec if path.ends_with("/status") && kind == "TrainingRun" => {
                let run = path.trim_end_matches("/status").to_owned();
                return vec![(Method::PATCH, run, json!({"spec": {"seed": 4711}}))];
            }
            Self::DropForeign if kind == "Job" => {
                let problems = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/problems");
                return vec![(Method::DELETE, problems, Value::Null)];
            }
            Self::SwapTrained if kind == "TrainingRun" && body["status"]["model"].is_object() => {
                body["status"]["model"]["digest"] = json!("0".repeat(64));
            }
            Self::SwapVerified if kind == "ReasoningPod" && body["status"]["verified"].is_object() => {
                body["status"]["verified"]["digest"] = json!("0".repeat(64));
            }
            Self::ForgetGeneration if kind == "ReasoningPod" && path.ends_with("/status") => {
                body["status"]["observedGeneration"] = json!(0);
            }
            Self::FailRuns if kind == "TrainingRun" && body["status"]["model"].is_object() => {
                body["status"]["phase"] = json!("Failed");
            }
            Self::RestlessStatus if path.ends_with("/status") && kind == "TrainingRun" => {
                if let Some(condition) = body.pointer_mut("/status/conditions/0/message") {
                    *condition = json!(format!("{:?}", std::time::Instant::now()));
                }
            }
            _ => {}
        }
        Vec::new()
    }
}
