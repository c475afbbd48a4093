//! The policies for Kyverno in `manifests/engines`, tried by Kyverno itself on pods as plans make them: run by `make test-policies`, which
//! builds its command. The policy for images is tried in `tests/engines`.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use codex_plan::{
    reasoning_pod::{self, ObservedReasoningPod},
    training_run,
};
use codex_provenance::attestation::AttestationKind;
use codex_verdict::Ring;
use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use serde_json::{Value, json};

use crate::{
    make,
    policies::{demand, serving},
    rotation::signed_by_an_identity,
    world::World,
};

/// The policies for pods.
const VERIFY: &str = "codex-servers";
const ATTESTATIONS: &str = "codex-servers-in-main";
/// A namespace, and one with the label of the ring `main`.
const TEAM: &str = "team";
const PRODUCTION: &str = "production";

/// A pod, and the results of the policies that apply to it.
struct Case {
    pod: Value,
    expected: BTreeMap<&'static str, &'static str>,
}

/// Returns a pod of a template that is called like what is special about it.
fn case(what: &str, namespace: &str, template: &PodTemplateSpec, expected: &[(&'static str, &'static str)]) -> Case {
    let metadata = json!({
        "name": what.replace(' ', "-"),
        "namespace": namespace,
        "labels": template.metadata.as_ref().unwrap().labels,
    });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec });
    Case { pod, expected: expected.iter().copied().collect() }
}

fn servers(observed: &ObservedReasoningPod) -> PodTemplateSpec {
    let mut plan = reasoning_pod::plan(observed, make::at(9));
    plan.desired.deployments.remove(0).spec.unwrap().template
}

/// Returns the servers of a model in the ring `main`, which verify these attestations.
fn servers_in_main(attestations: &[AttestationKind]) -> PodTemplateSpec {
    let mut observed = serving();
    observed.object.spec.rollout_ring = Ring::Main;
    observed.run.as_mut().unwrap().spec.rollout_ring = Ring::Main;
    (observed.deployment, observed.object.status) = (None, None);
    demand(&mut observed, attestations);
    servers(&observed)
}

fn trainer() -> PodTemplateSpec {
    let mut plan = training_run::plan(&World::new().observed_run(), make::at(1));
    plan.desired.jobs.remove(0).spec.unwrap().template
}

/// Returns a template whose arguments were changed.
fn with(template: &PodTemplateSpec, change: impl FnOnce(&mut Vec<String>)) -> PodTemplateSpec {
    let mut template = template.clone();
    change(template.spec.as_mut().unwrap().containers[0].args.as_mut().unwrap());
    template
}

/// Returns what Kyverno reports: for each pod, the result of each policy that applies.
fn kyverno(policies: &Path, pods: &[&Value]) -> BTreeMap<String, BTreeMap<String, String>> {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, documents: &[&Value]| {
        let file = folder.path().join(name);
        let text: String =
            documents.iter().flat_map(|document| ["---\n".to_owned(), document.to_string(), "\n".to_owned()]).collect();
        fs::write(&file, text).unwrap();
        file
    };
    let labels = json!({ "codex-ml.dev/ring": "main" });
    let namespaces = json!([{ "name": TEAM, "labels": {} }, { "name": PRODUCTION, "labels": labels }]);
    let values = json!({ "apiVersion": "cli.kyverno.io/v1alpha1", "kind": "Values", "namespaceSelector": namespaces });
    let program = std::env::var_os("KYVERNO").unwrap_or_else(|| panic!("KYVERNO is not set: run `make test-policies`"));
    let mut command = Command::new(program);
    command.arg("apply").arg(policies).arg("--values-file").arg(write("values.yaml", &[&values]));
    command.arg("--resource").arg(write("pods.yaml", pods));
    let ended = command.args(["--policy-report", "--output-format", "json", "--remove-color"]).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    let mut results: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for report in told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for result in report["results"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let policies = results.entry(text(&result["resources"][0]["name"])).or_default();
            policies.insert(text(&result["policy"]), text(&result["result"]));
        }
    }
    assert!(!results.is_empty(), "{told}{}", String::from_utf8_lossy(&ended.stderr));
    results
}

#[test]
#[ignore = "needs the command of Kyverno: make test-policies"]
fn kyverno_admits_the_servers_of_plans_and_no_others() {
    let (keyed, keyless) = (servers(&serving()), servers(&signed_by_an_identity()));
    let attested = servers_in_main(&AttestationKind::ALL);
    let mut cases = vec![
        case("signed with a key", TEAM, &keyed, &[(VERIFY, "pass")]),
        case("signed by an identity", TEAM, &keyless, &[(VERIFY, "pass")]),
        case("attested in main", PRODUCTION, &attested, &[(VERIFY, "pass"), (ATTESTATIONS, "pass")]),
        case("attested elsewhere", TEAM, &attested, &[(VERIFY, "pass")]),
        case("another ring in main", PRODUCTION, &keyed, &[(VERIFY, "pass"), (ATTESTATIONS, "fail")]),
        case("a trainer", TEAM, &trainer(), &[]),
        case("a trainer in main", PRODUCTION, &trainer(), &[]),
    ];
    let unsigned = with(&keyed, |args| args.push("--unsigned".to_owned()));
    cases.push(case("unsigned", TEAM, &unsigned, &[(VERIFY, "fail")]));
    let without_arguments = with(&keyed, Vec::clear);
    cases.push(case("without arguments", TEAM, &without_arguments, &[(VERIFY, "fail")]));
    let container = |change: &dyn Fn(&mut Container)| {
        let mut template = keyed.clone();
        change(&mut template.spec.as_mut().unwrap().containers[0]);
        template
    };
    let without_args = container(&|server| server.args = None);
    cases.push(case("without args", TEAM, &without_args, &[(VERIFY, "fail")]));
    let another_command = container(&|server| server.command = Some(vec!["/other".to_owned()]));
    cases.push(case("another command", TEAM, &another_command, &[(VERIFY, "fail")]));
    let mut with_a_sidecar = keyed.clone();
    let sidecar = Container { name: "proxy".to_owned(), image: Some("proxy:1".to_owned()), ..Container::default() };
    with_a_sidecar.spec.as_mut().unwrap().containers.insert(0, sidecar);
    cases.push(case("with a sidecar", TEAM, &with_a_sidecar, &[(VERIFY, "pass")]));
    for flag in ["--model-digest", "--promotion-digest", "--key-fingerprint", "--ring"] {
        let template = with(&keyed, |args| {
            let place = args.iter().position(|arg| arg == flag).unwrap();
            args.drain(place..place + 2);
        });
        let what = format!("without {}", flag.trim_start_matches('-'));
        cases.push(case(&what, TEAM, &template, &[(VERIFY, "fail")]));
    }
    for missing in AttestationKind::ALL {
        let kinds: Vec<_> = AttestationKind::ALL.into_iter().filter(|kind| *kind != missing).collect();
        let expected = [(VERIFY, "pass"), (ATTESTATIONS, "fail")];
        let what = format!("without {}", missing.name().to_lowercase());
        cases.push(case(&what, PRODUCTION, &servers_in_main(&kinds), &expected));
    }

    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/engines/kyverno.yaml");
    let pods: Vec<&Value> = cases.iter().map(|case| &case.pod).collect();
    let found = kyverno(&policies, &pods);
    for Case { pod, expected } in &cases {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let mut policies = found.get(name).cloned().unwrap_or_default();
        // It is about images of another registry.
        policies.remove("codex-images");
        let expected = expected.iter().map(|(policy, result)| ((*policy).to_owned(), (*result).to_owned())).collect();
        assert_eq!(policies, expected, "{name}");
    }
}
