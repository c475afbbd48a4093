//! One-sided confidence bounds. Pure.
//!
//! - Shares: Clopper and Pearson 1934, the inverted exact test. Beyond [`EXACT`] items the Chernoff bound with relative
//!   entropy, which is slightly wider and keeps its coverage at any size.
//! - Means of values in [0, 1]: the empirical Bernstein bound, Maurer and Pontil 2009, theorem 4.
//! - Differences of pairs, in [−1, 1]: the same theorem for the interval of twice the length. A share is compared with 0 by the
//!   exact test of [`paired`](crate::paired) instead.
//! - Estimates: the bounds that the evaluator reported; [`corpus`](crate::corpus) computes them from the items.

use statrs::function::beta::beta_reg;

use crate::Sample;

/// The largest number of items for which the exact bound is computed: the incomplete beta function is accurate up to it.
pub(crate) const EXACT: f64 = 100_000.0;
/// Halvings of an interval of length 1 that exhaust the digits of a float.
const HALVINGS: u32 = 60;

/// One-sided bounds: each holds with the confidence on its own, not both at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The value is at least this.
    pub lower: f64,
    /// The value is at most this.
    pub upper: f64,
}

/// Returns the bounds of a sample at a one-sided `confidence` in (0, 1). `None` for an estimate whose bounds have another
/// confidence.
pub fn bounds(sample: &Sample, confidence: f64) -> Option<Bounds> {
    match *sample {
        Sample::Share { successes, n } => Some(share(successes as f64, n as f64, confidence)),
        Sample::Mean { n, sum, squares } => Some(mean(n as f64, sum, squares, confidence)),
        Sample::Pairs { wins, losses, n } => {
            let (wins, losses) = (wins as f64, losses as f64);
            Some(difference(n as f64, wins - losses, wins + losses, confidence))
        }
        Sample::Difference { n, sum, squares } => Some(difference(n as f64, sum, squares, confidence)),
        Sample::Estimate { bounds, confidence: reported, .. } => {
            (reported.to_bits() == confidence.to_bits()).then_some(bounds)
        }
    }
}

/// Returns the bounds of a share. Counts may be fractions, because [`needed`](crate::needed::needed) scales them.
pub(crate) fn share(successes: f64, n: f64, confidence: f64) -> Bounds {
    let failures = n - successes;
    Bounds {
        lower: lowest_share(successes, failures, confidence),
        upper: 1.0 - lowest_share(failures, successes, confidence),
    }
}

/// Returns the smallest share under which at least this many successes have a probability of 1 − confidence or more.
fn lowest_share(successes: f64, failures: f64, confidence: f64) -> f64 {
    let rarity = 1.0 - confidence;
    let n = successes + failures;
    if successes <= 0.0 {
        0.0
    } else if failures <= 0.0 {
        rarity.powf(1.0 / n)
    } else if n <= EXACT {
        // P(X ≥ successes) under the share p is the regularized incomplete beta function at p.
        greatest(|p| beta_reg(successes, failures + 1.0, p) <= rarity, 1.0)
    } else {
        let (p, q) = (successes / n, failures / n);
        let entropy = |x: f64| p * (p / x).ln() + q * (q / (1.0 - x)).ln();
        greatest(|x| n * entropy(x) >= -rarity.ln(), p)
    }
}

/// Returns the largest x in [0, most] for which `holds`, approached from below. `holds` must be true up to some x and
/// false above it.
fn greatest(holds: impl Fn(f64) -> bool, most: f64) -> f64 {
    let (mut below, mut above) = (0.0, most);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(below, above);
        if holds(middle) {
            below = middle;
        } else {
            above = middle;
        }
    }
    below
}

/// Returns the bounds of a mean of values in [0, 1].
pub(crate) fn mean(n: f64, sum: f64, squares: f64, confidence: f64) -> Bounds {
    if n < 2.0 {
        return Bounds { lower: 0.0, upper: 1.0 };
    }
    let mean = sum / n;
    let variance = ((squares - sum * mean) / (n - 1.0)).max(0.0);
    let margin = margin(n, variance, confidence);
    Bounds { lower: (mean - margin).clamp(0.0, 1.0), upper: (mean + margin).clamp(0.0, 1.0) }
}

/// Returns the bounds of a mean of differences in [−1, 1].
pub(crate) fn difference(n: f64, sum: f64, squares: f64, confidence: f64) -> Bounds {
    if n < 2.0 {
        return Bounds { lower: -1.0, upper: 1.0 };
    }
    let mean = sum / n;
    let variance = ((squares - sum * mean) / (n - 1.0)).max(0.0);
    // (d + 1) / 2 is in [0, 1] and has a quarter of the variance.
    let margin = 2.0 * margin(n, variance / 4.0, confidence);
    Bounds { lower: (mean - margin).clamp(-1.0, 1.0), upper: (mean + margin).clamp(-1.0, 1.0) }
}

/// Returns how far the mean of n values with this sample variance can be from the true mean, to one side.
pub(crate) fn margin(n: f64, variance: f64, confidence: f64) -> f64 {
    let log = (2.0 / (1.0 - confidence)).ln();
    (2.0 * variance * log / n).sqrt() + 7.0 * log / (3.0 * (n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ln C(n, k) by summation, so that the test shares no code with the function under test.
    fn ln_choose(n: u32, k: u32) -> f64 {
        (1..=k).map(|i| f64::from(n - k + i).ln() - f64::from(i).ln()).sum()
    }

    fn binomial(n: u32, k: u32, p: f64) -> f64 {
        (ln_choose(n, k) + f64::from(k) * p.ln() + f64::from(n - k) * (1.0 - p).ln()).exp()
    }

    fn of(successes: u64, n: u64, confidence: f64) -> Bounds {
        bounds(&Sample::Share { successes, n }, confidence).expect("a share has bounds at every confidence")
    }

    fn near(a: f64, b: f64, by: f64) {
        assert!((a - b).abs() <= by, "{a} is not {b}");
    }

    #[test]
    fn a_perfect_sample_proves_what_its_size_allows() {
        // Wilks 1941: 59 of 59 is the smallest sample that shows 95 % with 95 % confidence.
        assert!(of(58, 58, 0.95).lower < 0.95);
        assert!(of(59, 59, 0.95).lower >= 0.95);
        assert!(of(0, 58, 0.95).upper > 0.05);
        assert!(of(0, 59, 0.95).upper <= 0.05);
        assert_eq!((of(0, 59, 0.95).lower, of(59, 59, 0.95).upper), (0.0, 1.0));
    }

    #[test]
    fn shares_agree_with_published_intervals() {
        // Newcombe 1998, Statistics in Medicine 17:857–872, table I, "exact" (Clopper–Pearson) two-sided 95 %: each
        // end is a one-sided bound at 97.5 %.
        for (successes, n, lower, upper) in
            [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)]
        {
            let found = of(successes, n, 0.975);
            near(found.lower, lower, 0.000_05);
            near(found.upper, upper, 0.000_05);
        }
    }

    #[test]
    fn shares_invert_the_exact_test() {
        for n in [1, 2, 7, 59, 500, 1000, 5000] {
            for k in [1, 2, n / 2, n - 1] {
                if k == 0 || k >= n {
                    continue;
                }
                for confidence in [0.9, 0.95, 0.999] {
                    let found = of(u64::from(k), u64::from(n), confidence);
                    let above: f64 = (k..=n).map(|i| binomial(n, i, found.lower)).sum();
                    let below: f64 = (0..=k).map(|i| binomial(n, i, found.upper)).sum();
                    near(above, 1.0 - confidence, 1e-8);
                    near(below, 1.0 - confidence, 1e-8);
                }
            }
        }
    }

    #[test]
    fn shares_are_exact_up_to_the_limit() {
        for (k, n) in [(50_000, 100_000), (95_000, 100_000), (99_999, 100_000), (3, 100_000), (33_333, 99_999)] {
            let found = of(k, n, 0.95).lower;
            let mut term =
                (ln_choose(n as u32, k as u32) + k as f64 * found.ln() + (n - k) as f64 * (1.0 - found).ln()).exp();
            let mut above = 0.0;
            for i in k..=n {
                above += term;
                term *= (n - i) as f64 / (i + 1) as f64 * found / (1.0 - found);
            }
            near(above, 0.05, 1e-6);
        }
    }

    #[test]
    fn beyond_the_limit_bounds_are_slightly_wider() {
        let exact = of(95_000, 100_000, 0.95);
        let chernoff = of(95_001, 100_001, 0.95);
        assert!(chernoff.lower < exact.lower && chernoff.lower > exact.lower - 0.001);
        assert!(chernoff.upper > exact.upper && chernoff.upper < exact.upper + 0.001);
        let huge = of(1 << 52, 1 << 53, 0.95);
        assert!(huge.lower < 0.5 && huge.upper > 0.5 && huge.upper - huge.lower < 1e-6);
    }

    /// The probability that a bound misses the true share, summed over every outcome of n draws.
    #[test]
    fn shares_keep_their_coverage() {
        for n in [5, 20, 59, 200] {
            for p in [0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99] {
                for confidence in [0.8, 0.95] {
                    let (mut missed_low, mut missed_high) = (0.0, 0.0);
                    for k in 0..=n {
                        let found = of(u64::from(k), u64::from(n), confidence);
                        let weight = binomial(n, k, p);
                        missed_low += if found.lower > p { weight } else { 0.0 };
                        missed_high += if found.upper < p { weight } else { 0.0 };
                    }
                    assert!(missed_low <= 1.0 - confidence + 1e-9, "n {n} p {p}: {missed_low}");
                    assert!(missed_high <= 1.0 - confidence + 1e-9, "n {n} p {p}: {missed_high}");
                }
            }
        }
    }

    #[test]
    fn means_keep_their_coverage_with_ties() {
        let (n, confidence) = (60_u32, 0.8);
        for (win, tie) in [(0.5, 0.0), (0.9, 0.05), (0.1, 0.8), (0.98, 0.01), (0.3, 0.3)] {
            let truth = win + tie / 2.0;
            let (mut missed_low, mut missed_high) = (0.0, 0.0);
            for wins in 0..=n {
                for ties in 0..=n - wins {
                    let losses = n - wins - ties;
                    let ways = ln_choose(n, wins) + ln_choose(n - wins, ties);
                    let power =
                        |share: f64, count: u32| if count == 0 { 0.0 } else { f64::from(count) * f64::ln(share) };
                    let weight = (ways + power(win, wins) + power(tie, ties) + power(1.0 - win - tie, losses)).exp();
                    let (w, t) = (f64::from(wins), f64::from(ties));
                    let found = mean(f64::from(n), w + t / 2.0, w + t / 4.0, confidence);
                    missed_low += if found.lower > truth { weight } else { 0.0 };
                    missed_high += if found.upper < truth { weight } else { 0.0 };
                }
            }
            assert!(missed_low <= 1.0 - confidence, "{win} {tie}: {missed_low}");
            assert!(missed_high <= 1.0 - confidence, "{win} {tie}: {missed_high}");
        }
    }

    #[test]
    fn means_follow_the_theorem() {
        // n = 1000 values, 900 ones and 100 zeros: variance 90/999, ln(2/δ) = ln 40 at 95 %.
        let found = mean(1000.0, 900.0, 900.0, 0.95);
        let log = 40.0_f64.ln();
        let margin = (2.0 * (90.0 / 999.0) * log / 1000.0).sqrt() + 7.0 * log / (3.0 * 999.0);
        near(margin, 0.034_397, 1e-6);
        near(found.lower, 0.9 - margin, 1e-12);
        near(found.upper, 0.9 + margin, 1e-12);
        assert_eq!(mean(1.0, 1.0, 1.0, 0.95), Bounds { lower: 0.0, upper: 1.0 }, "one value bounds nothing");
    }

    #[test]
    fn an_estimate_has_bounds_at_its_own_confidence_only() {
        let own = Bounds { lower: 0.4, upper: 0.6 };
        let method = crate::Method::Bootstrap;
        let sample = Sample::Estimate { value: 0.5, bounds: own, n: 9, confidence: 0.95, method };
        assert_eq!(bounds(&sample, 0.95), Some(own));
        assert_eq!(bounds(&sample, 0.9), None);
        assert_eq!(bounds(&sample, 0.99), None);
    }
}
