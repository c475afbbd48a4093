//! What was counted, checked: a measurement that no counting can lead to is none. Pure.

use codex_reports::Measurement;

/// The largest count that JSON numbers (RFC 8785) carry exactly.
const MAX_COUNT: u64 = 1 << 53;
/// How far sums of floats may stray, relative to what they sum.
const TOLERANCE: f64 = 1e-9;

/// A measurement that can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// Items that hold, of all.
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
}

/// Why a measurement cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Impossible {
    /// Nothing was counted.
    #[error("it counts no items")]
    Nothing,
    /// More items than numbers in reports can carry.
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
    /// Sums that are NaN or infinite.
    #[error("its sums are not finite numbers")]
    NotFinite,
    /// Sums that values in [0, 1] cannot have.
    #[error("values between 0 and 1 cannot have n = {n}, sum {sum} and sum of squares {squares}")]
    Sums {
        /// Items.
        n: u64,
        /// Σx.
        sum: f64,
        /// Σx².
        squares: f64,
    },
}

impl Sample {
    /// Checks a measurement.
    ///
    /// # Errors
    /// [`Impossible`] says what no counting can lead to.
    pub fn of(measurement: &Measurement) -> Result<Self, Impossible> {
        match *measurement {
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
                let (Some(sum), Some(squares)) = (sum, sum_of_squares) else { return Err(Impossible::NotFinite) };
                if !sum.is_finite() || !squares.is_finite() {
                    return Err(Impossible::NotFinite);
                }
                let items = n as f64;
                let slack = TOLERANCE * items;
                let can_be = sum >= 0.0
                    && squares >= 0.0
                    && sum <= items + slack
                    // x² ≤ x in [0, 1], and Cauchy–Schwarz.
                    && squares <= sum + slack
                    && sum * sum <= items * (squares + slack);
                if can_be { Ok(Self::Mean { n, sum, squares }) } else { Err(Impossible::Sums { n, sum, squares }) }
            }
        }
    }

    /// Items.
    pub fn n(&self) -> u64 {
        match *self {
            Self::Share { n, .. } | Self::Mean { n, .. } => n,
        }
    }

    /// The share or the mean, in [0, 1].
    pub fn value(&self) -> f64 {
        match *self {
            Self::Share { successes, n } => successes as f64 / n as f64,
            Self::Mean { n, sum, .. } => (sum / n as f64).clamp(0.0, 1.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(measurement: Measurement) -> String {
        Sample::of(&measurement).expect_err("cannot be").to_string()
    }

    fn mean(n: u64, sum: f64, squares: f64) -> Measurement {
        Measurement::Mean { n, sum: Some(sum), sum_of_squares: Some(squares) }
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
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
            Sample::of(&mean(n, sum, squares)).expect_err("cannot be");
        }
    }

    #[test]
    fn what_can_be_counted_is_taken() {
        assert!((Sample::of(&mean(10, 5.0, 2.5)).expect("all ½").value() - 0.5).abs() < 1e-15);
        assert!((Sample::of(&mean(10, 5.0, 5.0)).expect("half 1, half 0").value() - 0.5).abs() < 1e-15);
        let duel = Sample::of(&Measurement::Duel { wins: 6, ties: 2, losses: 2 }).expect("ten");
        assert_eq!(duel, Sample::Mean { n: 10, sum: 7.0, squares: 6.5 });
        // A third, summed three thousand times, strays by rounding only.
        let third: f64 = (0..3000).map(|_| 1.0 / 3.0).sum();
        let squares: f64 = (0..3000).map(|_| 1.0 / 9.0).sum();
        Sample::of(&mean(3000, third, squares)).expect("rounding is no impossibility");
    }
}
