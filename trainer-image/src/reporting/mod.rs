//! Reports the progress of this pod's work to the controller. Does I/O on a background thread.
//!
//! The work changes a cumulative state with [`Reporter::update`], which never waits for the network. The thread sends the newest
//! state: at most every two seconds, immediately when the stage changes, and with exponential backoff and jitter after failures.
//! [`Reporter::finish`] delivers the final report twice: in the pod's termination message and to the controller. Outside a pod,
//! without the variables of the pod contract, nothing is sent.

mod endpoint;
mod environment;
mod error;
mod fit;
mod sender;
mod work;

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use codex_provenance::ConfigDigest;
use codex_reports::{Failure, exit};
use signal_hook::consts::SIGTERM;

pub use self::{endpoint::SendError, environment::REQUIRED, error::ReportingError, work::Work};
use self::{
    environment::Settings,
    sender::{Mailbox, Outcome},
};

/// Time in which a final report is sent again until the controller takes it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same after SIGTERM.
const PATIENCE_AFTER_SIGTERM: Duration = Duration::from_secs(20);

/// Holds the state of a pod's work and sends it; see the module.
#[derive(Debug)]
pub struct Reporter<W: Work> {
    mailbox: Arc<Mailbox<W>>,
    termination_log: Option<PathBuf>,
}

impl<W: Work> Reporter<W> {
    /// Reads the variables of the pod contract and starts the sending thread. Without these variables nothing is sent.
    ///
    /// # Errors
    /// When only some variables are set, a value is invalid, or the certificate authority cannot be read.
    pub fn from_env() -> Result<Self, ReportingError> {
        Self::with(environment::read::<W>(&|name| std::env::var(name).ok())?)
    }

    /// Makes a reporter that sends nothing, whatever the environment: for commands that inspect a run.
    pub fn nowhere() -> Self {
        Self { mailbox: Arc::new(Mailbox::new(None)), termination_log: None }
    }

    fn with(settings: Option<Settings>) -> Result<Self, ReportingError> {
        let Some(Settings { identity, endpoint, termination_log, pace }) = settings else { return Ok(Self::nowhere()) };
        let mailbox = Arc::new(Mailbox::new(Some(identity)));
        let shared = Arc::clone(&mailbox);
        std::thread::Builder::new()
            .name("reports".to_owned())
            .spawn(move || sender::run(&shared, endpoint, pace))
            .map_err(ReportingError::System)?;
        Ok(Self { mailbox, termination_log: Some(termination_log) })
    }

    /// Changes the state. Never waits for the network.
    pub fn update(&self, change: impl FnOnce(&mut W)) {
        self.mailbox.change(|outgoing| change(&mut outgoing.state));
    }

    /// Returns a copy of the state.
    pub fn state(&self) -> W {
        self.mailbox.state()
    }

    /// Sets why the work failed. [`Reporter::finish`] must still be called.
    pub fn fail(&self, failure: Failure) {
        self.update(|state| state.fail(failure));
    }

    /// Sets the number of this attempt, counted from 1 in the output directory (default 1).
    pub fn set_attempt(&self, attempt: u32) {
        self.mailbox.change(|outgoing| outgoing.attempt = attempt);
    }

    /// Sets the digest of the configuration, as this pod computed it.
    pub fn set_config_digest(&self, digest: ConfigDigest) {
        self.mailbox.change(|outgoing| outgoing.config_digest = Some(digest));
    }

    /// Writes the termination message, then sends the final state until the controller takes or refuses it, or 60 seconds have
    /// passed (20 seconds after SIGTERM, also if `code` is that of an interruption). Blocks meanwhile. Failures are logged and do
    /// not change the exit code.
    pub fn finish(&self, code: i32) {
        let Some(path) = &self.termination_log else { return };
        match self.mailbox.freeze().map(fit::termination_message) {
            Some(Ok(bytes)) => {
                if let Err(error) = fs::write(path, bytes) {
                    tracing::warn!(path = %path.display(), %error, "the termination message cannot be written");
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "the termination message is empty: the report does not fit"),
            None => return,
        }
        match self.deliver(code) {
            Ok(Outcome::Taken) => tracing::debug!("the controller took the final report"),
            Ok(Outcome::Refused(reason)) => tracing::warn!(%reason, "the controller refused the final report"),
            Ok(Outcome::Pending) => tracing::warn!("the controller did not take the final report in time"),
            Err(error) => {
                tracing::warn!(%error, "the signal handler cannot be installed; not waiting for the final report");
            }
        }
    }

    fn deliver(&self, code: i32) -> io::Result<Outcome> {
        let asked_to_end = Arc::new(std::sync::atomic::AtomicBool::new(code == exit::INTERRUPTED));
        let handler = signal_hook::flag::register(SIGTERM, Arc::clone(&asked_to_end))?;
        let outcome = self.mailbox.deliver(&asked_to_end, Instant::now() + PATIENCE, PATIENCE_AFTER_SIGTERM);
        signal_hook::low_level::unregister(handler);
        Ok(outcome)
    }
}

impl<W: Work> Drop for Reporter<W> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

#[cfg(test)]
mod tests;
