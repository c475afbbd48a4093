//! Root rights, and a lock that lets one command at a time change the machine.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result, report};

/// Returns whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the user who ran `sudo`, with their group, so that files can belong to them.
pub(crate) fn caller() -> Option<(u32, u32)> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    Some((number("SUDO_UID")?, number("SUDO_GID")?)).filter(|_| is_root())
}

/// Checks that this process is root or can become root, before long work starts.
///
/// # Errors
/// If it is not root and there is no `sudo`.
pub(crate) fn check() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if is_root() || std::env::split_paths(&path).any(|folder| folder.join("sudo").is_file()) {
        return Ok(());
    }
    Err(Error::Prerequisite(
        "the local cluster needs root for network, mounts and containers; run this as root, or install sudo".into(),
    ))
}

/// Makes sure that this process is root. Otherwise it prints why and replaces itself by the same command under `sudo`.
///
/// # Errors
/// If there is no `sudo`, or this process came from it already.
pub(crate) fn become_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let own = std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?;
    report::say("The local cluster needs root for network, mounts and containers; running sudo once.");
    let variables = "--preserve-env=HOME,PATH,XDG_CACHE_HOME,CLUSTER,REGISTRY,KUBECONFIG";
    let error = Command::new("sudo").arg(variables).arg(own).args(std::env::args_os().skip(1)).exec();
    Err(Error::Prerequisite(format!(
        "the local cluster needs root (network, mounts, containers) and sudo cannot be used: {error}; run this as root"
    )))
}

/// Returns a command that runs as root: directly if this process is root, otherwise through `sudo`.
pub(crate) fn root_command(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// A file lock, held until it is dropped or the process exits.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock. If another process holds it, prints what that process is doing, and waits.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub(crate) fn take(path: &Path, purpose: &str) -> Result<Self> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            report::say(&format!("Waiting for another process ({}).", holder.trim()));
            flock(&file, FlockOperation::LockExclusive).map_err(|error| Error::io("lock", path)(error.into()))?;
        }
        let note = format!("`{purpose}`, pid {}\n", std::process::id());
        file.set_len(0).and_then(|()| file.rewind()).map_err(Error::io("write", path))?;
        file.write_all(note.as_bytes()).map_err(Error::io("write", path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path, "first").unwrap();
        let other = path.clone();
        let second = std::thread::spawn(move || Lock::take(&other, "second").map(|_| ()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!second.is_finished());
        assert!(fs::read_to_string(&path).unwrap().contains("first"));
        drop(first);
        second.join().unwrap().unwrap();
    }
}
