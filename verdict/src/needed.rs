//! The number of items, or of clusters of items, that would decide a gate, if more items were like those that were counted. Pure.

use crate::{Bounds, Gate, Sample, bounds, gate::Limit, paired::mcnemar};

/// The largest number of items that is suggested.
const MOST: f64 = 1e9;

/// Returns the number of items, rounded up to two digits, at which the bound would clear or miss the gate with the same
/// value and variance. `None` if no number up to a billion would.
pub(crate) fn needed(gate: &Gate, sample: &Sample, confidence: f64) -> Option<u64> {
    let by_nothing = gate.bound.comparison().is_some_and(|with| with.by <= 0.0);
    let decided = |n: f64| {
        let found = match *sample {
            Sample::Share { successes, n: counted } => {
                bounds::share(successes as f64 * (n / counted as f64), n, confidence)
            }
            Sample::Mean { n: counted, sum, squares } => {
                let scale = n / counted as f64;
                bounds::mean(n, sum * scale, squares * scale, confidence)
            }
            Sample::Pairs { wins, losses, n: counted } => {
                let scale = n / counted as f64;
                let (wins, losses) = (wins as f64 * scale, losses as f64 * scale);
                if by_nothing {
                    return mcnemar(wins, losses).min(mcnemar(losses, wins)) <= 1.0 - confidence;
                }
                bounds::difference(n, wins - losses, wins + losses, confidence)
            }
            Sample::Difference { n: counted, sum, squares } => {
                let scale = n / counted as f64;
                bounds::difference(n, sum * scale, squares * scale, confidence)
            }
            // Standard errors shrink with the root of the number.
            Sample::Estimate { value, bounds: Bounds { lower, upper }, n: counted, .. } => {
                let scale = (counted as f64 / n).sqrt();
                Bounds { lower: value + (lower - value) * scale, upper: value + (upper - value) * scale }
            }
        };
        match gate.bound.limit() {
            Limit::Least(least) => found.lower >= least || found.upper < least,
            Limit::Most(most) => found.upper <= most || found.lower > most,
        }
    };
    search(sample.n() as f64, decided)
}

/// Returns how many items in all would decide whether a share is at most `most`, if later ones were like those that were counted;
/// rounded up to two digits. `None` if no number up to a billion would.
pub fn needed_for_share(successes: u64, n: u64, most: f64, confidence: f64) -> Option<u64> {
    let rate = successes as f64 / n.max(1) as f64;
    search(n.max(1) as f64, |n| {
        let found = bounds::share(rate * n, n, confidence);
        found.upper <= most || found.lower > most
    })
}

/// Returns the smallest number above `undecided` that decides, rounded up to two digits.
fn search(mut undecided: f64, decided: impl Fn(f64) -> bool) -> Option<u64> {
    let mut enough = undecided * 2.0;
    while !decided(enough) {
        undecided = enough;
        enough *= 2.0;
        if enough > MOST {
            return None;
        }
    }
    while enough - undecided > 1.0 {
        let middle = f64::midpoint(undecided, enough).round();
        if decided(middle) {
            enough = middle;
        } else {
            undecided = middle;
        }
    }
    Some(two_digits(enough.ceil() as u64))
}

fn two_digits(number: u64) -> u64 {
    let unit = 10_u64.pow(number.max(1).ilog10().saturating_sub(1));
    number.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_what_the_bound_needs() {
        let gate: Gate = "exact_match>=0.95@0.95".parse().expect("a gate");
        let all = |n| Sample::Share { successes: n, n };
        assert_eq!(needed(&gate, &all(58), 0.95), Some(59));
        let sample = Sample::Share { successes: 96, n: 100 };
        let items = needed(&gate, &sample, 0.95).expect("96 % clears 95 % in the end");
        let at = |n: u64| bounds(&Sample::Share { successes: n * 96 / 100, n }, 0.95).expect("a bound").lower;
        assert!(at(items) >= 0.95 && at(items * 9 / 10) < 0.95, "{items}");
        assert_eq!(needed(&gate, &Sample::Share { successes: 95, n: 100 }, 0.95), None, "never decided at the limit");
    }

    #[test]
    fn a_share_is_decided_by_as_many_items_as_its_bounds_need() {
        // 0.99^459 is below 0.01, and 0.99^458 is not.
        assert_eq!(needed_for_share(0, 0, 0.01, 0.99), Some(460));
        assert_eq!(needed_for_share(0, 100, 0.01, 0.99), Some(460));
        assert_eq!(needed_for_share(1, 100, 0.01, 0.99), None, "never decided at the limit");
        let lost = needed_for_share(4, 100, 0.01, 0.99).expect("four times the limit");
        assert!(lost > 100 && lost < 200, "{lost}");
    }

    #[test]
    fn numbers_are_rounded_up_to_two_digits() {
        assert_eq!([1, 59, 99, 101, 1234, 99_001].map(two_digits), [1, 59, 99, 110, 1300, 100_000]);
    }
}
