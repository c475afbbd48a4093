//! Objectives that weigh whole sequences.

use super::{
    lora::{REFERENCE, lora, start_lora},
    *,
};

/// Weights that depend on the losses of all sequences, as those of preferences do, and have both signs.
fn preferences(losses: &[f64]) -> Vec<f64> {
    let share = |difference: f64| 0.5 / (1.0 + (0.1 * difference).exp());
    losses.chunks(2).flat_map(|pair| [share(pair[1] - pair[0]), -share(pair[1] - pair[0])]).collect()
}

fn pairs() -> Packed {
    batch(&[26, 11, 40, 19])
}

#[test]
fn losses_of_sequences_add_up_and_are_their_own() {
    let batch = pairs();
    for config in shapes() {
        for settings in [Settings::default(), BF16, REFERENCE] {
            let mut engine = start(&config, 3, settings);
            let each = engine.losses(&batch).unwrap();
            let sum = engine.loss(&batch).unwrap();
            assert!(each.len() == 4 && (each.iter().sum::<f64>() - sum).abs() < 1e-6 * sum, "{each:?} {sum}");
            let alone = engine.loss(&super::batch(&[26])).unwrap();
            assert!((each[0] - alone).abs() < 1e-4 * alone, "{} {alone}", each[0]);
        }
    }
}

#[test]
fn equal_weights_give_the_gradients_of_the_mean_to_the_bit() {
    let batch = pairs();
    let total = batch.targets.len();
    for settings in [Settings::default(), BF16] {
        let (mut mean, mut weighted) = (start(&tiny(), 3, settings), start(&tiny(), 3, settings));
        mean.accumulate(&batch, total).unwrap();
        let losses =
            weighted.accumulate_weighted(&batch, &mut |losses| vec![1.0 / total as f64; losses.len()]).unwrap();
        assert_eq!(losses, weighted.losses(&batch).unwrap());
        assert!(mean.gradients().unwrap() == weighted.gradients().unwrap());
    }
}

#[test]
fn weighted_gradients_agree_with_candle() {
    let batch = pairs();
    let adapters = lora(Projection::ALL, 0.0);
    for config in shapes() {
        let mut plain = plain(&config, 3);
        let expected = plain.accumulate_weighted(&batch, &mut preferences).unwrap();
        for (settings, share) in [(Settings::default(), 5e-4), (BF16, 0.1)] {
            let mut fast = start(&config, 3, settings);
            let found = fast.accumulate_weighted(&batch, &mut preferences).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < f64::from(share) * expected, "{found} {expected}");
            }
            assert_gradients_agree(&*fast, &*plain, share);
        }
        if config.family == Family::Llama {
            let mut plain = start_lora(&config, &adapters, REFERENCE);
            plain.accumulate_weighted(&batch, &mut preferences).unwrap();
            let mut fast = start_lora(&config, &adapters, Settings::default());
            fast.accumulate_weighted(&batch, &mut preferences).unwrap();
            assert_gradients_agree(&*fast, &*plain, 5e-4);
        }
    }
}

#[test]
fn weighted_gradients_are_the_slopes_of_the_weighted_losses() {
    let (batch, weights) = (pairs(), [0.5, -0.25, -0.4, 0.125]);
    let mut engine = start(&tiny(), 3, Settings::default());
    engine.accumulate_weighted(&batch, &mut |_| weights.to_vec()).unwrap();
    let gradients = engine.gradients().unwrap().into_owned();
    let state = engine.export().unwrap();
    let mut objective = |parameters: &[f32]| -> f64 {
        engine.import(&EngineState { parameters: parameters.to_vec(), ..state.clone() }).unwrap();
        engine.losses(&batch).unwrap().iter().zip(weights).map(|(loss, weight)| loss * weight).sum()
    };
    for tensor in state.layout.tensors() {
        // The parameter with the steepest slope of its tensor, where rounding matters least.
        let steepest = |a: &usize, b: &usize| gradients[*a].abs().total_cmp(&gradients[*b].abs());
        let at = tensor.range.clone().max_by(steepest).unwrap();
        let step = 4e-3_f32;
        let mut moved = state.parameters.clone();
        moved[at] = state.parameters[at] + step;
        let above = objective(&moved);
        moved[at] = state.parameters[at] - step;
        let slope = (above - objective(&moved)) / (2.0 * f64::from(step));
        let found = f64::from(gradients[at]);
        assert!((slope - found).abs() < 0.02 * found.abs() + 2e-3, "{}: {slope} {found}", tensor.name);
    }
}

#[test]
fn a_shared_prefix_and_checkpointing_change_no_weighted_gradient() {
    let batch = batch_with_prefix(21, &[12, 5, 30, 9]);
    let mut plain = plain(&tiny(), 3);
    let expected = plain.accumulate_weighted(&batch, &mut preferences).unwrap();
    for gradient_checkpointing in [false, true] {
        let mut fast = start(&tiny(), 3, Settings { gradient_checkpointing, ..Settings::default() });
        let found = fast.accumulate_weighted(&batch, &mut preferences).unwrap();
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{found:?} {expected:?}");
        assert_gradients_agree(&*fast, &*plain, 5e-4);
    }
}

#[test]
fn weighted_steps_do_not_depend_on_threads() {
    let batch = pairs();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut engine = start(&grouped(), 3, BF16);
            let losses = engine.accumulate_weighted(&batch, &mut preferences).unwrap();
            (losses, engine.gradients().unwrap().into_owned())
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn equal_scales_give_the_gradients_of_the_mean_to_the_bit() {
    let batch = batch_with_prefix(21, &[12, 5, 30, 9]);
    let total = batch.targets.len();
    for settings in [Settings::default(), BF16] {
        let (mut mean, mut scaled) = (start(&tiny(), 3, settings), start(&tiny(), 3, settings));
        let loss = mean.accumulate(&batch, total).unwrap();
        let sum = scaled.accumulate_scaled(&batch, &vec![1.0 / total as f32; total]).unwrap();
        assert_eq!(loss.to_bits(), (sum / total as f64).to_bits());
        assert!(mean.gradients().unwrap() == scaled.gradients().unwrap());
    }
}

#[test]
fn scaled_gradients_agree_with_candle_and_leave_targets_of_scale_zero_out() {
    let batch = pairs();
    let scales: Vec<f32> = (0..batch.targets.len()).map(|at| [0.0, 0.01, 0.05][at % 3]).collect();
    for config in shapes() {
        let mut plain = plain(&config, 3);
        let expected = plain.accumulate_scaled(&batch, &scales).unwrap();
        let mut fast = start(&config, 3, Settings::default());
        let found = fast.accumulate_scaled(&batch, &scales).unwrap();
        assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
        assert_gradients_agree(&*fast, &*plain, 5e-4);
        fast.clear_gradients().unwrap();
        fast.accumulate_scaled(&batch, &vec![0.0; scales.len()]).unwrap();
        assert!(fast.gradients().unwrap().iter().all(|gradient| *gradient == 0.0));
    }
}

#[test]
fn hidden_states_agree_with_candle_and_leave_the_state_as_it_is() {
    let batch = batch_with_prefix(21, &[12, 5, 30, 9]);
    for config in shapes() {
        let expected = plain(&config, 3).hidden_states(&batch).unwrap();
        let mut fast = start(&config, 3, Settings::default());
        fast.accumulate(&batch, 10).unwrap();
        let (gradients, loss) = (fast.gradients().unwrap().into_owned(), fast.loss(&batch).unwrap());
        let found = fast.hidden_states(&batch).unwrap();
        assert_eq!(found.len(), batch.tokens.len() * config.hidden_size);
        let most = expected.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3 * most));
        assert!(fast.gradients().unwrap() == gradients && fast.loss(&batch).unwrap().to_bits() == loss.to_bits());
    }
}
