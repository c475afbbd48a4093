//! The gradients of a step on given responses, and the loss of a record. Calls the engine; pure otherwise.

use codex_configs::DpoSettings;
use codex_engine::{ClippedSum, Engine, EngineError, Packed};

use crate::{
    signals::Stop,
    training::{
        TrainError,
        data::{Address, Dataset},
        objective::{Measured, Tally, accumulate_pairs, measure_pairs},
        privacy::Privacy,
        state::LossScale,
    },
};

/// The batches of a step, and what they are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepBatches<'a> {
    /// Records of each batch.
    pub(crate) addresses: &'a [Vec<Address>],
    /// Batches.
    pub(crate) batches: &'a [Packed],
    /// Number of target tokens in all batches.
    pub(crate) targets: usize,
    /// The mechanism of a private run, whose batches have a record each, and the number of steps done.
    pub(crate) private: Option<(&'a Privacy, u64)>,
}

/// Sets the gradients to those of a private step: each record's is clipped, noise is added to their sum, and that is divided by the
/// number of records that a step has in the mean. A record's loss is the mean over its targets. Returns the loss, which is not private:
/// the mean over all targets.
///
/// # Errors
/// When the engine rejects a batch.
fn accumulate_private(
    engine: &mut dyn Engine,
    (privacy, done): (&Privacy, u64),
    StepBatches { batches, targets, .. }: StepBatches,
    stop: Stop,
) -> Result<Option<Measured>, EngineError> {
    let mechanism = privacy.mechanism;
    let mut sum = ClippedSum::new(engine.layout().size(), mechanism.max_grad_norm);
    let mut loss = 0.0;
    for (index, record) in batches.iter().enumerate() {
        if index > 0 && stop() {
            return Ok(None);
        }
        engine.clear_gradients()?;
        let own = record.targets.len();
        let mean = engine.accumulate(record, own.max(1))?;
        loss += mean * own as f64 / targets.max(1) as f64;
        if !loss.is_finite() {
            break;
        }
        match engine.gradient_norm() {
            Ok(norm) => sum.add(&engine.gradients()?, norm),
            // A loss that is not finite ends the run with the names of the records.
            Err(EngineError::NotFinite { .. }) => {
                loss = f64::NAN;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let deviation = mechanism.noise_multiplier * mechanism.max_grad_norm;
    engine.set_gradients(&sum.finish(privacy.noise(done), deviation, mechanism.expected))?;
    Ok(Some(Measured { loss, preferences: None, sampled: None }))
}

/// Clears the gradients and calls `accumulate`, which adds those of a step: again with a smaller scale of the losses while they leave the
/// range of fp16. The scale stays as it is if `accumulate` was interrupted.
///
/// # Errors
/// When the device fails, and those of `accumulate`.
pub(crate) fn scaled(
    engine: &mut dyn Engine,
    scale: Option<&mut LossScale>,
    mut accumulate: impl FnMut(&mut dyn Engine) -> Result<Option<Measured>, EngineError>,
) -> Result<Option<Measured>, EngineError> {
    let Some(scale) = scale else {
        engine.clear_gradients()?;
        return accumulate(engine);
    };
    let mut tried = *scale;
    loop {
        engine.clear_gradients()?;
        engine.scale_losses(tried.value());
        let Some(measured) = accumulate(engine)? else { return Ok(None) };
        // A loss that is not finite has another reason than the scale of its gradients.
        let overflowed =
            measured.loss.is_finite() && matches!(engine.gradient_norm(), Err(EngineError::NotFinite { .. }));
        if !overflowed {
            tried.advance();
        } else if tried.back_off() {
            let (scale, overflows) = (tried.value(), tried.overflows);
            tracing::warn!(
                scale,
                overflows,
                "gradients left the range of fp16: they are computed again with this scale"
            );
            continue;
        }
        *scale = tried;
        return Ok(Some(measured));
    }
}

/// Adds the gradients of a step, and returns its loss; `None` if `stop` returns true between two batches. `first` is set to the norm of
/// the gradient of the first of several batches, as if there were no other, if that is finite.
///
/// # Errors
/// When the engine rejects a batch.
pub(crate) fn accumulate(
    engine: &mut dyn Engine,
    preferences: Option<DpoSettings>,
    dataset: &Dataset,
    step: StepBatches,
    stop: Stop,
    mut first: Option<&mut Option<f64>>,
) -> Result<Option<Measured>, EngineError> {
    let StepBatches { addresses, batches, targets, private } = step;
    if let Some(private) = private {
        return accumulate_private(engine, private, step, stop);
    }
    let (mut loss, mut tally) = (0.0, Tally::default());
    let pairs: usize = addresses.iter().map(Vec::len).sum();
    let weights: Option<Vec<Vec<f64>>> = match (&preferences, dataset.tool_spans()) {
        (None, Some(spans)) => batches.iter().map(|batch| spans.weights(batch)).collect(),
        _ => None,
    };
    // Divided by the sum of the weights, so that they say how much a target counts relative to others.
    let total = weights.iter().flatten().flatten().sum::<f64>();
    let total = if total > 0.0 { total } else { 1.0 };
    for (index, (batch, addresses)) in batches.iter().zip(addresses).enumerate() {
        if index > 0 && stop() {
            return Ok(None);
        }
        match (&preferences, &weights) {
            (None, None) => loss += engine.accumulate(batch, targets)?,
            (None, Some(weights)) => {
                let scales: Vec<f32> = weights[index].iter().map(|weight| (weight / total) as f32).collect();
                // What is reported does not depend on the weights.
                loss += engine.accumulate_scaled(batch, &scales)? / targets as f64;
            }
            (Some(settings), _) => {
                let reference = dataset.reference(addresses);
                accumulate_pairs(engine, settings, batch, &reference, (pairs, &mut tally))?;
            }
        }
        if let Some(first) = first.take().filter(|_| batches.len() > 1) {
            let share = batch.targets.len().max(1) as f64 / targets as f64;
            *first = engine.gradient_norm().ok().map(|norm| norm / share);
        }
    }
    Ok(Some(if preferences.is_some() { tally.finish() } else { Measured { loss, preferences: None, sampled: None } }))
}

/// Returns the loss of one record: its mean cross-entropy per target token, or the loss of its pair.
///
/// # Errors
/// When the record cannot be read, or the engine rejects it.
pub(crate) fn record_loss(
    engine: &mut dyn Engine,
    preferences: Option<DpoSettings>,
    dataset: &Dataset,
    address: Address,
) -> Result<f64, TrainError> {
    let packed = dataset.pack(&[address])?;
    let Some(settings) = preferences else {
        return Ok(engine.loss(&packed)? / packed.targets.len().max(1) as f64);
    };
    let mut tally = Tally::default();
    measure_pairs(engine, &settings, &packed, &dataset.reference(&[address]), &mut tally)?;
    Ok(tally.finish().loss)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use codex_engine::{EngineState, Layout, ModelConfig, Settings, Shape, Vocabulary, initial};

    use super::*;

    const MEASURED: Measured = Measured { loss: 1.0, preferences: None, sampled: None };

    fn engine() -> Box<dyn Engine> {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 64,
            rope_theta: 10_000.0,
        };
        let config = ModelConfig::new(shape, Vocabulary { size: 37, end: 1, pad: 0 }).unwrap();
        let layout = Arc::new(Layout::of(&config));
        let state = EngineState::new(layout.clone(), initial(&config, &layout, 1));
        codex_engine::engine(config, state, Settings::default()).unwrap()
    }

    /// Sets all gradients to infinity `infinite` times, then to 1. Returns the times, and what `scaled` returned.
    fn overflow(scale: &mut LossScale, infinite: usize, loss: f64) -> (usize, Box<dyn Engine>) {
        let (mut engine, mut times) = (engine(), 0);
        let measured = scaled(engine.as_mut(), Some(scale), |engine| {
            times += 1;
            let gradient = if times <= infinite { f32::INFINITY } else { 1.0 };
            engine.set_gradients(&vec![gradient; engine.layout().size()])?;
            Ok(Some(Measured { loss, ..MEASURED }))
        });
        assert!(measured.unwrap().is_some());
        (times, engine)
    }

    #[test]
    fn a_step_that_leaves_the_range_of_fp16_is_computed_again() {
        let (mut scale, first) = (LossScale::default(), LossScale::default().value());
        let (times, engine) = overflow(&mut scale, 2, 1.0);
        assert_eq!((times, scale.overflows), (3, 2));
        assert!((scale.value() - first / 4.0).abs() < f64::EPSILON);
        assert!(engine.gradient_norm().is_ok());
    }

    #[test]
    fn what_no_scale_helps_is_told() {
        let mut scale = LossScale::default();
        let (times, engine) = overflow(&mut scale, usize::MAX, 1.0);
        assert_eq!(times, 17, "from 2^16 to 1");
        assert!(matches!(engine.gradient_norm(), Err(EngineError::NotFinite { .. })));
        let mut scale = LossScale::default();
        assert_eq!(overflow(&mut scale, usize::MAX, f64::NAN).0, 1, "the loss is not scaled");
        assert_eq!(scale.overflows, 0);
    }

    #[test]
    fn an_interrupted_step_leaves_the_scale_as_it_is() {
        let (mut engine, mut scale, mut times) = (engine(), LossScale::default(), 0);
        let measured = scaled(engine.as_mut(), Some(&mut scale), |engine| {
            times += 1;
            engine.set_gradients(&vec![f32::INFINITY; engine.layout().size()])?;
            Ok((times < 3).then_some(MEASURED))
        });
        assert_eq!((measured.unwrap(), scale), (None, LossScale::default()));
    }
}
