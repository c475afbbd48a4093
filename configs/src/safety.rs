//! Safety rules over the records of a training run: their settings, and what they can be combined with. Pure.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, SAFETY_RULES, Training};

/// The groups of known forms that safety rules can name.
pub const SAFETY_GROUPS: &[&str] = &["secrets", "pii", "jailbreak", "shell", "sql"];

/// What happens to records with a known form of secrets, personal data and dangerous texts, beside the rules of the data named
/// `safety-rules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafetySettings {
    /// Groups whose records are left out.
    pub block: Vec<String>,
    /// Groups of which every match is replaced.
    pub redact: Vec<String>,
}

impl SafetySettings {
    /// Whether they name no group.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty() && self.redact.is_empty()
    }
}

/// Checks that settings and data can be combined.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let SafetySettings { block, redact } = &run.settings.data.safety;
    if let Some(group) = redact.iter().find(|group| block.contains(group)) {
        return Err(ConfigError::Conflict {
            key: "data.safety.redact",
            value: format!("[{}]", redact.join(", ")),
            right: format!("{group} is in data.safety.block, too; write it in one of them"),
        });
    }
    let generated = |(_, item): &(usize, &crate::Data)| item.name == SAFETY_RULES && item.synthetic.is_some();
    match run.data.iter().enumerate().find(generated) {
        Some((index, _)) => Err(ConfigError::Data {
            field: format!("data[{index}].synthetic"),
            value: format!("set for {SAFETY_RULES}"),
            right: "name the file of the rules".to_owned(),
        }),
        None => Ok(()),
    }
}
