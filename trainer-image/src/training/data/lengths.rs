//! Lengths of records: upper bounds of the rows of a batch, for the estimate of memory. Reads the lengths of ordered records.

use super::dataset::Dataset;

/// Lengths of records, which bound the size of a batch. A record of `n` tokens has `n - 1` rows: its last token predicts nothing.
#[derive(Clone, Debug)]
pub(crate) enum RecordLengths<'a> {
    /// Lengths of shuffled records.
    Shuffled {
        /// Mean of the rows.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
        /// Rows of the longest record.
        longest: usize,
    },
    /// Lengths of records in file order.
    InOrder(&'a Dataset),
}

impl RecordLengths<'_> {
    /// Returns the lengths of records that are shuffled within the sources.
    pub(super) fn shuffled(dataset: &Dataset) -> Self {
        let (mut mean, mut square) = (0.0, 0.0);
        for (source, share) in dataset.sources.iter().zip(dataset.mix.shares()) {
            let sums = &source.selection.sums;
            let records = sums.records.max(1) as f64;
            mean += share * sums.rows as f64 / records;
            square += share * sums.squares as f64 / records;
        }
        Self::Shuffled { mean, deviation: (square - mean * mean).max(0.0).sqrt(), longest: dataset.longest() }
    }

    /// Rows of the longest record.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Shuffled { longest, .. } => *longest,
            Self::InOrder(dataset) => dataset.longest(),
        }
    }

    /// Upper bound of the rows of a batch; of shuffled batches, fewer than one in a hundred thousand exceeds it.
    pub(crate) fn rows(&self, batch: usize) -> usize {
        match self {
            Self::Shuffled { mean, deviation, longest } => {
                let count = batch as f64;
                let rows = (count * mean + 4.3 * deviation * count.sqrt()).ceil();
                (rows as usize).min(batch.saturating_mul(*longest))
            }
            Self::InOrder(dataset) => {
                let bounds = dataset.sources.iter().zip(dataset.mix.most(batch));
                // Lengths that cannot be read are those of the longest record.
                let rows = bounds.map(|(source, most)| {
                    let longest = source.selection.sums.longest.saturating_mul(most as u64);
                    source.most_rows(most as u64).unwrap_or(longest) as usize
                });
                rows.sum()
            }
        }
    }
}

/// Rows of each validation record by source; see [`RecordLengths`].
#[derive(Clone, Debug)]
pub(crate) struct HeldOutLengths(pub(super) Vec<Vec<usize>>);

impl HeldOutLengths {
    /// Rows of the longest record.
    pub(crate) fn longest(&self) -> usize {
        self.0.iter().flatten().max().copied().unwrap_or(0)
    }

    /// Rows of the largest batch. A batch holds `batch` consecutive records of one source.
    pub(crate) fn rows(&self, batch: usize) -> usize {
        let batches = self.0.iter().flat_map(|rows| rows.chunks(batch.max(1)));
        batches.map(|rows| rows.iter().sum()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::source::Source, *};

    #[test]
    fn batches_of_validation_records_are_consecutive() {
        let lengths = HeldOutLengths(vec![vec![5, 5, 9, 9, 1], vec![12]]);
        assert_eq!([1, 2, 3, 5].map(|batch| lengths.rows(batch)), [12, 18, 19, 29]);
        assert_eq!((lengths.longest(), HeldOutLengths(vec![]).rows(4)), (12, 0));
    }

    /// Creates a source with records of these token counts.
    fn source(name: &str, lengths: &[usize]) -> Source {
        Source::of_lengths(name, lengths)
    }

    proptest! {
        #[test]
        fn no_batch_in_file_order_is_larger_than_its_bound(
            first in prop::collection::vec(2_usize..50, 1..30),
            second in prop::collection::vec(2_usize..50, 1..30),
            batch in 1_usize..40,
        ) {
            for sources in [vec![source("a", &first)], vec![source("a", &first), source("b", &second)]] {
                let alone = sources.len() == 1;
                let dataset = Dataset::of(sources, 1, false);
                let packed = |start: u64| dataset.pack(&dataset.examples(start, batch as u64)).unwrap().tokens.len();
                let most = (0..120).map(packed).max().unwrap();
                let reckoned = dataset.lengths().rows(batch);
                prop_assert!(most <= reckoned, "{most} {reckoned}");
                prop_assert!(!alone || most == reckoned || batch > first.len(), "{most} {reckoned}");
            }
        }
    }

    #[test]
    fn long_records_at_the_end_of_a_file_count() {
        let lengths: Vec<usize> = [[30; 95].as_slice(), &[600; 5]].concat();
        let of = |shuffle| Dataset::of(vec![source("a", &lengths)], 1, shuffle);
        let (ordered, shuffled) = (of(false), of(true));
        assert_eq!([5, 8].map(|batch| ordered.lengths().rows(batch)), [5 * 599, 5 * 599 + 3 * 29]);
        assert!((500..5 * 599).contains(&shuffled.lengths().rows(5)), "{}", shuffled.lengths().rows(5));
        assert_eq!(ordered.lengths().longest(), 599);
    }
}
