//! `codex metrics compare`: compares the metrics of several runs, or the numbers of several evaluations. Prints the result, and writes
//! a plot on request.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    str::FromStr as _,
};

use clap::Args;
use codex_verdict::Metric;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    error::MetricsError,
    evaluations::{self, Evaluated},
    input::{Format, Input, chosen, print_json},
    plot,
    series::{Name, Run, Statistics, shown},
    table::columns,
};
use crate::{artifacts::ledger, atomic_fs, run_folder::RunFolder, tracking};

/// Compare two or more runs, or evaluations.
#[derive(Debug, Args)]
pub(super) struct Compare {
    #[command(flatten)]
    input: Input,
    /// Compare only this metric. May be repeated.
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// Order the runs by the last value of this metric, lowest first, instead of comparing them with the first one; evaluations by
    /// the bound that counts against the model, best first. What lacks the metric is last.
    #[arg(long, value_name = "NAME", conflicts_with = "metric")]
    rank: Option<String>,
    /// The runs are those of a sweep: label each by the settings in which they differ. A metric of evaluations, such as
    /// `exact_match`, is then ranked over the evaluations in the directories of the runs.
    #[arg(long)]
    sweep: bool,
    /// With --rank of runs: highest first.
    #[arg(long, requires = "rank")]
    highest: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Also plot the metrics into one picture (.svg or .png): the ranked one, else those of --metric [default: loss, or
    /// `exact_match` of evaluations].
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// One metric of one run, compared with the same metric of the first run that has it.
#[derive(Debug, PartialEq, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    name: Name,
    run: &'a str,
    #[serde(flatten)]
    statistics: Statistics,
    /// The difference from the first run that has the metric; `None` for that run.
    against_first: Option<Difference>,
}

/// The difference between two series of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Difference {
    /// The last value minus the other's.
    last: f64,
    /// The median minus the other's.
    median: f64,
    /// Number of steps that both have.
    common_steps: usize,
    /// The first common step whose values differ in a bit; `None` when all are equal.
    differs_from_step: Option<u64>,
}

impl Compare {
    pub(super) fn run(self) -> Result<(), MetricsError> {
        let (table, lines) = self.result()?;
        match self.format {
            Format::Json => print_json(&lines),
            Format::Text => Ok(atomic_fs::say(table.trim_end())?),
        }
    }

    /// Compares, and writes the plot. Returns a table and the same for programs.
    pub(super) fn result(&self) -> Result<(String, Value), MetricsError> {
        if let Some(evaluations) = self.evaluations()? {
            return self.compare_evaluations(evaluations);
        }
        let mut runs = self.input.read()?;
        if runs.len() < 2 {
            return Err(MetricsError::OneRun);
        }
        if self.sweep {
            for (run, label) in runs.iter_mut().zip(self.points()) {
                if let Some(label) = label {
                    run.label = label;
                }
            }
        }
        if let Some(metric) = &self.rank {
            let metrics = chosen(&runs, std::slice::from_ref(metric), "")?;
            if let Some(path) = &self.plot {
                plot::write(&runs, &metrics, plot::Look::default(), path)?;
            }
            let places = rank(&runs, metric, self.highest);
            return Ok((places_table(metric, &places), json!(places)));
        }
        let named = if self.metric.is_empty() { None } else { Some(chosen(&runs, &self.metric, "")?) };
        let lines = compare(&runs, named.as_deref());
        if let Some(path) = &self.plot {
            plot::write(&runs, &chosen(&runs, &self.metric, "loss")?, plot::Look::default(), path)?;
        }
        Ok((table(&lines), json!(lines)))
    }
}

impl Compare {
    /// Reads the evaluations that are named, or those of the runs of a sweep that measured the ranked metric; `None` if runs are
    /// compared.
    fn evaluations(&self) -> Result<Option<Vec<Evaluated>>, MetricsError> {
        if let Some(evaluations) = self.input.evaluations()? {
            return Ok(Some(evaluations));
        }
        let Some(metric) = self.rank.as_deref().filter(|metric| self.sweep && Metric::from_str(metric).is_ok()) else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for (run, point) in self.input.runs.iter().zip(self.points()) {
            let Ok(folder) = RunFolder::locate("RUN", run) else { continue };
            let label = point.unwrap_or_else(|| folder.name());
            for path in folder.evaluations() {
                let named = path.parent().filter(|parent| **parent != folder.root).and_then(std::path::Path::file_name);
                let evaluation = named.map(|name| format!("{label} {}", name.to_string_lossy()));
                let read = Evaluated::read(path, evaluation.unwrap_or_else(|| label.clone()))?;
                found.extend(read.number(metric).is_some().then_some(read));
            }
        }
        Ok(Some(found).filter(|found: &Vec<Evaluated>| !found.is_empty()))
    }

    fn compare_evaluations(&self, mut evaluations: Vec<Evaluated>) -> Result<(String, Value), MetricsError> {
        if self.highest {
            return Err(MetricsError::RunsOnly("--highest"));
        }
        if evaluations.len() < 2 {
            return Err(MetricsError::OneRun);
        }
        let compared = match &self.rank {
            Some(metric) => evaluations::rank(&mut evaluations, metric)?,
            None => evaluations::compare(&evaluations, &self.metric)?,
        };
        if let Some(path) = &self.plot {
            let drawn = evaluations::plotted(&evaluations);
            let wanted = self.rank.as_ref().map_or(self.metric.as_slice(), std::slice::from_ref);
            let metrics = chosen(&drawn, wanted, evaluations::METRIC)?;
            plot::write(&drawn, &metrics, plot::Look::default().of_evaluations(), path)?;
        }
        Ok(compared)
    }

    /// Returns a label for each run: the settings in which the runs differ; `None` for a run whose settings are unknown.
    fn points(&self) -> Vec<Option<String>> {
        let settings = |run: &PathBuf| {
            let ledger = ledger::locate(run);
            tracking::settings(ledger.parent()?).map(BTreeMap::from_iter)
        };
        let all: Vec<Option<BTreeMap<String, String>>> = self.input.runs.iter().map(settings).collect();
        let keys: BTreeSet<&String> = all.iter().flatten().flat_map(BTreeMap::keys).collect();
        let varies = |key: &&String| {
            let mut values = all.iter().flatten().map(|settings| settings.get(*key));
            let first = values.next();
            values.any(|value| Some(value) != first)
        };
        let varied: Vec<&String> = keys.into_iter().filter(varies).collect();
        let label = |settings: &BTreeMap<String, String>| {
            let each = varied.iter().filter_map(|key| Some(format!("{key}={}", settings.get(*key)?)));
            Some(each.collect::<Vec<_>>().join(" ")).filter(|label| !label.is_empty())
        };
        all.iter().map(|settings| settings.as_ref().and_then(&label)).collect()
    }
}

/// The place of a run among others, on one split.
#[derive(Debug, PartialEq, Serialize)]
struct Placed<'a> {
    split: &'a str,
    run: &'a str,
    /// Counted from 1; equal values have equal places. `None` without the metric.
    place: Option<usize>,
    #[serde(flatten)]
    statistics: Option<Statistics>,
}

/// Orders the runs by the last value of a metric, on each split that has it.
fn rank<'a>(runs: &'a [Run], metric: &str, highest: bool) -> Vec<Placed<'a>> {
    let names: BTreeSet<&Name> =
        runs.iter().flat_map(|run| run.series.keys()).filter(|name| name.metric == metric).collect();
    let mut places = Vec::new();
    for name in names {
        let of = |run: &Run| run.series.get(name).and_then(Statistics::of);
        let mut found: Vec<(&Run, Option<Statistics>)> = runs.iter().map(|run| (run, of(run))).collect();
        // A value that is no number is the worst.
        let cost = |statistics: &Option<Statistics>| {
            let value = statistics.map_or(f64::INFINITY, |it| if highest { -it.last.value } else { it.last.value });
            (statistics.is_none(), if value.is_nan() { f64::INFINITY } else { value })
        };
        found.sort_by(|(_, a), (_, b)| {
            let ((a_lacks, a), (b_lacks, b)) = (cost(a), cost(b));
            a_lacks.cmp(&b_lacks).then(a.total_cmp(&b))
        });
        let (mut place, mut last) = (0, None);
        for (index, (run, statistics)) in found.into_iter().enumerate() {
            let value = statistics.map(|it| it.last.value.to_bits());
            if value != last {
                (place, last) = (index + 1, value);
            }
            places.push(Placed { split: &name.split, run: &run.label, place: value.map(|_| place), statistics });
        }
    }
    places
}

fn places_table(metric: &str, places: &[Placed<'_>]) -> String {
    let head = ["METRIC", "SPLIT", "RUN", "PLACE", "LAST", "STEP", "LEAST", "GREATEST"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Placed { split, run, place, statistics } in places {
        let number = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            metric.to_owned(),
            (*split).to_owned(),
            (*run).to_owned(),
            number(place.map(|place| place.to_string())),
            number(statistics.map(|it| shown(it.last.value))),
            number(statistics.map(|it| it.last.step.to_string())),
            number(statistics.map(|it| shown(it.least.value))),
            number(statistics.map(|it| shown(it.greatest.value))),
        ]);
    }
    columns(3, &rows)
}

fn compare<'a>(runs: &'a [Run], metrics: Option<&[String]>) -> Vec<Line<'a>> {
    let names: BTreeSet<&Name> = runs.iter().flat_map(|run| run.series.keys()).collect();
    let wanted = |name: &&&Name| metrics.is_none_or(|metrics| metrics.contains(&name.metric));
    let mut lines = Vec::new();
    for name in names.iter().filter(wanted) {
        let mut first = None;
        for run in runs {
            let Some((series, statistics)) =
                run.series.get(*name).and_then(|series| Some((series, Statistics::of(series)?)))
            else {
                continue;
            };
            let against_first = first.map(|(other, its): (_, Statistics)| {
                let (count, differs) = common(other, series);
                Difference {
                    last: statistics.last.value - its.last.value,
                    median: statistics.median - its.median,
                    common_steps: count,
                    differs_from_step: differs,
                }
            });
            first = first.or(Some((series, statistics)));
            lines.push(Line { name: (*name).clone(), run: &run.label, statistics, against_first });
        }
    }
    lines
}

/// Returns the number of common steps, and the first of them whose values differ in a bit.
fn common(a: &std::collections::BTreeMap<u64, f64>, b: &std::collections::BTreeMap<u64, f64>) -> (usize, Option<u64>) {
    let shared = || a.iter().filter_map(|(step, left)| Some((*step, *left, *b.get(step)?)));
    let differs = shared().find(|(_, left, right)| left.to_bits() != right.to_bits());
    (shared().count(), differs.map(|(step, ..)| step))
}

fn table(lines: &[Line<'_>]) -> String {
    let head =
        ["METRIC", "SPLIT", "RUN", "ROWS", "LAST", "DIFFERENCE", "MEDIAN", "DIFFERENCE", "LEAST", "DIFFERS FROM STEP"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let signed = |value: f64| if value > 0.0 { format!("+{}", shown(value)) } else { shown(value) };
    for Line { name, run, statistics, against_first } in lines {
        let (last, median, differs) = match against_first {
            None => (String::new(), String::new(), String::new()),
            Some(difference) => (
                signed(difference.last),
                signed(difference.median),
                match (difference.common_steps, difference.differs_from_step) {
                    (0, _) => "no common step".to_owned(),
                    (_, Some(step)) => step.to_string(),
                    (count, None) => format!("none of {count}"),
                },
            ),
        };
        rows.push(vec![
            name.metric.clone(),
            name.split.clone(),
            (*run).to_owned(),
            statistics.rows.to_string(),
            shown(statistics.last.value),
            last,
            shown(statistics.median),
            median,
            shown(statistics.least.value),
            differs,
        ]);
    }
    columns(3, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::ledger::{Ledger, tests::row};

    fn run(label: &str, values: &[(u64, f64)]) -> Run {
        let mut rows: Vec<_> = values.iter().map(|(step, value)| row(*step, "loss", *value)).collect();
        rows.push(row(7, "tokens_per_second", 100.0));
        Run::of(label.to_owned(), &Ledger { rows, ..Ledger::default() })
    }

    #[test]
    fn runs_beside_each_other() {
        let runs = [
            run("a", &[(10, 3.0), (20, 2.0), (30, 1.0)]),
            run("b", &[(10, 3.0), (20, 2.5), (30, 1.25)]),
            run("c", &[(10, 3.0)]),
            run("d", &[(15, 3.0)]),
        ];
        insta::assert_snapshot!(table(&compare(&runs, None)));
        assert_eq!(compare(&runs, Some(&["loss".to_owned()])).len(), 4);
    }

    #[test]
    fn runs_in_the_order_of_a_metric() {
        let mut runs = vec![
            run("worse", &[(10, 3.0), (20, 2.0)]),
            run("best", &[(10, 3.0), (20, 1.0)]),
            run("equal", &[(20, 2.0)]),
            run("without", &[]),
        ];
        let places = |runs: &[Run], highest| -> Vec<(String, Option<usize>)> {
            rank(runs, "loss", highest).iter().map(|it| (it.run.to_owned(), it.place)).collect()
        };
        let named = |items: [(&str, Option<usize>); 4]| items.map(|(name, place)| (name.to_owned(), place)).to_vec();
        assert_eq!(
            places(&runs, false),
            named([("best", Some(1)), ("worse", Some(2)), ("equal", Some(2)), ("without", None)])
        );
        assert_eq!(
            places(&runs, true),
            named([("worse", Some(1)), ("equal", Some(1)), ("best", Some(3)), ("without", None)])
        );
        let table = places_table("loss", &rank(&runs, "loss", false));
        assert!(table.lines().nth(1).is_some_and(|line| line.contains("best") && line.contains('1')), "{table}");
        runs.truncate(1);
        assert_eq!(rank(&runs, "loss", false).len(), 1);
    }
}
