//! `Evaluation`: judges one model by gates. No I/O.

use codex_provenance::{
    ConfigDigest, DataDigest, EvidenceStrength, GatesDigest, ModelDigest, ReportDigest, golden::Golden,
};
use codex_verdict::{
    GateResult, GateSpec, Kind, MAX_GATES, MAX_METRIC_NAME, MAX_METRICS, MAX_REFERENCES, Measurement, Method, Verdict,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DataItem, Device, DeviceStatus, Output, Schedule, ScheduleStatus, VolumeClaimFolder, WorkStatus, WorkerPod,
    training_run::{DataStatus, default_progress_deadline, default_retries, default_seed},
};

/// Desired state of an Evaluation: the model to score, preset, data, gates and pod.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "Evaluation",
    namespaced,
    status = "EvaluationStatus",
    derive = "PartialEq",
    doc = "An Evaluation scores the model of a TrainingRun, or a given model, and checks the results against gates. The controller computes the verdict, which applies only to the model digest that was scored.",
    shortname = "evl",
    category = "codex",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.trainingRun"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Gates", type_ = "string", json_path = ".status.gatesPassed"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.short"),
    printcolumn(name = "Evidence", type_ = "string", json_path = ".status.evidence", priority = 1),
    printcolumn(name = "Last run", type_ = "date", json_path = ".status.schedule.lastScheduleTime", priority = 1),
    printcolumn(name = "Next run", type_ = "string", json_path = ".status.schedule.nextScheduleTime", priority = 1),
    printcolumn(name = "Read", type_ = "integer", json_path = ".status.reads.number", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name(),
    validation = crate::rules::own_reference(),
    validation = crate::rules::scheduled_name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.trainingRun) != has(self.model)", "spec must have exactly one of trainingRun and model"),
    validation = ("has(self.model) == has(self.output)", "spec.output is required with spec.model, and must be absent with spec.trainingRun, because then the results are stored beside the run"),
    validation = ("has(self.trainingRun) == has(oldSelf.trainingRun) && (!has(self.trainingRun) || self.trainingRun == oldSelf.trainingRun)", "spec.trainingRun is immutable: create another Evaluation"),
    validation = crate::rules::same_model("is immutable, because it defines the result: create another Evaluation"),
    validation = crate::rules::same_folder("output", "subPath", "is immutable, because it holds the results: create another Evaluation"),
    validation = ("self.preset == oldSelf.preset", "spec.preset is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.overrides == oldSelf.overrides", "spec.overrides is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.data == oldSelf.data", "spec.data is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.seed == oldSelf.seed", "spec.seed is immutable, because it defines the result: create another Evaluation"),
    validation = ("has(self.device) == has(oldSelf.device) && (!has(self.device) || self.device == oldSelf.device)", "spec.device is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.gates == oldSelf.gates", "spec.gates is immutable, because the verdict depends on it: create another Evaluation"),
    validation = ("self.page == oldSelf.page", "spec.page is immutable, because the Job has it already: create another Evaluation"),
    validation = ("has(self.schedule) == has(oldSelf.schedule)", "spec.schedule cannot be added or removed: create another Evaluation; its fields can be changed"),
    validation = ("self.terminationGracePeriodSeconds == oldSelf.terminationGracePeriodSeconds", "spec.terminationGracePeriodSeconds is immutable, because the Job has it already: create another Evaluation"),
    validation = crate::rules::same_pod("Evaluation"),
)]
pub struct EvaluationSpec {
    /// Name of the TrainingRun in this namespace whose model is scored. Exactly one of trainingRun and model is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 52))]
    pub training_run: Option<String>,
    /// Given model that is scored instead of the model of a TrainingRun, such as a base before training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<GivenModel>,
    /// Volume that receives the results if spec.model is set; the results about a TrainingRun are stored beside its model.
    /// Deleting the Evaluation does not delete them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// Evaluation preset: base, cot-hard, cot-lite, gym-chain-sum, gym-gsm-symbolic, gym-products, math or tools.
    #[schemars(length(min = 1, max = 63))]
    pub preset: String,
    /// Settings that replace those of the preset, each as key=value.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 3, max = 1024)))]
    pub overrides: Vec<String>,
    /// Files that replace those of the preset: problems, and baseline for reasoning.win_rate. The file named plugin-metric is a
    /// plugin in WebAssembly, which measures the metric plugin.
    #[serde(default)]
    #[schemars(length(max = 3))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.name == a.name))", "spec.data[].name must be unique within the list: remove one of the files"),
        validation = ("self.all(item, item.name in ['problems', 'baseline', 'plugin-metric'])", "spec.data[].name must be problems, baseline or plugin-metric"),
    )]
    pub data: Vec<DataItem>,
    /// Seed of the bootstrap, which bounds bleu and perplexity, and of the answers that are sampled with a temperature above 0.
    /// Defaults to 42.
    #[serde(default = "default_seed")]
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// Device that generates and scores: auto, cpu or cuda. auto takes a GPU if spec.pod gives the evaluator one and it can use it,
    /// else the processor; with cuda an evaluator without a usable GPU fails. Defaults to auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Bounds on metrics, also relative to other Evaluations of the same problems, of which at most 4 may be named. The model
    /// passes if every gate passes.
    #[schemars(length(min = 1, max = MAX_GATES))]
    pub gates: Vec<GateSpec>,
    /// Whether the evaluator also writes a page for people, report.html, beside its results: gates, measurements, examples and
    /// the digests of the model's files. status.page says where it lies. Defaults to false.
    #[serde(default)]
    pub page: bool,
    /// Settings of the evaluator pod. Its image is the one that the controller is configured with.
    #[serde(default)]
    #[x_kube(
        validation = ("!has(self.resources) || !has(self.resources.claims) || self.resources.claims.all(claim, has(self.resourceClaims) && self.resourceClaims.exists(given, given.name == claim.name))", "pod.resources.claims must name entries of pod.resourceClaims: add the claim there, or remove it")
    )]
    pub pod: WorkerPod,
    /// Times at which the evaluation is repeated. The verdict is that of the latest finished run. Without it, there is one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// While true, the evaluator pod is stopped. Defaults to false.
    #[serde(default)]
    pub suspend: bool,
    /// How often a failed pod is replaced before the Evaluation fails. Interruptions and evictions do not count. Defaults to 3.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
    /// Active deadline of the Job in seconds. Includes the time in which pods wait to start; excludes suspensions. A Job that
    /// exceeds it fails. Without it, there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// Seconds without a new report of the evaluator after which the condition ProgressStale is true. The pod keeps running.
    /// Defaults to 600.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 60, max = 31_536_000))]
    pub progress_deadline_seconds: i64,
    /// Seconds from the signal to stop until the evaluator is killed. An evaluation that is stopped starts over, so it saves
    /// nothing in this time. Defaults to 30.
    #[serde(default = "default_evaluator_grace")]
    #[schemars(range(min = 1, max = 86_400))]
    pub termination_grace_period_seconds: i64,
    /// Seconds after which the Job and the pods of an Evaluation that was judged or failed are deleted, with their logs. The
    /// Evaluation, its status and the files on the volume stay. Without it, Job and pods stay as long as the Evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

fn default_evaluator_grace() -> i64 {
    30
}

/// A model that no TrainingRun of this namespace made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GivenModel {
    /// PersistentVolumeClaim of this namespace, and the folder of the model on it: config.json, weights as safetensors, and the
    /// tokenizer, as Hugging Face lays them out. It is mounted read-only.
    pub persistent_volume_claim: VolumeClaimFolder,
    /// Model digest that the files must have, as 64 lower-case hexadecimal digits. A model with another digest fails the
    /// Evaluation. Without it, any model is scored, and status.model names its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = crate::rules::digest())]
    pub digest: Option<String>,
}

/// Observed state of an Evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Phase of the evaluation: Pending, Running, Suspended, Stalled, Judged or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<EvaluationPhase>,
    /// Time at which the object got its phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_phase_transition_time: Option<Time>,
    /// Verdict over all gates: Passed, Failed or Inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Uid of the TrainingRun that was scored. A run that is deleted and created again under the same name is another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub training_run_uid: Option<String>,
    /// SHA-256 of the resolved configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// Number of gates that passed and number of all gates, as passed/all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub gates_passed: Option<String>,
    /// Verdict of each gate, with the numbers that it was computed from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_GATES))]
    pub gates: Vec<GateResult>,
    /// Model that was scored, identified by the digest that the evaluator computed from its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<JudgedModel>,
    /// Device that scored the model, as the evaluator reported it. Absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// Measurements that the evaluator reported. status.reportDigest covers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_METRICS))]
    pub metrics: Vec<MetricStatus>,
    /// File of the outcome of each problem, which other Evaluations compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<OutcomesStatus>,
    /// Page for people about the model and its results, as the evaluator wrote it. It proves nothing. Present only with spec.page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<PageStatus>,
    /// What the model generated for a few of the problems. Servers of the model generate it again before they are ready.
    /// status.reportDigest covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Golden>,
    /// Evaluations that the gates compare with, as they were when the evaluator was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_REFERENCES))]
    pub references: Vec<ReferenceStatus>,
    /// SHA-256 over the reported model digest, data digests, metrics and golden tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_digest: Option<ReportDigest>,
    /// SHA-256 of the gates that the verdict was computed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates_digest: Option<GatesDigest>,
    /// Data files with the digests of the bytes that the evaluator read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// Runs. Present only with spec.schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// Read of the problems that the verdict was. It is counted before the verdict is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadStatus>,
    /// Work of the pods.
    #[serde(flatten)]
    pub work: WorkStatus,
    /// Time at which the verdict was reached or the Evaluation failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Strength of the evidence: strong if admission policies protected the evaluation from start to end, else weak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceStrength>,
    /// Reason why the evidence is weak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub evidence_reason: Option<String>,
    /// Seal of the controller over the parts of this status that later steps depend on. A status without a valid seal is discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub seal: Option<String>,
    /// Conditions of the Evaluation: ConfigResolved, EvidenceStrong, GatesPassed, ProgressStale, Ready, Reconciling, RunsMissed,
    /// Stalled and StatusDiscarded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The phase of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum EvaluationPhase {
    /// Waiting for the model or for a pod.
    Pending,
    /// A pod is scoring the model.
    Running,
    /// Suspended by `spec.suspend`.
    Suspended,
    /// The evaluation cannot proceed until a user changes something.
    Stalled,
    /// The verdict is reached.
    Judged,
    /// The evaluation has failed and is not retried.
    Failed,
}

/// A model that was scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedModel {
    /// Digest that the evaluator computed from the files of the model.
    pub digest: ModelDigest,
    /// First twelve digits of the model digest.
    #[schemars(length(max = 12))]
    pub short: String,
}

/// Read of a set of problems by a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadStatus {
    /// SHA-256 of the problems.
    pub data_digest: DataDigest,
    /// Number of the read among all verdicts that read these problems, from 1. The controller counts them in its own namespace;
    /// deleting objects does not lower the count.
    #[schemars(range(min = 1))]
    pub number: i64,
}

/// File of the outcome of each problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutcomesStatus {
    /// SHA-256 of the file, as the evaluator wrote it.
    pub sha256: DataDigest,
    /// PersistentVolumeClaim that holds the file.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Folder of the file on the volume.
    #[schemars(length(max = 1024))]
    pub path: String,
}

/// Page for people on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PageStatus {
    /// SHA-256 of the file, as the evaluator wrote it.
    pub sha256: DataDigest,
    /// PersistentVolumeClaim that holds the file.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Path of the file on the volume.
    #[schemars(length(max = 1024))]
    pub path: String,
}

/// An Evaluation that gates compare with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceStatus {
    /// Name of the Evaluation.
    #[schemars(length(max = 63))]
    pub evaluation: String,
    /// Uid of the Evaluation.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Digest of the model that it scored.
    pub model: ModelDigest,
    /// SHA-256 of its file of outcomes.
    pub outcomes: DataDigest,
    /// Strength of its evidence: strong or weak.
    pub evidence: EvidenceStrength,
    /// Its measurements, without its own comparisons.
    #[schemars(length(max = MAX_METRICS))]
    pub metrics: Vec<MetricStatus>,
}

/// Measurement of a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// Name of the metric, followed by @ and the name of the Evaluation if it is a comparison.
    #[schemars(length(max = MAX_METRIC_NAME))]
    pub name: String,
    /// Number of scored items, or of their clusters; for lowest_trace_coverage in the category with the fewest.
    pub n: i64,
    /// Number of items in all clusters. Set if the problems name clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<i64>,
    /// Number of items that count as a success. Set for a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes: Option<i64>,
    /// Number of comparisons won. Set for a duel, and for the comparison of a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wins: Option<i64>,
    /// Number of comparisons tied. Set for a duel, and for the comparison of a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ties: Option<i64>,
    /// Number of comparisons lost. Set for a duel, and for the comparison of a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<i64>,
    /// Sum of the values, of clusters the means of their items. Set for a mean or a difference; absent if it is not a finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub sum: Option<String>,
    /// Sum of the squared values. Set for a mean or a difference; absent if it is not a finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub sum_of_squares: Option<String>,
    /// Value of the metric. Set for an estimate, which has its own bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub value: Option<String>,
    /// One-sided lower bound. Set for an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub lower: Option<String>,
    /// One-sided upper bound. Set for an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub upper: Option<String>,
    /// Confidence level of each bound. Set for an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub confidence: Option<String>,
    /// Method that computed the bounds: bootstrap or bernstein. Set for an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub method: Option<String>,
    /// Kind of the measurement: share, duel, mean, difference or estimate; clusterMean, clusterDifference or clusterEstimate if the
    /// problems name clusters.
    #[schemars(length(max = 24))]
    pub kind: String,
}

impl MetricStatus {
    /// Returns the measurement, exactly as it was reported; `None` if it is malformed.
    pub fn measurement(&self) -> Option<Measurement> {
        let number = |count: Option<i64>| u64::try_from(count?).ok();
        let float = |text: &Option<String>| match text {
            None => Some(None),
            Some(text) => text.parse().ok().map(Some),
        };
        let n = number(Some(self.n))?;
        let method = || Method::ALL.into_iter().find(|method| Some(method.name()) == self.method.as_deref());
        Some(match Kind::ALL.into_iter().find(|kind| kind.name() == self.kind)? {
            Kind::Share => Measurement::Share { successes: number(self.successes)?, n },
            Kind::Duel => {
                Measurement::Duel { wins: number(self.wins)?, ties: number(self.ties)?, losses: number(self.losses)? }
            }
            Kind::Mean => Measurement::Mean { n, sum: float(&self.sum)?, sum_of_squares: float(&self.sum_of_squares)? },
            Kind::Difference => {
                Measurement::Difference { n, sum: float(&self.sum)?, sum_of_squares: float(&self.sum_of_squares)? }
            }
            Kind::Estimate => Measurement::Estimate {
                value: float(&self.value)?,
                lower: float(&self.lower)?,
                upper: float(&self.upper)?,
                n,
                confidence: float(&self.confidence)?,
                method: method()?,
            },
            Kind::ClusterMean => Measurement::ClusterMean {
                n,
                items: number(self.items)?,
                sum: float(&self.sum)?,
                sum_of_squares: float(&self.sum_of_squares)?,
            },
            Kind::ClusterDifference => Measurement::ClusterDifference {
                n,
                items: number(self.items)?,
                sum: float(&self.sum)?,
                sum_of_squares: float(&self.sum_of_squares)?,
            },
            Kind::ClusterEstimate => Measurement::ClusterEstimate {
                value: float(&self.value)?,
                lower: float(&self.lower)?,
                upper: float(&self.upper)?,
                n,
                items: number(self.items)?,
                confidence: float(&self.confidence)?,
                method: method()?,
            },
        })
    }
}
