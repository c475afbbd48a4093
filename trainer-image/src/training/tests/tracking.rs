//! Runs that experiment trackers follow.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use codex_reports::Model;

use crate::{
    artifacts::ledger::{self, Ledger},
    tracking::{
        Format, export,
        tests::{scalars, wandb_scalars},
    },
    training::test_support::{attempt, finished, metered, speck},
};

/// The settings of a run that is tracked and evaluated every five steps.
const TRACKED: [&str; 7] = [
    "training.eval_every=5",
    "training.eval_samples=0",
    "training.checkpoint_every=4",
    "tracking.csv=true",
    "tracking.tensorboard=true",
    "tracking.mlflow.files=true",
    "tracking.wandb=true",
];

/// Trains a run to its end, as if it had been killed after step 12 and resumed from step 8 once. Returns both models.
fn resumed(output: &Path) -> [Model; 2] {
    let run = speck(&TRACKED);
    let first = finished(&attempt(&run, output, false));
    fs::remove_dir_all(output.join("checkpoints/step-00000012")).unwrap();
    let second = attempt(&run, output, false);
    assert_eq!(second.state.resumed_from, Some(8));
    [first, finished(&second)]
}

#[test]
fn trackers_have_the_rows_of_the_ledger_after_a_resume() {
    let output = tempfile::tempdir().unwrap();
    let [first, second] = resumed(output.path());
    assert_eq!(first, second);
    let artifacts = output.path().join("artifacts");
    let ledger = Ledger::read(&artifacts.join(ledger::FILE)).unwrap();
    let steps: Vec<(u64, &str)> =
        ledger.rows.iter().filter(|row| row.metric == "loss").map(|row| (row.step, row.split.as_str())).collect();
    assert_eq!(steps, [(5, "val"), (10, "train"), (10, "val"), (12, "train")]);
    let exported = output.path().join("exported");
    let (table, lacking) = export(Format::Csv, &ledger, &exported).unwrap();
    assert!(lacking.is_empty());
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(read(&artifacts.join("metrics.csv")), read(&table));
    let expected: BTreeMap<(String, i64), f32> = ledger
        .rows
        .iter()
        .map(|row| ((format!("{}/{}", row.split, row.metric), row.step.cast_signed()), row.value as f32))
        .collect();
    assert_eq!(scalars(&artifacts.join("tensorboard")), expected);
    let expected: BTreeMap<(String, u64), f64> =
        ledger.rows.iter().map(|row| ((format!("{}/{}", row.split, row.metric), row.step), row.value)).collect();
    assert_eq!(wandb_scalars(&artifacts.join("wandb")), expected);
    export(Format::Wandb, &ledger, &exported.join("wandb")).unwrap();
    assert_eq!(wandb_scalars(&exported.join("wandb")), expected);
    let (run, lacking) = export(Format::Mlflow, &ledger, &exported.join("mlruns")).unwrap();
    assert!(lacking.is_empty());
    let tracked = output
        .path()
        .join("mlruns")
        .join(run.strip_prefix(fs::canonicalize(&exported).unwrap().join("mlruns")).unwrap());
    for name in ["metrics/train/loss", "metrics/val/loss", "params/training.max_steps", "tags/codex.config_digest"] {
        assert_eq!(read(&tracked.join(name)), read(&run.join(name)), "{name}");
    }
    assert_eq!(read(&run.join("params/training.max_steps")), "12");
    assert!(read(&tracked.join("meta.yaml")).contains("\nstatus: 3\n"));
}

#[test]
fn the_machine_is_measured_where_it_is_asked_for() {
    let [with, without] = [["tracking.system_metrics=true"], ["tracking.system_metrics=false"]].map(|set| {
        let output = tempfile::tempdir().unwrap();
        let model = finished(&attempt(&speck(&set), output.path(), false));
        let ledger = Ledger::read(&output.path().join("artifacts").join(ledger::FILE)).unwrap();
        let rows = ledger.rows.into_iter().filter(|row| row.split == "system");
        (model.digest, rows.map(|row| (row.step, row.metric)).collect::<Vec<_>>())
    });
    assert_eq!(with.0, without.0);
    assert!(without.1.is_empty(), "{:?}", without.1);
    for step in [10, 12] {
        for name in ["system_memory_usage_percentage", "process_memory_usage_megabytes", "disk_available_megabytes"] {
            assert!(with.1.contains(&(step, name.to_owned())), "{step} {name}: {:?}", with.1);
        }
    }
}

#[test]
fn a_run_without_trackers_writes_none_and_one_that_fails_ends_none() {
    let output = tempfile::tempdir().unwrap();
    let plain = finished(&attempt(&speck(&[]), output.path(), false));
    let artifacts = output.path().join("artifacts");
    for name in ["metrics.csv", "tensorboard", "mlflow.json", "wandb"] {
        assert!(!artifacts.join(name).exists(), "{name}");
    }
    assert!(!output.path().join("mlruns").exists());
    let blocked = tempfile::tempdir().unwrap();
    let artifacts = blocked.path().join("artifacts");
    fs::create_dir(&artifacts).unwrap();
    // A file where a directory would be, and a directory where a file would be.
    fs::write(artifacts.join("tensorboard"), "").unwrap();
    fs::create_dir(artifacts.join("metrics.csv")).unwrap();
    let (tracked, counted) = metered(&speck(&["tracking.csv=true", "tracking.tensorboard=true"]), blocked.path());
    assert_eq!(finished(&tracked), plain, "trackers change no weight");
    for (tracker, failures) in [("csv", 1), ("tensorboard", 1), ("mlflow-files", 0), ("mlflow-server", 0), ("wandb", 0)]
    {
        let line = format!("codex_ml_tracking_failures_total{{tracker=\"{tracker}\"}} {failures}");
        assert!(counted.lines().any(|found| found == line), "{line}: {counted}");
    }
}

/// `make test-clients` installs the packages.
#[test]
#[ignore = "needs CLIENTS_PYTHON, a Python with the packages tensorboard, mlflow and wandb: make test-clients"]
fn tensorboard_mlflow_and_wandb_read_what_runs_write() {
    let python =
        std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with tensorboard, mlflow and wandb");
    let output = tempfile::tempdir().unwrap();
    resumed(output.path());
    let ledger = Ledger::read(&output.path().join("artifacts").join(ledger::FILE)).unwrap();
    let exported = tempfile::tempdir().unwrap();
    export(Format::Tensorboard, &ledger, &exported.path().join("tensorboard")).unwrap();
    export(Format::Mlflow, &ledger, &exported.path().join("mlruns")).unwrap();
    export(Format::Wandb, &ledger, &exported.path().join("wandb")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/trackers.py");
    let ran = Command::new(python).arg(script).args([output.path(), exported.path()]).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}\n{told}", String::from_utf8_lossy(&ran.stdout));
}

/// `make test-clients` installs the packages.
#[test]
#[ignore = "needs CLIENTS_PYTHON, a Python with the packages nbclient, ipykernel and matplotlib: make test-clients"]
fn notebook_reads_the_files_of_a_run() {
    let python = std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with nbclient");
    let output = tempfile::tempdir().unwrap();
    resumed(output.path());
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(python);
    command.arg(repository.join("tests/clients/notebook.py")).arg(repository.join("docs/notebooks/run.ipynb"));
    let execute = |command: &mut Command| {
        let ran = command.env("RUN", output.path()).output().unwrap();
        let told = [ran.stdout, ran.stderr].concat();
        (ran.status.success(), String::from_utf8_lossy(&told).into_owned())
    };
    let (held, told) = execute(&mut command);
    assert!(held && told.contains(" states, up to step 12 with the chain "), "{told}");
    // A changed row breaks the chain, and the notebook says where.
    let states = output.path().join("artifacts/states.ndjson");
    let mut lines: Vec<serde_json::Value> =
        fs::read_to_string(&states).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let step = lines[0]["step"].clone();
    lines[0]["digest"] = "00".repeat(32).into();
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&states, lines.concat()).unwrap();
    let (held, told) = execute(&mut command);
    assert!(!held && told.contains(&format!("the chain is broken at step {step}")), "{told}");
}
