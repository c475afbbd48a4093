//! Files that a run leaves beside its model: `run_metadata.json`, `environment.json`, `dataset_checksums.json`, `data_report.json`,
//! `reasoning.json`, the metrics ledger `metrics.ndjson`, and `errors.ndjson` with the failures of attempts. Does I/O.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_configs::{Device, Resolved, Training};
use codex_provenance::{DataDigest, ModelDigest};
use codex_reports::Failure;
use jiff::Timestamp;

use super::{AppendLog, Row, TraceStore, append_log::Opened};
use crate::{
    artifacts::{
        data_report::{self, DataReport},
        environment::{self, Environment, variable},
        errors::{self, ErrorRow},
        ledger::{self, Row as MetricsRow},
        metadata::{
            self, AdoptedModel, BaseModel, Checksums, ControlSurface, Metadata, PrivacyReport, RunMetadata,
            SafetyReport,
        },
        reasoning::{self, Reasoning},
    },
    atomic_fs::{self, FileError},
    model::{ModelFiles, write_hashed},
    training::{Base, TrainError},
};

/// The split of metrics that an evaluation measures.
pub(crate) const VALIDATION_SPLIT: &str = "val";

/// The `artifacts` directory of a run.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    directory: PathBuf,
    run: String,
}

impl Artifacts {
    /// Opens the artifacts of the run with this output directory, which has to exist.
    ///
    /// # Errors
    /// When the directory of artifacts cannot be created.
    pub(crate) fn open(output: &Path) -> Result<Self, FileError> {
        let directory = atomic_fs::make_directory_in(output, "artifacts")?;
        let named = || fs::canonicalize(output).ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let run = variable("CODEX_OBJECT_UID").or_else(named).unwrap_or_else(|| "run".to_owned());
        Ok(Self { directory, run })
    }

    /// Directory of synthetic data.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Writes `dataset_checksums.json` and `run_metadata.json`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn describe(
        &self,
        resolved: &Resolved<Training>,
        data: &BTreeMap<String, DataDigest>,
        attempt: u32,
        base: Option<&Base>,
    ) -> Result<(), FileError> {
        let training = resolved.spec();
        let checksums = Checksums(data.clone());
        atomic_fs::write_json(&self.directory.join(metadata::CHECKSUMS_FILE), &checksums)?;
        let dataset_version = checksums
            .version(&training.template)
            .map_err(std::io::Error::other)
            .map_err(FileError::of("encoding", &self.directory))?;
        let (control_surface, knobs) = ControlSurface::of(&training.settings);
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
            knobs: Some(knobs),
            control_surface: Some(control_surface),
            base: base.map(Base::described),
            adapter: None,
            privacy: None,
            safety: None,
            adopted: None,
        };
        atomic_fs::write_json(&self.directory.join(metadata::FILE), &metadata)?;
        Ok(())
    }

    /// Writes `reasoning.json`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn reasoning(&self, reasoning: &Reasoning) -> Result<(), FileError> {
        atomic_fs::write_json(&self.directory.join(reasoning::FILE), reasoning)?;
        Ok(())
    }

    /// Opens the file of traces for a run that resumes at `step`, and returns a notice if it was damaged; `None` if the run captures
    /// none.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn traces(
        &self,
        reasoning: &Reasoning,
        step: u64,
    ) -> Result<Option<(TraceStore, Option<String>)>, FileError> {
        let Some(name) = &reasoning.effective.trace_store else { return Ok(None) };
        TraceStore::open(self.directory.join(name), step, reasoning.harness.trace_history).map(Some)
    }

    /// Writes `data_report.json`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn data_report(&self, report: &DataReport) -> Result<(), FileError> {
        atomic_fs::write_json(&self.directory.join(data_report::FILE), report)?;
        Ok(())
    }

    /// Writes `adapter/`, unless it already has exactly these bytes, and its digest into `run_metadata.json`. Returns the digest.
    ///
    /// # Errors
    /// When a file operation fails, or `run_metadata.json` cannot be read.
    pub(crate) fn adapter(&self, files: &ModelFiles) -> Result<ModelDigest, TrainError> {
        let digest = write_hashed::<TrainError>(&self.directory.join("adapter"), files)?.digest();
        self.amend(|metadata| metadata.adapter = Some(digest))?;
        Ok(digest)
    }

    /// Writes what a private run guarantees so far into `run_metadata.json`.
    ///
    /// # Errors
    /// When a file operation fails, or `run_metadata.json` cannot be read.
    pub(crate) fn privacy(&self, report: &PrivacyReport) -> Result<(), FileError> {
        self.amend(|metadata| metadata.privacy = Some(report.clone()))
    }

    /// Writes what safety rules did with the training data into `run_metadata.json`.
    ///
    /// # Errors
    /// When a file operation fails, or `run_metadata.json` cannot be read.
    pub(crate) fn safety(&self, report: SafetyReport) -> Result<(), FileError> {
        self.amend(|metadata| metadata.safety = Some(report))
    }

    /// Writes whose model the run adopted into `run_metadata.json`.
    ///
    /// # Errors
    /// When a file operation fails, or `run_metadata.json` cannot be read.
    pub(crate) fn adopted(&self, adopted: AdoptedModel) -> Result<(), FileError> {
        self.amend(|metadata| metadata.adopted = Some(adopted))
    }

    fn amend(&self, change: impl FnOnce(&mut RunMetadata)) -> Result<(), FileError> {
        let path = self.directory.join(metadata::FILE);
        let mut read: RunMetadata = codex_json::from_slice(&atomic_fs::read(&path)?)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("reading", &path))?;
        change(&mut read);
        atomic_fs::write_json(&path, &read)?;
        Ok(())
    }

    /// Returns the base that the run started from, as `run_metadata.json` has it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn base(directory: &Path) -> Result<Option<BaseModel>, FileError> {
        let path = directory.join("artifacts").join(metadata::FILE);
        let read: RunMetadata = codex_json::from_slice(&atomic_fs::read(&path)?)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("reading", &path))?;
        Ok(read.base)
    }

    /// Writes `environment.json`: the machine of this attempt, the path of its engine, why `device` fell back to the processor, if it
    /// did, and whether the run is `exact`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn environment(&self, seed: u64, engine: &str, device: Device, exact: bool) -> Result<(), FileError> {
        let environment = Environment::here(seed, engine, crate::device::choose(device).fallback, exact);
        atomic_fs::write_json(&self.directory.join(environment::FILE), &environment)?;
        Ok(())
    }

    /// Appends the failure of an attempt to `errors.ndjson`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append_failure(
        &self,
        failure: Failure,
        exit_code: i32,
        chain: Vec<String>,
        step: Option<u64>,
    ) -> Result<(), FileError> {
        let row = ErrorRow {
            schema: errors::SCHEMA.to_owned(),
            timestamp: Timestamp::now(),
            run_id: self.run.clone(),
            step,
            exit_code,
            is_final: failure.is_final,
            reason: failure.reason,
            chain,
        };
        errors::append(&self.directory, &row)
    }

    /// Opens the metrics ledger for a run that resumes at `step`, and returns a notice if it was damaged. Rows of later steps
    /// are dropped, because they will be written again; so is the evaluation of this step if it is `pending`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn metrics_ledger(
        &self,
        step: u64,
        pending: bool,
        dataset: String,
    ) -> Result<(MetricsLedger, Option<String>), FileError> {
        let kept =
            |row: &MetricsRow| row.step < step || (row.step == step && !(pending && row.split == VALIDATION_SPLIT));
        let Opened { log, notice, .. } = AppendLog::open_while(self.directory.join(ledger::FILE), kept)?;
        Ok((MetricsLedger { log, run: self.run.clone(), dataset }, notice))
    }
}

impl Row for MetricsRow {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The metrics ledger, open for appending.
#[derive(Debug)]
pub(crate) struct MetricsLedger {
    log: AppendLog,
    run: String,
    dataset: String,
}

impl MetricsLedger {
    /// Begins a new file when one has no room for the metrics of a step within `size` bytes.
    pub(crate) fn rotated_at(self, size: u64) -> Self {
        Self { log: self.log.rotated_at(size), ..self }
    }

    /// Appends the metrics of a step, measured on `split`, and returns their rows.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append(
        &mut self,
        step: u64,
        split: &str,
        metrics: &[(&str, f64)],
    ) -> Result<Vec<MetricsRow>, FileError> {
        let row = |(metric, value): &(&str, f64)| MetricsRow {
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
        let rows: Vec<MetricsRow> = metrics.iter().map(row).collect();
        self.log.append_unsynced(&rows)?;
        Ok(rows)
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
        let mut ledger = artifacts.metrics_ledger(0, false, "a+b".to_owned()).unwrap().0;
        for step in [10, 20, 30] {
            ledger.append(step, "train", &[("loss", 1.5), ("learning_rate", 0.1)]).unwrap();
        }
        let path = artifacts.directory.join(ledger::FILE);
        // The remains of a crashed machine: half a line, and blocks that were never written.
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"$schema\":\"cut\0\xff\xfe".to_vec()].concat()).unwrap();
        artifacts.metrics_ledger(30, false, "a+b".to_owned()).unwrap();
        assert_eq!(Recorded::read(&path).unwrap().rows.len(), 6);
        let mut ledger = artifacts.metrics_ledger(20, false, "a+b".to_owned()).unwrap().0;
        ledger.append(30, VALIDATION_SPLIT, &[("loss", 1.0)]).unwrap();
        // An evaluation that is repeated is not listed twice.
        let mut ledger = artifacts.metrics_ledger(30, true, "a+b".to_owned()).unwrap().0;
        assert_eq!(Recorded::read(&path).unwrap().rows.len(), 4);
        ledger.append(30, VALIDATION_SPLIT, &[("loss", 1.0)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> = text.lines().map(|line| serde_json::from_str::<MetricsRow>(line).unwrap().step).collect();
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
