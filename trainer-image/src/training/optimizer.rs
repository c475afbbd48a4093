//! AdamW with clipping and a schedule, over plain numbers in the order of names. Pure.

use std::collections::BTreeMap;

use codex_configs::{Optimization, Scheduler};

/// The moments of one weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments {
    /// The mean of gradients.
    pub(super) first: Vec<f32>,
    /// The mean of squared gradients.
    pub(super) second: Vec<f32>,
}

impl Moments {
    /// Of a weight with `count` numbers that has seen no gradient.
    pub(super) fn zero(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count] }
    }
}

/// The learning rate of `step`, counted from 0.
pub(super) fn learning_rate(training: &Optimization, step: u64) -> f64 {
    let Optimization { warmup_steps, max_steps, learning_rate: peak, .. } = *training;
    if step < warmup_steps {
        return peak * (step + 1) as f64 / warmup_steps as f64;
    }
    match training.scheduler {
        Scheduler::Constant => peak,
        Scheduler::Cosine => {
            let done = (step - warmup_steps) as f64 / (max_steps - warmup_steps).max(1) as f64;
            peak * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
        }
    }
}

/// The Euclidean norm of all gradients together.
pub(super) fn norm(gradients: &BTreeMap<String, Vec<f32>>) -> f64 {
    let squares =
        gradients.values().map(|gradient| gradient.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>());
    squares.sum::<f64>().sqrt()
}

/// One weight and what changes it.
pub(super) struct Update<'a> {
    pub(super) weight: &'a mut [f32],
    pub(super) gradient: &'a [f32],
    pub(super) first: &'a mut [f32],
    pub(super) second: &'a mut [f32],
    /// Whether the weight decays: norms do not.
    pub(super) decays: bool,
    /// What clipping multiplies the gradient by.
    pub(super) scale: f32,
}

/// One step of AdamW on one weight: `step` counts from 0.
pub(super) fn adamw(training: &Optimization, step: u64, update: Update) {
    let Update { weight, gradient, first, second, decays, scale } = update;
    let rate = learning_rate(training, step);
    let (beta1, beta2) = (training.beta1 as f32, training.beta2 as f32);
    let correction = |beta: f64| 1.0 - beta.powf((step + 1) as f64);
    let rate1 = (rate / correction(training.beta1)) as f32;
    let root2 = (1.0 / correction(training.beta2)).sqrt() as f32;
    let decay = if decays { (rate * training.weight_decay) as f32 } else { 0.0 };
    let epsilon = training.epsilon as f32;
    let numbers = weight.iter_mut().zip(gradient).zip(first.iter_mut().zip(second));
    for ((weight, gradient), (first, second)) in numbers {
        let gradient = gradient * scale;
        *first = beta1 * *first + (1.0 - beta1) * gradient;
        *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
        *weight -= decay * *weight + rate1 * *first / (second.sqrt() * root2 + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Optimization {
        Optimization {
            max_steps: 100,
            stop_after: None,
            batch_size: 1,
            gradient_accumulation: 1,
            learning_rate: 0.1,
            scheduler: Scheduler::Cosine,
            warmup_steps: 10,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            grad_clip_norm: 1.0,
            checkpoint_every: 10,
            keep_last: 1,
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rate = |step| learning_rate(&settings(), step);
        assert!((rate(0) - 0.01).abs() < 1e-12 && (rate(9) - 0.1).abs() < 1e-12);
        assert!((rate(10) - 0.1).abs() < 1e-12 && (rate(55) - 0.05).abs() < 1e-12 && rate(100) < 1e-12);
    }

    /// Numbers of `torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)` follow from its definition:
    /// w ← w·(1 − lr·wd) − lr·m̂/(√v̂ + ε).
    #[test]
    fn two_steps_by_hand() {
        let training = Optimization { warmup_steps: 0, scheduler: Scheduler::Constant, ..settings() };
        let (mut moments, mut weight) = (Moments::zero(1), [1.0_f32]);
        let mut take = |step, scale, gradient: f32| {
            let (first, second) = (moments.first.as_mut_slice(), moments.second.as_mut_slice());
            adamw(
                &training,
                step,
                Update { weight: &mut weight, gradient: &[gradient], first, second, decays: true, scale },
            );
            weight[0]
        };
        let after = take(0, 1.0, 0.5);
        let first = 1.0 * (1.0 - 0.001) - 0.1;
        assert!((f64::from(after) - first).abs() < 1e-6);
        let after = take(1, 0.5, -0.5);
        let (m, v) = (0.9 * 0.05 - 0.1 * 0.25, 0.99 * 0.0025 + 0.01 * 0.0625);
        let (m, v): (f64, f64) = (m / (1.0 - 0.81), v / (1.0 - 0.9801));
        let second = first * (1.0 - 0.001) - 0.1 * m / (v.sqrt() + 1e-8);
        assert!((f64::from(after) - second).abs() < 1e-6, "{after} {second}");
    }
}
