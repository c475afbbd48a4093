//! Tests of the operations whose gradients are written by hand, against candle's own composition of them.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};

use super::{head, ops};

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
fn attention_agrees() {
    // Four query heads share two key-value heads.
    let (q, kv) = (numbers(&[2, 4, 6, 8], 1), numbers(&[2, 2, 6, 16], 50));
    let composed = || {
        let repeat = |x: Tensor| {
            let x = x.contiguous()?.unsqueeze(2)?.broadcast_as((2, 2, 2, 6, 8))?.contiguous()?;
            x.reshape((2, 4, 6, 8))
        };
        let (k, v) = (repeat(kv.narrow(3, 0, 8)?)?, repeat(kv.narrow(3, 8, 8)?)?);
        let scores = (q.matmul(&k.t()?)? * (1.0 / 8_f64.sqrt()))?;
        let mask: Vec<f32> = (0..36).map(|at| if at % 6 > at / 6 { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (6, 6), &Device::Cpu)?;
        softmax(&scores.broadcast_add(&mask)?, 3)?.matmul(&v)
    };
    assert_same(&[&q, &kv], || ops::attention(&q, &kv), composed);
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
