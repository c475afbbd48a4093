mod bits;
mod decoding;
mod lora;
mod optimizers;
mod weighted;

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

/// A GPT-2 with odd widths.
pub(crate) fn gpt2() -> ModelConfig {
    ModelConfig { family: Family::Gpt2, intermediate_size: 51, bos_token_id: Some(1), ..tiny() }
}

/// Fewer key-value heads than query heads, and an untied output projection.
fn grouped() -> ModelConfig {
    ModelConfig {
        hidden_size: 96,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        tie_word_embeddings: false,
        ..tiny()
    }
}

/// Biases of queries, keys and values; scaled rotary frequencies.
fn qwen2() -> ModelConfig {
    let scaling =
        RopeScaling::Llama3 { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16 };
    ModelConfig { qkv_bias: true, tie_word_embeddings: true, rope_scaling: Some(scaling), ..grouped() }
}

/// Normalized queries and keys, in heads wider than the residual stream divided by their number.
fn qwen3() -> ModelConfig {
    let rope_scaling = Some(RopeScaling::Linear { factor: 2.0 });
    ModelConfig { qk_norm: true, head_dim: 32, num_key_value_heads: 3, rope_scaling, ..grouped() }
}

pub(crate) fn shapes() -> [ModelConfig; 5] {
    [tiny(), grouped(), gpt2(), qwen2(), qwen3()]
}

/// A state without vectors of only 1 or 0, so that every parameter has an effect.
fn state(config: &ModelConfig, seed: u64) -> EngineState {
    let layout = Arc::new(Layout::of(config));
    let mut parameters = initial(config, &layout, seed);
    for tensor in layout.tensors().iter().filter(|tensor| tensor.shape.len() == 1) {
        for (at, number) in parameters[tensor.range.clone()].iter_mut().enumerate() {
            *number += ((at * 7 + tensor.range.start) % 11) as f32 / 50.0 - 0.1;
        }
    }
    EngineState::new(layout, parameters)
}

/// Every backend measures itself; how fast a machine is cannot be asserted.
#[test]
fn the_speed_of_large_products_is_measured() {
    for (settings, path) in [(Settings::default(), "cpu-f32"), (BF16, "cpu-bf16")] {
        let engine = start(&tiny(), 1, settings);
        assert!(engine.path().starts_with(path));
        let measured = engine.peak_flops().unwrap();
        assert!(measured.is_finite() && measured > 1e6, "{path}: {measured}");
    }
    assert!(plain(&tiny(), 1).peak_flops().unwrap() > 1e6, "candle");
}

const BF16: Settings =
    Settings { precision: Precision::Bf16, gradient_checkpointing: false, backend: Backend::Kernels };

fn start(config: &ModelConfig, seed: u64, settings: Settings) -> Box<dyn Engine> {
    engine(config.clone(), state(config, seed), settings).unwrap()
}

fn plain(config: &ModelConfig, seed: u64) -> Box<dyn Engine> {
    start(config, seed, Settings { backend: Backend::Candle(Device::Cpu), ..Settings::default() })
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 7) % 37).collect()
}

/// Sequences of these lengths; the first third of each is its prompt.
fn batch(lengths: &[usize]) -> Packed {
    let all: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(at, length)| ids(*length, at as u32 * 31)).collect();
    Packed::new(all.iter().map(|ids| (ids.as_slice(), ids.len() / 3)))
}

/// Asserts that the gradients agree within `share` of each tensor's maximum, and that no tensor has a zero gradient.
fn assert_gradients_agree(a: &dyn Engine, b: &dyn Engine, share: f32) {
    let (left, right) = (a.gradients().unwrap(), b.gradients().unwrap());
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
fn losses_and_gradients_agree_with_candle() {
    for config in shapes() {
        let mut plain = plain(&config, 3);
        for (settings, share) in [(Settings::default(), 2e-4), (BF16, 0.08)] {
            let mut fast = start(&config, 3, settings);
            for lengths in [&[26, 11, 7][..], &[2], &[64, 3, 3, 40, 17]] {
                let batch = batch(lengths);
                let total = batch.targets.len() + 5;
                plain.clear_gradients().unwrap();
                fast.clear_gradients().unwrap();
                let (a, b) = (fast.accumulate(&batch, total).unwrap(), plain.accumulate(&batch, total).unwrap());
                assert!((a - b).abs() < f64::from(share) * 0.1, "{a} {b}");
                let alone = fast.loss(&batch).unwrap();
                assert!((alone - a * total as f64).abs() < 1e-5 * total as f64, "{alone} {a}");
                if lengths.len() > 1 {
                    assert_gradients_agree(&*fast, &*plain, share);
                }
            }
        }
    }
}

#[test]
fn heads_of_every_width_agree_with_candle() {
    for width in HEAD_WIDTHS {
        let config = ModelConfig { hidden_size: 2 * width, head_dim: width, ..tiny() };
        let mut plain = plain(&config, 3);
        for (settings, share) in [(Settings::default(), 2e-4), (BF16, 0.08)] {
            let mut fast = start(&config, 3, settings);
            let batch = batch(&[26, 11, 40]);
            plain.clear_gradients().unwrap();
            let total = batch.targets.len();
            let (a, b) = (fast.accumulate(&batch, total).unwrap(), plain.accumulate(&batch, total).unwrap());
            assert!((a - b).abs() < f64::from(share) * 0.1, "{width}: {a} {b}");
            assert_gradients_agree(&*fast, &*plain, share);
        }
    }
}

/// A step of these tests.
fn adamw(step: u64, scale: f64, rates: &[Rates]) -> AdamW<'_> {
    AdamW { step, rate: 1e-2, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, scale, rates, muon: None }
}

/// Takes three steps. Returns the bits of every loss and norm, and the final state.
fn three_steps(config: &ModelConfig, settings: Settings) -> (Vec<u64>, EngineState) {
    let mut engine = start(config, 3, settings);
    // Enough rows for several chunks.
    let lengths: Vec<usize> = (0..60).map(|at| 5 + at % 50).collect();
    let batch = batch(&lengths);
    let rates = Rates::standard(engine.layout(), 0.01);
    let mut bits = Vec::new();
    for step in 0..3 {
        engine.clear_gradients().unwrap();
        bits.push(engine.accumulate(&batch, batch.targets.len()).unwrap().to_bits());
        let norm = engine.gradient_norm().unwrap();
        bits.push(norm.to_bits());
        let scale = (1.0 / norm).min(1.0);
        engine.update(&adamw(step, scale, &rates)).unwrap();
    }
    (bits, engine.export().unwrap())
}

#[test]
fn bits_do_not_depend_on_threads() {
    for config in shapes() {
        for settings in [Settings::default(), BF16] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| three_steps(&config, settings))
            };
            let (bits, end) = run(1);
            assert!(bits[0] != bits[4], "a step changes the loss");
            for threads in [2, 3] {
                let other = run(threads);
                assert_eq!(other.0, bits);
                assert!(other.1 == end);
            }
        }
    }
}

#[test]
fn gradient_checkpointing_gives_the_same_bits() {
    let config = ModelConfig { num_hidden_layers: 3, ..tiny() };
    for settings in [Settings::default(), BF16] {
        let kept = three_steps(&config, settings);
        assert!(kept == three_steps(&config, Settings { gradient_checkpointing: true, ..settings }));
    }
}

#[test]
fn gradient_checkpointing_takes_less_memory() {
    let config = ModelConfig { num_hidden_layers: 6, ..tiny() };
    let memory = |gradient_checkpointing| {
        let mut engine = start(&config, 3, Settings { gradient_checkpointing, ..Settings::default() });
        let batch = batch(&[60; 40]);
        engine.accumulate(&batch, 1).unwrap();
        engine.memory()
    };
    assert!(memory(true) * 2 < memory(false));
}

#[test]
fn gradients_agree_with_finite_differences() {
    for config in shapes() {
        let batch = batch(&[26, 11, 7]);
        let begin = state(&config, 5);
        let mut engine = start(&config, 5, Settings::default());
        engine.accumulate(&batch, 10).unwrap();
        let gradients = engine.gradients().unwrap().into_owned();
        for tensor in begin.layout.tensors() {
            let gradient = &gradients[tensor.range.clone()];
            let length = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let mut at = |step: f64| {
                let mut moved = begin.clone();
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
}

#[test]
fn accumulated_batches_equal_one_batch() {
    let config = tiny();
    let lengths = [26, 11, 7, 40, 3, 19];
    let whole = batch(&lengths);
    let total = whole.targets.len();
    for (settings, share) in [(Settings::default(), 1e-4), (BF16, 0.02)] {
        let mut one = start(&config, 3, settings);
        let loss = one.accumulate(&whole, total).unwrap();
        let mut parts = start(&config, 3, settings);
        let all: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(at, length)| ids(*length, at as u32 * 31)).collect();
        let mut sum = 0.0;
        for part in all.chunks(2) {
            let part = Packed::new(part.iter().map(|ids| (ids.as_slice(), ids.len() / 3)));
            sum += parts.accumulate(&part, total).unwrap();
        }
        assert!((loss - sum).abs() < 1e-6);
        assert_gradients_agree(&*parts, &*one, share);
    }
}

#[test]
fn sequences_are_independent() {
    let config = tiny();
    for settings in [Settings::default(), BF16] {
        let mut engine = start(&config, 3, settings);
        let together = engine.loss(&batch(&[26, 11, 7])).unwrap();
        let alone: f64 = [26, 11, 7]
            .iter()
            .enumerate()
            .map(|(at, length)| {
                let ids = ids(*length, at as u32 * 31);
                engine.loss(&Packed::new([(ids.as_slice(), length / 3)])).unwrap()
            })
            .sum();
        assert!((together - alone).abs() < 1e-4, "{together} {alone}");
    }
}

/// Heads of a width that the kernels were not compiled for.
#[test]
fn shapes_without_kernels_are_computed_by_candle() {
    let config = ModelConfig { hidden_size: 48, head_dim: 24, ..tiny() };
    config.validate().unwrap();
    let mut engine = start(&config, 3, Settings::default());
    assert_eq!(engine.path(), "candle-f32");
    let batch = batch(&[26, 11, 7]);
    let rates = Rates::standard(engine.layout(), 0.01);
    let mut losses = Vec::new();
    for step in 0..8 {
        engine.clear_gradients().unwrap();
        losses.push(engine.accumulate(&batch, batch.targets.len()).unwrap());
        let scale = (1.0 / engine.gradient_norm().unwrap()).min(1.0);
        engine.update(&adamw(step, scale, &rates)).unwrap();
    }
    assert!(losses[7] < 0.8 * losses[0], "{losses:?}");
    // A copy of the state goes on to the same bits.
    let mut copy = start(&config, 5, Settings::default());
    copy.import(&engine.export().unwrap()).unwrap();
    let [one, other] = [&mut engine, &mut copy].map(|engine| engine.loss(&batch).unwrap().to_bits());
    assert_eq!(one, other);
    // Weights in bf16 are generated from in `f32`, but nothing is trained in a type that was not asked for.
    let parameters = engine.parameters().unwrap();
    assert_eq!(decoder(&config, &parameters, BF16, 1).unwrap().path(), "candle-f32");
    let refused = super::engine(config.clone(), state(&config, 3), BF16).err().unwrap().to_string();
    assert_eq!(refused, "candle multiplies no bf16 on a CPU: use fp32");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_without_cuda_says_so() {
    assert!(matches!(check_cuda(), Err(EngineError::WithoutCuda)));
    let settings = Settings { backend: Backend::Candle(Device::Cuda), ..Settings::default() };
    let refused = engine(tiny(), state(&tiny(), 3), settings).err().unwrap().to_string();
    assert!(refused.starts_with("this program was built without CUDA"), "{refused}");
}

/// Sequences that begin with the same `shared` ids, in which no target lies.
fn batch_with_prefix(shared: usize, lengths: &[usize]) -> Packed {
    let own = |(at, length): (usize, &usize)| [ids(shared, 7), ids(*length, 100 + at as u32 * 31)].concat();
    let all: Vec<Vec<u32>> = lengths.iter().enumerate().map(own).collect();
    Packed::new(all.iter().map(|ids| (ids.as_slice(), shared + 2)))
}

#[test]
fn a_shared_prefix_changes_neither_losses_nor_gradients() {
    let batch = batch_with_prefix(21, &[12, 5, 30]);
    let total = batch.targets.len();
    for config in shapes() {
        let mut plain = plain(&config, 3);
        let expected = plain.accumulate(&batch, total).unwrap();
        let alone = plain.loss(&batch).unwrap();
        for (settings, share) in [(Settings::default(), 2e-4), (BF16, 0.05)] {
            let mut fast = start(&config, 3, settings);
            let found = fast.accumulate(&batch, total).unwrap();
            assert!((found - expected).abs() < f64::from(share) * 0.1, "{found} {expected}");
            assert_gradients_agree(&*fast, &*plain, share);
            let found = fast.loss(&batch).unwrap();
            assert!((found - alone).abs() < f64::from(share) * 0.1 * total as f64, "{found} {alone}");
        }
    }
}

#[test]
fn invalid_batches_and_states_are_refused() {
    let config = tiny();
    let mut engine = start(&config, 3, Settings::default());
    let said = engine.loss(&batch(&[70])).unwrap_err().to_string();
    assert!(said.contains("69 tokens") && said.contains("64"), "{said}");
    let said = engine.loss(&Packed::new([([1, 2, 37].as_slice(), 1)])).unwrap_err().to_string();
    assert!(said.contains("token id 37") && said.contains("vocabulary of 37"), "{said}");
    let mut short = engine.export().unwrap();
    let Moments::F32 { second, .. } = &mut short.moments else { panic!("f32") };
    second.pop();
    let said = engine.import(&short).unwrap_err().to_string();
    assert!(said.contains("second moments"), "{said}");
}

#[test]
fn nan_is_propagated() {
    for settings in [Settings::default(), BF16] {
        let config = tiny();
        let mut broken = state(&config, 3);
        let place = broken.layout.find("model.layers.1.mlp.up_proj.weight").unwrap().range.start;
        broken.parameters[place] = f32::NAN;
        let mut engine = engine(config, broken, settings).unwrap();
        let batch = batch(&[26, 11, 7]);
        assert!(engine.accumulate(&batch, 10).unwrap().is_nan());
        let said = engine.gradient_norm().unwrap_err().to_string();
        assert!(said.contains("is not finite"), "{said}");
    }
}

/// Results of PyTorch, written by `pytorch.py` beside the fixture.
#[derive(serde::Deserialize)]
struct Case {
    config: serde_json::Value,
    losses: Vec<f64>,
    norms: Vec<f64>,
    gradients: std::collections::BTreeMap<String, ExpectedGradient>,
    after: std::collections::BTreeMap<String, Vec<f64>>,
}

#[derive(serde::Deserialize)]
struct ExpectedGradient {
    norm: f64,
    head: Vec<f64>,
    tail: Vec<f64>,
}

#[derive(serde::Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[test]
fn losses_gradients_and_steps_agree_with_pytorch() {
    let text = include_str!("../tests/fixtures/pytorch.json");
    let Cases { cases } = serde_json::from_str(text).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let config = ModelConfig::parse(case.config.to_string().as_bytes()).unwrap();
        let layout = Arc::new(Layout::of(&config));
        assert!(
            layout.tensors().iter().map(|tensor| &tensor.name).collect::<std::collections::BTreeSet<_>>()
                == case.gradients.keys().collect()
        );
        let mut parameters = vec![0.0; layout.size()];
        for (index, tensor) in layout.tensors().iter().enumerate() {
            let one = if tensor.shape.len() == 1 && tensor.name.rsplit('.').next() != Some("bias") { 1.0 } else { 0.0 };
            for (at, number) in parameters[tensor.range.clone()].iter_mut().enumerate() {
                let drawn = (at as u64 * 2_654_435_761 + index as u64 * 97) % (1 << 32) % 1000;
                *number = (one + 0.2 * (drawn as f64 / 500.0 - 1.0)) as f32;
            }
        }
        let begin = EngineState::new(layout.clone(), parameters);
        for (settings, share) in [
            (Settings::default(), 2e-5),
            (Settings { backend: Backend::Candle(Device::Cpu), ..Settings::default() }, 2e-5),
            (BF16, 3e-2),
        ] {
            let mut engine = engine(config.clone(), begin.clone(), settings).unwrap();
            let batch = batch(&[26, 11, 7, 40]);
            let rates = Rates::standard(&layout, 0.1);
            for (step, (loss, norm)) in case.losses.iter().zip(&case.norms).enumerate() {
                let path = engine.path();
                let close = |found: f64, expected: f64, size: f64| {
                    assert!((found - expected).abs() < share * size, "{path} step {step}: {found} {expected}");
                };
                engine.clear_gradients().unwrap();
                let found = engine.accumulate(&batch, batch.targets.len()).unwrap();
                let gradients = engine.gradients().unwrap().into_owned();
                if step == 0 {
                    for tensor in layout.tensors() {
                        let ExpectedGradient { norm, head, tail } = &case.gradients[&tensor.name];
                        let found = &gradients[tensor.range.clone()];
                        let length = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                        close(length, *norm, *norm);
                        let ends =
                            found.iter().take(3).zip(head).chain(found.iter().rev().take(3).zip(tail.iter().rev()));
                        ends.for_each(|(found, expected)| close(f64::from(*found), *expected, *norm));
                    }
                }
                close(found, *loss, 10.0);
                let found = engine.gradient_norm().unwrap();
                close(found, *norm, 10.0 * norm);
                let (step, scale) = (step as u64, (1.0 / found).min(1.0));
                engine.update(&adamw(step, scale, &rates)).unwrap();
            }
            if settings.precision == Precision::F32 {
                let end = engine.export().unwrap().parameters;
                for tensor in layout.tensors() {
                    for (found, expected) in end[tensor.range.clone()].iter().zip(&case.after[&tensor.name]) {
                        assert!((f64::from(*found) - expected).abs() < 2e-4, "{}: {found} {expected}", tensor.name);
                    }
                }
            }
        }
    }
}
