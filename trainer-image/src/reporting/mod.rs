//! Tells the controller how far the work of this pod is. Does I/O, on a thread of its own.
//!
//! The work changes one cumulative state with [`Reporter::update`], which never waits for the network. A background
//! thread sends the newest state, at most every two seconds, at once when the stage changes, and with growing, jittered
//! pauses while nobody answers. [`Reporter::finish`] leaves the last word twice: in the pod's termination message and
//! with the controller. On a laptop, where none of the pod contract's variables is set, the state is kept here and goes
//! nowhere.

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
use codex_reports::{Failure, MAX_TERMINATION_BYTES, exit};
use signal_hook::consts::SIGTERM;

pub use self::{endpoint::SendError, environment::REQUIRED, error::ReportingError, work::Work};
use self::{
    environment::Settings,
    sender::{Mailbox, Outcome},
};

/// How long a final report is offered.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is offered once the pod was asked to end.
const PATIENCE_AFTER_SIGTERM: Duration = Duration::from_secs(20);

/// Keeps the state of one pod's work and has it sent; see the module. It is shared between threads by reference.
#[derive(Debug)]
pub struct Reporter<W: Work> {
    mailbox: Arc<Mailbox<W>>,
    termination_log: Option<PathBuf>,
}

impl<W: Work> Reporter<W> {
    /// Reads the environment of the pod contract and starts the sending thread; without any of its variables, keeps
    /// the state and sends nothing.
    ///
    /// # Errors
    /// When some variables are set and others are not, when a value cannot be, and when the certificate authority
    /// cannot be read.
    pub fn from_env() -> Result<Self, ReportingError> {
        Self::with(environment::read::<W>(&|name| std::env::var(name).ok())?)
    }

    /// Keeps the state and sends nothing, whatever the environment says: for looking into a run without being one.
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

    /// Changes the state. Never waits for the network; what the state becomes is sent soon, and at once when its stage
    /// changes.
    pub fn update(&self, change: impl FnOnce(&mut W)) {
        self.mailbox.change(|outgoing| change(&mut outgoing.state));
    }

    /// A copy of the state as it is now.
    pub fn state(&self) -> W {
        self.mailbox.state()
    }

    /// Says why the work is given up; [`Reporter::finish`] still has to be called.
    pub fn fail(&self, failure: Failure) {
        self.update(|state| state.fail(failure));
    }

    /// Sets which attempt at the work this is, counted from 1 by the work's own directory (1 where nobody says).
    pub fn set_attempt(&self, attempt: u32) {
        self.mailbox.change(|outgoing| outgoing.attempt = attempt);
    }

    /// Sets the digest of the configuration that this pod hashed again.
    pub fn set_config_digest(&self, digest: ConfigDigest) {
        self.mailbox.change(|outgoing| outgoing.config_digest = Some(digest));
    }

    /// Leaves the last word: writes the termination message, then offers the final state until the controller took it
    /// or refused it, or until 60 seconds have passed (20 seconds from a SIGTERM, and when `code` says that there was
    /// one). Blocks meanwhile. What cannot be delivered is logged; nothing here changes how the process ends.
    pub fn finish(&self, code: i32) {
        let Some(path) = &self.termination_log else { return };
        match self.mailbox.report().map(|report| fit::fit(report, MAX_TERMINATION_BYTES)) {
            Some(Ok(bytes)) => {
                if let Err(error) = fs::write(path, bytes) {
                    tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "the termination message was left empty"),
            None => return,
        }
        match self.deliver(code) {
            Ok(Outcome::Taken) => tracing::debug!("the controller has the final report"),
            Ok(Outcome::Refused(reason)) => tracing::warn!(%reason, "the controller refused the final report"),
            Ok(Outcome::Pending) => tracing::warn!("the controller did not take the final report in time"),
            Err(error) => tracing::warn!(%error, "no signal handler: the final report is left to the sending thread"),
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
