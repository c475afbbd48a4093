//! Runs the scripts for Argo CD in a Lua 5.1 interpreter, over recorded statuses of every phase. Needs no cluster.
//!
//! The layout is that of Argo CD's own repository: `resource_customizations/GROUP/KIND/` with `health.lua`,
//! `health_test.yaml`, `actions/discovery.lua`, `actions/NAME/action.lua` and `actions/action_test.yaml`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use codex_crds::{Evaluation, Reason, ReasoningPod, TrainingRun};
use codex_tests::install::repository;
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

const KINDS: [&str; 3] = ["TrainingRun", "Evaluation", "ReasoningPod"];
/// The kind of Kubernetes whose health is overridden.
const CLAIM: &str = "PersistentVolumeClaim";
const REGENERATE: &str = "UPDATE=1 cargo test --release --locked --workspace --test argocd";

/// A file `health_test.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthTests {
    tests: Vec<HealthTest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HealthTest {
    health_status: Health,
    input_path: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Health {
    status: String,
    message: String,
}

/// A file `action_test.yaml`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ActionTests {
    discovery_tests: Vec<DiscoveryTest>,
    action_tests: Vec<ActionTest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DiscoveryTest {
    input_path: String,
    result: Vec<Discovered>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Discovered {
    name: String,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ActionTest {
    action: String,
    input_path: String,
    expected_output_path: String,
}

/// The folder of a kind. Those of Kubernetes' core group have no folder of a group around them.
fn folder(kind: &str) -> PathBuf {
    let all = repository().join("manifests/argocd/resource_customizations");
    if kind == CLAIM { all.join(kind) } else { all.join("codex-ml.dev").join(kind) }
}

/// The key of the health script of a kind in Argo CD's ConfigMap.
fn health_key(kind: &str) -> String {
    let group = if kind == CLAIM { "" } else { "codex-ml.dev_" };
    format!("resource.customizations.health.{group}{kind}")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn parse<T: DeserializeOwned>(path: &Path) -> T {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Runs a script on an object, as Argo CD does: without the libraries that reach files or processes.
fn run<T: DeserializeOwned>(script: &Path, object: &Value) -> T {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::MATH, LuaOptions::default()).unwrap();
    lua.globals().set("obj", lua.to_value(object).unwrap()).unwrap();
    let result: mlua::Value = lua.load(read(script)).set_name(script.display().to_string()).eval().unwrap();
    lua.from_value(result).unwrap()
}

fn health(kind: &str, object: &Value) -> Health {
    run(&folder(kind).join("health.lua"), object)
}

#[test]
fn scripts_give_the_recorded_health() {
    for kind in KINDS.into_iter().chain([CLAIM]) {
        let HealthTests { tests } = parse(&folder(kind).join("health_test.yaml"));
        let mut statuses = BTreeSet::new();
        for test in &tests {
            let object: Value = parse(&folder(kind).join(&test.input_path));
            assert_eq!(health(kind, &object), test.health_status, "{kind}: {}", test.input_path);
            statuses.insert(test.health_status.status.clone());
        }
        let suspends: &[&str] = if matches!(kind, "ReasoningPod" | CLAIM) { &[] } else { &["Suspended"] };
        let expected = ["Degraded", "Healthy", "Progressing"].iter().chain(suspends);
        assert_eq!(statuses, expected.map(|status| (*status).to_owned()).collect(), "{kind}");
        let named: BTreeSet<_> = tests.iter().map(|test| folder(kind).join(&test.input_path)).collect();
        let files: BTreeSet<_> =
            fs::read_dir(folder(kind).join("testdata")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(named, files, "{kind}: every recorded object has a test");
    }
}

/// The objects in `testdata`.
fn recorded(kind: &str) -> Vec<Value> {
    let HealthTests { tests } = parse(&folder(kind).join("health_test.yaml"));
    tests.iter().map(|test| parse(&folder(kind).join(&test.input_path))).collect()
}

/// Checks that an object is one of today's API.
fn is_valid<K: DeserializeOwned>(object: &Value) {
    serde_json::from_value::<K>(object.clone()).unwrap_or_else(|why| panic!("{why}: {object:#}"));
    for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
        let reason = condition["reason"].as_str().unwrap();
        assert!(Reason::ALL.iter().any(|known| known.name() == reason), "the reason {reason} does not exist");
    }
}

/// The phase that a status shows: of an Evaluation, its verdict or how it stands before that.
fn phase(object: &Value) -> String {
    let status = &object["status"];
    let condition = |kind: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.clone().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    };
    let shown = [&status["phase"], &status["verdict"]].into_iter().find_map(Value::as_str);
    match (shown, condition("Ready")["reason"].as_str()) {
        (Some(shown), _) => shown.to_owned(),
        _ if condition("Stalled")["status"] == "True" => "Stalled".to_owned(),
        (None, Some(reason @ ("Suspended" | "Running"))) => reason.to_owned(),
        (None, Some(_)) => "Pending".to_owned(),
        (None, None) => "none".to_owned(),
    }
}

/// The rows of the table of `docs/install.md`: kind, phase, health.
fn documented() -> BTreeSet<[String; 3]> {
    let page = read(&repository().join("docs/install.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = rows.map(|row| row.split(" | ").map(|cell| cell.trim_matches('`').to_owned()).collect::<Vec<_>>());
    let rows = cells.filter(|cells| cells.len() == 4 && KINDS.contains(&&*cells[0]));
    rows.map(|cells| [cells[0].clone(), cells[1].clone(), cells[2].clone()]).collect()
}

#[test]
fn every_phase_is_recorded_and_documented_with_its_health() {
    let phases: BTreeMap<_, &[&str]> = BTreeMap::from([
        ("TrainingRun", &["Pending", "Running", "Suspended", "Stalled", "Succeeded", "Failed", "Unreproducible"][..]),
        ("Evaluation", &["Pending", "Running", "Suspended", "Passed", "Failed", "Inconclusive", "Stalled"][..]),
        ("ReasoningPod", &["Pending", "DryRun", "Blocked", "RollingOut", "Serving", "Idle"][..]),
    ]);
    let mut seen = BTreeSet::new();
    for kind in KINDS {
        for object in recorded(kind) {
            match kind {
                "TrainingRun" => is_valid::<TrainingRun>(&object),
                "Evaluation" => is_valid::<Evaluation>(&object),
                _ => is_valid::<ReasoningPod>(&object),
            }
            // An object that the controller has not seen since its change shows the phase before the change.
            if object["status"]["observedGeneration"] == object["metadata"]["generation"] {
                seen.insert([kind.to_owned(), phase(&object), health(kind, &object).status]);
            }
        }
        let found: BTreeSet<_> = seen.iter().filter(|[of, ..]| of == kind).map(|[_, phase, _]| &**phase).collect();
        assert_eq!(found, phases[kind].iter().copied().collect(), "{kind}");
    }
    assert_eq!(documented(), seen, "the table of docs/install.md (left) differs from what the scripts say (right)");
}

#[test]
fn actions_are_offered_when_they_change_something() {
    for kind in ["TrainingRun", "Evaluation"] {
        let actions = folder(kind).join("actions");
        let tests: ActionTests = parse(&actions.join("action_test.yaml"));
        let mut disabled = BTreeSet::new();
        for test in &tests.discovery_tests {
            let object: Value = parse(&actions.join(&test.input_path));
            let found: BTreeMap<String, BTreeMap<String, bool>> = run(&actions.join("discovery.lua"), &object);
            let found: BTreeMap<_, _> = found.into_iter().map(|(name, action)| (name, action["disabled"])).collect();
            let expected: BTreeMap<_, _> =
                test.result.iter().map(|action| (action.name.clone(), action.disabled)).collect();
            assert_eq!(found, expected, "{kind}: {}", test.input_path);
            disabled.extend(found);
        }
        // Each action is tested enabled and disabled, and its effect, too.
        assert_eq!(disabled.len(), 6, "{kind}: {disabled:?}");
        assert_eq!(tests.action_tests.len(), 3, "{kind}");
        for test in &tests.action_tests {
            let before: Value = parse(&actions.join(&test.input_path));
            let expected: Value = parse(&actions.join(&test.expected_output_path));
            let after: Value = run(&actions.join(&test.action).join("action.lua"), &before);
            assert_eq!(after, expected, "{kind}: {}", test.action);
            assert_ne!(before["spec"], after["spec"], "{kind}: {} changes nothing", test.action);
        }
    }
}

/// An object that was just created has no status, and one that was just changed has that of its former spec.
#[test]
fn an_object_that_was_not_observed_is_progressing() {
    for kind in KINDS {
        let mut object = recorded(kind).into_iter().find(|it| health(kind, it).status == "Healthy").unwrap();
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        assert_eq!(health(kind, &object).status, "Progressing");
        object.as_object_mut().unwrap().remove("status");
        assert_eq!(health(kind, &object).status, "Progressing");
    }
}

/// Returns a key of YAML with a text below it.
fn block(key: &str, text: &str, indent: usize) -> String {
    let lines = std::iter::once(format!("{key}: |")).chain(text.lines().map(|line| format!("  {line}")));
    lines.map(|line| [&" ".repeat(indent), &*line, "\n"].concat()).collect::<Vec<_>>().concat()
}

/// Returns the patch of Argo CD's ConfigMap, with the scripts in it.
fn customizations() -> String {
    let mut parts = vec![format!(
        "# Generated from resource_customizations/: {REGENERATE}\n\
         # Health and actions of the kinds, and the health of claims, as a part of Argo CD's ConfigMap. docs/install.md says how to add it.\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\ndata:\n"
    )];
    for kind in KINDS.into_iter().chain([CLAIM]) {
        parts.push(block(&health_key(kind), &read(&folder(kind).join("health.lua")), 2));
    }
    for kind in ["TrainingRun", "Evaluation"] {
        let actions = folder(kind).join("actions");
        let mut value =
            vec![block("discovery.lua", &read(&actions.join("discovery.lua")), 0), "definitions:\n".to_owned()];
        for action in ["resume", "retry", "suspend"] {
            value.push(format!("- name: {action}\n"));
            value.push(block("action.lua", &read(&actions.join(action).join("action.lua")), 2));
        }
        let key = format!("resource.customizations.actions.codex-ml.dev_{kind}");
        parts.push(block(&key, &value.concat(), 2));
    }
    parts.concat()
}

#[test]
fn the_patch_of_the_config_map_holds_the_scripts() {
    let path = repository().join("manifests/argocd/customizations.yaml");
    let expected = customizations();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    assert!(read(&path) == expected, "{} is out of date: regenerate it with\n    {REGENERATE}\n", path.display());
    let object: Value = parse(&path);
    for kind in KINDS.into_iter().chain([CLAIM]) {
        assert_eq!(object["data"][health_key(kind)], read(&folder(kind).join("health.lua")));
    }
    for kind in ["TrainingRun", "Evaluation"] {
        let key = format!("resource.customizations.actions.codex-ml.dev_{kind}");
        let value: Value = serde_yaml::from_str(object["data"][&*key].as_str().unwrap()).unwrap();
        assert_eq!(value["discovery.lua"], read(&folder(kind).join("actions/discovery.lua")));
        for definition in value["definitions"].as_array().unwrap() {
            let name = definition["name"].as_str().unwrap();
            assert_eq!(definition["action.lua"], read(&folder(kind).join("actions").join(name).join("action.lua")));
        }
    }
}

#[test]
fn the_samples_are_those_of_the_documents() {
    let folder = repository().join("manifests/argocd");
    let page = read(&repository().join("docs/install.md"));
    let application = read(&folder.join("application.yaml"));
    // The end-to-end tests apply every YAML of the documents to an API server.
    assert!(
        page.contains(&format!("```yaml\n{application}```")),
        "docs/install.md must show application.yaml as it is"
    );
    let application: Value = serde_yaml::from_str(&application).unwrap();
    let set: Value = parse(&folder.join("applicationset.yaml"));
    let mut spec = set["spec"]["template"]["spec"].clone();
    assert_eq!(spec["source"]["path"], "{{.path.path}}");
    assert_eq!(spec["destination"]["namespace"], "{{.path.basename}}");
    spec["source"]["path"] = application["spec"]["source"]["path"].clone();
    spec["destination"]["namespace"] = application["spec"]["destination"]["namespace"].clone();
    assert_eq!(spec, application["spec"]);
}

/// Neither pruning nor deleting the application may delete a volume with models.
#[test]
fn claims_of_the_samples_are_kept() {
    let (mut folders, mut claims) = (vec![repository().join("manifests/samples")], 0);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let documents =
                serde_yaml::Deserializer::from_str(&read(&path)).map(Value::deserialize).collect::<Vec<_>>();
            let objects =
                documents.into_iter().map(|object| object.unwrap_or_else(|why| panic!("{}: {why}", path.display())));
            for claim in objects.filter(|object| object["kind"] == CLAIM) {
                let options = &claim["metadata"]["annotations"]["argocd.argoproj.io/sync-options"];
                assert_eq!(options, "Prune=false,Delete=false", "{}", path.display());
                claims += 1;
            }
        }
    }
    assert!(claims >= 6, "{claims}");
}
