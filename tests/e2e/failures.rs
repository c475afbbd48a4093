//! Runs that fail, and what their status says.

use codex_crds::{ConditionType, ConfigMapKey, TemplateFrom, TrainingRun, TrainingRunPhase};
use codex_provenance::Sha256;
use codex_tests::{
    Result, Team, objects,
    team::{TRAINED, condition},
    wait::{Sight, until},
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

/// Waits until a run has failed, and returns the reason and message of its `Stalled` condition.
async fn failed(team: &Team, name: &str) -> Result<(TrainingRun, String, String)> {
    let run = until(&team.api::<TrainingRun>(), name, "it failed", TRAINED, |run| {
        match run.status.as_ref().and_then(|status| status.phase) {
            Some(TrainingRunPhase::Failed) => Sight::There,
            Some(TrainingRunPhase::Succeeded) => Sight::Impossible("it succeeded".to_owned()),
            _ => Sight::NotYet,
        }
    })
    .await?;
    let conditions = &run.status.as_ref().unwrap().conditions;
    let ready = condition(Some(conditions), ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "False");
    let stalled = condition(Some(conditions), ConditionType::Stalled).unwrap();
    assert_eq!(stalled.status, "True");
    let (reason, message) = (stalled.reason.clone(), stalled.message.clone());
    Ok((run, reason, message))
}

#[tokio::test(flavor = "multi_thread")]
async fn data_with_another_digest_fails_with_both_digests() -> Result<()> {
    let team = Team::new("data").await?;
    let line = r#"{"prompt":"1+1:","response":"1+1+0=02 #2$","difficulty":"easy","category":"arithmetic"}"#;
    let demanded = Sha256::of("what was reviewed").to_string();
    let found = Sha256::of(line).to_string();
    let data = json!({ "metadata": { "name": "data" }, "data": { "train.jsonl": line } });
    team.create::<ConfigMap>(&serde_json::from_value(data).unwrap()).await?;
    let mut run = objects::run("run", &["training.batch_size=1"]);
    run.spec.data = serde_json::from_value(json!([{
        "name": "train", "sha256": demanded, "source": { "configMap": { "name": "data", "key": "train.jsonl" } },
    }]))
    .unwrap();
    team.create(&run).await?;
    let (run, reason, message) = failed(&team, "run").await?;
    assert_eq!(reason, "DataMismatch");
    assert!(message.contains(&demanded) && message.contains(&found), "{message}");
    assert_eq!(run.status.unwrap().work.attempts, Some(1), "bad input is not retried");
    a_template_with_another_digest_is_not_trained(&team).await?;
    team.done();
    Ok(())
}

/// A template in a ConfigMap is waited for, refused with another digest than the pinned one, and trained with that digest.
async fn a_template_with_another_digest_is_not_trained(team: &Team) -> Result<()> {
    let text = "defaults:\n  - cot-starter\n  - _self_\ntraining:\n  keep_last: 7\n";
    let mut own = objects::run("own", &["training.max_steps=20", "training.checkpoint_every=20"]);
    "ours".clone_into(&mut own.spec.template);
    own.spec.template_from = Some(TemplateFrom {
        config_map: ConfigMapKey { name: "templates".to_owned(), key: "ours.yaml".to_owned() },
        sha256: Sha256::of(text).to_string(),
    });
    team.create(&own).await?;
    until(&team.api::<TrainingRun>(), "own", "it waits for its template", TRAINED, |run| {
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::Ready).is_some_and(|ready| {
            ready.reason == "NotFound" && ready.message.contains("spec.templateFrom.configMap.name names the ConfigMap")
        })
    })
    .await?;
    let changed = json!({ "metadata": { "name": "templates" }, "data": { "ours.yaml": "training: {}" } });
    team.create::<ConfigMap>(&serde_json::from_value(changed).unwrap()).await?;
    let (_, reason, message) = failed(team, "own").await?;
    assert_eq!(reason, "InvalidConfiguration");
    assert!(message.contains(&Sha256::of(text).to_string()), "{message}");
    team.change::<ConfigMap>("templates", json!({ "data": { "ours.yaml": text } })).await?;
    // The phase is Failed until the next plan, so this wait does not end at Failed.
    let trained = until(&team.api::<TrainingRun>(), "own", "its model is there", TRAINED, |run| {
        run.status.as_ref().is_some_and(|status| status.phase == Some(TrainingRunPhase::Succeeded))
    })
    .await?;
    let synthetic = Some(codex_configs::Synthetic { task: "arithmetic".to_owned(), seed: 1, count: 20_000 });
    let data = vec![codex_configs::Data { name: "arithmetic".to_owned(), sha256: None, synthetic }];
    let composed = codex_configs::compose_training_from("ours", text, &own.spec.overrides, None, 1, data).unwrap();
    assert_eq!(trained.status.unwrap().config_digest, Some(composed.digest()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_out_of_memory_is_retried_and_then_fails_with_the_reason() -> Result<()> {
    let team = Team::new("memory").await?;
    let mut run = objects::run("run", &[]);
    // The trainer refuses a configuration that it knows to be too large, but it knows the size of its data only after reading.
    run.spec.data = serde_json::from_value(json!([{
        "name": "more-than-fits", "source": { "synthetic": { "task": "arithmetic", "seed": 1, "count": 3_000_000 } },
    }]))
    .unwrap();
    run.spec.retries = 1;
    limit_memory(&mut run, "32Mi");
    team.create(&run).await?;
    let (run, reason, message) = failed(&team, "run").await?;
    assert_eq!(reason, "OOMKilled", "{message}");
    assert!(message.contains("OOMKilled") && message.contains("spec.retries (1)"), "{message}");
    assert_eq!(run.status.unwrap().work.attempts, Some(2), "one retry is allowed");
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_exceeds_its_deadline_fails() -> Result<()> {
    let team = Team::new("deadline").await?;
    let mut run = objects::run("run", &["training.max_steps=1000000"]);
    run.spec.active_deadline_seconds = Some(5);
    team.create(&run).await?;
    let (_, reason, message) = failed(&team, "run").await?;
    assert_eq!(reason, "DeadlineExceeded", "{message}");
    assert!(message.contains("spec.activeDeadlineSeconds (5)"), "{message}");
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_fit_is_refused_with_a_smaller_one() -> Result<()> {
    let team = Team::new("batch").await?;
    let steps = "training.max_steps=6";
    let mut large = objects::run("large", &["training.batch_size=1024", steps, "training.warmup_steps=1"]);
    limit_memory(&mut large, "192Mi");
    team.create(&large).await?;
    let (large, reason, message) = failed(&team, "large").await?;
    assert_eq!(reason, "BadInput", "{message}");
    assert!(message.contains("192 MiB"), "{message}");
    assert_eq!(large.status.unwrap().work.attempts, Some(1), "bad input is not retried");

    let proposed: Vec<&str> = message.split_whitespace().filter(|word| word.starts_with("training.")).collect();
    assert!(proposed.iter().any(|set| set.starts_with("training.gradient_accumulation=")), "{message}");
    let sets = [proposed.as_slice(), &[steps, "training.warmup_steps=1"]].concat();
    let mut small = objects::run("small", &sets);
    limit_memory(&mut small, "192Mi");
    team.create(&small).await?;
    let small = team.trained("small").await?;
    assert_eq!(small.status.unwrap().work.attempts, Some(1), "the proposal of the trainer fits");
    team.done();
    Ok(())
}

fn limit_memory(run: &mut TrainingRun, limit: &str) {
    let resources = json!({ "requests": { "cpu": "50m", "memory": limit }, "limits": { "memory": limit } });
    run.spec.pod.worker.resources = serde_json::from_value(resources).unwrap();
}
