//! Faults of single components of the local cluster: kills, pauses and starts them. Needs root.
//!
//! Signals reach only processes that the cluster started: each is identified by pid, start time and boot.

use std::time::Duration;

use rustix::process::Signal;

use crate::certificates;
use crate::layout::lock_file;
use crate::privilege::{self, Lock};
use crate::{Cluster, Component, Error, Result, health};

/// The time limit for a killed process to exit.
const EXIT: Duration = Duration::from_secs(10);
/// The time limit for a started component to become healthy.
const HEALTHY: Duration = Duration::from_mins(2);

impl Cluster {
    /// Returns whether a component's process exists, paused or not; false if the cluster is not local.
    pub fn runs(&self, component: Component) -> bool {
        self.is_local() && component.running(&self.layout).is_some()
    }

    /// Kills a component with SIGKILL, and waits until it has exited. It stays down until [`Self::start_component`].
    ///
    /// # Errors
    /// If this process is not root, the cluster is not local, or the component does not run or does not exit.
    pub fn kill_component(&self, component: Component) -> Result<()> {
        self.check_root()?;
        let process = component.running(&self.layout).ok_or_else(|| not_running(component))?;
        process.signal(Signal::KILL);
        if process.wait_gone(EXIT) {
            return Ok(());
        }
        Err(Error::Stuck { component: component.name().to_owned(), pid: process.pid })
    }

    /// Stops a component with SIGSTOP: it keeps its connections, and answers nothing until [`Self::continue_component`].
    ///
    /// # Errors
    /// As [`Self::kill_component`].
    pub fn pause_component(&self, component: Component) -> Result<()> {
        self.check_root()?;
        component.running(&self.layout).ok_or_else(|| not_running(component))?.signal(Signal::STOP);
        Ok(())
    }

    /// Continues a paused component. Does nothing if it runs, or has exited.
    ///
    /// # Errors
    /// If this process is not root, or the cluster is not local.
    pub fn continue_component(&self, component: Component) -> Result<()> {
        self.check_root()?;
        if let Some(process) = component.running(&self.layout) {
            process.signal(Signal::CONT);
        }
        Ok(())
    }

    /// Starts a component that does not run, and waits until it is healthy.
    ///
    /// # Errors
    /// If this process is not root, the cluster is not local, or the component does not become healthy.
    pub fn start_component(&self, component: Component) -> Result<()> {
        self.check_root()?;
        if component == Component::Volumes {
            // Its program is the codex-cluster command.
            return Err(Error::Prerequisite("`codex-cluster up` starts this component".into()));
        }
        let _lock = Lock::take(&lock_file(), "starting one component")?;
        if component.running(&self.layout).is_none() {
            component.start(&self.layout)?;
        }
        health::wait(&self.layout, component, HEALTHY)
    }

    /// Issues a certificate of the cluster's authority for a server of this machine at [`Self::host_address`]. Returns certificate
    /// and key in PEM.
    ///
    /// # Errors
    /// If this process is not root, the cluster is not local, or the certificate cannot be made.
    pub fn serving_certificate(&self, name: &str) -> Result<(String, String)> {
        self.check_root()?;
        certificates::serving(&self.layout, name)
    }

    fn check_root(&self) -> Result<()> {
        if !self.is_local() {
            return Err(Error::Prerequisite("only components of the local cluster can be disturbed".into()));
        }
        if !privilege::is_root() {
            return Err(Error::Prerequisite(
                "disturbing components of the cluster needs root; run this as root".into(),
            ));
        }
        Ok(())
    }
}

fn not_running(component: Component) -> Error {
    Error::Prerequisite(format!("{} does not run; `codex-cluster up` starts it", component.name()))
}
