//! All training state as one value: the step, the weights and their moments. Schedule, data order and random numbers follow
//! from the step and the run's seed, so nothing else can be forgotten. Pure.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{TrainError, optimizer::Moments};
use crate::model::{self, Decoder, Group, ModelConfig, ModelError};

/// What a checkpoint holds.
#[derive(Debug)]
pub(super) struct State {
    /// Optimiser steps done.
    pub(super) step: u64,
    /// The weights.
    pub(super) decoder: Decoder,
    /// Their moments, by name.
    pub(super) moments: BTreeMap<String, Moments>,
}

const WEIGHT: &str = "weight/";
const FIRST: &str = "first/";
const SECOND: &str = "second/";

impl State {
    /// The state before the first step.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub(super) fn new(config: ModelConfig, seed: u64) -> Result<Self, TrainError> {
        let decoder = Decoder::new(config, seed)?;
        let zero = |group: &Group| (group.name.clone(), Moments::zero(group.size()));
        let moments = decoder.groups().iter().map(zero).collect();
        Ok(Self { step: 0, decoder, moments })
    }

    /// Weights and moments as the bytes of `state.safetensors`.
    ///
    /// # Errors
    /// When candle cannot read the weights.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, TrainError> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (name, var) in self.decoder.weights() {
            let numbers = var.to_vec1::<f32>()?;
            tensors.push((format!("{WEIGHT}{name}"), var.dims().to_vec(), bytes(&numbers)));
        }
        for (name, moments) in &self.moments {
            tensors.push((format!("{FIRST}{name}"), vec![moments.first.len()], bytes(&moments.first)));
            tensors.push((format!("{SECOND}{name}"), vec![moments.second.len()], bytes(&moments.second)));
        }
        let views: Result<Vec<(&str, TensorView)>, _> = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect();
        let file = views.and_then(|views| safetensors::serialize(views, None));
        file.map_err(|source| ModelError::Weights(source).into())
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote after `step` steps.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub(super) fn from_bytes(config: ModelConfig, step: u64, bytes: &[u8]) -> Result<Self, TrainError> {
        let stored = SafeTensors::deserialize(bytes).map_err(ModelError::Weights)?;
        let read = |name: String, count: usize| -> Result<Vec<f32>, TrainError> {
            let tensor = stored.tensor(&name).map_err(ModelError::Weights)?;
            if tensor.dtype() != Dtype::F32 || tensor.data().len() != 4 * count {
                let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
                return Err(ModelError::Weight { name, found, expected: format!("F32 with {count} numbers") }.into());
            }
            Ok(model::floats(tensor.data()).collect())
        };
        let (mut weights, mut moments) = (BTreeMap::new(), BTreeMap::new());
        for group in model::groups(&config) {
            let (count, name) = (group.size(), group.name);
            weights.insert(name.clone(), read(format!("{WEIGHT}{name}"), count)?);
            let (first, second) = (read(format!("{FIRST}{name}"), count)?, read(format!("{SECOND}{name}"), count)?);
            moments.insert(name, Moments { first, second });
        }
        Ok(Self { step, decoder: Decoder::from_numbers(config, weights)?, moments })
    }
}
