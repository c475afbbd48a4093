//! What a run leaves beside its model: `run_metadata.json`, `environment.json`, `dataset_checksums.json`, the metrics ledger
//! `metrics.ndjson`, and `errors.ndjson` where an attempt gave up. Does I/O.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_configs::{Resolved, Training};
use codex_provenance::DataDigest;
use jiff::Timestamp;

use super::{
    TrainError,
    records::{self, Tail},
};
use crate::{
    artifacts::{
        environment::{self, Environment, variable},
        errors::{self, ErrorRow},
        ledger::{self, Row},
        metadata::{self, Checksums, ControlSurface, Knobs, Metadata, RunMetadata},
    },
    atomic_fs::{self, FileError},
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
        atomic_fs::make_directory(&directory)?;
        let named = || fs::canonicalize(output).ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let run = variable("CODEX_OBJECT_UID").or_else(named).unwrap_or_else(|| "run".to_owned());
        Ok(Self { directory, run })
    }

    /// Where synthetic data is kept.
    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Writes `dataset_checksums.json` and `run_metadata.json`.
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
        let checksums = Checksums(data.clone());
        atomic_fs::write_json(&self.directory.join(metadata::CHECKSUMS_FILE), &checksums)?;
        let dataset_version = checksums
            .version(&training.template)
            .map_err(std::io::Error::other)
            .map_err(FileError::of("encoding", &self.directory))?;
        // What is captured, and which curriculum, evaluation and deployment, is not the trainer's to say yet.
        let trace_mode = "disabled".to_owned();
        let metadata = RunMetadata {
            metadata: Metadata {
                owner: training.settings.metadata.owner.clone(),
                template: training.template.clone(),
                run_id: self.run.clone(),
            },
            session_id: format!("{}-{attempt}", self.run),
            artifacts_dir: self.directory.clone(),
            config_digest: resolved.digest(),
            dataset_version,
            control_surface: ControlSurface { trace_mode: trace_mode.clone(), ..ControlSurface::default() },
            knobs: Knobs { trace_mode, ..Knobs::default() },
        };
        atomic_fs::write_json(&self.directory.join(metadata::FILE), &metadata)?;
        Ok(())
    }

    /// Writes `environment.json`: what this attempt runs on, and which engine computes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn environment(&self, seed: u64, engine: &str) -> Result<(), TrainError> {
        atomic_fs::write_json(&self.directory.join(environment::FILE), &Environment::here(seed, engine))?;
        Ok(())
    }

    /// Appends why an attempt gives up to `errors.ndjson`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn failed(&self, error: &TrainError, step: Option<u64>) -> Result<(), TrainError> {
        let failure = error.failure();
        let row = ErrorRow {
            schema: errors::SCHEMA.to_owned(),
            timestamp: Timestamp::now(),
            run_id: self.run.clone(),
            step,
            exit_code: error.exit(),
            is_final: failure.is_final,
            reason: failure.reason,
            chain: errors::causes(error),
        };
        Ok(errors::append(&self.directory, &row)?)
    }

    /// Opens the metrics ledger for a run that goes on from `step`: rows of later steps are dropped, for they will be written
    /// again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn ledger(&self, step: u64, dataset: String) -> Result<Ledger, TrainError> {
        let (tail, _) = Tail::open::<Row>(self.directory.join(ledger::FILE), step)?;
        Ok(Ledger { tail, run: self.run.clone(), dataset })
    }
}

impl records::Row for Row {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The metrics ledger, open for appending.
#[derive(Debug)]
pub(super) struct Ledger {
    tail: Tail,
    run: String,
    dataset: String,
}

impl Ledger {
    /// Appends the metrics of a step, measured on `split`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn append(&mut self, step: u64, split: &str, metrics: &[(&str, f64)]) -> Result<(), FileError> {
        let row = |(metric, value): &(&str, f64)| Row {
            schema: ledger::SCHEMA.to_owned(),
            schema_version: ledger::SCHEMA_VERSION.to_owned(),
            timestamp: Timestamp::now(),
            run_id: self.run.clone(),
            step,
            split: split.to_owned(),
            metric: (*metric).to_owned(),
            value: *value,
            dataset: self.dataset.clone(),
            tags: BTreeMap::new(),
        };
        self.tail.note(&metrics.iter().map(row).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::ledger::Ledger as Recorded;

    #[test]
    fn a_resumed_ledger_has_no_row_twice() {
        let output = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(output.path()).unwrap();
        let mut ledger = artifacts.ledger(0, "a+b".to_owned()).unwrap();
        for step in [10, 20, 30] {
            ledger.append(step, "train", &[("loss", 1.5), ("learning_rate", 0.1)]).unwrap();
        }
        let path = artifacts.directory.join(ledger::FILE);
        // What a machine that failed left: half a line, and blocks that it never wrote.
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"$schema\":\"cut\0\xff\xfe".to_vec()].concat()).unwrap();
        artifacts.ledger(30, "a+b".to_owned()).unwrap();
        assert_eq!(Recorded::read(&path).unwrap().rows.len(), 6);
        let mut ledger = artifacts.ledger(20, "a+b".to_owned()).unwrap();
        ledger.append(30, "val", &[("loss", 1.0)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
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
