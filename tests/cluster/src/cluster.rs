//! The cluster for tests: its kubeconfig, its addresses and files, and loading images.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::certificates::write;
use crate::layout::{Layout, cache};
use crate::network::{self, NODE};
use crate::{Error, Result, Target, command, images, lifecycle, report, tools};

/// A cluster that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    target: Target,
    pub(crate) layout: Layout,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Returns the cluster that the environment names ([`Target::from_env`]), and starts a local one if necessary.
    ///
    /// # Errors
    /// If the environment is invalid, or the cluster cannot be started or reached.
    pub fn ensure() -> Result<Self> {
        Self::ensure_target(Target::from_env()?)
    }

    /// As [`Self::ensure`], for a given target.
    ///
    /// # Errors
    /// If the cluster cannot be started or reached.
    pub fn ensure_target(target: Target) -> Result<Self> {
        let layout = Layout::system();
        let kubeconfig = match &target {
            Target::Local => {
                // The command starts the processes, because it can ask for root.
                let mut up = Command::new(own_command()?);
                let status = up.arg("up").stdin(Stdio::inherit()).stdout(Stdio::null()).status();
                let status = status.map_err(Error::io("start", Path::new("codex-cluster")))?;
                if !status.success() {
                    return Err(Error::Command {
                        command: command::line(&up),
                        status: status.to_string(),
                        stderr: "see its output above".into(),
                    });
                }
                layout.kubeconfig("admin")
            }
            Target::Current { context, .. } => pinned_kubeconfig(context.as_deref())?,
        };
        Ok(Self { target, layout, kubeconfig })
    }

    /// Returns the local cluster if it runs; starts nothing.
    ///
    /// # Errors
    /// [`Error::Down`] if it does not run.
    pub fn find() -> Result<Self> {
        let layout = Layout::system();
        if !lifecycle::runs(&layout) {
            return Err(Error::Down);
        }
        Ok(Self { target: Target::Local, kubeconfig: layout.kubeconfig("admin"), layout })
    }

    /// Returns the target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Returns a kubectl command for this cluster.
    ///
    /// # Errors
    /// If kubectl is missing and cannot be built.
    pub fn kubectl(&self) -> Result<Command> {
        let mut kubectl = Command::new(self.bin("kubectl")?);
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig);
        Ok(kubectl)
    }

    /// Returns a program of the cluster's modules (`kubectl`, `etcd`, …), built if necessary.
    ///
    /// # Errors
    /// If no module has it or the build fails.
    pub fn bin(&self, name: &str) -> Result<PathBuf> {
        tools::build_one(name)
    }

    /// Returns the API server's audit log, JSON lines (audit.k8s.io/v1 Event, one per finished request); `None` if the cluster
    /// is not local. At 500 MB it is rotated.
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.is_local().then(|| self.layout.audit_log())
    }

    /// Returns the certificate of the certificate authority; `None` if the cluster is not local.
    pub fn authority(&self) -> Option<PathBuf> {
        self.is_local().then(|| self.layout.pki("ca.crt"))
    }

    /// Returns the directory of a volume, by the name of its `PersistentVolume`; `None` if the cluster is not local.
    pub fn volume_directory(&self, volume: &str) -> Option<PathBuf> {
        self.is_local().then(|| self.layout.volumes().join(volume))
    }

    /// Returns the kubelet's directory of a pod, with its mounted volumes, by the pod's uid; `None` if the cluster is not local.
    pub fn pod_directory(&self, uid: &str) -> Option<PathBuf> {
        self.is_local().then(|| self.layout.at("kubelet/pods").join(uid))
    }

    /// Returns the name of the local cluster's node.
    pub fn node(&self) -> Option<&'static str> {
        self.is_local().then_some(NODE)
    }

    /// Returns the address at which pods reach servers on this machine: that of the bridge, or the one that faces the API
    /// server.
    ///
    /// # Errors
    /// If another cluster's API server has no address or no route.
    pub fn host_address(&self) -> Result<IpAddr> {
        if self.is_local() {
            return Ok(network::HOST.into());
        }
        let mut view = self.kubectl()?;
        let server =
            command::output(view.args(["config", "view", "--output", "jsonpath={.clusters[0].cluster.server}"]))?;
        let rest = server.trim().trim_start_matches("https://").trim_start_matches("http://");
        let host = rest.split('/').next().unwrap_or_default();
        let address = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
            host.to_owned()
        } else {
            format!("{host}:443")
        };
        let local = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            // Nothing is sent: connecting only chooses the address.
            socket.connect(&address)?;
            socket.local_addr()
        });
        Ok(local.map_err(Error::io("find a route to", &address))?.ip())
    }

    /// Loads the image of an OCI archive (`buildah push IMAGE oci-archive:FILE:NAME`) into the cluster and returns the
    /// reference for pods. Does nothing if the image exists.
    ///
    /// # Errors
    /// If the file is not such an archive, or containerd or the registry refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<String> {
        match &self.target {
            Target::Local => images::load(&self.layout, archive),
            Target::Current { registry, .. } => images::push(archive, registry),
        }
    }

    /// Returns a reference by digest to an image that [`Self::load_image`] loaded as `reference` from an archive.
    ///
    /// # Errors
    /// If the file is not such an archive.
    pub fn image_by_digest(&self, archive: &Path, reference: &str) -> Result<String> {
        match &self.target {
            Target::Local => images::by_digest(archive),
            // What is pushed is referred to by digest.
            Target::Current { .. } => Ok(reference.to_owned()),
        }
    }

    /// As [`Self::load_image`], for an archive's file or the name of an image in buildah's store.
    ///
    /// # Errors
    /// If it is neither, and as [`Self::load_image`].
    pub fn load(&self, archive_or_name: &str) -> Result<String> {
        self.load_image(&images::archive_of(archive_or_name)?)
    }

    pub(crate) fn is_local(&self) -> bool {
        self.target == Target::Local
    }
}

/// Returns the `codex-cluster` command: this process, or the program that cargo put beside it, built if necessary.
fn own_command() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?;
    let name = "codex-cluster";
    if own.file_name().is_some_and(|file| file == name) {
        return Ok(own);
    }
    // Test programs are in `deps/`, one folder below the programs.
    let near = || own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|file| file.is_file());
    if let Some(found) = near() {
        return Ok(found);
    }
    report::say("Building the codex-cluster command.");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--package", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command::output(&mut cargo)?;
    near().ok_or_else(|| {
        Error::Prerequisite("the codex-cluster command is not beside this program; run `make cluster` first".into())
    })
}

/// Writes the context to a separate kubeconfig, so that a later `use-context` does not redirect the tests.
fn pinned_kubeconfig(context: Option<&str>) -> Result<PathBuf> {
    let kubectl = tools::build_one("kubectl")?;
    let mut view = Command::new(&kubectl);
    view.args(["config", "view", "--raw", "--minify", "--flatten"]);
    if let Some(context) = context {
        view.args(["--context", context]);
    }
    let text = command::output(&mut view)?;
    let path = cache().join("current.kubeconfig");
    write(&path, &text, 0o600)?;
    let mut reach = Command::new(&kubectl);
    command::output(reach.arg("--kubeconfig").arg(&path).args(["get", "--raw", "/readyz", "--request-timeout=10s"]))?;
    Ok(path)
}
