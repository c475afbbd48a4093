//! Requirements of the machine: system, packages, Go, a C compiler and cgroups.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result, command, process, report};

/// The oldest Go that builds the modules of `tools/`.
const GO: (u32, u32) = (1, 26);

/// Files that must exist, each with the Debian package that brings it.
const PACKAGES: &[(&str, &str)] = &[
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/bin/skopeo", "skopeo"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/tar", "tar"),
];

/// The cgroup configuration of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// Whether the unified hierarchy (version 2) is in use.
    pub unified: bool,
    /// Whether systemd owns the groups.
    pub systemd: bool,
}

impl Cgroups {
    /// What this machine runs.
    pub(crate) fn detect() -> Self {
        Self {
            unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            systemd: Path::new("/run/systemd/system").is_dir(),
        }
    }

    /// The kubelet's name of the driver.
    pub(crate) fn driver(self) -> &'static str {
        if self.systemd { "systemd" } else { "cgroupfs" }
    }
}

/// Checks requirements that no command can install: the processor, and that no other node runs here.
///
/// # Errors
/// If a requirement is not met; the message says what is needed.
pub(crate) fn check() -> Result<()> {
    let architecture = std::env::consts::ARCH;
    if !matches!(architecture, "x86_64" | "aarch64") {
        return Err(Error::Prerequisite(format!(
            "the local cluster runs on x86_64 or aarch64, and this machine is {architecture}; \
             use another cluster with CLUSTER=current REGISTRY=host:port"
        )));
    }
    match foreign_node(Path::new("/var/lib/codex-cluster")) {
        None => Ok(()),
        Some((pid, name)) => Err(Error::Prerequisite(format!(
            "another Kubernetes node runs on this machine ({name}, pid {pid}), and two cannot share its network; \
             stop it, or use its cluster with CLUSTER=current REGISTRY=host:port"
        ))),
    }
}

/// A kubelet or kube-proxy whose configuration is not below `state`.
pub(crate) fn foreign_node(state: &Path) -> Option<(u32, String)> {
    let state = state.to_string_lossy().into_owned();
    process::all().into_iter().find_map(|(pid, words)| {
        let name = Path::new(words.first()?).file_name()?.to_str()?.to_owned();
        let node = matches!(name.as_str(), "kubelet" | "kube-proxy");
        (node && !words.iter().any(|word| word.contains(&state))).then_some((pid, name))
    })
}

/// Finds a Go command that is new enough.
///
/// # Errors
/// If Go or a C compiler is missing or Go is too old.
pub(crate) fn go() -> Result<PathBuf> {
    let need = format!("Go {}.{} or newer", GO.0, GO.1);
    let tried = ["go", "/usr/local/go/bin/go"].into_iter().find_map(|name| {
        let text = command::output(Command::new(name).arg("version").env("GOTOOLCHAIN", "local")).ok()?;
        Some((PathBuf::from(name), text))
    });
    let Some((path, text)) = tried else {
        return Err(Error::Prerequisite(format!(
            "{need} builds the cluster's programs, and there is no `go` on the PATH"
        )));
    };
    match go_version(&text) {
        Some(version) if version >= GO => Ok(path),
        _ => Err(Error::Prerequisite(format!(
            "{need} is needed, and `{} version` says {:?}",
            path.display(),
            text.trim()
        ))),
    }
}

/// The C compiler, which makes the pause program.
///
/// # Errors
/// If there is none.
pub(crate) fn gcc() -> Result<Command> {
    if command::succeeds(Command::new("gcc").arg("--version")) {
        return Ok(Command::new("gcc"));
    }
    Err(Error::Prerequisite(
        "gcc is missing, which builds the cluster's pause program; install gcc and libc6-dev".into(),
    ))
}

/// Installs the Debian packages that are missing, after saying so.
///
/// # Errors
/// If the system has no apt, or apt fails.
pub(crate) fn install_packages() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Error::Prerequisite(format!(
            "the local cluster needs {}, and only Debian's packages are installed automatically; \
             use Debian 12, or another cluster with CLUSTER=current REGISTRY=host:port",
            missing.join(", ")
        )));
    }
    report::say(&format!("Installing missing Debian packages: {}.", missing.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(arguments);
        command::output(&mut apt)
    };
    report::step("install packages", || {
        let mut install = vec!["install", "-y", "--no-install-recommends"];
        install.extend(&missing);
        if apt(&install).is_err() {
            apt(&["update"])?;
            apt(&install)?;
        }
        Ok(())
    })
}

/// Major and minor version from the words of `go version`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go").filter(|rest| rest.contains('.')))?;
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(go_version("go version go1.27rc1 linux/amd64"), Some((1, 27)));
        assert_eq!(go_version("gccgo (Debian) 12"), None);
    }

    #[test]
    fn the_driver_follows_systemd() {
        assert_eq!(Cgroups { unified: true, systemd: true }.driver(), "systemd");
        assert_eq!(Cgroups { unified: false, systemd: false }.driver(), "cgroupfs");
    }
}
