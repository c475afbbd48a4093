//! Signals the processes of a pod, as the kernel or a node's administrator would. Works because this machine is the local
//! cluster's node. Needs root.

use std::{fs, path::Path, process::Command};

use crate::{Error, Result, process::output};

/// Kills every process of a pod's containers with SIGKILL, as the out-of-memory killer would. Returns their number.
///
/// # Errors
/// If the processes cannot be listed or killed.
pub fn kill_pod(uid: &str) -> Result<usize> {
    signal_pod(uid, "KILL")
}

/// Sends a signal, such as `STOP`, to every process of a pod's containers. Returns their number.
///
/// # Errors
/// If the processes cannot be listed or signalled.
pub fn signal_pod(uid: &str, signal: &str) -> Result<usize> {
    // systemd's cgroup driver writes underscores for dashes.
    let groups = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let mut reached = 0;
    for entry in fs::read_dir("/proc").map_err(Error::io("listing processes"))? {
        let entry = entry.map_err(Error::io("listing processes"))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let of_pod = fs::read_to_string(entry.path().join("cgroup"))
            .is_ok_and(|cgroup| groups.iter().any(|group| cgroup.contains(group.as_str())));
        // The sandbox's process must stay: without it, the kubelet recreates the sandbox instead of seeing a failed container.
        if of_pod && !is_pause(&entry.path()) {
            output(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]))?;
            reached += 1;
        }
    }
    Ok(reached)
}

fn is_pause(process: &Path) -> bool {
    fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "pause")
}
