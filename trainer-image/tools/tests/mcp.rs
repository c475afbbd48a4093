//! The reference client of the Model Context Protocol, that of PyPI, against `codex-tools mcp`. `make test-clients` installs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::{fs, path::Path, process::Command};

/// Writes a run with a model and a ledger of one row.
fn run(root: &Path) {
    fs::create_dir_all(root.join("run/model")).unwrap();
    fs::create_dir_all(root.join("run/artifacts")).unwrap();
    fs::write(root.join("run/model/config.json"), "{}").unwrap();
    fs::write(root.join("run/model/model.safetensors"), "weights").unwrap();
    let row = r#"{"$schema": "https://codex-ml.dev/schemas/metrics-ledger/v1", "schema_version": "v1", "timestamp": "2026-11-28T09:00:00Z", "run_id": "r", "step": 7, "split": "train", "metric": "loss", "value": 0.5, "dataset": "d", "tags": {}}"#;
    fs::write(root.join("run/artifacts/metrics.ndjson"), format!("{row}\n")).unwrap();
}

#[test]
#[ignore = "needs CLIENTS_PYTHON, a Python with the package mcp: make test-clients"]
fn the_reference_client_works_unchanged() {
    let python = std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with the package mcp");
    let place = tempfile::tempdir().unwrap();
    run(place.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/mcp_client.py");
    let output =
        Command::new(python).arg(script).arg(env!("CARGO_BIN_EXE_codex-tools")).arg(place.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
}
