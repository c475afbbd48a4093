//! The lowest mean of several categories of items, such as the templates of problems. Pure.
//!
//! A mean over all items can hide a category in which a model fails. The lowest true mean is at least a limit exactly if that of every
//! category is. So its lower bound is the lowest of the categories' lower bounds, each at the confidence of the whole: it is wrong only if
//! the bound of the category with the lowest true mean is wrong (the intersection-union test of Berger 1982, Technometrics 24:295–300).
//! Its upper bound is the lowest of their upper bounds, any of which can be wrong, so that Bonferroni's inequality divides the error
//! among them.
//!
//! The lowest mean of a model minus that of a reference is at least the difference in the model's lowest category, and at most the
//! difference in the reference's. So its bounds are the lowest and the greatest bound of the differences in any category, again each at
//! the confidence of the whole.
//!
//! The bounds of a category are those of [`bounds`](crate::bounds()), so they hold exactly. `n` is that of the category with the fewest
//! items, or clusters of items.

use std::collections::BTreeMap;

use crate::{Bounds, ClusteredValues, Measurement, Method, bounds};

/// A value of an item of a category.
#[derive(Clone, Copy, Debug)]
pub struct Categorized<'a> {
    /// Category of the item.
    pub category: &'a str,
    /// Cluster of the item; `None` if items have none.
    pub cluster: Option<&'a str>,
    /// Value, from 0 to 1.
    pub value: f64,
}

/// The values of a category.
#[derive(Debug, Default)]
struct Category<'a> {
    n: u64,
    sum: f64,
    squares: f64,
    clusters: ClusteredValues<'a>,
}

/// The sums over the values of a category, or over the means of its clusters.
#[derive(Clone, Copy, Debug)]
struct Sums {
    n: u64,
    /// The items in its clusters; `None` if each item counts on its own.
    items: Option<u64>,
    sum: f64,
    squares: f64,
}

impl<'a> Category<'a> {
    fn add(&mut self, cluster: Option<&'a str>, value: f64) {
        self.n += 1;
        self.sum += value;
        self.squares += value * value;
        if let Some(cluster) = cluster {
            self.clusters.add(cluster, value);
        }
    }

    fn sums(&self) -> Sums {
        match self.clusters.sums() {
            Some((n, items, sum, squares)) => Sums { n, items: Some(items), sum, squares },
            None => Sums { n: self.n, items: None, sum: self.sum, squares: self.squares },
        }
    }
}

/// Returns the sums of each category.
fn categories<'a>(items: impl IntoIterator<Item = Categorized<'a>>) -> Vec<Sums> {
    let mut categories: BTreeMap<&str, Category> = BTreeMap::new();
    for Categorized { category, cluster, value } in items {
        categories.entry(category).or_default().add(cluster, value);
    }
    categories.values().map(Category::sums).collect()
}

/// Returns the lowest mean; `None` without categories.
fn lowest(categories: &[Sums]) -> Option<f64> {
    categories.iter().map(|it| it.sum / it.n as f64).min_by(f64::total_cmp)
}

/// Measures the lowest mean of any category. `None` without items.
pub fn lowest_mean<'a>(items: impl IntoIterator<Item = Categorized<'a>>, confidence: f64) -> Option<Measurement> {
    let categories = categories(items);
    let each = 1.0 - (1.0 - confidence) / categories.len() as f64;
    let of = |it: &Sums, confidence| bounds::mean(it.n as f64, it.sum, it.squares, confidence);
    let lower = categories.iter().map(|it| of(it, confidence).lower).min_by(f64::total_cmp)?;
    let upper = categories.iter().map(|it| of(it, each).upper).min_by(f64::total_cmp)?;
    estimate(&categories, lowest(&categories)?, Bounds { lower, upper }, confidence)
}

/// Compares the lowest mean of a model with that of a reference on the same items. Each item has the value of the model, and then that of
/// the reference. The difference is positive where the model is better. `None` without items.
pub fn compare_lowest<'a>(
    pairs: impl IntoIterator<Item = (Categorized<'a>, f64)>,
    confidence: f64,
) -> Option<Measurement> {
    let pairs: Vec<(Categorized, f64)> = pairs.into_iter().collect();
    let own = categories(pairs.iter().map(|(own, _)| *own));
    let reference = categories(pairs.iter().map(|(own, reference)| Categorized { value: *reference, ..*own }));
    let differences =
        categories(pairs.iter().map(|(own, reference)| Categorized { value: own.value - reference, ..*own }));
    let of = |it: &Sums| bounds::difference(it.n as f64, it.sum, it.squares, confidence);
    let lower = differences.iter().map(|it| of(it).lower).min_by(f64::total_cmp)?;
    let upper = differences.iter().map(|it| of(it).upper).max_by(f64::total_cmp)?;
    estimate(&differences, lowest(&own)? - lowest(&reference)?, Bounds { lower, upper }, confidence)
}

/// Returns the estimate of a value over categories.
fn estimate(categories: &[Sums], value: f64, bounds: Bounds, confidence: f64) -> Option<Measurement> {
    let Sums { n, items, .. } = *categories.iter().min_by_key(|it| it.n)?;
    let [value, lower, upper, confidence] = [value, bounds.lower, bounds.upper, confidence].map(Some);
    let method = Method::Bernstein;
    Some(match items {
        None => Measurement::Estimate { value, lower, upper, n, confidence, method },
        Some(items) => Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sample, paired::agrees};

    /// The first `right` of `n` items of a category are 1, the others 0.
    fn items(category: &str, right: usize, n: usize) -> Vec<Categorized<'_>> {
        let value = |index| if index < right { 1.0 } else { 0.0 };
        (0..n).map(|index| Categorized { category, cluster: None, value: value(index) }).collect()
    }

    /// Returns the value, the lower and the upper bound, and the number of items.
    fn numbers(measurement: Option<Measurement>) -> (f64, f64, f64, u64) {
        match Sample::of(&measurement.expect("a measurement")).expect("possible") {
            Sample::Estimate { value, bounds, n, confidence: _, method: Method::Bernstein } => {
                (value, bounds.lower, bounds.upper, n)
            }
            other => panic!("{other:?}"),
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn the_lowest_category_decides_both_bounds() {
        // 100 of 200: variance 50/199. ln(2/δ) is ln 40 at 95 %, and ln 80 at half the error.
        let all = [items("addition", 400, 400), items("division", 100, 200)].concat();
        let (value, lower, upper, n) = numbers(lowest_mean(all, 0.95));
        let margin = |log: f64| (2.0 * (50.0 / 199.0) * log / 200.0).sqrt() + 7.0 * log / (3.0 * 199.0);
        near(value, 0.5);
        near(lower, 0.5 - margin(40_f64.ln()));
        near(upper, 0.5 + margin(80_f64.ln()));
        assert_eq!(n, 200);
        assert_eq!(lowest_mean([], 0.95), None);
    }

    #[test]
    fn a_category_of_few_items_proves_little_however_good_it_is() {
        let all = [items("addition", 380, 400), items("division", 10, 10)].concat();
        let (value, lower, _, n) = numbers(lowest_mean(all, 0.95));
        near(value, 0.95);
        near(lower, 1.0 - 7.0 * 40_f64.ln() / 27.0);
        assert_eq!(n, 10);
        let (_, lower, _, n) = numbers(lowest_mean([items("addition", 380, 400), items("one", 1, 1)].concat(), 0.95));
        assert_eq!((lower, n), (0.0, 1), "one value bounds nothing");
    }

    #[test]
    fn one_category_has_the_bounds_of_its_mean() {
        let (value, lower, upper, n) = numbers(lowest_mean(items("addition", 70, 90), 0.9));
        let mean = bounds::mean(90.0, 70.0, 70.0, 0.9);
        assert_eq!((value, lower, upper, n), (70.0 / 90.0, mean.lower, mean.upper, 90));
    }

    #[test]
    fn clusters_count_in_their_category() {
        let clustered = |category, clusters: [&'static str; 3]| {
            clusters.map(|cluster| Categorized { category, cluster: Some(cluster), value: 0.5 })
        };
        let all = [clustered("addition", ["a", "a", "b"]), clustered("division", ["c", "d", "e"])].concat();
        let Some(Measurement::ClusterEstimate { value, n, items, .. }) = lowest_mean(all, 0.95) else {
            panic!("no clusters");
        };
        assert_eq!((value, n, items), (Some(0.5), 2, 3));
    }

    #[test]
    fn a_comparison_is_the_difference_of_both_lowest_means() {
        let own = [items("addition", 300, 300), items("division", 90, 100)].concat();
        let reference = [items("addition", 210, 300), items("division", 80, 100)].concat();
        let pairs = own.iter().copied().zip(reference.iter().map(|it| it.value));
        let compared = compare_lowest(pairs, 0.95);
        let (value, lower, upper, n) = numbers(compared);
        near(value, 0.9 - 0.7);
        // Ten of 100 divisions and 90 of 300 additions are right only here.
        near(lower, bounds::difference(100.0, 10.0, 10.0, 0.95).lower);
        near(upper, bounds::difference(300.0, 90.0, 90.0, 0.95).upper);
        assert_eq!(n, 100);
        let [own, reference] = [own, reference].map(|it| lowest_mean(it, 0.95).expect("a measurement"));
        agrees(&compared.expect("a comparison"), &own, &reference, false).expect("the difference of both");
    }
}
