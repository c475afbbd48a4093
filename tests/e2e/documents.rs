//! What is written is true: every YAML is taken by the API server, every metric exists.

use std::{io::Write as _, process::Stdio};

use codex_tests::{
    Error, Result, Team, documents,
    install::{CONTROLLER, NAMESPACE},
    objects,
    team::blocking,
    wait::until_found,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};

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

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_a_document_names_exists() -> Result<()> {
    let team = Team::new("metrics").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.gates =
        serde_json::from_value(serde_json::json!([{ "metric": "exact_match", "min": "0" }])).unwrap();
    team.create(&evaluation).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    team.serving("served").await?;
    team.infer("served", "1+1:").await?;

    let controllers: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
    let controller = controllers.list(&labelled).await?.items.pop().unwrap().name_any();
    let mut exposed =
        scrape(&team, &format!("/api/v1/namespaces/{NAMESPACE}/pods/{controller}:8080/proxy/metrics")).await?;
    assert!(exposed.contains("codex_controller_"), "{exposed}");
    let server = format!("/api/v1/namespaces/{}/services/served:8000/proxy/metrics", team.namespace);
    exposed.push_str(&scrape(&team, &server).await?);
    assert!(exposed.contains("codex_ml_inference_requests_total"), "{exposed}");

    let exposed = documents::metric_names(&exposed);
    let missing: Vec<_> = documents::metrics()?.into_iter().filter(|(name, _)| !exposed.contains(name)).collect();
    assert!(missing.is_empty(), "named and not exposed: {missing:#?}; exposed are {exposed:#?}");
    team.done();
    Ok(())
}

async fn scrape(team: &Team, path: &str) -> Result<String> {
    until_found(&format!("{path} answers"), codex_tests::team::SOON, async || {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(team.client.request_text(request).await.ok())
    })
    .await
}
