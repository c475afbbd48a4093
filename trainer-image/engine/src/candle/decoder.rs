//! Generation in candle's operations: every step runs the whole sequence again, without a cache. The oracle of the kernels'
//! tests. Pure.

use candle_core::Result;

use super::engine::{Graph, tensors};
use crate::{
    Decoder, EngineError, Layout, ModelConfig, PromptError,
    decoder::{End, Logits, Slots},
};

/// A decoder in candle's operations.
#[derive(Debug)]
pub(crate) struct CandleDecoder {
    config: ModelConfig,
    layout: Layout,
    parameters: Vec<f32>,
    slots: Slots,
    /// All tokens of each slot.
    sequences: Vec<Vec<u32>>,
}

impl CandleDecoder {
    /// Makes a decoder with `slots` free slots.
    pub(crate) fn new(config: ModelConfig, parameters: &[f32], slots: usize) -> Self {
        let slots = Slots::new(slots);
        let sequences = vec![Vec::new(); slots.len()];
        Self { layout: Layout::of(&config), config, parameters: parameters.to_vec(), slots, sequences }
    }

    fn rows(&mut self) -> Result<Logits> {
        let weights = tensors(&self.layout, &self.parameters)?;
        let graph = Graph { config: &self.config, weights: &weights, lora: None, first_row: 0 };
        let mut logits = Logits { vocabulary: self.config.vocab_size, ..Logits::default() };
        for (index, slot) in self.slots.used() {
            let sequence = &mut self.sequences[index];
            sequence.truncate(slot.cached);
            sequence.extend_from_slice(&slot.pending);
            let last = [(sequence.len() - 1) as u32];
            logits.rows.extend(graph.logits(sequence, &last)?.flatten_all()?.to_vec1::<f32>()?);
            logits.slots.push(index);
        }
        Ok(logits)
    }
}

impl Decoder for CandleDecoder {
    fn path(&self) -> &'static str {
        "candle-f32"
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn prefill(&mut self, slot: usize, tokens: &[u32]) -> std::result::Result<(), PromptError> {
        self.slots.prefill(&self.config, slot, tokens)
    }

    fn logits(&mut self) -> std::result::Result<Logits, EngineError> {
        Ok(self.rows()?)
    }

    fn push(&mut self, slot: usize, token: u32) -> Option<End> {
        self.slots.push(&self.config, slot, token)
    }

    fn release(&mut self, slot: usize) {
        self.slots.release(slot);
    }

    fn memory(&self) -> usize {
        size_of_val(self.parameters.as_slice())
    }
}
