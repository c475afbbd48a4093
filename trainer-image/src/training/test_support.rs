//! Small configurations, attempts and injected kills for tests.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use codex_configs::{Data, Resolved, Synthetic, Training, compose_training};
use codex_reports::TrainingState;

use super::{
    CheckpointError, Outcome, Session, TrainError, TrainerMetrics,
    checkpoint::{StateInfo, newest},
    data::{Dataset, Encoder, Places},
    fault_injection,
    records::{LEDGER, STATES},
};
use crate::{artifacts::segments, reporting::Reporter, signals::Stop, text::Tokenizer};

/// Overrides of the small setting in the documentation of the training module.
pub(crate) const TINY: [&str; 8] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "training.max_steps=500",
    "training.warmup_steps=20",
    "training.batch_size=32",
    "training.learning_rate=0.01",
    "training.checkpoint_every=100",
];

pub(crate) fn synthetic(task: &str, count: u64) -> Data {
    let synthetic = Synthetic { task: task.to_owned(), seed: 1, count };
    Data { name: task.to_owned(), sha256: None, synthetic: Some(synthetic) }
}

pub(crate) fn resolved(overrides: &[&str], data: Vec<Data>) -> Resolved<Training> {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(|text| (*text).to_owned()).collect();
    compose_training("cot-starter", &overrides, None, 1, data).unwrap()
}

/// Returns how a run without a base encodes its records.
pub(crate) fn encoder<'a>(run: &'a Resolved<Training>, tokenizer: &'a Tokenizer) -> Encoder<'a> {
    let settings = &run.spec().settings;
    let (context, format) = (settings.model.max_position_embeddings, settings.response.format);
    Encoder { tokenizer, context, format, data: &settings.data, given: false, preferences: false }
}

/// Reads the training data of a run without a base and without files.
pub(crate) fn dataset(run: &Resolved<Training>, tokenizer: &Tokenizer) -> Dataset {
    let encoder = encoder(run, tokenizer);
    Dataset::read(run.spec(), &[], &Places::default(), encoder, &|| false, |_| ()).unwrap()
}

pub(crate) fn both() -> Vec<Data> {
    vec![synthetic("arithmetic", 500), synthetic("word-problems", 400)]
}

pub(crate) struct Attempt {
    pub(crate) outcome: Result<Outcome, TrainError>,
    pub(crate) state: TrainingState,
}

pub(crate) fn attempt(resolved: &Resolved<Training>, output: &Path, stop: bool) -> Attempt {
    with_files(resolved, &[], output, &|| stop)
}

pub(crate) fn with_files(
    resolved: &Resolved<Training>,
    files: &[(String, PathBuf)],
    output: &Path,
    stop: Stop,
) -> Attempt {
    rotating(resolved, files, output, (segments::SIZE, stop))
}

/// Runs an attempt whose files of rows have at most `size` bytes.
fn rotating(
    resolved: &Resolved<Training>,
    files: &[(String, PathBuf)],
    output: &Path,
    (size, stop): (u64, Stop),
) -> Attempt {
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session { ledger_size: size, ..Session::new(resolved, files, output, &reporter, stop) };
    let outcome = session.run();
    Attempt { outcome, state: reporter.state() }
}

/// Runs an attempt without files, and returns its Prometheus metrics.
pub(crate) fn metered(resolved: &Resolved<Training>, output: &Path) -> (Attempt, String) {
    metered_with(resolved, &[], output)
}

/// Runs an attempt, and returns its Prometheus metrics.
pub(crate) fn metered_with(
    resolved: &Resolved<Training>,
    files: &[(String, PathBuf)],
    output: &Path,
) -> (Attempt, String) {
    let (reporter, metrics) = (Reporter::<TrainingState>::nowhere(), TrainerMetrics::new().unwrap());
    let session = Session { metrics: Some(&metrics), ..Session::new(resolved, files, output, &reporter, &|| false) };
    let outcome = session.run();
    let counted = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
    (Attempt { outcome, state: reporter.state() }, counted)
}

/// Runs an attempt that is asked to end at its `look`th check of the stop flag.
pub(crate) fn asked_at(resolved: &Resolved<Training>, output: &Path, look: u64) -> Attempt {
    let looks = AtomicU64::new(0);
    with_files(resolved, &[], output, &|| looks.fetch_add(1, Ordering::Relaxed) + 1 >= look)
}

pub(crate) fn finished(attempt: &Attempt) -> codex_reports::Model {
    match &attempt.outcome {
        Ok(Outcome::Finished(model)) => (**model).clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

/// A model and batches so small that a step takes milliseconds.
pub(crate) const SPECK: [&str; 5] = [
    "model.hidden_size=16",
    "model.intermediate_size=8",
    "model.num_attention_heads=1",
    "model.num_hidden_layers=1",
    "training.batch_size=3",
];

/// A configuration so small that a run takes milliseconds.
pub(crate) fn speck(overrides: &[&str]) -> Resolved<Training> {
    let small = [
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
    resolved(&[&SPECK[..], &small, overrides].concat(), vec![synthetic("arithmetic", 25)])
}

/// Returns a directory in which small files are written fast.
pub(crate) fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// The most bytes of a file of rows in attempts that are killed: a few rows.
const SMALL: u64 = 1000;

/// Returns everything that must not depend on kills: the last state, tensor by tensor, the ledger, the chain, the model.
pub(crate) fn remains(output: &Path) -> (StateInfo, Vec<Vec<u8>>) {
    let found = newest(&output.join("checkpoints"), u64::MAX, |_| unreachable!()).unwrap().unwrap();
    let rows = |name: &str| {
        let files = segments::segments(&output.join("artifacts").join(name)).unwrap();
        files.into_iter().flat_map(|file| fs::read(file.path).unwrap()).collect()
    };
    (found.info, vec![rows(LEDGER), rows(STATES), fs::read(output.join("model/model.safetensors")).unwrap()])
}

/// Runs an attempt that dies at the last of `looks` checks or `writes` writes. Returns whether it died.
pub(crate) fn mortal(
    run: &Resolved<Training>,
    output: &Path,
    looks: &AtomicU64,
    writes: &fault_injection::Left,
) -> bool {
    let die = || {
        if looks.fetch_sub(1, Ordering::Relaxed) == 1 {
            resume_unwind(Box::new(fault_injection::Killed));
        }
        false
    };
    fault_injection::set(Some(Arc::clone(writes)));
    let ended = catch_unwind(AssertUnwindSafe(|| rotating(run, &[], output, (SMALL, &die))));
    fault_injection::set(None);
    match ended {
        // The writer thread died, and this one noticed at its next checkpoint.
        Ok(Attempt { outcome: Err(TrainError::Checkpoint(CheckpointError::Thread(_))), .. }) => true,
        Ok(attempt) => {
            finished(&attempt);
            false
        }
        Err(payload) if payload.is::<fault_injection::Killed>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

/// More checks or writes than any attempt has.
pub(crate) const ALL: u64 = u64::MAX;

/// Runs an attempt that dies at its `look`th check of the stop flag. Returns whether it died.
pub(crate) fn killed_at(run: &Resolved<Training>, output: &Path, look: u64) -> bool {
    mortal(run, output, &AtomicU64::new(look), &Arc::new(AtomicU64::new(ALL)))
}

/// Returns the metrics of a run by step, split and name, without those that depend on time.
pub(crate) fn metrics(output: &Path) -> std::collections::BTreeMap<(u64, String, String), u64> {
    let ledger = crate::artifacts::ledger::Ledger::read(&output.join("artifacts/metrics.ndjson")).unwrap();
    assert!(ledger.bad.is_empty() && !ledger.unfinished);
    let timed = ["tokens_per_second", "gflops", "data_wait"];
    let rows = ledger.rows.into_iter().filter(|row| !timed.contains(&row.metric.as_str()));
    rows.map(|row| ((row.step, row.split, row.metric), row.value.to_bits())).collect()
}

/// Lists all files below a directory.
pub(crate) fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
