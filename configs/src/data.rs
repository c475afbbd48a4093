//! Data files in a resolved configuration. Pure.

use std::collections::BTreeSet;

use codex_provenance::DataDigest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ConfigError, error::nearest};

/// The synthetic tasks.
pub const TASKS: &[&str] =
    &["arithmetic", "word-problems", "arithmetic-5", "multiplication", "word-problems-3", "arithmetic-padded"];
/// Maximum number of records of a synthetic file.
pub const MAX_SYNTHETIC: u64 = 10_000_000;
/// Name of the problems in the data of an evaluation.
pub const PROBLEMS: &str = "problems";
/// Name of the predictions of the baseline in the data of an evaluation.
pub const BASELINE: &str = "baseline";
/// What the name of the outcomes of another evaluation begins with in the data of an evaluation.
pub const REFERENCE: &str = "reference-";
/// Name of the validation records in the data of a training run. They are evaluated and never trained on.
pub const VALIDATION: &str = "validation";
/// What the names of plugins begin with in the data of a training run and of an evaluation.
const PLUGIN: &str = "plugin-";
/// Name of the plugin that scores the responses of an evaluation.
pub const PLUGIN_METRIC: &str = "plugin-metric";
/// Name of the plugin that rewards sampled answers in the data of a training run.
pub const PLUGIN_REWARD: &str = "plugin-reward";
/// Name of the plugin that selects records in the data of a training run.
pub const PLUGIN_FILTER: &str = "plugin-filter";
/// Name of the safety rules in the data of a training run. Its records are checked by them.
pub const SAFETY_RULES: &str = "safety-rules";

/// A file of records, either pinned by its digest or generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Data {
    /// Name, unique within the object.
    pub name: String,
    /// SHA-256 of the file. Required unless the data is synthetic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<DataDigest>,
    /// Generator of the file, if it is synthetic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
}

impl Data {
    /// Whether a training run is trained on its records: those of all files but the one that is held out.
    pub fn is_trained_on(&self) -> bool {
        self.name != VALIDATION && self.has_records()
    }

    /// Whether it is a file of records in a training run: neither a plugin nor safety rules.
    pub fn has_records(&self) -> bool {
        !self.is_plugin() && self.name != SAFETY_RULES
    }

    /// Whether it is the file of a plugin.
    pub fn is_plugin(&self) -> bool {
        self.name.starts_with(PLUGIN)
    }
}

/// Generated records. The same values give the same bytes on every machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Synthetic {
    /// The task, one of [`TASKS`].
    pub task: String,
    /// Seed of the generator.
    pub seed: u64,
    /// Number of records.
    pub count: u64,
}

/// Checks the data of an object.
pub(crate) fn check(data: &[Data]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for (index, item) in data.iter().enumerate() {
        let refuse = |field: &str, value: String, right: String| ConfigError::Data {
            field: format!("data[{index}]{field}"),
            value,
            right,
        };
        if !is_name(&item.name) {
            let right = "write 1 to 63 lower-case letters, digits and inner dashes".to_owned();
            return Err(refuse(".name", format!("{:?}", item.name), right));
        }
        if !names.insert(&item.name) {
            return Err(refuse(".name", format!("{:?}", item.name), "give each file a unique name".to_owned()));
        }
        let Some(synthetic) = &item.synthetic else {
            if item.sha256.is_none() {
                let right = format!("set data[{index}].sha256 to the SHA-256 of the file (sha256sum FILE)");
                return Err(refuse("", format!("{:?}", item.name), right));
            }
            continue;
        };
        if !TASKS.contains(&synthetic.task.as_str()) {
            let meant = nearest(&synthetic.task, TASKS).map(|task| format!(" (did you mean {task}?)"));
            let right = format!("use one of {}{}", TASKS.join(", "), meant.unwrap_or_default());
            return Err(refuse(".synthetic.task", format!("{:?}", synthetic.task), right));
        }
        if !(1..=MAX_SYNTHETIC).contains(&synthetic.count) {
            let right = format!("write a whole number from 1 to {MAX_SYNTHETIC}");
            return Err(refuse(".synthetic.count", synthetic.count.to_string(), right));
        }
        if synthetic.seed > crate::MAX_SEED {
            let right = format!("write a whole number from 0 to {}", crate::MAX_SEED);
            return Err(refuse(".synthetic.seed", synthetic.seed.to_string(), right));
        }
    }
    Ok(())
}

/// Checks the names of plugins: `known` are those that the object can have, and what each needs.
///
/// # Errors
/// [`ConfigError`] names the item and the names that are known.
pub(crate) fn check_plugins(data: &[Data], known: &[&str]) -> Result<(), ConfigError> {
    for (index, item) in data.iter().enumerate().filter(|(_, item)| item.is_plugin()) {
        let refuse = |field: &str, value: String, right: String| {
            Err(ConfigError::Data { field: format!("data[{index}]{field}"), value, right })
        };
        if !known.contains(&item.name.as_str()) {
            let right = format!("a name that begins with {PLUGIN} is that of a plugin; use {}", known.join(" or "));
            return refuse(".name", format!("{:?}", item.name), right);
        }
        if item.synthetic.is_some() {
            return refuse(".synthetic", format!("set for {}", item.name), "name the file of the plugin".to_owned());
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    is_name_of(name, &['-'])
}

/// Whether a text has 1 to 63 lower-case letters, digits and, inside, these characters.
pub(crate) fn is_name_of(name: &str, inner: &[char]) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| plain(byte) || inner.contains(&char::from(byte)))
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}
