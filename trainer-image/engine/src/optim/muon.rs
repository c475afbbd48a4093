//! Muon: momentum, orthogonalized by Newton–Schulz iterations (Jordan et al. 2024). Pure.
//!
//! The update has the root mean square of AdamW's (Liu et al. 2025), so that learning rate and weight decay mean the same for both.
//! One thread computes one matrix, so that the bits do not depend on the number of threads.

use rayon::prelude::*;

use super::Rates;
use crate::{
    Layout,
    cpu::{Panels, product},
};

/// Coefficients of a Newton–Schulz iteration.
pub(crate) const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
/// Number of iterations.
pub(crate) const ITERATIONS: usize = 5;
/// Added to the norm of a matrix before it is divided by it.
pub(crate) const EPSILON: f64 = 1e-7;

/// The part of a step that Muon takes. Learning rate, weight decay and clipping are those of the step.
#[derive(Clone, Copy, Debug)]
pub struct Muon<'a> {
    /// Decay rate of the momentum, which is Nesterov's.
    pub momentum: f64,
    /// Whether Muon updates the tensor; one entry per tensor of the layout, in order.
    pub tensors: &'a [bool],
}

impl Muon<'_> {
    /// Returns which tensors Muon updates: the matrices of blocks, so neither embeddings nor the output projection.
    pub fn tensors(layout: &Layout) -> Vec<bool> {
        let of_block = |name: &str| [".layers.", ".h."].iter().any(|blocks| name.contains(blocks));
        layout.tensors().iter().map(|tensor| tensor.shape.len() == 2 && of_block(&tensor.name)).collect()
    }
}

/// Returns the factor of the update of a matrix, with which its root mean square is that of AdamW.
pub(crate) fn size(rows: usize, columns: usize) -> f64 {
    0.2 * (rows.max(columns) as f64).sqrt()
}

/// The numbers of one matrix in a step.
struct Update<'a> {
    shape: [usize; 2],
    rates: Rates,
    weight: &'a mut [f32],
    gradient: &'a [f32],
    momentum: &'a mut [f32],
}

/// Updates the matrices that Muon takes, and their momentum: `w ← w · (1 − lr · wd) − lr · 0.2 · √max(rows, columns) · O`.
pub(crate) fn apply(
    (muon, rate, scale, rates): (Muon, f64, f64, &[Rates]),
    layout: &Layout,
    parameters: &mut [f32],
    gradients: &[f32],
    momentum: &mut [f32],
) {
    assert_eq!(muon.tensors.len(), layout.tensors().len(), "one entry for each tensor");
    let (mut parameters, mut momentum) = (parameters, momentum);
    let mut updates = Vec::new();
    for ((tensor, takes), rates) in layout.tensors().iter().zip(muon.tensors).zip(rates) {
        let weight = parameters.split_off_mut(..tensor.range.len()).unwrap_or_default();
        let buffer = momentum.split_off_mut(..tensor.range.len()).unwrap_or_default();
        if let (true, [rows, columns]) = (takes, tensor.shape.as_slice()) {
            let gradient = &gradients[tensor.range.clone()];
            updates.push(Update { shape: [*rows, *columns], rates: *rates, weight, gradient, momentum: buffer });
        }
    }
    updates.into_par_iter().for_each(|update| {
        let Update { shape: [rows, columns], rates, weight, gradient, momentum } = update;
        let (keep, scale) = (muon.momentum as f32, scale as f32);
        let mut matrix = vec![0.0; weight.len()];
        for ((sum, gradient), out) in momentum.iter_mut().zip(gradient).zip(&mut matrix) {
            let gradient = gradient * scale;
            *sum = keep * *sum + (1.0 - keep) * gradient;
            *out = keep * *sum + (1.0 - keep) * gradient;
        }
        let matrix = orthogonalize(matrix, rows, columns);
        let rate = rate * rates.rate;
        let (step, decay) = ((rate * size(rows, columns)) as f32, (rate * rates.decay) as f32);
        for (weight, change) in weight.iter_mut().zip(&matrix) {
            *weight -= decay * *weight + step * change;
        }
    });
}

/// Returns about the nearest matrix with orthogonal rows or columns, by Newton–Schulz iterations.
fn orthogonalize(matrix: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
    if rows > columns {
        let wide = orthogonalize(transposed(&matrix, columns), columns, rows);
        return transposed(&wide, rows);
    }
    let norm = matrix.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let factor = (1.0 / (norm + EPSILON)) as f32;
    let mut x: Vec<f32> = matrix.into_iter().map(|x| x * factor).collect();
    let [a, b, c] = COEFFICIENTS.map(|coefficient| coefficient as f32);
    let (mut squares, mut mixed) = (vec![0.0; rows * rows], vec![0.0; rows * rows]);
    let (mut change, mut panels) = (vec![0.0; x.len()], Panels::default());
    for _ in 0..ITERATIONS {
        product(&x, &x, (columns, rows), true, &mut panels, &mut squares);
        product(&squares, &squares, (rows, rows), false, &mut panels, &mut mixed);
        for (mixed, square) in mixed.iter_mut().zip(&squares) {
            *mixed = b * square + c * *mixed;
        }
        product(&mixed, &x, (rows, columns), false, &mut panels, &mut change);
        for (x, change) in x.iter_mut().zip(&change) {
            *x = a * *x + change;
        }
    }
    x
}

/// Returns the transposed matrix; `to` is the number of its rows.
fn transposed(matrix: &[f32], to: usize) -> Vec<f32> {
    (0..to).flat_map(|column| matrix.iter().skip(column).step_by(to).copied()).collect()
}

/// Returns the bytes that one thread needs for the update of a matrix.
pub fn muon_memory(rows: usize, columns: usize) -> usize {
    let (short, long) = (rows.min(columns), rows.max(columns).next_multiple_of(32));
    size_of::<f32>() * (5 * short * long + 2 * short * short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AdamW;

    /// `fixtures/muon.json`, as `fixtures/muon.py` writes it.
    #[derive(serde::Deserialize)]
    struct Case {
        shape: [usize; 2],
        rate: f64,
        decay: f64,
        momentum: f64,
        weights: Vec<Vec<f64>>,
    }

    /// Numbers that the program of the fixture makes with the same formula.
    fn drawn(count: usize, salt: u64) -> Vec<f32> {
        (0..count as u64).map(|i| ((i * 2_654_435_761 + salt * 97) % (1 << 32) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn steps_are_those_of_torch() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/fixtures/muon.json")).unwrap();
        assert_eq!(cases.len(), 4);
        for Case { shape, rate, decay, momentum, weights } in cases {
            let count = shape[0] * shape[1];
            // A vector before the matrix, which AdamW updates.
            let tensors = [("model.norm.weight".to_owned(), vec![3]), ("model.layers.0.w".to_owned(), shape.to_vec())];
            let layout = Layout::new(tensors);
            let tensors = Muon::tensors(&layout);
            assert_eq!(tensors, [false, true]);
            let rates = Rates::standard(&layout, decay);
            let mut parameters = [vec![1.0; 3], drawn(count, 1)].concat();
            let (mut first, mut second) = (vec![0.0; count + 3], vec![0.0; count + 3]);
            for (step, expected) in weights.iter().enumerate() {
                let gradients = [vec![0.5; 3], drawn(count, 2 + step as u64)].concat();
                let muon = Some(Muon { momentum, tensors: &tensors });
                let (step, scale) = (step as u64, 0.5);
                AdamW { step, rate, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, scale, rates: &rates, muon }.apply_f32(
                    &layout,
                    &mut parameters,
                    &gradients,
                    &mut first,
                    &mut second,
                );
                for (found, expected) in parameters[3..].iter().zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 2e-5, "{shape:?} {step}: {found} {expected}");
                }
            }
            assert!(parameters[..3].iter().all(|x| *x < 1.0) && second[..3].iter().all(|x| *x > 0.0));
            assert!(second[3..].iter().all(|x| *x == 0.0), "Muon has no second moment");
        }
    }

    #[test]
    fn a_matrix_without_a_gradient_only_decays() {
        let zero = orthogonalize(vec![0.0; 35], 5, 7);
        assert!(zero.iter().all(|x| *x == 0.0));
    }

    #[test]
    fn rows_become_nearly_orthonormal() {
        for (rows, columns) in [(5, 70), (70, 5), (33, 33)] {
            let out = orthogonalize(drawn(rows * columns, 3), rows, columns);
            let out = if rows > columns { transposed(&out, columns) } else { out };
            let (short, long) = (rows.min(columns), rows.max(columns));
            let squares: f32 = out.iter().map(|x| x * x).sum::<f32>() / short as f32;
            assert!((0.5..1.5).contains(&squares), "{rows}x{columns}: {squares}");
            let dot: f32 = out[..long].iter().zip(&out[long..2 * long]).map(|(a, b)| a * b).sum();
            assert!(dot.abs() < 0.5, "{dot}");
        }
    }
}
