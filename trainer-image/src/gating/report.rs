//! The results of `codex evaluate`. Reads files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_provenance::{DataDigest, ModelDigest, ReportDigest, golden::Golden};
use codex_verdict::{Gate, GateResult, Measurement, accept, report_digest};
use serde::Deserialize;

use super::{GatingError, input, input::Recorded, judge_gates};
use crate::{
    evaluation::{Outcomes, items::confirm, outcomes},
    run_folder::EVALUATION,
};

/// The parts of `evaluation.json` that gates need.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    preset: String,
    model: Model,
    data_files: Vec<DataFile>,
    metrics: BTreeMap<String, Measurement>,
    golden_tokens: Option<Golden>,
    report_digest: ReportDigest,
}

#[derive(Debug, Deserialize)]
struct Model {
    digest: ModelDigest,
}

#[derive(Debug, Deserialize)]
struct DataFile {
    name: String,
    sha256: DataDigest,
}

/// A report, with its outcomes if they are there.
#[derive(Debug)]
pub struct Report {
    read: Read,
    outcomes: Option<Outcomes>,
    references: Vec<(String, Outcomes)>,
}

impl Report {
    /// Reads a report, which `argument` names, and checks it against its digest and its outcomes: those of the given file, or
    /// those beside it.
    ///
    /// # Errors
    /// A file cannot be read, is malformed, or contradicts another.
    pub fn read(
        argument: &'static str,
        path: &Path,
        outcomes: Option<&Path>,
        references: &[(String, PathBuf)],
        expected: Option<ModelDigest>,
    ) -> Result<Self, GatingError> {
        let invalid = |why: String| GatingError::Invalid { argument, path: path.to_owned(), why };
        let read: Read = codex_json::from_slice(&input::read(argument, path)?)
            .map_err(|why| invalid(format!("it is no evaluation.json ({why}): name that of codex evaluate")))?;
        let found = read.model.digest;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(GatingError::Model { found, expected });
        }
        accept(&read.metrics).map_err(|why| invalid(why.to_string()))?;
        let data = read.data_files.iter().map(|file| (file.name.clone(), file.sha256)).collect();
        let digest = report_digest(found, &data, &read.metrics, read.golden_tokens.as_ref());
        if digest != read.report_digest {
            let stated = read.report_digest;
            return Err(invalid(format!(
                "its reportDigest is {stated}, but its measurements have {digest}: it was changed"
            )));
        }
        let beside = path.with_file_name(outcomes::FILE);
        let file = outcomes.or_else(|| beside.exists().then_some(beside.as_path()));
        let outcomes = file.map(|path| parsed("--outcomes", path)).transpose()?;
        if outcomes.is_none() && !references.is_empty() {
            let why = "it has no outcomes.json beside it, which --reference needs: give it by --outcomes".to_owned();
            return Err(invalid(why));
        }
        let mut report = Self { read, outcomes, references: Vec::new() };
        if let (Some(own), Some(file)) = (&report.outcomes, file) {
            let wrong = |why| GatingError::Invalid { argument: "--outcomes", path: file.to_owned(), why };
            if own.model() != found {
                return Err(wrong(format!("it is about the model {}, but the report is about {found}", own.model())));
            }
            confirm(&report.read.metrics, &own.measure(None)).map_err(|why| invalid(format!("it {why}")))?;
            for (name, path) in references {
                let other = parsed("--reference", path)?;
                let wrong = |why| GatingError::Invalid { argument: "--reference", path: path.clone(), why };
                other.check_reference(own).map_err(wrong)?;
                report.references.push((name.clone(), other));
            }
        }
        Ok(report)
    }

    /// Returns the preset's name.
    pub fn preset(&self) -> &str {
        &self.read.preset
    }

    /// Returns the digest of the model that was evaluated.
    pub fn model(&self) -> ModelDigest {
        self.read.model.digest
    }

    /// Returns the digest of the model, the data and the measurements.
    pub fn digest(&self) -> ReportDigest {
        self.read.report_digest
    }

    /// Returns the measurements by metric.
    pub fn metrics(&self) -> &BTreeMap<String, Measurement> {
        &self.read.metrics
    }

    /// Returns the name and SHA-256 of each data file.
    pub fn data(&self) -> impl Iterator<Item = (&str, DataDigest)> {
        self.read.data_files.iter().map(|file| (file.name.as_str(), file.sha256))
    }

    /// Compares every metric that both reports measured with `other`, called `name`, problem by problem.
    ///
    /// # Errors
    /// One sentence: a report has no outcomes beside it, or they are about other problems or settings.
    pub fn compare(&self, name: &str, other: &Self) -> Result<BTreeMap<String, Measurement>, String> {
        let (Some(own), Some(reference)) = (&self.outcomes, &other.outcomes) else {
            return Err(format!("{} is missing beside an {EVALUATION}", outcomes::FILE));
        };
        reference.check_reference(own)?;
        Ok(reference.compare(name, own, None))
    }

    /// Judges the report by gates, in the order of the gates.
    ///
    /// # Errors
    /// A gate compares with results that were not given.
    pub fn judge(&self, gates: Vec<Gate>) -> Result<Vec<(Gate, GateResult)>, GatingError> {
        judge_gates(self, gates)
    }
}

fn parsed(argument: &'static str, path: &Path) -> Result<Outcomes, GatingError> {
    let bytes = input::read(argument, path)?;
    Outcomes::parse(&bytes).map_err(|why| GatingError::Invalid { argument, path: path.to_owned(), why })
}

impl Recorded for Report {
    fn measure(&self, confidence: Option<f64>) -> BTreeMap<String, Measurement> {
        let mut all = self.read.metrics.clone();
        if let Some(own) = &self.outcomes {
            if confidence.is_some() {
                all.extend(own.measure(confidence));
            }
            for (name, other) in &self.references {
                all.extend(other.compare(name, own, confidence));
            }
        }
        all
    }

    fn subject(&self) -> String {
        format!("{} · model {}", self.read.preset, self.read.model.digest.short())
    }
}
