//! Comparison with a reference, item by item: another Evaluation of the same problems. Pure.
//!
//! The difference of an item is the model's value minus the reference's, or the reverse if a lower value is better, so that it is
//! positive where the model is better. A gate with `betterThan` or `notWorseThan` bounds the mean difference from below:
//!
//! - by 0 on a share: the exact one-sided test of McNemar 1947. Under the hypothesis that the model is not better, each of the
//!   items that only one of both got right is a fair coin.
//! - on a corpus metric: the bootstrap of [`corpus`](crate::corpus) on pairs, which is approximate;
//! - otherwise: the empirical Bernstein bound on differences in [−1, 1].

use codex_provenance::text::counted;
use statrs::function::beta::beta_reg;

use crate::{Impossible, Kind, Measurement, Metric, Sample, bounds::EXACT};

/// Separates the metric and the reference in the name of a comparison, such as `exact_match@before`.
pub(crate) const SEPARATOR: char = '@';
/// The most Evaluations that an Evaluation is compared with.
pub const MAX_REFERENCES: usize = 4;
/// How far a difference of sums may stray from the sum of differences through rounding, for each item.
const TOLERANCE: f64 = 1e-9;

/// Returns the name of the measurement that compares a metric with the Evaluation called `reference`.
pub fn paired_name(metric: Metric, reference: &str) -> String {
    format!("{metric}{SEPARATOR}{reference}")
}

/// Returns the name of the outcomes of the Evaluation called `reference` among the data of an Evaluation.
pub fn reference_file(reference: &str) -> String {
    format!("reference-{reference}")
}

/// Returns the exact one-sided p-value of McNemar's test: the probability of at least this many wins among `wins + losses` fair
/// coins. Counts may be fractions, because [`needed`](crate::needed::needed) scales them. For more items than the incomplete
/// beta function is accurate for, the Chernoff bound, which is slightly greater.
pub(crate) fn mcnemar(wins: f64, losses: f64) -> f64 {
    let n = wins + losses;
    if wins <= 0.0 {
        1.0
    } else if n <= EXACT {
        beta_reg(wins, losses + 1.0, 0.5).min(1.0)
    } else if wins <= losses {
        1.0
    } else {
        let term = |count: f64| if count > 0.0 { count * (2.0 * count / n).ln() } else { 0.0 };
        (-(term(wins) + term(losses))).exp()
    }
}

/// Collects the values of a metric in pairs.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairedDifferences {
    wins: u64,
    losses: u64,
    n: u64,
    sum: f64,
    squares: f64,
}

impl PairedDifferences {
    /// Adds an item with the values of the model and of the reference, both in [0, 1].
    pub fn add(&mut self, model: f64, reference: f64) {
        let difference = model - reference;
        self.n += 1;
        self.wins += u64::from(difference > 0.0);
        self.losses += u64::from(difference < 0.0);
        self.sum += difference;
        self.squares += difference * difference;
    }

    /// Returns the measurement of a metric of this `kind` in comparison; `None` if there is no pair, or if such a metric is not
    /// the mean of its items.
    pub fn measurement(&self, kind: Kind) -> Option<Measurement> {
        let Self { wins, losses, n, sum, squares } = *self;
        (n > 0).then_some(())?;
        match kind.paired() {
            Kind::Duel => Some(Measurement::Duel { wins, ties: n - wins - losses, losses }),
            Kind::Difference => Some(Measurement::Difference { n, sum: Some(sum), sum_of_squares: Some(squares) }),
            Kind::Share
            | Kind::Mean
            | Kind::Estimate
            | Kind::ClusterMean
            | Kind::ClusterDifference
            | Kind::ClusterEstimate => None,
        }
    }
}

/// Why a comparison contradicts the measurements that it compares.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Inconsistent {
    /// A measurement is impossible.
    #[error("a measurement is impossible: {0}")]
    Impossible(#[from] Impossible),
    /// The comparison has other items.
    #[error("it pairs {pairs} {units}, but the model was measured on {model} and the reference on {reference}")]
    Items {
        /// What is counted: items or clusters.
        units: &'static str,
        /// Pairs.
        pairs: u64,
        /// Items of the model.
        model: u64,
        /// Items of the reference.
        reference: u64,
    },
    /// The clusters have other items, or only some of the measurements have clusters.
    #[error(
        "it pairs {}, but the model was measured on {} and the reference on {}",
        clusters(*pairs), clusters(*model), clusters(*reference)
    )]
    Clusters {
        /// Items in the clusters of the comparison; `None` without clusters.
        pairs: Option<u64>,
        /// Items in the clusters of the model; `None` without clusters.
        model: Option<u64>,
        /// Items in the clusters of the reference; `None` without clusters.
        reference: Option<u64>,
    },
    /// The comparison has another mean difference.
    #[error("its difference is {stated}, but the model has {model} and the reference {reference}")]
    Difference {
        /// The difference of the comparison.
        stated: f64,
        /// The value of the model.
        model: f64,
        /// The value of the reference.
        reference: f64,
    },
}

/// Describes the items of a measurement whose clusters have so many.
fn clusters(items: Option<u64>) -> String {
    items.map_or_else(|| "items without clusters".to_owned(), |items| format!("{} in clusters", counted(items, "item")))
}

/// Checks that `pairs`, which compares a metric, agrees with the measurements of the model and of the reference: same items, and
/// a mean difference that is the difference of both means, positive where the model is better.
///
/// # Errors
/// [`Inconsistent`] if no items can give these three measurements.
pub(crate) fn agrees(
    pairs: &Measurement,
    model: &Measurement,
    reference: &Measurement,
    lower_is_better: bool,
) -> Result<(), Inconsistent> {
    let items = [pairs, model, reference].map(Measurement::clustered_items);
    if items.iter().any(|other| *other != items[0]) {
        let [pairs, model, reference] = items;
        return Err(Inconsistent::Clusters { pairs, model, reference });
    }
    let (pairs, model, reference) = (Sample::paired(pairs)?, Sample::of(model)?, Sample::of(reference)?);
    if pairs.n() != model.n() || pairs.n() != reference.n() {
        let units = if items[0].is_some() { "clusters" } else { "items" };
        return Err(Inconsistent::Items { units, pairs: pairs.n(), model: model.n(), reference: reference.n() });
    }
    let (stated, model, reference) = (pairs.value(), model.value(), reference.value());
    let scale = model.abs().max(reference.abs()).max(1.0);
    let gain = if lower_is_better { reference - model } else { model - reference };
    if (stated - gain).abs() > TOLERANCE * scale {
        return Err(Inconsistent::Difference { stated, model, reference });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::bounds::difference;

    /// What `paired.py` beside this file computed.
    #[derive(Deserialize)]
    struct Golden {
        mcnemar: Vec<(u64, u64, f64)>,
        difference: Vec<(f64, f64, f64, f64, f64, f64)>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../fixtures/paired.json")).expect("a fixture")
    }

    #[test]
    fn p_values_are_those_of_exact_fractions() {
        let cases = golden().mcnemar;
        assert!(cases.len() > 20);
        for (wins, losses, expected) in cases {
            let found = mcnemar(wins as f64, losses as f64);
            assert!((found - expected).abs() <= 1e-8 * expected, "{wins} {losses}: {found} is not {expected}");
        }
    }

    #[test]
    fn bounds_are_those_of_the_theorem() {
        let cases = golden().difference;
        assert!(cases.len() > 5);
        for (n, sum, squares, confidence, lower, upper) in cases {
            let found = difference(n, sum, squares, confidence);
            assert!((found.lower - lower).abs() < 1e-9, "{} is not {lower}", found.lower);
            assert!((found.upper - upper).abs() < 1e-9, "{} is not {upper}", found.upper);
        }
    }

    #[test]
    fn beyond_the_limit_p_values_are_slightly_greater() {
        let exact = mcnemar(50_500.0, 49_500.0);
        let chernoff = mcnemar(50_501.0, 49_500.0);
        assert!(chernoff > exact && chernoff < 0.02, "{exact} {chernoff}");
        assert!((mcnemar(200_000.0, 0.0)).abs() < 1e-300);
        assert!((mcnemar(1e6, 1e6) - 1.0).abs() < 1e-12);
    }

    fn ln_choose(n: u32, k: u32) -> f64 {
        (1..=k).map(|i| f64::from(n - k + i).ln() - f64::from(i).ln()).sum()
    }

    /// The probability of so many wins and losses among n items.
    fn weight(n: u32, wins: u32, losses: u32, win: f64, lose: f64) -> f64 {
        let power = |share: f64, count: u32| if count == 0 { 0.0 } else { f64::from(count) * share.ln() };
        let ways = ln_choose(n, wins) + ln_choose(n - wins, losses);
        (ways + power(win, wins) + power(lose, losses) + power(1.0 - win - lose, n - wins - losses)).exp()
    }

    /// The share of false passes when the model is not better, summed over every outcome.
    #[test]
    fn a_model_that_is_not_better_passes_no_more_often_than_allowed() {
        for n in [5, 20, 60] {
            for (win, lose) in [(0.5, 0.5), (0.1, 0.1), (0.01, 0.01), (0.3, 0.35), (0.0, 0.2)] {
                for confidence in [0.8, 0.95] {
                    let (mut exact, mut bernstein) = (0.0, 0.0);
                    for wins in 0..=n {
                        for losses in 0..=n - wins {
                            if (wins > 0 && win <= 0.0) || (wins + losses < n && win + lose >= 1.0) {
                                continue;
                            }
                            let weight = weight(n, wins, losses, win, lose);
                            let (w, l) = (f64::from(wins), f64::from(losses));
                            exact += if mcnemar(w, l) <= 1.0 - confidence { weight } else { 0.0 };
                            let lower = difference(f64::from(n), w - l, w + l, confidence).lower;
                            bernstein += if lower > win - lose { weight } else { 0.0 };
                        }
                    }
                    assert!(exact <= 1.0 - confidence + 1e-9, "n {n} {win} {lose}: {exact}");
                    assert!(bernstein <= 1.0 - confidence + 1e-9, "n {n} {win} {lose}: {bernstein}");
                }
            }
        }
    }

    #[test]
    fn contradicting_measurements_are_refused() {
        let share = |successes, n| Measurement::Share { successes, n };
        let pairs = |wins, ties, losses| Measurement::Duel { wins, ties, losses };
        agrees(&pairs(40, 55, 5), &share(80, 100), &share(45, 100), false).expect("40 - 5 = 80 - 45");
        assert_eq!(
            agrees(&pairs(41, 54, 5), &share(80, 100), &share(45, 100), false).expect_err("refused").to_string(),
            "its difference is 0.36, but the model has 0.8 and the reference 0.45"
        );
        assert_eq!(
            agrees(&pairs(40, 54, 5), &share(80, 100), &share(45, 100), false).expect_err("refused").to_string(),
            "it pairs 99 items, but the model was measured on 100 and the reference on 100"
        );
        let mean = |sum: f64| Measurement::Mean { n: 10, sum: Some(sum), sum_of_squares: Some(sum * sum / 10.0) };
        let by = |sum| Measurement::Difference { n: 10, sum: Some(sum), sum_of_squares: Some(1.0) };
        agrees(&by(2.0), &mean(8.0), &mean(6.0), false).expect("2 = 8 - 6");
        agrees(&by(-2.0), &mean(8.0), &mean(6.0), false).expect_err("another sign");
        agrees(&by(-2.0), &mean(8.0), &mean(6.0), true).expect("a lower value is better");
    }

    #[test]
    fn clusters_are_paired_with_clusters() {
        let mean = |n, items, sum: f64| Measurement::ClusterMean {
            n,
            items,
            sum: Some(sum),
            sum_of_squares: Some(sum * sum / n as f64),
        };
        let pairs =
            |n, items, sum| Measurement::ClusterDifference { n, items, sum: Some(sum), sum_of_squares: Some(1.0) };
        let told = |pairs: Measurement, model: Measurement| {
            agrees(&pairs, &model, &mean(10, 40, 6.0), false).expect_err("refused").to_string()
        };
        agrees(&pairs(10, 40, 2.0), &mean(10, 40, 8.0), &mean(10, 40, 6.0), false).expect("2 = 8 - 6");
        assert!(
            told(pairs(10, 40, 1.0), mean(10, 40, 8.0)).starts_with("its difference is 0.1, but the model has 0.8")
        );
        assert_eq!(
            told(pairs(9, 40, 2.0), mean(10, 40, 8.0)),
            "it pairs 9 clusters, but the model was measured on 10 and the reference on 10"
        );
        assert_eq!(
            told(pairs(10, 41, 2.0), mean(10, 40, 8.0)),
            "it pairs 41 items in clusters, but the model was measured on 40 items in clusters and the reference on 40 items in \
             clusters"
        );
        let alone = Measurement::Mean { n: 10, sum: Some(8.0), sum_of_squares: Some(6.4) };
        assert!(told(pairs(10, 40, 2.0), alone).contains("the model was measured on items without clusters"));
    }

    proptest! {
        #[test]
        fn p_values_are_probabilities_that_wins_lower(wins in 0_u32..3000, losses in 0_u32..3000) {
            let (wins, losses) = (f64::from(wins), f64::from(losses));
            let found = mcnemar(wins, losses);
            prop_assert!((0.0..=1.0).contains(&found));
            prop_assert!(mcnemar(wins + 1.0, losses) <= found + 1e-9);
            prop_assert!(mcnemar(wins, losses + 1.0) >= found - 1e-9);
            // Both tails together count the observed number twice.
            prop_assert!(found + mcnemar(losses, wins) >= 1.0 - 1e-9);
        }

        #[test]
        fn bounds_of_differences_are_symmetric(n in 2_u32..2000, share in -1.0_f64..=1.0, spread in 0.0_f64..=1.0) {
            let n = f64::from(n);
            let squares = n * (share * share + spread * (1.0 - share * share));
            let (one, other) = (difference(n, share * n, squares, 0.9), difference(n, -share * n, squares, 0.9));
            prop_assert!((one.lower + other.upper).abs() < 1e-12 && (one.upper + other.lower).abs() < 1e-12);
            prop_assert!(one.lower <= share && share <= one.upper);
        }

        #[test]
        fn what_is_collected_agrees(values in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u32..=7, 0_u32..=7), 1..80)) {
            let (mut right, mut mean) = (PairedDifferences::default(), PairedDifferences::default());
            for (model, reference, a, b) in &values {
                right.add(f64::from(u8::from(*model)), f64::from(u8::from(*reference)));
                mean.add(f64::from(*a) / 7.0, f64::from(*b) / 7.0);
            }
            let n = values.len() as u64;
            let count = |of: fn(&(bool, bool, u32, u32)) -> bool| Measurement::Share {
                successes: values.iter().filter(|value| of(value)).count() as u64,
                n,
            };
            let pairs = right.measurement(Kind::Share).expect("pairs");
            prop_assert_eq!(agrees(&pairs, &count(|it| it.0), &count(|it| it.1), false), Ok(()));
            let of = |of: fn(&(bool, bool, u32, u32)) -> u32| {
                let each = values.iter().map(|value| f64::from(of(value)) / 7.0);
                let squares = each.clone().map(|value| value * value).sum();
                Measurement::Mean { n, sum: Some(each.sum()), sum_of_squares: Some(squares) }
            };
            let pairs = mean.measurement(Kind::Mean).expect("pairs");
            prop_assert_eq!(agrees(&pairs, &of(|it| it.2), &of(|it| it.3), false), Ok(()));
        }
    }
}
