//! The state of a run: everything that a step changes, as one value, with its digest and its form as a safetensors file.
//! Schedule, data order and random numbers follow from the step and the seed and are not stored. Pure.

mod early_stopping;
mod error;
mod loss_scale;
mod noise_scale;
mod phase_progress;
mod probe;
mod snapshot;
mod snapshot_reader;
mod spike_detector;
mod trace_head;
mod training_state;

pub use error::StateError;
pub(crate) use loss_scale::LossScale;
pub(crate) use noise_scale::{BatchNorm, NoiseScale};
pub(crate) use phase_progress::PhaseProgress;
pub(crate) use snapshot::{Column, Columns, Digests, Snapshot, differing_names};
pub(crate) use trace_head::{Observation, TraceHead};
#[cfg(test)]
pub(crate) use training_state::EVALUATION_PENDING;
pub(crate) use training_state::{State, engine_settings, first_non_finite_tensor};
