use super::{
    input::{Input, chosen},
    *,
};
use crate::artifacts::ledger::tests::{row, text};

fn input(runs: &[&std::path::Path], skip_bad: bool) -> Input {
    Input { runs: runs.iter().map(|run| run.to_path_buf()).collect(), skip_bad }
}

#[test]
fn invalid_lines_are_refused_with_their_number_or_ignored() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/artifacts/metrics.ndjson");
    let mut lines = text(&[row(1, "loss", 1.0)]);
    lines.extend(b"nonsense\n");
    lines.extend(text(&[row(2, "loss", 0.5)]));
    atomic_fs::write(&path, &lines).unwrap();
    let run = root.path().join("run");
    let error = input(&[&run], false).read().unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    let sentence = error.to_string();
    assert!(sentence.starts_with(&format!("{}:2: invalid ledger row: ", path.display())), "{sentence}");
    assert!(sentence.contains("1 of 3 lines are invalid"), "{sentence}");
    let read = input(&[&run], true).read().unwrap();
    assert_eq!((read[0].label.as_str(), read[0].series.values().next().unwrap().len()), ("run", 2));
    let invalid = Validate { runs: vec![run] }.run().unwrap_err();
    assert_eq!(invalid.to_string(), "1 of 3 lines are invalid");
}

#[test]
fn runs_with_equal_names_are_labelled_by_path() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a/run", "b/run"].map(|run| root.path().join(run));
    for run in [&a, &b] {
        atomic_fs::write(&run.join("artifacts/metrics.ndjson"), &text(&[row(1, "loss", 1.0)])).unwrap();
    }
    let labels: Vec<String> = input(&[&a, &b], false).read().unwrap().into_iter().map(|run| run.label).collect();
    assert_eq!(labels, [a.display().to_string(), b.display().to_string()]);
}

#[test]
fn missing_ledgers_rows_and_metrics_are_named() {
    let root = tempfile::tempdir().unwrap();
    let said = |error: MetricsError| (error.exit(), CommandError::from(error).sentence());
    let (code, sentence) = said(input(&[root.path()], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("has no metrics ledger: name a run's directory"), "{sentence}");
    let (code, sentence) = said(input(&[&root.path().join("none")], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("none\" failed: No such file"), "{sentence}");
    atomic_fs::write(&root.path().join("metrics.ndjson"), b"").unwrap();
    let (code, sentence) = said(input(&[root.path()], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("has no rows yet"), "{sentence}");
    atomic_fs::write(&root.path().join("metrics.ndjson"), &text(&[row(1, "loss", 1.0)])).unwrap();
    let runs = input(&[root.path()], false).read().unwrap();
    let (_, sentence) = said(chosen(&runs, &["los".to_owned()], "loss").unwrap_err());
    assert_eq!(sentence, "--metric \"los\" is unknown: the runs have loss");
    assert_eq!(chosen(&runs, &[], "loss").unwrap(), ["loss"]);
}
