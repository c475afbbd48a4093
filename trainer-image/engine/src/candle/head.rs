//! The cross-entropy of a large vocabulary, in pieces, so that the logits of all targets never exist at once.

use candle_core::{D, DType, Result, Tensor};

/// Logits that exist at once.
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
        sum += Piece::new(&hidden, weight)?.sum(&ids)?;
    }
    Ok(sum)
}

/// Returns the cross-entropy of each target.
pub(super) fn losses(hidden: &Tensor, weight: &Tensor, ids: &Tensor) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for (hidden, ids) in pieces(hidden, weight, ids)? {
        losses.extend(Piece::new(&hidden, weight)?.losses(&ids)?);
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
        let piece = Piece::new(&hidden, weight)?;
        sum += piece.sum(&ids)?;
        let scales = scales.narrow(0, first, ids.dim(0)?)?;
        first += ids.dim(0)?;
        let of_logits = piece.gradient(&ids)?.broadcast_mul(&scales)?.to_dtype(weight.dtype())?;
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

/// Splits targets into pieces whose logits may exist at once.
fn pieces(hidden: &Tensor, weight: &Tensor, ids: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
    let (targets, rows) = (hidden.dim(0)?, (LOGITS / weight.dim(0)?).max(1));
    (0..targets)
        .step_by(rows)
        .map(|first| {
            let count = rows.min(targets - first);
            Ok((hidden.narrow(0, first, count)?, ids.narrow(0, first, count)?.unsqueeze(1)?))
        })
        .collect()
}

/// The logits of some targets, minus each row's maximum, and the sums of their exponentials.
struct Piece {
    shifted: Tensor,
    exponentials: Tensor,
    sums: Tensor,
}

impl Piece {
    fn new(hidden: &Tensor, weight: &Tensor) -> Result<Self> {
        let logits = hidden.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exponentials = shifted.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        Ok(Self { shifted, exponentials, sums })
    }

    /// Returns Σ of −ln softmax at the targets' ids [targets, 1].
    fn sum(&self, ids: &Tensor) -> Result<f64> {
        Ok(self.losses(ids)?.into_iter().sum())
    }

    /// Returns −ln softmax at each target's id.
    fn losses(&self, ids: &Tensor) -> Result<Vec<f64>> {
        let losses = (self.sums.log()? - self.shifted.gather(ids, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(losses.into_iter().map(f64::from).collect())
    }

    /// Returns the gradient of the sum by the logits: softmax, minus 1 at the target.
    fn gradient(&self, ids: &Tensor) -> Result<Tensor> {
        let minus = Tensor::full(-1.0_f32, ids.shape(), ids.device())?;
        self.exponentials.broadcast_div(&self.sums)?.scatter_add(ids, &minus, 1)
    }
}
