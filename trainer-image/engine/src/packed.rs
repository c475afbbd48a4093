//! A batch: sequences packed one after another, without padding. Pure.

use std::sync::Arc;

use super::{EngineError, ModelConfig};

/// A row that counts for the loss, and the token id it should predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of the row.
    pub row: usize,
    /// The token id to predict.
    pub id: u32,
}

/// A batch of sequences packed one after another, with their targets. Attention and positions stay inside a sequence.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Input ids [rows].
    pub tokens: Vec<u32>,
    /// The first row of each sequence, then the number of rows (cumulative sequence lengths).
    pub cu_seqlens: Arc<[usize]>,
    /// The rows that count for the loss, in ascending order.
    pub targets: Arc<[Target]>,
    /// Seeds the dropout of the batch: equal batches with equal noise drop the same inputs.
    pub noise: u64,
}

impl Packed {
    /// Packs sequences of (token ids, length of the prompt). Each id is predicted from the ids before it; ids after the
    /// prompt are targets.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut tokens, mut cu_seqlens, mut targets) = (Vec::new(), vec![0], Vec::new());
        for (ids, prompt) in sequences {
            let Some((_, inputs)) = ids.split_last() else { continue };
            let start = tokens.len();
            tokens.extend_from_slice(inputs);
            targets.extend((prompt.max(1)..ids.len()).map(|at| Target { row: start + at - 1, id: ids[at] }));
            cu_seqlens.push(tokens.len());
        }
        Self { tokens, cu_seqlens: cu_seqlens.into(), targets: targets.into(), noise: 0 }
    }

    /// Packs sequences of (token ids, whether each is a target). The first id of a sequence is never one.
    pub fn masked<'a>(sequences: impl IntoIterator<Item = (&'a [u32], &'a [bool])>) -> Self {
        let (mut tokens, mut cu_seqlens, mut targets) = (Vec::new(), vec![0], Vec::new());
        for (ids, mask) in sequences {
            let Some((_, inputs)) = ids.split_last() else { continue };
            let start = tokens.len();
            tokens.extend_from_slice(inputs);
            let chosen = ids.iter().zip(mask).enumerate().skip(1).filter(|(_, (_, chosen))| **chosen);
            targets.extend(chosen.map(|(at, (id, _))| Target { row: start + at - 1, id: *id }));
            cu_seqlens.push(tokens.len());
        }
        Self { tokens, cu_seqlens: cu_seqlens.into(), targets: targets.into(), noise: 0 }
    }

    /// Checks that the batch fits a model.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    pub fn check(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let context = config.max_position_embeddings;
        let longest = self.cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0);
        if longest > context {
            return Err(EngineError::TooLong { tokens: longest, context });
        }
        let vocabulary = config.vocab_size;
        match self.tokens.iter().chain(self.targets.iter().map(|target| &target.id)).max() {
            Some(id) if *id as usize >= vocabulary => Err(EngineError::Id { id: *id, vocabulary }),
            _ => Ok(()),
        }
    }
}
