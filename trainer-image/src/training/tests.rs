use std::{fs, path::Path};

use codex_configs::Format;
use codex_reports::DataFile;

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

fn synthetic(task: &str, count: u64) -> Data {
    let synthetic = Synthetic { task: task.to_owned(), seed: 1, count };
    Data { name: task.to_owned(), sha256: None, synthetic: Some(synthetic) }
}

fn resolved(overrides: &[&str], data: Vec<Data>) -> Resolved<Training> {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(|text| (*text).to_owned()).collect();
    compose_training("cot-starter", &overrides, None, 1, data).unwrap()
}

fn both() -> Vec<Data> {
    vec![synthetic("arithmetic", 500), synthetic("word-problems", 400)]
}

struct Attempt {
    outcome: Result<Outcome, TrainError>,
    state: TrainingState,
}

fn attempt(resolved: &Resolved<Training>, output: &Path, stop: bool) -> Attempt {
    with_files(resolved, &[], output, stop)
}

fn with_files(resolved: &Resolved<Training>, files: &[(String, PathBuf)], output: &Path, stop: bool) -> Attempt {
    let reporter = Reporter::<TrainingState>::from_env().unwrap();
    let stop = Arc::new(AtomicBool::new(stop));
    let session = Session { resolved, files, output, reporter: &reporter, stop };
    let outcome = session.run();
    Attempt { outcome, state: reporter.state() }
}

fn finished(attempt: &Attempt) -> codex_reports::Model {
    match &attempt.outcome {
        Ok(Outcome::Finished(model)) => (**model).clone(),
        other => panic!("{other:?}"),
    }
}

fn threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
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
    assert_eq!(names(&whole.path().join("checkpoints")), ["latest", "step-00000018", "step-00000024"]);

    // A kill after step 18: what came later is not there.
    let killed = tempfile::tempdir().unwrap();
    threads(1, || attempt(&run, killed.path(), false));
    fs::remove_dir_all(killed.path().join("checkpoints/step-00000024")).unwrap();
    fs::remove_dir_all(killed.path().join("model")).unwrap();
    let resumed = threads(3, || attempt(&run, killed.path(), false));
    assert_eq!(finished(&resumed), model);
    assert_eq!(resumed.state.resumed_from, Some(18));
    assert_eq!(resumed.state.steps_executed, 24 + 6);
    for file in ["state.safetensors", "state.json", "manifest.json"] {
        let read = |root: &Path| fs::read(root.join("checkpoints/step-00000024").join(file)).unwrap();
        assert!(read(whole.path()) == read(killed.path()), "{file}");
    }

    // A finished run says the same again without a step.
    let again = attempt(&run, killed.path(), false);
    assert_eq!(finished(&again), model);
    assert_eq!(again.state.steps_executed, 30);
    assert_eq!(again.state.stage, Stage::Finished);
}

#[test]
fn an_interrupted_run_leaves_a_checkpoint() {
    let output = tempfile::tempdir().unwrap();
    let run = resolved(&["training.stop_after=3"], both());
    let stopped = attempt(&run, output.path(), true);
    assert_eq!(stopped.outcome.unwrap(), Outcome::Interrupted { step: 0 });
    assert_eq!(stopped.state.stage, Stage::Interrupted);
    assert!(output.path().join("checkpoints/step-00000000/manifest.json").exists());
    assert!(!output.path().join("model").exists());
    finished(&attempt(&run, output.path(), false));
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
    let resumed = attempt(&run, output.path(), false);
    assert_eq!(finished(&resumed), model);
    assert_eq!(resumed.state.resumed_from, Some(2));
    let [first, second] = resumed.state.notices.as_slice() else { panic!("{:?}", resumed.state.notices) };
    assert!(first.contains("step-00000006") && first.contains("state.safetensors") && first.contains("from step 2"));
    assert!(second.contains("step-00000004"), "{second}");
}

#[test]
fn another_run_s_directory_is_refused() {
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(&resolved(&["training.stop_after=1"], both()), output.path(), false));
    let other = attempt(&resolved(&["training.stop_after=2"], both()), output.path(), false);
    let error = other.outcome.unwrap_err();
    assert!(matches!(error, TrainError::ForeignCheckpoint { .. }) && error.exit() == exit::BAD_INPUT, "{error}");
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
        let attempt = with_files(&resolved(overrides, data), &files, output.path(), false);
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
    assert!(said(&malformed, &[]).contains("mine.jsonl:41: no record"));
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
    let dataset = data::Dataset::read(run.spec(), &[], output.path(), &tokenizer, |_| ()).unwrap();
    let mut state = State::new(session::model_config(run.spec(), &tokenizer).unwrap(), 1).unwrap();
    let mut broken = state.engine.export();
    let norm = broken.layout.find("model.norm.weight").unwrap().range.clone();
    broken.parameters[norm].fill(f32::NAN);
    state.engine.import(&broken).unwrap();
    let reporter = Reporter::<TrainingState>::from_env().unwrap();
    let stop = Arc::default();
    let session = Session { resolved: &run, files: &[], output: output.path(), reporter: &reporter, stop };
    let error = session.step(&mut state, &dataset).unwrap_err();
    let TrainError::NotFinite { what, step: 1, records } = &error else { panic!("{error}") };
    assert_eq!(what, "the loss");
    assert!(records.contains("arithmetic[") && records.contains("word-problems["), "{error}");
    assert_eq!(error.exit(), exit::BAD_INPUT);
}

#[test]
fn answers_only_leaves_the_steps_out() {
    let run = resolved(&["response.format=answer"], both());
    assert_eq!(run.spec().settings.response.format, Format::Answer);
    let (one, two) = (tempfile::tempdir().unwrap(), Tokenizer::characters().unwrap());
    let dataset = data::Dataset::read(run.spec(), &[], one.path(), &two, |_| ()).unwrap();
    let packed = dataset.pack(&dataset.batch(0));
    let longest = packed.offsets.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap();
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
