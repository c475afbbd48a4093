//! What an answer is worth. Pure.
//!
//! The answer is what stands between the last `#` and the final `$`; only it is compared, never the form around it. A
//! step counts only if its text equals a step of that problem's reference, in the reference's order.

use std::collections::BTreeMap;

use codex_reports::Measurement;
use schemars::JsonSchema;
use serde::Serialize;

use crate::tasks::{Record, answer, steps};

/// The name of the share of right answers.
pub const EXACT_MATCH: &str = "exact_match";
/// The name of the duel with the baseline.
pub const WIN_RATE: &str = "reasoning.win_rate";
/// The name of the mean share of reference steps found.
pub const TRACE_COVERAGE: &str = "trace_coverage";

/// What a model made of one problem: its response, or why there is none.
pub(super) type Outcome = Result<String, String>;

/// One problem with what became of it: a line of `records.ndjson`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(title = "records.ndjson: one line")]
pub struct Scored {
    /// The problem's line in its file.
    pub line: usize,
    /// What was asked.
    pub prompt: String,
    /// What kind of problem it is.
    pub category: String,
    /// The reference solution.
    pub reference: String,
    /// What the model wrote; none where it failed.
    pub prediction: Option<String>,
    /// Why it wrote nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The right answer.
    pub expected: Option<String>,
    /// The model's answer; none where it gave none.
    pub answer: Option<String>,
    /// Whether they are the same.
    pub correct: bool,
    /// Steps of the reference.
    pub steps: usize,
    /// Those that the model wrote, in their order.
    pub steps_found: usize,
    /// Whether the baseline's answer is right; none without a baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_correct: Option<bool>,
}

impl Scored {
    /// Scores one problem. What failed, what is empty and what has no answer is wrong.
    pub fn of(line: usize, record: &Record, outcome: Outcome, baseline: Option<&str>) -> Self {
        let (prediction, error) = match outcome {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(error)),
        };
        let text = prediction.as_deref().unwrap_or_default();
        let expected = plain_answer(&record.response);
        let reference = steps(&record.response);
        Self {
            line,
            prompt: record.prompt.clone(),
            category: record.category.clone(),
            reference: record.response.clone(),
            correct: is_right(text, expected),
            answer: plain_answer(text).map(str::to_owned),
            steps: reference.len(),
            steps_found: in_order(&reference, &steps(text)),
            baseline_correct: baseline.map(|text| is_right(text, expected)),
            expected: expected.map(str::to_owned),
            error,
            prediction,
        }
    }
}

/// The answer of a response without white space around it.
pub(super) fn plain_answer(response: &str) -> Option<&str> {
    answer(response).map(str::trim).filter(|answer| !answer.is_empty())
}

fn is_right(response: &str, expected: Option<&str>) -> bool {
    expected.is_some() && plain_answer(response) == expected
}

/// The length of the longest common subsequence: how many of `reference` are found in `written`, in order.
fn in_order(reference: &[&str], written: &[&str]) -> usize {
    let mut found = vec![0; reference.len() + 1];
    for step in written {
        let mut diagonal = 0;
        for (index, wanted) in reference.iter().enumerate() {
            let above = found[index + 1];
            found[index + 1] = if wanted == step { diagonal + 1 } else { above.max(found[index]) };
            diagonal = above;
        }
    }
    found[reference.len()]
}

/// The metrics of all problems. Without a baseline there is no win rate; problems whose reference shows no steps have
/// no share of steps, and without any other there is no coverage.
pub(super) fn metrics(scored: &[Scored]) -> BTreeMap<String, Measurement> {
    let mut metrics = BTreeMap::from([(EXACT_MATCH.to_owned(), exact_match(scored.iter()))]);
    let duels: Vec<(bool, bool)> =
        scored.iter().filter_map(|one| one.baseline_correct.map(|baseline| (one.correct, baseline))).collect();
    if !duels.is_empty() {
        let count = |wanted: (bool, bool)| duels.iter().filter(|duel| **duel == wanted).count() as u64;
        let (wins, losses) = (count((true, false)), count((false, true)));
        let ties = duels.len() as u64 - wins - losses;
        metrics.insert(WIN_RATE.to_owned(), Measurement::Duel { wins, ties, losses });
    }
    let shares: Vec<f64> =
        scored.iter().filter(|one| one.steps > 0).map(|one| one.steps_found as f64 / one.steps as f64).collect();
    if !shares.is_empty() {
        let coverage = Measurement::Mean {
            n: shares.len() as u64,
            sum: Some(shares.iter().sum()),
            sum_of_squares: Some(shares.iter().map(|share| share * share).sum()),
        };
        metrics.insert(TRACE_COVERAGE.to_owned(), coverage);
    }
    metrics
}

/// The share of right answers.
pub(super) fn exact_match<'a>(scored: impl Iterator<Item = &'a Scored> + Clone) -> Measurement {
    Measurement::Share { successes: scored.clone().filter(|one| one.correct).count() as u64, n: scored.count() as u64 }
}

/// The baseline's share of right answers, where there is a baseline.
pub(super) fn baseline_exact_match(scored: &[Scored]) -> Option<Measurement> {
    let right: Vec<bool> = scored.iter().filter_map(|one| one.baseline_correct).collect();
    let successes = right.iter().filter(|right| **right).count() as u64;
    (!right.is_empty()).then_some(Measurement::Share { successes, n: right.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Difficulty;

    fn record(response: &str) -> Record {
        Record {
            prompt: "347+86:".to_owned(),
            response: response.to_owned(),
            difficulty: Difficulty::Hard,
            category: "addition".to_owned(),
        }
    }

    const REFERENCE: &str = "7+6+0=13 4+8+1=13 3+0+1=04 #433$";

    fn score(prediction: &str, baseline: Option<&str>) -> Scored {
        Scored::of(1, &record(REFERENCE), Ok(prediction.to_owned()), baseline)
    }

    #[test]
    fn the_answer_counts_and_not_the_form() {
        assert!(score("#433$", None).correct, "no step is needed");
        assert!(score("1+1=3 9 # #433$", None).correct, "wrong steps do not matter");
        assert!(score("# 433 $", None).correct);
        for wrong in ["", "$", "#$", "#433", "#0433$", "#432$", "433$", "#433$ #432$", "#433$x", "#43 3$"] {
            assert!(!score(wrong, None).correct, "{wrong}");
        }
    }

    #[test]
    fn a_failure_is_wrong_and_not_absent() {
        let failed = Scored::of(1, &record(REFERENCE), Err("too long".to_owned()), Some("#433$"));
        assert!(!failed.correct);
        assert_eq!((failed.steps, failed.steps_found, failed.baseline_correct), (3, 0, Some(true)));
        let metrics = metrics(&[failed, score("", Some("#1$")), score(REFERENCE, Some(""))]);
        assert_eq!(metrics[EXACT_MATCH], Measurement::Share { successes: 1, n: 3 });
        assert_eq!(metrics[WIN_RATE], Measurement::Duel { wins: 1, ties: 1, losses: 1 });
        assert_eq!(metrics[TRACE_COVERAGE], Measurement::Mean { n: 3, sum: Some(1.0), sum_of_squares: Some(1.0) });
    }

    #[test]
    fn a_step_counts_only_with_the_reference_text_and_in_its_order() {
        let found = |text: &str| score(text, None).steps_found;
        assert_eq!(found(REFERENCE), 3);
        assert_eq!(found("7+6+0=13 3+0+1=04 #433$"), 2);
        assert_eq!(found("4+8+1=13 7+6+0=13 3+0+1=04 #433$"), 2, "out of order");
        assert_eq!(found("7+6+0=13 7+6+0=13 7+6+0=13 #433$"), 1, "repeated");
        assert_eq!(found("7+6=13 4+8+1=12 #433$"), 0);
        assert_eq!(found("#433$"), 0);
        assert_eq!(found("7+6+0=13 4+8+1=13 3+0+1=04"), 3, "steps count without an answer");
    }

    #[test]
    fn every_step_of_the_reference_is_needed_once() {
        let repeated = record("0+0+0=00 0+0+0=00 #0$");
        let found = |text: &str| Scored::of(1, &repeated, Ok(text.to_owned()), None).steps_found;
        assert_eq!(found("0+0+0=00 #0$"), 1);
        assert_eq!(found("0+0+0=00 0+0+0=00 0+0+0=00 #0$"), 2);
    }

    #[test]
    fn without_baseline_or_steps_there_is_no_such_metric() {
        let answer_only = Scored::of(1, &record("#433$"), Ok("#433$".to_owned()), None);
        let names: Vec<String> = metrics(&[answer_only]).into_keys().collect();
        assert_eq!(names, [EXACT_MATCH]);
    }
}
