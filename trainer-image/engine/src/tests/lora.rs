//! Training adapters beside a frozen model, and models of the sizes of real ones.

use std::collections::BTreeSet;

use super::*;

const DROPOUT: f64 = 0.2;

pub(super) fn lora(targets: impl Into<BTreeSet<Projection>>, dropout: f64) -> Lora {
    Lora { rank: 3, alpha: 7.0, dropout, targets: targets.into() }
}

/// The Llama-shaped models.
fn llamas() -> impl Iterator<Item = ModelConfig> {
    shapes().into_iter().filter(|config| config.family == Family::Llama)
}

/// Adapters without zeros, so that every parameter has an effect.
fn adapters(config: &ModelConfig, lora: &Lora) -> EngineState {
    let layout = Arc::new(lora.layout(config).unwrap());
    let mut parameters = lora.initial(config, 3).unwrap();
    for tensor in layout.tensors().iter().filter(|tensor| tensor.name.contains("lora_B")) {
        for (at, number) in parameters[tensor.range.clone()].iter_mut().enumerate() {
            *number = ((at * 7 + tensor.range.start) % 23) as f32 / 100.0 - 0.11;
        }
    }
    EngineState::new(layout, parameters)
}

pub(super) fn start_lora(config: &ModelConfig, lora: &Lora, settings: Settings) -> Box<dyn Engine> {
    let base = state(config, 3).parameters;
    lora_engine(config.clone(), &base, lora.clone(), adapters(config, lora), settings).unwrap()
}

fn noisy(lengths: &[usize], noise: u64) -> Packed {
    Packed { noise, ..batch(lengths) }
}

pub(super) const REFERENCE: Settings =
    Settings { precision: Precision::F32, gradient_checkpointing: false, backend: Backend::Candle(Device::Cpu) };

#[test]
fn losses_and_gradients_of_adapters_agree_with_candle() {
    use Projection::{Down, Gate, Key, Output, Query, Up, Value};
    let targets: [BTreeSet<Projection>; 4] =
        [Projection::ALL.into(), [Query, Value].into(), [Key, Up].into(), [Output, Gate, Down].into()];
    for config in llamas() {
        for (targets, dropout) in targets.iter().zip([DROPOUT, 0.0, DROPOUT, 0.0]) {
            let lora = lora(targets.clone(), dropout);
            let mut plain = start_lora(&config, &lora, REFERENCE);
            for (settings, share) in [(Settings::default(), 2e-4), (BF16, 0.08)] {
                let mut fast = start_lora(&config, &lora, settings);
                assert_eq!(fast.layout(), plain.layout());
                for lengths in [&[26, 11, 7][..], &[64, 3, 3, 40, 17]] {
                    let batch = noisy(lengths, 5);
                    // A prefix that is long enough to be shared, if nothing is dropped out.
                    let prefixed = batch_with_prefix(18, &[12, 3, 30]);
                    plain.clear_gradients().unwrap();
                    fast.clear_gradients().unwrap();
                    let total = prefixed.targets.len();
                    let (a, b) =
                        (fast.accumulate(&prefixed, total).unwrap(), plain.accumulate(&prefixed, total).unwrap());
                    assert!((a - b).abs() < f64::from(share) * 0.1, "{a} {b}");
                    assert_gradients_agree(&*fast, &*plain, share);
                    let total = batch.targets.len() + 5;
                    plain.clear_gradients().unwrap();
                    fast.clear_gradients().unwrap();
                    let (a, b) = (fast.accumulate(&batch, total).unwrap(), plain.accumulate(&batch, total).unwrap());
                    assert!((a - b).abs() < f64::from(share) * 0.1, "{a} {b}");
                    assert_gradients_agree(&*fast, &*plain, share);
                    let (alone, expected) = (fast.loss(&batch).unwrap(), plain.loss(&batch).unwrap());
                    assert!((alone - expected).abs() < f64::from(share) * 0.1 * total as f64, "{alone} {expected}");
                    // Another noise drops other inputs out, and an evaluation none.
                    let other = noisy(lengths, 6);
                    let dropped = fast.accumulate(&other, total).unwrap().to_bits() != a.to_bits();
                    assert_eq!(dropped, dropout > 0.0);
                    assert_eq!(fast.loss(&other).unwrap().to_bits(), alone.to_bits());
                }
            }
        }
    }
}

/// The adapters change the loss as the weights do that they are merged into, and the gradients are those of the chain rule.
#[test]
fn merged_weights_have_the_loss_of_the_adapters() {
    for config in llamas() {
        let lora = lora(Projection::ALL, 0.0);
        let mut adapted = start_lora(&config, &lora, Settings::default());
        let mut merged = state(&config, 3);
        let mut count = 0;
        for tensor in merged.layout.tensors() {
            let weight = &mut merged.parameters[tensor.range.clone()];
            count += usize::from(lora.merge(adapted.layout(), &adapted.parameters().unwrap(), &tensor.name, weight));
        }
        assert_eq!(count, 7 * config.num_hidden_layers);
        let mut whole = engine(config.clone(), merged, Settings::default()).unwrap();
        let batch = batch(&[26, 11, 40]);
        let (a, b) = (adapted.loss(&batch).unwrap(), whole.loss(&batch).unwrap());
        let untouched = start(&config, 3, Settings::default()).loss(&batch).unwrap();
        assert!((a - b).abs() < 1e-4 * b && (a - untouched).abs() > 1e-2, "{a} {b} {untouched}");
        adapted.accumulate(&batch, 10).unwrap();
        whole.accumulate(&batch, 10).unwrap();
        let (of_adapters, of_weights) = (adapted.gradients().unwrap(), whole.gradients().unwrap());
        let find = |part: &str| {
            let name = format!("base_model.model.model.layers.1.mlp.up_proj.{part}.weight");
            adapted.layout().find(&name).unwrap().clone()
        };
        let (a, b) = (find("lora_A"), find("lora_B"));
        let weight = whole.layout().find("model.layers.1.mlp.up_proj.weight").unwrap();
        let (slope, factor) = (&of_weights[weight.range.clone()], &adapted.parameters().unwrap()[a.range.clone()]);
        let inputs = config.hidden_size;
        for (row, found) in of_adapters[b.range].chunks_exact(3).enumerate() {
            for (found, a) in found.iter().zip(factor.chunks_exact(inputs)) {
                let products = slope[row * inputs..][..inputs].iter().zip(a).map(|(slope, a)| slope * a);
                let expected = lora.scale() as f32 * products.sum::<f32>();
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }
}

/// Takes `steps` steps from `first` with dropout that depends on the step. Returns the bits of the losses.
fn steps(engine: &mut dyn Engine, first: u64, count: u64) -> Vec<u64> {
    let lengths: Vec<usize> = (0..60).map(|at| 5 + at % 50).collect();
    let rates = Rates::standard(engine.layout(), 0.01);
    let step = |step| {
        let batch = noisy(&lengths, 100 + step);
        engine.clear_gradients().unwrap();
        let loss = engine.accumulate(&batch, batch.targets.len()).unwrap();
        let scale = (1.0 / engine.gradient_norm().unwrap()).min(1.0);
        engine.update(&adamw(step, scale, &rates)).unwrap();
        loss.to_bits()
    };
    (first..first + count).map(step).collect()
}

#[test]
fn adapters_resume_to_the_bit_and_do_not_depend_on_threads_or_checkpointing() {
    let config = grouped();
    let lora = lora(Projection::ALL, DROPOUT);
    for settings in [Settings::default(), BF16] {
        let mut whole = start_lora(&config, &lora, settings);
        let bits = steps(&mut *whole, 0, 4);
        assert_ne!(bits[0], bits[1]);
        let mut first = start_lora(&config, &lora, settings);
        steps(&mut *first, 0, 2);
        let mut second = start_lora(&config, &lora, settings);
        second.import(&first.export().unwrap()).unwrap();
        assert_eq!(steps(&mut *second, 2, 2), bits[2..]);
        assert!(second.export().unwrap() == whole.export().unwrap());
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let settings = Settings { gradient_checkpointing: threads == 3, ..settings };
            let mut other = start_lora(&config, &lora, settings);
            assert_eq!(pool.install(|| steps(&mut *other, 0, 4)), bits);
            assert!(other.export().unwrap() == whole.export().unwrap());
        }
    }
}

#[test]
fn steps_lower_the_loss_and_the_base_stays() {
    let config = qwen2();
    let lora = lora(Projection::ALL, 0.0);
    let base = state(&config, 3).parameters;
    let layout = Arc::new(lora.layout(&config).unwrap());
    let begin = EngineState::new(layout, lora.initial(&config, 1).unwrap());
    let mut adapted = lora_engine(config.clone(), &base, lora, begin, Settings::default()).unwrap();
    let batch = batch(&[26, 11, 7]);
    let before = adapted.loss(&batch).unwrap();
    // B is 0, so that the adapters change nothing yet.
    let untouched = start(&config, 3, Settings::default()).loss(&batch).unwrap();
    assert!((before - untouched).abs() < 1e-9, "{before} {untouched}");
    steps(&mut *adapted, 0, 10);
    let lengths: Vec<usize> = (0..60).map(|at| 5 + at % 50).collect();
    let trained = super::batch(&lengths);
    let after = adapted.loss(&trained).unwrap();
    let start = start(&config, 3, Settings::default()).loss(&trained).unwrap();
    assert!(after < 0.9 * start, "{after} {start}");
}

#[test]
fn adapters_hold_no_gradients_or_moments_of_the_base() {
    let config = ModelConfig { vocab_size: 5000, ..grouped() };
    let lora = lora(Projection::ALL, DROPOUT);
    let batch = batch(&[20, 11]);
    let mut adapted = start_lora(&config, &lora, BF16);
    let mut whole = start(&config, 3, BF16);
    for engine in [&mut adapted, &mut whole] {
        engine.accumulate(&batch, 1).unwrap();
    }
    let (adapted, whole) = (adapted.memory(), whole.memory());
    // Both pack the weights. Parameters, gradients and moments take 16 bytes each; of the frozen ones, the embedding takes 4.
    assert!(adapted + 12 * config.parameters() < whole, "{adapted} {whole}");
    let (rows, longest) = (batch.tokens.len(), 19);
    let estimated = lora_memory(&config, &lora, BF16, (rows, longest), 0).unwrap();
    assert!(estimated + 16 * lora.layout(&config).unwrap().size() + 6000 >= adapted, "{estimated} {adapted}");
}

#[test]
fn adapters_of_another_model_are_refused() {
    let (config, lora) = (tiny(), lora(Projection::ALL, 0.0));
    let start = |base: &[f32], state| lora_engine(config.clone(), base, lora.clone(), state, Settings::default());
    let base = state(&config, 3).parameters;
    let told = start(&base[1..], adapters(&config, &lora)).err().unwrap().to_string();
    assert!(told.contains("parameters"), "{told}");
    let told = start(&base, adapters(&grouped(), &lora)).err().unwrap().to_string();
    assert!(told.contains("parameters"), "{told}");
}

/// The heads and the vocabulary of `SmolLM2`-135M, in a narrow model of one layer.
#[test]
fn large_vocabularies_agree_with_candle() {
    let config = ModelConfig {
        vocab_size: 49_152,
        hidden_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        ..tiny()
    };
    for tie_word_embeddings in [true, false] {
        let config = ModelConfig { tie_word_embeddings, ..config.clone() };
        // More targets than are computed at once.
        let ids = |seed: u32| -> Vec<u32> {
            (0..60_u32).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 7) % 49_152).collect()
        };
        let all = [ids(1), ids(400), ids(900)];
        let batch = Packed::new(all.iter().map(|ids| (ids.as_slice(), 5)));
        let total = batch.targets.len();
        let lora = lora(Projection::ALL, DROPOUT);
        let (mut plain, mut plain_lora) = (plain(&config, 3), start_lora(&config, &lora, REFERENCE));
        let expected = plain.accumulate(&batch, total).unwrap();
        let expected_lora = plain_lora.accumulate(&batch, total).unwrap();
        for (settings, share) in [(Settings::default(), 5e-4), (BF16, 0.08)] {
            let mut fast = start(&config, 3, settings);
            let found = fast.accumulate(&batch, total).unwrap();
            assert!((found - expected).abs() < f64::from(share) * 0.1, "{found} {expected}");
            assert_gradients_agree(&*fast, &*plain, share);
            let mut fast = start_lora(&config, &lora, settings);
            let found = fast.accumulate(&batch, total).unwrap();
            assert!((found - expected_lora).abs() < f64::from(share) * 0.1, "{found} {expected_lora}");
            assert_gradients_agree(&*fast, &*plain_lora, share);
        }
    }
}
