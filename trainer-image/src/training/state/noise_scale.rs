//! The simple noise scale (`McCandlish` et al. 2018): about how many examples a batch needs before its gradient is no longer mostly
//! noise. Pure.
//!
//! The expected squared norm of a batch's gradient is |G|² + S/B, where G is the true gradient and S the sum of the variances of one
//! example's. Two batch sizes give both; their running means give S/|G|². Both estimates of a single step are too noisy for a ratio.

use super::snapshot::{Column, Columns};

const COLUMN: &str = "noise_scale/means";
/// Share of the running means that a measurement keeps.
const KEEP: f64 = 0.99;

/// Squared norm of the gradient of a batch, and the number of its examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BatchNorm {
    pub(crate) squares: f64,
    pub(crate) examples: f64,
}

/// Running means of |G|² and S.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct NoiseScale {
    gradient: f64,
    variance: f64,
}

impl NoiseScale {
    /// Adds the measurement of a step: of its first batch, and of all its batches together.
    pub(crate) fn observe(&mut self, small: BatchNorm, large: BatchNorm) {
        let gradient =
            (large.examples * large.squares - small.examples * small.squares) / (large.examples - small.examples);
        let variance = (small.squares - large.squares) / (1.0 / small.examples - 1.0 / large.examples);
        if gradient.is_finite() && variance.is_finite() {
            // Both begin at 0, which has no effect on their ratio.
            self.gradient = KEEP * self.gradient + (1.0 - KEEP) * gradient;
            self.variance = KEEP * self.variance + (1.0 - KEEP) * variance;
        }
    }

    /// Returns the noise scale in examples; `None` while the means do not allow an estimate.
    pub(crate) fn value(&self) -> Option<f64> {
        let scale = self.variance / self.gradient;
        (self.gradient > 0.0 && scale.is_finite()).then_some(scale.max(0.0))
    }

    /// Adds the column of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        rest.insert(COLUMN.to_owned(), Column::F64(vec![self.gradient, self.variance]));
    }

    /// Takes the value out of the columns of a snapshot; an error if it is malformed.
    pub(crate) fn load(rest: &mut Columns) -> Result<Option<Self>, ()> {
        let Some(column) = rest.remove(COLUMN) else { return Ok(None) };
        let Column::F64(means) = column else { return Err(()) };
        let [gradient, variance] = means.try_into().map_err(drop)?;
        Ok(Some(Self { gradient, variance }))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Gradients of examples: a true gradient of norm 2 in 50 dimensions, and noise of variance 1.5 in each.
    #[test]
    fn the_noise_scale_of_known_gradients() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let (dimensions, deviation) = (50, 1.5_f64.sqrt());
        let truth = 2.0 / 50.0_f64.sqrt();
        // Uniform numbers with the same variance will do.
        let mut mean = |examples: u32| -> Vec<f64> {
            let one = |_| (0..examples).map(|_| random.random_range(-1.0..1.0) * 3.0_f64.sqrt()).sum::<f64>();
            (0..dimensions).map(one).map(|sum| truth + deviation * sum / f64::from(examples)).collect()
        };
        let mut scale = NoiseScale::default();
        assert_eq!(scale.value(), None);
        for _ in 0..2000 {
            let (first, rest) = (mean(8), mean(24));
            let squares = |numbers: &[f64]| numbers.iter().map(|x| x * x).sum::<f64>();
            let all: Vec<f64> = first.iter().zip(&rest).map(|(a, b)| 0.25 * a + 0.75 * b).collect();
            let small = BatchNorm { squares: squares(&first), examples: 8.0 };
            scale.observe(small, BatchNorm { squares: squares(&all), examples: 32.0 });
        }
        let expected = 50.0 * 1.5 / 4.0;
        let found = scale.value().unwrap();
        assert!((found / expected - 1.0).abs() < 0.15, "{found} {expected}");
        let mut columns = Columns::new();
        scale.save(&mut columns);
        assert_eq!(NoiseScale::load(&mut columns), Ok(Some(scale)));
        assert!(columns.is_empty());
    }
}
