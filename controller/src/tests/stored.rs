//! Objects, their children and bundles as an API server stored them with each release (`crds/tests/stored`): after an upgrade to this
//! version every status is believed, nothing is created, replaced or deleted, and no result is forgotten.
//!
//! `tests/e2e/stored.rs` writes the files of a new release. They are as kubectl prints the objects, with the seals of that release and
//! the key of its cluster, which is gone: the seals show whether this version reads the same from a status as the release that wrote it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::{Sealable, StatusSeal};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{signer::list, world::World};
use crate::{
    clock::{Clock, Simulated},
    observe::{Observe, get},
    reconcile::reconcile,
    seal::Seal,
};

const SYSTEM: &str = "codex-system";
const TRUSTED: &str = "/api/v1/namespaces/codex-system/configmaps/codex-trusted-keys";
/// The times of an object that say until when it was written.
const TIMES: [&str; 3] = ["creationTimestamp", "lastTransitionTime", "reportedAt"];

/// Returns the paths in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Returns the objects that a release stored.
fn stored(folder: &Path) -> Vec<Value> {
    let items = |path: PathBuf| {
        let list: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        list["items"].as_array().unwrap_or_else(|| panic!("{} is no List", path.display())).clone()
    };
    entries(folder).into_iter().flat_map(items).collect()
}

/// Returns the path of an object in the API.
fn place(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (text("/apiVersion").unwrap(), text("/kind").unwrap().to_lowercase());
    let root = if version.contains('/') { "apis" } else { "api" };
    let namespace = text("/metadata/namespace").map_or_else(String::new, |name| format!("/namespaces/{name}"));
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    format!("/{root}/{version}{namespace}/{plural}/{}", text("/metadata/name").unwrap())
}

/// Returns the latest time in a value at which something was written.
fn latest(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Object(fields) => {
            let times = TIMES.iter().filter_map(|field| fields.get(*field)?.as_str()?.parse::<Timestamp>().ok());
            times.chain(fields.values().filter_map(latest)).max()
        }
        Value::Array(items) => items.iter().filter_map(latest).max(),
        _ => None,
    }
}

/// Returns a cluster with these objects and a controller that has just started. It has a signing key of its own, and trusts those that
/// signed the bundles.
async fn world(objects: &[Value]) -> World {
    let mut world = World::new().await;
    for object in objects {
        world.api.put(&place(object), object.clone());
    }
    let seal = Seal::load(world.api.client(), SYSTEM).await.unwrap();
    let context = Arc::get_mut(&mut world.context).unwrap();
    context.seal = seal;
    context.clock = Clock::Simulated(Simulated::starting_at(objects.iter().filter_map(latest).max().unwrap()));
    let signed = objects.iter().filter_map(|object| object.pointer("/data/key.pem")?.as_str().map(str::to_owned));
    let own = world.context.signer.trusted().keys[0].to_pem().to_owned();
    let keys: BTreeSet<String> = signed.chain([own]).collect();
    let keys: Vec<_> = keys.into_iter().enumerate().map(|(number, key)| (format!("{number}.pub"), key)).collect();
    let keys: Vec<_> = keys.iter().map(|(name, key)| (name.as_str(), key.clone())).collect();
    world.api.put(TRUSTED, list(&keys));
    world.context.signer.refresh().await;
    world.api.requests();
    world
}

/// What later steps and users read of a status: what is sealed, what is derived from it, and the state of each condition.
fn lasting<S: Sealable>(status: &Value) -> Value {
    let typed: S = serde_json::from_value(status.clone()).unwrap();
    let derived: BTreeMap<_, _> =
        S::DERIVED.iter().chain(&["phase"]).map(|field| (*field, status[*field].clone())).collect();
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let conditions: BTreeMap<_, _> =
        conditions.map(|it| (it["type"].as_str().unwrap(), (&it["status"], &it["reason"]))).collect();
    json!({ "sealed": typed.sealed(), "derived": derived, "conditions": conditions })
}

/// Reconciles an object until nothing is written, and returns the faults.
async fn faults<K: Observe>(world: &World, object: &Value, known: &BTreeSet<String>) -> Vec<String> {
    let found = || {
        let metadata = &object["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        get(K::store(&world.context), namespace, name).unwrap()
    };
    let name = format!("{} {}", K::kind(&()), found().name_any());
    let mut faults = Vec::new();
    let seal = found().check_seal(&world.context);
    if seal != StatusSeal::Valid {
        faults.push(format!("{name}: this version reads another status from what was sealed: {seal:?}"));
    }
    for round in 0.. {
        Box::pin(reconcile(found(), &world.context)).await.unwrap();
        let requests = world.api.requests();
        let writes: Vec<_> =
            requests.iter().filter(|line| !line.starts_with("GET ") && !line.contains("/events")).collect();
        let changed = |line: &&&String| {
            let path = line.split(' ').nth(1).unwrap_or_default();
            line.starts_with("PATCH ") && known.contains(path.strip_suffix("/status").unwrap_or(path))
        };
        faults.extend(writes.iter().filter(|line| !changed(line)).map(|line| format!("{name}: {line}")));
        if writes.is_empty() {
            break;
        }
        assert!(round < 8, "{name} does not settle: {writes:#?}");
    }
    let now = serde_json::to_value(found().status()).unwrap();
    let (before, after) = (lasting::<K::Status>(&object["status"]), lasting::<K::Status>(&now));
    if before != after {
        faults.push(format!("{name}: {before:#} became {after:#}"));
    }
    faults
}

#[tokio::test]
async fn after_an_upgrade_everything_is_as_the_former_release_left_it() {
    let folders = entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/tests/stored"));
    assert!(!folders.is_empty(), "no release has stored objects");
    for folder in folders {
        let objects = stored(&folder);
        let world = world(&objects).await;
        let known: BTreeSet<String> = objects.iter().map(place).collect();
        let mut told = Vec::new();
        for object in &objects {
            told.extend(match object["kind"].as_str().unwrap() {
                "TrainingRun" => faults::<TrainingRun>(&world, object, &known).await,
                "Evaluation" => faults::<Evaluation>(&world, object, &known).await,
                "ReasoningPod" => faults::<ReasoningPod>(&world, object, &known).await,
                _ => Vec::new(),
            });
        }
        // Pods must not be replaced: a Job and a Deployment keep the template with which they were created.
        for object in objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object()) {
            let now = world.api.object(&place(object)).unwrap();
            if now["spec"] != object["spec"] {
                told.push(format!("{}: its spec became {:#}", place(object), now["spec"]));
            }
        }
        assert!(told.is_empty(), "{}:\n{}", folder.display(), told.join("\n"));
    }
}
