//! The Helm chart, rendered by Helm and living on a cluster: run by `make test-helm`, which installs Helm.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

use std::{
    collections::BTreeMap,
    env,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use codex_tests::{Installation, install::repository, process::output};
use serde::Deserialize as _;
use serde_json::Value;

/// An object's kind, namespace and name.
type Key = (String, Option<String>, String);

const RELEASE: &str = "codex";
const NAMESPACE: &str = "codex-system";
const TEAM: &str = "helm-team";
const OTHER: &str = "helm-other";

fn chart() -> PathBuf {
    repository().join("manifests/helm/codex-operator")
}

fn helm() -> Command {
    Command::new(env::var_os("HELM").unwrap_or_else(|| "helm".into()))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Renders the chart, or returns Helm's message.
fn template(arguments: &[&str]) -> Result<BTreeMap<Key, Value>, String> {
    let out = run(helm().args(["template", RELEASE]).arg(chart()).args(["--namespace", NAMESPACE]).args(arguments));
    if !out.status.success() {
        return Err(String::from_utf8(out.stderr).unwrap());
    }
    Ok(objects(&String::from_utf8(out.stdout).unwrap()))
}

/// The objects of a multi-document YAML file. No two may have one key.
fn objects(text: &str) -> BTreeMap<Key, Value> {
    let mut found = BTreeMap::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object = Value::deserialize(document).unwrap();
        if object.is_null() {
            continue;
        }
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let key = (text("/kind").unwrap(), text("/metadata/namespace"), text("/metadata/name").unwrap());
        assert!(found.insert(key.clone(), object).is_none(), "{key:?} occurs twice");
    }
    found
}

/// What kustomize installs from a folder of `manifests/`, without the objects and annotations that only serve Argo CD.
fn kustomized(kubectl: &mut Command, folder: &str) -> BTreeMap<Key, Value> {
    let out = output(kubectl.arg("kustomize").arg(repository().join("manifests").join(folder))).unwrap();
    let mut objects = objects(&out);
    objects.retain(|(kind, _, _), _| kind != "Namespace");
    for object in objects.values_mut() {
        let Some(metadata) = object["metadata"].as_object_mut() else { continue };
        let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { continue };
        annotations.remove("argocd.argoproj.io/sync-options");
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    objects
}

/// Asserts that two installations are equal, and names the first object that differs.
fn assert_same(chart: &BTreeMap<Key, Value>, kustomize: &BTreeMap<Key, Value>) {
    assert_eq!(chart.keys().collect::<Vec<_>>(), kustomize.keys().collect::<Vec<_>>());
    for (key, object) in chart {
        assert_eq!(comparable(object), comparable(&kustomize[key]), "{key:?}");
    }
}

/// Evens out what kustomize writes otherwise: it doubles line breaks of folded texts, and puts variables that a patch adds before those
/// that exist.
fn comparable(object: &Value) -> Value {
    match object {
        Value::String(text) => {
            let mut text = text.clone();
            while text.contains("\n\n") {
                text = text.replace("\n\n", "\n");
            }
            Value::String(text)
        }
        Value::Array(items) => items.iter().map(comparable).collect(),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                let mut value = comparable(value);
                // No variable refers to another one, so that their order means nothing.
                if let (true, Some(variables)) = (key == "env", value.as_array_mut()) {
                    variables.sort_by_key(|variable| variable["name"].as_str().map(str::to_owned));
                }
                (key.clone(), value)
            };
            fields.iter().map(field).collect()
        }
        // kustomize writes large whole numbers with an exponent.
        Value::Number(number) => Value::from(number.as_f64()),
        other => other.clone(),
    }
}

fn kubectl() -> Command {
    Installation::load().unwrap().cluster.kubectl().unwrap()
}

#[test]
fn the_chart_is_the_kustomize_installation() {
    let lint = run(helm().args(["lint", "--strict"]).arg(chart()));
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));

    let plain = template(&["--set", "crds.keep=false"]).unwrap();
    assert_same(&plain, &kustomized(&mut kubectl(), "controller"));

    let mut all = kustomized(&mut kubectl(), "controller");
    all.append(&mut kustomized(&mut kubectl(), "monitoring"));
    assert_same(&template(&["--set", "crds.keep=false,monitoring.enabled=true"]).unwrap(), &all);

    // The overlays are the same with values.
    let overlay = |name: &str| kustomized(&mut kubectl(), &format!("overlays/{name}"));
    assert_same(&all, &overlay("monitoring"));
    let namespaced = template(&["--set", "crds.keep=false,watchNamespaces={team-a}"]).unwrap();
    assert_same(&namespaced, &overlay("namespaced"));
    let available = overlay("high-availability");
    let key = ("Deployment".to_owned(), Some(NAMESPACE.to_owned()), "codex-controller".to_owned());
    let affinity = format!("affinity={}", available[&key]["spec"]["template"]["spec"]["affinity"]);
    let values = ["--set", "crds.keep=false,replicas=2", "--set-json", &affinity];
    assert_same(&template(&values).unwrap(), &available);
    let keyless = template(&["--set", "crds.keep=false,signing.mode=keyless"]).unwrap();
    assert_same(&keyless, &overlay("keyless"));
    let openshift = template(&["--set", "crds.keep=false,runAs=platform"]).unwrap();
    assert_same(&openshift, &overlay("openshift"));

    let kept = template(&[]).unwrap();
    let crds: Vec<_> = kept.iter().filter(|((kind, ..), _)| kind == "CustomResourceDefinition").collect();
    let names: Vec<_> = crds.iter().map(|((.., name), _)| name.as_str()).collect();
    let group =
        ["clusterpromotionpolicies", "evaluations", "promotionpolicies", "reasoningpods", "signoffs", "trainingruns"];
    assert_eq!(names, group.map(|kind| format!("{kind}.codex-ml.dev")));
    for (key, crd) in crds {
        assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{key:?}");
    }
}

#[test]
fn values_change_what_they_name() {
    let set = [
        "--set",
        "images.controller=a/c@sha256:1,images.trainer=a/t:1,images.worker=a/w:1,replicas=2,priorityClassName=high",
        "--set",
        "imagePullSecrets[0].name=registry,nodeSelector.pool=system,podAnnotations.note=x,monitoring.enabled=true",
        "--set",
        "monitoring.labels.release=monitoring,admissionPolicies.administrators={system:masters,platform}",
        "--set",
        "extraEnv[0].name=RUST_LOG,extraEnv[0].value=debug",
    ];
    let objects = template(&set).unwrap();
    let get = |kind: &str, namespace: Option<&str>, name: &str| {
        objects[&(kind.to_owned(), namespace.map(str::to_owned), name.to_owned())].clone()
    };
    let deployment = get("Deployment", Some(NAMESPACE), "codex-controller");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(pod["priorityClassName"], "high");
    assert_eq!(pod["nodeSelector"]["pool"], "system");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
    assert_eq!(deployment["spec"]["template"]["metadata"]["annotations"]["note"], "x");
    assert_eq!(pod["containers"][0]["image"], "a/c@sha256:1");
    let environment = pod["containers"][0]["env"].as_array().unwrap();
    for (name, value) in [("CODEX_TRAINER_IMAGE", "a/t:1"), ("CODEX_WORKER_IMAGE", "a/w:1"), ("RUST_LOG", "debug")] {
        assert!(environment.iter().any(|it| it["name"] == name && it["value"] == value), "{name}: {environment:?}");
    }
    assert_eq!(get("PrometheusRule", Some(NAMESPACE), "codex")["metadata"]["labels"]["release"], "monitoring");
    let policy = get("ValidatingAdmissionPolicy", None, "codex-connections");
    assert_eq!(policy["spec"]["variables"][0]["expression"], "['system:masters', 'platform']");
}

#[test]
fn ids_are_numbers_or_those_of_the_platform() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), "runAs: 1000650000\n").unwrap();
    let file = file.path().to_str().unwrap();
    for (arguments, id) in [
        (["--set", "runAs=1000650000"], 1_000_650_000),
        (["--values", file], 1_000_650_000),
        (["--set", "replicas=1"], 65_532),
    ] {
        let objects = template(&arguments).unwrap();
        let key = ("Deployment".to_owned(), Some(NAMESPACE.to_owned()), "codex-controller".to_owned());
        let pod = &objects[&key]["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["securityContext"]["runAsUser"], &pod["securityContext"]["runAsGroup"]),
            (&id.into(), &id.into())
        );
        let environment = pod["containers"][0]["env"].as_array().unwrap();
        let told = environment.iter().find(|it| it["name"] == "CODEX_RUN_AS").map(|it| it["value"].clone());
        assert_eq!(told, (id != 65_532).then(|| id.to_string().into()), "a text, not a number with an exponent");
    }
}

#[test]
fn two_controllers_have_a_short_lease() {
    let duration = |values: &str| {
        let objects = template(&["--set", values]).unwrap();
        let key = ("Deployment".to_owned(), Some(NAMESPACE.to_owned()), "codex-controller".to_owned());
        let environment = objects[&key]["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        environment.iter().find(|it| it["name"] == "CODEX_LEASE_DURATION").map(|it| it["value"].clone())
    };
    assert_eq!(duration("replicas=1"), None);
    assert_eq!(duration("replicas=2"), Some("7".into()));
    assert_eq!(duration("replicas=3,leaseDuration=20"), Some("20".into()));
    assert_eq!(duration("leaseDuration=15"), Some("15".into()));
}

#[test]
fn watched_namespaces_get_roles() {
    let objects = template(&["--set", "watchNamespaces={team-a,team-b}"]).unwrap();
    let get = |kind: &str, namespace: Option<&str>| {
        objects[&(kind.to_owned(), namespace.map(str::to_owned), "codex-controller".to_owned())].clone()
    };
    let cluster_wide = get("ClusterRole", None);
    let groups: Vec<_> = cluster_wide["rules"].as_array().unwrap().iter().map(|rule| &rule["apiGroups"][0]).collect();
    let of_cluster = ["codex-ml.dev", "admissionregistration.k8s.io", "authentication.k8s.io", "coordination.k8s.io"];
    assert_eq!(groups, of_cluster);
    let everywhere = template(&[]).unwrap();
    let all = &everywhere[&("ClusterRole".to_owned(), None, "codex-controller".to_owned())]["rules"];
    for team in ["team-a", "team-b"] {
        let role = get("Role", Some(team));
        let mut rules = role["rules"].as_array().unwrap().clone();
        rules.extend(cluster_wide["rules"].as_array().unwrap().iter().cloned());
        assert_eq!(&Value::from(rules), all, "the rules are divided, not changed");
        assert_eq!(get("RoleBinding", Some(team))["subjects"][0]["namespace"], NAMESPACE);
    }
    let environment = get("Deployment", Some(NAMESPACE))["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    let watched = environment.as_array().unwrap().iter().find(|it| it["name"] == "CODEX_WATCH_NAMESPACES").unwrap();
    assert_eq!(watched["value"], "team-a,team-b");
    let own = template(&["--set", "watchNamespaces={codex-system}"]).unwrap_err();
    assert!(own.contains("watchNamespaces holds codex-system, the controller's own namespace"), "{own}");
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (value, named) in [
        ("replcas=2", "replcas"),
        ("replicas=two", "/replicas"),
        ("leaseDuration=4", "/leaseDuration"),
        ("images.controller=", "/images/controller"),
        ("imagePullPolicy=Sometimes", "/imagePullPolicy"),
        ("runAs=0", "/runAs"),
        ("runAs=root", "/runAs"),
        ("watchNamespaces={Team_A}", "/watchNamespaces/0"),
        ("admissionPolicies.administrators={it's}", "/admissionPolicies/administrators/0"),
    ] {
        let refused = template(&["--set", value]).unwrap_err();
        assert!(refused.contains(named), "{value}: {refused}");
    }
}

/// Waits until a check holds.
fn until(what: &str, check: impl Fn() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_mins(2), "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_release_is_installed_upgraded_rolled_back_and_removed() {
    let installation = Installation::load().unwrap();
    let kubectl = |arguments: &[&str]| {
        let out = run(installation.cluster.kubectl().unwrap().args(arguments));
        let text = String::from_utf8(if out.status.success() { out.stdout } else { out.stderr }).unwrap();
        if out.status.success() { Ok(text) } else { Err(text) }
    };
    let owner = kubectl(&[
        "get",
        "clusterrole",
        "codex-controller",
        "--ignore-not-found",
        "--output=jsonpath={.metadata.labels}",
    ]);
    let owner = owner.unwrap();
    assert!(
        owner.is_empty() || owner.contains("Helm"),
        "the operator is installed on this cluster already, and not by Helm: take another cluster"
    );
    let helm = |arguments: &[&str]| {
        let out = run(helm().arg("--kubeconfig").arg(installation.cluster.kubeconfig()).args(arguments));
        assert!(out.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let images = format!(
        "images.controller={},images.trainer={},images.worker={}",
        installation.controller_image, installation.worker_image, installation.worker_image
    );
    let chart = chart().display().to_string();
    let release = ["--namespace", NAMESPACE, "--wait", "--timeout=3m"];
    let with = |verb: &[&str], more: &[&str]| {
        let own = [chart.as_str(), "--set", images.as_str()];
        helm(&[verb, &release, &own, more].concat());
    };
    for namespace in [TEAM, OTHER] {
        let _ = kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]);
        kubectl(&["create", "namespace", namespace]).unwrap();
    }
    let evaluation = |name: &str, namespace: &str| {
        let manifest = serde_json::json!({
            "apiVersion": "codex-ml.dev/v1alpha1",
            "kind": "Evaluation",
            "metadata": { "name": name, "namespace": namespace },
            "spec": { "trainingRun": "absent", "preset": "cot-lite",
                "gates": [{ "metric": "exact_match", "min": "0.5" }] },
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest.to_string()).unwrap();
        kubectl(&["apply", "--filename", file.path().to_str().unwrap()]).unwrap();
    };
    let condition = |name: &str, namespace: &str| {
        let path = "--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        kubectl(&["--namespace", namespace, "get", "evaluation", name, path]).unwrap()
    };

    with(&["install", RELEASE, "--create-namespace"], &[]);
    evaluation("first", TEAM);
    until("the installed controller writes a status", || condition("first", TEAM) == "False");

    with(&["upgrade", RELEASE], &["--set", &format!("watchNamespaces={{{TEAM}}}")]);
    kubectl(&["--namespace", TEAM, "get", "role", "codex-controller"]).unwrap();
    evaluation("unwatched", OTHER);
    evaluation("second", TEAM);
    until("the upgraded controller watches its namespace", || condition("second", TEAM) == "False");
    assert_eq!(condition("unwatched", OTHER), "", "another namespace is not watched");

    helm(&[&["rollback", RELEASE, "1"], &release[..]].concat());
    until("the former controller watches all namespaces", || condition("unwatched", OTHER) == "False");
    assert!(kubectl(&["--namespace", TEAM, "get", "role", "codex-controller"]).unwrap_err().contains("NotFound"));

    helm(&[&["uninstall", RELEASE], &release[..]].concat());
    assert!(
        kubectl(&["--namespace", NAMESPACE, "get", "deployment", "codex-controller"]).unwrap_err().contains("NotFound")
    );
    kubectl(&["--namespace", TEAM, "get", "evaluation", "first"]).unwrap();
    kubectl(&["--namespace", NAMESPACE, "get", "secret", "codex-signing-key"]).unwrap();
    kubectl(&["delete", "namespace", TEAM, OTHER]).unwrap();
}
