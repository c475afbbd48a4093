//! The outcome of each problem as a file, and the comparison of two evaluations item by item. Pure.
//!
//! `outcomes.json` holds no text of a problem or an answer: the line of each problem and the value of each metric. Its digest is
//! reported, so that an evaluation that compares can demand exactly this file.

use std::collections::BTreeMap;

use codex_configs::{BASELINE, Generation, PROBLEMS};
use codex_provenance::{DataDigest, ModelDigest};
use codex_reports::DataFile;
use codex_verdict::{Kind, Measurement, Metric, PairedDifferences, paired_name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{inputs::Problem, score::Scored};

/// The version of the file's shape.
const SCHEMA_VERSION: u32 = 1;
/// The name of the file in an output directory.
pub(super) const FILE: &str = "outcomes.json";

/// `outcomes.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "outcomes.json")]
pub struct Outcomes {
    /// The version of the file's shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    schema_version: u32,
    /// The digest of the model.
    model: ModelDigest,
    /// SHA-256 of the problems.
    problems: DataDigest,
    /// SHA-256 of the predictions of the baseline; absent without a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    baseline: Option<DataDigest>,
    /// The settings that decide an outcome: all but the size of batches.
    settings: BTreeMap<String, Value>,
    /// Every problem that was asked, in the order of the file.
    items: Vec<Item>,
}

/// The outcome of a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Item {
    /// The problem's line in its file.
    line: usize,
    /// The value of each metric, from 0 to 1. A metric that the problem does not allow is absent.
    values: BTreeMap<String, f64>,
}

/// Returns the settings that decide an outcome.
fn deciding(settings: &Generation) -> BTreeMap<String, Value> {
    let settings = serde_json::to_value(settings).unwrap_or_default();
    let all = settings.as_object().into_iter().flatten();
    all.filter(|(name, _)| *name != "batch_size").map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn digest_of(files: &[DataFile], name: &str) -> Option<DataDigest> {
    files.iter().find(|file| file.name == name).map(|file| file.sha256)
}

impl Outcomes {
    /// Returns the outcomes of an evaluation that read `files`. `None` if it read no problems.
    pub(super) fn of(model: ModelDigest, settings: &Generation, files: &[DataFile], scored: &[Scored]) -> Option<Self> {
        let item = |one: &Scored| Item { line: one.line, values: values(one) };
        Some(Self {
            schema_version: SCHEMA_VERSION,
            model,
            problems: digest_of(files, PROBLEMS)?,
            baseline: digest_of(files, BASELINE),
            settings: deciding(settings),
            items: scored.iter().map(item).collect(),
        })
    }

    /// Reads the outcomes of another evaluation.
    ///
    /// # Errors
    /// One sentence that says what is wrong with the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = codex_json::from_slice(bytes)
            .map_err(|why| format!("it is no file of outcomes ({why}): name the {FILE} of an evaluation"))?;
        if read.schema_version != SCHEMA_VERSION {
            return Err(format!(
                "its schemaVersion is {}, but {SCHEMA_VERSION} is read: evaluate that model again with this version",
                read.schema_version
            ));
        }
        for Item { line, values } in &read.items {
            if let Some((name, value)) = values.iter().find(|(_, value)| !(0.0..=1.0).contains(*value)) {
                return Err(format!("the {name} of the problem in line {line} is {value}, which is not from 0 to 1"));
            }
        }
        Ok(read)
    }

    /// Returns the number of problems.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Checks that the same problems were asked in the same way.
    ///
    /// # Errors
    /// One sentence that names the difference.
    pub(super) fn check(&self, settings: &Generation, digest: DataDigest, problems: &[Problem]) -> Result<(), String> {
        if self.problems != digest {
            return Err(format!(
                "it is about other problems (SHA-256 {}, here {digest}): compare evaluations of the same problems",
                self.problems
            ));
        }
        let own = deciding(settings);
        let keys = own.keys().chain(self.settings.keys());
        if let Some(key) = keys.into_iter().find(|key| own.get(*key) != self.settings.get(*key)) {
            let shown = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
            return Err(format!(
                "evaluation.{key} was {}, here it is {}: compare evaluations with the same settings",
                shown(self.settings.get(key)),
                shown(own.get(key))
            ));
        }
        let (theirs, ours) = (self.items.iter().map(|item| item.line), problems.iter().map(|problem| problem.line));
        if !theirs.eq(ours) {
            return Err(format!(
                "it has outcomes of {} problems, but {} other ones are asked",
                self.items.len(),
                problems.len()
            ));
        }
        Ok(())
    }

    /// Compares every metric that both evaluations measured with this reference, called `name`.
    pub(super) fn compare(&self, name: &str, own: &Self) -> BTreeMap<String, Measurement> {
        let compared = |metric: &&Metric| !metric.needs_baseline() || self.baseline == own.baseline;
        let pairs = |metric: &Metric| {
            let mut pairs = PairedDifferences::default();
            for (own, other) in own.items.iter().zip(&self.items) {
                if let (Some(own), Some(other)) = (own.values.get(metric.name()), other.values.get(metric.name())) {
                    pairs.add(*own, *other);
                }
            }
            Some((paired_name(*metric, name), pairs.measurement(metric.kind())?))
        };
        Metric::ALL.iter().filter(compared).filter_map(pairs).collect()
    }
}

/// Returns the value of each metric that a problem allows.
fn values(one: &Scored) -> BTreeMap<String, f64> {
    let value = |metric: &Metric| Some((metric.to_string(), one.value(*metric)?));
    Metric::ALL.iter().filter(|metric| metric.kind() != Kind::Estimate).filter_map(value).collect()
}
