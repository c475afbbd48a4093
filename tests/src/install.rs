//! The operator of this working tree on the cluster: built, packed, brought there and applied as a user would apply it.
//! Does I/O; once per test process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use codex_cluster::Cluster;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::{Error, Result, process::output};

/// Where the controller lives.
pub const NAMESPACE: &str = "codex-system";
/// The controller's Deployment, ServiceAccount, ClusterRole and Lease.
pub const CONTROLLER: &str = "codex-controller";
/// The Secret of the signing key.
pub const SIGNING_KEY: &str = "codex-signing-key";
/// The user as whom the controller talks to the API server.
pub const CONTROLLER_USER: &str = "system:serviceaccount:codex-system:codex-controller";

/// The cluster with the operator on it.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The cluster.
    pub cluster: Cluster,
    /// The image of trainers, evaluators and servers, as pods name it.
    pub worker_image: String,
    /// The image of the controller, as its pod names it.
    pub controller_image: String,
}

/// Tried once: what failed for one test fails for all, at once.
static INSTALLED: OnceCell<Result<Installation, String>> = OnceCell::const_new();

/// The root of the working tree.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// A program that cargo built beside this one, such as `codex`.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("finding this program"))?;
    // A test lies in `deps/`, one folder below the programs.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::Unreadable {
        path: own.with_file_name(name),
        why: "there is no such program beside this one: `make image` builds it".to_owned(),
    })
}

impl Installation {
    /// The operator of this working tree, on the cluster that the environment names.
    ///
    /// # Errors
    /// When the cluster, a build or the roll-out fails.
    pub async fn ensure() -> Result<&'static Self> {
        let made = INSTALLED.get_or_init(async || {
            let made = tokio::task::spawn_blocking(Self::make).await.map_err(joined);
            made.flatten().map_err(|error| error.to_string())
        });
        made.await.as_ref().map_err(|why| Error::NotInstalled(why.clone()))
    }

    fn make() -> Result<Self> {
        let cluster = Cluster::ensure()?;
        make_images()?;
        let load = |name: &str| -> Result<String> { Ok(cluster.load_image(&archive(name))?) };
        let installation = Self { worker_image: load("codex")?, controller_image: load("codex-controller")?, cluster };
        installation.apply()?;
        Ok(installation)
    }

    /// Applies the CRDs and the controller with these images, and waits for the roll-out.
    fn apply(&self) -> Result<()> {
        let overlay = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let text = self.overlay(overlay.path())?;
        let file = overlay.path().join("kustomization.yaml");
        fs::write(&file, text).map_err(Error::io(format!("writing {}", file.display())))?;
        let mut apply = self.cluster.kubectl()?;
        output(apply.args(["apply", "--kustomize"]).arg(overlay.path()))?;
        let mut wait = self.cluster.kubectl()?;
        let rolled = output(
            wait.args(["--namespace", NAMESPACE, "rollout", "status", "--timeout=120s"])
                .arg(format!("deployment/{CONTROLLER}")),
        );
        rolled.map(drop).inspect_err(|_| self.tell_controller())
    }

    /// A kustomization of `manifests/` with the images set, as the README tells a user to set them.
    fn overlay(&self, from: &Path) -> Result<String> {
        let manifests = repository().join("manifests");
        // kustomize takes relative paths only.
        let up: PathBuf = from.components().skip(1).map(|_| "..").collect();
        let relative = |folder: &str| {
            let path = manifests.join(folder);
            up.join(path.strip_prefix("/").unwrap_or(&path)).display().to_string()
        };
        let patch = serde_json::json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": CONTROLLER, "namespace": NAMESPACE },
            "spec": { "template": { "spec": { "containers": [{
                "name": "controller",
                "image": self.controller_image,
                "env": [
                    { "name": "CODEX_TRAINER_IMAGE", "value": self.worker_image },
                    { "name": "CODEX_WORKER_IMAGE", "value": self.worker_image },
                ],
            }] } } },
        });
        let kustomization = serde_json::json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [relative("controller")],
            "patches": [{ "patch": patch.to_string() }],
        });
        serde_yaml::to_string(&kustomization)
            .map_err(|error| Error::Unreadable { path: manifests, why: error.to_string() })
    }

    /// A client with the administrator's rights; each belongs to the runtime that it was made on.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        let unusable = |error: kube::config::KubeconfigError| Error::Kubeconfig(error.to_string());
        let kubeconfig = Kubeconfig::read_from(self.cluster.kubeconfig()).map_err(unusable)?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)?;
        Ok(Client::try_from(config)?)
    }

    /// Prints the end of the controller's log, for somebody who looks for the cause of a failure.
    pub fn tell_controller(&self) {
        let Ok(mut kubectl) = self.cluster.kubectl() else { return };
        kubectl.args(["--namespace", NAMESPACE, "logs", "--tail=40", "--all-containers", "--prefix"]);
        let told = kubectl.arg(format!("deployment/{CONTROLLER}")).output();
        if let Ok(told) = told {
            eprintln!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        }
    }
}

/// Asks a served model, through the API server's proxy, as `kubectl create --raw` does: without a content type.
///
/// # Errors
/// When it does not answer with JSON that is a `T`.
pub async fn infer<T: DeserializeOwned>(client: &Client, namespace: &str, service: &str, prompt: &str) -> Result<T> {
    let path = format!("/api/v1/namespaces/{namespace}/services/{service}:8000/proxy/infer");
    let body = serde_json::json!({ "prompt": prompt }).to_string().into_bytes();
    let request = http::Request::post(path).body(body);
    Ok(client.request(request.map_err(kube::Error::HttpError)?).await?)
}

/// Where what was built and downloaded is kept, as the Makefile says.
pub fn cache() -> PathBuf {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || from("HOME").map(|home| home.join(".cache"));
    from("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| "/var/cache".into()).join("codex-operator")
}

/// What `make image` leaves for others.
fn archive(name: &str) -> PathBuf {
    cache().join("images").join(format!("{name}.oci"))
}

/// Packs the images of this working tree; a moment's work when nothing changed.
fn make_images() -> Result<()> {
    let mut make = Command::new("make");
    // What the outer make told its children is not for this one: REGISTRY would push.
    make.args(["image", "REGISTRY="]).current_dir(repository()).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    output(make.stdin(Stdio::null())).map(drop)
}

/// A blocking task that panicked panics here, too.
pub(crate) fn joined(error: tokio::task::JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Error::io("waiting for a thread")(error.into()),
    }
}
