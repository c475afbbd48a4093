//! A run is deleted while its model is served, and created again, as a commit that is reverted does: it trains nothing, and the bytes of
//! the former run are served again.

use codex_crds::{ConditionType, Evaluation, ReasoningPod, ReasoningPodPhase, TrainingRun};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, blocking, condition},
    wait::{until, until_gone},
};
use codex_verdict::Decimal;
use kube::{ResourceExt as _, api::DeleteParams};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_created_again_adopts_the_model_that_was_promoted() -> Result<()> {
    let team = Team::new("adopted").await?;
    let image = blocking({
        let installation = team.installation;
        move || installation.pinned_worker_image()
    })
    .await?;
    let run = |seed| {
        let mut run = objects::run("sums", &["training.max_steps=20", "training.checkpoint_every=10"]);
        (run.spec.seed, run.spec.pod.image) = (seed, Some(image.clone()));
        run
    };
    let evaluation = || {
        let mut easy = objects::evaluation("sums", "sums", &team.problems);
        easy.spec.gates[0].min = Some(Decimal("0".to_owned()));
        easy.spec.gates[0].confidence = None;
        easy
    };
    let former = team.create(&run(1)).await?;
    team.create(&evaluation()).await?;
    team.create(&objects::reasoning_pod("sums", "sums", "sums")).await?;
    let served = team.serving("sums").await?.status.unwrap().manifest.unwrap().digest;
    let trained = team.trained("sums").await?.status.unwrap();
    assert!(trained.steps_executed.is_some_and(|steps| steps >= 20) && trained.adoption.is_none());

    let removed = async |team: &Team| {
        team.api::<TrainingRun>().delete("sums", &DeleteParams::background()).await?;
        until_gone(&team.api::<TrainingRun>(), "sums", SOON).await
    };
    removed(&team).await?;
    let again = team.create(&run(1)).await?;
    let adopted = team.trained("sums").await?.status.unwrap();
    let adoption = adopted.adoption.clone().unwrap();
    assert_eq!(adoption.refused, None);
    assert_eq!((Some(&adoption.uid), adoption.model), (former.uid().as_ref(), served));
    assert_ne!(former.uid(), again.uid());
    assert_eq!(adopted.model.unwrap().digest, served);
    assert_eq!(adopted.steps_executed.unwrap_or(0), 0, "nothing was trained");
    let said = condition(Some(&adopted.conditions), ConditionType::Trained).unwrap();
    assert_eq!((&*said.status, &*said.reason), ("True", "Adopted"), "{}", said.message);

    // The former Evaluation judged another object. A new one judges the adopted bytes, and the servers are promoted with it.
    team.api::<Evaluation>().delete("sums", &DeleteParams::background()).await?;
    until_gone(&team.api::<Evaluation>(), "sums", SOON).await?;
    team.create(&evaluation()).await?;
    let uid = again.uid();
    let serving = until(&team.api::<ReasoningPod>(), "sums", "the adopted model is served", SOON, |pod| {
        let status = pod.status.as_ref();
        status.is_some_and(|it| it.phase == Some(ReasoningPodPhase::Serving) && it.training_run_uid == uid)
    })
    .await?;
    assert_eq!(serving.status.unwrap().verified.unwrap().digest, served);

    // Another seed is another run: it trains.
    removed(&team).await?;
    team.create(&run(2)).await?;
    let other = team.trained("sums").await?.status.unwrap();
    assert!(other.adoption.is_none() && other.steps_executed.is_some_and(|steps| steps >= 20), "{other:#?}");
    assert_ne!(other.model.unwrap().digest, served);
    team.done();
    Ok(())
}
