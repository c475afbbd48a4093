//! The sending thread, and the mailbox between it and the work. Does I/O.
//!
//! The mailbox holds only the newest state: unsent states are replaced, never queued.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use codex_provenance::ConfigDigest;
use codex_reports::{Kind, MAX_BYTES, Report, SCHEMA_VERSION};

use super::{
    endpoint::{Endpoint, SendError},
    fit::{FitError, fit},
    work::Work,
};

/// Refusals of a final report after which it is given up. A controller that has just started may not know the pod yet.
const REFUSALS: u32 = 3;
/// Interval in which a pending delivery checks for SIGTERM.
const LOOK: Duration = Duration::from_millis(100);

/// The identity of a pod and of its object.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) object_uid: String,
    pub(super) pod_uid: String,
}

/// The pace of reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Minimum time between two reports of the same stage.
    pub(super) interval: Duration,
    /// First pause after a failure; it doubles with each further failure, with jitter.
    pub(super) first_pause: Duration,
    /// Maximum pause.
    pub(super) longest_pause: Duration,
    /// Time after which an unchanged state is sent again, if it is.
    pub(super) repeat: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(10),
            repeat: None,
        }
    }
}

impl Pace {
    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// The content of the next report.
#[derive(Clone, Debug)]
pub(super) struct Outgoing<W> {
    pub(super) state: W,
    pub(super) attempt: u32,
    pub(super) config_digest: Option<ConfigDigest>,
}

/// The outcome of a final report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has not been answered.
    Pending,
    /// The controller took it.
    Taken,
    /// The controller refused it, for this reason.
    Refused(String),
}

#[derive(Debug)]
struct Contents<W> {
    outgoing: Outgoing<W>,
    /// Number of changes.
    version: u64,
    /// The newest change that the controller took.
    sent: u64,
    /// Whether a change of the stage is unsent.
    urgent: bool,
    /// The outcome of the final report, once there is one.
    last: Option<Outcome>,
    closed: bool,
    /// Whether the final report was made: later changes are ignored, so that all its deliveries are equal.
    frozen: bool,
    seq: u64,
}

/// Holds the newest state, and wakes the sending thread.
#[derive(Debug)]
pub(super) struct Mailbox<W> {
    identity: Option<Identity>,
    contents: Mutex<Contents<W>>,
    changed: Condvar,
}

impl<W: Work> Mailbox<W> {
    /// Makes an empty mailbox. Without an identity nothing is sent.
    pub(super) fn new(identity: Option<Identity>) -> Self {
        // A restarted container must continue after its older reports, so the sequence starts from the clock.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let contents = Contents {
            outgoing: Outgoing { state: W::default(), attempt: 1, config_digest: None },
            version: 0,
            sent: 0,
            urgent: false,
            last: None,
            closed: false,
            frozen: false,
            seq: since_1970.as_millis() as u64,
        };
        Self { identity, contents: Mutex::new(contents), changed: Condvar::new() }
    }

    // After a panic in a change, the state is still worth reporting.
    fn lock(&self) -> MutexGuard<'_, Contents<W>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the content of the next report.
    pub(super) fn change(&self, change: impl FnOnce(&mut Outgoing<W>)) {
        let mut contents = self.lock();
        if contents.frozen {
            return;
        }
        let stage = contents.outgoing.state.stage();
        change(&mut contents.outgoing);
        contents.version += 1;
        contents.urgent |= contents.outgoing.state.stage() != stage;
        if contents.urgent || contents.version == contents.sent + 1 {
            self.changed.notify_all();
        }
    }

    /// Returns a copy of the state.
    pub(super) fn state(&self) -> W {
        self.lock().outgoing.state.clone()
    }

    /// Makes the final report: later changes of the state are ignored. `None` without an identity.
    pub(super) fn freeze(&self) -> Option<Report> {
        let mut contents = self.lock();
        contents.frozen = true;
        self.identity.as_ref().map(|identity| compose(identity, &mut contents))
    }

    /// Makes the next report the final one, and waits until it is taken, refused or the deadline has passed.
    pub(super) fn deliver(&self, asked_to_end: &AtomicBool, mut deadline: Instant, patience: Duration) -> Outcome {
        let mut shortened = false;
        let mut contents = self.lock();
        contents.last = Some(Outcome::Pending);
        contents.version += 1;
        contents.urgent = true;
        self.changed.notify_all();
        loop {
            let now = Instant::now();
            if !shortened && asked_to_end.load(Ordering::Relaxed) {
                (shortened, deadline) = (true, deadline.min(now + patience));
            }
            match &contents.last {
                Some(Outcome::Pending) | None if now < deadline => {}
                outcome => return outcome.clone().unwrap_or(Outcome::Pending),
            }
            contents = self.changed.wait_timeout(contents, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the sending thread after its current request.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

fn compose<W: Work>(identity: &Identity, contents: &mut Contents<W>) -> Report {
    contents.seq += 1;
    let outgoing = contents.outgoing.clone();
    Report {
        schema_version: SCHEMA_VERSION,
        kind: identity.kind,
        namespace: identity.namespace.clone(),
        name: identity.name.clone(),
        object_uid: identity.object_uid.clone(),
        pod_uid: identity.pod_uid.clone(),
        attempt: outgoing.attempt,
        seq: contents.seq,
        config_digest: outgoing.config_digest,
        digest: None,
        state: outgoing.state.wire(),
    }
}

/// Sends reports until the mailbox is closed, or the final report is taken or refused.
pub(super) fn run<W: Work>(mailbox: &Mailbox<W>, mut endpoint: Endpoint, pace: Pace) {
    let Some(identity) = &mailbox.identity else { return };
    let mut pauses = pace.pauses();
    let mut pause: Option<Instant> = None;
    // The first report waits for an interval, so that it includes the digest of the configuration.
    let mut next = Instant::now() + pace.interval;
    let mut refusals = 0;
    let mut silent = false;
    let mut contents = mailbox.lock();
    loop {
        if contents.closed || matches!(contents.last, Some(Outcome::Taken | Outcome::Refused(_))) {
            return;
        }
        // An urgent report does not wait for the end of a pause, but a retry of it does.
        let now = Instant::now();
        let due = if contents.urgent { now } else { pause.unwrap_or(next) };
        if contents.version == contents.sent {
            // The state has not changed since `next` was set.
            let again = pace.repeat.map(|repeat| next + repeat);
            contents = match again {
                Some(again) if again <= now => {
                    contents.version += 1;
                    contents
                }
                Some(again) => {
                    mailbox.changed.wait_timeout(contents, again - now).unwrap_or_else(PoisonError::into_inner).0
                }
                None => mailbox.changed.wait(contents).unwrap_or_else(PoisonError::into_inner),
            };
            continue;
        }
        if now < due {
            contents = mailbox.changed.wait_timeout(contents, due - now).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let version = contents.version;
        let last = contents.last.is_some();
        contents.urgent = false;
        let report = compose(identity, &mut contents);
        drop(contents);

        next = now + pace.interval;
        let result = fit(report, MAX_BYTES).map_err(Trouble::from).and_then(|body| Ok(endpoint.send(&body)?));
        contents = mailbox.lock();
        match result {
            Ok(()) => {
                if silent {
                    tracing::info!("the controller accepts reports again");
                }
                (pauses, pause, refusals, silent) = (pace.pauses(), None, 0, false);
                contents.sent = version;
                if last {
                    contents.last = Some(Outcome::Taken);
                }
            }
            Err(error) => {
                let sentence = crate::error::chain(&error);
                if !silent {
                    tracing::warn!(error = sentence, "a report was not accepted; retrying");
                    silent = true;
                }
                refusals = if error.is_refusal() { refusals + 1 } else { 0 };
                if last && refusals >= REFUSALS {
                    contents.last = Some(Outcome::Refused(sentence));
                }
                pause = pauses.next().map(|pause| Instant::now() + pause);
            }
        }
        mailbox.changed.notify_all();
    }
}

/// The reasons for which a report was not sent.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error(transparent)]
    Send(#[from] SendError),
}

impl Trouble {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Fit(_) | Self::Send(SendError::Refused { .. }))
    }
}
