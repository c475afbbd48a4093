//! What is written is true: every YAML is taken by the API server, every metric exists.

use std::{collections::BTreeSet, io::Write as _, process::Stdio};

use codex_crds::{ConditionType, TrainingRun, child};
use codex_tests::{
    Error, Result, Team, documents,
    install::{CONTROLLER, NAMESPACE},
    objects,
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn every_yaml_of_the_documents_is_taken_by_the_api_server() -> Result<()> {
    let team = Team::new("documents").await?;
    let snippets = documents::snippets()?;
    assert!(snippets.iter().any(|snippet| snippet.place.contains("README.md")));
    assert!(snippets.iter().any(|snippet| snippet.place.contains("samples")));
    for snippet in snippets {
        let mut apply = team.kubectl()?;
        let place = snippet.place.clone();
        let told = blocking(move || {
            apply.args(["apply", "--dry-run=server", "--validate=strict", "--filename=-"]);
            let mut child = apply
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(Error::io("starting kubectl"))?;
            let mut input = child.stdin.take().unwrap();
            input.write_all(snippet.text.as_bytes()).map_err(Error::io("writing to kubectl"))?;
            drop(input);
            child.wait_with_output().map_err(Error::io("waiting for kubectl"))
        })
        .await?;
        assert!(told.status.success(), "{place}: {}", String::from_utf8_lossy(&told.stderr));
    }
    team.done();
    Ok(())
}

/// What counts faults that no test provokes: documented, and exposed only once there is one.
const FAULTS: [&str; 2] = ["codex_controller_malformed_objects_total", "codex_controller_watch_errors_total"];

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_that_documents_name_are_those_that_exist() -> Result<()> {
    let team = Team::new("metrics").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.gates = serde_json::from_value(json!([{ "metric": "exact_match", "min": "0" }])).unwrap();
    team.create(&evaluation).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    // Somebody else's ConfigMap in the way is a failure that a person has to mend; the condition says so.
    let in_the_way = json!({ "metadata": { "name": child::trainer("taken") }, "data": {} });
    team.create::<ConfigMap>(&serde_json::from_value(in_the_way).unwrap()).await?;
    team.create(&objects::run("taken", &[])).await?;
    until(&team.api::<TrainingRun>(), "taken", "it says what is in the way", SOON, |run| {
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::Stalled)
            .is_some_and(|stalled| stalled.reason == "NameTaken" && stalled.message.contains("ConfigMap taken-train"))
    })
    .await?;
    team.serving("served").await?;
    team.infer("served", "1+1:").await?;

    let controllers: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
    let controller = controllers.list(&labelled).await?.items.pop().unwrap().name_any();
    let mut text =
        scrape(&team, &format!("/api/v1/namespaces/{NAMESPACE}/pods/{controller}:8080/proxy/metrics")).await?;
    let server = format!("/api/v1/namespaces/{}/services/served:8000/proxy/metrics", team.namespace);
    text.push_str(&scrape(&team, &server).await?);

    let exposed: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("codex_"))
        .map(str::to_owned)
        .collect();
    // A trainer is gone before all of its metrics are scraped here: they are compared where they are made.
    let mut documented = documents::metrics()?;
    const OF_A_TRAINER: [&str; 3] = ["codex_ml_training_", "codex_ml_data_", "codex_ml_checkpoints_"];
    documented.retain(|(name, _)| !OF_A_TRAINER.iter().any(|prefix| name.starts_with(prefix)));
    let names: BTreeSet<_> = documented.iter().map(|(name, _)| name.clone()).collect();
    let missing: Vec<_> =
        documented.iter().filter(|(name, _)| !exposed.contains(name) && !FAULTS.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "documented and not exposed: {missing:#?}; exposed are {exposed:#?}");
    let unsaid: Vec<_> = exposed.difference(&names).collect();
    assert!(unsaid.is_empty(), "exposed and not documented: {unsaid:#?}");
    team.done();
    Ok(())
}

/// What stands behind a path of the API server's proxy.
pub(crate) async fn scrape(team: &Team, path: &str) -> Result<String> {
    until_found(&format!("{path} answers"), SOON, async || {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(team.client.request_text(request).await.ok())
    })
    .await
}
