//! Policies and revocation: what no order of events may break.

use std::collections::BTreeSet;

use codex_crds::{ConditionType, Reason};
use codex_plan::{
    Effect, Plan,
    conditions::find,
    reasoning_pod::{self, Bundle, Compared, ObservedReasoningPod, RecordedPromotion, SignedPromotion},
};
use codex_provenance::{DataDigest, ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use codex_verdict::{
    Ring,
    policy::{Denied, Lineage, Policy, PolicyKind, PolicyRule, PolicySpec, RequiredParity, RequiredRing},
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    make,
    properties::{ready_to_sign, trained},
    world::World,
};

type Planned = Plan<codex_crds::ReasoningPodStatus>;

pub(crate) fn policy(kind: PolicyKind, spec: PolicySpec) -> Policy {
    Policy { kind, name: "guard".to_owned(), uid: "guard".to_owned(), spec }
}

pub(crate) fn denying(denied: Denied) -> Vec<Policy> {
    vec![policy(PolicyKind::ClusterPromotionPolicy, PolicySpec { rules: Vec::new(), denied })]
}

pub(crate) fn requiring(ring: Ring) -> PolicySpec {
    let rule = PolicyRule {
        ring: Ring::Base0D,
        required_evaluations: Vec::new(),
        requires: Some(RequiredRing { ring }),
        minimum_time_in_ring: None,
        sign_offs: None,
        parity: None,
        signers: None,
        attestations: Vec::new(),
    };
    PolicySpec { rules: vec![rule], denied: Denied::default() }
}

fn promoted(ring: Ring, model: ModelDigest) -> RecordedPromotion {
    RecordedPromotion {
        digest: PromotionDigest(Sha256::of(ring.name())),
        ring,
        since: make::at(-100),
        lineage: Lineage { model: Some(model), ..Lineage::default() },
        parity: Vec::new(),
        run: String::new(),
        sign_offs: BTreeSet::new(),
    }
}

fn plan(observed: &ObservedReasoningPod) -> Planned {
    reasoning_pod::plan(observed, make::at(9))
}

/// An object whose servers run.
pub(crate) fn serving() -> ObservedReasoningPod {
    let mut observed = ready_to_sign("run-1");
    let signing = plan(&observed);
    let [Effect::SignPromotion { promotion, .. }] = &signing.effects[..] else { panic!("{signing:?}") };
    observed.promotion = Bundle::Valid(SignedPromotion {
        digest: promotion.digest(),
        key: promotion.key().digest(),
        signer: Sha256::of("key"),
    });
    let rolling = plan(&observed);
    observed.object.status = Some(rolling.status);
    let mut deployment = rolling.desired.deployments[0].clone();
    deployment.status = make::from(json!({"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}));
    let annotations = deployment.spec.as_ref().unwrap().template.metadata.as_ref().unwrap().annotations.clone();
    observed.deployment = Some(deployment);
    observed.pods = vec![make::from::<Pod>(json!({"metadata": {"name": "a", "uid": "a", "annotations": annotations}}))];
    observed
}

/// Lets a policy demand attestations of an object in its ring, and signs the promotion with them.
pub(crate) fn demand(observed: &mut ObservedReasoningPod, attestations: &[AttestationKind]) {
    let mut spec = requiring(Ring::Base0C);
    let rule = &mut spec.rules[0];
    (rule.ring, rule.requires) = (observed.object.spec.rollout_ring, None);
    rule.attestations = attestations.to_vec();
    observed.policies = vec![policy(PolicyKind::PromotionPolicy, spec)];
    observed.promotion = Bundle::Absent;
    let signing = plan(observed);
    let [Effect::SignPromotion { promotion, .. }] = &signing.effects[..] else { panic!("{signing:?}") };
    observed.promotion = Bundle::Valid(SignedPromotion {
        digest: promotion.digest(),
        key: promotion.key().digest(),
        signer: Sha256::of("key"),
    });
}

/// Servers verify the attestations that policies demand: the arguments name them, in plans for a target and in those that restore one.
#[test]
fn servers_verify_the_attestations_that_policies_demand() {
    let arguments = |plan: &Planned| -> Vec<String> {
        let template = plan.desired.deployments[0].spec.clone().unwrap().template.spec.unwrap();
        let arguments = template.containers[0].args.clone().unwrap();
        let pairs = arguments.windows(2).filter(|pair| pair[0] == "--attestation");
        pairs.map(|pair| pair[1].clone()).collect()
    };
    let mut observed = serving();
    assert!(arguments(&plan(&observed)).is_empty());
    let status = plan(&observed).status.promotion.unwrap();
    assert!(status.attestations.is_empty());

    demand(&mut observed, &[AttestationKind::VerificationSummary, AttestationKind::SlsaProvenance]);
    let rolling = plan(&observed);
    let demanded = [
        "slsaProvenance=/bundles/promotion/slsa-provenance.json",
        "verificationSummary=/bundles/promotion/verification-summary.json",
    ];
    assert_eq!(arguments(&rolling), demanded);
    let recorded = rolling.status.promotion.clone().unwrap();
    assert_eq!(recorded.attestations, [AttestationKind::SlsaProvenance, AttestationKind::VerificationSummary]);

    // A modified template: the recorded one is restored while something else blocks the rollout.
    observed.object.status = Some(rolling.status);
    (observed.deployment, observed.tampered) = (None, true);
    observed.signer =
        reasoning_pod::Signer::Unavailable { fingerprint: Some(Sha256::of("key")), reason: "it is away".into() };
    observed.policies.clear();
    assert_eq!(arguments(&plan(&observed)), demanded);
}

/// The only credential of a trainer, an evaluator or a server is the token for its own reports: neither the signing key nor a token that
/// Fulcio or the API server accepts.
#[test]
fn no_pod_can_sign() {
    let observed_run = World::new().observed_run();
    let mut observed_evaluation = World::new().observed_evaluation();
    observed_evaluation.run = Some(trained());
    let jobs = [
        codex_plan::training_run::plan(&observed_run, make::at(9)).desired.jobs,
        codex_plan::evaluation::plan(&observed_evaluation, make::at(9)).desired.jobs,
    ];
    let jobs = jobs.into_iter().flatten().map(|job| job.spec.unwrap().template.spec.unwrap());
    let servers = plan(&serving()).desired.deployments;
    let servers = servers.into_iter().map(|deployment| deployment.spec.unwrap().template.spec.unwrap());
    let specs: Vec<_> = jobs.chain(servers).collect();
    assert_eq!(specs.len(), 3);
    for spec in specs {
        assert_eq!(spec.automount_service_account_token, Some(false));
        let volumes = spec.volumes.unwrap();
        assert!(volumes.iter().all(|volume| volume.secret.is_none() && volume.csi.is_none()), "{volumes:?}");
        let sources = volumes.iter().filter_map(|volume| volume.projected.as_ref()?.sources.as_ref()).flatten();
        let sources: Vec<_> = sources.collect();
        assert!(sources.iter().all(|source| source.secret.is_none()), "{sources:?}");
        let tokens = sources.iter().filter_map(|source| source.service_account_token.as_ref());
        let audiences: Vec<_> = tokens.map(|token| token.audience.as_deref()).collect();
        assert_eq!(audiences, [Some("codex-ml.dev/reports")]);
        for container in spec.containers {
            assert!(
                container
                    .env
                    .iter()
                    .flatten()
                    .all(|variable| { variable.value_from.as_ref().is_none_or(|from| from.secret_key_ref.is_none()) })
            );
            assert!(container.env_from.is_none());
        }
    }
}

fn replicas(plan: &Planned) -> Option<i32> {
    plan.desired.deployments.first()?.spec.as_ref()?.replicas
}

fn reason(plan: &Planned, kind: ConditionType) -> Option<String> {
    find(&plan.status.conditions, kind).map(|condition| condition.reason.clone())
}

#[test]
fn whatever_is_denied_drains_in_one_plan_and_comes_back() {
    let observed = serving();
    let status = observed.object.status.clone().unwrap();
    let model = status.manifest.unwrap().digest;
    let run = observed.run.clone().unwrap().status.unwrap();
    let base = ModelDigest(Sha256::of("base"));
    let lists = [
        Denied { models: vec![model], ..Denied::default() },
        Denied { bases: vec![base], ..Denied::default() },
        Denied { models: vec![base], ..Denied::default() },
        Denied { data: vec![run.data_digests[0].sha256], ..Denied::default() },
        Denied { keys: vec![Sha256::of("key")], ..Denied::default() },
    ];
    for denied in lists {
        let mut observed = observed.clone();
        observed.run.as_mut().unwrap().status.as_mut().unwrap().base =
            make::from(json!({"digest": base, "short": base.short(), "source": "models/base"}));
        assert_eq!(replicas(&plan(&observed)), Some(2), "{denied:?}");
        observed.policies = denying(denied.clone());
        let drained = plan(&observed);
        assert_eq!(replicas(&drained), Some(0), "{denied:?}");
        assert!(drained.effects.is_empty());
        assert_eq!(reason(&drained, ConditionType::Revoked).as_deref(), Some("Revoked"), "{denied:?}");
        assert!(drained.status.blocked_by.iter().any(|it| it.contains("ClusterPromotionPolicy guard, denied.")));
        assert!(drained.events.iter().any(|event| event.reason == Reason::Revoked.name()));
        observed.object.status = Some(drained.status);
        observed.policies = denying(Denied { data: vec![DataDigest(Sha256::of("other"))], ..Denied::default() });
        let back = plan(&observed);
        assert_eq!(replicas(&back), Some(2));
        assert_eq!(reason(&back, ConditionType::Revoked).as_deref(), Some("RevocationLifted"));
        assert!(back.events.iter().any(|event| event.reason == Reason::RevocationLifted.name()));
    }
}

#[test]
fn a_base_that_only_the_promotion_names_drains_too() {
    let mut observed = serving();
    let promotion = observed.object.status.as_ref().unwrap().promotion.clone().unwrap();
    let base = ModelDigest(Sha256::of("base"));
    let model = observed.object.status.as_ref().unwrap().manifest.as_ref().unwrap().digest;
    let lineage = Lineage { model: Some(model), base: Some(base), ..Lineage::default() };
    observed.promotions = vec![RecordedPromotion {
        digest: promotion.digest,
        ring: Ring::Base0D,
        since: make::at(0),
        lineage,
        parity: Vec::new(),
        run: String::new(),
        sign_offs: BTreeSet::new(),
    }];
    observed.run = None;
    assert_eq!(replicas(&plan(&observed)), Some(2));
    observed.policies = denying(Denied { bases: vec![base], ..Denied::default() });
    assert_eq!(replicas(&plan(&observed)), Some(0));
}

#[test]
fn another_model_follows_once_nothing_serves_the_denied_one() {
    let mut observed = serving();
    let denied = ModelDigest(Sha256::of("former"));
    let annotations = json!({"codex-ml.dev/model-digest": denied});
    observed.former_pods =
        vec![make::from::<Pod>(json!({"metadata": {"name": "f", "uid": "f", "annotations": annotations}}))];
    assert_eq!(replicas(&plan(&observed)), Some(2), "a rolling update keeps former servers");
    observed.policies = denying(Denied { models: vec![denied], ..Denied::default() });
    assert_eq!(replicas(&plan(&observed)), Some(0), "a former server of a denied model goes at once");
    observed.former_pods.clear();
    assert_eq!(replicas(&plan(&observed)), Some(2));
}

#[test]
fn servers_stay_if_only_the_model_that_follows_is_denied() {
    let mut observed = serving();
    // The run now has another model than the servers, from a base that is denied.
    let base = ModelDigest(Sha256::of("base"));
    let run = observed.run.as_mut().unwrap().status.as_mut().unwrap();
    run.model.as_mut().unwrap().digest = ModelDigest(Sha256::of("next"));
    run.base = make::from(json!({"digest": base, "short": base.short(), "source": "models/base"}));
    observed.policies = denying(Denied { bases: vec![base], ..Denied::default() });
    let planned = plan(&observed);
    assert_eq!(replicas(&planned), Some(2));
    assert!(planned.effects.is_empty());
    // The metric of served models that are denied counts the reason Revoked.
    assert_eq!(reason(&planned, ConditionType::Revoked).as_deref(), Some("Blocked"));
}

#[test]
fn a_modified_template_of_a_denied_model_drains() {
    let mut observed = serving();
    let model = observed.object.status.as_ref().unwrap().manifest.as_ref().unwrap().digest;
    observed.policies = denying(Denied { models: vec![model], ..Denied::default() });
    (observed.deployment, observed.tampered) = (None, true);
    assert_eq!(replicas(&plan(&observed)), Some(0), "the recorded template is restored, scaled to zero");
}

#[test]
fn a_policy_in_a_namespace_can_only_tighten() {
    let mut observed = ready_to_sign("run-1");
    let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
    let cluster = policy(PolicyKind::ClusterPromotionPolicy, requiring(Ring::Base0C));
    let team = policy(PolicyKind::PromotionPolicy, requiring(Ring::Base0B));
    for (policies, rings, signs) in [
        (vec![], vec![], true),
        (vec![cluster.clone()], vec![], false),
        (vec![cluster.clone()], vec![Ring::Base0C], true),
        (vec![cluster.clone(), team.clone()], vec![Ring::Base0C], false),
        (vec![cluster.clone(), team.clone()], vec![Ring::Base0B], false),
        (vec![cluster, team], vec![Ring::Base0B, Ring::Base0C], true),
    ] {
        observed.policies = policies;
        observed.promotions = rings.iter().map(|ring| promoted(*ring, model)).collect();
        let planned = plan(&observed);
        assert_eq!(!planned.effects.is_empty(), signs, "{rings:?}: {:?}", planned.status.blocked_by);
        if !signs {
            assert!(
                planned.status.blocked_by.iter().all(|it| it.contains("PromotionPolicy guard, rule for 0D_base_: "))
            );
        }
    }
}

#[test]
fn the_promotion_of_another_model_does_not_count() {
    let mut observed = ready_to_sign("run-1");
    observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, requiring(Ring::Base0C))];
    observed.promotions = vec![promoted(Ring::Base0C, ModelDigest(Sha256::of("other")))];
    assert!(plan(&observed).effects.is_empty());
}

#[test]
fn a_statement_names_the_rules_that_held_and_a_changed_rule_is_signed_again() {
    let mut observed = ready_to_sign("run-1");
    let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
    observed.promotions = vec![promoted(Ring::Base0C, model), promoted(Ring::Base0B, model)];
    let under = |observed: &ObservedReasoningPod| {
        let plan = plan(observed);
        let [Effect::SignPromotion { promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
        promotion.clone()
    };
    let free = under(&observed);
    assert!(free.reasons.policies.is_empty() && free.reasons.earlier.is_empty());
    observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, requiring(Ring::Base0C))];
    let guarded = under(&observed);
    assert_eq!((guarded.reasons.policies.len(), guarded.reasons.policies[0].name.as_str()), (1, "guard"));
    assert_eq!(guarded.reasons.earlier[0].ring, "0C_base_");
    assert_ne!(free.key().digest(), guarded.key().digest());
    // A deny-list is no rule: a longer one signs nothing again.
    observed.policies[0].spec.denied.models.push(ModelDigest(Sha256::of("other")));
    assert_eq!(under(&observed).key().digest(), guarded.key().digest());
    observed.policies[0].spec = requiring(Ring::Base0B);
    assert_ne!(under(&observed).key().digest(), guarded.key().digest());
}

#[test]
fn a_statement_names_the_confidence_that_a_budget_of_reads_applied() {
    let mut observed = ready_to_sign("run-1");
    let template = json!({
        "name": "held-out", "reads": {"budget": 5},
        "gates": [{"metric": "exact_match", "min": "0.9", "confidence": "0.95"}],
    });
    let rule = make::from(json!({"ring": "0D_base_", "requiredEvaluations": [template]}));
    let spec = PolicySpec { rules: vec![rule], denied: Denied::default() };
    observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, spec)];
    let plan = plan(&observed);
    let [Effect::SignPromotion { promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
    let [evaluation] = &promotion.reasons.evaluations[..] else { panic!("{promotion:?}") };
    let read = evaluation.reads.as_ref().unwrap();
    let [divided] = &read.divided[..] else { panic!("{read:?}") };
    assert_eq!((divided.policy.as_str(), divided.budget), ("ClusterPromotionPolicy guard", 5));
    assert_eq!((divided.confidence.as_str(), divided.gate.confidence.as_deref()), ("0.95", Some("0.99")));
    assert_eq!(divided.gate.min.as_deref(), Some("0.9"), "the gate of the policy, not that of the Evaluation");
    codex_verdict::recheck(promotion.model, evaluation).unwrap();
    let met = find(&plan.status.conditions, ConditionType::PolicyMet).unwrap();
    assert_eq!(
        met.message,
        "the rules for 0D_base_ hold: ClusterPromotionPolicy guard; reads.budget applied exact_match at confidence 0.99 = 1 - \
         0.05/5 by ClusterPromotionPolicy guard"
    );
}

#[test]
fn without_a_rule_for_the_ring_the_status_says_so_and_nothing_else_changes() {
    let observed = ready_to_sign("run-1");
    let mut guarded = observed.clone();
    let mut elsewhere = requiring(Ring::Base0C);
    elsewhere.rules[0].ring = Ring::Main;
    guarded.policies = vec![policy(PolicyKind::PromotionPolicy, elsewhere)];
    for observed in [&observed, &guarded] {
        let planned = plan(observed);
        assert_eq!(planned.effects.len(), 1);
        let condition = find(&planned.status.conditions, ConditionType::PolicyMet).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("Unknown", "NoPolicy"));
        assert!(!planned.events.iter().any(|event| event.reason == "NoPolicy"), "{:?}", planned.events);
    }
}

/// Returns what a shadow has compared that serves the model of the object.
fn compared(model: ModelDigest, compared: i64, parity: &str) -> Compared {
    let status = json!({
        "of": "live", "ofDigest": make::model("b").digest, "digest": model, "maxDivergence": "0.05", "compared": compared,
        "agreed": compared, "parity": parity,
    });
    Compared { name: "next".to_owned(), uid: "next-uid".to_owned(), status: make::from(status) }
}

fn demanding_parity() -> Vec<Policy> {
    let mut spec = requiring(Ring::Base0C);
    let parity = RequiredParity { min_requests: 100, max_divergence: None };
    (spec.rules[0].requires, spec.rules[0].parity) = (None, Some(parity));
    vec![policy(PolicyKind::PromotionPolicy, spec)]
}

#[test]
fn a_model_is_promoted_only_once_a_shadow_has_proved_parity() {
    let mut observed = ready_to_sign("run-1");
    let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
    observed.policies = demanding_parity();
    for (shadows, told) in [
        (vec![], "there is no candidate: create a ReasoningPod with spec.shadow, rolloutRing 0D_base_"),
        (vec![compared(model, 99, "Holds")], "ReasoningPod next has compared 99 requests"),
        (vec![compared(model, 200, "Lost")], "ReasoningPod next has not proved parity"),
        (vec![compared(ModelDigest(Sha256::of("other")), 200, "Holds")], "there is no candidate"),
    ] {
        observed.compared = shadows;
        let blocked = plan(&observed);
        assert!(blocked.effects.is_empty());
        let [why] = &blocked.status.blocked_by[..] else { panic!("{:?}", blocked.status.blocked_by) };
        assert!(why.starts_with("PromotionPolicy guard, rule for 0D_base_: ") && why.contains(told), "{why}");
    }
    observed.compared = vec![compared(model, 100, "Holds")];
    let planned = plan(&observed);
    let [Effect::SignPromotion { promotion, .. }] = &planned.effects[..] else { panic!("{planned:?}") };
    let [parity] = &promotion.reasons.parity[..] else { panic!("{promotion:?}") };
    assert_eq!((parity.shadow.name.as_str(), parity.shadow.uid.as_str()), ("next", "next-uid"));
    assert_eq!((parity.compared, parity.agreed, parity.of.as_str()), (100, 100, "live"));
    // 0.955^100 is about 0.01.
    assert_eq!((parity.bound.as_str(), parity.max_divergence.as_str()), ("0.045008", "0.05"));
    // What was promoted stays so when the shadow is gone, and so it can be signed again with another key.
    let stated = promotion.reasons.parity.clone();
    observed.compared.clear();
    observed.promotions = vec![RecordedPromotion { parity: stated.clone(), ..promoted(Ring::Base0D, model) }];
    let again = plan(&observed);
    let [Effect::SignPromotion { promotion, .. }] = &again.effects[..] else { panic!("{again:?}") };
    assert_eq!(promotion.reasons.parity, stated);
    // Parity in another ring is another matter.
    observed.promotions[0].ring = Ring::Base0C;
    assert!(plan(&observed).effects.is_empty());
}

#[test]
fn a_shadow_that_proved_parity_is_promoted_when_it_begins_to_serve() {
    let mut observed = ready_to_sign("run-1");
    let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
    observed.policies = demanding_parity();
    let mut status = plan(&observed).status;
    status.shadow = Some(compared(model, 100, "Holds").status);
    observed.object.status = Some(status);
    let planned = plan(&observed);
    let [Effect::SignPromotion { promotion, .. }] = &planned.effects[..] else { panic!("{planned:?}") };
    assert_eq!(promotion.reasons.parity[0].shadow.name, "rc");
    assert!(planned.status.shadow.is_some(), "it is kept until the servers are replaced");
}
