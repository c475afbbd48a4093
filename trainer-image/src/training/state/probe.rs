//! A small network beside the model, which is trained on what is captured of the model: a linear layer, tanh, dropout, a linear layer,
//! softmax. Pure.
//!
//! It is trained by gradient descent whose step is divided by the squared length of each layer's input (normalised least mean squares),
//! so that one rate suits inputs of any size, and nothing but the weights is kept between steps. All numbers are `f64`, in one order.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The rate of both layers, before the weight of the loss.
const RATE: f64 = 0.5;

/// The numbers of inputs, hidden units and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeShape {
    pub(crate) inputs: usize,
    pub(crate) hidden: usize,
    pub(crate) outputs: usize,
}

impl ProbeShape {
    /// Returns the number of weights: both matrices by rows, each before its bias.
    pub(super) fn size(self) -> usize {
        self.hidden * (self.inputs + 1) + self.outputs * (self.hidden + 1)
    }
}

/// The network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    shape: ProbeShape,
    weights: Vec<f64>,
}

/// The weights of a network by layer: matrix and bias.
struct Layers<'a> {
    first: &'a [f64],
    first_bias: &'a [f64],
    second: &'a [f64],
    second_bias: &'a [f64],
}

impl Probe {
    /// Makes a network with random weights: uniform within ±1/√inputs of each layer, as torch's linear layers begin.
    pub(super) fn new(shape: ProbeShape, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Vec::with_capacity(shape.size());
        for (rows, inputs) in [(shape.hidden, shape.inputs), (shape.outputs, shape.hidden)] {
            let most = 1.0 / (inputs.max(1) as f64).sqrt();
            weights.extend((0..rows * (inputs + 1)).map(|_| most * (2.0 * rng.random::<f64>() - 1.0)));
        }
        Self { shape, weights }
    }

    /// Returns the network with these weights; `None` if they are of another shape.
    pub(super) fn restore(shape: ProbeShape, weights: Vec<f64>) -> Option<Self> {
        (weights.len() == shape.size()).then_some(Self { shape, weights })
    }

    /// Returns the shape.
    pub(super) fn shape(&self) -> ProbeShape {
        self.shape
    }

    /// Returns the weights.
    pub(super) fn weights(&self) -> &[f64] {
        &self.weights
    }

    fn layers(&self) -> Layers<'_> {
        let ProbeShape { inputs, hidden, outputs } = self.shape;
        let (first, rest) = self.weights.split_at(hidden * inputs);
        let (first_bias, rest) = rest.split_at(hidden);
        let (second, second_bias) = rest.split_at(outputs * hidden);
        Layers { first, first_bias, second, second_bias }
    }

    fn hidden(&self, input: &[f64]) -> Vec<f64> {
        let Layers { first, first_bias, .. } = self.layers();
        linear(first, first_bias, input).into_iter().map(f64::tanh).collect()
    }

    fn outputs(&self, hidden: &[f64], temperature: f64) -> Vec<f64> {
        let Layers { second, second_bias, .. } = self.layers();
        softmax(linear(second, second_bias, hidden), temperature)
    }

    /// Returns the probability of each output.
    pub(super) fn probabilities(&self, input: &[f64], temperature: f64) -> Vec<f64> {
        self.outputs(&self.hidden(input), temperature)
    }

    /// Takes a step towards the probabilities `target` for an input, with the hidden units left out that `seed` and `dropout` say.
    pub(super) fn learn(&mut self, input: &[f64], target: &[f64], weight: f64, (dropout, seed): (f64, u64)) {
        let ProbeShape { inputs, hidden: width, outputs } = self.shape;
        let hidden = self.hidden(input);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kept: Vec<f64> =
            (0..width).map(|_| if rng.random::<f64>() < dropout { 0.0 } else { 1.0 / (1.0 - dropout) }).collect();
        let masked: Vec<f64> = hidden.iter().zip(&kept).map(|(unit, kept)| unit * kept).collect();
        let found = self.outputs(&masked, 1.0);
        let slopes: Vec<f64> = found.iter().zip(target).map(|(found, target)| found - target).collect();
        let second = &self.layers().second[..outputs * width];
        let mut of_hidden = vec![0.0; width];
        for (row, slope) in second.chunks_exact(width).zip(&slopes) {
            of_hidden.iter_mut().zip(row).for_each(|(sum, weight)| *sum += slope * weight);
        }
        for ((slope, unit), kept) in of_hidden.iter_mut().zip(&hidden).zip(&kept) {
            *slope *= kept * (1.0 - unit * unit);
        }
        let (first, rest) = self.weights.split_at_mut(width * inputs);
        let (first_bias, rest) = rest.split_at_mut(width);
        let (second, second_bias) = rest.split_at_mut(outputs * width);
        descend((first, first_bias), &of_hidden, input, RATE * weight);
        descend((second, second_bias), &slopes, &masked, RATE * weight);
    }
}

/// Subtracts the gradient of a linear layer, divided by the squared length of its input and of its bias.
fn descend((matrix, bias): (&mut [f64], &mut [f64]), slopes: &[f64], input: &[f64], rate: f64) {
    let rate = rate / (1.0 + input.iter().map(|number| number * number).sum::<f64>());
    for ((row, bias), slope) in matrix.chunks_exact_mut(input.len().max(1)).zip(bias).zip(slopes) {
        let step = rate * slope;
        row.iter_mut().zip(input).for_each(|(weight, number)| *weight -= step * number);
        *bias -= step;
    }
}

fn linear(matrix: &[f64], bias: &[f64], input: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks_exact(input.len().max(1)).zip(bias);
    rows.map(|(row, bias)| row.iter().zip(input).fold(*bias, |sum, (weight, number)| sum + weight * number)).collect()
}

fn softmax(mut logits: Vec<f64>, temperature: f64) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for logit in &mut logits {
        *logit = ((*logit - most) / temperature).exp();
    }
    let sum: f64 = logits.iter().sum();
    for share in &mut logits {
        *share /= sum;
    }
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ProbeShape = ProbeShape { inputs: 5, hidden: 7, outputs: 4 };

    fn loss(probe: &Probe, input: &[f64], target: &[f64]) -> f64 {
        -probe.probabilities(input, 1.0).iter().zip(target).map(|(found, target)| target * found.ln()).sum::<f64>()
    }

    /// A step of a tiny weight moves along the gradient of the cross-entropy.
    #[test]
    fn a_step_descends_along_the_slopes_of_the_loss() {
        let input = [0.5, -1.0, 0.25, 2.0, -0.75];
        let target = [0.25, 0.0, 0.75, 0.0];
        let before = Probe::new(SHAPE, 1);
        let mut after = before.clone();
        let weight = 1e-6;
        after.learn(&input, &target, weight, (0.0, 0));
        let hidden = before.hidden(&input);
        let lengths = |input: &[f64]| 1.0 + input.iter().map(|number| number * number).sum::<f64>();
        for at in 0..SHAPE.size() {
            let mut moved = before.clone();
            let step = 1e-5;
            moved.weights[at] += step;
            let above = loss(&moved, &input, &target);
            moved.weights[at] -= 2.0 * step;
            let slope = (above - loss(&moved, &input, &target)) / (2.0 * step);
            let length = if at < SHAPE.hidden * (SHAPE.inputs + 1) { lengths(&input) } else { lengths(&hidden) };
            let expected = -RATE * weight * slope / length;
            let found = after.weights[at] - before.weights[at];
            assert!((found - expected).abs() < 1e-12, "{at}: {found} {expected}");
        }
    }

    #[test]
    fn what_is_shown_often_is_learned_whatever_the_scale_of_the_input() {
        for scale in [0.01, 1.0, 100.0] {
            let mut probe = Probe::new(SHAPE, 3);
            let one: Vec<f64> = [1.0, 0.0, 0.0, 1.0, 0.0].iter().map(|number| scale * number).collect();
            let other: Vec<f64> = [0.0, 1.0, 1.0, 0.0, -1.0].iter().map(|number| scale * number).collect();
            for step in 0..3000 {
                probe.learn(&one, &[1.0, 0.0, 0.0, 0.0], 1.0, (0.05, step));
                probe.learn(&other, &[1.0, 0.0, 0.0, 0.0], 1.0, (0.05, step));
            }
            assert!(probe.probabilities(&one, 1.0)[0] > 0.95, "{scale}");
            let mut apart = Probe::new(SHAPE, 3);
            if scale < 1.0 {
                continue;
            }
            for step in 0..3000 {
                apart.learn(&one, &[1.0, 0.0, 0.0, 0.0], 1.0, (0.05, step));
                apart.learn(&other, &[0.0, 0.0, 0.0, 1.0], 1.0, (0.05, step));
            }
            assert!(apart.probabilities(&one, 1.0)[0] > 0.9 && apart.probabilities(&other, 1.0)[3] > 0.9, "{scale}");
        }
    }

    #[test]
    fn probabilities_add_up_and_a_temperature_sharpens_them() {
        let probe = Probe::new(SHAPE, 7);
        let input = [0.5, -1.0, 0.25, 2.0, -0.75];
        let [warm, cold] = [1.0, 0.1].map(|temperature| probe.probabilities(&input, temperature));
        assert!((warm.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let most = |shares: &[f64]| shares.iter().copied().fold(0.0, f64::max);
        assert!(most(&cold) > most(&warm));
        assert_eq!(Probe::new(SHAPE, 7), probe, "the seed decides");
        assert_ne!(Probe::new(SHAPE, 8), probe);
        assert!(Probe::restore(SHAPE, vec![0.0; 3]).is_none());
    }
}
