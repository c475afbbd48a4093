//! Bounds of corpus metrics by the bootstrap: the items are drawn again with replacement. Pure.
//!
//! A corpus metric is a function of sums over the items, so that a resample costs an addition for each item. The bounds are
//! bias-corrected and accelerated (`BCa`), Efron 1987, Better Bootstrap Confidence Intervals, JASA 82:171–185; the acceleration comes
//! from the jackknife. They are approximate: for few items they miss the true value more often than the confidence says, and
//! items that are all alike have no spread, so that their bounds are the value.
//!
//! The same items, seed and confidence give the same bounds, also in another version of this program: the generator is
//! written out below.

use statrs::function::erf::{erfc, erfc_inv};

use crate::Bounds;

/// The fewest items with which bootstrapped bounds decide a gate.
pub const MIN_BOOTSTRAP: u64 = 30;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 10_000;
/// The greatest confidence of bootstrapped bounds: ten resamples are beyond it.
pub const MAX_BOOTSTRAP_CONFIDENCE: f64 = 0.999;
/// How far two values may differ by rounding, relative to them.
const ROUNDING: f64 = 1e-12;

/// How bounds are bootstrapped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampling {
    /// Seed of the draws.
    pub seed: u64,
    /// One-sided confidence of each bound on its own, above 0.5 and at most [`MAX_BOOTSTRAP_CONFIDENCE`].
    pub confidence: f64,
}

/// `SplitMix64`: Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators.
#[derive(Clone, Copy, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`. Its bias is n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Returns the value of a `statistic` of the sums over the items, and its bounds. `rows` holds the addends of each item, `width` for
/// each. `None` without items, or if a value is not a finite number.
pub(crate) fn bca(
    rows: &[f64],
    width: usize,
    statistic: &dyn Fn(&[f64]) -> f64,
    resampling: Resampling,
) -> Option<(f64, Bounds)> {
    let n = rows.len().checked_div(width).filter(|n| *n > 0)?;
    let mut total = vec![0.0; width];
    rows.chunks_exact(width).for_each(|row| add(&mut total, row));
    let value = statistic(&total);
    let mut replicates = resampled(rows, width, statistic, resampling.seed);
    let left_out: Vec<f64> = rows
        .chunks_exact(width)
        .map(|row| statistic(&total.iter().zip(row).map(|(all, one)| all - one).collect::<Vec<f64>>()))
        .collect();
    // The sums of a single item are empty without it.
    let left_out = if n > 1 { left_out } else { vec![value] };
    if !value.is_finite() || !replicates.iter().chain(&left_out).all(|it| it.is_finite()) {
        return None;
    }
    replicates.sort_unstable_by(f64::total_cmp);
    let bias = quantile_of_normal(share_below(&replicates, value));
    let acceleration = acceleration(&left_out);
    let bound = |share: f64| {
        let shifted = bias + quantile_of_normal(share);
        let scale = 1.0 - acceleration * shifted;
        // Beyond the pole of the correction there is no quantile: take the outermost.
        let adjusted = if scale > 0.0 { normal(bias + shifted / scale) } else { f64::from(u8::from(shifted > 0.0)) };
        quantile(&replicates, adjusted)
    };
    let rarity = 1.0 - resampling.confidence;
    let bounds = Bounds { lower: bound(rarity).min(value), upper: bound(1.0 - rarity).max(value) };
    Some((value, bounds))
}

fn add(sums: &mut [f64], row: &[f64]) {
    sums.iter_mut().zip(row).for_each(|(sum, addend)| *sum += addend);
}

/// Returns the statistic of each resample.
fn resampled(rows: &[f64], width: usize, statistic: &dyn Fn(&[f64]) -> f64, seed: u64) -> Vec<f64> {
    let n = rows.len() / width;
    let mut random = SplitMix(seed);
    let mut sums = vec![0.0; width];
    (0..RESAMPLES)
        .map(|_| {
            sums.fill(0.0);
            for _ in 0..n {
                let at = random.below(n) * width;
                add(&mut sums, &rows[at..at + width]);
            }
            statistic(&sums)
        })
        .collect()
}

/// Returns the share of sorted replicates below the value, of those that equal it one half. It is neither 0 nor 1.
fn share_below(sorted: &[f64], value: f64) -> f64 {
    let slack = ROUNDING * value.abs();
    let below = sorted.partition_point(|it| *it < value - slack);
    let up_to = sorted.partition_point(|it| *it <= value + slack);
    let n = sorted.len() as f64;
    ((below + up_to) as f64 / 2.0 / n).clamp(0.5 / n, 1.0 - 0.5 / n)
}

/// Returns the acceleration from the values that leave one item out.
fn acceleration(left_out: &[f64]) -> f64 {
    let mean = left_out.iter().sum::<f64>() / left_out.len() as f64;
    let moment = |power: i32| left_out.iter().map(|it| (mean - it).powi(power)).sum::<f64>();
    let squares = moment(2);
    if squares <= 0.0 { 0.0 } else { moment(3) / (6.0 * squares.powf(1.5)) }
}

/// Returns a quantile of sorted numbers, interpolated linearly between the two next to it.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
    low + (high - low) * (place - place.floor())
}

/// The standard normal distribution.
fn normal(x: f64) -> f64 {
    erfc(-x / std::f64::consts::SQRT_2) / 2.0
}

fn quantile_of_normal(share: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_95: Resampling = Resampling { seed: 7, confidence: 0.95 };

    fn mean(sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    fn rows(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
        values.into_iter().flat_map(|value| [value, 1.0]).collect()
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // The first outputs of the reference implementation for the seed 1234567.
        let mut random = SplitMix(1_234_567);
        let found = [(); 3].map(|()| random.next());
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let mut seen = [0; 7];
        (0..7000).for_each(|_| seen[random.below(7)] += 1);
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn the_normal_distribution_is_inverted() {
        for (share, quantile) in [(0.5, 0.0), (0.975, 1.959_963_984_540), (0.05, -1.644_853_626_951)] {
            assert!((quantile_of_normal(share) - quantile).abs() < 1e-9);
            assert!((normal(quantile) - share).abs() < 1e-10);
        }
    }

    #[test]
    fn items_without_spread_and_single_items_have_their_value_as_bounds() {
        for values in [vec![0.5; 40], vec![0.5]] {
            let (value, bounds) = bca(&rows(values), 2, &mean, AT_95).expect("finite");
            assert_eq!((value, bounds), (0.5, Bounds { lower: 0.5, upper: 0.5 }));
        }
        assert_eq!(bca(&[], 2, &mean, AT_95), None);
        assert_eq!(bca(&[f64::INFINITY, 1.0], 2, &mean, AT_95), None);
    }

    #[test]
    fn more_confidence_widens_the_bounds_and_the_seed_moves_them_little() {
        let values: Vec<f64> = (0..200).map(|index| f64::from(index * 37 % 101)).collect();
        let of =
            |seed, confidence| bca(&rows(values.clone()), 2, &mean, Resampling { seed, confidence }).expect("finite").1;
        let (narrow, wide, other) = (of(1, 0.9), of(1, 0.99), of(2, 0.9));
        assert!(wide.lower < narrow.lower && narrow.upper < wide.upper);
        assert!((narrow.lower - other.lower).abs() < 0.2 && narrow != other);
        assert_eq!(narrow, of(1, 0.9), "the same draws");
    }

    /// The share of misses over seeded trials: a mean of skewed values, where normal bounds are known to miss.
    #[test]
    fn bounds_cover_about_as_often_as_they_say() {
        let mut random = SplitMix(3);
        let mut unit = || (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (trials, n) = (150, 60);
        let (mut missed_low, mut missed_high) = (0, 0);
        for seed in 0..trials {
            // Exponential: mean 1.
            let values: Vec<f64> = (0..n).map(|_| -(1.0 - unit()).ln()).collect();
            let (_, bounds) = bca(&rows(values), 2, &mean, Resampling { seed, confidence: 0.9 }).expect("finite");
            missed_low += u32::from(bounds.lower > 1.0);
            missed_high += u32::from(bounds.upper < 1.0);
        }
        // 10 % and three standard errors, which the approximation exceeds by 3 percentage points at most.
        let most = (0.1 + 3.0 * (0.1 * 0.9 / trials as f64).sqrt() + 0.03) * trials as f64;
        assert!(f64::from(missed_low) <= most && f64::from(missed_high) <= most, "{missed_low} {missed_high}");
        assert!(missed_low > 0 && missed_high > 0, "bounds that never miss are too wide");
    }
}
