//! What is captured of the model after a step, for the heads that read it. Calls the engine; changes nothing of the model.

use codex_configs::{Pooling, TraceMode};
use codex_engine::{Engine, Packed, Target};

use super::Session;
use crate::{
    artifacts::reasoning::TraceRow,
    training::{
        TrainError,
        data::{Address, Dataset},
        state::{Observation, State},
    },
};

/// Returns the first sequence of a batch.
fn first_sequence(batch: &Packed) -> Packed {
    let rows = batch.cu_seqlens.get(1).copied().unwrap_or_default();
    let targets: Vec<Target> = batch.targets.iter().copied().take_while(|target| target.row < rows).collect();
    Packed { tokens: batch.tokens[..rows].to_vec(), cu_seqlens: [0, rows].into(), targets: targets.into(), noise: 0 }
}

/// Returns hidden states [rows, width] as one vector.
fn pooled(states: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let rows = states.len() / width.max(1);
    let row = |at: usize| states.get(at * width..(at + 1) * width).unwrap_or_default().to_vec();
    match pooling {
        Pooling::Cls => row(0),
        Pooling::Last => row(rows.saturating_sub(1)),
        Pooling::Mean => {
            let mean = |column: usize| {
                let sum: f64 = states.iter().skip(column).step_by(width).map(|number| f64::from(*number)).sum();
                (sum / rows.max(1) as f64) as f32
            };
            (0..width).map(mean).collect()
        }
    }
}

impl Session<'_> {
    /// Captures the model of the state after its latest step, whose first record is `first`, the `example`th of the run from 0, and has
    /// the heads learn from it. Returns the trace, unless the run captures none or it is dropped.
    ///
    /// # Errors
    /// When the record cannot be read, or the engine fails.
    pub(super) fn observe(
        &self,
        state: &mut State,
        dataset: &Dataset,
        (first, example): (Option<Address>, u64),
    ) -> Result<Option<TraceRow>, TrainError> {
        let settings = &self.resolved.spec().settings;
        let (State { traces: Some(heads), engine, step, .. }, Some(first)) = (state, first) else { return Ok(None) };
        let harness = &settings.training.reasoning;
        let record = first_sequence(&dataset.pack(&[first])?);
        let width = engine.config().hidden_size;
        let adapts = harness.tool_adapter.enabled;
        let mode = settings.trace_mode();
        let states = if mode == TraceMode::Activations || adapts { engine.hidden_states(&record)? } else { Vec::new() };
        let embedding = match mode {
            TraceMode::Disabled => return Ok(None),
            TraceMode::Weights => engine.leading_parameters(heads.inputs())?,
            TraceMode::Activations => {
                let mut pooled = pooled(&states, width, settings.trace_capture.pooling);
                pooled.truncate(heads.inputs());
                pooled
            }
        };
        let called = dataset.tool_spans().filter(|_| adapts).and_then(|spans| {
            let last = record.targets.last().filter(|target| target.row + 1 == record.tokens.len());
            let ids = [record.tokens.as_slice(), last.map(|target| target.id).as_slice()].concat();
            spans.of(&ids, |at| record.targets.iter().any(|target| target.row + 1 == at)).called
        });
        let observation = Observation {
            embedding,
            pooled: if adapts { pooled(&states, width, harness.tool_adapter.pooling) } else { Vec::new() },
            tokens: record.targets.iter().map(|target| target.id).collect(),
            called,
        };
        let epoch = example / dataset.records().max(1);
        Ok(heads.observe(harness, (self.resolved.spec().seed, epoch, *step), &observation))
    }
}

/// Returns where the numbers come from that are captured of an engine, and how many of them the head reads.
pub(super) fn source_of(engine: &dyn Engine, mode: TraceMode, most: usize) -> Option<(String, usize)> {
    match mode {
        TraceMode::Disabled => None,
        TraceMode::Activations => Some(("hidden_states".to_owned(), most.min(engine.config().hidden_size))),
        TraceMode::Weights => {
            engine.layout().tensors().first().map(|tensor| (tensor.name.clone(), most.min(tensor.range.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_become_one_vector() {
        let states = [1.0, 2.0, 3.0, 6.0, 5.0, 4.0];
        assert_eq!(pooled(&states, 2, Pooling::Mean), [3.0, 4.0]);
        assert_eq!(pooled(&states, 2, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pooled(&states, 2, Pooling::Last), [5.0, 4.0]);
    }

    #[test]
    fn only_the_first_sequence_is_captured() {
        let batch = Packed::new([(&[1_u32, 2, 3, 4][..], 2), (&[5, 6, 7][..], 1)]);
        let first = first_sequence(&batch);
        assert_eq!((first.tokens.as_slice(), first.cu_seqlens.as_ref()), (&[1, 2, 3][..], &[0, 3][..]));
        assert_eq!(first.targets.iter().map(|target| target.id).collect::<Vec<_>>(), [3, 4]);
    }
}
