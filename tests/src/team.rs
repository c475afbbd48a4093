//! A namespace for one test: a volume, held-out problems, the `restricted` Pod Security level. Talks to the API server.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use codex_crds::{ConditionType, Evaluation, ReasoningPod, ReasoningPodPhase, TrainingRun, TrainingRunPhase};
use codex_provenance::Sha256;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, LogParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{
    Error, Installation, Result,
    install::{self, joined},
    objects::{CLAIM, PROBLEM_COUNT, PROBLEMS, PROBLEMS_KEY},
    process::output,
    wait::{Sight, until, until_found},
};

/// The time limit of a tiny run, including pod start-up and waiting for a processor.
pub const TRAINED: Duration = Duration::from_secs(150);
/// The time limit of everything else.
pub const SOON: Duration = Duration::from_secs(90);

/// The time limit of a request that is expected to have no answer.
const ANSWERED: Duration = Duration::from_secs(5);

/// Held exclusively by tests that replace the installed controller.
static CONTROLLER: RwLock<()> = RwLock::const_new(());

/// The namespace of one test. It is deleted when dropped. If [`Team::done`] was not called before, its contents are printed
/// first.
pub struct Team {
    /// The cluster with the operator installed.
    pub installation: &'static Installation,
    /// A client with the administrator's rights.
    pub client: Client,
    /// The name of the namespace.
    pub namespace: String,
    /// The SHA-256 of the problems in the team's ConfigMap.
    pub problems: String,
    done: AtomicBool,
    _turn: Turn,
}

/// A lock on the installed controller: shared to use it, exclusive to replace it.
enum Turn {
    Shared(#[allow(dead_code, reason = "held until it is dropped")] RwLockReadGuard<'static, ()>),
    Alone(#[allow(dead_code, reason = "held until it is dropped")] RwLockWriteGuard<'static, ()>),
}

impl Team {
    /// Creates a team called `test`, which runs beside other tests.
    ///
    /// # Errors
    /// If the operator cannot be installed or the namespace cannot be created.
    pub async fn new(test: &str) -> Result<Self> {
        Self::with(test, Turn::Shared(CONTROLLER.read().await)).await
    }

    /// Creates a team called `test`, while no other test runs.
    ///
    /// # Errors
    /// As [`Team::new`].
    pub async fn alone(test: &str) -> Result<Self> {
        Self::with(test, Turn::Alone(CONTROLLER.write().await)).await
    }

    async fn with(test: &str, turn: Turn) -> Result<Self> {
        let installation = Installation::ensure().await?;
        let client = installation.client().await?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let namespace = format!("test-{test}-{:x}", since.as_millis() & 0xffff_ffff);
        let problems = held_out_problems()?;
        let team = Self {
            problems: Sha256::of(&problems).to_string(),
            installation,
            client,
            namespace,
            done: AtomicBool::new(false),
            _turn: turn,
        };
        team.furnish(problems).await?;
        Ok(team)
    }

    async fn furnish(&self, problems: String) -> Result<()> {
        let namespace: Namespace = read(json!({
            "metadata": {
                "name": self.namespace,
                "labels": { "pod-security.kubernetes.io/enforce": "restricted", "codex-ml.dev/test": "true" },
            },
        }))?;
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        let claim: PersistentVolumeClaim = read(json!({
            "metadata": { "name": CLAIM },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "100Mi" } } },
        }))?;
        self.create(&claim).await?;
        let data = BTreeMap::from([(PROBLEMS_KEY.to_owned(), problems)]);
        let problems: ConfigMap = read(json!({ "metadata": { "name": PROBLEMS }, "data": data }))?;
        self.create(&problems).await?;
        Ok(())
    }

    /// Marks the test as passed.
    pub fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Reports that a check of this test is skipped, as [`crate::skip`] does.
    pub fn skip(&self, what: &str, why: &str) {
        crate::skip(self.installation.cluster.target(), what, why);
    }

    /// Returns an API client for one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an object in this namespace.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn create<K>(&self, object: &K) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        Ok(self.api().create(&PostParams::default(), object).await?)
    }

    /// Merges `change` into an object.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn change<K>(&self, name: &str, change: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let patch = kube::api::Patch::Merge(change);
        Ok(self.api().patch(name, &kube::api::PatchParams::default(), &patch).await?)
    }

    /// Returns kubectl for this namespace.
    ///
    /// # Errors
    /// If there is no kubectl.
    pub fn kubectl(&self) -> Result<Command> {
        let mut kubectl = self.installation.cluster.kubectl()?;
        kubectl.args(["--namespace", &self.namespace]);
        Ok(kubectl)
    }

    /// Waits until a run has its model.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub async fn trained(&self, name: &str) -> Result<TrainingRun> {
        until(&self.api::<TrainingRun>(), name, "its model is there", TRAINED, |run| {
            match run.status.as_ref().and_then(|status| status.phase) {
                Some(TrainingRunPhase::Succeeded) => Sight::There,
                Some(phase @ (TrainingRunPhase::Failed | TrainingRunPhase::Unreproducible)) => {
                    Sight::Impossible(format!("the run is {phase:?}"))
                }
                _ => Sight::NotYet,
            }
        })
        .await
    }

    /// Waits until an evaluation has its verdict.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn judged(&self, name: &str) -> Result<Evaluation> {
        until(&self.api::<Evaluation>(), name, "its verdict is there", SOON, |evaluation| {
            evaluation.status.as_ref().is_some_and(|status| status.verdict.is_some())
        })
        .await
    }

    /// Waits until all servers of a ReasoningPod are ready, and its status says so.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn serving(&self, name: &str) -> Result<ReasoningPod> {
        until(&self.api::<ReasoningPod>(), name, "it serves", SOON, |pod| {
            let ready = condition(pod.status.as_ref().map(|status| &*status.conditions), ConditionType::Ready);
            let serving = pod.status.as_ref().and_then(|status| status.phase) == Some(ReasoningPodPhase::Serving);
            serving && ready.is_some_and(|ready| ready.status == "True" && is_current(ready, pod.meta().generation))
        })
        .await
    }

    /// Waits until a ReasoningPod reports that it is blocked.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn blocked(&self, name: &str) -> Result<ReasoningPod> {
        until(&self.api::<ReasoningPod>(), name, "it is blocked", SOON, |pod| {
            pod.status.as_ref().is_some_and(|status| {
                status.phase == Some(ReasoningPodPhase::Blocked) && status.observed_generation == pod.meta().generation
            })
        })
        .await
    }

    /// Lists the pods with a label, oldest first.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn pods(&self, label: &str, value: &str) -> Result<Vec<Pod>> {
        let labelled = ListParams::default().labels(&format!("{label}={value}"));
        let mut pods = self.api::<Pod>().list(&labelled).await?.items;
        pods.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
        Ok(pods)
    }

    /// Waits for a pod with a label that `look` accepts.
    ///
    /// # Errors
    /// If there is none in time.
    pub async fn pod(&self, label: &str, value: &str, what: &str, look: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let what = format!("a pod with {label}={value}: {what}");
        until_found(&what, SOON, async || Ok(self.pods(label, value).await?.into_iter().find(|pod| look(pod)))).await
    }

    /// Returns the log of a pod.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn logs(&self, pod: &str) -> Result<String> {
        Ok(self.api::<Pod>().logs(pod, &LogParams::default()).await?)
    }

    /// Sends a prompt to a served model through the API server's proxy.
    ///
    /// # Errors
    /// If the response is not JSON.
    pub async fn infer(&self, service: &str, prompt: &str) -> Result<Value> {
        install::infer(&self.client, &self.namespace, service, prompt).await
    }

    /// Whether a served model answers a prompt within five seconds. The client repeats requests that the API server cannot pass on,
    /// for minutes.
    pub async fn answers(&self, service: &str, prompt: &str) -> bool {
        matches!(tokio::time::timeout(ANSWERED, self.infer(service, prompt)).await, Ok(Ok(_)))
    }

    /// Returns the folder of a run on this machine; `None` on a cluster that is not local.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn folder(&self, run: &TrainingRun) -> Result<Option<PathBuf>> {
        let claim = self.api::<PersistentVolumeClaim>().get(CLAIM).await?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        let directory = self.installation.cluster.volume_directory(&volume);
        Ok(directory.map(|directory| directory.join("runs").join(run.uid().unwrap_or_default())))
    }

    /// Prints the contents of this namespace, to find the cause of a failure.
    pub fn tell(&self) {
        eprintln!("\n--- contents of {}", self.namespace);
        for what in ["trainingruns,evaluations,reasoningpods", "jobs,deployments,pods,configmaps", "events"] {
            let Ok(mut kubectl) = self.kubectl() else { return };
            if let Ok(told) = kubectl.args(["get", what, "--output=wide"]).output() {
                eprintln!("{}", String::from_utf8_lossy(&told.stdout));
            }
        }
        self.installation.tell_controller();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if !self.done.load(Ordering::Relaxed) {
            self.tell();
        }
        if let Ok(mut kubectl) = self.installation.cluster.kubectl() {
            let _ = kubectl.args(["delete", "namespace", &self.namespace, "--wait=false"]).output();
        }
    }
}

/// Returns the condition of a type.
pub fn condition(conditions: Option<&[Condition]>, kind: ConditionType) -> Option<&Condition> {
    conditions?.iter().find(|condition| condition.type_ == kind.name())
}

fn is_current(condition: &Condition, generation: Option<i64>) -> bool {
    condition.observed_generation == generation
}

/// Generates held-out problems with `codex prepare-data`.
fn held_out_problems() -> Result<String> {
    let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
    let file = folder.path().join(PROBLEMS_KEY);
    let mut codex = Command::new(install::program("codex")?);
    codex.args(["prepare-data", "--task", "arithmetic", "--split", "held-out", "--seed", "7"]);
    output(codex.args(["--count", &PROBLEM_COUNT.to_string(), "--out"]).arg(&file))?;
    fs::read_to_string(&file).map_err(Error::io(format!("reading {}", file.display())))
}

fn read<K: DeserializeOwned>(value: Value) -> Result<K> {
    serde_json::from_value(value).map_err(|error| Error::Client(kube::Error::SerdeError(error)))
}

/// Runs blocking work on another thread.
///
/// # Errors
/// The error of the work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(joined)?
}
