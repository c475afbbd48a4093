//! Installs the operator of this working tree on the cluster: builds the images, loads them, and applies the manifests as a
//! user would. Does I/O; runs once per test process.

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

/// The namespace of the controller.
pub const NAMESPACE: &str = "codex-system";
/// The controller's Deployment, ServiceAccount, ClusterRole and Lease.
pub const CONTROLLER: &str = "codex-controller";
/// The Secret of the signing key.
pub const SIGNING_KEY: &str = "codex-signing-key";
/// The controller's user name at the API server.
pub const CONTROLLER_USER: &str = "system:serviceaccount:codex-system:codex-controller";

/// The cluster with the operator installed.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The cluster.
    pub cluster: Cluster,
    /// The image of trainers, evaluators and servers, as pods name it.
    pub worker_image: String,
    /// The image of the controller, as its pod names it.
    pub controller_image: String,
}

/// Attempted once. If it fails for one test, it fails for all immediately.
static INSTALLED: OnceCell<Result<Installation, String>> = OnceCell::const_new();

/// Returns the folder of `manifests/` that is installed: another one if `CODEX_TESTS_BASE` names it.
fn base() -> String {
    std::env::var("CODEX_TESTS_BASE").ok().filter(|base| !base.is_empty()).unwrap_or_else(|| "controller".to_owned())
}

/// Returns the root of the working tree.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Returns the path from one absolute folder to another, because kustomize accepts relative paths only.
pub fn relative(from: &Path, to: &Path) -> PathBuf {
    let up: PathBuf = from.components().skip(1).map(|_| "..").collect();
    up.join(to.strip_prefix("/").unwrap_or(to))
}

/// Finds a program that cargo built beside this one, such as `codex`.
///
/// # Errors
/// If it does not exist.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("finding this program"))?;
    // Test programs are in `deps/`, one folder below the programs.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::Unreadable {
        path: own.with_file_name(name),
        why: "the program does not exist; build it with `make image`".to_owned(),
    })
}

impl Installation {
    /// Installs the operator of this working tree on the cluster that the environment names.
    ///
    /// # Errors
    /// If the cluster, a build or the rollout fails.
    pub async fn ensure() -> Result<&'static Self> {
        let made = INSTALLED.get_or_init(async || {
            let made = tokio::task::spawn_blocking(Self::make).await.map_err(joined);
            made.flatten().map_err(|error| error.to_string())
        });
        made.await.as_ref().map_err(|why| Error::NotInstalled(why.clone()))
    }

    fn make() -> Result<Self> {
        let installation = Self::load()?;
        installation.apply()?;
        Ok(installation)
    }

    /// Starts the cluster and loads the images of this working tree, without installing anything. Blocks.
    ///
    /// # Errors
    /// If the cluster or a build fails.
    pub fn load() -> Result<Self> {
        let cluster = Cluster::ensure()?;
        make_images()?;
        let load = |name: &str| -> Result<String> { Ok(cluster.load_image(&archive(name))?) };
        Ok(Self { worker_image: load("codex")?, controller_image: load("codex-controller")?, cluster })
    }

    /// Returns the image of trainers, evaluators and servers by digest.
    ///
    /// # Errors
    /// If its archive cannot be read.
    pub fn pinned_worker_image(&self) -> Result<String> {
        Ok(self.cluster.image_by_digest(&archive("codex"), &self.worker_image)?)
    }

    /// Applies the CRDs and the controller with these images, and waits for the rollout.
    ///
    /// # Errors
    /// If kubectl fails, or the controller does not become ready.
    pub fn apply(&self) -> Result<()> {
        self.apply_with(NAMESPACE, &serde_json::json!({}), &[]).inspect_err(|_| self.tell_controller())
    }

    /// Applies them with more variables of the controller. The next [`Self::apply`] removes these again.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_with_variables(&self, environment: &[(&str, &str)]) -> Result<()> {
        self.apply_with(NAMESPACE, &serde_json::json!({}), environment).inspect_err(|_| self.tell_controller())
    }

    /// Applies them with another namespace, as docs/install.md describes: with its service account as the principal of the
    /// admission policies, watching the namespaces `watched`.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_elsewhere(&self, namespace: &str, watched: &str) -> Result<()> {
        let principals = format!("['system:serviceaccount:{namespace}:{CONTROLLER}']");
        let patches = principals_patches(&principals);
        let more = serde_json::json!({ "namespace": namespace, "patches": patches });
        self.apply_with(namespace, &more, &[("CODEX_WATCH_NAMESPACES", watched)])
    }

    /// Applies them with another namespace as [`Self::apply_elsewhere`] does, beside the installed controller, which keeps its rights.
    /// The service accounts of both are principals of the admission policies. Does not wait for the rollout: the second controller is
    /// not ready while the first one owns the objects.
    ///
    /// # Errors
    /// If kubectl fails.
    pub fn apply_beside(&self, namespace: &str, watched: &str) -> Result<()> {
        let principals = format!("['system:serviceaccount:{namespace}:{CONTROLLER}', '{CONTROLLER_USER}']");
        let mut patches = principals_patches(&principals);
        // kustomize gives service accounts among the subjects the other namespace, and leaves users as they are.
        let installed = serde_json::json!([{
            "op": "add",
            "path": "/subjects/-",
            "value": { "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": CONTROLLER_USER },
        }]);
        patches.push(serde_json::json!({
            "target": { "kind": "ClusterRoleBinding", "name": CONTROLLER }, "patch": installed.to_string(),
        }));
        let more = serde_json::json!({ "namespace": namespace, "patches": patches });
        self.apply_kustomization(&more, &[("CODEX_WATCH_NAMESPACES", watched)])
    }

    fn apply_with(&self, namespace: &str, more: &serde_json::Value, environment: &[(&str, &str)]) -> Result<()> {
        self.apply_kustomization(more, environment)?;
        let mut wait = self.cluster.kubectl()?;
        output(
            wait.args(["--namespace", namespace, "rollout", "status", "--timeout=120s"])
                .arg(format!("deployment/{CONTROLLER}")),
        )
        .map(drop)
    }

    fn apply_kustomization(&self, more: &serde_json::Value, environment: &[(&str, &str)]) -> Result<()> {
        let overlay = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let text = self.overlay(overlay.path(), more, environment)?;
        let file = overlay.path().join("kustomization.yaml");
        fs::write(&file, text).map_err(Error::io(format!("writing {}", file.display())))?;
        let mut apply = self.cluster.kubectl()?;
        output(apply.args(["apply", "--kustomize"]).arg(overlay.path())).map(drop)
    }

    /// Returns a kustomization of `manifests/` that sets the images as the README describes, and these variables. `more` may set
    /// a namespace and add patches.
    fn overlay(&self, from: &Path, more: &serde_json::Value, environment: &[(&str, &str)]) -> Result<String> {
        let manifests = repository().join("manifests");
        let variables =
            [("CODEX_TRAINER_IMAGE", self.worker_image.as_str()), ("CODEX_WORKER_IMAGE", self.worker_image.as_str())];
        let variables = variables.iter().chain(environment);
        let variables: Vec<_> =
            variables.map(|(name, value)| serde_json::json!({ "name": name, "value": value })).collect();
        let patch = serde_json::json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": CONTROLLER, "namespace": NAMESPACE },
            "spec": { "template": { "spec": { "containers": [{
                "name": "controller",
                "image": self.controller_image,
                "env": variables,
            }] } } },
        });
        let mut patches = vec![serde_json::json!({ "patch": patch.to_string() })];
        patches.extend(more["patches"].as_array().into_iter().flatten().cloned());
        let mut kustomization = serde_json::json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [relative(from, &manifests.join(base()))],
            "patches": patches,
        });
        if let Some(namespace) = more["namespace"].as_str() {
            kustomization["namespace"] = namespace.into();
        }
        serde_yaml::to_string(&kustomization)
            .map_err(|error| Error::Unreadable { path: manifests, why: error.to_string() })
    }

    /// Creates a client with the administrator's rights, for the current runtime.
    ///
    /// # Errors
    /// If the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.cluster).await
    }

    /// Creates a client with the administrator's rights that sends each request once. Other clients repeat requests that the API server
    /// or a server behind it refuses for now.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub async fn client_without_retries(&self) -> Result<Client> {
        let mut config = self.config().await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// Reads the configuration of a client with the administrator's rights.
    ///
    /// # Errors
    /// If the kubeconfig cannot be used.
    pub async fn config(&self) -> Result<Config> {
        config_of(&self.cluster).await
    }

    /// Prints the end of the controller's log, to find the cause of a failure.
    pub fn tell_controller(&self) {
        let Ok(mut kubectl) = self.cluster.kubectl() else { return };
        kubectl.args(["--namespace", NAMESPACE, "logs", "--tail=40", "--all-containers", "--prefix"]);
        let told = kubectl.arg(format!("deployment/{CONTROLLER}")).output();
        if let Ok(told) = told {
            eprintln!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        }
    }
}

/// Returns the patches that make these the controllers among the principals of the admission policies.
fn principals_patches(principals: &str) -> Vec<serde_json::Value> {
    let patch = |policy: &str, variable: usize| {
        let path = format!("/spec/variables/{variable}/expression");
        let patch = serde_json::json!([
            { "op": "test", "path": format!("/spec/variables/{variable}/name"), "value": "controller" },
            { "op": "replace", "path": path, "value": principals },
        ]);
        serde_json::json!({
            "target": { "kind": "ValidatingAdmissionPolicy", "name": policy }, "patch": patch.to_string(),
        })
    };
    vec![patch("codex-workloads", 1), patch("codex-status", 0)]
}

/// Creates a client of a cluster with the administrator's rights, for the current runtime.
///
/// # Errors
/// If the kubeconfig cannot be used.
pub async fn client_of(cluster: &Cluster) -> Result<Client> {
    Ok(Client::try_from(config_of(cluster).await?)?)
}

async fn config_of(cluster: &Cluster) -> Result<Config> {
    let unusable = |error: kube::config::KubeconfigError| Error::Kubeconfig(error.to_string());
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).map_err(unusable)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)
}

/// Sends a prompt to a served model through the API server's proxy, as `kubectl create --raw` does: without a content type.
///
/// # Errors
/// If the response is not JSON for a `T`.
pub async fn infer<T: DeserializeOwned>(client: &Client, namespace: &str, service: &str, prompt: &str) -> Result<T> {
    let path = format!("/api/v1/namespaces/{namespace}/services/{service}:8000/proxy/infer");
    let body = serde_json::json!({ "prompt": prompt }).to_string().into_bytes();
    let request = http::Request::post(path).body(body);
    Ok(client.request(request.map_err(kube::Error::HttpError)?).await?)
}

/// Returns the folder of builds and downloads, the same as in the Makefile.
pub fn cache() -> PathBuf {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || from("HOME").map(|home| home.join(".cache"));
    from("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| "/var/cache".into()).join("codex-operator")
}

/// Returns the path of an archive that `make image` writes.
fn archive(name: &str) -> PathBuf {
    cache().join("images").join(format!("{name}.oci"))
}

/// Builds the images of this working tree; quick if nothing changed.
fn make_images() -> Result<()> {
    let mut make = Command::new("make");
    // Variables of an outer make must not apply: with REGISTRY, this one would push.
    make.args(["image", "REGISTRY="]).current_dir(repository()).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    output(make.stdin(Stdio::null())).map(drop)
}

/// Propagates the panic of a blocking task.
pub(crate) fn joined(error: tokio::task::JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Error::io("waiting for a thread")(error.into()),
    }
}
