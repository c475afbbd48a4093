//! The speed that a device reaches in a large product, with which the model's operations are compared. Reads the clock.

use std::time::Instant;

/// Rows, inputs and outputs of the product.
pub(crate) const SIZE: usize = 1024;

/// How often it is computed. The first times warm up caches and clock rates.
const ROUNDS: usize = 5;

/// Runs the product several times, and returns the operations in a second of the fastest time.
pub(crate) fn fastest(mut product: impl FnMut()) -> f64 {
    let seconds = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        product();
        began.elapsed().as_secs_f64()
    });
    2.0 * (SIZE as f64).powi(3) / seconds.fold(f64::INFINITY, f64::min).max(1e-9)
}
