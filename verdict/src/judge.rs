//! Judging: compares gates with measurements. Pure.

use std::collections::BTreeMap;

use codex_provenance::{ModelDigest, text::counted};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Bound, Bounds, Decimal, Gate, MAX_MESSAGE, MAX_METRIC_NAME, MIN_BOOTSTRAP, Measurement, Method, Rounding, Sample,
    Verdict, bounds, gate::Limit, needed::needed, paired::mcnemar,
};

/// Verdict of a gate and the numbers behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateResult {
    /// Metric that the gate checks.
    #[schemars(length(max = MAX_METRIC_NAME))]
    pub metric: String,
    /// Measured value of the metric, or mean difference from the Evaluation that the gate compares with, rounded to the gate's
    /// disadvantage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Decimal>,
    /// Number of scored items, or of their clusters if the problems name clusters; for the lowest trace coverage in the category with
    /// the fewest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// One-sided lower bound of the value at the gate's confidence, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<Decimal>,
    /// One-sided upper bound of the value at the gate's confidence, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Decimal>,
    /// One-sided p-value of McNemar's exact test, rounded up. Set for betterThan and notWorseThan by 0 on a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<Decimal>,
    /// True if the bounds are approximate, because they are bootstrapped. Set for bleu and perplexity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approximate: bool,
    /// Verdict of the gate: Passed, Failed or Inconclusive.
    pub verdict: Verdict,
    /// Reason for the verdict of the gate, in one sentence.
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}

/// The verdict over all gates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// `Passed` if there is a gate and every gate passed; `Failed` if any failed; else `Inconclusive`.
    pub verdict: Verdict,
    /// Number of gates that passed.
    pub passed: usize,
    /// Number of gates.
    pub total: usize,
    /// Every gate, in the order in which they were given.
    pub gates: Vec<GateResult>,
}

/// Judges the measurements of the model `judged`, whose digest the evaluator computed, for a verdict about `expected`.
pub fn judge(
    gates: &[Gate],
    metrics: &BTreeMap<String, Measurement>,
    judged: Option<ModelDigest>,
    expected: ModelDigest,
) -> Judgement {
    let foreign = match judged {
        Some(judged) if judged == expected => None,
        Some(judged) => Some(format!("the evaluator measured model {judged}, not {expected}")),
        None => Some(format!("the evaluator did not report which model it measured; the gates judge {expected}")),
    };
    let gates: Vec<GateResult> = gates
        .iter()
        .map(|gate| match &foreign {
            None => judge_one(gate, metrics),
            Some(why) => undecided(gate, why.clone()),
        })
        .collect();
    let passed = gates.iter().filter(|gate| gate.verdict == Verdict::Passed).count();
    let verdict = gates.iter().map(|gate| gate.verdict).min().unwrap_or(Verdict::Inconclusive);
    Judgement { verdict, passed, total: gates.len(), gates }
}

fn undecided(gate: &Gate, message: String) -> GateResult {
    let metric = gate.metric.to_string();
    GateResult {
        metric,
        value: None,
        n: None,
        lower: None,
        upper: None,
        p_value: None,
        approximate: false,
        verdict: Verdict::Inconclusive,
        message,
    }
}

/// Judges one gate by measurements of the model that it is about.
pub fn judge_one(gate: &Gate, metrics: &BTreeMap<String, Measurement>) -> GateResult {
    let (name, compares) = (gate.measurement(), gate.bound.comparison().is_some());
    let kinds = gate.metric.kinds(compares);
    let Some(measurement) = metrics.get(&name) else {
        let measured: Vec<&str> = metrics.keys().map(String::as_str).collect();
        let measured = if measured.is_empty() { "no metrics".to_owned() } else { measured.join(", ") };
        let tokens = if compares && gate.metric.feeds_references() {
            format!("; {} is compared only if both models split the responses into equally many tokens", gate.metric)
        } else {
            String::new()
        };
        return undecided(gate, shortened(&format!("it was not measured; the evaluator reported {measured}{tokens}")));
    };
    if !kinds.contains(&measurement.kind()) {
        let (reported, expected) = (measurement.kind().name(), kinds[0].name());
        return undecided(
            gate,
            format!("the evaluator reported a measurement of kind {reported} instead of {expected}"),
        );
    }
    let sample = match if compares { Sample::paired(measurement) } else { Sample::of(measurement) } {
        Ok(sample) => sample,
        Err(why) => return undecided(gate, format!("the reported measurement is impossible: {why}")),
    };
    let test = gate.confidence.and_then(|confidence| Mcnemar::of(gate, &sample, confidence));
    let bounded = gate.confidence.filter(|_| test.is_none() && !is_too_small(&sample));
    let bounds = bounded.and_then(|confidence| bounds(&sample, confidence));
    let (verdict, message) = decide(gate, Counted { sample, items: measurement.clustered_items() }, test, bounds);
    GateResult {
        metric: gate.metric.to_string(),
        value: Some(Decimal(show_value(gate, &sample))),
        n: i64::try_from(sample.n()).ok(),
        lower: bounds.map(|bounds| Decimal(Rounding::Down.show(bounds.lower))),
        upper: bounds.map(|bounds| Decimal(Rounding::Up.show(bounds.upper))),
        // The last bits are rounding errors of the beta function: 1/16 is shown as 0.0625.
        p_value: test.map(|test| Decimal(Rounding::Up.show(test.better * (1.0 - 1e-12)))),
        approximate: bounds.is_some() && sample.is_approximate(),
        verdict,
        message: shortened(&message),
    }
}

/// Returns whether a bootstrap of so few items decides nothing.
fn is_too_small(sample: &Sample) -> bool {
    matches!(sample, Sample::Estimate { n, method: Method::Bootstrap, .. } if *n < MIN_BOOTSTRAP)
}

/// A sample, and what it counts.
#[derive(Clone, Copy, Debug)]
struct Counted {
    sample: Sample,
    /// The items in its clusters; `None` if each item counts on its own.
    items: Option<u64>,
}

impl Counted {
    /// Describes what the value is over.
    fn over(self) -> String {
        let n = self.sample.n();
        if self.is_of_categories() {
            return format!("over categories of {} or more", counted(n, self.unit()));
        }
        self.items.map_or_else(
            || format!("over {}", counted(n, "item")),
            |items| format!("over {} in {}", counted(items, "item"), counted(n, "cluster")),
        )
    }

    /// Returns whether it is the lowest of several means, so that it counts the items of the category with the fewest.
    fn is_of_categories(self) -> bool {
        matches!(self.sample, Sample::Estimate { method: Method::Bernstein, .. })
    }

    /// Returns what counts.
    fn unit(self) -> &'static str {
        if self.items.is_some() { "cluster" } else { "item" }
    }

    /// Says that a number is missing.
    fn are_needed(self, missing: u64) -> String {
        let clusters = match self.items {
            Some(_) if missing == 1 => " cluster",
            Some(_) => " clusters",
            None => "",
        };
        let place = if self.is_of_categories() { " in the smallest one" } else { "" };
        format!("{missing} more{clusters}{place} {} needed", if missing == 1 { "is" } else { "are" })
    }

    /// Says how many more would decide.
    fn more(self, gate: &Gate, confidence: f64) -> String {
        let unit = self.unit();
        if self.is_of_categories() {
            return format!("more similar {unit}s in each category can decide");
        }
        match needed(gate, &self.sample, confidence) {
            Some(enough) => {
                let more = enough.saturating_sub(self.sample.n()).max(1);
                let s = if more == 1 { "" } else { "s" };
                format!("about {more} more similar {unit}{s} would decide, {enough} in all")
            }
            None => format!("no number of similar {unit}s would decide"),
        }
    }
}

/// McNemar's exact test of pairs, in both directions.
#[derive(Clone, Copy, Debug)]
struct Mcnemar {
    wins: u64,
    losses: u64,
    /// The p-value of the claim that the model is better.
    better: f64,
    /// The p-value of the claim that it is worse.
    worse: f64,
    /// The greatest p-value that proves a claim.
    most: f64,
}

impl Mcnemar {
    /// Returns the test, if it decides the gate: a share is compared by 0.
    fn of(gate: &Gate, sample: &Sample, confidence: f64) -> Option<Self> {
        let by_nothing = gate.bound.comparison().is_some_and(|with| with.by <= 0.0);
        let Sample::Pairs { wins, losses, .. } = *sample else { return None };
        let (better, worse) = (mcnemar(wins as f64, losses as f64), mcnemar(losses as f64, wins as f64));
        by_nothing.then_some(Self { wins, losses, better, worse, most: 1.0 - confidence })
    }
}

/// Cuts a sentence to the length that a status holds.
fn shortened(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).collect()
}

/// Rounds to the gate's disadvantage, so that a value that misses its gate never looks as if it met it.
fn show_value(gate: &Gate, sample: &Sample) -> String {
    match gate.bound.limit() {
        Limit::Least(_) => Rounding::Down.show(sample.value()),
        Limit::Most(_) => Rounding::Up.show(sample.value()),
    }
}

fn decide(gate: &Gate, counted: Counted, test: Option<Mcnemar>, bounds: Option<Bounds>) -> (Verdict, String) {
    let (sample, over) = (&counted.sample, counted.over());
    let (bound, limit, n, value) = (&gate.bound, gate.bound.limit(), sample.n(), show_value(gate, sample));
    let value = if bound.comparison().is_some() { format!("a difference of {value}") } else { value };
    if let Some(fewest) = gate.min_samples
        && n < fewest
    {
        let missing = counted.are_needed(fewest - n);
        return (Verdict::Inconclusive, format!("{value} {over}; minSamples is {fewest}, so {missing}"));
    }
    let Some(confidence) = gate.confidence else {
        let holds = match (bound, limit) {
            // Equal results are no improvement.
            (Bound::BetterThan(with), _) if with.by <= 0.0 => sample.value() > 0.0,
            (_, Limit::Least(least)) => sample.value() >= least,
            (_, Limit::Most(most)) => sample.value() <= most,
        };
        let verdict = if holds { Verdict::Passed } else { Verdict::Failed };
        return (verdict, format!("{value} {over}; the gate requires {bound}"));
    };
    if let Some(test) = test {
        return decide_by_test(gate, counted, test, confidence);
    }
    if is_too_small(sample) {
        let missing = counted.are_needed(MIN_BOOTSTRAP - n);
        let why = format!("{value} {over}; bootstrapped bounds need {MIN_BOOTSTRAP}, so {missing}");
        return (Verdict::Inconclusive, why);
    }
    let Some(Bounds { lower, upper }) = bounds else {
        let why = format!("{value} {over}, whose bounds do not have the gate's confidence {confidence}");
        return (Verdict::Inconclusive, why);
    };
    let (clears, misses) = match limit {
        Limit::Least(least) => (lower >= least, upper < least),
        Limit::Most(most) => (upper <= most, lower > most),
    };
    let at_least = format!("at least {}", Rounding::Down.show(lower));
    let at_most = format!("at most {}", Rounding::Up.show(upper));
    let (towards, against) = match limit {
        Limit::Least(_) => (at_least, at_most),
        Limit::Most(_) => (at_most, at_least),
    };
    let says = |known: &str| {
        let about = if sample.is_approximate() { "approximate " } else { "" };
        format!("{value} {over}, so {known} with {about}confidence {confidence}; the gate requires {bound}")
    };
    if clears {
        return (Verdict::Passed, says(&towards));
    }
    if misses {
        return (Verdict::Failed, says(&against));
    }
    let more = counted.more(gate, confidence);
    (Verdict::Inconclusive, format!("{}, and {more}", says(&format!("only {towards}"))))
}

/// Decides a comparison by 0 of a share.
fn decide_by_test(gate: &Gate, counted: Counted, test: Mcnemar, confidence: f64) -> (Verdict, String) {
    let (value, Mcnemar { wins, losses, better, worse, most }) = (show_value(gate, &counted.sample), test);
    let (over, p) = (counted.over(), Rounding::Up.show(better));
    let are = if wins == 1 { "is" } else { "are" };
    let says = format!(
        "a difference of {value} {over}: {wins} {are} right only here and {losses} only there, so p is {p} in McNemar's \
         exact test; the gate requires {} with confidence {confidence}",
        gate.bound
    );
    if better <= most {
        (Verdict::Passed, says)
    } else if worse <= most {
        (Verdict::Failed, says)
    } else {
        (Verdict::Inconclusive, format!("{says}, and {}", counted.more(gate, confidence)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(gate: &str, value: f64, lower: f64, upper: f64, n: u64) -> GateResult {
        let gate: Gate = gate.parse().expect("a gate");
        let [value, lower, upper, confidence] = [value, lower, upper, 0.95].map(Some);
        let estimate = Measurement::Estimate { value, lower, upper, n, confidence, method: Method::Bootstrap };
        judge_one(&gate, &BTreeMap::from([(gate.metric.to_string(), estimate)]))
    }

    fn judged(gate: &str, value: f64, lower: f64, upper: f64) -> GateResult {
        of(gate, value, lower, upper, 200)
    }

    #[test]
    fn an_estimate_is_judged_by_its_own_bounds() {
        let result = judged("bleu>=40@0.95", 50.0, 41.0, 60.0);
        assert_eq!((result.verdict, result.approximate), (Verdict::Passed, true));
        assert_eq!((result.value, result.n), (Some(Decimal("50".to_owned())), Some(200)));
        let bounds = [result.lower, result.upper].map(|bound| bound.expect("a bound").0);
        assert_eq!(bounds, ["41", "60"]);
        assert_eq!(
            result.message,
            "50 over 200 items, so at least 41 with approximate confidence 0.95; the gate requires at least 40"
        );
        assert_eq!(judged("bleu>=70@0.95", 50.0, 41.0, 60.0).verdict, Verdict::Failed);
        assert_eq!(judged("perplexity<=7@0.95", 5.0, 4.1, 6.0).verdict, Verdict::Passed);
        assert_eq!(judged("perplexity<=4@0.95", 5.0, 4.1, 6.0).verdict, Verdict::Failed);
        let by_value = judged("bleu>=50", 50.0, 41.0, 60.0);
        assert_eq!((by_value.verdict, by_value.approximate), (Verdict::Passed, false), "the value decides");
    }

    #[test]
    fn bounds_of_an_estimate_narrow_with_the_root_of_the_items() {
        let between = judged("bleu>=45@0.95", 50.0, 41.0, 60.0);
        assert_eq!(between.verdict, Verdict::Inconclusive);
        // 9 must become 5: 200 · (9 / 5)² = 648, in two digits.
        assert!(
            between.message.ends_with("at least 45, and about 450 more similar items would decide, 650 in all"),
            "{}",
            between.message
        );
        let never = judged("bleu>=50@0.95", 50.0, 41.0, 60.0);
        assert!(never.message.ends_with("and no number of similar items would decide"), "{}", never.message);
    }

    #[test]
    fn the_lowest_of_several_categories_is_judged_by_exact_bounds() {
        let judged = |gate: &str, n| {
            let gate: Gate = gate.parse().expect("a gate");
            let [value, lower, upper, confidence] = [0.9, 0.8, 0.95, 0.95].map(Some);
            let method = Method::Bernstein;
            let lowest = Measurement::Estimate { value, lower, upper, n, confidence, method };
            let gate = Gate { min_samples: Some(20), ..gate };
            judge_one(&gate, &BTreeMap::from([(gate.metric.to_string(), lowest)]))
        };
        let passed = judged("lowest_trace_coverage>=0.8@0.95", 20);
        assert_eq!((passed.verdict, passed.approximate, passed.n), (Verdict::Passed, false, Some(20)));
        assert_eq!(
            passed.message,
            "0.9 over categories of 20 items or more, so at least 0.8 with confidence 0.95; the gate requires at least 0.8"
        );
        assert_eq!(judged("lowest_trace_coverage>=0.96@0.95", 20).verdict, Verdict::Failed);
        let between = judged("lowest_trace_coverage>=0.85@0.95", 20);
        assert_eq!(between.verdict, Verdict::Inconclusive);
        assert!(
            between.message.ends_with("at least 0.85, and more similar items in each category can decide"),
            "{}",
            between.message
        );
        assert_eq!(
            judged("lowest_trace_coverage>=0.8@0.95", 18).message,
            "0.9 over categories of 18 items or more; minSamples is 20, so 2 more in the smallest one are needed"
        );
    }

    fn clustered(gate: &str, n: u64, items: u64, right: f64) -> GateResult {
        let gate: Gate = gate.parse().expect("a gate");
        let measurement =
            Measurement::ClusterMean { n, items, sum: Some(right), sum_of_squares: Some(right * right / n as f64) };
        judge_one(&gate, &BTreeMap::from([(gate.metric.to_string(), measurement)]))
    }

    #[test]
    fn clusters_are_counted_beside_their_items() {
        let passed = clustered("exact_match>=0.9@0.95", 400, 4000, 399.0);
        assert_eq!((passed.verdict, passed.n), (Verdict::Passed, Some(400)));
        assert_eq!(
            passed.message,
            "0.9975 over 4000 items in 400 clusters, so at least 0.975927 with confidence 0.95; the gate requires at least 0.9"
        );
        let few = clustered("exact_match>=0.9@0.95", 50, 4000, 50.0);
        assert_eq!(few.verdict, Verdict::Inconclusive, "4000 items of 50 stories are 50 pieces of evidence");
        assert!(few.message.contains("1 over 4000 items in 50 clusters, so only at least"), "{}", few.message);
        assert!(few.message.ends_with("and about 38 more similar clusters would decide, 88 in all"), "{}", few.message);
        let gate = Gate { min_samples: Some(51), ..gate("exact_match>=0.9@0.95") };
        let measurement = Measurement::ClusterMean { n: 50, items: 4000, sum: Some(50.0), sum_of_squares: Some(50.0) };
        let told = judge_one(&gate, &BTreeMap::from([("exact_match".to_owned(), measurement)])).message;
        assert_eq!(told, "1 over 4000 items in 50 clusters; minSamples is 51, so 1 more cluster is needed");
        assert_eq!(
            clustered("exact_match>=0.9", 1, 1, 1.0).message,
            "1 over 1 item in 1 cluster; the gate requires at least 0.9"
        );
    }

    fn gate(text: &str) -> Gate {
        text.parse().expect("a gate")
    }

    #[test]
    fn one_item_is_counted_in_the_singular() {
        let share = Measurement::Share { successes: 1, n: 1 };
        let result = judge_one(&gate("exact_match>=0.9"), &BTreeMap::from([("exact_match".to_owned(), share)]));
        assert_eq!(result.message, "1 over 1 item; the gate requires at least 0.9");
        let better = Gate {
            bound: Bound::BetterThan(crate::Comparison { evaluation: "before".to_owned(), by: 0.0 }),
            ..gate("exact_match>=0.9@0.95")
        };
        let duel = Measurement::Duel { wins: 1, ties: 0, losses: 0 };
        let result = judge_one(&better, &BTreeMap::from([("exact_match@before".to_owned(), duel)]));
        assert!(
            result.message.starts_with("a difference of 1 over 1 item: 1 is right only here and 0 only there"),
            "{}",
            result.message
        );
    }

    #[test]
    fn few_items_bootstrap_nothing() {
        let result = of("bleu>=40@0.95", 50.0, 41.0, 60.0, 29);
        assert_eq!((result.verdict, result.lower, result.approximate), (Verdict::Inconclusive, None, false));
        assert_eq!(result.message, "50 over 29 items; bootstrapped bounds need 30, so 1 more is needed");
        assert_eq!(of("bleu>=40@0.95", 50.0, 41.0, 60.0, 30).verdict, Verdict::Passed);
        assert_eq!(of("bleu>=40", 50.0, 41.0, 60.0, 29).verdict, Verdict::Passed, "the value decides");
    }

    #[test]
    fn an_estimate_at_another_confidence_decides_nothing() {
        let result = judged("bleu>=10@0.9", 50.0, 41.0, 60.0);
        assert_eq!((result.verdict, result.lower), (Verdict::Inconclusive, None));
        assert_eq!(result.message, "50 over 200 items, whose bounds do not have the gate's confidence 0.9");
    }

    #[test]
    fn an_impossible_estimate_decides_nothing() {
        let result = judged("bleu>=10@0.95", 70.0, 41.0, 60.0);
        assert_eq!(result.verdict, Verdict::Inconclusive);
        assert_eq!(
            result.message,
            "the reported measurement is impossible: its value 70 is not between its bounds 41 and 60"
        );
    }
}
