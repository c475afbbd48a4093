//! The cross-entropy of a large vocabulary, in pieces, so that the logits of all targets never exist at once.

use candle_core::{D, DType, Result, Tensor};

/// Logits that exist at once, unless one target has more.
pub(super) const LOGITS: usize = 1 << 24;

/// The loss of hidden states, and its gradients.
pub(super) struct HeadLoss {
    /// Σ of the cross-entropy in nats.
    pub(super) sum: f64,
    /// Gradient of Σ of each target's loss times its scale, by the hidden states [targets, hidden].
    pub(super) of_hidden: Tensor,
    /// Gradient by the weight [vocabulary, hidden] in `f32`, if it was asked for.
    pub(super) of_weight: Option<Tensor>,
}

/// Returns Σ of the cross-entropy of hidden states [targets, hidden] under the output weight [vocabulary, hidden].
pub(super) fn cross_entropy(hidden: &Tensor, weight: &Tensor, ids: &Tensor) -> Result<f64> {
    let mut sum = 0.0;
    for (hidden, ids) in pieces(hidden, weight, ids)? {
        sum += Piece::new(&hidden, weight, &ids)?.losses()?.iter().sum::<f64>();
    }
    Ok(sum)
}

/// Returns the cross-entropy of each target.
pub(super) fn losses(hidden: &Tensor, weight: &Tensor, ids: &Tensor) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for (hidden, ids) in pieces(hidden, weight, ids)? {
        losses.extend(Piece::new(&hidden, weight, &ids)?.losses()?);
    }
    Ok(losses)
}

/// As [`cross_entropy`], with gradients of Σ of each target's loss times its scale [targets, 1]; of the weight only if
/// `train_weight`.
pub(super) fn gradients(
    hidden: &Tensor,
    weight: &Tensor,
    ids: &Tensor,
    scales: &Tensor,
    train_weight: bool,
) -> Result<HeadLoss> {
    let (mut sum, mut of_hidden, mut of_weight) = (0.0, Vec::new(), None);
    let mut first = 0;
    for (hidden, ids) in pieces(hidden, weight, ids)? {
        let piece = Piece::new(&hidden, weight, &ids)?;
        sum += piece.losses()?.iter().sum::<f64>();
        let scales = scales.narrow(0, first, ids.dim(0)?)?;
        first += ids.dim(0)?;
        let of_logits = piece.gradient()?.broadcast_mul(&scales)?.to_dtype(weight.dtype())?;
        of_hidden.push(of_logits.matmul(weight)?);
        if train_weight {
            let part = of_logits.t()?.matmul(&hidden)?.to_dtype(DType::F32)?;
            of_weight = Some(match of_weight {
                None => part,
                Some(whole) => (whole + part)?,
            });
        }
    }
    Ok(HeadLoss { sum, of_hidden: Tensor::cat(&of_hidden, 0)?, of_weight })
}

/// Returns the first target and the number of targets of each piece.
fn bounds(targets: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = (LOGITS / vocabulary).max(1);
    (0..targets).step_by(rows).map(move |first| (first, rows.min(targets - first)))
}

/// Splits targets into pieces whose logits may exist at once: hidden states, and ids [targets, 1].
fn pieces(hidden: &Tensor, weight: &Tensor, ids: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
    bounds(hidden.dim(0)?, weight.dim(0)?)
        .map(|(first, count)| Ok((hidden.narrow(0, first, count)?, ids.narrow(0, first, count)?.unsqueeze(1)?)))
        .collect()
}

/// What the loss and the gradient of some targets need of their logits.
struct Piece<'a> {
    ids: &'a Tensor,
    /// The logit of each target, minus the row's maximum.
    chosen: Tensor,
    /// Exponentials of all logits minus the row's maximum, and their sums.
    exponentials: Tensor,
    sums: Tensor,
}

impl<'a> Piece<'a> {
    fn new(hidden: &Tensor, weight: &Tensor, ids: &'a Tensor) -> Result<Self> {
        let logits = hidden.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        drop(logits);
        let (chosen, exponentials) = (shifted.gather(ids, 1)?, shifted.exp()?);
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        Ok(Self { ids, chosen, exponentials, sums })
    }

    /// Returns −ln softmax at each target's id.
    fn losses(&self) -> Result<Vec<f64>> {
        let losses = (self.sums.log()? - &self.chosen)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(losses.into_iter().map(f64::from).collect())
    }

    /// Returns the gradient of the sum by the logits: softmax, minus 1 at the target.
    fn gradient(&self) -> Result<Tensor> {
        let minus = Tensor::full(-1.0_f32, self.ids.shape(), self.ids.device())?;
        self.exponentials.broadcast_div(&self.sums)?.scatter_add(self.ids, &minus, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No piece has more logits than may exist at once, and together they are all targets.
    #[test]
    fn logits_never_exist_for_more_targets_than_fit() {
        for (targets, vocabulary) in [(16_384, 151_936), (2_048, 8_192), (2_049, 8_192), (1, 50_257), (0, 10)] {
            let mut covered = 0;
            for (first, count) in bounds(targets, vocabulary) {
                assert_eq!(first, covered);
                assert!(count > 0 && count * vocabulary <= LOGITS, "{count} of {targets} targets, {vocabulary}");
                covered += count;
            }
            assert_eq!(covered, targets);
        }
    }
}
