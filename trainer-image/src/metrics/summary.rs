//! `codex metrics summarize`: summary statistics of every metric. Prints the result.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::{
    error::MetricsError,
    evaluations,
    input::{Format, Input, chosen, print_json},
    series::{Name, Run, Statistics, shown},
    table::columns,
};
use crate::atomic_fs;

/// Print the first, last, least and greatest value of every metric, or the numbers of an evaluation with their bounds.
#[derive(Debug, Args)]
pub(super) struct Summarize {
    #[command(flatten)]
    input: Input,
    /// Summarize only this metric, and its numbers of categories. May be repeated.
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The statistics of a run.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    run: &'a str,
    last_step: Option<u64>,
    /// Seconds between the first and the last row.
    seconds: Option<f64>,
    metrics: Vec<Metric<'a>>,
}

#[derive(Debug, Serialize)]
struct Metric<'a> {
    #[serde(flatten)]
    name: &'a Name,
    #[serde(flatten)]
    statistics: Statistics,
}

impl Summarize {
    pub(super) fn run(self) -> Result<(), MetricsError> {
        if let Some(evaluations) = self.input.evaluations()? {
            return match self.format {
                Format::Json => print_json(&evaluations::summaries(&evaluations, &self.metric)?),
                Format::Text => Ok(atomic_fs::say(evaluations::summarize(&evaluations, &self.metric)?.trim_end())?),
            };
        }
        let runs = self.input.read()?;
        let named = if self.metric.is_empty() { None } else { Some(chosen(&runs, &self.metric, "")?) };
        let summaries: Vec<Summary> = runs.iter().map(|run| Summary::of(run, named.as_deref())).collect();
        match self.format {
            Format::Json => print_json(&summaries),
            Format::Text => {
                let texts: Vec<String> = summaries.iter().map(Summary::text).collect();
                Ok(atomic_fs::say(texts.join("\n").trim_end())?)
            }
        }
    }
}

impl<'a> Summary<'a> {
    /// Summarizes these metrics of a run, all without names.
    fn of(run: &'a Run, named: Option<&[String]>) -> Self {
        let series = run.series.iter().filter(|(name, _)| named.is_none_or(|named| named.contains(&name.metric)));
        let metrics = series.filter_map(|(name, series)| Some(Metric { name, statistics: Statistics::of(series)? }));
        Self { run: &run.label, last_step: run.last_step(), seconds: run.seconds(), metrics: metrics.collect() }
    }

    fn text(&self) -> String {
        let mut text = format!("{}: step {}", self.run, self.last_step.unwrap_or_default());
        if let Some(seconds) = self.seconds {
            let _ = write!(text, ", {} s of rows", seconds.round());
        }
        text.push_str("\n\n");
        let head = ["METRIC", "SPLIT", "ROWS", "FIRST", "LAST", "LEAST", "AT STEP", "GREATEST", "AT STEP", "MEDIAN"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for Metric { name, statistics } in &self.metrics {
            rows.push(vec![
                name.metric.clone(),
                name.split.clone(),
                statistics.rows.to_string(),
                shown(statistics.first.value),
                shown(statistics.last.value),
                shown(statistics.least.value),
                statistics.least.step.to_string(),
                shown(statistics.greatest.value),
                statistics.greatest.step.to_string(),
                shown(statistics.median),
            ]);
        }
        text + &columns(2, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::ledger::{Ledger, tests::row};

    #[test]
    fn a_run_in_a_table() {
        let rows = vec![row(10, "loss", 3.0), row(20, "loss", 1.5), row(20, "tokens_per_second", 21_480.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        insta::assert_snapshot!(Summary::of(&run, None).text());
        let loss = Summary::of(&run, Some(&["loss".to_owned()])).text();
        assert!(loss.starts_with("a: step 20") && loss.contains("\nloss "), "{loss}");
        assert!(!loss.contains("tokens_per_second"), "{loss}");
    }
}
