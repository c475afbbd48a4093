//! The outcome of each problem as a file, and the comparison of two evaluations item by item. Pure.
//!
//! `outcomes.json` holds no text of a problem or an answer: the line and the cluster of each problem, its category if that is measured,
//! the value of each metric, and what the problem adds to metrics of the whole corpus. Its digest is reported, so that an evaluation that compares can demand exactly this file, and
//! every measurement can be computed again from it.

use std::collections::BTreeMap;

use codex_configs::{BASELINE, Evaluation, Generation, PLUGIN_METRIC, PROBLEMS};
use codex_provenance::{DataDigest, ModelDigest, text::counted};
use codex_reports::DataFile;
use codex_verdict::{MAX_BOOTSTRAP_CONFIDENCE, Measurement, Metric, Resampling};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    inputs::Problem,
    items::{self, Item},
    score::Scored,
};

/// The version of the file's shape.
const SCHEMA_VERSION: u32 = 2;
/// The version without items of corpus metrics.
const FORMER_VERSION: u32 = 1;
/// How bounds are bootstrapped if a file of an earlier version does not say it.
const EARLIER: Bootstrap = Bootstrap { seed: 0, confidence: 0.95 };
/// The name of the file in an output directory.
pub(crate) const FILE: &str = "outcomes.json";

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
    /// SHA-256 of the plugin; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plugin: Option<DataDigest>,
    /// The settings that decide an outcome: all but the size of batches.
    settings: BTreeMap<String, Value>,
    /// How bounds were bootstrapped; absent from files of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap: Option<Bootstrap>,
    /// Every problem that was asked, in the order of the file.
    items: Vec<Item>,
}

/// How bounds are bootstrapped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Bootstrap {
    /// Seed of the draws.
    seed: u64,
    /// One-sided confidence of each bound on its own.
    confidence: f64,
}

/// Returns the settings that decide an outcome.
fn deciding(settings: &Generation) -> BTreeMap<String, Value> {
    let settings = serde_json::to_value(settings.deciding()).unwrap_or_default();
    let all = settings.as_object().into_iter().flatten();
    let left_out = ["batch_size", "metrics", "confidence"];
    // Files of earlier versions do not know these settings, and have what their defaults give.
    let defaults = [
        ("samples", json!(1)),
        ("k", json!(null)),
        ("temperature", json!(0.0)),
        ("top_p", json!(1.0)),
        ("top_k", json!(null)),
        ("stop", json!([])),
    ];
    let is_default =
        |name: &str, value: &Value| defaults.iter().any(|(known, default)| *known == name && default == value);
    all.filter(|(name, value)| !left_out.contains(&name.as_str()) && !is_default(name, value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn digest_of(files: &[DataFile], name: &str) -> Option<DataDigest> {
    files.iter().find(|file| file.name == name).map(|file| file.sha256)
}

impl Outcomes {
    /// Returns the outcomes of an evaluation that read `files`. `None` if it read no problems.
    pub(super) fn of(
        model: ModelDigest,
        evaluation: &Evaluation,
        files: &[DataFile],
        scored: &[Scored],
    ) -> Option<Self> {
        let settings = &evaluation.settings.evaluation;
        let item = |one: &Scored| Item {
            line: one.line,
            cluster: one.cluster.clone(),
            category: one.by_category.then(|| one.category.clone()),
            tokens: one.reference_tokens.map(|it| it.tokens),
            values: values(one),
            bleu: one.bleu,
            perplexity: one.likelihood,
        };
        Some(Self {
            schema_version: SCHEMA_VERSION,
            model,
            problems: digest_of(files, PROBLEMS)?,
            baseline: digest_of(files, BASELINE),
            plugin: digest_of(files, PLUGIN_METRIC),
            settings: deciding(settings),
            bootstrap: Some(Bootstrap { seed: evaluation.seed, confidence: settings.confidence }),
            items: scored.iter().map(item).collect(),
        })
    }

    /// Reads the outcomes of another evaluation.
    ///
    /// # Errors
    /// One sentence that says what is wrong with the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = codex_json::from_slice(bytes)
            .map_err(|why| format!("it is no file of outcomes ({why}): name the {FILE} of an evaluation"))?;
        if ![FORMER_VERSION, SCHEMA_VERSION].contains(&read.schema_version) {
            return Err(format!(
                "its schemaVersion is {}, but {FORMER_VERSION} and {SCHEMA_VERSION} are read: evaluate that model again with this version",
                read.schema_version
            ));
        }
        if let Some(why) = read.items.iter().find_map(Item::impossible) {
            return Err(why);
        }
        if let Some(item) = read.items.iter().find(|it| it.cluster.is_some() != read.items[0].cluster.is_some()) {
            return Err(format!(
                "only some of its problems have a cluster, of those in lines {} and {} one: every problem has one, or none has",
                read.items[0].line, item.line
            ));
        }
        if let Some(item) = read.items.iter().find(|it| it.category.is_some() != read.items[0].category.is_some()) {
            return Err(format!(
                "only some of its problems have a category, of those in lines {} and {} one: every problem has one, or none has",
                read.items[0].line, item.line
            ));
        }
        let in_range = |confidence: f64| confidence > 0.5 && confidence <= MAX_BOOTSTRAP_CONFIDENCE;
        if let Some(Bootstrap { confidence, .. }) = read.bootstrap.filter(|it| !in_range(it.confidence)) {
            return Err(format!(
                "its bootstrap.confidence is {confidence}, which is not above 0.5 and at most {MAX_BOOTSTRAP_CONFIDENCE}"
            ));
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
            return Err(self.other_problems(digest));
        }
        self.check_settings(&deciding(settings))?;
        let (theirs, ours) = (self.items.iter().map(|item| item.line), problems.iter().map(|problem| problem.line));
        if !theirs.eq(ours) {
            return Err(self.other_items(problems.len()));
        }
        let differs = |(item, problem): &(&Item, &Problem)| item.cluster != problem.record.cluster;
        if let Some((item, _)) = self.items.iter().zip(problems).find(differs) {
            return Err(other_cluster(item.line));
        }
        Ok(())
    }

    /// Returns the digest of the model.
    pub(crate) fn model(&self) -> ModelDigest {
        self.model
    }

    /// Returns how bounds were bootstrapped.
    fn resampling(&self, confidence: Option<f64>) -> Resampling {
        let Bootstrap { seed, confidence: own } = self.bootstrap.unwrap_or(EARLIER);
        Resampling { seed, confidence: confidence.unwrap_or(own) }
    }

    /// Measures every metric again, with corpus metrics bounded at `confidence`, or at that of the evaluation.
    pub(crate) fn measure(&self, confidence: Option<f64>) -> BTreeMap<String, Measurement> {
        items::measure(&self.items, self.resampling(confidence))
    }

    /// Compares every metric that both evaluations measured with this reference, called `name`. Corpus metrics are bounded as `own`
    /// says, or at `confidence`.
    pub(crate) fn compare(&self, name: &str, own: &Self, confidence: Option<f64>) -> BTreeMap<String, Measurement> {
        let compared = |metric: &Metric| {
            (!metric.needs_baseline() || self.baseline == own.baseline)
                && (*metric != Metric::Plugin || self.plugin == own.plugin)
        };
        items::compare(name, &own.items, &self.items, compared, own.resampling(confidence))
    }

    /// Checks that another evaluation asked the same problems in the same way.
    ///
    /// # Errors
    /// One sentence that names the difference.
    pub(crate) fn check_reference(&self, own: &Self) -> Result<(), String> {
        if self.problems != own.problems {
            return Err(self.other_problems(own.problems));
        }
        self.check_settings(&own.settings)?;
        if !self.items.iter().map(|item| item.line).eq(own.items.iter().map(|item| item.line)) {
            return Err(self.other_items(own.items.len()));
        }
        let differs = |(one, other): &(&Item, &Item)| one.cluster != other.cluster;
        if let Some((item, _)) = self.items.iter().zip(&own.items).find(differs) {
            return Err(other_cluster(item.line));
        }
        Ok(())
    }

    fn other_problems(&self, digest: DataDigest) -> String {
        format!(
            "it is about other problems (SHA-256 {}, here {digest}): compare evaluations of the same problems",
            self.problems
        )
    }

    fn other_items(&self, asked: usize) -> String {
        format!("it has outcomes of {}, but {asked} other ones are asked", counted(self.items.len(), "problem"))
    }

    fn check_settings(&self, own: &BTreeMap<String, Value>) -> Result<(), String> {
        let keys = own.keys().chain(self.settings.keys());
        let Some(key) = keys.into_iter().find(|key| own.get(*key) != self.settings.get(*key)) else { return Ok(()) };
        let shown = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
        Err(format!(
            "evaluation.{key} was {}, here it is {}: compare evaluations with the same settings",
            shown(self.settings.get(key)),
            shown(own.get(key))
        ))
    }
}

fn other_cluster(line: usize) -> String {
    format!("it has another cluster for the problem in line {line}: evaluate that model again with this version")
}

/// Returns the value of each metric that a problem allows.
fn values(one: &Scored) -> BTreeMap<String, f64> {
    let value = |metric: &Metric| Some((metric.to_string(), one.value(*metric)?));
    Metric::ALL.iter().filter(|metric| !metric.is_of_corpus()).filter_map(value).collect()
}
