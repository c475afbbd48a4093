//! ReasoningPods that redeploy: when cycles start, what becomes of them, and what is deleted.

use codex_crds::{
    ConditionType, CyclePhase, Evaluation, Parity, ReasoningPod, ReasoningPodStatus, RedeployStatus, RolloutPhase,
    ServedStatus, ShadowStatus, TrainingRun, TrainingRunPhase, annotation,
};
use codex_plan::{
    Effect, Plan,
    conditions::find,
    reasoning_pod::{
        self, Aims, Bundle, Compared, CycleKind, ObservedReasoningPod, RecordedPromotion, SignedModel, SignedPromotion,
        aims, cycles,
    },
    trace::{self, Span},
};
use codex_provenance::{Sha256, oms};
use codex_verdict::{
    Ring,
    policy::{Denied, Lineage, PolicyKind},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    canaries::answer,
    make,
    policies::{denying, policy},
    properties::{busy, judged, trained},
};

mod lost;
mod trials;

/// The time between two cycles: the schedule is due every hour.
const HOUR: i64 = 3_600;
/// The name of the run of the cycle that is due at the first hour.
const FIRST: &str = "rc-30000060";

/// A ReasoningPod that serves the run `cot`, and redeploys every hour.
struct Hourly {
    observed: ObservedReasoningPod,
    /// What was signed for the cycle that has not ended.
    signed: (Option<SignedModel>, Option<SignedPromotion>),
    current: Option<ServedStatus>,
    /// The promotion into the ring before, on which its shadow runs.
    lent: Option<SignedPromotion>,
    runs: Vec<TrainingRun>,
    evaluations: Vec<Evaluation>,
    shadows: Vec<ReasoningPod>,
    spans: Vec<Span>,
}

impl Hourly {
    fn new() -> Self {
        let mut observed = busy().observed_pod();
        let (run, mut evaluation) = (make::run().spec, make::evaluation().spec);
        evaluation.training_run = None;
        let template = json!({"trainingRun": run, "evaluations": [{"name": "lite", "spec": evaluation}]});
        let redeploy = json!({"schedule": {"cron": "0 * * * *"}, "template": template, "failedHistoryLimit": 0});
        observed.object.spec.redeploy = Some(make::from(redeploy));
        observed.status_written_at = None;
        observed.object.metadata.creation_timestamp = Some(Time(make::at(0)));
        let (lent, runs, evaluations, shadows, spans) = Default::default();
        Self { observed, signed: (None, None), current: None, lent, runs, evaluations, shadows, spans }
    }

    /// The same with a shadow for each cycle.
    fn shadowed() -> Self {
        let mut hourly = Self::new();
        let shadow = json!({"samplePercent": 50, "maxDivergence": "0.05", "minRequests": 60, "deadlineSeconds": 1_200});
        hourly.observed.object.spec.redeploy.as_mut().unwrap().shadow = Some(make::from(shadow));
        hourly
    }

    /// Observes the objects of cycles as the controller does.
    fn observe(&mut self) {
        let observed = &mut self.observed;
        (observed.candidate, observed.trial) = (None, None);
        observed.cycles = cycles(&self.runs, &self.evaluations, &self.shadows);
        let Aims { candidate, .. } =
            aims(&observed.object, &observed.seal, &observed.cycles, observed.deployment.as_ref());
        let Some(named) = candidate else { return };
        let mut candidate = observed.clone();
        let cycles = &observed.cycles;
        let run = self.runs.iter().find(|run| run.name_any() == named.training_run);
        candidate.run = run.filter(|run| named.means(*run, cycles)).cloned();
        candidate.evaluations = self
            .evaluations
            .iter()
            .filter(|evaluation| named.evaluations.contains(&evaluation.name_any()) && named.means(*evaluation, cycles))
            .map(|evaluation| (evaluation.name_any(), evaluation.clone()))
            .collect();
        named.aim(&mut candidate.object);
        candidate.oms = self.signed.0.map_or(Bundle::Absent, Bundle::Valid);
        candidate.promotion = self.signed.1.map_or(Bundle::Absent, Bundle::Valid);
        let compared = self.shadows.iter().filter_map(|shadow| {
            let status = shadow.status.clone()?.shadow?;
            Some(Compared { name: shadow.name_any(), uid: shadow.uid()?, status })
        });
        candidate.compared = compared.collect();
        if observed.object.spec.redeploy.as_ref().is_some_and(|redeploy| redeploy.shadow.is_some()) {
            let mut trial = candidate.clone();
            trial.object.spec.rollout_ring = Ring::Base0C;
            trial.run.iter_mut().for_each(|run| run.spec.rollout_ring = Ring::Base0C);
            trial.promotion = self.lent.map_or(Bundle::Absent, Bundle::Valid);
            trial.compared.clear();
            observed.trial = Some(Box::new(trial));
        }
        observed.candidate = Some(Box::new(candidate));
    }

    /// Plans, and lets the plan come true.
    fn plan(&mut self, second: i64) -> Plan<ReasoningPodStatus> {
        self.observe();
        let plan = reasoning_pod::plan(&self.observed, make::at(second));
        assert_eq!(plan, reasoning_pod::plan(&self.observed, make::at(second)));
        self.spans.extend(trace::reasoning_pod(&self.observed, &plan.status, make::at(second)));
        self.observed.object.status = Some(plan.status.clone());
        for mut run in plan.desired.training_runs.clone() {
            assert!(self.runs.iter().all(|known| known.name_any() != run.name_any()), "a run is created once");
            run.metadata.uid = Some(format!("run-of-{}", run.name_any()));
            let trace = format!("00-{:032x}-b7ad6b7169203331-01", second / HOUR);
            run.metadata.annotations.get_or_insert_default().insert(annotation::TRACE_PARENT.to_owned(), trace);
            self.runs.push(run);
        }
        for mut evaluation in plan.desired.evaluations.clone() {
            evaluation.metadata.uid = Some(format!("uid of {}", evaluation.name_any()));
            self.evaluations.push(evaluation);
        }
        for mut shadow in plan.desired.reasoning_pods.clone() {
            shadow.metadata.uid = Some(format!("uid of {}", shadow.name_any()));
            self.shadows.push(shadow);
        }
        let signer = Sha256::of("key");
        for effect in &plan.effects {
            match effect {
                Effect::SignModel { manifest, name, .. } => {
                    let payload = oms::payload_digest(&oms::payload(manifest, name));
                    self.signed.0 = Some(SignedModel { payload, signer });
                }
                Effect::SignPromotion { promotion, .. } => {
                    let key = promotion.key().digest();
                    let signed = SignedPromotion { digest: promotion.digest(), key, signer };
                    let ring: Ring = make::from(json!(promotion.reasons.ring));
                    if ring == Ring::Base0C {
                        self.lent = Some(signed);
                    } else {
                        self.signed.1 = Some(signed);
                    }
                    self.observed.promotions.push(RecordedPromotion {
                        digest: signed.digest,
                        ring,
                        since: make::at(second),
                        lineage: Lineage { model: Some(promotion.model), ..Lineage::default() },
                        parity: promotion.reasons.parity.clone(),
                        run: promotion.reasons.training.run.uid.clone(),
                        sign_offs: promotion.reasons.sign_offs.iter().map(|it| it.uid.clone()).collect(),
                    });
                }
                Effect::SignReproduction { .. } | Effect::RecordRead(_) => panic!("{effect:?}"),
            }
        }
        if self.observed.object.spec.replicas == 0 {
            self.observed.deployment = plan.desired.deployments.first().cloned();
            self.drained();
        }
        if plan.status.current != self.current {
            self.current.clone_from(&plan.status.current);
            // What is served now was signed for the cycle.
            let named = self.current.clone().unwrap();
            self.observed.run = self.runs.iter().find(|run| run.name_any() == named.training_run).cloned();
            self.observed.evaluations = named
                .evaluations
                .iter()
                .filter_map(|name| {
                    Some((name.clone(), self.evaluations.iter().find(|it| it.name_any() == *name)?.clone()))
                })
                .collect();
            (self.observed.object.spec.training_run, self.observed.object.spec.evaluations) =
                (named.training_run, named.evaluations);
            let (oms, promotion) = std::mem::take(&mut self.signed);
            self.observed.oms = oms.map_or(Bundle::Absent, Bundle::Valid);
            self.observed.promotion = promotion.map_or(Bundle::Absent, Bundle::Valid);
        }
        let expired = |kind: CycleKind, name: &str| {
            plan.desired.expired.iter().any(|expired| expired.kind == kind && expired.name == name)
        };
        self.runs.retain(|run| !expired(CycleKind::TrainingRun, &run.name_any()));
        self.evaluations.retain(|evaluation| !expired(CycleKind::Evaluation, &evaluation.name_any()));
        self.shadows.retain(|shadow| !expired(CycleKind::ReasoningPod, &shadow.name_any()));
        plan
    }

    /// Lets the Deployment have no servers.
    fn drained(&mut self) {
        self.observed.pods.clear();
        self.observed.reports.clear();
        let deployment = self.observed.deployment.as_mut().unwrap();
        deployment.metadata.generation = Some(1);
        deployment.status = Some(make::from(json!({"observedGeneration": 1, "replicas": 0})));
    }

    fn redeploy(&self) -> RedeployStatus {
        self.observed.object.status.clone().unwrap().redeploy.unwrap()
    }

    fn phase(&self) -> Option<CyclePhase> {
        self.redeploy().phase
    }

    /// Lets a person sign off the Evaluation of the latest cycle for a ring.
    fn sign_off(&mut self, ring: Ring, by: &str) {
        let evaluation = self.evaluations.last().unwrap();
        let model = trained().status.unwrap().model.unwrap().digest;
        let report = evaluation.status.as_ref().unwrap().report_digest;
        self.observed.sign_offs.push(make::from(json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "SignOff",
            "metadata": {"name": by, "namespace": "team", "uid": format!("signed by {by}")},
            "spec": {
                "evaluation": evaluation.name_any(), "ring": ring, "by": by, "reason": "read 40 answers",
                "modelDigest": model, "reportDigest": report,
            },
        })));
    }

    /// Lets the shadow of the cycle report what it compared.
    fn compare(&mut self, compared: i64, agreed: i64, parity: Option<Parity>) {
        let shadow = self.shadows.last_mut().unwrap();
        let status = ShadowStatus {
            of: "rc".to_owned(),
            digest: trained().status.unwrap().model.map(|model| model.digest),
            max_divergence: shadow.spec.shadow.as_ref().unwrap().max_divergence.clone(),
            compared,
            agreed,
            parity,
            ..ShadowStatus::default()
        };
        shadow.status = Some(ReasoningPodStatus { shadow: Some(status), ..ReasoningPodStatus::default() });
    }

    /// Starts the first cycle, and lets it go on until its shadow runs.
    fn shadow(&mut self) {
        self.plan(100);
        self.train(1);
        self.judge(500);
        let recorded = self.plan(HOUR + 200);
        assert_eq!(self.phase(), Some(CyclePhase::Shadowing), "{:?}", self.redeploy().cycle);
        assert!(recorded.effects.is_empty() && recorded.desired.reasoning_pods.is_empty(), "it is recorded first");
        let signs = self.plan(HOUR + 201);
        assert!(matches!(&signs.effects[..], [Effect::SignModel { .. }]), "{:?}", signs.effects);
        let signs = self.plan(HOUR + 202);
        let [Effect::SignPromotion { promotion, .. }] = &signs.effects[..] else { panic!("{:?}", signs.effects) };
        assert_eq!(promotion.reasons.ring, "0C_base_", "the shadow runs on a promotion into the ring before");
        assert!(signs.desired.reasoning_pods.is_empty());
        let created = self.plan(HOUR + 203);
        assert!(created.effects.is_empty(), "{:?}", created.effects);
        assert_eq!(created.desired.reasoning_pods.len(), 1);
        assert!(self.plan(HOUR + 204).desired.reasoning_pods.is_empty(), "it is created once");
        assert_eq!(self.phase(), Some(CyclePhase::Shadowing));
    }

    /// Starts the cycle of so many hours, and lets its run train a model.
    fn train(&mut self, hours: i64) {
        self.plan(hours * HOUR + 1);
        self.plan(hours * HOUR + 2);
        let run = self.runs.last_mut().unwrap();
        run.status = trained().status;
        self.plan(hours * HOUR + 100);
        assert_eq!(self.phase(), Some(CyclePhase::Evaluating));
    }

    /// Lets the Evaluation of the latest cycle be judged, with so many right answers of 500.
    fn judge(&mut self, right: u64) {
        let run = self.runs.last().unwrap();
        let mut scored = trained();
        scored.metadata.uid.clone_from(&run.metadata.uid);
        let evaluation = self.evaluations.last_mut().unwrap();
        evaluation.status = judged(&scored, &evaluation.name_any(), right).status;
    }
}

fn reason(plan: &Plan<ReasoningPodStatus>) -> (String, String) {
    let condition = find(&plan.status.conditions, ConditionType::RedeploysOnTime).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn a_cycle_is_recorded_before_its_objects_are_created_and_nothing_starts_before_the_first_time() {
    let mut hourly = Hourly::new();
    let waiting = hourly.plan(100);
    assert!(waiting.desired.training_runs.is_empty() && waiting.status.current.is_none());
    assert_eq!(waiting.requeue.unwrap().as_secs(), 3_500);
    assert_eq!(reason(&waiting), ("Unknown".to_owned(), "WaitingForSchedule".to_owned()));
    assert_eq!(hourly.redeploy().next_schedule_time.unwrap().0, make::at(HOUR));

    let begun = hourly.plan(HOUR);
    assert_eq!(hourly.phase(), Some(CyclePhase::Training));
    assert!(begun.desired.training_runs.is_empty(), "the cycle is recorded first");
    assert!(begun.events.iter().any(|event| event.reason == "CycleStarted"), "{:?}", begun.events);
    assert_eq!(begun.requeue.unwrap().as_secs(), 1);

    let created = hourly.plan(HOUR + 1);
    let (run, evaluation) = (&created.desired.training_runs[0], &created.desired.evaluations[0]);
    assert_eq!((run.name_any(), evaluation.name_any()), (FIRST.to_owned(), format!("{FIRST}-lite")));
    assert_eq!(evaluation.spec.training_run.as_deref(), Some(FIRST));
    assert_eq!(run.annotations()[annotation::CYCLE_EVALUATIONS], format!("{FIRST}-lite"));
    assert_eq!(run.owner_references()[0].uid, "pod-1");
    let ready = find(&created.status.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True", "what is served is served on");
    assert!(hourly.plan(HOUR + 2).desired.training_runs.is_empty());
    // A run that a user deletes meanwhile is created again.
    hourly.runs.clear();
    assert_eq!(hourly.plan(HOUR + 3).desired.training_runs.len(), 1);
}

#[test]
fn a_cycle_that_passed_is_promoted_and_one_that_failed_changes_nothing() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    let passed = hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));
    assert!(passed.effects.is_empty(), "that it is rolled out is recorded before anything is signed");
    let signs = hourly.plan(HOUR + 201);
    assert_eq!(signs.effects.len(), 1, "{:?}", signs.status.blocked_by);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));
    for second in 202..205 {
        hourly.plan(HOUR + second);
    }
    // Two hours later it is still at work, so the times are missed, and nothing starts.
    let late = hourly.plan(3 * HOUR + 1);
    assert_eq!(hourly.redeploy().missed.map(|missed| missed.count), Some(2));
    assert_eq!(reason(&late), ("False".to_owned(), "CyclesMissed".to_owned()));
    assert!(late.events.iter().any(|event| event.reason == "CyclesMissed"), "{:?}", late.events);
    assert_eq!(hourly.plan(3 * HOUR + 50).status.redeploy.unwrap().missed.unwrap().count, 2, "they are counted once");

    // A verdict below the gate ends a cycle, and the former one is served.
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(100);
    let failed = hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::Failed));
    assert_eq!(reason(&failed), ("False".to_owned(), "CycleFailed".to_owned()));
    assert!(failed.status.current.is_none() && hourly.redeploy().cycle.is_none());
    assert!(hourly.redeploy().history[0].reason.contains("exact_match"), "{:?}", hourly.redeploy().history);
    let ready = find(&failed.status.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True");
    // Its objects are deleted once its end is recorded: failedHistoryLimit is 0.
    assert!(failed.desired.expired.is_empty());
    assert_eq!(hourly.plan(HOUR + 201).desired.expired.len(), 2);
    assert!(hourly.runs.is_empty() && hourly.evaluations.is_empty());
    // The next cycle is another one.
    hourly.plan(2 * HOUR);
    assert_eq!(hourly.plan(2 * HOUR + 1).desired.training_runs[0].name_any(), "rc-30000120");
}

#[test]
fn a_policy_keeps_a_cycle_from_being_promoted_until_the_next_one_replaces_it() {
    let mut hourly = Hourly::new();
    let demand = make::from(json!({"rules": [{"ring": "0D_base_", "signOffs": {"count": 1}}]}));
    hourly.plan(100);
    hourly.train(1);
    hourly.observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, demand)];
    hourly.judge(500);
    let blocked = hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::Blocked));
    assert_eq!(reason(&blocked), ("False".to_owned(), "CycleBlocked".to_owned()));
    assert!(blocked.effects.is_empty());
    assert_eq!(hourly.redeploy().missed, None);
    hourly.plan(2 * HOUR);
    let status = hourly.redeploy();
    assert_eq!(status.history[0].result, CyclePhase::Failed);
    assert!(status.history[0].reason.contains("replaces it"), "{:?}", status.history);
    assert_eq!((status.promoted, status.manual_overrides, status.missed), (0, 0, None));
    assert_eq!(status.cycle.unwrap().training_run, "rc-30000120");
}

#[test]
fn a_denied_model_ends_a_cycle_that_is_rolled_out() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    hourly.plan(HOUR + 200);
    let model = trained().status.unwrap().model.unwrap().digest;
    hourly.observed.policies = denying(Denied { models: vec![model], ..Denied::default() });
    hourly.plan(HOUR + 201);
    assert_eq!(hourly.redeploy().history[0].result, CyclePhase::Failed);
}

#[test]
fn a_failed_run_ends_its_cycle_and_a_stalled_one_gives_way() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.plan(HOUR);
    hourly.plan(HOUR + 1);
    let stalled = json!([{
        "type": "Stalled", "status": "True", "reason": "DataMismatch", "message": "the data differs",
        "lastTransitionTime": make::at(HOUR),
    }]);
    hourly.runs[0].status = Some(make::from(json!({"phase": "Pending", "conditions": stalled})));
    hourly.plan(HOUR + 10);
    assert_eq!(hourly.phase(), Some(CyclePhase::Training));
    hourly.plan(2 * HOUR);
    assert!(hourly.redeploy().history[0].reason.contains("the data differs"));
    hourly.plan(2 * HOUR + 1);
    let run = hourly.runs.last_mut().unwrap();
    assert_eq!(run.name_any(), "rc-30000120");
    run.status = Some(make::from(json!({"phase": TrainingRunPhase::Failed, "conditions": stalled})));
    hourly.plan(2 * HOUR + 10);
    assert_eq!(hourly.redeploy().history.len(), 2);
}

#[test]
fn suspended_schedules_dry_runs_and_late_starts_start_nothing() {
    let mut hourly = Hourly::new();
    hourly.observed.object.spec.redeploy.as_mut().unwrap().schedule.suspend = true;
    let suspended = hourly.plan(100);
    assert_eq!(reason(&suspended), ("Unknown".to_owned(), "Suspended".to_owned()));
    assert!(hourly.redeploy().next_schedule_time.is_none());
    hourly.plan(2 * HOUR);
    assert!(hourly.redeploy().cycle.is_none());
    let schedule = &mut hourly.observed.object.spec.redeploy.as_mut().unwrap().schedule;
    (schedule.suspend, schedule.starting_deadline_seconds) = (false, Some(60));
    let late = hourly.plan(2 * HOUR + 61);
    assert!(hourly.redeploy().cycle.is_none());
    assert_eq!(reason(&late).1, "CyclesMissed");
    hourly.plan(3 * HOUR);
    assert_eq!(hourly.redeploy().missed, None, "a cycle that starts in time ends what was missed");
    assert!(hourly.redeploy().cycle.is_some());

    let mut dry = Hourly::new();
    dry.observed.object.spec.dry_run = true;
    dry.plan(100);
    let plan = dry.plan(HOUR);
    assert!(dry.redeploy().cycle.is_none() && plan.desired.training_runs.is_empty());
}

#[test]
fn an_invalid_template_or_schedule_is_said_with_its_field_and_starts_nothing() {
    for (field, change) in [
        ("spec.redeploy.schedule.timeZone", json!({"schedule": {"timeZone": "Europe/Bielefeld"}})),
        ("spec.redeploy.template.trainingRun", json!({"template": {"trainingRun": {"template": "unknown"}}})),
        (
            "spec.redeploy.template.trainingRun",
            json!({"template": {"trainingRun": {"overrides": ["training.max_steps=x"]}}}),
        ),
    ] {
        let mut hourly = Hourly::new();
        let redeploy = hourly.observed.object.spec.redeploy.as_mut().unwrap();
        let mut value = json!(redeploy);
        json_patch(&mut value, &change);
        *redeploy = make::from(value);
        hourly.plan(100);
        let plan = hourly.plan(HOUR);
        let stalled = find(&plan.status.conditions, ConditionType::Stalled).unwrap();
        assert!(stalled.message.starts_with(field), "{}", stalled.message);
        assert!(hourly.redeploy().cycle.is_none());
    }
}

fn json_patch(target: &mut serde_json::Value, patch: &serde_json::Value) {
    match patch {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                json_patch(&mut target[name], value);
            }
        }
        other => *target = other.clone(),
    }
}

#[test]
fn a_promoted_cycle_is_served_until_the_next_one_and_its_objects_stay() {
    let mut hourly = Hourly::new();
    // Without servers nothing has to be verified.
    hourly.observed.object.spec.replicas = 0;
    hourly.drained();
    hourly.plan(100);
    for hours in 1..=5 {
        hourly.train(hours);
        hourly.judge(500);
        for second in 200..210 {
            hourly.plan(hours * HOUR + second);
        }
        let status = hourly.observed.object.status.clone().unwrap();
        let redeploy = status.redeploy.clone().unwrap();
        let run = format!("rc-{}", 30_000_000 + hours * 60);
        assert_eq!(redeploy.phase, Some(CyclePhase::Serving), "{:?}", redeploy.cycle);
        assert_eq!(status.current.as_ref().unwrap().training_run, run);
        assert_eq!((redeploy.promoted, redeploy.manual_overrides), (hours, 0));
        let on_time = find(&status.conditions, ConditionType::RedeploysOnTime).unwrap();
        assert_eq!((on_time.status.as_str(), on_time.reason.as_str()), ("True", "CyclePromoted"));
        let former = redeploy.former.map(|former| former.training_run);
        assert_eq!(former, (hours > 1).then(|| format!("rc-{}", 30_000_000 + (hours - 1) * 60)));
    }
    let promotions = hourly.spans.iter().filter(|span| span.name == "promotion").map(|span| json!(span.trace));
    let expected: Vec<_> = (1..=5).map(|hours| json!(format!("{hours:032x}"))).collect();
    assert_eq!(promotions.collect::<Vec<_>>(), expected, "a promotion is in the trace of its own run");
    // Three promoted cycles beside the present and the former one.
    assert_eq!(hourly.runs.len(), 5);
    let history = hourly.redeploy().history;
    assert!(history.iter().all(|record| record.result == CyclePhase::Serving) && history.len() == 5);
}

#[test]
fn times_that_were_missed_count_until_the_cycle_that_follows_them_is_promoted() {
    let mut hourly = Hourly::new();
    // Without servers nothing has to be verified.
    hourly.observed.object.spec.replicas = 0;
    hourly.drained();
    hourly.plan(100);
    // The controller was down for two due times, and the third one starts a cycle.
    hourly.train(3);
    let at_work = hourly.plan(3 * HOUR + 150);
    assert_eq!(reason(&at_work), ("False".to_owned(), "CyclesMissed".to_owned()));
    hourly.judge(500);
    for second in 200..210 {
        hourly.plan(3 * HOUR + second);
    }
    let promoted = hourly.plan(3 * HOUR + 300);
    assert_eq!(hourly.phase(), Some(CyclePhase::Serving));
    assert_eq!(hourly.redeploy().missed.map(|missed| missed.count), Some(2), "the status still names them");
    assert_eq!(reason(&promoted), ("True".to_owned(), "CyclePromoted".to_owned()));
}

#[test]
fn a_canary_that_fails_rolls_its_cycle_back_and_it_is_not_tried_again() {
    let mut hourly = Hourly::new();
    let analysis = json!({"intervalSeconds": 10, "minRequests": 5});
    hourly.observed.object.spec.rollout = Some(make::from(json!({"steps": [100], "analysis": analysis})));
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    let deployment = hourly.observed.deployment.clone();
    let mut second = HOUR + 200;
    while hourly.observed.canary.is_none() {
        let plan = hourly.plan(second);
        let canary = plan.desired.deployments.iter().find(|deployment| deployment.name_any() == "codex-c-rc");
        hourly.observed.canary = canary.cloned();
        second += 1;
        assert!(second < HOUR + 220, "{:?}", hourly.redeploy().cycle);
    }
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));
    answer(&mut hourly.observed, 100, 60, second);
    let failed = hourly.plan(second);
    assert_eq!(hourly.phase(), Some(CyclePhase::RolledBack));
    assert_eq!(failed.status.rollout.as_ref().map(|rollout| rollout.phase), Some(RolloutPhase::RolledBack));
    let redeploy = hourly.redeploy();
    assert_eq!(redeploy.history[0].result, CyclePhase::RolledBack);
    assert!(redeploy.cycle.is_none() && redeploy.promoted == 0 && failed.status.current.is_none());
    assert_eq!(reason(&failed), ("False".to_owned(), "RolledBack".to_owned()));
    assert!(failed.events.iter().any(|event| event.reason == "RolledBack"), "{:?}", failed.events);
    // What was served before is served, and the model of the cycle is not tried again.
    (hourly.observed.canary, hourly.observed.canary_pods) = (None, Vec::new());
    for later in 1..5 {
        let plan = hourly.plan(second + later);
        let servers = plan.desired.deployments.iter().map(ResourceExt::name_any);
        assert_eq!(servers.collect::<Vec<_>>(), ["codex-s-rc"], "no canary starts");
        let template = |deployment: &k8s_openapi::api::apps::v1::Deployment| deployment.spec.clone().unwrap().template;
        assert_eq!(template(&plan.desired.deployments[0]), template(deployment.as_ref().unwrap()));
        let ready = find(&plan.status.conditions, ConditionType::Ready).unwrap();
        assert_eq!(ready.status, "True", "{}", ready.message);
    }
    assert_eq!(hourly.redeploy().history.len(), 1);
}
