//! What a person sees of an evaluation. Pure, but for the bar on the terminal.

use std::fmt::Write as _;

use codex_provenance::text::counted;
use codex_verdict::{Judgement, Measurement, Metric};
use indicatif::{ProgressBar, ProgressStyle};

use super::outputs::{CONFIDENCE, Results, Shown};
use crate::terminal;

/// A bar on a terminal; none elsewhere.
pub(super) fn progress_bar(total: u64) -> Option<ProgressBar> {
    terminal::is_interactive().then(|| {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} problems  {elapsed} elapsed, {eta} left")
        {
            bar.set_style(style);
        }
        bar
    })
}

/// The numbers as a table, the baseline's accuracy beside the model's.
pub(super) fn numbers(results: &Results) -> String {
    let mut text = format!(
        "{} · model {} · {}\n\n{:<20}  {:>9}  {:>6}  {:>9}  {:>9}  {}\n",
        results.evaluation.preset,
        results.model.digest.short(),
        counted(results.scored.len(), "problem"),
        "METRIC",
        "VALUE",
        "N",
        "AT LEAST",
        "AT MOST",
        "BASELINE"
    );
    for (name, measurement) in &results.metrics {
        let baseline =
            results.baseline.as_ref().filter(|_| name == Metric::ExactMatch.name()).and_then(|it| Shown::of(name, it));
        row(&mut text, name, measurement, baseline.map(|shown| shown.value));
    }
    let _ = write!(text, "\nAT LEAST and AT MOST hold with confidence {CONFIDENCE} each.");
    let confidence = results.evaluation.settings.evaluation.confidence;
    let is_measured = |metric: Metric| results.metrics.contains_key(metric.name());
    if is_measured(Metric::Bleu) || is_measured(Metric::Perplexity) {
        let _ = write!(text, " Those of bleu and perplexity are bootstrapped: they hold with about {confidence}.");
    }
    if is_measured(Metric::LowestTraceCoverage) {
        let metric = Metric::LowestTraceCoverage;
        let _ = write!(text, " Those of {metric} hold with {confidence}, and its N is that of the smallest category.");
    }
    if results.metrics.values().any(|measurement| measurement.clustered_items().is_some()) {
        let _ = write!(text, " N counts the clusters that the problems name.");
    }
    text
}

fn row(text: &mut String, name: &str, measurement: &Measurement, baseline: Option<String>) {
    let Some(Shown { value, n, lower, upper, .. }) = Shown::of(name, measurement) else {
        let _ = writeln!(text, "{name:<20}  no number");
        return;
    };
    let line = format!("{name:<20}  {value:>9}  {n:>6}  {lower:>9}  {upper:>9}  {}", baseline.unwrap_or_default());
    let _ = writeln!(text, "{}", line.trim_end());
}

/// The verdict with its reasons.
pub(super) fn verdict(judgement: &Judgement) -> String {
    let mut text = format!("\n{}: {} of {} gates passed", judgement.verdict, judgement.passed, judgement.total);
    for gate in &judgement.gates {
        let _ = write!(text, "\n  {:<12}  {}: {}", gate.verdict, gate.metric, gate.message);
    }
    text
}
