//! `Evaluation`: judges one model by gates. No I/O.

use codex_provenance::{GatesDigest, ModelDigest, ReportDigest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DataItem, Decimal, WorkStatus, WorkerPod,
    training_run::{DataStatus, default_retries, default_seed},
};

/// What to judge, and by which gates.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "Evaluation",
    namespaced,
    status = "EvaluationStatus",
    derive = "PartialEq",
    doc = "An Evaluation scores the model of a TrainingRun and judges the numbers by gates. The controller computes the verdict, which holds for exactly the model digest that was scored.",
    shortname = "evl",
    category = "codex",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.trainingRun"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Gates", type_ = "string", json_path = ".status.gatesPassed"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.short"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.trainingRun == oldSelf.trainingRun", "spec.trainingRun is immutable: create another Evaluation"),
    validation = ("self.preset == oldSelf.preset", "spec.preset is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.overrides == oldSelf.overrides", "spec.overrides is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.data == oldSelf.data", "spec.data is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.seed == oldSelf.seed", "spec.seed is immutable, because it defines the result: create another Evaluation"),
    validation = ("self.gates == oldSelf.gates", "spec.gates is immutable: a gate changed after the numbers are known is another Evaluation"),
    validation = ("self.pod == oldSelf.pod", "spec.pod is immutable: create another Evaluation"),
)]
pub struct EvaluationSpec {
    /// The TrainingRun of this namespace whose model is scored.
    #[schemars(length(min = 1, max = 52))]
    pub training_run: String,
    /// The evaluation preset: cot-hard or cot-lite.
    #[schemars(length(min = 1, max = 63))]
    pub preset: String,
    /// Settings that replace the preset's, each `key=value`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 3, max = 1024)))]
    pub overrides: Vec<String>,
    /// Files that replace the preset's: `problems`, and `baseline` for reasoning.win_rate.
    #[serde(default)]
    #[schemars(length(max = 2))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.name == a.name))", "spec.data[].name must be unique within the list"),
        validation = ("self.all(item, item.name in ['problems', 'baseline'])", "spec.data[].name must be problems or baseline"),
    )]
    pub data: Vec<DataItem>,
    /// The seed of whatever the evaluation draws.
    #[serde(default = "default_seed")]
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// What must hold for the model to pass; every gate counts.
    #[schemars(length(min = 1, max = 32))]
    pub gates: Vec<Gate>,
    /// The pod that evaluates; it runs the controller's own image.
    #[serde(default)]
    pub pod: WorkerPod,
    /// Stops the pod while true.
    #[serde(default)]
    pub suspend: bool,
    /// How often a failed pod is tried again. Interruptions and evictions do not count.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
    /// The most seconds that the Job may take, those in which its pods wait to begin included and suspensions left out. A Job
    /// that takes longer has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
}

/// One bound on one metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.min) != has(self.max)", "gates[] needs exactly one of min and max: write min: \"0.95\", for example"),
)]
pub struct Gate {
    /// The metric: exact_match, reasoning.win_rate or trace_coverage.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = crate::rules::text("self in ['exact_match', 'reasoning.win_rate', 'trace_coverage']", "metric must be exact_match, reasoning.win_rate or trace_coverage"))]
    pub metric: String,
    /// The least value that passes, a decimal in quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = crate::rules::share("min", "0.95"))]
    pub min: Option<Decimal>,
    /// The greatest value that passes, a decimal in quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = crate::rules::share("max", "0.05"))]
    pub max: Option<Decimal>,
    /// With fewer items than this the gate is inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub min_samples: Option<i64>,
    /// The one-sided confidence that the bound must clear, such as "0.95"; without it the value itself decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = crate::rules::text("self.matches('^0[.]([6-9][0-9]{0,17}|5[0-9]*[1-9][0-9]*)$')", "confidence must be a decimal above 0.5 and below 1, in quotes, such as confidence: \"0.95\""))]
    pub confidence: Option<Decimal>,
}

/// What is known about an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The verdict over all gates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The uid of the run that was scored; a run created again under the same name is another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub training_run_uid: Option<String>,
    /// Gates that passed, as `passed/all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub gates_passed: Option<String>,
    /// The verdict of each gate with its numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub gates: Vec<GateStatus>,
    /// The model that was scored, by the digest that the evaluator hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<JudgedModel>,
    /// What the evaluator counted; `reportDigest` is over these numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub metrics: Vec<MetricStatus>,
    /// The digest of the model, the data and the numbers as reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_digest: Option<ReportDigest>,
    /// The digest of the gates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates_digest: Option<GatesDigest>,
    /// The data files as the evaluator read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// What its pods did.
    #[serde(flatten)]
    pub work: WorkStatus,
    /// When the verdict was reached or the evaluation failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The state of the evaluation as conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What gates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// Too little is known to say either.
    Inconclusive,
}

/// A judged gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// The metric.
    #[schemars(length(max = 63))]
    pub metric: String,
    /// The value as counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Decimal>,
    /// Items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// The one-sided lower bound at the gate's confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<Decimal>,
    /// The one-sided upper bound at the gate's confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Decimal>,
    /// What the gate says.
    pub verdict: Verdict,
    /// Why, in one sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// The model that was scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedModel {
    /// The digest that the evaluator hashed.
    pub digest: ModelDigest,
    /// The first twelve digits of it.
    #[schemars(length(max = 12))]
    pub short: String,
}

/// A metric as it was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// The metric's name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Items.
    pub n: i64,
    /// Items that hold, for a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes: Option<i64>,
    /// Comparisons won, for a duel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wins: Option<i64>,
    /// Comparisons tied, for a duel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ties: Option<i64>,
    /// Comparisons lost, for a duel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<i64>,
    /// The sum of the values, for a mean; absent when it was not a finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub sum: Option<String>,
    /// The sum of the squared values, for a mean; absent when it was not a finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub sum_of_squares: Option<String>,
    /// Whether this is a share, a duel or a mean.
    #[schemars(length(max = 16))]
    pub kind: String,
}
