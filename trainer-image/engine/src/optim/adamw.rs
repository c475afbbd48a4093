//! AdamW and the norm of a gradient, over flat vectors. Pure.
//!
//! Both split the vectors into pieces of a fixed size and sum pieces in order, so that the bits do not depend on the number
//! of threads.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    eight::{BLOCK, EightBit, Sign, TensorNumbersMut, compress, expand},
    moments::Moments,
    muon::{self, Muon},
};
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
/// Blocks of moments in eight bits per task.
const BLOCKS: usize = PIECE / BLOCK;

impl AdamW<'_> {
    /// Updates `parameters` and moments with `gradients`: `w ← w · (1 − lr · wd) − lr · m̂ / (√v̂ + ε)`.
    ///
    /// # Panics
    /// `rates` has another length than the layout, a vector has another size, or Muon is to update moments in eight bits.
    pub(crate) fn apply(&self, layout: &Layout, parameters: &mut [f32], gradients: &[f32], moments: &mut Moments) {
        match moments {
            Moments::F32 { first, second } => self.apply_f32(layout, parameters, gradients, first, second),
            Moments::EightBit { first, second } => self.apply_eight(layout, parameters, gradients, (first, second)),
        }
    }

    /// As [`apply`](Self::apply), with moments in `f32`.
    pub(crate) fn apply_f32(
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
        let (mut parameters, mut first, mut second) = (parameters, first, second);
        let mut pieces = Vec::new();
        for (index, (tensor, rates)) in layout.tensors().iter().zip(self.rates).enumerate() {
            let numbers = self.numbers(*rates);
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

    /// As [`apply`](Self::apply), with moments in eight bits. As in bitsandbytes, the weights are updated with the new moments before those
    /// are rounded.
    fn apply_eight(
        &self,
        layout: &Layout,
        parameters: &mut [f32],
        gradients: &[f32],
        (first, second): (&mut EightBit, &mut EightBit),
    ) {
        assert_eq!(self.rates.len(), layout.tensors().len(), "one pair of rates for each tensor");
        assert!(
            [parameters.len(), gradients.len()] == [layout.size(); 2] && first.is_of(layout) && second.is_of(layout)
        );
        assert!(self.muon.is_none(), "Muon's momentum is not quantized");
        let mut parameters = parameters;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        let moments = first.tensors_mut(layout).into_iter().zip(second.tensors_mut(layout));
        for ((tensor, rates), moments) in layout.tensors().iter().zip(self.rates).zip(moments) {
            let numbers = self.numbers(*rates);
            let weight = parameters.split_off_mut(..tensor.range.len()).unwrap_or_default();
            let gradient = &gradients[tensor.range.clone()];
            match moments {
                (TensorNumbersMut::Small(first), TensorNumbersMut::Small(second)) => {
                    small.push(Update { numbers, weight, gradient, first, second });
                }
                (TensorNumbersMut::Coded(m, m_scales), TensorNumbersMut::Coded(v, v_scales)) => {
                    let scales = m_scales.chunks_mut(BLOCKS).zip(v_scales.chunks_mut(BLOCKS));
                    let codes = m.chunks_mut(PIECE).zip(v.chunks_mut(PIECE)).zip(scales);
                    let weights = weight.chunks_mut(PIECE).zip(gradient.chunks(PIECE));
                    large
                        .extend(weights.zip(codes).map(|(weights, (codes, scales))| (numbers, weights, codes, scales)));
                }
                // The size of a tensor decides for both.
                _ => {}
            }
        }
        small.into_par_iter().for_each(|update| step_dispatched(update));
        large.into_par_iter().for_each(|(numbers, (weight, gradient), (m, v), (m_scales, v_scales))| {
            let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
            let weights = weight.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
            let codes = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
            let scales = m_scales.iter_mut().zip(v_scales);
            for (((weight, gradient), (m, v)), (m_scale, v_scale)) in weights.zip(codes).zip(scales) {
                let (first, second) = (&mut first[..weight.len()], &mut second[..weight.len()]);
                expand(Sign::Signed, m, *m_scale, first);
                expand(Sign::Unsigned, v, *v_scale, second);
                step_dispatched(Update { numbers, weight, gradient, first: &mut *first, second: &mut *second });
                *m_scale = compress(Sign::Signed, first, m);
                *v_scale = compress(Sign::Unsigned, second, v);
            }
        });
    }

    /// Returns the numbers of a step for tensors with these rates.
    fn numbers(&self, rates: Rates) -> Numbers {
        let correction = |beta: f64| 1.0 - beta.powf((self.step + 1) as f64);
        let rate = self.rate * rates.rate;
        Numbers {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (rate / correction(self.beta1)) as f32,
            decay: (rate * rates.decay) as f32,
            root2: (1.0 / correction(self.beta2)).sqrt() as f32,
            epsilon: self.epsilon as f32,
            scale: self.scale as f32,
        }
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
    use crate::MomentFormat;

    fn settings(step: u64, scale: f64, rates: &[Rates]) -> AdamW<'_> {
        AdamW { step, rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, scale, rates, muon: None }
    }

    /// Expected values follow the definition of `torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)`.
    #[test]
    fn two_steps_by_hand() {
        let layout = Layout::new([("w".to_owned(), vec![1, 1])]);
        let rates = Rates::standard(&layout, 0.01);
        let (mut weight, mut first, mut second) = ([1.0_f32], [0.0], [0.0]);
        settings(0, 1.0, &rates).apply_f32(&layout, &mut weight, &[0.5], &mut first, &mut second);
        let expected = 1.0 * (1.0 - 0.001) - 0.1;
        assert!((f64::from(weight[0]) - expected).abs() < 1e-6);
        settings(1, 0.5, &rates).apply_f32(&layout, &mut weight, &[-0.5], &mut first, &mut second);
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
        settings(0, 1.0, &rates).apply_f32(&layout, &mut weight, &vec![3.0; count], &mut first, &mut second);
        let (a, b) = weight.split_at(PIECE + 3);
        assert!(a.iter().all(|x| x.to_bits() == 1.0_f32.to_bits()));
        assert!(b.iter().all(|x| (x - 0.8).abs() < 1e-6), "{b:?}");
    }

    /// Gradients whose size differs from parameter to parameter and from step to step.
    fn drawn(count: usize, step: u64) -> Vec<f32> {
        let bits = |at: u64| ((at * 2_654_435_761 + step * 40_503) % (1 << 32)) >> 8;
        (0..count as u64).map(|at| (bits(at) as f32 / (1 << 23) as f32 - 1.0) * (1.0 + (at % 7) as f32)).collect()
    }

    /// Steps with moments in eight bits are those of AdamW up to the rounding of moments, which are what a step leaves rounded.
    #[test]
    fn moments_in_eight_bits_are_rounded_after_each_step() {
        let layout = Layout::new([("a".to_owned(), vec![70, 1000]), ("b".to_owned(), vec![9])]);
        let (rates, count) = (Rates::standard(&layout, 0.01), layout.size());
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut weight, mut moments) = (vec![0.5; count], Moments::zero_in_eight_bits(&layout));
                let mut full = (vec![0.5; count], Moments::zero(count));
                for step in 0..4 {
                    let gradients = drawn(count, step);
                    full.1 = moments.clone();
                    full.1.convert(&layout, MomentFormat::F32);
                    full.0.clone_from(&weight);
                    settings(step, 0.5, &rates).apply(&layout, &mut weight, &gradients, &mut moments);
                    settings(step, 0.5, &rates).apply(&layout, &mut full.0, &gradients, &mut full.1);
                    assert!(weight == full.0, "weights are updated before moments are rounded");
                    full.1.convert(&layout, MomentFormat::EightBit);
                    assert!(moments == full.1);
                }
                (weight, moments)
            })
        };
        let one = run(1);
        assert!(run(3) == one, "the bits do not depend on the number of threads");
        assert_eq!(one.1.bytes(), 2 * (70_000 + 4 * 274 + 4 * 9));
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
