//! Corpus metrics: BLEU and perplexity from what each item adds to them, with bounds from the [`bootstrap`](crate::bootstrap). Pure.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Bounds, Measurement, Method,
    bootstrap::{Resampling, bca},
};

/// The longest n-gram of BLEU.
const ORDERS: usize = 4;

/// What one item adds to BLEU: Papineni and others 2002.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BleuCounts {
    /// For each length from 1 to 4, n-grams of the answer that the reference has, too, each at most as often as there.
    pub matches: [u32; ORDERS],
    /// For each length from 1 to 4, n-grams of the answer.
    pub totals: [u32; ORDERS],
    /// Tokens of the answer.
    pub answer: u32,
    /// Tokens of the reference.
    pub reference: u32,
}

/// What one item adds to perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Likelihood {
    /// Sum of the natural logarithms of the probabilities of the expected tokens; at most 0.
    pub log_probability: f64,
    /// Number of expected tokens; at least 1.
    pub tokens: u64,
}

/// An item of a corpus metric.
pub trait CorpusItem {
    /// Whether a lower value of the metric is better.
    const LOWER_IS_BETTER: bool;

    /// Returns what the item adds, in a fixed order.
    fn addends(&self) -> Vec<f64>;

    /// Returns the metric from the sums of what all items add.
    fn value(sums: &[f64]) -> f64;

    /// Returns whether a model and a reference with these items can be compared.
    fn is_comparable(&self, reference: &Self) -> bool;

    /// Returns why the item is impossible, as a sentence continues after its name.
    fn impossible(&self) -> Option<&'static str>;
}

impl CorpusItem for BleuCounts {
    const LOWER_IS_BETTER: bool = false;

    fn addends(&self) -> Vec<f64> {
        let counts = self.matches.iter().chain(&self.totals).chain([&self.answer, &self.reference]);
        counts.map(|count| f64::from(*count)).collect()
    }

    /// The score from 0 to 100 of Post 2018, A Call for Clarity in Reporting BLEU Scores, with exponential smoothing.
    fn value(sums: &[f64]) -> f64 {
        let (matches, rest) = sums.split_at(ORDERS);
        let (totals, lengths) = rest.split_at(ORDERS);
        let (answer, reference) = (lengths[0], lengths[1]);
        if matches.iter().all(|count| *count <= 0.0) || totals.iter().any(|count| *count <= 0.0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let mut logarithms = 0.0;
        for (matches, totals) in matches.iter().zip(totals) {
            let precision = if *matches > 0.0 {
                100.0 * matches / totals
            } else {
                smoothing *= 2.0;
                100.0 / (smoothing * totals)
            };
            logarithms += precision.ln();
        }
        let brevity = if answer < reference { (1.0 - reference / answer).exp() } else { 1.0 };
        // The exponential of a sum of logarithms may exceed 100 by rounding.
        (brevity * (logarithms / ORDERS as f64).exp()).min(100.0)
    }

    fn is_comparable(&self, reference: &Self) -> bool {
        self.reference == reference.reference
    }

    fn impossible(&self) -> Option<&'static str> {
        let Self { matches, totals, answer, .. } = self;
        let expected = |order: u32| answer.saturating_sub(order);
        let totals_fit = (0..).zip(totals).all(|(order, total)| *total == expected(order));
        let matches_fit = matches.iter().zip(totals).all(|(matches, total)| matches <= total);
        (!totals_fit || !matches_fit).then_some("has n-grams that do not go with the number of its tokens")
    }
}

impl CorpusItem for Likelihood {
    const LOWER_IS_BETTER: bool = true;

    fn addends(&self) -> Vec<f64> {
        vec![self.log_probability, self.tokens as f64]
    }

    fn value(sums: &[f64]) -> f64 {
        // Rounding can make the sum of logarithms of 1 positive.
        (-sums[0] / sums[1]).max(0.0).exp()
    }

    /// Probabilities of other tokens are no measure of each other.
    fn is_comparable(&self, reference: &Self) -> bool {
        self.tokens == reference.tokens
    }

    fn impossible(&self) -> Option<&'static str> {
        let possible = self.log_probability.is_finite() && self.log_probability <= 0.0 && self.tokens > 0;
        (!possible).then_some("needs a log-probability of at most 0 and at least one token")
    }
}

/// Measures a corpus metric. With `clusters`, the name of each item's cluster, whole clusters are drawn. `None` without items, or
/// if it is not a finite number.
pub fn corpus<T: CorpusItem>(items: &[T], clusters: Option<&[&str]>, resampling: Resampling) -> Option<Measurement> {
    let rows: Vec<f64> = items.iter().flat_map(CorpusItem::addends).collect();
    estimate(items.len(), &rows, clusters, &T::value, resampling)
}

/// Compares a corpus metric of a model with that of a reference on the same items, which are drawn in pairs, or in whole `clusters`
/// as in [`corpus`]. The difference is positive where the model is better. `None` without items, if two items cannot be compared,
/// or if a number is not finite.
pub fn compare_corpus<T: CorpusItem>(
    items: &[T],
    reference: &[T],
    clusters: Option<&[&str]>,
    resampling: Resampling,
) -> Option<Measurement> {
    let pairs = || items.iter().zip(reference);
    if items.len() != reference.len() || !pairs().all(|(own, other)| own.is_comparable(other)) {
        return None;
    }
    let rows: Vec<f64> = pairs().flat_map(|(own, other)| [own.addends(), other.addends()].concat()).collect();
    let difference = |sums: &[f64]| {
        let (own, other) = sums.split_at(sums.len() / 2);
        let gain = T::value(own) - T::value(other);
        // Subtracting from 0 keeps 0 positive.
        if T::LOWER_IS_BETTER { 0.0 - gain } else { gain }
    };
    estimate(items.len(), &rows, clusters, &difference, resampling)
}

/// Bootstraps a metric of `n` items, whose addends are `rows`.
fn estimate(
    n: usize,
    rows: &[f64],
    clusters: Option<&[&str]>,
    value: &dyn Fn(&[f64]) -> f64,
    resampling: Resampling,
) -> Option<Measurement> {
    let width = rows.len().checked_div(n)?;
    let (method, confidence, items) = (Method::Bootstrap, Some(resampling.confidence), n as u64);
    let Some(clusters) = clusters else {
        let (value, Bounds { lower, upper }) = bca(rows, width, value, resampling)?;
        let [value, lower, upper] = [value, lower, upper].map(Some);
        return Some(Measurement::Estimate { value, lower, upper, n: items, confidence, method });
    };
    let mut sums: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (cluster, row) in clusters.iter().zip(rows.chunks_exact(width)) {
        let sums = sums.entry(cluster).or_insert_with(|| vec![0.0; width]);
        sums.iter_mut().zip(row).for_each(|(sum, addend)| *sum += addend);
    }
    let n = sums.len() as u64;
    let drawn: Vec<f64> = sums.into_values().flatten().collect();
    let (value, Bounds { lower, upper }) = bca(&drawn, width, value, resampling)?;
    let [value, lower, upper] = [value, lower, upper].map(Some);
    Some(Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::Sample;

    /// What `corpus.py` beside `paired.py` computed.
    #[derive(Deserialize)]
    struct Golden {
        seed: u64,
        confidence: f64,
        bleu: Vec<BleuCounts>,
        other_bleu: Vec<BleuCounts>,
        perplexity: Vec<Likelihood>,
        other_perplexity: Vec<Likelihood>,
        /// Value, lower bound, upper bound of each metric, and of its comparison.
        expected: [[f64; 3]; 4],
    }

    fn numbers(measurement: Option<Measurement>) -> [f64; 3] {
        match measurement.expect("a measurement") {
            Measurement::Estimate { value, lower, upper, .. } => [value, lower, upper].map(|it| it.expect("finite")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_and_bounds_are_those_of_the_formula() {
        let golden: Golden = serde_json::from_str(include_str!("../fixtures/corpus.json")).expect("a fixture");
        let resampling = Resampling { seed: golden.seed, confidence: golden.confidence };
        let found = [
            corpus(&golden.bleu, None, resampling),
            compare_corpus(&golden.bleu, &golden.other_bleu, None, resampling),
            corpus(&golden.perplexity, None, resampling),
            compare_corpus(&golden.perplexity, &golden.other_perplexity, None, resampling),
        ];
        for (found, expected) in found.map(numbers).iter().flatten().zip(golden.expected.iter().flatten()) {
            assert!((found - expected).abs() <= 1e-7 * expected.abs().max(1.0), "{found} is not {expected}");
        }
    }

    fn counts(matches: [u32; 4], answer: u32, reference: u32) -> BleuCounts {
        let totals = [0, 1, 2, 3].map(|order| answer.saturating_sub(order));
        BleuCounts { matches, totals, answer, reference }
    }

    const AT_95: Resampling = Resampling { seed: 1, confidence: 0.95 };

    #[test]
    fn extremes_of_bleu() {
        let value = |item: BleuCounts| numbers(corpus(&[item; 3], None, AT_95))[0];
        assert!((value(counts([5, 4, 3, 2], 5, 5)) - 100.0).abs() < 1e-9);
        assert!(value(counts([0; 4], 5, 5)).abs() < f64::EPSILON, "no common token");
        assert!(value(counts([0; 4], 0, 5)).abs() < f64::EPSILON, "no answer");
        assert!(value(counts([3, 2, 1, 0], 3, 3)).abs() < f64::EPSILON, "no n-gram of four tokens at all");
        let short = value(counts([4, 3, 2, 1], 4, 8));
        assert!((short - 100.0 / 1_f64.exp()).abs() < 1e-9, "{short}");
    }

    #[test]
    fn a_lower_perplexity_is_an_improvement() {
        let of = |each: f64| vec![Likelihood { log_probability: each * 4.0, tokens: 4 }; 40];
        let [value, lower, upper] = numbers(compare_corpus(&of(-1.0), &of(-2.0), None, AT_95));
        assert!((value - (2_f64.exp() - 1_f64.exp())).abs() < 1e-12 && lower <= value && value <= upper);
        let [equal, ..] = numbers(compare_corpus(&of(-1.0), &of(-1.0), None, AT_95));
        assert!(equal == 0.0 && equal.is_sign_positive());
    }

    #[test]
    fn other_tokens_are_not_compared() {
        let of = |tokens| vec![Likelihood { log_probability: -1.0, tokens }; 40];
        assert_eq!(compare_corpus(&of(3), &of(4), None, AT_95), None);
        assert_eq!(compare_corpus(&of(3), &of(3)[1..], None, AT_95), None);
        assert_eq!(corpus::<Likelihood>(&[], None, AT_95), None);
    }

    #[test]
    fn clusters_are_drawn_whole() {
        // Twenty stories, in each of which every item is the same.
        let items: Vec<Likelihood> =
            (0..200).map(|item| Likelihood { log_probability: -1.0 - f64::from(item / 10 % 4), tokens: 2 }).collect();
        let names: Vec<String> = (0..200).map(|item| (item / 10).to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let alone = numbers(corpus(&items, None, AT_95));
        let clustered = corpus(&items, Some(&names), AT_95).expect("a measurement");
        let Measurement::ClusterEstimate {
            value: Some(value),
            lower: Some(lower),
            upper: Some(upper),
            n: 20,
            items: 200,
            ..
        } = clustered
        else {
            panic!("{clustered:?}")
        };
        assert!((value - alone[0]).abs() < 1e-12, "the value is that of all items");
        assert!(upper - lower > 2.0 * (alone[2] - alone[1]), "ten equal items are no ten pieces of evidence");
        let other: Vec<Likelihood> =
            items.iter().map(|it| Likelihood { log_probability: it.log_probability * 2.0, ..*it }).collect();
        let compared = compare_corpus(&items, &other, Some(&names), AT_95).expect("a measurement");
        assert_eq!((compared.kind().name(), compared.clustered_items()), ("clusterEstimate", Some(200)));
    }

    #[test]
    fn impossible_items_are_named() {
        assert_eq!(counts([3, 2, 1, 0], 3, 3).impossible(), None);
        assert!(counts([4, 2, 1, 0], 3, 3).impossible().is_some());
        assert!(BleuCounts { totals: [5, 4, 3, 3], answer: 5, ..BleuCounts::default() }.impossible().is_some());
        let of = |log_probability, tokens| Likelihood { log_probability, tokens }.impossible();
        assert_eq!(of(-1.0, 1), None);
        assert!([of(1.0, 1), of(f64::NAN, 1), of(f64::NEG_INFINITY, 1), of(-1.0, 0)].iter().all(Option::is_some));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn measurements_are_possible(items in prop::collection::vec((0_u32..12, 1_u32..12, 0_u32..12), 1..40)) {
            let items: Vec<BleuCounts> = items
                .into_iter()
                .map(|(answer, reference, right)| {
                    counts([0, 1, 2, 3].map(|order| right.min(answer).saturating_sub(order)), answer, reference)
                })
                .collect();
            prop_assert!(items.iter().all(|item| item.impossible().is_none()));
            let sample = Sample::of(&corpus(&items, None, AT_95).expect("finite")).expect("possible");
            prop_assert!((0.0..=100.0).contains(&sample.value()));
        }
    }
}
