//! AdamW and the norm of a gradient, over flat vectors. Pure.
//!
//! Both split the vectors into pieces of a fixed size and sum pieces in order, so that the bits do not depend on the number
//! of threads.

use pulp::Simd;
use rayon::prelude::*;

use super::muon::{self, Muon};
use crate::{EngineError, Layout, dispatched};

/// The learning rate and weight decay of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Factor on the learning rate.
    pub rate: f64,
    /// Weight decay; 0 disables it.
    pub decay: f64,
}

impl Rates {
    /// Returns the rates of every tensor in order: one learning rate for all, weight decay for matrices only.
    pub fn standard(layout: &Layout, decay: f64) -> Vec<Self> {
        let of = |matrix| Self { rate: 1.0, decay: if matrix { decay } else { 0.0 } };
        layout.tensors().iter().map(|tensor| of(tensor.shape.len() > 1)).collect()
    }
}

/// One step of AdamW (Loshchilov and Hutter 2019) with its current hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct AdamW<'a> {
    /// Index of the step, from 0.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Epsilon: added to the root of the second moment.
    pub epsilon: f64,
    /// Factor that gradient clipping applies; 1 leaves the gradients unchanged.
    pub scale: f64,
    /// One entry per tensor of the layout, in order.
    pub rates: &'a [Rates],
    /// The tensors that Muon updates instead, if any.
    pub muon: Option<Muon<'a>>,
}

impl AdamW<'_> {
    /// Whether Muon updates the tensor with this index.
    pub(crate) fn leaves(&self, tensor: usize) -> bool {
        self.muon.is_some_and(|muon| muon.tensors[tensor])
    }
}

/// Elements of a flat vector per task.
const PIECE: usize = 1 << 16;

impl AdamW<'_> {
    /// Updates `parameters` and moments with `gradients`: `w ← w · (1 − lr · wd) − lr · m̂ / (√v̂ + ε)`.
    ///
    /// # Panics
    /// `rates` has another length than the layout, or a vector has another size.
    pub(crate) fn apply(
        &self,
        layout: &Layout,
        parameters: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        assert_eq!(self.rates.len(), layout.tensors().len(), "one pair of rates for each tensor");
        assert!([parameters.len(), gradients.len(), first.len(), second.len()] == [layout.size(); 4]);
        if let Some(muon) = self.muon {
            muon::apply((muon, self.rate, self.scale, self.rates), layout, parameters, gradients, first);
        }
        let correction = |beta: f64| 1.0 - beta.powf((self.step + 1) as f64);
        let (correction1, root2) = (correction(self.beta1), (1.0 / correction(self.beta2)).sqrt() as f32);
        let (mut parameters, mut first, mut second) = (parameters, first, second);
        let mut pieces = Vec::new();
        for (index, (tensor, rates)) in layout.tensors().iter().zip(self.rates).enumerate() {
            let rate = self.rate * rates.rate;
            let numbers = Numbers {
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                rate: (rate / correction1) as f32,
                decay: (rate * rates.decay) as f32,
                root2,
                epsilon: self.epsilon as f32,
                scale: self.scale as f32,
            };
            let count = tensor.range.len();
            let weight = parameters.split_off_mut(..count).unwrap_or_default();
            let (m, v) = (first.split_off_mut(..count), second.split_off_mut(..count));
            if self.leaves(index) {
                continue;
            }
            let moments = m.unwrap_or_default().chunks_mut(PIECE).zip(v.unwrap_or_default().chunks_mut(PIECE));
            let gradient = gradients[tensor.range.clone()].chunks(PIECE);
            pieces.extend(weight.chunks_mut(PIECE).zip(gradient).zip(moments).map(|((w, g), (m, v))| Update {
                numbers,
                weight: w,
                gradient: g,
                first: m,
                second: v,
            }));
        }
        pieces.into_par_iter().for_each(|update| step_dispatched(update));
    }
}

#[derive(Clone, Copy)]
struct Numbers {
    beta1: f32,
    beta2: f32,
    /// Learning rate divided by the first moment's bias correction.
    rate: f32,
    /// Learning rate times weight decay.
    decay: f32,
    /// Root of the second moment's bias correction.
    root2: f32,
    epsilon: f32,
    scale: f32,
}

struct Update<'a> {
    numbers: Numbers,
    weight: &'a mut [f32],
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

dispatched!(step_dispatched<'a>(update: Update<'a>) = step);

#[inline(always)]
fn step<S: Simd>(_: S, update: Update) {
    let Update { numbers, weight, gradient, first, second } = update;
    let Numbers { beta1, beta2, rate, decay, root2, epsilon, scale } = numbers;
    let (other1, other2) = (1.0 - beta1, 1.0 - beta2);
    for (((weight, gradient), first), second) in weight.iter_mut().zip(gradient).zip(first).zip(second) {
        let gradient = gradient * scale;
        *first = beta1 * *first + other1 * gradient;
        *second = beta2 * *second + other2 * gradient * gradient;
        *weight -= decay * *weight + rate * *first / (second.sqrt() * root2 + epsilon);
    }
}

/// Returns the Euclidean norm of `gradients`.
///
/// # Errors
/// The norm is not finite; the error names the first tensor with such an element.
pub(crate) fn norm(layout: &Layout, gradients: &[f32]) -> Result<f64, EngineError> {
    let mut sums = vec![0.0; gradients.len().div_ceil(PIECE)];
    sums.par_iter_mut().zip(gradients.par_chunks(PIECE)).for_each(|(sum, piece)| squares_dispatched(piece, sum));
    let norm = sums.iter().sum::<f64>().sqrt();
    if norm.is_finite() {
        return Ok(norm);
    }
    let at_fault =
        layout.tensors().iter().find(|tensor| gradients[tensor.range.clone()].iter().any(|x| !x.is_finite()));
    Err(EngineError::NotFinite {
        tensor: at_fault.map_or_else(|| "the model".to_owned(), |tensor| tensor.name.clone()),
    })
}

dispatched!(squares_dispatched<'a>(piece: &'a [f32], sum: &'a mut f64) = squares);

/// Computes Σ x² in 16 parallel sums.
#[inline(always)]
fn squares<S: Simd>(_: S, piece: &[f32], sum: &mut f64) {
    let mut sums = [0.0_f64; 16];
    let (whole, rest) = piece.as_chunks::<16>();
    for numbers in whole {
        for lane in 0..16 {
            let x = f64::from(numbers[lane]);
            sums[lane] += x * x;
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(*x) * f64::from(*x);
    }
    *sum = sums.iter().sum();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(step: u64, scale: f64, rates: &[Rates]) -> AdamW<'_> {
        AdamW { step, rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, scale, rates, muon: None }
    }

    /// Expected values follow the definition of `torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)`.
    #[test]
    fn two_steps_by_hand() {
        let layout = Layout::new([("w".to_owned(), vec![1, 1])]);
        let rates = Rates::standard(&layout, 0.01);
        let (mut weight, mut first, mut second) = ([1.0_f32], [0.0], [0.0]);
        settings(0, 1.0, &rates).apply(&layout, &mut weight, &[0.5], &mut first, &mut second);
        let expected = 1.0 * (1.0 - 0.001) - 0.1;
        assert!((f64::from(weight[0]) - expected).abs() < 1e-6);
        settings(1, 0.5, &rates).apply(&layout, &mut weight, &[-0.5], &mut first, &mut second);
        let (m, v) = (0.9 * 0.05 - 0.1 * 0.25, 0.99 * 0.0025 + 0.01 * 0.0625);
        let (m, v): (f64, f64) = (m / (1.0 - 0.81), v / (1.0 - 0.9801));
        let expected = expected * (1.0 - 0.001) - 0.1 * m / (v.sqrt() + 1e-8);
        assert!((f64::from(weight[0]) - expected).abs() < 1e-6, "{} {expected}", weight[0]);
    }

    #[test]
    fn each_tensor_has_its_own_rates() {
        let layout = Layout::new([("a".to_owned(), vec![PIECE + 3]), ("b".to_owned(), vec![2, 5])]);
        let rates = [Rates { rate: 0.0, decay: 0.5 }, Rates { rate: 2.0, decay: 0.0 }];
        let count = layout.size();
        let (mut weight, mut first, mut second) = (vec![1.0; count], vec![0.0; count], vec![0.0; count]);
        settings(0, 1.0, &rates).apply(&layout, &mut weight, &vec![3.0; count], &mut first, &mut second);
        let (a, b) = weight.split_at(PIECE + 3);
        assert!(a.iter().all(|x| x.to_bits() == 1.0_f32.to_bits()));
        assert!(b.iter().all(|x| (x - 0.8).abs() < 1e-6), "{b:?}");
    }

    #[test]
    fn the_norm_names_the_tensor_that_is_not_finite() {
        let layout = Layout::new([("a".to_owned(), vec![PIECE + 3]), ("b".to_owned(), vec![9])]);
        let mut gradients = vec![2.0; layout.size()];
        let length = norm(&layout, &gradients).unwrap();
        assert!((length - 2.0 * (layout.size() as f64).sqrt()).abs() < 1e-9);
        gradients[PIECE + 4] = f32::INFINITY;
        let said = norm(&layout, &gradients).unwrap_err().to_string();
        assert!(said.contains("gradient of b "), "{said}");
    }
}
