//! Training on preferences: its settings, and what they can be combined with. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, DataFormat, Format, Loss, Method, Optimization, Training, TrainingSettings};

/// The objective of direct preference optimization. Names are those of TRL's `DPOConfig`, but for `lora`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoSettings {
    /// Factor β of the rewards.
    pub beta: f64,
    /// Probability that the responses of a record are the wrong way round.
    pub label_smoothing: f64,
    /// Whether adapters are trained instead of all weights.
    pub lora: bool,
}

impl Optimization {
    /// Returns whether adapters are trained beside frozen weights.
    pub fn trains_adapters(&self) -> bool {
        match self.method {
            Method::Lora => true,
            Method::Dpo => self.dpo.lora,
            Method::Grpo => self.grpo.lora,
            Method::Sft | Method::None => false,
        }
    }

    /// Returns the objective of preferences; `None` if responses are learned.
    pub fn preferences(&self) -> Option<DpoSettings> {
        (self.method == Method::Dpo).then_some(self.dpo)
    }
}

impl Training {
    /// Checks that the run has a base, if its method needs one.
    ///
    /// # Errors
    /// [`ConfigError`] names the method and what to write instead.
    pub fn check_base(&self, given: bool) -> Result<(), ConfigError> {
        let method = match self.settings.training.method {
            Method::Sft => return Ok(()),
            Method::Lora => "lora",
            Method::Dpo => "dpo",
            Method::Grpo => "grpo",
            Method::None => "none",
        };
        if given {
            return Ok(());
        }
        let right = "it needs a base; set spec.base, or write sft".to_owned();
        Err(ConfigError::Conflict { key: "training.method", value: method.to_owned(), right })
    }
}

/// Checks that method, data and responses can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let TrainingSettings { training, data, response, .. } = &run.settings;
    let conflict = |key, value: &str, right: &str| {
        Err(ConfigError::Conflict { key, value: value.to_owned(), right: right.to_owned() })
    };
    if training.preferences().is_none() {
        if training.dpo.lora {
            let right = "it belongs to training.method=dpo; write false, or training.method=dpo";
            return conflict("training.dpo.lora", "true", right);
        }
        return Ok(());
    }
    if data.loss == Loss::All {
        let right = "training.method=dpo compares the tokens of responses only; write responses";
        return conflict("data.loss", "all", right);
    }
    if response.format == Format::Answer {
        let right = "training.method=dpo compares responses as they are; write steps";
        return conflict("response.format", "answer", right);
    }
    if data.format == DataFormat::Text {
        let right = "training.method=dpo needs a prompt, a chosen and a rejected response in each record; write jsonl, csv or parquet";
        return conflict("data.format", "text", right);
    }
    if let Some(index) = run.data.iter().position(|data| data.synthetic.is_some()) {
        let field = format!("data[{index}].synthetic");
        let value = run.data[index].synthetic.as_ref().map_or_else(String::new, |made| format!("{:?}", made.task));
        let right = "synthetic tasks have no rejected responses; use a file with training.method=dpo".to_owned();
        return Err(ConfigError::Data { field, value, right });
    }
    Ok(())
}
