//! The accountant: Rényi differential privacy of the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019), and its conversion
//! to (ε, δ) (Balle et al. 2020, theorem 21). Formulas and orders are those of Opacus. Pure.

use std::f64::consts::{LN_2, PI, SQRT_2};

use statrs::function::erf::erfc;

/// Logarithm of a term that is left out of a series, together with all after it.
const NEGLIGIBLE: f64 = -30.0;
/// Terms after which a series counts as divergent. Opacus has no such limit.
const MOST_TERMS: u32 = 2_000_000;
/// The noise multipliers that are tried for a target are multiples of one divided by this, so that every machine finds the same one.
const GRID: f64 = 10_000.0;
/// The least and the largest noise multiplier that is tried, times [`GRID`].
const TRIED: [u64; 2] = [1001, 10_000_000_000];

/// What each step of a run costs, at every order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Account {
    /// Order and Rényi divergence of one step.
    moments: Vec<(f64, f64)>,
}

impl Account {
    /// Returns the account of steps that take each record with probability `rate` and add noise of `noise` times the clipping norm.
    pub(crate) fn new(rate: f64, noise: f64) -> Self {
        let orders = (1..100).map(|x| 1.0 + f64::from(x) / 10.0).chain((12..64).map(f64::from));
        Self { moments: orders.map(|order| (order, divergence(rate, noise, order))).collect() }
    }

    /// Returns the ε that `steps` steps have spent at `delta`.
    pub(crate) fn epsilon(&self, steps: u64, delta: f64) -> f64 {
        if steps == 0 {
            return 0.0;
        }
        let at = |(order, moment): &(f64, f64)| {
            steps as f64 * moment - (delta.ln() + order.ln()) / (order - 1.0) + ((order - 1.0) / order).ln()
        };
        self.moments.iter().map(at).filter(|epsilon| !epsilon.is_nan()).fold(f64::INFINITY, f64::min).max(0.0)
    }

    /// Returns the least noise multiplier, a multiple of 0.0001 above 0.1, with which `steps` steps spend at most `epsilon`; `None` if
    /// no noise is enough.
    pub(crate) fn calibrate(rate: f64, steps: u64, (epsilon, delta): (f64, f64)) -> Option<f64> {
        let noise = |units: u64| units as f64 / GRID;
        let enough = |units: u64| Self::new(rate, noise(units)).epsilon(steps, delta) <= epsilon;
        let [least, most] = TRIED;
        let mut high = least;
        while !enough(high) {
            if high >= most {
                return None;
            }
            high = (2 * high).min(most);
        }
        let mut low = if high == least { least } else { high / 2 };
        while low + 1 < high {
            let middle = u64::midpoint(low, high);
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(noise(high))
    }
}

/// Returns the Rényi divergence of one step at an order above 1.
fn divergence(rate: f64, noise: f64, order: f64) -> f64 {
    if rate >= 1.0 {
        return order / (2.0 * noise * noise);
    }
    let moment = if order.fract() == 0.0 { whole(rate, noise, order) } else { fractional(rate, noise, order) };
    moment / (order - 1.0)
}

/// Returns log A of a whole order: a finite sum.
fn whole(rate: f64, noise: f64, order: f64) -> f64 {
    let (mut sum, mut coefficient) = (f64::NEG_INFINITY, 0.0_f64);
    for index in 0..=order as u32 {
        let i = f64::from(index);
        let term = coefficient + i * rate.ln() + (order - i) * (-rate).ln_1p();
        sum = log_add(sum, term + (i * i - i) / (2.0 * noise * noise));
        coefficient += ((order - i) / (i + 1.0)).ln();
    }
    sum
}

/// Returns log A of a fractional order: two series, of which the terms alternate beyond the order.
fn fractional(rate: f64, noise: f64, order: f64) -> f64 {
    let (mut below, mut above) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    let (mut coefficient, mut positive) = (0.0_f64, true);
    let meet = noise * noise * (1.0 / rate - 1.0).ln() + 0.5;
    let (take, leave) = (rate.ln(), (-rate).ln_1p());
    for index in 0..MOST_TERMS {
        let i = f64::from(index);
        let j = order - i;
        let spread = 2.0 * noise * noise;
        let half = |x: f64| log_erfc(x / (SQRT_2 * noise)) - LN_2;
        let first = coefficient + i * take + j * leave + (i * i - i) / spread + half(i - meet);
        let second = coefficient + j * take + i * leave + (j * j - j) / spread + half(meet - j);
        (below, above) = if positive {
            (log_add(below, first), log_add(above, second))
        } else {
            (log_sub(below, first), log_sub(above, second))
        };
        if first.max(second) < NEGLIGIBLE {
            return log_add(below, above);
        }
        coefficient += (j / (i + 1.0)).abs().ln();
        positive ^= j < 0.0;
    }
    f64::INFINITY
}

/// Returns log(eˣ + eʸ).
fn log_add(x: f64, y: f64) -> f64 {
    let (low, high) = (x.min(y), x.max(y));
    if low == f64::NEG_INFINITY { high } else { (low - high).exp().ln_1p() + high }
}

/// Returns log(eˣ − eʸ), infinite if that is negative: then the order cannot be used.
fn log_sub(x: f64, y: f64) -> f64 {
    if y == f64::NEG_INFINITY {
        x
    } else if x < y {
        f64::INFINITY
    } else {
        let difference = (x - y).exp_m1();
        if difference.is_infinite() { x } else { difference.ln() + y }
    }
}

/// Returns log(erfc(x)), also where erfc(x) is too small for a number.
fn log_erfc(x: f64) -> f64 {
    if x < 8.0 {
        return erfc(x).ln();
    }
    let inverse = 1.0 / (2.0 * x * x);
    let mut series = 1.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = 1.0 - odd * inverse * series;
    }
    -x * x - x.ln() - PI.sqrt().ln() + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fixtures/opacus.json`, as `fixtures/opacus.py` writes it.
    #[derive(serde::Deserialize)]
    struct Fixture {
        moments: Vec<Moment>,
        spent: Vec<Spent>,
    }

    #[derive(serde::Deserialize)]
    struct Moment {
        q: f64,
        sigma: f64,
        order: f64,
        rdp: f64,
    }

    #[derive(serde::Deserialize)]
    struct Spent {
        q: f64,
        sigma: f64,
        steps: u64,
        delta: f64,
        epsilon: f64,
    }

    fn fixture() -> Fixture {
        serde_json::from_str(include_str!("fixtures/opacus.json")).unwrap()
    }

    #[test]
    fn moments_and_epsilons_are_those_of_opacus() {
        let Fixture { moments, spent } = fixture();
        assert_eq!((moments.len(), spent.len()), (35, 11));
        for Moment { q, sigma, order, rdp } in moments {
            let found = divergence(q, sigma, order);
            assert!((found - rdp).abs() <= 1e-8 * rdp + 1e-13, "{q} {sigma} {order}: {found} {rdp}");
        }
        for Spent { q, sigma, steps, delta, epsilon } in spent {
            let found = Account::new(q, sigma).epsilon(steps, delta);
            assert!((found - epsilon).abs() <= 1e-6 * epsilon, "{q} {sigma} {steps}: {found} {epsilon}");
        }
    }

    #[test]
    fn the_calibrated_noise_is_the_least_that_is_enough() {
        for (rate, steps, epsilon) in [(0.01, 1000, 3.0), (0.2, 50, 0.5), (1.0, 10, 8.0)] {
            let noise = Account::calibrate(rate, steps, (epsilon, 1e-5)).unwrap();
            let spent = |noise| Account::new(rate, noise).epsilon(steps, 1e-5);
            assert!(spent(noise) <= epsilon && spent(noise - 1.0 / GRID) > epsilon, "{noise}");
        }
        assert_eq!(Account::calibrate(1.0, 1, (1e-9, 1e-5)), None, "the orders end at 63");
    }

    #[test]
    fn more_steps_cost_more_and_none_cost_nothing() {
        let account = Account::new(0.05, 1.0);
        assert!(account.epsilon(0, 1e-5) == 0.0);
        assert!((1..200).all(|steps| account.epsilon(steps, 1e-5) < account.epsilon(steps + 1, 1e-5)));
        assert!(account.epsilon(10, 1e-6) > account.epsilon(10, 1e-5));
    }

    #[test]
    fn the_tail_of_the_error_function() {
        for x in [7.0, 7.9, 8.0, 8.1] {
            assert!((log_erfc(x) - erfc(x).ln()).abs() < 1e-6, "{x}");
        }
        // SciPy: log(2) + log_ndtr(-x · √2)
        assert!((log_erfc(30.0) + 903.974_117_110_644_2).abs() < 1e-8);
        assert!((log_erfc(-3.0) - 0.693_136_135_250_446_8).abs() < 1e-10);
    }
}
