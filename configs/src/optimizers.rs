//! What updates the weights, and what is kept and measured beside them: their settings, and what they can be combined with. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, Method, Training};

/// What updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// The optimizer.
    pub name: OptimizerName,
    /// Momentum of [`OptimizerName::Muon`].
    pub momentum: f64,
    /// How the moments of [`OptimizerName::Adamw`] are kept.
    pub moments: MomentType,
}

/// How moments are kept between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentType {
    /// 32 bits each.
    #[serde(rename = "fp32")]
    Fp32,
    /// 8 bits each, quantized in blocks (Dettmers et al. 2022).
    #[serde(rename = "8bit")]
    EightBit,
}

/// An optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW for all weights (Loshchilov and Hutter 2019).
    Adamw,
    /// Muon for the matrices of blocks (Jordan et al. 2024), AdamW for embeddings, norms, biases and heads.
    Muon,
}

/// The moving average of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaSettings {
    /// Share of the average that a step keeps. `None` means no average.
    pub decay: Option<f64>,
}

/// Checks that optimizer, measurements and method can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let training = &run.settings.training;
    let conflict = |key, value: &str, right: &str| {
        Err(ConfigError::Conflict { key, value: value.to_owned(), right: right.to_owned() })
    };
    if training.optimizer.name == OptimizerName::Muon && training.trains_adapters() {
        let right = "adapters are products of two matrices, which Muon does not treat as one; write adamw";
        return conflict("training.optimizer.name", "muon", right);
    }
    if training.optimizer.name == OptimizerName::Muon && training.optimizer.moments == MomentType::EightBit {
        let right = "Muon has no second moment, and its momentum is not quantized; write fp32, or training.optimizer.name=adamw";
        return conflict("training.optimizer.moments", "8bit", right);
    }
    if !training.gradient_noise_scale {
        return Ok(());
    }
    let key = "training.gradient_noise_scale";
    if training.gradient_accumulation < 2 {
        let right = "it compares the forward passes of a step; set training.gradient_accumulation to at least 2";
        return conflict(key, "true", right);
    }
    if matches!(training.method, Method::Dpo | Method::Grpo) {
        let right = "it is measured on the loss of single records; write false with training.method dpo and grpo";
        return conflict(key, "true", right);
    }
    if training.tool_supervision().is_some() {
        let right = "tokens of tool calls have a weight of their own; write false, or \
                     training.reasoning.objective.tool_supervision_weight=1";
        return conflict(key, "true", right);
    }
    Ok(())
}
