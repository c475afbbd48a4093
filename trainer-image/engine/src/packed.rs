//! Sequences packed one after another, without padding. Pure.

use std::sync::Arc;

use super::{EngineError, ModelConfig};

/// A row that has a target, and the id it should predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The row.
    pub row: usize,
    /// The id.
    pub id: u32,
}

/// Sequences packed one after another, and what is to be predicted. Attention and positions stay inside a sequence.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Input ids [rows].
    pub tokens: Vec<u32>,
    /// Where each sequence begins, and the number of rows.
    pub offsets: Arc<[usize]>,
    /// The rows that count for the loss, in order.
    pub targets: Arc<[Target]>,
}

impl Packed {
    /// Packs sequences of (ids, length of the prompt): each id is predicted from those before it, and counts from the first
    /// one after the prompt on.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut tokens, mut offsets, mut targets) = (Vec::new(), vec![0], Vec::new());
        for (ids, prompt) in sequences {
            let Some((_, inputs)) = ids.split_last() else { continue };
            let start = tokens.len();
            tokens.extend_from_slice(inputs);
            targets.extend((prompt.max(1)..ids.len()).map(|at| Target { row: start + at - 1, id: ids[at] }));
            offsets.push(tokens.len());
        }
        Self { tokens, offsets: offsets.into(), targets: targets.into() }
    }

    /// Whether a model can take the batch.
    ///
    /// # Errors
    /// When an id is outside the vocabulary or a sequence is longer than the context.
    pub fn check(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let context = config.max_position_embeddings;
        let longest = self.offsets.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0);
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
