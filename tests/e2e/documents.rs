//! Compares documents with the cluster: the API server accepts every YAML and every overlay, and every metric exists.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink};

use codex_crds::{ConditionType, TrainingRun, child, label};
use codex_metrics::{controller, server};
use codex_tests::{
    Error, Result, Team, documents,
    install::{CONTROLLER, NAMESPACE, repository},
    objects,
    process::{output, output_with},
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

/// CRDs of other projects whose objects the documents show: a name, and an excerpt for a cluster without the real one.
const FOREIGN: [(&str, &str); 7] = [
    ("applications.argoproj.io", include_str!("crds/applications.argoproj.io.yaml")),
    ("applicationsets.argoproj.io", include_str!("crds/applicationsets.argoproj.io.yaml")),
    (
        "inferencepools.inference.networking.k8s.io",
        include_str!("crds/inferencepools.inference.networking.k8s.io.yaml"),
    ),
    ("scaledobjects.keda.sh", include_str!("crds/scaledobjects.keda.sh.yaml")),
    ("podmonitors.monitoring.coreos.com", include_str!("crds/podmonitors.monitoring.coreos.com.yaml")),
    ("servicemonitors.monitoring.coreos.com", include_str!("crds/servicemonitors.monitoring.coreos.com.yaml")),
    ("prometheusrules.monitoring.coreos.com", include_str!("crds/prometheusrules.monitoring.coreos.com.yaml")),
];

/// Manifests for these kinds: a path below the root of the repository, a field, and a misspelling of it that must be refused.
const MISSPELLED: [(&str, &str, &str); 3] = [
    ("manifests/argocd/applicationset.yaml", "selfHeal:", "selfheal:"),
    ("manifests/monitoring/monitors.yaml", "targetLabel:", "targetlabel:"),
    ("manifests/monitoring/alerts.yaml", "annotations:", "annotation:"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_every_yaml_of_the_documents() -> Result<()> {
    let team = Team::new("documents").await?;
    let snippets = documents::snippets()?;
    assert!(snippets.iter().any(|snippet| snippet.place.contains("README.md")));
    assert!(snippets.iter().any(|snippet| snippet.place.contains("samples")));
    let excerpts = establish_foreign(&team).await?;
    let mut kinds = BTreeSet::new();
    let mut refused = Vec::new();
    for snippet in snippets {
        for object in snippet.objects()? {
            kinds.insert(object["kind"].as_str().unwrap_or_default().to_owned());
            let taken = if object["kind"] == "Kustomization" {
                kustomization(&team, &object).await
            } else {
                apply(&team, object).await
            };
            if let Err(error) = taken {
                refused.push(format!("{}: {error}", snippet.place));
            }
        }
    }
    refused.extend(overlays(&team).await?);
    refused.extend(misspelled(&team).await?);
    for name in excerpts {
        let mut kubectl = team.installation.cluster.kubectl()?;
        blocking(move || output(kubectl.args(["delete", "customresourcedefinition", name, "--wait=false"]))).await?;
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let own = ["TrainingRun", "Evaluation", "ReasoningPod"];
    let foreign = ["Kustomization", "Application", "ApplicationSet", "PodMonitor", "ScaledObject", "InferencePool"];
    for kind in own.into_iter().chain(foreign) {
        assert!(kinds.contains(kind), "no document shows a {kind}: {kinds:?}");
    }
    team.done();
    Ok(())
}

/// Applies an object in the team's namespace, without storing it.
async fn apply(team: &Team, mut object: Value) -> Result<String> {
    if object["metadata"]["namespace"].is_string() {
        object["metadata"]["namespace"] = json!(team.namespace);
    }
    let mut kubectl = team.kubectl()?;
    kubectl.args(["apply", "--dry-run=server", "--validate=strict", "--filename=-"]);
    let text = object.to_string();
    blocking(move || output_with(&mut kubectl, &text)).await
}

/// Builds a kustomization beside what it names, and applies the result without storing it.
async fn kustomization(team: &Team, object: &Value) -> Result<String> {
    let folder = tempfile::tempdir().map_err(Error::io("creating a temporary folder"))?;
    let own = folder.path().join("mine");
    let io = |what: &str| Error::io(format!("{what} in {}", folder.path().display()));
    fs::create_dir(&own).map_err(io("creating a folder"))?;
    symlink(repository().join("manifests"), folder.path().join("manifests")).map_err(io("linking manifests"))?;
    let mut object = object.clone();
    if object["namespace"].is_string() && object["namespace"] != "argocd" {
        // The namespace of the example does not exist.
        object["namespace"] = json!(team.namespace);
    }
    fs::write(own.join("kustomization.yaml"), object.to_string()).map_err(io("writing a kustomization"))?;
    // The kustomization of Argo CD names a copy of our health checks and the manifests of Argo CD.
    fs::copy(repository().join(CUSTOMIZATIONS), own.join("customizations.yaml"))
        .map_err(io("copying customizations.yaml"))?;
    let argo = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "argocd-cm" }, "data": { "url": "https://argo" } });
    fs::write(own.join("install.yaml"), argo.to_string()).map_err(io("writing install.yaml"))?;

    let mut build = team.installation.cluster.kubectl()?;
    let from = own.clone();
    let built = blocking(move || output(build.arg("kustomize").arg(from))).await?;
    let built = documents::Snippet { place: "the built kustomization".to_owned(), text: built };
    // Every patch and image of the document must be in the result.
    let text = built.text.replace('"', "");
    for image in ["codex-controller:TAG", "codex:OTHER_TAG", "name: registry", "system:serviceaccount:platform:"] {
        assert!(!object.to_string().contains(image) || text.contains(image), "{image} is not in:\n{}", built.text);
    }
    let objects = built.objects()?;
    if objects.iter().any(|object| object["metadata"]["name"] == "argocd-cm") {
        let [config_map] = &objects[..] else { panic!("one ConfigMap: {}", built.text) };
        has_health_checks(&config_map["data"]);
        return apply(team, config_map.clone()).await;
    }
    let mut kubectl = team.installation.cluster.kubectl()?;
    kubectl.args(["apply", "--dry-run=server", "--validate=strict", "--filename=-"]);
    blocking(move || output_with(&mut kubectl, &built.text)).await
}

/// Applies each folder of `manifests/overlays`, without storing it. Returns why overlays are refused.
async fn overlays(team: &Team) -> Result<Vec<String>> {
    let folder = repository().join("manifests/overlays");
    let reading = || Error::io(format!("reading {}", folder.display()));
    let mut refused = Vec::new();
    for entry in fs::read_dir(&folder).map_err(reading())? {
        let name = entry.map_err(reading())?.file_name().to_string_lossy().into_owned();
        // The namespace of a team that `namespaced` names does not exist, so only the rights in it are applied.
        let path = if name == "namespaced" { "namespaced/tenant".to_owned() } else { name };
        let mut overlay = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [format!("../manifests/overlays/{path}")],
        });
        if path.ends_with("tenant") {
            overlay["namespace"] = json!("team-a");
        }
        if let Err(error) = kustomization(team, &overlay).await {
            refused.push(format!("manifests/overlays/{path}: {error}"));
        }
    }
    Ok(refused)
}

/// Applies manifests with misspelled fields. Returns those that are not refused as such.
async fn misspelled(team: &Team) -> Result<Vec<String>> {
    let mut accepted = Vec::new();
    for (path, field, misspelled) in MISSPELLED {
        let text = fs::read_to_string(repository().join(path)).map_err(Error::io(format!("reading {path}")))?;
        let text = text.replace(field, misspelled);
        for object in (documents::Snippet { place: path.to_owned(), text }).objects()? {
            let kind = object["kind"].clone();
            match apply(team, object).await {
                Err(error) if error.to_string().contains("unknown field") => {}
                other => accepted.push(format!("{path}: {kind} with the field {misspelled} {other:?}")),
            }
        }
    }
    Ok(accepted)
}

/// Makes the kinds of other projects known to the API server. Returns the names of the excerpts that it created; a CRD
/// that exists stays.
async fn establish_foreign(team: &Team) -> Result<Vec<&'static str>> {
    let mut excerpts = Vec::new();
    for (name, excerpt) in FOREIGN {
        let definitions: Api<CustomResourceDefinition> = Api::all(team.client.clone());
        let found = definitions.get_opt(name).await?;
        if found.is_none_or(|found| found.labels().contains_key("codex-ml.dev/test")) {
            let mut kubectl = team.installation.cluster.kubectl()?;
            kubectl.args(["apply", "--filename=-"]);
            blocking(move || output_with(&mut kubectl, excerpt)).await?;
            excerpts.push(name);
        }
        until(&definitions, name, "it is established", SOON, |definition| {
            let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.clone().any(|condition| condition.type_ == "Established" && condition.status == "True")
        })
        .await?;
    }
    Ok(excerpts)
}

/// The health checks and actions for Argo CD, below the root of the repository.
const CUSTOMIZATIONS: &str = "manifests/argocd/customizations.yaml";

#[tokio::test(flavor = "multi_thread")]
async fn the_health_checks_are_added_to_the_config_map_of_argo_cd() -> Result<()> {
    let team = Team::new("argocd").await?;
    let existing = json!({ "metadata": { "name": "argocd-cm" }, "data": { "url": "https://argo" } });
    team.create::<ConfigMap>(&serde_json::from_value(existing).unwrap()).await?;
    // The command of docs/install.md, in another namespace.
    let mut patch = team.kubectl()?;
    patch.args(["patch", "configmap", "argocd-cm", "--patch-file"]).arg(repository().join(CUSTOMIZATIONS));
    blocking(move || output(&mut patch)).await?;
    let data = team.api::<ConfigMap>().get("argocd-cm").await?.data;
    has_health_checks(&json!(data));
    team.done();
    Ok(())
}

/// Checks that the ConfigMap of Argo CD has a health check for each kind beside what it had.
fn has_health_checks(data: &Value) {
    for kind in ["TrainingRun", "Evaluation", "ReasoningPod"] {
        let script = &data[format!("resource.customizations.health.codex-ml.dev_{kind}")];
        assert!(script.as_str().is_some_and(|script| script.contains("return")), "{kind}: {data:#}");
        if kind != "ReasoningPod" {
            let actions = &data[format!("resource.customizations.actions.codex-ml.dev_{kind}")];
            assert!(actions.as_str().is_some_and(|actions| actions.contains("name: suspend")), "{kind}: {data:#}");
        }
    }
    assert_eq!(data["url"], "https://argo");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_the_contract_are_those_that_exist() -> Result<()> {
    let team = Team::new("metrics").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.gates = serde_json::from_value(json!([{ "metric": "exact_match", "min": "0" }])).unwrap();
    team.create(&evaluation).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    // A foreign ConfigMap with the name of a child is a failure that a user must resolve; the condition says so.
    let in_the_way = json!({ "metadata": { "name": child::trainer("taken") }, "data": {} });
    team.create::<ConfigMap>(&serde_json::from_value(in_the_way).unwrap()).await?;
    team.create(&objects::run("taken", &[])).await?;
    until(&team.api::<TrainingRun>(), "taken", "it names the foreign ConfigMap", SOON, |run| {
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::Stalled)
            .is_some_and(|stalled| stalled.reason == "NameTaken" && stalled.message.contains("ConfigMap codex-t-taken"))
    })
    .await?;
    team.serving("served").await?;
    team.infer("served", "1+1:").await?;
    pod_monitors_select(&team).await?;

    let controllers: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
    let leader = controllers.list(&labelled).await?.items.pop().unwrap().name_any();
    let mut text = scrape(&team, &format!("/api/v1/namespaces/{NAMESPACE}/pods/{leader}:8080/proxy/metrics")).await?;
    let pod = team.pods(label::REASONING_POD, "served").await?.pop().unwrap().name_any();
    let server = format!("/api/v1/namespaces/{}/pods/{pod}:9464/proxy/metrics", team.namespace);
    text.push_str(&scrape(&team, &server).await?);

    let exposed: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("codex_"))
        .map(str::to_owned)
        .collect();
    // A trainer ends before all of its metrics can be scraped; its own tests compare them.
    let promised = || controller::ALL.iter().chain(server::ALL);
    let missing: Vec<_> =
        promised().filter(|metric| !metric.later && !exposed.contains(metric.name)).map(|metric| metric.name).collect();
    assert!(missing.is_empty(), "promised and not exposed: {missing:#?}; exposed are {exposed:#?}");
    let unsaid: Vec<_> = exposed.iter().filter(|name| promised().all(|metric| metric.name != **name)).collect();
    assert!(unsaid.is_empty(), "exposed and not promised: {unsaid:#?}");
    team.done();
    Ok(())
}

/// Checks that every `PodMonitor` in the documents selects a pod of the team, by a port that the pod names.
async fn pod_monitors_select(team: &Team) -> Result<()> {
    let mut monitors = 0;
    for snippet in documents::snippets()? {
        for object in snippet.objects()?.iter().filter(|object| object["kind"] == "PodMonitor") {
            let spec = &object["spec"];
            let labels = spec["selector"]["matchLabels"].as_object().unwrap();
            let labels: Vec<_> =
                labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
            let labelled = ListParams::default().labels(&labels.join(","));
            let pods = team.api::<Pod>().list(&labelled).await?.items;
            assert!(!pods.is_empty(), "{}: no pod has {labels:?}", snippet.place);
            for port in spec["podMetricsEndpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["port"]) {
                let pod = json!(pods[0].spec);
                let ports = pod["containers"][0]["ports"].as_array().unwrap();
                assert!(
                    ports.iter().any(|named| named["name"] == *port),
                    "{}: {port} is not in {ports:?}",
                    snippet.place
                );
            }
            monitors += 1;
        }
    }
    assert!(monitors > 0, "no document shows a PodMonitor");
    Ok(())
}

/// Returns the text behind a path of the API server's proxy.
pub(crate) async fn scrape(team: &Team, path: &str) -> Result<String> {
    until_found(&format!("{path} answers"), SOON, async || {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(team.client.request_text(request).await.ok())
    })
    .await
}
