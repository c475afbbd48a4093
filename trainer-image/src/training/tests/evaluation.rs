//! Evaluations during training.

use std::{fs, path::Path};

use codex_configs::{Data, Resolved, Training, VALIDATION, compose_training};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::Stage;

use crate::{
    artifacts::ledger::{Ledger, locate},
    tasks::{Split, materialise},
    training::{
        DataError, Outcome, TrainError,
        checkpoint::newest,
        forensics::RecordedRun,
        state::EVALUATION_PENDING,
        test_support::{
            Attempt, asked_at, attempt, both, finished, killed_at, remains, resolved, scratch, speck, synthetic,
            with_files,
        },
    },
};

/// Validation losses by step in the metrics ledger.
fn losses(output: &Path) -> Vec<(u64, f64)> {
    let rows = Ledger::read(&locate(output)).unwrap().rows;
    rows.into_iter().filter(|row| row.split == "val").map(|row| (row.step, row.value)).collect()
}

#[test]
fn evaluations_change_no_weight_and_are_repeated_after_a_kill() {
    let evaluating = ["training.eval_every=3", "training.eval_records=7", "training.checkpoint_every=3"];
    let run = speck(&evaluating);
    let place = || tempfile::tempdir_in(scratch()).unwrap();
    let (whole, blind) = (place(), place());
    let straight = attempt(&run, whole.path(), false);
    let model = finished(&straight);
    assert_eq!(finished(&attempt(&speck(&["training.checkpoint_every=3"]), blind.path(), false)), model);
    let seen = losses(whole.path());
    assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9, 12]);
    assert_eq!(straight.state.progress.unwrap().val_loss, Some(seen[3].1));
    let (about, files) = remains(whole.path());
    assert_eq!(about.metrics["val_loss"].to_bits(), seen[3].1.to_bits());

    for look in (1..60).step_by(4) {
        let output = place();
        let killed = killed_at(&run, output.path(), look);
        assert_eq!(finished(&attempt(&run, output.path(), false)), model);
        assert_eq!(remains(output.path()), (about.clone(), files.clone()), "{look} {killed}");
        assert_eq!(losses(output.path()), seen);
    }

    // Replaying the run leads to the recorded states, evaluations included.
    let past = RecordedRun::open(whole.path()).unwrap();
    let rerun = past.rerun(&[]).unwrap();
    let mut state = rerun.state(None).unwrap();
    while state.step < 12 {
        rerun.step(&mut state).unwrap();
    }
    assert_eq!(state.snapshot(None).unwrap().digests().whole, about.state_digest);
}

/// Asks the attempt to end at every check of the stop flag, among them those before each batch and each token of a sample.
#[test]
fn an_interrupted_evaluation_is_repeated_with_the_same_bits() {
    for every in ["training.checkpoint_every=3", "training.checkpoint_every=5"] {
        let run = speck(&[
            "training.eval_every=3",
            "training.eval_records=7",
            "training.eval_samples=2",
            "training.eval_max_new_tokens=4",
            every,
        ]);
        let place = || tempfile::tempdir_in(scratch()).unwrap();
        let whole = place();
        let model = finished(&attempt(&run, whole.path(), false));
        let (expected, seen) = (remains(whole.path()), losses(whole.path()));
        // Checks before the first step: generating data, one per record, two more.
        let before = 1 + 25 + 7 + 2;
        let mut pending_at = Vec::new();
        for look in before + 1.. {
            let output = place();
            let folder = output.path().join("checkpoints");
            let pending = || {
                let newest = newest(&folder, u64::MAX, |why| panic!("{why}")).unwrap().unwrap();
                newest.info.tensors.contains_key(EVALUATION_PENDING)
            };
            match asked_at(&run, output.path(), look).outcome.unwrap() {
                Outcome::Finished(_) => break,
                Outcome::Interrupted { step } if pending() => {
                    pending_at.push(step);
                    assert!(losses(output.path()).iter().all(|(evaluated, _)| *evaluated < step));
                    // Interrupted again, before the first batch. The tokens of the training records are there already.
                    let again = asked_at(&run, output.path(), before - 25 + 1).outcome.unwrap();
                    assert!(pending() && again == Outcome::Interrupted { step });
                    // A replay completes the evaluation first.
                    let past = RecordedRun::open(output.path()).unwrap();
                    let rerun = past.rerun(&[]).unwrap();
                    let state = rerun.state(rerun.checkpoint(step).unwrap().as_ref()).unwrap();
                    assert!(!state.evaluation_pending && state.measured.contains_key("val_loss"));
                }
                Outcome::Interrupted { .. } => {}
            }
            let ended = attempt(&run, output.path(), false);
            assert_eq!(finished(&ended), model);
            assert_eq!(ended.state.notices, [""; 0], "{look}");
            assert!(!pending() && remains(output.path()) == expected, "{look}");
            assert_eq!(losses(output.path()), seen, "{look}");
        }
        // Three batches and at least one token each, the last step's evaluation included.
        for step in [3, 6, 9, 12] {
            assert!(pending_at.iter().filter(|at| **at == step).count() >= 4, "{pending_at:?}");
        }
    }
}

#[test]
fn training_stops_early_and_stays_stopped() {
    // The loss falls, so its maximum is the first value.
    let run = resolved(
        &[
            "training.eval_every=20",
            "training.eval_records=30",
            "training.eval_samples=2",
            "training.metric_mode=max",
            "training.early_stop_patience=2",
        ],
        both(),
    );
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&run, output.path(), false);
    let model = finished(&ended);
    assert_eq!((ended.state.stage, ended.state.steps_executed), (Stage::Finished, 60));
    let seen = losses(output.path());
    assert!(seen.len() == 3 && seen[1].1 < seen[0].1 && seen[2].1 < seen[0].1, "{seen:?}");
    let notice = ended.state.notices.last().unwrap();
    assert!(
        notice.starts_with("training stopped early at step 60: in 2 evaluations val_loss did not improve on ")
            && notice.ends_with("of step 20"),
        "{notice}"
    );
    let again = attempt(&run, output.path(), false);
    assert_eq!((finished(&again), again.state.steps_executed), (model, 60));
}

fn with_validation(output: &Path, bytes: &[u8], sha256: Option<DataDigest>) -> Attempt {
    let path = output.join("held-out.jsonl");
    fs::write(&path, bytes).unwrap();
    let sha256 = sha256.unwrap_or(DataDigest(Sha256::of(bytes)));
    let run: Resolved<Training> = compose_training(
        "cot-starter",
        &["training.stop_after=2", "training.eval_every=2", "training.batch_size=8"].map(str::to_owned),
        None,
        1,
        vec![synthetic("arithmetic", 40), Data { name: VALIDATION.to_owned(), sha256: Some(sha256), synthetic: None }],
    )
    .unwrap();
    with_files(&run, &[(VALIDATION.to_owned(), path)], &output.join("run"), &|| false)
}

#[test]
fn validation_files_are_pinned_reported_and_not_trained_on() {
    let records = materialise("arithmetic".parse().unwrap(), Split::HeldOut, 9, 12).unwrap();
    let output = tempfile::tempdir().unwrap();
    let ended = with_validation(output.path(), &records, None);
    finished(&ended);
    let named: Vec<_> = ended.state.data.iter().map(|file| (file.name.as_str(), file.records)).collect();
    assert_eq!(named, [("arithmetic", Some(40)), (VALIDATION, Some(12))]);
    let artifacts = output.path().join("run/artifacts");
    let checksums: serde_json::Value =
        serde_json::from_slice(&fs::read(artifacts.join("dataset_checksums.json")).unwrap()).unwrap();
    assert_eq!(checksums[VALIDATION], DataDigest(Sha256::of(&records)).to_string());
    assert_eq!(losses(&output.path().join("run")).len(), 1);
    assert!(!artifacts.join("data/validation.jsonl").exists());

    let output = tempfile::tempdir().unwrap();
    let refused = with_validation(output.path(), &records, Some(DataDigest(Sha256::of("other"))));
    assert!(matches!(refused.outcome, Err(TrainError::Data(DataError::Mismatch { name, .. })) if name == VALIDATION));
    let output = tempfile::tempdir().unwrap();
    let refused = with_validation(output.path(), b"{}\n", None);
    assert!(refused.outcome.unwrap_err().to_string().contains("held-out.jsonl:1: invalid record"));
}

#[test]
fn synthetic_validation_records_are_held_out_problems() {
    let held_out = Data { name: VALIDATION.to_owned(), ..synthetic("arithmetic", 12) };
    let run =
        resolved(&["training.stop_after=1", "training.eval_every=1"], vec![synthetic("arithmetic", 40), held_out]);
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&run, output.path(), false);
    finished(&ended);
    let expected = materialise("arithmetic".parse().unwrap(), Split::HeldOut, 1, 12).unwrap();
    let found = ended.state.data.iter().find(|file| file.name == VALIDATION).unwrap();
    assert_eq!((found.sha256, found.records), (DataDigest(Sha256::of(&expected)), Some(12)));

    let many =
        resolved(&["training.eval_every=1", "training.eval_records=100000"], vec![synthetic("multiplication", 40)]);
    let refused = attempt(&many, tempfile::tempdir().unwrap().path(), false).outcome.unwrap_err().to_string();
    assert!(
        refused.starts_with(
            "training.eval_records is 100000, 100000 for each synthetic task, but multiplication holds out"
        ) && refused.contains("use at most"),
        "{refused}"
    );
}

#[test]
fn data_that_is_trained_on_is_refused_for_validation() {
    let records = materialise("arithmetic".parse().unwrap(), Split::Train, 1, 40).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let sha256 = Some(DataDigest(Sha256::of(&records)));
    let files = ["mine", VALIDATION].map(|name| (name.to_owned(), directory.path().join(name)));
    for (_, path) in &files {
        fs::write(path, &records).unwrap();
    }
    let data = ["mine", VALIDATION].map(|name| Data { name: name.to_owned(), sha256, synthetic: None }).to_vec();
    let run = resolved(&["training.eval_every=1"], data);
    let error = with_files(&run, &files, &directory.path().join("run"), &|| false).outcome.unwrap_err();
    assert!(matches!(&error, TrainError::Data(DataError::TrainedOn { name }) if name == "mine"), "{error}");
    assert_eq!(error.exit(), codex_reports::exit::BAD_INPUT);
}
