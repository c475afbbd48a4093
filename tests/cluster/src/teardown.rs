//! Stops all processes of the cluster and removes everything that it created: completely, repeatably, and nothing else.
//!
//! The kubelet stops first, so that nothing is restarted; then containers, even if containerd is dead; then the
//! servers from the outside in; then mounts, network, cgroups and directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use crate::components::Component;
use crate::host::{Cgroups, foreign_node};
use crate::layout::Layout;
use crate::process::{self, Identity};
use crate::report::{say, step};
use crate::{Error, Result, command, network};

/// The time that a process has to exit before it is killed.
const GRACE: Duration = Duration::from_secs(6);

/// Stops and removes everything.
///
/// # Errors
/// If a process does not exit even when killed, or a mount remains.
pub(crate) fn clean(layout: &Layout) -> Result<()> {
    if !layout.state().exists() && !layout.run().exists() {
        return Ok(());
    }
    if Component::ALL.iter().any(|component| component.running(layout).is_some()) {
        step("stop the kubelet", || stop(layout, Component::Kubelet))?;
    }
    step("stop containers", || stop_containers(layout))?;
    step("stop the other components", || {
        let rest: Vec<_> =
            Component::ALL.into_iter().rev().filter(|component| *component != Component::Kubelet).collect();
        // The API server takes seconds; its clients need not wait for each other.
        let servers = [Component::ApiServer, Component::Etcd, Component::Containerd];
        for component in rest.iter().filter(|component| !servers.contains(component)) {
            component.running(layout).inspect(|process| process.signal(Signal::TERM));
        }
        rest.into_iter().try_for_each(|component| stop(layout, component))
    })?;
    step("remove mounts, network, files", || {
        remove_mounts(layout)?;
        // The rules and cgroups of another node would have the same names.
        let alone = foreign_node(layout.state()).is_none();
        network::take_down(layout, alone);
        if alone {
            remove_cgroups();
        }
        remove_links(layout);
        for folder in [layout.run(), layout.state()] {
            remove(folder)?;
        }
        Ok(())
    })
}

fn stop(layout: &Layout, component: Component) -> Result<()> {
    let Some(process) = component.running(layout) else { return Ok(()) };
    process.signal(Signal::TERM);
    if !process.wait_gone(GRACE) {
        say(&format!("  {} (pid {}) is still stopping; killing it", component.name(), process.pid));
        process.signal(Signal::KILL);
    }
    gone(component.name(), &process)
}

fn gone(name: &str, process: &Identity) -> Result<()> {
    if process.wait_gone(GRACE) {
        return Ok(());
    }
    Err(Error::Stuck { component: name.to_owned(), pid: process.pid })
}

/// Kills all containers and their shims; containerd need not run.
fn stop_containers(layout: &Layout) -> Result<()> {
    let socket = layout.containerd_socket().display().to_string();
    let tasks = layout.containerd_run().join("io.containerd.runtime.v2.task/k8s.io");
    let mut ended = Vec::new();
    for folder in entries(&tasks) {
        let Some(id) = folder.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if let Some(init) = init_of(&folder, &id) {
            init.signal(Signal::KILL);
            ended.push(init);
        }
        // The shim's socket, named by a hash of address, namespace and id, and the result of the loopback plugin are outside
        // our directories.
        let name = Sha256::digest(Path::new(&socket).join("k8s.io").join(&id).to_string_lossy().as_bytes());
        let _ = fs::remove_file(Path::new("/run/containerd/s").join(hex::encode(name)));
        let _ = fs::remove_file(format!("/var/lib/cni/results/cni-loopback-{id}-lo"));
    }
    for init in &ended {
        gone("a container", init)?;
    }
    let shims = process::all().into_iter().filter(|(_, words)| is_shim(words, &socket));
    let shims: Vec<_> = shims.filter_map(|(pid, _)| Identity::of(pid)).collect();
    for shim in &shims {
        shim.signal(Signal::KILL);
    }
    shims.iter().try_for_each(|shim| gone("a container's shim", shim))
}

/// Returns the first process of a container, if its cgroup still has the container's id.
fn init_of(folder: &Path, id: &str) -> Option<Identity> {
    let pid: u32 = fs::read_to_string(folder.join("init.pid")).ok()?.trim().parse().ok()?;
    let process = Identity::of(pid)?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroup.contains(id).then_some(process)
}

fn is_shim(words: &[String], socket: &str) -> bool {
    words.first().is_some_and(|program| program.ends_with("containerd-shim-runc-v2"))
        && words.windows(2).any(|pair| pair[0] == "-address" && pair[1] == socket)
}

fn remove_mounts(layout: &Layout) -> Result<()> {
    for _ in 0..3 {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read", "/proc/self/mountinfo"))?;
        let mounts = mounts_below(&table, &[layout.run(), layout.state()]);
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match mounts_below(&table, &[layout.run(), layout.state()]).first() {
        None => Ok(()),
        Some(left) => Err(Error::io("unmount", left)(std::io::Error::from(std::io::ErrorKind::ResourceBusy))),
    }
}

/// Lists the mount points below the folders, innermost first.
fn mounts_below(table: &str, folders: &[&Path]) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The kernel writes spaces, tabs, line ends and backslashes in octal.
    let points = points
        .map(|point| point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"));
    let mut found: Vec<PathBuf> = points
        .map(PathBuf::from)
        .filter(|point| folders.iter().any(|folder| point.starts_with(folder) && point != folder))
        .collect();
    found.reverse();
    found
}

/// Removes the kubelet's cgroups, which are empty once its pods are gone.
fn remove_cgroups() {
    if Cgroups::detect().systemd {
        command::succeeds(Command::new("systemctl").args(["stop", "kubepods.slice"]));
        return;
    }
    let root = Path::new("/sys/fs/cgroup");
    let began = Instant::now();
    // A process that has just exited is still counted for a moment.
    loop {
        let mut all = vec![root.join("kubepods")];
        all.extend(entries(root).into_iter().map(|hierarchy| hierarchy.join("kubepods")));
        let left: Vec<_> = all.into_iter().filter(|group| group.exists()).collect();
        for group in &left {
            remove_group(group);
        }
        if left.iter().all(|group| !group.exists()) || began.elapsed() > Duration::from_secs(2) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn remove_group(group: &Path) {
    entries(group).iter().filter(|child| child.is_dir()).for_each(|child| remove_group(child));
    let _ = fs::remove_dir(group);
}

/// Removes the files that the kubelet and the network plugins keep outside the cluster's directories.
fn remove_links(layout: &Layout) {
    for link in entries(Path::new("/var/log/containers")) {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(layout.state())) {
            let _ = fs::remove_file(link);
        }
    }
    for result in entries(Path::new("/var/lib/cni/results")) {
        if result.file_name().is_some_and(|name| name.to_string_lossy().starts_with("codex-")) {
            let _ = fs::remove_file(result);
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_mounts_come_first_and_foreign_ones_not_at_all() {
        let table = "20 1 0:1 / / rw - ext4 /dev/a rw\n\
            31 20 0:5 / /run/ours/a rw - tmpfs t rw\n\
            32 31 0:6 / /run/ours/a/b\\040c rw - tmpfs t rw\n\
            33 20 0:7 / /run/ours-not rw - tmpfs t rw\n";
        let expected: [PathBuf; 2] = ["/run/ours/a/b c".into(), "/run/ours/a".into()];
        assert_eq!(mounts_below(table, &[Path::new("/run/ours")]), expected);
    }

    #[test]
    fn only_shims_of_our_socket_are_ours() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        let ours = "/run/codex-cluster/containerd.sock";
        let line = "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id x -address";
        assert!(is_shim(&words(&format!("{line} {ours}")), ours));
        assert!(!is_shim(&words(&format!("{line} /run/containerd/containerd.sock")), ours));
        assert!(!is_shim(&words(&format!("vi -address {ours}")), ours));
    }
}
