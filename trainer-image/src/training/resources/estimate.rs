//! Memory estimates and the batch shapes that change them. Pure.

use std::fmt;

/// Estimated memory, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// Name and bytes of each part.
    pub(crate) parts: Vec<(&'static str, u64)>,
}

/// Bytes that print as, for example, `1.5 GiB`.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0 as f64 / f64::from(1 << 20);
        if mebibytes < 1024.0 { write!(f, "{mebibytes:.0} MiB") } else { write!(f, "{:.1} GiB", mebibytes / 1024.0) }
    }
}

impl Estimate {
    /// Sum of all parts.
    pub(crate) fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Bytes(self.total()))?;
        for (index, (part, bytes)) in self.parts.iter().enumerate() {
            write!(f, "{}{part} {}", if index == 0 { " (" } else { ", " }, Bytes(*bytes))?;
        }
        if self.parts.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// How the examples of one step are split into forward passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchShape {
    /// Examples in one forward pass.
    pub(crate) batch: usize,
    /// Forward passes per step.
    pub(crate) accumulation: usize,
    /// Whether the backward pass recomputes activations.
    pub(crate) checkpointing: bool,
}

impl fmt::Display for BatchShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, accumulation, checkpointing } = self;
        write!(f, "training.batch_size={batch} training.gradient_accumulation={accumulation}")?;
        if *checkpointing { f.write_str(" training.gradient_checkpointing=true") } else { Ok(()) }
    }
}

/// Returns the fastest shape with the same examples per step whose `estimate` is at most `limit` bytes: the largest batch as
/// it is, then the largest with recomputation if the engine `recomputes`. `None` if even single examples do not fit.
pub(crate) fn propose(
    shape: BatchShape,
    limit: u64,
    recomputes: bool,
    estimate: impl Fn(BatchShape) -> u64,
) -> Option<BatchShape> {
    let examples = shape.batch * shape.accumulation;
    let batches = (1..=shape.batch).rev().filter(|batch| examples.is_multiple_of(*batch));
    let shapes: Vec<BatchShape> = batches
        .map(|batch| BatchShape { batch, accumulation: examples / batch, checkpointing: shape.checkpointing })
        .collect();
    let recomputed = shapes.iter().map(|shape| BatchShape { checkpointing: true, ..*shape });
    let all = shapes.iter().copied().chain(recomputed.filter(|_| recomputes && !shape.checkpointing));
    // Recomputation costs a third of the speed; batches below a quarter of the configured size cost more.
    let worth =
        |candidate: &BatchShape| candidate.checkpointing == shape.checkpointing && 4 * candidate.batch >= shape.batch;
    let fitting: Vec<BatchShape> = all.filter(|candidate| estimate(*candidate) <= limit).collect();
    fitting
        .iter()
        .find(|candidate| worth(candidate))
        .or_else(|| fitting.iter().max_by_key(|shape| shape.batch))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_sees_the_same_examples_and_fits() {
        let shape = BatchShape { batch: 64, accumulation: 1, checkpointing: false };
        let estimate = |shape: BatchShape| 100 + shape.batch as u64 * if shape.checkpointing { 2 } else { 10 };
        let of = |limit, recomputes| propose(shape, limit, recomputes, estimate);
        assert_eq!(of(10_000, true), Some(shape));
        assert_eq!(of(500, true), Some(BatchShape { batch: 32, accumulation: 2, checkpointing: false }));
        // For a quarter of the batch and less, recomputation is faster.
        assert_eq!(of(200, true), Some(BatchShape { batch: 32, accumulation: 2, checkpointing: true }));
        assert_eq!(of(200, false), Some(BatchShape { batch: 8, accumulation: 8, checkpointing: false }));
        assert_eq!(of(101, true), None);
        for limit in (102..800).step_by(7) {
            let found = of(limit, true).unwrap();
            assert!(estimate(found) <= limit && found.batch * found.accumulation == 64, "{limit} {found:?}");
        }
        let odd = propose(BatchShape { batch: 6, accumulation: 5, checkpointing: false }, 135, false, estimate);
        assert_eq!(odd, Some(BatchShape { batch: 3, accumulation: 10, checkpointing: false }));
    }
}
