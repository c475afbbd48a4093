//! The paths of the cluster on this machine.

use std::path::{Path, PathBuf};

/// The directories of one cluster: state that survives a reboot, and state that must not.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    state: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// The cluster of this machine; there is one.
    pub(crate) fn system() -> Self {
        Self { state: "/var/lib/codex-cluster".into(), run: "/run/codex-cluster".into() }
    }

    /// Another place, for tests that only render files.
    #[cfg(test)]
    pub(crate) fn below(root: &Path) -> Self {
        Self { state: root.join("state"), run: root.join("run") }
    }

    /// Certificates, configuration, data and logs.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Sockets, mounts and process identities.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// A file or directory of the state.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.state.join(path)
    }

    /// The certificate (`.crt`), key (`.key`) or other file of the cluster's authority.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.state.join("pki").join(file)
    }

    /// A rendered configuration file.
    pub(crate) fn config(&self, file: &str) -> PathBuf {
        self.state.join("config").join(file)
    }

    /// The kubeconfig of one user.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state.join("kubeconfig").join(user)
    }

    /// The log of one component.
    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.state.join("logs").join(format!("{component}.log"))
    }

    /// The API server's audit log, JSON lines.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.state.join("audit").join("audit.log")
    }

    /// The directories behind the volumes, one each.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// A file that exists while the pool of volumes is watched.
    pub(crate) fn volumes_watched(&self) -> PathBuf {
        self.run.join("volumes-watched")
    }

    /// The identity of one component's process.
    pub(crate) fn pid(&self, component: &str) -> PathBuf {
        self.run.join("pids").join(component)
    }

    /// containerd's own socket.
    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// containerd's state: sandboxes, tasks, network namespaces.
    pub(crate) fn containerd_run(&self) -> PathBuf {
        self.run.join("containerd")
    }
}

/// The lock that lets one command at a time start or stop the cluster; it outlives the cluster.
pub(crate) fn lock_file() -> PathBuf {
    "/run/codex-cluster.lock".into()
}

/// Returns the directory of this user's built programs, by version.
pub(crate) fn cache() -> PathBuf {
    cache_home().join("codex-operator/cluster")
}

/// The user's cache directory.
pub(crate) fn cache_home() -> PathBuf {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| "/var/cache".into())
}
