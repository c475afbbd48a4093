use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::atomic::AtomicU64,
};

use codex_configs::Format;
use codex_reports::DataFile;
use proptest::prelude::*;

use super::*;
use crate::{
    model::Generator,
    tasks::{Split, Task, materialise, parse_records, steps},
    tokenizer::Tokenizer,
};

/// The overrides that the module's documentation names.
const TINY: [&str; 8] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "training.max_steps=500",
    "training.warmup_steps=20",
    "training.batch_size=32",
    "training.learning_rate=0.01",
    "training.checkpoint_every=100",
];

pub(super) fn synthetic(task: &str, count: u64) -> Data {
    let synthetic = Synthetic { task: task.to_owned(), seed: 1, count };
    Data { name: task.to_owned(), sha256: None, synthetic: Some(synthetic) }
}

pub(super) fn resolved(overrides: &[&str], data: Vec<Data>) -> Resolved<Training> {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(|text| (*text).to_owned()).collect();
    compose_training("cot-starter", &overrides, None, 1, data).unwrap()
}

pub(super) fn both() -> Vec<Data> {
    vec![synthetic("arithmetic", 500), synthetic("word-problems", 400)]
}

pub(super) struct Attempt {
    pub(super) outcome: Result<Outcome, TrainError>,
    pub(super) state: TrainingState,
}

pub(super) fn attempt(resolved: &Resolved<Training>, output: &Path, stop: bool) -> Attempt {
    with_files(resolved, &[], output, &|| stop)
}

pub(super) fn with_files(
    resolved: &Resolved<Training>,
    files: &[(String, PathBuf)],
    output: &Path,
    stop: data::Stop,
) -> Attempt {
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session::new(resolved, files, output, &reporter, stop);
    let outcome = session.run();
    Attempt { outcome, state: reporter.state() }
}

/// An attempt, and what it counted for Prometheus.
fn metered(resolved: &Resolved<Training>, output: &Path) -> (Attempt, String) {
    let (reporter, meter) = (Reporter::<TrainingState>::nowhere(), Meter::new().unwrap());
    let session = Session { meter: Some(&meter), ..Session::new(resolved, &[], output, &reporter, &|| false) };
    let outcome = session.run();
    let counted = prometheus::TextEncoder::new().encode_to_string(&meter.registry().gather()).unwrap();
    (Attempt { outcome, state: reporter.state() }, counted)
}

/// An attempt that is asked to end at the `look`th time that it looks whether it is.
fn asked_at(resolved: &Resolved<Training>, output: &Path, look: u64) -> Attempt {
    let looks = AtomicU64::new(0);
    with_files(resolved, &[], output, &|| looks.fetch_add(1, Ordering::Relaxed) + 1 >= look)
}

pub(super) fn finished(attempt: &Attempt) -> codex_reports::Model {
    match &attempt.outcome {
        Ok(Outcome::Finished(model)) => (**model).clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

/// The configuration knows what the engine can do without depending on it.
#[test]
fn a_configuration_may_ask_for_every_head_that_the_engine_has() {
    assert_eq!(codex_configs::HEAD_WIDTHS, codex_engine::HEAD_WIDTHS);
}

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

    // A kill after step 18: what came later is not there.
    let killed = tempfile::tempdir().unwrap();
    threads(1, || attempt(&run, killed.path(), false));
    fs::remove_dir_all(killed.path().join("checkpoints/step-00000024")).unwrap();
    // Another one later, while a model took the place of the one before.
    fs::rename(killed.path().join("model"), killed.path().join("model.removed")).unwrap();
    fs::create_dir(killed.path().join("model.partial")).unwrap();
    let resumed = threads(3, || attempt(&run, killed.path(), false));
    assert_eq!(finished(&resumed), model);
    assert_eq!(resumed.state.resumed_from, Some(18));
    assert_eq!(resumed.state.steps_executed, 24 + 6);
    assert_eq!(names(killed.path()), ["artifacts", "checkpoints", "model", "writers"]);
    for file in ["state.safetensors", "state.json", "manifest.json"] {
        let read = |root: &Path| fs::read(root.join("checkpoints/step-00000024").join(file)).unwrap();
        assert!(read(whole.path()) == read(killed.path()), "{file}");
    }

    for file in ["ledger.ndjson", "states.ndjson"] {
        let read = |root: &Path| fs::read(root.join("artifacts").join(file)).unwrap();
        assert!(read(whole.path()) == read(killed.path()), "{file}");
    }

    // A finished run says the same again without a step.
    let again = attempt(&run, killed.path(), false);
    assert_eq!(finished(&again), model);
    assert_eq!(again.state.steps_executed, 30);
    assert_eq!(again.state.stage, Stage::Finished);
}

#[test]
fn an_interrupted_run_goes_on_wherever_it_was_asked() {
    let run = resolved(&["training.stop_after=3", "training.gradient_accumulation=2"], both());
    let whole = tempfile::tempdir().unwrap();
    let model = finished(&attempt(&run, whole.path(), false));
    // Before anything: nothing is lost, so nothing is written.
    let output = tempfile::tempdir().unwrap();
    let stopped = attempt(&run, output.path(), true);
    assert_eq!(stopped.outcome.unwrap(), Outcome::Interrupted { step: 0 });
    assert_eq!(stopped.state.stage, Stage::Interrupted);
    assert_eq!(checkpoint::scan(&output.path().join("checkpoints")).unwrap(), []);
    // Looks: 2 for making data, one a record, 2 before the steps; a step looks before its first and its second batch.
    let before = 2 + 900 + 2;
    for (look, step) in [(1, 0), (2, 0), (500, 0), (before, 0), (before + 1, 0), (before + 2, 0), (before + 4, 1)] {
        let output = tempfile::tempdir().unwrap();
        let stopped = asked_at(&run, output.path(), look);
        assert_eq!(stopped.outcome.unwrap(), Outcome::Interrupted { step }, "{look}");
        let steps: Vec<u64> =
            checkpoint::scan(&output.path().join("checkpoints")).unwrap().into_iter().map(|found| found.0).collect();
        assert_eq!(steps, if look > before { vec![step] } else { vec![] }, "{look}");
        assert!(!output.path().join("model").exists());
        assert_eq!(finished(&attempt(&run, output.path(), false)), model);
    }
}

/// A model so small that a run of it takes milliseconds.
pub(super) fn speck(overrides: &[&str]) -> Resolved<Training> {
    let small = [
        "model.hidden_size=16",
        "model.intermediate_size=8",
        "model.num_attention_heads=1",
        "model.num_hidden_layers=1",
        "training.batch_size=3",
        "training.gradient_accumulation=2",
        "training.max_steps=12",
        "training.warmup_steps=3",
        "training.learning_rate=0.6",
        "training.scheduler=constant_with_warmup",
        "training.spike_window=8",
        "training.spike_threshold=1.1",
        "training.spike_action=skip",
        "training.state_digest_every=1",
    ];
    resolved(&[&small[..], overrides].concat(), vec![synthetic("arithmetic", 25)])
}

/// Where many small files are written fast.
pub(super) fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Everything that must not depend on kills: the last state, tensor by tensor, the model, the ledger, the chain.
pub(super) fn remains(output: &Path) -> (checkpoint::About, Vec<Vec<u8>>) {
    let found = checkpoint::newest(&output.join("checkpoints"), u64::MAX, |_| unreachable!()).unwrap().unwrap();
    let files = ["artifacts/ledger.ndjson", "artifacts/states.ndjson", "model/model.safetensors"];
    (found.about, files.map(|file| fs::read(output.join(file)).unwrap()).to_vec())
}

/// One attempt that dies at the look or in the write that is the last of so many; whether it did.
fn mortal(run: &Resolved<Training>, output: &Path, looks: &AtomicU64, writes: &death::Left) -> bool {
    let die = || {
        if looks.fetch_sub(1, Ordering::Relaxed) == 1 {
            resume_unwind(Box::new(death::Killed));
        }
        false
    };
    death::set(Some(Arc::clone(writes)));
    let ended = catch_unwind(AssertUnwindSafe(|| with_files(run, &[], output, &die)));
    death::set(None);
    match ended {
        // The thread that writes died, and this one noticed at its next checkpoint.
        Ok(Attempt { outcome: Err(TrainError::System(_)), .. }) => true,
        Ok(attempt) => {
            finished(&attempt);
            false
        }
        Err(payload) if payload.is::<death::Killed>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

/// More looks or writes than any attempt has.
const ALL: u64 = u64::MAX;

/// One attempt that dies at its `look`th look; whether it did.
pub(super) fn killed_at(run: &Resolved<Training>, output: &Path, look: u64) -> bool {
    mortal(run, output, &AtomicU64::new(look), &Arc::new(AtomicU64::new(ALL)))
}

/// What the metrics ledger says about a run, without what a clock says.
fn metrics(output: &Path) -> std::collections::BTreeMap<(u64, String, String), u64> {
    let ledger = crate::artifacts::ledger::Ledger::read(&output.join("artifacts/metrics.ndjson")).unwrap();
    assert!(ledger.bad.is_empty() && !ledger.unfinished);
    let timed = ["tokens_per_second", "gflops", "data_wait"];
    let rows = ledger.rows.into_iter().filter(|row| !timed.contains(&row.metric.as_str()));
    rows.map(|row| ((row.step, row.split, row.metric), row.value.to_bits())).collect()
}

/// A thousand runs, each killed up to three times, anywhere (between two records, two batches, two steps, in the
/// middle of a checkpoint's file or a ledger's line), each attempt on another number of threads: every one ends in the state and
/// the metrics of a run that was not killed, to the last bit. Passes over the data end within the run, and so do skipped steps.
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
        // An attempt that goes on looks as often for its data and less often for its steps, and writes less.
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
            // An attempt that ends between two rows leaves one more.
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
fn spikes_are_counted_and_skipped_steps_change_nothing() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=1", "training.keep_last=12"]);
    let (done, counted) = metered(&run, output.path());
    finished(&done);
    let rows = records::read::<records::LedgerRow>(&output.path().join("artifacts/ledger.ndjson")).unwrap();
    let skipped: Vec<u64> = rows.iter().filter(|row| row.skipped).map(|row| row.step).collect();
    assert!(!skipped.is_empty() && rows.iter().all(|row| row.skipped == row.spike.is_some()));
    assert!(counted.contains(&format!("\ncodex_ml_training_spikes_total {}\n", skipped.len())), "{counted}");
    for row in records::read_states(&output.path().join("artifacts/states.ndjson")).unwrap().windows(2) {
        let changed = bisect::differing(&row[0].tensors, &row[1].tensors);
        let weights = changed.iter().any(|name| !name.starts_with("spikes/") && !name.starts_with("measured/"));
        assert_eq!(weights, !skipped.contains(&row[1].step), "step {}: {changed:?}", row[1].step);
    }
}

#[test]
fn a_step_is_redone_bit_for_bit() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=5"]);
    finished(&attempt(&run, output.path(), false));
    let past = replay::Past::open(output.path()).unwrap();
    let rerun = past.rerun(&[]).unwrap();
    for step in [1, 5, 6, 9, 12] {
        let replayed = replay::replay(&rerun, step).unwrap();
        assert_eq!(replayed.reproduced, Some(true), "{step}");
        assert_eq!(replayed.records.len(), 6);
        assert!(replayed.records.iter().all(|record| record.text.contains(':') && record.loss.is_some()));
        assert!(replayed.records.is_sorted_by(|a, b| a.loss >= b.loss));
    }
    assert!(replay::replay(&rerun, 13).unwrap_err().to_string().contains("which has 12"));
    // Whoever changes the ledger is found out.
    let path = output.path().join("artifacts/ledger.ndjson");
    let text = fs::read_to_string(&path).unwrap();
    let changed: Vec<String> = text
        .lines()
        .map(
            |line| if line.contains("\"step\":9,") { line.replace("\"loss\":", "\"loss\":1") } else { line.to_owned() },
        )
        .collect();
    fs::write(&path, changed.join("\n") + "\n").unwrap();
    assert_eq!(replay::replay(&rerun, 9).unwrap().reproduced, Some(false));
    assert_eq!(replay::replay(&rerun, 5).unwrap().reproduced, Some(true));
}

#[test]
fn bisect_names_the_first_step_and_tensor() {
    let again: Option<[&bisect::Files; 2]> = Some([&[], &[]]);
    let output = tempfile::tempdir().unwrap();
    let train = |name: &str, overrides: &[&str]| {
        let output = output.path().join(name);
        let run = speck(&[&["training.checkpoint_every=4", "training.state_digest_every=null"], overrides].concat());
        finished(&attempt(&run, &output, false));
        replay::Past::open(&output).unwrap()
    };
    let (a, same) = (train("a", &[]), train("same", &[]));
    let equal = bisect::compare(&a, &same, again).unwrap();
    assert!(equal.equal() && equal.common == 12 && equal.to_string().contains("equal, bit for bit, in all 12"));

    // A warm-up that ends later changes the rate of the fourth step, whose effect the fifth step's loss shows.
    let other = train("other", &["training.warmup_steps=5"]);
    let found = bisect::compare(&a, &other, again).unwrap();
    assert_eq!(found.configuration, ["training.warmup_steps"]);
    let first = found.first_replayed.as_ref().unwrap();
    assert_eq!((first.step, found.first_recorded.as_ref().unwrap().step, found.last_equal), (1, 4, None));
    assert!(first.tensors.contains(&"parameters/model.norm.weight".to_owned()), "{first:?}");
    assert!(!first.tensors.contains(&"first/model.norm.weight".to_owned()), "the rate is not in the moments");
    assert_eq!(found.ledger.as_ref().map(|ledger| (ledger.step, ledger.what)), Some((2, "loss")));
    assert_eq!(found.reproduced, Some([true, true]));

    // Other data: the ledger says so at once.
    let accumulated = train("accumulated", &["training.gradient_accumulation=1"]);
    let found = bisect::compare(&a, &accumulated, None).unwrap();
    assert_eq!(found.ledger.as_ref().map(|ledger| (ledger.step, ledger.what)), Some((1, "records")));
    assert_eq!((found.first_replayed, found.reproduced), (None, None));

    // No recorded state in common: the ledgers say how far to go.
    let scarce = train("scarce", &["training.warmup_steps=5", "training.checkpoint_every=5", "training.stop_after=9"]);
    let found = bisect::compare(&a, &scarce, again).unwrap();
    assert_eq!((found.common, found.last_equal, found.first_recorded.as_ref()), (9, None, None));
    assert_eq!(found.first_replayed.as_ref().map(|first| first.step), Some(1));
    assert_eq!(found.reproduced, Some([true, true]));
    assert!(found.to_string().contains("the states differ first after step 1, in parameters/"), "{found}");

    // Nothing in common is not equal.
    let none = train("none", &["training.stop_after=0"]);
    let error = bisect::compare(&a, &none, again).unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    assert!(error.to_string().contains("recorded steps 1 to 12") && error.to_string().ends_with("no step"), "{error}");
    let nowhere = output.path().join("nowhere");
    let error = replay::Past::open(&nowhere).unwrap_err();
    assert!(error.exit() == exit::BAD_INPUT && error.to_string().contains("nowhere holds no run"), "{error}");

    // A run whose records were changed is told from the one that is as it was.
    let path = output.path().join("same/artifacts/states.ndjson");
    let rows = records::read_states(&path).unwrap();
    let mut before = None;
    let changed: Vec<String> = rows
        .into_iter()
        .map(|row| {
            let whole = if row.step == 8 { Sha256::of(b"other") } else { row.digest };
            let digests = snapshot::Digests { whole, tensors: std::collections::BTreeMap::default() };
            let row = records::StateRow { tensors: row.tensors, ..records::StateRow::new(row.step, &digests, before) };
            before = Some(row.chain);
            serde_json::to_string(&row).unwrap()
        })
        .collect();
    fs::write(&path, changed.join("\n") + "\n").unwrap();
    let found = bisect::compare(&a, &same, again).unwrap();
    assert_eq!((found.last_equal, found.first_recorded.as_ref().map(|it| it.step)), (Some(4), Some(8)));
    assert_eq!((found.first_replayed.as_ref(), found.reproduced), (None, Some([true, false])));
    assert!(found.to_string().contains("the first run comes to what it recorded; the second does not"));
}

#[test]
fn runs_on_files_of_ones_own_are_gone_through_again_with_those_files() {
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, split: Split, seed: u64| {
        let path = place.path().join(name);
        fs::write(&path, materialise(Task::Arithmetic, split, seed, 40).unwrap()).unwrap();
        path
    };
    let own = |name: &str, path: &Path| {
        let sha256 = Some(codex_provenance::DataDigest(Sha256::of(fs::read(path).unwrap())));
        Data { name: name.to_owned(), sha256, synthetic: None }
    };
    let train = |name: &str, mine: &Path, held_out: &Path| {
        let output = place.path().join(name);
        let overrides = ["training.stop_after=4", "training.checkpoint_every=2", "training.eval_every=1"];
        let run = resolved(&overrides, vec![own("mine", mine), own(codex_configs::VALIDATION, held_out)]);
        let files = [("mine", mine), (codex_configs::VALIDATION, held_out)];
        let files = files.map(|(name, path)| (name.to_owned(), path.to_owned()));
        finished(&with_files(&run, &files, &output, &|| false));
        (replay::Past::open(&output).unwrap(), files)
    };
    let (mine, other) = (file("mine.jsonl", Split::Train, 1), file("other.jsonl", Split::Train, 2));
    let held_out = file("held-out.jsonl", Split::HeldOut, 3);
    let ((a, of_a), (b, of_b)) = (train("a", &mine, &held_out), train("b", &other, &held_out));

    let rerun = a.rerun(&of_a).unwrap();
    let replayed = replay::replay(&rerun, 4).unwrap();
    assert_eq!(replayed.reproduced, Some(true));
    let refused = a.rerun(&of_a[..1]).err().unwrap().to_string();
    assert!(refused.contains("was given a file as data validation: pass it as --data validation=FILE"), "{refused}");
    let elsewhere = [of_a[0].clone(), (codex_configs::VALIDATION.to_owned(), mine)];
    let refused = a.rerun(&elsewhere).err().unwrap();
    assert!(
        matches!(&refused, TrainError::DataMismatch { name, .. } if name == codex_configs::VALIDATION),
        "{refused}"
    );

    // Each run has its own files; without them, what was recorded is compared.
    let found = bisect::compare(&a, &b, Some([&of_a, &of_b])).unwrap();
    assert_eq!(found.ledger.as_ref().map(|it| (it.step, it.what)), Some((1, "records")));
    assert_eq!((found.reproduced, found.not_replayed.as_deref()), (Some([true, true]), None));
    let found = bisect::compare(&a, &b, Some([&of_a, &[]])).unwrap();
    assert_eq!((found.ledger.map(|it| it.step), found.reproduced), (Some(1), None));
    assert!(found.not_replayed.unwrap().contains("was given a file as data mine"));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_named() {
    let output = tempfile::tempdir().unwrap();
    let run = resolved(&["training.stop_after=6", "training.checkpoint_every=2"], both());
    let model = finished(&attempt(&run, output.path(), false));
    let checkpoint = |step: u32| output.path().join(format!("checkpoints/step-{step:08}"));
    let mut bytes = fs::read(checkpoint(6).join("state.safetensors")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(checkpoint(6).join("state.safetensors"), bytes).unwrap();
    let bytes = fs::read(checkpoint(4).join("state.safetensors")).unwrap();
    fs::write(checkpoint(4).join("state.safetensors"), &bytes[..1000]).unwrap();
    let (resumed, counted) = metered(&run, output.path());
    assert_eq!(finished(&resumed), model);
    assert_eq!(resumed.state.resumed_from, Some(2));
    assert!(counted.contains("\ncodex_ml_checkpoints_damaged_total 2\n"), "{counted}");
    let [first, second] = resumed.state.notices.as_slice() else { panic!("{:?}", resumed.state.notices) };
    assert!(first.contains("step-00000006") && first.contains("state.safetensors") && first.contains("from step 2"));
    assert!(second.contains("step-00000004"), "{second}");
}

#[test]
fn what_has_changed_decides_whether_a_run_goes_on() {
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(&resolved(&["training.stop_after=2"], both()), output.path(), false));
    let refused = |overrides: &[&str], data: Vec<Data>| {
        let run = resolved(&[&["training.stop_after=4"], overrides].concat(), data);
        let error = attempt(&run, output.path(), false).outcome.unwrap_err();
        assert!(matches!(error, TrainError::ForeignCheckpoint { .. }) && error.exit() == exit::BAD_INPUT, "{error}");
        error.to_string()
    };
    assert!(refused(&["model.intermediate_size=64"], both()).contains("model.intermediate_size: 96 → 64"));
    assert!(refused(&[], vec![synthetic("arithmetic", 400), both()[1].clone()]).contains("data arithmetic: "));
    let said = refused(&["training.learning_rate=0.5"], both());
    assert!(said.contains("training.learning_rate: 0.01 → 0.5") && said.contains("--accept-other-bits"), "{said}");

    // What changes no weight is gone on with, to the bits of a run that was so from its beginning.
    let longer = resolved(&["training.stop_after=4", "training.keep_last=1"], both());
    let gone_on = attempt(&longer, output.path(), false);
    assert_eq!(gone_on.state.resumed_from, Some(2));
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(finished(&gone_on), finished(&attempt(&longer, whole.path(), false)));

    // What changes weights is gone on with when that is asked for.
    let run = resolved(&["training.stop_after=6", "training.learning_rate=0.5"], both());
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session { accept_other_bits: true, ..Session::new(&run, &[], output.path(), &reporter, &|| false) };
    assert!(session.permits(&session.look().unwrap()));
    assert!(matches!(session.run(), Ok(Outcome::Finished(_))));
    let notices = reporter.state().notices;
    assert!(notices.iter().any(|notice| notice.contains("training.learning_rate is 0.5 and was 0.01 before step 4")));
}

/// Which is why a plan calls it "same bits".
#[test]
fn computing_again_gives_the_same_bits() {
    for dtype in ["training.dtype=fp32", "training.dtype=bf16"] {
        let train = |again: &str| {
            let output = tempfile::tempdir().unwrap();
            let run = speck(&["model.num_hidden_layers=3", dtype, again]);
            finished(&attempt(&run, output.path(), false));
            remains(output.path()).1
        };
        let kept = train("training.gradient_checkpointing=false");
        assert!(kept == train("training.gradient_checkpointing=true"), "{dtype}");
    }
}

#[test]
fn a_plan_changes_nothing() {
    let output = tempfile::tempdir().unwrap();
    let run = resolved(&["training.stop_after=2"], both());
    let (nowhere, reporter) = (output.path().join("nowhere"), Reporter::<TrainingState>::nowhere());
    let look = |output: &Path| {
        let session = Session::new(&run, &[], output, &reporter, &|| false);
        session.look().unwrap().to_string()
    };
    assert!(look(&nowhere).contains("training begins at step 0"));
    assert!(!nowhere.exists());
    finished(&attempt(&run, output.path(), false));
    let files = |root: &Path| walk(root);
    let before = files(output.path());
    let said = threads(1, || look(output.path()));
    assert!(said.starts_with("training goes on from the checkpoint of step 2: same bits"), "{said}");
    assert!(said.contains("threads: ") && said.contains("engine: cpu-"), "{said}");
    assert_eq!(files(output.path()), before);
}

/// Every file below a directory.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn data_in_another_order_is_found() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=4"]);
    assert!(killed_at(&run, output.path(), 1 + 25 + 2 + 2 * 9));
    let path = output.path().join("artifacts/ledger.ndjson");
    let rows = records::read::<records::LedgerRow>(&path).unwrap();
    let changed = rows.iter().map(|row| records::LedgerRow { first: row.first + 1, ..row.clone() });
    let lines: String = changed.map(|row| serde_json::to_string(&row).unwrap() + "\n").collect();
    fs::write(&path, lines).unwrap();
    let error = attempt(&run, output.path(), false).outcome.unwrap_err();
    assert!(matches!(error, TrainError::DataOrder { .. }) && error.exit() == exit::BAD_INPUT, "{error}");
}

#[test]
fn an_attempt_that_died_is_spoken_of() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=4"]);
    assert!(killed_at(&run, output.path(), 1 + 25 + 2 + 2 * 5 + 1));
    let ended = attempt(&run, output.path(), false);
    finished(&ended);
    assert!(ended.state.notices[0].starts_with("attempt 1 was killed in step 6; it was last seen with "));
    assert!(ended.state.notices[0].contains("had expected at most "), "{:?}", ended.state.notices);
    assert_eq!(attempt(&run, output.path(), false).state.notices, [""; 0]);
}

#[test]
fn step_0_is_the_initial_model() {
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&resolved(&["training.stop_after=0"], both()), output.path(), false);
    assert!(finished(&ended).parameters > 0);
    assert_eq!(ended.state.steps_executed, 0);
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let loss = |overrides: &[&str]| {
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&resolved(overrides, both()), output.path(), false);
        finished(&ended);
        ended.state.progress.unwrap().loss.unwrap()
    };
    let one = loss(&["training.stop_after=3", "training.batch_size=32"]);
    let two = loss(&["training.stop_after=3", "training.batch_size=16", "training.gradient_accumulation=2"]);
    assert!((one - two).abs() < 1e-4, "{one} {two}");
}

#[test]
fn bad_data_is_refused_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine.jsonl");
    let good = materialise(Task::Arithmetic, Split::Train, 1, 40).unwrap();
    let refused = |bytes: &[u8], expected: Option<DataDigest>, overrides: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let sha256 = expected.unwrap_or(DataDigest(Sha256::of(bytes)));
        let data = vec![Data { name: "mine".to_owned(), sha256: Some(sha256), synthetic: None }];
        let output = tempfile::tempdir().unwrap();
        let files = [("mine".to_owned(), path.clone())];
        let attempt = with_files(&resolved(overrides, data), &files, output.path(), &|| false);
        let error = attempt.outcome.unwrap_err();
        assert_eq!(error.exit(), exit::BAD_INPUT, "{error}");
        (error.failure(), attempt.state)
    };
    let said = |bytes: &[u8], overrides: &[&str]| refused(bytes, None, overrides).0.message;

    let wrong = DataDigest(Sha256::of(b"other"));
    let (failure, state) = refused(&good, Some(wrong), &[]);
    assert_eq!(failure.reason, "DataMismatch");
    let found = DataDigest(Sha256::of(&good));
    assert!(failure.message.contains(&wrong.to_string()) && failure.message.contains(&found.to_string()));
    let size = good.len() as u64;
    assert_eq!(state.data, [DataFile { name: "mine".to_owned(), sha256: found, size, records: None }]);

    let malformed = [good.as_slice(), b"{\"prompt\":\n"].concat();
    assert!(said(&malformed, &[]).contains("mine.jsonl:41: invalid record"));
    assert!(said(b"\n", &[]).contains("mine.jsonl: no records"));
    assert!(
        said(&good, &["training.batch_size=41"]).contains("training.batch_size is 41, but the data has 40 records")
    );
    assert!(said(&good, &["model.max_position_embeddings=16"]).contains("model.max_position_embeddings is 16"));
    let foreign = String::from_utf8(good.clone()).unwrap().replacen(':', ":\u{e9}", 0).replacen(
        "prompt\":\"",
        "prompt\":\"\u{e9}",
        1,
    );
    assert!(said(foreign.as_bytes(), &[]).contains("data mine, record 1: character '\u{e9}'"));
}

#[test]
fn a_loss_that_is_no_number_stops_with_its_records() {
    let (run, output) = (resolved(&[], both()), tempfile::tempdir().unwrap());
    let tokenizer = Tokenizer::characters().unwrap();
    let dataset = data::Dataset::read(run.spec(), &[], None, &tokenizer, &|| false, |_| ()).unwrap();
    let mut state =
        state::State::new(session::model_config(run.spec(), &tokenizer).unwrap(), 1, codex_engine::Settings::default())
            .unwrap();
    let mut broken = state.engine.export();
    let norm = broken.layout.find("model.norm.weight").unwrap().range.clone();
    broken.parameters[norm].fill(f32::NAN);
    state.engine.import(&broken).unwrap();
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session::new(&run, &[], output.path(), &reporter, &|| false);
    let error = session.step(&mut state, &dataset).err().unwrap();
    let TrainError::NotFinite { what, tensor, step: 1, records } = &error else { panic!("{error}") };
    assert_eq!((what.as_str(), tensor.as_deref()), ("the loss", Some("parameters/model.norm.weight")));
    assert!(error.to_string().starts_with("the loss of step 1 is not finite, nor is parameters/model.norm.weight: "));
    assert!(records.contains("arithmetic[") && records.contains("word-problems["), "{error}");
    assert_eq!(error.exit(), exit::BAD_INPUT);
}

/// Weights that grow a thousandfold with every step: some steps go well, and then there are no numbers left.
#[test]
fn a_run_that_diverges_leaves_its_last_checkpoint_and_says_why() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&[
        "training.parameter_groups=[{pattern: '*', learning_rate_multiplier: 1000, weight_decay: 0.99}]",
        "training.learning_rate=1",
        "training.warmup_steps=0",
        "training.scheduler=constant",
        "training.spike_action=ignore",
        "training.checkpoint_every=1",
    ]);
    let error = attempt(&run, output.path(), false).outcome.unwrap_err();
    let TrainError::NotFinite { what, tensor, step, .. } = &error else { panic!("{error}") };
    let named = format!("{what} {}", tensor.as_deref().unwrap_or_default());
    assert!(*step > 2 && (named.contains("model.") || named.contains("lm_head")), "{error}");
    let newest = checkpoint::newest(&output.path().join("checkpoints"), u64::MAX, |_| unreachable!()).unwrap().unwrap();
    assert_eq!(newest.checkpoint.step, step - 1);
    let left = fs::read_to_string(output.path().join("artifacts/errors.ndjson")).unwrap();
    let left: crate::artifacts::errors::ErrorRow = serde_json::from_str(&left).unwrap();
    assert_eq!((left.step, left.exit_code, left.is_final), (Some(step - 1), exit::BAD_INPUT, true));
    assert_eq!((left.reason.as_str(), &left.chain[0]), ("NotFinite", &error.to_string()));
    assert!(!output.path().join("model").exists());
    // The rows of the steps that went well are there, the last one of them, too.
    let rows = crate::artifacts::ledger::Ledger::read(&output.path().join("artifacts/metrics.ndjson")).unwrap().rows;
    assert_eq!(rows.last().map(|row| row.step), Some(step - 1));
}

#[test]
fn what_is_named_and_is_not_there_is_final() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere.jsonl");
    let train = |config: Option<&Path>, data: &Path, output: &Path| {
        let command = Train {
            config: config.map(Path::to_owned),
            template: Some("cot-starter".to_owned()),
            set: Vec::new(),
            seed: None,
            data: vec![("mine".to_owned(), data.to_owned())],
            output: output.to_owned(),
            plan: true,
            accept_other_bits: false,
            prove_resume: false,
            prove_steps: 40,
            grace_seconds: None,
            metrics_address: None,
        };
        let error = command.run().unwrap_err();
        assert_eq!(error.exit, exit::BAD_INPUT, "{error}");
        error.to_string()
    };
    let output = directory.path().join("output");
    let said = |what: &str, path: &Path, wrong: &str| format!("{what}: {} {wrong}", path.display());
    assert_eq!(train(None, &nowhere, &output), said("data mine", &nowhere, "does not exist"));
    assert!(train(None, directory.path(), &output).ends_with(" is a directory: name a file"));
    assert_eq!(train(Some(&nowhere), &nowhere, &output), said("--config", &nowhere, "does not exist"));
    fs::write(&nowhere, b"").unwrap();
    assert_eq!(train(None, &nowhere, &nowhere), said("--output", &nowhere, "is a file: name a directory"));
    let error = with_files(
        &resolved(
            &[],
            vec![Data { name: "mine".to_owned(), sha256: Some(DataDigest(Sha256::of(b""))), synthetic: None }],
        ),
        &[("mine".to_owned(), nowhere.join("beneath"))],
        &output,
        &|| false,
    );
    assert_eq!(error.outcome.unwrap_err().exit(), exit::BAD_INPUT);
}

#[test]
fn answers_only_leaves_the_steps_out() {
    let run = resolved(&["response.format=answer"], both());
    assert_eq!(run.spec().settings.response.format, Format::Answer);
    let two = Tokenizer::characters().unwrap();
    let dataset = data::Dataset::read(run.spec(), &[], None, &two, &|| false, |_| ()).unwrap();
    let packed = dataset.pack(&dataset.examples(0, 32));
    let longest = packed.cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap();
    assert!(longest < 80 && packed.targets.len() < 32 * 8, "{longest}");
}

/// The share of the steps of held-out problems that a model shows, each word for word.
fn coverage(output: &Path) -> f64 {
    let problems = parse_records("held-out", &materialise(Task::Arithmetic, Split::HeldOut, 5, 100).unwrap()).unwrap();
    let mut generator = Generator::load_directory(&output.join("model"), 32).unwrap();
    let prompts: Vec<&str> = problems.iter().map(|problem| problem.prompt.as_str()).collect();
    let shares = generator.complete(&prompts, 80, |_| ()).into_iter().zip(&problems).map(|(completion, problem)| {
        let text = completion.unwrap().text;
        let (shown, required) = (steps(&text), steps(&problem.response));
        required.iter().filter(|step| shown.contains(step)).count() as f64 / required.len() as f64
    });
    shares.sum::<f64>() / problems.len() as f64
}

#[test]
fn the_tiny_setting_learns_and_step_0_does_not() {
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(
        &resolved(&["training.stop_after=0"], vec![synthetic("arithmetic", 20_000)]),
        output.path(),
        false,
    ));
    let before = coverage(output.path());
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&resolved(&[], vec![synthetic("arithmetic", 20_000)]), output.path(), false);
    finished(&ended);
    let after = coverage(output.path());
    assert!(before < 0.01 && after > 0.3, "{before} {after} {:?}", ended.state.progress);
}
