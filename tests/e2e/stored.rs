//! Objects that are written again, as for another stored version of the API, stay as they are. With `UPDATE=1` the objects of a
//! version that has none yet are kept in `crds/tests/stored`, for the tests of later versions.

use std::{env, fs, path::Path};

use codex_crds::{ReasoningPod, TrainingRun, TrainingRunPhase};
use codex_tests::{
    Error, Result, Team,
    install::{NAMESPACE, repository},
    objects,
    process::{output, output_with},
    team::{SOON, TRAINED, blocking},
    wait::{until, until_found},
};
use codex_verdict::Decimal;
use serde_json::{Value, json};

/// The kinds that `docs/install.md` writes again in all namespaces, and the one without a namespace.
const NAMESPACED: &str = "trainingruns,evaluations,reasoningpods,promotionpolicies,signoffs";
const CLUSTER: &str = "clusterpromotionpolicies";
/// What a controller finds beside them after an upgrade.
const CHILDREN: [&str; 9] = [
    "jobs",
    "deployments",
    "pods",
    "configmaps",
    "services",
    "endpointslices",
    "poddisruptionbudgets",
    "networkpolicies",
    "persistentvolumeclaims",
];
/// The name of the policy of the cluster. It denies a model that nobody has.
const POLICY: &str = "stored";
/// The Secret with the key of the seals.
const SEAL: &str = "codex-seal";
/// The annotation with the manifest that kubectl applied.
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The ConfigMap that Kubernetes puts into each namespace.
const KUBERNETES: &str = "kube-root-ca.crt";

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_written_again_stay_as_they_are() -> Result<()> {
    let team = Team::new("stored").await?;
    let written = written_again(&team).await;
    kubectl(&team, &["delete", CLUSTER, POLICY, "--ignore-not-found"], None).await?;
    written?;
    team.done();
    Ok(())
}

async fn written_again(team: &Team) -> Result<()> {
    chain(team).await?;
    let before = [get(team, NAMESPACED).await?, get(team, CLUSTER).await?].concat();
    // The status of the run that trains may be written between the two commands; the command is then repeated, as by a person.
    for kinds in [NAMESPACED, CLUSTER] {
        until_found(&format!("{kinds} are written again"), SOON, async || {
            let objects = json!({ "apiVersion": "v1", "kind": "List", "items": get(team, kinds).await? });
            match kubectl(team, &["replace", "--filename=-"], Some(objects.to_string())).await {
                Ok(_) => Ok(Some(())),
                Err(Error::Command { output, .. }) if output.contains("Conflict") => Ok(None),
                Err(other) => Err(other),
            }
        })
        .await?;
    }
    // By the time that another change is reconciled, those before it are.
    team.change::<ReasoningPod>("waits", json!({ "spec": { "replicas": 2 } })).await?;
    until(&team.api::<ReasoningPod>(), "waits", "its change was reconciled", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.observed_generation == pod.metadata.generation)
    })
    .await?;
    let after = [get(team, NAMESPACED).await?, get(team, CLUSTER).await?].concat();
    for (before, after) in before.iter().zip(&after).filter(|(before, _)| before["metadata"]["name"] != "waits") {
        assert_eq!(lasting(before), lasting(after));
    }
    assert_eq!(before.len(), after.len());
    if env::var_os("UPDATE").is_some() {
        keep(team).await?;
    }
    Ok(())
}

/// Creates an object of every kind. One run has a model that is served, one trains, and a ReasoningPod is blocked.
async fn chain(team: &Team) -> Result<()> {
    let demands = json!({ "rules": [{
        "ring": "main", "requires": { "ring": "0D_base_" }, "minimumTimeInRing": "24h", "signOffs": { "count": 1 },
        "requiredEvaluations": [{ "name": "covers", "preset": "cot-lite", "gates": [
            { "metric": "trace_coverage", "min": "0.5", "minSamples": 500, "confidence": "0.95" },
        ] }],
    }] });
    apply(team, "PromotionPolicy", "candidates", &demands).await?;
    apply(team, "ClusterPromotionPolicy", POLICY, &json!({ "denied": { "models": ["0".repeat(64)] } })).await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "learns", "judged")).await?;
    let mut missed = objects::evaluation("missed", "learns", &team.problems);
    let gate = &mut missed.spec.gates[0];
    (gate.min, gate.max) = (None, Some(Decimal("0.01".to_owned())));
    team.create(&missed).await?;
    team.create(&objects::reasoning_pod("waits", "learns", "missed")).await?;
    team.trained("learns").await?;
    team.judged("missed").await?;
    team.blocked("waits").await?;
    let status = team.serving("served").await?.status.unwrap();
    let signs = json!({
        "reasoningPod": "served", "by": "ada@example.com", "reason": "read the report", "authenticated": false,
        "modelDigest": status.manifest.unwrap().digest, "reportDigest": status.report_digest.unwrap(),
    });
    apply(team, "SignOff", "ada-served", &signs).await?;
    until(&team.api::<ReasoningPod>(), "served", "it is signed off", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.sign_offs.iter().any(|it| it.counts))
    })
    .await?;
    team.serving("served").await?;
    // Far more steps than it will take.
    team.create(&objects::run("trains", &["training.max_steps=100000"])).await?;
    until(&team.api::<TrainingRun>(), "trains", "it has taken a step", TRAINED, |run| {
        let status = run.status.as_ref();
        status.is_some_and(|it| it.phase == Some(TrainingRunPhase::Running) && it.progress.is_some())
    })
    .await?;
    Ok(())
}

/// Returns what writing an object again must not change. Of a run that trains the numbers change by themselves.
fn lasting(object: &Value) -> Value {
    let status = &object["status"];
    let status = if status["phase"] == "Running" {
        json!([status["configDigest"], status["startedAt"]])
    } else {
        status.clone()
    };
    let metadata = &object["metadata"];
    json!([object["kind"], metadata["name"], metadata["uid"], metadata["generation"], object["spec"], status])
}

/// Writes the objects of this version to its folder, unless it has some.
async fn keep(team: &Team) -> Result<()> {
    let folder = repository().join("crds/tests/stored").join(env!("CARGO_PKG_VERSION"));
    if folder.exists() {
        return Ok(());
    }
    fs::create_dir_all(&folder).unwrap();
    for kind in NAMESPACED.split(',').chain([CLUSTER]).chain(CHILDREN) {
        write(&folder.join(format!("{kind}.yaml")), get(team, kind).await?);
    }
    // With the key of this cluster, later versions can check the seals.
    let seal = kubectl(team, &["--namespace", NAMESPACE, "get", "secret", SEAL, "--output=json"], None).await?;
    write(&folder.join("seal.yaml"), vec![serde_json::from_str(&seal).unwrap()]);
    Ok(())
}

/// Writes objects without the manifests that kubectl remembers.
fn write(path: &Path, mut objects: Vec<Value>) {
    for object in &mut objects {
        if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(APPLIED);
        }
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    fs::write(path, serde_yaml::to_string(&list).unwrap()).unwrap();
}

/// Returns the objects of the team of these kinds, sorted by kind and name, and of policies of the cluster its own one.
async fn get(team: &Team, kinds: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&kubectl(team, &["get", kinds, "--output=json"], None).await?).unwrap();
    let mut objects = list["items"].as_array().unwrap().clone();
    objects.retain(|object| {
        object["metadata"]["name"] != KUBERNETES && (kinds != CLUSTER || object["metadata"]["name"] == POLICY)
    });
    let key = |object: &Value| [&object["kind"], &object["metadata"]["name"]].map(ToString::to_string);
    objects.sort_by_key(key);
    Ok(objects)
}

async fn apply(team: &Team, kind: &str, name: &str, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec,
    });
    kubectl(team, &["apply", "--filename=-"], Some(object.to_string())).await.map(drop)
}

/// Runs kubectl in the team's namespace with this input, and returns its output.
async fn kubectl(team: &Team, words: &[&str], input: Option<String>) -> Result<String> {
    let mut kubectl = team.kubectl()?;
    kubectl.args(words);
    blocking(move || match input {
        Some(input) => output_with(&mut kubectl, &input),
        None => output(&mut kubectl),
    })
    .await
}
