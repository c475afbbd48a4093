//! Regular redeployment: a cycle trains, evaluates, signs and serves a model by itself, one that fails changes nothing, and one goes all the
//! way: its shadow proves the parity that a policy demands, and a canary tries it.

use std::time::Duration;

use codex_crds::{
    ConditionType, CyclePhase, Evaluation, Parity, PromotionPolicy, ReasoningPod, RolloutRecord, RolloutResult,
    TrainingRun, label,
};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::{until, until_found, until_gone},
};
use codex_verdict::{Decimal, Ring};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::json;

/// The time until a minute begins, and its cycle has trained, evaluated and rolled out a tiny model.
const CYCLE: Duration = Duration::from_secs(360);
/// The same, and until the kubelet has updated two mounted ConfigMaps, enough requests were compared and a canary has passed.
const COMPARED: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_is_served_without_anybody_and_a_failed_one_leaves_it_served() -> Result<()> {
    let team = Team::new("flywheel").await?;
    let mut run = objects::run("any", &[]).spec;
    let mut evaluation = objects::evaluation("any", "any", &team.problems).spec;
    evaluation.training_run = None;
    let mut pod = objects::reasoning_pod("weekly", "any", "any");
    // It names nothing to serve: what it serves is trained by its first cycle.
    (pod.spec.training_run, pod.spec.evaluations) = (String::new(), Vec::new());
    (pod.spec.rollout_ring, run.rollout_ring) = (Ring::Base0B, Ring::Base0B);
    let redeploy = json!({
        "schedule": { "cron": "* * * * *" },
        "template": { "trainingRun": run, "evaluations": [{ "name": "judged", "spec": evaluation }] },
        "failedHistoryLimit": 0,
    });
    pod.spec.redeploy = Some(serde_json::from_value(redeploy).unwrap());
    team.create(&pod).await?;

    let pods = team.api::<ReasoningPod>();
    let served = until(&pods, "weekly", "its first cycle is served", CYCLE, |pod| {
        let status = pod.status.as_ref();
        status.is_some_and(|status| status.redeploy.as_ref().is_some_and(|redeploy| redeploy.promoted >= 1))
    })
    .await?;
    // No further one starts while this one is looked at.
    team.change::<ReasoningPod>("weekly", json!({ "spec": { "redeploy": { "schedule": { "suspend": true } } } }))
        .await?;
    let status = served.status.unwrap();
    let (current, redeploy) = (status.current.unwrap(), status.redeploy.unwrap());
    let record = redeploy.history.iter().find(|record| record.result == CyclePhase::Serving).unwrap();
    assert_eq!(redeploy.manual_overrides, 0, "no person was needed");
    assert_eq!(current.training_run, record.training_run);
    assert_eq!(current.evaluations, [format!("{}-judged", current.training_run)]);
    let trained = team.api::<TrainingRun>().get(&current.training_run).await?;
    let model = trained.status.and_then(|status| status.model).unwrap();
    assert_eq!(status.manifest.map(|manifest| manifest.digest), Some(model.digest));
    assert_eq!(record.digest, Some(model.digest));
    let answer = team.infer("weekly", "1+1:").await?;
    assert!(answer.to_string().contains(&model.digest.to_string()), "{answer}");
    let object = pods.get("weekly").await?;
    assert!(object.spec.training_run.is_empty(), "the controller writes no spec");

    let settled = until(&pods, "weekly", "no cycle is at work", CYCLE, |pod| {
        let redeploy = pod.status.as_ref().and_then(|status| status.redeploy.as_ref());
        redeploy.is_some_and(|redeploy| redeploy.cycle.is_none() && redeploy.next_schedule_time.is_none())
    })
    .await?;
    // The model of the next cycle answers copies of requests, as a policy demands, and then some requests, before it is served.
    let promoted = settled.status.and_then(|status| status.redeploy).unwrap().promoted;
    let demand = json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "compared" },
        "spec": { "rules": [{ "ring": Ring::Base0B, "parity": { "minRequests": 10 } }] },
    });
    team.create::<PromotionPolicy>(&serde_json::from_value(demand).unwrap()).await?;
    let shadow = json!({ "samplePercent": 100, "maxDivergence": "0.5", "minRequests": 10 });
    let rollout = json!({ "steps": [100], "analysis": { "intervalSeconds": 1, "minRequests": 5 } });
    let schedule = |suspend: bool| {
        let redeploy = json!({ "schedule": { "suspend": suspend }, "shadow": shadow });
        json!({ "spec": { "redeploy": redeploy, "rollout": rollout } })
    };
    team.change::<ReasoningPod>("weekly", schedule(false)).await?;
    let shadowing = until(&pods, "weekly", "a cycle is compared", CYCLE, |pod| {
        let redeploy = pod.status.as_ref().and_then(|status| status.redeploy.as_ref());
        redeploy.is_some_and(|redeploy| redeploy.phase == Some(CyclePhase::Shadowing))
    })
    .await?;
    team.change::<ReasoningPod>("weekly", schedule(true)).await?;
    let name = shadowing.status.unwrap().redeploy.unwrap().cycle.unwrap().training_run;
    let (mut asked, mut seen) = (0, None);
    let settled = until_found("the model that was compared is served", COMPARED, async || {
        asked += 1;
        team.infer("weekly", &format!("{}+{}:", asked % 90 + 10, asked * 7 % 90 + 10)).await?;
        seen = pods.get_opt(&name).await?.or(seen.take());
        let pod = pods.get("weekly").await?;
        let redeploy = pod.status.as_ref().and_then(|status| status.redeploy.as_ref());
        let served = redeploy.is_some_and(|redeploy| redeploy.promoted > promoted && redeploy.cycle.is_none());
        Ok(served.then_some(pod))
    })
    .await?;
    let shadow = seen.unwrap();
    assert_eq!(shadow.owner_references()[0].name, "weekly");
    let compared = shadow.status.unwrap().shadow.unwrap();
    assert_eq!((compared.parity, compared.of.as_str()), (Some(Parity::Holds), "weekly"));
    until_gone(&pods, &name, SOON).await?;
    let status = settled.status.as_ref().unwrap();
    assert_eq!(status.current.as_ref().unwrap().training_run, name);
    assert_eq!(status.redeploy.as_ref().unwrap().manual_overrides, 0);
    let policy = condition(Some(&status.conditions), ConditionType::PolicyMet).unwrap();
    assert_eq!((policy.status.as_str(), policy.reason.as_str()), ("True", "PoliciesMet"), "{}", policy.message);
    let [canary, former @ ..] = &status.history[..] else { panic!("no canary: {status:?}") };
    // Both cycles train the same bytes, so what the shadow proves also promotes the model of the former one. It gives way at once.
    let gave_way = |former: &RolloutRecord| {
        former.result == RolloutResult::Superseded
            && former.digest == canary.digest
            && former.ended.0 <= canary.started.0
    };
    assert!(former.len() <= 1 && former.iter().all(gave_way), "{:?}", status.history);
    assert_eq!((canary.result, Some(canary.digest)), (RolloutResult::Promoted, compared.digest), "{canary:?}");
    let owned = team.api::<ConfigMap>().list(&kube::api::ListParams::default()).await?.items.into_iter().filter(|it| {
        it.name_any().starts_with("codex-promo-") && it.owner_references().iter().any(|owner| owner.name == name)
    });
    let mut rings: Vec<_> = owned.map(|it| it.labels()[label::RING].clone()).collect();
    rings.sort();
    assert_eq!(rings, ["0A_base", "0B_base"], "the shadow ran on a promotion into the ring before");

    // A cycle whose model does not pass ends, its objects are deleted, and the former model is served.
    let before = settled.status.unwrap();
    let mut strict = settled.spec.redeploy.unwrap();
    strict.template.evaluations[0].spec.gates[0].min = Some(Decimal("0.9999".to_owned()));
    strict.schedule.suspend = false;
    team.change::<ReasoningPod>("weekly", json!({ "spec": { "redeploy": strict } })).await?;
    let failed = until(&pods, "weekly", "a cycle failed", CYCLE, |pod| {
        let redeploy = pod.status.as_ref().and_then(|status| status.redeploy.as_ref());
        let latest = redeploy.and_then(|redeploy| redeploy.history.first());
        latest.is_some_and(|latest| latest.result == CyclePhase::Failed)
    })
    .await?;
    team.change::<ReasoningPod>("weekly", json!({ "spec": { "redeploy": { "schedule": { "suspend": true } } } }))
        .await?;
    let status = failed.status.unwrap();
    assert_eq!(status.current, before.current);
    assert_eq!(status.manifest, before.manifest);
    let late = condition(Some(&status.conditions), ConditionType::RedeploysOnTime).unwrap();
    assert_eq!((late.status.as_str(), late.reason.as_str()), ("False", "CycleFailed"));
    let ready = condition(Some(&status.conditions), ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True", "{}", ready.message);
    let redeploy = status.redeploy.unwrap();
    let gone = &redeploy.history[0].training_run;
    assert!(redeploy.history[0].reason.contains("trace_coverage"), "{:?}", redeploy.history[0]);
    until_gone(&team.api::<TrainingRun>(), gone, SOON).await?;
    until_gone(&team.api::<Evaluation>(), &format!("{gone}-judged"), SOON).await?;
    let kept = team.api::<TrainingRun>().get(&status.current.unwrap().training_run).await?;
    assert_eq!(kept.owner_references()[0].name, "weekly");
    team.infer("weekly", "1+1:").await?;
    team.done();
    Ok(())
}
