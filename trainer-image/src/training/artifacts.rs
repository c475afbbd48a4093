//! What a run leaves beside its model: `run_metadata.json`, `environment.json`, `dataset_checksums.json` and the metrics ledger
//! `metrics.ndjson`. Does I/O.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
};

use codex_configs::{Resolved, Training};
use codex_provenance::{DataDigest, Sha256};
use jiff::Timestamp;
use serde_json::json;

use super::TrainError;
use crate::{
    artifacts::ledger::{self, Row},
    durable::{self, FileError},
};

/// The directory of a run's artefacts.
#[derive(Clone, Debug)]
pub(super) struct Artifacts {
    directory: PathBuf,
    run: String,
}

impl Artifacts {
    /// The artefacts of the run with this output directory.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub(super) fn open(output: &Path) -> Result<Self, TrainError> {
        let directory = output.join("artifacts");
        durable::make_directory(&directory)?;
        let named = || fs::canonicalize(output).ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let run = variable("CODEX_OBJECT_UID").or_else(named).unwrap_or_else(|| "run".to_owned());
        Ok(Self { directory, run })
    }

    /// Where synthetic data is kept.
    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Writes `dataset_checksums.json` and the two descriptions of the run.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn describe(
        &self,
        resolved: &Resolved<Training>,
        data: &BTreeMap<String, DataDigest>,
        attempt: u32,
    ) -> Result<(), TrainError> {
        let training = resolved.spec();
        durable::write_json(&self.directory.join("dataset_checksums.json"), data)?;
        let version = serde_json_canonicalizer::to_vec(&json!({ "name": training.template, "files": data }))
            .map(Sha256::of)
            .map_err(std::io::Error::other)
            .map_err(FileError::of("encoding", &self.directory))?;
        let metadata = json!({
            "metadata": { "owner": training.settings.metadata.owner, "template": training.template, "run_id": self.run },
            "session_id": format!("{}-{attempt}", self.run),
            "artifacts_dir": self.directory,
            "config_digest": resolved.digest(),
            "dataset_version": version,
            "control_surface": {
                "trace_mode": "disabled",
                "curriculum.preset": null,
                "evaluation.preset": null,
                "deployment.preset": null,
                "metadata.rollout_ring": null,
            },
            "knobs": {
                "trace_mode": "disabled",
                "curriculum_preset": null,
                "evaluation_preset": null,
                "deployment_preset": null,
            },
        });
        durable::write_json(&self.directory.join("run_metadata.json"), &metadata)?;
        durable::write_json(&self.directory.join("environment.json"), &environment(training.seed))?;
        Ok(())
    }

    /// Opens the metrics ledger for a run that goes on from `step`: rows of later steps are dropped, for they will be written
    /// again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn ledger(&self, step: u64, dataset: String) -> Result<Ledger, TrainError> {
        let path = self.directory.join(ledger::FILE);
        let mut kept = Vec::new();
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file).lines() {
                let line = line.map_err(FileError::of("reading", &path))?;
                // A row that a kill cut short is dropped, too.
                if Row::parse(line.as_bytes()).is_ok_and(|row| row.step <= step) {
                    kept.extend_from_slice(line.as_bytes());
                    kept.push(b'\n');
                }
            }
        }
        durable::write(&path, &kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(FileError::of("opening", &path))?;
        Ok(Ledger { path, file, run: self.run.clone(), dataset })
    }
}

/// The metrics ledger, open for appending.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    run: String,
    dataset: String,
}

impl Ledger {
    /// Appends the metrics of a step.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn append(&mut self, step: u64, metrics: &[(&str, f64)]) -> Result<(), TrainError> {
        let mut lines = Vec::new();
        for (metric, value) in metrics {
            let row = Row {
                schema: ledger::SCHEMA.to_owned(),
                schema_version: ledger::SCHEMA_VERSION.to_owned(),
                timestamp: Timestamp::now(),
                run_id: self.run.clone(),
                step,
                split: "train".to_owned(),
                metric: (*metric).to_owned(),
                value: *value,
                dataset: self.dataset.clone(),
                tags: BTreeMap::new(),
            };
            serde_json::to_writer(&mut lines, &row)
                .map_err(std::io::Error::other)
                .map_err(FileError::of("encoding", &self.path))?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).map_err(FileError::of("writing", &self.path))?;
        Ok(())
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What the run ran on. Nothing here influences the model.
fn environment(seed: u64) -> serde_json::Value {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let threads = rayon::current_num_threads();
    let fingerprint = json!({ "machine": text(system.machine()), "processor": processor, "threads": threads });
    json!({
        "platform": format!("{} {} {}", text(system.sysname()), text(system.release()), text(system.machine())),
        "toolchain": format!("rustc {}", env!("CARGO_PKG_RUST_VERSION")),
        "codex_version": env!("CARGO_PKG_VERSION"),
        "lock_file_sha256": Sha256::of(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))),
        "git_commit": option_env!("CODEX_GIT_COMMIT"),
        "image_digest": variable("CODEX_IMAGE_DIGEST"),
        "node": variable("CODEX_NODE_NAME").unwrap_or_else(|| text(system.nodename())),
        "cpu": { "model": processor, "threads": threads },
        "gpus": [],
        "cuda": null,
        "seed": seed,
        "command": std::env::args().collect::<Vec<_>>(),
        "hardware_fingerprint": serde_json_canonicalizer::to_vec(&fingerprint).map(Sha256::of).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_ledger_has_no_row_twice() {
        let output = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(output.path()).unwrap();
        let mut ledger = artifacts.ledger(0, "a+b".to_owned()).unwrap();
        for step in [10, 20, 30] {
            ledger.append(step, &[("loss", 1.5), ("learning_rate", 0.1)]).unwrap();
        }
        ledger.file.write_all(b"{\"$schema\":\"cut").unwrap();
        let mut ledger = artifacts.ledger(20, "a+b".to_owned()).unwrap();
        ledger.append(30, &[("loss", 1.0)]).unwrap();
        let text = fs::read_to_string(artifacts.directory.join(ledger::FILE)).unwrap();
        let steps: Vec<u64> = text.lines().map(|line| serde_json::from_str::<Row>(line).unwrap().step).collect();
        assert_eq!(steps, [10, 10, 20, 20, 30]);
        let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(row["split"], "train");
        assert!(text.starts_with("{\"$schema\":"), "keys keep their order");
        let order =
            ["$schema", "schema_version", "timestamp", "run_id", "step", "split", "metric", "value", "dataset", "tags"];
        let places: Vec<usize> = order.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted());
    }
}
