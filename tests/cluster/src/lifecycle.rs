//! Starts and stops the cluster: healthy components stay, dead ones are restarted, and a cluster that cannot be trusted is
//! removed and created again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::components::Component;
use crate::host::Cgroups;
use crate::layout::{Layout, lock_file};
use crate::privilege::Lock;
use crate::report::{say, step};
use crate::{
    Error, Result, certificates, config, health, host, images, kubeconfig, network, objects, privilege, process,
    teardown, tools, volumes,
};

/// The time limit for a component to become healthy; a machine that also compiles is slow.
const PATIENCE: Duration = Duration::from_mins(2);

/// Identifies the boot and the version of the running cluster.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Started {
    boot: String,
    revision: String,
}

/// The state of the cluster on this machine.
#[derive(Debug, PartialEq, Eq)]
enum Condition {
    /// Nothing runs, and no files are left.
    Absent,
    /// All processes run.
    Running,
    /// Some of the processes of this boot and this version are gone.
    Partly(Vec<&'static str>),
    /// The cluster cannot be trusted, for this reason.
    Stale(&'static str),
}

/// Starts the cluster, and builds and installs what is missing; quick if it is up.
///
/// # Errors
/// If the machine does not meet the requirements, a build fails, or a component does not become healthy.
pub(crate) fn up(layout: &Layout) -> Result<()> {
    host::check()?;
    privilege::check()?;
    // The calling user builds, so that the cache belongs to them; the rest needs root.
    tools::build_all()?;
    let pause = images::pause()?;
    privilege::become_root()?;
    host::install_packages()?;
    let _lock = Lock::take(&lock_file(), "codex-cluster up")?;
    let began = Instant::now();
    let cgroups = Cgroups::detect();
    let revision = revision(layout, cgroups)?;
    let well = match condition(layout, &revision) {
        Condition::Running => match health::complaint(layout) {
            None => {
                say(&format!("The cluster is up and healthy ({:.1} s).", began.elapsed().as_secs_f64()));
                return Ok(());
            }
            Some(complaint) => repair(layout, &format!("The cluster is unhealthy: {complaint}."), &pause)?,
        },
        Condition::Partly(gone) => {
            repair(layout, &format!("These components have exited: {}.", gone.join(", ")), &pause)?
        }
        Condition::Absent => false,
        Condition::Stale(why) => {
            say(&format!("Removing an old cluster: {why}."));
            false
        }
    };
    if !well {
        teardown::clean(layout)?;
        prepare(layout, cgroups, revision)?;
        bring(layout, &pause)?;
    }
    say(&format!("The cluster is up after {:.1} s.", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Stops the cluster and removes everything from the machine except the cache of programs.
///
/// # Errors
/// If a process does not exit or a directory cannot be removed.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    privilege::check()?;
    privilege::become_root()?;
    let _lock = Lock::take(&lock_file(), "codex-cluster down")?;
    if !layout.state().exists() && !layout.run().exists() {
        say("No cluster is running.");
        return Ok(());
    }
    let began = Instant::now();
    teardown::clean(layout)?;
    say(&format!("The cluster is removed after {:.1} s.", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Returns whether a complete cluster of this boot runs, in any version.
pub(crate) fn runs(layout: &Layout) -> bool {
    Component::ALL.iter().all(|component| component.running(layout).is_some())
}

/// Returns a digest of programs, arguments and configuration. A cluster with another digest is recreated, not repaired.
fn revision(layout: &Layout, cgroups: Cgroups) -> Result<String> {
    let mut hash = Sha256::new();
    for (path, text) in config::files(layout, cgroups) {
        hash.update(format!("{}\0{text}\0", path.display()));
    }
    for component in Component::ALL {
        hash.update(component.command(layout)?.arguments.join("\0"));
    }
    Ok(format!("{} {}", tools::revision(), &hex::encode(hash.finalize())[..12]))
}

fn condition(layout: &Layout, revision: &str) -> Condition {
    if !layout.state().exists() && !layout.run().exists() {
        return Condition::Absent;
    }
    let text = fs::read_to_string(layout.at("started.json")).unwrap_or_default();
    let started: Option<Started> = serde_json::from_str(&text).ok();
    let gone = Component::ALL.into_iter().filter(|component| component.running(layout).is_none());
    judge(started.as_ref(), &process::boot_id(), revision, gone.map(Component::name).collect())
}

/// The pure part of [`condition`].
fn judge(started: Option<&Started>, boot: &str, revision: &str, gone: Vec<&'static str>) -> Condition {
    match started {
        None => Condition::Stale("its start was never finished"),
        Some(started) if started.boot != boot => Condition::Stale("the machine was restarted"),
        Some(_) if gone.len() == Component::ALL.len() => Condition::Stale("none of its processes runs any more"),
        Some(started) if started.revision != revision => Condition::Stale("it was started as another version"),
        Some(_) if gone.is_empty() => Condition::Running,
        Some(_) => Condition::Partly(gone),
    }
}

/// Restarts missing components. Returns whether the cluster is then healthy.
fn repair(layout: &Layout, complaint: &str, pause: &Path) -> Result<bool> {
    say(&format!("{complaint} Restarting; objects and volumes stay."));
    network::set_up(layout)?;
    match bring(layout, pause) {
        Ok(()) => Ok(true),
        Err(error) => {
            say(&format!("The restart failed ({error}); creating a new cluster."));
            Ok(false)
        }
    }
}

/// Prepares everything that the first process needs: directories, certificates, configuration, network.
fn prepare(layout: &Layout, cgroups: Cgroups, revision: String) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    step("certificates, network", || {
        let private = ["pki", "etcd", "audit"].map(|folder| layout.at(folder));
        let shared =
            ["config", "kubeconfig", "logs", "volumes", "kubectl-cache", "pod-logs"].map(|folder| layout.at(folder));
        let pids = layout.pid("etcd").parent().map(Path::to_path_buf).into_iter();
        let folders = private
            .into_iter()
            .map(|folder| (folder, 0o700))
            .chain(shared.into_iter().chain(pids).map(|folder| (folder, 0o755)));
        for (folder, mode) in folders {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&folder);
            made.map_err(Error::io("create", &folder))?;
        }
        for folder in [layout.state(), layout.run()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(Error::io("protect", folder))?;
        }
        certificates::write_all(layout)?;
        kubeconfig::write_all(layout)?;
        config::write_all(layout, cgroups)?;
        volumes::create_directories(layout)?;
        network::set_up(layout)?;
        let started = Started { boot: process::boot_id(), revision };
        let text = serde_json::to_string(&started).map_err(|source| Error::Json { what: "its state", source })?;
        fs::write(layout.at("started.json"), text).map_err(Error::io("write", layout.at("started.json")))
    })
}

/// Starts every component that does not run, and waits until all are healthy.
fn bring(layout: &Layout, pause: &Path) -> Result<()> {
    let mut starter = Starter { layout, clocks: BTreeMap::new() };
    starter.start(Component::Containerd)?;
    starter.start(Component::Etcd)?;
    starter.ready(Component::Etcd)?;
    starter.start(Component::ApiServer)?;
    starter.ready(Component::Containerd)?;
    images::load(layout, pause)?;
    starter.ready(Component::ApiServer)?;
    for component in Component::ALL {
        starter.start(component)?;
    }
    objects::apply_all(layout)?;
    for component in Component::ALL {
        starter.ready(component)?;
    }
    let resolve = || health::until(PATIENCE, "Service names do not resolve", || Ok(health::names_resolve()));
    step("Service names resolve", resolve)?;
    step("node ready", || health::until(PATIENCE, "the node is not ready", || Ok(health::node_ready(layout))))
}

/// Starts components and prints when each is healthy.
struct Starter<'a> {
    layout: &'a Layout,
    clocks: BTreeMap<Component, Instant>,
}

impl Starter<'_> {
    fn start(&mut self, component: Component) -> Result<()> {
        if component.running(self.layout).is_none() {
            component.start(self.layout)?;
            self.clocks.insert(component, Instant::now());
        }
        Ok(())
    }

    fn ready(&mut self, component: Component) -> Result<()> {
        health::wait(self.layout, component, PATIENCE)?;
        if let Some(clock) = self.clocks.remove(&component) {
            say(&format!("  {:<28} {:>6.1} s", component.name(), clock.elapsed().as_secs_f64()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Started {
        Started { boot: "b".into(), revision: "r".into() }
    }

    #[test]
    fn some_gone_is_repaired_and_all_gone_is_not() {
        let all: Vec<_> = Component::ALL.map(Component::name).to_vec();
        assert_eq!(judge(Some(&started()), "b", "r", vec![]), Condition::Running);
        assert_eq!(judge(Some(&started()), "b", "r", vec!["etcd"]), Condition::Partly(vec!["etcd"]));
        assert!(matches!(judge(Some(&started()), "b", "r", all), Condition::Stale(_)));
    }

    #[test]
    fn another_boot_or_version_is_made_anew() {
        assert!(matches!(judge(Some(&started()), "c", "r", vec![]), Condition::Stale(_)));
        assert!(matches!(judge(Some(&started()), "b", "s", vec![]), Condition::Stale(_)));
        assert!(matches!(judge(None, "b", "r", vec![]), Condition::Stale(_)));
    }
}
