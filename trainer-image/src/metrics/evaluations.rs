//! Evaluations among the inputs of `codex metrics`: their numbers with bounds, differences from the first one, and places. Reads files.
//!
//! An evaluation is named by the directory that `codex evaluate` wrote, or by its `evaluation.json`. It is checked against its own
//! digest and against the outcomes beside it, as `codex gate` does.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use codex_provenance::ModelDigest;
use codex_verdict::{Measurement, Metric, paired_name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    error::MetricsError,
    series::{Name, Run},
    table::columns,
};
use crate::{
    artifacts::ledger::{self, Ledger, Row},
    atomic_fs::{self, FileError},
    evaluation::{RECORDS, SUMMARY, Shown},
    gating::Report,
    run_folder::{EVALUATION, Part, json},
};

/// The metric that is plotted unless others are named.
pub(super) const METRIC: &str = Metric::ExactMatch.name();
/// The split of an evaluation's rows.
const SPLIT: &str = "eval";
/// The name of the first evaluation in comparisons.
const FIRST: &str = "first";

/// An evaluation.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// Its label in tables and plots.
    pub(super) label: String,
    path: PathBuf,
    report: Report,
}

/// The parts of `summary.json` that are shown.
#[derive(Debug, Deserialize)]
struct Summary {
    model: ModelDigest,
    categories: BTreeMap<String, Option<Shown>>,
    coverage: BTreeMap<String, Option<Shown>>,
}

/// The parts of a line of `records.ndjson` that are checked.
#[derive(Debug, Deserialize)]
struct RecordLine {
    correct: bool,
}

/// A number of an evaluation, with its bounds and its difference from the first evaluation.
#[derive(Debug, PartialEq, Serialize)]
struct Line<'a> {
    metric: String,
    evaluation: &'a str,
    /// The place among the evaluations, counted from 1; equal bounds have equal places. Absent unless they are ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<usize>,
    /// `None` if it was not measured, or cannot be bounded.
    #[serde(flatten)]
    shown: Option<Shown>,
    /// How much better it is than the first evaluation, problem by problem; `None` for the first one, and where problems cannot
    /// be paired.
    better_than_first: Option<Shown>,
}

/// Returns the path of the results that `named` names, if it names an evaluation and no run.
pub(super) fn results(named: &Path) -> Option<PathBuf> {
    if named.file_name().is_some_and(|name| name == EVALUATION) {
        return Some(named.to_owned());
    }
    let (inside, run) = (named.join(EVALUATION), named.join("artifacts").join(ledger::FILE));
    (inside.is_file() && !ledger::exists(&run)).then_some(inside)
}

impl Evaluated {
    /// Reads the results at `path`, and checks them.
    pub(super) fn read(path: PathBuf, label: String) -> Result<Self, MetricsError> {
        let report = Report::read("RUN", &path, None, &[], None)?;
        Ok(Self { label, path, report })
    }

    /// Returns the numbers with their bounds, by metric, and then those of categories; only these metrics, all without names.
    fn named(&self, metrics: &[String]) -> (BTreeMap<&str, Option<Shown>>, BTreeMap<String, Shown>) {
        let is_of = |name: &str, metric: &String| {
            name.strip_prefix(metric.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let wanted = |name: &str| metrics.is_empty() || metrics.iter().any(|metric| is_of(name, metric));
        let (mut numbers, categories) = (self.numbers(), self.categories());
        numbers.retain(|name, _| wanted(name));
        (numbers, categories.into_iter().filter(|(name, _)| wanted(name)).collect())
    }

    /// Returns the numbers with their bounds, by metric.
    fn numbers(&self) -> BTreeMap<&str, Option<Shown>> {
        self.report.metrics().iter().map(|(name, it)| (name.as_str(), Shown::of(name, it))).collect()
    }

    /// Returns the number called `metric` with its bounds.
    pub(super) fn number(&self, metric: &str) -> Option<Shown> {
        Shown::of(metric, self.report.metrics().get(metric)?)
    }

    /// Returns the numbers of categories from the `summary.json` beside the results, such as `exact_match.addition`.
    fn categories(&self) -> Vec<(String, Shown)> {
        let path = self.path.with_file_name(SUMMARY);
        let summary: Summary = match json(&path) {
            Part::Found(summary) => summary,
            lacking => {
                let why = lacking.lack().unwrap_or_default();
                tracing::warn!("{why}: categories are left out");
                return Vec::new();
            }
        };
        if summary.model != self.report.model() {
            tracing::warn!("{} is about another model: categories are left out", path.display());
            return Vec::new();
        }
        let of = |metric: Metric, each: BTreeMap<String, Option<Shown>>| {
            each.into_iter().filter_map(move |(category, shown)| Some((format!("{metric}.{category}"), shown?)))
        };
        of(Metric::ExactMatch, summary.categories).chain(of(Metric::TraceCoverage, summary.coverage)).collect()
    }

    /// Returns the numbers as rows of a metrics ledger, of the time at which the results were written.
    pub(super) fn ledger(&self) -> Result<Ledger, MetricsError> {
        let written =
            fs::metadata(&self.path).and_then(|it| it.modified()).map_err(FileError::of("reading", &self.path))?;
        let timestamp = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
        let numbers = self.numbers().into_iter().filter_map(|(name, shown)| Some((name.to_owned(), shown?)));
        let row = |(metric, shown): (String, Shown)| {
            let mut tags: BTreeMap<String, String> = BTreeMap::from([
                ("model".to_owned(), self.report.model().to_string()),
                ("n".to_owned(), shown.n.to_string()),
            ]);
            if shown.approximate {
                tags.insert("approximate".to_owned(), "true".to_owned());
            }
            let value = shown.value.parse().ok()?;
            tags.extend([("lower".to_owned(), shown.lower), ("upper".to_owned(), shown.upper)]);
            Some(Row {
                schema: ledger::SCHEMA.to_owned(),
                schema_version: ledger::SCHEMA_VERSION.to_owned(),
                timestamp,
                run_id: self.label.clone(),
                step: 0,
                split: SPLIT.to_owned(),
                metric,
                value,
                dataset: self.report.preset().to_owned(),
                tags,
            })
        };
        let rows = numbers.chain(self.categories()).filter_map(row).collect();
        Ok(Ledger { path: self.path.clone(), rows, ..Ledger::default() })
    }

    /// Checks the lines of the `records.ndjson` beside the results, and prints what is wrong. Returns the numbers of invalid lines
    /// and of lines.
    pub(super) fn validate(&self) -> Result<(usize, usize), MetricsError> {
        let path = self.path.with_file_name(RECORDS);
        let text = atomic_fs::read(&path)?;
        let lines: Vec<&[u8]> =
            text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
        let (mut bad, mut right) = (0, 0);
        for (index, line) in lines.iter().enumerate() {
            match codex_json::from_slice::<RecordLine>(line) {
                Ok(record) => right += u64::from(record.correct),
                Err(why) => {
                    bad += 1;
                    atomic_fs::say(&format!("{}:{}: {why}", path.display(), index + 1))?;
                }
            }
        }
        let found = Measurement::Share { successes: right, n: lines.len() as u64 };
        let stated = self.report.metrics().get(Metric::ExactMatch.name());
        if bad == 0
            && let Some(Measurement::ClusterMean { items, .. }) = stated
            && *items != lines.len() as u64
        {
            return Err(MetricsError::Clustered { path, records: lines.len(), items: *items });
        }
        if bad == 0
            && let Some(Measurement::Share { successes, n }) = stated.filter(|stated| **stated != found)
        {
            return Err(MetricsError::Records { path, right, records: lines.len(), successes: *successes, n: *n });
        }
        Ok((bad, lines.len()))
    }
}

/// Returns a table of the numbers of each evaluation, of these metrics or of all.
pub(super) fn summarize(evaluations: &[Evaluated], metrics: &[String]) -> Result<String, MetricsError> {
    check_known(evaluations, metrics)?;
    let mut text = String::new();
    for evaluation in evaluations {
        let (preset, model) = (evaluation.report.preset(), evaluation.report.model().short());
        let _ = write!(text, "{}: {preset} · model {model}\n\n", evaluation.label);
        let mut rows = vec![["METRIC", "VALUE", "N", "AT LEAST", "AT MOST"].map(str::to_owned).to_vec()];
        let (numbers, categories) = evaluation.named(metrics);
        let numbers = numbers.into_iter().map(|(name, shown)| (name.to_owned(), shown));
        let categories = categories.into_iter().map(|(name, shown)| (name, Some(shown)));
        rows.extend(numbers.chain(categories).map(|(name, shown)| [vec![name], cells(shown.as_ref(), true)].concat()));
        text.push_str(&columns(1, &rows));
        text.push('\n');
    }
    Ok(text)
}

/// Returns the numbers of each evaluation for programs, of these metrics or of all.
pub(super) fn summaries(evaluations: &[Evaluated], metrics: &[String]) -> Result<serde_json::Value, MetricsError> {
    check_known(evaluations, metrics)?;
    let summary = |it: &Evaluated| {
        let (numbers, categories) = it.named(metrics);
        serde_json::json!({
            "evaluation": it.label,
            "preset": it.report.preset(),
            "model": it.report.model(),
            "metrics": numbers,
            "categories": categories,
        })
    };
    Ok(evaluations.iter().map(summary).collect())
}

/// Compares evaluations with the first one. Returns a table and the same for programs.
pub(super) fn compare(
    evaluations: &[Evaluated],
    metrics: &[String],
) -> Result<(String, serde_json::Value), MetricsError> {
    check_known(evaluations, metrics)?;
    let Some((first, others)) = evaluations.split_first() else { return Ok(Default::default()) };
    let mut paired = vec![BTreeMap::new()];
    for other in others {
        paired.push(other.report.compare(FIRST, &first.report).unwrap_or_else(|why| {
            tracing::warn!("{} is not compared with {} problem by problem: {why}", other.label, first.label);
            BTreeMap::new()
        }));
    }
    let mut lines = Vec::new();
    for metric in Metric::ALL.iter().filter(|metric| metrics.is_empty() || metrics.iter().any(|it| it == metric.name()))
    {
        let name = paired_name(*metric, FIRST);
        for (evaluation, paired) in evaluations.iter().zip(&paired) {
            let Some(shown) = evaluation.number(metric.name()) else { continue };
            let better_than_first = paired.get(&name).and_then(|it| Shown::of(&name, it));
            let metric = metric.to_string();
            lines.push(Line {
                metric,
                evaluation: &evaluation.label,
                place: None,
                shown: Some(shown),
                better_than_first,
            });
        }
    }
    let head = ["METRIC", "EVALUATION", "VALUE", "N", "AT LEAST", "AT MOST", "BETTER BY", "AT LEAST", "AT MOST"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Line { metric, evaluation, shown, better_than_first, .. } in &lines {
        let numbers = [cells(shown.as_ref(), true), cells(better_than_first.as_ref(), false)].concat();
        rows.push([vec![metric.clone(), (*evaluation).to_owned()], numbers].concat());
    }
    Ok((columns(2, &rows), serde_json::json!(lines)))
}

/// Orders evaluations by the bound of a metric that the model reaches with confidence: the lower one, or the upper one if a lower
/// value is better. Evaluations without it are last. Returns a table and the same for programs.
pub(super) fn rank(evaluations: &mut [Evaluated], metric: &str) -> Result<(String, serde_json::Value), MetricsError> {
    let known = check_known(evaluations, &[metric.to_owned()])?;
    let lower_is_better = known.first().is_some_and(|metric| metric.is_lower_better());
    let cost = |evaluation: &Evaluated| {
        let decimal = |text: &str| text.parse().unwrap_or(f64::INFINITY);
        let shown = evaluation.number(metric);
        shown.map_or(f64::INFINITY, |it| if lower_is_better { decimal(&it.upper) } else { -decimal(&it.lower) })
    };
    evaluations.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    let (mut lines, mut place, mut last) = (Vec::new(), 0, None);
    for (index, evaluation) in evaluations.iter().enumerate() {
        let bound = cost(evaluation).to_bits();
        if last.replace(bound) != Some(bound) {
            place = index + 1;
        }
        let shown = evaluation.number(metric);
        let place = shown.as_ref().map(|_| place);
        let (metric, evaluation) = (metric.to_owned(), evaluation.label.as_str());
        lines.push(Line { metric, evaluation, place, shown, better_than_first: None });
    }
    let mut rows =
        vec![["METRIC", "EVALUATION", "PLACE", "VALUE", "N", "AT LEAST", "AT MOST"].map(str::to_owned).to_vec()];
    for Line { metric, evaluation, place, shown, .. } in &lines {
        let place = place.map_or_else(|| "-".to_owned(), |place| place.to_string());
        rows.push([vec![metric.clone(), (*evaluation).to_owned(), place], cells(shown.as_ref(), true)].concat());
    }
    Ok((columns(2, &rows), serde_json::json!(lines)))
}

/// Returns the numbers as the lines of a plot over the evaluations, in their order from 1 on: the value and both bounds.
pub(super) fn plotted(evaluations: &[Evaluated]) -> Vec<Run> {
    let line = |label: &str, part: &dyn Fn(&Shown) -> Option<f64>| {
        let mut run = Run { label: label.to_owned(), series: BTreeMap::new(), written: None };
        for (evaluation, number) in evaluations.iter().zip(1..) {
            for (metric, shown) in evaluation.numbers() {
                let Some(value) = shown.and_then(|shown| part(&shown)) else { continue };
                let name = Name { metric: metric.to_owned(), split: SPLIT.to_owned() };
                run.series.entry(name).or_default().insert(number, value);
            }
        }
        run
    };
    vec![
        line("value", &|it| it.value.as_str().parse().ok()),
        line("at least", &|it| it.lower.as_str().parse().ok()),
        line("at most", &|it| it.upper.as_str().parse().ok()),
    ]
}

/// Returns the metrics of these names; every one must have been measured.
fn check_known(evaluations: &[Evaluated], names: &[String]) -> Result<Vec<Metric>, MetricsError> {
    let known = |metric: &Metric| evaluations.iter().any(|it| it.report.metrics().contains_key(metric.name()));
    let find = |name: &String| {
        let unknown = || {
            let known: Vec<&str> = Metric::ALL.iter().filter(|it| known(it)).map(|it| it.name()).collect();
            MetricsError::UnknownMetric { name: name.clone(), known: known.join(", ") }
        };
        Metric::ALL.iter().find(|metric| metric.name() == name && known(metric)).copied().ok_or_else(unknown)
    };
    names.iter().map(find).collect()
}

/// Returns the cells of a number: value, items if `with_items`, and bounds.
fn cells(shown: Option<&Shown>, with_items: bool) -> Vec<String> {
    let Some(Shown { value, n, lower, upper, .. }) = shown else {
        return vec!["-".to_owned(); if with_items { 4 } else { 3 }];
    };
    let items = with_items.then(|| n.to_string());
    [vec![value.clone()], items.into_iter().collect(), vec![lower.clone(), upper.clone()]].concat()
}
