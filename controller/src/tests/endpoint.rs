//! The report endpoint: which pods may send which reports.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::http::{Method, Request, StatusCode};
use codex_crds::TrainingRun;
use codex_http::Limits;
use codex_reports::{CHALLENGE_HEADER, KEY_HEADER, SIGNATURE_HEADER, signed_message};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::world::{World, path, run};
use crate::{
    context::Context,
    drift::Role,
    endpoint::{Endpoint, LIMITS, router, serve_on},
    fence::Fence,
    observe::workers::{self, Needed},
};

const JOB: &str = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";
const POD: &str = "/api/v1/namespaces/team/pods/codex-t-a-x";

/// The field that the rejection names, and the change.
type Forgery = (&'static str, fn(&mut Value));

/// A run whose Job has a pod, `codex-t-a-x`, with the token `good`.
struct Scene {
    world: World,
    endpoint: Endpoint,
    // Dropping the sender ends the endpoint's activity.
    active: watch::Sender<Option<Arc<Context>>>,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        world.api.put(&path("trainingruns", "a"), run("a"));
        world.reconcile::<TrainingRun>("a").await.1.unwrap();
        let job = world.api.object(JOB).unwrap();
        world.api.put(POD, pod_of(&job));
        world.api.token("good", token("codex-t-a-x", "pod-uid"));
        let (active, receiver) = watch::channel(Some(world.context.clone()));
        let client = world.context.client.clone();
        let endpoint = Endpoint::new(client, world.context.metrics.clone(), receiver)
            .with_status_timeout(Duration::from_millis(300));
        world.api.requests();
        Self { world, endpoint, active }
    }

    async fn post(&self, token: Option<&str>, body: impl Into<axum::body::Body>) -> (StatusCode, String) {
        let mut request = Request::post("/v1/reports");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = router(self.endpoint.clone()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let code = answer.status();
        let text = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (code, String::from_utf8(text.to_vec()).unwrap())
    }

    async fn report(&self, report: &Value) -> (StatusCode, String) {
        self.post(Some("good"), report.to_string()).await
    }

    /// Returns a valid report of the pod.
    fn good(&self, seq: u64) -> Value {
        let job = self.world.api.object(JOB).unwrap();
        let digest = &job["metadata"]["annotations"]["codex-ml.dev/config-digest"];
        assert!(digest.is_string(), "{job}");
        json!({
            "schemaVersion": 1, "kind": "TrainingRun", "namespace": "team", "name": "a", "objectUid": "a-uid",
            "podUid": "pod-uid", "attempt": 1, "seq": seq, "configDigest": digest,
            "state": {"training": {"stage": "Running", "progress": {
                "step": seq, "totalSteps": 100, "loss": 1.5, "tokensPerSecond": 10.0, "etaSeconds": 9,
            }}},
        })
    }

    async fn refused(&self, change: impl Fn(&mut Value), code: StatusCode, says: &str) {
        let mut report = self.good(1);
        change(&mut report);
        let (found, text) = self.report(&report).await;
        assert_eq!(found, code, "{text}");
        assert!(text.contains(says), "{text:?} does not say {says:?}");
        assert!(self.world.context.inbox.of("a-uid").is_empty());
    }
}

/// Returns the pod that the Job controller creates.
fn pod_of(job: &Value) -> Value {
    let mut spec = job["spec"]["template"]["spec"].clone();
    spec["nodeName"] = json!("node");
    spec["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "codex-t-a-x", "uid": "pod-uid", "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": "codex-t-a", "uid": job["metadata"]["uid"], "controller": true,
            }],
        },
        "spec": spec,
    })
}

fn token(pod: &str, uid: &str) -> Value {
    json!({
        "authenticated": true, "audiences": ["codex-ml.dev/reports"],
        "user": {
            "username": "system:serviceaccount:team:default",
            "extra": {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]},
        },
    })
}

#[tokio::test]
async fn reports_of_a_genuine_pod_are_accepted_with_one_token_review() {
    let mut scene = Scene::new().await;
    for seq in [1, 2, 3] {
        assert_eq!(scene.report(&scene.good(seq)).await, (StatusCode::OK, "accepted\n".to_owned()));
    }
    assert_eq!(scene.world.api.requests(), ["POST /apis/authentication.k8s.io/v1/tokenreviews"]);
    let received = scene.world.context.inbox.of("a-uid");
    assert_eq!((received.len(), received[0].report.seq, received[0].pod.as_str()), (1, 3, "codex-t-a-x"));
    let woken = scene.world.requests.training_runs.try_recv().unwrap();
    assert_eq!((woken.name.as_str(), woken.namespace.as_deref()), ("a", Some("team")));
}

#[tokio::test]
async fn a_replayed_report_is_dropped() {
    let scene = Scene::new().await;
    scene.report(&scene.good(5)).await;
    let (code, text) = scene.report(&scene.good(4)).await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.contains("dropped"), "{text}");
    assert_eq!(scene.world.context.inbox.of("a-uid")[0].report.seq, 5);
}

#[tokio::test]
async fn a_leader_that_may_have_lost_the_lease_accepts_no_report() {
    let mut scene = Scene::new().await;
    let fence = Fence::default();
    scene.endpoint = scene.endpoint.behind(fence.clone());
    let refused = (StatusCode::SERVICE_UNAVAILABLE, "this controller is not the active leader");
    for seq in [1, 2] {
        let (code, text) = scene.report(&scene.good(seq)).await;
        assert!(code == refused.0 && text.contains(refused.1), "{code} {text}");
        assert!(scene.world.context.inbox.of("a-uid").is_empty() && scene.world.api.requests().is_empty());
        // It was paused: its Lease has expired, and nothing has told it so.
        fence.open_until(tokio::time::Instant::now());
    }
    fence.open_until(tokio::time::Instant::now() + Duration::from_mins(1));
    assert_eq!(scene.report(&scene.good(3)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_report_without_a_valid_token_is_rejected() {
    let scene = Scene::new().await;
    let report = scene.good(1).to_string();
    assert_eq!(scene.post(None, report.clone()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(scene.post(Some("unknown"), report.clone()).await.0, StatusCode::UNAUTHORIZED);
    let mut other = token("codex-t-a-x", "pod-uid");
    other["audiences"] = json!(["https://kubernetes.default.svc"]);
    scene.world.api.token("other-audience", other);
    let (code, text) = scene.post(Some("other-audience"), report.clone()).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED);
    assert!(text.contains("codex-ml.dev/reports"), "{text}");
    scene.world.api.token("gone", token("codex-t-a-x", "an-older-uid"));
    let mut of_gone = scene.good(1);
    of_gone["podUid"] = json!("an-older-uid");
    let (code, text) = scene.post(Some("gone"), of_gone.to_string()).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert!(text.contains("no longer exists"), "{text}");
    assert!(scene.world.context.inbox.of("a-uid").is_empty());
}

#[tokio::test]
async fn a_report_must_match_its_sender_and_its_object() {
    let scene = Scene::new().await;
    let forbidden = StatusCode::FORBIDDEN;
    scene.refused(|it| it["podUid"] = json!("another"), forbidden, "podUid is another").await;
    scene.refused(|it| it["objectUid"] = json!("another"), forbidden, "objectUid is another").await;
    scene.refused(|it| it["namespace"] = json!("elsewhere"), forbidden, "namespace is elsewhere").await;
    scene.refused(|it| it["name"] = json!("nothing"), forbidden, "the TrainingRun team/nothing does not exist").await;
    scene.refused(|it| it["configDigest"] = json!("0".repeat(64)), forbidden, "the controller resolved").await;
    scene.refused(|it| it["configDigest"] = Value::Null, forbidden, "configDigest is missing").await;
    let bad = StatusCode::BAD_REQUEST;
    scene.refused(|it| it["schemaVersion"] = json!(2), bad, "schemaVersion is 2").await;
    scene.refused(|it| it["state"] = json!({"serving": {"stage": "Running"}}), bad, "TrainingRun").await;
    scene.refused(|it| it["surprise"] = json!(1), bad, "surprise").await;
    scene.world.api.put(&path("trainingruns", "b"), run("b"));
    let another = |it: &mut Value| {
        it["name"] = json!("b");
        it["objectUid"] = json!("b-uid");
    };
    scene.refused(another, forbidden, "does not belong to the TrainingRun b").await;
}

#[tokio::test]
async fn a_large_report_is_rejected() {
    let scene = Scene::new().await;
    let (code, text) = scene.post(Some("good"), " ".repeat(codex_reports::MAX_BYTES + 1)).await;
    assert_eq!(code, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
    assert!(text.contains("65536"), "{text}");
}

#[tokio::test]
async fn a_pod_that_differs_from_its_template_is_rejected_with_the_field() {
    let forgeries: [Forgery; 4] = [
        ("spec.containers[trainer].image", |pod| pod["spec"]["containers"][0]["image"] = json!("evil:1")),
        ("spec.containers[trainer].command", |pod| pod["spec"]["containers"][0]["command"] = json!(["/bin/sh"])),
        ("spec.containers[trainer].env", |pod| pod["spec"]["containers"][0]["env"] = json!([])),
        ("spec.volumes", |pod| pod["spec"]["volumes"][0] = json!({"name": "x", "emptyDir": {}})),
    ];
    for (field, forge) in forgeries {
        let scene = Scene::new().await;
        let mut forged = scene.world.api.object(POD).unwrap();
        forge(&mut forged);
        scene.world.api.put(POD, forged);
        scene.refused(|_| {}, StatusCode::FORBIDDEN, field).await;
        // The controller does not observe the pod either.
        let job = workers::job(&scene.world.context, "team", "codex-t-a", "a-uid").unwrap();
        let pods = workers::up_to_date(&scene.world.context, &job, Role::Trainer, Needed::Cached).await.unwrap();
        assert!(pods.genuine.is_empty() && pods.refused[0].why.contains(field), "{:?}", pods.refused);
    }
}

/// docs/security.md lists these fields and says why they may differ.
#[tokio::test]
async fn a_pod_may_differ_from_its_template_in_placement_resources_scheduler_and_image_pulls() {
    type Change = (&'static str, fn(&mut Value));
    let changes: [Change; 6] = [
        ("placement", |spec| {
            spec["nodeName"] = json!("other");
            spec["nodeSelector"] = json!({"pool": "other"});
            spec["tolerations"] = json!([{"operator": "Exists"}]);
            spec["topologySpreadConstraints"] =
                json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
            spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["other"]}]}],
            }}});
        }),
        ("resources", |spec| {
            spec["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}});
            spec["resources"] = json!({"limits": {"cpu": "1"}});
            spec["overhead"] = json!({"cpu": "250m"});
        }),
        ("scheduler", |spec| {
            spec["schedulerName"] = json!("other");
            spec["schedulingGates"] = json!([{"name": "team/gate"}]);
        }),
        ("priority", |spec| {
            spec["priority"] = json!(7);
            spec["priorityClassName"] = json!("high");
            spec["preemptionPolicy"] = json!("Never");
        }),
        ("pull secrets", |spec| spec["imagePullSecrets"] = json!([{"name": "registry"}])),
        ("pull policy", |spec| spec["containers"][0]["imagePullPolicy"] = json!("Always")),
    ];
    for (what, change) in changes {
        let scene = Scene::new().await;
        let mut pod = scene.world.api.object(POD).unwrap();
        change(&mut pod["spec"]);
        scene.world.api.put(POD, pod.clone());
        let (code, text) = scene.report(&scene.good(1)).await;
        assert_eq!(code, StatusCode::OK, "{what}: {text}");
        // None of them hides a change of a field that is compared.
        pod["spec"]["containers"][0]["image"] = json!("evil:1");
        scene.world.api.put(POD, pod);
        let (code, text) = scene.report(&scene.good(2)).await;
        assert_eq!(code, StatusCode::FORBIDDEN, "{what}: {text}");
        assert!(text.contains("spec.containers[trainer].image"), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_pod_of_a_foreign_job_is_rejected() {
    let scene = Scene::new().await;
    let mut job = scene.world.api.object(JOB).unwrap();
    job["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    let job = scene.world.api.put(JOB, job);
    scene.world.api.put(POD, pod_of(&job));
    scene.refused(|_| {}, StatusCode::FORBIDDEN, "was not created by this controller").await;
    let mut orphan = scene.world.api.object(POD).unwrap();
    orphan["metadata"]["ownerReferences"] = json!([]);
    scene.world.api.put(POD, orphan);
    scene.refused(|_| {}, StatusCode::FORBIDDEN, "does not belong to an object").await;
}

#[tokio::test]
async fn a_pod_that_is_not_in_the_cache_is_read_from_the_api_server() {
    let scene = Scene::new().await;
    let pod = scene.world.api.object(POD).unwrap();
    scene.world.api.hide(POD);
    assert_eq!(scene.report(&scene.good(1)).await.0, StatusCode::OK);
    assert!(scene.world.api.requests().contains(&format!("GET {POD}")));
    assert_eq!(scene.world.api.object(POD).unwrap(), pod);
}

#[tokio::test]
async fn a_final_report_is_accepted_only_when_it_is_in_the_status() {
    let scene = Scene::new().await;
    let mut last = scene.good(9);
    last["state"] = json!({"training": {"stage": "Failed", "failure": {
        "final": true, "reason": "DataMismatch", "message": "data[sums] has another sha256",
    }}});
    let (code, text) = scene.report(&last).await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(text.contains("retry later"), "{text}");
    let (answer, ()) = tokio::join!(scene.report(&last), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
    });
    assert_eq!(answer.0, StatusCode::OK, "{}", answer.1);
    // The pod repeats the report because the answer was lost.
    assert_eq!(scene.report(&last).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_waiting_request_holds_no_permit_and_a_newer_one_replaces_it() {
    let mut scene = Scene::new().await;
    scene.endpoint = scene.endpoint.with_permits(1).with_status_timeout(Duration::from_secs(30));
    let mut last = scene.good(9);
    last["state"]["training"]["stage"] = json!("Failed");
    last["state"]["training"]["failure"] = json!({"final": true, "reason": "X", "message": "y"});
    let (older, newer, ()) = tokio::join!(
        scene.report(&last),
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            scene.report(&last).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            assert_eq!(scene.report(&scene.good(8)).await.0, StatusCode::OK, "a permit is free");
            scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
        }
    );
    assert_eq!(older.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(older.1.contains("newer request"), "{}", older.1);
    assert_eq!(newer.0, StatusCode::OK, "{}", newer.1);
}

#[tokio::test]
async fn a_final_report_is_not_accepted_when_the_status_cannot_be_written() {
    let scene = Scene::new().await;
    let mut last = scene.good(9);
    last["state"]["training"]["stage"] = json!("Failed");
    last["state"]["training"]["failure"] = json!({"final": true, "reason": "X", "message": "y"});
    let status = format!("PATCH {}/status", path("trainingruns", "a"));
    scene.world.api.fail(&status, Some(500));
    let (answer, ()) = tokio::join!(scene.report(&last), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        scene.world.reconcile::<TrainingRun>("a").await.1.unwrap_err();
    });
    assert_eq!(answer.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_standby_process_accepts_no_reports() {
    let scene = Scene::new().await;
    scene.active.send_replace(None);
    let (code, text) = scene.report(&scene.good(1)).await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("not the active leader"), "{text}");
}

#[tokio::test]
async fn a_report_that_contradicts_an_earlier_final_one_is_refused_and_stalls_the_object() {
    let scene = Scene::new().await;
    let last = |steps: u64, seq: u64| {
        let mut last = scene.good(seq);
        last["state"] = json!({"training": {"stage": "Finished", "stepsExecuted": steps}});
        last
    };
    // Nobody waits for the status here; the report itself is stored.
    assert_eq!(scene.report(&last(9, u64::MAX)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (code, text) = scene.report(&last(10, 7)).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert!(text.contains("state.training.stepsExecuted is 9 in one and 10 in the other"), "{text}");
    scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let status = scene.world.api.object(&path("trainingruns", "a")).unwrap()["status"].clone();
    let stalled = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Stalled").unwrap();
    assert_eq!((&status["phase"], &stalled["reason"]), (&json!("Failed"), &json!("Contradiction")), "{status}");
}

#[tokio::test]
async fn the_status_names_a_refused_pod_and_its_field_at_the_first_refusal() {
    let scene = Scene::new().await;
    let mut changed = scene.world.api.object(POD).unwrap();
    changed["spec"]["containers"][0]["env"] = json!([{"name": "HTTP_PROXY", "value": "x"}]);
    let genuine = scene.world.api.object(POD).unwrap();
    scene.world.api.put(POD, changed);
    let ready = |object: &Value| object["status"]["conditions"][0].clone();
    scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let told = ready(&scene.world.api.object(&path("trainingruns", "a")).unwrap());
    assert_eq!(told["reason"], json!("PodChanged"));
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("codex-t-a-x") && message.contains("spec.containers[trainer].env"), "{message}");
    // A pod with another configuration is named, too, although its spec is right.
    scene.world.api.put(POD, genuine);
    let mut report = scene.good(1);
    report["configDigest"] = json!("0".repeat(64));
    assert_eq!(scene.report(&report).await.0, StatusCode::FORBIDDEN);
    scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let told = ready(&scene.world.api.object(&path("trainingruns", "a")).unwrap());
    assert!(told["message"].as_str().unwrap().contains("configDigest is 0000"), "{told}");
}

/// The first process that reports pins its key: another one with the pod's token is refused, and the status says so.
#[tokio::test]
async fn a_second_writer_with_the_token_is_refused_and_named() {
    let scene = Scene::new().await;
    let [genuine, thief] = [(); 2].map(|()| Ed25519KeyPair::generate().unwrap());
    let send = async |key: &Ed25519KeyPair, challenge: Option<&str>, report: &Value| {
        let body = report.to_string();
        let mut request = Request::post("/v1/reports").header("Authorization", "Bearer good");
        request = request.header(KEY_HEADER, hex::encode(key.public_key()));
        if let Some(challenge) = challenge {
            let signature = hex::encode(key.sign(&signed_message(challenge, body.as_bytes())));
            request = request.header(CHALLENGE_HEADER, challenge).header(SIGNATURE_HEADER, signature);
        }
        let request = request.body(axum::body::Body::from(body)).unwrap();
        let answer = router(scene.endpoint.clone()).oneshot(request).await.unwrap();
        let challenge = answer.headers()[CHALLENGE_HEADER].to_str().unwrap().to_owned();
        (answer.status(), challenge)
    };
    let (code, challenge) = send(&genuine, None, &scene.good(1)).await;
    assert_eq!(code, StatusCode::PRECONDITION_REQUIRED);
    assert!(scene.world.context.inbox.of("a-uid").is_empty());
    let (code, next) = send(&genuine, Some(&challenge), &scene.good(1)).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(send(&thief, Some(&next), &scene.good(2)).await.0, StatusCode::FORBIDDEN);
    let (code, text) = scene.report(&scene.good(3)).await;
    assert!(code == StatusCode::FORBIDDEN && text.contains("another process reports"), "{text}");
    assert_eq!(send(&genuine, Some(&next), &scene.good(4)).await.0, StatusCode::OK);
    assert_eq!(scene.world.context.inbox.of("a-uid")[0].report.seq, 4);
    scene.world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let status = scene.world.api.object(&path("trainingruns", "a")).unwrap()["status"].clone();
    let told = status["conditions"][0]["message"].as_str().unwrap();
    assert!(told.contains("codex-t-a-x") && told.contains("another process reports with the token"), "{told}");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let scene = Scene::new().await;
    for (method, path, code) in [
        (Method::GET, "/", StatusCode::NOT_FOUND),
        (Method::POST, "/v2/reports", StatusCode::NOT_FOUND),
        (Method::GET, "/v1/reports", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let request = Request::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap();
        let answer = router(scene.endpoint.clone()).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), code);
        let text = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&text).unwrap();
        assert!(body["error"].as_str().unwrap().contains(path), "{body}");
    }
}

/// Returns a certificate for `localhost`, and a server's configuration with it.
fn self_signed() -> (Vec<u8>, rustls::ServerConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.der().to_vec(), tls)
}

/// `make chaos` expects these answers: over a connection, a report that is a byte too long is answered, and one that is far too long
/// is answered or cut off.
#[tokio::test]
async fn a_large_report_over_a_connection_is_answered_or_cut_off() {
    let scene = Scene::new().await;
    let (certificate, tls) = self_signed();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, stop) = (listener.local_addr().unwrap().port(), CancellationToken::new());
    let served = tokio::spawn(serve_on(listener, LIMITS, stop.clone(), Arc::new(tls), scene.endpoint.clone()));
    let mut config = kube::Config::new(format!("https://localhost:{port}").parse().unwrap());
    (config.root_cert, config.default_retry) = (Some(vec![certificate]), false);
    let client = kube::Client::try_from(config).unwrap();
    let send = async |bytes: usize| {
        let request = Request::post("/v1/reports").header("Authorization", "Bearer good");
        let answer = client.send(request.body(vec![b' '; bytes].into()).unwrap()).await;
        answer.ok().map(|answer| answer.status())
    };
    for _ in 0..3 {
        assert_eq!(send(codex_reports::MAX_BYTES + 1).await, Some(StatusCode::PAYLOAD_TOO_LARGE));
        let far = send(100_000_000).await;
        assert!(far.is_none_or(|status| status == StatusCode::PAYLOAD_TOO_LARGE), "{far:?}");
        println!("100 MB: {far:?}");
    }
    stop.cancel();
    drop(client);
    tokio::time::timeout(Duration::from_secs(30), served).await.unwrap().unwrap();
}

/// Silent connections and half handshakes are closed, and connections are bounded.
#[tokio::test]
async fn half_sent_reports_are_closed_and_connections_are_bounded() {
    let scene = Scene::new().await;
    let (_, tls) = self_signed();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let limits = Limits { connections: 2, head: Duration::from_secs(3), ..LIMITS };
    let served = tokio::spawn(serve_on(listener, limits, stop.clone(), Arc::new(tls), scene.endpoint.clone()));
    let mut open = Vec::new();
    for half in [&b""[..], b"\x16\x03\x01", b"", b"GET / HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(half).await.unwrap();
        open.push(stream);
    }
    for mut stream in open {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.unwrap();
        read.map_or_else(|error| assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset), drop);
    }
    let text = String::from_utf8(scene.world.context.metrics.text().unwrap()).unwrap();
    assert!(text.contains("codex_controller_connections_refused_total{port=\"reports\"} 2"), "{text}");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), served).await.unwrap().unwrap();
    assert_eq!(scene.report(&scene.good(1)).await.0, StatusCode::OK);
}
