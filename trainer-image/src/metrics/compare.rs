//! `codex metrics compare`: compares the metrics of several runs. Prints the result, and writes a plot on request.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{
    error::MetricsError,
    input::{Format, Input, chosen, print_json},
    plot,
    series::{Name, Run, Statistics, shown},
    table::columns,
};
use crate::atomic_fs;

/// Compare two or more runs.
#[derive(Debug, Args)]
pub(super) struct Compare {
    #[command(flatten)]
    input: Input,
    /// Compare only this metric. May be repeated.
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// Order the runs by the last value of this metric, lowest first, instead of comparing them with the first one. A run
    /// without the metric is last.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["metric", "plot"])]
    rank: Option<String>,
    /// With --rank: highest first.
    #[arg(long, requires = "rank")]
    highest: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Also plot the metrics [default: loss] of all runs into one picture (.svg or .png).
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
        let runs = self.input.read()?;
        if runs.len() < 2 {
            return Err(MetricsError::OneRun);
        }
        if let Some(metric) = &self.rank {
            chosen(&runs, std::slice::from_ref(metric), "")?;
            let places = rank(&runs, metric, self.highest);
            return match self.format {
                Format::Json => print_json(&places),
                Format::Text => Ok(atomic_fs::say(places_table(metric, &places).trim_end())?),
            };
        }
        let named = if self.metric.is_empty() { None } else { Some(chosen(&runs, &self.metric, "")?) };
        let lines = compare(&runs, named.as_deref());
        if let Some(path) = &self.plot {
            plot::write(&runs, &chosen(&runs, &self.metric, "loss")?, plot::Look::default(), path)?;
        }
        match self.format {
            Format::Json => print_json(&lines),
            Format::Text => Ok(atomic_fs::say(table(&lines).trim_end())?),
        }
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
