//! Figures of a peer under the same load: Kubeflow Trainer, which makes a JobSet of each TrainJob, and JobSet, which makes a Job of each
//! JobSet. Both are installed from the manifests of their own modules and run as pods, as the controller of this project does; only
//! their images are built here. They are removed afterwards, also after a failure.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use codex_tests::{Error, Installation, Result, Team, install::relative, process::output};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    figures::Figure,
    scale::{self, Load, SIMULATED, Simulated, Subject},
};

/// A controller of the peer.
struct Controller {
    /// The program, and the name of its image.
    program: &'static str,
    /// The environment variable with the image, an OCI archive.
    image: &'static str,
    /// The environment variable with the folder of its Go module.
    module: &'static str,
    /// The folders of the module that are installed.
    manifests: &'static [&'static str],
    namespace: &'static str,
    deployment: &'static str,
    /// The Secret of the certificate of its webhooks, if the manifests have neither that Secret nor the namespace.
    secret: Option<&'static str>,
}

const JOBSET: Controller = Controller {
    program: "jobset",
    image: "JOBSET_IMAGE",
    module: "JOBSET_MODULE",
    manifests: &["config/default"],
    namespace: "jobset-system",
    deployment: "jobset-controller-manager",
    secret: None,
};
/// Its own overlay adds the namespace and the Secret, and downloads JobSet.
const TRAINER: Controller = Controller {
    program: "trainer-controller-manager",
    image: "TRAINER_IMAGE",
    module: "TRAINER_MODULE",
    manifests: &["manifests/base/crds", "manifests/base/manager", "manifests/base/rbac", "manifests/base/webhook"],
    namespace: "kubeflow-system",
    deployment: "kubeflow-trainer-controller-manager",
    secret: Some("kubeflow-trainer-webhook-cert"),
};
/// In the order of installing: Trainer looks for the CRD of JobSet when it starts.
const CONTROLLERS: [Controller; 2] = [JOBSET, TRAINER];

const PEER: Subject = Subject {
    users: &[
        "system:serviceaccount:jobset-system:jobset-controller-manager",
        "system:serviceaccount:kubeflow-system:kubeflow-trainer-controller-manager",
    ],
    programs: &[JOBSET.program, TRAINER.program],
    resource: "trainjobs",
    // The only Job of the only group of a JobSet that has the name of its TrainJob.
    job: |name| format!("{name}-{GROUP}-0"),
};
/// The group of Jobs in a JobSet.
const GROUP: &str = "node";
/// The runtime of all TrainJobs.
const RUNTIME: &str = "simulated";
/// The time limit of a start. Each controller makes its certificate, and the kubelet updates a mounted Secret within two minutes.
const STARTED: &str = "--timeout=600s";
/// The time limit until the API server reaches the webhooks of controllers that are ready.
const REACHED: Duration = Duration::from_secs(60);

/// Measures `runs` TrainJobs.
pub(crate) async fn measure(runs: u32) -> Result<Vec<Figure>> {
    let installation = Installation::ensure().await?;
    scale::audit_log(installation)?;
    let team = Team::new("peer").await?;
    let peer = Peer::install(&team)?;
    let simulated = Simulated::start(installation).await?;
    let measured = measured(&team, runs).await.inspect_err(|_| peer.tell());
    drop(peer);
    let measured = match measured {
        Ok(figures) => scale::empty(&team, runs).await.map(|()| figures),
        failed => failed,
    };
    simulated.remove().await?;
    measured
}

async fn measured(team: &Team, runs: u32) -> Result<Vec<Figure>> {
    create_runtime(team).await?;
    let jobs = api(team, "TrainJob");
    let mut load = Load::apply(team, &PEER, jobs.clone(), train_job()?, runs).await?;
    let ended = jobs.list(&ListParams::default()).await?.items.iter().filter(|job| has_failed(job)).count();
    load.figures(ended).await
}

/// Returns an API client for a kind of Kubeflow Trainer in the team's namespace.
fn api(team: &Team, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "trainer.kubeflow.org".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "trainer.kubeflow.org/v1alpha1".to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    Api::namespaced_with(team.client.clone(), &team.namespace, &resource)
}

/// Creates the runtime as soon as its webhook answers.
async fn create_runtime(team: &Team) -> Result<()> {
    let deadline = Instant::now() + REACHED;
    let (runtimes, runtime) = (api(team, "TrainingRuntime"), runtime()?);
    loop {
        match runtimes.create(&PostParams::default(), &runtime).await {
            // The API server does not reach the webhook yet.
            Err(kube::Error::Api(status)) if status.code == 500 && Instant::now() < deadline => {}
            made => return made.map(drop).map_err(Into::into),
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Returns the runtime: one pod on a simulated node, whose end is final.
fn runtime() -> Result<DynamicObject> {
    let pod = json!({
        "nodeSelector": { SIMULATED: "true" },
        "tolerations": [{ "key": SIMULATED, "operator": "Exists" }],
        "restartPolicy": "Never",
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": GROUP,
            "image": "simulated",
            "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } },
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        }],
    });
    scale::read(json!({
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": { "name": RUNTIME },
        "spec": {
            "mlPolicy": { "numNodes": 1 },
            "template": { "spec": { "replicatedJobs": [{
                "name": GROUP,
                "template": {
                    "metadata": { "labels": { "trainer.kubeflow.org/trainjob-ancestor-step": "trainer" } },
                    "spec": { "backoffLimit": 0, "template": { "spec": pod } },
                },
            }] } },
        },
    }))
}

fn train_job() -> Result<DynamicObject> {
    scale::read(json!({
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": { "name": "run" },
        "spec": { "runtimeRef": { "kind": "TrainingRuntime", "name": RUNTIME } },
    }))
}

fn has_failed(job: &DynamicObject) -> bool {
    let conditions = job.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Failed" && condition["status"] == "True")
}

/// The installed peer; removed when dropped.
struct Peer<'a> {
    team: &'a Team,
    /// The manifests as they were applied.
    folder: tempfile::TempDir,
}

impl<'a> Peer<'a> {
    fn install(team: &'a Team) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let peer = Self { team, folder };
        for controller in &CONTROLLERS {
            peer.apply(controller).inspect_err(|_| peer.tell())?;
        }
        Ok(peer)
    }

    /// Returns the file with the manifests of a controller as they are applied.
    fn file(&self, controller: &Controller) -> PathBuf {
        self.folder.path().join(controller.program).with_added_extension("yaml")
    }

    fn apply(&self, controller: &Controller) -> Result<()> {
        println!("Installing {}.", controller.program);
        let cluster = &self.team.installation.cluster;
        let image = cluster.load_image(&variable(controller.image)?)?;
        let folder = self.folder.path().join(controller.program);
        let write = |name: &str, value: &Value| {
            let file = folder.join(name);
            fs::write(&file, value.to_string()).map_err(Error::io(format!("writing {}", file.display())))
        };
        fs::create_dir(&folder).map_err(Error::io(format!("creating {}", folder.display())))?;
        write("kustomization.yaml", &kustomization(controller, &folder, &variable(controller.module)?, &image))?;
        let metadata = json!({ "name": controller.namespace });
        write("namespace.yaml", &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }))?;
        let text = output(cluster.kubectl()?.arg("kustomize").arg(&folder))?;
        let file = self.file(controller);
        fs::write(&file, text).map_err(Error::io(format!("writing {}", file.display())))?;
        // The CRDs are too large for the annotation of a client-side apply. Conflicts are with objects of a run that was killed.
        let mut apply = cluster.kubectl()?;
        output(apply.args(["apply", "--server-side", "--force-conflicts", "--filename"]).arg(&file))?;
        let mut wait = cluster.kubectl()?;
        wait.args(["--namespace", controller.namespace, "rollout", "status", STARTED]);
        output(wait.arg(format!("deployment/{}", controller.deployment))).map(drop)
    }

    /// Prints the pods of the controllers and the end of their logs, to find the cause of a failure.
    fn tell(&self) {
        for Controller { namespace, deployment, .. } in &CONTROLLERS {
            let log = ["logs", "--tail=40", &format!("deployment/{deployment}")];
            for what in [&["get", "pods", "--output=wide"][..], &["get", "events"], &log] {
                let Ok(mut kubectl) = self.team.installation.cluster.kubectl() else { return };
                if let Ok(told) = kubectl.args(["--namespace", namespace]).args(what).output() {
                    eprintln!("\n--- {namespace}: kubectl {}", what.join(" "));
                    eprintln!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
                }
            }
        }
    }

    /// Deletes the TrainJobs first: as long as there is one, Trainer keeps a finalizer on the runtime.
    fn remove(&self) -> Result<()> {
        let jobs = format!("/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs", self.team.namespace);
        // Fails if the CRD was not installed; then neither of the two exists.
        if output(self.team.kubectl()?.args(["delete", "--raw", &jobs])).is_ok() {
            let mut runtime = self.team.kubectl()?;
            output(runtime.args(["delete", "trainingruntime", RUNTIME, "--ignore-not-found", "--timeout=120s"]))?;
        }
        for file in CONTROLLERS.iter().rev().map(|controller| self.file(controller)).filter(|file| file.exists()) {
            let mut objects = self.team.installation.cluster.kubectl()?;
            output(objects.args(["delete", "--ignore-not-found", "--timeout=300s", "--filename"]).arg(file))?;
        }
        Ok(())
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        println!("Removing Kubeflow Trainer and JobSet.");
        if let Err(error) = self.remove() {
            let namespaces = CONTROLLERS.map(|controller| controller.namespace).join(" and ");
            eprintln!(
                "Objects of {namespaces} are left, and `make cluster-down` removes them with the cluster: {error}"
            );
        }
    }
}

/// Returns the path in an environment variable that `make bench-scale PEER=yes` sets.
fn variable(name: &str) -> Result<PathBuf> {
    env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from).ok_or_else(|| Error::Impossible {
        what: format!("{name} names a part of the peer"),
        why: "it is not set".to_owned(),
        state: "run `make bench-scale PEER=yes`, which builds the peer".to_owned(),
    })
}

/// Returns a kustomization in `folder` of the controller's own manifests with the image that was built here.
fn kustomization(controller: &Controller, folder: &Path, module: &Path, image: &str) -> Value {
    let container = "/spec/template/spec/containers/0";
    let patch = json!([
        { "op": "replace", "path": format!("{container}/image"), "value": image },
        { "op": "add", "path": format!("{container}/command"), "value": [format!("/{}", controller.program)] },
    ]);
    let mut resources: Vec<_> =
        controller.manifests.iter().map(|base| json!(relative(folder, &module.join(base)))).collect();
    let mut kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": controller.namespace,
        "patches": [{
            "target": { "kind": "Deployment", "name": controller.deployment },
            "patch": patch.to_string(),
        }],
    });
    if let Some(secret) = controller.secret {
        resources.push(json!("namespace.yaml"));
        kustomization["secretGenerator"] = json!([{ "name": secret, "options": { "disableNameSuffixHash": true } }]);
    }
    kustomization["resources"] = json!(resources);
    kustomization
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_the_name_that_jobset_gives_it() {
        assert_eq!((PEER.job)("run-7"), "run-7-node-0");
    }

    #[test]
    fn the_user_names_are_those_of_the_service_accounts() {
        let users = CONTROLLERS.map(|it| format!("system:serviceaccount:{}:{}", it.namespace, it.deployment));
        assert_eq!(PEER.users, users);
    }

    #[test]
    fn objects_without_a_failed_condition_have_not_failed() {
        let mut job = train_job().unwrap();
        assert!(!has_failed(&job));
        job.data["status"] = json!({ "conditions": [{ "type": "Failed", "status": "False" }] });
        assert!(!has_failed(&job));
        job.data["status"]["conditions"][0]["status"] = json!("True");
        assert!(has_failed(&job));
    }

    #[test]
    fn only_trainer_needs_its_namespace_and_secret() {
        let of = |it| kustomization(it, Path::new("/tmp/a"), Path::new("/go/m"), "image:1");
        let jobset = of(&JOBSET);
        assert_eq!(jobset["resources"], json!(["../../go/m/config/default"]));
        assert!(jobset["secretGenerator"].is_null());
        let trainer = of(&TRAINER);
        assert_eq!(trainer["resources"].as_array().unwrap().last().unwrap(), "namespace.yaml");
        assert_eq!(trainer["secretGenerator"][0]["name"], "kubeflow-trainer-webhook-cert");
    }
}
