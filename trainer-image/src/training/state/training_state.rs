//! The state of a run in memory, and its conversion to and from a snapshot. Pure.

use std::{collections::BTreeMap, sync::Arc};

use codex_configs::{Dtype, MomentType, Optimization, Phase, TraceMode, TrainingSettings};
use codex_engine::{
    Engine, EngineError, EngineState, Layout, ModelConfig, MomentFormat, Precision, Settings, engine, initial,
};

use super::{
    StateError,
    early_stopping::EarlyStopping,
    loss_scale::LossScale,
    noise_scale::NoiseScale,
    phase_progress::PhaseProgress,
    snapshot::{Column, Columns, Snapshot},
    spike_detector::SpikeDetector,
    trace_head::TraceHead,
};
use crate::training::privacy::{Mechanism, Privacy, Saved};

/// Everything that changes from step to step. [`snapshot`](Self::snapshot) destructures it field by field, so that no field can
/// be left out of a checkpoint.
pub(crate) struct State {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Parameters and moments.
    pub(crate) engine: Box<dyn Engine>,
    /// Window of losses and gradient norms.
    pub(crate) spikes: SpikeDetector,
    /// Latest measurements by name: `loss`, and those of an evaluation.
    pub(crate) measured: BTreeMap<String, f64>,
    /// Evaluations since the best one.
    pub(crate) early_stopping: EarlyStopping,
    /// Progress of the curriculum; `None` if the run has none.
    pub(crate) curriculum: Option<PhaseProgress>,
    /// The heads that read what is captured; `None` if the run captures no traces.
    pub(crate) traces: Option<TraceHead>,
    /// Running means of the gradient noise scale; `None` if it is not measured.
    pub(crate) noise_scale: Option<NoiseScale>,
    /// The scale of losses; `None` if the run does not compute in fp16.
    pub(crate) loss_scale: Option<LossScale>,
    /// The mechanism and the key of a private run.
    pub(crate) privacy: Option<Privacy>,
    /// What the checkpoint has of a private run, until that is begun.
    saved_privacy: Option<Saved>,
    /// Whether the evaluation that is due after the latest step was interrupted; a resumed run begins with it.
    pub(crate) evaluation_pending: bool,
}

/// Returns the engine settings of a configuration on this machine.
pub(crate) fn engine_settings(training: &Optimization) -> Settings {
    let precision = match training.dtype {
        Dtype::Fp32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
        Dtype::Fp16 => Precision::F16,
    };
    let backend = crate::device::backend(training.device);
    Settings { precision, gradient_checkpointing: training.gradient_checkpointing, backend }
}

/// Returns the first tensor with a value that is not finite, of the parameters or else of the gradients.
///
/// # Errors
/// When the device fails.
pub(crate) fn first_non_finite_tensor(engine: &dyn Engine) -> Result<Option<String>, EngineError> {
    let find = |what: &str, numbers: &[f32]| {
        let mut tensors = engine.layout().tensors().iter();
        let found = tensors.find(|tensor| numbers[tensor.range.clone()].iter().any(|number| !number.is_finite()));
        found.map(|tensor| format!("{what}/{}", tensor.name))
    };
    Ok(match find("parameters", &engine.parameters()?) {
        None => find("gradients", &engine.gradients()?),
        found => found,
    })
}

const MEASURED: &str = "measured/";
/// Column that exists only while an evaluation is pending.
pub(crate) const EVALUATION_PENDING: &str = "evaluation/pending";

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("step", &self.step).field("path", &self.engine.path()).finish_non_exhaustive()
    }
}

impl State {
    /// Creates the state before the first step.
    ///
    /// # Errors
    /// When the engine rejects the configuration.
    pub(crate) fn new(config: ModelConfig, seed: u64, settings: Settings) -> Result<Self, StateError> {
        let layout = Arc::new(Layout::of(&config));
        let parameters = initial(&config, &layout, seed);
        Ok(Self::begin(engine(config, EngineState::new(layout, parameters), settings)?))
    }

    /// Creates the state before the first step of an engine.
    pub(crate) fn begin(engine: Box<dyn Engine>) -> Self {
        Self {
            step: 0,
            engine,
            spikes: SpikeDetector::default(),
            measured: BTreeMap::new(),
            early_stopping: EarlyStopping::default(),
            curriculum: None,
            traces: None,
            noise_scale: None,
            loss_scale: None,
            privacy: None,
            saved_privacy: None,
            evaluation_pending: false,
        }
    }

    /// Begins the first of these phases, unless the state is in one already.
    pub(crate) fn begin_curriculum(&mut self, phases: &[Phase]) {
        if !phases.is_empty() {
            self.curriculum.get_or_insert_default();
        }
    }

    /// Begins what a run keeps beside its weights, or goes on with it: their moving average, the format of moments, the running means of the noise scale,
    /// the scale of losses, and the mechanism and key of a private run.
    ///
    /// # Errors
    /// When the checkpoint was trained with another mechanism, or the device fails.
    pub(crate) fn begin_optimization(
        &mut self,
        training: &Optimization,
        mechanism: Option<Mechanism>,
        seed: u64,
    ) -> Result<(), StateError> {
        self.engine.keep_average(training.ema.decay.is_some())?;
        self.engine.keep_moments(match training.optimizer.moments {
            MomentType::Fp32 => MomentFormat::F32,
            MomentType::EightBit => MomentFormat::EightBit,
        })?;
        self.noise_scale = training.gradient_noise_scale.then(|| self.noise_scale.unwrap_or_default());
        self.loss_scale = (training.dtype == Dtype::Fp16).then(|| self.loss_scale.unwrap_or_default());
        self.privacy = Privacy::begin(mechanism, self.saved_privacy.take(), (seed, self.step))?;
        Ok(())
    }

    /// Begins to capture traces, if the settings ask for it, unless the state has heads of these settings already.
    pub(crate) fn begin_traces(&mut self, settings: &TrainingSettings, seed: u64) {
        let width = self.engine.config().hidden_size;
        let first = self.engine.layout().tensors().first().map_or(0, |tensor| tensor.range.len());
        let captured = if settings.trace_mode() == TraceMode::Weights { first } else { width };
        let inputs = captured.min(settings.training.reasoning.head.hidden_size);
        self.traces = TraceHead::begin(self.traces.take(), settings, seed, (inputs, width));
    }

    /// Copies the state, into the vectors of `spare` if given.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn snapshot(&self, spare: Option<EngineState>) -> Result<Snapshot, EngineError> {
        let Self {
            step,
            engine,
            spikes,
            measured,
            early_stopping,
            curriculum,
            traces,
            noise_scale,
            loss_scale,
            privacy,
            saved_privacy,
            evaluation_pending,
        } = self;
        let engine = match spare {
            Some(mut vectors) => {
                engine.export_into(&mut vectors)?;
                vectors
            }
            None => engine.export()?,
        };
        let mut rest = Columns::new();
        spikes.save(&mut rest);
        early_stopping.save(&mut rest);
        if let Some(curriculum) = curriculum {
            curriculum.save(&mut rest);
        }
        if let Some(traces) = traces {
            traces.save(&mut rest);
        }
        if let Some(noise_scale) = noise_scale {
            noise_scale.save(&mut rest);
        }
        if let Some(loss_scale) = loss_scale {
            loss_scale.save(&mut rest);
        }
        if let Some(saved) = privacy.as_ref().map(Privacy::saved).or_else(|| saved_privacy.clone()) {
            saved.save(&mut rest);
        }
        if *evaluation_pending {
            rest.insert(EVALUATION_PENDING.to_owned(), Column::U64(vec![1]));
        }
        rest.extend(measured.iter().map(|(name, value)| (format!("{MEASURED}{name}"), Column::F64(vec![*value]))));
        Ok(Snapshot { step: *step, engine, rest })
    }

    /// Restores the state of a snapshot.
    ///
    /// # Errors
    /// When the snapshot is of another model, or lacks a part.
    #[cfg(test)]
    pub(crate) fn restore(config: ModelConfig, snapshot: Snapshot, settings: Settings) -> Result<Self, StateError> {
        Self::resume(snapshot, |state| Ok(engine(config, state, settings)?))
    }

    /// Restores the state of a snapshot with the engine that `make` returns for it.
    ///
    /// # Errors
    /// When the snapshot lacks a part, and those of `make`.
    pub(crate) fn resume<E: From<StateError>>(
        snapshot: Snapshot,
        make: impl FnOnce(EngineState) -> Result<Box<dyn Engine>, E>,
    ) -> Result<Self, E> {
        let Snapshot { step, engine, mut rest } = snapshot;
        let lacks = |what: &str| StateError::Parts { step, what: what.to_owned() };
        let spikes = SpikeDetector::load(&mut rest).ok_or_else(|| lacks("the window of losses and gradient norms"))?;
        let early_stopping = EarlyStopping::load(&mut rest).ok_or_else(|| lacks("the state of early stopping"))?;
        let curriculum = PhaseProgress::load(&mut rest).map_err(|()| lacks("the progress of the curriculum"))?;
        let traces = TraceHead::load(&mut rest).map_err(|()| lacks("the heads of reasoning traces"))?;
        let noise_scale = NoiseScale::load(&mut rest).map_err(|()| lacks("the running means of the noise scale"))?;
        let loss_scale = LossScale::load(&mut rest).map_err(|()| lacks("the scale of losses"))?;
        let saved_privacy = Saved::load(&mut rest).map_err(|()| lacks("the mechanism of a private run"))?;
        let evaluation_pending = rest.remove(EVALUATION_PENDING).is_some();
        let mut measured = BTreeMap::new();
        for (name, column) in rest {
            match (name.strip_prefix(MEASURED), column) {
                (Some(name), Column::F64(values)) if values.len() == 1 => measured.insert(name.to_owned(), values[0]),
                _ => return Err(lacks(&format!("a meaning for {name}, which this version does not know")).into()),
            };
        }
        let engine = make(engine)?;
        Ok(Self {
            step,
            engine,
            spikes,
            measured,
            early_stopping,
            curriculum,
            traces,
            noise_scale,
            loss_scale,
            privacy: None,
            saved_privacy,
            evaluation_pending,
        })
    }
}
