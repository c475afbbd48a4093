//! How records of several sources alternate: the source of each example, and its number among the examples of that source, as a
//! function of the example's number alone. Pure.
//!
//! Of the first `n` examples, `n · w / W` rounded up are of the first source, where `w` is its weight and `W` the sum of all; the
//! others are divided among the other sources in the same way. All arithmetic is in whole numbers, so every machine has the same
//! order, and equal weights give the sources in turn.

use std::collections::BTreeMap;

/// Weights are counted in millionths, the smallest weight that a configuration can have.
const UNIT: f64 = 1_000_000.0;

/// Relative weights of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mix {
    /// Weight of each source, in millionths.
    weights: Vec<u64>,
}

impl Mix {
    /// Returns the mix of the sources `names`. Those without a weight have weight 1.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>, weights: Option<&BTreeMap<String, f64>>) -> Self {
        let weight = |name: &str| weights.and_then(|weights| weights.get(name)).copied().unwrap_or(1.0);
        Self { weights: names.into_iter().map(|name| ((weight(name) * UNIT).round() as u64).max(1)).collect() }
    }

    /// Returns the source of the example with this number, and how many earlier examples are of the same source. Takes time
    /// in proportion to the number of sources.
    pub(super) fn draw(&self, example: u64) -> (usize, u64) {
        let (mut at, mut total) = (u128::from(example), self.total());
        let last = self.weights.len().saturating_sub(1);
        for (source, weight) in self.weights[..last].iter().enumerate() {
            let weight = u128::from(*weight);
            let [before, after] = [at, at + 1].map(|count| (count * weight).div_ceil(total));
            if after > before {
                return (source, before as u64);
            }
            at -= before;
            total -= weight;
        }
        (last, at as u64)
    }

    /// Returns the share of the examples that are of each source.
    pub(super) fn shares(&self) -> impl Iterator<Item = f64> {
        let total = self.total() as f64;
        self.weights.iter().map(move |weight| *weight as f64 / total)
    }

    /// Returns upper bounds of the number of examples of each source among `count` consecutive ones.
    pub(super) fn most(&self, count: usize) -> Vec<usize> {
        let (mut left, mut total) = (count as u128, self.total());
        let bound = |weight: &u64| {
            let weight = u128::from(*weight);
            let [here, others] = [weight, total - weight].map(|weight| (left * weight).div_ceil(total));
            (left, total) = (others, total - weight);
            here as usize
        };
        self.weights.iter().map(bound).collect()
    }

    fn total(&self) -> u128 {
        self.weights.iter().map(|weight| u128::from(*weight)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mix(weights: &[f64]) -> Mix {
        let names: Vec<String> = (0..weights.len()).map(|index| index.to_string()).collect();
        let weights = names.iter().cloned().zip(weights.iter().copied()).collect();
        Mix::new(names.iter().map(String::as_str), Some(&weights))
    }

    #[test]
    fn equal_weights_take_the_sources_in_turn() {
        for count in 1..6_u64 {
            let names: Vec<String> = (0..count).map(|index| index.to_string()).collect();
            for mix in [Mix::new(names.iter().map(String::as_str), None), mix(&vec![0.3; count as usize])] {
                for example in (0..100).chain(u64::MAX - 100..u64::MAX) {
                    assert_eq!(mix.draw(example), ((example % count) as usize, example / count));
                }
            }
        }
    }

    #[test]
    fn shares_are_exact_after_each_cycle() {
        let order: Vec<usize> = (0..8).map(|example| mix(&[3.0, 1.0]).draw(example).0).collect();
        assert_eq!(order, [0, 0, 0, 1, 0, 0, 0, 1]);
        let mix = mix(&[0.7, 0.2, 0.1]);
        let mut counts = [0; 3];
        for example in 0..1000 {
            counts[mix.draw(example).0] += 1;
            if example % 10 == 9 {
                assert_eq!(counts, [7, 2, 1].map(|share| share * (example + 1) / 10));
            }
        }
    }

    proptest! {
        /// The draws of each source are numbered without gaps, and no window has more of a source than its bound.
        #[test]
        fn draws_are_counted(weights in prop::collection::vec(0.000_001_f64..50.0, 1..6), window in 1_usize..40) {
            let mix = mix(&weights);
            let (mut drawn, mut order) = (vec![0; weights.len()], Vec::new());
            for example in 0..400 {
                let (source, draw) = mix.draw(example);
                prop_assert_eq!(draw, drawn[source]);
                drawn[source] += 1;
                order.push(source);
            }
            let most = mix.most(window);
            for examples in order.windows(window) {
                for (source, most) in most.iter().enumerate() {
                    prop_assert!(examples.iter().filter(|of| **of == source).count() <= *most);
                }
            }
            for (share, drawn) in mix.shares().zip(&drawn) {
                prop_assert!((share * 400.0 - *drawn as f64).abs() < weights.len() as f64);
            }
        }
    }
}
