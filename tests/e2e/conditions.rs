//! Bad input that only the controller or a pod can detect: the condition says what to change.

use std::fmt::Debug;

use codex_crds::{ConditionType, Evaluation, ReasoningPod, TrainingRun, label};
use codex_provenance::Sha256;
use codex_tests::{
    Result, Team, objects,
    team::{TRAINED, condition},
    wait::{until, until_found},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Pod, ResourceQuota},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{Resource, ResourceExt as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// Waits for a condition whose message contains all words.
async fn says<K>(
    team: &Team,
    name: &str,
    kind: ConditionType,
    reason: &str,
    words: &[&str],
    conditions: impl Fn(&K) -> &[Condition],
) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + 'static,
{
    let what = format!("{} with reason {reason} says {words:?}", kind.name());
    until(&team.api::<K>(), name, &what, TRAINED, |object| {
        condition(Some(conditions(object)), kind).is_some_and(|condition| {
            condition.status == "True"
                && condition.reason == reason
                && words.iter().all(|word| condition.message.contains(word))
        })
    })
    .await
    .map(drop)
}

async fn run_says(team: &Team, name: &str, kind: ConditionType, reason: &str, words: &[&str]) -> Result<()> {
    says::<TrainingRun>(team, name, kind, reason, words, |run| {
        run.status.as_ref().map(|status| &*status.conditions).unwrap_or_default()
    })
    .await
}

async fn evaluation_says(team: &Team, name: &str, kind: ConditionType, reason: &str, words: &[&str]) -> Result<()> {
    says::<Evaluation>(team, name, kind, reason, words, |evaluation| {
        evaluation.status.as_ref().map(|status| &*status.conditions).unwrap_or_default()
    })
    .await
}

const STALLED: ConditionType = ConditionType::Stalled;

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_cannot_work_stalls_with_what_to_change() -> Result<()> {
    let team = Team::new("specs").await?;
    let mut template = objects::run("template", &[]);
    template.spec.template = "cot-stater".to_owned();
    let mut seed = objects::run("seed-in-config", &[]);
    seed.spec.config = Some("training: {seed: 7}".to_owned());
    let mut ring = objects::run("ring-in-config", &[]);
    ring.spec.config = Some("metadata: {rollout_ring: main}".to_owned());
    let key = objects::run("key", &["training.batchsize=8"]);
    let value = objects::run("value", &["training.learning_rate=.nan"]);
    let mut task = objects::run("task", &[]);
    task.spec.data[0].source.synthetic.as_mut().unwrap().task = "arithmetics".to_owned();
    let batch = objects::run("batch", &["training.batch_size=20001"]);
    let mut claim = objects::run("claim", &[]);
    claim.spec.output.persistent_volume_claim.claim_name = "nowhere".to_owned();
    for run in [&template, &seed, &ring, &key, &value, &task, &batch, &claim] {
        team.create(run).await?;
    }
    let mut preset = objects::evaluation("preset", "template", &team.problems);
    preset.spec.preset = "cotlite".to_owned();
    team.create(&preset).await?;
    let mut rate = objects::evaluation("rate", "template", &team.problems);
    rate.spec.gates[0].metric = "reasoning.win_rate".to_owned();
    team.create(&rate).await?;
    let missing_run = objects::evaluation("missing-run", "nobody", &team.problems);
    team.create(&missing_run).await?;

    let invalid = "InvalidConfiguration";
    run_says(&team, "template", STALLED, invalid, &["template", "cot-stater", "did you mean cot-starter"]).await?;
    run_says(&team, "seed-in-config", STALLED, invalid, &["config names training.seed", "set spec.seed instead"])
        .await?;
    run_says(&team, "ring-in-config", STALLED, invalid, &["metadata.rollout_ring", "set spec.rolloutRing instead"])
        .await?;
    run_says(&team, "key", STALLED, invalid, &["training.batchsize", "did you mean training.batch_size"]).await?;
    run_says(&team, "value", STALLED, invalid, &["training.learning_rate", ".nan", "above 0 and at most 1"]).await?;
    run_says(&team, "task", STALLED, invalid, &["data[0]", "arithmetics", "did you mean arithmetic"]).await?;
    run_says(&team, "batch", STALLED, invalid, &["training.batch_size is 20001", "at most", "20000"]).await?;
    evaluation_says(&team, "preset", STALLED, invalid, &["preset", "cotlite", "did you mean cot-lite"]).await?;
    // Custom problems have no baseline. This is known before anything runs.
    let baseline = ["spec.gates[0].metric", "reasoning.win_rate", "answered other problems", "baseline"];
    evaluation_says(&team, "rate", STALLED, invalid, &baseline).await?;
    // A missing object may still be created, so the controller waits for it.
    let waits = ConditionType::Reconciling;
    run_says(
        &team,
        "claim",
        waits,
        "NotFound",
        &["spec.output.persistentVolumeClaim.claimName", "nowhere", "create it"],
    )
    .await?;
    evaluation_says(&team, "missing-run", waits, "NotFound", &["spec.trainingRun", "nobody"]).await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_by_the_api_server_and_a_quota_are_reported() -> Result<()> {
    let team = Team::new("refused").await?;
    let mut run = objects::run("greedy", &[]);
    let resources = json!({ "requests": { "cpu": "2" }, "limits": { "cpu": "1" } });
    run.spec.pod.worker.resources = serde_json::from_value(resources).unwrap();
    team.create(&run).await?;
    let told = ["the Job codex-t-greedy cannot be applied", "requests", "must be less than or equal to cpu limit"];
    run_says(&team, "greedy", STALLED, "Refused", &told).await?;

    // The API server accepts the Job and refuses its pod.
    let quota = json!({ "metadata": { "name": "none" }, "spec": { "hard": { "pods": "0" } } });
    team.create::<ResourceQuota>(&serde_json::from_value(quota).unwrap()).await?;
    team.create(&objects::run("alone", &[])).await?;
    let told = ["the Job codex-t-alone cannot create a pod (FailedCreate)", "exceeded quota: none"];
    run_says(&team, "alone", ConditionType::Reconciling, "WaitingForPod", &told).await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_is_reported_in_the_words_of_the_kubelet() -> Result<()> {
    // No registry has a name below `invalid`.
    const IMAGE: &str = "nowhere.invalid/trainer:1";
    let team = Team::new("unpulled").await?;
    let mut run = objects::run("unpulled", &[]);
    run.spec.pod.image = Some(IMAGE.to_owned());
    team.create(&run).await?;
    // An Event would have another reason. The kubelet changes its reason and its sentence between two attempts.
    let told = |pod: &Pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
        let waiting = statuses.iter().find_map(|status| status.state.as_ref()?.waiting.as_ref())?;
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref()?);
        let pulls = ["ErrImagePull", "ImagePullBackOff"].contains(&reason) && message.contains(IMAGE);
        pulls.then(|| format!("pod {} cannot start ({reason}): {message}", pod.name_any()))
    };
    until_found("Reconciling quotes the status of the pod", TRAINED, async || {
        let run = team.api::<TrainingRun>().get("unpulled").await?;
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        let reconciling = condition(conditions, ConditionType::Reconciling);
        let waits = reconciling.filter(|it| it.status == "True" && it.reason == "WaitingForPod");
        let Some(waits) = waits else { return Ok(None) };
        let pods = team.pods(label::TRAINING_RUN, "unpulled").await?;
        Ok(pods.iter().filter_map(told).any(|told| told == waits.message).then_some(()))
    })
    .await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_pod_lists_everything_that_is_missing() -> Result<()> {
    let team = Team::new("blocked").await?;
    for name in ["run", "other"] {
        let mut run = objects::run(name, &[]);
        run.spec.suspend = true;
        team.create(&run).await?;
    }
    team.create(&objects::evaluation("of-other", "other", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "run", "of-other");
    pod.spec.evaluations.push("missing".to_owned());
    pod.spec.rollout_ring = codex_verdict::Ring::Base0B;
    team.create(&pod).await?;
    let expected = [
        ["run", "no model"].as_slice(),
        ["0A_base_", "0B_base_"].as_slice(),
        ["of-other", "other"].as_slice(),
        ["missing", "not exist"].as_slice(),
    ];
    until(&team.api::<ReasoningPod>(), "served", "status.blockedBy names everything", TRAINED, |pod| {
        let told = pod.status.as_ref().map(|status| &*status.blocked_by).unwrap_or_default();
        expected.iter().all(|words| told.iter().any(|why| words.iter().all(|word| why.contains(word))))
    })
    .await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_data_fails_with_its_file_and_line() -> Result<()> {
    let team = Team::new("records").await?;
    let good = r#"{"prompt":"1+1:","response":"1+1+0=02 #2$","difficulty":"easy","category":"arithmetic"}"#;
    let long = format!(
        r#"{{"prompt":"1+1:","response":"{} #2$","difficulty":"easy","category":"arithmetic"}}"#,
        "1+1+0=02 ".repeat(40)
    );
    let files = [
        ("malformed.jsonl", format!("{good}\n{{\"prompt\": 7}}\n{good}\n")),
        ("empty.jsonl", "\n".to_owned()),
        ("few.jsonl", format!("{good}\n")),
        ("long.jsonl", format!("{}{long}\n", format!("{good}\n").repeat(40))),
    ];
    let data: std::collections::BTreeMap<_, _> = files.iter().cloned().collect();
    let config_map = json!({ "metadata": { "name": "data" }, "data": data });
    team.create::<ConfigMap>(&serde_json::from_value(config_map).unwrap()).await?;
    for (file, text) in &files {
        let mut run = objects::run(file.trim_end_matches(".jsonl"), &[]);
        run.spec.data = serde_json::from_value(json!([{
            "name": "train",
            "sha256": Sha256::of(text),
            "source": { "configMap": { "name": "data", "key": file } },
        }]))
        .unwrap();
        team.create(&run).await?;
    }
    let bad = "BadInput";
    run_says(&team, "malformed", STALLED, bad, &["malformed.jsonl:2"]).await?;
    run_says(&team, "empty", STALLED, bad, &["empty.jsonl", "no records"]).await?;
    run_says(&team, "few", STALLED, bad, &["training.batch_size is 32", "the data has 1 record:"]).await?;
    run_says(&team, "long", STALLED, bad, &["record", "tokens", "model.max_position_embeddings is 256"]).await?;
    team.done();
    Ok(())
}
