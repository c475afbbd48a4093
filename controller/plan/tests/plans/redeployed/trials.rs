//! The shadow of a cycle: what it runs on, what it proves, and what people have to sign.

use codex_crds::{ConditionType, CyclePhase, Parity, annotation};
use codex_plan::{Effect, conditions::find, reasoning_pod::CycleKind};
use codex_verdict::{Ring, policy::PolicyKind};
use kube::ResourceExt;
use serde_json::json;

use super::{FIRST, HOUR, Hourly, json_patch, reason};
use crate::{make, policies::policy};

/// The shadow that a cycle creates proves the parity that a policy demands; no user has to do anything.
#[test]
fn a_cycle_with_a_shadow_is_promoted_once_parity_is_proved_and_states_it() {
    let mut hourly = Hourly::shadowed();
    let demand = json!({"rules": [{"ring": "0D_base_", "parity": {"minRequests": 80, "maxDivergence": "0.05"}}]});
    hourly.observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, make::from(demand))];
    hourly.observed.object.spec.serving = make::from(json!({"rateLimit": "60/60s", "device": "cpu", "maxNumSeqs": 16}));
    hourly.shadow();
    let shadow = hourly.shadows[0].clone();
    let spec = &shadow.spec;
    assert_eq!(json!(spec.serving), json!({"device": "cpu", "maxNumSeqs": 16}), "a shadow has no clients");
    assert_eq!((shadow.name_any().as_str(), spec.training_run.as_str()), (FIRST, FIRST));
    assert_eq!(spec.evaluations, [format!("{FIRST}-lite")]);
    assert_eq!((spec.rollout_ring, spec.dry_run, spec.replicas), (Ring::Base0D, false, 1));
    assert_eq!(
        json!(spec.shadow),
        json!({"of": "rc", "samplePercent": 50, "maxDivergence": "0.05", "minRequests": 60})
    );
    assert_eq!(spec.pod, hourly.observed.object.spec.pod);
    assert_eq!(shadow.owner_references()[0].uid, "pod-1");
    assert_eq!(shadow.annotations()[annotation::CYCLE], make::at(HOUR).as_second().to_string());

    hourly.compare(70, 70, Some(Parity::Holds));
    let short = hourly.plan(HOUR + 300);
    assert_eq!(hourly.phase(), Some(CyclePhase::Blocked), "the rule demands more requests than the cycle");
    assert!(hourly.redeploy().cycle.unwrap().reason.contains("minRequests 80"), "{:?}", hourly.redeploy().cycle);
    assert!(short.effects.is_empty() && short.desired.expired.is_empty());
    hourly.compare(90, 90, Some(Parity::Holds));
    let proved = hourly.plan(HOUR + 310);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));
    assert!(proved.effects.is_empty(), "that it is rolled out is recorded before anything is signed");
    let signs = hourly.plan(HOUR + 311);
    let [Effect::SignPromotion { promotion, .. }] = &signs.effects[..] else { panic!("{:?}", signs.effects) };
    let parity = &promotion.reasons.parity[..];
    assert_eq!(promotion.reasons.ring, "0D_base_");
    assert!(matches!(parity, [parity] if parity.shadow.name == FIRST && parity.compared == 90), "{parity:?}");
    assert!(signs.desired.expired.is_empty(), "it stays until the promotion is signed");
    let rolls = hourly.plan(HOUR + 312);
    assert!(matches!(&rolls.desired.expired[..], [gone] if gone.kind == CycleKind::ReasoningPod && gone.name == FIRST));
    assert!(hourly.shadows.is_empty());
    let still = hourly.plan(HOUR + 313);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut), "what was promoted stays so without its shadow");
    assert!(still.status.blocked_by.is_empty(), "{:?}", still.status.blocked_by);
    // Without servers nothing has to be verified.
    hourly.observed.object.spec.replicas = 0;
    for second in 320..324 {
        hourly.plan(HOUR + second);
    }
    let status = hourly.redeploy();
    assert_eq!((status.promoted, status.manual_overrides, status.phase), (1, 0, Some(CyclePhase::Serving)));
    assert_eq!(hourly.current.unwrap().training_run, FIRST);
}

/// Both the promotion into the ring before, on which the shadow runs, and the cycle's own need a person.
#[test]
fn sign_offs_that_promoted_a_cycle_are_counted_once_also_after_they_are_deleted() {
    let mut hourly = Hourly::shadowed();
    let rule = |ring: Ring| json!({"ring": ring, "signOffs": {"count": 1}});
    let demand = json!({"rules": [rule(Ring::Base0C), rule(Ring::Base0D)]});
    hourly.observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, make::from(demand))];
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::Blocked));
    hourly.sign_off(Ring::Base0C, "ada");
    for second in 210..214 {
        hourly.plan(HOUR + second);
    }
    assert_eq!((hourly.phase(), hourly.shadows.len()), (Some(CyclePhase::Shadowing), 1));
    hourly.compare(90, 90, Some(Parity::Holds));
    hourly.plan(HOUR + 300);
    assert_eq!(hourly.phase(), Some(CyclePhase::Blocked), "the other ring needs its own");
    hourly.sign_off(Ring::Base0D, "grace");
    for second in 310..313 {
        hourly.plan(HOUR + second);
    }
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut), "{:?}", hourly.redeploy().cycle);
    hourly.observed.sign_offs.remove(0);
    // Without servers nothing has to be verified.
    hourly.observed.object.spec.replicas = 0;
    for second in 320..324 {
        hourly.plan(HOUR + second);
    }
    let status = hourly.redeploy();
    assert_eq!((status.promoted, status.manual_overrides), (1, 2), "{:?}", status.cycle);
    assert_eq!(status.history[0].manual_overrides, 2);
}

#[test]
fn lost_parity_and_too_few_requests_end_a_cycle_and_the_incumbent_serves_on() {
    for (compared, agreed, parity, second, told) in [
        (200, 150, Some(Parity::Lost), 300, "lost parity: 50 of 200 requests were answered differently than by rc"),
        (9, 9, None, 1_400, "did not prove parity within the 1200 s of spec.redeploy.shadow.deadlineSeconds: 0 of 9"),
    ] {
        let mut hourly = Hourly::shadowed();
        hourly.shadow();
        hourly.compare(compared, agreed, None);
        let waiting = hourly.plan(HOUR + 250);
        assert_eq!(hourly.phase(), Some(CyclePhase::Shadowing));
        assert!(
            waiting.requeue.unwrap().as_secs() <= 1_150,
            "it is judged when its time has passed: {:?}",
            waiting.requeue
        );
        hourly.compare(compared, agreed, parity);
        let failed = hourly.plan(HOUR + second);
        assert_eq!(hourly.phase(), Some(CyclePhase::Failed));
        let record = hourly.redeploy().history[0].clone();
        assert!(record.reason.contains(told) && record.reason.contains("maxDivergence is 0.05"), "{}", record.reason);
        assert_eq!(reason(&failed), ("False".to_owned(), "CycleFailed".to_owned()));
        let ready = find(&failed.status.conditions, ConditionType::Ready).unwrap();
        assert!(ready.status == "True" && failed.status.current.is_none() && failed.effects.is_empty());
        hourly.plan(HOUR + second + 1);
        assert!(hourly.shadows.is_empty(), "the shadow is deleted with its cycle");
        assert_eq!(hourly.redeploy().promoted, 0);
    }
}

#[test]
fn no_shadow_is_created_where_it_is_of_no_use() {
    // The ring before does not take the model.
    let mut hourly = Hourly::shadowed();
    let demand = |ring: &str, what: serde_json::Value| {
        let mut rule = json!({"ring": ring});
        json_patch(&mut rule, &what);
        vec![policy(PolicyKind::ClusterPromotionPolicy, make::from(json!({"rules": [rule]})))]
    };
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    hourly.observed.policies = demand("0C_base_", json!({"signOffs": {"count": 1}}));
    let blocked = hourly.plan(HOUR + 200);
    let cycle = hourly.redeploy().cycle.unwrap();
    assert_eq!(cycle.phase, CyclePhase::Blocked);
    let told = "its shadow needs a promotion into 0C_base_, the ring before: ";
    assert!(cycle.reason.starts_with(told) && cycle.shadow_since.is_none(), "{}", cycle.reason);
    assert!(blocked.effects.is_empty() && blocked.desired.reasoning_pods.is_empty());
    // A rule of its own ring that no shadow can meet.
    let template = json!([{"name": "m0", "preset": "cot-lite", "problemsSha256": "0".repeat(64), "gates": []}]);
    hourly.observed.policies = demand("0D_base_", json!({"requiredEvaluations": template}));
    hourly.plan(HOUR + 201);
    let cycle = hourly.redeploy().cycle.unwrap();
    assert!(cycle.phase == CyclePhase::Blocked && !cycle.reason.starts_with(told), "{}", cycle.reason);
    // People can sign meanwhile.
    hourly.observed.policies = demand("0D_base_", json!({"signOffs": {"count": 1}}));
    hourly.plan(HOUR + 202);
    assert_eq!(hourly.phase(), Some(CyclePhase::Shadowing));

    // Nothing is served, so that there are no requests.
    let mut hourly = Hourly::shadowed();
    hourly.observed.object.spec.replicas = 0;
    hourly.drained();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));

    // Without spec.redeploy a shadow does not stay.
    let mut hourly = Hourly::shadowed();
    hourly.shadow();
    hourly.observed.object.spec.redeploy = None;
    let removed = hourly.plan(HOUR + 300);
    assert!(matches!(&removed.desired.expired[..], [gone] if gone.kind == CycleKind::ReasoningPod));
    assert_eq!((hourly.runs.len(), hourly.shadows.len()), (1, 0));
}

#[test]
fn a_forged_shadow_proves_nothing_and_one_that_is_deleted_comes_back() {
    let mut hourly = Hourly::shadowed();
    hourly.shadow();
    // A user makes the shadow accept any difference: the controller does not count it as its own, and restores it.
    hourly.compare(90, 0, Some(Parity::Holds));
    hourly.shadows[0].spec.shadow.as_mut().unwrap().max_divergence = "1".to_owned();
    let again = hourly.plan(HOUR + 300);
    assert_eq!(hourly.phase(), Some(CyclePhase::Shadowing));
    assert_eq!(again.desired.reasoning_pods.len(), 1);
    hourly.shadows.clear();
    assert_eq!(hourly.plan(HOUR + 301).desired.reasoning_pods.len(), 1);
    // One that compares another model counts for nothing.
    hourly.compare(90, 90, Some(Parity::Holds));
    hourly.shadows[0].status.as_mut().unwrap().shadow.as_mut().unwrap().digest = Some(make::model("other").digest);
    hourly.plan(HOUR + 302);
    assert_eq!(hourly.phase(), Some(CyclePhase::Shadowing));
}
