//! What an evaluator reports for a metric. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The measurement of one metric: enough to bound it, never a bare ratio.
///
/// JSON has no NaN and no infinity. A number that is not finite travels as null, and is refused by
/// [`Sample::of`](crate::Sample::of).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum Measurement {
    /// A share of items, such as `exact_match`.
    Share {
        /// Items that hold.
        successes: u64,
        /// Items, attempted or not.
        n: u64,
    },
    /// Won, tied and lost comparisons, such as `reasoning.win_rate`; a tie counts half.
    Duel {
        /// Items where the model is right and the baseline is not.
        wins: u64,
        /// Items where both are right or both are wrong.
        ties: u64,
        /// Items where the baseline is right and the model is not.
        losses: u64,
    },
    /// A mean over items of values in [0, 1], such as `trace_coverage`.
    Mean {
        /// Items.
        n: u64,
        /// Σx; null if it is not finite.
        sum: Option<f64>,
        /// Σx²; null if it is not finite.
        sum_of_squares: Option<f64>,
    },
    /// Differences between the model and a reference on the same items, each in [−1, 1] and positive where the model is
    /// better.
    Difference {
        /// Items.
        n: u64,
        /// Σd; null if it is not finite.
        sum: Option<f64>,
        /// Σd²; null if it is not finite.
        sum_of_squares: Option<f64>,
    },
    /// A number with its own bounds, for a metric that is not a mean of values in [0, 1], such as `bleu`.
    Estimate {
        /// The number; null if it is not finite.
        value: Option<f64>,
        /// The one-sided lower bound; null if it is not finite.
        lower: Option<f64>,
        /// The one-sided upper bound; null if it is not finite.
        upper: Option<f64>,
        /// Items.
        n: u64,
        /// The one-sided confidence of each bound on its own; null if it is not finite.
        confidence: Option<f64>,
        /// How the bounds were computed.
        method: Method,
    },
    /// A mean over clusters of items. The value of a cluster is the mean of its items, in [0, 1], and every cluster counts the
    /// same. It takes the place of a share, a duel or a mean where the problems name clusters.
    ClusterMean {
        /// Clusters.
        n: u64,
        /// Items in all clusters.
        items: u64,
        /// Σx over the clusters; null if it is not finite.
        sum: Option<f64>,
        /// Σx² over the clusters; null if it is not finite.
        sum_of_squares: Option<f64>,
    },
    /// Differences between the model and a reference on the same clusters, each the mean over the items of a cluster, in
    /// [−1, 1] and positive where the model is better.
    ClusterDifference {
        /// Clusters.
        n: u64,
        /// Items in all clusters.
        items: u64,
        /// Σd over the clusters; null if it is not finite.
        sum: Option<f64>,
        /// Σd² over the clusters; null if it is not finite.
        sum_of_squares: Option<f64>,
    },
    /// A number of all items together whose bounds come from drawing clusters.
    ClusterEstimate {
        /// The number; null if it is not finite.
        value: Option<f64>,
        /// The one-sided lower bound; null if it is not finite.
        lower: Option<f64>,
        /// The one-sided upper bound; null if it is not finite.
        upper: Option<f64>,
        /// Clusters.
        n: u64,
        /// Items in all clusters.
        items: u64,
        /// The one-sided confidence of each bound on its own; null if it is not finite.
        confidence: Option<f64>,
        /// How the bounds were computed.
        method: Method,
    },
}

/// How an evaluator bounds an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum Method {
    /// Resampling the items with replacement.
    Bootstrap,
    /// The lowest of the empirical Bernstein bounds of several means.
    Bernstein,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 2] = [Self::Bootstrap, Self::Bernstein];

    /// Returns the name that reports and statuses carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Bernstein => "bernstein",
        }
    }

    /// Returns whether the bounds hold only approximately.
    pub const fn is_approximate(self) -> bool {
        matches!(self, Self::Bootstrap)
    }
}

/// The kind of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Measurement::Share`].
    Share,
    /// [`Measurement::Duel`].
    Duel,
    /// [`Measurement::Mean`].
    Mean,
    /// [`Measurement::Difference`].
    Difference,
    /// [`Measurement::Estimate`].
    Estimate,
    /// [`Measurement::ClusterMean`].
    ClusterMean,
    /// [`Measurement::ClusterDifference`].
    ClusterDifference,
    /// [`Measurement::ClusterEstimate`].
    ClusterEstimate,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Share,
        Self::Duel,
        Self::Mean,
        Self::Difference,
        Self::Estimate,
        Self::ClusterMean,
        Self::ClusterDifference,
        Self::ClusterEstimate,
    ];

    /// Returns the name that reports and statuses carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Duel => "duel",
            Self::Mean => "mean",
            Self::Difference => "difference",
            Self::Estimate => "estimate",
            Self::ClusterMean => "clusterMean",
            Self::ClusterDifference => "clusterDifference",
            Self::ClusterEstimate => "clusterEstimate",
        }
    }

    /// Returns whether a measurement of this kind is one of a number of all items together, with its own bounds.
    pub const fn is_estimate(self) -> bool {
        matches!(self, Self::Estimate | Self::ClusterEstimate)
    }

    /// Returns the kind of the comparison of a metric of this kind with a reference, item by item.
    #[must_use]
    pub const fn paired(self) -> Self {
        match self {
            Self::Share => Self::Duel,
            Self::Duel | Self::Mean | Self::Difference => Self::Difference,
            Self::Estimate => Self::Estimate,
            Self::ClusterMean | Self::ClusterDifference => Self::ClusterDifference,
            Self::ClusterEstimate => Self::ClusterEstimate,
        }
    }

    /// Returns the kind of a measurement of this kind of metric over clusters of items.
    #[must_use]
    pub const fn clustered(self) -> Self {
        match self {
            Self::Share | Self::Duel | Self::Mean | Self::ClusterMean => Self::ClusterMean,
            Self::Difference | Self::ClusterDifference => Self::ClusterDifference,
            Self::Estimate | Self::ClusterEstimate => Self::ClusterEstimate,
        }
    }
}

impl Measurement {
    /// Returns its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Share { .. } => Kind::Share,
            Self::Duel { .. } => Kind::Duel,
            Self::Mean { .. } => Kind::Mean,
            Self::Difference { .. } => Kind::Difference,
            Self::Estimate { .. } => Kind::Estimate,
            Self::ClusterMean { .. } => Kind::ClusterMean,
            Self::ClusterDifference { .. } => Kind::ClusterDifference,
            Self::ClusterEstimate { .. } => Kind::ClusterEstimate,
        }
    }

    /// Returns the number of items in its clusters; `None` if each item counts on its own.
    pub const fn clustered_items(&self) -> Option<u64> {
        match *self {
            Self::ClusterMean { items, .. }
            | Self::ClusterDifference { items, .. }
            | Self::ClusterEstimate { items, .. } => Some(items),
            Self::Share { .. }
            | Self::Duel { .. }
            | Self::Mean { .. }
            | Self::Difference { .. }
            | Self::Estimate { .. } => None,
        }
    }

    /// Returns its numbers that are no counts.
    pub(crate) fn numbers_mut(&mut self) -> Vec<&mut Option<f64>> {
        match self {
            Self::Share { .. } | Self::Duel { .. } => Vec::new(),
            Self::Mean { sum, sum_of_squares, .. }
            | Self::Difference { sum, sum_of_squares, .. }
            | Self::ClusterMean { sum, sum_of_squares, .. }
            | Self::ClusterDifference { sum, sum_of_squares, .. } => vec![sum, sum_of_squares],
            Self::Estimate { value, lower, upper, confidence, .. }
            | Self::ClusterEstimate { value, lower, upper, confidence, .. } => vec![value, lower, upper, confidence],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_carry_the_names_of_kinds_and_methods() {
        let each = [
            Measurement::Share { successes: 1, n: 2 },
            Measurement::Duel { wins: 1, ties: 2, losses: 3 },
            Measurement::Mean { n: 1, sum: Some(0.5), sum_of_squares: Some(f64::NAN) },
            Measurement::Difference { n: 1, sum: Some(-0.5), sum_of_squares: None },
            Measurement::Estimate {
                value: Some(0.5),
                lower: Some(0.4),
                upper: None,
                n: 9,
                confidence: Some(0.95),
                method: Method::Bootstrap,
            },
            Measurement::ClusterMean { n: 1, items: 2, sum: Some(0.5), sum_of_squares: Some(0.25) },
            Measurement::ClusterDifference { n: 1, items: 2, sum: Some(-0.5), sum_of_squares: None },
            Measurement::ClusterEstimate {
                value: Some(0.5),
                lower: Some(0.4),
                upper: None,
                n: 9,
                items: 12,
                confidence: Some(0.95),
                method: Method::Bootstrap,
            },
        ];
        assert_eq!(each.map(|measurement| measurement.kind()), Kind::ALL);
        for measurement in each {
            let json = serde_json::to_value(measurement).expect("JSON");
            assert_eq!(json["kind"], measurement.kind().name());
            serde_json::from_value::<Measurement>(json).expect("the same type");
        }
        for method in Method::ALL {
            assert_eq!(serde_json::to_value(method).expect("JSON"), method.name());
        }
    }
}
