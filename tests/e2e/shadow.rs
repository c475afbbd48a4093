//! Shadows: one with the same model proves parity, one with another model loses it, and the incumbent is not restarted for either.

use std::time::Duration;

use codex_crds::{ConditionType, Evaluation, Parity, ReasoningPod, ReasoningPodStatus, Shadow, child, label};
use codex_tests::{Result, Team, objects, team::condition, wait::until_found};
use codex_verdict::Decimal;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    networking::v1::NetworkPolicy,
};
use kube::ResourceExt as _;

/// The time until the kubelet has updated two mounted ConfigMaps and enough requests were compared.
const COMPARED: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_of_the_same_model_holds_parity_and_one_of_another_model_loses_it() -> Result<()> {
    let team = Team::new("shadow").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "learns", "judged")).await?;
    team.create(&objects::run("untrained", &["training.stop_after=0"])).await?;
    team.create(&any("any", "untrained", &team.problems)).await?;
    team.trained("learns").await?;
    team.trained("untrained").await?;
    team.judged("any").await?;
    team.serving("served").await?;
    let stable = uids(&team, "served").await?;

    // Seven requests without a difference prove that at most half of all differ.
    let shadow = Shadow {
        of: "served".to_owned(),
        sample_percent: 100,
        max_divergence: "0.5".to_owned(),
        min_requests: Some(10),
    };
    for (name, run, evaluation) in [("same", "learns", "judged"), ("other", "untrained", "any")] {
        let mut pod = objects::reasoning_pod(name, run, evaluation);
        pod.spec.shadow = Some(shadow.clone());
        team.create(&pod).await?;
        let served = team.serving(name).await?.status.unwrap();
        assert_eq!(served.url, None, "a shadow answers nobody");
    }
    let mut asked = 0;
    let compared = until_found("both shadows are judged", COMPARED, async || {
        asked += 1;
        team.infer("served", &format!("{}+{}:", asked % 90 + 10, asked * 7 % 90 + 10)).await?;
        let same = team.api::<ReasoningPod>().get("same").await?.status.unwrap_or_default();
        let other = team.api::<ReasoningPod>().get("other").await?.status.unwrap_or_default();
        let judged = parity(&same).0 == "True" && parity(&other).0 == "False";
        Ok(judged.then_some((same, other)))
    })
    .await?;
    let (same, other) = compared;
    let shown = same.shadow.clone().unwrap();
    assert_eq!((shown.of.as_str(), shown.parity), ("served", Some(Parity::Holds)));
    assert!(shown.compared >= 10, "{shown:?}");
    assert_eq!((shown.identical, shown.agreed), (shown.compared, shown.compared), "{shown:?}");
    assert_eq!((shown.first_difference.clone(), shown.of_digest), (None, shown.digest), "{shown:?}");
    assert!(shown.p95_milliseconds.is_some() && shown.within_target.is_some(), "{shown:?}");
    assert_eq!(parity(&same).1, "ParityProved");
    let shown = other.shadow.clone().unwrap();
    assert!(shown.agreed < shown.compared && shown.first_difference.is_some(), "{shown:?}");
    assert_eq!(parity(&other).1, "ParityLost");
    let ready = condition(Some(&other.conditions), ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True", "a shadow without parity runs on");

    // The Service of a shadow has no endpoint for clients, and only the incumbent may reach it.
    assert!(!team.answers("same", "1+1:").await);
    let policy = team.api::<NetworkPolicy>().get(&child::server("same")).await?.spec.unwrap();
    let from = policy.ingress.unwrap()[0].from.clone().unwrap();
    let labels = from[0].pod_selector.clone().unwrap().match_labels.unwrap();
    assert_eq!((from.len(), labels[label::REASONING_POD].as_str()), (1, "served"));

    // The incumbent was not restarted for its shadows, and forgets them when they go.
    assert_eq!(uids(&team, "served").await?, stable);
    for name in ["same", "other"] {
        team.api::<ReasoningPod>().delete(name, &kube::api::DeleteParams::default()).await?;
    }
    until_found("the incumbent has no shadows", COMPARED, async || {
        let files = team.api::<ConfigMap>().get(&child::server("served")).await?.data.unwrap_or_default();
        Ok((files["mirror.json"] == r#"{"shadows":[]}"#).then_some(()))
    })
    .await?;
    assert_eq!(uids(&team, "served").await?, stable);

    // Only a ReasoningPod that answers can be shadowed.
    let mut first = objects::reasoning_pod("first", "learns", "judged");
    first.spec.shadow = Some(shadow.clone());
    team.create(&first).await?;
    let mut second = objects::reasoning_pod("second", "learns", "judged");
    second.spec.shadow = Some(Shadow { of: "first".to_owned(), ..shadow });
    team.create(&second).await?;
    let blocked = team.blocked("second").await?.status.unwrap();
    let told = "spec.shadow.of is first, which is itself a shadow of served";
    assert!(blocked.blocked_by.iter().any(|sentence| sentence.starts_with(told)), "{blocked:?}");
    team.done();
    Ok(())
}

/// Returns the status and the reason of `ParityHolding`.
fn parity(status: &ReasoningPodStatus) -> (&str, &str) {
    let found = condition(Some(&status.conditions), ConditionType::ParityHolding);
    found.map_or(("", ""), |condition| (condition.status.as_str(), condition.reason.as_str()))
}

/// Returns an evaluation that every model passes.
fn any(name: &str, run: &str, problems: &str) -> Evaluation {
    let mut evaluation = objects::evaluation(name, run, problems);
    evaluation.spec.gates[0].min = Some(Decimal("0".to_owned()));
    evaluation
}

/// Returns the uids of the servers of a ReasoningPod.
async fn uids(team: &Team, name: &str) -> Result<Vec<String>> {
    let servers = team.pods(label::REASONING_POD, name).await?;
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    Ok(servers.into_iter().filter(stays).filter_map(|pod| pod.uid()).collect())
}
