//! What a start does about bad input: each is named, everything else goes on, and what is repaired takes effect without a restart.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_crds::{TrainingRun, label};
use http::{Request, Response};
use k8s_openapi::ByteString;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::world::{Api, World, path, run};
use crate::{
    leader::{self, MarkError},
    metrics::Metrics,
    observe::{Queues, watch},
    operator::persistently,
    seal::Seal,
    signer::{Signer, Signing},
};

const SEAL: &str = "/api/v1/namespaces/codex-system/secrets/codex-seal";
const KEY: &str = "/api/v1/namespaces/codex-system/secrets/codex-signing-key";
const PODS: &str = "/api/v1/namespaces/codex-system/pods";

fn secret(bytes: &[u8]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "codex-seal"},
        "data": {"seal.key": ByteString(bytes.to_vec())},
    })
}

#[tokio::test(start_paused = true)]
async fn a_damaged_seal_is_named_again_and_again_and_never_replaced_and_its_repair_is_noticed() {
    let api = Api::default();
    api.put(SEAL, secret(b"short"));
    let (client, told) = (api.client(), Mutex::new(Vec::new()));
    let load = async || Seal::load(client.clone(), "codex-system").await;
    let loading = persistently(load, |why| told.lock().unwrap().push(why.to_owned()));
    tokio::pin!(loading);
    assert!(timeout(Duration::from_mins(5), &mut loading).await.is_err());
    assert!(api.requests().iter().all(|line| line == &format!("GET {SEAL}")), "nothing is written");
    {
        let told = told.lock().unwrap();
        assert!((8..20).contains(&told.len()), "{}", told.len());
        let why = "the Secret codex-seal must hold exactly 32 bytes under \"seal.key\"";
        assert!(told.iter().all(|said| said.starts_with(why) && said.contains("restore it from a backup")), "{told:?}");
    }
    api.put(SEAL, secret(&[7; 32]));
    let seal = timeout(Duration::from_secs(31), loading).await.unwrap();
    assert_eq!(seal.of_reads("text"), Seal::for_tests().of_reads("text"), "the key of the backup");
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_read_the_signing_key_only_signing_waits_for_it() {
    let api = Api::default();
    api.fail(&format!("GET {KEY}"), Some(403));
    assert!(Signer::load(api.client(), "codex-system", Signing::Key).await.is_err());
    let signer = Arc::new(Signer::load_or_wait(api.client(), "codex-system", Signing::Key).await.unwrap());
    let told = signer.available().unwrap_err();
    assert!(told.contains("the Secret codex-signing-key cannot be read") && told.contains("rbac.yaml"), "{told}");
    assert!(api.object(KEY).is_none(), "no key is created before it is known that there is none");
    let changed = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn({
        let (signer, changed) = (signer.clone(), changed.clone());
        async move { Box::pin(signer.watch(|| changed.store(true, Ordering::Relaxed))).await }
    });
    sleep(Duration::from_mins(1)).await;
    assert!(!changed.load(Ordering::Relaxed) && signer.available().is_err());
    api.fail(&format!("GET {KEY}"), None);
    sleep(Duration::from_secs(31)).await;
    signer.available().unwrap();
    assert!(changed.load(Ordering::Relaxed), "ReasoningPods are reconciled again");
    watching.abort();
    // Another failure is none that lasts until somebody grants a right.
    api.fail(&format!("GET {KEY}"), Some(500));
    assert!(Signer::load_or_wait(api.client(), "codex-system", Signing::Key).await.is_err());
}

/// Returns a client of a cluster without objects. It refuses to list the kind `plural` while the flag is set.
fn empty_cluster(plural: &'static str, code: u16, refuses: &Arc<AtomicBool>) -> Client {
    let refuses = refuses.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let refuses = refuses.load(Ordering::Relaxed);
        async move {
            let uri = request.uri();
            if uri.query().is_some_and(|query| query.contains("watch=true")) {
                std::future::pending::<()>().await;
            }
            let (code, body) = if refuses && uri.path().ends_with(&format!("/{plural}")) {
                let message = format!("{plural} is forbidden: cannot list resource");
                (
                    code,
                    json!({"kind": "Status", "status": "Failure", "message": message, "reason": "Forbidden", "code": code}),
                )
            } else {
                (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}))
            };
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "default")
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_is_named_with_the_role_to_apply_and_its_grant_is_noticed() {
    let cluster = "the right to list jobs.batch in all namespaces is missing; apply the ClusterRole codex-controller";
    let team = "the right to list jobs.batch in the namespace team-a is missing; apply the Role codex-controller in the namespace team-a";
    let crd = "the cluster does not have promotionpolicies.codex-ml.dev; apply the CRDs";
    for (plural, code, namespaces, expected) in [
        ("jobs", 403, &[][..], cluster),
        ("jobs", 403, &["team-a".to_owned()][..], team),
        ("promotionpolicies", 404, &[][..], crd),
    ] {
        let forbidden = code == 403;
        let refuses = Arc::new(AtomicBool::new(true));
        let client = empty_cluster(plural, code, &refuses);
        let told = Mutex::new(Vec::new());
        let (queues, _requests) = Queues::new();
        let (metrics, mut tasks) = (Metrics::new().unwrap(), JoinSet::new());
        let tell = |why: &str| told.lock().unwrap().push(why.to_owned());
        let stores = watch(&client, namespaces, &metrics, &queues, &mut tasks, tell);
        tokio::pin!(stores);
        let early = timeout(Duration::from_mins(2), &mut stores).await;
        assert_eq!(early.is_ok(), forbidden, "{plural}: a kind that may not be listed holds up no other kind");
        let last = early
            .as_ref()
            .map_or_else(|_| told.lock().unwrap().last().cloned().unwrap(), |(_, failures)| failures.told());
        assert!(last.starts_with(expected) && last.contains("of this release: "), "{last}");
        assert!(told.lock().unwrap().len() <= 3, "one sentence, however often it fails");
        if let Ok((stores, _)) = &early {
            let of = |namespace: &str| [stores.unknown_training(namespace), stores.unknown_serving(namespace)];
            assert_eq!(of("team-a"), [Some(last), None], "Jobs are unknown, and servers have none");
            assert_eq!(of("team-b")[0].is_some(), namespaces.is_empty(), "another namespace goes on");
        }
        refuses.store(false, Ordering::Relaxed);
        let (stores, failures) = match early {
            Ok(early) => early,
            Err(_) => timeout(Duration::from_mins(2), stores).await.expect("the kind exists"),
        };
        sleep(Duration::from_mins(2)).await;
        assert_eq!(
            (stores.unknown_training("team-a"), failures.told()),
            (None, String::new()),
            "the right was granted"
        );
    }
}

#[tokio::test]
async fn an_object_is_not_planned_while_a_kind_that_it_depends_on_may_not_be_listed() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.api.forbid_jobs(Some("the right to list jobs is missing"));
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    let failure = result.unwrap_err();
    assert_eq!((failure.category(), failure.to_string().as_str()), ("forbidden", "the right to list jobs is missing"));
    assert!(requests.is_empty(), "{requests:?}");
    world.api.forbid_jobs(None);
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn routes_that_may_not_be_listed_hold_up_nothing() {
    let client = empty_cluster("httproutes", 403, &Arc::new(AtomicBool::new(true)));
    let (queues, _requests) = Queues::new();
    let (metrics, mut tasks) = (Metrics::new().unwrap(), JoinSet::new());
    let stores = watch(&client, &[], &metrics, &queues, &mut tasks, |_| {});
    timeout(Duration::from_secs(5), stores).await.expect("the Gateway API is optional");
}

fn pod(name: &str, leads: bool) -> Value {
    let labels = if leads { json!({"app": "x", label::LEADER: "true"}) } else { json!({"app": "x"}) };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "codex-system", "labels": labels}})
}

#[tokio::test]
async fn the_label_of_the_leader_moves_to_the_pod_that_leads() {
    let api = Api::default();
    for (name, leads) in [("old", true), ("older", true), ("idle", false), ("new", false)] {
        api.put(&format!("{PODS}/{name}"), pod(name, leads));
    }
    let leads =
        |name: &str| api.object(&format!("{PODS}/{name}")).unwrap()["metadata"]["labels"][label::LEADER].clone();
    leader::mark(&api.client(), "codex-system", "new").await.unwrap();
    assert_eq!(
        [leads("old"), leads("older"), leads("idle"), leads("new")],
        [json!(null), json!(null), json!(null), json!("true")]
    );
    assert_eq!(api.object(&format!("{PODS}/old")).unwrap()["metadata"]["labels"]["app"], "x", "other labels stay");
    let patch = |name: &str| format!("PATCH {PODS}/{name} as codex-controller");
    assert_eq!(
        api.requests(),
        [format!("GET {PODS}"), patch("old"), patch("older"), patch("new")],
        "the own pod is the last one"
    );
    // A former leader that is gone meanwhile holds up nothing.
    api.put(&format!("{PODS}/old"), pod("old", true));
    api.fail(&format!("PATCH {PODS}/old"), Some(404));
    leader::mark(&api.client(), "codex-system", "new").await.unwrap();
}

#[tokio::test]
async fn a_pod_that_cannot_be_labelled_says_why() {
    let api = Api::default();
    api.put(&format!("{PODS}/new"), pod("new", false));
    api.fail(&format!("PATCH {PODS}/new"), Some(403));
    let told = leader::mark(&api.client(), "codex-system", "new").await.unwrap_err().to_string();
    assert!(told.contains("codex-ml.dev/leader") && told.contains("rbac.yaml"), "{told}");
    api.fail(&format!("PATCH {PODS}/new"), Some(404));
    let missing = leader::mark(&api.client(), "codex-system", "new").await.unwrap_err();
    assert!(matches!(missing, MarkError::Missing { .. }) && missing.to_string().contains("--pod-name"), "{missing}");
    api.fail(&format!("GET {PODS}"), Some(500));
    assert!(matches!(leader::mark(&api.client(), "codex-system", "new").await, Err(MarkError::Client(_))));
}
