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
    text::Tokenizer,
    training::{
        Outcome, Session, TrainError,
        attempts::RunLock,
        checkpoint::{CheckpointStore, Origin, newest},
        records::{STATES, read_states},
        run::model_config,
        test_support::{attempt, finished, killed_at, remains, scratch, speck},
    },
};

/// Runs an attempt with a grace period.
fn with_grace(
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

/// Checks of the stop flag before the first step: generating data, one per record, two more.
const BEFORE: u64 = 1 + 25 + 2;

#[test]
fn a_short_grace_period_causes_a_notice() {
    let run = speck(&[]);
    let said = |grace| {
        let output = tempfile::tempdir_in(scratch()).unwrap();
        with_grace(&run, output.path(), grace, &|| false).1.notices
    };
    let short = said(Duration::from_nanos(1));
    assert!(short.iter().any(|said| said.starts_with("the grace period of 0 s is too short")), "{short:?}");
    assert_eq!(said(Duration::from_secs(600)), Vec::<String>::new());
}

#[test]
fn only_long_waits_cause_a_notice() {
    let seconds = Duration::from_secs;
    assert!(is_long(seconds(2), seconds(30)));
    assert!(!is_long(seconds(2), seconds(50)), "5 % is the accepted price of checkpoints");
    assert!(!is_long(Duration::from_millis(900), seconds(1)));
}

/// Replaces the directory of checkpoints by a file, as if the volume failed.
fn break_volume(output: &Path) {
    let checkpoints = output.join("checkpoints");
    fs::rename(&checkpoints, output.join("away")).unwrap();
    fs::write(checkpoints, "").unwrap();
}

fn mend_volume(output: &Path) {
    fs::remove_file(output.join("checkpoints")).unwrap();
    fs::rename(output.join("away"), output.join("checkpoints")).unwrap();
}

#[test]
fn checkpoints_are_written_again_when_the_volume_recovers() {
    let run = speck(&["training.checkpoint_every=2"]);
    let whole = tempfile::tempdir_in(scratch()).unwrap();
    finished(&attempt(&run, whole.path(), false));
    let output = tempfile::tempdir_in(scratch()).unwrap();
    let looks = AtomicU64::new(0);
    // Two checks a step: the volume fails from the third step to the eleventh.
    let stop = || {
        match looks.fetch_add(1, Ordering::Relaxed) + 1 {
            look if look == BEFORE + 5 => break_volume(output.path()),
            look if look == BEFORE + 21 => mend_volume(output.path()),
            _ => {}
        }
        false
    };
    let (outcome, state) = with_grace(&run, output.path(), Duration::from_secs(60), &stop);
    assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
    assert!(state.notices.iter().any(|said| said.starts_with("checkpoints can be written again")), "{state:?}");
    assert!(remains(output.path()) == remains(whole.path()));
}

#[test]
fn an_interrupted_finished_run_does_not_wait_for_its_volume() {
    let run = speck(&["training.checkpoint_every=100"]);
    let output = tempfile::tempdir_in(scratch()).unwrap();
    let looks = AtomicU64::new(0);
    let stop = || {
        let look = looks.fetch_add(1, Ordering::Relaxed) + 1;
        if look == BEFORE + 1 {
            break_volume(output.path());
        }
        look > BEFORE + 24
    };
    let (outcome, _) = with_grace(&run, output.path(), Duration::from_secs(2), &stop);
    assert!(outcome.is_err_and(|error| error.is_storage()));
    // It checks every 50 ms; a minute of retries would be 1,200 checks.
    let waited = looks.into_inner() - BEFORE - 24;
    assert!((1..200).contains(&waited), "{waited}");
    mend_volume(output.path());
    finished(&attempt(&run, output.path(), false));
    assert!(!killed_at(&run, output.path(), u64::MAX));
}

/// Prepares a run of two steps that is about to write the checkpoint of step 2 once more.
fn before_last_checkpoint<'a>(
    run: &Resolved<Training>,
    output: &Path,
    reporter: &'a Reporter<TrainingState>,
) -> (CheckpointPolicy<'a>, State) {
    finished(&attempt(&speck(&["training.stop_after=2"]), output, false));
    let (about, _) = remains(output);
    let training = &run.spec().settings.training;
    let retention = Retention::of(training, 12);
    let store = CheckpointStore::open(output.join("checkpoints"), about.identity, retention).unwrap();
    let lock = RunLock::claim(output.join("writers")).unwrap().handle();
    let (writer, _) = AsyncWriter::start(
        lock,
        store,
        Origin::here(crate::training::state::engine_settings(training)),
        (&output.join("artifacts"), u64::MAX),
        2,
    )
    .unwrap();
    let keep = CheckpointPolicy::new(
        reporter,
        writer,
        training,
        12,
        Written { durable: Some(1), pending: false, recorded: Some(1) },
        None,
    );
    let tokenizer = Tokenizer::characters().unwrap();
    let config = model_config(run.spec(), &tokenizer).unwrap();
    let mut state = State::new(config, 1, codex_engine::Settings::default()).unwrap();
    state.step = 2;
    (keep, state)
}

#[test]
fn the_last_checkpoint_is_retried_soon_however_long_the_volume_failed() {
    let run = speck(&["training.checkpoint_every=100"]);
    let output = tempfile::tempdir_in(scratch()).unwrap();
    let reporter = Reporter::<TrainingState>::nowhere();
    let (mut keep, state) = before_last_checkpoint(&run, output.path(), &reporter);
    // So many failures that the next pause would be a minute.
    keep.failing = Some((12, Instant::now()));
    break_volume(output.path());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !reporter.state().notices.iter().any(|notice| notice.starts_with(FAILED)) {
                std::thread::sleep(POLL);
            }
            mend_volume(output.path());
        });
        keep.finish(&state, false, &|| false).unwrap();
    });
    assert_eq!(keep.durable, Some(2));
}

#[test]
fn the_last_state_is_in_the_chain_even_if_its_checkpoint_existed_before() {
    let every = ["training.checkpoint_every=1000", "training.state_digest_every=null"];
    let output = tempfile::tempdir_in(scratch()).unwrap();
    let looks = AtomicU64::new(0);
    let stop = || looks.fetch_add(1, Ordering::Relaxed) + 1 > BEFORE + 9;
    let (outcome, _) = with_grace(&speck(&every), output.path(), Duration::from_secs(60), &stop);
    let Ok(Outcome::Interrupted { step }) = outcome else { panic!("{outcome:?}") };
    let states = || read_states(&output.path().join("artifacts").join(STATES)).unwrap();
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
        let states = read_states(&output.path().join("artifacts").join(STATES)).unwrap();
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
        let (mut keep, mut state) = before_last_checkpoint(&run, output.path(), &reporter);
        state.measured.insert("loss".to_owned(), 1.5);
        state.measured.insert("val_loss".to_owned(), value);
        keep.finish(&state, false, &|| false).unwrap();
        let folder = output.path().join("checkpoints");
        let newest = newest(&folder, u64::MAX, |why| panic!("{why}")).unwrap().unwrap();
        assert_eq!(newest.checkpoint.step, 2);
        assert_eq!(newest.info.metrics.keys().collect::<Vec<_>>(), ["loss"], "{value}");
        // The state itself keeps the value, to its bits: a resumed run is in the same state.
        let config = state.engine.config().clone();
        let read = newest.read(&Arc::new(codex_engine::Layout::of(&config))).unwrap();
        assert_eq!(read.digests(), state.snapshot(None).unwrap().digests());
        let restored = State::restore(config, read, codex_engine::Settings::default()).unwrap();
        assert_eq!(restored.measured["val_loss"].to_bits(), value.to_bits());
    }
}
