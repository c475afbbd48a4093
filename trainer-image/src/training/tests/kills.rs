//! Interrupted and killed runs end in the same bits as uninterrupted ones.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use codex_reports::Stage;
use proptest::prelude::*;

use crate::{
    artifacts::segments::{Segment, segments},
    reporting::Reporter,
    training::{
        Outcome, Session,
        checkpoint::scan,
        forensics::RecordedRun,
        test_support::{
            ALL, asked_at, attempt, both, finished, killed_at, metrics, mortal, remains, resolved, scratch, speck,
            threads, walk,
        },
    },
};

#[test]
fn a_resumed_run_gives_the_same_bytes_for_any_number_of_threads() {
    let whole = tempfile::tempdir().unwrap();
    let run = resolved(&["training.stop_after=24", "training.checkpoint_every=9", "training.keep_last=2"], both());
    let straight = threads(2, || attempt(&run, whole.path(), false));
    let model = finished(&straight);
    assert_eq!(straight.state.steps_executed, 24);
    assert_eq!(straight.state.resumed_from, None);
    let names = |path: &Path| {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&whole.path().join("checkpoints")), ["index.json", "latest", "step-00000018", "step-00000024"]);

    // A kill after step 18: later files do not exist.
    let killed = tempfile::tempdir().unwrap();
    threads(1, || attempt(&run, killed.path(), false));
    fs::remove_dir_all(killed.path().join("checkpoints/step-00000024")).unwrap();
    // Another kill later, while the model was being replaced.
    fs::rename(killed.path().join("model"), killed.path().join("model.removed")).unwrap();
    fs::create_dir(killed.path().join("model.partial")).unwrap();
    let resumed = threads(3, || attempt(&run, killed.path(), false));
    assert_eq!(finished(&resumed), model);
    assert_eq!(resumed.state.resumed_from, Some(18));
    assert_eq!(resumed.state.steps_executed, 24 + 6);
    assert_eq!(names(killed.path()), ["artifacts", "cache", "checkpoints", "model", "writers"]);
    for file in ["state.safetensors", "state.json", "manifest.json"] {
        let read = |root: &Path| fs::read(root.join("checkpoints/step-00000024").join(file)).unwrap();
        assert!(read(whole.path()) == read(killed.path()), "{file}");
    }

    for file in ["ledger.ndjson", "states.ndjson"] {
        let read = |root: &Path| fs::read(root.join("artifacts").join(file)).unwrap();
        assert!(read(whole.path()) == read(killed.path()), "{file}");
    }

    // A finished run reports its model again without a step.
    let again = attempt(&run, killed.path(), false);
    assert_eq!(finished(&again), model);
    assert_eq!(again.state.steps_executed, 30);
    assert_eq!(again.state.stage, Stage::Finished);
}

/// Files of rows are rotated, and the commands that read a run follow them.
#[test]
fn a_run_with_small_files_of_rows_leaves_the_same_files_after_a_kill() {
    let run = speck(&["training.checkpoint_every=4"]);
    let session = |output: &Path| {
        let reporter = Reporter::nowhere();
        let session = Session { ledger_size: 1000, ..Session::new(&run, &[], output, &reporter, &|| false) };
        session.run().unwrap();
    };
    let names = |root: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let files =
            ["ledger.ndjson", "states.ndjson"].map(|name| segments(&root.join("artifacts").join(name)).unwrap());
        let read = |file: Segment| (file.path.strip_prefix(root).unwrap().to_owned(), fs::read(&file.path).unwrap());
        files.into_iter().flatten().map(read).collect()
    };
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    session(whole.path());
    let expected = names(whole.path());
    assert!(expected.len() > 6, "{:?}", expected.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(killed_at(&run, killed.path(), 1 + 25 + 2 + 2 * 7 + 1));
    session(killed.path());
    assert!(names(killed.path()) == expected);
    assert!(segments(&killed.path().join("artifacts/metrics.ndjson")).unwrap().len() > 1);
    assert_eq!(metrics(killed.path()), metrics(whole.path()));
    let recorded = RecordedRun::open(whole.path()).unwrap();
    assert!(recorded.ledger().unwrap().keys().copied().eq(1..=12));
    assert_eq!(recorded.states().unwrap().len(), 12);
}

#[test]
fn an_interrupted_run_resumes_wherever_it_was_interrupted() {
    let run = resolved(&["training.stop_after=3", "training.gradient_accumulation=2"], both());
    let whole = tempfile::tempdir().unwrap();
    let model = finished(&attempt(&run, whole.path(), false));
    // Before the first step nothing is lost, so nothing is written.
    let output = tempfile::tempdir().unwrap();
    let stopped = attempt(&run, output.path(), true);
    assert_eq!(stopped.outcome.unwrap(), Outcome::Interrupted { step: 0 });
    assert_eq!(stopped.state.stage, Stage::Interrupted);
    assert_eq!(scan(&output.path().join("checkpoints")).unwrap(), []);
    // Checks of the stop flag: 2 for generating data, one per record, 2 before the steps, one before each of the two batches.
    let before = 2 + 900 + 2;
    for (look, step) in [(1, 0), (2, 0), (500, 0), (before, 0), (before + 1, 0), (before + 2, 0), (before + 4, 1)] {
        let output = tempfile::tempdir().unwrap();
        let stopped = asked_at(&run, output.path(), look);
        assert_eq!(stopped.outcome.unwrap(), Outcome::Interrupted { step }, "{look}");
        let steps: Vec<u64> =
            scan(&output.path().join("checkpoints")).unwrap().into_iter().map(|found| found.0).collect();
        assert_eq!(steps, if look > before { vec![step] } else { vec![] }, "{look}");
        assert!(!output.path().join("model").exists());
        assert_eq!(finished(&attempt(&run, output.path(), false)), model);
    }
}

/// A thousand runs, each killed up to three times anywhere (between records, batches or steps, or in the middle of writing a
/// checkpoint or a ledger row), each attempt with another number of threads. All end in the state and the metrics of a run
/// without kills, to the last bit. The runs have several passes over the data and skipped steps.
fn a_thousand_killed_runs_end_in_the_same_bits(dtype: &str) {
    const EACH: u32 = 200;
    let pools: Vec<rayon::ThreadPool> =
        (1..4).map(|count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap()).collect();
    let cases: [&[&str]; 5] = [
        &["training.checkpoint_every=1"],
        &["training.checkpoint_every=4"],
        &["training.checkpoint_every=5"],
        &["training.checkpoint_every=4", "training.max_epochs=2"],
        &["training.checkpoint_every=5", "training.eval_every=2", "training.eval_records=4", "training.eval_samples=0"],
    ];
    for case in cases {
        let run = speck(&[&[dtype], case].concat());
        let whole = tempfile::tempdir_in(scratch()).unwrap();
        let (looks, writes) = (AtomicU64::new(ALL), Arc::new(AtomicU64::new(ALL)));
        assert!(!mortal(&run, whole.path(), &looks, &writes));
        // An attempt that resumes has fewer checks for its data, whose tokens may be there, and for its steps, and fewer writes.
        let (looks, writes) = (ALL - looks.into_inner(), ALL - writes.load(Ordering::Relaxed));
        let (expected, measured) = (remains(whole.path()), metrics(whole.path()));
        let text = String::from_utf8_lossy(&expected.1[0]).into_owned();
        assert!(text.contains("\"skipped\":true"), "the setting has spikes in {dtype} {case:?}: {text}");
        assert!(text.lines().count() > 25_usize.div_ceil(2 * 3), "the data is seen more than once");
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: EACH,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let kills = prop::collection::vec((any::<bool>(), any::<u64>(), 0_usize..3), 1..4);
        let (killed, halves) = (AtomicU64::new(0), AtomicU64::new(0));
        let proved = runner.run(&(kills, 0_usize..3), |(kills, last)| {
            let output = tempfile::tempdir_in(scratch()).unwrap();
            for (write, at, threads) in kills {
                let (look, write) = if write { (ALL, 1 + at % writes) } else { (1 + at % looks, ALL) };
                let (look, write) = (AtomicU64::new(look), Arc::new(AtomicU64::new(write)));
                let died = pools[threads].install(|| mortal(&run, output.path(), &look, &write));
                killed.fetch_add(u64::from(died), Ordering::Relaxed);
                let half = |path: &PathBuf| {
                    path.components().any(|part| {
                        let name = part.as_os_str().to_string_lossy();
                        name.starts_with("step-") && (name.ends_with(".partial") || name.ends_with(".removed"))
                    })
                };
                halves.fetch_add(u64::from(walk(output.path()).iter().any(half)), Ordering::Relaxed);
            }
            pools[last].install(|| finished(&attempt(&run, output.path(), false)));
            prop_assert!(remains(output.path()) == expected);
            let rows = metrics(output.path());
            // An attempt that ends between two rows of the metrics ledger leaves an additional row.
            prop_assert!(measured.iter().all(|(name, value)| rows.get(name) == Some(value)));
            Ok(())
        });
        proved.unwrap();
        let (killed, halves) = (killed.into_inner(), halves.into_inner());
        assert!(killed > u64::from(EACH), "most attempts died before their end: {killed}");
        assert!(halves > u64::from(EACH) / 10, "many left half a checkpoint: {halves}");
    }
}

#[test]
fn a_thousand_killed_runs_of_fp32() {
    a_thousand_killed_runs_end_in_the_same_bits("training.dtype=fp32");
}

#[test]
fn a_thousand_killed_runs_of_bf16() {
    a_thousand_killed_runs_end_in_the_same_bits("training.dtype=bf16");
}

#[test]
fn a_killed_attempt_causes_a_notice() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=4"]);
    assert!(killed_at(&run, output.path(), 1 + 25 + 2 + 2 * 5 + 1));
    let ended = attempt(&run, output.path(), false);
    finished(&ended);
    assert!(ended.state.notices[0].starts_with("attempt 1 was killed in step 6 (memory peak "));
    assert!(ended.state.notices[0].contains(", estimate "), "{:?}", ended.state.notices);
    assert_eq!(attempt(&run, output.path(), false).state.notices, [""; 0]);
}
