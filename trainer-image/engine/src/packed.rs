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

    /// Returns the batch with the rows at the start that all sequences share stored once, before the sequences, and their
    /// number; `None` if there are fewer than `least`. No shared row has a target, and every sequence keeps a row.
    pub(crate) fn share_prefix(&self, least: usize) -> Option<(Self, usize)> {
        let sequences: Vec<_> = self.cu_seqlens.windows(2).map(|bounds| bounds[0]..bounds[1]).collect();
        let [first, _, ..] = sequences.as_slice() else { return None };
        let first = &self.tokens[first.clone()];
        let mut shared = usize::MAX;
        for rows in &sequences {
            let equal = self.tokens[rows.clone()].iter().zip(first).take_while(|(id, first)| id == first).count();
            let target = self.targets.get(self.targets.partition_point(|target| target.row < rows.start));
            let free = target.map_or(rows.len(), |target| target.row.min(rows.end) - rows.start);
            shared = shared.min(equal).min(free).min(rows.len().saturating_sub(1));
        }
        if shared < least.max(1) {
            return None;
        }
        let (mut tokens, mut cu_seqlens) = (first[..shared].to_vec(), vec![shared]);
        let mut targets = Vec::with_capacity(self.targets.len());
        for rows in sequences {
            let begin = tokens.len();
            tokens.extend_from_slice(&self.tokens[rows.start + shared..rows.end]);
            cu_seqlens.push(tokens.len());
            let own = self.targets.iter().skip(targets.len()).take_while(|target| target.row < rows.end);
            let own: Vec<_> =
                own.map(|target| Target { row: begin + target.row - rows.start - shared, ..*target }).collect();
            targets.extend(own);
        }
        let batch = Self { tokens, cu_seqlens: cu_seqlens.into(), targets: targets.into(), noise: self.noise };
        Some((batch, shared))
    }

    /// Yields the index of the sequence of each target.
    fn sequences(&self) -> impl Iterator<Item = usize> {
        let ends = self.cu_seqlens.get(1..).unwrap_or_default();
        self.targets.iter().map(move |target| ends.partition_point(|end| *end <= target.row))
    }

    /// Returns the sum of the targets' losses in each sequence.
    pub(crate) fn sums(&self, losses: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.cu_seqlens.len().saturating_sub(1)];
        self.sequences().zip(losses).for_each(|(sequence, loss)| sums[sequence] += loss);
        sums
    }

    /// Returns the weight of each target's sequence.
    ///
    /// # Panics
    /// There are other than one weight for each sequence.
    pub(crate) fn spread(&self, weights: &[f64]) -> Vec<f32> {
        assert_eq!(weights.len() + 1, self.cu_seqlens.len(), "one weight for each sequence");
        self.sequences().map(|sequence| weights[sequence] as f32).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_rows_are_stored_once() {
        let sequences: [(&[u32], usize); 3] =
            [(&[1, 2, 3, 4, 5], 4), (&[1, 2, 3, 9, 9, 9], 4), (&[1, 2, 3, 4, 7, 8], 5)];
        let batch = Packed { noise: 7, ..Packed::new(sequences) };
        let (shared, rows) = batch.share_prefix(3).unwrap();
        assert_eq!((rows, shared.noise), (3, 7));
        assert_eq!(shared.tokens, [1, 2, 3, 4, 9, 9, 4, 7]);
        assert_eq!(*shared.cu_seqlens, [3, 4, 6, 8]);
        let targets: Vec<_> = shared.targets.iter().map(|target| (target.row, target.id)).collect();
        assert_eq!(targets, [(3, 5), (4, 9), (5, 9), (7, 8)]);
        assert!(batch.share_prefix(4).is_none());
    }

    #[test]
    fn targets_and_last_rows_are_not_shared() {
        let rows = |sequences: &[(&[u32], usize)]| {
            Packed::new(sequences.iter().copied()).share_prefix(1).map(|(_, rows)| rows)
        };
        assert_eq!(rows(&[(&[1, 2, 3, 4, 5], 2), (&[1, 2, 3, 4, 5], 5)]), Some(1));
        assert_eq!(rows(&[(&[1, 2, 3], 3), (&[1, 2, 3], 3)]), Some(1));
        assert_eq!(rows(&[(&[1, 2, 3], 1), (&[1, 2, 3], 3)]), None);
        assert_eq!(rows(&[(&[1, 2, 3], 3)]), None);
        assert_eq!(rows(&[(&[1, 2, 3], 3), (&[4, 2, 3], 3)]), None);
        assert_eq!(rows(&[(&[1], 1), (&[1, 2, 3], 3)]), None);
    }
}
