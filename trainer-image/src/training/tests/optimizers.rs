//! Private steps, Muon, the moving average and the noise scale in whole runs.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use codex_configs::{Resolved, Training};
use codex_engine::ClippedSum;
use codex_reports::TrainingState;

use crate::{
    artifacts::metadata::RunMetadata,
    reporting::Reporter,
    text::Tokenizer,
    training::{
        Outcome, Session, TrainError,
        privacy::{Account, Mechanism},
        run::{StepBatches, StepData, accumulate},
        state::State,
        test_support::{
            ALL, asked_at, attempt, both, dataset, finished, metrics, mortal, remains, resolved, scratch, speck,
            threads,
        },
    },
};

const PRIVATE: [&str; 4] = [
    "training.spike_action=count",
    "training.privacy.noise_multiplier=0.8",
    "training.privacy.max_grad_norm=0.5",
    "training.checkpoint_every=4",
];

fn seeded(more: &[&str]) -> Resolved<Training> {
    speck(&[&PRIVATE[..], &["training.privacy.randomness=seed"], more].concat())
}

fn metadata(output: &Path) -> RunMetadata {
    serde_json::from_slice(&fs::read(output.join("artifacts/run_metadata.json")).unwrap()).unwrap()
}

/// Every run is killed once, between two batches or in the middle of a write, and each attempt has another number of threads.
#[test]
fn killed_runs_end_in_the_same_bits() {
    let beside = [
        "training.checkpoint_every=4",
        "training.optimizer.name=muon",
        "training.learning_rate=0.01",
        "training.ema.decay=0.9",
        "training.gradient_noise_scale=true",
        "training.eval_every=3",
        "training.eval_records=4",
        "training.eval_samples=0",
    ];
    for run in [speck(&beside), seeded(&[]), seeded(&["training.max_epochs=2", "training.ema.decay=0.5"])] {
        let whole = tempfile::tempdir_in(scratch()).unwrap();
        let (looks, writes) = (AtomicU64::new(ALL), Arc::new(AtomicU64::new(ALL)));
        assert!(!mortal(&run, whole.path(), &looks, &writes));
        let (looks, writes) = (ALL - looks.into_inner(), ALL - writes.load(Ordering::Relaxed));
        let (expected, measured) = (remains(whole.path()), metrics(whole.path()));
        let each = |all: u64| (1..=all).step_by((all as usize / 12).max(1));
        for (look, write) in each(looks).map(|look| (look, ALL)).chain(each(writes).map(|write| (ALL, write))) {
            let output = tempfile::tempdir_in(scratch()).unwrap();
            let died =
                threads(1, || mortal(&run, output.path(), &AtomicU64::new(look), &Arc::new(AtomicU64::new(write))));
            threads(3, || finished(&attempt(&run, output.path(), false)));
            assert!(remains(output.path()) == expected, "{look} {write} {died}");
            let rows = metrics(output.path());
            assert!(measured.iter().all(|(name, value)| rows.get(name) == Some(value)));
            assert_eq!(metadata(output.path()).privacy, metadata(whole.path()).privacy);
        }
    }
}

#[test]
fn a_secret_key_is_that_of_the_checkpoint() {
    let run = speck(&PRIVATE);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let stopped = (20..).map(|looks| asked_at(&run, one.path(), looks)).find_map(|ended| match ended.outcome {
        Ok(Outcome::Interrupted { step }) => (step > 2).then_some(step),
        other => panic!("{other:?}"),
    });
    let spent = metadata(one.path()).privacy.unwrap();
    assert_eq!((spent.steps, spent.secret), (stopped.unwrap(), true));
    assert!(std::process::Command::new("cp").arg("-rT").args([one.path(), two.path()]).status().unwrap().success());
    let models = [&one, &two].map(|output| finished(&attempt(&run, output.path(), false)));
    assert_eq!(models[0], models[1], "both go on with the same noise");
    assert!(metadata(one.path()).privacy.unwrap().epsilon > spent.epsilon);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(finished(&attempt(&run, other.path(), false)), models[0], "another run has another key");
}

#[test]
fn what_a_run_has_spent_is_what_the_accountant_says() {
    let (run, output) = (seeded(&[]), tempfile::tempdir().unwrap());
    finished(&attempt(&run, output.path(), false));
    let found = metadata(output.path()).privacy.unwrap();
    let account = Account::new(6.0 / 25.0, 0.8);
    assert_eq!((found.steps, found.epsilon.to_bits()), (12, account.epsilon(12, 1e-5).to_bits()));
    let rows = metrics(output.path());
    let row = |step| rows[&(step, "train".to_owned(), "epsilon".to_owned())];
    assert_eq!([row(10), row(12)], [10, 12].map(|steps| account.epsilon(steps, 1e-5).to_bits()));
    // With a target, all steps of the schedule stay below it.
    let calibrated = speck(&[
        "training.spike_action=count",
        "training.privacy.target_epsilon=2",
        "training.privacy.randomness=seed",
    ]);
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(&calibrated, output.path(), false));
    let found = metadata(output.path()).privacy.unwrap();
    assert!((1.99..=2.0).contains(&found.epsilon), "{found:?}");
}

/// The gradient of a private step, without its noise, is the sum of the clipped gradients of its records.
#[test]
fn a_private_gradient_is_clipped_record_by_record() {
    let (run, output) = (seeded(&["training.dtype=fp32"]), tempfile::tempdir().unwrap());
    let tokenizer = Tokenizer::characters().unwrap();
    let dataset = dataset(&run, &tokenizer);
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session::new(&run, &[], output.path(), &reporter, &|| false);
    let config = session.model().unwrap().0.config;
    let mut state = State::new(config, 1, codex_engine::Settings::default()).unwrap();
    let training = &run.spec().settings.training;
    let mechanism = Mechanism::of(training, dataset.records()).unwrap();
    state.begin_optimization(training, mechanism, 1).unwrap();
    let mut sizes = Vec::new();
    for step in 0..40 {
        state.step = step;
        let StepData { addresses, batches, targets, .. } = session.data_of(&state, &dataset).unwrap();
        assert!(batches.iter().all(|batch| batch.cu_seqlens.len() == 2) && addresses.is_sorted());
        sizes.push(batches.len() as f64);
        let privacy = state.privacy.as_ref().unwrap();
        let of_step = StepBatches { addresses: &addresses, batches: &batches, targets, private: Some((privacy, step)) };
        accumulate(state.engine.as_mut(), None, &dataset, of_step, &|| false, None).unwrap().unwrap();
        let found = state.engine.gradients().unwrap().into_owned();
        let noise = ClippedSum::new(found.len(), 1.0).finish(privacy.noise(step), 0.8 * 0.5, 6.0);
        let mut expected = vec![0.0_f64; found.len()];
        let mut clipped = 0;
        for batch in &batches {
            state.engine.clear_gradients().unwrap();
            state.engine.accumulate(batch, batch.targets.len()).unwrap();
            let norm = state.engine.gradient_norm().unwrap();
            clipped += usize::from(norm > 0.5);
            for (sum, x) in expected.iter_mut().zip(&*state.engine.gradients().unwrap()) {
                *sum += f64::from(*x) * (0.5 / norm).min(1.0) / 6.0;
            }
        }
        assert!(clipped > 0 || batches.is_empty(), "the setting clips");
        for ((found, noise), expected) in found.iter().zip(&noise).zip(&expected) {
            assert!((f64::from(found - noise) - expected).abs() < 1e-5, "{found} {noise} {expected}");
        }
    }
    // 25 records, each with probability 6/25.
    let mean = sizes.iter().sum::<f64>() / 40.0;
    assert!((4.5..7.5).contains(&mean) && sizes.iter().any(|size| (size - 6.0).abs() > 1.5), "{sizes:?}");
}

#[test]
fn a_checkpoint_of_another_mechanism_is_refused() {
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(&seeded(&["training.stop_after=4"]), output.path(), false));
    for (changed, said) in [
        ("training.privacy.noise_multiplier=0.9", "a noise multiplier of 0.9"),
        ("training.privacy.max_grad_norm=2", "a clipping norm of 2"),
        ("training.privacy.noise_multiplier=null", "trains with no privacy"),
    ] {
        let run = seeded(&[changed]);
        let reporter = Reporter::<TrainingState>::nowhere();
        let session =
            Session { accept_other_bits: true, ..Session::new(&run, &[], output.path(), &reporter, &|| false) };
        let told = session.run().unwrap_err();
        assert!(matches!(told, TrainError::State(_)), "{told}");
        assert!(told.to_string().contains(said), "{told}");
    }
}

#[test]
fn a_private_step_cannot_have_more_records_than_there_are() {
    let output = tempfile::tempdir().unwrap();
    let run = seeded(&["training.gradient_accumulation=9"]);
    let told = attempt(&run, output.path(), false).outcome.unwrap_err().to_string();
    assert!(told.contains("is 27, but there are only 25 records"), "{told}");
    let careless = seeded(&["training.stop_after=1", "training.privacy.target_delta=0.05"]);
    let ended = attempt(&careless, output.path(), false);
    finished(&ended);
    assert!(
        ended.state.notices.iter().any(|notice| notice.contains("target_delta is 0.05")),
        "{:?}",
        ended.state.notices
    );
}

#[test]
fn the_average_is_evaluated_and_becomes_the_model() {
    let settings = ["training.stop_after=30", "training.eval_every=30", "training.eval_samples=0"];
    let run = |more: &[&str]| {
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&resolved(&[&settings, more].concat(), both()), output.path(), false);
        let model = finished(&ended);
        (model.digest, ended.state.progress.unwrap().val_loss.unwrap(), remains(output.path()).0)
    };
    let (plain, slow, fast) = (run(&[]), run(&["training.ema.decay=0.9999"]), run(&["training.ema.decay=0.5"]));
    assert!(plain.0 != slow.0 && plain.0 != fast.0);
    // An average that hardly moves is the initial model, whatever was learned.
    assert!(slow.1 > plain.1 + 0.5 && (fast.1 - plain.1).abs() < 0.2, "{} {} {}", plain.1, slow.1, fast.1);
    let of_parameters = |info: &crate::training::checkpoint::StateInfo| {
        let tensors = info.tensors.iter().filter(|(name, _)| name.starts_with("parameters/"));
        tensors.map(|(name, digest)| (name.clone(), *digest)).collect::<Vec<_>>()
    };
    assert_eq!(of_parameters(&plain.2), of_parameters(&slow.2), "an average changes no weight");
}

#[test]
fn the_noise_scale_is_measured_and_changes_no_bit() {
    let run = |flag: &str| {
        let output = tempfile::tempdir().unwrap();
        let settings = ["training.stop_after=20", "training.gradient_accumulation=2", flag];
        let model = finished(&attempt(&resolved(&settings, both()), output.path(), false));
        let rows = metrics(output.path());
        (model, rows.get(&(20, "train".to_owned(), "gradient_noise_scale".to_owned())).copied())
    };
    let (with, without) = (run("training.gradient_noise_scale=true"), run("training.gradient_noise_scale=false"));
    assert_eq!(with.0, without.0);
    assert_eq!(without.1, None);
    let found = f64::from_bits(with.1.unwrap());
    assert!(found > 0.0 && found < 1e6, "{found}");
}

#[test]
fn muon_learns() {
    let output = tempfile::tempdir().unwrap();
    let settings = ["training.stop_after=60", "training.optimizer.name=muon"];
    let ended = attempt(&resolved(&settings, both()), output.path(), false);
    finished(&ended);
    let loss = ended.state.progress.unwrap().loss.unwrap();
    assert!(loss < 2.0, "{loss}");
}

/// The loss falls as it does with moments in 32 bits. A run that stops and resumes ends in the same bits, on any number of threads.
#[test]
fn moments_in_eight_bits_train_and_resume_exactly() {
    let run = |more: &[&str]| {
        let set = [
            "model.hidden_size=64",
            "model.intermediate_size=128",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=4",
            "training.max_steps=80",
            "training.warmup_steps=5",
            "training.batch_size=16",
            "training.learning_rate=0.003",
            "training.checkpoint_every=20",
        ];
        resolved(&[&set[..], more].concat(), both())
    };
    let (eight, stopped) = ("training.optimizer.moments=8bit", "training.stop_after=33");
    let outputs = [(); 3].map(|()| tempfile::tempdir_in(scratch()).unwrap());
    let full = threads(2, || finished(&attempt(&run(&[]), outputs[0].path(), false)));
    let whole = threads(1, || finished(&attempt(&run(&[eight]), outputs[1].path(), false)));
    assert_ne!(whole.digest, full.digest);
    threads(3, || finished(&attempt(&run(&[eight, stopped]), outputs[2].path(), false)));
    assert_eq!(threads(3, || finished(&attempt(&run(&[eight]), outputs[2].path(), false))), whole);
    let digest = |output: &Path| remains(output).0.state_digest;
    assert_eq!(digest(outputs[2].path()), digest(outputs[1].path()), "every code and scale");
    let losses = |output: &Path| -> (f64, f64) {
        let rows = metrics(output);
        let losses: Vec<f64> = rows
            .iter()
            .filter(|((_, split, name), _)| split == "train" && name == "loss")
            .map(|(_, bits)| f64::from_bits(*bits))
            .collect();
        (losses[0], losses[losses.len() - 3..].iter().sum::<f64>() / 3.0)
    };
    let ((first, last), (_, reference)) = (losses(outputs[1].path()), losses(outputs[0].path()));
    assert!(last < 0.75 * first && (last - reference).abs() < 0.25 * reference, "{first} {last} {reference}");
    let size = |output: &Path| {
        let checkpoint = output.join("checkpoints/step-00000080/state.safetensors");
        fs::metadata(checkpoint).unwrap().len() as f64
    };
    let ratio = size(outputs[1].path()) / size(outputs[0].path());
    assert!((0.5..0.6).contains(&ratio), "{ratio}: 6 bytes of 12 for large tensors");
}
