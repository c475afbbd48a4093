//! Shadows: neither pod is restarted for the other, copies are accepted from known servers only, and a shadow answers nobody.

use codex_crds::{ConditionType, Parity, ReasoningPodStatus};
use codex_plan::{
    Effect, Plan, Received,
    conditions::find,
    reasoning_pod::{
        self, Bundle, Incumbent, LentPromotion, Mirrored, ObservedReasoningPod, SignedModel, SignedPromotion,
    },
};
use codex_provenance::{OmsPayloadDigest, PromotionDigest, Sha256};
use codex_reports::{Comparison, Kind, MirrorFile, ShadowFile, State};
use codex_verdict::{Ring, policy::PolicyKind};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    make,
    policies::{policy, requiring},
    properties::{busy, ready_to_sign},
};

fn plan(observed: &ObservedReasoningPod) -> Plan<ReasoningPodStatus> {
    reasoning_pod::plan(observed, make::at(1_000))
}

/// Returns a shadow whose two servers serve.
fn shadow() -> ObservedReasoningPod {
    let mut world = busy();
    world.pod.spec.shadow = Some(make::from(json!({"of": "live", "samplePercent": 10, "maxDivergence": "0.05"})));
    let mut observed = world.observed_pod();
    observed.incumbent = Some(incumbent());
    observed.lent = vec![own_promotion(&observed)];
    observed.deployment = plan(&observed).desired.deployments.first().cloned();
    let status = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2});
    let live = observed.deployment.as_mut().unwrap();
    (live.metadata.generation, live.status) = (Some(1), Some(make::from(status)));
    observed
}

/// Returns the promotion that the object got before it became a shadow.
fn own_promotion(observed: &ObservedReasoningPod) -> LentPromotion {
    let status = observed.object.status.clone().unwrap();
    let (Bundle::Valid(oms), Bundle::Valid(promotion)) = (observed.oms.clone(), observed.promotion.clone()) else {
        panic!("nothing is signed")
    };
    LentPromotion {
        ring: Ring::Base0D,
        since: make::at(0),
        bundle: status.promotion.unwrap().bundle,
        promotion,
        oms_bundle: status.manifest.unwrap().bundle,
        oms,
    }
}

/// Returns a promotion of the same model into another ring, with the signature of another run.
fn lent(ring: Ring) -> LentPromotion {
    let signer = Sha256::of("key");
    let digest = PromotionDigest(Sha256::of(ring.name()));
    LentPromotion {
        ring,
        since: make::at(0),
        bundle: format!("promo-{}", ring.object_name()),
        promotion: SignedPromotion { digest, key: Sha256::of("evidence"), signer },
        oms_bundle: format!("oms-{}", ring.object_name()),
        oms: SignedModel { payload: OmsPayloadDigest(Sha256::of("payload")), signer },
    }
}

/// Returns a shadow of a model that is ready to be promoted, under a policy that it does not meet.
fn unpromoted() -> ObservedReasoningPod {
    let mut observed = ready_to_sign("run-1");
    observed.object.spec.shadow = shadow().object.spec.shadow;
    observed.incumbent = Some(incumbent());
    observed.policies = vec![policy(PolicyKind::PromotionPolicy, requiring(Ring::Base0A))];
    observed
}

fn incumbent() -> Incumbent {
    Incumbent {
        model: Some(make::model("b").digest),
        tls: false,
        shadow_of: None,
        pods: ["i".to_owned()].into(),
        keys: [("i".to_owned(), "a".repeat(64))].into(),
    }
}

/// Lets the first server report a comparison.
fn compare(observed: &mut ObservedReasoningPod, comparison: Comparison) {
    let Received { report, .. } = &mut observed.reports[0];
    let State::Serving(state) = &mut report.state else { panic!("{report:?}") };
    state.comparisons = vec![comparison];
}

fn arguments(plan: &Plan<ReasoningPodStatus>) -> Vec<String> {
    let template = &plan.desired.deployments[0].spec.as_ref().unwrap().template;
    template.spec.as_ref().unwrap().containers[0].args.clone().unwrap()
}

fn file(plan: &Plan<ReasoningPodStatus>, name: &str) -> Option<String> {
    plan.desired.config_maps[0].data.as_ref().unwrap().get(name).cloned()
}

fn shadows(plan: &Plan<ReasoningPodStatus>) -> MirrorFile {
    serde_json::from_str(&file(plan, "mirror.json").unwrap()).unwrap()
}

fn keys(plan: &Plan<ReasoningPodStatus>) -> Vec<String> {
    serde_json::from_str::<ShadowFile>(&file(plan, "shadow.json").unwrap()).unwrap().keys
}

#[test]
fn a_shadow_comes_and_goes_without_a_restart_of_the_incumbent() {
    let mut observed = busy().observed_pod();
    let without = plan(&observed);
    assert!(arguments(&without).windows(2).any(|pair| pair == ["--mirror", "/etc/codex/mirror.json"]));
    assert!(shadows(&without).shadows.is_empty(), "the file is there, so that nobody else's is read");
    observed.shadows = vec![Mirrored { name: "next".to_owned(), uid: "pod-2".to_owned(), sample_percent: 10 }];
    let with = plan(&observed);
    assert_eq!(with.desired.deployments, without.desired.deployments);
    let named = shadows(&with);
    let [target] = &named.shadows[..] else { panic!("{named:?}") };
    assert_eq!(
        (target.uid.as_str(), target.url.as_str(), target.sample_percent),
        ("pod-2", "http://next.team.svc:8000", 10)
    );
    // It may send copies to the shadow, and nothing more.
    let egress =
        |plan: &Plan<ReasoningPodStatus>| plan.desired.network_policies[0].spec.clone().unwrap().egress.unwrap();
    let (before, after) = (egress(&without), egress(&with));
    assert_eq!((&after[..2], after.len()), (&before[..], 3));
    let peer = after[2].to.as_ref().unwrap()[0].pod_selector.clone().unwrap().match_labels.unwrap();
    assert_eq!(peer["codex-ml.dev/reasoning-pod"], "next");
}

#[test]
fn what_is_encrypted_is_not_copied() {
    let mut observed = shadow();
    observed.incumbent.as_mut().unwrap().tls = true;
    let planned = plan(&observed);
    let stalled = find(&planned.status.conditions, ConditionType::Stalled).unwrap();
    let told =
        "spec.shadow.of is live, whose spec.serving.tls encrypts requests, and copies of requests are not encrypted";
    assert!(stalled.status == "True" && stalled.message.contains(told), "{}", stalled.message);
    // Nor does the other one send any, whatever the shadow says.
    let mut observed = busy().observed_pod();
    observed.shadows = vec![Mirrored { name: "next".to_owned(), uid: "pod-2".to_owned(), sample_percent: 10 }];
    assert_eq!(shadows(&plan(&observed)).shadows.len(), 1);
    observed.object.spec.serving = make::from(json!({ "tls": { "secret": "team-tls" } }));
    assert_eq!(shadows(&plan(&observed)).shadows, []);
}

#[test]
fn a_shadow_answers_nobody_and_accepts_the_copies_of_the_incumbent() {
    let observed = shadow();
    let planned = plan(&observed);
    let arguments = arguments(&planned);
    assert!(arguments.windows(2).any(|pair| pair == ["--shadow", "/etc/codex/shadow.json"]), "{arguments:?}");
    assert!(!arguments.iter().any(|argument| argument == "--mirror"), "{arguments:?}");
    assert_eq!(planned.status.url, None);
    assert_eq!(keys(&planned), ["a".repeat(64)]);
    let ingress = planned.desired.network_policies[0].spec.clone().unwrap().ingress.unwrap();
    let peers = ingress[0].from.as_ref().unwrap();
    let labels = peers[0].pod_selector.clone().unwrap().match_labels.unwrap();
    // The other port has nothing of a request.
    let ports = ingress.iter().map(|rule| json!(rule.ports.as_ref().unwrap()[0].port)).collect::<Vec<_>>();
    assert_eq!((ports, peers.len()), (vec![json!(8000), json!(9464)], 1));
    assert_eq!(labels["codex-ml.dev/reasoning-pod"], "live");
    assert_eq!(labels["app.kubernetes.io/component"], "server");
    // A server that answers clients has no such limit.
    let open = plan(&busy().observed_pod()).desired.network_policies[0].spec.clone().unwrap().ingress.unwrap();
    assert_eq!(open[0].from, None);
}

#[test]
fn keys_outlive_the_controller_and_not_their_pods() {
    let mut observed = shadow();
    observed.object.status = Some(plan(&observed).status);
    let incumbent = observed.incumbent.as_mut().unwrap();
    incumbent.keys.clear();
    assert_eq!(keys(&plan(&observed)), ["a".repeat(64)], "reports are lost, and the pod still exists");
    let incumbent = observed.incumbent.as_mut().unwrap();
    incumbent.keys.insert("i".to_owned(), "c".repeat(64));
    assert_eq!(keys(&plan(&observed)), ["c".repeat(64)], "its container started again");
    let incumbent = observed.incumbent.as_mut().unwrap();
    (incumbent.pods, incumbent.keys) = (["j".to_owned()].into(), [("gone".to_owned(), "d".repeat(64))].into());
    assert!(keys(&plan(&observed)).is_empty(), "the key of a pod that does not exist counts for nothing");
}

#[test]
fn what_cannot_be_shadowed_blocks_with_a_sentence_about_the_field() {
    type Change = fn(&mut ObservedReasoningPod);
    let cases: [(Change, &str, bool); 4] = [
        (
            |observed| observed.incumbent = None,
            "spec.shadow.of is live, and no ReasoningPod of this name exists in this namespace",
            false,
        ),
        (
            |observed| observed.object.spec.shadow.as_mut().unwrap().of = observed.object.name_any(),
            "spec.shadow.of is rc, this ReasoningPod itself",
            true,
        ),
        (
            |observed| observed.incumbent.as_mut().unwrap().shadow_of = Some("older".to_owned()),
            "spec.shadow.of is live, which is itself a shadow of older",
            true,
        ),
        (
            |observed| observed.object.spec.rollout = Some(make::from(json!({}))),
            "spec.shadow excludes spec.autoscaling and spec.rollout",
            true,
        ),
    ];
    for (change, told, stalls) in cases {
        let mut observed = shadow();
        change(&mut observed);
        let planned = plan(&observed);
        let status = &planned.status;
        assert!(status.blocked_by.iter().any(|sentence| sentence.starts_with(told)), "{:?}", status.blocked_by);
        assert_eq!(find(&status.conditions, ConditionType::Stalled).is_some(), stalls, "{told}");
        let parity = find(&status.conditions, ConditionType::ParityHolding).unwrap();
        assert!(parity.status == "Unknown" && parity.message.starts_with(told), "{parity:?}");
        assert_eq!(planned.desired.deployments.len(), 1, "running servers stay");
    }
}

/// A controller upgrade restarts no server, but a server that answers clients must not stay when it is to be a shadow.
#[test]
fn servers_of_another_version_are_replaced_when_they_become_shadows() {
    let mut observed = busy().observed_pod();
    let mut settings = (*make::settings()).clone();
    settings.version = "0.2.0".to_owned();
    settings.worker_image = "codex:next".to_owned();
    observed.settings = settings.into();
    let live = observed.deployment.clone().unwrap().spec.unwrap().template;
    let template = |plan: &Plan<ReasoningPodStatus>| plan.desired.deployments[0].spec.clone().unwrap().template;
    assert_eq!(template(&plan(&observed)), live);
    observed.lent = vec![own_promotion(&observed)];
    observed.object.spec.shadow = shadow().object.spec.shadow;
    observed.incumbent = Some(incumbent());
    let planned = plan(&observed);
    assert_ne!(template(&planned), live);
    assert!(arguments(&planned).iter().any(|argument| argument == "--shadow"));
}

#[test]
fn parity_stays_as_proved_until_the_opposite_is_and_begins_again_with_another_model_or_limit() {
    let mut observed = shadow();
    let parity = |observed: &ObservedReasoningPod| {
        let planned = plan(observed);
        let holds = find(&planned.status.conditions, ConditionType::ParityHolding).unwrap().status.clone();
        (planned.status.shadow.as_ref().unwrap().parity, holds, planned)
    };
    let (proved, holds, _) = parity(&observed);
    assert_eq!((proved, holds.as_str()), (None, "Unknown"));
    for (comparison, expected, holds) in [
        (make::comparison(300, 250, 250), Some(Parity::Lost), "False"),
        (make::comparison(3, 3, 3), Some(Parity::Lost), "False"),
        (make::comparison(200, 200, 190), Some(Parity::Holds), "True"),
        (make::comparison(9, 8, 8), Some(Parity::Holds), "True"),
    ] {
        compare(&mut observed, comparison);
        let (proved, told, planned) = parity(&observed);
        assert_eq!((proved, told.as_str()), (expected, holds), "{:?}", planned.status.shadow);
        observed.object.status = Some(planned.status);
    }
    let mut other_limit = observed.clone();
    other_limit.object.spec.shadow.as_mut().unwrap().max_divergence = "0.01".to_owned();
    assert_eq!(parity(&other_limit).0, None);
    let mut other_model = observed.clone();
    other_model.incumbent.as_mut().unwrap().model = Some(make::model("c").digest);
    let (proved, _, planned) = parity(&other_model);
    assert_eq!((proved, planned.status.shadow.unwrap().compared), (None, 0));
    // Numbers about another model do not count.
    let mut foreign = observed;
    foreign.object.status.as_mut().unwrap().shadow = None;
    compare(&mut foreign, Comparison { model: make::model("c").digest, ..make::comparison(200, 200, 200) });
    assert_eq!(parity(&foreign).0, None);
}

#[test]
fn the_status_says_how_fast_both_answer_and_where_they_differ() {
    let mut observed = shadow();
    compare(&mut observed, make::comparison(40, 39, 38));
    let status = plan(&observed).status.shadow.unwrap();
    assert_eq!((status.compared, status.agreed, status.identical), (40, 39, 38));
    assert_eq!((status.p95_milliseconds, status.of_p95_milliseconds), (Some(500), Some(250)));
    assert_eq!(status.within_target, Some(true));
    let difference = status.first_difference.unwrap();
    assert_eq!((difference.token, difference.log_probability_gap.as_deref()), (3, Some("1.250")));
    assert!(observed.reports.iter().all(|received| received.report.kind == Kind::ReasoningPod));
}

fn value<'a>(arguments: &'a [String], name: &str) -> &'a str {
    let at = arguments.iter().position(|argument| argument == name).unwrap();
    &arguments[at + 1]
}

#[test]
fn a_shadow_runs_on_the_promotion_of_the_ring_before_and_gets_none() {
    let mut observed = unpromoted();
    let told = "has no recorded promotion into 0C_base_ or 0D_base_ in this namespace";
    // Others do not count: of a ring further back, or by a key that is not trusted.
    let mut foreign = lent(Ring::Base0C);
    foreign.promotion.signer = Sha256::of("foreign");
    for (promotions, told) in [
        (vec![], told),
        (vec![lent(Ring::Base0B), lent(Ring::Main)], told),
        (vec![foreign], "signed the promotion of the model"),
    ] {
        observed.lent = promotions;
        let blocked = plan(&observed);
        assert!(blocked.desired.deployments.is_empty() && blocked.effects.is_empty());
        let sentences = &blocked.status.blocked_by;
        assert!(sentences.len() == 1 && sentences[0].contains(told), "{sentences:?}");
    }
    observed.lent = vec![lent(Ring::Base0D), lent(Ring::Base0C)];
    // Neither its own ring's policy nor its evaluations keep a shadow from running, and the conditions still tell.
    observed.evaluations.clear();
    let planned = plan(&observed);
    assert!(planned.effects.is_empty() && planned.status.blocked_by.is_empty(), "{:?}", planned.status.blocked_by);
    let arguments = arguments(&planned);
    assert_eq!(value(&arguments, "--ring"), "0C_base_");
    assert_eq!(value(&arguments, "--promotion-digest"), lent(Ring::Base0C).promotion.digest.to_string());
    assert!(arguments.iter().any(|argument| argument == "--shadow"));
    let promotion = planned.status.promotion.as_ref().unwrap();
    assert_eq!((promotion.ring, promotion.bundle.as_str()), (Ring::Base0C, "promo-0c-base"));
    assert_eq!(planned.status.manifest.as_ref().unwrap().bundle, "oms-0c-base");
    let message = |kind: ConditionType| find(&planned.status.conditions, kind).unwrap().message.clone();
    assert!(message(ConditionType::Signed).ends_with(
        "a shadow is not promoted: it runs on the promotion of the same model into 0C_base_, in ConfigMap promo-0c-base"
    ));
    assert!(
        message(ConditionType::PolicyMet)
            .contains("rule for 0D_base_: the model has no recorded promotion in 0A_base_")
    );
    assert!(message(ConditionType::GatesPassed).contains("does not exist"));
    // Servers that compare stay when the model is promoted into their own ring.
    observed.object.status = Some(planned.status);
    observed.lent.push(LentPromotion { since: make::at(-9), bundle: "earlier".to_owned(), ..lent(Ring::Base0C) });
    assert_eq!(plan(&observed).status.promotion.unwrap().bundle, "promo-0c-base");
}

#[test]
fn a_shadow_in_the_first_ring_is_promoted_as_every_reasoning_pod() {
    let mut observed = unpromoted();
    observed.policies.clear();
    observed.object.spec.rollout_ring = Ring::Base0A;
    observed.run.as_mut().unwrap().spec.rollout_ring = Ring::Base0A;
    let planned = plan(&observed);
    assert!(matches!(&planned.effects[..], [Effect::SignPromotion { .. }]), "{:?}", planned.status.blocked_by);
}

#[test]
fn what_a_shadow_ran_on_promotes_no_server_that_answers() {
    let mut observed = unpromoted();
    observed.lent = vec![lent(Ring::Base0C)];
    let running = plan(&observed);
    observed.deployment = running.desired.deployments.first().cloned();
    observed.object.status = Some(running.status);
    observed.object.spec.shadow = None;
    let blocked = plan(&observed);
    assert!(!blocked.status.blocked_by.is_empty() && blocked.status.url.is_none());
    assert!(arguments(&blocked).iter().any(|argument| argument == "--shadow"), "the servers stay shadows");
    observed.object.status = Some(blocked.status);
    (observed.deployment, observed.tampered) = (None, true);
    let tampered = plan(&observed);
    assert!(tampered.desired.deployments.is_empty(), "nothing is restored that would answer");
    // Once the policy holds, it is promoted and its servers are replaced.
    observed.policies.clear();
    assert!(matches!(&plan(&observed).effects[..], [Effect::SignPromotion { .. }]));
}
