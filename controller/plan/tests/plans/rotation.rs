//! Rotation of the signing key: what is signed again, and which servers are replaced.

use std::{collections::BTreeSet, sync::Arc};

use codex_crds::{ConditionType, Reason};
use codex_plan::{
    Effect, Obstruction, Plan, StatusSeal,
    conditions::find,
    reasoning_pod::{
        self, Bundle, ObservedReasoningPod, RecordedPromotion, SignedModel, SignedPromotion, Signer, TrustedKey,
        TrustedRoot,
    },
};
use codex_provenance::{Identity, PromotionDigest, Sha256, Validity, oms};
use codex_verdict::{
    Ring,
    policy::{Denied, Lineage, Policy, PolicyKind, PolicyRule, PolicySpec, RequiredSigners, SignerIdentity},
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodSpec};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    make,
    policies::{denying, policy, requiring, serving},
    properties::ready_to_sign,
};

type Planned = Plan<codex_crds::ReasoningPodStatus>;

/// The key that signed everything so far.
fn former() -> Sha256 {
    Sha256::of("key")
}

fn next() -> Sha256 {
    Sha256::of("next")
}

fn key(fingerprint: Sha256, not_before: Option<i64>, not_after: Option<i64>) -> TrustedKey {
    let validity = Validity { not_before: not_before.map(make::at), not_after: not_after.map(make::at) };
    TrustedKey { fingerprint, validity, identity: None }
}

/// Lists keys, and puts the one with this fingerprint into the Secret.
fn rotate(observed: &mut ObservedReasoningPod, trusted: Vec<TrustedKey>, fingerprint: Sha256) {
    observed.trusted = trusted;
    observed.signer = Signer::Available { fingerprint };
}

fn plan(observed: &ObservedReasoningPod) -> Planned {
    plan_at(observed, 9)
}

fn plan_at(observed: &ObservedReasoningPod, second: i64) -> Planned {
    reasoning_pod::plan(observed, make::at(second))
}

/// Signs what a plan wants signed, with the key in the Secret, and returns the name of the ConfigMap.
fn sign(observed: &mut ObservedReasoningPod, plan: &Planned) -> String {
    let Signer::Available { fingerprint: signer } = observed.signer else { panic!("nothing can sign") };
    match &plan.effects[..] {
        [Effect::SignModel { config_map, manifest, name }] => {
            // The statement does not depend on the key.
            let payload = match observed.oms {
                Bundle::Valid(signed) => signed.payload,
                _ => oms::payload_digest(&oms::payload(manifest, name)),
            };
            let signed = Bundle::Valid(SignedModel { payload, signer });
            let name = config_map.name_any();
            if name == "codex-oms-run-1" {
                observed.oms = signed;
            } else {
                observed.oms_again.insert(signer, signed);
            }
            name
        }
        [Effect::SignPromotion { config_map, promotion, .. }] => {
            let (digest, key) = (promotion.digest(), promotion.key().digest());
            let signed = Bundle::Valid(SignedPromotion { digest, key, signer });
            if matches!(observed.promotion, Bundle::Absent) {
                observed.promotion = signed;
            } else {
                observed.promotion_again.insert(signer, signed);
            }
            config_map.name_any()
        }
        effects => panic!("one thing is signed at a time: {effects:?}"),
    }
}

fn template(deployment: &Deployment) -> PodSpec {
    deployment.spec.clone().unwrap().template.spec.unwrap()
}

fn values(template: &PodSpec, flag: &str) -> Vec<String> {
    let arguments = template.containers[0].args.clone().unwrap();
    arguments.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].clone()).collect()
}

fn fingerprints(template: &PodSpec) -> Vec<String> {
    values(template, "--key-fingerprint")
}

fn replicas(plan: &Planned) -> Option<i32> {
    plan.desired.deployments.first()?.spec.as_ref()?.replicas
}

fn reason(plan: &Planned, kind: ConditionType) -> Option<String> {
    find(&plan.status.conditions, kind).map(|condition| condition.reason.clone())
}

#[test]
fn a_rotation_signs_nothing_again_and_restarts_no_server() {
    let mut observed = serving();
    let before = template(observed.deployment.as_ref().unwrap());
    rotate(&mut observed, vec![key(former(), None, Some(1_000_000_000)), key(next(), None, None)], next());
    let plan = plan(&observed);
    assert!(plan.effects.is_empty() && plan.status.blocked_by.is_empty(), "{plan:?}");
    assert_eq!(template(&plan.desired.deployments[0]), before);
    assert_eq!(plan.status.manifest.unwrap().signer, former().short());
    assert_eq!(fingerprints(&before), [former().to_string()]);
}

#[test]
fn what_is_promoted_after_a_rotation_is_served_with_both_keys() {
    let mut observed = ready_to_sign("run-1");
    rotate(&mut observed, vec![key(former(), None, None), key(next(), None, None)], next());
    let signing = plan(&observed);
    assert!(matches!(&signing.effects[..], [Effect::SignPromotion { .. }]), "the model is signed already");
    sign(&mut observed, &signing);
    let rolled = plan(&observed);
    let servers = template(&rolled.desired.deployments[0]);
    assert_eq!(fingerprints(&servers), [former().to_string(), next().to_string()]);
    assert_eq!(values(&servers, "--public-key"), ["/bundles/oms/key.pem", "/bundles/promotion/key.pem"]);
    let status = rolled.status;
    assert_eq!(status.manifest.unwrap().signer, former().short());
    assert_eq!(status.promotion.unwrap().signer, Some(next().short()));
}

#[test]
fn what_an_expired_key_signed_is_signed_again_and_rolled() {
    let mut observed = serving();
    let before = template(observed.deployment.as_ref().unwrap());
    rotate(&mut observed, vec![key(former(), None, Some(9)), key(next(), None, None)], next());
    let still = plan_at(&observed, 8);
    assert!(still.effects.is_empty());
    assert_eq!(still.requeue.map(|after| after.as_secs()), Some(1), "it is planned again when the key expires");
    let told = find(&still.status.conditions, ConditionType::KeyExpires).unwrap();
    assert!(told.message.contains(&former().short()) && told.message.contains("signed again"), "{}", told.message);

    let first = plan(&observed);
    assert_eq!(
        (template(&first.desired.deployments[0]), replicas(&first)),
        (before, Some(2)),
        "servers stay meanwhile"
    );
    let model = sign(&mut observed, &first);
    assert_eq!(model, format!("codex-oms-run-1-{}", next().short()));
    let second = plan(&observed);
    let promotion = sign(&mut observed, &second);
    assert!(
        promotion.starts_with("codex-promo-") && promotion.ends_with(&format!("-{}", next().short())),
        "{promotion}"
    );
    // Another version of the controller made the servers: they are replaced nevertheless.
    std::sync::Arc::make_mut(&mut observed.settings).version = "later".to_owned();
    let rolled = plan(&observed);
    assert!(rolled.effects.is_empty() && rolled.status.blocked_by.is_empty(), "{rolled:?}");
    let servers = template(&rolled.desired.deployments[0]);
    assert_eq!((fingerprints(&servers), replicas(&rolled)), (vec![next().to_string()], Some(2)));
    let mounted: BTreeSet<_> =
        servers.volumes.iter().flatten().filter_map(|volume| Some(volume.config_map.as_ref()?.name.clone())).collect();
    assert!(mounted.contains(&model) && mounted.contains(&promotion), "{mounted:?}");
    let manifest = rolled.status.manifest.clone().unwrap();
    assert_eq!((manifest.signer, manifest.bundle), (next().short(), model));
    // The servers of the former key are no servers of this rollout, whatever they verified.
    assert_eq!(reason(&rolled, ConditionType::Ready).as_deref(), Some("RollingOut"));
    assert_eq!(reason(&rolled, ConditionType::KeyExpires), None);

    // Another rotation finds what the second key signed again.
    observed.deployment = Some(rolled.desired.deployments[0].clone());
    observed.object.status = Some(rolled.status);
    let third = Sha256::of("third");
    rotate(&mut observed, vec![key(next(), None, None), key(third, None, None)], third);
    observed.oms = Bundle::Foreign("signed by another key".to_owned());
    observed.promotion = Bundle::Foreign("signed by another key".to_owned());
    let rested = plan(&observed);
    assert!(rested.effects.is_empty() && rested.status.blocked_by.is_empty(), "{rested:?}");
    assert_eq!(fingerprints(&template(&rested.desired.deployments[0])), [next().to_string()]);
}

#[test]
fn servers_of_a_revoked_key_drain_and_come_back_signed_again() {
    let mut observed = serving();
    observed.policies = denying(Denied { keys: vec![former()], ..Denied::default() });
    rotate(&mut observed, vec![key(former(), None, None), key(next(), None, None)], next());
    let drained = plan(&observed);
    assert_eq!((replicas(&drained), drained.effects.len()), (Some(0), 0));
    assert_eq!(reason(&drained, ConditionType::Revoked).as_deref(), Some("Revoked"));
    assert_eq!(reason(&drained, ConditionType::Signed).as_deref(), Some("KeyNotTrusted"));
    let mut live = drained.desired.deployments[0].clone();
    live.status = make::from(json!({"replicas": 0}));
    observed.deployment = Some(live);
    observed.pods.clear();
    observed.object.status = Some(drained.status);
    for _ in 0..2 {
        let signing = plan(&observed);
        assert_eq!(replicas(&signing), Some(0), "nothing serves before it is signed again");
        sign(&mut observed, &signing);
    }
    let back = plan(&observed);
    assert_eq!(replicas(&back), Some(2));
    assert_eq!(fingerprints(&template(&back.desired.deployments[0])), [next().to_string()]);
    // The recorded promotion of the revoked key has the same digest, and drains nothing any more.
    let promotion = back.status.promotion.clone().unwrap().digest;
    let model = back.status.manifest.clone().unwrap().digest;
    let lineage = Lineage { model: Some(model), key: Some(former().to_string()), ..Lineage::default() };
    observed.promotions = vec![RecordedPromotion {
        digest: promotion,
        ring: Ring::Base0D,
        since: make::at(0),
        lineage,
        parity: Vec::new(),
        run: String::new(),
        sign_offs: BTreeSet::new(),
    }];
    observed.deployment = Some(back.desired.deployments[0].clone());
    observed.object.status = Some(back.status);
    let after = plan(&observed);
    assert_eq!(
        (replicas(&after), reason(&after, ConditionType::Revoked).as_deref()),
        (Some(2), Some("RevocationLifted"))
    );
}

#[test]
fn what_a_removed_key_signed_is_signed_again_only_if_the_status_proves_it() {
    let mut removed = serving();
    let foreign = "was signed with another key".to_owned();
    (removed.oms, removed.promotion) = (Bundle::Foreign(foreign.clone()), Bundle::Foreign(foreign));
    rotate(&mut removed, vec![key(next(), None, None)], next());
    assert!(matches!(&plan(&removed).effects[..], [Effect::SignModel { .. }]));
    // While the key in the status is listed, a bundle with another signer was not written by the controller, and blocks.
    let mut tampered = removed.clone();
    tampered.trusted.push(key(former(), None, None));
    let mut forged = removed.clone();
    forged.seal = StatusSeal::Broken;
    let mut unknown = removed;
    unknown.object.status = None;
    let stalls = |observed: &ObservedReasoningPod| {
        let plan = plan(observed);
        assert!(plan.effects.is_empty());
        assert!(
            plan.status.blocked_by.iter().any(|it| it.contains("cannot be used: was signed with another key")),
            "{:?}",
            plan.status.blocked_by
        );
    };
    stalls(&tampered);
    stalls(&forged);
    stalls(&unknown);
}

#[test]
fn a_signing_key_that_does_not_count_now_signs_nothing() {
    let mut observed = ready_to_sign("run-1");
    rotate(&mut observed, vec![key(former(), None, Some(9))], former());
    assert_eq!(plan_at(&observed, 8).effects.len(), 1);
    let expired = plan(&observed);
    assert!(expired.effects.is_empty());
    let told = format!("nothing can be signed: the signing key {} expired at", former().short());
    assert!(expired.status.blocked_by.iter().any(|it| it.starts_with(&told)), "{:?}", expired.status.blocked_by);
    assert_eq!(reason(&expired, ConditionType::Stalled).as_deref(), Some(Reason::SignerUnavailable.name()));

    rotate(&mut observed, vec![key(former(), None, None), key(next(), Some(20), None)], next());
    let early = plan(&observed);
    assert!(early.effects.is_empty());
    assert_eq!(early.requeue.map(|after| after.as_secs()), Some(11));
    assert_eq!(reason(&early, ConditionType::Reconciling).as_deref(), Some(Reason::SignerUnavailable.name()));
    assert_eq!(reason(&early, ConditionType::Stalled), None, "it begins to count by itself");
    assert_eq!(plan_at(&observed, 20).effects.len(), 1);
}

#[test]
fn what_a_key_promoted_while_it_counted_remains_promoted() {
    let mut observed = ready_to_sign("run-1");
    let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
    observed.policies = vec![policy(PolicyKind::ClusterPromotionPolicy, requiring(Ring::Base0C))];
    rotate(&mut observed, vec![key(former(), None, Some(0)), key(next(), None, None)], next());
    let promoted = |since: Timestamp, key: Sha256| RecordedPromotion {
        digest: PromotionDigest(Sha256::of("promotion")),
        ring: Ring::Base0C,
        since,
        lineage: Lineage { model: Some(model), key: Some(key.to_string()), ..Lineage::default() },
        parity: Vec::new(),
        run: String::new(),
        sign_offs: BTreeSet::new(),
    };
    for (since, by, counts) in [
        (-100, former(), true),
        // Whoever has an expired key can still sign, but not in the past.
        (5, former(), false),
        (5, next(), true),
        (5, Sha256::of("foreign"), false),
    ] {
        observed.promotions = vec![promoted(make::at(since), by)];
        assert_eq!(!plan(&observed).effects.is_empty(), counts, "{since}");
    }
    observed.promotions = vec![promoted(make::at(-100), former())];
    let denied = denying(Denied { keys: vec![former()], ..Denied::default() });
    observed.policies.extend(denied);
    assert!(plan(&observed).effects.is_empty(), "what a revoked key signed never counts");
}

fn identity() -> Identity {
    Identity {
        issuer: "https://kubernetes.default.svc".to_owned(),
        subject: "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller".to_owned(),
    }
}

fn trusted_identity() -> TrustedKey {
    let fingerprint = identity().fingerprint();
    TrustedKey { fingerprint, validity: Validity::default(), identity: Some(identity()) }
}

fn root(text: &str) -> Arc<TrustedRoot> {
    Arc::new(TrustedRoot { digest: Sha256::of(text), text: text.to_owned(), ends: None })
}

/// A pod whose model a key signed and whose promotion an identity signs.
pub(crate) fn signed_by_an_identity() -> ObservedReasoningPod {
    let mut observed = ready_to_sign("run-1");
    rotate(&mut observed, vec![key(former(), None, None), trusted_identity()], identity().fingerprint());
    observed.trusted_root = Some(root("one"));
    let signing = plan(&observed);
    sign(&mut observed, &signing);
    observed
}

#[test]
fn servers_get_the_identity_that_signed_and_the_root_that_verifies_it() {
    let observed = signed_by_an_identity();
    let rolled = plan(&observed);
    let servers = template(&rolled.desired.deployments[0]);
    assert_eq!(values(&servers, "--public-key"), ["/bundles/oms/key.pem"], "the key signed the model alone");
    assert_eq!(fingerprints(&servers), [former().to_string(), identity().fingerprint().to_string()]);
    assert_eq!(values(&servers, "--certificate-identity"), [identity().subject]);
    assert_eq!(values(&servers, "--certificate-oidc-issuer"), [identity().issuer]);
    assert_eq!(values(&servers, "--trusted-root"), ["/sigstore/trusted_root.json"]);
    assert_eq!(values(&servers, "--trusted-root-digest"), [Sha256::of("one").to_string()]);
    let name = format!("codex-r-{}-{}", observed.object.name_any(), Sha256::of("one").short());
    let found = rolled.desired.config_maps.iter().find(|it| it.name_any() == name).unwrap();
    assert_eq!((found.immutable, found.data.as_ref().unwrap()["trusted_root.json"].as_str()), (Some(true), "one"));
    let volumes = servers.volumes.unwrap_or_default();
    assert!(volumes.iter().any(|volume| volume.config_map.as_ref().is_some_and(|it| it.name == name)));
    let signed = find(&rolled.status.conditions, ConditionType::Signed).unwrap();
    assert!(signed.message.contains(&identity().subject), "{}", signed.message);
}

#[test]
fn another_root_replaces_servers_and_keeps_the_root_of_those_that_stay() {
    let mut observed = signed_by_an_identity();
    observed.deployment = plan(&observed).desired.deployments.pop();
    observed.trusted_root = Some(root("two"));
    let rolled = plan(&observed);
    assert_eq!(
        values(&template(&rolled.desired.deployments[0]), "--trusted-root-digest"),
        [Sha256::of("two").to_string()]
    );
    // Something blocks the rollout: the servers stay, and so does what they mount.
    observed.run.as_mut().unwrap().spec.rollout_ring = Ring::Base0A;
    let held = plan(&observed);
    let stays = template(&held.desired.deployments[0]);
    assert_eq!(values(&stays, "--trusted-root-digest"), [Sha256::of("one").to_string()]);
    let name = format!("codex-r-{}-{}", observed.object.name_any(), Sha256::of("one").short());
    assert!(held.desired.kept.iter().any(|kept| kept.name == name), "{:?}", held.desired.kept);
}

#[test]
fn a_root_that_ends_is_told_thirty_days_before_where_an_identity_signs() {
    const DAY: i64 = 24 * 60 * 60;
    let mut observed = signed_by_an_identity();
    let ends = |day: i64| Some(Arc::new(TrustedRoot { ends: Some(make::at(day * DAY)), ..(*root("one")).clone() }));
    let told = |observed: &ObservedReasoningPod, second| {
        let found = plan_at(observed, second).status.conditions;
        find(&found, ConditionType::KeyExpires).map(|condition| condition.message.clone())
    };
    observed.trusted_root = ends(31);
    assert_eq!(told(&observed, DAY - 1), None);
    let again = plan_at(&observed, DAY - 1).requeue.map(|after| after.as_secs());
    assert!(again.is_some_and(|after| after <= 1), "it is planned again when thirty days are left: {again:?}");
    for (second, verb) in [(DAY, "ends at"), (31 * DAY, "ended at")] {
        let message = told(&observed, second).unwrap();
        assert!(message.contains("codex-sigstore") && message.contains(verb), "{message}");
    }
    // Where a key signs, nothing depends on the root but what identities signed before, which stays valid.
    rotate(&mut observed, vec![key(former(), None, None), trusted_identity()], former());
    assert_eq!(told(&observed, DAY), None);
}

#[test]
fn a_key_gives_servers_no_root() {
    let mut observed = ready_to_sign("run-1");
    observed.trusted_root = Some(root("one"));
    let signing = plan(&observed);
    sign(&mut observed, &signing);
    let rolled = plan(&observed);
    assert!(values(&template(&rolled.desired.deployments[0]), "--trusted-root").is_empty());
    assert_eq!(rolled.desired.config_maps.len(), 1);
}

#[test]
fn a_service_that_is_away_is_named_while_it_is_asked_again() {
    let mut observed = ready_to_sign("run-1");
    rotate(&mut observed, vec![key(former(), None, None), trusted_identity()], identity().fingerprint());
    let message = "Rekor at https://rekor does not answer: refused; it is asked again";
    let generation = observed.object.metadata.generation;
    let reason = Reason::SignerUnavailable;
    observed.obstruction = Some(Obstruction { reason, message: message.to_owned(), generation, waits: true });
    let told = plan(&observed);
    assert!(matches!(&told.effects[..], [Effect::SignPromotion { .. }]), "it is tried again");
    for (kind, status) in
        [(ConditionType::Ready, "False"), (ConditionType::Reconciling, "True"), (ConditionType::Signed, "False")]
    {
        let condition = find(&told.status.conditions, kind).unwrap();
        assert_eq!((condition.status.as_str(), condition.message.as_str()), (status, message), "{kind:?}");
    }
    assert!(find(&told.status.conditions, ConditionType::Stalled).is_none());
}

#[test]
fn a_policy_names_who_may_sign() {
    let mut observed = ready_to_sign("run-1");
    rotate(&mut observed, vec![key(former(), None, None), trusted_identity()], identity().fingerprint());
    let ring = observed.object.spec.rollout_ring;
    let named = |subject: &str| {
        let identities = vec![SignerIdentity { issuer: identity().issuer, subject: subject.to_owned() }];
        let signers = Some(RequiredSigners { keys: vec![former()], identities });
        let rule = PolicyRule {
            ring,
            required_evaluations: Vec::new(),
            requires: None,
            minimum_time_in_ring: None,
            sign_offs: None,
            parity: None,
            signers,
            attestations: Vec::new(),
        };
        Policy {
            kind: PolicyKind::PromotionPolicy,
            name: "signers".to_owned(),
            uid: "u".to_owned(),
            spec: PolicySpec { rules: vec![rule], denied: Denied::default() },
        }
    };
    observed.policies = vec![named("https://kubernetes.io/namespaces/*/serviceaccounts/codex-controller")];
    assert!(matches!(&plan(&observed).effects[..], [Effect::SignPromotion { .. }]));
    observed.policies = vec![named("https://kubernetes.io/namespaces/other/serviceaccounts/*")];
    let barred = plan(&observed);
    assert!(barred.effects.is_empty());
    assert!(
        barred.status.blocked_by.iter().any(|why| why.contains("is not among the signers")),
        "{:?}",
        barred.status.blocked_by
    );
}
