//! A simulated cluster: objects, Jobs, a Deployment, pods and bundles, with the parts of Kubernetes' controllers that plans
//! depend on.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{
    ConditionType, Evaluation, EvaluationStatus, JudgedModel, Reason, ReasoningPod, TrainingRun, TrainingRunPhase,
    VerifiedStatus, annotation,
};
use codex_plan::{
    Admission, Desired, Effect, KeptKind, Obstruction, Plan, Received, References, Sealable, StatusSeal,
    conditions::{find, is_true},
    evaluation::{self, ObservedEvaluation},
    reasoning_pod::{self, Bundle, ObservedReasoningPod, SignedModel, SignedPromotion, Signer, bundle_names},
    trace::{self, Span},
    training_run::{self, ObservedTrainingRun},
};
use codex_provenance::{ConfigDigest, ModelDigest, PromotionDigest, Sha256, oms, promotion::Promotion};
use codex_reports::{Kind, Report, ServingState, Stage, State};
use codex_verdict::{Verdict, policy::Policy};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::make;

/// How the pod of a Job ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Finished(Box<State>),
    Code(i32, &'static str),
}

pub(crate) struct World {
    pub(crate) second: i64,
    pub(crate) run: TrainingRun,
    pub(crate) evaluation: Evaluation,
    pub(crate) pod: ReasoningPod,
    pub(crate) signer: bool,
    /// The policies that apply to the pod.
    pub(crate) policies: Vec<Policy>,
    /// Whether the API server refuses every child.
    pub(crate) obstructed: bool,
    pub(crate) jobs: BTreeMap<String, Job>,
    pub(crate) deployment: Option<Deployment>,
    /// Whether its template was modified.
    pub(crate) tampered: bool,
    pub(crate) pods: BTreeMap<String, Pod>,
    config_maps: BTreeMap<String, ConfigMap>,
    others: BTreeSet<String>,
    oms: Option<SignedModel>,
    promotions: BTreeMap<String, (Promotion, PromotionDigest)>,
    /// The numbers of recorded reads by their keys.
    pub(crate) reads: BTreeMap<String, i64>,
    pub(crate) reports: BTreeMap<String, Vec<Received>>,
    written: BTreeMap<String, Timestamp>,
    counter: u64,
    /// The uids of objects whose status another client wrote.
    forged: BTreeSet<String>,
    /// Writes of the API since the world began: children and statuses.
    pub(crate) writes: Vec<String>,
    /// Spans that have ended.
    pub(crate) spans: Vec<Span>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            second: 0,
            run: make::run(),
            evaluation: make::evaluation(),
            pod: make::pod(),
            signer: true,
            policies: Vec::new(),
            obstructed: false,
            jobs: BTreeMap::new(),
            deployment: None,
            tampered: false,
            pods: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            others: BTreeSet::new(),
            oms: None,
            promotions: BTreeMap::new(),
            reads: BTreeMap::new(),
            reports: BTreeMap::new(),
            written: BTreeMap::new(),
            counter: 0,
            forged: BTreeSet::new(),
            writes: Vec::new(),
            spans: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        make::at(self.second)
    }

    /// Restarts the controller: it loses everything that it keeps in memory.
    pub(crate) fn restart(&mut self) {
        self.reports.clear();
        self.written.clear();
    }

    fn pods_of(&self, owner: &str) -> Vec<Pod> {
        self.pods.values().filter(|pod| pod.labels().get("owner").is_some_and(|name| name == owner)).cloned().collect()
    }

    fn seal(&self, uid: &str) -> StatusSeal {
        if self.forged.contains(uid) { StatusSeal::Broken } else { StatusSeal::Valid }
    }

    /// Another client writes into the status of every object whatever a plan could believe.
    pub(crate) fn forge(&mut self) {
        let model = make::model("forged");
        if let Some(status) = &mut self.run.status {
            status.completed_at = Some(Time(make::at(0)));
            status.phase = Some(TrainingRunPhase::Succeeded);
            if let Some(recorded) = &mut status.model {
                recorded.digest = model.digest;
            }
            self.forged.insert("run-1".to_owned());
        }
        if let Some(status) = &mut self.evaluation.status {
            *status = EvaluationStatus {
                verdict: Some(Verdict::Passed),
                completed_at: Some(Time(make::at(0))),
                gates_passed: Some("9/9".to_owned()),
                model: Some(JudgedModel { digest: model.digest, short: model.digest.short() }),
                data_digests: Vec::new(),
                ..status.clone()
            };
            for metric in &mut status.metrics {
                metric.n = 1_000_000;
            }
            self.forged.insert("evaluation-1".to_owned());
        }
        if let Some(status) = &mut self.pod.status {
            status.verified = Some(VerifiedStatus {
                digest: model.digest,
                by: "codex-s-rc-000".to_owned(),
                at: Time(make::at(0)),
                golden_tokens: None,
            });
            self.forged.insert("pod-1".to_owned());
        }
    }

    fn said(&self, uid: &str) -> Vec<Received> {
        self.reports.get(uid).cloned().unwrap_or_default()
    }

    fn believed_run(&self) -> TrainingRun {
        let mut run = self.run.clone();
        run.status = run.status.map(|status| status.believed(&self.seal("run-1")));
        run
    }

    pub(crate) fn observed_run(&self) -> ObservedTrainingRun {
        ObservedTrainingRun {
            object: self.run.clone(),
            settings: make::settings(),
            template: None,
            base: None,
            base_cycle: Vec::new(),
            reproduced: None,
            reproduced_config: None,
            signer: None,
            verdict: Bundle::Absent,
            records: Vec::new(),
            references: Some(references()),
            job: self.jobs.get("codex-t-cot").cloned(),
            pods: self.pods_of("codex-t-cot"),
            reports: self.said("run-1"),
            refused: Vec::new(),
            warnings: Vec::new(),
            seal: self.seal("run-1"),
            status_written_at: self.written.get("run-1").copied(),
            obstruction: None,
        }
    }

    pub(crate) fn observed_evaluation(&self) -> ObservedEvaluation {
        ObservedEvaluation {
            object: self.evaluation.clone(),
            settings: make::settings(),
            run: Some(self.believed_run()),
            compared: BTreeMap::new(),
            references: Some(references()),
            job: self.jobs.get("codex-e-lite").cloned(),
            pods: self.pods_of("codex-e-lite"),
            reports: self.said("evaluation-1"),
            refused: Vec::new(),
            warnings: Vec::new(),
            reads: make::reads(),
            admission: Admission::default(),
            seal: self.seal("evaluation-1"),
            status_written_at: self.written.get("evaluation-1").copied(),
            obstruction: None,
        }
    }

    pub(crate) fn observed_pod(&self) -> ObservedReasoningPod {
        let mut evaluation = self.evaluation.clone();
        evaluation.status = evaluation.status.map(|status| status.believed(&self.seal("evaluation-1")));
        let run = self.believed_run();
        let evaluations = BTreeMap::from([("lite".to_owned(), evaluation)]);
        let names = bundle_names(&self.pod, Some(&run), &evaluations, &self.policies);
        let promoted = names.promotion.and_then(|name| self.promotions.get(&name));
        ObservedReasoningPod {
            signer: if self.signer {
                Signer::Available { fingerprint: Sha256::of("key") }
            } else {
                Signer::Unavailable { fingerprint: Some(Sha256::of("key")), reason: "the key is lost".to_owned() }
            },
            trusted: Vec::new(),
            trusted_root: None,
            oms_again: BTreeMap::new(),
            promotion_again: BTreeMap::new(),
            oms: self.oms.filter(|_| names.oms.is_some()).map_or(Bundle::Absent, Bundle::Valid),
            promotion: promoted.map_or(Bundle::Absent, |(promotion, digest)| {
                Bundle::Valid(SignedPromotion {
                    digest: *digest,
                    key: promotion.key().digest(),
                    signer: Sha256::of("key"),
                })
            }),
            object: self.pod.clone(),
            settings: make::settings(),
            run: Some(run),
            evaluations,
            cycles: Vec::new(),
            candidate: None,
            trial: None,
            policies: self.policies.clone(),
            sign_offs: Vec::new(),
            promotions: Vec::new(),
            admission: Admission::default(),
            deployment: self.deployment.clone().filter(|_| !self.tampered),
            tampered: self.tampered,
            autoscaler: None,
            gateway_api: false,
            http_route: None,
            canary: None,
            canary_pods: Vec::new(),
            activator: None,
            activator_pods: Vec::new(),
            pods: self.pods_of("codex-s-rc"),
            reports: self.said("pod-1"),
            former_pods: Vec::new(),
            incumbent: None,
            lent: Vec::new(),
            compared: Vec::new(),
            shadows: Vec::new(),
            foreign_pods: BTreeSet::new(),
            unprotected: None,
            endpoint_slices: Vec::new(),
            foreign_slices: Vec::new(),
            missing_bundles: BTreeSet::new(),
            held_bundles: BTreeSet::new(),
            held_proofs: BTreeMap::new(),
            refused: Vec::new(),
            warnings: Vec::new(),
            seal: self.seal("pod-1"),
            status_written_at: self.written.get("pod-1").copied(),
            obstruction: None,
        }
    }

    /// Plans for each kind once and carries the plans out; whether anything changed.
    pub(crate) fn reconcile(&mut self) -> bool {
        let mut observed = self.observed_run();
        let (mut plan, mut changed) = self.carry_out("cot", training_run::plan, &observed);
        if self.obstructed {
            observed.obstruction = Some(obstruction(observed.object.metadata.generation));
            plan = obstruct(&plan, training_run::plan, &observed, self.now());
        }
        self.spans.extend(trace::training_run(&observed, &plan.status));
        if self.run.status.as_ref() != Some(&plan.status) {
            self.run.status = Some(plan.status);
            changed |= self.wrote("run-1");
        }
        let mut observed = self.observed_evaluation();
        let (mut plan, carried_out) = self.carry_out("lite", evaluation::plan, &observed);
        changed |= carried_out;
        if self.obstructed {
            observed.obstruction = Some(obstruction(observed.object.metadata.generation));
            plan = obstruct(&plan, evaluation::plan, &observed, self.now());
        }
        let published = plan.status.verdict.is_some();
        assert!(
            !published || self.reads.contains_key("evaluation-1"),
            "a verdict is published after its read was recorded"
        );
        self.spans.extend(trace::evaluation(&observed, &plan.status));
        if self.evaluation.status.as_ref() != Some(&plan.status) {
            self.evaluation.status = Some(plan.status);
            changed |= self.wrote("evaluation-1");
        }
        let mut observed = self.observed_pod();
        let (mut plan, carried_out) = self.carry_out("rc", reasoning_pod::plan, &observed);
        changed |= carried_out;
        if self.obstructed {
            observed.obstruction = Some(obstruction(observed.object.metadata.generation));
            plan = obstruct(&plan, reasoning_pod::plan, &observed, self.now());
        }
        self.spans.extend(trace::reasoning_pod(&observed, &plan.status, self.now()));
        if self.pod.status.as_ref() != Some(&plan.status) {
            self.pod.status = Some(plan.status);
            changed |= self.wrote("pod-1");
        }
        changed
    }

    fn wrote(&mut self, uid: &str) -> bool {
        self.written.insert(uid.to_owned(), self.now());
        self.forged.remove(uid);
        let conditions = match uid {
            "run-1" => self.run.status.as_ref().map(|status| &status.conditions),
            "evaluation-1" => self.evaluation.status.as_ref().map(|status| &status.conditions),
            _ => self.pod.status.as_ref().map(|status| &status.conditions),
        };
        let said = conditions.map(|conditions| format!("{}: {}", conditions[0].reason, conditions[0].message));
        self.writes.push(format!("status of {uid}: {}", said.unwrap()));
        true
    }

    /// Plans and, unless an obstruction prevents it, carries the plan out; whether anything changed.
    fn carry_out<O, S: PartialEq + std::fmt::Debug + serde::Serialize>(
        &mut self,
        object: &str,
        plan: impl Fn(&O, Timestamp) -> Plan<S>,
        observed: &O,
    ) -> (Plan<S>, bool) {
        let plan = twice(|now| plan(observed, now), self.now());
        let before = self.writes.len();
        if !self.obstructed {
            self.apply(object, &plan.desired);
            for effect in &plan.effects {
                self.effect(effect);
            }
        }
        (plan, self.writes.len() != before)
    }

    /// Destructures like the real apply, so that no kind of child is forgotten.
    fn apply(&mut self, object: &str, desired: &Desired) {
        let Desired {
            config_maps,
            jobs,
            deployments,
            horizontal_pod_autoscalers,
            services,
            http_routes,
            endpoint_slices,
            foreign_slices,
            pod_disruption_budgets,
            network_policies,
            shared_policies,
            training_runs,
            evaluations,
            expired,
            reasoning_pods,
            kept,
            mounted_bundles,
            released_bundles,
        } = desired;
        assert!(released_bundles.is_empty(), "nothing else is served in this world");
        assert!(
            deployments.is_empty() || mounted_bundles.len() == 2,
            "servers mount both bundles: {mounted_bundles:?}"
        );
        assert!(
            training_runs.is_empty() && evaluations.is_empty() && reasoning_pods.is_empty() && expired.is_empty(),
            "nothing is redeployed in this world"
        );
        assert!(horizontal_pod_autoscalers.is_empty(), "nothing is scaled automatically in this world");
        assert!(http_routes.is_empty(), "no Gateway is named in this world");
        assert!(endpoint_slices.is_empty() && foreign_slices.is_empty(), "policies are in place in this world");
        for wanted in config_maps {
            let live = self.config_maps.get(&wanted.name_any());
            if live.is_none_or(|live| live.data != wanted.data) {
                self.config_maps.insert(wanted.name_any(), wanted.clone());
                self.writes.push(format!("ConfigMap {}", wanted.name_any()));
            }
        }
        for wanted in jobs {
            let name = wanted.name_any();
            let spec = wanted.spec.clone().unwrap();
            match self.jobs.get_mut(&name) {
                None => {
                    let mut job = wanted.clone();
                    job.metadata.uid = Some(format!("job-{}", self.counter));
                    self.counter += 1;
                    self.jobs.insert(name, job);
                }
                Some(live) => {
                    let present = live.spec.as_mut().unwrap();
                    assert_eq!(present.template, spec.template, "a Job's template is immutable");
                    assert_eq!(present.pod_failure_policy, spec.pod_failure_policy, "a Job's policy is immutable");
                    present.suspend = spec.suspend.or(present.suspend);
                    present.backoff_limit = spec.backoff_limit;
                    present.active_deadline_seconds = spec.active_deadline_seconds;
                }
            }
            self.writes.push(format!("Job {}", wanted.name_any()));
        }
        for wanted in deployments {
            let same = !std::mem::take(&mut self.tampered)
                && self.deployment.as_ref().is_some_and(|live| {
                    live.spec == wanted.spec && live.metadata.annotations == wanted.metadata.annotations
                });
            if !same {
                let generation = self.deployment.as_ref().and_then(|live| live.metadata.generation).unwrap_or(0) + 1;
                let status = self.deployment.take().and_then(|live| live.status);
                let mut live = Deployment { status, ..wanted.clone() };
                live.metadata.generation = Some(generation);
                self.deployment = Some(live);
                self.writes.push(format!("Deployment {}", wanted.name_any()));
            }
        }
        let named = services
            .iter()
            .map(|child| format!("Service {}", child.name_any()))
            .chain(pod_disruption_budgets.iter().map(|child| format!("Budget {}", child.name_any())))
            .chain(network_policies.iter().chain(shared_policies).map(|child| format!("Policy {}", child.name_any())));
        for name in named {
            if self.others.insert(name.clone()) {
                self.writes.push(name);
            }
        }
        let kept_of = |kind| kept.iter().filter(move |kept| kept.kind == kind).map(|kept| kept.name.clone());
        // A Job and its ConfigMap have the same name.
        let stay: BTreeSet<String> = kept_of(KeptKind::Job).chain(jobs.iter().map(ResourceExt::name_any)).collect();
        let keep: BTreeSet<String> =
            kept_of(KeptKind::ConfigMap).chain(config_maps.iter().map(ResourceExt::name_any)).collect();
        let of_object = |name: &String| name.rsplit_once('-').is_some_and(|(_, owner)| owner == object);
        let goes: Vec<_> = self.jobs.keys().filter(|name| of_object(name) && !stay.contains(*name)).cloned().collect();
        for name in goes {
            self.jobs.remove(&name);
            self.pods.retain(|_, pod| pod.labels().get("owner") != Some(&name));
            self.writes.push(format!("no Job {name}"));
        }
        let held = self.config_maps.len();
        self.config_maps.retain(|name, _| !of_object(name) || keep.contains(name));
        if held != self.config_maps.len() {
            self.writes.push("fewer ConfigMaps".to_owned());
        }
        let stays = kept.iter().any(|kept| kept.kind == KeptKind::Deployment);
        if object == "rc" && deployments.is_empty() && !stays && self.deployment.take().is_some() {
            self.pods.retain(|_, pod| pod.labels().get("owner").is_none_or(|owner| owner != "codex-s-rc"));
            self.others.retain(|other| other == "Policy codex-workers");
            self.tampered = false;
            self.writes.push("no servers".to_owned());
        }
    }

    fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::SignModel { config_map, manifest, name } => {
                assert_eq!(config_map.name_any(), "codex-oms-run-1");
                let payload = oms::payload_digest(&oms::payload(manifest, name));
                assert!(
                    self.oms.replace(SignedModel { payload, signer: Sha256::of("key") }).is_none(),
                    "a model is signed once"
                );
                self.writes.push("signature".to_owned());
            }
            Effect::SignPromotion { config_map, promotion, .. } => {
                let digest = promotion.digest();
                let name = config_map.name_any();
                let evaluations = BTreeMap::from([("lite".to_owned(), self.evaluation.clone())]);
                let names = bundle_names(&self.pod, Some(&self.run), &evaluations, &self.policies);
                assert_eq!(names.promotion.as_ref(), Some(&name), "it is looked for where it is kept");
                assert!(
                    self.promotions.insert(name, ((**promotion).clone(), digest)).is_none(),
                    "a promotion is signed once"
                );
                self.writes.push("promotion".to_owned());
            }
            Effect::SignReproduction { .. } => panic!("nothing is reproduced in this world"),
            // A read that is recorded already is left alone.
            Effect::RecordRead(read) => {
                if self.reads.insert(read.key.clone(), read.number).is_none() {
                    self.writes.push(format!("read {} of {}", read.number, read.evaluation));
                }
            }
        }
    }

    /// Gives the promotion a name under which this controller does not look for it, as one that was signed before the predicate
    /// type of statements changed. Returns the name.
    pub(crate) fn age_promotion(&mut self) -> String {
        let former = "codex-promo-former".to_owned();
        let (_, promotion) = self.promotions.pop_first().unwrap();
        self.promotions.insert(former.clone(), promotion);
        self.pod.status.as_mut().unwrap().promotion.as_mut().unwrap().bundle.clone_from(&former);
        former
    }

    /// Acts as the Job controller: creates pods, and sets the conditions of Jobs that ended.
    pub(crate) fn sync_jobs(&mut self) {
        let now = json!(self.now().to_string());
        for name in self.jobs.keys().cloned().collect::<Vec<_>>() {
            let mut job = self.jobs[&name].clone();
            let spec = job.spec.clone().unwrap();
            let mut status: Value = serde_json::to_value(job.status.take().unwrap_or_default()).unwrap();
            let condition = |status: &Value, kind: &str| {
                status["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|c| c["type"] == kind && c["status"] == "True")
            };
            if condition(&status, "Complete") || condition(&status, "Failed") {
                self.jobs.get_mut(&name).unwrap().status = Some(make::from(status));
                continue;
            }
            let own: Vec<Pod> = self.pods_of(&name);
            let code = |pod: &Pod| {
                pod.status.as_ref()?.container_statuses.as_ref()?[0]
                    .state
                    .as_ref()?
                    .terminated
                    .as_ref()
                    .map(|t| t.exit_code)
            };
            let active: Vec<_> = own.iter().filter(|pod| code(pod).is_none()).map(ResourceExt::name_any).collect();
            if spec.suspend == Some(true) {
                for pod in active {
                    self.pods.remove(&pod);
                }
                if !condition(&status, "Suspended") {
                    status["conditions"] = json!([{"type": "Suspended", "status": "True", "lastTransitionTime": now}]);
                }
            } else {
                if condition(&status, "Suspended") || status["startTime"].is_null() {
                    status["startTime"] = now.clone();
                    status["conditions"] = json!([{"type": "Suspended", "status": "False", "lastTransitionTime": now}]);
                }
                let failed = own.iter().filter_map(code).filter(|code| ![0, 143].contains(code)).count();
                let ended = |kind: &str, reason: &str| json!([{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now}]);
                if own.iter().any(|pod| code(pod) == Some(0)) {
                    status["conditions"] = ended("Complete", "CompletionsReached");
                    status["completionTime"] = now.clone();
                } else if own.iter().any(|pod| code(pod) == Some(2)) {
                    status["conditions"] = ended("Failed", "PodFailurePolicy");
                } else if failed > usize::try_from(spec.backoff_limit.unwrap()).unwrap() {
                    status["conditions"] = ended("Failed", "BackoffLimitExceeded");
                } else if active.is_empty() {
                    self.new_pod(&name, None);
                }
            }
            self.jobs.get_mut(&name).unwrap().status = Some(make::from(status));
        }
    }

    fn new_pod(&mut self, owner: &str, promotion: Option<String>) -> String {
        let name = format!("{owner}-{:03}", self.counter);
        self.counter += 1;
        let annotations = promotion.map(|digest| json!({annotation::PROMOTION_DIGEST: digest}));
        let pod = make::from(json!({
            "metadata": {
                "name": name, "namespace": "team", "uid": name, "labels": {"owner": owner}, "annotations": annotations,
                "creationTimestamp": self.now(),
            },
            "status": {"phase": "Pending"},
        }));
        self.pods.insert(name.clone(), pod);
        name
    }

    fn state(&mut self, pod: &str, state: &Value) {
        let status = json!({"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": true, "restartCount": 0, "state": state,
        }]});
        self.pods.get_mut(pod).unwrap().status = Some(make::from(status));
    }

    /// Acts as the kubelet: every waiting pod starts.
    pub(crate) fn start_pods(&mut self) {
        let waiting: Vec<_> = self
            .pods
            .values()
            .filter(|pod| pod.status.as_ref().is_none_or(|status| status.container_statuses.is_none()))
            .map(ResourceExt::name_any)
            .collect();
        for pod in waiting {
            self.state(&pod, &json!({"running": {"startedAt": self.now().to_string()}}));
        }
    }

    /// Returns the running pod of a Job.
    pub(crate) fn working(&self, job: &str) -> Option<String> {
        self.pods_of(job)
            .iter()
            .find(|pod| {
                let state = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
                state.is_some_and(|states| states[0].state.as_ref().is_some_and(|state| state.running.is_some()))
            })
            .map(ResourceExt::name_any)
    }

    fn config(&self, job: &str) -> Option<ConfigDigest> {
        self.jobs.get(job)?.annotations().get(annotation::CONFIG_DIGEST)?.parse().ok()
    }

    fn report(&mut self, job: &str, pod: &str, mut state: State) -> Report {
        self.counter += 1;
        if let (State::Training(state), Some(_)) = (&mut state, &self.run.spec.base) {
            state.base = make::training_from("base", 0).base;
        }
        let (kind, uid) = match state {
            State::Training(_) => (Kind::TrainingRun, "run-1"),
            State::Evaluation(_) => (Kind::Evaluation, "evaluation-1"),
            State::Serving(_) => (Kind::ReasoningPod, "pod-1"),
        };
        make::report(kind, uid, pod, self.counter, self.config(job), state)
    }

    /// Lets a running pod report.
    pub(crate) fn say(&mut self, job: &str, pod: &str, state: State) {
        let report = self.report(job, pod, state);
        let received = Received { pod: pod.to_owned(), at: self.now(), report, contradiction: None };
        let all = self.reports.entry(received.report.object_uid.clone()).or_default();
        all.retain(|known| known.pod != pod);
        all.push(received);
    }

    /// Ends a running pod. Its final state is in its termination message and, if `reported`, in a report too.
    pub(crate) fn end(&mut self, job: &str, pod: &str, end: &End, reported: bool) {
        let began = self.pods[pod].status.as_ref().and_then(|status| status.container_statuses.clone());
        let started =
            began.and_then(|all| all[0].state.clone()).and_then(|state| state.running).and_then(|r| r.started_at);
        let (code, reason, message) = match end {
            End::Finished(state) => {
                let report = self.report(job, pod, (**state).clone());
                if reported {
                    self.say(job, pod, (**state).clone());
                }
                (0, "Completed", serde_json::to_string(&report).unwrap())
            }
            End::Code(code, reason) => (*code, *reason, String::new()),
        };
        let finished = self.now().to_string();
        self.state(
            pod,
            &json!({"terminated": {
                "exitCode": code, "reason": reason, "message": message, "startedAt": started, "finishedAt": finished,
            }}),
        );
    }

    /// Acts as the Deployment controller and the kubelet: starts servers of the current template, which verify and become ready.
    pub(crate) fn sync_servers(&mut self, verifies: bool) {
        let Some(mut live) = self.deployment.clone() else { return };
        let wanted = usize::try_from(live.spec.as_ref().unwrap().replicas.unwrap()).unwrap();
        let promotion = live.annotations()[annotation::PROMOTION_DIGEST].clone();
        let model: ModelDigest = live.annotations()[annotation::MODEL_DIGEST].parse().unwrap();
        let (new, old): (Vec<Pod>, Vec<Pod>) = self
            .pods_of("codex-s-rc")
            .into_iter()
            .partition(|pod| pod.annotations().get(annotation::PROMOTION_DIGEST) == Some(&promotion));
        for pod in new.iter().skip(wanted).map(ResourceExt::name_any) {
            self.pods.remove(&pod);
        }
        let mut servers: Vec<_> = new.iter().take(wanted).map(ResourceExt::name_any).collect();
        for _ in new.len()..wanted {
            let pod = self.new_pod("codex-s-rc", Some(promotion.clone()));
            self.state(&pod, &json!({"running": {"startedAt": self.now().to_string()}}));
            servers.push(pod);
        }
        for pod in servers {
            let promotion = Some(promotion.parse().unwrap());
            let state = if verifies {
                ServingState { stage: Stage::Running, verified: Some(model), promotion, ..ServingState::default() }
            } else {
                let failure = make::failure("VerificationFailed", "model.safetensors was changed");
                ServingState { stage: Stage::Failed, failure: Some(failure), ..ServingState::default() }
            };
            self.say("codex-s-rc", &pod, State::Serving(state));
        }
        let ready = if verifies { wanted } else { 0 };
        if verifies {
            for pod in old.iter().map(ResourceExt::name_any) {
                self.pods.remove(&pod);
            }
        }
        live.status = Some(make::from(json!({
            "replicas": wanted, "readyReplicas": ready, "updatedReplicas": wanted,
            "observedGeneration": live.metadata.generation,
        })));
        self.deployment = Some(live);
    }
}

fn references() -> References {
    References {
        claims: BTreeSet::from(["output".to_owned()]),
        config_maps: BTreeMap::from([("problems".to_owned(), BTreeSet::from(["train.jsonl".to_owned()]))]),
    }
}

fn obstruction(generation: Option<i64>) -> Obstruction {
    Obstruction { reason: Reason::Refused, message: "the child is forbidden".to_owned(), generation, waits: false }
}

/// The plan with an obstruction observed: it wants the same, and its status names the obstruction.
fn obstruct<O, S: PartialEq + std::fmt::Debug + serde::Serialize>(
    free: &Plan<S>,
    plan: impl Fn(&O, Timestamp) -> Plan<S>,
    observed: &O,
    now: Timestamp,
) -> Plan<S> {
    let plan = twice(|now| plan(observed, now), now);
    assert_eq!((&plan.desired, &plan.effects), (&free.desired, &free.effects));
    let conditions = serde_json::to_value(&plan.status).unwrap()["conditions"].take();
    let conditions: Vec<Condition> = serde_json::from_value(conditions).unwrap();
    let ready = find(&conditions, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Refused"));
    assert!(is_true(&conditions, ConditionType::Stalled) && find(&conditions, ConditionType::Reconciling).is_none());
    assert!(plan.events.iter().all(|event| event.reason == "Refused"), "{:?}", plan.events);
    plan
}

/// Plans twice: the same observation must give the same bytes. A status that needs somebody is in no phase that goes on by itself.
fn twice<S: PartialEq + std::fmt::Debug + serde::Serialize>(
    plan: impl Fn(Timestamp) -> Plan<S>,
    now: Timestamp,
) -> Plan<S> {
    let (first, second) = (plan(now), plan(now));
    assert_eq!(first, second);
    assert_eq!(serde_json::to_vec(&first).unwrap(), serde_json::to_vec(&second).unwrap());
    let status = serde_json::to_value(&first.status).unwrap();
    let stalled = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == "Stalled");
    if let Some(stalled) = stalled.filter(|stalled| stalled["status"] == "True") {
        let goes_on = ["Pending", "Running", "RollingOut", "Serving"].map(|phase| status["phase"] == phase);
        assert!(!goes_on.contains(&true), "{}: {stalled}", status["phase"]);
    }
    first
}
