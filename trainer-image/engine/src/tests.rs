use std::sync::Arc;

use super::*;

pub(crate) fn tiny() -> ModelConfig {
    let shape = Shape {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
    };
    ModelConfig::new(shape, Vocabulary { size: 37, end: 1, pad: 0 }).unwrap()
}

fn state(config: &ModelConfig, seed: u64) -> EngineState {
    let layout = Arc::new(Layout::of(config));
    let parameters = initial(config, &layout, seed);
    EngineState::new(layout, parameters)
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 7) % 37).collect()
}

/// Sequences of these lengths; the first third of each is its prompt.
fn batch(lengths: &[usize]) -> Packed {
    let all: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(at, length)| ids(*length, at as u32 * 31)).collect();
    Packed::new(all.iter().map(|ids| (ids.as_slice(), ids.len() / 3)))
}

/// Every gradient of `a` is that of `b`, as far as `share` of its tensor's largest, and none is 0 altogether.
fn same_gradients(a: &dyn Engine, b: &dyn Engine, share: f32) {
    let (left, right) = (a.gradients(), b.gradients());
    for tensor in a.layout().tensors() {
        let (left, right) = (&left[tensor.range.clone()], &right[tensor.range.clone()]);
        let size = right.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        assert!(size > 1e-6, "{} has a zero gradient", tensor.name);
        for (a, b) in left.iter().zip(right) {
            assert!((a - b).abs() < share * size + 1e-7, "{}: {a} {b} of {size}", tensor.name);
        }
    }
}

#[test]
fn loss_and_every_gradient_are_candle_s() {
    let config = tiny();
    let mut fast = CpuEngine::new(config.clone(), state(&config, 3)).unwrap();
    let mut plain = ReferenceEngine::new(config.clone(), state(&config, 3)).unwrap();
    for lengths in [&[26, 11, 7][..], &[2], &[64, 3, 3, 40, 17]] {
        let batch = batch(lengths);
        let total = batch.targets.len() + 5;
        for engine in [&mut fast as &mut dyn Engine, &mut plain] {
            engine.clear_gradients();
        }
        let (a, b) = (fast.accumulate(&batch, total).unwrap(), plain.accumulate(&batch, total).unwrap());
        assert!((a - b).abs() < 1e-5, "{a} {b}");
        assert!((fast.loss(&batch).unwrap() - b * total as f64).abs() < 1e-4 * total as f64);
        if lengths.len() > 1 {
            same_gradients(&fast, &plain, 2e-4);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let config = tiny();
            let mut engine = CpuEngine::new(config.clone(), state(&config, 3)).unwrap();
            // Enough rows for several pieces of work.
            let lengths: Vec<usize> = (0..60).map(|at| 5 + at % 50).collect();
            let batch = batch(&lengths);
            let rates = Rates::standard(engine.layout(), 0.01);
            let mut bits = Vec::new();
            for step in 0..3 {
                engine.clear_gradients();
                bits.push(engine.accumulate(&batch, batch.targets.len()).unwrap().to_bits());
                let norm = engine.gradient_norm().unwrap();
                bits.push(norm.to_bits());
                let scale = (1.0 / norm).min(1.0);
                engine.update(&AdamW {
                    step,
                    rate: 1e-2,
                    beta1: 0.9,
                    beta2: 0.99,
                    epsilon: 1e-8,
                    scale,
                    rates: &rates,
                });
            }
            (bits, engine.export())
        })
    };
    let (bits, end) = run(1);
    assert!(bits[0] != bits[4], "a step changes the loss");
    for threads in [2, 3] {
        let other = run(threads);
        assert_eq!(other.0, bits);
        assert!(other.1 == end);
    }
}

#[test]
fn a_slope_is_what_the_loss_does() {
    let config = tiny();
    let batch = batch(&[26, 11, 7]);
    let start = state(&config, 5);
    let mut engine = CpuEngine::new(config.clone(), start.clone()).unwrap();
    engine.accumulate(&batch, 10).unwrap();
    let gradients = engine.gradients().into_owned();
    for tensor in start.layout.tensors() {
        let gradient = &gradients[tensor.range.clone()];
        let length = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mut at = |step: f64| {
            let mut moved = start.clone();
            for (weight, slope) in moved.parameters[tensor.range.clone()].iter_mut().zip(gradient) {
                *weight += (f64::from(*slope) * step / length) as f32;
            }
            engine.import(&moved).unwrap();
            engine.loss(&batch).unwrap() / 10.0
        };
        let slope = (at(2e-3) - at(-2e-3)) / (2.0 * 2e-3);
        assert!((slope - length).abs() < 0.01 * length + 2e-3, "{}: {slope} {length}", tensor.name);
    }
}

#[test]
fn accumulated_parts_are_the_whole() {
    let config = tiny();
    let lengths = [26, 11, 7, 40, 3, 19];
    let whole = batch(&lengths);
    let total = whole.targets.len();
    let mut one = CpuEngine::new(config.clone(), state(&config, 3)).unwrap();
    let loss = one.accumulate(&whole, total).unwrap();
    let mut parts = CpuEngine::new(config.clone(), state(&config, 3)).unwrap();
    let all: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(at, length)| ids(*length, at as u32 * 31)).collect();
    let mut sum = 0.0;
    for part in all.chunks(2) {
        let part = Packed::new(part.iter().map(|ids| (ids.as_slice(), ids.len() / 3)));
        sum += parts.accumulate(&part, total).unwrap();
    }
    assert!((loss - sum).abs() < 1e-6);
    same_gradients(&parts, &one, 1e-4);
}

#[test]
fn what_cannot_be_taken_is_said() {
    let config = tiny();
    let mut engine = CpuEngine::new(config.clone(), state(&config, 3)).unwrap();
    let said = engine.loss(&batch(&[70])).unwrap_err().to_string();
    assert!(said.contains("69 tokens") && said.contains("64"), "{said}");
    let said = engine.loss(&Packed::new([([1, 2, 37].as_slice(), 1)])).unwrap_err().to_string();
    assert!(said.contains("token id 37") && said.contains("vocabulary of 37"), "{said}");
    let mut short = engine.export();
    short.second.pop();
    let said = engine.import(&short).unwrap_err().to_string();
    assert!(said.contains("second moments"), "{said}");
}
