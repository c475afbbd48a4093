//! Replay and bisect of whole runs.

use std::{fs, path::Path};

use codex_configs::Data;
use codex_provenance::Sha256;
use codex_reports::exit;

use crate::{
    tasks::{Split, Task, materialise},
    training::{
        DataError, TrainError,
        forensics::{Files, RecordedRun, compare, replay},
        records::{StateRow, read_states},
        state::Digests,
        test_support::{attempt, finished, resolved, speck, with_files},
    },
};

#[test]
fn a_replayed_step_has_the_same_bits() {
    let output = tempfile::tempdir().unwrap();
    let run = speck(&["training.checkpoint_every=5"]);
    finished(&attempt(&run, output.path(), false));
    let past = RecordedRun::open(output.path()).unwrap();
    let rerun = past.rerun(&[]).unwrap();
    for step in [1, 5, 6, 9, 12] {
        let replayed = replay(&rerun, step).unwrap();
        assert_eq!(replayed.reproduced, Some(true), "{step}");
        assert_eq!(replayed.records.len(), 6);
        assert!(replayed.records.iter().all(|record| record.text.contains(':') && record.loss.is_some()));
        assert!(replayed.records.is_sorted_by(|a, b| a.loss >= b.loss));
    }
    assert!(replay(&rerun, 13).unwrap_err().to_string().contains("the run has 12 steps"));
    // A modified ledger is detected.
    let path = output.path().join("artifacts/ledger.ndjson");
    let text = fs::read_to_string(&path).unwrap();
    let changed: Vec<String> = text
        .lines()
        .map(
            |line| if line.contains("\"step\":9,") { line.replace("\"loss\":", "\"loss\":1") } else { line.to_owned() },
        )
        .collect();
    fs::write(&path, changed.join("\n") + "\n").unwrap();
    assert_eq!(replay(&rerun, 9).unwrap().reproduced, Some(false));
    assert_eq!(replay(&rerun, 5).unwrap().reproduced, Some(true));
}

#[test]
fn bisect_names_the_first_step_and_tensor() {
    let again: Option<[&Files; 2]> = Some([&[], &[]]);
    let output = tempfile::tempdir().unwrap();
    let train = |name: &str, overrides: &[&str]| {
        let output = output.path().join(name);
        let run = speck(&[&["training.checkpoint_every=4", "training.state_digest_every=null"], overrides].concat());
        finished(&attempt(&run, &output, false));
        RecordedRun::open(&output).unwrap()
    };
    let (a, same) = (train("a", &[]), train("same", &[]));
    let equal = compare(&a, &same, again).unwrap();
    assert!(equal.equal() && equal.common == 12 && equal.to_string().contains("equal, bit for bit, in 12 steps"));

    // Warm-up over more steps changes the rates from the first step on, and so the loss of the second.
    let other = train("other", &["training.warmup_steps=5"]);
    let found = compare(&a, &other, again).unwrap();
    assert_eq!(found.configuration, ["training.warmup_steps"]);
    let first = found.first_replayed.as_ref().unwrap();
    assert_eq!((first.step, found.first_recorded.as_ref().unwrap().step, found.last_equal), (1, 4, None));
    assert!(first.tensors.contains(&"parameters/model.norm.weight".to_owned()), "{first:?}");
    assert!(!first.tensors.contains(&"first/model.norm.weight".to_owned()), "the rate is not in the moments");
    assert_eq!(found.ledger.as_ref().map(|ledger| (ledger.step, ledger.what)), Some((2, "loss")));
    assert_eq!(found.reproduced, Some([true, true]));

    // Other data differs in the ledger from the first step on.
    let accumulated = train("accumulated", &["training.gradient_accumulation=1"]);
    let found = compare(&a, &accumulated, None).unwrap();
    assert_eq!(found.ledger.as_ref().map(|ledger| (ledger.step, ledger.what)), Some((1, "records")));
    assert_eq!((found.first_replayed, found.reproduced), (None, None));

    // No common recorded state: the ledgers limit the steps to replay.
    let scarce = train("scarce", &["training.warmup_steps=5", "training.checkpoint_every=5", "training.stop_after=9"]);
    let found = compare(&a, &scarce, again).unwrap();
    assert_eq!((found.common, found.last_equal, found.first_recorded.as_ref()), (9, None, None));
    assert_eq!(found.first_replayed.as_ref().map(|first| first.step), Some(1));
    assert_eq!(found.reproduced, Some([true, true]));
    assert!(found.to_string().contains("the states first differ after step 1, in parameters/"), "{found}");

    // Runs without a common step are not equal.
    let none = train("none", &["training.stop_after=0"]);
    let error = compare(&a, &none, again).unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    assert!(
        error.to_string().contains("recorded steps 1 to 12") && error.to_string().ends_with("recorded no steps"),
        "{error}"
    );
    let nowhere = output.path().join("nowhere");
    let error = RecordedRun::open(&nowhere).unwrap_err();
    assert!(error.exit() == exit::BAD_INPUT && error.to_string().contains("nowhere does not hold a run"), "{error}");

    // A run with modified records is distinguished from the unmodified one.
    let path = output.path().join("same/artifacts/states.ndjson");
    let rows = read_states(&path).unwrap();
    let mut before = None;
    let changed: Vec<String> = rows
        .into_iter()
        .map(|row| {
            let whole = if row.step == 8 { Sha256::of(b"other") } else { row.digest };
            let digests = Digests { whole, tensors: std::collections::BTreeMap::default() };
            let row = StateRow { tensors: row.tensors, ..StateRow::new(row.step, &digests, before) };
            before = Some(row.chain);
            serde_json::to_string(&row).unwrap()
        })
        .collect();
    fs::write(&path, changed.join("\n") + "\n").unwrap();
    let found = compare(&a, &same, again).unwrap();
    assert_eq!((found.last_equal, found.first_recorded.as_ref().map(|it| it.step)), (Some(4), Some(8)));
    assert_eq!((found.first_replayed.as_ref(), found.reproduced), (None, Some([true, false])));
    assert!(found.to_string().contains("the first run matches its records; the second does not"));
}

#[test]
fn runs_on_files_are_replayed_with_their_files() {
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
        (RecordedRun::open(&output).unwrap(), files)
    };
    let (mine, other) = (file("mine.jsonl", Split::Train, 1), file("other.jsonl", Split::Train, 2));
    let held_out = file("held-out.jsonl", Split::HeldOut, 3);
    let ((a, of_a), (b, of_b)) = (train("a", &mine, &held_out), train("b", &other, &held_out));

    let rerun = a.rerun(&of_a).unwrap();
    let replayed = replay(&rerun, 4).unwrap();
    assert_eq!(replayed.reproduced, Some(true));
    let refused = a.rerun(&of_a[..1]).err().unwrap().to_string();
    assert!(refused.contains("used a file as data validation: pass it as --data validation=FILE"), "{refused}");
    let elsewhere = [of_a[0].clone(), (codex_configs::VALIDATION.to_owned(), mine)];
    let refused = a.rerun(&elsewhere).err().unwrap();
    assert!(
        matches!(&refused, TrainError::Data(DataError::Mismatch { name, .. }) if name == codex_configs::VALIDATION),
        "{refused}"
    );

    // Each run has its own files; without them only the records are compared.
    let found = compare(&a, &b, Some([&of_a, &of_b])).unwrap();
    assert_eq!(found.ledger.as_ref().map(|it| (it.step, it.what)), Some((1, "records")));
    assert_eq!((found.reproduced, found.not_replayed.as_deref()), (Some([true, true]), None));
    let found = compare(&a, &b, Some([&of_a, &[]])).unwrap();
    assert_eq!((found.ledger.map(|it| it.step), found.reproduced), (Some(1), None));
    assert!(found.not_replayed.unwrap().contains("used a file as data mine"));
}
