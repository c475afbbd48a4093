//! The gradient of a private step: clipped gradients of single records, their sum, and Gaussian noise (Abadi et al. 2016). Pure.

use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution as _, StandardNormal};
use rayon::prelude::*;

/// Elements that one random stream makes noise for.
const PIECE: usize = 1 << 14;

/// Σ of clipped gradients.
#[derive(Clone, Debug)]
pub struct ClippedSum {
    sum: Vec<f32>,
    most: f64,
    records: u64,
    clipped: u64,
}

impl ClippedSum {
    /// Begins a sum of gradients of this size, each clipped to a norm of `most`.
    pub fn new(size: usize, most: f64) -> Self {
        Self { sum: vec![0.0; size], most, records: 0, clipped: 0 }
    }

    /// Adds the gradient of a record, which has this norm.
    ///
    /// # Panics
    /// The gradient has another size.
    pub fn add(&mut self, gradient: &[f32], norm: f64) {
        assert_eq!(gradient.len(), self.sum.len(), "one size");
        let factor = (self.most / norm).min(1.0) as f32;
        self.records += 1;
        self.clipped += u64::from(norm > self.most);
        let pieces = self.sum.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        pieces.for_each(|(sum, gradient)| sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += factor * x));
    }

    /// Returns the number of records, and how many of their gradients were clipped.
    pub fn records(&self) -> (u64, u64) {
        (self.records, self.clipped)
    }

    /// Adds noise with a standard deviation of `deviation`, drawn from the streams of `key`, and divides by `expected`, the number of
    /// records that a step has in the mean.
    pub fn finish(self, key: [u8; 32], deviation: f64, expected: f64) -> Vec<f32> {
        let mut sum = self.sum;
        sum.par_chunks_mut(PIECE).enumerate().for_each(|(piece, numbers)| {
            let mut stream = ChaCha20Rng::from_seed(key);
            stream.set_stream(piece as u64);
            for number in numbers {
                let normal: f64 = StandardNormal.sample(&mut stream);
                *number = ((f64::from(*number) + deviation * normal) / expected) as f32;
            }
        });
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gradient_is_clipped_before_the_sum() {
        let mut sum = ClippedSum::new(2, 1.0);
        sum.add(&[3.0, 4.0], 5.0);
        sum.add(&[0.0, 0.5], 0.5);
        assert_eq!(sum.records(), (2, 1));
        let found = sum.finish([0; 32], 0.0, 4.0);
        assert!((found[0] - 0.15).abs() < 1e-7 && (found[1] - 0.325).abs() < 1e-7, "{found:?}");
    }

    #[test]
    fn noise_is_normal_and_has_the_same_bits_on_any_number_of_threads() {
        let count = 5 * PIECE + 17;
        let noise = |threads, key| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| ClippedSum::new(count, 1.0).finish(key, 3.0, 2.0))
        };
        let one = noise(1, [7; 32]);
        assert!(one == noise(3, [7; 32]) && one != noise(1, [8; 32]));
        assert_ne!(one[..9], one[PIECE..PIECE + 9], "every piece has a stream of its own");
        let mean = one.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64;
        let moment = |power: i32| one.iter().map(|x| (f64::from(*x) / 1.5).powi(power)).sum::<f64>() / count as f64;
        assert!(mean.abs() < 0.03 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.2);
    }
}
