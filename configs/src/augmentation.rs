//! Changed versions of prompts: their settings, and what they can be combined with. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, DataFormat, Method, Training};

/// Versions of prompts with other letters, spaces and signs, which ask the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentationSettings {
    /// Share of the examples whose prompts are changed; 0 for none.
    pub probability: f64,
    /// Share of the words of a prompt that are changed.
    pub rate: f64,
    /// Number of changed versions of each record.
    pub variants: u32,
    /// What is changed.
    pub kinds: Vec<AugmentationKind>,
}

/// What is changed of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AugmentationKind {
    /// Its letters become upper or lower case.
    Case,
    /// The space after it is doubled.
    Whitespace,
    /// A sign after it is left out, doubled or added.
    Punctuation,
    /// Two letters are swapped, or one is left out, doubled, or a neighbour on the keyboard.
    Typos,
    /// It is left out, if it carries no meaning.
    Dropout,
}

impl AugmentationKind {
    /// Returns its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Case => "case",
            Self::Whitespace => "whitespace",
            Self::Punctuation => "punctuation",
            Self::Typos => "typos",
            Self::Dropout => "dropout",
        }
    }
}

/// Checks that augmentation, data and method can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let (training, data) = (&run.settings.training, &run.settings.data);
    let probability = data.augmentation.probability;
    if probability <= 0.0 {
        return Ok(());
    }
    let right = if training.method == Method::Dpo {
        "the log-probabilities of the reference are those of the records as they are; write 0 with training.method=dpo"
    } else if training.private().is_some() {
        "private steps draw records and not examples; write 0 with training.privacy"
    } else if data.format == DataFormat::Text {
        "texts have no prompts, and nothing else is changed; write 0 with data.format=text"
    } else {
        return Ok(());
    };
    let (key, value) = ("data.augmentation.probability", probability.to_string());
    Err(ConfigError::Conflict { key, value, right: right.to_owned() })
}
