//! Differential privacy of training: its settings, and what they can be combined with. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, Dtype, Method, Optimization, SpikeAction, TraceMode, Training};

/// DP-SGD (Abadi et al. 2016) with Poisson sampling of records. Names are those of Opacus.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacySettings {
    /// Standard deviation of the noise, in units of `max_grad_norm`.
    pub noise_multiplier: Option<f64>,
    /// The epsilon that chooses the noise.
    pub target_epsilon: Option<f64>,
    /// The delta of the guarantee.
    pub target_delta: f64,
    /// Maximum norm of the gradient of a record, which is clipped to it.
    pub max_grad_norm: f64,
    /// What records and noise are drawn from.
    pub randomness: Randomness,
}

/// What the records of private steps and their noise are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Randomness {
    /// A random key of the run, which only its checkpoints hold.
    Secret,
    /// The seed of the run.
    Seed,
}

impl Optimization {
    /// Returns the settings of private training; `None` if the run is not private.
    pub fn private(&self) -> Option<&PrivacySettings> {
        let PrivacySettings { noise_multiplier, target_epsilon, .. } = &self.privacy;
        (noise_multiplier.is_some() || target_epsilon.is_some()).then_some(&self.privacy)
    }
}

/// Checks that nothing else of the configuration breaks the guarantee.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let training = &run.settings.training;
    let Some(privacy) = training.private() else { return Ok(()) };
    let conflict = |key, value: String, right: &str| {
        let right = format!("with training.privacy, {right}");
        Err(ConfigError::Conflict { key, value, right })
    };
    if let (Some(noise), Some(_)) = (privacy.noise_multiplier, privacy.target_epsilon) {
        let right = "training.privacy.target_epsilon chooses the noise; write null for one of the two";
        return conflict("training.privacy.noise_multiplier", noise.to_string(), right);
    }
    let method = match training.method {
        Method::Sft | Method::Lora => None,
        Method::Dpo => Some("dpo"),
        Method::Grpo => Some("grpo"),
        Method::None => Some("none"),
    };
    if let Some(method) = method {
        let right =
            "the gradient of each record is clipped on its own, which is done for sft and lora; write one of them";
        return conflict("training.method", method.to_owned(), right);
    }
    if !run.settings.curriculum.phases.is_empty() {
        let schedule = run.settings.curriculum.phase_schedule.clone();
        let right = "every step draws from all records with the same probability, so it has no phases and no replay; \
                     write none";
        return conflict("curriculum.phase_schedule", schedule, right);
    }
    if run.settings.data.weights.is_some() {
        let right = "every record has the same probability; write null";
        return conflict("data.weights", "set".to_owned(), right);
    }
    if training.dtype == Dtype::Fp16 {
        let right =
            "the gradient of each record is clipped on its own, and has no scale of its own; write bf16 or fp32";
        return conflict("training.dtype", "fp16".to_owned(), right);
    }
    if !training.shuffle {
        let right = "records are drawn at random; write true";
        return conflict("training.shuffle", "false".to_owned(), right);
    }
    if training.spike_action == SpikeAction::Skip {
        let right = "a step must not depend on losses, which have no noise; write count or ignore";
        return conflict("training.spike_action", "skip".to_owned(), right);
    }
    if let Some(patience) = training.early_stop_patience.filter(|_| training.best_metric == "loss") {
        let right =
            "the end must not depend on the loss of training records; write null, or training.best_metric=val_loss";
        return conflict("training.early_stop_patience", patience.to_string(), right);
    }
    if training.tool_supervision().is_some() {
        let right = "the loss of a record must not depend on the others of its step; write 1";
        let weight = training.reasoning.objective.tool_supervision_weight;
        return conflict("training.reasoning.objective.tool_supervision_weight", weight.to_string(), right);
    }
    if run.settings.trace_mode() != TraceMode::Disabled {
        let right = "no trace of a single record may be written; write false";
        return conflict("logging.reasoning_trace", "true".to_owned(), right);
    }
    if training.gradient_noise_scale {
        let right = "no statistics of gradients without noise may be written; write false";
        return conflict("training.gradient_noise_scale", "true".to_owned(), right);
    }
    Ok(())
}
