//! Tests of the operations whose gradients are written by hand, against candle's own composition of them.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};

use super::{
    CandleEngine,
    device::Place,
    documents::{Documents, NOTHING, attention},
    head, ops,
};
use crate::{AdamW, Engine as _, EngineError, EngineState, Layout, Packed, Rates, initial};

/// Numbers between −1 and 1 that look random.
fn numbers(shape: &[usize], seed: u32) -> Var {
    let count = shape.iter().product::<usize>() as u32;
    let numbers: Vec<f32> =
        (0..count).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Asserts that two computations have the same value, and the same gradients by every variable of a loss that weighs each number
/// of the value differently.
fn assert_same(variables: &[&Var], ours: impl Fn() -> Result<Tensor>, composed: impl Fn() -> Result<Tensor>) {
    let gradients = |value: &Tensor| -> Result<Vec<Vec<f32>>> {
        let weights = numbers(value.dims(), 99);
        let store = (value * weights.as_tensor())?.sum_all()?.backward()?;
        variables
            .iter()
            .map(|variable| store.get(variable).expect("a gradient").flatten_all()?.to_vec1::<f32>())
            .collect()
    };
    let (ours, composed) = (ours().unwrap(), composed().unwrap());
    assert_eq!(ours.dims(), composed.dims());
    let values = |value: &Tensor| value.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut pairs = vec![(values(&ours), values(&composed))];
    pairs.extend(gradients(&ours).unwrap().into_iter().zip(gradients(&composed).unwrap()));
    for (at, (ours, composed)) in pairs.into_iter().enumerate() {
        let size = composed.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        assert!(size > 1e-3, "number {at} is 0");
        for (a, b) in ours.iter().zip(&composed) {
            assert!((a - b).abs() < 1e-4 * size, "number {at}: {a} {b} of {size}");
        }
    }
}

#[test]
fn frozen_products_have_the_gradient_of_the_input_only() {
    let (x, w) = (numbers(&[5, 8], 1), numbers(&[3, 8], 50));
    assert_same(&[&x], || ops::frozen_linear(&x, &w), || x.matmul(&w.t()?));
    let store = ops::frozen_linear(&x, &w).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(store.get(&w).is_none());
}

#[test]
fn norms_agree() {
    for shape in [&[5, 8][..], &[4, 3, 8]] {
        let (x, w) = (numbers(shape, 1), numbers(&[8], 50));
        let composed = || {
            let mean = (x.sqr()?.mean_keepdim(candle_core::D::Minus1)? + 1e-3)?;
            x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&w)
        };
        assert_same(&[&x, &w], || ops::rms_norm(&x, &w, 1e-3), composed);
    }
}

#[test]
fn rotary_positions_agree() {
    let x = numbers(&[2, 3, 5, 8], 1);
    let angles = numbers(&[5, 4], 7);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let composed = || {
        let (a, b) = (x.narrow(3, 0, 4)?, x.narrow(3, 4, 4)?);
        let rotated = Tensor::cat(&[&b.neg()?, &a], 3)?;
        let twice = |half: &Tensor| Tensor::cat(&[half, half], 1);
        x.broadcast_mul(&twice(&cos)?)? + rotated.broadcast_mul(&twice(&sin)?)?
    };
    assert_same(&[&x], || ops::rope(&x, &cos, &sin), composed);
}

#[test]
fn swiglu_agrees() {
    let (gate, up) = (numbers(&[5, 8], 1), numbers(&[5, 8], 50));
    assert_same(&[&gate, &up], || ops::swiglu(&gate, &up), || silu(&gate)? * up.as_tensor());
}

#[test]
fn selected_rows_have_the_gradient_of_their_places() {
    let x = numbers(&[5, 8], 1);
    let [rows, back] = [&[3_u32, 0][..], &[1, NOTHING, NOTHING, 0, NOTHING]].map(|it| Tensor::new(it, &Device::Cpu));
    let (rows, back) = (rows.unwrap(), back.unwrap());
    assert_same(&[&x], || ops::select(&x, &rows, back.clone()), || x.index_select(&rows, 0));
}

/// The attention of each sequence, composed of candle's operations: (first row, rows).
fn composed_attention(q: &Tensor, kv: &Tensor, sequences: &[(usize, usize)]) -> Result<Tensor> {
    let (heads, _, width) = q.dims3()?;
    let shared = kv.dim(0)?;
    let one = |&(first, rows): &(usize, usize)| {
        let part = |x: &Tensor| x.narrow(1, first, rows)?.contiguous();
        let repeat = |x: Tensor| {
            let x = x.unsqueeze(1)?.broadcast_as((shared, heads / shared, rows, width))?.contiguous()?;
            x.reshape((heads, rows, width))
        };
        let kv = part(kv)?;
        let (k, v) = (repeat(kv.narrow(2, 0, width)?)?, repeat(kv.narrow(2, width, width)?)?);
        let scores = (part(q)?.matmul(&k.t()?)? * (1.0 / (width as f64).sqrt()))?;
        let mask: Vec<f32> =
            (0..rows * rows).map(|at| if at % rows > at / rows { f32::NEG_INFINITY } else { 0.0 }).collect();
        softmax(&scores.broadcast_add(&Tensor::from_vec(mask, (rows, rows), &Device::Cpu)?)?, 2)?.matmul(&v)
    };
    let outs: Result<Vec<_>> = sequences.iter().map(one).collect();
    Tensor::cat(&outs?, 1)
}

#[test]
fn attention_inside_documents_agrees() {
    // Four query heads share two key-value heads. One sequence has no rows.
    let (q, kv) = (numbers(&[4, 13, 8], 1), numbers(&[2, 13, 16], 50));
    let bounds = [0, 5, 5, 6, 9, 13];
    let sequences: Vec<_> =
        bounds.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).filter(|(_, rows)| *rows > 0).collect();
    let place = Place { device: Device::Cpu, dtype: DType::F32 };
    // All at once, several rows at a time, and one row at a time.
    for most in [1 << 24, 100, 60, 1] {
        let documents = Arc::new(Documents::new(&place, &bounds, 4, most).unwrap());
        assert_same(&[&q, &kv], || attention(&q, &kv, &documents), || composed_attention(&q, &kv, &sequences));
    }
}

#[test]
fn the_loss_of_a_vocabulary_in_pieces_agrees() {
    // One piece holds 2^24 logits: 2,048 rows of this vocabulary.
    let (hidden, weight) = (numbers(&[2100, 2], 1), numbers(&[1 << 13, 2], 50));
    let ids: Vec<u32> = (0..2100).map(|at| at * 37 % (1 << 13)).collect();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    let logits = hidden.matmul(&weight.t().unwrap()).unwrap();
    let log_softmax = log_softmax(&logits, 1).unwrap();
    let losses = log_softmax.gather(&ids.unsqueeze(1).unwrap(), 1).unwrap();
    let sum = losses.sum_all().unwrap().neg().unwrap();
    let store = (&sum / 4.0).unwrap().backward().unwrap();
    let quarters = Tensor::full(0.25_f32, (2100, 1), &Device::Cpu).unwrap();
    let found = head::gradients(&hidden.detach(), &weight.detach(), &ids, &quarters, true).unwrap();
    let expected = f64::from(sum.to_scalar::<f32>().unwrap());
    assert!((found.sum - expected).abs() < 1e-3 * expected, "{} {expected}", found.sum);
    let alone = head::cross_entropy(&hidden.detach(), &weight.detach(), &ids).unwrap();
    let each = head::losses(&hidden.detach(), &weight.detach(), &ids).unwrap();
    assert!(each.len() == 2100 && (each.iter().sum::<f64>() - alone).abs() < 1e-9);
    assert!((found.sum - alone).abs() < 1e-9);
    for (found, variable) in [(&found.of_hidden, &hidden), (found.of_weight.as_ref().unwrap(), &weight)] {
        let of =
            |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (found, expected) = (of(found), of(store.get(variable).unwrap()));
        let size = expected.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * size));
    }
    assert!(head::gradients(&hidden.detach(), &weight.detach(), &ids, &quarters, false).unwrap().of_weight.is_none());
}

/// An engine on a processor with activations of this type. Programs compute in `f16` on GPUs only.
fn engine(dtype: DType) -> CandleEngine {
    let config = crate::tests::tiny();
    let layout = Arc::new(Layout::of(&config));
    let state = EngineState::new(layout.clone(), initial(&config, &layout, 3));
    CandleEngine::new(config, &state, Place { device: Device::Cpu, dtype }).unwrap()
}

/// Takes the gradients of a batch with losses that are divided by `targets` and multiplied by `scale` in between.
fn gradients(engine: &mut CandleEngine, targets: usize, scale: f64) -> Vec<f32> {
    let lengths = [26, 11, 7].into_iter();
    let ids: Vec<Vec<u32>> = lengths.map(|length| (0..length).map(|at| (at * 7 + length) % 37).collect()).collect();
    let batch = Packed::new(ids.iter().map(|ids| (ids.as_slice(), 1)));
    engine.scale_losses(scale);
    engine.clear_gradients().unwrap();
    assert!(engine.accumulate(&batch, targets).unwrap().is_finite());
    engine.gradients().unwrap().into_owned()
}

#[test]
fn scaled_losses_keep_small_gradients_in_f16() {
    let (mut full, mut half) = (engine(DType::F32), engine(DType::F16));
    let many = 1_000_000_000;
    let expected = gradients(&mut full, many, 1.0);
    assert!(gradients(&mut half, many, 1.0).iter().all(|x| *x == 0.0), "they are below the smallest number");
    let found = gradients(&mut half, many, f64::from(1 << 24));
    for tensor in full.layout().tensors() {
        let (found, expected) = (&found[tensor.range.clone()], &expected[tensor.range.clone()]);
        let size = expected.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        assert!(size > 0.0, "{} has a zero gradient", tensor.name);
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 0.05 * size, "{}: {a} {b} of {size}", tensor.name);
        }
    }
    // In `f32` the scale changes nothing but the last bits.
    let scaled = gradients(&mut full, many, f64::from(1 << 24));
    let length = |numbers: &[f32]| numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!((length(&scaled) / length(&expected) - 1.0).abs() < 1e-5);
}

#[test]
fn an_overflow_in_f16_is_told_and_the_next_step_is_taken_from_finite_weights() {
    let mut half = engine(DType::F16);
    let before = half.export().unwrap();
    gradients(&mut half, 50, 2_f64.powi(60));
    assert!(matches!(half.gradient_norm(), Err(EngineError::NotFinite { .. })));
    assert!(half.export().unwrap() == before, "no weight was changed");
    gradients(&mut half, 50, 1024.0);
    let norm = half.gradient_norm().unwrap();
    let rates = Rates::standard(half.layout(), 0.01);
    let (rate, beta1, beta2, epsilon) = (1e-2, 0.9, 0.99, 1e-8);
    half.update(&AdamW {
        step: 0,
        rate,
        beta1,
        beta2,
        epsilon,
        scale: (1.0 / norm).min(1.0),
        rates: &rates,
        muon: None,
    })
    .unwrap();
    let after = half.export().unwrap();
    assert!(after != before && after.parameters.iter().all(|x| x.is_finite()));
}
