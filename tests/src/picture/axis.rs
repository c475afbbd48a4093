//! The ranges and ticks of axes.

use std::ops::Range;

/// An axis of values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// From the lowest to the highest tick.
    pub(super) range: Range<f64>,
    /// The ticks.
    pub(super) ticks: Vec<f64>,
}

impl Axis {
    /// Returns an axis with about `ticks` round ticks that holds all values, and 0 if `from_zero`.
    pub(super) fn new(values: impl Iterator<Item = f64>, from_zero: bool, ticks: u32) -> Self {
        let start = if from_zero { 0.0..0.0 } else { f64::INFINITY..f64::NEG_INFINITY };
        let mut range = values.fold(start, |range, value| range.start.min(value)..range.end.max(value));
        if range.start > range.end {
            range = 0.0..1.0;
        }
        // A flat line is drawn in the middle, or at the bottom if it is 0.
        if range.start >= range.end {
            let around = if range.start == 0.0 { 1.0 } else { range.start.abs() / 2.0 };
            range = (range.start - if from_zero || range.start == 0.0 { 0.0 } else { around })..range.end + around;
        }
        let step = round_step((range.end - range.start) / f64::from(ticks));
        // Rounding must not add a tick beyond an end that is a tick.
        let (first, last) = ((range.start / step + 1e-9).floor(), (range.end / step - 1e-9).ceil());
        let ticks: Vec<_> = (first as i64..=last as i64).map(|count| count as f64 * step).collect();
        Self { range: first * step..last * step, ticks }
    }

    /// Returns where a value is: 0 at the start of the axis, 1 at its end.
    pub(super) fn share(&self, value: f64) -> f64 {
        (value - self.range.start) / (self.range.end - self.range.start)
    }
}

/// Returns the least of 1, 2 or 5 times a power of ten that is at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// Returns round times in seconds, from 0 to at most `seconds`, about six.
pub(super) fn times(seconds: f64) -> Vec<f64> {
    const STEPS: [f64; 9] = [5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
    let step = STEPS.into_iter().find(|step| seconds / step <= 6.0).unwrap_or(3600.0 * (seconds / 21_600.0).ceil());
    (0..=(seconds / step) as u32).map(|count| f64::from(count) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let ticks = |values: &[f64], from_zero| Axis::new(values.iter().copied(), from_zero, 4).ticks;
        assert_eq!(ticks(&[3.0, 7.5], true), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(&[8.0], true), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(&[-0.3, 0.7], false), [-0.5, 0.0, 0.5, 1.0]);
        assert_eq!(ticks(&[], true), ticks(&[0.0], true));
        assert_eq!(ticks(&[0.0], true).last(), Some(&1.0));
        assert_eq!(ticks(&[2.0], false).first(), Some(&1.0));
        assert_eq!(ticks(&[], false).first(), Some(&0.0));
        assert_eq!(ticks(&[2.4e-5], true).len(), 4);
    }

    #[test]
    fn shares_are_from_0_to_1() {
        let axis = Axis::new([3.0, 7.5].into_iter(), true, 4);
        assert_eq!((axis.share(0.0), axis.share(8.0), axis.share(2.0)), (0.0, 1.0, 0.25));
    }

    #[test]
    fn times_are_round() {
        assert_eq!(times(62.0), [0.0, 15.0, 30.0, 45.0, 60.0]);
        assert_eq!(times(100.0), [0.0, 30.0, 60.0, 90.0]);
        assert!(times(1e6).len() <= 7);
    }
}
