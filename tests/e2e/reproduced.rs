//! A run is trained again by another pod, and the same bits are signed as reproduced.

use codex_crds::{ConditionType, Reproduces, TrainingRun};
use codex_provenance::reproduction::Reproduction;
use codex_signing::{key::PublicKey, verify::verify_reproduction};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::until,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{ResourceExt as _, api::DeleteParams};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_trained_again_and_the_same_bits_are_signed() -> Result<()> {
    let team = Team::new("reproduced").await?;
    let steps = ["training.max_steps=40", "training.checkpoint_every=20"];
    let mut again = objects::run("again", &steps);
    again.spec.reproduces = Some(Reproduces { name: "first".to_owned() });
    // It waits for the run that it reproduces.
    team.create(&again).await?;
    until(&team.api::<TrainingRun>(), "again", "it waits", SOON, |run| {
        let ready = condition(run.status.as_ref().map(|status| &*status.conditions), ConditionType::Ready);
        ready.is_some_and(|ready| ready.reason == "NotFound" && ready.message.contains("spec.reproduces.name"))
    })
    .await?;
    team.create(&objects::run("first", &steps)).await?;
    let first = team.trained("first").await?;
    let second = team.trained("again").await?;
    let (one, two) = (first.status.clone().unwrap(), second.status.unwrap());
    let (one, two) = (one.computation.unwrap(), two.computation.unwrap());
    assert_eq!((one.program, &one.engine, &one.kernels), (two.program, &two.engine, &two.kernels));
    let [pod] = &team.pods("codex-ml.dev/training-run", "again").await?[..] else { panic!("one pod") };
    assert_eq!(two.node.as_ref(), pod.spec.as_ref().unwrap().node_name.as_ref());
    let container = &pod.spec.as_ref().unwrap().containers[0];
    assert!(container.args.iter().flatten().any(|arg| *arg == one.program.to_string()), "{:?}", container.args);

    let signed = until(&team.api::<TrainingRun>(), "again", "its verdict is signed", SOON, |run| {
        let signed = condition(run.status.as_ref().map(|status| &*status.conditions), ConditionType::Signed);
        signed.is_some_and(|signed| signed.status == "True")
    })
    .await?;
    let status = signed.status.clone().unwrap();
    let reproduced = condition(Some(&status.conditions), ConditionType::Reproduced).unwrap();
    assert_eq!((&*reproduced.status, &*reproduced.reason), ("True", "Reproduced"), "{}", reproduced.message);
    let model = first.status.as_ref().unwrap().model.as_ref().unwrap().digest;
    assert_eq!(status.model.unwrap().digest, model);
    let bundle = team.api::<ConfigMap>().get(&status.reproduction.unwrap().bundle.unwrap()).await?;
    assert_eq!(bundle.immutable, Some(true));
    let data = bundle.data.unwrap();
    let key = [PublicKey::from_pem(&data["key.pem"]).unwrap()];
    let Reproduction { evidence, .. } =
        verify_reproduction(model, data["bundle.json"].as_bytes(), &key[..]).unwrap().reproduction;
    assert_eq!(
        (Some(&evidence.original.run.uid), Some(&evidence.again.run.uid)),
        (first.uid().as_ref(), signed.uid().as_ref())
    );
    assert_eq!(evidence.original.node, one.node);
    assert_eq!(evidence.computation.kernels, one.kernels);

    // The verdict outlives the run that was reproduced, and its pods.
    team.api::<TrainingRun>().delete("first", &DeleteParams::default()).await?;
    team.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
    let later = team.change::<TrainingRun>("again", serde_json::json!({ "spec": { "retries": 4 } })).await?;
    let generation = later.metadata.generation;
    let kept = until(&team.api::<TrainingRun>(), "again", "the change is seen", SOON, |run| {
        run.status.as_ref().is_some_and(|status| status.observed_generation == generation)
    })
    .await?;
    let conditions = kept.status.unwrap().conditions;
    for kind in [ConditionType::Reproduced, ConditionType::Signed, ConditionType::Ready] {
        assert_eq!(condition(Some(&conditions), kind).unwrap().status, "True", "{}", kind.name());
    }

    // Another seed is no reproduction, and itself none either.
    let mut other = objects::run("other", &steps);
    (other.spec.seed, other.spec.reproduces) = (2, Some(Reproduces { name: "again".to_owned() }));
    team.create(&other).await?;
    until(&team.api::<TrainingRun>(), "other", "its seed is refused", SOON, |run| {
        let ready = condition(run.status.as_ref().map(|status| &*status.conditions), ConditionType::Ready);
        ready.is_some_and(|ready| ready.message.starts_with("spec.seed must equal"))
    })
    .await?;
    let mut own = objects::run("own", &steps);
    own.spec.reproduces = Some(Reproduces { name: "own".to_owned() });
    let refused = team.create(&own).await.unwrap_err().to_string();
    assert!(refused.contains("spec.reproduces.name is the TrainingRun itself"), "{refused}");
    own.spec.reproduces = Some(Reproduces { name: "first".to_owned() });
    own.spec.pod.image = Some("mine:1".to_owned());
    let refused = team.create(&own).await.unwrap_err().to_string();
    assert!(refused.contains("spec.pod.image must be absent with spec.reproduces"), "{refused}");
    let change = serde_json::json!({ "spec": { "reproduces": { "name": "other" } } });
    let refused = team.change::<TrainingRun>("again", change).await.unwrap_err().to_string();
    assert!(refused.contains("spec.reproduces is immutable"), "{refused}");
    team.done();
    Ok(())
}
