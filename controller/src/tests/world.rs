//! A mocked API server that stores writes, feeds the caches as watches do, and logs every request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use codex_crds::{ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, SignOff, TrainingRun};
use codex_plan::{Admission, RunAs, Settings, http_route::HttpRoute};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{Client, client::Body, runtime::watcher::Event};
use serde_json::{Value, json};
use tower_test::mock;

use crate::{
    admission::AdmissionWatch,
    backoff::Backoff,
    by_uid::ByUid,
    clock::Clock,
    context::Context,
    inbox::Inbox,
    known::Known,
    ledger::Ledger,
    metrics::Metrics,
    observe::{Asked, Observe, Queues, Requests, Stores, Writers},
    reconcile::{ReconcileError, reconcile},
    recorder::Recorder,
    seal::Seal,
    signer::{Signer, Signing},
    unmended::Unmended,
};

pub(super) const NAMESPACE: &str = "team";

type Objects = BTreeMap<String, Value>;

/// The state of the mocked API server.
#[derive(Default)]
struct Held {
    objects: Objects,
    writers: Option<Writers>,
    log: Vec<String>,
    /// Status codes for requests that fail, by `VERB path`.
    failures: BTreeMap<String, u16>,
    /// The pointer and value that admission sets at each write of an object, by path.
    admission: BTreeMap<String, (String, Value)>,
    version: u64,
}

/// The mocked API server.
#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<Held>>);

/// A mocked cluster with a controller.
pub(crate) struct World {
    pub(crate) api: Api,
    pub(crate) context: Arc<Context>,
    pub(super) requests: Requests,
}

impl Api {
    /// Returns a client.
    pub(crate) fn client(&self) -> Client {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let api = self.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let (code, answer) = api.answer(&parts.method, &parts.uri, body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                send.send_response(Response::builder().status(code).body(answer).unwrap());
            }
        });
        Client::new(service, NAMESPACE)
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: Value) -> (StatusCode, Value) {
        let mut held = self.0.lock().unwrap();
        let path = uri.path().to_owned();
        let query = uri.query().unwrap_or_default();
        let manager = query.split('&').find_map(|pair| pair.strip_prefix("fieldManager="));
        let force = if query.contains("force=true") { " force" } else { "" };
        let line = match manager {
            Some(manager) => format!("{method} {path} as {}{force}", manager.replace("%2F", "/")),
            None => format!("{method} {path}"),
        };
        held.log.push(line);
        let failure = |code: u16, reason: &str| {
            let code = StatusCode::from_u16(code).unwrap();
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": format!("{method} {path}: {reason}"), "reason": reason, "code": code.as_u16(),
            });
            (code, status)
        };
        if let Some(code) = held.failures.get(&format!("{method} {path}")) {
            return failure(*code, "Injected");
        }
        let object_path = path.strip_suffix("/status").unwrap_or(&path).to_owned();
        match *method {
            Method::GET => match held.objects.get(&object_path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None if object_path.ends_with("/endpointslices") => {
                    let service = query.rsplit_once("service-name%3D").map(|(_, name)| name.split('&').next());
                    let of_service = |object: &Value| {
                        let name = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
                        name.is_some() && Some(name) == service
                    };
                    let found = held
                        .objects
                        .iter()
                        .filter(|(path, object)| path.starts_with(&object_path) && of_service(object));
                    let items: Vec<_> = found.map(|(_, object)| object.clone()).collect();
                    let list = json!({
                        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {}, "items": items,
                    });
                    (StatusCode::OK, list)
                }
                None if object_path.ends_with("/pods") => {
                    let label = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
                    let label = label.unwrap_or_default().replace("%2F", "/");
                    let (label, value) =
                        label.split_once("%3D").map_or((&*label, None), |(key, value)| (key, Some(value)));
                    let borne = |object: &Value| {
                        let found = object["metadata"]["labels"].get(label);
                        found.is_some_and(|found| value.is_none_or(|value| found == value))
                    };
                    let pods = held.objects.iter().filter(|(path, _)| path.starts_with(&format!("{object_path}/")));
                    let items: Vec<_> = pods.map(|(_, pod)| pod.clone()).filter(|pod| borne(pod)).collect();
                    (StatusCode::OK, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}))
                }
                None if object_path.ends_with("/leases") => {
                    let leases = held.objects.iter().filter(|(path, _)| path.contains("/leases/"));
                    let items: Vec<_> = leases.map(|(_, object)| object.clone()).collect();
                    let list = json!({
                        "apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "metadata": {}, "items": items,
                    });
                    (StatusCode::OK, list)
                }
                None => failure(404, "NotFound"),
            },
            Method::POST if path.ends_with("/tokenreviews") => {
                let token = body.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
                let mut reviewed = body.clone();
                reviewed["status"] =
                    held.objects.get(&format!("token {token}")).cloned().unwrap_or(json!({"authenticated": false}));
                (StatusCode::CREATED, reviewed)
            }
            Method::POST => {
                let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let path = format!("{object_path}/{name}");
                if held.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                (StatusCode::CREATED, held.store(&path, body))
            }
            Method::PUT => match held.objects.get(&object_path) {
                Some(live) if live["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] => {
                    failure(409, "Conflict")
                }
                Some(_) => (StatusCode::OK, held.store(&object_path, body)),
                None => failure(404, "NotFound"),
            },
            Method::PATCH => {
                let live = held.objects.get(&object_path).cloned();
                let meant = body.pointer("/metadata/uid").filter(|uid| !uid.is_null());
                if meant.is_some_and(|uid| live.as_ref().is_none_or(|live| live["metadata"]["uid"] != *uid)) {
                    return failure(409, "Conflict");
                }
                let version = body.pointer("/metadata/resourceVersion").filter(|version| !version.is_null());
                if version
                    .is_some_and(|known| live.as_ref().is_none_or(|live| live["metadata"]["resourceVersion"] != *known))
                {
                    return failure(409, "Conflict");
                }
                let mut object = live.unwrap_or(json!({}));
                merge(&mut object, body);
                if let Some((pointer, value)) = held.admission.get(&object_path) {
                    *object.pointer_mut(pointer).unwrap() = value.clone();
                }
                (StatusCode::OK, held.store(&object_path, object))
            }
            Method::DELETE => match held.objects.remove(&object_path) {
                Some(object) => {
                    held.feed(&object, true);
                    (StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
                }
                None => failure(404, "NotFound"),
            },
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    /// Creates or replaces an object, as another client would.
    pub(crate) fn put(&self, path: &str, object: Value) -> Value {
        self.0.lock().unwrap().store(path, object)
    }

    /// Returns an object.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// Removes an object, as another client would.
    pub(super) fn remove(&self, path: &str) {
        let mut held = self.0.lock().unwrap();
        let object = held.objects.remove(path).unwrap();
        held.feed(&object, true);
    }

    /// Replaces an object, which the caches do not show.
    pub(super) fn put_unseen(&self, path: &str, object: Value) {
        let mut held = self.0.lock().unwrap();
        let writers = held.writers.take();
        held.store(path, object);
        held.writers = writers;
    }

    /// Removes an object, which the caches do not show.
    pub(super) fn vanish(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path).unwrap();
    }

    /// Makes the cache of Jobs say why they may not be listed.
    pub(super) fn forbid_jobs(&self, why: Option<&str>) {
        let held = self.0.lock().unwrap();
        held.writers.as_ref().unwrap().jobs.set_forbidden(None, why.map(str::to_owned));
    }

    /// Removes an object from the caches only.
    pub(super) fn hide(&self, path: &str) {
        let mut held = self.0.lock().unwrap();
        let object = held.objects[path].clone();
        held.feed(&object, true);
    }

    /// Sets the result of a TokenReview.
    pub(super) fn token(&self, token: &str, status: Value) {
        self.0.lock().unwrap().objects.insert(format!("token {token}"), status);
    }

    /// Makes admission set `value` at `pointer` at each write of the object.
    pub(super) fn admit(&self, path: &str, pointer: &str, value: Value) {
        self.0.lock().unwrap().admission.insert(path.to_owned(), (pointer.to_owned(), value));
    }

    /// Sets or clears the failure of a request, `VERB path`.
    pub(crate) fn fail(&self, request: &str, code: Option<u16>) {
        let mut held = self.0.lock().unwrap();
        match code {
            Some(code) => held.failures.insert(request.to_owned(), code),
            None => held.failures.remove(request),
        };
    }

    /// Returns the requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        let mut held = self.0.lock().unwrap();
        std::mem::take(&mut held.log)
    }
}

/// Applies a patch, as far as these tests need server-side apply and merge patches: named fields are replaced, or removed
/// by null. All other fields stay.
fn merge(object: &mut Value, patch: Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (name, value) in patch {
                let whole = name == "status" || name == "data";
                match object.get_mut(&name) {
                    _ if value.is_null() => {
                        object.remove(&name);
                    }
                    Some(old) if !whole => merge(old, value),
                    _ => {
                        object.insert(name, value);
                    }
                }
            }
        }
        (object, patch) => *object = patch,
    }
}

impl Held {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let uid = self
            .objects
            .get(path)
            .map_or_else(|| json!(format!("uid-{}", self.version)), |old| old["metadata"]["uid"].clone());
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.entry("uid").or_insert(uid);
        metadata.entry("namespace").or_insert(json!(NAMESPACE));
        metadata.entry("generation").or_insert(json!(1));
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        self.objects.insert(path.to_owned(), object.clone());
        self.feed(&object, false);
        object
    }

    /// Updates the caches.
    fn feed(&mut self, object: &Value, gone: bool) {
        let Some(writers) = &mut self.writers else { return };
        if object["kind"] == "Pod" && object["metadata"]["labels"]["codex-ml.dev/reasoning-pod"].is_string() {
            let mut metadata = object.clone();
            metadata["kind"] = json!("PartialObjectMetadata");
            metadata["apiVersion"] = json!("meta.k8s.io/v1");
            let typed = serde_json::from_value(metadata).unwrap();
            writers.labelled.apply_watcher_event(&if gone { Event::Delete(typed) } else { Event::Apply(typed) });
        }
        if object["kind"] == "Pod" && object["metadata"]["labels"]["app.kubernetes.io/managed-by"] != "codex-controller"
        {
            return;
        }
        macro_rules! feed {
            ($($kind:literal $field:ident $type:ty;)*) => {
                match object["kind"].as_str().unwrap_or_default() {
                    $($kind => {
                        let typed: $type = serde_json::from_value(object.clone()).unwrap();
                        writers.$field.apply_watcher_event(&if gone { Event::Delete(typed) } else { Event::Apply(typed) });
                    })*
                    "PersistentVolumeClaim" => {
                        let mut object = object.clone();
                        object["kind"] = json!("PartialObjectMetadata");
                        object["apiVersion"] = json!("meta.k8s.io/v1");
                        let typed = serde_json::from_value(object).unwrap();
                        writers.claims.apply_watcher_event(&if gone { Event::Delete(typed) } else { Event::Apply(typed) });
                    }
                    _ => {}
                }
            };
        }
        feed! {
            "TrainingRun" training_runs TrainingRun;
            "Evaluation" evaluations Evaluation;
            "ReasoningPod" reasoning_pods ReasoningPod;
            "PromotionPolicy" promotion_policies PromotionPolicy;
            "ClusterPromotionPolicy" cluster_promotion_policies ClusterPromotionPolicy;
            "SignOff" sign_offs SignOff;
            "Job" jobs Job;
            "Deployment" deployments Deployment;
            "HorizontalPodAutoscaler" horizontal_pod_autoscalers HorizontalPodAutoscaler;
            "Pod" pods Pod;
            "ConfigMap" config_maps ConfigMap;
            "Service" services Service;
            "EndpointSlice" endpoint_slices EndpointSlice;
            "HTTPRoute" http_routes HttpRoute;
            "PodDisruptionBudget" pod_disruption_budgets PodDisruptionBudget;
            "NetworkPolicy" network_policies NetworkPolicy;
        }
    }
}

impl World {
    /// Returns a cluster with only the claim `runs`.
    pub(crate) async fn new() -> Self {
        let api = Api::default();
        let mut writers = Writers::ready();
        let stores = Arc::new(Stores::of(&mut writers));
        api.0.lock().unwrap().writers = Some(writers);
        let client = api.client();
        let signer = Arc::new(Signer::load(client.clone(), "codex-system", Signing::Key).await.unwrap());
        let (queues, requests) = Queues::new();
        let context = Arc::new(Context {
            clock: Clock::System,
            recorder: Recorder::new(client.clone(), "test"),
            client,
            settings: Arc::new(Settings {
                version: "1.2.3".to_owned(),
                trainer_image: "codex:1".to_owned(),
                cuda_image: None,
                run_as: RunAs::default(),
                attested_images: Vec::new(),
                worker_image: "codex:1".to_owned(),
                report_url: "https://reports/v1/reports".to_owned(),
                report_ca: "-----BEGIN CERTIFICATE-----".to_owned(),
                controller_namespace: "codex-system".to_owned(),
                report_port: 8443,
            }),
            stores,
            queues,
            inbox: Arc::new(Inbox::default()),
            signer,
            seal: Seal::for_tests(),
            admission: Arc::new(AdmissionWatch::seen(Admission { flaw: None, ..Admission::default() })),
            refused: ByUid::default(),
            writers: ByUid::default(),
            metrics: Metrics::new().unwrap(),
            backoff: Backoff::default(),
            unmended: Unmended::default(),
            known: Known::default(),
            written: ByUid::default(),
            traces: None,
            obstructions: ByUid::default(),
            settled: ByUid::default(),
            sharing: tokio::sync::Mutex::default(),
            asked: Asked::default(),
            ledger: Ledger::default(),
        });
        api.put(
            "/api/v1/namespaces/team/persistentvolumeclaims/runs",
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "runs"}}),
        );
        api.requests();
        Self { api, context, requests }
    }

    /// Returns an object with the seal of its status.
    pub(super) fn sealed<K: Observe>(&self, mut object: Value) -> Value {
        let typed: K = serde_json::from_value(object.clone()).unwrap();
        let (kind, uid) = (K::kind(&()), typed.meta().uid.clone().unwrap());
        let seal = self.context.seal.of_status(&kind, &uid, typed.status().unwrap()).unwrap();
        object["status"]["seal"] = json!(seal);
        object
    }

    /// Reconciles the object `name` once and returns the requests.
    pub(super) async fn reconcile<K: Observe>(
        &self,
        name: &str,
    ) -> (Vec<String>, Result<Option<Duration>, ReconcileError>) {
        let object = crate::observe::get(K::store(&self.context), NAMESPACE, name).unwrap();
        let result = Box::pin(reconcile(object, &self.context)).await;
        (self.api.requests(), result)
    }
}

/// Returns the path of an object of `codex-ml.dev`.
pub(super) fn path(plural: &str, name: &str) -> String {
    format!("/apis/codex-ml.dev/v1alpha1/namespaces/team/{plural}/{name}")
}

/// Returns a valid TrainingRun.
pub(super) fn run(name: &str) -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun",
        "metadata": {"name": name, "uid": format!("{name}-uid")},
        "spec": {
            "rolloutRing": "0D_base_", "template": "cot-starter",
            "data": [{"name": "sums", "source": {"synthetic": {"task": "arithmetic", "seed": 1, "count": 1000}}}],
            "output": {"persistentVolumeClaim": {"claimName": "runs", "subPath": "runs"}},
        },
    })
}
