//! Promotion policies: a ring has demands that no object can undercut, people sign for exactly one model, and what is denied
//! drains and comes back.

use codex_crds::{ClusterPromotionPolicy, ConditionType, PromotionPolicy, ReasoningPod, TrainingRun, child};
use codex_tests::{
    Result, Team, objects,
    process::{output, output_with},
    team::{SOON, blocking, condition},
    wait::until,
};
use codex_verdict::Ring;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

/// A service account with the role `codex-promoter`.
const PROMOTER: &str = "promoter";
/// A service account with the role `edit`.
const EDITOR: &str = "editor";

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_demands_a_sign_off_for_exactly_this_model_and_the_ring_before() -> Result<()> {
    let team = Team::new("policies").await?;
    grant(&team, PROMOTER, "codex-promoter").await?;
    grant(&team, EDITOR, "edit").await?;
    let promoter = user(&team, PROMOTER);
    let policy: PromotionPolicy = read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "guard" },
        "spec": { "rules": [
            { "ring": "0A_base_", "signOffs": { "count": 1, "by": [promoter], "authenticated": true } },
            { "ring": "0B_base_", "requires": { "ring": "0A_base_" } },
        ] },
    }));
    team.create(&policy).await?;
    team.create(&objects::run("run", &[])).await?;
    team.create(&objects::evaluation("judged", "run", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    team.judged("judged").await?;
    let blocked = reason(&team, "served", ConditionType::PolicyMet, "PolicyUnmet").await?.status.unwrap();
    let told = blocked.blocked_by.join("; ");
    assert!(told.contains("PromotionPolicy guard, rule for 0A_base_: 0 of 1 sign-offs"), "{told}");
    assert!(team.api::<Deployment>().get_opt(&child::server("served")).await?.is_none());

    let report = blocked.report_digest.unwrap();
    let model = team.api::<TrainingRun>().get("run").await?.status.unwrap().model.unwrap().digest;
    let spec = |by: &str| {
        json!({
            "reasoningPod": "served", "by": by, "authenticated": true, "reason": "read the report",
            "modelDigest": model, "reportDigest": report,
        })
    };

    // An editor signs nothing and writes no policy, and a promoter signs only in their own name.
    let why = create(&team, EDITOR, "SignOff", "mine", spec(&user(&team, EDITOR))).await.unwrap_err().to_string();
    assert!(why.to_lowercase().contains("forbidden"), "{why}");
    for account in [EDITOR, PROMOTER] {
        let why = create(&team, account, "PromotionPolicy", "mine", json!({})).await.unwrap_err().to_string();
        assert!(why.to_lowercase().contains("forbidden"), "{why}");
    }
    let why = create(&team, PROMOTER, "SignOff", "mine", spec("ada@example.com")).await.unwrap_err().to_string();
    assert!(why.contains("ValidatingAdmissionPolicy 'codex-sign-offs'") && why.contains("your own name"), "{why}");
    let mut claimed = spec(&promoter);
    claimed["authenticated"] = json!(false);
    let why = create(&team, PROMOTER, "SignOff", "mine", claimed).await.unwrap_err().to_string();
    assert!(why.contains("must be true"), "{why}");
    let mut grouped = spec(&promoter);
    grouped["groups"] = json!(["system:masters"]);
    let why = create(&team, PROMOTER, "SignOff", "mine", grouped).await.unwrap_err().to_string();
    assert!(why.contains("spec.groups"), "{why}");

    // An administrator may bring the sign-off of somebody else, as GitOps does, and it is not authenticated.
    let mut from_git = spec(&promoter);
    from_git["authenticated"] = json!(false);
    let from_git = read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "SignOff", "metadata": { "name": "from-git" }, "spec": from_git,
    }));
    team.create::<codex_crds::SignOff>(&from_git).await?;
    let seen = until(&team.api::<ReasoningPod>(), "served", "it shows the sign-off from Git", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.sign_offs.iter().any(|it| it.name == "from-git"))
    })
    .await?;
    let shown = &seen.status.unwrap().sign_offs[0];
    assert!(shown.counts && !shown.authenticated, "{shown:?}");

    create(&team, PROMOTER, "SignOff", "mine", spec(&promoter)).await?;
    let served = team.serving("served").await?.status.unwrap();
    let shown = served.sign_offs.iter().find(|it| it.name == "mine").unwrap();
    assert!(shown.counts && shown.authenticated && shown.by == promoter, "{shown:?}");
    let promotion = served.promotion.unwrap();
    assert_eq!(promotion.ring, Ring::Base0A);

    // Its spec stays as it was signed.
    let other = json!({ "spec": { "reason": "another one" } });
    let why = team.change::<codex_crds::SignOff>("mine", other).await.unwrap_err().to_string();
    assert!(why.contains("immutable"), "{why}");

    // With another report the sign-off is void, and the servers stay.
    team.create(&objects::evaluation("more", "run", &team.problems)).await?;
    team.judged("more").await?;
    team.change::<ReasoningPod>("served", json!({ "spec": { "evaluations": ["judged", "more"] } })).await?;
    let void = reason(&team, "served", ConditionType::SignedOff, "SignOffVoid").await?.status.unwrap();
    assert!(void.sign_offs.iter().all(|it| !it.counts), "{:?}", void.sign_offs);
    assert_eq!((void.ready_replicas, void.promotion.unwrap().digest), (Some(1), promotion.digest));
    team.change::<ReasoningPod>("served", json!({ "spec": { "evaluations": ["judged"] } })).await?;
    team.serving("served").await?;

    // A model that was never in the ring before does not get into the next one; this one does.
    let mut jumper = objects::run("jumper", &["training.max_steps=650"]);
    jumper.spec.rollout_ring = Ring::Base0B;
    team.create(&jumper).await?;
    team.create(&objects::evaluation("jumped", "jumper", &team.problems)).await?;
    let mut jumping = objects::reasoning_pod("jumping", "jumper", "jumped");
    jumping.spec.rollout_ring = Ring::Base0B;
    team.create(&jumping).await?;
    team.trained("jumper").await?;
    let refused = reason(&team, "jumping", ConditionType::PolicyMet, "PolicyUnmet").await?.status.unwrap();
    let told = refused.blocked_by.join("; ");
    assert!(told.contains("rule for 0B_base_: the model has no recorded promotion in 0A_base_"), "{told}");
    let ahead = json!({ "spec": { "rolloutRing": "0B_base_" } });
    team.change::<ReasoningPod>("served", ahead.clone()).await?;
    team.change::<TrainingRun>("run", ahead).await?;
    until(&team.api::<ReasoningPod>(), "served", "it serves in the next ring", SOON, |pod| {
        let status = pod.status.as_ref();
        let ring = status.and_then(|status| status.promotion.as_ref()).map(|promotion| promotion.ring);
        let ready = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
        ring == Some(Ring::Base0B) && ready.is_some_and(|ready| ready.status == "True")
    })
    .await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_policy_denies_drains_and_comes_back() -> Result<()> {
    let team = Team::new("revoked").await?;
    // No other team trains this model.
    team.create(&objects::run("run", &["training.max_steps=690"])).await?;
    team.create(&objects::evaluation("judged", "run", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    let model = team.serving("served").await?.status.unwrap().manifest.unwrap().digest;

    let policies: Api<ClusterPromotionPolicy> = Api::all(team.client.clone());
    let policy: ClusterPromotionPolicy = read(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ClusterPromotionPolicy", "metadata": { "name": team.namespace },
        "spec": { "denied": { "models": [model] } },
    }));
    policies.create(&PostParams::default(), &policy).await?;
    let revoked = reason(&team, "served", ConditionType::Revoked, "Revoked").await?.status.unwrap();
    let told = revoked.blocked_by.join("; ");
    assert!(told.contains(&format!("ClusterPromotionPolicy {}, denied.models", team.namespace)), "{told}");
    until(&team.api::<Deployment>(), &child::server("served"), "it has no server", SOON, |deployment| {
        deployment.spec.as_ref().is_some_and(|spec| spec.replicas == Some(0))
            && deployment.status.as_ref().is_some_and(|status| status.replicas.unwrap_or(0) == 0)
    })
    .await?;

    policies.delete(&team.namespace, &DeleteParams::default()).await?;
    let back = team.serving("served").await?;
    let lifted = condition(back.status.as_ref().map(|status| &*status.conditions), ConditionType::Revoked).unwrap();
    assert_eq!((lifted.status.as_str(), lifted.reason.as_str()), ("False", "RevocationLifted"));
    let mut kubectl = team.kubectl()?;
    kubectl.args(["get", "events", "--output=jsonpath={.items[*].reason}"]);
    let events = blocking(move || output(&mut kubectl)).await?;
    assert!(events.contains("Revoked") && events.contains("RevocationLifted"), "{events}");
    team.done();
    Ok(())
}

/// Waits until a condition of a ReasoningPod has a reason.
async fn reason(team: &Team, name: &str, kind: ConditionType, reason: &str) -> Result<ReasoningPod> {
    until(&team.api::<ReasoningPod>(), name, &format!("{kind:?} has the reason {reason}"), SOON, |pod| {
        let found = condition(pod.status.as_ref().map(|status| &*status.conditions), kind);
        found.is_some_and(|it| it.reason == reason && it.observed_generation == pod.metadata.generation)
    })
    .await
}

/// The user name of a service account of the team.
fn user(team: &Team, account: &str) -> String {
    format!("system:serviceaccount:{}:{account}", team.namespace)
}

/// Creates a service account with a role in the team's namespace.
async fn grant(team: &Team, account: &str, role: &str) -> Result<()> {
    let holder = format!("--serviceaccount={}:{account}", team.namespace);
    let role = format!("--clusterrole={role}");
    for words in [&["create", "serviceaccount", account][..], &["create", "rolebinding", account, &role, &holder]] {
        let mut kubectl = team.kubectl()?;
        kubectl.args(words);
        blocking(move || output(&mut kubectl)).await?;
    }
    Ok(())
}

/// Creates an object as a service account of the team.
async fn create(team: &Team, account: &str, kind: &str, name: &str, spec: Value) -> Result<String> {
    let object = json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": kind,
        "metadata": { "name": name, "namespace": team.namespace }, "spec": spec,
    });
    let mut kubectl = team.kubectl()?;
    kubectl.arg(format!("--as={}", user(team, account))).args(["create", "--filename=-"]);
    blocking(move || output_with(&mut kubectl, &object.to_string())).await
}

fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
