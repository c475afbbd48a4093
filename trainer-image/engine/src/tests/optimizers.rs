//! Muon, the moving average and given gradients, on both backends.

use super::{batch, plain, shapes, start};
use crate::{AdamW, Engine, MomentFormat, Moments, Muon, Rates, Settings};

fn step(engine: &mut dyn Engine, step: u64, muon: bool) {
    let batch = batch(&[26, 11, 7, 40]);
    engine.clear_gradients().unwrap();
    engine.accumulate(&batch, batch.targets.len()).unwrap();
    let scale = (1.0 / engine.gradient_norm().unwrap()).min(1.0);
    let (rates, tensors) = (Rates::standard(engine.layout(), 0.1), Muon::tensors(engine.layout()));
    let muon = muon.then_some(Muon { momentum: 0.95, tensors: &tensors });
    let step = AdamW { step, rate: 1e-2, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, scale, rates: &rates, muon };
    engine.update(&step).unwrap();
}

#[test]
fn muon_steps_agree_with_candle() {
    for config in shapes() {
        let mut engines = [start(&config, 3, Settings::default()), plain(&config, 3)];
        let before = engines[0].parameters().unwrap().into_owned();
        for engine in &mut engines {
            for index in 0..2 {
                step(engine.as_mut(), index, true);
            }
        }
        let [fast, plain] = engines.map(|engine| engine.export().unwrap());
        let takes = Muon::tensors(&fast.layout);
        assert!(takes.iter().any(|takes| *takes) && takes.iter().any(|takes| !takes));
        for (tensor, takes) in fast.layout.tensors().iter().zip(takes) {
            let embedding = ["embed_tokens", "wte", "wpe", "lm_head"].iter().any(|part| tensor.name.contains(part));
            assert_eq!(takes, tensor.shape.len() == 2 && !embedding, "{}", tensor.name);
            let range = tensor.range.clone();
            let Moments::F32 { second, .. } = &fast.moments else { panic!("f32") };
            assert_eq!(takes, second[range.clone()].iter().all(|x| *x == 0.0), "{}", tensor.name);
            // AdamW's first steps are nearly the signs of gradients, some of which are almost 0. Muon's steps are 0.002 in the mean.
            if takes {
                let pairs = fast.parameters[range.clone()].iter().zip(&plain.parameters[range.clone()]);
                let off = pairs.filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
                assert!(off * 20 <= range.len(), "{}: {off} of {}", tensor.name, range.len());
            }
            assert!(fast.parameters[range.clone()] != before[range], "{}", tensor.name);
        }
    }
}

#[test]
fn the_bits_of_muon_do_not_depend_on_threads() {
    let config = &shapes()[1];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut engine = start(config, 3, Settings::default());
            (0..3).for_each(|index| step(engine.as_mut(), index, true));
            engine.export().unwrap()
        })
    };
    assert!(run(1) == run(3));
}

/// Both backends keep them; states in eight bits go on where they were, and can be turned into `f32` again.
#[test]
fn moments_in_eight_bits_are_kept_and_go_on() {
    for config in shapes() {
        let mut engines = [start(&config, 3, Settings::default()), plain(&config, 3)];
        for engine in &mut engines {
            engine.keep_moments(MomentFormat::EightBit).unwrap();
            for index in 0..2 {
                step(engine.as_mut(), index, false);
            }
        }
        let large: usize =
            engines[0].layout().tensors().iter().map(|tensor| tensor.range.len()).filter(|count| *count >= 4096).sum();
        let [fast, plain] = engines.each_ref().map(|engine| engine.export().unwrap());
        assert_eq!(fast.moments.format(), MomentFormat::EightBit);
        let saved = 8 * fast.parameters.len() - fast.moments.bytes();
        assert!(saved + 64 * fast.layout.tensors().len() >= large * 23 / 4, "{saved} of {large}");
        let off = fast.parameters.iter().zip(&plain.parameters).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
        assert!(off * 20 <= fast.parameters.len(), "{off} of {}", fast.parameters.len());
        let [mut kernels, other] = engines;
        for mut engine in [start(&config, 4, Settings::default()), other] {
            engine.import(&fast).unwrap();
            let again = engine.export().unwrap();
            assert!(again == fast, "every code and scale");
            step(engine.as_mut(), 2, false);
            if engine.path() == kernels.path() {
                step(kernels.as_mut(), 2, false);
                assert!(engine.export().unwrap() == kernels.export().unwrap());
            }
        }
        kernels.keep_moments(MomentFormat::F32).unwrap();
        assert_eq!(kernels.export().unwrap().moments.format(), MomentFormat::F32);
        step(kernels.as_mut(), 3, false);
    }
}

#[test]
fn an_average_follows_the_parameters_and_can_be_evaluated() {
    let config = &shapes()[0];
    for mut engine in [start(config, 3, Settings::default()), plain(config, 3)] {
        engine.average(0.75).unwrap();
        assert_eq!(engine.export().unwrap().average, None, "none is kept");
        let mut expected: Vec<f64> = engine.parameters().unwrap().iter().map(|x| f64::from(*x)).collect();
        engine.keep_average(true).unwrap();
        for index in 0..3 {
            step(engine.as_mut(), index, false);
            engine.average(0.75).unwrap();
            for (average, now) in expected.iter_mut().zip(&*engine.parameters().unwrap()) {
                *average = 0.75 * *average + 0.25 * f64::from(*now);
            }
        }
        engine.keep_average(true).unwrap();
        let state = engine.export().unwrap();
        let average = state.average.as_ref().unwrap();
        assert!(average.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        let batch = batch(&[26, 11]);
        let loss = engine.loss(&batch).unwrap();
        engine.swap_average().unwrap();
        assert!(*engine.parameters().unwrap() == **average);
        let averaged = engine.loss(&batch).unwrap();
        assert!((loss - averaged).abs() > 1e-3, "{loss} {averaged}");
        engine.swap_average().unwrap();
        assert!(engine.export().unwrap() == state && engine.loss(&batch).unwrap().to_bits() == loss.to_bits());
        // Another engine goes on with the same bits.
        let mut other = start(config, 5, Settings::default());
        if engine.path() == other.path() {
            other.import(&state).unwrap();
            for engine in [&mut engine, &mut other] {
                step(engine.as_mut(), 3, false);
                engine.average(0.75).unwrap();
            }
            assert!(engine.export().unwrap() == other.export().unwrap());
        }
        engine.keep_average(false).unwrap();
        assert_eq!(engine.export().unwrap().average, None);
    }
}

#[test]
fn given_gradients_are_those_that_a_step_takes() {
    let config = &shapes()[0];
    for mut engine in [start(config, 3, Settings::default()), plain(config, 3)] {
        let given: Vec<f32> = (0..engine.layout().size()).map(|at| (at % 7) as f32 - 3.0).collect();
        engine.set_gradients(&given).unwrap();
        assert!(*engine.gradients().unwrap() == *given);
        let norm = given.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((engine.gradient_norm().unwrap() - norm).abs() < 1e-3);
    }
}
