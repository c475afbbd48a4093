//! Scores answers and measures the metrics over them. Pure.
//!
//! Only the answer is compared, never the text before it; see [`Answers`]. A step counts only if its text equals a step of that
//! problem's reference, in the reference's order. Steps are scored with marked answers only.

use std::collections::BTreeMap;

use codex_configs::OnDemand;
use codex_verdict::{
    BleuCounts, Categorized, ClusteredValues, Likelihood, Measurement, Metric, Resampling, corpus, lowest_mean,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{bleu, distinct::distinct, rouge::rouge_l, token_f1::token_f1};
use crate::tasks::{Answers, Record, common_in_order, steps, written_steps};

/// One scored problem: a line of `records.ndjson`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(title = "records.ndjson: one line")]
pub struct Scored {
    /// The problem's line in its file.
    pub line: usize,
    /// The prompt.
    pub prompt: String,
    /// The category of the problem.
    pub category: String,
    /// The cluster of the problem; absent if problems have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The reference response.
    pub reference: String,
    /// The model's response.
    pub prediction: String,
    /// The right answer.
    pub expected: Option<String>,
    /// The model's answer; null if its response has none.
    pub answer: Option<String>,
    /// Whether the answer is right.
    pub correct: bool,
    /// Number of steps in the reference.
    pub steps: usize,
    /// Number of these steps in the model's response, in the reference's order.
    pub steps_found: usize,
    /// Whether the baseline's answer is right; absent without a baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_correct: Option<bool>,
    /// All sampled answers; absent if only one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// Whether the lowest trace coverage of any category is measured.
    #[serde(skip)]
    pub by_category: bool,
    /// F1 of the words of the answer and of the right one; absent if it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_f1: Option<f64>,
    /// ROUGE-L of the answer and of the right one; absent if it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
    /// Share of different words of the response; absent if it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct_1: Option<f64>,
    /// Share of different pairs of words of the response; absent if it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct_2: Option<f64>,
    /// Tokens of the reference response, for the token accuracy; absent if that is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_tokens: Option<ReferenceTokens>,
    /// N-grams of the answer, for BLEU; absent if that is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bleu: Option<BleuCounts>,
    /// Log-probability of the reference response, for perplexity; absent if that is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub likelihood: Option<Likelihood>,
    /// What the plugin of the evaluation returned for the response, from 0 to 1; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<f64>,
}

/// The tokens of a reference response that is fed to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ReferenceTokens {
    /// Number of tokens; at least 1.
    pub tokens: u64,
    /// Number of those that the model finds most likely after the ones before.
    pub most_likely: u64,
}

/// Several sampled answers to one problem, of which the first is the prediction.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Samples {
    /// The answer of each text; null if it has none.
    pub answers: Vec<Option<String>>,
    /// Number of right ones.
    pub right: usize,
    /// Estimated probability that at least one of `evaluation.k` answers is right.
    pub pass_at_k: f64,
    /// The most frequent answer, the first of equally frequent ones; null if no text has an answer.
    pub majority: Option<String>,
    /// Whether it is right.
    pub majority_correct: bool,
}

impl Samples {
    /// Scores the texts that were sampled for a problem.
    pub(super) fn of(texts: &[String], record: &Record, answers: &Answers, k: usize) -> Self {
        let expected = answers.of_reference(&record.response).ok();
        let found: Vec<Option<String>> = texts.iter().map(|text| answers.of_response(text)).collect();
        let is_right = |answer: &str| expected.as_deref().is_some_and(|expected| answers.is_right(answer, expected));
        let right = found.iter().flatten().filter(|answer| is_right(answer)).count();
        // Each different answer and how often it was given, in the order in which they were given first.
        let mut given: Vec<(&str, usize)> = Vec::new();
        for answer in found.iter().flatten() {
            match given.iter_mut().find(|(known, _)| answers.is_right(answer, known)) {
                Some((_, count)) => *count += 1,
                None => given.push((answer, 1)),
            }
        }
        let most = given.iter().map(|(_, count)| *count).max();
        let majority = given.iter().find(|(_, count)| Some(*count) == most).map(|(answer, _)| (*answer).to_owned());
        Self {
            pass_at_k: pass_at_k(texts.len(), right, k),
            majority_correct: majority.as_deref().is_some_and(is_right),
            majority,
            right,
            answers: found,
        }
    }
}

/// Returns the probability that at least one of `k` answers is right, if `right` of `n` are: 1 − C(n − right, k) / C(n, k), the
/// unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
fn pass_at_k(n: usize, right: usize, k: usize) -> f64 {
    if n - right < k {
        return 1.0;
    }
    let none: f64 = (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    1.0 - none
}

impl Scored {
    /// Scores one problem. An empty response and a response without an answer are wrong.
    pub fn of(line: usize, record: &Record, prediction: String, baseline: Option<&str>, answers: &Answers) -> Self {
        let expected = answers.of_reference(&record.response).ok();
        let answer = answers.of_response(&prediction);
        let is_right = |answer: &Option<String>| {
            let both = answer.as_deref().zip(expected.as_deref());
            both.is_some_and(|(answer, expected)| answers.is_right(answer, expected))
        };
        let (reference, written) = if answers.has_steps() {
            (steps(&record.response), written_steps(&prediction))
        } else {
            (Vec::new(), Vec::new())
        };
        Self {
            line,
            prompt: record.prompt.clone(),
            category: record.category.clone(),
            cluster: record.cluster.clone(),
            reference: record.response.clone(),
            correct: is_right(&answer),
            steps: reference.len(),
            steps_found: common_in_order(&reference, &written),
            baseline_correct: baseline.map(|text| is_right(&answers.of_response(text))),
            answer,
            expected,
            prediction,
            samples: None,
            by_category: false,
            token_f1: None,
            rouge_l: None,
            distinct_1: None,
            distinct_2: None,
            reference_tokens: None,
            bleu: None,
            likelihood: None,
            plugin: None,
        }
    }

    /// Adds the metrics that are asked for, of texts alone. Those with a right answer compare the answer with the right one, as `exact_match` does; a response
    /// without an answer has none in common.
    #[must_use]
    pub(super) fn with_asked(mut self, asked: &[OnDemand]) -> Self {
        self.by_category = asked.contains(&OnDemand::LowestTraceCoverage);
        let (answer, expected) = (self.answer.as_deref(), self.expected.as_deref().unwrap_or_default());
        self.token_f1 =
            asked.contains(&OnDemand::TokenF1).then(|| answer.map_or(0.0, |answer| token_f1(answer, expected)));
        self.rouge_l =
            asked.contains(&OnDemand::RougeL).then(|| answer.map_or(0.0, |answer| rouge_l(answer, expected)));
        self.distinct_1 = asked.contains(&OnDemand::Distinct1).then(|| distinct(&self.prediction, 1));
        self.distinct_2 = asked.contains(&OnDemand::Distinct2).then(|| distinct(&self.prediction, 2));
        self.bleu = asked.contains(&OnDemand::Bleu).then(|| bleu::counts(answer.unwrap_or_default(), expected));
        self
    }
}

impl Scored {
    /// Returns the value of a metric that is a mean over the problems, from 0 to 1; `None` if this problem does not allow it.
    pub(super) fn value(&self, metric: Metric) -> Option<f64> {
        let share = |right: bool| if right { 1.0 } else { 0.0 };
        match metric {
            Metric::ExactMatch => Some(share(self.correct)),
            Metric::WinRate => {
                self.baseline_correct.map(|other| f64::midpoint(1.0, share(self.correct) - share(other)))
            }
            Metric::TraceCoverage => (self.steps > 0).then(|| self.steps_found as f64 / self.steps as f64),
            Metric::TokenF1 => self.token_f1,
            Metric::RougeL => self.rouge_l,
            Metric::Distinct1 => self.distinct_1,
            Metric::Distinct2 => self.distinct_2,
            Metric::TokenAccuracy => {
                self.reference_tokens.map(|ReferenceTokens { tokens, most_likely }| most_likely as f64 / tokens as f64)
            }
            Metric::PassAtK => self.samples.as_ref().map(|samples| samples.pass_at_k),
            Metric::MajAtK => self.samples.as_ref().map(|samples| share(samples.majority_correct)),
            Metric::Plugin => self.plugin,
            Metric::LowestTraceCoverage | Metric::Bleu | Metric::Perplexity => None,
        }
    }
}

/// Measures every metric that these problems allow.
pub(super) fn metrics(scored: &[Scored], resampling: Resampling) -> BTreeMap<String, Measurement> {
    Metric::ALL.iter().filter_map(|metric| Some((metric.to_string(), measure(*metric, scored, resampling)?))).collect()
}

/// Measures the values of problems by cluster; `None` if problems have no clusters, or none has a value.
fn clustered<'a>(
    scored: impl Iterator<Item = &'a Scored>,
    value: impl Fn(&Scored) -> Option<f64>,
) -> Option<Measurement> {
    let mut values = ClusteredValues::default();
    for one in scored {
        let cluster = one.cluster.as_deref()?;
        if let Some(value) = value(one) {
            values.add(cluster, value);
        }
    }
    values.mean()
}

/// Measures a metric; `None` if no problem allows it.
fn measure(metric: Metric, scored: &[Scored], resampling: Resampling) -> Option<Measurement> {
    if let Some(measured) = clustered(scored.iter(), |one| one.value(metric)) {
        return Some(measured);
    }
    let clusters: Option<Vec<&str>> = scored.iter().map(|one| one.cluster.as_deref()).collect();
    let clusters = clusters.as_deref();
    match metric {
        Metric::ExactMatch => Some(exact_match(scored.iter())),
        Metric::WinRate => win_rate(scored),
        Metric::TraceCoverage
        | Metric::TokenF1
        | Metric::RougeL
        | Metric::Distinct1
        | Metric::Distinct2
        | Metric::TokenAccuracy
        | Metric::PassAtK
        | Metric::Plugin => mean(metric, scored.iter()),
        Metric::LowestTraceCoverage => lowest_trace_coverage(scored, resampling.confidence),
        Metric::MajAtK => {
            let right: Vec<bool> =
                scored.iter().filter_map(|one| one.samples.as_ref()).map(|it| it.majority_correct).collect();
            let successes = right.iter().filter(|right| **right).count() as u64;
            (!right.is_empty()).then_some(Measurement::Share { successes, n: right.len() as u64 })
        }
        Metric::Bleu => corpus(&scored.iter().map(|one| one.bleu).collect::<Option<Vec<_>>>()?, clusters, resampling),
        Metric::Perplexity => {
            corpus(&scored.iter().map(|one| one.likelihood).collect::<Option<Vec<_>>>()?, clusters, resampling)
        }
    }
}

/// Measures the duel with the baseline; `None` without a baseline.
fn win_rate(scored: &[Scored]) -> Option<Measurement> {
    let duels: Vec<(bool, bool)> =
        scored.iter().filter_map(|one| one.baseline_correct.map(|baseline| (one.correct, baseline))).collect();
    let count = |wanted: (bool, bool)| duels.iter().filter(|duel| **duel == wanted).count() as u64;
    let (wins, losses) = (count((true, false)), count((false, true)));
    let ties = duels.len() as u64 - wins - losses;
    (!duels.is_empty()).then_some(Measurement::Duel { wins, ties, losses })
}

/// Measures a mean over the problems that allow the metric, such as those whose reference has steps; `None` if none does.
fn mean<'a>(metric: Metric, scored: impl Iterator<Item = &'a Scored>) -> Option<Measurement> {
    let shares: Vec<f64> = scored.filter_map(|one| one.value(metric)).collect();
    (!shares.is_empty()).then(|| Measurement::Mean {
        n: shares.len() as u64,
        sum: Some(shares.iter().sum()),
        sum_of_squares: Some(shares.iter().map(|share| share * share).sum()),
    })
}

/// Measures the mean share of the reference's steps that were found; `None` if no reference has steps.
pub(super) fn trace_coverage<'a>(scored: impl Iterator<Item = &'a Scored> + Clone) -> Option<Measurement> {
    clustered(scored.clone(), |one| one.value(Metric::TraceCoverage)).or_else(|| mean(Metric::TraceCoverage, scored))
}

/// Measures the lowest trace coverage of any category; `None` if it is not asked for, or if no reference has steps.
fn lowest_trace_coverage(scored: &[Scored], confidence: f64) -> Option<Measurement> {
    let covered = scored.iter().filter(|one| one.by_category).filter_map(|one| {
        let value = one.value(Metric::TraceCoverage)?;
        Some(Categorized { category: &one.category, cluster: one.cluster.as_deref(), value })
    });
    lowest_mean(covered, confidence)
}

/// Measures the share of right answers.
pub(super) fn exact_match<'a>(scored: impl Iterator<Item = &'a Scored> + Clone) -> Measurement {
    clustered(scored.clone(), |one| one.value(Metric::ExactMatch)).unwrap_or_else(|| {
        let successes = scored.clone().filter(|one| one.correct).count() as u64;
        Measurement::Share { successes, n: scored.count() as u64 }
    })
}

/// Measures the baseline's share of right answers; `None` without a baseline.
pub(super) fn baseline_exact_match(scored: &[Scored]) -> Option<Measurement> {
    let by_cluster = clustered(scored.iter(), |one| one.baseline_correct.map(|right| f64::from(u8::from(right))));
    if by_cluster.is_some() {
        return by_cluster;
    }
    let right: Vec<bool> = scored.iter().filter_map(|one| one.baseline_correct).collect();
    let successes = right.iter().filter(|right| **right).count() as u64;
    (!right.is_empty()).then_some(Measurement::Share { successes, n: right.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: Resampling = Resampling { seed: 1, confidence: 0.95 };
    use crate::tasks::Difficulty;

    fn record(response: &str) -> Record {
        Record {
            prompt: "347+86:".to_owned(),
            response: response.to_owned(),
            difficulty: Difficulty::Hard,
            category: "addition".to_owned(),
            cluster: None,
        }
    }

    /// Finds answers by the preset, with another `evaluation.answer`.
    fn answers(form: &str) -> Answers {
        let set = [format!("evaluation.answer={form}")];
        let resolved = codex_configs::compose_evaluation("cot-lite", &set, 1, Vec::new()).unwrap();
        Answers::of(&resolved.spec().settings.evaluation).unwrap()
    }

    const REFERENCE: &str = "7+6+0=13 4+8+1=13 3+0+1=04 #433$";

    fn score(prediction: &str, baseline: Option<&str>) -> Scored {
        Scored::of(1, &record(REFERENCE), prediction.to_owned(), baseline, &answers("marked"))
    }

    #[test]
    fn only_the_answer_is_compared() {
        assert!(score("#433$", None).correct, "steps are not needed");
        assert!(score("1+1=3 9 # #433$", None).correct, "wrong steps do not matter");
        assert!(score("# 433 $", None).correct);
        for wrong in ["", "$", "#$", "#433", "#0433$", "#432$", "433$", "#433$ #432$", "#433$x", "#43 3$"] {
            assert!(!score(wrong, None).correct, "{wrong}");
        }
    }

    #[test]
    fn an_empty_response_counts_as_wrong() {
        let empty = score("", Some("#433$"));
        assert!(!empty.correct);
        assert_eq!((empty.steps, empty.steps_found, empty.baseline_correct), (3, 0, Some(true)));
        let metrics = metrics(&[empty, score("", Some("#1$")), score(REFERENCE, Some(""))], DRAWS);
        assert_eq!(metrics[Metric::ExactMatch.name()], Measurement::Share { successes: 1, n: 3 });
        assert_eq!(metrics[Metric::WinRate.name()], Measurement::Duel { wins: 1, ties: 1, losses: 1 });
        assert_eq!(
            metrics[Metric::TraceCoverage.name()],
            Measurement::Mean { n: 3, sum: Some(1.0), sum_of_squares: Some(1.0) }
        );
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
    fn repeated_steps_count_as_often_as_the_reference_repeats_them() {
        let repeated = record("0+0+0=00 0+0+0=00 #0$");
        let found = |text: &str| Scored::of(1, &repeated, text.to_owned(), None, &answers("marked")).steps_found;
        assert_eq!(found("0+0+0=00 #0$"), 1);
        assert_eq!(found("0+0+0=00 0+0+0=00 0+0+0=00 #0$"), 2);
    }

    #[test]
    fn metrics_without_a_baseline_or_steps_are_left_out() {
        let answer_only = Scored::of(1, &record("#433$"), "#433$".to_owned(), None, &answers("marked"));
        let names: Vec<String> = metrics(&[answer_only], DRAWS).into_keys().collect();
        assert_eq!(names, [Metric::ExactMatch.name()]);
    }

    #[test]
    fn last_numbers_are_compared_by_value_and_have_no_steps() {
        let scored = |text: &str| {
            let reference = record("4 - 1 = 3. 3 - 7 = -4. #-4");
            Scored::of(1, &reference, text.to_owned(), Some("-4"), &answers("last_number"))
        };
        for right in ["#-4", "The answer is -4.", "3 - 7 = -4.0"] {
            assert!(scored(right).correct, "{right}");
        }
        for wrong in ["4", "3 - 4", "-4 or -5", "none", ""] {
            assert!(!scored(wrong).correct, "{wrong}");
        }
        assert_eq!(scored("#-4").baseline_correct, Some(true));
        assert!(!metrics(&[scored("#-4")], DRAWS).contains_key(&Metric::TraceCoverage.to_string()));
    }

    #[test]
    fn several_answers_are_counted() {
        // 1 − C(3, 2) / C(5, 2), 1 − C(4, 1) / C(5, 1), and the ends.
        for (n, right, k, expected) in [(5, 2, 2, 0.7), (5, 1, 1, 0.2), (5, 0, 3, 0.0), (5, 4, 2, 1.0), (4, 4, 4, 1.0)]
        {
            assert!((pass_at_k(n, right, k) - expected).abs() < 1e-12, "{n} {right} {k}");
        }
        let texts = ["it is 3", "no", "4", "-4.0", "-4", "3"].map(str::to_owned);
        let of = |texts: &[String]| Samples::of(texts, &record("3 - 7 = -4"), &answers("last_number"), 2);
        let found = of(&texts);
        assert_eq!(
            (found.right, found.majority.as_deref(), found.majority_correct),
            (2, Some("3"), false),
            "the first"
        );
        assert!((found.pass_at_k - 0.6).abs() < 1e-12, "{found:?}");
        assert!(of(&texts[2..5]).majority_correct);
        assert_eq!(of(&texts[1..2]).majority, None);
        let one =
            |samples| Scored { samples, ..Scored::of(1, &record("-4"), String::new(), None, &answers("last_number")) };
        let measured = metrics(&[one(Some(of(&texts))), one(Some(of(&texts[2..5])))], DRAWS);
        assert_eq!(measured[Metric::MajAtK.name()], Measurement::Share { successes: 1, n: 2 });
        assert_eq!(measured[Metric::PassAtK.name()].kind(), codex_verdict::Kind::Mean);
        assert!(!metrics(&[one(None)], DRAWS).contains_key(Metric::PassAtK.name()));
    }

    #[test]
    fn texts_are_compared_where_they_are_asked_for() {
        let one = |prediction: &str, asked: &[OnDemand]| {
            let record = record("The Eiffel Tower is in Paris, France.");
            Scored::of(1, &record, prediction.to_owned(), None, &answers("whole")).with_asked(asked)
        };
        let silent = one("Paris", &[]);
        assert_eq!((silent.token_f1, silent.rouge_l, silent.bleu), (None, None, None));
        assert_eq!((silent.distinct_1, silent.distinct_2), (None, None));
        let scored: Vec<Scored> =
            ["the eiffel tower is in Paris France", "Paris", ""].map(|it| one(it, &OnDemand::ALL)).into();
        assert_eq!(scored.iter().map(|one| one.token_f1).collect::<Vec<_>>(), [Some(1.0), Some(2.0 / 7.0), Some(0.0)]);
        // Lower case without punctuation; one of seven words and one; nothing.
        assert_eq!(scored.iter().map(|one| one.rouge_l).collect::<Vec<_>>(), [Some(1.0), Some(2.0 / 8.0), Some(0.0)]);
        assert_eq!(scored.iter().map(|one| one.distinct_1).collect::<Vec<_>>(), [Some(1.0), Some(1.0), Some(0.0)]);
        assert_eq!(scored.iter().map(|one| one.distinct_2).collect::<Vec<_>>(), [Some(1.0), Some(0.0), Some(0.0)]);
        let measured = metrics(&scored, DRAWS);
        assert!(!measured.contains_key(Metric::TokenAccuracy.name()), "no reference was fed to a model");
        for metric in [Metric::TokenF1, Metric::RougeL, Metric::Distinct1, Metric::Distinct2] {
            assert_eq!(measured[metric.name()].kind(), codex_verdict::Kind::Mean);
        }
        assert_eq!(measured[Metric::Bleu.name()].kind(), codex_verdict::Kind::Estimate);
        assert!(!measured.contains_key(Metric::Perplexity.name()), "no log-probabilities were computed");
    }
}
