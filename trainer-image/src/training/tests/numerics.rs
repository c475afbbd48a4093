//! Losses, gradients and what the model learns.

use std::{fs, path::Path};

use codex_reports::{TrainingState, exit};

use crate::{
    model::Generator,
    reporting::Reporter,
    tasks::{Split, Task, materialise, parse_records, steps, written_steps},
    text::Tokenizer,
    training::{
        NumericsError, Session, TrainError,
        checkpoint::newest,
        records::{LedgerRow, read_rows, read_states},
        run::model_config,
        state::{State, differing_names},
        test_support::{attempt, both, dataset, finished, metered, resolved, speck, synthetic},
    },
};

#[test]
fn spikes_are_counted_and_skipped_steps_change_nothing() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=1", "training.keep_last=12"]);
    let (done, counted) = metered(&run, output.path());
    finished(&done);
    let rows = read_rows::<LedgerRow>(&output.path().join("artifacts/ledger.ndjson")).unwrap();
    let skipped: Vec<u64> = rows.iter().filter(|row| row.skipped).map(|row| row.step).collect();
    assert!(!skipped.is_empty() && rows.iter().all(|row| row.skipped == row.spike.is_some()));
    assert!(counted.contains(&format!("\ncodex_ml_training_spikes_total {}\n", skipped.len())), "{counted}");
    for row in read_states(&output.path().join("artifacts/states.ndjson")).unwrap().windows(2) {
        let changed = differing_names(&row[0].tensors, &row[1].tensors);
        let weights = changed.iter().any(|name| !name.starts_with("spikes/") && !name.starts_with("measured/"));
        assert_eq!(weights, !skipped.contains(&row[1].step), "step {}: {changed:?}", row[1].step);
    }
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
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
fn a_loss_that_is_not_finite_ends_the_run_with_its_records() {
    let (run, output) = (resolved(&[], both()), tempfile::tempdir().unwrap());
    let tokenizer = Tokenizer::characters().unwrap();
    let dataset = dataset(&run, &tokenizer);
    let mut state =
        State::new(model_config(run.spec(), &tokenizer).unwrap(), 1, codex_engine::Settings::default()).unwrap();
    let mut broken = state.engine.export().unwrap();
    let norm = broken.layout.find("model.norm.weight").unwrap().range.clone();
    broken.parameters[norm].fill(f32::NAN);
    state.engine.import(&broken).unwrap();
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session::new(&run, &[], output.path(), &reporter, &|| false);
    let error = session.step(&mut state, &dataset, None).err().unwrap();
    let TrainError::Numerics(NumericsError { what, tensor, step: 1, records }) = &error else { panic!("{error}") };
    assert_eq!((what.as_str(), tensor.as_deref()), ("the loss", Some("parameters/model.norm.weight")));
    assert!(error.to_string().starts_with("the loss of step 1 is not finite, nor is parameters/model.norm.weight: "));
    assert!(
        records.contains("arithmetic[") && records.contains("word-problems[") && records.ends_with("more"),
        "{error}"
    );
    assert_eq!(error.exit(), exit::BAD_INPUT);
}

/// Weights grow a thousandfold with every step, so after some steps they overflow.
#[test]
fn a_diverging_run_leaves_its_last_checkpoint_and_an_error() {
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
    let TrainError::Numerics(NumericsError { what, tensor, step, .. }) = &error else { panic!("{error}") };
    let named = format!("{what} {}", tensor.as_deref().unwrap_or_default());
    assert!(*step > 2 && (named.contains("model.") || named.contains("lm_head")), "{error}");
    let newest = newest(&output.path().join("checkpoints"), u64::MAX, |_| unreachable!()).unwrap().unwrap();
    assert_eq!(newest.checkpoint.step, step - 1);
    let left = fs::read_to_string(output.path().join("artifacts/errors.ndjson")).unwrap();
    let left: crate::artifacts::errors::ErrorRow = serde_json::from_str(&left).unwrap();
    assert_eq!((left.step, left.exit_code, left.is_final), (Some(step - 1), exit::BAD_INPUT, true));
    assert_eq!((left.reason.as_str(), &left.chain[0]), ("NotFinite", &error.to_string()));
    assert!(!output.path().join("model").exists());
    // The rows of all successful steps are written, including the last one.
    let rows = crate::artifacts::ledger::Ledger::read(&output.path().join("artifacts/metrics.ndjson")).unwrap().rows;
    assert_eq!(rows.last().map(|row| row.step), Some(step - 1));
}

/// Returns the share of the steps of held-out problems that the model writes word for word.
fn coverage(output: &Path) -> f64 {
    let problems = parse_records("held-out", &materialise(Task::Arithmetic, Split::HeldOut, 5, 100).unwrap()).unwrap();
    let mut generator = Generator::load_directory(&output.join("model"), 32, codex_configs::Device::Cpu).unwrap();
    let prompts: Vec<&str> = problems.iter().map(|problem| problem.prompt.as_str()).collect();
    let shares = generator.complete(&prompts, 80, |_| ()).into_iter().zip(&problems).map(|(completion, problem)| {
        let text = completion.unwrap().text;
        let (shown, required) = (written_steps(&text), steps(&problem.response));
        required.iter().filter(|step| shown.contains(step)).count() as f64 / required.len() as f64
    });
    shares.sum::<f64>() / problems.len() as f64
}

#[test]
fn the_small_setting_learns_and_step_0_does_not() {
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
