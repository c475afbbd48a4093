//! Training by rewards that a program can verify: its settings, and what they can be combined with. Pure.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{
    AnswerForm, Compare, ConfigError, DataFormat, Loss, Method, Optimization, PLUGIN_REWARD, ReferenceForm, Training,
    TrainingSettings, evaluation,
};

/// Group relative policy optimization (Shao et al. 2024), with one optimizer step for each rollout: answers are sampled from the
/// weights that they train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpoSettings {
    /// Number of answers that are sampled to each prompt.
    pub group: usize,
    /// The most tokens of an answer. A longer one is cut off and not learned from.
    pub max_new_tokens: usize,
    /// Whether adapters are trained instead of all weights.
    pub lora: bool,
    /// The reward of an answer.
    pub reward: RewardSettings,
}

/// The reward of an answer: a weighted sum of what can be verified about it. Names are those of evaluations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSettings {
    /// Version of the function. Another version may reward the same answer differently.
    pub version: u64,
    /// What is compared of an answer.
    pub answer: AnswerForm,
    /// The text before the answer, for [`AnswerForm::After`].
    pub after: Option<String>,
    /// The regular expression of the answer, for [`AnswerForm::Regex`].
    pub pattern: Option<String>,
    /// The number of letters to choose from, for [`AnswerForm::Choice`].
    pub choices: u64,
    /// Where the right answer is.
    pub reference: ReferenceForm,
    /// How two answers are compared.
    pub compare: Compare,
    /// How far two numbers may differ, for [`Compare::Numeric`].
    pub tolerance: f64,
    /// Reward of a right answer.
    pub correct: f64,
    /// Reward of a text in which an answer is found, right or wrong.
    pub format: f64,
    /// Reward of all steps of the reference, in its order; a share of them earns its share. Needs [`AnswerForm::Marked`].
    pub steps: f64,
}

impl RewardSettings {
    /// Whether nothing about an answer earns anything, so that only a plugin rewards it.
    pub fn needs_no_answer(&self) -> bool {
        self.correct + self.format + self.steps <= 0.0
    }

    /// Returns the regular expression of [`AnswerForm::Regex`]; `None` for other forms.
    ///
    /// # Errors
    /// [`ConfigError`] if it is missing or malformed.
    pub fn regex(&self) -> Result<Option<Regex>, ConfigError> {
        evaluation::regex("training.grpo.reward", self.answer, self.pattern.as_deref())
    }
}

impl Optimization {
    /// Returns the settings of rewards; `None` if the method learns from given responses.
    pub fn rewards(&self) -> Option<&GrpoSettings> {
        (self.method == Method::Grpo).then_some(&self.grpo)
    }
}

/// Checks that method, data and rewards can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let TrainingSettings { training, data, .. } = &run.settings;
    let conflict = |key, value: String, right: &str| Err(ConfigError::Conflict { key, value, right: right.to_owned() });
    let GrpoSettings { lora, reward, .. } = &training.grpo;
    let plugin = run.data.iter().position(|data| data.name == PLUGIN_REWARD);
    let Some(_) = training.rewards() else {
        if let Some(index) = plugin {
            return Err(ConfigError::Data {
                field: format!("data[{index}].name"),
                value: format!("{PLUGIN_REWARD:?}"),
                right: "it rewards sampled answers; set training.method=grpo, or remove this item".to_owned(),
            });
        }
        if *lora {
            let right = "it belongs to training.method=grpo; write false, or training.method=grpo";
            return conflict("training.grpo.lora", "true".to_owned(), right);
        }
        return Ok(());
    };
    if data.loss == Loss::All {
        let right = "training.method=grpo samples the responses; write responses";
        return conflict("data.loss", "all".to_owned(), right);
    }
    if data.format == DataFormat::Text {
        let right = "training.method=grpo needs a prompt and a response in each record; write jsonl, csv or parquet";
        return conflict("data.format", "text".to_owned(), right);
    }
    if *lora && training.lora.dropout > 0.0 {
        let right =
            "write 0, because training.method=grpo trains on the probabilities that its answers were sampled with";
        return conflict("training.lora.dropout", training.lora.dropout.to_string(), right);
    }
    evaluation::check_answer(
        "training.grpo.reward",
        reward.answer,
        reward.after.as_deref(),
        reward.pattern.as_deref(),
    )?;
    if reward.steps > 0.0 && reward.answer != AnswerForm::Marked {
        let right = "steps are found in texts with marked answers; write 0, or training.grpo.reward.answer=marked";
        return conflict("training.grpo.reward.steps", reward.steps.to_string(), right);
    }
    if reward.needs_no_answer() && plugin.is_none() {
        let right = "every answer has the same reward, from which nothing is learned; write a number above 0, such as 1, or add a \
             plugin named plugin-reward to data";
        return conflict("training.grpo.reward.correct", reward.correct.to_string(), right);
    }
    Ok(())
}
