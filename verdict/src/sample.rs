//! Measurements whose numbers are possible. Pure.

use crate::{Bounds, Measurement, Method, paired::SEPARATOR};

/// The largest count that JSON numbers (RFC 8785) carry exactly.
const MAX_COUNT: u64 = 1 << 53;
/// How far sums of floats may stray through rounding, relative to what they sum.
const TOLERANCE: f64 = 1e-9;

/// A measurement whose numbers are possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A share of items.
    Share {
        /// Items that hold.
        successes: u64,
        /// Items.
        n: u64,
    },
    /// Values in [0, 1].
    Mean {
        /// Items.
        n: u64,
        /// Σx.
        sum: f64,
        /// Σx².
        squares: f64,
    },
    /// Pairs of a share: items of which the model, the reference, both or neither hold.
    Pairs {
        /// Items of which only the model holds.
        wins: u64,
        /// Items of which only the reference holds.
        losses: u64,
        /// Items.
        n: u64,
    },
    /// Differences in [−1, 1].
    Difference {
        /// Items.
        n: u64,
        /// Σd.
        sum: f64,
        /// Σd².
        squares: f64,
    },
    /// A number with its own bounds.
    Estimate {
        /// The number.
        value: f64,
        /// Its one-sided bounds.
        bounds: Bounds,
        /// Items.
        n: u64,
        /// The confidence of each bound on its own.
        confidence: f64,
        /// How the bounds were computed.
        method: Method,
    },
}

/// Why a measurement is impossible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Impossible {
    /// No items were counted.
    #[error("it counts no items")]
    Nothing,
    /// More items than JSON numbers carry exactly.
    #[error("it counts more than 2^53 items")]
    TooMany,
    /// More successes than items.
    #[error("it counts {successes} successes among {n} items")]
    Successes {
        /// Items that hold.
        successes: u64,
        /// Items.
        n: u64,
    },
    /// The sums are NaN or infinite.
    #[error("its sums are not finite numbers")]
    NotFinite,
    /// Values in [0, 1] cannot have these sums.
    #[error("values between 0 and 1 cannot have n = {n}, sum {sum} and sum of squares {squares}")]
    Sums {
        /// Items.
        n: u64,
        /// Σx.
        sum: f64,
        /// Σx².
        squares: f64,
    },
    /// Differences in [−1, 1] cannot have these sums.
    #[error("differences between -1 and 1 cannot have n = {n}, sum {sum} and sum of squares {squares}")]
    Differences {
        /// Items.
        n: u64,
        /// Σd.
        sum: f64,
        /// Σd².
        squares: f64,
    },
    /// More clusters than items.
    #[error("it counts {items} items in {clusters} clusters")]
    Clusters {
        /// Clusters.
        clusters: u64,
        /// Items.
        items: u64,
    },
    /// A number of an estimate is NaN or infinite.
    #[error("its value, bounds and confidence are not all finite numbers")]
    NotFiniteEstimate,
    /// The value of an estimate is not between its bounds.
    #[error("its value {value} is not between its bounds {lower} and {upper}")]
    Outside {
        /// The value.
        value: f64,
        /// The lower bound.
        lower: f64,
        /// The upper bound.
        upper: f64,
    },
    /// The confidence of an estimate's bounds is out of range.
    #[error("its bounds have confidence {0}, which is not above 0.5 and below 1")]
    Confidence(f64),
}

impl Sample {
    /// Checks the numbers of a measurement. Clusters take the place of items, so that `n` counts them.
    ///
    /// # Errors
    /// [`Impossible`] if no items can give these numbers.
    pub fn of(measurement: &Measurement) -> Result<Self, Impossible> {
        match *measurement {
            Measurement::ClusterMean { n, items, sum, sum_of_squares } => {
                clusters(n, items)?;
                Self::of(&Measurement::Mean { n, sum, sum_of_squares })
            }
            Measurement::ClusterDifference { n, items, sum, sum_of_squares } => {
                clusters(n, items)?;
                Self::of(&Measurement::Difference { n, sum, sum_of_squares })
            }
            Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method } => {
                clusters(n, items)?;
                Self::of(&Measurement::Estimate { value, lower, upper, n, confidence, method })
            }
            Measurement::Share { successes, n } => {
                count(n)?;
                if successes > n {
                    return Err(Impossible::Successes { successes, n });
                }
                Ok(Self::Share { successes, n })
            }
            Measurement::Duel { wins, ties, losses } => {
                let n = wins.checked_add(ties).and_then(|n| n.checked_add(losses)).ok_or(Impossible::TooMany)?;
                count(n)?;
                let (wins, ties) = (wins as f64, ties as f64);
                Ok(Self::Mean { n, sum: wins + ties / 2.0, squares: wins + ties / 4.0 })
            }
            Measurement::Mean { n, sum, sum_of_squares } => {
                count(n)?;
                let (Some(sum), Some(squares)) = (finite(sum), finite(sum_of_squares)) else {
                    return Err(Impossible::NotFinite);
                };
                let items = n as f64;
                let slack = TOLERANCE * items;
                let possible = sum >= 0.0
                    && squares >= 0.0
                    && sum <= items + slack
                    // x² ≤ x in [0, 1], and Cauchy–Schwarz.
                    && squares <= sum + slack
                    && sum * sum <= items * (squares + slack);
                if possible { Ok(Self::Mean { n, sum, squares }) } else { Err(Impossible::Sums { n, sum, squares }) }
            }
            Measurement::Difference { n, sum, sum_of_squares } => {
                count(n)?;
                let (Some(sum), Some(squares)) = (finite(sum), finite(sum_of_squares)) else {
                    return Err(Impossible::NotFinite);
                };
                let items = n as f64;
                let slack = TOLERANCE * items;
                // d² ≤ |d| in [−1, 1], and Cauchy–Schwarz.
                let possible = (0.0..=items + slack).contains(&squares) && sum * sum <= items * (squares + slack);
                if possible {
                    Ok(Self::Difference { n, sum, squares })
                } else {
                    Err(Impossible::Differences { n, sum, squares })
                }
            }
            Measurement::Estimate { value, lower, upper, n, confidence, method } => {
                count(n)?;
                let numbers = (finite(value), finite(lower), finite(upper), finite(confidence));
                let (Some(value), Some(lower), Some(upper), Some(confidence)) = numbers else {
                    return Err(Impossible::NotFiniteEstimate);
                };
                if !(lower..=upper).contains(&value) {
                    return Err(Impossible::Outside { value, lower, upper });
                }
                if confidence <= 0.5 || confidence >= 1.0 {
                    return Err(Impossible::Confidence(confidence));
                }
                Ok(Self::Estimate { value, bounds: Bounds { lower, upper }, n, confidence, method })
            }
        }
    }

    /// Checks the numbers of the comparison of a metric with a reference. A duel counts the items of which only the model, both
    /// or neither, or only the reference hold.
    ///
    /// # Errors
    /// [`Impossible`] if no items can give these numbers.
    pub fn paired(measurement: &Measurement) -> Result<Self, Impossible> {
        let Measurement::Duel { wins, losses, .. } = *measurement else { return Self::of(measurement) };
        Ok(Self::Pairs { wins, losses, n: Self::of(measurement)?.n() })
    }

    /// Checks the numbers of the measurement called `name`: of a metric, or of its comparison with a reference.
    ///
    /// # Errors
    /// [`Impossible`] if no items can give these numbers.
    pub fn named(name: &str, measurement: &Measurement) -> Result<Self, Impossible> {
        if name.contains(SEPARATOR) { Self::paired(measurement) } else { Self::of(measurement) }
    }

    /// Returns whether its bounds hold only approximately.
    pub fn is_approximate(&self) -> bool {
        matches!(self, Self::Estimate { method, .. } if method.is_approximate())
    }

    /// Returns the number of items, or of clusters if it is over clusters.
    pub fn n(&self) -> u64 {
        match *self {
            Self::Share { n, .. }
            | Self::Mean { n, .. }
            | Self::Pairs { n, .. }
            | Self::Difference { n, .. }
            | Self::Estimate { n, .. } => n,
        }
    }

    /// Returns the share or the mean, which are in [0, 1], the mean difference, which is in [−1, 1], or the estimate.
    pub fn value(&self) -> f64 {
        match *self {
            Self::Share { successes, n } => successes as f64 / n as f64,
            Self::Mean { n, sum, .. } => (sum / n as f64).clamp(0.0, 1.0),
            Self::Pairs { wins, losses, n } => (wins as f64 - losses as f64) / n as f64,
            Self::Difference { n, sum, .. } => (sum / n as f64).clamp(-1.0, 1.0),
            Self::Estimate { value, .. } => value,
        }
    }
}

fn count(n: u64) -> Result<(), Impossible> {
    match n {
        0 => Err(Impossible::Nothing),
        1..=MAX_COUNT => Ok(()),
        _ => Err(Impossible::TooMany),
    }
}

/// Every cluster has an item.
fn clusters(clusters: u64, items: u64) -> Result<(), Impossible> {
    count(items)?;
    if clusters > items { Err(Impossible::Clusters { clusters, items }) } else { Ok(()) }
}

fn finite(number: Option<f64>) -> Option<f64> {
    number.filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(measurement: Measurement) -> String {
        Sample::of(&measurement).expect_err("impossible").to_string()
    }

    fn mean(n: u64, sum: f64, squares: f64) -> Measurement {
        Measurement::Mean { n, sum: Some(sum), sum_of_squares: Some(squares) }
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert_eq!(refused(Measurement::Share { successes: 0, n: 0 }), "it counts no items");
        assert_eq!(refused(Measurement::Share { successes: 5, n: 4 }), "it counts 5 successes among 4 items");
        assert_eq!(refused(Measurement::Share { successes: 1, n: u64::MAX }), "it counts more than 2^53 items");
        assert_eq!(refused(Measurement::Duel { wins: 0, ties: 0, losses: 0 }), "it counts no items");
        let overflow = Measurement::Duel { wins: u64::MAX, ties: 1, losses: 0 };
        assert_eq!(refused(overflow), "it counts more than 2^53 items");
        assert_eq!(
            refused(Measurement::Mean { n: 3, sum: None, sum_of_squares: Some(1.0) }),
            "its sums are not finite numbers"
        );
        for (n, sum, squares) in [
            (0, 0.0, 0.0),
            (10, f64::NAN, 1.0),
            (10, f64::INFINITY, 1.0),
            (10, 1.0, f64::NAN),
            (10, -1.0, 0.0),
            (10, 1.0, -1.0),
            (10, 10.1, 10.0),
            (10, 5.0, 5.1),
            (10, 5.0, 2.4),
        ] {
            Sample::of(&mean(n, sum, squares)).expect_err("impossible");
        }
    }

    #[test]
    fn possible_numbers_are_accepted() {
        assert!((Sample::of(&mean(10, 5.0, 2.5)).expect("all ½").value() - 0.5).abs() < 1e-15);
        assert!((Sample::of(&mean(10, 5.0, 5.0)).expect("half 1, half 0").value() - 0.5).abs() < 1e-15);
        let duel = Sample::of(&Measurement::Duel { wins: 6, ties: 2, losses: 2 }).expect("ten");
        assert_eq!(duel, Sample::Mean { n: 10, sum: 7.0, squares: 6.5 });
        // A third, summed three thousand times, strays by rounding only.
        let third: f64 = (0..3000).map(|_| 1.0 / 3.0).sum();
        let squares: f64 = (0..3000).map(|_| 1.0 / 9.0).sum();
        Sample::of(&mean(3000, third, squares)).expect("rounding is possible");
    }

    #[test]
    fn clusters_take_the_place_of_items() {
        let of = |n, items| Measurement::ClusterMean { n, items, sum: Some(1.5), sum_of_squares: Some(1.25) };
        assert_eq!(Sample::of(&of(2, 9)), Ok(Sample::Mean { n: 2, sum: 1.5, squares: 1.25 }));
        assert_eq!(refused(of(3, 2)), "it counts 2 items in 3 clusters");
        assert_eq!(refused(of(0, 2)), "it counts no items");
        assert_eq!(refused(of(2, u64::MAX)), "it counts more than 2^53 items");
        let difference = Measurement::ClusterDifference { n: 2, items: 4, sum: Some(-1.5), sum_of_squares: Some(1.25) };
        assert_eq!(Sample::paired(&difference), Ok(Sample::Difference { n: 2, sum: -1.5, squares: 1.25 }));
    }

    fn estimate(value: f64, lower: f64, upper: f64, n: u64, confidence: f64) -> Measurement {
        let [value, lower, upper, confidence] = [value, lower, upper, confidence].map(Some);
        Measurement::Estimate { value, lower, upper, n, confidence, method: Method::Bootstrap }
    }

    #[test]
    fn estimates_must_lie_between_their_bounds() {
        let sample =
            Sample::of(&estimate(31.5, 30.0, 33.0, 200, 0.95)).expect("a corpus metric is not confined to [0, 1]");
        assert_eq!((sample.value(), sample.n()), (31.5, 200));
        Sample::of(&estimate(0.5, 0.5, 0.5, 1, 0.95)).expect("bounds may equal the value");
        assert_eq!(refused(estimate(0.5, 0.4, 0.6, 0, 0.95)), "it counts no items");
        assert_eq!(refused(estimate(0.5, 0.4, 0.6, u64::MAX, 0.95)), "it counts more than 2^53 items");
        for (value, lower, upper) in [(0.3, 0.4, 0.6), (0.7, 0.4, 0.6), (0.5, 0.6, 0.4)] {
            let said = refused(estimate(value, lower, upper, 9, 0.95));
            assert_eq!(said, format!("its value {value} is not between its bounds {lower} and {upper}"));
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for wrong in [
                estimate(bad, 0.4, 0.6, 9, 0.95),
                estimate(0.5, bad, 0.6, 9, 0.95),
                estimate(0.5, 0.4, bad, 9, 0.95),
                estimate(0.5, 0.4, 0.6, 9, bad),
            ] {
                assert_eq!(refused(wrong), "its value, bounds and confidence are not all finite numbers");
            }
        }
        for confidence in [0.0, 0.5, 1.0, 95.0] {
            let said = refused(estimate(0.5, 0.4, 0.6, 9, confidence));
            assert_eq!(said, format!("its bounds have confidence {confidence}, which is not above 0.5 and below 1"));
        }
    }
}
