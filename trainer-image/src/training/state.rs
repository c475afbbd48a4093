//! All training state as one value: the step and the engine's parameters and moments. Schedule, data order and random numbers
//! follow from the step and the run's seed, so nothing else can be forgotten. Pure.

use std::sync::Arc;

use codex_engine::{Engine, EngineState, Layout, ModelConfig, Settings, engine, initial};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::TrainError;
use crate::model::{self, ModelError};

/// What a checkpoint holds.
pub(super) struct State {
    /// Optimiser steps done.
    pub(super) step: u64,
    /// The parameters and their moments.
    pub(super) engine: Box<dyn Engine>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("step", &self.step).field("path", &self.engine.path()).finish()
    }
}

const WEIGHT: &str = "weight/";
const FIRST: &str = "first/";
const SECOND: &str = "second/";

impl State {
    /// The state before the first step.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub(super) fn new(config: ModelConfig, seed: u64) -> Result<Self, TrainError> {
        let layout = Arc::new(Layout::of(&config));
        let parameters = initial(&config, &layout, seed);
        Ok(Self { step: 0, engine: engine(config, EngineState::new(layout, parameters), Settings::default())? })
    }

    /// Parameters and moments as the bytes of `state.safetensors`, each tensor under its own name.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, TrainError> {
        let EngineState { layout, parameters, first, second } = self.engine.export();
        let mut tensors: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
        for (prefix, numbers) in [(WEIGHT, parameters), (FIRST, first), (SECOND, second)] {
            for tensor in layout.tensors() {
                let bytes = model::bytes(&numbers[tensor.range.clone()]);
                tensors.push((format!("{prefix}{}", tensor.name), &tensor.shape, bytes));
            }
        }
        let views: Result<Vec<(&str, TensorView)>, _> = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
            .collect();
        let file = views.and_then(|views| safetensors::serialize(views, None));
        file.map_err(|source| ModelError::Weights(source).into())
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote after `step` steps.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub(super) fn from_bytes(config: ModelConfig, step: u64, bytes: &[u8]) -> Result<Self, TrainError> {
        let stored = SafeTensors::deserialize(bytes).map_err(ModelError::Weights)?;
        let layout = Arc::new(Layout::of(&config));
        let read = |prefix: &str| -> Result<Vec<f32>, TrainError> {
            let mut numbers = Vec::with_capacity(layout.size());
            for part in layout.tensors() {
                let name = format!("{prefix}{}", part.name);
                let tensor = stored.tensor(&name).map_err(ModelError::Weights)?;
                if tensor.dtype() != Dtype::F32 || tensor.shape() != part.shape {
                    let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
                    let expected = format!("F32 {:?}", part.shape);
                    return Err(ModelError::Weight { name, found, expected }.into());
                }
                numbers.extend(model::floats(tensor.data()));
            }
            Ok(numbers)
        };
        let (parameters, first, second) = (read(WEIGHT)?, read(FIRST)?, read(SECOND)?);
        let state = EngineState { layout: layout.clone(), parameters, first, second };
        Ok(Self { step, engine: engine(config, state, Settings::default())? })
    }
}
