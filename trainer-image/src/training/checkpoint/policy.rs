//! When checkpoints are written, and how failures of the volume are handled. Does I/O through the writer thread.
//!
//! A volume that is full, slow, read-only or gone does not end a training: the checkpoint is retried with increasing pauses, and
//! the last good one stays. Only the end of an attempt waits for its checkpoint, for a limited time.

use std::time::{Duration, Instant};

use codex_configs::Optimization;
use codex_engine::EngineState;
use codex_reports::TrainingState;

use super::{
    AsyncWriter, CheckpointError, Retention,
    async_writer::{WriteJob, WriteResult},
    store::SavedCheckpoint,
};
use crate::{
    atomic_fs::advice,
    error::chain,
    reporting::Reporter,
    signals::Stop,
    training::{records::LedgerRow, state::State},
};

/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the last checkpoint of a run is retried.
const FINAL_RETRIES: Duration = Duration::from_secs(60);
/// Wait for the volume that causes a notice, if it is also more than 5 % of the time since the last checkpoint.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// Interval between two checks of the stop flag while waiting for the next try.
const POLL: Duration = Duration::from_millis(50);

/// What earlier attempts have written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Step of the newest checkpoint.
    pub(crate) durable: Option<u64>,
    /// Whether the evaluation of that checkpoint is pending.
    pub(crate) pending: bool,
    /// Step of the newest recorded state.
    pub(crate) recorded: Option<u64>,
}

/// Writes the states of a run as checkpoints and records.
pub(crate) struct CheckpointPolicy<'a> {
    reporter: &'a Reporter<TrainingState>,
    writer: AsyncWriter,
    retention: Retention,
    digest_every: Option<u64>,
    interval: Option<Duration>,
    /// Time from SIGTERM to SIGKILL, if known.
    grace: Option<Duration>,
    /// Ledger rows that are not part of a job yet.
    rows: Vec<LedgerRow>,
    /// Step of the newest durable checkpoint.
    durable: Option<u64>,
    /// Whether the evaluation is pending in the durable checkpoint, and in the one in flight.
    pending: (bool, bool),
    /// Step of the newest state whose digest is recorded or in flight.
    recorded: Option<u64>,
    /// Time of the last checkpoint job.
    last: Instant,
    /// Number of failures in a row, and the time of the next try.
    failing: Option<(u32, Instant)>,
    /// Longest time of a checkpoint and of a step.
    slowest: (Duration, Duration),
    warned_of_grace: bool,
    warned_of_slowness: bool,
    /// Number of checkpoints written.
    written: u64,
    /// Time that training waited for copies and for the previous job.
    paused: Duration,
}

impl<'a> CheckpointPolicy<'a> {
    /// Creates the policy for a run of `total` steps.
    pub(crate) fn new(
        reporter: &'a Reporter<TrainingState>,
        writer: AsyncWriter,
        training: &Optimization,
        total: u64,
        written: Written,
        grace: Option<Duration>,
    ) -> Self {
        let Written { durable, pending, recorded } = written;
        Self {
            reporter,
            writer,
            retention: Retention::of(training, total),
            digest_every: training.state_digest_every,
            interval: training.checkpoint_interval_seconds.map(Duration::from_secs),
            grace,
            rows: Vec::new(),
            durable,
            pending: (pending, false),
            recorded,
            last: Instant::now(),
            failing: None,
            slowest: Default::default(),
            warned_of_grace: false,
            warned_of_slowness: false,
            written: 0,
            paused: Duration::ZERO,
        }
    }

    /// Adds a step, and writes the records and the checkpoint that are due after it.
    ///
    /// # Errors
    /// When this attempt may not write any more; not when the volume fails.
    pub(crate) fn step(&mut self, state: &State, row: LedgerRow, took: Duration) -> Result<(), CheckpointError> {
        self.rows.push(row);
        self.slowest.1 = self.slowest.1.max(took);
        if let Some(done) = self.writer.poll() {
            self.settle(done)?;
        }
        let scheduled = self.retention.scheduled(state.step);
        let record = scheduled || self.digest_every.is_some_and(|every| state.step.is_multiple_of(every));
        let now = Instant::now();
        let by_clock = self.interval.is_some_and(|interval| now.duration_since(self.last) >= interval);
        // After a failure nothing is written before the pause is over, whatever is due.
        let hold = self.failing.is_some_and(|(_, again)| now < again);
        let checkpoint = !hold && (scheduled || by_clock || self.failing.is_some());
        if record || checkpoint {
            if self.writer.busy() && !record && !scheduled {
                // A checkpoint by the clock can wait for the next step.
                return Ok(());
            }
            self.submit_state(state, record, checkpoint, hold)?;
            self.paused += now.elapsed();
        }
        Ok(())
    }

    /// Adds a step whose evaluation was interrupted. Its state is not recorded before the evaluation is repeated.
    pub(crate) fn add_unevaluated(&mut self, row: LedgerRow) {
        self.rows.push(row);
    }

    /// Writes the records that are due after a repeated evaluation, and the checkpoint again, so that no later attempt repeats
    /// the evaluation once more.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub(crate) fn evaluated(&mut self, state: &State) -> Result<(), CheckpointError> {
        let digest_every = self.digest_every.is_some_and(|every| state.step.is_multiple_of(every));
        let record = self.retention.scheduled(state.step) || digest_every;
        self.submit_state(state, record, true, false)
    }

    /// Whether the newest durable checkpoint is of this state.
    fn is_durable(&self, state: &State) -> bool {
        self.durable == Some(state.step) && self.pending.0 == state.evaluation_pending
    }

    /// Waits for the job in flight, copies the state and submits it.
    fn submit_state(
        &mut self,
        state: &State,
        record: bool,
        checkpoint: bool,
        hold: bool,
    ) -> Result<(), CheckpointError> {
        let began = Instant::now();
        if let Some(done) = self.writer.wait() {
            self.settle(done)?;
        }
        self.waited(began.elapsed());
        let snapshot = state.snapshot(self.writer.take_spare())?;
        let rows = std::mem::take(&mut self.rows);
        if checkpoint {
            self.last = Instant::now();
            self.pending.1 = state.evaluation_pending;
        }
        if record {
            self.recorded = Some(state.step);
        }
        let measured = || state.measured.clone().into_iter().filter(|(_, value)| value.is_finite()).collect();
        self.writer.submit(WriteJob { snapshot, record, checkpoint: checkpoint.then(measured), rows, hold })
    }

    /// Handles the result of a job.
    fn settle(&mut self, done: WriteResult) -> Result<(), CheckpointError> {
        let WriteResult { step, outcome, asked, .. } = done;
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

    fn durable(&mut self, written: SavedCheckpoint) {
        let SavedCheckpoint { checkpoint, size, took } = written;
        let step = checkpoint.step;
        tracing::debug!(step, digest = %checkpoint.digest, size, seconds = took.as_secs_f64(), "checkpoint");
        self.durable = Some(step);
        self.pending.0 = self.pending.1;
        self.written += 1;
        self.slowest.0 = self.slowest.0.max(took);
        let back = self.failing.take().is_some();
        self.reporter.update(|report| {
            report.last_checkpoint = Some(checkpoint);
            if back {
                report.notices.retain(|notice| !notice.starts_with(FAILED));
                report.notices.push(format!("checkpoints can be written again, from step {step} on"));
            }
        });
        if back {
            tracing::info!(step, "checkpoints can be written again");
        }
        self.compare_with_grace();
    }

    fn failed(&mut self, step: u64, asked: bool, error: &CheckpointError) {
        let count = self.failing.map_or(0, |(count, _)| count) + 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(10)).min(LONGEST_PAUSE);
        self.failing = Some((count, Instant::now() + pause));
        let what = if asked { "checkpoint" } else { "record of the state" };
        let last = self.durable.map_or_else(
            || "there is no earlier checkpoint".to_owned(),
            |step| format!("the last good one is of step {step}"),
        );
        let advice = advice(error).map(|advice| format!("; {advice}")).unwrap_or_default();
        let notice = format!("{FAILED} the {what} of step {step}: {}{advice}; {last}", chain(error));
        tracing::warn!(failures = count, "{notice}; training continues, and the next try is in {} s", pause.as_secs());
        self.reporter.update(|report| {
            report.notices.retain(|notice| !notice.starts_with(FAILED));
            report.notices.push(notice);
        });
    }

    /// Sets the expected time of a checkpoint, from a probe.
    pub(crate) fn expect(&mut self, took: Duration) {
        self.slowest.0 = took;
        self.compare_with_grace();
    }

    /// Warns once when the pod may be killed before its last checkpoint is durable.
    fn compare_with_grace(&mut self) {
        let (checkpoint, step) = self.slowest;
        // The job in flight is finished before the last one begins.
        let needed = step + 2 * checkpoint;
        let Some(grace) = self.grace.filter(|grace| needed > *grace && !self.warned_of_grace) else { return };
        self.warned_of_grace = true;
        let notice = format!(
            "the grace period of {} s is too short: a step takes {:.1} s and a checkpoint {:.1} s, and one may be in flight, so a \
             pod that is terminated may lose the steps since its last checkpoint; use {} s, a faster volume, or a smaller model",
            grace.as_secs(),
            step.as_secs_f64(),
            checkpoint.as_secs_f64(),
            (needed.as_secs_f64() * 1.5).ceil(),
        );
        tracing::warn!("{notice}");
        self.reporter.update(|report| report.notices.push(notice));
    }

    /// Warns once when training waits for the volume.
    fn waited(&mut self, waited: Duration) {
        if self.warned_of_slowness || !is_long(waited, self.last.elapsed()) {
            return;
        }
        self.warned_of_slowness = true;
        let notice = format!(
            "the volume is slow: training waited {:.1} s for the previous checkpoint, and the slowest one took {:.1} s; raise \
             training.checkpoint_every, or use a faster volume",
            waited.as_secs_f64(),
            self.slowest.0.as_secs_f64(),
        );
        tracing::warn!("{notice}");
        self.reporter.update(|report| report.notices.push(notice));
    }

    /// Writes the last checkpoint and waits for it. Failures are retried for half the grace period if the attempt was
    /// interrupted, for a minute otherwise.
    ///
    /// # Errors
    /// When the time is over, or this attempt may not write any more.
    pub(crate) fn finish(&mut self, state: &State, mut interrupted: bool, stop: Stop) -> Result<(), CheckpointError> {
        let hurried = self.grace.map_or(FINAL_RETRIES, |grace| grace / 2);
        let mut deadline = Instant::now() + if interrupted { hurried } else { FINAL_RETRIES };
        // The last state of a run is always in the chain. An interrupted run will continue, so this state is not its last.
        let record = !state.evaluation_pending && (!interrupted || self.retention.scheduled(state.step));
        if let Some(done) = self.writer.wait() {
            self.settle(done)?;
        }
        // Retries start with the shortest pause, however long the volume has failed before.
        self.failing = self.failing.map(|_| (0, Instant::now()));
        let unrecorded = record && self.recorded != Some(state.step);
        let mut owing = !self.is_durable(state) || !self.rows.is_empty() || unrecorded;
        while owing {
            let checkpoint = !self.is_durable(state);
            self.submit_state(state, record, checkpoint, false)?;
            let Some(done) = self.writer.wait() else { continue };
            match done.outcome {
                Ok(_) => {
                    self.settle(done)?;
                    owing = false;
                }
                Err(error) if error.is_storage() => {
                    self.failed(done.step, checkpoint, &error);
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                    let again = self.failing.map_or_else(Instant::now, |(_, again)| again);
                    // The last try is made at the deadline.
                    while Instant::now() < again.min(deadline) {
                        // A finished run that is interrupted has only the grace period left.
                        if !interrupted && stop() {
                            interrupted = true;
                            deadline = deadline.min(Instant::now() + hurried);
                        }
                        std::thread::sleep(POLL);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the remaining ledger rows of a run that failed, for later inspection.
    pub(crate) fn write_remaining_rows(&mut self, state: &State) {
        let left = self.writer.wait().map_or(Ok(()), |done| self.settle(done));
        let left = left.and_then(|()| self.submit_state(state, false, false, false));
        if let Err(error) = left {
            tracing::warn!(error = chain(&error), "the last rows of the ledger cannot be written");
        }
        drop(self.writer.wait());
    }

    /// Returns the parameters of the last checkpoint, or their moving average if one is kept, from the snapshot of the writer thread to avoid a third copy.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn into_parameters(mut self, state: &State) -> Result<Vec<f32>, codex_engine::EngineError> {
        let EngineState { parameters, average, .. } = match self.writer.take_spare() {
            Some(spare) => spare,
            None => state.engine.export()?,
        };
        Ok(average.unwrap_or(parameters))
    }

    /// Returns the number of checkpoints written, and how long training waited for them between steps.
    pub(crate) fn cost(&self) -> (u64, Duration) {
        (self.written, self.paused)
    }
}

/// Whether a wait causes a notice, given the time since the last checkpoint.
fn is_long(waited: Duration, since: Duration) -> bool {
    waited >= LONG_WAIT && waited > since / 20
}

/// Prefix of notices about a failed write.
const FAILED: &str = "cannot write";

#[cfg(test)]
mod tests;
