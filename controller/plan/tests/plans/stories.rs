//! Stories: a YAML file gives the observations step by step; the snapshot holds the first plan and the changes of each step.
//!
//! A story is a stream of YAML documents. The first is the observation at second 0; each further one has `step` (its
//! name), `at` (its second) and what happens: `given` (objects that other plans brought to where they are), `patch` (a JSON
//! merge patch on the observation), `pods` (name → container state), `canary` and `activator` (the same for pods of a canary and of an activator), `says` (pod → a shorthand of [`Saying`]), `ends` (pod →
//! exit code; a pod that exits 0 leaves its report as termination message). Statuses,
//! Jobs, Deployments and bundles come from the plans.

use std::{collections::BTreeMap, fmt::Write as _};

use codex_plan::{
    Desired, Effect, KeptKind, Plan, Received,
    evaluation::{self, ObservedEvaluation},
    http_route::HttpRoute,
    reasoning_pod::{self, Bundle, ObservedReasoningPod, SignedModel, SignedPromotion, Signer},
    training_run::{self, ObservedTrainingRun},
};
use codex_provenance::oms;
use codex_reports::{EvaluationState, Kind, LATENCY_EDGES, ServingState, Stage, State, Traffic, TrainingState};
use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, batch::v1::Job, core::v1::Pod,
    discovery::v1::EndpointSlice,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use similar::TextDiff;

use crate::{
    make,
    properties::{judged, reproducible, trained},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(rename = "step")]
    name: String,
    at: i64,
    #[serde(default)]
    given: Given,
    #[serde(default = "nothing")]
    patch: Value,
    #[serde(default)]
    pods: BTreeMap<String, Value>,
    #[serde(default)]
    canary: BTreeMap<String, Value>,
    #[serde(default)]
    activator: BTreeMap<String, Value>,
    #[serde(default)]
    says: BTreeMap<String, Saying>,
    #[serde(default)]
    ends: BTreeMap<String, i32>,
}

fn nothing() -> Value {
    json!({})
}

/// Other objects, in the state that their own plans produced.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    /// A run that succeeded.
    run: bool,
    /// A run that succeeded, as the base of the observed one.
    base: bool,
    /// A run that succeeded, as the one that the observed one reproduces.
    reproduced: bool,
    /// The ReasoningPod that is shadowed, with one server.
    incumbent: bool,
    /// Evaluations by name, each with so many right answers of 500.
    evaluations: BTreeMap<String, u64>,
    /// Evaluations that the observed one is compared with, in the same form.
    compared: BTreeMap<String, u64>,
}

impl Given {
    fn patch(&self) -> Value {
        let run = trained();
        let judged = |(name, right): (&String, &u64)| (name.clone(), json!(judged(&run, name, *right)));
        let evaluations: serde_json::Map<_, _> = self.evaluations.iter().map(judged).collect();
        let compared: serde_json::Map<_, _> = self.compared.iter().map(judged).collect();
        let mut patch = json!({});
        if self.run {
            patch["run"] = json!(run);
        }
        if self.incumbent {
            let keys = json!({"i": "a".repeat(64)});
            patch["incumbent"] = json!({"model": make::model("b").digest, "pods": ["i"], "keys": keys});
        }
        if self.base {
            patch["base"] = json!(run);
        }
        if self.reproduced {
            patch["reproduced"] = json!(reproducible());
        }
        if !compared.is_empty() {
            patch["compared"] = Value::Object(compared);
        }
        if !evaluations.is_empty() {
            patch["evaluations"] = Value::Object(evaluations);
        }
        patch
    }
}

/// A report of a pod, in short form.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Saying {
    /// A trainer at this step.
    Trains(u64),
    /// A trainer with a finished model.
    Trained(String),
    /// A trainer that started from this base, at this step.
    TrainsFrom(String, u64),
    /// A trainer that started from this base, with a finished model.
    TrainedFrom(String, String),
    /// A trainer that says what it computes with, at this step.
    TrainsAgain(u64),
    /// The same, with a finished model.
    TrainedAgain(String),
    /// An evaluator with so many right answers of 500.
    Evaluated(u64),
    /// An evaluator with so many right answers of 500, of which the Evaluation `before` had 100: right in all, only here, only
    /// there.
    Compared(u64, u64, u64),
    /// A server that holds the story's model.
    Serves,
    /// A server that holds the story's model, and whose last request ended at this second.
    Idles(i64),
    /// An activator that holds requests.
    Waits,
    /// An activator that holds none.
    Rests,
    /// A server of a canary that holds the story's model, with so many requests, failed ones and slow ones.
    Answers(u64, u64, u64),
    /// A server of a shadow that holds the story's model, with so many requests that it compared with the model of the contents `b`,
    /// those with the same answer, and those with the same tokens.
    Compares(u64, u64, u64),
    /// A pod that gives up, by reason and message.
    GivesUp(String, String),
}

/// The kinds that stories are about.
trait Told: Serialize + DeserializeOwned {
    type Status: Serialize;
    const KIND: Kind;
    fn plan(&self, now: jiff::Timestamp) -> Plan<Self::Status>;
    /// Carries the plan out; with an obstruction, only its status is written.
    fn come_true(&mut self, plan: &Plan<Self::Status>);
    fn parts(&mut self) -> (&mut Vec<Pod>, &mut Vec<Received>);
    /// Returns the pods of a canary and of an activator.
    fn others(&mut self) -> Option<[&mut Vec<Pod>; 2]> {
        None
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, inner) in patch {
                if inner.is_null() {
                    target.remove(name);
                } else {
                    merge(target.entry(name).or_insert(Value::Null), inner);
                }
            }
        }
        (target, Value::Object(_)) => {
            *target = json!({});
            merge(target, patch);
        }
        (target, other) => *target = other.clone(),
    }
}

/// Carries out what is planned for the Job: it is written, kept, or deleted with its pods.
fn job(live: &mut Option<Job>, pods: &mut Vec<Pod>, desired: &Desired) {
    if let Some(planned) = desired.jobs.first() {
        let status = live.take().and_then(|live| live.status);
        *live = Some(Job { status, ..planned.clone() });
    } else if !desired.kept.iter().any(|kept| kept.kind == KeptKind::Job) && live.take().is_some() {
        pods.clear();
    }
}

/// Returns a Deployment after an apply: a number of replicas that is not planned stays.
fn applied(live: Option<Deployment>, planned: &Deployment) -> Deployment {
    let mut applied = planned.clone();
    let Some(live) = live else { return applied };
    applied.status = live.status;
    applied.metadata.managed_fields = live.metadata.managed_fields;
    if let (Some(spec), Some(before)) = (&mut applied.spec, live.spec) {
        spec.replicas = spec.replicas.or(before.replicas);
    }
    applied
}

impl Told for ObservedTrainingRun {
    type Status = codex_crds::TrainingRunStatus;
    const KIND: Kind = Kind::TrainingRun;

    fn plan(&self, now: jiff::Timestamp) -> Plan<Self::Status> {
        training_run::plan(self, now)
    }

    fn come_true(&mut self, plan: &Plan<Self::Status>) {
        self.object.status = Some(plan.status.clone());
        if self.obstruction.is_none() {
            job(&mut self.job, &mut self.pods, &plan.desired);
        }
        for effect in &plan.effects {
            let (Effect::SignReproduction { .. }, Some(Signer::Available { fingerprint })) = (effect, &self.signer)
            else {
                panic!("nothing can do that: {effect:?}")
            };
            self.verdict = Bundle::Valid(*fingerprint);
        }
    }

    fn parts(&mut self) -> (&mut Vec<Pod>, &mut Vec<Received>) {
        (&mut self.pods, &mut self.reports)
    }
}

impl Told for ObservedEvaluation {
    type Status = codex_crds::EvaluationStatus;
    const KIND: Kind = Kind::Evaluation;

    fn plan(&self, now: jiff::Timestamp) -> Plan<Self::Status> {
        evaluation::plan(self, now)
    }

    fn come_true(&mut self, plan: &Plan<Self::Status>) {
        self.object.status = Some(plan.status.clone());
        if self.obstruction.is_none() {
            job(&mut self.job, &mut self.pods, &plan.desired);
        }
        // Each run of a schedule has a Job of its own, and only that of the latest one is observed.
        let name = evaluation::job_name(&self.object, &self.seal);
        if self.job.as_ref().is_some_and(|job| job.metadata.name.as_ref() != Some(&name)) {
            (self.job, self.pods) = (None, Vec::new());
        }
    }

    fn parts(&mut self) -> (&mut Vec<Pod>, &mut Vec<Received>) {
        (&mut self.pods, &mut self.reports)
    }
}

impl Told for ObservedReasoningPod {
    type Status = codex_crds::ReasoningPodStatus;
    const KIND: Kind = Kind::ReasoningPod;

    fn plan(&self, now: jiff::Timestamp) -> Plan<Self::Status> {
        reasoning_pod::plan(self, now)
    }

    fn come_true(&mut self, plan: &Plan<Self::Status>) {
        self.object.status = Some(plan.status.clone());
        if self.obstruction.is_some() {
            return;
        }
        let planned =
            |name: &str| plan.desired.deployments.iter().find(|planned| planned.metadata.name.as_deref() == Some(name));
        let live = self.deployment.take();
        self.deployment = planned("codex-s-rc").map(|planned| applied(live, planned));
        let live = self.canary.take();
        self.canary = planned("codex-c-rc").map(|planned| applied(live, planned));
        if self.canary.is_none() {
            self.canary_pods.clear();
        }
        let live = self.activator.take();
        self.activator = planned("codex-a-rc").map(|planned| applied(live, planned));
        if self.activator.is_none() {
            self.activator_pods.clear();
        }
        let status = self.autoscaler.take().and_then(|live| live.status);
        let planned = plan.desired.horizontal_pod_autoscalers.first();
        self.autoscaler = planned.map(|planned| HorizontalPodAutoscaler { status, ..planned.clone() });
        let status = self.http_route.take().and_then(|live| live.status);
        self.http_route = plan.desired.http_routes.first().map(|planned| HttpRoute { status, ..planned.clone() });
        let kept = |slice: &EndpointSlice| {
            let name = slice.metadata.name.as_ref();
            plan.desired.kept.iter().any(|kept| kept.kind == KeptKind::EndpointSlice && Some(&kept.name) == name)
        };
        self.endpoint_slices.retain(kept);
        self.endpoint_slices.extend(plan.desired.endpoint_slices.iter().cloned());
        self.foreign_slices.retain(|slice| !plan.desired.foreign_slices.contains(slice));
        for effect in &plan.effects {
            let Signer::Available { fingerprint: signer } = self.signer else { panic!("nothing can sign") };
            match effect {
                Effect::SignModel { manifest, name, .. } => {
                    let payload = oms::payload_digest(&oms::payload(manifest, name));
                    let signed = Bundle::Valid(SignedModel { payload, signer });
                    // Under a name of its own, what was signed before is signed again.
                    if matches!(self.oms, Bundle::Absent) {
                        self.oms = signed;
                    } else {
                        self.oms_again.insert(signer, signed);
                    }
                }
                Effect::SignPromotion { promotion, .. } => {
                    let key = promotion.key().digest();
                    let signed = Bundle::Valid(SignedPromotion { digest: promotion.digest(), key, signer });
                    if matches!(self.promotion, Bundle::Absent) {
                        self.promotion = signed;
                    } else {
                        self.promotion_again.insert(signer, signed);
                    }
                }
                Effect::RecordRead(_) | Effect::SignReproduction { .. } => panic!("not of a ReasoningPod: {effect:?}"),
            }
        }
    }

    fn parts(&mut self) -> (&mut Vec<Pod>, &mut Vec<Received>) {
        (&mut self.pods, &mut self.reports)
    }

    fn others(&mut self) -> Option<[&mut Vec<Pod>; 2]> {
        Some([&mut self.canary_pods, &mut self.activator_pods])
    }
}

/// Returns a pod whose container is in this state. `silentSince` in it is the time since which its
/// node does not answer, `unscheduled` the message of the scheduler about a pod without a node.
fn pod(name: &str, state: &Value, annotations: &Value, second: i64) -> Pod {
    let mut state = state.clone();
    let silent = state.as_object_mut().and_then(|state| state.remove("silentSince"));
    let unscheduled = state.as_object_mut().and_then(|state| state.remove("unscheduled"));
    if let Some(message) = unscheduled {
        return make::from(json!({
            "metadata": {"name": name, "uid": name, "namespace": "team", "creationTimestamp": make::at(second)},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]},
        }));
    }
    let conditions = silent.map(|since| {
        json!([
            {"type": "ContainersReady", "status": "True"},
            {"type": "Ready", "status": "False", "lastTransitionTime": since},
        ])
    });
    make::from(json!({
        "metadata": {
            "name": name, "uid": name, "namespace": "team", "annotations": annotations, "creationTimestamp": make::at(second),
        },
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"conditions": conditions, "podIPs": [{"ip": address(name)}], "containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "registry/codex@sha256:0123", "ready": true,
            "restartCount": 0, "state": state,
        }]},
    }))
}

/// Returns the address of a pod, from the first letter of its name.
fn address(name: &str) -> String {
    format!("10.0.0.{}", name.bytes().next().unwrap_or_default())
}

fn state(kind: Kind, saying: &Saying, annotations: &Value) -> State {
    let given_up = |reason: &str, message: &str| Some(make::failure(reason, message));
    match (saying, kind) {
        (Saying::Trains(step), _) => State::Training(make::training(*step)),
        (Saying::Trained(contents), _) => State::Training(make::trained(contents)),
        (Saying::TrainsFrom(base, step), _) => State::Training(make::training_from(base, *step)),
        (Saying::TrainedFrom(base, contents), _) => {
            State::Training(TrainingState { base: make::training_from(base, 0).base, ..make::trained(contents) })
        }
        (Saying::TrainsAgain(step), _) => {
            State::Training(TrainingState { computation: Some(make::computation()), ..make::training(*step) })
        }
        (Saying::TrainedAgain(contents), _) => {
            State::Training(TrainingState { computation: Some(make::computation()), ..make::trained(contents) })
        }
        (Saying::Evaluated(right), _) => State::Evaluation(make::evaluated("a", *right)),
        (Saying::Compared(right, wins, losses), _) => State::Evaluation(make::compared("a", *right, (*wins, *losses))),
        (Saying::Serves, _) => State::Serving(ServingState {
            stage: Stage::Running,
            verified: Some(make::model("a").digest),
            promotion: annotations["codex-ml.dev/promotion-digest"].as_str().map(|digest| digest.parse().unwrap()),
            ..ServingState::default()
        }),
        (Saying::Idles(second), _) => State::Serving(ServingState {
            stage: Stage::Running,
            verified: Some(make::model("a").digest),
            promotion: annotations["codex-ml.dev/promotion-digest"].as_str().map(|digest| digest.parse().unwrap()),
            idle_since: Some(make::at(*second).as_second()),
            ..ServingState::default()
        }),
        (Saying::Waits | Saying::Rests, _) => State::Serving(ServingState {
            stage: Stage::Running,
            waiting: matches!(saying, Saying::Waits),
            ..ServingState::default()
        }),
        (Saying::Answers(requests, errors, slow), _) => State::Serving(ServingState {
            stage: Stage::Running,
            verified: Some(make::model("a").digest),
            promotion: annotations["codex-ml.dev/promotion-digest"].as_str().map(|digest| digest.parse().unwrap()),
            traffic: Some(Traffic {
                requests: *requests,
                errors: *errors,
                refused: 0,
                completed: requests - errors,
                latency: vec![requests - errors - slow; LATENCY_EDGES.len()],
                ..Traffic::default()
            }),
            ..ServingState::default()
        }),
        (Saying::Compares(compared, agreed, identical), _) => State::Serving(ServingState {
            stage: Stage::Running,
            verified: Some(make::model("a").digest),
            promotion: annotations["codex-ml.dev/promotion-digest"].as_str().map(|digest| digest.parse().unwrap()),
            comparisons: vec![make::comparison(*compared, *agreed, *identical)],
            ..ServingState::default()
        }),
        (Saying::GivesUp(reason, message), Kind::TrainingRun) => State::Training(TrainingState {
            stage: Stage::Failed,
            failure: given_up(reason, message),
            ..TrainingState::default()
        }),
        (Saying::GivesUp(reason, message), Kind::Evaluation) => State::Evaluation(EvaluationState {
            stage: Stage::Failed,
            failure: given_up(reason, message),
            ..EvaluationState::default()
        }),
        (Saying::GivesUp(reason, message), Kind::ReasoningPod) => State::Serving(ServingState {
            stage: Stage::Failed,
            failure: given_up(reason, message),
            ..ServingState::default()
        }),
    }
}

fn tell<O: Told>(text: &str) -> String {
    let mut steps = serde_yaml::Deserializer::from_str(text);
    let mut observation = Value::deserialize(steps.next().unwrap()).unwrap();
    merge(&mut observation, &json!({"settings": *make::settings()}));
    if O::KIND == Kind::Evaluation && observation["reads"].is_null() {
        observation["reads"] = json!(make::reads());
    }
    let (mut told, mut before, mut seq) = (String::new(), String::new(), 0);
    let mut second = 0;
    let mut name = "the beginning".to_owned();
    let mut pending: Option<Step> = None;
    loop {
        let mut observed: O = serde_json::from_value(observation.clone()).unwrap();
        if let Some(step) = pending.take() {
            happen(&mut observed, &observation, &step, &mut seq);
        }
        let plan = observed.plan(make::at(second));
        let after = serde_yaml::to_string(&plan).unwrap();
        let shown = if before.is_empty() {
            after.clone()
        } else {
            TextDiff::from_lines(&before, &after).unified_diff().context_radius(2).to_string()
        };
        let nothing = if shown.is_empty() { "(the same plan)\n" } else { "" };
        writeln!(told, "=== {name} (second {second})\n{shown}{nothing}").unwrap();
        before = after;
        observed.come_true(&plan);
        observation = serde_json::to_value(&observed).unwrap();
        let Some(document) = steps.next() else { return told };
        let step: Step = make::from(Value::deserialize(document).unwrap());
        merge(&mut observation, &step.given.patch());
        merge(&mut observation, &step.patch);
        (second, name) = (step.at, step.name.clone());
        pending = Some(step);
    }
}

fn happen<O: Told>(observed: &mut O, observation: &Value, step: &Step, seq: &mut u64) {
    let annotations =
        observation.pointer("/deployment/spec/template/metadata/annotations").cloned().unwrap_or_default();
    let mounted = observation.pointer("/job/metadata/annotations/codex-ml.dev~1config-digest");
    let config = mounted.and_then(Value::as_str).map(|digest| digest.parse().unwrap());
    if let Some([canary, activator]) = observed.others() {
        for (pods, states, of) in [(canary, &step.canary, "canary"), (activator, &step.activator, "activator")] {
            let annotations = observation.pointer(&format!("/{of}/spec/template/metadata/annotations"));
            for (name, state) in states {
                pods.retain(|pod| pod.metadata.name.as_ref() != Some(name));
                if !state.is_null() {
                    pods.push(pod(name, state, &annotations.cloned().unwrap_or_default(), step.at));
                }
            }
        }
    }
    let uid = observation.pointer("/object/metadata/uid").and_then(Value::as_str).unwrap().to_owned();
    let (pods, reports) = observed.parts();
    for (name, state) in &step.pods {
        pods.retain(|pod| pod.metadata.name.as_ref() != Some(name));
        if !state.is_null() {
            pods.push(pod(name, state, &annotations, step.at));
        }
    }
    for (name, saying) in &step.says {
        *seq += 1;
        let report = make::report(O::KIND, &uid, name, *seq, config, state(O::KIND, saying, &annotations));
        reports.retain(|known| known.pod != *name);
        reports.push(Received { report, pod: name.clone(), at: make::at(step.at), contradiction: None });
    }
    for (name, code) in &step.ends {
        let last = reports.iter().find(|known| known.pod == *name && *code == 0);
        let message = last.map(|last| serde_json::to_string(&last.report).unwrap());
        let at = make::at(step.at);
        let ended = json!({"terminated": {"exitCode": code, "message": message, "startedAt": at, "finishedAt": at}});
        pods.retain(|pod| pod.metadata.name.as_ref() != Some(name));
        pods.push(pod(name, &ended, &annotations, step.at));
    }
}

macro_rules! stories {
    ($($name:ident: $kind:ty;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(tell::<$kind>(include_str!(concat!("stories/", stringify!($name), ".yaml"))));
        }
    )*};
}

stories! {
    run_succeeds: ObservedTrainingRun;
    run_suspended_and_resumed: ObservedTrainingRun;
    run_out_of_memory: ObservedTrainingRun;
    run_with_bad_input: ObservedTrainingRun;
    run_without_a_pod: ObservedTrainingRun;
    run_over_its_deadline: ObservedTrainingRun;
    run_obstructed: ObservedTrainingRun;
    run_on_a_gpu: ObservedTrainingRun;
    run_from_a_claim: ObservedTrainingRun;
    run_from_another_run: ObservedTrainingRun;
    run_reproduces_another: ObservedTrainingRun;
    run_loses_its_checkpoints: ObservedTrainingRun;
    run_stands_still: ObservedTrainingRun;
    run_on_a_lost_node: ObservedTrainingRun;
    run_expires: ObservedTrainingRun;
    evaluation_expires: ObservedEvaluation;
    run_with_lost_references: ObservedTrainingRun;
    run_whose_job_has_no_pod: ObservedTrainingRun;
    evaluation_passes: ObservedEvaluation;
    evaluation_of_a_replaced_run: ObservedEvaluation;
    evaluation_obstructed: ObservedEvaluation;
    evaluation_of_a_given_model: ObservedEvaluation;
    evaluation_contradicted: ObservedEvaluation;
    evaluation_compares: ObservedEvaluation;
    evaluation_forged: ObservedEvaluation;
    evaluation_restored: ObservedEvaluation;
    run_with_a_refused_pod: ObservedTrainingRun;
    pod_with_foreign_pods: ObservedReasoningPod;
    pod_without_policies: ObservedReasoningPod;
    pod_serves: ObservedReasoningPod;
    pod_is_blocked: ObservedReasoningPod;
    pod_refuses: ObservedReasoningPod;
    pod_obstructed: ObservedReasoningPod;
    pod_under_a_policy: ObservedReasoningPod;
    pod_revoked: ObservedReasoningPod;
    pod_jumps_to_main: ObservedReasoningPod;
    evaluation_over_its_budget: ObservedReasoningPod;
    evaluation_uncounted: ObservedEvaluation;
    evaluation_on_a_schedule: ObservedEvaluation;
    evaluation_replaces_its_runs: ObservedEvaluation;
    pod_scales: ObservedReasoningPod;
    pod_stops_while_idle: ObservedReasoningPod;
    pod_redeploys: ObservedReasoningPod;
    pod_tries_a_canary: ObservedReasoningPod;
    pod_routes_a_canary: ObservedReasoningPod;
    pod_is_a_shadow: ObservedReasoningPod;
}
