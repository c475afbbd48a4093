//! All training state as one value. Schedule, data order and random numbers follow from the step and the run's seed, so that
//! nothing else can be forgotten. Pure.

use std::{collections::BTreeMap, sync::Arc};

use codex_configs::{Dtype, Optimization};
use codex_engine::{Engine, EngineState, Layout, ModelConfig, Precision, Settings, engine, initial};

use super::{
    TrainError,
    patience::Patience,
    snapshot::{Column, Rest, Snapshot},
    spikes::Spikes,
};

/// What a checkpoint holds. What changes from step to step is here or nowhere: [`snapshot`](Self::snapshot) takes it apart
/// field by field, so that a new one cannot be left out.
pub(super) struct State {
    /// Optimiser steps done.
    pub(super) step: u64,
    /// The parameters and their moments.
    pub(super) engine: Box<dyn Engine>,
    /// The last losses and gradient norms.
    pub(super) spikes: Spikes,
    /// What was measured last, by name: `loss`, and whatever an evaluation measures.
    pub(super) measured: BTreeMap<String, f64>,
    /// How long the best evaluation has stood.
    pub(super) patience: Patience,
}

/// How a configuration wants the engine to compute.
pub(super) fn settings(training: &Optimization) -> Settings {
    let precision = match training.dtype {
        Dtype::Fp32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    };
    Settings { precision, gradient_checkpointing: training.gradient_checkpointing, reference: false }
}

/// The first tensor with a number that is none: of the parameters, or else of the gradients.
pub(super) fn not_finite(engine: &dyn Engine) -> Option<String> {
    let find = |what: &str, numbers: &[f32]| {
        let mut tensors = engine.layout().tensors().iter();
        let found = tensors.find(|tensor| numbers[tensor.range.clone()].iter().any(|number| !number.is_finite()));
        found.map(|tensor| format!("{what}/{}", tensor.name))
    };
    find("parameters", &engine.export().parameters).or_else(|| find("gradients", &engine.gradients()))
}

const MEASURED: &str = "measured/";

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("step", &self.step).field("path", &self.engine.path()).finish_non_exhaustive()
    }
}

impl State {
    /// The state before the first step.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub(super) fn new(config: ModelConfig, seed: u64, settings: Settings) -> Result<Self, TrainError> {
        let layout = Arc::new(Layout::of(&config));
        let parameters = initial(&config, &layout, seed);
        let engine = engine(config, EngineState::new(layout, parameters), settings)?;
        Ok(Self {
            step: 0,
            engine,
            spikes: Spikes::default(),
            measured: BTreeMap::new(),
            patience: Patience::default(),
        })
    }

    /// A copy of everything, in the vectors of `spare` where there are some.
    pub(super) fn snapshot(&self, spare: Option<EngineState>) -> Snapshot {
        let Self { step, engine, spikes, measured, patience } = self;
        let engine = match spare {
            Some(mut vectors) => {
                engine.export_into(&mut vectors);
                vectors
            }
            None => engine.export(),
        };
        let mut rest = Rest::new();
        spikes.save(&mut rest);
        patience.save(&mut rest);
        rest.extend(measured.iter().map(|(name, value)| (format!("{MEASURED}{name}"), Column::F64(vec![*value]))));
        Snapshot { step: *step, engine, rest }
    }

    /// The state that a snapshot was taken of.
    ///
    /// # Errors
    /// When it is of another model, or lacks something.
    pub(super) fn restore(config: ModelConfig, snapshot: Snapshot, settings: Settings) -> Result<Self, TrainError> {
        let Snapshot { step, engine, mut rest } = snapshot;
        let lacks = |what: &str| TrainError::CheckpointParts { step, what: what.to_owned() };
        let spikes = Spikes::load(&mut rest).ok_or_else(|| lacks("the last losses and gradient norms"))?;
        let patience = Patience::load(&mut rest).ok_or_else(|| lacks("the best evaluation"))?;
        let mut measured = BTreeMap::new();
        for (name, column) in rest {
            let value = match (name.strip_prefix(MEASURED), column) {
                (Some(name), Column::F64(values)) if values.len() == 1 => (name.to_owned(), values[0]),
                _ => return Err(lacks(&format!("a place for {name}, which this version does not know"))),
            };
            measured.insert(value.0, value.1);
        }
        Ok(Self { step, engine: codex_engine::engine(config, engine, settings)?, spikes, measured, patience })
    }
}
