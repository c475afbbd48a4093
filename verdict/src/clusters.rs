//! Clusters of items, such as problems that share a story: their outcomes depend on each other, so that they are one piece of evidence.
//! Pure.
//!
//! The value of a cluster is the mean of its items, and the metric is the mean over the clusters, each of which counts the same however
//! many items it has. If clusters are drawn independently, so are their values, which are in [0, 1] (differences in [−1, 1]) whatever
//! happens within a cluster. So the empirical Bernstein bound of [`bounds`](crate::bounds()) holds with clusters for items: the unit of
//! analysis is the unit that was drawn, as in Donner and Klar 2000, Design and Analysis of Cluster Randomization Trials, section 6.3.
//! Corpus metrics draw whole clusters instead: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.

use std::collections::BTreeMap;

use crate::Measurement;

/// Collects values of items by the name of their cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusteredValues<'a>(BTreeMap<&'a str, (f64, u64)>);

impl<'a> ClusteredValues<'a> {
    /// Adds the value of an item of a cluster: from 0 to 1, or a difference from −1 to 1.
    pub fn add(&mut self, cluster: &'a str, value: f64) {
        let (sum, items) = self.0.entry(cluster).or_default();
        *sum += value;
        *items += 1;
    }

    /// Returns the measurement of values from 0 to 1; `None` without items.
    pub fn mean(&self) -> Option<Measurement> {
        let (n, items, sum, sum_of_squares) = self.sums()?;
        Some(Measurement::ClusterMean { n, items, sum: Some(sum), sum_of_squares: Some(sum_of_squares) })
    }

    /// Returns the measurement of differences from −1 to 1; `None` without items.
    pub fn difference(&self) -> Option<Measurement> {
        let (n, items, sum, sum_of_squares) = self.sums()?;
        Some(Measurement::ClusterDifference { n, items, sum: Some(sum), sum_of_squares: Some(sum_of_squares) })
    }

    /// Returns clusters, items, and the sums of the clusters' means and of their squares.
    pub(crate) fn sums(&self) -> Option<(u64, u64, f64, f64)> {
        let means = || self.0.values().map(|(sum, items)| sum / *items as f64);
        let items = self.0.values().map(|(_, items)| items).sum();
        let squares = means().map(|mean| mean * mean).sum();
        (!self.0.is_empty()).then(|| (self.0.len() as u64, items, means().sum(), squares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    #[test]
    fn every_cluster_counts_the_same() {
        let mut values = ClusteredValues::default();
        for (cluster, value) in [("a", 1.0), ("b", 0.0), ("a", 1.0), ("a", 1.0), ("b", 1.0)] {
            values.add(cluster, value);
        }
        let expected = Measurement::ClusterMean { n: 2, items: 5, sum: Some(1.5), sum_of_squares: Some(1.25) };
        assert_eq!(values.mean(), Some(expected));
        assert!((Sample::of(&expected).expect("possible").value() - 0.75).abs() < 1e-15, "4 of 5 would be 0.8");
        assert_eq!(ClusteredValues::default().mean(), None);
        let mut differences = ClusteredValues::default();
        for value in [1.0, -1.0, -1.0] {
            differences.add("a", value);
        }
        let Some(Measurement::ClusterDifference { n: 1, items: 3, sum: Some(sum), .. }) = differences.difference()
        else {
            panic!("{differences:?}");
        };
        assert!((sum + 1.0 / 3.0).abs() < 1e-15, "{sum}");
    }
}
