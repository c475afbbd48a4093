//! The results of an evaluation, as its files hold them. Writes files.
//!
//! `records.ndjson` has a line a problem, `outcomes.json` the value of each metric for each problem, with which other evaluations
//! are compared, `summary.json` the numbers with their bounds, `evaluation.json`, written last,
//! the preset and the results: everything that a verdict is made of. Nothing in them holds a time, and only golden tokens name the
//! instruction set that computed them.

use std::{collections::BTreeMap, io, path::Path};

use codex_configs::{Evaluation, Resolved};
use codex_provenance::{
    ConfigDigest, DataDigest, ModelDigest, OmsRoot, ReportDigest, Sha256, golden::Golden, manifest::Manifest,
};
use codex_reports::DataFile;
use codex_verdict::{Measurement, Metric, Resampling, Rounding, Sample, bounds, report_digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    outcomes::{self, Outcomes},
    probes::Probes,
    score::{Scored, baseline_exact_match, exact_match, metrics, trace_coverage},
};
use crate::{
    atomic_fs::{self, FileError},
    run_folder::EVALUATION,
};

/// The version of the files' shapes.
const SCHEMA_VERSION: u32 = 2;
/// The one-sided confidence of the bounds that are shown beside a number.
pub(super) const CONFIDENCE: f64 = 0.95;

/// `evaluation.json`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "evaluation.json")]
pub struct Results {
    /// The version of the file's shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    schema_version: u32,
    /// What was evaluated and how: the preset with its settings.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// The digest of that.
    pub config_digest: ConfigDigest,
    /// The model, as it was hashed.
    pub model: JudgedModel,
    /// The data, as it was read.
    pub data_files: Vec<DataFile>,
    /// The numbers.
    pub metrics: BTreeMap<String, Measurement>,
    /// The baseline's share of right answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Measurement>,
    /// What the model generated for the first problems whose prompts are short; absent if a number of it was not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Golden>,
    /// The digest of the model, the data, the numbers and the golden tokens.
    pub report_digest: ReportDigest,
    /// Every problem.
    #[serde(skip)]
    pub scored: Vec<Scored>,
    /// The outcome of every problem; none without problems.
    #[serde(skip)]
    pub outcomes: Option<Outcomes>,
}

/// The model, as it was hashed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedModel {
    /// The digest of its manifest.
    pub digest: ModelDigest,
    /// The OMS root over the same files.
    pub oms_root: OmsRoot,
    /// Bytes.
    pub size_bytes: u64,
}

/// A number with its one-sided bounds, as decimals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// The share or the mean.
    pub value: String,
    /// Items, or clusters of items.
    pub n: u64,
    /// Items in the clusters; absent if each item counts on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<u64>,
    /// With the confidence, the truth is at least this.
    pub lower: String,
    /// With the confidence, the truth is at most this.
    pub upper: String,
    /// True if the bounds are approximate, because they are bootstrapped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approximate: bool,
}

impl Shown {
    /// Returns the measurement called `name` with its bounds; `None` if it is impossible.
    pub fn of(name: &str, measurement: &Measurement) -> Option<Self> {
        let sample = Sample::named(name, measurement).ok()?;
        let bounds = match sample {
            Sample::Estimate { bounds, .. } => bounds,
            _ => bounds(&sample, CONFIDENCE)?,
        };
        Some(Self {
            approximate: sample.is_approximate(),
            value: Rounding::Down.show(sample.value()),
            n: sample.n(),
            items: measurement.clustered_items(),
            lower: Rounding::Down.show(bounds.lower),
            upper: Rounding::Up.show(bounds.upper),
        })
    }
}

/// `summary.json`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "summary.json")]
pub struct Summary<'a> {
    /// The version of the file's shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    schema_version: u32,
    /// The preset's name.
    preset: &'a str,
    /// The digest of the model.
    model: ModelDigest,
    /// Number of problems.
    problems: usize,
    /// One-sided, of each bound on its own; those of `bleu`, `perplexity` and `lowest_trace_coverage` have that of
    /// `evaluation.confidence` instead.
    confidence: f64,
    /// The numbers with their bounds; null where one cannot be.
    metrics: BTreeMap<&'a str, Option<Shown>>,
    /// The baseline's share of right answers; null without a baseline.
    baseline_exact_match: Option<Shown>,
    /// `exact_match` by category.
    categories: BTreeMap<&'a str, Option<Shown>>,
    /// `trace_coverage` by category, which is the template of a problem; without those whose references have no steps.
    coverage: BTreeMap<&'a str, Option<Shown>>,
    /// What is looked at in the responses of certain categories; absent without problems of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    probes: Option<Probes>,
}

impl Results {
    /// Counts what was scored.
    pub fn new(
        resolved: &Resolved<Evaluation>,
        manifest: &Manifest,
        data_files: Vec<DataFile>,
        scored: Vec<Scored>,
        references: &[(String, Outcomes)],
        golden_tokens: Option<Golden>,
    ) -> Self {
        let model =
            JudgedModel { digest: manifest.digest(), oms_root: manifest.oms_root(), size_bytes: manifest.size_bytes() };
        let evaluation = resolved.spec();
        let confidence = evaluation.settings.evaluation.confidence;
        let mut metrics = metrics(&scored, Resampling { seed: evaluation.seed, confidence });
        let outcomes = Outcomes::of(model.digest, evaluation, &data_files, &scored);
        for (name, reference) in references {
            metrics.extend(outcomes.iter().flat_map(|own| reference.compare(name, own, None)));
        }
        let digests = data_files.iter().map(|file| (file.name.clone(), file.sha256)).collect();
        Self {
            schema_version: SCHEMA_VERSION,
            evaluation: resolved.spec().clone(),
            config_digest: resolved.digest(),
            report_digest: report_digest(model.digest, &digests, &metrics, golden_tokens.as_ref()),
            model,
            data_files,
            baseline: baseline_exact_match(&scored),
            metrics,
            golden_tokens,
            scored,
            outcomes,
        }
    }

    fn summary(&self) -> Summary<'_> {
        let mut categories: BTreeMap<&str, Vec<&Scored>> = BTreeMap::new();
        for one in &self.scored {
            categories.entry(&one.category).or_default().push(one);
        }
        Summary {
            schema_version: SCHEMA_VERSION,
            preset: &self.evaluation.preset,
            model: self.model.digest,
            problems: self.scored.len(),
            confidence: CONFIDENCE,
            metrics: self.metrics.iter().map(|(name, number)| (name.as_str(), Shown::of(name, number))).collect(),
            baseline_exact_match: self.baseline.as_ref().and_then(exact_match_shown),
            probes: Probes::of(&self.scored),
            coverage: categories
                .iter()
                .filter_map(|(name, scored)| Some((*name, coverage_shown(&trace_coverage(scored.iter().copied())?))))
                .collect(),
            categories: categories
                .into_iter()
                .map(|(name, scored)| (name, exact_match_shown(&exact_match(scored.iter().copied()))))
                .collect(),
        }
    }
}

fn exact_match_shown(measurement: &Measurement) -> Option<Shown> {
    Shown::of(Metric::ExactMatch.name(), measurement)
}

fn coverage_shown(measurement: &Measurement) -> Option<Shown> {
    Shown::of(Metric::TraceCoverage.name(), measurement)
}

/// The name of the file with a line for each problem.
pub(crate) const RECORDS: &str = "records.ndjson";
/// The name of the file of numbers with their bounds.
pub(crate) const SUMMARY: &str = "summary.json";
/// The names of the files in the output directory.
pub(super) const FILES: [&str; 4] = [RECORDS, outcomes::FILE, SUMMARY, EVALUATION];

/// Writes the files into `output`, each whole or not at all. Returns the digest of the file of outcomes.
///
/// # Errors
/// When the file system refuses.
pub(super) fn write(output: &Path, results: &Results) -> Result<DataDigest, FileError> {
    let [records, outcomes, summary, evaluation] = FILES.map(|name| output.join(name));
    let mut lines = Vec::new();
    for one in &results.scored {
        serde_json::to_writer(&mut lines, one)
            .map_err(io::Error::other)
            .map_err(FileError::of("encoding", &records))?;
        lines.push(b'\n');
    }
    atomic_fs::make_directory(output)?;
    atomic_fs::write(&records, &lines)?;
    let each = serde_json::to_vec(&results.outcomes)
        .map_err(io::Error::other)
        .map_err(FileError::of("encoding", &outcomes))?;
    atomic_fs::write(&outcomes, &each)?;
    atomic_fs::write_json(&summary, &results.summary())?;
    atomic_fs::write_json(&evaluation, results)?;
    Ok(DataDigest(Sha256::of(each)))
}
