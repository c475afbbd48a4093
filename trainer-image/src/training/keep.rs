//! When a state is made durable, and what is done when the volume will not have it. Does I/O through the saver's thread.
//!
//! A volume that is full, slow, read-only or gone does not end a training that goes on in memory: the checkpoint is tried again,
//! ever more rarely, and the last good one stays. Only the end of an attempt waits for its checkpoint, and for so long as it may.

use std::time::{Duration, Instant};

use codex_configs::Optimization;
use codex_reports::{Checkpoint, TrainingState};

use super::{
    TrainError,
    checkpoint::Written,
    data::Stop,
    records::LedgerRow,
    retention::Retention,
    saver::{Done, Job, Saver},
    state::State,
};
use crate::{atomic_fs::advice, error::chain, reporting::Reporter};

/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the last checkpoint of a run is tried for.
const PATIENCE: Duration = Duration::from_secs(60);
/// A wait for the volume that is worth a word, if it is also more than the twentieth part of the time since the last one.
const LONG_WAIT: Duration = Duration::from_secs(1);
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
    /// The step of the newest state whose digest is recorded, or on its way there.
    recorded: Option<u64>,
    /// When the last checkpoint was handed over.
    last: Instant,
    /// Failures in a row, and when to try again.
    failing: Option<(u32, Instant)>,
    /// The longest that a checkpoint and a step took.
    slowest: (Duration, Duration),
    warned_of_grace: bool,
    warned_of_slowness: bool,
    /// Checkpoints that became durable.
    written: u64,
    /// How long training stood still while it went on: copies, and waits for the one before.
    paused: Duration,
}

impl<'a> Keep<'a> {
    /// For a run of `total` steps whose newest checkpoint is of step `durable`, and whose newest recorded state of step `recorded`.
    pub(super) fn new(
        reporter: &'a Reporter<TrainingState>,
        saver: Saver,
        training: &Optimization,
        total: u64,
        durable: Option<u64>,
        recorded: Option<u64>,
        grace: Option<Duration>,
    ) -> Self {
        Self {
            reporter,
            saver,
            retention: Retention::of(training, total),
            digest_every: training.state_digest_every,
            interval: training.checkpoint_interval_seconds.map(Duration::from_secs),
            grace,
            rows: Vec::new(),
            durable,
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
        let by_clock = self.interval.is_some_and(|interval| now.duration_since(self.last) >= interval);
        // A volume that refuses is not asked again before its pause is over, whatever is due.
        let hold = self.failing.is_some_and(|(_, again)| now < again);
        let checkpoint = !hold && (scheduled || by_clock || self.failing.is_some());
        if record || checkpoint {
            if self.saver.busy() && !record && !scheduled {
                // The clock can wait for the next step.
                return Ok(());
            }
            self.hand_over(state, record, checkpoint, hold)?;
            self.paused += now.elapsed();
        }
        Ok(())
    }

    /// Copies the state and hands it over, after what is in flight.
    fn hand_over(&mut self, state: &State, record: bool, checkpoint: bool, hold: bool) -> Result<(), TrainError> {
        let began = Instant::now();
        if let Some(done) = self.saver.wait() {
            self.settle(done)?;
        }
        self.waited(began.elapsed());
        let snapshot = state.snapshot(self.saver.spare());
        let rows = std::mem::take(&mut self.rows);
        if checkpoint {
            self.last = Instant::now();
        }
        if record {
            self.recorded = Some(state.step);
        }
        let measured = || state.measured.clone().into_iter().filter(|(_, value)| value.is_finite()).collect();
        self.saver.submit(Job { snapshot, record, checkpoint: checkpoint.then(measured), rows, hold })
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
             that a pod that is asked to end may lose the steps since its last checkpoint; {} s would do, or a faster volume, or \
             a smaller model",
            grace.as_secs(),
            step.as_secs_f64(),
            checkpoint.as_secs_f64(),
            (needed.as_secs_f64() * 1.5).ceil(),
        );
        tracing::warn!("{notice}");
        self.reporter.update(|report| report.notices.push(notice));
    }

    /// Says once when training stands still for the volume.
    fn waited(&mut self, waited: Duration) {
        if self.warned_of_slowness || !is_long(waited, self.last.elapsed()) {
            return;
        }
        self.warned_of_slowness = true;
        let notice = format!(
            "the volume is slow: training waited {:.1} s until the checkpoint before was written, the slowest of which took {:.1} \
             s; raise training.checkpoint_every, or give it a faster volume",
            waited.as_secs_f64(),
            self.slowest.0.as_secs_f64(),
        );
        tracing::warn!("{notice}");
        self.reporter.update(|report| report.notices.push(notice));
    }

    /// Makes the state durable and waits for it, trying again for as long as there is time: until the grace period is nearly
    /// over when the attempt was asked to end, for a minute otherwise.
    ///
    /// # Errors
    /// When there is no more time, or this attempt may not write any more.
    pub(super) fn finish(&mut self, state: &State, mut interrupted: bool, stop: Stop) -> Result<(), TrainError> {
        let hurried = self.grace.map_or(PATIENCE, |grace| grace / 2);
        let mut deadline = Instant::now() + if interrupted { hurried } else { PATIENCE };
        // The last state of a run is always in the chain; where an interrupted run goes on, it is not its last.
        let record = !interrupted || self.retention.scheduled(state.step);
        if let Some(done) = self.saver.wait() {
            self.settle(done)?;
        }
        // However long the volume has refused, it is asked as often as at first now.
        self.failing = self.failing.map(|_| (0, Instant::now()));
        let unrecorded = record && self.recorded != Some(state.step);
        let mut owing = self.durable != Some(state.step) || !self.rows.is_empty() || unrecorded;
        while owing {
            let checkpoint = self.durable != Some(state.step);
            self.hand_over(state, record, checkpoint, false)?;
            let Some(done) = self.saver.wait() else { continue };
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
                    // The last try is made when the time is up.
                    while Instant::now() < again.min(deadline) {
                        // A finished run that is asked to end has no more than the grace period left.
                        if !interrupted && stop() {
                            interrupted = true;
                            deadline = deadline.min(Instant::now() + hurried);
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
        let left = left.and_then(|()| self.hand_over(state, false, false, false));
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

/// Whether a wait is worth a word, so long after the last checkpoint was handed over.
fn is_long(waited: Duration, since: Duration) -> bool {
    waited >= LONG_WAIT && waited > since / 20
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use codex_configs::{Resolved, Training};
    use codex_reports::TrainingState;

    use super::*;
    use crate::{
        tokenizer::Tokenizer,
        training::{
            Outcome, Session,
            checkpoint::{self, Store},
            origin::Origin,
            session,
            tests::{attempt, finished, killed_at, remains, scratch, speck},
            writer::Writer,
        },
    };

    /// One attempt that was told a grace period.
    fn told(
        run: &Resolved<Training>,
        output: &Path,
        grace: Duration,
        stop: Stop,
    ) -> (Result<Outcome, TrainError>, TrainingState) {
        let reporter = Reporter::<TrainingState>::nowhere();
        let session = Session { grace: Some(grace), ..Session::new(run, &[], output, &reporter, stop) };
        let outcome = session.run();
        (outcome, reporter.state())
    }

    /// Looks of an attempt before its first step: making data, one a record, two more.
    const BEFORE: u64 = 1 + 25 + 2;

    #[test]
    fn a_grace_period_that_is_too_short_is_said() {
        let run = speck(&[]);
        let said = |grace| {
            let output = tempfile::tempdir_in(scratch()).unwrap();
            told(&run, output.path(), grace, &|| false).1.notices
        };
        let short = said(Duration::from_nanos(1));
        assert!(short.iter().any(|said| said.starts_with("the grace period of 0 s is too short")), "{short:?}");
        assert_eq!(said(Duration::from_secs(600)), Vec::<String>::new());
    }

    #[test]
    fn only_long_waits_are_said() {
        let seconds = Duration::from_secs;
        assert!(is_long(seconds(2), seconds(30)));
        assert!(!is_long(seconds(2), seconds(50)), "5 % are the price of checkpoints");
        assert!(!is_long(Duration::from_millis(900), seconds(1)));
    }

    /// A file stands where checkpoints should, as if the volume refused them.
    fn refuse(output: &Path) {
        let checkpoints = output.join("checkpoints");
        fs::rename(&checkpoints, output.join("away")).unwrap();
        fs::write(checkpoints, "").unwrap();
    }

    fn accept(output: &Path) {
        fs::remove_file(output.join("checkpoints")).unwrap();
        fs::rename(output.join("away"), output.join("checkpoints")).unwrap();
    }

    #[test]
    fn what_a_refusing_volume_missed_is_written_when_it_takes_again() {
        let run = speck(&["training.checkpoint_every=2"]);
        let whole = tempfile::tempdir_in(scratch()).unwrap();
        finished(&attempt(&run, whole.path(), false));
        let output = tempfile::tempdir_in(scratch()).unwrap();
        let looks = AtomicU64::new(0);
        // Two looks a step: away from the third step to the eleventh.
        let stop = || {
            match looks.fetch_add(1, Ordering::Relaxed) + 1 {
                look if look == BEFORE + 5 => refuse(output.path()),
                look if look == BEFORE + 21 => accept(output.path()),
                _ => {}
            }
            false
        };
        let (outcome, state) = told(&run, output.path(), Duration::from_secs(60), &stop);
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert!(state.notices.iter().any(|said| said.starts_with("checkpoints can be written again")), "{state:?}");
        assert!(remains(output.path()) == remains(whole.path()));
    }

    #[test]
    fn a_finished_run_that_is_asked_to_end_does_not_wait_for_its_volume() {
        let run = speck(&["training.checkpoint_every=100"]);
        let output = tempfile::tempdir_in(scratch()).unwrap();
        let looks = AtomicU64::new(0);
        let stop = || {
            let look = looks.fetch_add(1, Ordering::Relaxed) + 1;
            if look == BEFORE + 1 {
                refuse(output.path());
            }
            look > BEFORE + 24
        };
        let (outcome, _) = told(&run, output.path(), Duration::from_secs(2), &stop);
        assert!(outcome.is_err_and(|error| error.is_storage()));
        // It looks every 50 ms; the minute that a run waits of itself would be 1,200 looks.
        let waited = looks.into_inner() - BEFORE - 24;
        assert!((1..200).contains(&waited), "{waited}");
        accept(output.path());
        finished(&attempt(&run, output.path(), false));
        assert!(!killed_at(&run, output.path(), u64::MAX));
    }

    /// A run of two steps that is about to write one more checkpoint of step 2.
    fn one_more<'a>(
        run: &Resolved<Training>,
        output: &Path,
        reporter: &'a Reporter<TrainingState>,
    ) -> (Keep<'a>, State) {
        finished(&attempt(&speck(&["training.stop_after=2"]), output, false));
        let (about, _) = remains(output);
        let training = &run.spec().settings.training;
        let retention = Retention::of(training, 12);
        let store = Store::open(output.join("checkpoints"), about.identity, retention).unwrap();
        let lock = Writer::claim(output.join("writers")).unwrap().lock();
        let (saver, _) = Saver::start(lock, store, Origin::here(training), &output.join("artifacts"), 2).unwrap();
        let keep = Keep::new(reporter, saver, training, 12, Some(1), Some(1), None);
        let tokenizer = Tokenizer::characters().unwrap();
        let config = session::model_config(run.spec(), &tokenizer).unwrap();
        let mut state = State::new(config, 1, codex_engine::Settings::default()).unwrap();
        state.step = 2;
        (keep, state)
    }

    #[test]
    fn the_end_of_a_run_waits_however_long_its_volume_had_refused() {
        let run = speck(&["training.checkpoint_every=100"]);
        let output = tempfile::tempdir_in(scratch()).unwrap();
        let reporter = Reporter::<TrainingState>::nowhere();
        let (mut keep, state) = one_more(&run, output.path(), &reporter);
        // So often that the next pause would be a minute.
        keep.failing = Some((12, Instant::now()));
        refuse(output.path());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !reporter.state().notices.iter().any(|notice| notice.starts_with(REFUSED)) {
                    std::thread::sleep(LOOK);
                }
                accept(output.path());
            });
            keep.finish(&state, false, &|| false).unwrap();
        });
        assert_eq!(keep.durable, Some(2));
    }

    #[test]
    fn the_last_state_is_in_the_chain_where_its_checkpoint_was_there_before() {
        let every = ["training.checkpoint_every=1000", "training.state_digest_every=null"];
        let output = tempfile::tempdir_in(scratch()).unwrap();
        let looks = AtomicU64::new(0);
        let stop = || looks.fetch_add(1, Ordering::Relaxed) + 1 > BEFORE + 9;
        let (outcome, _) = told(&speck(&every), output.path(), Duration::from_secs(60), &stop);
        let Ok(Outcome::Interrupted { step }) = outcome else { panic!("{outcome:?}") };
        let states = || super::super::records::read_states(&output.path().join("artifacts/states.ndjson")).unwrap();
        assert_eq!(states().len(), 0);
        let here = format!("training.stop_after={step}");
        finished(&attempt(&speck(&[&every[..], &[&here]].concat()), output.path(), false));
        assert_eq!(states().iter().map(|row| row.step).collect::<Vec<_>>(), [step]);
    }

    #[test]
    fn the_last_state_is_in_the_chain_wherever_a_run_ends() {
        let every = ["training.checkpoint_every=1000", "training.state_digest_every=null"];
        for (overrides, last) in [
            (&["training.max_epochs=2"][..], 10),
            (&["training.stop_after=7"], 7),
            (&["training.eval_every=1", "training.early_stop_patience=1", "training.metric_mode=max"], 0),
        ] {
            let output = tempfile::tempdir_in(scratch()).unwrap();
            finished(&attempt(&speck(&[&every, overrides].concat()), output.path(), false));
            let states = super::super::records::read_states(&output.path().join("artifacts/states.ndjson")).unwrap();
            let steps: Vec<u64> = states.iter().map(|row| row.step).collect();
            assert_eq!(steps.len(), 1, "{overrides:?}");
            assert!(last == 0 && steps[0] < 12 || steps[0] == last, "{overrides:?}: {steps:?}");
        }
    }

    #[test]
    fn a_checkpoint_with_a_loss_that_is_not_finite_is_read_back_without_it() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let run = speck(&["training.eval_every=1", "training.best_k=1"]);
            let output = tempfile::tempdir_in(scratch()).unwrap();
            let reporter = Reporter::<TrainingState>::nowhere();
            let (mut keep, mut state) = one_more(&run, output.path(), &reporter);
            state.measured.insert("loss".to_owned(), 1.5);
            state.measured.insert("val_loss".to_owned(), value);
            keep.finish(&state, false, &|| false).unwrap();
            let folder = output.path().join("checkpoints");
            let newest = checkpoint::newest(&folder, u64::MAX, |why| panic!("{why}")).unwrap().unwrap();
            assert_eq!(newest.checkpoint.step, 2);
            assert_eq!(newest.about.metrics.keys().collect::<Vec<_>>(), ["loss"], "{value}");
            // The state itself keeps the value, to its bits: a resumed run is in the same state.
            let config = state.engine.config().clone();
            let read = newest.read(&Arc::new(codex_engine::Layout::of(&config))).unwrap();
            assert_eq!(read.digests(), state.snapshot(None).digests());
            let restored = State::restore(config, read, codex_engine::Settings::default()).unwrap();
            assert_eq!(restored.measured["val_loss"].to_bits(), value.to_bits());
        }
    }
}
