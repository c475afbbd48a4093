//! When a state is made durable, and what is done when the volume will not have it. Does I/O through the saver's thread.
//!
//! A volume that is full, slow, read-only or gone does not end a training that goes on in memory: the checkpoint is tried again,
//! ever more rarely, and the last good one stays. Only the end of an attempt waits for its checkpoint, and for so long as it may.

use std::time::{Duration, Instant};

use codex_configs::Optimization;
use codex_reports::{Checkpoint, TrainingState};

use super::{
    TrainError,
    checkpoint::{Retention, Written},
    data::Stop,
    records::LedgerRow,
    saver::{Done, Job, Saver},
    state::State,
};
use crate::{cli::chain, durable::advice, reporting::Reporter};

/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the last checkpoint of a run is tried for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often somebody who waits for the next try looks whether the attempt should end.
const LOOK: Duration = Duration::from_millis(50);

/// Keeps a run's states.
pub(super) struct Keep<'a> {
    reporter: &'a Reporter<TrainingState>,
    saver: Saver,
    retention: Retention,
    digest_every: Option<u64>,
    interval: Option<Duration>,
    /// From SIGTERM to SIGKILL, where somebody said.
    grace: Option<Duration>,
    /// Ledger rows that no job has taken yet.
    rows: Vec<LedgerRow>,
    /// The step of the newest durable checkpoint.
    durable: Option<u64>,
    /// When the last checkpoint was handed over.
    last: Instant,
    /// Failures in a row, and when to try again.
    failing: Option<(u32, Instant)>,
    /// The longest that a checkpoint and a step took.
    slowest: (Duration, Duration),
    warned_of_grace: bool,
    /// Checkpoints that became durable.
    written: u64,
    /// How long training stood still while it went on: copies, and waits for the one before.
    paused: Duration,
}

impl<'a> Keep<'a> {
    /// For a run whose newest checkpoint is of step `durable`.
    pub(super) fn new(
        reporter: &'a Reporter<TrainingState>,
        saver: Saver,
        training: &Optimization,
        durable: Option<u64>,
        grace: Option<Duration>,
    ) -> Self {
        Self {
            reporter,
            saver,
            retention: Retention::of(training),
            digest_every: training.state_digest_every,
            interval: training.checkpoint_interval_seconds.map(Duration::from_secs),
            grace,
            rows: Vec::new(),
            durable,
            last: Instant::now(),
            failing: None,
            slowest: Default::default(),
            warned_of_grace: false,
            written: 0,
            paused: Duration::ZERO,
        }
    }

    /// Hears of a step, and does what is due.
    ///
    /// # Errors
    /// When this attempt may not write any more; not when the volume refuses.
    pub(super) fn step(&mut self, state: &State, row: LedgerRow, took: Duration) -> Result<(), TrainError> {
        self.rows.push(row);
        self.slowest.1 = self.slowest.1.max(took);
        if let Some(done) = self.saver.poll() {
            self.settle(done)?;
        }
        let scheduled = self.retention.scheduled(state.step);
        let record = scheduled || self.digest_every.is_some_and(|every| state.step.is_multiple_of(every));
        let now = Instant::now();
        let by_clock = self.interval.is_some_and(|interval| now.duration_since(self.last) >= interval)
            || self.failing.is_some_and(|(_, again)| now >= again);
        // A volume that refuses is not asked again before its pause is over, even where a checkpoint is scheduled.
        let wanted = if self.failing.is_some() { by_clock } else { scheduled || by_clock };
        if record || wanted {
            if self.saver.busy() && !record && !scheduled {
                // The clock can wait for the next step.
                return Ok(());
            }
            self.hand_over(state, record, wanted)?;
            self.paused += now.elapsed();
        }
        Ok(())
    }

    /// Copies the state and hands it over, after what is in flight.
    fn hand_over(&mut self, state: &State, record: bool, checkpoint: bool) -> Result<(), TrainError> {
        if let Some(done) = self.saver.wait() {
            self.settle(done)?;
        }
        let snapshot = state.snapshot(self.saver.spare());
        let rows = std::mem::take(&mut self.rows);
        if checkpoint {
            self.last = Instant::now();
        }
        self.saver.submit(Job { snapshot, record, checkpoint: checkpoint.then(|| state.measured.clone()), rows })
    }

    /// Hears what became of a state.
    fn settle(&mut self, done: Done) -> Result<(), TrainError> {
        let Done { step, outcome, asked, .. } = done;
        match outcome {
            Ok(written) => {
                if let Some(written) = written {
                    self.durable(written);
                }
                Ok(())
            }
            Err(error) if error.is_storage() => {
                self.failed(step, asked, &error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn durable(&mut self, written: Written) {
        let Written { checkpoint, size, took } = written;
        let step = checkpoint.step;
        tracing::debug!(step, digest = %checkpoint.digest, size, seconds = took.as_secs_f64(), "checkpoint");
        self.durable = Some(step);
        self.written += 1;
        self.slowest.0 = self.slowest.0.max(took);
        let back = self.failing.take().is_some();
        self.reporter.update(|report| {
            report.last_checkpoint = Some(checkpoint);
            if back {
                report.notices.retain(|notice| !notice.starts_with(REFUSED));
                report.notices.push(format!("checkpoints can be written again, from step {step} on"));
            }
        });
        if back {
            tracing::info!(step, "checkpoints can be written again");
        }
        self.compare_with_grace();
    }

    fn failed(&mut self, step: u64, asked: bool, error: &TrainError) {
        let count = self.failing.map_or(0, |(count, _)| count) + 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(10)).min(LONGEST_PAUSE);
        self.failing = Some((count, Instant::now() + pause));
        let what = if asked { "checkpoint" } else { "record of the state" };
        let last = self.durable.map_or_else(|| "there is none yet".to_owned(), |step| format!("it is of step {step}"));
        let advice = advice(error).map(|advice| format!("; {advice}")).unwrap_or_default();
        let notice =
            format!("{REFUSED} the {what} of step {step}: {}{advice}; the last good one stays ({last})", chain(error));
        tracing::warn!(failures = count, "{notice}; training goes on, and the next try is in {} s", pause.as_secs());
        self.reporter.update(|report| {
            report.notices.retain(|notice| !notice.starts_with(REFUSED));
            report.notices.push(notice);
        });
    }

    /// Says how long a checkpoint will take before there was one, from a probe.
    pub(super) fn expect(&mut self, took: Duration) {
        self.slowest.0 = took;
        self.compare_with_grace();
    }

    /// Says once when the pod may be killed before its last checkpoint is durable.
    fn compare_with_grace(&mut self) {
        let (checkpoint, step) = self.slowest;
        // What is in flight is finished before the last one begins.
        let needed = step + 2 * checkpoint;
        let Some(grace) = self.grace.filter(|grace| needed > *grace && !self.warned_of_grace) else { return };
        self.warned_of_grace = true;
        let notice = format!(
            "the grace period of {} s is too short: a step takes {:.1} s and a checkpoint {:.1} s, and one may be in flight, so \
             that a pod that is asked to end may lose the steps since its last checkpoint; \
             terminationGracePeriodSeconds of {} would do",
            grace.as_secs(),
            step.as_secs_f64(),
            checkpoint.as_secs_f64(),
            (needed.as_secs_f64() * 1.5).ceil(),
        );
        tracing::warn!("{notice}");
        self.reporter.update(|report| report.notices.push(notice));
    }

    /// Makes the state durable and waits for it, trying again for as long as there is time: until the grace period is nearly
    /// over when the attempt was asked to end, for a minute otherwise.
    ///
    /// # Errors
    /// When there is no more time, or this attempt may not write any more.
    pub(super) fn finish(&mut self, state: &State, interrupted: bool, stop: Stop) -> Result<(), TrainError> {
        let patience = self.grace.filter(|_| interrupted).map_or(PATIENCE, |grace| grace / 2);
        let deadline = Instant::now() + patience;
        let record = self.retention.scheduled(state.step);
        if let Some(done) = self.saver.wait() {
            self.settle(done)?;
        }
        while self.durable != Some(state.step) || !self.rows.is_empty() {
            let checkpoint = self.durable != Some(state.step);
            self.hand_over(state, record, checkpoint)?;
            let Some(done) = self.saver.wait() else { continue };
            match done.outcome {
                Ok(_) => self.settle(done)?,
                Err(error) if error.is_storage() => {
                    self.failed(done.step, checkpoint, &error);
                    let again = self.failing.map_or_else(Instant::now, |(_, again)| again);
                    if again > deadline {
                        return Err(error);
                    }
                    while Instant::now() < again {
                        // Whoever asks a finished run to end has no more than the grace period left.
                        if !interrupted && stop() && Instant::now() + FIRST_PAUSE > deadline {
                            return Err(error);
                        }
                        std::thread::sleep(LOOK);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the rows that no checkpoint has taken yet, for whoever looks into a run that gave up.
    pub(super) fn leave(&mut self, state: &State) {
        let left = self.saver.wait().map_or(Ok(()), |done| self.settle(done));
        let left = left.and_then(|()| self.hand_over(state, false, false));
        if let Err(error) = left {
            tracing::warn!(error = chain(&error), "the last rows of the ledger are not written");
        }
        drop(self.saver.wait());
    }

    /// The parameters of a state that was just made durable: those of the copy that the saver had, so that there is no third.
    pub(super) fn into_parameters(mut self, state: &State) -> Vec<f32> {
        self.saver.spare().unwrap_or_else(|| state.engine.export()).parameters
    }

    /// Checkpoints that became durable, and how long training stood still for them between its steps.
    pub(super) fn cost(&self) -> (u64, Duration) {
        (self.written, self.paused)
    }
}

/// How a notice about a volume that refuses begins.
const REFUSED: &str = "the volume refused";

/// A checkpoint as a report names it.
pub(super) fn reported(reporter: &Reporter<TrainingState>, checkpoint: &Checkpoint) {
    reporter.update(|state| {
        state.resumed_from = Some(checkpoint.step);
        state.last_checkpoint = Some(checkpoint.clone());
    });
}
