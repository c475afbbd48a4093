//! Direct preference optimization (Rafailov et al. 2023): the loss of pairs of responses, its slopes and its measurements. Pure.

use codex_configs::DpoSettings;

use super::Measured;

/// Log-probabilities of a chosen and of a rejected response.
pub(crate) type Pair = [f64; 2];

/// What is measured of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Preferences {
    /// Mean of the chosen response's reward minus the rejected one's. A reward is β times the change of the log-probability.
    pub(crate) margin: f64,
    /// Share of the pairs with a positive margin.
    pub(crate) accuracy: f64,
}

/// The comparison of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Compared {
    pub(super) loss: f64,
    pub(super) margin: f64,
    /// Derivative of the loss by the log-probability of the chosen response; that by the rejected one's is its negative.
    pub(super) slope: f64,
}

/// Returns ln σ(x).
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// Returns σ(x).
fn sigmoid(x: f64) -> f64 {
    let small = (-x.abs()).exp();
    if x < 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) }
}

/// Compares the responses of a pair, by their log-probabilities under the trained model and under the reference.
pub(super) fn compare(settings: &DpoSettings, policy: Pair, reference: Pair) -> Compared {
    let DpoSettings { beta, label_smoothing, .. } = *settings;
    let [chosen, rejected] = [0, 1].map(|at| beta * (policy[at] - reference[at]));
    let margin = chosen - rejected;
    Compared {
        loss: -(1.0 - label_smoothing) * log_sigmoid(margin) - label_smoothing * log_sigmoid(-margin),
        margin,
        slope: beta * (label_smoothing * sigmoid(margin) - (1.0 - label_smoothing) * sigmoid(-margin)),
    }
}

/// Sums over pairs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    loss: f64,
    margin: f64,
    right: u64,
    pairs: u64,
}

impl Tally {
    /// Adds a pair.
    pub(super) fn add(&mut self, compared: &Compared) {
        self.loss += compared.loss;
        self.margin += compared.margin;
        self.right += u64::from(compared.margin > 0.0);
        self.pairs += 1;
    }

    /// Returns the mean loss and the measurements.
    pub(crate) fn finish(self) -> Measured {
        let pairs = self.pairs.max(1) as f64;
        let preferences = Preferences { margin: self.margin / pairs, accuracy: self.right as f64 / pairs };
        Measured { loss: self.loss / pairs, preferences: Some(preferences), sampled: None }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        policy: Pair,
        reference: Pair,
        beta: f64,
        label_smoothing: f64,
        loss: f64,
        rewards: Pair,
        margin: f64,
        right: bool,
        slope: f64,
    }

    #[test]
    fn losses_and_slopes_are_those_of_trls_formula() {
        let cases: Vec<Case> = serde_json::from_slice(include_bytes!("fixtures/dpo.json")).unwrap();
        assert_eq!(cases.len(), 24);
        let mut right = 0;
        for Case { policy, reference, beta, label_smoothing, loss, rewards, margin, right: is_right, slope } in cases {
            let settings = DpoSettings { beta, label_smoothing, lora: false };
            let found = compare(&settings, policy, reference);
            assert!((found.loss - loss).abs() <= 1e-13 * loss.abs(), "{found:?} {loss}");
            assert!((found.margin - margin).abs() <= 1e-12, "{found:?} {margin}");
            assert!((rewards[0] - rewards[1] - margin).abs() < 1e-12);
            assert!((found.slope - slope).abs() <= 1e-12, "{found:?} {slope}");
            assert_eq!(found.margin > 0.0, is_right);
            right += usize::from(is_right);
        }
        assert_eq!(right, 12);
    }

    #[test]
    fn pairs_are_averaged() {
        let settings = DpoSettings { beta: 0.5, label_smoothing: 0.0, lora: false };
        let mut tally = Tally::default();
        for policy in [[-1.0, -3.0], [-4.0, -3.0], [-2.0, -2.0], [-1.0, -2.0]] {
            tally.add(&compare(&settings, policy, [-2.0, -2.0]));
        }
        let Measured { loss, preferences, .. } = tally.finish();
        let Preferences { margin, accuracy } = preferences.unwrap();
        assert!((margin - 0.25).abs() < 1e-12 && (accuracy - 0.5).abs() < 1e-12, "{margin} {accuracy}");
        let expected = [1.0_f64, -0.5, 0.0, 0.5].map(|margin| (1.0 + (-margin).exp()).ln());
        assert!((loss - expected.iter().sum::<f64>() / 4.0).abs() < 1e-12, "{loss}");
    }
}
