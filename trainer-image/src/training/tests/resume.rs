//! What a run resumes from, and when it refuses to.

use std::{fs, path::Path};

use codex_configs::Data;
use codex_reports::{TrainingState, exit};

use crate::{
    reporting::Reporter,
    training::{
        Outcome, ResumeError, Session, TrainError,
        records::{LedgerRow, read_rows},
        test_support::{
            attempt, both, finished, killed_at, metered, remains, resolved, speck, synthetic, threads, walk,
        },
    },
};

#[test]
fn a_damaged_checkpoint_is_skipped_with_a_notice() {
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
fn changes_decide_whether_a_run_resumes() {
    let output = tempfile::tempdir().unwrap();
    finished(&attempt(&resolved(&["training.stop_after=2"], both()), output.path(), false));
    let refused = |overrides: &[&str], data: Vec<Data>| {
        let run = resolved(&[&["training.stop_after=4"], overrides].concat(), data);
        let error = attempt(&run, output.path(), false).outcome.unwrap_err();
        assert!(
            matches!(error, TrainError::Resume(ResumeError::ForeignCheckpoint { .. }))
                && error.exit() == exit::BAD_INPUT,
            "{error}"
        );
        error.to_string()
    };
    assert!(refused(&["model.intermediate_size=64"], both()).contains("model.intermediate_size: 96 → 64"));
    assert!(refused(&[], vec![synthetic("arithmetic", 400), both()[1].clone()]).contains("data arithmetic: "));
    let said = refused(&["training.learning_rate=0.5"], both());
    assert!(said.contains("training.learning_rate: 0.01 → 0.5") && said.contains("--accept-other-bits"), "{said}");

    // A change without effect on weights: the run resumes, and ends in the bits of a run with these settings from the start.
    let longer = resolved(&["training.stop_after=4", "training.keep_last=1"], both());
    let gone_on = attempt(&longer, output.path(), false);
    assert_eq!(gone_on.state.resumed_from, Some(2));
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(finished(&gone_on), finished(&attempt(&longer, whole.path(), false)));

    // A change of weights: the run resumes if --accept-other-bits is given.
    let run = resolved(&["training.stop_after=6", "training.learning_rate=0.5"], both());
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session { accept_other_bits: true, ..Session::new(&run, &[], output.path(), &reporter, &|| false) };
    assert!(session.permits(&session.resume_diff().unwrap()));
    assert!(matches!(session.run(), Ok(Outcome::Finished(_))));
    let notices = reporter.state().notices;
    assert!(notices.iter().any(|notice| notice.contains("training.learning_rate is 0.5 and was 0.01 before step 4")));
}

/// Recomputation of activations changes no bit, so the comparison calls it "same bits".
#[test]
fn recomputation_gives_the_same_bits() {
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
fn a_comparison_changes_nothing() {
    let output = tempfile::tempdir().unwrap();
    let run = resolved(&["training.stop_after=2"], both());
    let (nowhere, reporter) = (output.path().join("nowhere"), Reporter::<TrainingState>::nowhere());
    let look = |output: &Path| {
        let session = Session::new(&run, &[], output, &reporter, &|| false);
        session.resume_diff().unwrap().to_string()
    };
    assert!(look(&nowhere).contains("training starts at step 0"));
    assert!(!nowhere.exists());
    finished(&attempt(&run, output.path(), false));
    let files = |root: &Path| walk(root);
    let before = files(output.path());
    let said = threads(1, || look(output.path()));
    assert!(said.starts_with("training resumes from the checkpoint of step 2: same bits"), "{said}");
    assert!(said.contains("threads: ") && said.contains("engine: cpu-"), "{said}");
    assert_eq!(files(output.path()), before);
}

#[test]
fn data_in_another_order_is_refused() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=4"]);
    assert!(killed_at(&run, output.path(), 1 + 25 + 2 + 2 * 9));
    let path = output.path().join("artifacts/ledger.ndjson");
    let rows = read_rows::<LedgerRow>(&path).unwrap();
    let changed = rows.iter().map(|row| LedgerRow { first: row.first + 1, ..row.clone() });
    let lines: String = changed.map(|row| serde_json::to_string(&row).unwrap() + "\n").collect();
    fs::write(&path, lines).unwrap();
    let error = attempt(&run, output.path(), false).outcome.unwrap_err();
    assert!(
        matches!(error, TrainError::Resume(ResumeError::DataOrder { .. })) && error.exit() == exit::BAD_INPUT,
        "{error}"
    );
}

#[test]
fn step_0_is_the_initial_model() {
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&resolved(&["training.stop_after=0"], both()), output.path(), false);
    assert!(finished(&ended).parameters > 0);
    assert_eq!(ended.state.steps_executed, 0);
}
