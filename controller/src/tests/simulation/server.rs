//! The API server of the simulation: it stores objects as a real one does as far as this controller depends on it, and it may
//! refuse requests, answer late, lose answers, and lose the process that asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::BodyExt;
use jiff::Timestamp;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::sleep;
use tower::{BoxError, service_fn};

use super::{
    invariants::{self, Known},
    sabotage::Sabotage,
};
use crate::{clock::Simulated, lease::Timing, tests::lease::AVAILABLE};

/// The namespace of all objects.
pub(super) const NAMESPACE: &str = "team";

/// The process that sends a request, in one of its lives.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) process: usize,
    /// Its identity in the Lease.
    pub(super) identity: String,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It is refused with this code and changes nothing.
    Refused(u16),
    /// It is carried out, and its answer is lost.
    AnswerLost,
    /// It is lost before it is carried out.
    Lost,
    /// It is carried out later.
    Slow(Duration),
    /// The process ends before the request is sent.
    CrashBefore,
    /// The process ends after the request was carried out.
    CrashAfter,
}

/// A change of an object, as watches see it.
pub(super) struct Change {
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// The state of the API server.
pub(super) struct Server {
    /// The objects by their paths.
    pub(super) objects: BTreeMap<String, Value>,
    /// Says when objects are created.
    clock: Simulated,
    version: u64,
    /// Changes that no watch has been told of.
    pub(super) changes: Vec<Change>,
    /// Of 1,000 requests, how many meet a fault.
    pub(super) faults: u64,
    /// Whether there is a node for pods of every size.
    pub(super) every_size: bool,
    /// The seed of the run, and the step that it has reached.
    pub(super) seed: u64,
    pub(super) step: u64,
    /// How often each request was made in this step.
    repeated: BTreeMap<String, u64>,
    /// The processes that end because of a request.
    pub(super) crashed: BTreeSet<usize>,
    /// The identity in the Lease of each process.
    pub(super) identities: BTreeMap<usize, String>,
    /// The writes of the controllers, except those of their Lease.
    pub(super) writes: Vec<String>,
    /// What the simulation knows beyond what the objects say.
    pub(super) known: Known,
    /// The invariants that do not hold.
    pub(super) violations: Vec<String>,
    /// What happened: shown when an invariant does not hold.
    pub(super) log: Vec<String>,
}

/// The API server, shared by the processes and the cluster.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Server>>);

impl Shared {
    pub(super) fn new(seed: u64, clock: Simulated) -> Self {
        Self(Arc::new(Mutex::new(Server {
            objects: BTreeMap::new(),
            clock,
            version: 0,
            changes: Vec::new(),
            faults: 0,
            every_size: false,
            seed,
            step: 0,
            repeated: BTreeMap::new(),
            crashed: BTreeSet::new(),
            identities: BTreeMap::new(),
            writes: Vec::new(),
            known: Known::default(),
            violations: Vec::new(),
            log: Vec::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap()
    }

    /// Returns the client of a process. `sabotage` stands between its plans and the API server. A request that was sent arrives, also
    /// while the process stands still or after it has ended.
    pub(super) fn client(&self, process: &Sender, sabotage: Sabotage) -> Client {
        let (shared, process) = (self.clone(), process.clone());
        let service = service_fn(move |request: Request<Body>| {
            let (shared, process) = (shared.clone(), process.clone());
            let sent = tokio::spawn(async move { shared.handle(&process, sabotage, request).await });
            async move { sent.await? }
        });
        Client::new(service, NAMESPACE)
    }

    async fn handle(
        &self,
        sender: &Sender,
        sabotage: Sabotage,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let mut body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let more = sabotage.apply(&parts, &mut body);
        if sabotage.swallows(&parts) {
            return Ok(response(StatusCode::OK, &success()));
        }
        let process = sender.process;
        let fault = self.lock().fault(process, &parts);
        match fault {
            Some(Fault::CrashBefore) => {
                self.lock().crash(sender);
                std::future::pending::<()>().await;
            }
            Some(Fault::Slow(long)) => sleep(long).await,
            Some(Fault::Lost) => return Err("the connection was reset".into()),
            Some(Fault::Refused(code)) => {
                let (code, answer) = failure(&parts, code, "Injected");
                return Ok(response(code, &answer));
            }
            _ => {}
        }
        let (code, answer) = {
            let mut server = self.lock();
            let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
            let answer = server.answer(Some(sender), &parts.method, path, query, body);
            for (method, path, body) in more {
                server.answer(Some(sender), &method, &path, "", body);
            }
            answer
        };
        match fault {
            Some(Fault::AnswerLost) => Err("the connection was reset".into()),
            Some(Fault::CrashAfter) => {
                self.lock().crash(sender);
                std::future::pending().await
            }
            _ => Ok(response(code, &answer)),
        }
    }
}

fn response(code: StatusCode, answer: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(serde_json::to_vec(answer).unwrap())).unwrap()
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
}

fn failure(parts: &Parts, code: u16, reason: &str) -> (StatusCode, Value) {
    refusal(&parts.method, parts.uri.path(), code, reason)
}

fn refusal(method: &Method, path: &str, code: u16, reason: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{method} {path}: {reason}"), "reason": reason, "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), status)
}

/// Mixes the bits of a number, so that similar numbers give different ones (`SplitMix64`).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Server {
    /// Returns the times of the Lease: those of one controller, or those of the overlay for high availability.
    pub(super) fn timing(&self) -> Timing {
        if self.seed.is_multiple_of(2) { Timing::default() } else { Timing::lasting(AVAILABLE) }
    }

    /// Returns the time.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Begins the next step.
    pub(super) fn begin(&mut self, what: &str) {
        self.step += 1;
        self.repeated.clear();
        self.log.push(format!("step {}: {what}", self.step));
    }

    /// Returns the fault that a request meets. It depends on the seed, the step and the request, and not on the order in which
    /// requests arrive: a replay meets the same faults.
    fn fault(&mut self, process: usize, parts: &Parts) -> Option<Fault> {
        let line = format!("{process} {} {}", parts.method, parts.uri.path());
        let times = self.repeated.entry(line.clone()).or_default();
        *times += 1;
        let mut number = mixed(self.seed ^ mixed(self.step ^ mixed(*times)));
        for byte in line.bytes() {
            number = mixed(number ^ u64::from(byte));
        }
        if number % 1_000 >= self.faults {
            return None;
        }
        let number = mixed(number);
        let fault = match number % 16 {
            0 => Fault::Refused(403),
            1..=3 => Fault::Refused(409),
            4 => Fault::Refused(429),
            5 | 6 => Fault::Refused(500),
            7..=9 => Fault::AnswerLost,
            10 | 11 => Fault::Lost,
            12 | 13 => {
                // A request that is on its way when the fence closes has this long to arrive. With 30 s it is up to 8 s late.
                let timing = self.timing();
                let rest = timing.duration().abs_diff(timing.deadline()).as_millis() as u64;
                Fault::Slow(Duration::from_millis(mixed(number) % (rest * 8 / 10)))
            }
            14 => Fault::CrashBefore,
            _ => Fault::CrashAfter,
        };
        self.log.push(format!("  {line}: {fault:?}"));
        Some(fault)
    }

    /// Answers a request of a process; `None` is the cluster itself.
    pub(super) fn answer(
        &mut self,
        process: Option<&Sender>,
        method: &Method,
        path: &str,
        query: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let refused = |code: u16, reason: &str| refusal(method, path, code, reason);
        if path.ends_with("/tokenreviews") {
            return (StatusCode::CREATED, self.reviewed(body));
        }
        if path.contains("/events") {
            return if *method == Method::GET {
                let list = json!({"apiVersion": "events.k8s.io/v1", "kind": "EventList", "metadata": {}, "items": []});
                (StatusCode::OK, list)
            } else {
                self.wrote(process, &format!("{method} {path}"));
                (StatusCode::CREATED, body)
            };
        }
        let object_path = path.strip_suffix("/status").unwrap_or(path).to_owned();
        let of_status = object_path != path;
        let live = self.objects.get(&object_path).cloned();
        if *method == Method::GET && path.ends_with("/pods") {
            let items: Vec<_> = self.of_kind("Pod").iter().map(|path| self.objects[path].clone()).collect();
            return (StatusCode::OK, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}));
        }
        if *method == Method::GET {
            return live.map_or_else(|| refused(404, "NotFound"), |object| (StatusCode::OK, object));
        }
        let (target, next) = match *method {
            Method::POST => {
                let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let target = format!("{object_path}/{name}");
                if self.objects.contains_key(&target) {
                    return refused(409, "AlreadyExists");
                }
                (target, Some(body))
            }
            Method::PUT => match &live {
                None => return refused(404, "NotFound"),
                Some(live) if live["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] => {
                    return refused(409, "Conflict");
                }
                Some(_) => (object_path, Some(body)),
            },
            Method::PATCH => {
                let uid = body.pointer("/metadata/uid").cloned();
                let known = live.as_ref().map(|live| live["metadata"]["uid"].clone());
                if uid.is_some() && uid != known {
                    return refused(409, "Conflict");
                }
                let version = body.pointer("/metadata/resourceVersion");
                if version.is_some() && version != live.as_ref().map(|live| &live["metadata"]["resourceVersion"]) {
                    return refused(409, "Conflict");
                }
                if live.is_none() && (of_status || !query.contains("fieldManager=")) {
                    return refused(404, "NotFound");
                }
                let mut next = live.clone().unwrap_or(json!({}));
                if of_status {
                    next["status"] = body["status"].clone();
                } else {
                    merge(&mut next, body);
                    if let Some(live) = &live {
                        let fixed = |pointer: &str| live.pointer(pointer) != next.pointer(pointer);
                        let changes = match live["kind"].as_str() {
                            Some("Job") => fixed("/spec/template") && fixed("/spec/template/spec"),
                            Some("ConfigMap") => live["immutable"] == json!(true) && fixed("/data"),
                            _ => false,
                        };
                        if changes {
                            return refused(422, "Invalid");
                        }
                    }
                }
                (object_path, Some(next))
            }
            Method::DELETE => {
                let Some(live) = &live else { return refused(404, "NotFound") };
                let uid = body.pointer("/preconditions/uid");
                if uid.is_some_and(|uid| *uid != live["metadata"]["uid"]) {
                    return refused(409, "Conflict");
                }
                (object_path, None)
            }
            _ => return refused(405, "MethodNotAllowed"),
        };
        if live == next {
            return (StatusCode::OK, next.unwrap_or_default());
        }
        self.wrote(process, &format!("{method} {path}"));
        let Some(next) = next else {
            invariants::check_write(self, process, &target, live.as_ref(), None);
            self.remove(&target);
            return (StatusCode::OK, success());
        };
        invariants::check_write(self, process, &target, live.as_ref(), Some(&next));
        (StatusCode::OK, self.put(&target, next))
    }

    /// Ends the process that sent a request, unless it has ended already.
    fn crash(&mut self, sender: &Sender) {
        if self.identities.get(&sender.process) == Some(&sender.identity) {
            self.crashed.insert(sender.process);
        }
    }

    fn wrote(&mut self, process: Option<&Sender>, line: &str) {
        let Some(process) = process else { return };
        if !line.contains("/leases") {
            invariants::check_leader(self, process, line);
            let line = format!("{}: {line}", process.process);
            self.log.push(format!("  {line}"));
            self.writes.push(line);
        }
    }

    /// Stores an object.
    pub(super) fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.objects.get(path).cloned();
        let generation = before.as_ref().and_then(|before| before["metadata"]["generation"].as_i64()).unwrap_or(0);
        let same = before.as_ref().is_some_and(|before| before["spec"] == object["spec"]);
        // Whether the model of a run is good follows from its uid.
        let prefix = if object["kind"] == "TrainingRun" { "run" } else { "uid" };
        let new = || json!(format!("{prefix}-{}", self.version));
        let uid = before.as_ref().map_or_else(new, |it| it["metadata"]["uid"].clone());
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.entry("uid").or_insert(uid);
        let created =
            before.as_ref().map_or_else(|| json!(self.now()), |it| it["metadata"]["creationTimestamp"].clone());
        metadata.entry("creationTimestamp").or_insert(created);
        metadata.entry("namespace").or_insert(json!(NAMESPACE));
        metadata.insert("generation".to_owned(), json!(if same { generation } else { generation + 1 }));
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        invariants::note_settings(&mut self.known, &object);
        self.objects.insert(path.to_owned(), object.clone());
        self.changes.push(Change { before, after: Some(object.clone()) });
        object
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, path: &str) {
        if let Some(before) = self.objects.remove(path) {
            self.changes.push(Change { before: Some(before), after: None });
        }
    }

    /// Returns the paths of all objects of a kind.
    pub(super) fn of_kind(&self, kind: &str) -> Vec<String> {
        self.objects.iter().filter(|(_, object)| object["kind"] == kind).map(|(path, _)| path.clone()).collect()
    }

    /// Returns the controlling owner's uid of an object.
    pub(super) fn owner(object: &Value) -> Option<&str> {
        let owners = object["metadata"]["ownerReferences"].as_array()?;
        owners.iter().find(|owner| owner["controller"] == json!(true))?["uid"].as_str()
    }

    /// Returns the uids of all owners of an object.
    pub(super) fn owners(object: &Value) -> impl Iterator<Item = &str> {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.filter_map(|owner| owner["uid"].as_str())
    }

    /// Reviews a token, which is the name and the uid of the pod that it was issued to.
    fn reviewed(&self, mut review: Value) -> Value {
        let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default().to_owned();
        let valid = token.split_once('/').filter(|(name, uid)| {
            let pod = self.objects.get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"));
            pod.is_some_and(|pod| pod["metadata"]["uid"] == json!(uid))
        });
        review["status"] = match valid {
            None => json!({"authenticated": false}),
            Some((name, uid)) => json!({
                "authenticated": true, "audiences": ["codex-ml.dev/reports"],
                "user": {
                    "username": format!("system:serviceaccount:{NAMESPACE}:default"),
                    "extra": {"authentication.kubernetes.io/pod-name": [name], "authentication.kubernetes.io/pod-uid": [uid]},
                },
            }),
        };
        review
    }
}

/// Applies a patch, as far as server-side apply and merge patches differ in nothing that matters here: named fields are replaced,
/// or removed by null. All other fields stay.
fn merge(object: &mut Value, patch: Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (name, value) in patch {
                match object.get_mut(&name) {
                    _ if value.is_null() => {
                        object.remove(&name);
                    }
                    Some(old) if name != "data" => merge(old, value),
                    _ => {
                        object.insert(name, value);
                    }
                }
            }
        }
        (object, patch) => *object = patch,
    }
}
