//! Regular redeployments: when a ReasoningPod trains, evaluates and promotes another model by itself, and what became of that. No I/O.

use codex_provenance::ModelDigest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{EvaluationSpec, MAX_HISTORY, MissedRuns, Schedule, TrainingRunSpec};

/// Fields of pods whose types are Kubernetes' own.
const FOREIGN: [&str; 5] = ["affinity", "tolerations", "resources", "env", "imagePullSecrets"];

/// The most Evaluations of a cycle.
pub const MAX_CYCLE_EVALUATIONS: usize = 4;

/// Regular redeployment: at each time of the schedule a cycle trains a model, evaluates it, and promotes it if everything that a
/// promotion demands holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redeploy {
    /// Times at which a cycle starts. A time at which the former cycle is still at work starts none.
    #[x_kube(validation = crate::rules::no_replaced_cycles())]
    pub schedule: Schedule,
    /// What each cycle creates. A change holds from the next cycle on.
    pub template: RedeployTemplate,
    /// Shadow that must prove parity with what is served before the model of a cycle is promoted. Without it, none is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<RedeployShadow>,
    /// Number of promoted cycles whose TrainingRun and Evaluations are kept. Those that are served, or that a rollback returns to, are
    /// kept besides. Defaults to 3.
    #[serde(default = "default_successful")]
    #[schemars(range(min = 0, max = 10))]
    pub successful_history_limit: i32,
    /// Number of other cycles whose TrainingRun and Evaluations are kept. Defaults to 1.
    #[serde(default = "default_failed")]
    #[schemars(range(min = 0, max = 10))]
    pub failed_history_limit: i32,
}

/// Shadow of each cycle: a ReasoningPod that answers copies of the requests of what is served with the model of the cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedeployShadow {
    /// Share of the requests that are copied, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub sample_percent: i32,
    /// Greatest share of requests that may be answered differently, such as 0.01. The cycle goes on once the upper confidence bound of
    /// the share is at most this, and fails once the lower one is above it.
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = crate::rules::share("spec.redeploy.shadow.maxDivergence", "0.01"),
        validation = ("self.matches('[1-9]')", "spec.redeploy.shadow.maxDivergence must be above 0, because no number of requests proves that nothing differs: write 0.01")
    )]
    pub max_divergence: String,
    /// Least number of compared requests before parity holds. Without it, as many as the bounds need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<i32>,
    /// Seconds in which parity must be proved, from when the shadow is created. Then the cycle fails. Defaults to 86400.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 1, max = 2_419_200))]
    pub deadline_seconds: i64,
}

/// Objects that a cycle creates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedeployTemplate {
    /// Spec of the TrainingRun, as kubectl explain trainingrun.spec describes it, without suspend. Its rolloutRing must be
    /// spec.rolloutRing.
    #[schemars(schema_with = "run")]
    pub training_run: TrainingRunSpec,
    /// Evaluations that must pass.
    #[schemars(length(min = 1, max = MAX_CYCLE_EVALUATIONS))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.name == a.name))", "template.evaluations[].name must be unique within the list: rename one of them")
    )]
    pub evaluations: Vec<EvaluationTemplate>,
}

/// An Evaluation that a cycle creates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationTemplate {
    /// End of its name, which begins with those of the ReasoningPod and the cycle.
    #[schemars(length(min = 1, max = 14))]
    #[x_kube(validation = crate::rules::text("template.evaluations[].name", "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "lower-case letters, digits and inner dashes, such as lite"))]
    pub name: String,
    /// Spec of the Evaluation, as kubectl explain evaluation.spec describes it, without the fields that the cycle sets or excludes:
    /// trainingRun, model, output, schedule and suspend.
    #[schemars(schema_with = "evaluation")]
    pub spec: EvaluationSpec,
}

fn default_successful() -> i32 {
    3
}

fn default_deadline() -> i64 {
    86_400
}

fn default_failed() -> i32 {
    1
}

fn run(generator: &mut SchemaGenerator) -> Schema {
    of_template(TrainingRunSpec::json_schema(generator), &["suspend"])
}

fn evaluation(generator: &mut SchemaGenerator) -> Schema {
    of_template(EvaluationSpec::json_schema(generator), &["trainingRun", "model", "output", "schedule", "suspend"])
}

/// Returns the schema of a spec as a part of another one: without these fields, without rules about them and about changes, and
/// without descriptions of Kubernetes' own types, because the size of a CRD is limited.
fn of_template(mut schema: Schema, excluded: &[&str]) -> Schema {
    let about =
        |rule: &str| rule.contains("oldSelf") || excluded.iter().any(|field| rule.contains(&format!("self.{field})")));
    let all = schema.ensure_object();
    if let Some(Value::Object(properties)) = all.get_mut("properties") {
        properties.retain(|name, _| !excluded.contains(&name.as_str()));
    }
    rules(all, &about);
    all.values_mut().for_each(|value| reduce(value, &about));
    schema
}

/// Removes rules for which `about` returns true, and descriptions of Kubernetes' own types.
fn reduce(value: &mut Value, about: &impl Fn(&str) -> bool) {
    match value {
        Value::Object(fields) => {
            rules(fields, about);
            for (name, inner) in fields {
                reduce(inner, about);
                if let Value::Object(foreign) = inner
                    && FOREIGN.contains(&name.as_str())
                {
                    foreign.values_mut().for_each(undescribed);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|value| reduce(value, about)),
        _ => {}
    }
}

/// Removes all descriptions.
fn undescribed(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // A field may have this name; a description is a text.
            if fields.get("description").is_some_and(Value::is_string) {
                fields.remove("description");
            }
            fields.values_mut().for_each(undescribed);
        }
        Value::Array(items) => items.iter_mut().for_each(undescribed),
        _ => {}
    }
}

fn rules(schema: &mut Map<String, Value>, about: &impl Fn(&str) -> bool) {
    let Some(Value::Array(rules)) = schema.get_mut("x-kubernetes-validations") else { return };
    rules.retain(|rule| rule["rule"].as_str().is_none_or(|rule| !about(rule)));
    if rules.is_empty() {
        schema.remove("x-kubernetes-validations");
    }
}

/// State of the redeployments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedeployStatus {
    /// Phase of the latest cycle: Training, Evaluating, Blocked, Shadowing, RollingOut, Serving, Failed or RolledBack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<CyclePhase>,
    /// Time at which the controller first saw spec.redeploy. Earlier times of the schedule do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Time>,
    /// Cycle that has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<CycleStatus>,
    /// What was served before status.current, and what a rollback returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<ServedStatus>,
    /// Time for which the latest cycle was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Time for which the next cycle starts. Absent while spec.redeploy.schedule.suspend or spec.dryRun is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// Times since the latest cycle, or before it, for which no cycle was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<MissedRuns>,
    /// Number of promoted cycles.
    #[schemars(range(min = 0))]
    pub promoted: i64,
    /// Number of SignOffs that promoted cycles needed or had: 0 means that no person waved one through.
    #[schemars(range(min = 0))]
    pub manual_overrides: i64,
    /// Cycles that have ended, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HISTORY))]
    pub history: Vec<CycleRecord>,
}

/// Where a cycle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum CyclePhase {
    /// Its TrainingRun has no model yet.
    Training,
    /// Its Evaluations have not all been judged.
    Evaluating,
    /// Its Evaluations have passed, and a policy, a ring or the signer keeps the model from being promoted.
    Blocked,
    /// Its shadow answers copies of requests until parity with what is served is proved.
    Shadowing,
    /// Its model is signed and rolled out, by a canary with spec.rollout.
    RollingOut,
    /// Its model was rolled out.
    Serving,
    /// Its training failed, an Evaluation did not pass, its shadow lost parity or did not prove it in time, or something kept it from going
    /// on until the next one was due.
    Failed,
    /// Its canary failed, or a server refused its model: what was served before is served.
    RolledBack,
}

/// What a ReasoningPod with spec.redeploy serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServedStatus {
    /// Name of the TrainingRun whose model is served.
    #[schemars(length(max = 52))]
    pub training_run: String,
    /// Names of the Evaluations that the model passed.
    #[schemars(length(max = 16), inner(length(max = 52)))]
    pub evaluations: Vec<String>,
    /// Time of the cycle. Absent if the spec names the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Time>,
}

/// Cycle that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CycleStatus {
    /// Time of the schedule for which it was started.
    pub scheduled: Time,
    /// Time at which the controller started it.
    pub since: Time,
    /// Phase of the cycle: Training, Evaluating, Blocked, Shadowing or RollingOut.
    pub phase: CyclePhase,
    /// Name of its TrainingRun.
    #[schemars(length(max = 52))]
    pub training_run: String,
    /// Names of its Evaluations.
    #[schemars(length(max = MAX_CYCLE_EVALUATIONS), inner(length(max = 52)))]
    pub evaluations: Vec<String>,
    /// Time at which its shadow was first to be created. Absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_since: Option<Time>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// Cycle that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CycleRecord {
    /// Time of the schedule for which it was started.
    pub scheduled: Time,
    /// Time at which it ended.
    pub ended: Time,
    /// How it ended: Serving, Failed or RolledBack.
    pub result: CyclePhase,
    /// Name of its TrainingRun, which may have been deleted since.
    #[schemars(length(max = 52))]
    pub training_run: String,
    /// Digest of its model. Absent if training failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ModelDigest>,
    /// Number of SignOffs that counted when it was promoted.
    #[schemars(range(min = 0))]
    pub manual_overrides: i64,
    /// Why it ended so.
    #[schemars(length(max = 1024))]
    pub reason: String,
}
